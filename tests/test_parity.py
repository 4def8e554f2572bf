"""The numbers that judge: right on examples worked out by hand, and never fooled by what is not a number."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from properties import given, st

from matexport.parity import NEIGHBOURS, Parity, compare_vectors

Matrix = NDArray[np.float32]


def matrix(*rows: list[float]) -> Matrix:
    return np.array(rows, dtype=np.float32)


def rows_of(count: int, dim: int, seed: int = 0) -> Matrix:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


@st.composite
def matrices(draw: st.DrawFn) -> tuple[Matrix, Matrix]:
    """Two (n, d) matrices, without rows of zeros, whose cosine says nothing."""
    count, dim = draw(st.integers(1, 7)), draw(st.integers(1, 5))
    value = st.floats(-1e3, 1e3, width=32)
    row = st.lists(value, min_size=dim, max_size=dim).filter(lambda numbers: max(map(abs, numbers)) > 1e-3)
    both = st.lists(row, min_size=count, max_size=count).map(lambda rows: np.array(rows, dtype=np.float32))
    return draw(both), draw(both)


def test_a_matrix_is_itself() -> None:
    vectors = rows_of(12, 8)
    assert compare_vectors(vectors, vectors.copy()) == Parity(0.0, pytest.approx(1), pytest.approx(1), 1.0, 0)


def test_an_example_by_hand() -> None:
    ours = matrix([1, 0], [0, 0.5], [0.6, 0.8])
    theirs = matrix([1, 0], [0, 1.0], [0.8, 0.6])
    parity = compare_vectors(ours, theirs)
    assert parity.max_abs == pytest.approx(0.5)
    assert parity.worst == 1
    assert parity.cosine_min == pytest.approx(0.96)  # 0.6 * 0.8 + 0.8 * 0.6
    assert parity.cosine_mean == pytest.approx((1 + 1 + 0.96) / 3)
    assert parity.neighbours == 1.0  # of three rows, the two others are the neighbours


@pytest.mark.parametrize(("largest", "scale"), [(0.5, 1.0), (1.0, 1.0), (4.0, 4.0), (-40.0, 40.0)])
def test_a_difference_is_relative_to_what_that_coordinate_reaches_above_one(largest: float, scale: float) -> None:
    theirs = matrix([largest, 0.25], [0.1, 0.2])
    ours = theirs + matrix([0, 0], [0.125, 0])
    assert compare_vectors(ours, theirs).max_abs == pytest.approx(0.125 / scale)
    assert compare_vectors(theirs * 1, theirs).max_abs == 0


def test_a_huge_coordinate_excuses_no_other() -> None:
    theirs = matrix([3000, 0.05], [2900, 0.04])
    assert not compare_vectors(theirs + matrix([0, 0], [0, 0.02]), theirs).within(1e-5)
    assert compare_vectors(theirs * np.float32(1 + 2e-6), theirs).within(1e-5)


def test_large_values_of_ours_do_not_scale_the_difference_away() -> None:
    assert compare_vectors(matrix([100, 0]), matrix([1, 0])).max_abs == pytest.approx(99)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["ours", "theirs", "both"])
def test_what_is_not_finite_is_infinitely_far(bad: float, side: str) -> None:
    ours, theirs = rows_of(4, 3), rows_of(4, 3)
    for name, vectors in (("ours", ours), ("theirs", theirs)):
        if side in (name, "both"):
            vectors[2, 1] = bad
    parity = compare_vectors(ours, theirs)
    assert parity.max_abs == math.inf
    assert parity.worst == 2
    assert parity.neighbours == 0
    assert math.isnan(parity.cosine_min)
    assert math.isnan(parity.cosine_mean)
    assert not parity.within(1e30)


def test_within_includes_the_floor_and_no_nan() -> None:
    def parity(max_abs: float) -> Parity:
        return Parity(max_abs, 1.0, 1.0, 1.0, 0)

    assert parity(1e-5).within(1e-5)
    assert not parity(float(np.nextafter(1e-5, 1))).within(1e-5)
    assert not parity(math.nan).within(math.inf)
    assert not parity(0.0).within(math.nan)


def test_worst_names_the_row_with_the_largest_difference() -> None:
    theirs = rows_of(6, 4)
    ours = theirs.copy()
    ours[1, 0] += 1e-4
    ours[4, 2] -= 1e-3
    assert compare_vectors(ours, theirs).worst == 4


def test_one_moved_neighbour() -> None:
    """Eight points on a quarter circle, 10 degrees apart but for a gap; then one of them goes to the other side."""

    def on_circle(*degrees: float) -> Matrix:
        angles = np.radians(degrees)
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    theirs = on_circle(0, 1, 2, 3, 4, 5, 60, 61)
    ours = on_circle(0, 1, 2, 3, 4, 59, 60, 61)
    # Rows 0 to 4 had each other and row 5; now row 5 lies nearest of what is left, so nothing changes for them. Row 5
    # had 0 to 4, now 6, 7, 4, 3, 2: three are the same. Rows 6 and 7 had 7 or 6, 5, 4, 3, 2, and still do.
    assert compare_vectors(ours, theirs).neighbours == pytest.approx((7 * 1 + 3 / NEIGHBOURS) / 8)


def test_shuffled_rows_keep_few_neighbours() -> None:
    vectors = rows_of(60, 16)
    assert compare_vectors(vectors[::-1].copy(), vectors).neighbours < 0.3


def test_a_single_row_has_no_neighbours_to_lose() -> None:
    assert compare_vectors(matrix([1, 0]), matrix([0, 1])).neighbours == 1.0


def test_a_constant_offset_that_cosine_does_not_see() -> None:
    theirs = rows_of(8, 4)
    parity = compare_vectors(theirs * np.float32(1.001), theirs)
    assert parity.cosine_min == pytest.approx(1)
    assert parity.neighbours == 1
    assert not parity.within(1e-5)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [((3, 4), (3, 5)), ((3, 4), (4, 4)), ((3, 4), (3, 1)), ((4,), (4,)), ((1, 3, 4), (1, 3, 4)), ((0, 4), (0, 4))],
)
def test_other_shapes_are_refused(ours: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        compare_vectors(np.zeros(ours, np.float32), np.zeros(theirs, np.float32))


def test_the_arrays_are_left_alone() -> None:
    ours, theirs = rows_of(5, 3, 1), rows_of(5, 3, 2)
    before = ours.copy(), theirs.copy()
    compare_vectors(ours, theirs)
    np.testing.assert_array_equal(ours, before[0])
    np.testing.assert_array_equal(theirs, before[1])


@given(matrices())
def test_what_holds_for_any_two_matrices(pair: tuple[Matrix, Matrix]) -> None:
    ours, theirs = pair
    parity, swapped = compare_vectors(ours, theirs), compare_vectors(theirs, ours)
    difference = np.abs(ours.astype(np.float64) - theirs)
    relative = difference / np.maximum(1.0, np.abs(theirs).max(axis=0))
    assert parity.max_abs == pytest.approx(relative.max())
    assert parity.max_abs <= difference.max() + 1e-12
    assert parity.worst == relative.max(axis=1).argmax()
    assert parity.cosine_min == pytest.approx(swapped.cosine_min)
    assert parity.cosine_mean == pytest.approx(swapped.cosine_mean)
    assert parity.neighbours == pytest.approx(swapped.neighbours)
    assert -1 - 1e-9 <= parity.cosine_min <= parity.cosine_mean + 1e-9 <= 1 + 2e-9
    assert 0 <= parity.neighbours <= 1
    assert parity.within(parity.max_abs)


@given(matrices())
def test_any_matrix_is_itself(pair: tuple[Matrix, Matrix]) -> None:
    parity = compare_vectors(pair[0], pair[0].copy())
    assert (parity.max_abs, parity.neighbours, parity.worst) == (0, 1, 0)
    assert parity.cosine_min == pytest.approx(1)
