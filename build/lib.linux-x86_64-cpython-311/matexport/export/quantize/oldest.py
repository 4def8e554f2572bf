"""Which onnxruntime is the oldest that runs a graph: what a manifest says to whoever has one.

Found by running families with its releases from 1.16 on (docs/targets.md). Older ones say that they do not know the IR
version, a type or an operator; but which release would, they do not say.
"""

from __future__ import annotations

import onnx_ir as ir

#: The first IR version and opset that are beyond 1.16, and the release that reads them.
NEWER_IR, NEWER_OPSET, NEWER_RUNTIME = 10, 18, (1, 18)

OLDEST = (1, 16)


def find_least_runtime(model: ir.Model) -> str:
    """The least onnxruntime that runs a graph, such as ``1.18``."""
    newer = model.ir_version >= NEWER_IR or int(model.graph.opset_imports[""]) >= NEWER_OPSET
    least = max([NEWER_RUNTIME if newer else OLDEST, *map(_find_least, model.graph)])
    return ".".join(map(str, least))


def _find_least(node: ir.Node) -> tuple[int, int]:
    """The release that brought an operator, in the form in which a graph has it."""
    if node.op_type == "GatherBlockQuantized":  # of bytes
        return (1, 23)
    if node.op_type == "MatMulNBits" and node.attributes.get_int("bits", 4) == 8:
        return (1, 22)
    if node.op_type == "DequantizeLinear" and node.attributes.get_int("block_size", 0) > 0:
        return (1, 19)
    return OLDEST
