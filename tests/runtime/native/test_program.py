"""The extension against numpy: every step, at every instruction set that runs here, in float64 and int64."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from native_oracle import Text, run_plan
from native_plans import (
    POSITIONS,
    VOCABULARY,
    Maker,
    make_encoder,
    make_other_encoder,
    make_texts,
    run_program,
    try_changed,
)

from matexport.runtime.engines.native import steps as s
from matexport.runtime.engines.native.library import find_library, list_kernels
from matexport.runtime.engines.native.program import PlanError, Program

pytestmark = pytest.mark.skipif(find_library() is None, reason="there was no compiler when matexport was installed")
KERNELS = list_kernels() if find_library() is not None else []

#: Of numbers about 1: a few roundings of float32. Products of codes are exact before their scales.
MAX_ABS = 2e-5


def check(plan: s.Plan, kernels: str, lengths: Sequence[int] = (1, 2, 7, 33, 70), limit: float = MAX_ABS) -> None:
    texts = make_texts(lengths)
    made = run_program(Program(plan, max_tokens=POSITIONS, kernels=kernels), texts)
    expected = run_plan(plan, texts)["vector"]
    assert np.abs(made - expected).max() <= limit * max(1.0, float(np.abs(expected).max()))


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("width", [1, 3, 15, 16, 17, 31, 33, 64, 70])
class TestEveryWidth:
    def test_rows(self, kernels: str, width: int) -> None:
        maker = Maker()
        rows = maker.embed(width)
        normed = maker.add(s.Norm, rows, maker.floats(width), maker.floats(width), 1e-5, True)
        root = maker.add(s.Norm, rows, maker.floats(width), None, 1e-6, False)
        both = maker.add(s.Multiply, maker.add(s.Add, normed, root), root)
        moved = maker.add(s.Affine, both, maker.floats(width), maker.floats(width))
        check(maker.plan(maker.add(s.Affine, moved, None, maker.floats(width)), width), kernels)

    @pytest.mark.parametrize("most", [64, 127])
    @pytest.mark.parametrize("bounded", [False, True])
    def test_products_of_integers(self, kernels: str, width: int, most: int, bounded: bool) -> None:
        """With weights of 127, pairs of products go past 16 bits: an instruction that saturates there must not show."""
        maker = Maker(width)
        rows = maker.embed(width)
        settings = {"smoothing": None, "levels": 223, "zero": 32, "bounded": True, "least": 1.2} if bounded else {}
        if bounded:
            rows = maker.add(s.Activate, rows, s.Function.GELU)
        columns = 71 - width
        codes = maker.quantize(rows, width, **settings)
        check(maker.plan(maker.product(codes, width, columns, most=most), columns), kernels, limit=2e-3)

    def test_products_of_floats(self, kernels: str, width: int) -> None:
        maker = Maker(width)
        rows = maker.embed(width)
        made = maker.add(s.Dense, rows, maker.floats(width, 71 - width), maker.floats(71 - width))
        check(maker.plan(made, 71 - width), kernels)

    def test_vectors(self, kernels: str, width: int) -> None:
        maker = Maker(width)
        pooled = maker.add(s.Pool, maker.embed(width), s.Pooling.MAX)
        part = maker.add(s.Columns, pooled, width // 3, width - width // 3)
        check(maker.plan(maker.add(s.Unit, part, 1e-12), width - width // 3, None), kernels)


@pytest.mark.parametrize("kernels", KERNELS)
class TestSteps:
    @pytest.mark.parametrize("function", s.Function)
    def test_functions(self, kernels: str, function: s.Function) -> None:
        """Over all of their range: rows are multiplied by up to 12."""
        maker = Maker()
        rows = maker.add(s.Affine, maker.embed(40), np.linspace(-12, 12, 40, dtype=np.float32), None)
        check(maker.plan(maker.add(s.Activate, rows, function), 40, s.Pooling.FIRST), kernels, limit=3e-6)

    @pytest.mark.parametrize("pooling", s.Pooling)
    def test_poolings(self, kernels: str, pooling: s.Pooling) -> None:
        maker = Maker()
        check(maker.plan(maker.embed(24), 24, pooling), kernels)

    @pytest.mark.parametrize("settings", [{}, {"causal": True}, {"window": 3}, {"causal": True, "window": 4}])
    @pytest.mark.parametrize(("heads", "key_heads", "width"), [(2, 2, 8), (4, 2, 12), (3, 1, 32), (1, 1, 5)])
    def test_attention(self, kernels: str, settings: Any, heads: int, key_heads: int, width: int) -> None:
        maker = Maker()
        rows = maker.embed(16)
        query, key, value = (
            maker.add(s.Dense, rows, maker.floats(16, count * width) / 4, None)
            for count in (heads, key_heads, key_heads)
        )
        bias = maker.floats(heads, 11) if not settings else None
        made = maker.add(s.Attend, query, key, value, heads, key_heads, width**-0.5, bias=bias, **settings)
        check(maker.plan(made, heads * width, s.Pooling.LAST), kernels, lengths=(1, 2, 15, 16, 17, 49, 70))

    def test_attention_of_the_first_token(self, kernels: str) -> None:
        maker = Maker()
        rows = maker.embed(16)
        first = maker.add(s.Pool, rows, s.Pooling.FIRST)
        made = maker.add(s.Attend, first, rows, rows, 2, 2, 0.3, first=True)
        check(maker.plan(made, 16, None), kernels)

    @pytest.mark.parametrize("interleaved", [False, True])
    def test_rotations(self, kernels: str, interleaved: bool) -> None:
        maker = Maker()
        angles = (10000.0 ** -(np.arange(4) / 4)).astype(np.float32)
        made = maker.add(s.Rotate, maker.embed(20), 2, angles, 1.25, interleaved, s.Index.COLUMNS)
        check(maker.plan(made, 20), kernels)

    def test_norms_of_heads(self, kernels: str) -> None:
        maker = Maker()
        made = maker.add(s.HeadNorm, maker.embed(30), 3, maker.floats(10), None, 1e-6, False)
        check(maker.plan(made, 30), kernels)

    def test_places_that_padding_does_not_count(self, kernels: str) -> None:
        maker = Maker()
        table = s.Table(maker.floats(POSITIONS, 9), None, s.Index.ORDER, 2, 7)
        made = maker.add(s.Embed, (table,))
        plan = maker.plan(made, 9)
        text = Text(np.array([5, 7, 7, 9, 7, 3]), np.zeros(6, np.int64))
        made_row = run_program(Program(plan, max_tokens=POSITIONS, kernels=kernels), [text])
        np.testing.assert_allclose(made_row, run_plan(plan, [text])["vector"], atol=1e-6)

    def test_a_row_of_zeros(self, kernels: str) -> None:
        maker = Maker()
        zeros = maker.add(s.Affine, maker.embed(16), np.zeros(16, np.float32), None)
        made = maker.product(maker.quantize(zeros, 16), 16, 8)
        check(maker.plan(made, 8), kernels)


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_block_of_all_other_steps(kernels: str) -> None:
    check(make_other_encoder(), kernels, lengths=(1, 2, 7, 33, 70, 80), limit=5e-3)


@pytest.mark.parametrize("kernels", KERNELS)
class TestBatches:
    def test_bits_do_not_depend_on_the_batch_or_the_threads(self, kernels: str) -> None:
        program = Program(make_encoder(), max_tokens=POSITIONS, kernels=kernels)
        texts = make_texts([1, 3, 70, 12, 5, 33, 34, 2, 64, 65, 16, 17] * 3)
        alone = np.concatenate([run_program(program, [text]) for text in texts])
        for threads in (1, 2, 3, 5):
            np.testing.assert_array_equal(run_program(program, texts, threads), alone)
            np.testing.assert_array_equal(run_program(program, texts[::-1], threads)[::-1], alone)
        np.testing.assert_array_equal(np.concatenate([run_program(program, [text], 3) for text in texts]), alone)

    def test_many_callers(self, kernels: str) -> None:
        program = Program(make_encoder(), max_tokens=POSITIONS, kernels=kernels)
        texts = make_texts([9, 40, 3, 70])
        expected, found = run_program(program, texts), []
        callers = [
            threading.Thread(target=lambda: found.extend(run_program(program, texts, 2) for _ in range(5)))
            for _ in range(4)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert len(found) == 20
        for made in found:
            np.testing.assert_array_equal(made, expected)


def _run_in_child(texts: Sequence[Text], expected: np.ndarray) -> bool:
    return bool((run_program(_PROGRAMS[0], texts, 2) == expected).all())


_PROGRAMS: list[Program] = []


def test_after_a_fork() -> None:
    """A child has none of its parent's threads, and makes its own."""
    _PROGRAMS[:] = [Program(make_encoder(), max_tokens=POSITIONS)]
    texts = make_texts([9, 40, 3, 70, 8])
    expected = run_program(_PROGRAMS[0], texts, 2)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.starmap(_run_in_child, [(texts, expected)] * 4) == [True] * 4
    np.testing.assert_array_equal(run_program(_PROGRAMS[0], texts, 2), expected)


@pytest.mark.parametrize(
    ("ids", "types", "columns", "reason"),
    [
        ([0, VOCABULARY], [0, 0], [0, 1], "embedding table"),
        ([0, -1], [0, 0], [0, 1], "embedding table"),
        ([0, 1], [0, 2], [0, 1], "embedding table"),
        ([0, 1], [0, 0], [0, POSITIONS], "positions"),
        ([0, 1], [0, 0], [-1, 0], "negative"),
    ],
)
def test_tokens_beyond_a_table(ids: list[int], types: list[int], columns: list[int], reason: str) -> None:
    program = Program(make_encoder(), max_tokens=POSITIONS)
    arrays = [np.array(values, np.int32) for values in (ids, types, columns)]
    with pytest.raises(IndexError, match=reason):
        program.run(arrays[0], np.array([0, 2]), types=arrays[1], columns=arrays[2])


def test_texts_without_tokens() -> None:
    program = Program(make_encoder(), max_tokens=POSITIONS)
    with pytest.raises(IndexError, match="no token"):
        program.run(np.array([1], np.int32), np.array([0, 1, 1]))
    with pytest.raises(ValueError, match="starts"):
        program.run(np.array([1], np.int32), np.array([0, 2]))


@pytest.mark.parametrize("seed", range(300))
def test_steps_that_do_not_fit_are_refused(seed: int) -> None:
    """`benchmarks/fuzz_plans.py` tries many more, in a library that watches its memory."""
    made = try_changed(seed)
    assert made is None or len(made) == 3


def test_a_product_whose_sums_pass_32_bits() -> None:
    maker = Maker()
    codes = maker.quantize(
        maker.add(s.Embed, (s.Table(np.ones((2, 70_000), np.float32), None, s.Index.TOKENS),)), 70_000
    )
    with pytest.raises(PlanError, match="more than 32 bits hold"):
        Program(maker.plan(maker.product(codes, 70_000, 1), 1), max_tokens=POSITIONS)


@pytest.mark.parametrize("shift", [-1, 4, 2**32])
def test_a_table_that_is_read_from_beyond_its_rows(shift: int) -> None:
    """Types are all 0 where none are given."""
    maker = Maker()
    rows = maker.add(s.Embed, (s.Table(maker.floats(4, 8), None, s.Index.TYPES, shift),))
    with pytest.raises(PlanError, match="of 4 rows is read from row"):
        Program(maker.plan(rows, 8), max_tokens=POSITIONS)


@pytest.mark.parametrize("kernels", KERNELS)
def test_attention_that_nobody_reads(kernels: str) -> None:
    """It has a row for each token of a group all the same."""
    maker = Maker()
    rows = maker.embed(16)
    maker.add(s.Attend, rows, rows, rows, 2, 2, 0.3)
    check(maker.plan(rows, 16), kernels, lengths=(70, 80, 3))


def test_no_threads() -> None:
    program = Program(make_encoder(), max_tokens=POSITIONS)
    with pytest.raises(ValueError, match="at least 1"):
        program.run(np.array([1], np.int32), np.array([0, 1]), threads=0)


@pytest.mark.parametrize("kernels", KERNELS)
def test_rows_that_are_nearly_zero(kernels: str) -> None:
    """Their peak is above 0, and what it is divided by is not finite."""
    maker = Maker()
    small = maker.add(s.Affine, maker.embed(16), np.full(16, 1e-38, np.float32), None)
    codes = maker.quantize(small, 16, smoothing=None)
    plan = maker.plan(maker.product(codes, 16, 8), 8)
    made = run_program(Program(plan, max_tokens=POSITIONS, kernels=kernels), make_texts([3]))
    np.testing.assert_allclose(made, plan.steps[-2].bias[None], atol=1e-6)


def test_columns_beyond_a_table_by_order() -> None:
    """A text on the right of a row that is wider than the table: only its own tokens count."""
    maker = Maker()
    plan = maker.plan(maker.add(s.Embed, (s.Table(maker.floats(4, 8), None, s.Index.ORDER),)), 8)
    program = Program(plan, max_tokens=POSITIONS)
    ids, starts = np.zeros(3, np.int32), np.array([0, 3])
    (alone,), (far,) = program.run(ids, starts), program.run(ids, starts, columns=np.array([7, 8, 9], np.int32))
    np.testing.assert_array_equal(alone, far)
