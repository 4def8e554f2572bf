"""Which part of a graph a value depends on. Shared by the stages that cut and that order weights."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir


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
