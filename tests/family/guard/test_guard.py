"""What a graph may hold and how large it may make its tensors: graphs that no export writes, in standard operators.

Each is added to a sound graph of a family that is signed again, so that every digest is right, and is refused before
any session exists.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from forge import reseal
from onnx import TensorProto, helper, numpy_helper
from places import GOLDEN

from matexport.errors import FamilyError
from matexport.family.guard.operators import OPERATORS
from matexport.family.integrity import check_family
from matexport.family.manifest import load_family

GRAPH = "L01-D008.fp32.onnx"
Change = Callable[[onnx.GraphProto], object]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "schema1", tmp_path / "family"))


def change_graph(family: Path, change: Change) -> None:
    model = onnx.load(family / GRAPH, load_external_data=False)
    change(model.graph)
    (family / GRAPH).write_bytes(model.SerializeToString())
    reseal(family)


def add(graph: onnx.GraphProto, operator: str, inputs: list[str], **attributes: object) -> str:
    """A node in front of all others: the name of its output."""
    name = f"made_{len(graph.node)}"
    graph.node.insert(0, helper.make_node(operator, inputs, [name], name=f"node_{name}", **attributes))
    return name


def hold(graph: onnx.GraphProto, *numbers: int) -> str:
    """The name of a constant."""
    name = f"held_{len(graph.initializer)}"
    graph.initializer.append(numpy_helper.from_array(np.array(numbers, np.int64), name))
    return name


def append(graph: onnx.GraphProto, operator: str, inputs: list[str]) -> str:
    """A node behind all others."""
    name = f"made_{len(graph.node)}"
    graph.node.append(helper.make_node(operator, inputs, [name], name=f"node_{name}"))
    return name


def grow_by_arithmetic(graph: onnx.GraphProto) -> None:
    append(graph, "ConstantOfShape", [append(graph, "Mul", [hold(graph, 100_000), hold(graph, 100_000)])])


def grow_by_lengths(graph: onnx.GraphProto) -> None:
    shape = append(graph, "Shape", ["input_ids"])
    append(graph, "Expand", [hold(graph, 1), append(graph, "Concat", [shape, shape, shape])])
    graph.node[-2].attribute.append(helper.make_attribute("axis", 0))


def grow_by_steps(graph: onnx.GraphProto) -> None:
    """Each is allowed alone: the second is as wide as the first made it."""
    first = append(graph, "Expand", [hold(graph, 1), hold(graph, 1_000_000)])
    wide = append(graph, "Shape", [first])
    append(graph, "Expand", [hold(graph, 1), append(graph, "Mul", [wide, wide])])


def grow_by_what_cannot_be_followed(graph: onnx.GraphProto) -> None:
    graph.initializer.append(numpy_helper.from_array(np.array([23.0], np.float32), "power"))
    number = append(graph, "Cast", [append(graph, "Exp", ["power"])])
    graph.node[-1].attribute.append(helper.make_attribute("to", TensorProto.INT64))
    append(graph, "ConstantOfShape", [number])


def loop(graph: onnx.GraphProto) -> None:
    body = helper.make_graph([], "body", [], [])
    graph.node.append(helper.make_node("Loop", ["", ""], ["looped"], body=body))


def branch(graph: onnx.GraphProto) -> None:
    nothing = helper.make_graph([], "nothing", [], [])
    graph.node.append(helper.make_node("If", ["input_ids"], ["branched"], then_branch=nothing, else_branch=nothing))


def hide_a_graph(graph: onnx.GraphProto) -> None:
    graph.node[0].attribute.append(helper.make_attribute("body", helper.make_graph([], "body", [], [])))


def list_tensors(graph: onnx.GraphProto) -> None:
    values = [numpy_helper.from_array(np.zeros(1, np.float32))]
    graph.node[0].attribute.append(helper.make_attribute("values", values))


def say_more_numbers(graph: onnx.GraphProto) -> None:
    graph.initializer.append(
        TensorProto(name="hollow", data_type=TensorProto.FLOAT, dims=[1 << 30], raw_data=b"\0" * 4)
    )


def hold_text(graph: onnx.GraphProto) -> None:
    graph.initializer.append(TensorProto(name="text", data_type=TensorProto.STRING, dims=[1], string_data=[b"a"]))


def give_a_sequence(graph: onnx.GraphProto) -> None:
    inside = helper.make_tensor_type_proto(TensorProto.FLOAT, [1])
    graph.output[0].type.CopyFrom(helper.make_sequence_type_proto(inside))


def square_on_and_on(graph: onnx.GraphProto) -> None:
    """Whole numbers of Python have no end."""
    number = hold(graph, 1000)
    for _ in range(60):
        number = append(graph, "Mul", [number, number])
    append(graph, "ConstantOfShape", [number])


def say_many_axes(graph: onnx.GraphProto) -> None:
    graph.initializer.append(TensorProto(name="deep", data_type=TensorProto.FLOAT, dims=[1 << 62] * 50_000))


CASES: dict[str, tuple[Change, str]] = {
    "numbers without end": (square_on_and_on, "ConstantOfShape .* numbers or more"),
    "axes without end": (say_many_axes, "has more than 16 axes"),
    "a pad without its sizes": (lambda graph: append(graph, "Pad", [hold(graph, 1)]), "cannot be followed"),
    "a range without its inputs": (lambda graph: append(graph, "Range", []), "cannot be followed"),
    "a long name": (
        lambda graph: graph.initializer.append(TensorProto(name="x" * 5_000_000, data_type=99, dims=[1])), r"\.\.\.$"),

    "a constant of a huge shape": (
        lambda graph: append(graph, "ConstantOfShape", [hold(graph, 1 << 40)]), "ConstantOfShape .* numbers or more"),
    "an expansion": (
        lambda graph: append(graph, "Expand", [hold(graph, 1), hold(graph, 4096, 4096)]), "Expand .*16777216 numbers"),
    "tiles": (lambda graph: append(graph, "Tile", [hold(graph, 1), hold(graph, 1 << 30)]), "Tile .* numbers or more"),
    "a range": (
        lambda graph: append(graph, "Range", [hold(graph, 0), hold(graph, 1 << 40), hold(graph, 1)]),
        "Range .* numbers or more"),
    "pads": (lambda graph: append(graph, "Pad", [hold(graph, 1), hold(graph, 0, 1 << 33)]), "Pad .* numbers or more"),
    "a one-hot table": (
        lambda graph: append(graph, "OneHot", ["input_ids", hold(graph, 1 << 30), hold(graph, 0, 1)]),
        "uses the operator ai.onnx.OneHot, which matexport does not write"),
    "arithmetic": (grow_by_arithmetic, "ConstantOfShape .*10000000000 numbers"),
    "lengths of the inputs": (grow_by_lengths, "Expand .* of a short input"),
    "two steps": (grow_by_steps, "Expand .*4611686018427387904 numbers"),
    "what cannot be followed": (grow_by_what_cannot_be_followed, "ConstantOfShape .* cannot be followed"),
    "a loop": (loop, "uses the operator ai.onnx.Loop"),
    "a name of two lines": (
        lambda graph: append(graph, "Shape\n\x1b[31m", ["input_ids"]), r"operator ai\.onnx\.Shape\\n\\x1b\[31m, which"),
    "a branch": (branch, "uses the operator ai.onnx.If"),
    "a graph inside of an operator": (hide_a_graph, "holds a graph"),
    "tensors inside of an operator": (list_tensors, "holds a graph, or a list of tensors"),
    "a tensor that says more than it holds": (say_more_numbers, "says 1073741824 numbers, and does not hold them"),
    "text": (hold_text, "of the unknown data type 8"),
    "a sequence": (give_a_sequence, "is no tensor"),
    "random numbers": (lambda graph: append(graph, "RandomNormalLike", ["input_ids"]), "RandomNormalLike"),
    "strings": (lambda graph: append(graph, "StringNormalizer", ["input_ids"]), "StringNormalizer"),
    "images": (lambda graph: append(graph, "ImageDecoder", ["input_ids"]), "ImageDecoder"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_no_export_writes_is_refused(case: str, small: Path, no_session: None) -> None:
    change, words = CASES[case]
    change_graph(small, change)
    with pytest.raises(FamilyError, match=words):
        check_family(load_family(small))


def test_functions_are_refused(small: Path, no_session: None) -> None:
    model = onnx.load(small / GRAPH, load_external_data=False)
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    model.functions.append(helper.make_function("", "Twice", ["x"], ["y"], nodes, model.opset_import))
    (small / GRAPH).write_bytes(model.SerializeToString())
    reseal(small)
    with pytest.raises(FamilyError, match="brings a function of its own, 'Twice'"):
        check_family(load_family(small))


@pytest.mark.parametrize(
    "change",
    [
        lambda graph: append(graph, "ConstantOfShape", [hold(graph, 512, 512)]),
        lambda graph: append(graph, "Expand", [hold(graph, 1), append(graph, "Shape", ["input_ids"])]),
        lambda graph: append(graph, "Range", [hold(graph, 0), hold(graph, 4096), hold(graph, 1)]),
    ],
    ids=["a constant", "the shape of an input", "positions"],
)
def test_what_an_export_may_write_is_not(change: Change, small: Path) -> None:
    change_graph(small, change)
    check_family(load_family(small))


def test_the_operators_are_those_of_the_opset() -> None:
    """A name that is spelt wrong would allow nothing; one that is not in the opset could mean anything."""
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    assert OPERATORS[""] <= known
    assert OPERATORS.keys() == {"", "com.microsoft"}
    bodies = {
        schema.name
        for schema in onnx.defs.get_all_schemas_with_history()
        if any("GRAPH" in str(attribute.type) for attribute in schema.attributes.values())
    }
    assert {"Loop", "If", "Scan"} <= bodies
    assert OPERATORS[""] & bodies == set()
    assert not [name for name in OPERATORS[""] if name.startswith(("Sequence", "String", "Random", "Optional"))]
