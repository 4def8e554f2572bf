"""Rounding: no pair of weights that an 8-bit multiplication without VNNI would saturate, and errors that are made good
where the inputs allow it. The oracles are the instruction, in numpy, and the textbook's elimination, one inverse at a
time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from properties import given, settings, st
from toys import Floats, draw_rows

from matexport.export.quantize.precisions.blocks import round_blocks
from matexport.export.quantize.rounding import DAMPING, PAIR_LIMIT, choose_scales, round_columns, round_with_feedback

Integers = NDArray[np.int64]

shapes = st.tuples(st.integers(1, 9), st.integers(1, 5))
weights = shapes.flatmap(lambda shape: arrays(np.float32, shape, elements=st.floats(-100, 100, width=32)))
# What saturates is made of a few large values of one size, which the plain strategy seldom draws.
adversarial = shapes.flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.sampled_from([-1.0, -0.51, -0.5, 0.0, 0.49, 0.5, 0.51, 1.0]))
)


def multiply_saturating(activations: NDArray[np.uint8], codes: NDArray[np.int8]) -> Integers:
    """vpmaddubsw, then a sum in 32 bits: products of neighbouring rows are added in 16 bits, which saturate."""
    left, right = activations.astype(np.int64), codes.astype(np.int64)
    if len(right) % 2:
        left, right = np.pad(left, ((0, 0), (0, 1))), np.pad(right, ((0, 1), (0, 0)))
    pairs = left[:, 0::2, None] * right[None, 0::2] + left[:, 1::2, None] * right[None, 1::2]
    return np.clip(pairs, -(2**15), 2**15 - 1).sum(axis=1)


def saturates(codes: NDArray[np.int8]) -> bool:
    """A pair's sum is linear in both activations, so the corners of 0 .. 255 are the worst of them."""
    depth = len(codes)
    even = np.arange(depth) % 2 == 0
    corners = [np.full(depth, 255), np.where(even, 255, 0), np.where(even, 0, 255)]
    rows = np.stack(corners).astype(np.uint8)
    exact = rows.astype(np.int64) @ codes.astype(np.int64)
    return not np.array_equal(multiply_saturating(rows, codes), exact)


def round_to_nearest(weight: Floats, scales: Floats) -> Integers:
    return np.rint(weight.astype(np.float64) / scales).astype(np.int64)


def eliminate(weight: Floats, inputs: Floats, scales: Floats) -> Integers:
    """Equations 2 and 3 of the paper as they stand: the inverse of what is left is computed anew for every row."""
    rows = inputs.astype(np.float64)
    hessian = rows.T @ rows
    hessian += DAMPING * hessian.diagonal().mean() * np.eye(len(hessian))
    work, codes = weight.astype(np.float64), np.zeros(weight.shape, np.int64)
    for row in range(len(work)):
        inverse = np.linalg.inv(hessian[row:, row:])
        codes[row] = np.rint(work[row] / scales)
        error = (work[row] - codes[row] * scales) / inverse[0, 0]
        work[row:] -= np.outer(inverse[:, 0], error)
    return codes


def output_error(weight: Floats, rounded: NDArray[np.float64], rows: Floats) -> float:
    return float(np.linalg.norm(rows @ (weight - rounded)))


@settings(max_examples=300)
@given(weight=st.one_of(weights, adversarial), seed=st.integers(0, 9))
def test_no_pair_saturates_whatever_the_weights(weight: Floats, seed: int) -> None:
    scales = choose_scales(weight)
    assert np.isfinite(scales).all()
    assert (scales > 0).all()
    codes = round_columns(weight, scales, draw_rows(16, len(weight), seed=seed))
    assert not saturates(codes)
    assert np.abs(codes.astype(int)).max(initial=0) <= 127


@settings(max_examples=100)
@given(weight=st.one_of(weights, adversarial), seed=st.integers(0, 9))
def test_feedback_keeps_the_pair_limit_on_correlated_inputs(weight: Floats, seed: int) -> None:
    codes = round_columns(weight, choose_scales(weight), draw_rows(32, len(weight), rank=1, seed=seed)).astype(int)
    padded = np.abs(np.pad(codes, ((0, len(codes) % 2), (0, 0))))
    assert (padded[0::2] + padded[1::2]).max(initial=0) <= PAIR_LIMIT


def test_full_range_weights_do_saturate() -> None:
    """So the tests above can fail."""
    weight = np.array([[1.0, 0.9], [1.0, 0.3], [-1.0, -0.2], [-1.0, 1.0]], dtype=np.float32)
    full = round_to_nearest(weight, np.abs(weight).max(axis=0) / 127).astype(np.int8)
    assert saturates(full)
    seven_bits = round_to_nearest(weight, np.abs(weight).max(axis=0) / 63).astype(np.int8)
    assert not saturates(seven_bits)
    assert saturates(np.array([[65], [64]], dtype=np.int8))
    assert not saturates(np.array([[64], [64]], dtype=np.int8))


def test_feedback_without_the_limit_passes_it() -> None:
    """What is made good in the next row pushes it over, so the limit is needed in every row and not only in scales."""
    weight, rows = draw_rows(64, 64, seed=1), draw_rows(400, 64, rank=4, seed=2)
    scales = choose_scales(weight)
    codes = np.zeros(weight.shape, np.int64)

    def quantize(row: int, values: NDArray[np.float64]) -> NDArray[np.float64]:
        codes[row] = np.clip(np.rint(values / scales), -127, 127)
        return codes[row] * scales

    round_with_feedback(weight, rows, quantize)
    assert saturates(codes.astype(np.int8))
    assert not saturates(round_columns(weight, scales, rows))


def test_scales_are_no_coarser_than_they_need_be() -> None:
    """Most pairs are not made of two large weights: the noise is well below that of 7-bit weights, the usual remedy."""
    weight = draw_rows(384, 200, seed=3)
    steps = choose_scales(weight) / (np.abs(weight).max(axis=0) / 127)
    assert 1 - 1e-6 <= steps.min() <= steps.max() <= 127 / 64
    assert np.mean(steps**2) < 0.55 * (127 / 63) ** 2
    lonely = np.zeros((4, 1), np.float32)
    lonely[1] = 3.0
    assert choose_scales(lonely)[0] == pytest.approx(3 / 127)


@pytest.mark.parametrize("depth", [5, 32, 33, 70])
@pytest.mark.parametrize("rank", [None, 3], ids=["white", "correlated"])
def test_feedback_is_the_textbooks_elimination(depth: int, rank: int | None) -> None:
    weight, rows = draw_rows(depth, 12, seed=4) / 8, draw_rows(300, depth, rank=rank, seed=5)
    scales = np.full(12, np.abs(weight).max() / 40, np.float32)  # far from the limits of pairs and of 8 bits
    codes = round_columns(weight, scales, rows).astype(int)
    expected = eliminate(weight, rows, scales)
    assert np.mean(codes != expected) < 0.01, "ties aside"
    ours, theirs = (output_error(weight, part * scales, rows) for part in (codes, expected))
    assert ours == pytest.approx(theirs, rel=0.02)


def test_feedback_beats_the_nearest_on_correlated_inputs() -> None:
    weight, seen, held_out = draw_rows(96, 40, seed=6), *np.split(draw_rows(1000, 96, rank=8, seed=7), 2)
    scales = choose_scales(weight)
    nearest = round_to_nearest(weight, scales) * scales
    feedback = round_columns(weight, scales, seen) * scales
    for rows in (seen, held_out):
        assert output_error(weight, feedback, rows) < 0.6 * output_error(weight, nearest, rows)


def test_feedback_from_other_inputs_does_not() -> None:
    """So what helps is what was seen, not the procedure as such."""
    weight = draw_rows(96, 40, seed=6)
    seen, rows = draw_rows(500, 96, rank=8, seed=8), draw_rows(500, 96, rank=8, seed=9)
    scales = choose_scales(weight)
    nearest = round_to_nearest(weight, scales) * scales
    assert output_error(weight, round_columns(weight, scales, seen) * scales, rows) > 0.9 * output_error(
        weight, nearest, rows
    )


def test_independent_inputs_leave_the_nearest() -> None:
    """Rows of a Hadamard matrix are orthogonal to the last digit: an error in one cannot be made good in another."""
    hadamard = np.array([[1.0]])
    while len(hadamard) < 64:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    weight = draw_rows(64, 20, seed=10)
    scales = choose_scales(weight) * np.float32(1.5)
    codes = round_columns(weight, scales, hadamard.astype(np.float32))
    np.testing.assert_array_equal(codes, round_to_nearest(weight, scales))


def test_white_inputs_cost_what_the_nearest_costs() -> None:
    weight, rows = draw_rows(64, 40, seed=11), draw_rows(4000, 64, seed=12)
    scales = choose_scales(weight)
    nearest = output_error(weight, round_to_nearest(weight, scales) * scales, rows)
    feedback = output_error(weight, round_columns(weight, scales, rows) * scales, rows)
    assert feedback == pytest.approx(nearest, rel=0.05)


@pytest.mark.parametrize("rows", [np.zeros((3, 8), np.float32), np.ones((1, 8), np.float32)], ids=["zeros", "one row"])
def test_inputs_that_say_little_still_round(rows: Floats) -> None:
    weight = draw_rows(8, 4, seed=13)
    scales = choose_scales(weight)
    codes = round_columns(weight, scales, rows)
    assert np.abs(codes * scales - weight).max() <= 2 * scales.max()


def test_a_column_of_zeros_is_zeros() -> None:
    weight = draw_rows(8, 3, seed=14)
    weight[:, 1] = 0
    codes = round_columns(weight, choose_scales(weight), draw_rows(50, 8, rank=2, seed=15))
    assert not codes[:, 1].any()


@pytest.mark.parametrize("depth", [32, 40, 96])
def test_four_bit_blocks_with_feedback_beat_the_nearest(depth: int) -> None:
    weight, rows = draw_rows(depth, 24, seed=16), draw_rows(600, depth, rank=6, seed=17)

    def decode(inputs: Floats) -> NDArray[np.float64]:
        codes, scales, zeros = round_blocks(weight, inputs, 4)
        values = (codes.astype(np.float64) - zeros[..., None]) * scales[..., None]
        return values.reshape(24, -1).T[:depth]

    blind = output_error(weight, decode(np.zeros((1, depth), np.float32)), rows)
    assert output_error(weight, decode(rows), rows) < 0.7 * blind
