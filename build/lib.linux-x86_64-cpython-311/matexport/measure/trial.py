"""One process of `matexport bench`: one profile with one number of threads, from process start to last vector.

Run as ``python -m matexport.measure.trial`` (or ``matexport.export.parents.in_torch``, for the parent in torch).
Takes a plan on the first line of standard input and gives a result on standard output, one JSON document each. Samples
go out raw, so that those of several processes can be put together. Nothing here decides what a number means.

Standard input stays open for as long as the process that asks lives: when it ends, so does this one, at once.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from matexport.runtime.inputs.modality import Feeds, Inputs, Row


#: Runs before the clock counts: lazily made buffers, caches, clock speed.
WARM_UP = 10


@dataclass(frozen=True)
class TrialPlan:
    """What one process measures.

    Attributes:
        started_ns: of the monotonic clock, when the process was started.
        shapes: (batch, size) of runs on prepared rows.
        mix: texts of many lengths, embedded as a user does; the family's probes when empty.
        runs: of each shape, at most; 0 to end at the first vector.
        seconds: for each shape, at most.
        parent: where the parent is, for the process that times it; its point is the profile's.
        digest: of the manifest of the family that is to be timed.
    """

    started_ns: int
    family: str
    profile: str
    threads: int
    engine: str
    provider: str
    shapes: tuple[tuple[int, int], ...]
    mix: tuple[str, ...]
    runs: int
    seconds: float
    parent: str = ""
    digest: str = ""


class Subject(Protocol):
    """What is timed: an `Embedder`, or something else that gives vectors for items."""

    @property
    def inputs(self) -> Inputs:
        """What prepares its items."""

    def embed(self, items: Sequence[Any]) -> Any:
        """Vectors of items, as a user asks for them."""

    def prepare(self, items: Sequence[Any]) -> list[Row]:
        """What `embed` begins with."""

    def feed(self, rows: Sequence[Row]) -> Feeds:
        """Arrays for `compute`."""

    def compute(self, feeds: Feeds) -> Any:
        """Vectors of prepared rows: `embed` without the preparation."""

    def check(self) -> None:
        """Make sure that this is what was asked for; not in the time of the first vector."""


@dataclass
class TrialResult:
    """Seconds, but for `peak_bytes`.

    Attributes:
        first_vector_s: from process start to the first vector: Python, imports, checks of the files, session, run.
        latency_s: "BATCHxSIZE" -> one number per run of the graph, its inputs made before.
        call_s: of each `embed` of the modality's short item.
        tokenize_s: of that, preparing it.
        graph_s: of that, the run of the graph alone. What remains is Python: checks, arrays.
        mix_s: of each `embed` of the whole mix.
        peak_bytes: largest resident memory of the process; None where the system does not say.
    """

    first_vector_s: float
    latency_s: dict[str, list[float]] = field(default_factory=dict)
    call_s: list[float] = field(default_factory=list)
    tokenize_s: list[float] = field(default_factory=list)
    graph_s: list[float] = field(default_factory=list)
    mix_s: list[float] = field(default_factory=list)
    peak_bytes: int | None = None


def open_embedder(plan: TrialPlan) -> Subject:
    """A profile of a family."""
    from matexport.errors import FamilyError
    from matexport.family.manifest import load_family
    from matexport.runtime.embedder import Embedder

    family = load_family(plan.family)
    if plan.digest and family.digest != plan.digest:
        raise FamilyError(f"{plan.family} was replaced while it was timed: do it again")
    return Embedder(family, plan.profile, threads=plan.threads, engine=plan.engine, provider=plan.provider)


def run_trial(plan: TrialPlan, open_subject: Callable[[TrialPlan], Subject] = open_embedder) -> TrialResult:
    """Measure in this process."""
    subject = open_subject(plan)
    inputs = subject.inputs
    short = [inputs.short]
    subject.embed(short)
    result = TrialResult(first_vector_s=(time.monotonic_ns() - plan.started_ns) / 1e9)
    if not plan.runs:
        return result
    subject.check()
    mix = list(plan.mix) or _read_probes(plan, inputs)
    feeds = subject.feed(subject.prepare(short))
    calls: list[tuple[Callable[[], Any], list[float]]] = [
        (lambda: subject.embed(short), result.call_s),
        (lambda: subject.prepare(short), result.tokenize_s),
        (lambda: subject.compute(feeds), result.graph_s),
    ]
    time_calls(calls, plan.runs, plan.seconds)
    rows = [row for row in subject.prepare(mix) if inputs.size(row)]
    for batch, size in plan.shapes:
        shaped = subject.feed([inputs.stretch(rows[index % len(rows)], size) for index in range(batch)])
        samples = result.latency_s.setdefault(f"{batch}x{size}", [])
        time_calls([(lambda shaped=shaped: subject.compute(shaped), samples)], plan.runs, plan.seconds)  # type: ignore[misc]
    time_calls([(lambda: subject.embed(mix), result.mix_s)], plan.runs, plan.seconds, warm_up=1)
    result.peak_bytes = read_peak_bytes()
    return result


def _read_probes(plan: TrialPlan, inputs: Inputs) -> list[Any]:
    from matexport.family.manifest import load_family
    from matexport.family.proof import load_probes, open_proof

    return [inputs.unpack(probe) for probe in load_probes(open_proof(load_family(plan.family)))]


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


def hold_cpus(count: int) -> None:
    """Keep this process, helper threads and tokenizer included, to so many CPUs, where the system has such a call."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


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


def end_with_parent() -> None:
    """End this process when standard input ends: whoever asked is gone, even if it was killed."""

    def wait() -> None:
        descriptor = sys.stdin.fileno()
        while os.read(descriptor, 4096):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main(open_subject: Callable[[TrialPlan], Subject] = open_embedder) -> int:
    """Read a plan, measure, print the result; what cannot be done is one line on standard error and exit code 2."""
    from matexport.errors import MatexportError

    data = json.loads(sys.stdin.readline())
    end_with_parent()
    data["shapes"] = tuple(tuple(shape) for shape in data["shapes"])
    hold_cpus(data["threads"])
    try:
        result = run_trial(TrialPlan(**data), open_subject)
    except MatexportError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(json.dumps(asdict(result)) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
