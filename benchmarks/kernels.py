"""Which of onnxruntime's kernels a process will run, and a process that runs those of an AVX2 CPU.

onnxruntime chooses its kernels by CPUID, so they are named by what CPUID says in the very process that measures. Where
the CPU has AVX-512 and CPUID can be made to fault (Linux, `hide_avx512.c`), a second way of running hides AVX-512, VNNI
and AMX. Nothing is believed: `find_modes` starts a process in each way and asks it.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common import run_process, say

from matexport.host import read_host

SOURCE = Path(__file__).with_name("hide_avx512.c")
AVX2 = "AVX2"

#: Flag -> subleaf of CPUID leaf 7, register (EAX to EDX), bit.
LEAF7 = {
    "avx2": (0, 1, 5),
    "avx512bw": (0, 1, 30),
    "avx512_vnni": (0, 2, 11),
    "amx_int8": (0, 3, 25),
    "avx_vnni": (1, 0, 4),
}

#: The name of the kernels and the flag that selects them, the first that is present.
KERNELS = (
    ("AMX", "amx_int8"),
    ("AVX-512 with VNNI", "avx512_vnni"),
    ("AVX-512 without VNNI", "avx512bw"),
    ("AVX2 with VNNI", "avx_vnni"),
    (AVX2, "avx2"),
    ("Arm i8mm", "i8mm"),
    ("Arm dot", "asimddp"),
    ("Arm", "asimd"),
)


@dataclass(frozen=True)
class Mode:
    """A way of starting processes, and the kernels that onnxruntime runs in them."""

    name: str
    kernels: str
    library: Path | None
    environment: Mapping[str, str]


def find_modes(folder: Path, wanted: Sequence[str]) -> list[Mode]:
    """The ways of running that this machine has: as it is, and where that is not AVX2 anyway, with AVX-512 hidden.

    Args:
        folder: where the library is compiled.
        wanted: ``as it is``, ``as AVX2``, or both.

    Raises:
        SystemExit: none of the wanted ones can be had.
    """
    library = compile_library(folder)
    modes = [Mode("as it is", ask_process(library, {}), library, {})]
    if library and modes[0].kernels != AVX2:
        preload = ":".join(part for part in (str(library), os.environ.get("LD_PRELOAD")) if part)
        environment = {"LD_PRELOAD": preload, "HIDE_AVX512": "1"}
        modes.append(Mode("AVX-512 hidden", ask_process(library, environment), library, environment))
    found = {"as it is": modes[0], "as AVX2": next((mode for mode in modes if mode.kernels == AVX2), None)}
    for name in wanted:
        if not found[name]:
            say(f"cannot run {name}: CPUID cannot be made to fault here, or there is no cc")
    chosen = [mode for mode in modes if any(found[name] is mode for name in wanted)]
    if not chosen:
        raise SystemExit("nothing can be measured in the way that was asked for")
    return chosen


def compile_library(folder: Path) -> Path | None:
    """`hide_avx512.c` as a shared library; None where it makes no sense or there is no compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if platform.system() != "Linux" or platform.machine() != "x86_64" or not compiler:
        return None
    library = folder / "hide_avx512.so"
    done = subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, SOURCE], stdout=sys.stderr)
    return library if done.returncode == 0 else None


def ask_process(library: Path | None, environment: Mapping[str, str]) -> str:
    """What a process that is started in this way finds."""
    argument = json.dumps(str(library) if library else None)
    answer: str = json.loads(run_process([sys.executable, Path(__file__), argument], **environment).stdout)
    return answer


def read_kernels(library: str | None) -> str:
    """The kernels of this process, by CPUID; by /proc/cpuinfo without a library that reads CPUID."""
    return name_kernels(read_leaf7(library) if library else read_host().instruction_sets)


def read_leaf7(library: str) -> set[str]:
    """The flags that CPUID shows to this process."""
    registers = (ctypes.c_uint32 * 4)()
    read = ctypes.CDLL(library).read_cpuid
    leaves = []
    for subleaf in (0, 1):
        read(7, subleaf, registers)
        leaves.append(tuple(registers))
    return {flag for flag, (subleaf, register, bit) in LEAF7.items() if leaves[subleaf][register] >> bit & 1}


def name_kernels(flags: Collection[str]) -> str:
    return next((name for name, flag in KERNELS if flag in flags), "baseline")


if __name__ == "__main__":
    print(json.dumps(read_kernels(json.loads(sys.argv[1]))))
