"""The end of every graph: the leading coordinates, scaled to length 1, against the same in double precision."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from toys import run_model

from matexport.export.graph.edit import assert_sound
from matexport.export.trace import canonical
from matexport.export.trace.exits import MIN_NORM, append_exits
from matexport.spec.profile import Point

#: Half of the distance between two float32 numbers just above 1.
HALF_STEP = 2.0**-24


def make_exit(width: int, dim: int, *, normalize: bool = True) -> ir.Model:
    """(B, width) vectors -> the exit of one point."""
    given = ir.Value(name="L01", shape=ir.Shape(["batch_size", width]), type=ir.TensorType(ir.DataType.FLOAT))
    graph = ir.Graph([given], [], nodes=[], opset_imports={"": 20}, name="exit")
    append_exits(graph, {Point(1, dim): given}, normalize=normalize)
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("dim", [1, 3, 32, 384, 768, 4096])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e12])
def test_vectors_have_the_length_1_to_a_few_roundings(dim: int, scale: float) -> None:
    """A square, a sum, a root and a quotient are rounded; with ReduceL2, 768 coordinates are off five times as far."""
    rows = (np.random.default_rng(dim).standard_normal((64, dim + 5)) * scale).astype(np.float32)
    (found,) = run_model(make_exit(dim + 5, dim), {"L01": rows})
    exact = rows[:, :dim].astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    assert np.abs(found - exact).max() <= 4 * HALF_STEP
    assert (np.abs(found - exact) <= 4.5 * HALF_STEP * np.abs(exact)).all()


@pytest.mark.parametrize(
    ("length", "divisor"), [(0.0, MIN_NORM), (MIN_NORM / 4, MIN_NORM), (MIN_NORM * 4, MIN_NORM * 4)]
)
def test_a_vector_that_is_almost_zero_is_divided_by_the_least_length(length: float, divisor: float) -> None:
    """As torch.nn.functional.normalize does. The least length is under the root, and not added to it."""
    rows = np.array([[length, 0, 0, 9]], dtype=np.float32)
    (found,) = run_model(make_exit(4, 3), {"L01": rows})
    np.testing.assert_allclose(found, [[length / divisor, 0, 0]], rtol=1e-6)


def test_no_exit_asks_for_an_operator_that_others_lack() -> None:
    model = make_exit(8, 4)
    assert_sound(model)
    assert [node.op_type for node in model.graph] == ["Slice", "Mul", "ReduceSum", "Sqrt", "Max", "Div"]
    assert [node.op_type for node in make_exit(8, 4, normalize=False).graph] == ["Slice"]


@pytest.mark.parametrize("keepdims", [0, 1])
def test_a_length_inside_of_a_trace_is_spelt_the_same_way(keepdims: int) -> None:
    """Of a module behind the pooling that scales, say; its axes and what becomes of them stay."""
    given = ir.Value(name="x", shape=ir.Shape(["batch_size", 3, 16]), type=ir.TensorType(ir.DataType.FLOAT))
    axes = ir.Value(name="axes", const_value=ir.tensor(np.array([1], dtype=np.int64), name="axes"))
    node = ir.node("ReduceL2", [given, axes], {"keepdims": keepdims})
    out = node.outputs[0]
    out.name, out.type = "y", ir.TensorType(ir.DataType.FLOAT)
    out.shape = ir.Shape(["batch_size", 1, 16] if keepdims else ["batch_size", 16])
    graph = ir.Graph([given], [out], nodes=[node], initializers=[axes], opset_imports={"": 20}, name="lengths")
    model = ir.Model(graph, ir_version=10)
    rows = np.random.default_rng(0).standard_normal((2, 3, 16)).astype(np.float32)
    expected = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=bool(keepdims))
    canonical._spell_lengths(model)
    assert [node.op_type for node in model.graph] == ["Mul", "ReduceSum", "Sqrt"]
    (found,) = run_model(model, {"x": rows})
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=3e-7)
