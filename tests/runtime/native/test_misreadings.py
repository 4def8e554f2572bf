"""Graphs that were once read as something else than they mean, or that took the machine: each is refused, or right."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from native_graphs import CHANGED, RIGHT, load, make_feeds, read_plan, run_graph
from native_oracle import run_plan, split_batch

from matexport.runtime.engines.native.recognize import UnknownGraphError
from matexport.runtime.engines.native.steps import Attend

TYPES = {"float32": 1, "int64": 7}


class Changed:
    """A golden graph, to which nodes and constants are added."""

    def __init__(self) -> None:
        self.model, self.weights = load(CHANGED)

    def node(self, operator: str, inputs: list[str], outputs: list[str], **ints: int) -> Any:
        made = type(self.model.graph.node[0])(op_type=operator, input=inputs, output=outputs)
        for name, value in ints.items():
            attribute = made.attribute.add()
            attribute.name, attribute.i, attribute.type = name, value, 2
        return made

    def constant(self, name: str, array: np.ndarray) -> str:
        tensor = self.model.graph.initializer.add()
        tensor.name, tensor.data_type, tensor.raw_data = name, TYPES[str(array.dtype)], array.tobytes()
        tensor.dims.extend(array.shape)
        return name

    def insert(self, place: int, nodes: list[Any]) -> None:
        known = list(self.model.graph.node)
        del self.model.graph.node[:]
        self.model.graph.node.extend([*known[:place], *nodes, *known[place:]])

    def find(self, output: str) -> int:
        return next(place for place, node in enumerate(self.model.graph.node) if output in node.output)

    def hide(self, nodes: list[Any], seen: str) -> None:
        """Let `seen` (a value of the nodes) say, too, what the attention mask shows."""
        place = self.find("where")
        where = self.model.graph.node[place]
        joined = self.node("And", [where.input[0], seen], ["also_seen"])
        where.input[0] = "also_seen"
        self.insert(place, [*nodes, joined])

    def refuses(self, reason: str) -> None:
        with pytest.raises(UnknownGraphError, match=reason):
            read_plan(self.model, self.weights)


def test_another_output_of_a_norm() -> None:
    changed = Changed()
    changed.model.graph.node[changed.find("state_2")].output.append("mean")
    reader = changed.model.graph.node[changed.find("mul_310")]
    assert reader.input[0] == "state_2"
    reader.input[0] = "mean"
    changed.refuses("only its first output is known")


@pytest.mark.parametrize("of", ["input_ids", "token_type_ids"])
def test_a_mask_of_tokens(of: str) -> None:
    """No small batch has all of the ids that one may be hidden for."""
    changed = Changed()
    one, axes = changed.constant("one_id", np.array(40)), changed.constant("new_axes", np.array([1, 2]))
    nodes = [
        changed.node("Equal", [of, one], ["is_it"]),
        changed.node("Not", ["is_it"], ["is_not"]),
        changed.node("Unsqueeze", ["is_not", axes], ["seen_ids"]),
    ]
    changed.hide(nodes, "seen_ids")
    changed.refuses("follows from the ids or types of tokens")


def test_a_mean_without_some_tokens() -> None:
    changed = Changed()
    place = changed.find("mul_310")
    product = changed.model.graph.node[place]
    one, axes = changed.constant("one_id", np.array(40)), changed.constant("last", np.array([2]))
    nodes = [
        changed.node("Equal", ["input_ids", one], ["is_it"]),
        changed.node("Not", ["is_it"], ["is_not"]),
        changed.node("Cast", ["is_not"], ["weight"], to=1),
        changed.node("Unsqueeze", ["weight", axes], ["weights"]),
        changed.node("Mul", [product.input[1], "weights"], ["fewer"]),
    ]
    product.input[1] = "fewer"
    changed.insert(place, nodes)
    changed.refuses("follows from their ids or types")


@pytest.mark.parametrize("spelt", ["constant", "product", "reduced", "power", "filled"])
def test_a_window_however_its_width_is_spelt(spelt: str) -> None:
    changed = Changed()
    for name, value in (("two", 2), ("four", 4), ("sixteen", 16)):
        changed.constant(name, np.array(value))
    changed.constant("twos", np.array([2, 2, 2, 2]))
    changed.constant("rows", np.array([1]))
    changed.constant("columns", np.array([0]))
    width = {
        "constant": changed.node("Identity", ["sixteen"], ["width"]),
        "product": changed.node("Mul", ["four", "four"], ["width"]),
        "reduced": changed.node("ReduceProd", ["twos"], ["width"], keepdims=0),
        "power": changed.node("Pow", ["four", "two"], ["width"]),
        "filled": changed.node("ConstantOfShape", ["lengths"], ["width"]),
    }[spelt]
    nodes = [width]
    if spelt == "filled":
        attribute = width.attribute.add()
        attribute.name, attribute.type = "value", 4
        attribute.t.data_type, attribute.t.raw_data = 7, np.array([16]).tobytes()
        attribute.t.dims.append(1)
        nodes = [changed.node("Shape", ["arange_2"], ["lengths"]), width]
    nodes += [
        changed.node("Unsqueeze", ["arange_2", "rows"], ["queries"]),
        changed.node("Unsqueeze", ["arange_2", "columns"], ["keys"]),
        changed.node("Sub", ["queries", "keys"], ["apart"]),
        changed.node("Abs", ["apart"], ["distance"]),
        changed.node("LessOrEqual", ["distance", "width"], ["near"]),
    ]
    changed.hide(nodes, "near")
    plan = read_plan(changed.model, changed.weights)
    assert {step.window for step in plan.steps if isinstance(step, Attend)} == {16}
    feeds = make_feeds(changed.model, [(0, 28), (0, 27)])
    expected = run_graph(changed.model, changed.weights, feeds)["sentence_embedding"]
    assert np.abs(run_plan(plan, split_batch(feeds))["sentence_embedding"] - expected).max() <= 1e-5


def test_rows_that_double() -> None:
    """n sums of a value with itself would be 2 to the n tables."""
    changed = Changed()
    place = next(k for k, node in enumerate(changed.model.graph.node) if node.op_type == "LayerNormalization")
    norm = changed.model.graph.node[place]
    names = [norm.input[0], *(f"doubled_{k}" for k in range(40))]
    norm.input[0] = names[-1]
    changed.insert(place, [changed.node("Add", [a, a], [b]) for a, b in pairwise(names)])
    changed.refuses("rows of more than 8 tables")


def test_codes_that_too_many_nodes_make() -> None:
    changed = Changed()
    nodes = changed.model.graph.node
    nodes[-1].output[0] = "value_0"
    chain = [changed.node("Floor", [f"value_{k}"], [f"value_{k + 1}"]) for k in range(2000)]
    chain.append(changed.node("Cast", ["value_2000"], ["sentence_embedding"], to=3))
    changed.insert(len(nodes), chain)
    changed.model.graph.output[0].type.tensor_type.elem_type = 3
    changed.refuses("more than 200 nodes make its codes")


def test_the_graph_as_it_is() -> None:
    """What the changes begin with is read."""
    changed = Changed()
    feeds = make_feeds(changed.model, RIGHT)
    plan = read_plan(changed.model, changed.weights)
    expected = run_graph(changed.model, changed.weights, feeds)["sentence_embedding"]
    assert np.abs(run_plan(plan, split_batch(feeds))["sentence_embedding"] - expected).max() <= 1e-5
