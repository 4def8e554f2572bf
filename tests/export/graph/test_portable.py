"""Graphs for any engine: standard operators alone, each as the opset that is named defines it, and the same numbers.

What a small precision gives is compared with the same graph in onnxruntime's own operators; what it should give is
worked out in numpy by `test_int8` and `test_blocks`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from toys import Toy, constant, draw_rows, make_toy, observe_toy, run_model

from matexport.errors import RequestError
from matexport.export.graph.edit import assert_sound
from matexport.export.graph.portable import find_problem, make_portable
from matexport.export.graph.traced import Traced
from matexport.export.quantize.oldest import find_least_runtime
from matexport.export.quantize.precisions.blocks import apply_blocks
from matexport.export.quantize.precisions.fp16 import apply_half
from matexport.export.quantize.precisions.int8 import apply_int8

#: Rows of a weight are no whole number of blocks of 32, so that the last block is filled up.
WIDTH, HIDDEN = 80, 72
FEEDS = {"input_ids": np.arange(24).reshape(2, 12)}


def draw_toy(activation: str = "Gelu") -> Toy:
    blocks = [
        {f"up_{block}": draw_rows(WIDTH, HIDDEN, seed=block), f"down_{block}": draw_rows(HIDDEN, WIDTH, seed=block + 9)}
        for block in (1, 2)
    ]
    return make_toy(draw_rows(300, WIDTH), blocks, activation)


def quantize(toy: Toy, precision: str) -> ir.Model:
    rows = observe_toy(toy)
    traced = Traced(toy.model.clone(), toy.states)
    if precision == "int8":
        apply_int8(traced, rows)
    elif precision == "fp16":
        apply_half(traced, {})
    elif precision in ("q8", "q4"):
        four, eight = ([1, 2], [0]) if precision == "q4" else ([], [0, 1, 2])
        apply_blocks(traced, rows, four_bits=four, eight_bits=eight)
    return traced.model


def run_exactly(model: ir.Model, feeds: dict[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    """With products of blocks in fp32, which matexport's runtime asks for."""
    assert_sound(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    content = ir.serde.serialize_model(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def list_operators(model: ir.Model) -> set[str]:
    return {f"{node.domain}.{node.op_type}".removeprefix(".") for node in model.graph}


@pytest.mark.parametrize(
    ("precision", "opset", "version", "least"),
    [("fp32", 17, 8, "1.16"), ("fp16", 17, 8, "1.16"), ("int8", 17, 8, "1.16"), ("q8", 21, 10, "1.19"),
     ("q4", 21, 10, "1.19")],
)  # fmt: skip
def test_a_graph_is_of_the_standard_and_of_the_opset_that_it_names(
    precision: str, opset: int, version: int, least: str
) -> None:
    model = quantize(draw_toy(), precision)
    make_portable(model)
    assert_sound(model)
    assert (dict(model.graph.opset_imports), model.ir_version) == ({"": opset}, version)
    assert not any("." in name for name in list_operators(model))
    assert "Gelu" not in list_operators(model)
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    assert find_least_runtime(model) == least


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_vectors_are_the_same_bit_for_bit(precision: str) -> None:
    """onnxruntime fuses Erf's five nodes to the one; int8 products are whole numbers, and scaled once."""
    toy = draw_toy()
    before, after = quantize(toy, precision), quantize(toy, precision)
    make_portable(after)
    for left, right in zip(run_model(before, FEEDS), run_model(after, FEEDS), strict=True):
        np.testing.assert_array_equal(left, right)


def test_half_precision_is_the_same_to_its_rounding() -> None:
    toy = draw_toy()
    before, after = quantize(toy, "fp16"), quantize(toy, "fp16")
    make_portable(after)
    for left, right in zip(run_model(before, FEEDS), run_model(after, FEEDS), strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=2e-3 * np.abs(left).max())


@pytest.mark.parametrize("precision", ["q8", "q4"])
def test_blocks_are_multiplied_in_fp32_by_the_same_weights(precision: str) -> None:
    toy = draw_toy()
    before, after = quantize(toy, precision), quantize(toy, precision)
    for node in before.graph:
        if node.op_type == "MatMulNBits":
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 0)
    make_portable(after)
    for left, right in zip(run_model(before, FEEDS), run_exactly(after, FEEDS), strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-5 * np.abs(left).max())


@pytest.mark.parametrize("precision", ["q8", "q4"])
def test_weights_in_blocks_are_decoded_by_the_standard(precision: str) -> None:
    """By onnx's own reference implementation, against the codes as MatMulNBits has them, unpacked by hand."""
    toy = draw_toy()
    packed, plain = quantize(toy, precision), quantize(toy, precision)
    make_portable(plain)
    bits = 4 if precision == "q4" else 8
    products = [node for node in packed.graph if node.op_type == "MatMulNBits"]
    decoders = [node for node in plain.graph if node.op_type == "DequantizeLinear"]
    assert len(products) == len(decoders) == 4
    for product, decoder in zip(products, decoders, strict=True):
        codes, scales, zeros = (value.const_value.numpy() for value in product.inputs[1:])  # type: ignore[union-attr]
        if bits == 4:
            codes, zeros = (np.stack([array & 15, array >> 4], axis=-1) for array in (codes, zeros))
        depth, width = product.attributes.get_int("K"), product.attributes.get_int("N")
        blocks = -(-depth // 32)
        codes, zeros = codes.reshape(width, blocks, 32), zeros.reshape(width, -1)[:, :blocks, None]
        expected = ((codes.astype(np.float32) - zeros) * scales.reshape(width, blocks, 1)).reshape(width, -1)
        found = _decode(decoder)
        np.testing.assert_array_equal(found, expected[:, :depth].T)


def _decode(node: ir.Node) -> np.ndarray[Any, Any]:
    """What a DequantizeLinear gives, by onnx's reference implementation."""
    from onnx.reference import ReferenceEvaluator

    out = ir.Value(name="out", type=ir.TensorType(ir.DataType.FLOAT), shape=node.outputs[0].shape)
    copies = [constant_of(value) for value in node.inputs if value is not None]
    same = ir.Node("", "DequantizeLinear", copies, node.attributes.values(), outputs=[out])
    graph = ir.Graph([], [out], nodes=[same], initializers=copies, opset_imports={"": 21}, name="decode")
    model = ir.serde.serialize_model(ir.Model(graph, ir_version=10))
    (decoded,) = ReferenceEvaluator(model).run(None, {})
    return np.asarray(decoded)


def constant_of(value: ir.Value) -> ir.Value:
    assert value.const_value is not None
    return ir.Value(
        name=value.name, shape=value.shape, type=ir.TensorType(value.const_value.dtype), const_value=value.const_value
    )


def test_a_weight_that_two_products_share_is_stored_once() -> None:
    shared = {"up": draw_rows(WIDTH, HIDDEN), "down": draw_rows(HIDDEN, WIDTH, seed=1)}
    model = quantize(make_toy(draw_rows(300, WIDTH), [shared, shared]), "q4")
    make_portable(model)
    assert_sound(model)
    codes = [name for name in model.graph.initializers if name.endswith(".columns")]
    assert len(codes) == 2
    assert sum(node.op_type == "DequantizeLinear" for node in model.graph) == 4


def make_one(operator: str, *constants: np.ndarray[Any, Any], **attributes: int | str) -> ir.Model:
    """A graph of one node that takes (B, 4, 6) float32 and constants."""
    given = ir.Value(name="x", shape=ir.Shape(["batch_size", 4, 6]), type=ir.TensorType(ir.DataType.FLOAT))
    held = [constant(f"c{place}", array) for place, array in enumerate(constants)]
    node = ir.node(operator, [given, *held], attributes)
    out = node.outputs[0]
    out.name, out.type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([given], [out], nodes=[node], initializers=held, opset_imports={"": 20}, name="one")
    return ir.Model(graph, ir_version=10)


X = {"x": np.random.default_rng(0).standard_normal((2, 4, 6)).astype(np.float32)}


@pytest.mark.parametrize("operator", ["ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceL1"])
@pytest.mark.parametrize("axes", [[1], [-1], [0, -1]])
def test_reductions_keep_their_axes(operator: str, axes: list[int]) -> None:
    model = make_one(operator, np.array(axes), keepdims=1)
    dims: list[int | str] = ["batch_size", 4, 6]
    reduced = {axis % 3 for axis in axes}
    model.graph.outputs[0].shape = ir.Shape([1 if place in reduced else dim for place, dim in enumerate(dims)])
    expected = run_model(model, X)
    make_portable(model)
    (node,) = model.graph
    assert len(node.inputs) == (2 if operator == "ReduceSum" else 1)
    np.testing.assert_array_equal(run_model(model, X), expected)
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_by_its_definition(approximate: str) -> None:
    model = make_one("Gelu", approximate=approximate)
    model.graph.outputs[0].shape = ir.Shape(["batch_size", 4, 6])
    expected = run_model(model, X)
    make_portable(model)
    assert {"none": "Erf", "tanh": "Tanh"}[approximate] in list_operators(model)
    np.testing.assert_allclose(run_model(model, X), expected, rtol=1e-6, atol=5e-7)


@pytest.mark.parametrize("axis", [2, -1])
def test_equal_parts_are_not_counted(axis: int) -> None:
    """As ModernBERT splits what its feed-forward is gated with."""
    given = ir.Value(name="x", shape=ir.Shape(["batch_size", 4, 6]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("Split", [given], {"num_outputs": 2, "axis": axis}, num_outputs=2)
    for place, out in enumerate(node.outputs):
        out.name, out.type, out.shape = f"y{place}", ir.TensorType(ir.DataType.FLOAT), ir.Shape(["batch_size", 4, 3])
    model = ir.Model(ir.Graph([given], node.outputs, nodes=[node], opset_imports={"": 20}, name="one"), ir_version=10)
    expected = run_model(model, X)
    make_portable(model)
    assert "num_outputs" not in node.attributes
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    for left, right in zip(run_model(model, X), expected, strict=True):
        np.testing.assert_array_equal(left, right)


def test_what_opset_17_lacks_is_refused_by_name() -> None:
    with pytest.raises(
        RequestError, match=r"^the target portable was asked; the graph uses ai\.onnx\.Mish, which opset"
    ):
        make_portable(make_one("Mish"))
    with pytest.raises(RequestError, match=r"uses ai\.onnx\.Pad with 4 inputs, and opset 17 defines it otherwise"):
        make_portable(make_one("Pad", np.array([1, 1]), np.array(0, dtype=np.float32), np.array([1])))
    with pytest.raises(RequestError, match=r"uses ai\.onnx\.Split with num_outputs, which opset 17 lacks"):
        make_portable(make_one("Split", num_outputs=1, axis=0))  # of a batch, which may have any length


def test_an_operator_of_onnxruntimes_own_is_no_standard() -> None:
    model = quantize(draw_toy(), "q8")
    node = next(node for node in model.graph if node.op_type == "MatMulNBits")
    assert find_problem(node, 21) == "the graph uses com.microsoft.MatMulNBits, which is not in the ONNX standard"


@pytest.mark.parametrize(
    ("precision", "least"), [("fp32", "1.18"), ("fp16", "1.18"), ("int8", "1.18"), ("q8", "1.22"), ("q4", "1.18")]
)
def test_the_least_runtime_of_graphs_in_its_own_operators(precision: str, least: str) -> None:
    assert find_least_runtime(quantize(draw_toy(), precision)) == least


def test_embeddings_at_four_bits_need_a_newer_runtime() -> None:
    toy = make_toy(draw_rows(600, 64), [{"up": draw_rows(64, HIDDEN), "down": draw_rows(HIDDEN, 64, seed=1)}])
    traced = Traced(toy.model, toy.states)
    apply_blocks(traced, observe_toy(toy), four_bits=[0, 1], eight_bits=[])
    assert find_least_runtime(traced.model) == "1.23"
