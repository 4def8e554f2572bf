"""Graphs of the form that a trace leaves, small enough to work out in numpy: a table, blocks of two products with an
activation between them, and one mean over the tokens for each depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from matexport.export.graph.edit import assert_sound
from matexport.export.graph.traced import Traced
from matexport.runtime.inputs.text import TextInputs
from matexport.spec.inputs import TextFacts
from matexport.spec.profile import Point

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Toy:
    """A model, and the names of its token states after 0, 1, ... blocks."""

    model: ir.Model
    states: tuple[str, ...]

    @property
    def traced(self) -> Traced:
        """As the precisions take it."""
        return Traced(self.model, self.states)

    @property
    def initializers(self) -> dict[str, NDArray[Any]]:
        values = self.model.graph.initializers.values()
        return {str(value.name): value.const_value.numpy() for value in values}  # type: ignore[union-attr]

    def nodes(self, operator: str) -> list[ir.Node]:
        return [node for node in self.model.graph if node.op_type == operator]


def bare_inputs(text: TextFacts) -> TextInputs:
    """What feeds rows of tokens, without a tokenizer that makes them."""
    return TextInputs(SimpleNamespace(text=text))  # type: ignore[arg-type]  # no text is tokenized


def constant(name: str, array: NDArray[Any]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)


def make_toy(
    table: Floats,
    blocks: Sequence[Mapping[str, Floats]],
    activation: str = "Gelu",
    head: Floats | None = None,
) -> Toy:
    """ids -> table -> blocks -> means.

    Args:
        table: (V, H).
        blocks: each the names and values of its two weights, (H, M) and (M, H); a name that was there before is shared.
        head: (H, H), by which every mean is multiplied.
    """
    width = table.shape[1]
    weights = {name: constant(name, array) for block in blocks for name, array in block.items()}
    ids = ir.Value(name="input_ids", shape=ir.Shape(["batch_size", "sequence_length"]), type=_type(np.int64))
    values = {"table": constant("table", table), "tokens": constant("tokens", np.array([1], dtype=np.int64)), **weights}
    nodes = [_node("Gather", [values["table"], ids], "state_0", width, axis=0)]
    for block, (first, second) in enumerate(blocks, start=1):
        state = nodes[-1].outputs[0]
        hidden = weights[first].shape[1]  # type: ignore[index]
        nodes.append(_node("MatMul", [state, weights[first]], f"wide_{block}", int(hidden)))  # type: ignore[arg-type]
        nodes.append(_node(activation, [nodes[-1].outputs[0]], f"active_{block}", int(hidden)))  # type: ignore[arg-type]
        nodes.append(_node("MatMul", [nodes[-1].outputs[0], weights[second]], f"narrow_{block}", width))
        nodes.append(_node("Add", [state, nodes[-1].outputs[0]], f"state_{block}", width))
    states = tuple(f"state_{block}" for block in range(len(blocks) + 1))
    by_name = {node.outputs[0].name: node.outputs[0] for node in nodes}
    if head is not None:
        values["head"] = constant("head", head)
    outputs = []
    for block, state_name in enumerate(states[1:], start=1):
        node = ir.node("ReduceMean", [by_name[state_name], values["tokens"]], {"keepdims": 0})
        nodes.append(node)
        if head is not None:
            node.outputs[0].type, node.outputs[0].shape = _type(np.float32), ir.Shape(["batch_size", width])
            nodes.append(ir.node("MatMul", [node.outputs[0], values["head"]]))
        out = nodes[-1].outputs[0]
        out.name, out.type, out.shape = Point(block, width).name, _type(np.float32), ir.Shape(["batch_size", width])
        outputs.append(out)
    graph = ir.Graph(
        [ids], outputs, nodes=nodes, initializers=list(values.values()), opset_imports={"": 20}, name="toy"
    )
    return Toy(ir.Model(graph, ir_version=10), states)


def observe_toy(toy: Toy) -> dict[str, Floats]:
    """What every product reads when all tokens are run: name of the value -> rows (V, K)."""
    products = [node for node in toy.nodes("MatMul") if node.inputs[1].name != "head"]  # type: ignore[union-attr]
    names = list(dict.fromkeys(str(node.inputs[0].name) for node in products))  # type: ignore[union-attr]
    feeds = {"input_ids": np.arange(len(toy.initializers["table"]))[None]}
    seen = run_model(toy.model, feeds, *names)
    return {name: value.reshape(-1, value.shape[-1]) for name, value in zip(names, seen, strict=True)}


def run_model(model: ir.Model, feeds: Mapping[str, NDArray[Any]], *outputs: str) -> list[NDArray[Any]]:
    """What onnxruntime gives for a sound graph; for some of its inner values, where they are named."""
    assert_sound(model)
    proto = ir.serde.serialize_model(model)
    if outputs:
        known = {item.name: item for item in (*proto.graph.output, *proto.graph.value_info)}
        found = [known[name] for name in outputs]
        del proto.graph.output[:]
        proto.graph.output.extend(found)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given: list[NDArray[Any]] = session.run(None, dict(feeds))
    return given


def draw_rows(count: int, width: int, *, rank: int | None = None, seed: int = 0) -> Floats:
    """(count, width) standard normal rows; of a low rank and a little noise, so correlated, when `rank` is given."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, width))
    if rank is not None:
        rows = rng.standard_normal((count, rank)) @ rng.standard_normal((rank, width)) + 0.1 * rows
    return rows.astype(np.float32)


def _node(operator: str, inputs: Sequence[ir.Value], name: str, last: int, **attributes: int) -> ir.Node:
    node = ir.node(operator, inputs, attributes)
    out = node.outputs[0]
    out.name, out.type = name, _type(np.float32)
    out.shape = ir.Shape(["batch_size", "sequence_length", last])
    return node


def _type(kind: type[np.generic]) -> ir.TensorType:
    return ir.TensorType(ir.DataType.from_numpy(np.dtype(kind)))
