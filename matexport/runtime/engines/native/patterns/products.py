"""Products with constant weights: of integers, with a scale for each token as `int8` writes them, or of float32.

The pattern of integers: peak = ReduceMax(Abs(x)), code = QuantizeLinear(x / peak), MatMulIntegerToFloat (or its
spelling by MatMulInteger, Cast and Mul), times peak. Each part is a record here; what does not meet its own other parts
again is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec.structs import replace

from matexport.runtime.engines.native.geometry.known import find_constant, find_scalar
from matexport.runtime.engines.native.geometry.node import Node
from matexport.runtime.engines.native.geometry.operators import Array
from matexport.runtime.engines.native.patterns.layout import cut_axis, read_axes
from matexport.runtime.engines.native.patterns.values import (
    Biasable,
    Grid,
    Scaled,
    Source,
    Value,
    find_rows,
    keep_part,
    refuse,
)
from matexport.runtime.engines.native.steps import Dense, Product, Quantize
from matexport.spec.record import Record


class Sizes(Record, frozen=True, eq=False):
    """The sizes of a matrix's numbers."""

    grid: Grid


class Peak(Record, frozen=True):
    """The largest number, or size, of each row, and at least `least`."""

    grid: Grid
    bounded: bool
    least: float = 0.0


class Share(Record, frozen=True):
    """Rows divided by their peak."""

    peak: Peak


class Codes(Record, frozen=True):
    """uint8 codes of rows; `unit` is float32, the step of a share, and `zero` the zero point."""

    peak: Peak
    unit: float
    zero: int


class Whole(Record, frozen=True, eq=False):
    """What codes times a weight are, as whole numbers (`scales` is None), or times all scales but the peak."""

    codes: Codes
    weight: Array
    scales: Array | None


def measure_sizes(_node: Node, given: Sequence[Value]) -> Sizes:
    """Abs of a matrix."""
    return Sizes(given[0])


def find_peak(node: Node, given: Sequence[Value]) -> Peak:
    """The largest number, or size, of each row.

    Raises:
        UnknownGraphError: it is not of rows.
    """
    grid = given[0].grid if isinstance(given[0], Sizes) else given[0]
    if not grid.is_rows or read_axes(node, given, len(grid.axes)) != [len(grid.axes) - 1]:
        raise refuse("it takes the largest of other than a row")
    if not node.read_int("keepdims", 1):
        raise refuse("it drops the axis of the columns")
    return Peak(grid, bounded=not isinstance(given[0], Sizes))


def hold_peak(_node: Node, given: Sequence[Value]) -> Peak | None:
    """A peak that is at least some number."""
    peak, least = given[0], find_scalar(given[1])
    if len(given) > 2 and given[2] is not None:
        raise refuse("it holds a peak below some number")
    return None if least is None or peak.least or least < 0 else replace(peak, least=least)


def divide_by_peak(_node: Node, given: Sequence[Value]) -> Share | None:
    """A matrix by its own peak; None where it is another's."""
    return Share(given[1]) if given[0] == given[1].grid else None


def make_codes(node: Node, given: Sequence[Value]) -> Codes:
    """uint8 codes of a share.

    Raises:
        UnknownGraphError: they are not of uint8, or in blocks.
    """
    unit, zero = find_scalar(given[1]), find_constant(given[2]) if len(given) > 2 else None
    if unit is None or zero is None or zero.size != 1 or zero.dtype != np.uint8:
        raise refuse("it makes other codes than uint8 with one step")
    if node.read_int("block_size", 0) or node.read_int("output_dtype", 2) not in (0, 2):
        raise refuse("it makes codes in blocks, or of another type")
    return Codes(given[0].peak, unit, int(zero.reshape(())))


def cut_codes(_node: Node, given: Sequence[Value]) -> Value:
    """Codes or peaks of the first tokens: a row's do not depend on others."""
    starts, ends, axes = (find_constant(value) for value in given[1:4])
    peak = given[0].peak if isinstance(given[0], Codes) else given[0]
    if starts is None or ends is None or axes is None or starts.size != 1 or (len(given) > 4 and given[4] is not None):
        raise refuse("it cuts codes otherwise than to the first token")
    place = int(axes[0]) % len(peak.grid.axes)
    if place == len(peak.grid.axes) - 1:
        raise refuse("it cuts the columns of codes")
    cut = replace(peak, grid=cut_axis(peak.grid, place, int(starts[0]), int(ends[0])))
    return replace(given[0], peak=cut) if isinstance(given[0], Codes) else cut


def multiply_codes(_node: Node, given: Sequence[Value]) -> Whole:
    """MatMulIntegerToFloat.

    Raises:
        UnknownGraphError: the weight is not int8 around 0 with one scale per column, or the zero points do not fit.
    """
    codes, weight, unit, scales, *rest = given
    zero, other = (rest[place] if len(rest) > place else None for place in (0, 1))
    if len(rest) > 2 and rest[2] is not None:
        raise refuse("it adds a bias before the scale of a token")
    weights, columns = _read_weight(codes, weight, zero, other), find_constant(scales)
    if find_scalar(unit) != codes.unit:
        raise refuse("the step of its codes is another than the one they were made with")
    if columns is None or columns.dtype != np.float32 or columns.size not in (1, weights.shape[1]):
        raise refuse("the scales of its columns are no constant")
    return Whole(codes, weights, np.broadcast_to(columns.reshape(-1), weights.shape[1:]))


def multiply_whole(_node: Node, given: Sequence[Value]) -> Whole:
    """MatMulInteger.

    Raises:
        UnknownGraphError: as `multiply_codes`.
    """
    zero, other = (given[place] if len(given) > place else None for place in (2, 3))
    return Whole(given[0], _read_weight(given[0], given[1], zero, other), None)


def _read_weight(codes: Codes, weight: Value, zero: Value, other: Value) -> Array:
    weights, zeros = find_constant(weight), None if other is None else find_constant(other)
    if weights is None or weights.ndim != 2 or weights.dtype != np.int8:
        raise refuse("its weight is no constant of int8 with two axes")
    if len(weights) != codes.peak.grid.width:
        raise refuse(f"its weight has {len(weights)} rows, and its codes {codes.peak.grid.width} columns")
    if other is not None and (zeros is None or zeros.any()):
        raise refuse("its weight has a zero point")
    if zero is None or find_scalar(zero) != codes.zero:
        raise refuse("the zero point of its codes is another than the one they were made with")
    return weights


def cast_whole(node: Node, given: Sequence[Value]) -> Whole:
    """Whole numbers as float32."""
    if node.read_int("to", 0) != 1:
        raise refuse("it makes other numbers than float32 of a product")
    whole: Whole = given[0]
    return whole


def scale_whole(_node: Node, given: Sequence[Value]) -> Whole | None:
    """Whole numbers times the steps of the codes and the columns in one."""
    whole: Whole = given[0]
    steps = find_constant(given[1])
    if whole.scales is not None or steps is None or steps.dtype != np.float32:
        return None
    if steps.size not in (1, whole.weight.shape[1]) or steps.shape[-1:] != (steps.size,) * bool(steps.ndim):
        return None
    scales = (steps.astype(np.float64) / whole.codes.unit).astype(np.float32)
    return replace(whole, scales=np.broadcast_to(scales.reshape(-1), whole.weight.shape[1:]))


def finish_product(_node: Node, given: Sequence[Value]) -> Grid | None:
    """A product of integers times the peak of its rows; None where that is another's."""
    whole, peak = given
    if whole.scales is None or peak != whole.codes.peak:
        return None
    codes = quantize(whole.codes)
    source = _bias_later(
        whole.weight.shape[1], (codes,), lambda out, of, bias: Product(out, of, whole.weight, whole.scales, bias)
    )
    return peak.grid.like(source)  # type: ignore[no-any-return]


def _bias_later(width: int, needs: tuple[Source, ...], make: Any) -> Source:
    """A product without a bias, which one may be added to."""

    def add(bias: Array) -> Source:
        return Source(width, lambda out, of: make(out, of, bias), needs)

    return Source(width, lambda out, of: make(out, of, None), needs, made_by=Biasable(add))


def quantize(codes: Codes) -> Source:
    """The codes of rows, made once for all products that read them.

    Raises:
        UnknownGraphError: no number of levels has this step.
    """
    peak = codes.peak
    levels = round(1 / codes.unit) if codes.unit > 0 else 0
    if not 1 <= levels <= 255 - codes.zero or np.float32(1 / levels) != np.float32(codes.unit):
        raise refuse(f"the step of its codes, {codes.unit:g}, is not 1 by a number of levels")
    source, smoothing = find_rows(peak.grid, "what it codes"), None
    if isinstance(source.made_by, Scaled) and source.made_by.bias is None:
        source, smoothing = source.made_by.base, source.made_by.weight

    def make(out: int, of: int) -> Quantize:
        return Quantize(out, of, smoothing, levels, codes.zero, peak.bounded, peak.least)

    key = ("codes", id(smoothing), codes.unit, codes.zero, peak.bounded, peak.least)
    return keep_part(source, key, lambda: Source(source.width, make, (source,)))


def multiply_rows(_node: Node, given: Sequence[Value]) -> Grid | None:
    """A product in float32 with a constant; None where the other is no constant."""
    weight = find_constant(given[1])
    if weight is None:
        return None
    return _multiply(given[0], weight)


def multiply_general(node: Node, given: Sequence[Value]) -> Grid:
    """Gemm with a constant weight and bias.

    Raises:
        UnknownGraphError: they are no constants, or scaled.
    """
    weight = find_constant(given[1])
    if weight is None or node.read_int("transA", 0):
        raise refuse("its weight is no constant, or its rows are transposed")
    if any(node.read_number(name, 1.0) != 1.0 for name in ("alpha", "beta")):
        raise refuse("it scales its product")
    made = _multiply(given[0], weight.T if node.read_int("transB", 0) else weight)
    if len(given) < 3 or given[2] is None:
        return made
    bias = find_constant(given[2])
    if bias is None or bias.dtype != np.float32 or bias.shape not in ((made.width,), (1, made.width)):
        raise refuse("its bias is no constant vector")
    return made.like(made.source.made_by.add(bias.reshape(-1)))


def _multiply(grid: Grid, weight: Array) -> Grid:
    source = find_rows(grid, "what it multiplies")
    if weight.ndim != 2 or weight.dtype != np.float32 or len(weight) != source.width:
        raise refuse(f"its weight is no float32 matrix of {source.width} rows")
    return grid.like(_bias_later(weight.shape[1], (source,), lambda out, of, bias: Dense(out, of, weight, bias)))
