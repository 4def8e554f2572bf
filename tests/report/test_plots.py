"""The front is the set that no other point beats; a plot is text, has ids of its own, and is the same twice."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from properties import given, st

from matexport.pick.front import find_front
from matexport.report.plots import COLOURS, MARKERS, Spot, draw_lines, draw_tradeoff, pick_front
from matexport.spec.profile import Encoding, Precision

VALUES = st.one_of(st.integers(0, 4).map(float), st.floats(-1e6, 1e6))


def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[0] and one[1] >= other[1] and one != other


@given(st.lists(st.tuples(VALUES, VALUES), max_size=40))
def test_the_front_is_what_nothing_beats(pairs: list[tuple[float, float]]) -> None:
    front = find_front(range(len(pairs)), lambda index: (pairs[index][0], -pairs[index][1]))
    wanted = {index for index, pair in enumerate(pairs) if not any(beats(other, pair) for other in pairs)}
    assert set(front) == wanted
    assert len(front) == len(wanted)
    assert [pairs[index][0] for index in front] == sorted(pairs[index][0] for index in front)


def make_spots(count: int = 6) -> list[Spot]:
    return [
        Spot(f"L{n:02d}-D008-fp32", f"{n}×8", Precision.FP32, Encoding.FLOAT32, float(n), n / count)
        for n in range(1, count + 1)
    ]


def test_what_is_off_its_floor_is_on_no_front() -> None:
    cheap = Spot("L01-D008-int8", "1×8", Precision.INT8, Encoding.FLOAT32, 0.1, 2.0, crossed=True)
    assert pick_front([cheap, *make_spots()]) == make_spots()
    assert pick_front([cheap]) == []


def draw(spots: list[Spot], name: str = "latency", **limits: float) -> str:
    return draw_tradeoff(spots, name, axis="latency, ms", description='a "plot" <of> points', **limits)


def test_a_plot_is_deterministic_and_loads_nothing() -> None:
    svg = draw(make_spots())
    assert svg == draw(make_spots())
    assert "latency, ms" in svg, "text is text"
    assert not re.search(r"<(style|script|image|metadata|!)|xlink|\d{4}-\d\d-\d\d", svg)
    assert not re.search(r"(href|src)=\"(?!#)", svg)
    root = ET.fromstring(svg)
    assert root.get("aria-label") == 'a "plot" <of> points'
    assert root.get("role") == "img"
    assert [it.text for it in root.iter("{http://www.w3.org/2000/svg}title")] == [it.name for it in make_spots()]


def test_ids_of_two_plots_differ_and_lead_somewhere() -> None:
    page = [draw(make_spots(), name) for name in ("latency", "disk")]
    ids = [re.findall(r' id="([^"]+)"', svg) for svg in page]
    assert ids[0]
    assert not set(ids[0]) & set(ids[1])
    for svg, known in zip(page, ids, strict=True):
        assert len(set(known)) == len(known)
        assert set(re.findall(r'href="#([^"]+)"', svg)) | set(re.findall(r"url\(#([^)]+)\)", svg)) == set(known)


def test_the_budget_is_drawn_where_it_is() -> None:
    plain, budget = draw(make_spots()), draw(make_spots(), most=3.0, least=0.5)
    assert "at most" not in plain
    assert "at most 3<" in budget
    assert "at least 0.5<" in budget
    dashed = re.findall(r'<path d="M ([\d.]+) ([\d.]+)\s+L ([\d.]+) ([\d.]+)\s+" clip[^>]+dasharray', budget)
    upright = [path for path in dashed if path[0] == path[2]]
    level = [path for path in dashed if path[1] == path[3]]
    assert (len(upright), len(level)) == (1, 1)
    spots = re.findall(r'<title>L(\d\d)[^<]+</title>.*?<use href="[^"]+" x="([\d.]+)" y="([\d.]+)"', budget, re.DOTALL)
    places = {int(layers): (float(x), float(y)) for layers, x, y in spots}
    assert float(upright[0][0]) == pytest.approx(places[3][0], abs=0.01), "the third costs 3 and keeps 0.5"
    assert float(level[0][1]) == pytest.approx(places[3][1], abs=0.01)


@pytest.mark.parametrize(
    "spots",
    [
        make_spots(1),
        [Spot("L01-D008-fp32", "1×8", Precision.FP32, Encoding.FLOAT32, 0.0, 0.0)],
        [Spot("L01-D008-fp32", "1×8", Precision.FP32, Encoding.FLOAT32, cost, 1e-9) for cost in (1e-12, 1.0, 1e12)],
        [Spot("L01-D008-fp32", "1×8", Precision.FP32, Encoding.FLOAT32, cost, cost) for cost in (-5.0, 7e9)],
    ],
)
def test_odd_numbers_are_drawn(spots: list[Spot]) -> None:
    assert draw(spots, most=2.0, least=0.1).count("<title>") == len(spots)


def test_the_choice_has_a_ring() -> None:
    spots = make_spots()
    ringed = [replace(spot, ringed=not index) for index, spot in enumerate(spots)]
    assert draw(ringed).count("<path") == draw(spots).count("<path") + 1


def test_a_line_for_each_depth() -> None:
    lines = {2: [(8, 0.5), (32, 0.6)], 6: [(8, 0.7), (32, 1.0)], 12: [(32, 1.0)]}
    svg = draw_lines(lines, "curves", description='a "plot"')
    assert svg == draw_lines(lines, "curves", description='a "plot"')
    root = ET.fromstring(svg)
    assert root.get("aria-label") == 'a "plot"'
    titles = [it.text for it in root.iter("{http://www.w3.org/2000/svg}title")]
    assert titles == ["2 layers", "6 layers", "12 layers"]
    assert not re.search(r"(href|src)=\"(?!#)", svg)
    assert ET.fromstring(draw_lines({0: [(8, 1.0)]}, "curves", description="x")) is not None


def test_every_precision_and_encoding_has_a_look_of_its_own() -> None:
    assert COLOURS.keys() == set(Precision)
    assert MARKERS.keys() == set(Encoding)
    assert len(set(COLOURS.values())) == len(Precision)
