"""Norms of rows and of heads, however they are spelled, and rows scaled to length 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec.structs import replace

from matexport.runtime.engines.native.geometry.known import BATCH, FIRST, ONE, TOKENS, find_constant, find_scalar
from matexport.runtime.engines.native.geometry.node import Node
from matexport.runtime.engines.native.geometry.operators import Array
from matexport.runtime.engines.native.patterns.layout import name_lengths, read_axes
from matexport.runtime.engines.native.patterns.values import (
    Grid,
    Source,
    Value,
    as_vector,
    cut_columns,
    describe_axes,
    find_rows,
    refuse,
)
from matexport.runtime.engines.native.steps import HeadNorm, Norm, Unit
from matexport.spec.record import Record


class Square(Record, frozen=True):
    """x^2."""

    grid: Grid


class Power(Record, frozen=True):
    """The mean (`mean`) or the sum of x^2 over a row, plus `epsilon`."""

    grid: Grid
    mean: bool
    epsilon: float = 0.0


class Length(Record, frozen=True):
    """The root of that, and at least `least`; 1 by it where `inverse`."""

    power: Power
    least: float = 0.0
    inverse: bool = False


class Normed(Record, frozen=True):
    """`made_by` of an RMSNorm that a weight may still be taken into."""

    grid: Grid
    epsilon: float


def normalize(node: Node, given: Sequence[Value]) -> Grid:
    """LayerNormalization over rows, or over the columns of heads.

    Raises:
        UnknownGraphError: over more axes, or with a weight that is no constant.
    """
    grid = given[0]
    if node.read_int("axis", -1) not in (-1, len(grid.axes) - 1):
        raise refuse("it is taken over other axes than the last")
    weight = _read_vector(given[1], grid.width)
    bias = _read_vector(given[2], grid.width) if len(given) > 2 and given[2] is not None else None
    return _norm(grid, weight, bias, node.read_number("epsilon", 1e-5), centred=True)


def _read_vector(value: Value, width: int) -> Array:
    array = find_constant(value)
    vector = None if array is None else as_vector(array, width)
    if vector is None:
        raise refuse("its weight or bias is no constant vector")
    return vector


def _norm(grid: Grid, weight: Array, bias: Array | None, epsilon: float, *, centred: bool) -> Grid:
    if grid.is_rows:
        source = find_rows(grid)
        return grid.like(Source(source.width, lambda out, of: Norm(out, of, weight, bias, epsilon, centred), (source,)))
    heads, source = _find_heads(grid)
    made = Source(source.width, lambda out, of: HeadNorm(out, of, heads, weight, bias, epsilon, centred), (source,))
    return Grid(made, grid.axes)


def _find_heads(grid: Grid) -> tuple[int, Source]:
    """Number of heads, and the matrix whose columns they share out; whatever the order of the axes before the last."""
    last = grid.axes[-1]
    others = [axis for axis in grid.axes[:-1] if axis.kind == "columns"]
    heads = others[0].size if others else 1
    rows = {axis for axis in grid.axes[:-1] if axis.kind != "columns" and axis != ONE}
    fits = len(others) <= 1 and all(axis.stride == last.size and axis.repeat == 1 for axis in others)
    if not fits or rows not in ({BATCH, TOKENS}, {BATCH, FIRST}) or (last.kind, last.stride) != ("columns", 1):
        raise refuse(f"a norm of {describe_axes(grid.axes)}")
    return heads, cut_columns(grid.source, grid.first, heads * last.size, grid.factor)


def square(_node: Node, given: Sequence[Value]) -> Square | None:
    """x x; None where it is another product."""
    return Square(given[0]) if given[0] == given[1] else None


def raise_power(_node: Node, given: Sequence[Value]) -> Square | None:
    """x^2; None where it is another power."""
    return Square(given[0]) if find_scalar(given[1]) == 2.0 else None


def sum_squares(node: Node, given: Sequence[Value]) -> Power:
    """ReduceSum of squares over a row."""
    _check_last(node, given, given[0].grid)
    return Power(given[0].grid, mean=False)


def mean_squares(node: Node, given: Sequence[Value]) -> Power:
    """ReduceMean of squares over a row."""
    _check_last(node, given, given[0].grid)
    return Power(given[0].grid, mean=True)


def measure_length(node: Node, given: Sequence[Value]) -> Length:
    """ReduceL2 of rows."""
    _check_last(node, given, given[0])
    return Length(Power(given[0], mean=False))


def _check_last(node: Node, given: Sequence[Value], grid: Grid) -> None:
    if read_axes(node, given, len(grid.axes)) != [len(grid.axes) - 1] or not node.read_int("keepdims", 1):
        raise refuse("it sums up other than the columns of a row")


def add_epsilon(_node: Node, given: Sequence[Value]) -> Power | None:
    """Plus a small number."""
    power, number = given[0], find_scalar(given[1])
    return None if number is None or power.epsilon or number < 0 else replace(power, epsilon=number)


def take_root(_node: Node, given: Sequence[Value]) -> Length:
    """The root of a sum of squares."""
    return Length(given[0])


def hold_length(_node: Node, given: Sequence[Value]) -> Length | None:
    """At least some number."""
    length, least = given[0], find_scalar(given[1])
    if len(given) > 2 and given[2] is not None:
        raise refuse("it holds a length below some number")
    return None if least is None or length.least or length.inverse else replace(length, least=least)


def keep_length(_node: Node, given: Sequence[Value]) -> Length:
    """Repeated for each column."""
    length, target = given
    grid = length.power.grid
    lengths = name_lengths(target, (*grid.axes[:-1], ONE), zeros=False)
    rows = [axis.kind for axis in grid.axes[:-1]]
    if list(lengths[:-1]) != rows or lengths[-1] not in (1, grid.width):
        raise refuse(f"it gives lengths of {describe_axes(grid.axes)} the shape {lengths}")
    return length  # type: ignore[no-any-return]


def invert(_node: Node, given: Sequence[Value]) -> Length | None:
    """1 by a root."""
    length = given[0] if isinstance(given[0], Length) else given[1]
    if isinstance(given[0], Length) or find_scalar(given[0]) == 1.0:
        return None if length.inverse else replace(length, inverse=True)
    return None


def raise_root(_node: Node, given: Sequence[Value]) -> Length | None:
    """A sum of squares to the power of a half, or 1 by it."""
    power = find_scalar(given[1])
    return Length(given[0], inverse=power == -0.5) if power in (0.5, -0.5) else None


def divide_by_length(_node: Node, given: Sequence[Value]) -> Grid | None:
    """Rows by their own length, or by their own root of the mean square."""
    return None if given[1].inverse else _scale_by_length(*given)


def multiply_by_length(_node: Node, given: Sequence[Value]) -> Grid | None:
    """Rows times 1 by their own length."""
    grid, length = given
    return _scale_by_length(grid, length) if length.inverse else None


def _scale_by_length(grid: Grid, length: Length) -> Grid | None:
    power = length.power
    if grid != power.grid:
        return None
    if power.mean:
        if length.least:
            raise refuse("it holds the root of a mean square above some number")
        made = _norm(grid, np.ones(grid.width, np.float32), None, power.epsilon, centred=False)
        made.source.made_by = Normed(grid, power.epsilon)
        return made
    if power.epsilon or length.least <= 0:
        raise refuse("it divides by a length that may be 0, or is not the row's")
    source = find_rows(grid)
    return grid.like(Source(source.width, lambda out, of: Unit(out, of, length.least), (source,)))


def weigh_norm(_node: Node, given: Sequence[Value]) -> Grid | None:
    """The weight of an RMSNorm."""
    grid, array = given[0], find_constant(given[1])
    made = grid.source.made_by
    whole = (grid.first, grid.factor) == (0, 1.0)
    if not isinstance(made, Normed) or array is None or made.grid.axes != grid.axes or not whole:
        return None
    weight = as_vector(array, grid.width)
    return None if weight is None else _norm(made.grid, weight, None, made.epsilon, centred=False)
