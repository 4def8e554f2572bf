"""Findings -> heat maps over layers and dims, of retention and of parity: text and colours, no HTML.

One map for each precision and encoding, all of a kind on one scale. matplotlib, for its colours, is imported when used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matexport.family.survey import is_same_host
from matexport.report.findings import Findings, FloorUse
from matexport.report.naming import format_number, list_groups, mark_host, name_group
from matexport.spec.measured import Host
from matexport.spec.profile import Encoding, Point, Precision, Profile

#: A sequential map that colour-blind readers and grey printers order rightly (Nuñez, Anderton and Renslow 2018).
COLOUR_MAP = "cividis"
TRAINED, UNTRAINED = "trained", "untrained"


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
            format_number(kept.value, ".3f"), colour=colour, ink=ink, mark=mark_host(findings, letters, kept.host),
            title=f"{profile.name}: {format_number(kept.value, '.5f')}",
        )  # fmt: skip

    # Several encodings may not have been evaluated: a map of dashes says less than the line that names them.
    groups = [group for group in list_groups(findings) if any(known[it.name] for it in group[1])]
    return [_map(findings, group, show, "retention", "") for group in groups]


def map_parity(findings: Findings, letters: Mapping[Host, str]) -> list[HeatMap]:
    floor_uses = findings.floor_uses

    def show(profile: Profile) -> HeatCell:
        use = floor_uses.get(profile.name)
        if use is None:
            return HeatCell("–", "missing", title=f"{profile.name}: not recorded")
        breach = use.verdict.find_breach()
        colour, ink = _colour(1 - use.used)
        return HeatCell(
            _format_floor_use(use), "off" if breach else "", colour, ink,
            mark_host(findings, letters, use.host),
            f"{profile.name}: " + (f"off its floor, {breach[1].reason}" if breach else f"{use.used:.1%} used"),
        )  # fmt: skip

    maps = []
    for group in list_groups(findings):
        found = [floor_uses[it.name] for it in group[1] if it.name in floor_uses]
        if found:
            bound = {(it.number, it.allowed) for it in found}
            notes = [
                f"{number}, allowed {format_number(allowed, '.4g')}"
                if allowed is not None else number
                for number, allowed in sorted(bound, key=lambda it: (it[0], it[1] or 0.0))
            ]  # fmt: skip
            # Floors of codes depend on the dim: each is in the tooltip's share.
            note = notes[0] if len(notes) == 1 else f"{found[0].number}, the floor depends on the dim"
            maps.append(_map(findings, group, show, "parity", note))
    return maps


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

    title = name_group(precision, encoding)
    rows = [(layers, [fill(Point(layers, dim)) for dim in dims]) for layers in sorted({it.layers for it in points})]
    return HeatMap(title, note, f"{what} of {title} by layers and dim", dims, rows)


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
    if any(not is_same_host(host, findings.host) for host in letters):
        marks.append(("", "a raised letter: from another host, see Hosts"))
    return marks


def _format_floor_use(use: FloorUse) -> str:
    return format_number(use.value, ".1e" if use.number.startswith("max") else ".4f")
