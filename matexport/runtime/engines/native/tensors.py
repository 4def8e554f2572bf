"""The constants of a parsed graph as arrays of numpy: views of the mapped weights, or of the graph's own bytes.

A range is checked against its file before there is a view of it, whoever has checked it before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from matexport.errors import refuse_file
from matexport.family.graph_file import EXTERNAL
from matexport.family.weights_file import Buffer
from matexport.runtime.engines.native.geometry.node import UnknownGraphError

Read: TypeAlias = Callable[[Any], NDArray[Any]]

#: TensorProto.DataType -> how numpy holds one, and the field of a tensor that has them where no bytes are given.
_TYPES: Mapping[int, tuple[str, str]] = {
    1: ("<f4", "float_data"),
    2: ("u1", "int32_data"),
    3: ("i1", "int32_data"),
    6: ("<i4", "int32_data"),
    7: ("<i8", "int64_data"),
    9: ("?", "int32_data"),
    11: ("<f8", "double_data"),
}

#: Of an offset and a length together; 2**64 has 20.
_MAX_DIGITS = 40


def make_reader(name: str, weights: Mapping[str, Buffer]) -> Read:
    """What gives an array for a tensor message of a graph.

    Args:
        name: of the graph, for messages.
        weights: ``location`` of external data -> the file's content, read or mapped.

    Returns:
        a function: tensor message -> array of its shape, which shares memory with the file or the message and is not to
        be written to. It raises UnknownGraphError where the tensor is of another type than float32, float64, int8,
        uint8, int32, int64 or bool, and FamilyError where it does not lie inside of its file.
    """

    def read(tensor: Any) -> NDArray[Any]:
        if tensor.data_type not in _TYPES:
            raise UnknownGraphError(f"tensor {tensor.name!r} is of the data type {tensor.data_type}, not read here")
        problem, array = _read(tensor, weights)
        if array is None:
            raise refuse_file(name, f"tensor {tensor.name!r} {problem}")
        return array

    return read


def _read(tensor: Any, weights: Mapping[str, Buffer]) -> tuple[str, NDArray[Any] | None]:
    """The array, or what is wrong."""
    spelled, field = _TYPES[tensor.data_type]
    kind, shape = np.dtype(spelled), tuple(tensor.dims)
    if any(dim < 0 for dim in shape):
        return "has negative dims", None
    count = math.prod(shape)
    if tensor.data_location == EXTERNAL:
        return _read_external(tensor, weights, kind, shape)
    if tensor.raw_data or not count:
        if len(tensor.raw_data) != count * kind.itemsize:
            return f"says {count} numbers, and holds {len(tensor.raw_data)} bytes", None
        return "", np.frombuffer(tensor.raw_data, kind).reshape(shape)
    numbers = getattr(tensor, field)
    if len(numbers) != count:
        return f"says {count} numbers, and holds {len(numbers)}", None
    return "", np.array(numbers).astype(kind).reshape(shape)


def _read_external(
    tensor: Any, weights: Mapping[str, Buffer], kind: np.dtype[Any], shape: tuple[int, ...]
) -> tuple[str, NDArray[Any] | None]:
    where = {entry.key: entry.value for entry in tensor.external_data}
    buffer = weights.get(where.get("location", ""))
    if buffer is None:
        return f"points to {where.get('location')!r}, which is not a weights file of this graph", None
    start, size = where.get("offset", ""), where.get("length", "")
    together = start + size
    if not (start and size and together.isascii() and together.isdigit() and len(together) <= _MAX_DIGITS):
        return "has an offset or a length that is no whole number", None
    offset, length = int(start), int(size)
    count = math.prod(shape)
    if length != count * kind.itemsize or offset + length > len(buffer):
        return f"is {length} bytes from byte {offset} of a file of {len(buffer)}, which do not fit", None
    if not count:
        return "", np.empty(shape, kind)
    return "", np.frombuffer(buffer, kind, count, offset).reshape(shape)
