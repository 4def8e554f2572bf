"""Plots as inline SVG: retention against a cost, and retention over dims. matplotlib is imported when used.

The same points give the same bytes: ids come from a fixed salt, and no date is written. Text stays text. Axes, lines
and text take the colour of the page's text, so that a plot can be read on light and on dark ground. Points carry a
title that browsers show. Only numbers and profile names, which have a fixed spelling, get into a plot.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from matexport.pick.front import find_front
from matexport.report.naming import count_noun
from matexport.spec.profile import Encoding, Precision

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The colours of Okabe and Ito (2008), which colour-blind readers can tell apart; the yellow is darkened for white.
COLOURS: Mapping[Precision, str] = {
    Precision.FP32: "#0072b2",
    Precision.FP16: "#56b4e9",
    Precision.INT8: "#d55e00",
    Precision.INT8_STATIC: "#cc79a7",
    Precision.Q8: "#009e73",
    Precision.Q4: "#e69f00",
    Precision.Q4_MIXED: "#b5a800",
}

#: Encoding -> matplotlib's marker, and the character that a legend shows for that marker.
MARKERS: Mapping[Encoding, tuple[str, str]] = {
    Encoding.FLOAT32: ("o", "●"),
    Encoding.INT8: ("s", "■"),
    Encoding.UBINARY: ("^", "▲"),
}

#: What takes the colour of the page's text is drawn in this colour, which `_embed` replaces.
_INK = "#010203"

#: (width, height) in inches of 72 units. As wide as a phone shows unscaled, so that 11 units of text are 10 pixels.
_SIZE = (5.0, 4.0)

#: Names of profiles that are written into a plot; more would hide each other. The text under the plot lists them all.
_MAX_LABELS = 7

#: Of labels beside each other, in units.
_LINE_HEIGHT = 10.0

#: The axis of costs is logarithmic where the largest cost is more than this many times the smallest.
_LOG_RATIO = 20.0


@dataclass(frozen=True)
class Spot:
    """One profile of a plot.

    Attributes:
        label: its short name, which is written into the plot where it is on the front.
        cost, retention: finite; a smaller cost and a larger retention are better.
        hollow: whether the marker is hollow, since the parent was not trained to be read at this point.
        crossed: whether a cross is drawn over it and it is kept off the front, since it is off its parity floor.
        ringed: whether a ring is drawn around it, since it is the choice.
    """

    name: str
    label: str
    precision: Precision
    encoding: Encoding
    cost: float
    retention: float
    hollow: bool = False
    crossed: bool = False
    ringed: bool = False


def draw_tradeoff(
    spots: Sequence[Spot],
    name: str,
    *,
    axis: str,
    description: str,
    most: float | None = None,
    least: float | None = None,
) -> str:
    """One plot as an ``<svg>`` element.

    Args:
        spots: at least one.
        name: letters that begin the ids of this plot, so that they differ from the ids of other plots on the page.
        axis: what the cost is, with its unit.
        description: text for readers who do not see the plot.
        most, least: the budget: the greatest cost, in the unit of `axis`, and the least retention.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_make_style(name)):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        _scale(axes, [spot.cost for spot in spots], [spot.retention for spot in spots], most, least)
        axes.set_xlabel(axis)
        axes.set_ylabel("retention")
        axes.grid(color=_INK, alpha=0.12, linewidth=0.6)
        axes.set_axisbelow(True)
        _draw_budget(axes, most, least)
        front = pick_front(spots)
        axes.step(
            [spot.cost for spot in front],
            [spot.retention for spot in front],
            where="post",
            color=_INK,
            linewidth=1.2,
        )
        _draw_spots(axes, spots)
        _label(figure, axes, front, spots)
        svg = _save(figure)
    titles = {f"spot-{index}": spot.name for index, spot in enumerate(spots)}
    return _embed(svg, name, description, titles)


def draw_lines(lines: Mapping[int, Sequence[tuple[int, float]]], name: str, *, description: str) -> str:
    """Retention over dims, a line for each depth, as an ``<svg>`` element; deeper lines are darker and thicker.

    Args:
        lines: number of layers -> (dim, retention), by rising dim; at least one line with a point.
        name: letters that begin the ids of this plot.
        description: text for readers who do not see the plot.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    with matplotlib.rc_context(_make_style(name)):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        dims = sorted({dim for line in lines.values() for dim, _ in line})
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(dims))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([str(dim) for dim in dims], rotation=0 if len(dims) < _MAX_LABELS else 60)
        axes.set_xlim(dims[0] / 1.15, dims[-1] * 2)  # room for the labels
        axes.set_xlabel("dim")
        axes.set_ylabel("retention")
        axes.grid(color=_INK, alpha=0.12, linewidth=0.6)
        deepest = max(lines)
        for layers, line in lines.items():
            share = layers / deepest if deepest else 1.0
            axes.plot(*zip(*line, strict=True), "o-", color=_INK, alpha=0.35 + 0.65 * share, markersize=4,
                      linewidth=0.8 + 1.4 * share, gid=f"line-{layers}")  # fmt: skip
        _label_lines(figure, axes, lines)
        svg = _save(figure)
    return _embed(svg, name, description, {f"line-{layers}": count_noun(layers, "layer") for layers in lines})


def _label_lines(figure: Figure, axes: Axes, lines: Mapping[int, Sequence[tuple[int, float]]]) -> None:
    """The number of layers at the end of each line; labels of lines that end together are moved apart."""
    figure.draw_without_rendering()
    ends = [(float(axes.transData.transform(line[-1])[1]) * 72 / figure.dpi, layers) for layers, line in lines.items()]
    above = -math.inf
    for height, layers in sorted(ends):
        above = max(height, above + _LINE_HEIGHT)
        name = count_noun(layers, "layer") if layers == max(lines) else str(layers)
        axes.annotate(name, lines[layers][-1], (6, above - height), textcoords="offset points", va="center", fontsize=9)


def stand_alone(svg: str) -> str:
    """A plot of a page as the content of a file of its own: dark on white, whatever is around it."""
    ground = '<rect width="100%" height="100%" fill="#ffffff"/>'
    place = svg.index(">") + 1
    return svg[:place].replace("<svg ", '<svg color="#1f2328" font-family="sans-serif" ') + ground + svg[place:]


def _save(figure: Figure) -> str:
    buffer = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    return buffer.getvalue()


def _make_style(name: str) -> dict[str, Any]:
    """Settings of matplotlib that keep text as text and give the same bytes for the same plot."""
    return {
        "font.family": ["DejaVu Sans"],
        "svg.fonttype": "none",
        "svg.hashsalt": f"matexport {name}",
        "font.size": 11,
        "text.parse_math": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    }


def _draw_spots(axes: Axes, spots: Sequence[Spot]) -> None:
    """A marker for each spot, with its index as an id; a cross over those off their floor, a ring round the choice."""
    for index, spot in enumerate(spots):
        colour = COLOURS[spot.precision]
        axes.plot(
            [spot.cost], [spot.retention], MARKERS[spot.encoding][0], markersize=7, markeredgewidth=1.1,
            markerfacecolor="none" if spot.hollow else colour, gid=f"spot-{index}",
            markeredgecolor=colour if spot.hollow else _INK, zorder=4,
        )  # fmt: skip
        if spot.ringed:
            axes.plot([spot.cost], [spot.retention], "o", color=_INK, markersize=14, markerfacecolor="none", zorder=3)
        if spot.crossed:
            axes.plot([spot.cost], [spot.retention], "x", color=_INK, markersize=10, markeredgewidth=1.6, zorder=5)


def pick_front(spots: Sequence[Spot]) -> list[Spot]:
    """The Pareto front of the spots, by rising cost; spots that are off their parity floor are left out."""
    sound = [spot for spot in spots if not spot.crossed]
    return find_front(sound, lambda spot: (spot.cost, -spot.retention))


def _scale(
    axes: Axes, costs: Sequence[float], retentions: Sequence[float], most: float | None, least: float | None
) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    costs = [*costs, *([most] if most is not None else [])]
    low, high = min(costs), max(costs)
    if low > 0 and high / low > _LOG_RATIO:
        axes.set_xscale("log")
        pad = (high / low) ** 0.06
        axes.set_xlim(low / pad, high * pad**2)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        pad = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
        axes.set_xlim(low - pad, high + 2 * pad)
    if 1e-3 <= abs(high) < 1e6:
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    shown = [*retentions, *([least] if least is not None else [])]
    pad = 0.08 * (max(shown) - min(shown)) or 0.02
    axes.set_ylim(min(shown) - pad, max(shown) + pad)


def _draw_budget(axes: Axes, most: float | None, least: float | None) -> None:
    """Draw the lines of the budget, and a shade over what is outside."""
    line: dict[str, Any] = {"color": _INK, "linewidth": 1.0, "linestyle": (0, (4, 3))}
    shade: dict[str, Any] = {"color": _INK, "alpha": 0.07, "linewidth": 0}
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    if most is not None:
        axes.axvline(most, gid="budget-most", **line)
        axes.fill_between([most, right], bottom, top, **shade)
        axes.annotate(f"at most {most:g}", (most, bottom), (-4, 4), textcoords="offset points", rotation=90,
                      ha="right", va="bottom", fontsize=9)  # fmt: skip
    if least is not None:
        edge = right if most is None else most
        axes.axhline(least, gid="budget-least", **line)
        axes.fill_between([left, edge], bottom, least, **shade)
        axes.annotate(f"at least {least:g}", (right, least), (-2, 3), textcoords="offset points", ha="right",
                      va="bottom", fontsize=9)  # fmt: skip
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)


def _label(figure: Figure, axes: Axes, front: Sequence[Spot], spots: Sequence[Spot]) -> None:
    """Write the labels of the front's spots where they cover neither another label nor a spot, best retention first."""
    figure.draw_without_rendering()
    centres = [axes.transData.transform((spot.cost, spot.retention)) for spot in spots]
    taken = [_box_around(x, y, 9, 9) for x, y in centres]
    frame, scale = axes.bbox, figure.dpi / 72
    labelled = 0
    for spot in sorted(front, key=lambda spot: -spot.retention):
        x, y = axes.transData.transform((spot.cost, spot.retention))
        width, height = 6.6 * len(spot.label) * scale, 11 * scale
        for dx, dy in _list_offsets(width, height, scale):
            box = (x + dx - width / 2, y + dy - height / 2, x + dx + width / 2, y + dy + height / 2)
            inside = box[0] >= frame.x0 + 3 * scale and box[2] <= frame.x1 and box[1] >= frame.y0 and box[3] <= frame.y1
            if inside and not any(_overlap(box, other) for other in taken):
                axes.annotate(spot.label, (spot.cost, spot.retention), (dx / scale, dy / scale), fontsize=9,
                              textcoords="offset points", ha="center", va="center", zorder=6)  # fmt: skip
                taken.append(box)
                labelled += 1
                break
        if labelled == _MAX_LABELS:
            return


def _list_offsets(width: float, height: float, scale: float) -> Iterator[tuple[float, float]]:
    side, up = width / 2 + 7 * scale, height / 2 + 6 * scale
    yield from ((0, up), (-side, 0), (side, 0), (-side * 0.8, up), (side * 0.8, up), (0, -up), (side * 0.8, -up))


def _box_around(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _embed(svg: str, name: str, description: str, titles: Mapping[str, str]) -> str:
    """Turn matplotlib's SVG file into an element for a page: ids of its own, no links, the page's colour and font."""
    body = svg[svg.index("<svg") :]
    # The style sheet in the file would apply to the whole page.
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href=", "href=").replace(_INK, "currentColor")
    body = re.sub(r"font-family: [^;\"]+; ", "", body)
    for precision, colour in COLOURS.items():
        body = body.replace(colour, f"var(--c-{precision},{colour})")  # a page may set other colours for dark mode
    view_box = re.search(r'viewBox="([^"]+)"', body)
    assert view_box
    head = f'<svg class="plot" role="img" aria-label="{escape(description, {chr(34): "&quot;"})}"'
    body = f'{head} viewBox="{view_box[1]}" xmlns="http://www.w3.org/2000/svg">' + body[body.index(">") + 1 :]
    for gid, title in titles.items():
        body = body.replace(f'<g id="{gid}">', f"<g><title>{escape(title)}</title>")
    used = set(re.findall(r'href="#([^"]+)"', body)) | set(re.findall(r"url\(#([^)]+)\)", body))
    body = re.sub(r' id="([^"]+)"', lambda match: f' id="{name}-{match[1]}"' if match[1] in used else "", body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    return re.sub(r">\s+<", "><", body).strip()
