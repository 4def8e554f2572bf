"""Which plots a report has and what they show: findings -> spots and lines, which `plots` draws, and their legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matexport.family.survey import Measured
from matexport.report.findings import MB, Findings
from matexport.report.naming import command, count_noun, list_groups, name_group, name_item
from matexport.report.plots import COLOURS, MARKERS, Spot, draw_lines, draw_tradeoff, pick_front
from matexport.spec.profile import Profile

#: Larger numbers cannot have been measured, and would stretch an axis beyond what matplotlib can draw.
MAX_DRAWN = 1e15


@dataclass(frozen=True)
class Missing:
    """Shown in place of what was not measured: what is missing, what to do, and the command that does it."""

    what: str
    todo: str
    command: str


@dataclass(frozen=True)
class Plot:
    """One plot of the page.

    Attributes:
        svg: the ``<svg>`` element; empty where there is nothing to draw, and `missing` says why.
        front: a line of text for each profile on the front.
        count: how many profiles are drawn; `left_out` is a sentence on the others, or empty.
    """

    title: str
    svg: str = ""
    front: Sequence[str] = ()
    count: int = 0
    left_out: str = ""
    missing: Missing | None = None


def draw_curves(findings: Findings) -> Plot | None:
    """Retention over dims, a line per depth, of the first precision and encoding whose retention is known."""
    for (precision, encoding), members in list_groups(findings):
        names = {profile.name for profile in members}
        lines: dict[int, list[tuple[int, float]]] = {}
        for one in findings.survey.candidates:
            if one.profile in names and one.retention and abs(one.retention.value) < MAX_DRAWN:
                lines.setdefault(one.layers, []).append((one.dim, one.retention.value))
        lines = {layers: sorted(lines[layers]) for layers in sorted(lines)}
        if any(len(line) > 1 for line in lines.values()):
            told = [
                f"{count_noun(layers, 'layer')}: {', '.join(f'{kept:.3f} at {dim}' for dim, kept in line)}"
                for layers, line in lines.items()
            ]
            title = f"Retention over dims, a line per number of layers ({name_group(precision, encoding)})"
            return Plot(title, draw_lines(lines, "curves", description=f"{title}. {'; '.join(told)}"), told, len(lines))
    return None


def draw_plots(findings: Findings) -> list[Plot]:
    """Plots of retention against latency, memory and disk; an empty list where there is nothing to draw in any."""
    budget = findings.budget
    plots = []
    for cost, name, axis, most in (
        ("latency_ms", "latency", f"latency of one {name_item(findings)}, ms", budget.max_latency_ms),
        ("peak_bytes", "memory", "peak memory, MB", budget.max_ram_mb),
        ("disk_bytes", "disk", "size on disk, MB", budget.max_disk_mb),
    ):
        spots = list_spots(findings, cost)
        title = f"Retention against {name}"
        if not spots:
            lacking = Missing(f"No {name} was measured.", "Measure it with", command(findings, "bench"))
            plots.append(Plot(title, missing=lacking))
            continue
        front = pick_front(spots)
        told = [f"{spot.name}: {spot.retention:.3f} at {spot.cost:.3g}" for spot in front]
        bounds = "".join(
            f"; budget {word} {value:g}"
            for word, value in (("at most", most), ("retention at least", budget.min_retention))
            if value is not None
        )
        label = (
            f"{title}, {axis}: {count_noun(len(spots), 'profile')}{bounds}. On the front: {', '.join(told) or 'none'}"
        )
        lacking_count = len(findings.survey.candidates) - len(spots)
        left_out = (
            f"{count_noun(lacking_count, 'profile')} left out, for want of both numbers." if lacking_count else ""
        )
        svg = draw_tradeoff(spots, name, axis=axis, description=label, most=most, least=budget.min_retention)
        plots.append(Plot(title, svg, told, len(spots), left_out))
    return plots if any(plot.svg for plot in plots) else []


def list_spots(findings: Findings, cost: str) -> list[Spot]:
    """The profiles whose cost and retention are both known; `cost` is ``latency_ms``, ``peak_bytes`` or ``disk_bytes``.

    The spots of the latter two have their cost in MB of 10^6 bytes.
    """
    spots = []
    for candidate in findings.survey.candidates:
        value, kept = getattr(candidate, cost), candidate.retention
        value = value.value if isinstance(value, Measured) else value
        if value is None or kept is None or not (abs(value) < MAX_DRAWN and abs(kept.value) < MAX_DRAWN):
            continue
        profile = Profile.parse(candidate.profile)
        spots.append(
            Spot(
                candidate.profile, f"{candidate.layers}×{candidate.dim}", profile.precision, profile.encoding,
                value / MB if cost.endswith("_bytes") else value, kept.value,
                hollow=candidate.trained is False, crossed=candidate.profile in findings.broken,
                ringed=candidate is findings.choice.chosen,
            )
        )  # fmt: skip
    return spots


def list_series(findings: Findings) -> list[tuple[str, str, str]]:
    """(CSS colour, symbol, name) of each entry of the plots' legend."""
    series = [
        (f"var(--c-{precision},{COLOURS[precision]})", MARKERS[encoding][1], name_group(precision, encoding))
        for (precision, encoding), _ in list_groups(findings)
    ]
    candidates = findings.survey.candidates
    if any(candidate.trained is False for candidate in candidates):
        series.append(("inherit", "○", "hollow: untrained point"))
    if findings.broken:
        series.append(("inherit", "×", "off its parity floor, on no front"))
    if any(candidate is findings.choice.chosen for candidate in candidates):
        series.append(("inherit", "◎", "ring: the choice of pick"))
    budget = findings.budget
    if any(limit is not None for limit in (budget.max_latency_ms, budget.max_ram_mb, budget.max_disk_mb)) or (
        budget.min_retention is not None
    ):
        series.append(("inherit", "╌", "budget; outside it is shaded"))
    return series
