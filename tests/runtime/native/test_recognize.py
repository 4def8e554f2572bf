"""The steps that a graph is recognized as give what onnxruntime gives of the graph; what is not known is refused.

A wrong recognition is the one fault that must not happen. So graphs are changed in one place each, and either they are
refused, or the changed plan gives what the changed graph gives.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_graphs import ALONE, BOTH, CHANGED, GOLDEN, LEFT, RIGHT, load, make_feeds, read_plan, run_graph
from native_oracle import assert_near, run_plan, split_batch
from numpy.typing import NDArray

from matexport.errors import FamilyError
from matexport.pack.graph import repeat_vector
from matexport.runtime.engines.native import steps
from matexport.runtime.engines.native.recognize import UnknownGraphError

GRAPHS = sorted(str(path.relative_to(GOLDEN)) for path in GOLDEN.glob("schema[123]/*.onnx"))

#: What a change must make of a coordinate of a unit vector, so that a plan of the old graph would be seen.
MIN_CHANGE = 1e-2

Array = NDArray[Any]


def try_graph(model: Any, weights: Mapping[str, bytes], feeds: Mapping[str, Array]) -> dict[str, Array] | None:
    """None where onnxruntime refuses a graph's types or shapes, which are for it to look at."""
    try:
        return run_graph(model, weights, feeds)
    except Exception as problem:  # its classes share no base but this
        if not type(problem).__module__.startswith("onnxruntime"):
            raise
        return None


def list_batches(plan: steps.Plan) -> list[list[tuple[int, int]]]:
    """Who reads the first place of a padded row reads padding where that is on the left."""
    first = any(isinstance(step, steps.Pool) and step.pooling is steps.Pooling.FIRST for step in plan.steps)
    return [ALONE, RIGHT] if first else [ALONE, RIGHT, LEFT, BOTH]


def check(model: Any, weights: Mapping[str, bytes], plan: steps.Plan) -> None:
    """The plan gives what the graph gives, whatever stands beside a text."""
    found: list[Array] = []
    wanted: list[Array] = []
    for ranges in list_batches(plan):
        feeds = make_feeds(model, ranges)
        given, made = run_graph(model, weights, feeds), run_plan(plan, split_batch(feeds))
        found += made.values()
        wanted += [given[name] for name in made]
    assert_near(found, wanted)


@pytest.mark.parametrize("path", GRAPHS)
def test_the_steps_of_a_frozen_graph_give_what_it_gives(path: str) -> None:
    """fp32 graphs too: their products are `Dense`."""
    model, weights = load(path)
    plan = read_plan(model, weights)
    assert plan.refused == {}
    assert [output.name for output in plan.outputs] == [output.name for output in model.graph.output]
    check(model, weights, plan)
    kinds = {type(step) for step in plan.steps}
    assert (steps.Product in kinds) == (Path(path).name.split(".")[1] == "int8")


def test_a_post_norm_block_is_ten_steps_that_share_what_they_can() -> None:
    plan = read_plan(*load(CHANGED))
    block = ["Quantize", "Product", "Product", "Product", "Attend", "Quantize", "Product", "Add", "Norm"]
    block += ["Quantize", "Product", "Activate", "Quantize", "Product", "Add", "Norm"]
    names = [type(step).__name__ for step in plan.steps]
    assert names == ["Embed", "Norm", *block, *block, "Pool", "Columns", "Unit"]
    assert [step.out for step in plan.steps] == list(range(len(plan.steps)))
    attends = [step for step in plan.steps if isinstance(step, steps.Attend)]
    assert {(step.heads, step.causal, step.window, step.bias) for step in attends} == {(4, False, None, None)}


def test_weights_are_views_of_the_file() -> None:
    model, weights = load(CHANGED)
    held = np.frombuffer(weights["weights.int8.safetensors"], np.uint8)
    products = [step for step in read_plan(model, weights).steps if isinstance(step, steps.Product)]
    assert len(products) == 12
    assert all(np.shares_memory(step.weight, held) for step in products)


def test_a_vector_at_every_token_is_refused_and_the_vector_itself_is_not() -> None:
    """As packs' graphs have it."""
    model, weights = load(CHANGED)
    repeat_vector(model, 20)
    plan = read_plan(model, weights)
    assert [output.name for output in plan.outputs] == ["sentence_embedding"]
    assert list(plan.refused) == ["last_hidden_state"]
    check(model, weights, plan)


def test_states_are_refused_and_the_vector_is_not() -> None:
    model, weights = load(CHANGED)
    model.graph.node.add(op_type="Identity", input=["state_2"], output=["token_embeddings"])
    output = model.graph.output.add(name="token_embeddings")
    output.type.tensor_type.elem_type = 1
    plan = read_plan(model, weights)
    assert plan.refused == {"token_embeddings": "the output token_embeddings has no row for each text"}


def test_an_unpooled_prompt_is_refused_by_name() -> None:
    model, weights = load("schema4/L02-D020.fp32.onnx")
    with pytest.raises(UnknownGraphError, match=r"^the operator ReduceSum \(.*\): it reads the input pooling_mask"):
        read_plan(model, weights)


# --- one change each


def node_of(model: Any, output: str) -> Any:
    return next(node for node in model.graph.node if output in node.output)


def first_node(model: Any, operator: str, place: int = 0) -> Any:
    return [node for node in model.graph.node if node.op_type == operator][place]


def tensor(model: Any, name: str) -> Any:
    return next(found for found in model.graph.initializer if found.name == name)


def add_tensor(model: Any, array: Array) -> str:
    """An initializer; its name."""
    name = f"changed_{len(model.graph.initializer)}"
    kind = {"float32": 1, "uint8": 2, "int64": 7}[array.dtype.name]
    model.graph.initializer.add(name=name, dims=array.shape, data_type=kind, raw_data=array.tobytes())
    return name


def set_number(node: Any, attribute: str, **value: Any) -> None:
    found = next((item for item in node.attribute if item.name == attribute), None)
    kind = 1 if "f" in value else 2
    found = node.attribute.add(name=attribute, type=kind) if found is None else found
    for field, number in value.items():
        setattr(found, field, number)


def set_input(node: Any, place: int, name: str) -> None:
    node.input[place] = name


def swap_inputs(node: Any, one: int, other: int) -> None:
    node.input[one], node.input[other] = node.input[other], node.input[one]


def set_permutation(node: Any, order: list[int]) -> None:
    del node.attribute[0].ints[:]
    node.attribute[0].ints.extend(order)


def scalar(model: Any, number: float) -> str:
    return add_tensor(model, np.array(number, np.float32))


def swap_biases(model: Any) -> None:
    """Those of query and value."""
    query, key = (
        next(node for node in model.graph.node if f"layer.0.attention.self.{part}.bias" in str(node.input))
        for part in ("query", "value")
    )
    query.input[1], key.input[1] = key.input[1], query.input[1]


def swap_products(model: Any) -> None:
    """The weights of query and key."""
    products = [node for node in model.graph.node if node.op_type == "MatMulIntegerToFloat"][:2]
    for place in (1, 3):
        products[0].input[place], products[1].input[place] = products[1].input[place], products[0].input[place]


def enlarge_scales(model: Any) -> None:
    """Those of the values, five times as large."""
    product = first_node(model, "MatMulIntegerToFloat", 2)
    old = np.frombuffer(tensor(model, product.input[3]).raw_data, np.float32)
    product.input[3] = add_tensor(model, 5 * old)


def drop_mask(model: Any) -> None:
    softmax = first_node(model, "Softmax")
    softmax.input[0] = node_of(model, softmax.input[0]).input[0]


def mask_after_scaling(model: Any) -> None:
    """The mask is added to the scores before they are scaled."""
    add = node_of(model, first_node(model, "Softmax").input[0])
    scale = node_of(model, add.input[0])
    scale.op_type, add.op_type = "Add", "Mul"
    scale.input[1], add.input[1] = add.input[1], scale.input[1]


def see_before_alone(model: Any) -> None:
    node = first_node(model, "GreaterOrEqual")
    node.input[1] = node_of(model, node_of(model, first_node(model, "Max").output[0]).output[0]).input[1]


def pool_without_mask(model: Any) -> None:
    node = first_node(model, "ReduceSum", 1)
    node.input[0] = node_of(model, node.input[0]).input[0]


def take_another_peak(model: Any) -> None:
    """A product is multiplied with the peaks of other rows."""
    peaks = [node.output[0] for node in model.graph.node if node.op_type == "ReduceMax"]
    node = next(node for node in model.graph.node if node.op_type == "Mul" and peaks[1] in node.input)
    node.input[list(node.input).index(peaks[1])] = peaks[0]


def code_another_value(model: Any) -> None:
    """What is divided by a peak is not what the peak was taken of."""
    divide = [node for node in model.graph.node if node.op_type == "Div"][1]
    divide.input[0] = node_of(model, divide.input[0]).input[0]


def drop_smoothing_once(model: Any) -> None:
    """The peak is taken before the smoothing."""
    sizes = first_node(model, "Abs", 1)
    sizes.input[0] = node_of(model, sizes.input[0]).input[0]


def pool_first(model: Any) -> None:
    model.graph.node.remove(node_of(model, "L02"))
    places = add_tensor(model, np.array(0, np.int64))
    node = model.graph.node.add(op_type="Gather", input=["state_2", places], output=["L02"])
    set_number(node, "axis", i=1)
    move_last(model, "sentence_embedding")


def pool_largest(model: Any) -> None:
    """Of all places, padding too."""
    model.graph.node.remove(node_of(model, "L02"))
    node = model.graph.node.add(op_type="ReduceMax", input=["state_2", "val_17"], output=["L02"])
    set_number(node, "keepdims", i=0)
    move_last(model, "sentence_embedding")


def pool_second(model: Any) -> None:
    pool_first(model)
    node_of(model, "L02").input[1] = add_tensor(model, np.array(1, np.int64))


def move_last(model: Any, output: str) -> None:
    """Nodes that follow what was put at the end are put behind it."""
    names = [output]
    behind = []
    while names:
        node = node_of(model, names.pop())
        if node.output[0] != "L02" and node.op_type in ("Slice", "ReduceL2", "Max", "Div"):
            behind.insert(0, node)
            names += [name for name in node.input if any(name in other.output for other in model.graph.node)]
    order = sorted({id(node): node for node in behind}.values(), key=list(model.graph.node).index)
    for node in order:
        copy = type(node)()
        copy.CopyFrom(node)
        model.graph.node.remove(node)
        model.graph.node.append(copy)


def _input(output: str, place: int, name: str) -> Callable[[Any], None]:
    return lambda model: set_input(node_of(model, output), place, name)


#: What is changed -> how. First what must be refused, whatever it gives.
REFUSED: Mapping[str, Callable[[Any], None]] = {
    "softmax over the queries": lambda model: set_number(first_node(model, "Softmax"), "axis", i=2),
    "no mask": drop_mask,
    "a mask that only dims": lambda model: set_input(first_node(model, "Where"), 2, scalar(model, -10.0)),
    "a mask that hides the text": lambda model: swap_inputs(first_node(model, "Where"), 1, 2),
    "a mask that is scaled": mask_after_scaling,
    "tokens that see from the third on": lambda model: set_input(
        first_node(model, "GreaterOrEqual"), 1, add_tensor(model, np.array(2, np.int64))
    ),
    "the sum of all places": pool_without_mask,
    "a mean over at least 5": lambda model: set_input(first_node(model, "Clip"), 1, scalar(model, 5.0)),
    "the largest of all places": pool_largest,
    "the second token": pool_second,
    "a length over texts": lambda model: set_input(
        first_node(model, "ReduceL2"), 1, add_tensor(model, np.array([0], np.int64))
    ),
    "a peak over tokens": lambda model: set_input(
        first_node(model, "ReduceMax"), 1, add_tensor(model, np.array([1], np.int64))
    ),
    "another step of codes": lambda model: set_input(first_node(model, "QuantizeLinear"), 1, scalar(model, 1 / 64)),
    "a step that is no share": lambda model: tensor(model, "unit_127").__setattr__(
        "raw_data", np.float32(0.0079).tobytes()
    ),
    "another zero of codes": lambda model: set_input(
        first_node(model, "QuantizeLinear"), 2, add_tensor(model, np.array(120, np.uint8))
    ),
    "another peak": take_another_peak,
    "another value": code_another_value,
    "a peak before smoothing": drop_smoothing_once,
    "a norm over two axes": lambda model: set_number(first_node(model, "LayerNormalization"), "axis", i=1),
    "scales by their types": lambda model: set_input(
        [node for node in model.graph.node if node.op_type == "Gather"][1], 1, "token_type_ids"
    ),
    "places that begin at 1": lambda model: set_input(
        first_node(model, "Slice"), 1, add_tensor(model, np.array([1], np.int64))
    ),
}
#: What means something else, that is known as well.
KNOWN: Mapping[str, Callable[[Any], None]] = {
    "another scale of scores": lambda model: set_input(
        node_of(model, node_of(model, first_node(model, "Softmax").input[0]).input[0]), 1, scalar(model, 0.9)
    ),
    "biases of query and value": swap_biases,
    "weights of query and key": swap_products,
    "scales of the values": enlarge_scales,
    "a residual of itself": lambda model: set_input(node_of(model, "add_203"), 1, "linear_3"),
    "a residual of another block": lambda model: set_input(node_of(model, "add_337"), 1, "state_0"),
    "no residual": lambda model: set_input(node_of(model, "state_1"), 0, "linear_5"),
    "another epsilon": lambda model: set_number(first_node(model, "LayerNormalization"), "epsilon", f=0.3),
    "half as many heads": lambda model: tensor(model, "val_94").__setattr__("raw_data", np.int64(16).tobytes()),
    "relu": lambda model: (
        first_node(model, "Gelu").__setattr__("op_type", "Relu"),
        first_node(model, "Relu").ClearField("attribute"),
    )[0],
    "a longer least length": lambda model: set_input(first_node(model, "Max", 3), 1, scalar(model, 5.0)),
    "the first token": pool_first,
    "columns from 3 on": lambda model: set_input(
        node_of(model, "val_183"), 1, add_tensor(model, np.array([3], np.int64))
    ),
    "the vector of another block": lambda model: set_input(node_of(model, "mul_310"), 0, "state_1"),
    "tokens that see those before": see_before_alone,
}


@pytest.fixture(scope="module")
def plain() -> dict[str, Array]:
    """What the unchanged graph gives."""
    model, weights = load(CHANGED)
    return run_graph(model, weights, make_feeds(model, RIGHT))


@pytest.mark.parametrize("change", REFUSED)
def test_a_graph_that_means_something_unknown_is_refused(change: str) -> None:
    model, weights = load(CHANGED)
    REFUSED[change](model)
    with pytest.raises(UnknownGraphError, match=r"^the o"):
        read_plan(model, weights)


@pytest.mark.parametrize("change", KNOWN)
def test_a_graph_that_means_something_else_is_read_as_that(change: str, plain: dict[str, Array]) -> None:
    model, weights = load(CHANGED)
    KNOWN[change](model)
    changed = run_graph(model, weights, make_feeds(model, RIGHT))["sentence_embedding"]
    old = plain["sentence_embedding"]
    assert changed.shape != old.shape or np.abs(changed - old).max() > MIN_CHANGE, "nothing changed"
    check(model, weights, read_plan(model, weights))


def test_gelu_by_tanh_is_told_apart() -> None:
    """By so little that a vector does not tell."""
    model, weights = load(CHANGED)
    set_number(first_node(model, "Gelu"), "approximate", s=b"tanh", type=3)
    plan = read_plan(model, weights)
    functions = [step.function for step in plan.steps if isinstance(step, steps.Activate)]
    assert functions == [steps.Function.GELU_TANH, steps.Function.GELU]
    check(model, weights, plan)


def test_a_tensor_outside_of_its_file_is_refused() -> None:
    model, weights = load(CHANGED)
    shorter = {name: content[:-4096] for name, content in weights.items()}
    with pytest.raises(FamilyError, match="do not fit"):
        read_plan(model, shorter)


def test_any_operator_that_is_taken_away_is_missed() -> None:
    """Each node in turn passes its first input on: what is left is refused, or gives what onnxruntime gives."""
    model, weights = load("schema3/L01-D012.int8.onnx")
    feeds = make_feeds(model, RIGHT)
    outcomes = {"refused": 0, "read": 0}
    for place in range(len(model.graph.node)):
        changed = type(model)()
        changed.CopyFrom(model)
        node = changed.graph.node[place]
        node.op_type, node.domain = "Identity", ""
        node.ClearField("attribute")
        del node.input[1:]
        try:
            plan = read_plan(changed, weights)
        except UnknownGraphError:
            outcomes["refused"] += 1
            continue
        wanted = try_graph(changed, weights, feeds)
        if wanted is None:
            continue
        outcomes["read"] += 1
        found = run_plan(plan, split_batch(feeds))
        for name, rows in found.items():
            assert_near([rows], [wanted[name]])
    assert outcomes["refused"] > 40
    assert outcomes["read"] > 5


@pytest.mark.parametrize("seed", range(3))
def test_a_node_that_reads_another_value_is_refused_or_read_as_that(seed: int) -> None:
    """One input of one node is an earlier value, or another constant."""
    model, weights = load(CHANGED)
    draw = random.Random(seed)
    outcomes = {"refused": 0, "read": 0}
    for _ in range(60):
        changed = type(model)()
        changed.CopyFrom(model)
        place = draw.randrange(len(model.graph.node))
        node = changed.graph.node[place]
        earlier = [name for other in changed.graph.node[:place] for name in other.output][-40:]
        inside = [item.name for item in changed.graph.initializer if not item.data_location]
        node.input[draw.randrange(len(node.input))] = draw.choice([*earlier, *draw.sample(inside, 20)])
        try:
            plan = read_plan(changed, weights)
        except UnknownGraphError:
            outcomes["refused"] += 1
            continue
        feeds = make_feeds(changed, RIGHT)
        wanted = try_graph(changed, weights, feeds)
        if wanted is not None:
            outcomes["read"] += 1
            found = run_plan(plan, split_batch(feeds))
            assert_near(list(found.values()), [wanted[name] for name in found])
    assert min(outcomes.values()) > 0


def test_a_value_that_nothing_makes_is_refused() -> None:
    """Nor one that is made later."""
    model, weights = load(CHANGED)
    set_input(node_of(model, "add_203"), 1, "state_2")
    with pytest.raises(UnknownGraphError, match=r"^the operator Add \(.*\): nothing before it makes 'state_2'$"):
        read_plan(model, weights)
