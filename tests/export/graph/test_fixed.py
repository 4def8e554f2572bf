"""One shape: what follows from it is worked out, weights on disk stay, and what is masked stays masked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from matexport.errors import RequestError
from matexport.export.graph.edit import assert_sound, write_graph
from matexport.export.graph.fixed import fix_shape, hold_token_types
from matexport.export.graph.weights import write_nested_weights
from matexport.spec.profile import Point, Target

WIDTH, PLACES, TOKENS = 16, 64, 24
RNG = np.random.default_rng(0)
TABLES = {
    name: RNG.standard_normal((rows, WIDTH)).astype(np.float32)
    for name, rows in (("words", 50), ("places", PLACES), ("types", 2))
}


def make_model(*measured: onnx.NodeProto) -> ir.Model:
    """Words, places counted by Range up to the length of the ids, and types; the mean of what is attended to."""
    numbers = {"zero": np.int64(0), "one": np.int64(1), "second": np.int64(1), "last": np.array([2])}
    numbers |= {"axis": np.array([1])}
    node = helper.make_node
    nodes = [
        node("Shape", ["input_ids"], ["shape"]),
        node("Gather", ["shape", "second"], ["length"]),
        node("Range", ["zero", "length", "one"], ["order"]),
        node("Expand", ["order", "shape"], ["spread"]),
        node("Gather", ["words", "input_ids"], ["word"]),
        node("Gather", ["places", "spread"], ["place"]),
        node("Gather", ["types", "token_type_ids"], ["type"]),
        node("Add", ["word", "place"], ["both"]),
        node("Add", ["both", "type"], ["all"]),
        node("Cast", ["attention_mask"], ["numbers"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["numbers", "last"], ["column"]),
        node("Mul", ["all", "column"], ["kept"]),
        node("ReduceSum", ["kept", "axis"], ["total"], keepdims=0),
        node("ReduceSum", ["numbers", "axis"], ["count"], keepdims=1),
        *(measured or [node("Div", ["total", "count"], ["L00-D016"])]),
    ]
    inputs = ("input_ids", "attention_mask", "token_type_ids")
    axes = ["batch_size", "sequence_length"]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.INT64, axes) for name in inputs],
        [helper.make_tensor_value_info("L00-D016", TensorProto.FLOAT, ["batch_size", WIDTH])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in {**TABLES, **numbers}.items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def list_operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def run(path: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(onnxruntime.InferenceSession(path).run(None, feeds)[0])


def test_what_follows_from_the_shape_is_worked_out(tmp_path: Path) -> None:
    model = make_model()
    write_nested_weights(model, [Point(0, WIDTH)], tmp_path / "weights.fp32.safetensors")
    hold_token_types(model)
    assert_sound(model)
    fix_shape(model, TOKENS, Target.RKNN)
    assert_sound(model)
    operators = list_operators(model)
    assert not {"Shape", "Range", "Expand", "ConstantOfShape", "Constant", "Identity"} & set(operators)
    assert operators.count("Gather") == 2, "rows of weights on disk are looked up; that of the types is small"
    assert [value.name for value in model.graph.inputs] == ["input_ids", "attention_mask"]
    external = {value.name for value in model.graph.initializers.values()
                if isinstance(value.const_value, ir.ExternalTensor)}  # fmt: skip
    assert external == {"words", "places"}
    write_graph(model, tmp_path / "fixed.onnx")
    onnx.checker.check_model(tmp_path / "fixed.onnx", full_check=True)
    ids, mask = np.zeros((1, TOKENS), np.int64), np.zeros((1, TOKENS), np.int64)
    ids[0, :5], mask[0, :5] = [3, 7, 49, 1, 2], 1
    found = run(tmp_path / "fixed.onnx", {"input_ids": ids, "attention_mask": mask})
    states = TABLES["words"][ids[0, :5]] + TABLES["places"][:5] + TABLES["types"][0]
    np.testing.assert_allclose(found[0], states.mean(axis=0), rtol=1e-6, atol=1e-6)


def test_other_lengths_are_refused_by_the_graph(tmp_path: Path) -> None:
    model = make_model()
    hold_token_types(model)
    fix_shape(model, TOKENS, Target.LITERT)
    write_graph(model, tmp_path / "fixed.onnx")
    for shape in ((1, TOKENS - 1), (2, TOKENS)):
        feeds = dict.fromkeys(("input_ids", "attention_mask"), np.ones(shape, np.int64))
        with pytest.raises(Exception, match="invalid dimensions"):
            run(tmp_path / "fixed.onnx", feeds)


def test_token_types_are_zeros_of_any_length(tmp_path: Path) -> None:
    model = make_model()
    write_graph(make_model(), tmp_path / "whole.onnx")
    hold_token_types(model)
    hold_token_types(model)  # there are none now
    assert_sound(model)
    write_graph(model, tmp_path / "held.onnx")
    for length in (3, 9):
        feeds = {"input_ids": RNG.integers(0, 50, (2, length)), "attention_mask": np.ones((2, length), np.int64)}
        whole = run(tmp_path / "whole.onnx", {**feeds, "token_type_ids": np.zeros((2, length), np.int64)})
        np.testing.assert_array_equal(run(tmp_path / "held.onnx", feeds), whole)


def test_a_length_that_a_text_decides_is_refused() -> None:
    """How many of its tokens are attended to, found by NonZero: a converter would have to lay out any number."""
    model = make_model(
        helper.make_node("NonZero", ["attention_mask"], ["attended"]),
        helper.make_node("Shape", ["attended"], ["found"], start=1, end=2),
        helper.make_node("Cast", ["found"], ["many"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["total", "many"], ["L00-D016"]),
    )
    hold_token_types(model)
    with pytest.raises(
        RequestError, match=r"^the target rknn was asked; a length in the graph is only known when it ru"
    ):
        fix_shape(model, TOKENS, Target.RKNN)
