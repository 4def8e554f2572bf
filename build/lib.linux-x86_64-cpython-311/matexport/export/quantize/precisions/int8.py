"""int8 for CPUs: integer products whose activation scale belongs to each token.

The value x of each product group is quantized once for all its products. The scale m of a token is its largest absolute
value. x / m is rounded to 8 bits around a constant zero point and multiplied as integers, and the result is multiplied
by m. So a text's vector does not depend on the other texts of its batch, as it would with one scale per tensor (the
usual dynamic quantization).

Where a few channels are much larger than the others, the value is smoothed first (SmoothQuant: Xiao et al., ICML 2023,
equation 4): each channel is divided by a number s, and the rows of the weights are multiplied by it. Where an operator
bounds the value below (Gelu, Relu, Sigmoid), the zero point is smaller, so that more codes are left for numbers above
0, and m is the largest value.

A token of zeros gives 0 / 0 before the rounding and an arbitrary integer after it; multiplied by m = 0, it gives 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from matexport.export.graph.edit import (
    Floats,
    Inserter,
    add_constant,
    drop_unused,
    read_weight,
    replace_node,
    use_contrib,
)
from matexport.export.graph.traced import Traced
from matexport.export.quantize.embeddings import store_rows_as_int8
from matexport.export.quantize.rounding import choose_scales, round_columns
from matexport.export.quantize.sites import ProductGroup, find_tables, walk_groups

#: SmoothQuant's strength alpha: 0 leaves the outliers in the activations, 1 moves them into the weights. On
#: all-MiniLM-L6-v2 the errors of 0.5 and 0.7 are within a tenth of that of 0.6 (benchmarks/LOG.md).
SMOOTHING = 0.6

#: Smoothing costs a pass over the value, so the rounding noise must fall below this share of what it was.
MIN_SMOOTHING_GAIN = 0.8

#: Zero point of a value of either sign, among codes of 0 to 255, and its number of codes on each side.
SIGNED_ZERO, SIGNED_LEVELS = 128, 127

#: Gelu is never below -0.17. Its zero point leaves 32 codes for numbers below 0, and 223 for numbers above.
GELU_MINIMUM = 0.17
GELU_ZERO = 32

#: Operator -> m, where its output is never below -m, and the zero point that is used then.
BOUNDED = {"Gelu": (GELU_MINIMUM, GELU_ZERO), "Relu": (0.0, 0), "Sigmoid": (0.0, 0)}


@dataclass(frozen=True)
class Codes:
    """How the value of a product group is coded as uint8: code = round(x / scale) + zero.

    The scale of a token is its largest absolute value (its largest value if it is bounded below) divided by `levels`.

    Attributes:
        zero: the zero point, 0 to 255.
        minimum: m where the value is never below -m; None where it is not bounded.
    """

    zero: int
    minimum: float | None = None

    @property
    def levels(self) -> int:
        """Number of codes above the zero point that are used."""
        return 255 - self.zero if self.minimum is not None else SIGNED_LEVELS

    @property
    def least_peak(self) -> float:
        """A token's largest value counts as at least this much; at a finer scale, no code would reach -`minimum`."""
        return self.minimum * self.levels / self.zero if self.minimum else 0.0


def apply_int8(traced: Traced, rows: Mapping[str, Floats], progress: Callable[[int, int], None] | None = None) -> None:
    """Rewrite a traced graph to int8, in place.

    Args:
        rows: name of a product group -> (n, K) float32 rows of its value seen in calibration.
        progress: called with (done, total) product groups.
    """
    model = traced.model
    for group, alone in walk_groups(traced, progress):
        smoothing = find_smoothing(group, rows[group.name]) if alone and choose_codes(group).minimum is None else None
        _rewrite_group(model, group, rows[group.name], smoothing)
    for table in find_tables(traced):
        store_rows_as_int8(model, table)
    drop_unused(model)
    use_contrib(model)


def choose_codes(group: ProductGroup) -> Codes:
    """How the value of a product group is coded, which depends on the operator that computes the value."""
    producer = group.source.producer()
    bounds = BOUNDED.get(producer.op_type) if producer is not None else None
    return Codes(bounds[1], bounds[0]) if bounds else Codes(SIGNED_ZERO)


def find_smoothing(group: ProductGroup, rows: Floats) -> Floats | None:
    """Choose numbers to divide the channels of a group's value by (SmoothQuant, equation 4; their geometric mean is 1).

    Rounding a token whose largest value is m adds noise of a variance proportional to m^2 to every channel. A product
    passes the noise of channel k on, weighted by the squared norm of row k of its weight. Smoothing changes m and the
    rows; the numbers are used only if the noise falls enough.

    Args:
        rows: (n, K) float32 rows of the value seen in calibration.

    Returns:
        (K,) float32 divisors, or None where smoothing is not worth its cost.
    """
    peaks = np.abs(rows).max(axis=0)
    weights = [read_weight(weight) for weight in group.weights]
    reach = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    floor = np.float32(1e-5)
    divisors = np.maximum(peaks, floor) ** SMOOTHING / np.maximum(reach, floor) ** (1 - SMOOTHING)
    divisors = (divisors / np.exp(np.log(divisors).mean())).astype(np.float32)
    norms = np.sum([(weight.astype(np.float64) ** 2).sum(axis=1) for weight in weights], axis=0)
    before = (np.abs(rows).max(axis=1) ** 2).mean() * norms.sum()
    after = (np.abs(rows / divisors).max(axis=1) ** 2).mean() * (norms * divisors.astype(np.float64) ** 2).sum()
    return divisors if after < MIN_SMOOTHING_GAIN * before else None


def _rewrite_group(model: ir.Model, group: ProductGroup, rows: Floats, smoothing: Floats | None) -> None:
    source, first = group.source, Inserter(model.graph, group.products[0])
    if smoothing is not None:
        factors = add_constant(model.graph, f"{group.name}.smoothing", (1 / smoothing).astype(np.float32))
        source = first.add("Mul", [source, factors], like=source)
        rows = rows / smoothing
    codes = choose_codes(group)
    peak = _find_peak(model, first, source, codes)
    unit = add_constant(model.graph, f"unit_{codes.levels}", np.array(1 / codes.levels, dtype=np.float32))
    zero = add_constant(model.graph, f"zero_{codes.zero}", np.array(codes.zero, dtype=np.uint8))
    share = first.add("Div", [source, peak], like=source)
    coded = first.add("QuantizeLinear", [share, unit, zero], like=source, dtype=ir.DataType.UINT8)
    weight_zero = add_constant(model.graph, "weight_zero", np.array(0, dtype=np.int8))
    stored = _store_weights(model, group, rows, smoothing)
    for product, value in zip(group.products, group.weights, strict=True):
        weight, scales = stored[str(value.name)]
        here = Inserter(model.graph, product)
        result = here.add(
            "MatMulIntegerToFloat",
            [coded, weight, unit, scales, zero, weight_zero],
            like=source,
            last=int(weight.shape[1]),  # type: ignore[index, arg-type]
            dtype=ir.DataType.FLOAT,
        )
        scaled = here.add("Mul", [result, peak], like=result)
        replace_node(model.graph, product, scaled)


def _find_peak(model: ir.Model, first: Inserter, source: ir.Value, codes: Codes) -> ir.Value:
    """The (B, T, 1) float32 numbers that each token is divided by."""
    last_axis = add_constant(model.graph, "last_axis", np.array([-1], dtype=np.int64))
    reduce = {"keepdims": 1}
    if codes.minimum is None:
        size = first.add("Abs", [source], like=source)
        return first.add("ReduceMax", [size, last_axis], reduce, like=source, last=1)
    peak = first.add("ReduceMax", [source, last_axis], reduce, like=source, last=1)
    if not codes.least_peak:
        return peak
    least = add_constant(model.graph, f"least_peak_{codes.zero}", np.array(codes.least_peak, dtype=np.float32))
    return first.add("Max", [peak, least], like=peak)


def _store_weights(
    model: ir.Model, group: ProductGroup, rows: Floats, smoothing: Floats | None
) -> dict[str, tuple[ir.Value, ir.Value]]:
    """Weight name -> its (K, N) int8 codes and (N,) float32 scales; the weights of a group are rounded together."""
    names = [str(weight.name) for weight in group.weights]
    found = model.graph.initializers
    new = {name: weight for name, weight in zip(names, group.weights, strict=True) if f"{name}.int8" not in found}
    if new:
        weights = [read_weight(weight) for weight in new.values()]
        joined = np.concatenate(weights, axis=1)
        if smoothing is not None:
            joined = joined * smoothing[:, np.newaxis]
        scales = choose_scales(joined)
        columns = round_columns(joined, scales, rows)
        ends = np.cumsum([weight.shape[1] for weight in weights])[:-1]
        for name, part, part_scales in zip(new, np.split(columns, ends, axis=1), np.split(scales, ends), strict=True):
            add_constant(model.graph, f"{name}.int8", np.ascontiguousarray(part))
            add_constant(model.graph, f"{name}.scale", np.ascontiguousarray(part_scales))
    return {name: (found[f"{name}.int8"], found[f"{name}.scale"]) for name in names}
