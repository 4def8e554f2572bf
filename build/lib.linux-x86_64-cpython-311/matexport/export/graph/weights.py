"""One weights file per precision that all profiles share, ordered so that a shallower model needs only a prefix.

First come all weights that the shallowest exit needs, in the order in which the graph uses them (embeddings, block
1, ..., heads), then those that the next exit needs in addition, and so on. Tensors are written one at a time, so that
at most one of them is copied in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from matexport.export.graph.edit import find_needed_nodes
from matexport.family.weights_file import PADDING_NAME, NestedHeader, TensorEntry, encode_header, plan_header
from matexport.spec.profile import Point

#: Smaller tensors stay in the graph, since the runtime makes a memory mapping for each external tensor.
MIN_EXTERNAL_BYTES = 1024

_DTYPES = {
    ir.DataType.FLOAT: "F32", ir.DataType.FLOAT16: "F16", ir.DataType.DOUBLE: "F64", ir.DataType.INT64: "I64",
    ir.DataType.INT32: "I32", ir.DataType.INT8: "I8", ir.DataType.UINT8: "U8", ir.DataType.BOOL: "BOOL",
    ir.DataType.BFLOAT16: "BF16", ir.DataType.UINT4: "U8",
}  # fmt: skip


def write_nested_weights(
    model: ir.Model, points: Sequence[Point], path: Path, progress: Callable[[str, int, int], None] | None = None
) -> NestedHeader:
    """Write the large weights of a traced model into `path` and make its initializers refer to that file.

    Args:
        model: the traced model, whose outputs are named after `points`. Its large initializers become external.
        path: the file to write, in the directory where the graphs will lie.
        progress: called with ("weights", done, total) tensors.

    Returns:
        the layout that was written.

    Raises:
        OSError: the file cannot be written.
    """
    order = order_weights(model, points)
    header = plan_header(
        ((str(value.name), _DTYPES[value.const_value.dtype], _stored_shape(value)) for value in order),  # type: ignore[union-attr]
        {"format": "matexport-nested"},
    )
    by_name = {str(value.name): value for value in order}
    with path.open("wb") as file:
        file.write(encode_header(header))
        for done, entry in enumerate(header.entries):
            if progress:
                progress("weights", done, len(header.entries))
            if entry.name.startswith(PADDING_NAME):
                file.write(bytes(entry.nbytes))
                continue
            value = by_name[entry.name]
            file.write(_contiguous_bytes(value.const_value))
            value.const_value = _point_into(path, entry, value)
    if progress:
        progress("weights", len(header.entries), len(header.entries))
    return header


def order_weights(model: ir.Model, points: Sequence[Point]) -> list[ir.Value]:
    """The initializers of at least `MIN_EXTERNAL_BYTES` in nested order; those that no exit needs are left out.

    Args:
        model: a model with an output named after each of the points.
    """
    outputs = {value.name: value for value in model.graph.outputs}
    placed: dict[ir.Value, None] = {}
    done: set[ir.Node] = set()
    for layers in sorted({point.layers for point in points}):
        needed = find_needed_nodes([outputs[point.name] for point in points if point.layers == layers])
        for node in model.graph:
            if node not in needed or node in done:
                continue
            done.add(node)
            placed |= {value: None for value in node.inputs if value is not None and _is_large(value)}
    return list(placed)


def measure_prefix(part: ir.Model, header: NestedHeader) -> int:
    """Number of bytes from the start of the weights file that a cut model needs.

    Args:
        header: header of the weights file that the model's initializers lie in.
    """
    known = (value.const_value for value in part.graph.initializers.values())
    ends = [(tensor.offset or 0) + (tensor.length or 0) for tensor in known if isinstance(tensor, ir.ExternalTensor)]
    return max(ends, default=header.data_start)


def _is_large(value: ir.Value) -> bool:
    return value.is_initializer() and value.const_value is not None and value.const_value.nbytes >= MIN_EXTERNAL_BYTES


def _static_shape(value: ir.Value) -> tuple[int, ...]:
    assert value.const_value is not None
    return tuple(int(dim) for dim in value.const_value.shape)  # type: ignore[arg-type]


def _stored_shape(value: ir.Value) -> tuple[int, ...]:
    """As the header says it: 4-bit numbers, of which safetensors has no type, are a row of bytes."""
    assert value.const_value is not None
    return (value.const_value.nbytes,) if value.const_value.dtype is ir.DataType.UINT4 else _static_shape(value)


def _contiguous_bytes(tensor: ir.TensorProtocol | None) -> memoryview:
    """A tensor's bytes, without a copy where it is contiguous already, since an embedding table may be a gigabyte."""
    assert tensor is not None
    if tensor.dtype is ir.DataType.UINT4:
        return memoryview(tensor.tobytes())
    raw = getattr(tensor, "raw", None)
    array = raw.detach().contiguous().numpy() if isinstance(raw, torch.Tensor) else tensor.numpy()
    flat: NDArray[np.uint8] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return flat.data


def _point_into(path: Path, entry: TensorEntry, value: ir.Value) -> ir.ExternalTensor:
    assert value.const_value is not None
    return ir.ExternalTensor(
        location=path.name,
        offset=entry.offset,
        length=entry.nbytes,
        dtype=value.const_value.dtype,
        shape=ir.Shape(_static_shape(value)),
        name=entry.name,
        base_dir=path.parent,
    )
