"""Copies of a profile's graph, which lie where other consumers look for it and read the same weights from there.

A consumer opens `onnx/model.onnx` or `model.onnx`, and onnxruntime looks for a graph's weights from the graph's own
folder on. So a copy differs from the graph of its profile in one thing, the ``location`` of its tensors, and that it
differs in nothing else is checked wherever a family is.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any

from matexport.errors import refuse_file
from matexport.family.graph_file import list_external, parse_graph
from matexport.family.weights_file import Buffer


def locate_weights(graph: str, weights: str) -> str:
    """Where a graph's tensors lie, as the graph says it: the path from its folder on, with ``/``."""
    return posixpath.relpath(weights, posixpath.dirname(graph) or ".")


def move_weights(model: Any, location: str) -> None:
    """Let every external tensor of a parsed graph lie in another file, or the same by another path."""
    for tensor in list_external(model):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location


def check_copy(name: str, content: Buffer, graph: str, of: Buffer) -> None:
    """Refuse a copy that differs from the graph that it is of in more than where its weights lie.

    Args:
        name, content: of the copy.
        graph, of: name and content of the graph.

    Raises:
        FamilyError: naming the copy.
    """
    copy, original = parse_graph(name, content), parse_graph(graph, of)
    location = next(_list_locations(original), "")
    move_weights(copy, location)
    move_weights(original, location)
    if copy.SerializeToString(deterministic=True) != original.SerializeToString(deterministic=True):
        raise refuse_file(name, f"is to be a copy of {graph}, and is another graph")


def _list_locations(model: Any) -> Iterator[str]:
    return (entry.value for tensor in list_external(model) for entry in tensor.external_data if entry.key == "location")
