"""A family's checks one at a time, as a test runner asks for them, and why each fails in lines that a person reads.

The judge is `verify.judge`: its files are checked once, when the first check is asked for, and a profile runs when the
first of its own is. Of files that are not the exported ones nothing is run: one check says so, and the others are kept
from being made. What else cannot be made has failed, such as a floor of retention that nobody measured. No opinion of
its own, and no knowledge of pytest.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from matexport.errors import FamilyError, MatexportError, Problem, ProblemKind
from matexport.family.manifest import Family, load_family
from matexport.family.pixel_rows import stores_pixel_rows
from matexport.family.survey import Survey, survey_family
from matexport.family.token_rows import stores_token_rows
from matexport.host import read_host
from matexport.spec.parity import Breach
from matexport.spec.record import Record
from matexport.verify.judge import Case, judge_profile, open_case
from matexport.verify.verdict import (
    SPREAD_CHECK,
    VECTORS_CHECK,
    ProfileVerdict,
    explain_unchecked,
    find_float32_profile,
    hold_codes_to_vectors,
    list_expected_checks,
)

DIGESTS, TOKEN_IDS, PIXELS, RETENTION = "digests", "token-ids", "pixels", "retention"

#: Checks of a verdict whose names are not fit to be selected with: -> what they are called here.
SHORT = {SPREAD_CHECK: "spread", VECTORS_CHECK: "float32"}

#: Characters of a probe's text that a failure shows.
SHOWN = 80


class Check(Record, frozen=True, order=True):
    """One check of a family; of its files, its tokenizer or its pixels where there is no profile."""

    name: str
    profile: str | None = None


@dataclass(frozen=True)
class Requirements:
    """What is asked of a family beyond `verify`.

    Attributes:
        threads: of a profile's session; all CPUs of this process by default.
        min_retention: the least share of the parent's quality that every profile keeps; None asks for none.
        task: name of the one that retention is of; see `survey_family`.
    """

    threads: int | None = None
    min_retention: float | None = None
    task: str | None = None


class FamilyChecks:
    """One family and what is asked of it. Nothing is read until a check is listed or made, and all of it once."""

    def __init__(self, path: Path, requirements: Requirements) -> None:
        self.path, self.requirements = path, requirements
        self._verdicts: dict[str, ProfileVerdict | str] = {}

    def list_checks(self) -> list[Check]:
        """All checks, in the family's order; of a family whose manifest cannot be read, `DIGESTS` alone."""
        family = self._family
        checks = [Check(DIGESTS)]
        if not isinstance(family, Family):
            return checks
        if stores_token_rows(family):
            checks.append(Check(TOKEN_IDS))
        if stores_pixel_rows(family):
            checks.append(Check(PIXELS))
        for profile in family.profiles:
            names = [SHORT.get(name, name) for name in list_expected_checks(family, profile.name)]
            if self.requirements.min_retention is not None:
                names.append(RETENTION)
            checks += [Check(name, profile.name) for name in names]
        return checks

    def find_obstacle(self, check: Check) -> str | None:
        """Why a check cannot be made, in one line: `DIGESTS` failed, which can always be made; None when it can."""
        case = self._case
        return None if check.name == DIGESTS or isinstance(case, Case) else explain_unchecked(case)

    def find_failure(self, check: Check) -> str | None:
        """Why a check fails: one to three lines, of the files one more for each problem; None when it passes."""
        case, where = self._case, ", ".join(filter(None, (check.profile, check.name)))
        if not isinstance(case, Case):
            return f"{where}: {format_problems(case) if check.name == DIGESTS else self.find_obstacle(check)}"
        if check.name == DIGESTS:
            return None
        if check.profile is None:
            return case.prepared.find_difference() if case.prepared else f"{where}: was not made"
        if check.name == RETENTION:
            reason = self._find_retention_failure(check.profile)
            return reason and f"{where}: {reason}"
        verdict = self._judge(case, check.profile)
        if isinstance(verdict, str):
            return f"{where}: {verdict}"
        found = {SHORT.get(name, name): breach for name, breach in verdict.list_checks()}
        if check.name not in found and check.name != SHORT[VECTORS_CHECK]:  # which a verdict lists when it fails
            return f"{where}: was not made"
        breach = found.get(check.name)
        return f"{where}: {self._spell(case, verdict, check, breach)}" if breach else None

    def name_group(self, check: Check) -> str:
        """What checks share that one process should make: they are of the same vectors, or of the files."""
        family = self._family
        if not isinstance(family, Family):
            return DIGESTS
        name = check.profile or family.profiles[0].name
        return find_float32_profile(family, name) or name

    @cached_property
    def _family(self) -> Family | tuple[Problem, ...]:
        try:
            return load_family(self.path)
        except (MatexportError, OSError) as error:
            return _list_problems(error)

    @cached_property
    def _case(self) -> Case | tuple[Problem, ...]:
        """The checked family, or what is wrong with its files."""
        if not isinstance(self._family, Family):
            return self._family
        try:
            return open_case(self._family)
        except (MatexportError, OSError) as error:
            return _list_problems(error)

    def _judge(self, case: Case, name: str) -> ProfileVerdict | str:
        """A profile's verdict, held to its vectors where it gives codes; or why it could not be run."""
        verdict = self._run(case, name)
        plain = find_float32_profile(case.family, name)
        if plain is None or isinstance(verdict, str):
            return verdict
        vectors = self._run(case, plain)
        return vectors if isinstance(vectors, str) else hold_codes_to_vectors([vectors, verdict])[1]

    def _run(self, case: Case, name: str) -> ProfileVerdict | str:
        if name not in self._verdicts:
            try:
                self._verdicts[name] = judge_profile(case, name, threads=self.requirements.threads)
            except (MatexportError, OSError) as error:
                self._verdicts[name] = "\n".join(map(_join_lines, _list_problems(error)))
        return self._verdicts[name]

    def _spell(self, case: Case, verdict: ProfileVerdict, check: Check, breach: Breach) -> str:
        lines = [breach.reason, f"worst on probe {breach.probe}: {case.probes[breach.probe].describe()}"]
        measured = verdict.parity.get(check.name)
        if measured:
            numbers = ("max_abs", "cosine_mean", "cosine_min", "neighbours")
            lines.append("measured: " + ", ".join(f"{name} {getattr(measured, name):.6g}" for name in numbers))
        return "\n".join(lines)

    @cached_property
    def _survey(self) -> Survey | str:
        assert isinstance(self._family, Family), "asked for of families that could be read"
        try:
            return survey_family(self._family, read_host(), task=self.requirements.task)
        except MatexportError as error:
            return str(error)

    def _find_retention_failure(self, name: str) -> str | None:
        survey, floor = self._survey, self.requirements.min_retention
        assert floor is not None, "listed only where it is asked"
        if isinstance(survey, str):
            return survey
        (candidate,) = (found for found in survey.candidates if found.profile == name)
        known = candidate.retention
        if known is None:
            return (
                f"at least {floor:g} was asked, and nobody measured it on these files\n"
                f"run: matexport evaluate {shlex.quote(str(self.path))} (it is kept in {self.path}/measurements, to be "
                "kept with the family)"
            )
        if known.value >= floor:  # NaN is not
            return None
        tasks = ", ".join(survey.tasks)
        return (
            f"{known.value:.4f} of the parent's quality, at least {floor:g} asked\n"
            f"least over the tasks: {tasks}; measured on {known.host.cpu}"
        )


def format_problems(problems: Sequence[Problem]) -> str:
    """How many there are of each kind, then a line for each, those of a kind together."""
    kinds = {kind: [problem for problem in problems if problem.kind is kind] for kind in ProblemKind}
    counts = ", ".join(f"{len(found)} {kind}" for kind, found in kinds.items() if found)
    return "\n".join([counts, *(_join_lines(problem) for found in kinds.values() for problem in found)])


def _list_problems(error: Exception) -> tuple[Problem, ...]:
    if isinstance(error, FamilyError):
        return error.problems
    return (Problem(ProblemKind.UNUSABLE, None, str(error)),)


def _join_lines(problem: Problem) -> str:
    return " ".join(str(problem).split())
