"""How the states of tokens become one row for each text, and its codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matexport.runtime.engines.native.geometry.known import (
    BATCH,
    CASES,
    MAX_DEPTH,
    ONE,
    TOKENS,
    Case,
    Given,
    Known,
    Rows,
    Worked,
    column,
    find_reach,
    find_scalar,
    make_case,
    reads_tokens,
)
from matexport.runtime.engines.native.geometry.node import Node
from matexport.runtime.engines.native.geometry.operators import Array
from matexport.runtime.engines.native.patterns.layout import pool_first, read_axes
from matexport.runtime.engines.native.patterns.values import Grid, Source, Value, find_rows, refuse
from matexport.runtime.engines.native.steps import Pool, Pooling
from matexport.spec.record import Record

#: The longest text that places are worked out for.
_MOST_TOKENS = 1 << 15

#: Operators that codes of vectors are made with.
ENCODING = frozenset({"Sub", "Div", "Floor", "Clip", "Cast", "Greater", "Pad", "Reshape", "Mul", "ReduceSum"})


class Timed(Record, frozen=True, eq=False):
    """A matrix times what follows from the mask and places alone."""

    grid: Grid
    by: Known


class Summed(Record, frozen=True, eq=False):
    """The sum of a text's tokens."""

    grid: Grid


class Filled(Record, frozen=True, eq=False):
    """States, and minus infinity where the padding is."""

    grid: Grid


class Coded(Record, frozen=True, eq=False):
    """What is made of rows, number by number, with operators that no step has."""

    base: Grid
    made: Known
    operator: str


def multiply_known(_node: Node, given: Sequence[Value]) -> Timed:
    """What is done with it tells what it is."""
    return Timed(given[0], given[1])


def sum_tokens(node: Node, given: Sequence[Value]) -> Summed:
    """The sum of a text's tokens, of which padding is multiplied with 0.

    Raises:
        UnknownGraphError: it is over other axes, or the factors are not the mask.
    """
    timed = given[0]
    _check_tokens(node, given, timed.grid)
    _compare(timed.by, lambda case: case.mask[:, :, None].astype(np.float32), "tokens are weighed otherwise than by 1")
    return Summed(timed.grid)


def _check_tokens(node: Node, given: Sequence[Value], grid: Grid) -> None:
    if grid.axes[:2] != (BATCH, TOKENS) or len(grid.axes) != 3 or read_axes(node, given, 3) != [1]:
        raise refuse("it is taken over other axes than a text's tokens")
    if node.read_int("keepdims", 1):
        raise refuse("it keeps the axis of the tokens")


def _compare(known: Known, expect: Callable[[Case], Array], problem: str) -> None:
    if not all(_agree(known.work_out(case), expect(case)) for case in _list_cases(known)):
        raise refuse(problem)


def _list_cases(known: Known) -> list[Case]:
    """Batches that show what masks or places are.

    Raises:
        UnknownGraphError: no batch does, as they follow from the ids or types of tokens.
    """
    if reads_tokens((known,)):
        raise refuse("what weighs or chooses tokens follows from their ids or types")
    reach = find_reach((known,), _MOST_TOKENS)
    return [*CASES] if reach is None else [*CASES, make_case(reach), make_case(reach, left=False)]


def _agree(array: Array, expected: Array) -> bool:
    fits = array.dtype == expected.dtype and array.shape == expected.shape
    return fits and bool(np.allclose(array, expected, 1e-6))


def divide_sum(_node: Node, given: Sequence[Value]) -> Grid:
    """A sum by the number of tokens, or by its root.

    Raises:
        UnknownGraphError: by something else.
    """
    summed, by = given
    array = by.work_out(CASES[0])
    count = CASES[0].mask.sum(axis=1, keepdims=True)
    rooted = array.shape == count.shape and not np.allclose(array, count)

    def expect(case: Case) -> Array:
        counts = case.mask.sum(axis=1, keepdims=True).astype(np.float32)
        found: Array = np.sqrt(counts) if rooted else counts
        return found

    _compare(by, expect, "a sum of tokens is divided by neither their number nor its root")
    return pool(summed.grid, Pooling.SUM_OVER_ROOT if rooted else Pooling.MEAN)


def pool(grid: Grid, pooling: Pooling) -> Grid:
    """One row for each text."""
    source = find_rows(grid)
    if pooling is Pooling.FIRST:
        return Grid(pool_first(source), (BATCH, column(source.width)))
    made = Source(source.width, lambda out, of: Pool(out, of, pooling), (source,))
    return Grid(made, (BATCH, column(source.width)))


def fill_padding(_node: Node, given: Sequence[Value]) -> Filled | None:
    """Where(padding, minus infinity, states), or with the mask the other way round."""
    condition = given[0]
    turned = isinstance(given[1], Grid)
    grid, number = (given[1], given[2]) if turned else (given[2], given[1])
    if not isinstance(grid, Grid) or find_scalar(number) != -np.inf:
        return None
    _compare(
        condition,
        lambda case: case.mask[:, :, None] if turned else ~case.mask[:, :, None],
        "states are replaced elsewhere than in the padding",
    )
    return Filled(grid)


def take_largest(node: Node, given: Sequence[Value]) -> Grid:
    """The largest of a text's tokens."""
    _check_tokens(node, given, given[0].grid)
    return pool(given[0].grid, Pooling.MAX)


def gather_token(node: Node, given: Sequence[Value]) -> Grid:
    """One token of each text, by places that a graph works out: the last or the first.

    Raises:
        UnknownGraphError: another one.
    """
    grid, places = given
    if grid.axes[:2] != (BATCH, TOKENS) or len(grid.axes) != 3 or node.read_int("axis", 0) not in (1, -2):
        raise refuse("it gathers along another axis than the tokens")
    cases = _list_cases(places)
    found = [np.asarray(places.work_out(case)) for case in cases]
    if any(array.shape != (case.texts, 1, grid.width) for array, case in zip(found, cases, strict=True)):
        raise refuse("it gathers other than one token")
    for pooling, turn in ((Pooling.LAST, -1), (Pooling.FIRST, 1)):
        wanted = [case.mask[:, ::turn].argmax(axis=1) for case in cases]
        if pooling is Pooling.LAST:
            wanted = [case.tokens - 1 - place for case, place in zip(cases, wanted, strict=True)]
        if all((array == place[:, None, None]).all() for array, place in zip(found, wanted, strict=True)):
            made = pool(grid, pooling)
            return Grid(made.source, (BATCH, ONE, made.axes[1]))
    raise refuse("it gathers neither the last nor the first token")


def encode(node: Node, given: Sequence[Value]) -> Coded | None:
    """What is made of one matrix of a row per text, with constants; None where it is something else."""
    bases = {id(value if isinstance(value, Grid) else value.base): value for value in given if _is_vectors(value)}
    others = [value for value in given if value is not None and not _is_vectors(value)]
    if node.type not in ENCODING or len(bases) != 1 or not all(_is_free(value) for value in others):
        return None
    (base,) = bases.values()
    rows: Known = Rows()
    made = [(rows if isinstance(value, Grid) else value.made) if _is_vectors(value) else value for value in given]
    return Coded(base if isinstance(base, Grid) else base.base, Worked(node, made), node.describe())


def _is_vectors(value: Value) -> bool:
    return isinstance(value, Coded) or (isinstance(value, Grid) and value.axes[:-1] == (BATCH,) and value.is_rows)


def _is_free(value: Any) -> bool:
    return bool(getattr(value, "free", False))


def make_encoder(made: Known) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """(n, K) float32 rows -> their codes.

    Raises:
        UnknownGraphError: more nodes make them than are worked out.
    """
    if getattr(made, "depth", 0) > MAX_DEPTH:
        raise refuse(f"more than {MAX_DEPTH} nodes make its codes")

    def run(rows: NDArray[Any]) -> NDArray[Any]:
        return _run(made, Given(np.ascontiguousarray(rows)), {})

    return run


def _run(known: Known, given: Given, done: dict[int, Array]) -> Array:
    """Worked out without being kept: rows come and go."""
    if not isinstance(known, Worked):
        rows: Array = known.work_out(given)  # type: ignore[arg-type]
        return rows
    if id(known) not in done:
        done[id(known)] = known.apply([None if value is None else _run(value, given, done) for value in known.given])
    found: Array = done[id(known)]
    return found
