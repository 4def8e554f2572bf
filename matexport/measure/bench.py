"""What each profile of a family costs on this host: disk, memory, cold start, latency, throughput.

    plan -> trials, each a fresh process (`trial`): every profile and number of threads in turn, then all of
      them again in the opposite order -> samples put together -> medians with intervals -> measurements/<host>.json

The parent itself can take its turns in torch, read at the points of the same profiles (`BenchPlan.parent`).

A fresh process, so that no profile runs in memory that another one warmed; both orders, so that a machine that gets
slower (heat, neighbours) does so for all alike. Medians come with a bootstrap interval: on a noisy host it is wide, and
two profiles whose intervals meet are not told apart.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from matexport.errors import FamilyError, ParentError, RequestError
from matexport.family.integrity import check_family
from matexport.family.manifest import Family, load_family
from matexport.family.proof import load_probes, open_proof
from matexport.host import count_cpus, isolate_environment, read_host
from matexport.io.progress import Progress
from matexport.measure.trial import TrialPlan, TrialResult
from matexport.runtime.engines.door import check_engine, describe_engine
from matexport.spec.inputs import TextFacts
from matexport.spec.measured import CPU, DEFAULT_ENGINE, Bench, Engine, ProfileBench, Sample, Timing
from matexport.spec.probe import Probe
from matexport.spec.profile import Point, Profile

#: Batches and sizes that are timed: of texts, by their tokens; arrays have one size.
DEFAULT_SHAPES = {
    "text": ((1, 16), (1, 128), (16, 32), (16, 128)),
    "array": ((1, 1), (16, 1)),
    "image": ((1, 1), (8, 1)),
}
DEFAULT_RUNS = 200
DEFAULT_SECONDS = 10.0

#: Each profile is measured in so many processes, in turn forwards and backwards.
ROUNDS = 2

#: So many processes of each profile get as far as the first vector: two would make no interval. (Of the parent in
#: torch, only those that are measured: each takes as long as ten of ours.)
COLD_STARTS = 10

#: The processes' programs. The second needs torch, which nothing else here does.
TRIAL, PARENT_TRIAL = "matexport.measure.trial", "matexport.export.parents.in_torch"
RESAMPLES = 1000


@dataclass(frozen=True)
class BenchPlan:
    """What is measured, and how long.

    Attributes:
        profiles: names; all of the family when empty.
        threads: 1 and all CPUs of this process when empty.
        shapes: (batch, size of each, in tokens of a text); when empty, the default ones that the parent allows.
        texts: a realistic mix of lengths; the family's probes when empty.
        runs: of each shape and profile, over all rounds; also the most cold starts.
        seconds: for each shape and profile, at most, over all rounds.
        parent: where the family's parent is (a directory, a hub id, ``package:NAME/path``), to time it in torch at the
            same points; not timed when None. Needs the ``[export]`` extra.
        engine: what runs the graphs; its threads are not used.
    """

    profiles: tuple[str, ...] = ()
    threads: tuple[int, ...] = ()
    shapes: tuple[tuple[int, int], ...] = ()
    texts: tuple[str, ...] = ()
    runs: int = DEFAULT_RUNS
    seconds: float = DEFAULT_SECONDS
    parent: str | None = None
    engine: Engine = DEFAULT_ENGINE


@dataclass(frozen=True)
class Trial:
    """What one process measures: a profile, or the parent in torch at a profile's point."""

    profile: str
    threads: int
    in_torch: bool = False

    def __str__(self) -> str:
        what = f"the parent at {Profile.parse(self.profile).point.name}" if self.in_torch else self.profile
        return f"{what}, {self.threads} thread(s)"


def bench_family(
    family: Family | Path | str, plan: BenchPlan | None = None, *, progress: Progress | None = None
) -> Bench:
    """Measure profiles of a family on this host. Writes nothing: `family.measurements.records.record_bench` does.

    Args:
        family: the directory of a family or a pack, or a loaded `Family`.
        progress: called with (stage, done, total).

    Raises:
        RequestError: a profile, a shape, an engine or a provider that is not there was asked for.
        MissingExtraError: the engine's package is not installed.
        FamilyError: the family's files are not the ones that were exported, or a profile does not run.
        ParentError: the parent to compare with cannot be loaded, or is not this family's.
    """
    family = family if isinstance(family, Family) else load_family(family)
    plan = complete_plan(plan or BenchPlan(), family)
    check_engine(plan.engine)
    check_family(family)
    trials = list_trials(plan)
    results: dict[Trial, list[TrialResult]] = {}
    starts: dict[Trial, list[float]] = {}
    for done, trial in enumerate(trials):
        if progress:
            progress("bench", done, len(trials))
        results.setdefault(trial, []).append(_run_process(family, plan, trial))
        for _ in range(_count_more_starts(plan, trial)):
            starts.setdefault(trial, []).append(_run_process(family, plan, trial, only_start=True).first_vector_s)
    if progress:
        progress("bench", len(trials), len(trials))
    mix, digest = _describe_mix(plan, family)
    timings = {trial: summarise(found, mix, starts.get(trial, ())) for trial, found in results.items()}
    parents: dict[Point, dict[int, Timing]] = {}
    for trial, timing in timings.items():
        if trial.in_torch:
            parents.setdefault(Profile.parse(trial.profile).point, {})[trial.threads] = timing
    profiles = {
        profile: ProfileBench(
            disk_bytes=family.measure_disk(profile),
            download_bytes=family.measure_download(profile),
            runs=plan.runs,
            seconds=plan.seconds,
            mix_texts=mix,
            mix_sha256=digest,
            threads={count: timings[Trial(profile, count)] for count in plan.threads},
            parent=parents.get(Profile.parse(profile).point, {}),
        )
        for profile in plan.profiles
    }
    return Bench(read_host(), plan.engine.label, profiles, describe_engine(plan.engine))


def complete_plan(plan: BenchPlan, family: Family) -> BenchPlan:
    """Put in what was left open.

    Raises:
        RequestError: nothing is left to measure, or a number is not positive.
        FamilyError: a profile is not the family's.
    """
    most, noun = family.facts.inputs.longest, family.facts.inputs.noun
    if family.facts.text is None and (plan.texts or plan.parent is not None):
        raise RequestError(f"{family.path} takes {noun}s: it is timed on its probes, and without its parent in torch")
    for name in plan.profiles:
        family.profile_facts(name)
    if plan.runs < 1 or not 0 < plan.seconds < math.inf or any(count < 1 for count in plan.threads):
        raise RequestError("runs, seconds and threads must be above 0, and an end of seconds is needed")
    if any(batch < 1 or tokens < 1 for batch, tokens in plan.shapes):
        raise RequestError("a shape is BATCHxTOKENS, both at least 1")
    shapes = tuple(dict.fromkeys(plan.shapes or list_default_shapes(family)))
    for batch, tokens in shapes:
        if batch > 1 and family.facts.inputs.alone:
            raise RequestError(
                f"the shape {batch}x{tokens} was asked; {family.path} takes one {noun} in a run: ask for "
                f"1x{most if family.facts.text else 1}"
            )
        full = family.facts.text is not None and family.facts.text.one_length
        if tokens > most or (full and tokens != most):
            sizes = f"{most} tokens" if family.facts.text else f"{noun}s of one size: ask for {batch}x1"
            sizes = f"rows of {most} tokens, always full" if full else sizes
            raise RequestError(f"the shape {batch}x{tokens} was asked; the parent takes {sizes}")
    if plan.parent is not None and plan.engine.provider != CPU:
        asked = f"the provider {plan.engine.provider}"
        raise RequestError(f"the parent in torch runs on the CPU: it is not timed against {asked}")
    return replace(
        plan,
        profiles=tuple(dict.fromkeys(plan.profiles)) or tuple(profile.name for profile in family.profiles),
        threads=tuple(sorted(set(plan.threads or (1, count_cpus())))),
        shapes=shapes,
        texts=plan.texts or _read_probe_texts(family),
    )


def list_default_shapes(family: Family) -> tuple[tuple[int, int], ...]:
    """The (batch, size) that are timed where none is asked for: those that the family's parent takes."""
    inputs, shapes = family.facts.inputs, DEFAULT_SHAPES[family.facts.modality]
    if isinstance(inputs, TextFacts) and inputs.one_length:
        batches = [batch for batch, _ in shapes if batch == 1 or not inputs.alone]
        return tuple(dict.fromkeys((batch, inputs.max_tokens) for batch in batches))
    return tuple(shape for shape in shapes if shape[1] <= inputs.longest and (shape[0] == 1 or not inputs.alone))


def _read_probe_texts(family: Family) -> tuple[str, ...]:
    """The probes' texts; none of a family that takes something else, whose probes each process reads by itself."""
    return tuple(
        probe.text for probe in load_probes(open_proof(family)) if isinstance(probe, Probe) and probe.text.strip()
    )


def _describe_mix(plan: BenchPlan, family: Family) -> tuple[int, str]:
    """How many items the mix has, and the digest of all of them."""
    if plan.texts:
        return len(plan.texts), hashlib.sha256("\n".join(plan.texts).encode()).hexdigest()
    return len(load_probes(open_proof(family))), family.facts.files[family.probes_file].sha256


def list_trials(plan: BenchPlan) -> list[Trial]:
    """In the order of the processes: forwards, then backwards."""
    there: list[Trial] = []
    points = set()
    for profile in plan.profiles:
        there += [Trial(profile, threads) for threads in plan.threads]
        point = Profile.parse(profile).point
        if plan.parent is not None and point not in points:
            there += [Trial(profile, threads, in_torch=True) for threads in plan.threads]
            points.add(point)
    return [trial for number in range(ROUNDS) for trial in (there[::-1] if number % 2 else there)]


def summarise(results: Sequence[TrialResult], texts: int, more_starts: Sequence[float] = ()) -> Timing:
    """The samples of all processes of one profile as one.

    Args:
        texts: how many items the mix has.
        more_starts: seconds to the first vector of processes that did no more.
    """

    def pool(name: str) -> Sample:
        return make_sample([value for result in results for value in getattr(result, name)])

    mix = pool("mix_s")
    peaks = [result.peak_bytes for result in results if result.peak_bytes is not None]
    return Timing(
        first_vector=make_sample([*(result.first_vector_s for result in results), *more_starts]),
        latency={
            shape: make_sample([value for result in results for value in result.latency_s[shape]])
            for shape in results[0].latency_s
        },
        call=pool("call_s"),
        tokenize=pool("tokenize_s"),
        graph=pool("graph_s"),
        mix=mix,
        texts_per_s=texts * 1e3 / mix.p50,
        peak_bytes=max(peaks, default=None),
    )


def make_sample(seconds: Sequence[float]) -> Sample:
    """Median, 95th percentile, and the percentile bootstrap of the median (Efron and Tibshirani 1993, 13.3)."""
    values = np.asarray(seconds) * 1e3
    draws = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(np.median(values[draws], axis=1), [2.5, 97.5])
    p50, p95 = np.percentile(values, [50, 95])
    return Sample(len(values), float(p50), float(p95), float(low), float(high))


def _count_more_starts(plan: BenchPlan, trial: Trial) -> int:
    """Processes that only start, after each one that measures."""
    return 0 if trial.in_torch else max(0, -(-min(COLD_STARTS, plan.runs) // ROUNDS) - 1)


def _run_process(family: Family, plan: BenchPlan, trial: Trial, *, only_start: bool = False) -> TrialResult:
    task = TrialPlan(
        started_ns=time.monotonic_ns(),
        family=str(family.path.resolve()),
        profile=trial.profile,
        threads=trial.threads,
        engine=plan.engine.name,
        provider=plan.engine.provider,
        shapes=plan.shapes,
        mix=plan.texts,
        runs=0 if only_start else -(-plan.runs // ROUNDS),
        seconds=plan.seconds / ROUNDS,
        parent=plan.parent or "",
        digest=family.digest,
    )
    code, out, said = run_child(PARENT_TRIAL if trial.in_torch else TRIAL, json.dumps(asdict(task)))
    if code:
        lines = said.strip().splitlines() or [f"ended with {code}"]
        if trial.in_torch:
            raise ParentError(f"{trial}: {lines[-1]}")
        asked = any(word in lines[-1] for word in ("the provider", "the engine"))
        error = RequestError if code == 2 and asked else FamilyError
        raise error(f"{trial}: {lines[-1]}")
    return msgspec.convert(json.loads(out.splitlines()[-1]), TrialResult)


def run_child(module: str, task: str) -> tuple[int, str, str]:
    """Run a module in a process of its own: its exit code, and what it printed to standard output and error.

    Args:
        task: one line for its standard input, which stays open: if this process is killed, it ends, and the child sees
            that.
    """
    # Isolated from where it runs (-P): no file that lies there, or in a family, takes a library's place.
    command = [sys.executable, "-P", "-m", module]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            env=isolate_environment(),
        ) as child,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            try:
                child.stdin.write(f"{task}\n")
                child.stdin.flush()
            except BrokenPipeError:  # it ended before it read, and its code says why
                with contextlib.suppress(BrokenPipeError):
                    child.stdin.close()
            out = child.stdout.read()
            code = child.wait()
        finally:
            child.kill()
        errors.seek(0)
        return code, out, errors.read()
