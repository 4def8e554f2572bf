"""One process of `matexport bench`: one profile with one number of threads, from process start to last vector.

Run as ``python -m matexport.trial``; takes a plan on standard input and gives a result on standard output, each one
JSON document. Samples go out raw, so that those of several processes can be put together. Nothing here decides what a
number means.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

#: Runs before the clock counts: lazily made buffers, caches, clock speed.
WARM_UP = 10


@dataclass(frozen=True)
class TrialPlan:
    """What one process measures.

    Attributes:
        started_ns: of the monotonic clock, when the process was started.
        shapes: (batch, tokens) of runs on token rows.
        text: a short one, embedded alone.
        mix: texts of many lengths, embedded as a user does.
        runs: of each shape, at most.
        seconds: for each shape, at most.
    """

    started_ns: int
    family: str
    profile: str
    threads: int
    provider: str
    shapes: tuple[tuple[int, int], ...]
    text: str
    mix: tuple[str, ...]
    runs: int
    seconds: float


@dataclass
class TrialResult:
    """Seconds, but for `peak_bytes`.

    Attributes:
        first_vector_s: from process start to the first vector: Python, imports, checks of the files, session, run.
        latency_s: "BATCHxTOKENS" -> one number per run of the graph, its inputs made before.
        call_s: of each `embed` of the short text.
        tokenize_s: of that, finding its tokens.
        graph_s: of that, the run of the graph alone. What remains is Python: checks, arrays.
        mix_s: of each `embed` of all texts of the mix.
        peak_bytes: largest resident memory of the process; None where the system does not say.
    """

    first_vector_s: float
    latency_s: dict[str, list[float]] = field(default_factory=dict)
    call_s: list[float] = field(default_factory=list)
    tokenize_s: list[float] = field(default_factory=list)
    graph_s: list[float] = field(default_factory=list)
    mix_s: list[float] = field(default_factory=list)
    peak_bytes: int | None = None


def run_trial(plan: TrialPlan) -> TrialResult:
    """Measure in this process."""
    from matexport.embed import Embedder
    from matexport.spec import OUTPUT_NAME

    embedder = Embedder(plan.family, plan.profile, threads=plan.threads, provider=plan.provider)
    embedder.embed([plan.text])
    result = TrialResult(first_vector_s=(time.monotonic_ns() - plan.started_ns) / 1e9)
    rows = embedder.tokenize([plan.text])
    feeds = embedder.pad(rows)
    calls: list[tuple[Callable[[], Any], list[float]]] = [
        (lambda: embedder.embed([plan.text]), result.call_s),
        (lambda: embedder.tokenize([plan.text]), result.tokenize_s),
        (lambda: embedder.session.run([OUTPUT_NAME], feeds), result.graph_s),
    ]
    time_calls(calls, plan.runs, plan.seconds)
    ids = [row for row in embedder.tokenize(plan.mix) if row.ids]
    for batch, length in plan.shapes:
        feeds = embedder.pad([stretch(ids[index % len(ids)], length) for index in range(batch)])
        samples = result.latency_s.setdefault(f"{batch}x{length}", [])
        time_calls([(lambda feeds=feeds: embedder.session.run([OUTPUT_NAME], feeds), samples)], plan.runs, plan.seconds)  # type: ignore[misc]
    time_calls([(lambda: embedder.embed(plan.mix), result.mix_s)], plan.runs, plan.seconds, warm_up=1)
    result.peak_bytes = read_peak_bytes()
    return result


def stretch(row: Any, length: int) -> Any:
    """Tokens of a text, over and over, as many as asked for."""
    from matexport.tokens import Tokens

    times = -(-length // len(row.ids))
    return Tokens((list(row.ids) * times)[:length], (list(row.type_ids) * times)[:length])


def time_calls(
    calls: list[tuple[Callable[[], Any], list[float]]], runs: int, seconds: float, *, warm_up: int = WARM_UP
) -> None:
    """Time calls in turns, each until it has run so often or all of them for so long; at least once."""
    for call, _ in calls * warm_up:
        call()
    clock = time.perf_counter_ns
    end = clock() + seconds * 1e9
    for done in range(runs):
        if done and clock() > end:
            break
        for call, samples in calls:
            start = clock()
            call()
            samples.append((clock() - start) / 1e9)


def read_peak_bytes() -> int | None:
    """Largest resident memory of this process since its program was started.

    On Linux from /proc: what `getrusage` says there also covers the process that started this one.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> int:
    """Read a plan, measure, print the result; what cannot be done is one line on standard error and exit code 2."""
    from matexport.errors import MatexportError

    data = json.load(sys.stdin)
    data["shapes"] = tuple(tuple(shape) for shape in data["shapes"])
    try:
        result = run_trial(TrialPlan(**data))
    except MatexportError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(json.dumps(asdict(result)) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
