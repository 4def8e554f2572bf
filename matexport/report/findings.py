"""All that a report says of a family, gathered: what `survey` knows, each host's verdicts, scores, and what failed.

Parity follows the survey's rule: this host's where it was recorded here, else the worst of the other hosts', named.
Reads the manifest, the probes and ``measurements/``; computes nothing on arrays, writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from matexport.family.integrity import check_files
from matexport.family.manifest import Family, load_family
from matexport.family.measurements import HostMeasurements, load_measurements
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
        number: name of the number that stands for it: what its precision is held by.
        used: share of what the floor allows, of the number that uses most; above 1, or NaN, is a breach.
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
        manifest_sha256: digest of ``family.json``, which holds those of all files.
        choice: what `pick` says of the budget.
        verdicts: by host that recorded parity, this one first, and by profile.
        benches: what was timed, by host and provider.
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

    @property
    def name(self) -> str:
        """What the family's folder is called: commands of a report name it so, wherever it was written."""
        return self.family.path.resolve().name

    @cached_property
    def floor_uses(self) -> Mapping[str, FloorUse]:
        """By profile, where any host recorded it."""
        found: dict[str, list[FloorUse]] = {}
        for host, verdicts in self.verdicts:
            for name, verdict in verdicts.items():
                found.setdefault(name, []).append(measure_floor_use(host, verdict))
        here = self.host
        chosen = {}
        for name, floor_uses in found.items():
            ours = [use for use in floor_uses if is_same_host(use.host, here)]
            chosen[name] = max(ours or floor_uses, key=lambda it: (it.verdict.passed is False, _rank(it.used)))
        return chosen

    @cached_property
    def broken(self) -> Mapping[str, tuple[tuple[Host, str], ...]]:
        """Profile -> on which hosts it is off its floor, and how."""
        found: dict[str, list[tuple[Host, str]]] = {}
        for host, verdicts in self.verdicts:
            for name, verdict in verdicts.items():
                if breach := verdict.find_breach():
                    found.setdefault(name, []).append((host, f"{breach[1]} ({breach[0]})"))
        return {name: tuple(breaches) for name, breaches in found.items()}

    @cached_property
    def unproven(self) -> tuple[str, ...]:
        """Profiles whose parity no host recorded."""
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
        host: whose measurements count; this one when left out.
        threads: of the timings; the most that were measured on a host when left out.
        task: the one that retention is of; see `survey.Survey.tasks`.

    Raises:
        FamilyError: it is none, or its probes are not those that were exported.
        RequestError: nobody evaluated that task, or timed that number of threads.
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
        verdicts=tuple((where, {it.profile: it for it in found}) for where, found in verdicts if found),
        tasks=_list_tasks(hosts),
        benches=tuple(bench for one in measured.hosts for bench in one.benches.values()),
    )


def measure_floor_use(host: Host, verdict: ProfileVerdict) -> FloorUse:
    """A verdict as one number, and the share of its floor that is used."""
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
    """The greatest; NaN above all."""
    return max(values, key=_rank)  # type: ignore[call-overload, no-any-return]


def _rank(value: float) -> tuple[bool, float]:
    return (value != value, value)


def _list_tasks(hosts: Sequence[HostMeasurements]) -> tuple[TaskScores, ...]:
    """Every task once, from the first host that evaluated it; those with labels first."""
    found: dict[str, TaskScores] = {}
    for one in hosts:
        for name, task in one.quality.tasks.items() if one.quality else ():
            found.setdefault(name, TaskScores(name, one.host, task))
    return tuple(sorted(found.values(), key=lambda it: (not it.quality.kind.has_labels, it.name)))
