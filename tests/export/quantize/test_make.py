"""What a precision is made from, and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toys import Toy, bare_inputs, draw_rows, make_toy, run_model

from matexport.errors import RequestError
from matexport.export.graph.edit import assert_sound
from matexport.export.quantize.make import MAKERS, WITHOUT_ROWS, Material, make_precision, observe_products
from matexport.export.quantize.observe import Sample
from matexport.runtime.inputs.text import Tokens
from matexport.spec.inputs import PaddingSide, TextFacts
from matexport.spec.profile import Point, Precision

TOKENS, WIDTH, HIDDEN = 300, 64, 96
TEXT = TextFacts(("input_ids",), 64, PaddingSide.RIGHT, 0, {})
ROWS = [Tokens(tuple(range(start, start + 20)), (0,) * 20) for start in range(0, 200, 20)]
FEEDS = {"input_ids": np.arange(60).reshape(3, 20)}


def make_small() -> Toy:
    blocks = [
        {f"up_{block}": draw_rows(WIDTH, HIDDEN, seed=block) / 8, f"down_{block}": draw_rows(HIDDEN, WIDTH, seed=9) / 8}
        for block in (1, 2)
    ]
    return make_toy(draw_rows(TOKENS, WIDTH), blocks)


def test_every_precision_has_a_maker() -> None:
    assert MAKERS.keys() == set(Precision)


@pytest.mark.parametrize("precision", Precision)
def test_the_traced_graph_is_left_as_it_is(precision: Precision, tmp_path: Path) -> None:
    toy, sample = make_small(), Sample(ROWS, bare_inputs(TEXT), tmp_path)
    expected, nodes = run_model(toy.model, FEEDS), [node.op_type for node in toy.model.graph]
    stages: list[str] = []
    rows = observe_products([precision], toy.traced, sample, tmp_path)
    material = Material(toy.traced, [Point(1, WIDTH), Point(2, WIDTH)], sample, "ten texts", rows)
    model, facts = make_precision(precision, material, lambda stage, _done, _total: stages.append(stage))
    assert_sound(model)
    assert [node.op_type for node in toy.model.graph] == nodes
    for ours, theirs in zip(run_model(toy.model, FEEDS), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(run_model(model, FEEDS), expected, strict=True):
        assert np.linalg.norm(ours - theirs) < 0.2 * np.linalg.norm(theirs)
        assert np.array_equal(ours, theirs) == (precision is Precision.FP32)
    assert facts.calibration == (None if precision is Precision.FP32 else "ten texts")
    assert set(stages) == (set() if precision in WITHOUT_ROWS else {f"quantize {precision}"})


def test_rows_are_observed_for_those_who_need_them(tmp_path: Path) -> None:
    toy = make_small()
    nowhere = Sample(ROWS, bare_inputs(TEXT), tmp_path / "nowhere")
    assert observe_products([Precision.FP16, Precision.FP32], toy.traced, nowhere, tmp_path) == {}
    done: list[tuple[int, int]] = []
    rows = observe_products(
        [Precision.FP32, Precision.Q8],
        toy.traced,
        Sample(ROWS, bare_inputs(TEXT), tmp_path),
        tmp_path,
        lambda *part: done.append(part),
    )
    assert {name: array.shape for name, array in rows.items()} == {
        "state_0": (200, WIDTH), "active_1": (200, HIDDEN), "state_1": (200, WIDTH), "active_2": (200, HIDDEN),
    }  # fmt: skip
    assert done == [(place, 10) for place in range(10)]


def test_a_parent_without_products_is_refused_by_name(tmp_path: Path) -> None:
    bare = replace(make_small().traced, states=("state_0",))
    with pytest.raises(RequestError, match="q4 was asked; nothing in the parent's blocks multiplies by a weight"):
        observe_products(
            [Precision.FP16, Precision.Q4, Precision.Q8], bare, Sample(ROWS, bare_inputs(TEXT), tmp_path), tmp_path
        )
