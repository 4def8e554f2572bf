"""Describe the host that a measurement belongs to. Reads /proc, /sys and Python's path; measures nothing."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from matexport.spec.measured import Host

#: Instruction sets that change which kernels onnxruntime runs, as /proc/cpuinfo spells them.
KERNEL_FLAGS = (
    "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx_vnni", "avx_vnni_int8",
    "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme",
)  # fmt: skip

#: What onnxruntime is installed under: with CUDA, and of other makers.
ONNXRUNTIMES = ("onnxruntime", "onnxruntime_gpu", "onnxruntime_openvino", "onnxruntime_directml", "onnxruntime_qnn")

#: (implementer, part) of ARM cores -> their name, as `lscpu` gives it (util-linux, sys-utils/lscpu-arm.c). For these
#: cores the kernel gives no model name, or the same "ARMv8 Processor" for all.
ARM_CORES = {
    ("0x41", part): name
    for part, name in {
        "0xd03": "Cortex-A53", "0xd04": "Cortex-A35", "0xd05": "Cortex-A55", "0xd07": "Cortex-A57",
        "0xd08": "Cortex-A72", "0xd09": "Cortex-A73", "0xd0a": "Cortex-A75", "0xd0b": "Cortex-A76",
        "0xd0c": "Neoverse-N1", "0xd0d": "Cortex-A77", "0xd0e": "Cortex-A76AE", "0xd40": "Neoverse-V1",
        "0xd41": "Cortex-A78", "0xd42": "Cortex-A78AE", "0xd44": "Cortex-X1", "0xd46": "Cortex-A510",
        "0xd47": "Cortex-A710", "0xd48": "Cortex-X2", "0xd49": "Neoverse-N2", "0xd4d": "Cortex-A715",
        "0xd4e": "Cortex-X3", "0xd4f": "Neoverse-V2", "0xd80": "Cortex-A520", "0xd81": "Cortex-A720",
        "0xd82": "Cortex-X4", "0xd84": "Neoverse-V3",
    }.items()
}  # fmt: skip


def read_host() -> Host:
    """The host that this process runs on."""
    import platform

    info = _read_cpuinfo()
    flags = set(info.get("flags", info.get("Features", "")).split())
    return Host(
        cpu=_name_arm_core(info) or info.get("model name") or platform.processor() or "unknown",
        machine=platform.machine(),
        instruction_sets=tuple(flag for flag in KERNEL_FLAGS if flag in flags),
        cpus=count_cpus(),
        os=" ".join((platform.system(), *platform.libc_ver())).strip(),
        python=platform.python_version(),
        onnxruntime=_read_version(*ONNXRUNTIMES),
    )


def read_gpus(root: Path = Path("/proc/driver/nvidia/gpus")) -> tuple[str, ...]:
    """Names of the NVIDIA cards that the driver of this system has, in the order of their places on the bus."""
    names = []
    for folder in sorted(root.glob("*")):
        with contextlib.suppress(OSError):
            lines = (folder / "information").read_text(encoding="utf-8", errors="replace").splitlines()
            names += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return tuple(names)


def count_cpus() -> int:
    """Number of CPUs that this process may use: the smaller of its affinity (taskset) and its control groups' quota.

    A quota of one and a half CPUs counts as one: a second thread would be stopped half of the time.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read_quota(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def _read_quota(root: Path, own: Path) -> float | None:
    """CPUs that the control groups of this process grant, v1 and v2: the least over its groups and those above them.

    Args:
        root: where control groups are mounted.
        own: the file that lists this process's groups.

    Returns:
        a number of CPUs, which need not be whole; None where there is no limit, or there are no control groups.
    """
    try:
        groups = [line.split(":", 2)[1:] for line in own.read_text().splitlines()]
    except OSError:
        return None
    limits: list[float] = []
    for controllers, path in groups:
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "cpu" if controllers else root
        inner = Path(path.lstrip("/"))
        for folder in (base / part for part in (inner, *inner.parents)):
            try:
                if controllers:
                    quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
                else:
                    quota, period = (folder / "cpu.max").read_text().split()
                if quota.strip() not in ("max", "-1"):
                    limits.append(int(quota) / int(period))
            except (OSError, ValueError, ZeroDivisionError):
                continue
    return min(limits, default=None)


def _read_version(*packages: str) -> str:
    """The version of an installed package: from the first match on Python's path, else from `importlib.metadata`.

    `importlib.metadata` takes 40 ms to import.

    Args:
        packages: names that it may be installed under; what was loaded from whichever of them is asked first.
    """
    loaded = getattr(sys.modules.get(packages[0]), "__version__", None)
    if loaded:
        return str(loaded)
    for folder in sys.path:
        for metadata in sorted(file for name in packages for file in Path(folder).glob(f"{name}-*.dist-info/METADATA")):
            with metadata.open(encoding="utf-8", errors="replace") as file:
                for line in file:
                    if line.startswith("Version:"):
                        return line.removeprefix("Version:").strip()
    import importlib.metadata

    return importlib.metadata.version(packages[0])


def _name_arm_core(info: dict[str, str]) -> str | None:
    return ARM_CORES.get((info.get("CPU implementer", "").lower(), info.get("CPU part", "").lower()))


def _read_cpuinfo() -> dict[str, str]:
    try:
        block = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        return {}
    lines = (line.partition(":") for line in block.splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def isolate_environment() -> dict[str, str]:
    """The environment of a child that finds libraries where this process finds them, but not where it was started.

    This package comes last: where it is run from its own checkout, nothing else there is found before a library.
    """
    here = {"", str(Path.cwd())}
    found = [path for path in sys.path if path not in here]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*found, str(Path(__file__).resolve().parents[1])])}
