"""int8-static: QuantizeLinear/DequantizeLinear pairs with calibrated scales, for runtimes that need this form.

There is one symmetric scale per value (from the percentile of its numbers on the user's texts that loses least), and
one per column of a weight. Everything is int8 with zero point 0, which TensorRT requires and OpenVINO and NPU runtimes
accept. Standard operators only. Convolutions have a form of their own: see `int8_maps`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from matexport.export.graph.edit import Floats, Inserter, add_constant, drop_unused, read_weight
from matexport.export.graph.traced import Traced
from matexport.export.quantize.embeddings import store_rows_as_int8
from matexport.export.quantize.precisions.int8 import find_smoothing
from matexport.export.quantize.precisions.int8_maps import code_convolutions
from matexport.export.quantize.rounding import choose_scales, round_columns
from matexport.export.quantize.sites import ProductGroup, find_tables, walk_groups

#: Shares of a value's numbers that its range may cover; larger numbers are clipped.
PERCENTILES = (0.999, 0.9999, 0.99999, 1.0)
LEVELS = 127


def apply_static_int8(
    traced: Traced,
    rows: Mapping[str, Floats],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Rewrite a traced graph to int8 with QuantizeLinear/DequantizeLinear pairs, in place.

    Args:
        rows: name of a product group, or of a map -> (n, K) float32 rows of its value seen in calibration.
        progress: called with (done, total) product groups.
    """
    model = traced.model
    for group, alone in walk_groups(traced, progress):
        _rewrite_group(model, group, rows[group.name], find_smoothing(group, rows[group.name]) if alone else None)
    code_convolutions(traced, rows, progress)
    for table in find_tables(traced):
        store_rows_as_int8(model, table)
    drop_unused(model)


def _rewrite_group(model: ir.Model, group: ProductGroup, rows: Floats, smoothing: Floats | None) -> None:
    source, first = group.source, Inserter(model.graph, group.products[0])
    if smoothing is not None:
        factors = add_constant(model.graph, f"{group.name}.smoothing", (1 / smoothing).astype(np.float32))
        source = first.add("Mul", [source, factors], like=source)
        rows = rows / smoothing
    step = np.array(find_step(group, rows, smoothing), dtype=np.float32)
    scale = add_constant(model.graph, f"{group.name}.scale", step)
    zero = add_constant(model.graph, "zero_int8", np.array(0, dtype=np.int8))
    coded = first.add("QuantizeLinear", [source, scale, zero], like=source, dtype=ir.DataType.INT8)
    values = first.add("DequantizeLinear", [coded, scale, zero], like=source, dtype=ir.DataType.FLOAT)
    for product in group.products:
        here, weight = Inserter(model.graph, product), product.inputs[1]
        assert weight is not None
        columns, scales, zeros = _store_weight(model, weight, rows, smoothing)
        back = here.add("DequantizeLinear", [columns, scales, zeros], {"axis": 1}, like=weight)
        product.replace_input_with(0, values)
        product.replace_input_with(1, back)


def find_step(group: ProductGroup, rows: Floats, smoothing: Floats | None) -> float:
    """The scale of a group's value: from the percentile whose rounding and clipping disturb the products least.

    The error of channel k counts with the squared norm of row k of the weights, by which the products multiply it.

    Args:
        rows: (n, K) float32 rows of the value, after smoothing.
        smoothing: (K,) float32 divisors that the channels were divided by; None where there was no smoothing.
    """
    weights = [read_weight(weight) for weight in group.weights]
    reach = np.sum([(weight.astype(np.float64) ** 2).sum(axis=1) for weight in weights], axis=0)
    if smoothing is not None:
        reach = reach * smoothing.astype(np.float64) ** 2
    size = np.abs(rows)

    def measure_error(step: float) -> float:
        back = np.clip(np.rint(rows / step), -LEVELS, LEVELS) * step
        return float((((back - rows).astype(np.float64) ** 2).mean(axis=0) * reach).sum())

    tiny = float(np.finfo(np.float32).tiny)
    steps = [max(float(np.quantile(size, share)) / LEVELS, tiny) for share in PERCENTILES]
    return min(steps, key=measure_error)


def _store_weight(
    model: ir.Model, value: ir.Value, rows: Floats, smoothing: Floats | None
) -> tuple[ir.Value, ir.Value, ir.Value]:
    name = str(value.name)
    if f"{name}.int8" not in model.graph.initializers:
        weight = read_weight(value)
        if smoothing is not None:
            weight = weight * smoothing[:, np.newaxis]
        scales = choose_scales(weight)
        add_constant(model.graph, f"{name}.int8", round_columns(weight, scales, rows))
        add_constant(model.graph, f"{name}.scale", scales)
        add_constant(model.graph, f"{name}.zero", np.zeros(len(scales), dtype=np.int8))
    found = model.graph.initializers
    return found[f"{name}.int8"], found[f"{name}.scale"], found[f"{name}.zero"]
