"""All that is known of a family's profiles, side by side: bytes from the manifest, the rest from every host's file.

What was measured on the host in question counts. Of a number that was not measured there, the worst of the other hosts'
is taken, and stands beside the host that it is from: an assumption, which `pick` and `report` name as one. Files can
have been edited by hand: what is not a finite number, or a time or size that is not above 0, counts as not measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import msgspec

from matexport.errors import RequestError
from matexport.family.manifest import Family
from matexport.family.measurements import Measurements, load_bench, load_measurements
from matexport.spec.measured import CPU, Bench, Host, HostPattern, Quality, TaskQuality, Timing
from matexport.spec.profile import Profile
from matexport.spec.record import Record

#: The host in question: one host, any machine of a kind, or none (a device that nothing tells from others).
Where = Host | HostPattern | None


class Measured(Record, frozen=True):
    """A number, the host that it was measured on, and for timings with how many threads."""

    value: float
    host: Host
    threads: int | None = None


class Candidate(Record, frozen=True):
    """One profile. What nobody measured is None.

    Attributes:
        trained: whether the parent was trained to be read at this point; None where nobody said.
        disk_bytes: of all that a pack of it needs to run.
        peak_bytes: largest resident memory of a process that ran it, with the number of threads of `latency_ms`.
        latency_ms: median of embedding one short text, or of one run of the shape that was asked for.
        cold_start_ms: median of process start to first vector.
        texts_per_s: throughput on a mix of lengths.
        retention: the least over the tasks that count (`Survey.tasks`).
    """

    profile: str
    layers: int
    dim: int
    trained: bool | None
    disk_bytes: int
    download_bytes: int
    peak_bytes: Measured | None = None
    latency_ms: Measured | None = None
    cold_start_ms: Measured | None = None
    texts_per_s: Measured | None = None
    retention: Measured | None = None


class Survey(Record, frozen=True):
    """Every profile of a family, in the family's order.

    Attributes:
        host: the one in question.
        tasks: what `Candidate.retention` is of: the task that was asked for; else those with labels, or without where
            there are none, that were evaluated for the most profiles.
        hosts: all that something was measured on.
        left_out: tasks that do not count, though nobody asked for another one -> why.
    """

    host: Where
    candidates: tuple[Candidate, ...]
    tasks: tuple[str, ...]
    hosts: tuple[Host, ...]
    left_out: Mapping[str, str] = msgspec.field(default_factory=dict)


def survey_family(
    family: Family,
    host: Where,
    *,
    threads: int | None = None,
    shape: tuple[int, int] | None = None,
    task: str | None = None,
    measured: Measurements | None = None,
) -> Survey:
    """Gather what is known of a family's profiles.

    Args:
        family: a loaded family or pack. Its files are not touched, but for the manifest's digest.
        host: whose measurements count; of several machines of a kind, the worst.
        threads: of the timings; the most that were measured on a host when left out.
        shape: (batch, tokens) whose latency counts, instead of that of one short text.
        task: name of the one that retention is of.
        measured: what `load_measurements` read; it is read when left out.

    Raises:
        RequestError: nobody evaluated that task, or timed that shape or number of threads; those that are known are
            listed.
    """
    measured = measured or load_measurements(family)
    benches = [(one.host, one.benches[CPU]) for one in measured.hosts if CPU in one.benches]
    qualities = [(one.host, one.quality) for one in measured.hosts if one.quality is not None]
    tasks, left_out = _choose_tasks([found for _, found in qualities], task)
    _check_timings(benches, threads, shape)
    timings = _Timings(benches, host, threads)
    shape_name = f"{shape[0]}x{shape[1]}" if shape else None

    def read_latency(timing: Timing) -> float | None:
        if shape_name is None:
            return timing.call.p50
        sample = timing.latency.get(shape_name)
        return sample.p50 if sample else None

    first = family.profiles[0].name
    shared_bytes = family.measure_disk(first) - family.measure_download(first)

    def survey(profile: Profile) -> Candidate:
        name = profile.name
        return Candidate(
            profile=name,
            layers=profile.point.layers,
            dim=profile.point.dim,
            trained=family.is_trained(name),
            disk_bytes=shared_bytes + family.measure_download(name),
            download_bytes=family.measure_download(name),
            peak_bytes=timings.find(name, lambda timing: timing.peak_bytes, _greatest),
            latency_ms=timings.find(name, read_latency, _greatest),
            cold_start_ms=timings.find(name, lambda timing: timing.first_vector.p50, _greatest),
            texts_per_s=timings.find(name, lambda timing: timing.texts_per_s, _least),
            retention=_survey_retention(name, tasks, qualities, host),
        )

    candidates = tuple(map(survey, family.profiles))
    return Survey(host, candidates, tasks, tuple(one.host for one in measured.hosts), left_out)


class _Timings(Record, frozen=True):
    """What every host timed, with one number of threads or each host's largest."""

    benches: Sequence[tuple[Host, Bench]]
    host: Where
    threads: int | None

    def find(
        self, profile: str, read: Callable[[Timing], float | None], worst: Callable[..., Measured]
    ) -> Measured | None:
        """A profile's number on the host in question, or else the worst of the others."""
        found = []
        for where, bench in self.benches:
            counts = bench.profiles[profile].threads if profile in bench.profiles else {}
            count = self.threads if self.threads is not None else max(counts, default=0)
            value = read(counts[count]) if count in counts else None
            if value is not None and 0 < value < math.inf:
                found.append(Measured(value, where, count))
        return _choose(found, self.host, worst)


def _survey_retention(
    profile: str, tasks: Sequence[str], qualities: Sequence[tuple[Host, Quality]], host: Where
) -> Measured | None:
    """Each task where it was evaluated, be that another host than the next task's; the least of them."""
    found = []
    for name in tasks:
        kept = [(where, _find_retention(quality, name, profile)) for where, quality in qualities]
        known = _choose([Measured(value, where) for where, value in kept if value is not None], host, _least)
        if known is None:
            return None
        found.append(known)
    return _least(found) if found else None


def _check_timings(benches: Sequence[tuple[Host, Bench]], threads: int | None, shape: tuple[int, int] | None) -> None:
    """Refuse a number of threads or a shape that nobody timed anything with."""
    timed = [
        timing for _, bench in benches for profile in bench.profiles.values() for timing in profile.threads.items()
    ]
    if threads is not None:
        _check_asked(f"threads={threads}", {f"threads={count}" for count, _ in timed})
    if shape:
        _check_asked(f"the shape {shape[0]}x{shape[1]}", {name for _, timing in timed for name in timing.latency})


def list_unmeasured(
    family: Family, host: Host, *, threads: int | None = None, shape: tuple[int, int] | None = None
) -> tuple[str, ...]:
    """Names of the profiles that a host has no timings of.

    Args:
        threads: with that many of them; with any when left out.
        shape: (batch, tokens) that must have been timed.
    """
    bench = load_bench(family, host)

    def is_timed(profile: str) -> bool:
        counts = bench.profiles[profile].threads if bench and profile in bench.profiles else {}
        timing = counts.get(threads if threads is not None else max(counts, default=0))
        return timing is not None and (shape is None or f"{shape[0]}x{shape[1]}" in timing.latency)

    return tuple(profile.name for profile in family.profiles if not is_timed(profile.name))


def _find_retention(known: Quality, task: str, profile: str) -> float | None:
    score = known.tasks[task].profiles.get(profile) if task in known.tasks else None
    value = score.retention if score else None
    return value if value is not None and math.isfinite(value) else None


def _choose_tasks(qualities: Sequence[Quality], wanted: str | None) -> tuple[tuple[str, ...], dict[str, str]]:
    """The tasks that retention is the least of, and those that are left out: name -> why.

    A task that was evaluated for some profiles only would make all others unknown, and one in which the parent itself
    ranks nothing says nothing of any.
    """
    known: dict[str, TaskQuality] = {}
    for found in qualities:
        known |= found.tasks
    if wanted is not None:
        if wanted not in known:
            raise RequestError(
                f"the task {wanted!r} was asked; evaluated are: {', '.join(sorted(known)) or 'none'} "
                "(matexport evaluate measures more)"
            )
        return (wanted,), {}
    covered: dict[str, set[str]] = {name: set() for name in known}
    for found in qualities:
        for name, task in found.tasks.items():
            covered[name] |= {it for it in task.profiles if _find_retention(found, name, it) is not None}
    usable = [name for name in sorted(known) if covered[name]]
    pool = [name for name in usable if known[name].kind.has_labels] or usable
    widest = max((covered[name] for name in pool), key=len, default=set())
    tasks = tuple(name for name in pool if covered[name] >= widest)
    left_out = {}
    for name in sorted(known):
        if not covered[name]:
            left_out[name] = "without retention: the family lacks the whole parent, or that ranks nothing in it"
        elif name in pool and name not in tasks:
            left_out[name] = f"evaluated for {len(covered[name])} profiles, where others were for {len(widest)}"
    return tasks, left_out


def _check_asked(asked: str, timed: set[str]) -> None:
    if asked.removeprefix("the shape ") not in timed:
        known = ", ".join(sorted(timed)) or "none"
        raise RequestError(f"{asked} was asked; timed are: {known} (matexport bench measures more)")


def _choose(found: list[Measured], host: Where, worst: Callable[..., Measured]) -> Measured | None:
    here = [known for known in found if is_measured_on(known.host, host)]
    return worst(here or found) if found else None


@lru_cache(maxsize=256)  # asked for every number of every profile, of a few hosts
def is_measured_on(measured: Host, host: Where) -> bool:
    """Whether what was measured on a host counts as measured on the host in question."""
    if isinstance(host, HostPattern):
        return host.matches(measured)
    return host is not None and is_same_host(measured, host)


def is_same_host(one: Host, other: Host) -> bool:
    """Whether numbers of one host hold on the other: same processor, CPUs, kernels and onnxruntime."""
    return (one.slug, one.instruction_sets) == (other.slug, other.instruction_sets)


def _greatest(found: list[Measured]) -> Measured:
    return max(found, key=lambda known: known.value)


def _least(found: list[Measured]) -> Measured:
    return min(found, key=lambda known: known.value)
