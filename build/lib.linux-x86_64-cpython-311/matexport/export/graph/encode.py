"""Output encodings: have the graph give codes instead of float32, as `quantize_embeddings` would make them.

The codes are those of sentence-transformers 6.2, `util/quantization.py`. int8: floor((x - start) / step), clipped to
0 .. 255, minus 128, where start is the least value of the coordinate in the stored ranges and step is their difference
divided by 255. ubinary: one bit per coordinate, set where it is above 0; the first coordinate is the highest bit of the
first byte, and the last byte is filled up with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from matexport.export.graph.edit import add_constant, append_node
from matexport.spec.facts import BATCH_AXIS
from matexport.spec.profile import Encoding
from matexport.verify.codes import INT8_STEPS


def encode_output(model: ir.Model, encoding: Encoding, ranges: NDArray[np.float32] | None = None) -> None:
    """Replace a cut graph's (B, dim) float32 output by its codes, in place.

    Args:
        model: a graph with one output.
        encoding: float32 leaves the graph as it is; int8 gives (B, dim) int8, ubinary (B, ceil(dim / 8)) uint8.
        ranges: (2, dim) float32, the least and the greatest value of each coordinate; needed for int8. Where both are
            the same, the step is 1.
    """
    if encoding is Encoding.FLOAT32:
        return
    (vectors,) = model.graph.outputs
    name, dim = vectors.name, int(vectors.shape[1])  # type: ignore[arg-type, index]
    vectors.name = "vectors"
    if encoding is Encoding.INT8:
        assert ranges is not None
        codes = _encode_int8(model.graph, vectors, ranges)
        dtype = ir.DataType.INT8
    else:
        codes = _encode_bits(model.graph, vectors, dim)
        dtype = ir.DataType.UINT8
    codes.name, codes.type = name, ir.TensorType(dtype)
    codes.shape = ir.Shape([BATCH_AXIS, encoding.width(dim)])
    model.graph.outputs[:] = [codes]


def find_ranges(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, dim) float32 vectors -> (2, dim) float32, the least and the greatest value of each coordinate."""
    return np.stack([vectors.min(axis=0), vectors.max(axis=0)])


def _append(graph: ir.Graph, operator: str, inputs: Sequence[ir.Value], part: str, **attributes: int) -> ir.Value:
    """Append a node by a name of its own: numbered ones would depend on what was done to the graph before."""
    return append_node(graph, operator, inputs, attributes, name=f"code.{part}")


def _encode_int8(graph: ir.Graph, vectors: ir.Value, ranges: NDArray[np.float32]) -> ir.Value:
    steps = (ranges[1] - ranges[0]) / np.float32(INT8_STEPS)
    steps = np.where(steps == 0, np.float32(1), steps)
    above = _append(graph, "Sub", [vectors, add_constant(graph, "range_start", ranges[0])], "above")
    ratio = _append(graph, "Div", [above, add_constant(graph, "range_step", steps)], "ratio")
    level = _append(graph, "Floor", [ratio], "level")
    least = add_constant(graph, "least_code", np.array(0, dtype=np.float32))
    most = add_constant(graph, "most_code", np.array(INT8_STEPS, dtype=np.float32))
    inside = _append(graph, "Clip", [level, least, most], "inside")
    half = add_constant(graph, "half_codes", np.array(128, dtype=np.float32))
    signed = _append(graph, "Sub", [inside, half], "signed")
    return _append(graph, "Cast", [signed], "bytes", to=int(ir.DataType.INT8))


def _encode_bits(graph: ir.Graph, vectors: ir.Value, dim: int) -> ir.Value:
    threshold = add_constant(graph, "bit_threshold", np.array(0, dtype=np.float32))
    above = _append(graph, "Greater", [vectors, threshold], "above")
    bits = _append(graph, "Cast", [above], "bits", to=int(ir.DataType.FLOAT))
    if dim % 8:
        pads = np.array([0, 0, 0, 8 - dim % 8], dtype=np.int64)
        bits = _append(graph, "Pad", [bits, add_constant(graph, "bit_pads", pads)], "padded")
    groups = np.array([0, -(-dim // 8), 8], dtype=np.int64)  # 0 keeps the number of rows
    bits = _append(graph, "Reshape", [bits, add_constant(graph, "byte_shape", groups)], "groups")
    values = np.array([128, 64, 32, 16, 8, 4, 2, 1], dtype=np.float32)
    places = _append(graph, "Mul", [bits, add_constant(graph, "bit_values", values)], "places")
    axis = add_constant(graph, "bit_axis", np.array([-1], dtype=np.int64))
    octets = _append(graph, "ReduceSum", [places, axis], "octets", keepdims=0)
    return _append(graph, "Cast", [octets], "bytes", to=int(ir.DataType.UINT8))
