"""Shapes that are worked out, against those that onnxruntime computes: of every operator, and of whole graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from conftest import Precise
from onnx import TensorProto, helper, numpy_helper

from matexport.family.graph_file import parse_graph
from matexport.family.guard.node import Node
from matexport.family.guard.operators import OPERATORS
from matexport.family.guard.rules import RULES
from matexport.family.guard.shapes import Walk, find_shape_problem, read_constants
from matexport.family.guard.sizes import find_size_problem
from matexport.spec.inputs import ArrayFacts, ImageFacts, PaddingSide, Resampling, TextFacts

FLOAT, INT, BOOL, BYTE = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL, TensorProto.UINT8
DTYPES = {FLOAT: np.float32, INT: np.int64, BOOL: np.bool_, BYTE: np.uint8, TensorProto.INT8: np.int8}

#: An input: its shape as floats; (shape, type); or numbers, which are a constant.
Given = Any
ITEMS, LENGTH = 2, 5
X = (ITEMS, LENGTH, 6)
WITH_AXES = [
    "ReduceL1",
    "ReduceL2",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
]
UNARY = [
    "Abs", "Ceil", "Clip", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf",
    "IsNaN", "LeakyRelu", "Log", "LogSoftmax", "LpNormalization", "Mish", "Neg", "Reciprocal", "Relu", "Round", "Selu",
    "Sigmoid", "Sign", "Sin", "Softmax", "Softplus", "Softsign", "Sqrt", "Tanh", "Trilu",
]  # fmt: skip
BINARY = ["Add", "Div", "Max", "Min", "Mul", "Pow", "PRelu", "Sub", "Sum"]
LOGICAL = ["And", "Or", "Xor"]
COMPARING = ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"]

#: Operator, inputs, attributes.
CASES: list[tuple[str, list[Given], dict[str, Any]]] = [
    *((name, [X], {}) for name in UNARY),
    *((name, [X, (LENGTH, 1)], {}) for name in BINARY),
    *((name, [(X, BOOL), ((1, 6), BOOL)], {}) for name in LOGICAL),
    *((name, [(3, 1, 6), (LENGTH, 6)], {}) for name in COMPARING),
    *((name, [X, [1]], {}) for name in WITH_AXES),
    *((name, [X, [0, -1]], {"keepdims": 0}) for name in WITH_AXES),
    ("ReduceSum", [X], {"keepdims": 0}),
    ("ReduceSum", [X], {"noop_with_empty_axes": 1}),
    ("ArgMax", [X], {"axis": 1}),
    ("ArgMin", [X], {"axis": -1, "keepdims": 0}),
    ("Not", [(X, BOOL)], {}),
    ("Mod", [(X, INT), [3]], {}),
    ("Where", [((LENGTH, 1), BOOL), (3, 1, 6), (1,)], {}),
    ("Cast", [X], {"to": INT}),
    ("CumSum", [X, [1]], {}),
    ("LayerNormalization", [X, (6,)], {}),
    ("BatchNormalization", [X, (LENGTH,), (LENGTH,), (LENGTH,), (LENGTH,)], {}),
    ("InstanceNormalization", [X, (LENGTH,), (LENGTH,)], {}),
    ("GroupNormalization", [(2, 4, 3), (4,), (4,)], {"num_groups": 2}),
    ("QuantizeLinear", [X, [0.5]], {}),
    ("DequantizeLinear", [(X, BYTE), [0.5]], {}),
    ("MatMul", [X, (6, 4)], {}),
    ("MatMul", [(3, 1, 5, 6), (4, 6, 2)], {}),
    ("MatMul", [(6,), (2, 6, 4)], {}),
    ("MatMul", [X, (6,)], {}),
    ("MatMul", [(6,), (6,)], {}),
    ("MatMulInteger", [(X, BYTE), ((6, 4), BYTE)], {}),
    ("Gemm", [(6, 3), (4, 6), (4,)], {"transA": 1, "transB": 1}),
    ("Gemm", [(3, 6), (6, 4)], {}),
    ("Einsum", [(2, 5, 3, 4), (2, 7, 3, 4)], {"equation": "bqhd, bkhd -> bhqk"}),
    ("Einsum", [(5,), (7,)], {"equation": "a,b"}),
    ("Einsum", [(5, 1), (1, 7), (1, 1)], {"equation": "ab,ab,ab->ab"}),
    ("Einsum", [(3, 2, 4), (3, 2, 6)], {"equation": "...a,...b->...ab"}),
    ("Einsum", [(2, 5, 1), (6, 3)], {"equation": "...d,de->...e"}),
    ("Einsum", [(2, 5, 6), (6, 3)], {"equation": "...d,de"}),
    ("Einsum", [(2, 5, 6)], {"equation": "bsd->bd"}),
    ("ReduceProd", [X, np.zeros(0, np.int64)], {}),
    ("ReduceSum", [X, np.zeros(0, np.int64)], {"keepdims": 0}),
    ("ReduceSum", [X, np.zeros(0, np.int64)], {"noop_with_empty_axes": 1}),
    ("Concat", [X, (2, 3, 6)], {"axis": 1}),
    ("Concat", [X, (2, 5, 1), (2, 5, 2)], {"axis": -1}),
    ("Split", [X, [1, 4]], {"axis": 1}),
    ("Split", [X], {"axis": 2, "num_outputs": 2}),
    ("Slice", [X, [1, -4], [9, -1], [1, 2]], {}),
    ("Slice", [X, [-1], [-99], [1], [-2]], {}),
    ("Slice", [X, [0], [1]], {}),
    ("Gather", [X, ((3, 1), INT)], {"axis": 1}),
    ("Gather", [(9, 4), ((), INT)], {}),
    ("GatherElements", [X, ((2, 1, 6), INT)], {"axis": 1}),
    ("GatherND", [X, ((7, 2), INT)], {}),
    ("GatherND", [X, ((2, 3, 1), INT)], {"batch_dims": 1}),
    ("ScatterElements", [X, ((2, 1, 6), INT), (2, 1, 6)], {"axis": 1}),
    ("ScatterND", [X, ((3, 1), INT), (3, 5, 6)], {}),
    ("Transpose", [X], {"perm": [2, 0, 1]}),
    ("Transpose", [X], {}),
    ("Reshape", [X, [0, -1, 2]], {}),
    ("Reshape", [X, [60]], {}),
    ("Flatten", [X], {"axis": 2}),
    ("Squeeze", [(1, 5, 1)], {}),
    ("Squeeze", [(1, 5, 1), [-1]], {}),
    ("Unsqueeze", [(5, 6), [0, -1]], {}),
    ("Expand", [(5, 1), [3, 1, 4]], {}),
    ("Expand", [X, [1]], {}),
    ("Tile", [X, [1, 2, 3]], {}),
    ("Pad", [X, [0, 1, 0, 2, 0, 1]], {}),
    ("Pad", [X, [1, 2], [0.0], [1]], {}),
    ("Range", [np.int64(3), np.int64(12), np.int64(2)], {}),
    ("Range", [np.int64(3), np.int64(-2), np.int64(-2)], {}),
    ("ConstantOfShape", [[2, 3]], {}),
    ("ConstantOfShape", [np.zeros(0, np.int64)], {"value": numpy_helper.from_array(np.ones(1, bool))}),
    ("Shape", [X], {"start": 1}),
    ("Shape", [X], {"start": 0, "end": -1}),
    ("TopK", [X, [2]], {"axis": 1}),
    ("Conv", [(1, 3, 9, 8), (4, 3, 3, 2)], {"strides": [2, 1], "pads": [1, 0, 1, 1]}),
    ("Conv", [(1, 3, 9), (4, 3, 3)], {"dilations": [2]}),
    ("Conv", [(1, 3, 9), (4, 3, 3)], {"auto_pad": "SAME_UPPER", "strides": [2]}),
    ("MaxPool", [(1, 3, 9, 9)], {"kernel_shape": [2, 3], "strides": [2, 2], "ceil_mode": 1}),
    ("AveragePool", [(1, 3, 9, 9)], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("GlobalAveragePool", [(1, 3, 9, 9)], {}),
    ("com.microsoft.MatMulIntegerToFloat", [(X, BYTE), ((6, 4), BYTE), [0.5], [0.5]], {}),
    (
        "com.microsoft.MatMulNBits", [(2, 5, 32), ((4, 1, 16), BYTE), (4,)],
        {"K": 32, "N": 4, "block_size": 32, "bits": 4}),
    (
        "com.microsoft.GatherBlockQuantized", [((9, 32), BYTE), ((2, 5), INT), (9, 1)],
        {"bits": 8, "block_size": 32, "gather_axis": 0, "quantize_axis": 1}),
]  # fmt: skip


def make_operator(name: str, given: Sequence[Given], attributes: dict[str, Any]) -> tuple[bytes, dict[str, np.ndarray]]:
    """A graph of one node, and what it is fed with."""
    domain, _, kind = name.rpartition(".")
    feeds, constants, inputs = {}, [], []
    for place, one in enumerate(given):
        label = f"x{place}"
        if isinstance(one, tuple):
            shape, dtype = one if one and isinstance(one[0], tuple) else (one, FLOAT)
            feeds[label] = np.zeros(shape, DTYPES[dtype])
            inputs.append(helper.make_tensor_value_info(label, dtype, [None] * len(shape)))
        else:
            plain = isinstance(one, list)
            numbers = np.array(one, np.int64 if all(isinstance(n, int) for n in one) else np.float32) if plain else one
            constants.append(numpy_helper.from_array(np.asarray(numbers), label))
    count = {"Split": 2, "TopK": 2}.get(kind, 1)
    outputs = [f"y{place}" for place in range(count)]
    names = [f"x{place}" for place in range(len(given))]
    node = helper.make_node(kind, names, outputs, domain=domain, **attributes)
    results = [onnx.ValueInfoProto(name=output) for output in outputs]
    graph = helper.make_graph([node], "one", inputs, results, constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return model.SerializeToString(), feeds


@pytest.mark.parametrize(
    ("name", "given", "attributes"), CASES, ids=[f"{place}-{case[0]}" for place, case in enumerate(CASES)]
)
def test_an_operator_gives_the_shape_that_onnxruntime_gives(
    name: str, given: list[Given], attributes: dict[str, Any]
) -> None:
    content, feeds = make_operator(name, given, attributes)
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    expected = [value.shape for value in session.run(None, feeds)]

    graph = parse_graph("one.onnx", content).graph
    walk = Walk(graph, read_constants(graph), ITEMS, LENGTH)
    walk.known.update({label: walk.known[label]._replace(shape=array.shape) for label, array in feeds.items()})
    walk.follow(Node(*graph.node))
    assert [walk.known[value.name].shape for value in graph.output] == expected


def test_every_operator_that_is_allowed_has_a_rule_and_a_case() -> None:
    allowed = {name for names in OPERATORS.values() for name in names}
    assert RULES.keys() == allowed
    assert {name.rpartition(".")[2] for name, _, _ in CASES} == allowed


@pytest.mark.parametrize("kind", ["bert", "modernbert", "qwen3"])
def test_all_tensors_of_a_graph_have_the_shapes_that_onnxruntime_gives(
    kind: str, precise: Callable[[str], Precise]
) -> None:
    folder = precise(kind).family
    graphs = sorted(folder.glob("*.onnx"))
    assert len(graphs) >= 6
    for path in graphs:
        _compare(path)


def _compare(path: Path) -> None:
    graph = parse_graph(path.name, path.read_bytes()).graph
    for items, length in ((1, 1), (3, 20)):
        walk = Walk(graph, read_constants(graph), items, length)
        for node in graph.node:
            walk.follow(Node(node))
        for name, shape in _run(path, items, length).items():
            assert walk.known[name].shape == shape, (path.name, name)


def _run(path: Path, items: int, length: int) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that a graph makes of an input."""
    model = onnx.load(path, load_external_data=False)
    names = [name for node in model.graph.node for name in node.output if name]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {value.name: np.ones((items, length), np.int64) for value in session.get_inputs()}
    return dict(zip(names, (value.shape for value in session.run(names, feeds)), strict=True))


def _find(
    nodes: list[onnx.NodeProto], constants: Sequence[onnx.TensorProto] = (), longest: int = 512, *, sizes: bool = False
) -> str | None:
    """Why the guard refuses a graph; with `sizes`, as a whole, and not only its part that is tested here."""
    value = helper.make_tensor_value_info("ids", INT, ["batch", "sequence"])
    graph = helper.make_graph(nodes, "g", [value], [onnx.ValueInfoProto(name=nodes[-1].output[0])], list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    inputs = TextFacts(("ids",), longest, PaddingSide.RIGHT, 0, {})
    parsed = parse_graph("g.onnx", model.SerializeToString()).graph
    return (find_size_problem(parsed) if sizes else None) or find_shape_problem(parsed, inputs)


def _node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], name=output, **attributes)


def _hold(name: str, shape: tuple[int, ...]) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones(shape, np.float32), name)


def test_what_only_several_operators_make_large_is_found() -> None:
    column, row = _hold("column", (3000, 1)), _hold("row", (1, 3000))
    assert "Add 'sum' makes a tensor of 9000000 numbers" in str(
        _find([_node("Add", "column row", "sum")], [column, row])
    )
    product = _find([_node("MatMul", "column row", "product")], [column, row])
    assert "MatMul 'product' makes a tensor of 9000000 numbers" in str(product)

    doubled = [_node("Concat", f"t{n} t{n}", f"t{n + 1}", axis=0) for n in range(12)]
    assert "Concat 't11' makes a tensor of 6144000 numbers" in str(_find(doubled, [_hold("t0", (3000, 1))]))
    assert _find(doubled[:10], [_hold("t0", (3000, 1))]) is None

    places = numpy_helper.from_array(np.zeros(3000, np.int64), "places")
    gathered = _find([_node("Gather", "row places", "picked", axis=0)], [row, places])
    assert "Gather 'picked' makes a tensor of 9000000 numbers" in str(gathered)

    tiled = [_node("Tile", f"t{n} two", f"t{n + 1}") for n in range(12)]
    two = numpy_helper.from_array(np.array([2, 1]), "two")
    assert "Tile 't11' makes a tensor of 6144000 numbers" in str(_find(tiled, [_hold("t0", (3000, 1)), two]))

    image = _hold("image", (1, 1, 4, 4))
    pooled = _node("AveragePool", "image", "pooled", kernel_shape=[2001, 2001], pads=[2100] * 4)
    assert "AveragePool 'pooled' makes a tensor of 4857616 numbers" in str(_find([pooled], [image]))


def test_small_tensors_that_take_long_are_found() -> None:
    image = _hold("image", (1, 1, 4, 4))
    pooled = _node("AveragePool", "image", "pooled", kernel_shape=[1001, 1001], pads=[1000] * 4)
    assert "AveragePool 'pooled' computes more than so many weights" in str(_find([pooled], [image]))
    often = [_node("MatMul", f"m{n} square", f"m{n + 1}") for n in range(9)]
    assert _find(often, [_hold("m0", (1500, 1500)), _hold("square", (1500, 1500))]) is None
    often = [_node("MatMul", f"m{n} square", f"m{n + 1}") for n in range(19)]
    assert "MatMul 'm11' computes more" in str(_find(often, [_hold("m0", (1500, 1500)), _hold("square", (1500, 1500))]))
    summed = _node("Einsum", "square square square", "cube", equation="ab,bc,cd->ad")
    assert "Einsum 'cube' computes more" in str(_find([summed], [_hold("square", (1500, 1500))]))


def test_a_tensor_may_grow_with_the_square_of_the_length_and_no_faster() -> None:
    floats = _node("Cast", "ids", "x", to=FLOAT)
    column, row = _node("Unsqueeze", "x last", "column"), _node("Unsqueeze", "x middle", "row")
    last, middle = (numpy_helper.from_array(np.array([place]), name) for name, place in (("last", 2), ("middle", 1)))
    square = _node("MatMul", "column row", "square")
    nodes = [
        floats,
        column,
        row,
        square,
        _node("Unsqueeze", "square middle", "one"),
        _node("Mul", "one weight", "heads"),
    ]
    assert _find(nodes, [last, middle, _hold("weight", (1, 12, 1, 1))]) is None

    found = _find([floats, _node("Unsqueeze", "x first", "y"), _node("Unsqueeze", "x second", "z"),
                   _node("Unsqueeze", "x third", "w"), _node("Mul", "y z", "yz"), _node("Mul", "yz w", "cube")],
                  [numpy_helper.from_array(np.array(axes), name)
                   for name, axes in (("first", [2, 3]), ("second", [1, 3]), ("third", [1, 2]))])  # fmt: skip
    assert "Mul 'cube' makes a tensor that grows faster than with the square of a text's length" in str(found)


def test_an_input_that_is_large_itself_may_become_more_and_constants_may_not() -> None:
    """What follows from no input may be worked out when a graph is loaded."""
    pixels = ArrayFacts("pixels", (3, 224, 224))
    wide = [_node("Concat", "pixels " * 60, "many", axis=1), _node("Concat", "many many", "more", axis=1)]
    assert _find_of_array(wide[:1], pixels) is None
    assert "Concat 'more' makes a tensor of" in str(_find_of_array(wide, pixels))
    held = [_node("Expand", "row large", "held")]
    large = numpy_helper.from_array(np.array([1500, 3000]), "large")
    assert "Expand 'held' makes a tensor of 4500000" in str(
        _find_of_array(held, pixels, _hold("row", (1, 3000)), large)
    )
    given = [
        _node("Slice", "pixels zero one", "few"),
        _node("Reshape", "few flat", "all"),
        _node("Mul", "all row", "m"),
    ]
    flat, zero, one = (
        numpy_helper.from_array(np.array(numbers), name)
        for name, numbers in (("flat", [-1, 1]), ("zero", [0, 0, 0]), ("one", [1, 1, 7]))
    )
    assert _find_of_array(given, pixels, _hold("row", (1, 3000)), flat, zero, one) is None


def _find_of_array(nodes: list[onnx.NodeProto], array: ArrayFacts, *constants: onnx.TensorProto) -> str | None:
    value = helper.make_tensor_value_info(array.input, FLOAT, ["batch", *array.shape])
    graph = helper.make_graph(nodes, "g", [value], [onnx.ValueInfoProto(name=nodes[-1].output[0])], list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    return find_shape_problem(parse_graph("g.onnx", model.SerializeToString()).graph, array)


def _find_of_image(
    nodes: list[onnx.NodeProto], *constants: onnx.TensorProto, dims: Sequence[int | str] = (1, "height", "width", 3)
) -> str | None:
    """Of a graph that prepares images of any size itself, for a tower of 28 x 28."""
    facts = ImageFacts("image", 28, 28, (32,), Resampling.BICUBIC, 1.0, (0.0,) * 3, (1.0,) * 3, in_graph=True)
    value = helper.make_tensor_value_info("image", BYTE, dims)
    graph = helper.make_graph(nodes, "g", [value], [onnx.ValueInfoProto(name=nodes[-1].output[0])], list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    parsed = parse_graph("g.onnx", model.SerializeToString()).graph
    return find_size_problem(parsed) or find_shape_problem(parsed, facts)


def test_what_is_made_of_an_image_of_any_size_is_bounded() -> None:
    """An honest preparation passes in `tests/export/graph/test_pixels.py`."""
    floats, side = _node("Cast", "image", "x", to=FLOAT), _node("Shape", "image", "side", start=1, end=2)
    twice = _node("Concat", "x x", "twice", axis=0)
    assert _find_of_image([floats, twice]) is None
    thrice = _find_of_image([floats, _node("Concat", "x x x", "thrice", axis=0)])
    assert "Concat 'thrice' makes a tensor of 603979776 numbers of a long input" in str(thrice)

    flat = [_node("Reshape", "x upright", "column"), _node("Reshape", "x level", "row")]
    shapes = _numbers("upright", -1, 1), _numbers("level", 1, -1)
    pairs = _find_of_image([floats, *flat, _node("Mul", "column row", "pairs")], *shapes)
    assert "Mul 'pairs' makes a tensor that grows faster than with the square" in str(pairs)

    wide = [side, _node("Concat", "side many", "size", axis=0), _node("Expand", "one size", "wide")]
    few, many = (_numbers("many", count) for count in (1 << 12, 1 << 16))
    assert _find_of_image(wide, few, _hold("one", (1,))) is None
    assert "Expand 'wide' makes a tensor of 536870912 numbers of a long" in str(
        _find_of_image(wide, many, _hold("one", (1,)))
    )

    often = [floats, _node("Sin", "x", "s0"), *(_node("Sin", f"s{n}", f"s{n + 1}") for n in range(60))]
    assert _find_of_image(often[:20]) is None
    assert "computes more than so many weights are used for, of a long input" in str(_find_of_image(often))


@pytest.mark.parametrize(
    "dims", [(1, 224, "width", 3), ("batch", "height", "width"), (2, "h", "w", 3), (1, "h", "w", 4)]
)
def test_an_image_of_any_size_is_one_rgb_image(dims: tuple[int | str, ...]) -> None:
    found = _find_of_image([_node("Cast", "image", "x", to=FLOAT)], dims=dims)
    assert "its input 'image' has another shape than the manifest says" in str(found)


def test_many_tensors_at_one_time_are_too_much() -> None:
    weight = _hold("weight", (1, 1, 100_000))
    last = numpy_helper.from_array(np.array([2]), "last")
    start = [_node("Cast", "ids", "x", to=FLOAT), _node("Unsqueeze", "x last", "column")]
    many = [_node("Mul", "column weight", f"m{n}") for n in range(40)]
    kept = [*start, *many, helper.make_node("Sum", [f"m{n}" for n in range(40)], ["sum"])]
    assert "makes more tensors than are let live at one time" in str(_find(kept, [weight, last]))

    chain = [*start, *(_node("Mul", f"c{n} weight", f"c{n + 1}") for n in range(40))]
    chain[2].input[0] = "column"
    assert _find(chain, [weight, last]) is None


def _numbers(name: str, *numbers: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(numbers), name)


#: What is made of the length alone, as one number: it reads `length`.
BETWEEN: dict[str, list[onnx.NodeProto]] = {
    "from a length on": [_node("Div", "length forty", "size")],
    "at one length": [_node("Equal", "length forty", "is"), _node("Where", "is forty one", "size")],
    "at every seventh": [_node("Mod", "length seven", "rest"), _node("Mul", "rest forty", "size")],
    "below a length": [_node("Less", "length forty", "is"), _node("Where", "is forty one", "size")],
    "in the middle": [_node("Sub", "limit length", "down"), _node("Mul", "down length", "size")],
    "at none but those that are looked at": [
        _node("Sub", "length sixteen", "a"), _node("Sub", "length thirty", "b"), _node("Sub", "length limit", "c"),
        _node("Mul", "a b", "ab"), _node("Mul", "ab c", "abc"), _node("Mul", "abc abc", "size")],
    "of a short text": [_node("Div", "large length", "size")],
    "by all axes, of which none is named": [
        _node("Concat", "one length length", "three", axis=0), _node("ReduceProd", "three none", "size", keepdims=1)],
}  # fmt: skip


@pytest.mark.parametrize("case", BETWEEN)
def test_a_size_that_is_large_at_a_length_between_is_not_followed(case: str) -> None:
    constants = [
        _numbers("forty", 40), _numbers("one", 1), _numbers("seven", 7), _numbers("limit", 512),
        _numbers("sixteen", 16), _numbers("thirty", 32), _numbers("large", 1 << 22), _numbers("many", 1 << 18),
        _numbers("none"), _numbers("column", -1, 1), _numbers("first", 0),
    ]  # fmt: skip
    length = _node("Shape", "ids", "length", start=1, end=2)
    made = [_node("Mul", "size many", "count"), _node("Expand", "single count", "held")]
    square = [_node("Reshape", "held column", "upright"), _node("Add", "held upright", "square")]
    single = _hold("single", (1,))
    assert _find([length, *BETWEEN[case], *made, *square], [*constants, single], sizes=True) is not None
    sound = [length, _node("Mul", "length one", "count"), *made[1:], *square]
    few = [_numbers("many", 64) if tensor.name == "many" else tensor for tensor in constants]
    assert _find(sound, [*few, single], sizes=True) is None, "as positions are compared"


def test_what_a_long_text_makes_is_bounded_by_the_manifest() -> None:
    shape = [_node("Shape", "ids", "size"), _node("Gather", "size last", "length", axis=0)]
    wide = [*shape, _node("Concat", "size length width", "all", axis=0), _node("Expand", "single all", "wide")]
    constants = [_numbers("last", 1), _hold("single", (1,)), _numbers("width", 8000)]
    assert "Expand 'wide' makes a tensor of 8388608000 numbers of a long input" in str(_find(wide, constants))
    assert _find(wide, [*constants[:2], _numbers("width", 64)]) is None, "as many heads as that there are"
    cube = [*shape, _node("Concat", "length length length", "all", axis=0), _node("Expand", "single all", "cube")]
    assert "of a long input" in str(_find(cube, constants[:2], 4096))


def test_work_counts_whatever_it_is_and_for_long_texts_too() -> None:
    held = [_hold("row", (1 << 21,)), _numbers("all", 1 << 21)]
    pairs = []
    for n in range(60):
        pairs += [_node("Sin", f"v{n}", f"s{n}"), helper.make_node("TopK", [f"s{n}", "all"], [f"v{n + 1}", f"i{n}"])]
    start = [_node("ReduceMax", "ids", "most", keepdims=0), _node("Cast", "most", "x", to=FLOAT)]
    pairs = [*start, _node("Add", "x row", "v0"), *pairs]
    assert _find(pairs[:9], held) is None
    assert "computes more than so many weights are used for, of a short input" in str(_find(pairs, held))

    floats = [
        _node("Cast", "ids", "x", to=FLOAT),
        _node("Unsqueeze", "x last", "c"),
        _node("Unsqueeze", "x middle", "r"),
    ]
    products = [_node("MatMul", "c r", "m0"), *(_node("MatMul", f"m{n} m{n}", f"m{n + 1}") for n in range(200))]
    axes = [_numbers("last", 2), _numbers("middle", 1)]
    assert _find([*floats, *products[:9]], axes, 512) is None
    assert "of a long input" in str(_find([*floats, *products], axes, 8192))


def test_the_experts_of_a_mixture_are_taken_for_each_token() -> None:
    """As transformers computes a mixture: the weights of each token's experts, copied."""
    experts, top = _hold("experts", (8, 512, 512)), _numbers("last", 2)
    nodes = [_node("Unsqueeze", "ids last", "one"), helper.make_node("Concat", ["one"] * 4, ["four"], axis=2)]
    taken = [*nodes, _node("Gather", "experts four", "taken", axis=0)]
    assert _find(taken, [experts, top]) is None
    tall = [*nodes, _node("Reshape", "experts size", "again"), _node("Gather", "again four", "taken", axis=0)]
    flat = [_hold("experts", (8 * 512, 512)), top, _numbers("size", 8, 512, 512)]
    assert "Gather 'taken' makes a tensor of" in str(_find(tall, flat))


def test_what_does_not_follow_is_refused() -> None:
    assert "Add 'sum' makes a tensor of a size that cannot be worked out" in str(
        _find([_node("Add", "ids gone", "sum")])
    )
    shape = [_node("ReduceMax", "ids", "most", keepdims=0), _node("Unsqueeze", "most first", "one")]
    first = numpy_helper.from_array(np.array([0]), "first")
    found = _find([*shape, _node("Reshape", "ids one", "all")], [first])
    assert "Reshape 'all' makes a tensor of a size that cannot be worked out" in str(found)


MALFORMED = {
    "an axis twice": [_node("Unsqueeze", "ids twice", "out")],
    "no axis": [_node("Unsqueeze", "ids", "out")],
    "an axis that is not there": [_node("Concat", "ids ids", "out", axis=7)],
    "of no axis": [_node("Concat", "scalar scalar", "out", axis=0)],
    "one input too few": [_node("MatMul", "ids", "out")],
    "no input": [helper.make_node("Add", [], ["out"])],
    "only left out": [helper.make_node("Add", ["", ""], ["out"])],
    "a step of nothing": [_node("Range", "scalar scalar scalar", "out")],
    "parts of nothing": [helper.make_node("Split", ["ids"], [])],
    "an order of other axes": [_node("Transpose", "ids", "out", perm=[0, 0])],
    "text that is none": [_node("Einsum", "ids", "out", equation=b"\xff\xfe")],
    "another equation": [_node("Einsum", "ids", "out", equation="abc->a")],
    "nothing to be filled": [_node("ConstantOfShape", "", "out")],
    "a kernel without axes": [_node("Conv", "ids scalar", "out")],
    "a huge number": [_node("Mul", "huge huge", "h"), _node("Expand", "ids h", "out")],
    "two outputs of one": [helper.make_node("Add", ["ids", "ids"], ["out", "other"])],
}


#: The runtime refuses the first when it loads it, and comes to the same number in the second: 2^62 squared is 0 there.
LEFT_TO_THE_RUNTIME = {"an axis that is not there", "a huge number"}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_no_sound_node_is_refused_in_words(case: str) -> None:
    constants = [_numbers("twice", 0, 0), numpy_helper.from_array(np.array(0), "scalar"), _numbers("huge", 1 << 62)]
    found = _find([*MALFORMED[case], _node("Identity", "ids", "last")], constants)
    if case in LEFT_TO_THE_RUNTIME:
        assert found is None
    else:
        assert str(found).endswith("makes a tensor of a size that cannot be worked out")


@pytest.mark.parametrize("longest", [1, 2, 8, 512, (1 << 31) - 1])
def test_an_input_is_no_longer_than_a_text_may_be(longest: int) -> None:
    """A table of positions has as many rows as a text may have tokens."""
    table = _hold("table", (1, min(longest, 512)))
    ends = [_node("Shape", "ids", "length", start=1), _node("Slice", "table first length second", "positions")]
    places = [numpy_helper.from_array(np.array([place]), name) for name, place in (("first", 0), ("second", 1))]
    nodes = [*ends, _node("Cast", "ids", "x", to=FLOAT), _node("Add", "x positions", "sum")]
    assert _find(nodes, [table, *places], longest) is None
