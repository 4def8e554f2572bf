"""Plans of the native engine with one to three fields changed: each is refused, or runs within its memory.

    python benchmarks/fuzz_plans.py [--cases N] [--seed S] [--processes P]

The library is built anew with the compiler's address and undefined-behaviour sanitizers (GCC), and runs in processes of
their own, with every instruction set that is here in turns. A process that a sanitizer ends, or that dies otherwise, is
counted, with the seeds that it had. `tests/runtime/native/test_program.py` tries some hundreds without.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import Bar, Report, count_repeats, finish, make_parser, print_bars, say

ROOT = Path(__file__).resolve().parents[1]
BARS = (
    Bar("changed plans tried under the sanitizers", 1_000_000, at_least=True),
    Bar("changed plans: processes that died", 0),
)
#: Plans of one process: one that dies loses no more.
CHUNK = 5000
SANITIZE = "-fsanitize=address,undefined"
FLAGS = ("-std=c++17", "-O1", "-g", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off", "-w", SANITIZE)


def main() -> int:
    if len(sys.argv) > 1 and sys.argv[1] == "--child":
        return try_plans(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    parser = make_parser("fuzz_plans", __doc__, repeats=1)
    parser.add_argument("--cases", type=int, default=1_000_000, help="how many plans (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=multiprocessing.cpu_count())
    options = parser.parse_args()
    print_bars(BARS)
    cases = min(options.cases, 2000) if count_repeats(options, quick=0) == 0 else options.cases
    with tempfile.TemporaryDirectory(prefix="matexport-fuzz-") as made:
        library = build_library(Path(made))
        starts = range(options.seed, options.seed + cases, CHUNK)
        total: Counter[str] = Counter()
        died: list[str] = []
        with ThreadPoolExecutor(options.processes) as pool:
            sizes = [min(CHUNK, options.seed + cases - start) for start in starts]
            for start, result in zip(starts, pool.map(run_child, [library] * len(starts), starts, sizes), strict=True):
                if isinstance(result, str):
                    died.append(f"seeds from {start}: {result}")
                    say(died[-1])
                else:
                    total += result
                say(f"{sum(total.values())} tried: {dict(total)}")
    settings = {"cases": cases, "seed": options.seed, "chunk": CHUNK}
    bars = [(BARS[0], float(sum(total.values()))), (BARS[1], float(len(died)))]
    return finish("fuzz_plans", options, Report(bars, {"outcomes": dict(total), "died": died}, settings))


def build_library(folder: Path) -> Path:
    say("building the library with sanitizers")
    sources = [path for path in sorted((ROOT / "native").glob("*.cpp")) if path.name != "check.cpp"]
    out = folder / "encoder.so"
    subprocess.run(["g++", *FLAGS, *sources, "-o", out, "-pthread"], check=True)
    return out


def run_child(library: Path, start: int, count: int) -> Counter[str] | str:
    """What became of the plans, or how their process ended."""
    preload = " ".join(map(locate_sanitizer, ("libasan", "libubsan")))
    environment = os.environ | {
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "halt_on_error=1",
    }
    command = [sys.executable, __file__, "--child", str(library), str(start), str(count)]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if child.returncode:
        return f"exit code {child.returncode}: {child.stderr.strip().splitlines()[-1:]}"
    words = child.stdout.split()
    return Counter({"refused": int(words[0]), "ran": int(words[1])})


def locate_sanitizer(name: str) -> str:
    asked = ["gcc", f"-print-file-name={name}.so"]
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()


def try_plans(path: Path, start: int, count: int) -> int:
    sys.path.insert(0, str(ROOT / "tests"))
    from native_plans import try_changed

    from matexport.runtime.engines.native import library

    library.find_library = lambda: path
    kernels = library.list_kernels()
    # Every other plan in plain C++: what instructions with a mask store, the sanitizers do not see.
    kernels = [*kernels, *["portable"] * len(kernels)]
    seen = Counter(try_changed(seed, kernels[seed % len(kernels)]) is None for seed in range(start, start + count))
    print(seen[True], seen[False])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
