"""Make the tables of a report's page from findings, each cell with its sort key: text and numbers, no HTML."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from matexport.family.measurements.records import Measurement
from matexport.family.summary import describe_profiles
from matexport.family.survey import Measured, is_same_host
from matexport.pick.limits import Budget
from matexport.report.findings import MB, Findings, FloorUse
from matexport.report.naming import count_noun, format_number, mark_host
from matexport.spec.measured import CPU, Host
from matexport.spec.profile import Precision, Profile
from matexport.spec.tolerance import FLOORS, tighten


@dataclass(frozen=True)
class Column:
    """A column of a table; a numeric one is aligned to the right and sorts by number."""

    title: str
    numeric: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what it shows.
        value: what it is sorted by; None is missing, and sorts last.
        mark: letter of the host that the number is from; empty for the host in question.
        style: names of CSS classes, separated by spaces.
    """

    text: str
    value: float | str | None = None
    mark: str = ""
    style: str = ""


@dataclass(frozen=True)
class Table:
    """A table of the page. `id` is its id in HTML; each row has a cell for every column."""

    id: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    sortable: bool = False


def tabulate_failures(findings: Findings, letters: Mapping[Host, str]) -> Table | None:
    """The profiles that were refused or are off their floor on some host; None where nothing failed."""
    rows = [
        [Cell(name), Cell("refused when the family was made", style="bad narrow"), Cell(reason, style="wrap")]
        for name, reason in findings.family.facts.refused.items()
    ]
    rows += [
        [Cell(name), Cell(f"off its floor on host {letters[host]}", style="bad narrow"), Cell(reason, style="wrap")]
        for name, breaches in findings.broken.items()
        for host, reason in breaches
    ]
    columns = (Column("profile"), Column("what"), Column("how"))
    return Table("failures", "What failed", columns, rows) if rows else None


def tabulate_profiles(findings: Findings, letters: Mapping[Host, str]) -> Table:
    """All that is known of each profile, one row each. MB are 10^6 bytes."""
    budget, floor_uses = findings.budget, findings.floor_uses
    limited = budget != Budget()
    columns = [
        Column("profile"), Column("layers", True), Column("dim", True), Column("retention", True),
        Column("latency ms", True), Column("RAM MB", True), Column("disk MB", True),
        *([Column("budget")] if limited else []), Column("parity"), Column("cold start ms", True),
        Column(f"{findings.family.facts.inputs.noun}s/s", True), Column("download MB", True), Column("precision"),
        Column("vectors"), Column("trained"), Column("max abs diff", True), Column("mean cosine", True),
        Column("least cosine", True), Column("neighbours", True), Column("spread", True),
    ]  # fmt: skip
    measured = Measurement(
        {name: use.verdict.parity for name, use in floor_uses.items()},
        {name: use.verdict.spread for name, use in floor_uses.items()},
    )
    described = {row["profile"]: row for row in describe_profiles(findings.family, measured)}
    rejected = {rejection.profile: rejection.reason for rejection in findings.choice.rejections}
    checked = any(check.done for check in findings.choice.checks)

    def known(number: Measured | None, form: str, unit: float = 1.0) -> Cell:
        if number is None:
            return Cell("–")
        return _number(number.value / unit, form, mark_host(findings, letters, number.host))

    rows = []
    for candidate in findings.survey.candidates:
        name = candidate.profile
        profile, row, use = Profile.parse(name), described[name], floor_uses.get(name)
        mark = mark_host(findings, letters, use.host) if use else ""
        trained = {True: "yes", False: "no", None: "–"}[candidate.trained]
        kept = Cell("kept", "kept", style="good") if checked else Cell("not checked")
        if reason := rejected.get(name):
            kept = Cell(reason, "outside", style="bad narrow")
        rows.append(
            [
                Cell(name, name, style="chosen" if candidate is findings.choice.chosen else ""),
                _number(candidate.layers, "d"),
                _number(candidate.dim, "d"),
                known(candidate.retention, ".4f"),
                known(candidate.latency_ms, ".2f"),
                known(candidate.peak_bytes, ".0f", MB),
                _number(candidate.disk_bytes / MB, ".1f"),
                *([kept] if limited else []),
                _judge_cell(use, mark, [letters[host] for host, _ in findings.broken.get(name, ())]),
                known(candidate.cold_start_ms, ".0f"),
                known(candidate.texts_per_s, ".0f"),
                _number(candidate.download_bytes / MB, ".1f"),
                Cell(profile.precision, str(profile.precision)),
                Cell(profile.encoding, str(profile.encoding)),
                Cell(trained, None if candidate.trained is None else trained),
                _number(row["max_abs"], ".1e", mark),
                _number(row["cosine_mean"], ".6f", mark),
                _number(row["cosine_min"], ".6f", mark),
                _number(row["neighbours"], ".3f", mark),
                _number(row["spread"], ".0e", mark),
            ]
        )
    return Table("table-profiles", "All profiles", columns, rows, sortable=True)


def _judge_cell(use: FloorUse | None, mark: str, broken: Sequence[str]) -> Cell:
    """The verdict on a profile. `broken` are the letters of the hosts on which the profile is off its floor."""
    if use is None:
        return Cell("–")
    if not broken:
        return Cell("passed", "passed", mark, "good")
    return Cell(f"off its floor on {', '.join(broken)}", "off", style="bad")


def tabulate_tasks(findings: Findings, letters: Mapping[Host, str]) -> Table:
    """The tasks that were evaluated, with the whole parent's score on each."""
    columns = (Column("task"), Column("kind"), Column("metric"),
               Column(f"{findings.family.facts.inputs.noun}s", True), Column("parent", True),
               Column("counts"), Column("host"), Column("data sha256"))  # fmt: skip
    rows = [
        [
            Cell(task.name, task.name),
            Cell(task.quality.kind, str(task.quality.kind)),
            Cell(task.quality.metric, task.quality.metric),
            _number(task.quality.texts, "d"),
            _number(task.quality.parent.score if task.quality.parent else None, ".4f"),
            Cell("for retention" if task.name in findings.survey.tasks else "–"),
            Cell(letters[task.host], letters[task.host]),
            Cell(task.quality.data_sha256[:16], task.quality.data_sha256),
        ]
        for task in findings.tasks
    ]
    return Table("table-tasks", "Tasks", columns, rows)


def tabulate_scores(findings: Findings) -> Table:
    """The score of every profile on every task."""
    columns = [Column("profile"), *(Column(f"{task.name}: {task.quality.metric}", True) for task in findings.tasks)]
    rows = []
    for profile in findings.family.profiles:
        scores = [task.quality.profiles.get(profile.name) for task in findings.tasks]
        numbers = [_number(score.score if score else None, ".4f") for score in scores]
        rows.append([Cell(profile.name, profile.name), *numbers])
    return Table("table-scores", "Scores of every profile on every task", columns, rows, sortable=True)


def tabulate_hosts(findings: Findings, letters: Mapping[Host, str]) -> Table:
    """The hosts that something was measured on, and what was measured there."""
    titles = ("host", "CPU", "CPUs", "instruction sets", "system", "Python", "onnxruntime", "measured")
    columns = [Column(title) for title in titles]
    rows = []
    proven = dict(findings.verdicts)
    for host, letter in letters.items():
        what = [f"parity of {count_noun(len(proven[host]), 'profile')}"] if host in proven else []
        for bench in findings.benches:
            if bench.host == host:
                on = "" if bench.provider == CPU else f" on {bench.provider}"
                counts = sorted({count for profile in bench.profiles.values() for count in profile.threads})
                what.append(f"timings{on} of {count_noun(len(bench.profiles), 'profile')} with {_join(counts)} threads")
        if evaluated := [task.name for task in findings.tasks if task.host == host]:
            what.append(f"quality on {', '.join(evaluated)}")
        this = " (this host)" if is_same_host(host, findings.host) else ""
        rows.append(
            [
                Cell(letter + this), Cell(host.cpu), Cell(str(host.cpus)),
                Cell(", ".join(host.instruction_sets) or "–", style="wrap"), Cell(f"{host.os}, {host.machine}"),
                Cell(host.python), Cell(host.onnxruntime), Cell("; ".join(what) or "–", style="wrap"),
            ]
        )  # fmt: skip
    return Table("table-hosts", "Hosts that something was measured on", columns, rows)


def tabulate_floors(findings: Findings) -> Table:
    """The floor that each precision of the family is held to, and how the precision was made."""
    facts = findings.family.facts
    numbers = ("max abs diff", "mean cosine", "least cosine", "spread")
    columns = [
        Column("precision"),
        *(Column(title, True) for title in numbers),
        Column("calibrated on"),
        Column("held at a higher precision"),
    ]
    rows = []
    for precision in Precision:
        if precision not in facts.tolerances:
            continue
        floor, made = tighten(facts.tolerances[precision], FLOORS[precision]), facts.precisions.get(precision)
        held = ", ".join(f"{part} in {to}" for part, to in made.kept.items()) if made else ""
        rows.append(
            [
                Cell(precision), _number(floor.max_abs, "g"), _number(floor.cosine_mean, "g"),
                _number(floor.cosine_min, "g"), _number(floor.spread, "g"),
                Cell((made and made.calibration) or "–", style="wrap"), Cell(held or "–", style="wrap"),
            ]
        )  # fmt: skip
    return Table("table-floors", "Floors", columns, rows)


def tabulate_files(findings: Findings) -> Table:
    """The files that the manifest lists, with their sizes in bytes and their digests."""
    columns = (Column("file"), Column("bytes", True), Column("sha256"))
    files = findings.family.facts.files
    rows = [
        [Cell(name, name), _number(files[name].bytes, ",d"), Cell(files[name].sha256, files[name].sha256)]
        for name in sorted(files)
    ]
    return Table("table-files", "Files", columns, rows, sortable=True)


def _number(value: object, form: str, mark: str = "") -> Cell:
    if not isinstance(value, int | float):
        return Cell("–")
    if value != value:
        return Cell("not a number", mark=mark)
    shown = {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, repr(value))
    return Cell(format_number(value, form), shown, mark)


def _join(counts: Iterable[int]) -> str:
    return " and ".join(map(str, counts)) or "no"
