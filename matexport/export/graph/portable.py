"""The same graph for any engine: operators of the ONNX standard alone, of opset 17 where that has them.

    MatMulIntegerToFloat -> MatMulInteger, Cast, Mul          MatMulNBits -> DequantizeLinear in blocks, MatMul
    Gelu -> its definition with Erf (or Tanh)                 axes of Reduce* -> an attribute
    Split into equal parts -> the same, which says not how many

What is computed stays; only the products of weights in blocks leave room for rounding, since an engine may take a token
in 8 bits for them (onnxruntime does unless `session.qdq_matmulnbits_accuracy_level` is 0, as it is in matexport).

Blocks are the one thing that opset 17 has no operator for: DequantizeLinear takes them from opset 21 on, which
onnxruntime does from 1.19 on. The same by Cast, Sub and Mul would do with opset 17, but a runtime works out such
constants when it loads a graph, one tensor of float32 for each step: four times the memory of the fp32 model. The
DequantizeLinear onnxruntime knows: it multiplies by the blocks as they are. So q8 and q4 have opset 21, all else 17.

Every node is held to its operator's definition in the opset that the graph names; what does not fit is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from matexport.errors import RequestError
from matexport.export.graph.edit import Inserter, add_constant, drop_unused, read_weight, replace_node
from matexport.spec.profile import Target

#: The opset and the IR version of graphs without products of blocks, and of those with them.
PLAIN, BLOCKED = (17, 8), (21, 10)

#: The first opset in which the axes of all reductions are an input.
AXES_OPSET = 18

Bytes = NDArray[np.uint8]


def make_portable(model: ir.Model, target: Target = Target.PORTABLE) -> None:
    """Spell a graph for any engine, in place. Weights in blocks must be in memory; others may lie on disk.

    Args:
        target: what messages say was asked for.

    Raises:
        RequestError: it has an operator that the opset lacks and that has no other spelling here.
    """
    graph, rooms = model.graph, dict(model.graph.opset_imports)
    opset, version = BLOCKED if any(node.op_type == "MatMulNBits" for node in graph) else PLAIN
    for node in list(graph):
        if node.op_type in SPELLINGS:
            SPELLINGS[node.op_type](graph, node)
        elif opset < AXES_OPSET and node.op_type.startswith("Reduce") and node.op_type != "ReduceSum":
            _name_axes(node)
        elif opset < AXES_OPSET and node.op_type == "Split":
            _count_parts(node)
    drop_unused(model)
    model.ir_version = version
    graph.opset_imports.clear()
    graph.opset_imports[""] = opset
    for node in graph:
        if problem := find_problem(node, opset):
            raise RequestError(
                f"the target {target} was asked; {problem} (it was traced for opset {rooms.get('')}): ask for the "
                "target onnxruntime"
            )


def find_problem(node: ir.Node, opset: int) -> str | None:
    """Why a node is none of the ONNX standard's, as an opset defines its operator; None where it is one."""
    name = f"the graph uses {node.domain or 'ai.onnx'}.{node.op_type}"
    if node.domain not in ("", "ai.onnx"):
        return f"{name}, which is not in the ONNX standard"
    try:
        schema = onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError:
        return f"{name}, which opset {opset} lacks"
    if not schema.min_input <= len(node.inputs) <= schema.max_input:
        return f"{name} with {len(node.inputs)} inputs, and opset {opset} defines it otherwise"
    unknown = sorted(set(node.attributes) - set(schema.attributes))
    return f"{name} with {unknown[0]}, which opset {opset} lacks" if unknown else None


def _name_axes(node: ir.Node) -> None:
    """The axes of a reduction as an attribute; the value stays where it is no constant, and is refused later."""
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if axes is None or axes.const_value is None:
        return
    node.attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in axes.const_value.numpy().reshape(-1)])
    node.attributes.pop("noop_with_empty_axes", None)
    node.resize_inputs(1)


def _count_parts(node: ir.Node) -> None:
    """Equal parts go without saying; how many unequal ones there are stays, and is refused later."""
    source, axis = node.inputs[0], node.attributes.get_int("axis", 0)
    dim = source.shape[axis] if source is not None and source.shape is not None else None
    if isinstance(dim, int) and dim % len(node.outputs) == 0:
        node.attributes.pop("num_outputs", None)


def _spell_gelu(graph: ir.Graph, node: ir.Node) -> None:
    """x / 2 * (1 + erf(x / sqrt(2))), or its approximation by tanh.

    In the order in which onnxruntime knows them and fuses them again: with x / 2 first, it does so whatever made x.
    """
    source, out = node.inputs[0], node.outputs[0]
    assert source is not None
    here = Inserter(graph, node)

    def hold(name: str, number: float) -> ir.Value:
        half = out.dtype is ir.DataType.FLOAT16
        array = np.array(number, dtype=np.float16 if half else np.float32)
        return add_constant(graph, f"gelu_{name}{'_half' if half else ''}", array)

    def step(operator: str, *inputs: ir.Value) -> ir.Value:
        return here.add(operator, inputs, like=out)

    if node.attributes.get_string("approximate", "none") == "tanh":
        cube = step("Mul", hold("cubed", 0.044715), step("Pow", source, hold("three", 3.0)))
        inner = step("Tanh", step("Mul", hold("root", (2 / np.pi) ** 0.5), step("Add", source, cube)))
    else:
        inner = step("Erf", step("Div", source, hold("root_2", 2**0.5)))
    both = step("Mul", source, hold("half", 0.5)), step("Add", inner, hold("one", 1.0))
    replace_node(graph, node, step("Mul", *both))


def _spell_integer_product(graph: ir.Graph, node: ir.Node) -> None:
    """(codes - zero) W as whole numbers, then times the scale of the codes and of each column of W."""
    coded, weight, unit, scales, zero, _ = node.inputs
    out = node.outputs[0]
    assert unit is not None
    assert scales is not None
    here = Inserter(graph, node)
    whole = here.add("MatMulInteger", [coded, weight, zero], like=out, dtype=ir.DataType.INT32)
    numbers = here.add("Cast", [whole], {"to": int(ir.DataType.FLOAT)}, like=out, dtype=ir.DataType.FLOAT)
    steps = add_constant(graph, f"{scales.name}.{unit.name}", read_weight(scales) * read_weight(unit))
    replace_node(graph, node, here.add("Mul", [numbers, steps], like=out))


def _spell_block_product(graph: ir.Graph, node: ir.Node) -> None:
    """The weight, (K, N) codes with a scale and a zero point for each block of rows, and a product with it."""
    source, codes, scales, zeros = node.inputs
    depth, width, bits, block = (node.attributes.get_int(name, 0) for name in ("K", "N", "bits", "block_size"))
    assert codes is not None
    assert scales is not None
    assert zeros is not None
    name = f"{codes.name}.columns"
    if name not in graph.initializers:
        rows = -(-depth // block)
        columns = _unpack(_read_bytes(codes), bits).reshape(width, rows * block)[:, :depth].T
        points = _unpack(_read_bytes(zeros), bits).reshape(width, -1)[:, :rows].T
        add_constant(graph, name, _pack(columns, bits, name))
        add_constant(graph, f"{name}.scale", np.ascontiguousarray(read_weight(scales).reshape(width, rows).T))
        add_constant(graph, f"{name}.zero", _pack(points, bits, f"{name}.zero"))
    here = Inserter(graph, node)
    stored = [graph.initializers[part] for part in (name, f"{name}.scale", f"{name}.zero")]
    weight = here.add("DequantizeLinear", stored, {"axis": 0, "block_size": block}, like=stored[0], dtype=_FLOAT)
    replace_node(graph, node, here.add("MatMul", [source, weight], like=node.outputs[0]))


_FLOAT = ir.DataType.FLOAT


def _read_bytes(value: ir.Value) -> Bytes:
    assert value.const_value is not None
    array: Bytes = value.const_value.numpy()
    return array


def _unpack(codes: Bytes, bits: int) -> Bytes:
    """Codes as bytes of their own; of 4 bits, the first of two lies in the low half of a byte."""
    if bits == 8:
        return codes
    return np.stack([codes & np.uint8(15), codes >> np.uint8(4)], axis=-1).reshape(*codes.shape[:-1], -1)


def _pack(codes: Bytes, bits: int, name: str) -> NDArray[np.uint8] | ir.TensorProtocol:
    """Codes as ONNX stores them, row by row; two of 4 bits share a byte, the first in its low half."""
    codes = np.ascontiguousarray(codes)
    if bits == 8:
        return codes
    flat = np.pad(codes.reshape(-1), (0, codes.size % 2))
    packed = flat[0::2] | (flat[1::2] << np.uint8(4))
    return ir.PackedTensor(packed, ir.DataType.UINT4, shape=ir.Shape(codes.shape), name=name)


#: Operator -> what spells it in others, in place.
SPELLINGS: Mapping[str, Callable[[ir.Graph, ir.Node], None]] = {
    "Gelu": _spell_gelu,
    "MatMulIntegerToFloat": _spell_integer_product,
    "MatMulNBits": _spell_block_product,
}
