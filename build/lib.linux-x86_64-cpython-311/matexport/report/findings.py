"""Gather all that a report says of a family: what `survey` knows, each host's verdicts, scores, and what failed.

Parity follows the survey's rule: this host's numbers where it recorded them, else the worst of the other hosts', with
that host named. Reads the manifest, the probes and ``measurements/``; computes nothing on arrays and writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from matexport.family.integrity import check_files
from matexport.family.manifest import Family, load_family
from matexport.family.measurements.records import HostMeasurements, load_measurements
from matexport.family.survey import Survey, is_same_host, survey_family
from matexport.host import read_host
from matexport.pick.choose import Choice, choose
from matexport.pick.limits import Budget
from matexport.spec.measured import Bench, Host, TaskQuality
from matexport.verify.verdict import ProfileVerdict, judge_recorded

MB = 1e6


@dataclass(frozen=True)
class FloorUse:
    """How far a profile is from the parent at its point, on one host, and how much of its floor that uses.

    Attributes:
        number: what `value` is: ``least cosine`` or ``max abs difference``, whichever the profile is held by.
        value: the worst over all ways of running.
        allowed: the floor of that number; None where it has none.
        used: share of the allowed difference that is used, the largest over all numbers with a floor. Above 1, or NaN,
            is a breach.
    """

    host: Host
    verdict: ProfileVerdict
    number: str
    value: float
    allowed: float | None
    used: float


@dataclass(frozen=True)
class TaskScores:
    """One task as one host evaluated it."""

    name: str
    host: Host
    quality: TaskQuality


@dataclass(frozen=True)
class Findings:
    """What is known of a family.

    Attributes:
        manifest_sha256: digest of ``family.json``, which holds the digests of all other files.
        host: the host in question, whose measurements count first.
        choice: what `pick` says of the budget.
        threads: the number of threads that was asked for; None for the most that a host measured.
        verdicts: (host, profile name -> verdict) for each host that recorded parity, `host` first.
        tasks: each task once, from the first host that evaluated it.
        benches: what was timed, one for each host and provider.
        folder: what the family's folder will be called, where it is still being written under another name.
        place: where the family is, seen from where the report is read: commands in it name the family so.
    """

    family: Family
    manifest_sha256: str
    survey: Survey
    host: Host
    budget: Budget
    choice: Choice
    threads: int | None
    verdicts: tuple[tuple[Host, Mapping[str, ProfileVerdict]], ...]
    tasks: tuple[TaskScores, ...]
    benches: tuple[Bench, ...]
    place: str = "."
    folder: str = ""

    @property
    def name(self) -> str:
        """The name of the family's folder."""
        return self.folder or self.family.path.resolve().name

    @cached_property
    def floor_uses(self) -> Mapping[str, FloorUse]:
        """Profile name -> its floor use, for the profiles whose parity some host recorded.

        This host's numbers where it has any; otherwise the worst of the other hosts', breaches first.
        """
        found: dict[str, list[FloorUse]] = {}
        for host, verdicts in self.verdicts:
            for name, verdict in verdicts.items():
                found.setdefault(name, []).append(measure_floor_use(host, verdict))
        here = self.host
        chosen = {}
        for name, floor_uses in found.items():
            ours = [use for use in floor_uses if is_same_host(use.host, here)]
            chosen[name] = max(ours or floor_uses, key=lambda use: (use.verdict.passed is False, _rank(use.used)))
        return chosen

    @cached_property
    def broken(self) -> Mapping[str, tuple[tuple[Host, str], ...]]:
        """Profile name -> (host, reason) for each host on which the profile is off its floor."""
        found: dict[str, list[tuple[Host, str]]] = {}
        for host, verdicts in self.verdicts:
            for name, verdict in verdicts.items():
                if breach := verdict.find_breach():
                    found.setdefault(name, []).append((host, f"{breach[1]} ({breach[0]})"))
        return {name: tuple(breaches) for name, breaches in found.items()}

    @cached_property
    def unproven(self) -> tuple[str, ...]:
        """Names of the profiles whose parity no host recorded."""
        return tuple(profile.name for profile in self.family.profiles if profile.name not in self.floor_uses)


def gather_findings(
    family: Family | Path | str,
    *,
    host: Host | None = None,
    budget: Budget | None = None,
    threads: int | None = None,
    task: str | None = None,
) -> Findings:
    """Gather what a report of a family or pack says.

    Args:
        family: the directory, or a loaded family.
        host: the host whose measurements count first; this machine when left out.
        budget: limits to check every profile against; no limits when left out.
        threads: number of threads of the timings; when left out, the most that each host measured.
        task: name of the only task that retention is taken from; see `survey.Survey.tasks` for the default.

    Raises:
        FamilyError: the directory holds no family, or its probes are not those that were exported.
        RequestError: the task was not evaluated on any host, or nothing was timed with that number of threads.
    """
    family = family if isinstance(family, Family) else load_family(family)
    host = host or read_host()
    measured = load_measurements(family)
    survey = survey_family(family, host, threads=threads, task=task, measured=measured)
    check_files(family, [family.probes_file])
    hosts = sorted(measured.hosts, key=lambda one: not is_same_host(one.host, host))
    verdicts = [(one.host, judge_recorded(family, one.parity)) for one in hosts if one.parity]
    budget = budget or Budget()
    return Findings(
        family=family,
        manifest_sha256=measured.manifest_sha256,
        survey=survey,
        host=host,
        budget=budget,
        choice=choose(survey, budget),
        threads=threads,
        verdicts=tuple((where, {verdict.profile: verdict for verdict in found}) for where, found in verdicts if found),
        tasks=_list_tasks(hosts),
        benches=tuple(bench for one in measured.hosts for bench in one.benches.values()),
    )


def measure_floor_use(host: Host, verdict: ProfileVerdict) -> FloorUse:
    """Reduce a verdict to the number that its profile is held by, and the share of the floor that it uses.

    A difference uses difference / allowed; a cosine uses (1 - cosine) / (1 - allowed).
    """
    ways = verdict.parity.values()
    tolerance = verdict.tolerance
    difference = _worst(parity.max_abs for parity in ways)
    least = -_worst(-parity.cosine_min for parity in ways)
    mean = -_worst(-parity.cosine_mean for parity in ways)
    used = [0.0]
    if tolerance.max_abs is not None:
        used.append(difference / tolerance.max_abs)
    used += [
        (1 - value) / (1 - allowed) if allowed < 1 else (0.0 if value >= allowed else math.inf)
        for value, allowed in ((least, tolerance.cosine_min), (mean, tolerance.cosine_mean))
        if allowed is not None
    ]
    by_cosine = tolerance.max_abs is None and tolerance.cosine_min is not None
    number, value = ("least cosine", least) if by_cosine else ("max abs difference", difference)
    allowed = tolerance.cosine_min if by_cosine else tolerance.max_abs
    return FloorUse(host, verdict, number, value, allowed, _worst(used))


def _worst(values: object) -> float:
    """The greatest of some numbers; NaN counts as greater than any."""
    return max(values, key=_rank)  # type: ignore[call-overload, no-any-return]


def _rank(value: float) -> tuple[bool, float]:
    return (value != value, value)


def _list_tasks(hosts: Sequence[HostMeasurements]) -> tuple[TaskScores, ...]:
    """Every task once, from the first host that evaluated it; tasks with labels come first, then by name."""
    found: dict[str, TaskScores] = {}
    for one in hosts:
        for name, task in one.quality.tasks.items() if one.quality else ():
            found.setdefault(name, TaskScores(name, one.host, task))
    return tuple(sorted(found.values(), key=lambda task: (not task.quality.kind.has_labels, task.name)))
