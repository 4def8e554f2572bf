"""What the operators of geometry give is what onnxruntime gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from matexport.family.graph_file import parse_graph
from matexport.runtime.engines.native.geometry import known
from matexport.runtime.engines.native.geometry.known import CASES, Constant, Input, Worked, find_reach, make_case
from matexport.runtime.engines.native.geometry.node import Node, UnknownGraphError
from matexport.runtime.engines.native.geometry.operators import MAX_NUMBERS, OPERATORS
from matexport.runtime.engines.native.tensors import make_reader

F = np.array([[1.5, -2.0, 0.25], [3.0, 0.5, -1.25]], np.float32)
G = np.array([[2.0, 0.5, -4.0]], np.float32)
POSITIVE = np.abs(F) + np.float32(0.5)
I = np.array([[7, -7, 3], [2, 5, -9]], np.int64)  # noqa: E741
J = np.array([[2, 2, -4]], np.int64)
YES, NO = np.array([[True, False, True]]), np.array([[True], [False]])


def ints(*numbers: int) -> Any:
    return np.array(numbers, np.int64)


def one(number: float, kind: Any = np.int64) -> Any:
    return np.array(number, kind)


#: (operator, inputs, attributes): every operator, in the forms that graphs have.
FORMS: list[tuple[str, list[Any], dict[str, Any]]] = [
    *((name, [F, G], {}) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Less", "LessOrEqual", "Greater")),
    *((name, [I, J], {}) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Mod", "GreaterOrEqual", "Equal")),
    ("Max", [F, G, F * 2], {}),
    ("Mod", [F, G], {"fmod": 1}),
    ("Pow", [POSITIVE, one(2.0, np.float32)], {}),
    ("Pow", [F, one(-0.5, np.float32)], {}),
    *((name, [YES, NO], {}) for name in ("And", "Or", "Xor")),
    ("Not", [YES], {}),
    *((name, [F], {}) for name in ("Abs", "Neg", "Sign", "Cos", "Sin", "Exp", "Floor", "Ceil", "Round", "Identity")),
    ("Round", [np.array([0.5, 1.5, 2.5, -0.5], np.float32)], {}),
    *((name, [POSITIVE], {}) for name in ("Log", "Sqrt", "Reciprocal")),
    ("IsNaN", [np.array([np.nan, 1, np.inf], np.float32)], {}),
    ("Where", [YES, F, G], {}),
    *(("Cast", [F], {"to": to}) for to in (1, 6, 7, 9)),
    ("Cast", [YES], {"to": 1}),
    ("Clip", [F, one(-1, np.float32), one(1, np.float32)], {}),
    ("Clip", [F, one(-1, np.float32)], {}),
    ("ArgMax", [F], {"axis": 1, "keepdims": 0}),
    ("ArgMin", [I], {"axis": 0}),
    ("CumSum", [I, one(1)], {}),
    ("Concat", [F, G], {"axis": 0}),
    ("Split", [F, ints(1, 2)], {"axis": 1}),
    ("Split", [np.arange(7, dtype=np.float32)], {"axis": 0, "num_outputs": 3}),
    ("Shape", [F], {}),
    ("Shape", [F], {"start": 1, "end": 2}),
    ("Shape", [F], {"start": -1}),
    ("Reshape", [F, ints(3, -1)], {}),
    ("Reshape", [F, ints(0, 1, -1)], {}),
    ("Transpose", [F], {"perm": [1, 0]}),
    ("Transpose", [F[None]], {}),
    ("Squeeze", [G, ints(0)], {}),
    ("Squeeze", [G[None]], {}),
    ("Unsqueeze", [F, ints(0, -1)], {}),
    ("Expand", [G, ints(4, 1, 3)], {}),
    ("Tile", [F, ints(2, 1)], {}),
    ("Slice", [F, ints(0), ints(-1), ints(1)], {}),
    ("Slice", [F, ints(0, 0), ints(9, 3), ints(0, 1), ints(1, 2)], {}),
    ("Gather", [F, ints(1, 0)], {"axis": 0}),
    ("Gather", [F, one(-1)], {"axis": 1}),
    ("GatherElements", [F, ints(1, 0)[None].repeat(2, 0)], {"axis": 1}),
    ("GatherND", [F, np.array([[[0, 1]], [[1, 2]]])], {}),
    ("Range", [one(1), one(9), one(3)], {}),
    ("Range", [one(0, np.float32), one(1, np.float32), one(0.25, np.float32)], {}),
    ("ConstantOfShape", [ints(2, 3)], {}),
    ("ConstantOfShape", [ints(2, 3)], {"value": numpy_helper.from_array(np.array([5], np.int64))}),
    ("ConstantOfShape", [ints(2)], {"value": helper.make_tensor("v", 9, [1], [True])}),
    ("Trilu", [np.ones((3, 4), np.float32), one(1)], {}),
    ("Trilu", [np.ones((3, 4), np.float32)], {"upper": 0}),
    ("Pad", [F, ints(0, 1, 2, 0)], {}),
    ("Pad", [F, ints(0, 1, 2, 0), one(7, np.float32)], {}),
    ("MatMul", [F, F.T.copy()], {}),
    *((name, [F, ints(1)], {"keepdims": 0}) for name in ("ReduceMax", "ReduceMin", "ReduceMean", "ReduceSum")),
    *((name, [I, ints(0)], {}) for name in ("ReduceMax", "ReduceSum", "ReduceProd")),
    ("ReduceSum", [F], {"keepdims": 0}),
    ("ReduceSum", [F], {"noop_with_empty_axes": 1}),
]  # fmt: skip


def make_model(operator: str, inputs: list[Any], attributes: dict[str, Any]) -> onnx.ModelProto:
    names = [f"in{place}" for place in range(len(inputs))]
    count = len(inputs[1]) if operator == "Split" and len(inputs) > 1 else attributes.get("num_outputs", 1)
    outputs = [f"out{place}" for place in range(count)]
    node = helper.make_node(operator, names, outputs, **attributes)
    values = [helper.make_empty_tensor_value_info(name) for name in outputs]
    tensors = [
        numpy_helper.from_array(np.array(array, order="C"), name) for array, name in zip(inputs, names, strict=True)
    ]
    graph = helper.make_graph([node], "one", [], values, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_every_operator_has_a_form() -> None:
    assert {name for name, _, _ in FORMS} == set(OPERATORS)


@pytest.mark.parametrize("place", range(len(FORMS)), ids=lambda place: f"{FORMS[place][0]}-{place}")
def test_gives_what_onnxruntime_gives(place: int) -> None:
    operator, inputs, attributes = FORMS[place]
    content = make_model(operator, inputs, attributes).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    expected = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"]).run(None, {})
    model = parse_graph("one", content)
    read = make_reader("one", {})
    constants = {tensor.name: Constant(tensor, read) for tensor in model.graph.initializer}
    node = Node(model.graph.node[0])
    for part, wanted in enumerate(expected):
        found = Worked(node, [constants[name] for name in node.inputs], part).work_out(CASES[0])
        assert found.dtype == wanted.dtype
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


def work(operator: str, inputs: list[Any], **attributes: Any) -> Any:
    model = parse_graph("one", make_model(operator, inputs, attributes).SerializeToString())
    constants = {tensor.name: Constant(tensor, make_reader("one", {})) for tensor in model.graph.initializer}
    node = Node(model.graph.node[0])
    return Worked(node, [constants[name] for name in node.inputs]).work_out(CASES[0])


@pytest.mark.parametrize(
    ("operator", "inputs"),
    [
        ("Expand", [F, ints(MAX_NUMBERS, 2, 3)]),
        ("ConstantOfShape", [ints(MAX_NUMBERS + 1)]),
        ("Range", [one(0), one(MAX_NUMBERS + 1), one(1)]),
        ("Tile", [F, ints(MAX_NUMBERS, 1)]),
        ("Pad", [F, ints(0, 0, MAX_NUMBERS, 0)]),
        ("Add", [np.zeros((1 << 13, 1), np.float32), np.zeros((1, 1 << 13), np.float32)]),
        ("MatMul", [np.zeros((1 << 13, 1), np.float32), np.zeros((1, 1 << 13), np.float32)]),
        ("Gather", [np.zeros((2, 1 << 13), np.float32), np.zeros(1 << 13, np.int64)]),
    ],
)
def test_what_would_be_large_is_refused_before_it_is_made(operator: str, inputs: list[Any]) -> None:
    with pytest.raises(UnknownGraphError, match="too large"):
        work(operator, inputs)


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes"),
    [
        ("Slice", [F, ints(2), ints(0), ints(1), ints(-1)], {}),
        ("CumSum", [I, one(1)], {"exclusive": 1}),
        ("ArgMax", [F], {"select_last_index": 1}),
        ("Pad", [F, ints(0, 1, 2, 0)], {"mode": "edge"}),
        ("GatherND", [F[None], ints(0, 1)[None]], {"batch_dims": 1}),
        ("Cast", [F], {"to": 10}),
        ("Reshape", [F, ints(4, 4)], {}),
        ("Gather", [F, ints(9)], {}),
    ],
)
def test_forms_that_are_not_known_are_refused(operator: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
    with pytest.raises(UnknownGraphError, match=operator):
        work(operator, inputs, **attributes)


def test_a_window_is_seen_past() -> None:
    def constant(array: Any) -> Constant:
        tensor = numpy_helper.from_array(array, "c")
        return Constant(parse_tensor(tensor), make_reader("one", {}))

    assert find_reach([constant(one(4)), constant(one(-3.4e38, np.float32))], 99) is None
    assert find_reach([constant(one(-40))], 99) == 89
    assert find_reach([constant(np.zeros((1, 50), np.int64))], 99) == 50
    with pytest.raises(UnknownGraphError, match="109 tokens"):
        find_reach([constant(one(50))], 99)


def parse_tensor(tensor: onnx.TensorProto) -> Any:
    graph = helper.make_graph([], "one", [], [helper.make_empty_tensor_value_info("c")], [tensor])
    return parse_graph("one", helper.make_model(graph).SerializeToString()).graph.initializer[0]


def test_cases_are_padded_on_either_side() -> None:
    assert {case.mask.shape for case in CASES} == {(3, 12), (2, 7), (1, 1)}
    assert make_case(9).mask.tolist() == [[False] + [True] * 8]
    assert make_case(9, left=False).mask.tolist() == [[True] * 8 + [False]]
    assert make_case(1).mask.tolist() == [[True]]


def test_what_is_made_for_a_longer_batch_is_bounded_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """One node after the other, each of a size that is let through."""
    double = Node(helper.make_node("Add", ["x", "x"], ["y"]))
    value: Any = Input("attention_mask")
    for _ in range(20):
        value = Worked(double, [value, value])
    case = make_case(1000)
    assert value.work_out(case)[0, -1] == 2**20
    assert len(case.made) == 20
    monkeypatch.setattr(known, "MAX_BYTES", 19 * 8000)
    with pytest.raises(UnknownGraphError, match="too large"):
        value.work_out(make_case(1000))
