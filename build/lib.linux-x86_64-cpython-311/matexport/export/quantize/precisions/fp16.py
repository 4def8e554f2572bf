"""fp16: weights and arithmetic of the parent's blocks in half precision, everything delicate in fp32.

A node computes in half precision if it depends on an embedding table or on pixels and is in a block whose values stay
well below 65504. These stay in fp32: nodes that do not depend on the tokens' vectors (rotary positions, masks);
statistics of a token (values with a last axis of 1: means, variances, reciprocals), and the squares that they are made
of; blocks in which a value came near the limit on the calibration texts; and the whole read-out (final norm, pooling,
heads, L2).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from matexport.errors import RequestError
from matexport.export.graph.edit import Floats, add_constant, drop_unused, iterate_inputs
from matexport.export.graph.traced import Traced
from matexport.export.quantize.observe import MASK_LEVEL
from matexport.export.quantize.sites import find_blocks, find_tables

#: The largest finite float16.
HALF_MAX = 65504.0

#: A block is kept in fp32 where a value came within this factor of the limit, since other texts may give larger values.
HEADROOM = 4.0

#: Replaces the least float32 of a mask: far below every score, and its sum with a score is finite in float16.
MASK_VALUE = -32752.0

#: Numbers converted at a time, since the table of a vocabulary of 260,000 tokens is a gigabyte.
CHUNK = 1 << 22

#: Operators that square or sum, whose results are the first to leave the range.
FULL_OPERATORS = frozenset({"Pow", "ReduceMean", "ReduceSum", "ReduceL2", "Sqrt", "Reciprocal", "CumSum", "Exp", "Log"})


def apply_half(traced: Traced, peaks: Mapping[str, float]) -> list[int]:
    """Rewrite a traced graph to fp16, in place.

    Args:
        peaks: name of a value -> the largest absolute number that it held on the calibration texts, in fp32.

    Returns:
        the numbers of the blocks that are kept in fp32, 0 for the embeddings, sorted.

    Raises:
        RequestError: the graph does not say the types of its values, as the TorchScript exporter leaves it, or has no
            embedding table or pixels with products behind them.
    """
    model, blocks = traced.model, find_blocks(traced)
    half = _find_half_nodes(traced, blocks)
    if not any(node.op_type in ("MatMul", "Conv") for node in half):
        why = (
            "the TorchScript exporter, which this parent needs, leaves a graph without types, so there is no telling "
            "what may be in half precision"
        )
        if not find_tables(traced, least_bytes=0):
            why = "nothing in the parent's blocks multiplies what an embedding table or an image gives"
        raise RequestError(f"fp16 was asked; {why}: ask for another precision")
    kept = sorted({blocks[node] for node in half if _overflows(node, half, peaks)})
    half = {node for node in half if blocks[node] not in kept}
    for node in list(model.graph):
        if node in half:
            _convert_inputs(model, node, half)
    for node in half:
        for value in node.outputs:
            if value.dtype is ir.DataType.FLOAT:
                value.type = ir.TensorType(ir.DataType.FLOAT16)
        if node.op_type == "Cast" and node.attributes.get_int("to", 0) == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT16))
    _widen_for_the_rest(model, half)
    drop_unused(model)
    return kept


def _find_half_nodes(traced: Traced, blocks: Mapping[ir.Node, int]) -> set[ir.Node]:
    """The nodes of the blocks that depend on the tokens' vectors, but for the delicate ones (see the module)."""
    half: set[ir.Node] = set(find_tables(traced, least_bytes=0))
    reached: set[ir.Value] = {value for node in half for value in node.outputs}
    reached |= {value for value in traced.model.graph.inputs if value.dtype is ir.DataType.FLOAT}
    for node in traced.model.graph:
        if node not in blocks or node in half or not any(value in reached for _, value in iterate_inputs(node)):
            continue
        reached |= {value for value in node.outputs if value.dtype is ir.DataType.FLOAT}
        if (
            node.op_type not in FULL_OPERATORS
            and not _is_square(node)
            and all(_is_vector(value) for value in node.outputs)
        ):
            half.add(node)
    return half


def _is_square(node: ir.Node) -> bool:
    return node.op_type == "Mul" and node.inputs[0] is node.inputs[1]


def _is_vector(value: ir.Value) -> bool:
    """Whether a value is float32 and no statistic of a token."""
    statistic = value.shape is not None and len(value.shape) > 0 and value.shape[-1] == 1
    return value.dtype is ir.DataType.FLOAT and not statistic


def _overflows(node: ir.Node, half: set[ir.Node], peaks: Mapping[str, float]) -> bool:
    """Whether a value that a node makes or takes over from fp32 comes near the limit, or a weight of it is beyond."""
    made = [*node.outputs, *(value for _, value in iterate_inputs(node) if value.producer() not in half)]
    if any(peaks.get(str(value.name), 0.0) * HEADROOM > HALF_MAX for value in made):
        return True
    return any(
        _find_peak(value) > HALF_MAX
        for _, value in iterate_inputs(node)
        if value.is_initializer() and value.dtype is ir.DataType.FLOAT
    )


def _find_peak(weight: ir.Value) -> float:
    """The largest absolute value of a weight, without the numbers that masks are made of."""
    assert weight.const_value is not None
    numbers = np.asarray(weight.const_value.numpy()).reshape(-1)
    peak = 0.0
    for start in range(0, numbers.size, CHUNK):
        sizes = np.abs(numbers[start : start + CHUNK])
        peak = max(peak, float(sizes.max(where=sizes < MASK_LEVEL, initial=0.0)))
    return peak


def _convert_inputs(model: ir.Model, node: ir.Node, half: set[ir.Node]) -> None:
    for place, value in list(iterate_inputs(node)):
        if value.dtype is not ir.DataType.FLOAT:  # shapes, masks and ids keep their types
            continue
        if value.is_initializer():
            node.replace_input_with(place, _half_weight(model, value))
        elif value.producer() not in half:
            node.replace_input_with(place, _half_value(model, value, node))


def _half_weight(model: ir.Model, value: ir.Value) -> ir.Value:
    """The weight in fp16. It is converted only when it is written, so that a model's weights are not held twice."""
    name = f"{value.name}.fp16"
    source = value.const_value
    assert source is not None

    def convert() -> ir.TensorProtocol:
        return ir.tensor(round_to_half(np.asarray(source.numpy(), dtype=np.float32)), name=name)

    tensor = ir.LazyTensor(convert, dtype=ir.DataType.FLOAT16, shape=source.shape, name=name)  # type: ignore[arg-type]
    return add_constant(model.graph, name, tensor)


def round_to_half(numbers: Floats) -> NDArray[np.float16]:
    """Round float32 to float16 of the same shape; numbers below the range become `MASK_VALUE`, above it `HALF_MAX`."""
    out = np.empty(numbers.size, dtype=np.float16)
    flat = numbers.reshape(-1)
    for start in range(0, flat.size, CHUNK):
        part = flat[start : start + CHUNK]
        lifted = np.where(part < -HALF_MAX, np.float32(MASK_VALUE), part)
        out[start : start + CHUNK] = np.minimum(lifted, np.float32(HALF_MAX))
    return out.reshape(numbers.shape)


def _half_value(model: ir.Model, value: ir.Value, before: ir.Node) -> ir.Value:
    """An fp32 value cast to fp16 right after it is made, once for all its readers; masks are lifted into the range."""
    lifted_name, name = f"{value.name}.lifted", f"{value.name}.fp16"
    for use in value.uses():
        if use.node.outputs[0].name == lifted_name:
            return next(iter(use.node.outputs[0].uses())).node.outputs[0]
    least = add_constant(model.graph, "half_mask", np.array(MASK_VALUE, dtype=np.float32))
    lift = ir.node("Max", [value, least])
    lifted = lift.outputs[0]
    lifted.name, lifted.type, lifted.shape = lifted_name, value.type, value.shape
    cast = ir.node("Cast", [lifted], {"to": int(ir.DataType.FLOAT16)})
    out = cast.outputs[0]
    out.name, out.type, out.shape = name, ir.TensorType(ir.DataType.FLOAT16), value.shape
    producer = value.producer()
    if producer is None:
        model.graph.insert_before(before, [lift, cast])
    else:
        model.graph.insert_after(producer, [lift, cast])
    return out


def _widen_for_the_rest(model: ir.Model, half: set[ir.Node]) -> None:
    """Cast fp16 values to fp32 for the nodes that read them and do not compute in half precision."""
    for node in list(model.graph):
        if node not in half:
            continue
        for value in node.outputs:
            readers = [use for use in value.uses() if use.node not in half]
            if value.dtype is not ir.DataType.FLOAT16 or not readers:
                continue
            cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)})
            out = cast.outputs[0]
            out.type, out.shape = ir.TensorType(ir.DataType.FLOAT), value.shape
            model.graph.insert_after(node, cast)
            for use in readers:
                use.node.replace_input_with(use.idx, out)
