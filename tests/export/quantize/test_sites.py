"""What a precision works on, and what it is shown of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from conftest import Precise
from toys import Toy, bare_inputs, draw_rows, make_toy, observe_toy, run_model

from matexport.export.graph.edit import assert_sound
from matexport.export.quantize import observe
from matexport.export.quantize.observe import Sample, observe_peaks, observe_rows, open_values
from matexport.export.quantize.precisions.blocks import EMBEDDINGS, apply_blocks
from matexport.export.quantize.precisions.fp16 import apply_half
from matexport.export.quantize.precisions.int8 import apply_int8
from matexport.export.quantize.precisions.int8_static import apply_static_int8
from matexport.export.quantize.sites import find_blocks, find_products, find_tables
from matexport.runtime.inputs.text import Tokens
from matexport.spec.inputs import PaddingSide, TextFacts

TOKENS, WIDTH, HIDDEN = 300, 64, 96
TEXT = TextFacts(("input_ids",), 64, PaddingSide.RIGHT, 0, {})
ROWS = [Tokens(tuple(range(start, start + length)), (0,) * length) for start, length in ((0, 5), (40, 1), (90, 12))]


def make_small(head: bool = True) -> Toy:
    blocks = [
        {f"up_{block}": draw_rows(WIDTH, HIDDEN, seed=block) / 8, f"down_{block}": draw_rows(HIDDEN, WIDTH, seed=9) / 8}
        for block in (1, 2)
    ]
    return make_toy(draw_rows(TOKENS, WIDTH), blocks, head=draw_rows(WIDTH, WIDTH, seed=5) if head else None)


def test_products_of_the_blocks_are_sites_and_the_readouts_are_not() -> None:
    toy = make_small()
    sites = find_products(toy.traced)
    assert [(site.name, site.block) for site in sites] == [
        ("state_0", 1), ("active_1", 1), ("state_1", 2), ("active_2", 2),
    ]  # fmt: skip
    assert [[str(weight.name) for weight in site.weights] for site in sites] == [
        ["up_1"], ["down_1"], ["up_2"], ["down_2"],
    ]  # fmt: skip


def test_what_reads_one_value_is_one_site() -> None:
    """As query, key and value do."""
    toy = make_small()
    (up, *_) = toy.nodes("MatMul")
    third = ir.node("MatMul", [up.inputs[0], toy.model.graph.initializers["up_2"]])  # type: ignore[list-item]
    third.outputs[0].name, third.outputs[0].type = "third", ir.TensorType(ir.DataType.FLOAT)
    add = next(node for node in toy.model.graph if node.outputs[0].name == "active_1")
    both = ir.node("Add", [up.outputs[0], third.outputs[0]])
    both.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    toy.model.graph.insert_before(add, [third, both])
    add.replace_input_with(0, both.outputs[0])
    first = find_products(toy.traced)[0]
    assert [str(weight.name) for weight in first.weights] == ["up_1", "up_2"]


def test_every_node_belongs_to_the_first_block_that_needs_it() -> None:
    toy = make_small()
    blocks = find_blocks(toy.traced)
    found = {str(node.outputs[0].name): blocks.get(node) for node in toy.model.graph}
    expected = {"state_0": 0} | {
        f"{part}_{block}": block for block in (1, 2) for part in ("wide", "active", "narrow", "state")
    }
    assert {name: block for name, block in found.items() if block is not None} == expected
    assert sum(block is None for block in found.values()) == 4, "two means and two heads"


PRECISIONS: dict[str, Callable[[Toy, Path], object]] = {
    "int8": lambda toy, _: apply_int8(toy.traced, observe_toy(toy)),
    "int8-static": lambda toy, _: apply_static_int8(toy.traced, observe_toy(toy)),
    "q4": lambda toy, _: apply_blocks(toy.traced, observe_toy(toy), four_bits=[EMBEDDINGS, 1, 2], eight_bits=[]),
    "q8": lambda toy, _: apply_blocks(toy.traced, observe_toy(toy), four_bits=[], eight_bits=[EMBEDDINGS, 1, 2]),
    "fp16": lambda toy, folder: apply_half(
        toy.traced, observe_peaks(toy.model, Sample(ROWS, bare_inputs(TEXT), folder))
    ),
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_readout_stays_as_it_is(precision: str, tmp_path: Path) -> None:
    """Its head is a product with a matrix, too."""
    toy = make_small()
    head, expected = toy.initializers["head"], run_model(toy.model, {"input_ids": np.arange(40)[None]})
    PRECISIONS[precision](toy, tmp_path)
    assert_sound(toy.model)
    np.testing.assert_array_equal(toy.initializers["head"], head)
    assert [str(node.inputs[1].name) for node in toy.nodes("MatMul")][-2:] == ["head", "head"]  # type: ignore[union-attr]
    plain = {name for name, array in toy.initializers.items() if array.dtype == np.float32 and array.size >= 4096}
    assert plain == {"head"}
    for ours, theirs in zip(run_model(toy.model, {"input_ids": np.arange(40)[None]}), expected, strict=True):
        assert np.linalg.norm(ours - theirs) < 0.2 * np.linalg.norm(theirs)
        assert not np.array_equal(ours, theirs)


def test_rows_are_what_the_values_hold(tmp_path: Path) -> None:
    toy = make_small()
    seen = observe_rows(toy.model, ["state_0", "active_1"], Sample(ROWS, bare_inputs(TEXT), tmp_path), tmp_path)
    table = toy.initializers["table"]
    ids = [token for row in ROWS for token in row.ids]
    np.testing.assert_array_equal(seen["state_0"], table[ids])
    assert seen["active_1"].shape == (18, HIDDEN)
    (active,) = run_model(toy.model, {"input_ids": np.array([ROWS[2].ids])}, "active_1")
    np.testing.assert_allclose(seen["active_1"][6:], active[0], atol=1e-6)
    assert not list(tmp_path.glob("*.onnx"))


def test_of_many_tokens_some_of_every_text_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evenly, and the same ones of every value."""
    monkeypatch.setattr(observe, "MAX_ROWS", 20)
    toy = make_small()
    rows = [Tokens(tuple(range(start, start + 30)), (0,) * 30) for start in (0, 100, 200)]
    done: list[tuple[int, int]] = []
    seen = observe_rows(
        toy.model,
        ["state_0", "state_1"],
        Sample(rows, bare_inputs(TEXT), tmp_path),
        tmp_path,
        lambda *part: done.append(part),
    )
    assert len(seen["state_0"]) == len(seen["state_1"]) <= 20
    table = toy.initializers["table"]
    kept = [int(np.flatnonzero((table == row).all(axis=1))[0]) for row in seen["state_0"]]
    assert kept == [*range(0, 30, 5), *range(100, 130, 5), *range(200, 230, 5)]
    (whole,) = run_model(toy.model, {"input_ids": np.array([rows[1].ids])}, "state_1")
    np.testing.assert_allclose(seen["state_1"][6:12], whole[0, ::5], atol=1e-6)
    assert done == [(0, 3), (1, 3), (2, 3)]


def test_inner_values_are_given_for_padded_batches(tmp_path: Path) -> None:
    toy = make_small()
    run = open_values(toy.model, ["state_1", "L02-D064"], Sample([], bare_inputs(TEXT), tmp_path))
    state, exit_vectors = run(ROWS)
    assert (state.shape, exit_vectors.shape) == ((3, 12, WIDTH), (3, WIDTH))
    np.testing.assert_allclose(run(ROWS[2:])[0][0], state[2], atol=1e-6)
    assert list(tmp_path.iterdir()) == []
    assert [value.name for value in toy.model.graph.outputs] == ["L01-D064", "L02-D064"], "the model is left alone"


def test_a_parents_tables(precise: Callable[[str], Precise]) -> None:
    """Segments and the table of 32 KiB of positions are left; the words' are stored by row."""
    family = precise("bert").family
    names = set(ir.load(family / "L02-D064.int8.onnx").graph.initializers)
    assert "embeddings.word_embeddings.weight.int8" in names
    assert "embeddings.word_embeddings.weight.scale" in names
    assert {"embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight"} <= names
    four = set(ir.load(family / "L02-D064.q4.onnx").graph.initializers)
    assert {f"embeddings.word_embeddings.weight.int4{part}" for part in ("", ".scale", ".zero")} <= four


def test_a_table_that_only_the_readout_reads_is_left_alone() -> None:
    toy = make_small(head=False)
    (gather,) = toy.nodes("Gather")
    other = ir.node("Gather", [toy.model.graph.initializers["table"], gather.inputs[1]], {"axis": 0})  # type: ignore[list-item]
    other.outputs[0].name, other.outputs[0].type = "again", ir.TensorType(ir.DataType.FLOAT)
    toy.model.graph.append(other)
    assert find_tables(toy.traced) == [gather]
