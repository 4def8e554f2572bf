"""Replace the traced graph's vectors at full width by one named output per point.

After the heads, every point does the same: keep the leading `dim` coordinates and scale to unit length. These nodes are
written into the graph here and not traced, so that a trace costs the same for one dim as for a hundred.

A length is Sqrt(ReduceSum(x * x)) and not ReduceL2, which converters refuse and MNN computes wrongly; onnxruntime's
ReduceSum also adds more exactly than its ReduceL2 (a unit vector of 768 coordinates: 2 against 10 times 2^-24).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from msgspec.structs import replace

from matexport.export.graph.edit import add_constant, append_node
from matexport.spec.facts import BATCH_AXIS
from matexport.spec.profile import Point
from matexport.spec.readout import Readout

#: A shorter vector is divided by this and not by its length: the default `eps` of torch.nn.functional.normalize.
MIN_NORM = 1e-12

#: What the Slice of an exit is called, after its point.
CUT = "cut"


def find_read(point: Point, *, own_dims: bool) -> Point:
    """Where a parent's module is read for a point: at full width (dim 0), or at the point's own dim."""
    return point if own_dims else replace(point, dim=0)


def name_read(read: Point) -> str:
    """Name of the traced output that is read there: ``L02``, ``L23-T036``, ``L00-D008``."""
    return read.name if read.dim else f"L{read.layers:02d}" + (f"-T{read.tokens:03d}" if read.tokens else "")


def add_exits(model: ir.Model, points: Sequence[Point], readout: Readout, *, own_dims: bool = False) -> None:
    """Replace a traced graph's outputs, vectors for each read, by (B, dim) vectors for each point, in place.

    Args:
        model: a traced graph whose float32 outputs are named by `name_read`.
        points: the exits, after which the new outputs are named.
        readout: whether each row is scaled to length 1 after the cut. What a classifier says is left as it is.
        own_dims: there is an output for each point, and not for each depth alone.
    """
    full = {value.name: value for value in model.graph.outputs}
    found = {point: full[name_read(find_read(point, own_dims=own_dims))] for point in points}
    if not readout.classes:
        for value in found.values() if own_dims else ():
            value.name = f"{value.name}.whole"  # the point's own name is the cut vector's
        append_exits(model.graph, found, normalize=readout.normalize)
        return
    for point, value in found.items():
        value.name, value.shape = point.name, ir.Shape([BATCH_AXIS, readout.classes])
    model.graph.outputs[:] = [found[point] for point in sorted(points)]


def append_exits(graph: ir.Graph, full: Mapping[Point, ir.Value], *, normalize: bool) -> None:
    """Give a graph one output for each point, in place of its outputs; see `add_exits`.

    What is appended is named after its point, and nothing of it after how many points there are: the graph of one is
    the same bytes whatever others a family has.

    Args:
        full: point -> the (B, W) float32 value that its vector is cut from, (B, tokens, W) of visual tokens.
    """
    floor = add_constant(graph, "min_norm", np.array(MIN_NORM, dtype=np.float32))
    last_axis = add_constant(graph, "last_axis", np.array([-1], dtype=np.int64))
    zero = add_constant(graph, "dim_start", np.array([0], dtype=np.int64))
    outputs = []
    for point, whole in sorted(full.items()):
        inputs = [whole, zero, add_end(graph, point.dim), last_axis]
        value = append_node(graph, "Slice", inputs, name=name_part(point, CUT))
        if normalize:
            squares = append_node(graph, "Mul", [value, value], name=name_part(point, "squares"))
            total = append_node(graph, "ReduceSum", [squares, last_axis], {"keepdims": 1}, name=name_part(point, "sum"))
            norm = append_node(graph, "Sqrt", [total], name=name_part(point, "norm"))
            length = append_node(graph, "Max", [norm, floor], name=name_part(point, "length"))
            value = append_node(graph, "Div", [value, length], name=name_part(point, "unit"))
        value.name = point.name
        value.type = ir.TensorType(ir.DataType.FLOAT)
        value.shape = ir.Shape([BATCH_AXIS, *([point.tokens] if point.tokens else []), point.dim])
        outputs.append(value)
    graph.outputs[:] = outputs


def add_end(graph: ir.Graph, dim: int) -> ir.Value:
    """The constant at which the leading `dim` coordinates end."""
    return add_constant(graph, f"dim_{dim}", np.array([dim], dtype=np.int64))


def name_part(point: Point, part: str) -> str:
    """Name of one of the nodes that an exit is made of."""
    return f"{point.name}.{part}"
