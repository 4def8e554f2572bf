"""int8 for CPUs: integer products whose activation scale belongs to each token.

For each site, once for all products that read it: the token's scale m is its largest absolute value; x / m is rounded
to 8 bits around a constant zero point, multiplied as integers, and the result multiplied by m. So a text's vector does
not depend on what else is in the batch, which it does with one scale per tensor (the usual dynamic quantization).

Where a few channels are much larger than the others, the site is smoothed first (SmoothQuant: Xiao et al., ICML 2023,
equation 4): each channel is divided by s and the weights multiplied by it. Where the value cannot be below some
number (Gelu, Relu), the zero point leaves the negative half to those who need it.

A token of zeros gives 0 / 0 in front of the rounding, some integer after it, and 0 again in the product with m.
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
from matexport.export.quantize.sites import ProductGroup, find_products, find_tables, group_by_weight

#: SmoothQuant's strength: 0 leaves the outliers in the activations, 1 moves them into the weights. Measured on
#: all-MiniLM-L6-v2: 0.5 and 0.7 are within a tenth of the error of this (benchmarks/LOG.md).
SMOOTHING = 0.6

#: Smoothing costs a pass over the value; it must remove a fifth of the rounding noise to be worth that.
MIN_SMOOTHING_GAIN = 0.8

#: Codes of 0 to 255: signed values lie around 128, and those bounded below around a smaller number.
SIGNED_ZERO, SIGNED_LEVELS = 128, 127

#: Gelu's zero point: 223 codes for what is above 0, and 32 for what is below, which is never more than 0.17.
GELU_MINIMUM = 0.17
GELU_ZERO = 32

#: What each operator's output cannot be below, and the zero point that this allows.
BOUNDED = {"Gelu": (GELU_MINIMUM, GELU_ZERO), "Relu": (0.0, 0), "Sigmoid": (0.0, 0)}


@dataclass(frozen=True)
class Codes:
    """A site's value as uint8: code = round(x / scale) + zero, scale = the token's largest value / levels."""

    zero: int
    minimum: float | None = None

    @property
    def levels(self) -> int:
        """Codes above the zero point."""
        return 255 - self.zero if self.minimum is not None else SIGNED_LEVELS

    @property
    def least_peak(self) -> float:
        """The scale is no finer than at this largest value, or the codes would not reach down to the minimum."""
        return self.minimum * self.levels / self.zero if self.minimum else 0.0


def apply_int8(traced: Traced, rows: Mapping[str, Floats], progress: Callable[[int, int], None] | None = None) -> None:
    """Rewrite a traced graph to int8, in place.

    Args:
        rows: site name -> (n, K) float32 rows seen in calibration.
        progress: called with (done, total) sites.
    """
    model, sites = traced.model, find_products(traced)
    shared = group_by_weight(sites)
    for done, site in enumerate(sites):
        if progress:
            progress(done, len(sites))
        alone = all(len(shared[str(weight.name)]) == 1 for weight in site.weights)
        smoothing = find_smoothing(site, rows[site.name]) if alone and choose_codes(site).minimum is None else None
        _rewrite_site(model, site, rows[site.name], smoothing)
    for table in find_tables(traced):
        store_rows_as_int8(model, table)
    drop_unused(model)
    use_contrib(model)
    if progress:
        progress(len(sites), len(sites))


def choose_codes(site: ProductGroup) -> Codes:
    """How a site's value is coded, by what computes it."""
    producer = site.source.producer()
    bounds = BOUNDED.get(producer.op_type) if producer is not None else None
    return Codes(bounds[1], bounds[0]) if bounds else Codes(SIGNED_ZERO)


def find_smoothing(site: ProductGroup, rows: Floats) -> Floats | None:
    """(K,) float32 divisors of a site's channels, or None where they would not pay; `rows` are (n, K) float32.

    Rounding a token with largest value m adds noise of variance m^2 to every channel, which a product passes on
    weighted by the squared norms of its rows. Smoothing changes both: m, and the rows.
    """
    peaks = np.abs(rows).max(axis=0)
    weights = [read_weight(weight) for weight in site.weights]
    reach = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    floor = np.float32(1e-5)
    divisors = np.maximum(peaks, floor) ** SMOOTHING / np.maximum(reach, floor) ** (1 - SMOOTHING)
    divisors = (divisors / np.exp(np.log(divisors).mean())).astype(np.float32)
    norms = np.sum([(weight.astype(np.float64) ** 2).sum(axis=1) for weight in weights], axis=0)
    before = (np.abs(rows).max(axis=1) ** 2).mean() * norms.sum()
    after = (np.abs(rows / divisors).max(axis=1) ** 2).mean() * (norms * divisors.astype(np.float64) ** 2).sum()
    return divisors if after < MIN_SMOOTHING_GAIN * before else None


def _rewrite_site(model: ir.Model, site: ProductGroup, rows: Floats, smoothing: Floats | None) -> None:
    source, first = site.source, Inserter(model.graph, site.products[0])
    if smoothing is not None:
        factors = add_constant(model.graph, f"{site.name}.smoothing", (1 / smoothing).astype(np.float32))
        source = first.add("Mul", [source, factors], like=source)
        rows = rows / smoothing
    codes = choose_codes(site)
    peak = _find_peak(model, first, source, codes)
    unit = add_constant(model.graph, f"unit_{codes.levels}", np.array(1 / codes.levels, dtype=np.float32))
    zero = add_constant(model.graph, f"zero_{codes.zero}", np.array(codes.zero, dtype=np.uint8))
    share = first.add("Div", [source, peak], like=source)
    coded = first.add("QuantizeLinear", [share, unit, zero], like=source, dtype=ir.DataType.UINT8)
    weight_zero = add_constant(model.graph, "weight_zero", np.array(0, dtype=np.int8))
    stored = _store_weights(model, site, rows, smoothing)
    for product, value in zip(site.products, site.weights, strict=True):
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
    """(B, T, 1) float32: what each token is divided by."""
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
    model: ir.Model, site: ProductGroup, rows: Floats, smoothing: Floats | None
) -> dict[str, tuple[ir.Value, ir.Value]]:
    """Weight name -> its int8 columns (K, N) and their scales (N,); those of one site are rounded together."""
    names = [str(weight.name) for weight in site.weights]
    found = model.graph.initializers
    new = {name: weight for name, weight in zip(names, site.weights, strict=True) if f"{name}.int8" not in found}
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
