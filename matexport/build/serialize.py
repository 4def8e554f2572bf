"""A graph in memory -> the bytes of an ONNX file. Shared by the stages that write one."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir


def write_graph(model: ir.Model, path: Path) -> None:
    """Serialise a graph, the same bytes for the same graph. Shapes inside are left out: runtimes infer them."""
    made = [value for node in model.graph.all_nodes() for value in node.outputs]
    for value in {*made, *model.graph.initializers.values()} - {*model.graph.outputs}:
        value.shape, value.type = None, None
    path.write_bytes(ir.serde.serialize_model(model).SerializeToString(deterministic=True))
