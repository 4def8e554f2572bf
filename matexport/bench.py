"""What each profile of a family costs on this host: disk, memory, cold start, latency, throughput.

    plan -> trials, each a fresh process (`matexport.trial`): every profile and number of threads in turn, then all of
      them again in the opposite order -> samples put together -> medians with intervals -> measurements/<host>.json

A fresh process, so that no profile runs in memory that another one warmed; both orders, so that a machine that gets
slower (heat, neighbours) does so for all alike. Medians come with a bootstrap interval: on a noisy host it is wide, and
two profiles whose intervals meet are not told apart.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from matexport.errors import FamilyError, RequestError
from matexport.host import Host, count_cpus, read_host
from matexport.manifest import PROBES, RANGES, REFERENCE, Family, check_family, load_family
from matexport.measurements import load_sections, write_sections
from matexport.profiles import load_probes
from matexport.spec import CPU
from matexport.trial import TrialPlan, TrialResult

Progress = Callable[[str, int, int], None]

DEFAULT_SHAPES = ((1, 16), (1, 128), (16, 32), (16, 128))
DEFAULT_RUNS = 200
DEFAULT_SECONDS = 10.0
#: Each profile is measured in so many processes, in turn forwards and backwards.
ROUNDS = 2
#: The short text of the cold start and of the split; about 16 tokens for most tokenizers.
SHORT_TEXT = "A man is playing a large flute while a woman is slicing an onion."

RESAMPLES = 1000
SECTION = "bench"


@dataclass(frozen=True)
class BenchPlan:
    """What is measured, and how long.

    Attributes:
        profiles: names; all of the family when empty.
        threads: 1 and all CPUs of this process when empty.
        shapes: (batch, tokens); those beyond the parent's length are left out.
        texts: a realistic mix of lengths; the family's probes when empty.
        runs: of each shape and profile, over all rounds.
        seconds: for each shape and profile, at most, over all rounds.
    """

    profiles: tuple[str, ...] = ()
    threads: tuple[int, ...] = ()
    shapes: tuple[tuple[int, int], ...] = DEFAULT_SHAPES
    texts: tuple[str, ...] = ()
    runs: int = DEFAULT_RUNS
    seconds: float = DEFAULT_SECONDS
    provider: str = CPU


@dataclass(frozen=True)
class Sample:
    """A duration that was measured several times, in milliseconds.

    Attributes:
        runs: how often.
        low, high: the bootstrap's 95 % interval of the median.
    """

    runs: int
    p50: float
    p95: float
    low: float
    high: float


@dataclass(frozen=True)
class Timing:
    """One profile with one number of threads.

    Attributes:
        first_vector: process start to first vector.
        latency: "BATCHxTOKENS" -> one run of the graph.
        call: embedding one short text.
        tokenize, graph: what that takes for its tokens, and for the run of the graph.
        texts_per_s: throughput on the mix, the median.
        peak_bytes: largest resident memory of a process that did all of this; None where the system does not say.
    """

    first_vector: Sample
    latency: Mapping[str, Sample]
    call: Sample
    tokenize: Sample
    graph: Sample
    texts_per_s: float
    peak_bytes: int | None

    @property
    def overhead(self) -> float:
        """The part of a call that is not the graph: tokens, checks and arrays."""
        return max(0.0, 1 - self.graph.p50 / self.call.p50)


@dataclass(frozen=True)
class ProfileBench:
    """One profile: its bytes, and its timings by number of threads.

    Attributes:
        disk_bytes: of all that is needed to run it: graph, prefix of the weights, tokenizer, configuration.
        download_bytes: of the graph and the prefix of the weights.
    """

    disk_bytes: int
    download_bytes: int
    threads: Mapping[int, Timing]


@dataclass(frozen=True)
class Bench:
    """What `bench_family` measured on one host: by profile, and under what conditions."""

    host: Host
    provider: str
    runs: int
    seconds: float
    mix_texts: int
    profiles: Mapping[str, ProfileBench]


def bench_family(
    family: Family | Path | str, plan: BenchPlan | None = None, *, progress: Progress | None = None
) -> Bench:
    """Measure profiles of a family on this host. Writes nothing; see `record_bench`.

    Args:
        family: the directory of a family or a pack, or a loaded `Family`.
        progress: called with (stage, done, total).

    Raises:
        RequestError: a profile, a shape or a provider that is not there was asked for.
        FamilyError: the family's files are not the ones that were exported, or a profile does not run.
    """
    family = family if isinstance(family, Family) else load_family(family)
    plan = complete_plan(plan or BenchPlan(), family)
    check_family(family)
    trials = list_trials(plan)
    results: dict[tuple[str, int], list[TrialResult]] = {}
    for done, (profile, threads) in enumerate(trials):
        if progress:
            progress("bench", done, len(trials))
        results.setdefault((profile, threads), []).append(_run_process(family, plan, profile, threads))
    if progress:
        progress("bench", len(trials), len(trials))
    profiles = {
        profile: ProfileBench(
            disk_bytes=_measure_disk(family, profile),
            download_bytes=_measure_download(family, profile),
            threads={count: summarise(results[profile, count], len(plan.texts)) for count in plan.threads},
        )
        for profile in plan.profiles
    }
    return Bench(read_host(), plan.provider, plan.runs, plan.seconds, len(plan.texts), profiles)


def complete_plan(plan: BenchPlan, family: Family) -> BenchPlan:
    """Put in what was left open.

    Raises:
        RequestError: nothing is left to measure, or a number is not positive.
        FamilyError: a profile is not the family's.
    """
    most = family.facts.text.max_tokens
    for name in plan.profiles:
        family.profile_facts(name)
    if plan.runs < 1 or not plan.seconds > 0 or any(count < 1 for count in plan.threads):
        raise RequestError("runs, seconds and threads must be above 0")
    if any(batch < 1 or tokens < 1 for batch, tokens in plan.shapes):
        raise RequestError("a shape is BATCHxTOKENS, both at least 1")
    shapes = tuple(shape for shape in dict.fromkeys(plan.shapes) if shape[1] <= most)
    if plan.shapes and not shapes:
        raise RequestError(f"every shape has more tokens than the parent takes ({most})")
    return replace(
        plan,
        profiles=tuple(dict.fromkeys(plan.profiles)) or tuple(profile.name for profile in family.profiles),
        threads=tuple(sorted(set(plan.threads or (1, count_cpus())))),
        shapes=shapes,
        texts=plan.texts or tuple(probe.text for probe in load_probes(family.path / PROBES) if probe.text.strip()),
    )


def list_trials(plan: BenchPlan) -> list[tuple[str, int]]:
    """(profile, threads) in the order of the processes: there and back again."""
    there = [(profile, threads) for profile in plan.profiles for threads in plan.threads]
    return [trial for number in range(ROUNDS) for trial in (there[::-1] if number % 2 else there)]


def summarise(results: Sequence[TrialResult], texts: int) -> Timing:
    """The samples of all processes of one profile as one."""

    def pool(name: str) -> Sample:
        return make_sample([value for result in results for value in getattr(result, name)])

    peaks = [result.peak_bytes for result in results if result.peak_bytes is not None]
    return Timing(
        first_vector=make_sample([result.first_vector_s for result in results]),
        latency={
            shape: make_sample([value for result in results for value in result.latency_s[shape]])
            for shape in results[0].latency_s
        },
        call=pool("call_s"),
        tokenize=pool("tokenize_s"),
        graph=pool("graph_s"),
        texts_per_s=texts / float(np.median([value for result in results for value in result.mix_s])),
        peak_bytes=max(peaks, default=None),
    )


def make_sample(seconds: Sequence[float]) -> Sample:
    """Median, 95th percentile, and the percentile bootstrap of the median (Efron and Tibshirani 1993, 13.3)."""
    values = np.asarray(seconds) * 1e3
    draws = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(np.median(values[draws], axis=1), [2.5, 97.5])
    p50, p95 = np.percentile(values, [50, 95])
    return Sample(len(values), float(p50), float(p95), float(low), float(high))


def record_bench(family: Family, bench: Bench) -> Path:
    """Keep a bench in ``measurements/<host>.json``, with what else is known there; facts are not touched.

    Profiles that were not measured this time keep what was measured before.
    """
    known = load_bench(family, bench.host)
    if known is not None and known.provider == bench.provider:
        bench = replace(bench, profiles={**known.profiles, **bench.profiles})
    return write_sections(family, bench.host, {SECTION: msgspec.to_builtins(bench, str_keys=True)})


def load_bench(family: Family, host: Host) -> Bench | None:
    """What was measured on a host, if there is something that can be read and that is of these very files."""
    try:
        return msgspec.convert(load_sections(family, host)[SECTION], Bench, str_keys=True)
    except (KeyError, msgspec.ValidationError):
        return None


def _run_process(family: Family, plan: BenchPlan, profile: str, threads: int) -> TrialResult:
    trial = TrialPlan(
        started_ns=time.monotonic_ns(),
        family=str(family.path.resolve()),
        profile=profile,
        threads=threads,
        provider=plan.provider,
        shapes=plan.shapes,
        text=SHORT_TEXT,
        mix=plan.texts,
        runs=-(-plan.runs // ROUNDS),
        seconds=plan.seconds / ROUNDS,
    )
    finished = subprocess.run(
        [sys.executable, "-m", "matexport.trial"],
        input=json.dumps(asdict(trial)),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    if finished.returncode:
        lines = finished.stderr.strip().splitlines() or [f"ended with {finished.returncode}"]
        error = RequestError if finished.returncode == 2 and "provider" in lines[-1] else FamilyError
        raise error(f"{profile}, {threads} thread(s): {lines[-1]}")
    return msgspec.convert(json.loads(finished.stdout.splitlines()[-1]), TrialResult)


def _measure_download(family: Family, profile: str) -> int:
    facts = family.profile_facts(profile)
    return family.facts.files[facts.graph].bytes + facts.weights_prefix_bytes


def _measure_disk(family: Family, profile: str) -> int:
    profiles = family.facts.profiles.values()
    others = {facts.graph for facts in profiles} | {facts.weights for facts in profiles} | {PROBES, REFERENCE, RANGES}
    beside = sum(file.bytes for name, file in family.facts.files.items() if name not in others)
    return _measure_download(family, profile) + beside
