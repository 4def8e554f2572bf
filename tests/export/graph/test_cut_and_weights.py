"""Cutting an exit and ordering the weights, on graphs small enough to check by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from safetensors.numpy import load_file

from matexport.export.graph.cut import cut_exit
from matexport.export.graph.edit import assert_sound, find_needed_nodes, write_graph
from matexport.export.graph.weights import measure_prefix, order_weights, write_nested_weights
from matexport.family.weights_file import read_header
from matexport.spec.profile import Point

WIDTH = 32  # 32 × 32 × 4 bytes = 4 KiB: large enough to be external


def make_model(blocks: int = 3) -> ir.Model:
    """x -> x W0 -> ... with an exit after each block through one shared head; exits come last, as in a trace."""
    rng = np.random.default_rng(0)

    def weight(name: str) -> ir.Value:
        tensor = ir.tensor(rng.standard_normal((WIDTH, WIDTH)).astype(np.float32), name=name)
        return ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor)

    x = ir.Value(name="x", shape=ir.Shape(["batch", WIDTH]), type=ir.TensorType(ir.DataType.FLOAT))
    weights = [weight(f"block.{index}") for index in range(blocks)]
    head, unused = weight("head"), weight("pooler")
    nodes, states = [], [x]
    for matrix in weights:
        nodes.append(ir.node("MatMul", [states[-1], matrix]))
        states.append(nodes[-1].outputs[0])
    nodes.append(ir.node("MatMul", [states[-1], unused]))  # reached by no exit
    outputs = []
    for layers, state in enumerate(states[1:], start=1):
        nodes.append(ir.node("MatMul", [state, head]))
        nodes[-1].outputs[0].name = Point(layers, WIDTH).name
        outputs.append(nodes[-1].outputs[0])
    for value in outputs:
        value.shape, value.type = ir.Shape(["batch", WIDTH]), ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [x], outputs, nodes=nodes, initializers=[*weights, head, unused], opset_imports={"": 20}, name="small"
    )
    return ir.Model(graph, ir_version=10)


POINTS = [Point(layers, WIDTH) for layers in (1, 2, 3)]


def test_a_cut_holds_what_its_exit_needs_and_leaves_the_rest() -> None:
    model = make_model()
    part = cut_exit(model, "L02-D032", name="out")
    assert_sound(part)
    assert_sound(model)
    assert sorted(part.graph.initializers) == ["block.0", "block.1", "head"]
    assert [value.name for value in part.graph.outputs] == ["out"]
    assert len(list(part.graph)) == 3
    assert len(list(model.graph)) == 7  # the traced graph is as it was
    assert [value.name for value in model.graph.outputs] == [point.name for point in POINTS]


def test_a_cut_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ValueError, match="no output 'L09-D032'"):
        cut_exit(make_model(), "L09-D032", name="out")


def test_nodes_that_a_subgraph_reads_from_outside_are_kept() -> None:
    x = ir.Value(name="x", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.FLOAT))
    flag = ir.node("Cast", [x], {"to": 9})
    outside = ir.node("Neg", [x])
    inner = ir.node("Abs", [outside.outputs[0]])
    branch = ir.Graph([], inner.outputs, nodes=[inner], name="then")
    other = ir.node("Abs", [x])
    otherwise = ir.Graph([], other.outputs, nodes=[other], name="else")
    choice = ir.Node(
        "",
        "If",
        [flag.outputs[0]],
        [ir.AttrGraph("then_branch", branch), ir.AttrGraph("else_branch", otherwise)],
    )
    assert outside in find_needed_nodes(choice.outputs)


def test_weights_are_ordered_by_when_a_shallower_model_needs_them() -> None:
    # The head is used last in the graph, but the one-block model needs it: it comes right after block 0.
    names = [value.name for value in order_weights(make_model(), POINTS)]
    assert names == ["block.0", "head", "block.1", "block.2"]
    deep_only = [value.name for value in order_weights(make_model(), POINTS[2:])]
    assert deep_only == ["block.0", "block.1", "block.2", "head"]


def test_a_prefix_of_the_weights_runs_its_profiles_and_no_deeper_one(tmp_path: Path) -> None:
    model = make_model()
    plain = {value.name: value.const_value.numpy() for value in model.graph.initializers.values()}  # type: ignore[union-attr]
    header = write_nested_weights(model, POINTS, tmp_path / "w.safetensors")
    stored = load_file(tmp_path / "w.safetensors")
    assert set(stored) == {"block.0", "block.1", "block.2", "head"}
    assert all(np.array_equal(stored[name], plain[name]) for name in stored)
    assert read_header(tmp_path / "w.safetensors") == header

    prefixes = []
    for point in POINTS:
        part = cut_exit(model, point.name, name="out")
        assert_sound(part)
        prefixes.append(measure_prefix(part, header))
        write_graph(part, tmp_path / f"{point.name}.onnx")
    assert prefixes == [header.data_start + count * WIDTH * WIDTH * 4 for count in (2, 3, 4)]

    x = np.random.default_rng(1).standard_normal((5, WIDTH)).astype(np.float32)
    expected = x @ plain["block.0"] @ plain["block.1"] @ plain["head"]
    with (tmp_path / "w.safetensors").open("r+b") as file:
        file.truncate(prefixes[1])
    session = onnxruntime.InferenceSession(tmp_path / "L02-D032.onnx")
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-3, atol=1e-3)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    with pytest.raises(Exception, match=r"block\.2|out of bounds|external"):
        onnxruntime.InferenceSession(tmp_path / "L03-D032.onnx", options)
