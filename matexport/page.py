"""Findings -> what each place of the report's page shows: lines, tables and heat maps as plain text. No HTML here.

All text of a family and its measurements stays a `str`, which the template escapes. The only markup is what `plots`
drew. Numbers from another host than the one in question carry that host's letter.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matexport.findings import MB, Findings, Standing
from matexport.host import Host
from matexport.plots import COLOURS, MARKERS, Spot, draw_tradeoff, pick_front
from matexport.profiles import FLOORS, tighten
from matexport.spec import CPU, Encoding, Point, Precision, Profile
from matexport.survey import Known, is_same_host
from matexport.tables import describe_profiles

#: A sequential map that colour-blind readers and grey printers order rightly (Nuñez, Anderton and Renslow 2018).
COLOUR_MAP = "cividis"

#: What is beyond was not measured but forged, and would stretch an axis out of what matplotlib draws.
MAX_DRAWN = 1e15

TRAINED, UNTRAINED = "trained", "untrained"


@dataclass(frozen=True)
class Column:
    title: str
    numeric: bool = False


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and what it is sorted by: None is missing, and stands last."""

    text: str
    value: float | str | None = None
    mark: str = ""
    style: str = ""


@dataclass(frozen=True)
class Table:
    id: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    sortable: bool = False


@dataclass(frozen=True)
class HeatCell:
    text: str
    style: str = ""
    colour: str = ""
    ink: str = ""
    mark: str = ""
    title: str = ""


@dataclass(frozen=True)
class HeatMap:
    """One precision and encoding, layers by dims. `rows` are (layers, cells)."""

    title: str
    note: str
    label: str
    dims: Sequence[int]
    rows: Sequence[tuple[int, Sequence[HeatCell]]]


@dataclass(frozen=True)
class Missing:
    """In place of what nobody measured: what is missing, what to do, and the command that does it."""

    what: str
    todo: str
    command: str


@dataclass(frozen=True)
class Plot:
    title: str
    svg: str = ""
    front: Sequence[str] = ()
    count: int = 0
    left_out: str = ""
    missing: Missing | None = None


@dataclass(frozen=True)
class Line:
    text: str
    style: str = ""


def lay_out(findings: Findings) -> dict[str, Any]:
    """Everything that the template names `page`."""
    facts, survey = findings.family.facts, findings.survey
    letters = name_hosts(findings)
    sections = [
        ("verdict", "Verdict"), ("retention", "Retention"), ("parity", "Parity"), ("tradeoffs", "Trade-offs"),
        ("profiles", "Profiles"), ("tasks", "Tasks"), ("hosts", "Hosts"), ("parent", "Parent"), ("floors", "Floors"),
        ("files", "Files"),
    ]  # fmt: skip
    retention = map_retention(findings, letters)
    kept = [known.value for it in survey.candidates if (known := it.retention) and math.isfinite(known.value)]
    return {
        "title": f"{findings.name}: sub-models of {facts.parent.source}",
        "lead": describe_family(findings),
        "identity": list_identity(findings),
        "sections": sections,
        "verdicts": judge(findings, letters),
        "proven": not findings.unproven,
        "failures": tabulate_failures(findings, letters),
        "unproven": _say_unproven(findings),
        "budget": describe_budget(findings),
        "retention": retention if kept else [],
        "retention_note": _note_retention(findings),
        "retention_scale": (f"{min(kept):.3f}", f"{max(kept):.3f}") if kept else ("", ""),
        "no_retention": _miss_retention(findings, len(kept)),
        "marks": list_marks(findings, letters),
        "parity": map_parity(findings, letters),
        "no_parity": _say_unproven(findings),
        "plots": (plots := draw_plots(findings)),
        "no_plots": None if plots else _miss_retention(findings, 0),
        "legend": list_series(findings),
        "plot_note": _note_plots(findings),
        "profiles": tabulate_profiles(findings, letters),
        "profiles_note": _note_profiles(findings, letters),
        "tasks": tabulate_tasks(findings, letters) if findings.tasks else None,
        "scores": tabulate_scores(findings) if findings.tasks else None,
        "no_tasks": Missing("No task was evaluated.", "Measure quality with", command(findings, "evaluate")),
        "hosts": tabulate_hosts(findings, letters),
        "hosts_note": _note_hosts(findings, letters),
        "parent": list_parent(findings),
        "floors": tabulate_floors(findings),
        "files": tabulate_files(findings),
        "files_note": "What the manifest says of each file. This page did not read them; to check every digest, and "
        "parity on your machine:",
        "verify_command": command(findings, "verify"),
        "versions": [*sorted(facts.provenance.versions.items()), ("inputs sha256", facts.provenance.inputs_sha256)],
    }


def command(findings: Findings, verb: str, *options: str) -> str:
    """A command line for this family, as a shell takes it."""
    return shlex.join(["matexport", verb, findings.name, *options])


def name_hosts(findings: Findings) -> Mapping[Host, str]:
    """A letter (or more) for each host that something was measured on; this one first."""
    hosts = sorted(findings.survey.hosts, key=lambda host: not is_same_host(host, findings.survey.host))
    return {host: _letter(index) for index, host in enumerate(hosts)}


def _letter(index: int) -> str:
    letters = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        letters = chr(ord("a") + rest) + letters
    return letters


def describe_family(findings: Findings) -> str:
    facts = findings.family.facts
    points = {(it.layers, it.dim) for it in facts.profiles.values()}
    precisions = [it for it in Precision if any(profile.precision is it for profile in facts.profiles.values())]
    return (
        f"{_count(len(facts.profiles), 'ONNX sub-model')} of one {facts.parent.architecture} encoder "
        f"({facts.parent.blocks} blocks, {facts.parent.output_width} dims): {_count(len(points), 'point')} "
        f"(layers, dim) in {', '.join(precisions)}. Each is a cut of the parent's own graph, held to the parent's "
        "vectors at the same point."
    )


def list_identity(findings: Findings) -> list[tuple[str, str]]:
    facts = findings.family.facts
    weights = [(f"sha256 of {name}", digest) for name, digest in sorted(facts.parent.weights.items())]
    return [("parent", facts.parent.source), *weights, ("sha256 of family.json", findings.manifest_sha256)]


# --- verdict


def judge(findings: Findings, letters: Mapping[Host, str]) -> list[Line]:
    """A line for each host that recorded parity, and for what was refused."""
    total = len(findings.family.profiles)
    lines = []
    for host, verdicts in findings.verdicts:
        passed = sum(verdict.passed for verdict in verdicts.values())
        failed, unknown = len(verdicts) - passed, total - len(verdicts)
        text = f"{passed} of {_count(total, 'profile')} passed parity on {describe_host(host)} (host {letters[host]})"
        text += f"; {failed} off their floor" if failed else ""
        text += f"; {unknown} not recorded" if unknown else ""
        lines.append(Line(f"{text}.", "no" if failed else "unknown" if unknown else ""))
    if not lines:
        lines.append(
            Line(f"No host has recorded the parity of these {total} profiles. They passed once, when the family was "
                 "made, or it would not exist.", "unknown")
        )  # fmt: skip
    if refused := len(findings.family.facts.refused):
        lines.append(Line(f"{_count(refused, 'profile')} that {_was(refused)} asked for did not keep the floor when "
                          "the family was made, and "
                          f"{'is' if refused == 1 else 'are'} not in it.", "no"))  # fmt: skip
    return lines


def tabulate_failures(findings: Findings, letters: Mapping[Host, str]) -> Table | None:
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


def _say_unproven(findings: Findings) -> Missing | None:
    names = findings.unproven
    if not names:
        return None
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    whose = "any profile" if len(names) == len(findings.family.profiles) else f"{len(names)} profiles ({shown})"
    return Missing(
        f"The parity of {whose} was recorded on no host.", "Measure it with", command(findings, "verify", "--record")
    )


def describe_budget(findings: Findings) -> str:
    limits = findings.limits
    if not limits.given:
        return ""
    parts = [
        text
        for value, text in (
            (limits.max_latency_ms, f"at most {limits.max_latency_ms:g} ms" if limits.max_latency_ms else ""),
            (limits.max_ram_mb, f"{limits.max_ram_mb:g} MB of memory" if limits.max_ram_mb else ""),
            (limits.max_disk_mb, f"{limits.max_disk_mb:g} MB on disk" if limits.max_disk_mb else ""),
            (limits.min_retention, f"a retention of at least {limits.min_retention:g}" if limits.min_retention else ""),
        )
        if value is not None
    ]
    inside = [it.profile for it in findings.survey.candidates if not limits.find_excess(it)]
    sound = [name for name in inside if name not in findings.broken]
    names = f": {', '.join(sound)}" if 0 < len(sound) <= 12 else ""
    return (
        f"Budget: {', '.join(parts)}. {len(sound)} of {_count(len(findings.survey.candidates), 'profile')} "
        f"{'keeps' if len(sound) == 1 else 'keep'} it{names}."
    )


# --- heat maps


def map_retention(findings: Findings, letters: Mapping[Host, str]) -> list[HeatMap]:
    known = {it.profile: it.retention for it in findings.survey.candidates}
    values = [it.value for it in known.values() if it and math.isfinite(it.value)]
    low, high = min(values, default=0.0), max(values, default=1.0)

    def show(profile: Profile) -> HeatCell:
        kept = known[profile.name]
        if kept is None:
            return HeatCell("–", "missing", title=f"{profile.name}: not measured")
        colour, ink = _colour((kept.value - low) / ((high - low) or 1.0))
        return HeatCell(
            _format(kept.value, ".3f"), colour=colour, ink=ink, mark=_mark(findings, letters, kept.host),
            title=f"{profile.name}: {_format(kept.value, '.5f')}",
        )  # fmt: skip

    # Several encodings may not have been evaluated: a map of dashes says less than the line that names them.
    groups = [group for group in _list_groups(findings) if any(known[it.name] for it in group[1])]
    return [_map(findings, group, show, "retention", "") for group in groups]


def map_parity(findings: Findings, letters: Mapping[Host, str]) -> list[HeatMap]:
    standings = findings.standings

    def show(profile: Profile) -> HeatCell:
        standing = standings.get(profile.name)
        if standing is None:
            return HeatCell("–", "missing", title=f"{profile.name}: not recorded")
        breach = standing.verdict.find_breach()
        colour, ink = _colour(1 - standing.used)
        return HeatCell(
            _format_standing(standing), "off" if breach else "", colour, ink,
            _mark(findings, letters, standing.host),
            f"{profile.name}: " + (f"off its floor, {breach[1].reason}" if breach else f"{standing.used:.1%} used"),
        )  # fmt: skip

    maps = []
    for group in _list_groups(findings):
        found = [standings[it.name] for it in group[1] if it.name in standings]
        if found:
            bound = {(it.number, it.allowed) for it in found}
            notes = [
                f"{number}, allowed {_format(allowed, 'g') if number.startswith('max') else _format(allowed, '.4g')}"
                if allowed is not None else number
                for number, allowed in sorted(bound, key=lambda it: (it[0], it[1] or 0.0))
            ]  # fmt: skip
            # Floors of codes depend on the dim: each is in the tooltip's share.
            note = notes[0] if len(notes) == 1 else f"{found[0].number}, the floor depends on the dim"
            maps.append(_map(findings, group, show, "parity", note))
    return maps


def _list_groups(findings: Findings) -> list[tuple[tuple[Precision, Encoding], list[Profile]]]:
    profiles = findings.family.profiles
    return [
        ((precision, encoding), members)
        for precision in Precision
        for encoding in Encoding
        if (members := [it for it in profiles if (it.precision, it.encoding) == (precision, encoding)])
    ]


def _map(
    findings: Findings,
    group: tuple[tuple[Precision, Encoding], list[Profile]],
    show: Any,
    what: str,
    note: str,
) -> HeatMap:
    (precision, encoding), members = group
    facts = findings.family.facts
    by_point = {it.point: it for it in members}
    refused = {it.point for it in map(Profile.parse, facts.refused) if (it.precision, it.encoding) == group[0]}
    points = by_point.keys() | refused
    dims = sorted({point.dim for point in points})

    def fill(point: Point) -> HeatCell:
        if point in by_point:
            cell: HeatCell = show(by_point[point])
            trained = findings.family.is_trained(by_point[point].name)
            extra = "" if trained is None else f" {TRAINED if trained else UNTRAINED}"
            said = "" if trained is None else f"; {TRAINED if trained else UNTRAINED} point"
            return HeatCell(
                cell.text, (cell.style + extra).strip(), cell.colour, cell.ink, cell.mark, cell.title + said
            )
        if point in refused:
            return HeatCell("refused", "refused", title=f"{point.name}: did not keep its floor")
        return HeatCell("", "void", title=f"{point.name}: not in the family")

    title = _name_group(precision, encoding)
    rows = [(layers, [fill(Point(layers, dim)) for dim in dims]) for layers in sorted({it.layers for it in points})]
    return HeatMap(title, note, f"{what} of {title} by layers and dim", dims, rows)


def _name_group(precision: Precision, encoding: Encoding) -> str:
    return str(precision) if encoding is Encoding.FLOAT32 else f"{precision}, vectors as {encoding}"


def _colour(share: float) -> tuple[str, str]:
    """A share, 0 to 1, as a colour and the ink that reads on it. What is no number has the darkest."""
    import matplotlib

    share = min(max(share, 0.0), 1.0) if share == share else 0.0
    red, green, blue, _ = matplotlib.colormaps[COLOUR_MAP](share)
    light = [(it / 12.92 if it <= 0.04045 else ((it + 0.055) / 1.055) ** 2.4) for it in (red, green, blue)]
    luminance = 0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2]  # WCAG 2, as is the crossing at 0.179
    return "#" + "".join(f"{round(it * 255):02x}" for it in (red, green, blue)), "#000" if luminance > 0.179 else "#fff"


def list_gradient() -> list[str]:
    """Colours of the map from its least to its greatest, for a legend."""
    return [_colour(step / 8)[0] for step in range(9)]


def list_marks(findings: Findings, letters: Mapping[Host, str]) -> list[tuple[str, str]]:
    marks = []
    if findings.family.facts.trained is not None:
        marks = [(TRAINED, "trained point"), (UNTRAINED, "untrained point")]
    if findings.family.facts.refused:
        marks.append(("", "refused: did not keep its floor"))
    if any(not is_same_host(host, findings.survey.host) for host in letters):
        marks.append(("", "a raised letter: from another host, see Hosts"))
    return marks


def _note_retention(findings: Findings) -> str:
    tasks = findings.survey.tasks
    if not tasks:
        return "Quality of a sub-model over the whole parent's."
    of = f"the task {tasks[0]}" if len(tasks) == 1 else f"the least over {len(tasks)} tasks: {', '.join(tasks)}"
    trained = (
        "" if findings.family.facts.trained is not None else " Nobody said which points the parent was trained at."
    )
    return f"Quality of a sub-model over the whole parent's, 1 being the parent's own: {of}.{trained}"


def _miss_retention(findings: Findings, known: int) -> Missing | None:
    total = len(findings.survey.candidates)
    if known == total:
        return None
    what = f"Of {total - known} of {total} profiles no retention is known." if known else "No retention was measured."
    return Missing(what, "Measure it with", command(findings, "evaluate"))


# --- trade-offs


def list_spots(findings: Findings, cost: str) -> list[Spot]:
    """The profiles whose cost and retention are known: `cost` is ``latency_ms``, ``peak_bytes`` or ``disk_bytes``."""
    spots = []
    for candidate in findings.survey.candidates:
        value, kept = getattr(candidate, cost), candidate.retention
        value = value.value if isinstance(value, Known) else value
        if value is None or kept is None or not (abs(value) < MAX_DRAWN and abs(kept.value) < MAX_DRAWN):
            continue
        profile = Profile.parse(candidate.profile)
        spots.append(
            Spot(
                candidate.profile, f"{candidate.layers}×{candidate.dim}", profile.precision, profile.encoding,
                value / MB if cost.endswith("_bytes") else value, kept.value,
                hollow=candidate.trained is False, crossed=candidate.profile in findings.broken,
            )
        )  # fmt: skip
    return spots


def draw_plots(findings: Findings) -> list[Plot]:
    """Retention against each cost; none where no retention is known."""
    limits = findings.limits
    plots = []
    for cost, name, axis, most in (
        ("latency_ms", "latency", "latency of one short text, ms", limits.max_latency_ms),
        ("peak_bytes", "memory", "peak memory, MB", limits.max_ram_mb),
        ("disk_bytes", "disk", "size on disk, MB", limits.max_disk_mb),
    ):
        spots = list_spots(findings, cost)
        title = f"Retention against {name}"
        if not spots:
            lacking = Missing(f"No {name} was measured.", "Measure it with", command(findings, "bench"))
            plots.append(Plot(title, missing=lacking))
            continue
        front = pick_front(spots)
        told = [f"{it.name}: {it.retention:.3f} at {it.cost:.3g}" for it in front]
        bounds = "".join(
            f"; budget {word} {value:g}"
            for word, value in (("at most", most), ("retention at least", limits.min_retention))
            if value is not None
        )
        label = f"{title}, {axis}: {_count(len(spots), 'profile')}{bounds}. On the front: {', '.join(told) or 'none'}"
        lacking_count = len(findings.survey.candidates) - len(spots)
        left_out = f"{_count(lacking_count, 'profile')} left out, for want of both numbers." if lacking_count else ""
        svg = draw_tradeoff(spots, name, axis=axis, description=label, most=most, least=limits.min_retention)
        plots.append(Plot(title, svg, told, len(spots), left_out))
    return plots if any(plot.svg for plot in plots) else []


def list_series(findings: Findings) -> list[tuple[str, str, str]]:
    """(colour, symbol, name) of what the plots show."""
    series = [
        (f"var(--c-{precision},{COLOURS[precision]})", MARKERS[encoding][1], _name_group(precision, encoding))
        for (precision, encoding), _ in _list_groups(findings)
    ]
    candidates = findings.survey.candidates
    if any(it.trained is False for it in candidates):
        series.append(("inherit", "○", "hollow: untrained point"))
    if findings.broken:
        series.append(("inherit", "×", "off its parity floor, on no front"))
    if findings.limits.given:
        series.append(("inherit", "╌", "budget; outside it is shaded"))
    return series


def _note_plots(findings: Findings) -> str:
    threads = describe_threads(findings)
    return f"Points carry their names. Latency and memory {threads}." if threads else "Points carry their names."


def describe_threads(findings: Findings) -> str:
    counts = {
        findings.threads if findings.threads is not None else max(profile.threads)
        for bench in findings.benches
        for profile in bench.profiles.values()
        if bench.provider == CPU and profile.threads
    }
    return f"with {' or '.join(map(str, sorted(counts)))} thread{'s' if counts != {1} else ''}" if counts else ""


# --- tables


def tabulate_profiles(findings: Findings, letters: Mapping[Host, str]) -> Table:
    limits, standings = findings.limits, findings.standings
    columns = [
        Column("profile"), Column("layers", True), Column("dim", True), Column("retention", True),
        Column("latency ms", True), Column("RAM MB", True), Column("disk MB", True),
        *([Column("budget")] if limits.given else []), Column("parity"), Column("cold start ms", True),
        Column("texts/s", True), Column("download MB", True), Column("precision"), Column("vectors"),
        Column("trained"), Column("max abs diff", True), Column("mean cosine", True), Column("least cosine", True),
        Column("neighbours", True), Column("spread", True),
    ]  # fmt: skip
    parities = {name: it.verdict.parity for name, it in standings.items()}
    spreads = {name: it.verdict.spread for name, it in standings.items()}
    described = {row["profile"]: row for row in describe_profiles(findings.family, parities, spreads)}

    def known(number: Known | None, form: str, unit: float = 1.0) -> Cell:
        if number is None:
            return Cell("–")
        return _number(number.value / unit, form, _mark(findings, letters, number.host))

    rows = []
    for it in findings.survey.candidates:
        profile, row, standing = Profile.parse(it.profile), described[it.profile], standings.get(it.profile)
        mark = _mark(findings, letters, standing.host) if standing else ""
        trained = {True: "yes", False: "no", None: "–"}[it.trained]
        excess = limits.find_excess(it)
        budget = Cell("; ".join(excess) or "kept", "outside" if excess else "kept", style="bad" if excess else "good")
        rows.append(
            [
                Cell(it.profile, it.profile),
                _number(it.layers, "d"),
                _number(it.dim, "d"),
                known(it.retention, ".4f"),
                known(it.latency_ms, ".2f"),
                known(it.peak_bytes, ".0f", MB),
                _number(it.disk_bytes / MB, ".1f"),
                *([budget] if limits.given else []),
                _judge_cell(standing, mark, [letters[host] for host, _ in findings.broken.get(it.profile, ())]),
                known(it.cold_start_ms, ".0f"),
                known(it.texts_per_s, ".0f"),
                _number(it.download_bytes / MB, ".1f"),
                Cell(profile.precision, str(profile.precision)),
                Cell(profile.encoding, str(profile.encoding)),
                Cell(trained, None if it.trained is None else trained),
                _number(row["max_abs"], ".1e", mark),
                _number(row["cosine_mean"], ".6f", mark),
                _number(row["cosine_min"], ".6f", mark),
                _number(row["neighbours"], ".3f", mark),
                _number(row["spread"], ".0e", mark),
            ]
        )
    return Table("table-profiles", "All profiles", columns, rows, sortable=True)


def _judge_cell(standing: Standing | None, mark: str, broken: Sequence[str]) -> Cell:
    """`broken`: letters of the hosts on which the profile is off its floor."""
    if standing is None:
        return Cell("–")
    if not broken:
        return Cell("passed", "passed", mark, "good")
    return Cell(f"off its floor on {', '.join(broken)}", "off", style="bad")


def tabulate_tasks(findings: Findings, letters: Mapping[Host, str]) -> Table:
    columns = (Column("task"), Column("kind"), Column("metric"), Column("texts", True), Column("parent", True),
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
    columns = [Column("profile"), *(Column(f"{task.name}: {task.quality.metric}", True) for task in findings.tasks)]
    rows = []
    for profile in findings.family.profiles:
        scores = [task.quality.profiles.get(profile.name) for task in findings.tasks]
        rows.append([Cell(profile.name, profile.name), *(_number(it.score if it else None, ".4f") for it in scores)])
    return Table("table-scores", "Scores of every profile on every task", columns, rows, sortable=True)


def tabulate_hosts(findings: Findings, letters: Mapping[Host, str]) -> Table:
    titles = ("host", "CPU", "CPUs", "instruction sets", "system", "Python", "onnxruntime", "measured")
    columns = [Column(title) for title in titles]
    rows = []
    proven = dict(findings.verdicts)
    for host, letter in letters.items():
        what = [f"parity of {_count(len(proven[host]), 'profile')}"] if host in proven else []
        for bench in findings.benches:
            if bench.host == host:
                on = "" if bench.provider == CPU else f" on {bench.provider}"
                counts = sorted({count for profile in bench.profiles.values() for count in profile.threads})
                what.append(f"timings{on} of {_count(len(bench.profiles), 'profile')} with {_join(counts)} threads")
        if evaluated := [task.name for task in findings.tasks if task.host == host]:
            what.append(f"quality on {', '.join(evaluated)}")
        this = " (this host)" if is_same_host(host, findings.survey.host) else ""
        rows.append(
            [
                Cell(letter + this), Cell(host.cpu), Cell(str(host.cpus)),
                Cell(", ".join(host.instruction_sets) or "–", style="wrap"), Cell(f"{host.os}, {host.machine}"),
                Cell(host.python), Cell(host.onnxruntime), Cell("; ".join(what) or "–", style="wrap"),
            ]
        )  # fmt: skip
    return Table("table-hosts", "Hosts that something was measured on", columns, rows)


def describe_host(host: Host) -> str:
    sets = f" ({', '.join(host.instruction_sets)})" if host.instruction_sets else ""
    return f"{host.cpu}{sets}, {_count(host.cpus, 'CPU')}, onnxruntime {host.onnxruntime}"


def _note_hosts(findings: Findings, letters: Mapping[Host, str]) -> str:
    here = describe_host(findings.survey.host)
    if not letters:
        return f"Nothing was measured on any host. This page was written on {here}."
    if any(is_same_host(host, findings.survey.host) for host in letters):
        return f"The numbers are those of {here}. What was not measured there is the worst of the other hosts'."
    return (
        f"This page was written on {here}, where nothing was measured: each number is the worst of the other hosts', "
        "and an assumption here."
    )


def _note_profiles(findings: Findings, letters: Mapping[Host, str]) -> str:
    text = "Press a column's title to sort by it, and again for the other direction. – is not measured."
    if threads := describe_threads(findings):
        text += f" Latency is the median of one short text {threads}."
    if any(not is_same_host(host, findings.survey.host) for host in letters):
        text += " A raised letter names the host of a number that was not measured on this one."
    return text


def list_parent(findings: Findings) -> list[tuple[str, str]]:
    facts = findings.family.facts
    readout, text, trace = facts.readout, facts.text, facts.trace
    pairs = [
        ("architecture", f"{facts.parent.architecture}, {facts.parent.blocks} blocks, width {facts.parent.width}, "
         f"vectors of {facts.parent.output_width}, {facts.parent.dtype}"),
        ("read-out", " -> ".join([" + ".join(readout.pooling), *readout.heads])),
        ("final norm", str(readout.final_norm)),
        ("after the cut", "unit length" if readout.normalize else "not scaled"),
        ("text", f"up to {text.max_tokens} tokens, padded on the {text.padding_side} by the parent"),
        *((f"prompt {name!r}", prompt + (" (default)" if name == text.default_prompt else ""))
          for name, prompt in text.prompts.items()),
        ("trained points", _describe_trained(facts.trained)),
        ("graphs", f"opset {trace.opset}, IR {trace.ir_version}, traced with {trace.exporter}"
         + (f" ({trace.fallback})" if trace.fallback else "")),
    ]  # fmt: skip
    if vocabulary := facts.vocabulary:
        pairs.append(("vocabulary", f"{vocabulary.tokens} of {vocabulary.parent_tokens} tokens ({vocabulary.kept_by}); "
                      f"{_count(len(vocabulary.changed_probes), 'probe')} left out"))  # fmt: skip
    return pairs


def _describe_trained(trained: tuple[Point, ...] | None) -> str:
    if trained is None:
        return "nobody said"
    return ", ".join(f"{it.layers} layers × {it.dim}" for it in sorted(trained)) or "none"


def tabulate_floors(findings: Findings) -> Table:
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
    columns = (Column("file"), Column("bytes", True), Column("sha256"))
    files = findings.family.facts.files
    rows = [
        [Cell(name, name), _number(files[name].bytes, ",d"), Cell(files[name].sha256, files[name].sha256)]
        for name in sorted(files)
    ]
    return Table("table-files", "Files", columns, rows, sortable=True)


# --- words and numbers


def _number(value: object, form: str, mark: str = "") -> Cell:
    if not isinstance(value, int | float):
        return Cell("–")
    if value != value:
        return Cell("not a number", mark=mark)
    shown = {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, repr(value))
    return Cell(_format(value, form), shown, mark)


def _format(value: float | None, form: str) -> str:
    if value is None:
        return "–"
    return format(value, form) if math.isfinite(value) else {True: "∞", False: "not a number"}[value == value]


def _format_standing(standing: Standing) -> str:
    return _format(standing.value, ".1e" if standing.number.startswith("max") else ".4f")


def _mark(findings: Findings, letters: Mapping[Host, str], host: Host) -> str:
    return "" if is_same_host(host, findings.survey.host) else letters[host]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _was(number: int) -> str:
    return "was" if number == 1 else "were"


def _join(counts: Iterable[int]) -> str:
    return " and ".join(map(str, counts)) or "no"
