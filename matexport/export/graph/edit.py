"""Small edits of an onnx_ir graph that every stage makes: adding a constant or a node, replacing a value by another.

Graphs are changed in place, and are valid again after each of these functions; `assert_sound` checks that.
`write_graph` writes a graph to disk without its large weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir import convenience

Floats = NDArray[np.float32]

#: Domain of onnxruntime's own operators, and the operators of it that the precisions use.
CONTRIB_DOMAIN = "com.microsoft"
CONTRIB_OPERATORS = frozenset({"GatherBlockQuantized", "MatMulIntegerToFloat", "MatMulNBits"})


def find_needed_nodes(outputs: Sequence[ir.Value]) -> set[ir.Node]:
    """The nodes of a graph that some of its values depend on; nodes inside of sub-graphs are not listed.

    Args:
        outputs: the values. Graph inputs and initializers may be among them, and depend on no node.
    """
    needed: set[ir.Node] = set()
    pending = [value.producer() for value in outputs]
    while pending:
        node = pending.pop()
        if node is None or node in needed:
            continue
        needed.add(node)
        pending.extend(value.producer() for value in node.inputs if value is not None)
        for inner in _inner_nodes(node):  # a sub-graph may read values from outside
            pending.extend(value.producer() for value in inner.inputs if value is not None)
    return needed


def _inner_nodes(node: ir.Node) -> list[ir.Node]:
    return [inner for graph in _inner_graphs(node) for inner in graph.all_nodes()]


def _inner_graphs(node: ir.Node) -> list[ir.Graph]:
    return [attribute.as_graph() for attribute in node.attributes.values() if attribute.type is ir.AttributeType.GRAPH]


def write_graph(model: ir.Model, path: Path) -> None:
    """Write a graph as ONNX, the same bytes for the same graph. External weights are written as references only.

    Types and shapes of inner values are removed, from the graph in memory as well; runtimes infer them. Of a graph of
    one shape they stay, since converters may not. Initializers are sorted by their names: the order in which they were
    added is not the graph's.

    Raises:
        OSError: the file cannot be written.
    """
    fixed = all(value.shape is not None and value.shape.is_static() for value in model.graph.inputs)
    made = [] if fixed else [value for node in model.graph.all_nodes() for value in node.outputs]
    for value in {*made, *model.graph.initializers.values()} - {*model.graph.outputs}:
        value.shape, value.type = None, None
    written = ir.serde.serialize_model(model)
    written.graph.initializer.sort(key=lambda tensor: tensor.name)
    path.write_bytes(written.SerializeToString(deterministic=True))


def read_weight(value: ir.Value) -> Floats:
    """The content of an initializer as float32, in its shape; it is read from disk if it is external."""
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy(), dtype=np.float32)


def make_constant(name: str, content: NDArray[np.generic] | ir.TensorProtocol) -> ir.Value:
    """A new value for the initializers of a graph, which holds an array, or a tensor as it is."""
    tensor: ir.TensorProtocol = ir.tensor(content, name=name) if isinstance(content, np.ndarray) else content
    return ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)  # type: ignore[arg-type]


def add_constant(graph: ir.Graph, name: str, content: NDArray[np.generic] | ir.TensorProtocol) -> ir.Value:
    """The initializer of that name; it is made from `content` if the graph has none.

    An initializer that exists is returned without comparing its content: callers use one name for one content.
    """
    known = graph.initializers.get(name)
    if known is None:
        known = make_constant(name, content)
        graph.initializers.add(known)
    return known


def append_node(
    graph: ir.Graph,
    operator: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, int] | None = None,
    *,
    name: str | None = None,
) -> ir.Value:
    """Append a standard operator to a graph and return its first output, whose type and shape are not set.

    Args:
        name: of the node and of its output; the graph numbers them where there is none.
    """
    node = ir.node(operator, inputs, attributes, name=name)
    node.outputs[0].name = name
    graph.append(node)
    return node.outputs[0]


@dataclass(frozen=True)
class Inserter:
    """Inserts nodes right before the node `before`, in the order of the calls."""

    graph: ir.Graph
    before: ir.Node

    def add(
        self,
        operator: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, int] | None = None,
        *,
        like: ir.Value,
        dtype: ir.DataType | None = None,
        last: int | None = None,
    ) -> ir.Value:
        """Insert a node and return its first output.

        Args:
            operator: a standard operator, or one of `CONTRIB_OPERATORS`.
            like: a value with the shape and type of the output; later stages need both.
            dtype: type of the output where it differs from that of `like`.
            last: length of the output's last axis where it differs from that of `like`.
        """
        domain = CONTRIB_DOMAIN if operator in CONTRIB_OPERATORS else ""
        node = ir.node(operator, inputs, attributes, domain=domain)
        out = node.outputs[0]
        out.type = ir.TensorType(dtype or like.dtype or ir.DataType.FLOAT)
        if like.shape is not None:
            out.shape = ir.Shape(like.shape if last is None else [*like.shape[:-1], last])
        self.graph.insert_before(self.before, node)
        return out


def replace_node(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Remove a node with one output, and give that output's readers, its name and its shape to `value`."""
    out = node.outputs[0]
    name, value.shape = out.name, out.shape
    convenience.replace_all_uses_with(out, value, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    value.name = name


def drop_unused(model: ir.Model) -> None:
    """Remove the initializers that no node reads, unless they are outputs of the graph."""
    outputs = set(model.graph.outputs)
    for value in [value for value in model.graph.initializers.values() if not value.uses() and value not in outputs]:
        del model.graph.initializers[str(value.name)]


def use_contrib(model: ir.Model) -> None:
    """Declare that the graph may use operators of `CONTRIB_DOMAIN`."""
    model.graph.opset_imports[CONTRIB_DOMAIN] = 1


def iterate_inputs(node: ir.Node) -> Iterator[tuple[int, ir.Value]]:
    """(index, value) of each input of a node; optional inputs that are left out are skipped."""
    yield from ((place, value) for place, value in enumerate(node.inputs) if value is not None)


def assert_sound(model: ir.Model) -> None:
    """Check what every stage may rely on after an edit of a graph.

    Each value that a node reads or that the graph outputs is made by an earlier node, or is an input or initializer of
    the graph. Each initializer is listed under its own name and holds a tensor. No name is empty, and no two values
    share one. Every operator's domain has a version. Weights are not read.

    Raises:
        AssertionError: one of these does not hold; the message names the value or the node.
    """
    names: set[str] = set()
    _assert_sound(model.graph, set(), names, set(model.graph.opset_imports))


def _assert_sound(graph: ir.Graph, outside: set[ir.Value], names: set[str], domains: set[str]) -> None:
    initializers = list(graph.initializers.items())
    for listed, value in initializers:
        _require(value.name == listed, f"the initializer {value.name!r} is listed as {listed!r}")
        _require(value.const_value is not None, f"the initializer {value.name!r} holds nothing")
    known = outside | set(graph.inputs) | {value for _, value in initializers}
    for value in known - outside:
        _note_name(value, names)
    for node in graph:
        where = f"{node.op_type} ({', '.join(str(value.name) for value in node.outputs)})"
        _require(node.domain in domains or node.domain == "ai.onnx", f"{where} is of the domain {node.domain!r}")
        for _, value in iterate_inputs(node):
            _require(value in known, f"{where} reads {value.name!r}, which nothing makes before it")
        for inner in _inner_graphs(node):
            _assert_sound(inner, known, names, domains)
        made = [value for value in node.outputs if value.name or value.uses()]  # without omitted optional outputs
        for value in made:
            _note_name(value, names)
        known |= set(made)
    for value in graph.outputs:
        _require(value in known, f"nothing makes the output {value.name!r}")


def _note_name(value: ir.Value, names: set[str]) -> None:
    _require(bool(value.name), f"a value has no name: {value}")
    _require(value.name not in names, f"two values are called {value.name!r}")
    names.add(str(value.name))


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)
