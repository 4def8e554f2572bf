"""Operators on each number: sums and products of matrices and constants, and activations, however they are spelled."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from msgspec.structs import replace

from matexport.runtime.engines.native.geometry.known import find_constant, find_scalar
from matexport.runtime.engines.native.geometry.node import Node
from matexport.runtime.engines.native.geometry.operators import Array
from matexport.runtime.engines.native.patterns.values import (
    Biasable,
    Grid,
    Scaled,
    Source,
    Value,
    as_vector,
    find_rows,
    keep_part,
    refuse,
    scale_rows,
)
from matexport.runtime.engines.native.steps import Activate, Add, Function, Multiply
from matexport.spec.record import Record

#: How far a constant of an activation may be from its formula's: it is written in float32, or by hand.
_TOLERANCE = 1e-6


class Bell(Record, frozen=True):
    """erf(x), `shifted` by 1, of a matrix x that `grid` sees: part of Gelu."""

    grid: Grid
    shifted: bool = False


class Cube(Record, frozen=True):
    """x^3 times `factor`, or x plus that (`whole`): part of Gelu by tanh."""

    grid: Grid
    factor: float = 1.0
    whole: bool = False
    outer: float = 1.0


class Slope(Record, frozen=True):
    """tanh of sqrt(2 / pi) (x + 0.044715 x^3), `shifted` by 1."""

    grid: Grid
    shifted: bool = False


def add_grids(_node: Node, given: Sequence[Value]) -> Grid:
    """Two matrices of the same rows.

    Raises:
        UnknownGraphError: they have other axes.
    """
    left, right = given
    if left.axes != right.axes:
        raise refuse("it adds matrices of other axes")
    sources = find_rows(left), find_rows(right)
    return left.like(Source(left.width, Add, sources))  # type: ignore[no-any-return]


def multiply_grids(_node: Node, given: Sequence[Value]) -> Grid:
    """Two matrices of the same rows; x times its sigmoid is SiLU.

    Raises:
        UnknownGraphError: they have other axes.
    """
    left, right = given
    if left.axes != right.axes:
        raise refuse("it multiplies matrices of other axes")
    for one, other in ((left, right), (right, left)):
        done = other.source.made_by
        whole = (other.first, other.width, other.factor) == (0, other.source.width, 1.0)
        if isinstance(done, _Activated) and done.function is Function.SIGMOID and whole and done.grid == one:
            return activate(one, Function.SILU)
    sources = find_rows(left), find_rows(right)
    return left.like(Source(left.width, Multiply, sources))  # type: ignore[no-any-return]


def add_constant(_node: Node, given: Sequence[Value]) -> Grid | None:
    """A constant vector; None where it is another constant."""
    grid, array = given[0], find_constant(given[1])
    bias = None if array is None or not grid.is_rows else as_vector(array, grid.width)
    return None if bias is None else add_bias(grid, bias)


def add_bias(grid: Grid, bias: Array) -> Grid:
    """Each row plus a (K,) vector."""
    source = find_rows(grid)
    made = source.made_by
    if isinstance(made, Biasable):
        return grid.like(made.add(bias))
    if isinstance(made, Scaled) and made.bias is None:
        return grid.like(scale_rows(made.base, made.weight, bias))
    return grid.like(scale_rows(source, None, bias))


def multiply_constant(_node: Node, given: Sequence[Value]) -> Grid | None:
    """A number, or a constant vector; None where it is another constant."""
    grid, array = given[0], find_constant(given[1])
    if array is None or array.dtype != np.float32:
        return None
    if array.size == 1 and array.ndim <= len(grid.axes):
        return Grid(grid.source, grid.axes, grid.first, grid.factor * float(array.reshape(())))
    weight = as_vector(array, grid.width) if grid.is_rows else None
    if weight is None or array.ndim > len(grid.axes):
        return None
    source = find_rows(grid)
    return grid.like(keep_part(source, ("times", id(given[1])), lambda: scale_rows(source, weight, None)))  # type: ignore[no-any-return]


def divide_constant(_node: Node, given: Sequence[Value]) -> Grid | None:
    """By a number."""
    number = find_scalar(given[1])
    if not number:
        return None
    grid = given[0]
    return Grid(grid.source, grid.axes, grid.first, grid.factor / number)


def negate(_node: Node, given: Sequence[Value]) -> Grid:
    """All numbers with the other sign."""
    grid = given[0]
    return Grid(grid.source, grid.axes, grid.first, -grid.factor)


class _Activated(Record, frozen=True):
    """`made_by` of an activation."""

    grid: Grid
    function: Function


def activate(grid: Grid, function: Function) -> Grid:
    """A function of each number of rows."""
    source = find_rows(grid)
    made = Source(
        source.width, lambda out, of: Activate(out, of, function), (source,), made_by=_Activated(grid, function)
    )
    return grid.like(keep_part(source, function, lambda: made))


def activate_gelu(node: Node, given: Sequence[Value]) -> Grid:
    """Gelu, as the operator."""
    exact = node.read_text("approximate") in ("", "none")
    if not exact and node.read_text("approximate") != "tanh":
        raise refuse(f"it approximates by {node.read_text('approximate')}")
    return activate(given[0], Function.GELU if exact else Function.GELU_TANH)


def activate_plain(node: Node, given: Sequence[Value]) -> Grid:
    """Relu, Sigmoid or Tanh."""
    return activate(given[0], Function(node.type.lower()))


def tanh(node: Node, given: Sequence[Value]) -> Slope | Grid:
    """Tanh of what Gelu's approximation has inside, or of a matrix."""
    inner = given[0]
    if isinstance(inner, Cube):
        if not inner.whole or not _near(inner.outer, math.sqrt(2 / math.pi)):
            raise refuse("it is no known activation")
        return Slope(inner.grid)
    return activate_plain(node, given)


def bend(_node: Node, given: Sequence[Value]) -> Bell:
    """Erf of x by the root of 2."""
    grid = given[0]
    if not _near(grid.factor, math.sqrt(0.5)):
        raise refuse("it is no known activation")
    return Bell(replace(grid, factor=1.0))


def cube(_node: Node, given: Sequence[Value]) -> Cube | None:
    """x^3; None where the power is another."""
    return Cube(given[0]) if find_scalar(given[1]) == 3.0 else None


def scale_cube(_node: Node, given: Sequence[Value]) -> Cube | None:
    """x^3, or x plus some of it, times a number."""
    part: Cube = given[0]
    number = find_scalar(given[1])
    if number is None:
        return None
    if part.whole:
        return replace(part, outer=part.outer * number)
    return replace(part, factor=part.factor * number)


def add_cube(_node: Node, given: Sequence[Value]) -> Cube | None:
    """x + 0.044715 x^3; None where the sum is another."""
    part, grid = given
    fits = not part.whole and _near(part.factor, 0.044715) and part.grid == grid
    return replace(part, whole=True) if fits else None


def shift(_node: Node, given: Sequence[Value]) -> Bell | Slope | None:
    """erf or tanh, plus 1; None where another number is added."""
    part: Bell | Slope = given[0]
    return replace(part, shifted=True) if not part.shifted and find_scalar(given[1]) == 1.0 else None


def finish_gelu(_node: Node, given: Sequence[Value]) -> Grid | None:
    """x / 2 times (1 + erf or tanh); None where it is another's."""
    part, grid = given
    if not part.shifted or grid != replace(part.grid, factor=part.grid.factor * 0.5):
        return None
    return activate(part.grid, Function.GELU if isinstance(part, Bell) else Function.GELU_TANH)


def _near(number: float, other: float) -> bool:
    return abs(number - other) <= _TOLERANCE * abs(other)
