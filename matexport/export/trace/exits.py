"""Replace the traced graph's vectors at full width by one named output per point.

After the heads, every point does the same: keep the leading `dim` coordinates and scale to unit length. These nodes are
written into the graph here and not traced, so that a trace costs the same for one dim as for a hundred.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from matexport.export.graph.edit import add_constant, append_node
from matexport.spec.facts import BATCH_AXIS
from matexport.spec.profile import Point

#: A shorter vector is divided by this and not by its length: the default `eps` of torch.nn.functional.normalize.
MIN_NORM = 1e-12


def name_layer(layers: int) -> str:
    """Name of the traced output that holds the (B, W) float32 vectors after `layers` blocks."""
    return f"L{layers:02d}"


def add_exits(model: ir.Model, points: Sequence[Point], *, normalize: bool) -> None:
    """Replace a traced graph's outputs, (B, W) vectors for each depth, by (B, dim) vectors for each point, in place.

    Args:
        model: a traced graph whose float32 outputs are named by `name_layer`.
        points: the exits, in the order of the new outputs, which are named after them.
        normalize: whether each row is scaled to length 1 after the cut.
    """
    graph = model.graph
    full = {value.name: value for value in graph.outputs}
    floor = add_constant(graph, "min_norm", np.array(MIN_NORM, dtype=np.float32))
    last_axis = add_constant(graph, "last_axis", np.array([-1], dtype=np.int64))
    zero = add_constant(graph, "dim_start", np.array([0], dtype=np.int64))
    outputs = []
    for point in points:
        value = full[name_layer(point.layers)]
        end = add_constant(graph, f"dim_{point.dim}", np.array([point.dim], dtype=np.int64))
        value = append_node(graph, "Slice", [value, zero, end, last_axis])
        if normalize:
            norm = append_node(graph, "ReduceL2", [value, last_axis], {"keepdims": 1})
            value = append_node(graph, "Div", [value, append_node(graph, "Max", [norm, floor])])
        value.name = point.name
        value.type = ir.TensorType(ir.DataType.FLOAT)
        value.shape = ir.Shape([BATCH_AXIS, point.dim])
        outputs.append(value)
    graph.outputs[:] = outputs
