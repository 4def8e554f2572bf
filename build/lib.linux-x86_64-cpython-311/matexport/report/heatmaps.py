"""Make heat maps over layers and dims from findings, of retention and of parity: text and colours, no HTML.

There is one map for each precision and encoding; all maps of retention share one scale, and so do all of parity.
matplotlib, which is used for its colours, is imported when needed.
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
    """One cell of a heat map.

    Attributes:
        text: what it shows.
        style: names of CSS classes, separated by spaces.
        colour, ink: of the ground and of the text, as ``#rrggbb`` or ``#rgb``; empty for the page's own.
        mark: letter of the host that the number is from; empty for the host in question.
        title: text of the tooltip.
    """

    text: str
    style: str = ""
    colour: str = ""
    ink: str = ""
    mark: str = ""
    title: str = ""


@dataclass(frozen=True)
class HeatMap:
    """The heat map of one precision and encoding.

    Attributes:
        note: what the numbers are; may be empty.
        label: description for readers who do not see the map.
        dims: what the columns stand for.
        rows: (layers, one cell for each of `dims`).
    """

    title: str
    note: str
    label: str
    dims: Sequence[int]
    rows: Sequence[tuple[int, Sequence[HeatCell]]]


def map_retention(findings: Findings, letters: Mapping[Host, str]) -> list[HeatMap]:
    """Heat maps of retention, coloured from the least to the greatest that is known.

    Args:
        letters: the letter of each host, from `naming.name_hosts`.
    """
    known = {candidate.profile: candidate.retention for candidate in findings.survey.candidates}
    values = [retention.value for retention in known.values() if retention and math.isfinite(retention.value)]
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

    # A group of which nothing was evaluated would be a map of dashes; the page says in a line how many are unknown.
    groups = [group for group in list_groups(findings) if any(known[profile.name] for profile in group[1])]
    return [_map(findings, group, show, "retention", "") for group in groups]


def map_parity(findings: Findings, letters: Mapping[Host, str]) -> list[HeatMap]:
    """Heat maps of parity, coloured by the share of the floor that is left.

    Args:
        letters: the letter of each host, from `naming.name_hosts`.
    """
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
        found = [floor_uses[profile.name] for profile in group[1] if profile.name in floor_uses]
        if found:
            bound = {(use.number, use.allowed) for use in found}
            notes = [
                f"{number}, allowed {format_number(allowed, '.4g')}"
                if allowed is not None else number
                for number, allowed in sorted(bound, key=lambda pair: (pair[0], pair[1] or 0.0))
            ]  # fmt: skip
            # The floors of codes depend on the dim; the tooltip gives the share of its own floor that a cell uses.
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
    by_point = {profile.point: profile for profile in members}
    turned_down = map(Profile.parse, facts.refused)
    refused = {profile.point for profile in turned_down if (profile.precision, profile.encoding) == group[0]}
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
    depths = sorted({point.layers for point in points})
    rows = [(layers, [fill(Point(layers, dim)) for dim in dims]) for layers in depths]
    return HeatMap(title, note, f"{what} of {title} by layers and dim", dims, rows)


def _colour(share: float) -> tuple[str, str]:
    """The colour of a share from 0 to 1, and black or white ink, whichever reads better on it. NaN counts as 0."""
    import matplotlib

    share = min(max(share, 0.0), 1.0) if share == share else 0.0
    red, green, blue, _ = matplotlib.colormaps[COLOUR_MAP](share)
    rgb = (red, green, blue)
    light = [(channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4) for channel in rgb]
    luminance = 0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2]  # WCAG 2; black reads better above 0.179
    return "#" + "".join(f"{round(channel * 255):02x}" for channel in rgb), "#000" if luminance > 0.179 else "#fff"


def list_gradient() -> list[str]:
    """Nine colours of the scale as ``#rrggbb``, from the least to the greatest share, for a legend."""
    return [_colour(step / 8)[0] for step in range(9)]


def list_marks(findings: Findings, letters: Mapping[Host, str]) -> list[tuple[str, str]]:
    """(CSS class or nothing, explanation) of each mark that occurs on the heat maps."""
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
