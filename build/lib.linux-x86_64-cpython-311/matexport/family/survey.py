"""All that is known of a family's profiles, side by side: sizes from the manifest, the rest from every host's file.

Measurements of the host in question come first. Where it lacks a number, the worst of the other hosts' numbers is
taken, together with the host that it is from; this is an assumption, and `pick` and `report` say so. Since files can
have been edited by hand, a number that is not finite, or a time or size that is not above 0, counts as not measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import msgspec

from matexport.errors import RequestError
from matexport.family.manifest import Family
from matexport.family.measurements.records import Measurements, load_bench, load_measurements
from matexport.spec.measured import CPU, Bench, Host, HostPattern, Quality, TaskQuality, Timing, read_resamples
from matexport.spec.profile import Profile
from matexport.spec.record import Record

#: The host in question: one host, any machine of a kind, or None (a device whose file has no pattern of hosts).
Where = Host | HostPattern | None


class Measured(Record, frozen=True):
    """A number, the host that it was measured on, and for timings the number of threads."""

    value: float
    host: Host
    threads: int | None = None


class Candidate(Record, frozen=True):
    """One profile. A number that was not measured is None.

    Attributes:
        trained: whether the parent was trained to be read at this point; None where that is not known.
        disk_bytes: size of all files that are needed to run the profile.
        download_bytes: size of its graph and of its prefix of the weights.
        peak_bytes: largest resident memory of a process that ran it, in bytes; the number of threads is chosen as for
            `latency_ms`.
        latency_ms: median of embedding one short text, or of one run of the shape that was asked for.
        cold_start_ms: median time from process start to first vector.
        texts_per_s: throughput on a mix of lengths, in texts per second.
        retention: score over the whole parent's score, the least over the tasks that count (`Survey.tasks`).
        resampled: `Score.resampled` of each of these tasks, all of one length; empty where a task's is not known.
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
    resampled: tuple[bytes, ...] = ()

    @property
    def resamples(self) -> tuple[float, ...]:
        """The retention in each resample of these tasks, of all of them at once: as it is, the least over the tasks.

        Those of two profiles can be compared one by one.
        """
        known = [read_resamples(resampled) for resampled in self.resampled]
        return tuple(map(min, *known)) if len(known) > 1 else known[0] if known else ()


class Survey(Record, frozen=True):
    """Every profile of a family, in the family's order.

    Attributes:
        host: the host in question.
        tasks: names of the tasks that `Candidate.retention` is taken from: the task that was asked for, or else the
            tasks with labels (without labels where there are none) that were evaluated for the most profiles.
        hosts: all hosts that something was measured on.
        left_out: task -> why it does not count; empty where one task was asked for.
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
        family: a loaded family or pack. Of its files only the manifest, for its digest, and measurements are read.
        host: the host whose measurements come first; of several machines of a kind, the worst number is taken.
        threads: number of threads of the timings; when left out, the most that each host measured.
        shape: (batch, tokens) whose latency counts, instead of that of one short text.
        task: name of the only task that retention is taken from; see `Survey.tasks` for the default.
        measured: what `load_measurements` returned; it is called when left out.

    Raises:
        RequestError: the task was not evaluated, or the shape or number of threads was not timed, on any host; the
            message lists those that were.
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
        retention, resampled = _survey_retention(name, tasks, qualities, host)
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
            retention=retention,
            resampled=resampled,
        )

    candidates = tuple(map(survey, family.profiles))
    return Survey(host, candidates, tasks, tuple(one.host for one in measured.hosts), left_out)


class _Timings(Record, frozen=True):
    """What every host timed, with `threads` threads, or with each host's largest number of threads if that is None."""

    benches: Sequence[tuple[Host, Bench]]
    host: Where
    threads: int | None

    def find(
        self, profile: str, read: Callable[[Timing], float | None], worst: Callable[..., Measured]
    ) -> Measured | None:
        """A profile's number on the host in question, or else the worst of the other hosts' numbers."""
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
) -> tuple[Measured | None, tuple[bytes, ...]]:
    """The least retention of a profile over some tasks, None where one of them is not known; and its resamples by task.

    The host is chosen for each task on its own, so that two tasks may have been evaluated on different hosts.
    """
    found: list[Measured] = []
    resampled: list[bytes] = []
    for name in tasks:
        kept = [
            (Measured(value, where), quality)
            for where, quality in qualities
            if (value := _find_retention(quality, name, profile)) is not None
        ]
        known = _choose([measured for measured, _ in kept], host, _least)
        if known is None:
            return None, ()
        found.append(known)
        quality = next(quality for measured, quality in kept if measured is known)
        resampled.append(quality.tasks[name].profiles[profile].resampled)
    # Of other data, another host's resamples are of other pairs.
    data = {(name, found.tasks[name].data_sha256) for name in tasks for _, found in qualities if name in found.tasks}
    alike = len(data) == len(tasks) and len({len(one) for one in resampled}) == 1 and resampled[0]
    return _least(found) if found else None, tuple(resampled) if alike else ()


def _check_timings(benches: Sequence[tuple[Host, Bench]], threads: int | None, shape: tuple[int, int] | None) -> None:
    """Refuse a number of threads or a shape that no host timed anything with."""
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
        threads: number of threads that must have been timed; any number counts when left out.
        shape: (batch, tokens) that must have been timed; when left out, any timing counts.
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
    """The tasks that retention is the least of, and the tasks that are left out: name -> why.

    A task that was evaluated for only some profiles would make the retention of all others unknown. A task in which the
    parent itself ranks nothing gives no retention for any profile.
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
            covered[name] |= {profile for profile in task.profiles if _find_retention(found, name, profile) is not None}
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


@lru_cache(maxsize=256)  # called for every number of every profile, with a few hosts only
def is_measured_on(measured: Host, host: Where) -> bool:
    """Whether what was measured on a host counts as measured on the host in question."""
    if isinstance(host, HostPattern):
        return host.matches(measured)
    return host is not None and is_same_host(measured, host)


def is_same_host(one: Host, other: Host) -> bool:
    """Whether two hosts have the same processor, number of CPUs, instruction sets and version of onnxruntime."""
    return (one.slug, one.instruction_sets) == (other.slug, other.instruction_sets)


def _greatest(found: list[Measured]) -> Measured:
    return max(found, key=lambda known: known.value)


def _least(found: list[Measured]) -> Measured:
    return min(found, key=lambda known: known.value)
