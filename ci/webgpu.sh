#!/bin/sh
# Verify profiles of a family on real GPU shaders without a GPU: the WebGPU provider of onnxruntime, on the Vulkan
# driver in software (SwiftShader) that comes with Chromium.
#
#   ci/webgpu.sh FAMILY [PROFILE...]
#
# Without profiles: the smallest and the largest point that the family has in fp32, and in fp16 where it has that.
# fp16 needs an adapter with half-precision shaders, which SwiftShader is not: there, matexport must refuse the profile
# and name the reason, and this script says so. Exits 1 where a profile is off its floor or is not refused as it must
# be, 2 where there is nothing to run it on.
#
# WEBGPU_ENV: folder of a virtual environment to make, or to take again (default: one that is removed at the end).
# PYTHON: what makes it (default: python3).
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
[ $# -ge 1 ] || { echo "usage: ci/webgpu.sh FAMILY [PROFILE...]" >&2; exit 2; }
family=$1
shift

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM

# The driver, and beside it the loader that finds it, where the system has none.
driver=${VK_DRIVER_FILES:-}
for found in /usr/lib/chromium /usr/lib/chromium-browser /usr/lib64/chromium-browser /opt/google/chrome; do
    [ -n "$driver" ] || [ ! -f "$found/vk_swiftshader_icd.json" ] || driver=$found/vk_swiftshader_icd.json
done
if [ -z "$driver" ] || [ ! -f "$driver" ]; then
    echo "webgpu: no vk_swiftshader_icd.json here: install chromium, or name a Vulkan driver in VK_DRIVER_FILES" >&2
    exit 2
fi
if ! ldconfig -p 2>/dev/null | grep -q 'libvulkan\.so\.1'; then
    loader=$(dirname "$driver")/libvulkan.so.1
    [ -f "$loader" ] || { echo "webgpu: no libvulkan.so.1 here: install libvulkan1" >&2; exit 2; }
    mkdir "$work/loader"
    ln -s "$loader" "$work/loader/libvulkan.so.1"
    export LD_LIBRARY_PATH="$work/loader${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
fi
export VK_DRIVER_FILES="$driver" ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER=1 ORT_DISABLE_TELEMETRY=1

# The environment: what runs a family, and the provider; of matexport, this checkout.
environment=${WEBGPU_ENV:-$work/env}
python=$environment/bin/python
wanted=$(cat "$root/pyproject.toml" "$root/constraints.txt" | cksum)
if [ "$(cat "$environment/made-for" 2>/dev/null || true)" != "$wanted" ]; then
    "${PYTHON:-python3}" -m venv --clear "$environment"
    "$python" -c 'import sys, tomllib
project = tomllib.load(open(sys.argv[1], "rb"))["project"]
print("\n".join([*project["dependencies"], *project["optional-dependencies"]["webgpu"]]))' \
        "$root/pyproject.toml" > "$work/requirements.txt"
    "$python" -m pip install --quiet --disable-pip-version-check -c "$root/constraints.txt" -r "$work/requirements.txt"
    echo "$wanted" > "$environment/made-for"
fi
export PYTHONPATH="$root"

if [ $# -eq 0 ]; then
    # shellcheck disable=SC2046
    set -- $("$python" - "$family" <<'PYTHON'
import sys
from matexport import load_family

profiles = load_family(sys.argv[1]).profiles
for precision in ("fp32", "fp16"):
    points = sorted(one.point for one in profiles if one.precision == precision and one.encoding == "float32")
    print(*dict.fromkeys(f"{point.name}-{precision}" for point in (points[:1] + points[-1:])))
PYTHON
    )
fi
[ $# -ge 1 ] || { echo "webgpu: $family has no profile in fp32 or fp16" >&2; exit 2; }

code=0
for profile in "$@"; do
    echo "== $profile on WebGPU"
    if "$python" -m matexport verify "$family" --provider webgpu --profile "$profile" > "$work/out" 2> "$work/err"; then
        cat "$work/out"
        continue
    fi
    cat "$work/out" "$work/err"
    case $profile in
    *-fp16*)
        if grep -q "$profile: .*requires f16 but the device does not support it" "$work/err"; then
            echo "webgpu: this adapter has no half-precision shaders; $profile was refused by name, as it must be"
            continue
        fi
        ;;
    esac
    code=1
done
exit $code
