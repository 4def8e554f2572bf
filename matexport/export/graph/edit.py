"""Small edits of an onnx_ir graph that every stage makes: what a value needs, a constant, a node put before another.

A graph is changed where it stands; `write_graph` puts it on disk without its weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def find_needed_nodes(outputs: Sequence[ir.Value]) -> set[ir.Node]:
    """All nodes from which one of the values can be reached, those inside sub-graphs aside."""
    needed: set[ir.Node] = set()
    pending = [value.producer() for value in outputs]
    while pending:
        node = pending.pop()
        if node is None or node in needed:
            continue
        needed.add(node)
        pending.extend(value.producer() for value in node.inputs if value is not None)
        for inner in _inner_nodes(node):  # what a sub-graph reads from outside
            pending.extend(value.producer() for value in inner.inputs if value is not None)
    return needed


def _inner_nodes(node: ir.Node) -> list[ir.Node]:
    graphs = [
        attribute.as_graph() for attribute in node.attributes.values() if attribute.type is ir.AttributeType.GRAPH
    ]
    return [inner for graph in graphs for inner in graph.all_nodes()]


def write_graph(model: ir.Model, path: Path) -> None:
    """Serialise a graph, the same bytes for the same graph. Shapes inside are left out: runtimes infer them."""
    made = [value for node in model.graph.all_nodes() for value in node.outputs]
    for value in {*made, *model.graph.initializers.values()} - {*model.graph.outputs}:
        value.shape, value.type = None, None
    path.write_bytes(ir.serde.serialize_model(model).SerializeToString(deterministic=True))


def read_weight(value: ir.Value) -> Floats:
    """The float32 array behind an initializer."""
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy(), dtype=np.float32)


def add_constant(model: ir.Model, name: str, array: NDArray[np.generic]) -> ir.Value:
    """An initializer of that name, made if there is none."""
    known = model.graph.initializers.get(name)
    if known is None:
        tensor = ir.tensor(array, name=name)
        known = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)  # type: ignore[arg-type]
        model.graph.initializers.add(known)
    return known


@dataclass
class Inserter:
    """Puts nodes in front of one that is there, in the order in which they are asked for."""

    model: ir.Model
    before: ir.Node

    def add(
        self,
        operator: str,
        inputs: Sequence[ir.Value | None],
        attributes: dict[str, int] | None = None,
        *,
        like: ir.Value,
        dtype: ir.DataType | None = None,
        last: int | None = None,
        domain: str = "",
    ) -> ir.Value:
        """Insert a node and give its output.

        Args:
            like: a value of the same shape and type; the later stages need both.
            dtype: another type than that.
            last: another last axis than that.
        """
        node = ir.node(operator, inputs, attributes, domain=domain)
        out = node.outputs[0]
        out.type = ir.TensorType(dtype or like.dtype or ir.DataType.FLOAT)
        if like.shape is not None:
            out.shape = ir.Shape(like.shape if last is None else [*like.shape[:-1], last])
        self.model.graph.insert_before(self.before, node)
        return out


def drop_unused(model: ir.Model) -> None:
    """Forget initializers that no node reads any more."""
    outputs = set(model.graph.outputs)
    for value in [value for value in model.graph.initializers.values() if not value.uses() and value not in outputs]:
        del model.graph.initializers[str(value.name)]


def use_contrib(model: ir.Model) -> None:
    """Say that the graph has operators of onnxruntime's own."""
    model.graph.opset_imports["com.microsoft"] = 1


def iterate_inputs(node: ir.Node) -> Iterator[tuple[int, ir.Value]]:
    """The inputs that are there, with their places."""
    yield from ((place, value) for place, value in enumerate(node.inputs) if value is not None)
