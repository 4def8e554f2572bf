"""Embedding tables in small precisions: what the graph gives is what numpy decodes, and every row is as good as any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from properties import given, settings, st
from toys import Floats, Toy, draw_rows, make_toy, observe_toy, run_model

from matexport.export.graph.edit import assert_sound
from matexport.export.quantize import embeddings
from matexport.export.quantize.embeddings import BLOCK, fits_int4, pack_nibbles, store_rows_as_int4, store_rows_as_int8
from matexport.export.quantize.precisions.blocks import EMBEDDINGS, apply_blocks
from matexport.export.quantize.sites import find_tables

TOKENS = 600


def make_table(width: int = 64, seed: int = 0) -> Floats:
    """Rows of very different sizes, one of them huge."""
    table = draw_rows(TOKENS, width, seed=seed) * np.exp(draw_rows(TOKENS, 1, seed=seed + 1))
    table[17] *= 1e4
    return table


def store(table: Floats, how: Callable[[ir.Model, ir.Node], None]) -> Toy:
    width = table.shape[1]
    toy = make_toy(table, [{"up": draw_rows(width, 32, seed=2), "down": draw_rows(32, width, seed=3)}])
    (gather,) = toy.nodes("Gather")
    how(toy.model, gather)
    assert_sound(toy.model)
    return toy


def look_up(toy: Toy) -> Floats:
    """The rows of all tokens, as the graph gives them."""
    (rows,) = run_model(toy.model, {"input_ids": np.arange(TOKENS)[None]}, "state_0")
    found: Floats = rows[0]
    return found


def decode_rows(stored: dict[str, NDArray[Any]]) -> Floats:
    return (stored["table.int8"].astype(np.float64) * stored["table.scale"]).astype(np.float32)


def decode_nibbles(stored: dict[str, NDArray[Any]]) -> Floats:
    """Codes (V, H / 2), scales (V, H / 32), zero points (V, H / 64); the first of two in the low half of a byte."""
    codes, scales, zeros = (stored[f"table.int4{part}"] for part in ("", ".scale", ".zero"))
    rows, width = len(codes), codes.shape[1] * 2
    assert scales.shape == (rows, width // BLOCK)
    levels = np.stack([codes & 15, codes >> 4], axis=-1).reshape(rows, -1, BLOCK).astype(np.float64)
    offsets = np.stack([zeros & 15, zeros >> 4], axis=-1).reshape(rows, -1, 1)
    return ((levels - offsets) * scales[..., None]).reshape(rows, width).astype(np.float32)


def find_poor_rows(table: Floats, back: Floats, levels: int) -> list[int]:
    """Rows that are off by more than half a step of their own range."""
    steps = np.abs(table).max(axis=1) / levels
    return np.flatnonzero(np.abs(back - table).max(axis=1) > 0.5001 * steps).tolist()


def test_int8_rows_are_decoded_as_they_are_stored() -> None:
    table = make_table()
    toy = store(table, store_rows_as_int8)
    np.testing.assert_array_equal(look_up(toy), decode_rows(toy.initializers))
    assert toy.initializers["table.int8"].dtype == np.int8
    assert toy.initializers["table.scale"].shape == (TOKENS, 1)
    assert find_poor_rows(table, look_up(toy), 127) == []


def test_one_scale_for_the_whole_vocabulary_is_seen() -> None:
    """One huge row, and every other is rounded away."""
    table = make_table()
    scale = np.abs(table).max() / 127
    back = (np.rint(table / scale) * scale).astype(np.float32)
    assert find_poor_rows(table, back, 127) == [row for row in range(TOKENS) if row != 17]


def test_int4_blocks_are_decoded_as_they_are_stored() -> None:
    table = make_table()
    toy = store(table, store_rows_as_int4)
    np.testing.assert_allclose(look_up(toy), decode_nibbles(toy.initializers), rtol=1e-6)
    for array in (decode_nibbles(toy.initializers), look_up(toy)):
        error = np.linalg.norm(array - table, axis=1) / np.linalg.norm(table, axis=1)
        assert error.max() < 0.2
    swapped = toy.initializers["table.int4"]
    swapped = swapped >> 4 | swapped << 4
    wrong = decode_nibbles(toy.initializers | {"table.int4": swapped})
    assert np.abs(wrong - look_up(toy)).max() > 1


@settings(max_examples=50)
@given(arrays(np.float32, (3, 64), elements=st.floats(-50, 50, width=32)), st.sampled_from([1e-4, 3.0, 1e4]))
def test_blocks_are_no_worse_than_their_least_and_greatest_value_would_make_them(rows: Floats, loud: float) -> None:
    """The scale is chosen for the least squared error, so it cannot lose to the plain one, loud neighbours or not."""
    rows = np.vstack([rows, rows[:1] * np.float32(loud)])
    codes, scales, zeros = embeddings.round_rows(rows)
    stored = {"table.int4": codes, "table.int4.scale": scales, "table.int4.zero": zeros}
    ours = ((decode_nibbles(stored).astype(np.float64) - rows) ** 2).reshape(len(rows), -1, BLOCK).sum(axis=2)
    blocks = rows.reshape(len(rows), -1, BLOCK).astype(np.float64)
    low, high = (np.minimum(blocks.min(2, keepdims=True), 0), np.maximum(blocks.max(2, keepdims=True), 0))
    step = np.where(high > low, (high - low) / 15, 1)
    zero = np.rint(-low / step)
    plain = (((np.clip(np.rint(blocks / step) + zero, 0, 15) - zero) * step - blocks) ** 2).sum(axis=2)
    assert (ours <= plain * 1.001 + 1e-6 * (blocks**2).sum(axis=2) + 1e-30).all()


def test_a_row_of_zeros_stays_zero() -> None:
    table = make_table()
    table[5] = 0
    for how in (store_rows_as_int8, store_rows_as_int4):
        assert not look_up(store(table, how))[5].any()


def test_nibbles_lie_low_half_first() -> None:
    assert pack_nibbles(np.array([[1, 2, 15, 0]], dtype=np.uint8)).tolist() == [[0x21, 0x0F]]


@pytest.mark.parametrize("how", [store_rows_as_int8, store_rows_as_int4])
def test_a_large_vocabulary_is_done_in_parts_with_the_same_result(
    how: Callable[[ir.Model, ir.Node], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = look_up(store(make_table(), how))
    monkeypatch.setattr(embeddings, "CHUNK_ROWS", 64)
    np.testing.assert_array_equal(look_up(store(make_table(), how)), whole)


@pytest.mark.parametrize(("width", "fits"), [(64, True), (128, True), (32, False), (96, False), (48, False)])
def test_rows_of_whole_pairs_of_blocks_go_to_4_bits_and_others_to_8(width: int, fits: bool) -> None:
    """A zero point takes half a byte, so a row needs an even number of blocks."""
    table = draw_rows(2048, width)
    toy = make_toy(table, [{"up": draw_rows(width, 32, seed=2), "down": draw_rows(32, width, seed=3)}])
    assert fits_int4(toy.nodes("Gather")[0]) == fits
    apply_blocks(toy.traced, observe_toy(toy), four_bits=[EMBEDDINGS], eight_bits=[])
    assert ("table.int4" in toy.initializers) == fits
    assert ("table.int8" in toy.initializers) != fits
    assert "table" not in toy.initializers
    feeds = {"input_ids": np.arange(100)[None]}
    (rows,) = run_model(toy.model, feeds, "state_0")
    assert np.linalg.norm(rows[0] - table[:100]) < 0.15 * np.linalg.norm(table[:100])


def test_a_small_table_is_left_alone() -> None:
    toy = make_toy(draw_rows(255, 64), [{"up": draw_rows(64, 32), "down": draw_rows(32, 64)}])
    assert find_tables(toy.traced) == []
    toy = make_toy(draw_rows(256, 64), [{"up": draw_rows(64, 32), "down": draw_rows(32, 64)}])
    assert find_tables(toy.traced) == toy.nodes("Gather"), "64 KiB"
