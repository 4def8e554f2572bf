"""The numbers that judge: right on examples worked out by hand, and never fooled by what is not a number."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from properties import given, st

from matexport.spec.parity import Breach, Parity, Spread
from matexport.spec.profile import Encoding, Precision
from matexport.spec.tolerance import FLOORS, Tolerance
from matexport.verify.codes import (
    CODES_SPREAD,
    RANGES_TOLERANCE,
    compare_batched,
    compare_codes,
    compare_ranges,
    encode_tolerance,
)
from matexport.verify.parity import NEIGHBOURS, compare_vectors

Matrix = NDArray[np.float32]
FLOOR = Tolerance(max_abs=1e-5)


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
    parity = compare_vectors(vectors, vectors.copy())
    assert (parity.max_abs, parity.neighbours) == (0.0, 1.0)
    assert parity.cosine_min == pytest.approx(1)
    assert parity.cosine_mean == pytest.approx(1)


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
    assert compare_vectors(theirs + matrix([0, 0], [0, 0.02]), theirs).find_breach(FLOOR)
    assert compare_vectors(theirs * np.float32(1 + 2e-6), theirs).find_breach(FLOOR) is None


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
    assert parity.find_breach(Tolerance(max_abs=1e30))


def test_the_floor_itself_is_kept_and_no_nan_is() -> None:
    def parity(max_abs: float) -> Parity:
        return Parity(max_abs, 1.0, 1.0, 1.0, 0, 0)

    assert parity(1e-5).find_breach(FLOOR) is None
    assert parity(float(np.nextafter(1e-5, 1))).find_breach(FLOOR)
    assert parity(math.nan).find_breach(Tolerance(max_abs=math.inf))
    assert parity(0.0).find_breach(Tolerance(max_abs=math.nan))


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
    assert parity.find_breach(FLOOR)


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
    if parity.max_abs:
        assert parity.worst == relative.max(axis=1).argmax()
    assert parity.cosine_min == pytest.approx(swapped.cosine_min)
    assert parity.cosine_mean == pytest.approx(swapped.cosine_mean)
    assert parity.neighbours == pytest.approx(swapped.neighbours)
    assert -1 - 1e-9 <= parity.cosine_min <= parity.cosine_mean + 1e-9 <= 1 + 2e-9
    assert 0 <= parity.neighbours <= 1
    assert parity.find_breach(Tolerance(max_abs=parity.max_abs)) is None


@given(matrices())
def test_any_matrix_is_itself(pair: tuple[Matrix, Matrix]) -> None:
    parity = compare_vectors(pair[0], pair[0].copy())
    assert (parity.max_abs, parity.neighbours) == (0, 1)
    assert parity.cosine_min == pytest.approx(1)


GOOD = Parity(1e-6, 0.999, 0.99, 1.0, 3, 5)


@pytest.mark.parametrize(
    ("tolerance", "breach"),
    [
        (Tolerance(), None),
        (Tolerance(1e-6, 0.999, 0.99), None),
        (Tolerance(max_abs=9e-7), Breach("max abs difference 1e-06, allowed 9e-07", 3)),
        (Tolerance(cosine_mean=0.9991), Breach("mean cosine 0.999, allowed 0.9991", 5)),
        (Tolerance(cosine_min=0.995), Breach("least cosine 0.99, allowed 0.995", 5)),
        (Tolerance(cosine_mean=math.nan), Breach("mean cosine 0.999, allowed nan", 5)),
        (Tolerance(cosine_min=math.nan), Breach("least cosine 0.99, allowed nan", 5)),
        (Tolerance(1e-9, 0.9999, 0.9999), Breach("max abs difference 1e-06, allowed 1e-09", 3)),
        (Tolerance(spread=1e-30), None),
    ],
)
def test_every_number_of_a_tolerance_is_held_by_itself(tolerance: Tolerance, breach: Breach | None) -> None:
    assert GOOD.find_breach(tolerance) == breach


def test_each_number_has_its_own_worst_row() -> None:
    """The longest difference is of a long vector; the widest angle of a short one."""
    theirs = matrix([1, 0], [0, 0.1], [0.6, 0.8])
    ours = matrix([0.7, 0], [0.05, 0.1], [0.6, 0.8])
    parity = compare_vectors(ours, theirs)
    assert (parity.worst, parity.farthest) == (0, 1)


@pytest.mark.parametrize(("value", "kept"), [(0.0, True), (1e-6, True), (1.1e-6, False), (math.nan, False)])
def test_a_spread_is_held_by_itself(value: float, kept: bool) -> None:
    assert (Spread(value, 2).find_breach(Tolerance(spread=1e-6)) is None) == kept
    assert Spread(value, 2).find_breach(Tolerance(max_abs=1e-9)) is None


def test_the_spread_of_vectors_and_of_codes() -> None:
    single = rows_of(6, 20) / 5
    batched = single.copy()
    batched[4, 7] += np.float32(0.01)
    assert compare_batched(single, batched, Encoding.FLOAT32) == Spread(pytest.approx(0.01, rel=1e-4), 4)
    ranges = np.stack([single.min(axis=0), single.max(axis=0)])
    assert compare_batched(to_steps(single, ranges), to_steps(batched, ranges), Encoding.INT8) == Spread(1 / 120, 4)
    flipped = single.copy()
    flipped[3, :5] *= -1
    assert compare_batched(to_bits(single), to_bits(flipped), Encoding.UBINARY) == Spread(5 / (6 * 24), 3)


def test_codes_of_one_scale_for_the_whole_batch_are_seen() -> None:
    """A shift of 3e-2, as dynamic presets have it, flips a tenth of the bits and most of the steps."""
    single = rows_of(66, 384) / np.float32(math.sqrt(384))
    batched = single + np.float32(0.01) * rows_of(66, 384, seed=1)
    ranges = np.stack([single.min(axis=0), single.max(axis=0)])
    held = encode_tolerance(FLOORS[Precision.INT8], Encoding.UBINARY)
    assert compare_batched(to_bits(single), to_bits(batched), Encoding.UBINARY).find_breach(held)
    assert compare_batched(to_steps(single, ranges), to_steps(batched, ranges), Encoding.INT8).find_breach(held)
    near = single + np.float32(1e-6) * rows_of(66, 384, seed=1)
    assert not compare_batched(to_bits(single), to_bits(near), Encoding.UBINARY).find_breach(held)
    assert not compare_batched(to_steps(single, ranges), to_steps(near, ranges), Encoding.INT8).find_breach(held)


def test_a_cosine_that_could_not_be_computed_keeps_no_floor() -> None:
    nothing = Parity(0.0, math.nan, math.nan, 0.0, 0, 0)
    assert nothing.find_breach(Tolerance(cosine_mean=-1.0))
    assert nothing.find_breach(Tolerance(cosine_min=-1.0))
    assert nothing.find_breach(Tolerance(max_abs=1e-5)) is None


# --- codes


def to_bits(vectors: Matrix) -> NDArray[np.uint8]:
    return np.packbits(vectors > 0, axis=-1)


def to_steps(vectors: Matrix, ranges: Matrix) -> NDArray[np.int8]:
    width = (ranges[1].astype(np.float64) - ranges[0]) / 255
    level = np.floor((vectors - ranges[0].astype(np.float64)) / width)
    return (np.clip(level, 0, 255) - 128).astype(np.int8)


RANGES = matrix([-1, -2, -0.5, -0.1], [1, 2, 0.5, 0.1])


def test_the_references_own_codes_are_itself() -> None:
    theirs = rows_of(20, 4)
    for parity in (
        compare_codes(to_bits(theirs), theirs, Encoding.UBINARY),
        compare_codes(to_steps(theirs, RANGES), theirs, Encoding.INT8, RANGES),
    ):
        assert (parity.max_abs, parity.neighbours) == (0, 1)
        assert parity.cosine_min == pytest.approx(1)
        assert parity.find_breach(Tolerance(max_abs=1e-9, cosine_mean=0.999999, cosine_min=0.999999)) is None


@pytest.mark.parametrize("common", [0.0, 0.3], ids=["around zero", "most of it common to all"])
@pytest.mark.parametrize(("share", "kept"), [(0.01, False), (0.3, False), (0.8, True), (1.0, True)])
def test_ranges_that_cut_the_vectors_off_are_seen(share: float, kept: bool, common: float) -> None:
    """The codes of a reference in ranges of other texts are its own codes, and may say next to nothing of it."""
    centre = np.full(32, common, np.float32)
    theirs = centre + rows_of(66, 32) / 20
    ranges = np.stack([theirs.min(axis=0), theirs.max(axis=0)]) - centre
    narrow = centre + ranges * np.float32(share)
    assert compare_codes(to_steps(theirs, narrow), theirs, Encoding.INT8, narrow).max_abs == 0
    parity = compare_ranges(theirs, narrow)
    assert (parity.find_breach(RANGES_TOLERANCE) is None) == kept
    outside = np.maximum(narrow[0] - theirs, theirs - narrow[1]).max()
    assert parity.max_abs == pytest.approx(max(outside, 0), abs=1e-6)


def test_the_row_that_is_cut_off_most() -> None:
    theirs = rows_of(66, 32) / 20
    ranges = np.stack([theirs.min(axis=0), theirs.max(axis=0)])
    theirs[7, :4] = 3
    parity = compare_ranges(theirs, ranges)
    assert (parity.worst, parity.farthest) == (7, 7)
    assert parity.find_breach(RANGES_TOLERANCE)


@pytest.mark.parametrize("dim", [1, 7, 8, 9, 20])
def test_one_flipped_bit_is_as_far_as_its_coordinate(dim: int) -> None:
    theirs = rows_of(6, dim)
    codes = to_bits(theirs)
    place = dim - 1
    codes[4, place // 8] ^= 128 >> place % 8
    parity = compare_codes(codes, theirs, Encoding.UBINARY)
    assert parity.max_abs == pytest.approx(abs(theirs[4, place]) / max(1.0, np.abs(theirs[:, place]).max()))
    assert parity.worst == 4
    assert parity.find_breach(FLOOR)
    assert parity.cosine_min == pytest.approx(1 - 2 / dim)
    assert parity.cosine_mean == pytest.approx(1 - 2 / dim / 6)


@pytest.mark.parametrize("small", [1e-9, -1e-9, 9e-6])
def test_a_bit_that_flips_on_the_last_digits_of_a_zero_is_no_difference(small: float) -> None:
    theirs = rows_of(6, 20) / 8
    theirs[2, 3] = small
    codes = to_bits(theirs)
    codes[2, 0] ^= 128 >> 3
    parity = compare_codes(codes, theirs, Encoding.UBINARY)
    assert parity.max_abs == pytest.approx(abs(small))
    assert parity.find_breach(FLOOR) is None


def test_the_filling_bits_do_not_count() -> None:
    theirs = rows_of(3, 5)
    codes = to_bits(theirs)
    codes |= 0b111
    assert compare_codes(codes, theirs, Encoding.UBINARY).max_abs == 0


@pytest.mark.parametrize("step", [1, -1])
def test_one_step_off_is_as_far_as_the_step_begins(step: int) -> None:
    width = np.float32(2 / 255)
    theirs = np.full((3, 4), -1 + 100.25 * width, dtype=np.float32) * matrix([1, 2, 0.5, 0.1])
    codes = to_steps(theirs, RANGES)
    assert codes[1, 0] == 100 - 128
    codes[1, 0] += step
    parity = compare_codes(codes, theirs, Encoding.INT8, RANGES)
    assert parity.max_abs == pytest.approx((0.75 if step > 0 else 0.25) * width, rel=1e-3)
    assert parity.worst == 1
    assert parity.find_breach(Tolerance(max_abs=1e-5))


def test_a_step_that_begins_on_the_last_digit_is_no_difference() -> None:
    theirs = rows_of(5, 4) * np.float32(0.1)
    theirs[2, 0] = np.float32(-1) + np.float32(100) * np.float32(2 / 255)
    for code in (99, 100):
        codes = to_steps(theirs, RANGES)
        codes[2, 0] = code - 128
        assert compare_codes(codes, theirs, Encoding.INT8, RANGES).find_breach(FLOOR) is None


def test_values_outside_of_the_ranges_are_at_their_ends() -> None:
    theirs = matrix([3, -9, 0.1, 0], [0.5, 0.5, 0.1, 0])
    codes = to_steps(theirs, RANGES)
    assert codes[0].tolist()[:2] == [127, -128]
    assert compare_codes(codes, theirs, Encoding.INT8, RANGES).max_abs == 0
    codes[0, 0] = 126
    parity = compare_codes(codes, theirs, Encoding.INT8, RANGES)
    assert parity.max_abs == pytest.approx((3 - 1) / 3)  # its step ends at 1; relative to 3, the largest there


def test_codes_of_the_layer_before_are_seen() -> None:
    """Vectors that are near, as those of two neighbouring layers are."""
    theirs = rows_of(40, 64)
    ours = theirs + np.float32(0.5) * rows_of(40, 64, seed=1)
    ranges = np.stack([theirs.min(axis=0), theirs.max(axis=0)])
    for parity, encoding in (
        (compare_codes(to_bits(ours), theirs, Encoding.UBINARY), Encoding.UBINARY),
        (compare_codes(to_steps(ours, ranges), theirs, Encoding.INT8, ranges), Encoding.INT8),
    ):
        for precision in (Precision.FP32, Precision.FP16, Precision.INT8, Precision.Q8):
            assert parity.find_breach(encode_tolerance(FLOORS[precision], encoding)), (precision, encoding)


@pytest.mark.parametrize(
    ("codes", "encoding", "ranges"),
    [
        (np.zeros((3, 1), np.uint8), Encoding.INT8, RANGES),
        (np.zeros((3, 4), np.uint8), Encoding.INT8, RANGES),
        (np.zeros((3, 4), np.int8), Encoding.INT8, None),
        (np.zeros((3, 4), np.int8), Encoding.INT8, RANGES[:, :3]),
        (np.zeros((3, 4), np.int8), Encoding.INT8, RANGES[:1]),
        (np.zeros((2, 4), np.int8), Encoding.INT8, RANGES),
        (np.zeros((3, 1), np.int8), Encoding.UBINARY, None),
        (np.zeros((3, 2), np.uint8), Encoding.UBINARY, None),
        (np.zeros((3, 4), np.float32), Encoding.UBINARY, None),
    ],
)
def test_codes_that_do_not_fit_are_refused(
    codes: NDArray[np.generic], encoding: Encoding, ranges: Matrix | None
) -> None:
    with pytest.raises(ValueError, match=r"cannot stand for a reference|stand for nothing without"):
        compare_codes(codes, rows_of(3, 4), encoding, ranges)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_codes_of_a_reference_that_is_not_finite(bad: float) -> None:
    theirs = rows_of(4, 8)
    codes = to_bits(theirs)
    theirs[2, 1] = bad
    parity = compare_codes(codes, theirs, Encoding.UBINARY)
    assert (parity.max_abs, parity.worst) == (math.inf, 2)
    assert parity.find_breach(Tolerance(max_abs=1e30))


@pytest.mark.parametrize("cosine", [0.85, 0.93, 0.97, 0.99, 0.999, 0.9999])
def test_the_tolerance_of_bits_is_the_share_of_planes_between_two_vectors(cosine: float) -> None:
    """400,000 signs of pairs at that angle."""
    rng = np.random.default_rng(0)
    first = rng.standard_normal((400, 1000))
    other = rng.standard_normal((400, 1000))
    other -= first * (first * other).sum(1, keepdims=True) / (first**2).sum(1, keepdims=True)
    other *= np.linalg.norm(first, axis=1, keepdims=True) / np.linalg.norm(other, axis=1, keepdims=True)
    second = cosine * first + math.sqrt(1 - cosine**2) * other
    agreement = np.mean(np.sign(first) * np.sign(second))
    found = encode_tolerance(Tolerance(1e-5, cosine, cosine, 1e-6), Encoding.UBINARY)
    assert found.cosine_mean == found.cosine_min
    assert found.cosine_min == pytest.approx(agreement, abs=4 * math.sqrt((1 - agreement) / 400_000))
    assert (found.max_abs, found.spread) == (1e-5, CODES_SPREAD)


def test_the_tolerance_of_steps_is_that_of_vectors_with_a_spread_of_codes() -> None:
    tolerance = Tolerance(1e-5, 0.99, 0.97, 1e-6)
    assert encode_tolerance(tolerance, Encoding.INT8) == Tolerance(1e-5, 0.99, 0.97, CODES_SPREAD)
    assert encode_tolerance(Tolerance(1e-5), Encoding.INT8) == Tolerance(1e-5)
    assert encode_tolerance(tolerance, Encoding.FLOAT32) == tolerance
    assert encode_tolerance(Tolerance(max_abs=1e-5), Encoding.UBINARY) == Tolerance(max_abs=1e-5)


def test_int8_codes_of_vectors_within_the_floor_keep_it() -> None:
    """256 steps cost far less than what int8 weights do."""
    theirs = rows_of(200, 64)
    ranges = np.stack([theirs.min(axis=0), theirs.max(axis=0)])
    ours = theirs + np.float32(0.08) * rows_of(200, 64, seed=1)
    assert compare_vectors(ours, theirs).find_breach(FLOORS[Precision.INT8]) is None
    parity = compare_codes(to_steps(ours, ranges), theirs, Encoding.INT8, ranges)
    assert parity.find_breach(encode_tolerance(FLOORS[Precision.INT8], Encoding.INT8)) is None
