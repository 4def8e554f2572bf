#!/usr/bin/env bash
# Pillow 13.0.0: resize() of a tall image gives other grey levels than Pillow 12.3.0, by up to 20 levels.
#
# Expected: `Image.resize` with one filter and one size gives the same picture in two releases, up to a grey level of
#   rounding: image processors of embedding models are built on it, and an index outlives a release of Pillow.
# What happens: both releases resample in two passes and round and clip to 8 bits between them. Up to 12 the columns come
#   first whatever the image's size; 13 takes the rows first where that leaves less to do, as with a picture that is much
#   higher than wide. After a clipped first pass of a bicubic filter the order shows. Wide images are the same in both.
#
# Output seen (black and white noise; width x height, squeezed to a square as ViT's and SigLIP's processors do):
#   Pillow 12.3.0 against 13.0.0, bicubic
#   wide 1600 x 100 to 224 x 224: 0 of 150528 levels differ, by up to 0
#   tall 100 x 1600 to 224 x 224: 122829 of 150528 levels differ, by up to 20
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat > draw.py <<'PY'
import random
import sys

import PIL
from PIL import Image

random.seed(0)
for name, size, target in (("wide", (1600, 100), (224, 224)), ("tall", (100, 1600), (224, 224))):
    noise = Image.frombytes("RGB", size, bytes(255 * (byte & 1) for byte in random.randbytes(3 * size[0] * size[1])))
    made = noise.resize(target, Image.Resampling.BICUBIC)
    open(f"{sys.argv[1]}-{name}", "wb").write(made.tobytes())
assert PIL.__version__ == sys.argv[1]
PY
for version in 12.3.0 13.0.0; do
  python3 -m venv "venv-$version"
  "venv-$version/bin/pip" install --quiet "pillow==$version"
  "venv-$version/bin/python" draw.py "$version"
done
python3 - <<'PY'
print("Pillow 12.3.0 against 13.0.0, bicubic")
found = {}
for name, said in (("wide", "1600 x 100 to 224 x 224"), ("tall", "100 x 1600 to 224 x 224")):
    old, new = (open(f"{version}-{name}", "rb").read() for version in ("12.3.0", "13.0.0"))
    off = [abs(left - right) for left, right in zip(old, new, strict=True)]
    found[name] = max(off)
    print(f"{name} {said}: {sum(map(bool, off))} of {len(off)} levels differ, by up to {max(off)}")
assert found["wide"] == 0 and found["tall"] > 5, "behaviour changed"
PY
