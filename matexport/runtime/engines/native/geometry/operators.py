"""What operators make of small arrays, as ONNX defines them (https://onnx.ai/onnx/operators), in numpy.

For what a graph works out from shapes, masks and constants alone. A case that ONNX leaves open, or that numpy refuses,
raises whatever numpy raises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from matexport.runtime.engines.native.geometry.node import Node, UnknownGraphError

Array: TypeAlias = NDArray[Any]
Operator: TypeAlias = Callable[[Node, Sequence[Any]], Any]

#: Numbers of one array. The masks of 2 texts of 2048 tokens for 12 heads are 100 million bits, and none is that long.
MAX_NUMBERS = 1 << 25

#: TensorProto.DataType -> numpy's.
_TYPES = {1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64, 9: np.bool_, 11: np.float64}


def bound(*shapes: Sequence[int]) -> None:
    """Refuse what would be large.

    Raises:
        UnknownGraphError: arrays of such shapes, joined, have more than `MAX_NUMBERS`.
    """
    if math.prod(map(math.prod, shapes)) > MAX_NUMBERS and math.prod(np.broadcast_shapes(*map(tuple, shapes))) > (
        MAX_NUMBERS
    ):
        raise UnknownGraphError("what it makes of a mask is too large to be looked at")


def find_type(number: int) -> Any:
    """numpy's type of a TensorProto.DataType.

    Raises:
        UnknownGraphError: it is none that is known here.
    """
    if number not in _TYPES:
        raise UnknownGraphError(f"the data type {number} is not known")
    return _TYPES[number]


def _elementwise(function: Callable[..., Any]) -> Operator:
    def work(_node: Node, given: Sequence[Any]) -> Any:
        bound(*(array.shape for array in given))
        return function(*given)

    return work


def _fold(function: Callable[..., Any]) -> Operator:
    def work(_node: Node, given: Sequence[Any]) -> Any:
        found = given[0]
        for array in given[1:]:
            bound(found.shape, array.shape)
            found = function(found, array)
        return found

    return work


def _divide(_node: Node, given: Sequence[Any]) -> Any:
    left, right = given
    bound(left.shape, right.shape)
    if left.dtype.kind in "iu":  # towards 0, as C
        return (np.sign(left) * np.sign(right) * (np.abs(left) // np.abs(right))).astype(left.dtype)
    return left / right


def _power(_node: Node, given: Sequence[Any]) -> Any:
    return np.power(given[0], given[1]).astype(given[0].dtype)


def _modulo(node: Node, given: Sequence[Any]) -> Any:
    return np.fmod(*given) if node.read_int("fmod", 0) else np.mod(*given)


def _alone(function: Callable[[Any], Any]) -> Operator:
    def work(_node: Node, given: Sequence[Any]) -> Any:
        return function(given[0]).astype(given[0].dtype)

    return work


def list_axes(node: Node, given: Sequence[Any], place: int = 1) -> list[int] | None:
    """The axes that a node names, as an input or as an attribute; None where it names none."""
    if len(given) > place and given[place] is not None:
        return [int(axis) for axis in given[place].reshape(-1)]
    return node.read_ints("axes") or None


def _reduce(function: Callable[..., Any]) -> Operator:
    def work(node: Node, given: Sequence[Any]) -> Any:
        axes = list_axes(node, given)
        if not axes and node.read_int("noop_with_empty_axes", 0):
            return given[0]
        found = function(given[0], axis=tuple(axes) if axes else None, keepdims=bool(node.read_int("keepdims", 1)))
        return np.asarray(found).astype(given[0].dtype)

    return work


def _arg(function: Callable[..., Any]) -> Operator:
    def work(node: Node, given: Sequence[Any]) -> Any:
        if node.read_int("select_last_index", 0):
            raise UnknownGraphError("it selects the last of equal numbers")
        axis = node.read_int("axis", 0)
        found = function(given[0], axis=axis)
        return np.expand_dims(found, axis) if node.read_int("keepdims", 1) else found

    return work


def _shape(node: Node, given: Sequence[Any]) -> Any:
    dims = given[0].shape
    return np.array(dims[node.read_int("start", 0) : node.read_int("end", len(dims))], np.int64)


def _squeeze(node: Node, given: Sequence[Any]) -> Any:
    axes = list_axes(node, given)
    return np.squeeze(given[0], tuple(axes) if axes is not None else None)


def _unsqueeze(node: Node, given: Sequence[Any]) -> Any:
    return np.expand_dims(given[0], tuple(list_axes(node, given) or ()))


def _find_slices(given: Sequence[Any], rank: int) -> list[slice]:
    """A Slice's, one for each axis; its inputs must be there."""
    starts, ends = (given[place].reshape(-1).tolist() for place in (1, 2))
    axes, steps = (
        given[place].reshape(-1).tolist() if len(given) > place and given[place] is not None else None
        for place in (3, 4)
    )
    slices = [slice(None)] * rank
    for axis, start, end, step in zip(
        axes or range(len(starts)), starts, ends, steps or [1] * len(starts), strict=True
    ):
        if step < 1:
            raise UnknownGraphError("it goes backwards")
        slices[axis] = slice(start, end, step)
    return slices


def _slice(_node: Node, given: Sequence[Any]) -> Any:
    return given[0][tuple(_find_slices(given, given[0].ndim))]


def _gather(node: Node, given: Sequence[Any]) -> Any:
    source, places = given
    axis = node.read_int("axis", 0)
    bound((source.size // max(1, source.shape[axis]), 1), (1, places.size))
    return np.take(source, places, axis=axis)


def _gather_elements(node: Node, given: Sequence[Any]) -> Any:
    return np.take_along_axis(given[0], given[1], axis=node.read_int("axis", 0))


def _gather_many(node: Node, given: Sequence[Any]) -> Any:
    source, places = given
    if node.read_int("batch_dims", 0):
        raise UnknownGraphError("it gathers batch by batch")
    return source[tuple(np.moveaxis(places, -1, 0))]


def _cast(node: Node, given: Sequence[Any]) -> Any:
    return given[0].astype(find_type(node.read_int("to", 0)))


def _range(_node: Node, given: Sequence[Any]) -> Any:
    start, end, step = (array.reshape(()) for array in given)
    bound((max(0, math.ceil((end - start) / step)),))
    made: Array = np.arange(start, end, step).astype(start.dtype)
    return made


def _expand(_node: Node, given: Sequence[Any]) -> Any:
    target = tuple(given[1].tolist())
    shape = np.broadcast_shapes(given[0].shape, target)
    bound(shape)
    return np.broadcast_to(given[0], shape)


def _reshape(node: Node, given: Sequence[Any]) -> Any:
    target = given[1].tolist()
    if not node.read_int("allowzero", 0):
        target = [dim or given[0].shape[place] for place, dim in enumerate(target)]
    return given[0].reshape(target)


def _transpose(node: Node, given: Sequence[Any]) -> Any:
    return np.transpose(given[0], node.read_ints("perm") or None)


def _concat(node: Node, given: Sequence[Any]) -> Any:
    return np.concatenate(given, axis=node.read_int("axis", 0))


def _split(node: Node, given: Sequence[Any]) -> Any:
    axis = node.read_int("axis", 0)
    if len(given) > 1 and given[1] is not None:
        return np.split(given[0], np.cumsum(given[1])[:-1], axis=axis)
    size = -(-given[0].shape[axis] // node.count)
    return np.split(given[0], [size * place for place in range(1, node.count)], axis=axis)


def _clip(_node: Node, given: Sequence[Any]) -> Any:
    found = given[0]
    if len(given) > 1 and given[1] is not None:
        found = np.maximum(found, given[1])
    return np.minimum(found, given[2]) if len(given) > 2 and given[2] is not None else found


def _cumulate(node: Node, given: Sequence[Any]) -> Any:
    if node.read_int("exclusive", 0) or node.read_int("reverse", 0):
        raise UnknownGraphError("it sums up exclusively, or backwards")
    return np.cumsum(given[0], axis=int(given[1].reshape(())), dtype=given[0].dtype)


def _fill(node: Node, given: Sequence[Any]) -> Any:
    shape = tuple(given[0].tolist())
    bound(shape)
    value = node.read_tensor("value")
    if value is None:
        return np.zeros(shape, np.float32)
    kind = np.dtype(find_type(value.data_type))
    fields = (*value.float_data, *value.int32_data, *value.int64_data, *value.double_data)
    number = np.frombuffer(value.raw_data, kind)[0] if value.raw_data else fields[0]
    return np.full(shape, number, kind)


def _triangle(node: Node, given: Sequence[Any]) -> Any:
    diagonal = int(given[1].reshape(())) if len(given) > 1 and given[1] is not None else 0
    return np.triu(given[0], diagonal) if node.read_int("upper", 1) else np.tril(given[0], diagonal)


def _tile(_node: Node, given: Sequence[Any]) -> Any:
    bound(given[0].shape + tuple(given[1].tolist()))
    return np.tile(given[0], given[1].tolist())


def _pad(node: Node, given: Sequence[Any]) -> Any:
    if node.read_text("mode") not in ("", "constant") or (len(given) > 3 and given[3] is not None):
        raise UnknownGraphError("it pads in a way that is not known")
    pads = given[1].reshape(2, -1).T
    value = given[2] if len(given) > 2 and given[2] is not None else np.zeros((), given[0].dtype)
    bound([dim + int(before) + int(after) for dim, (before, after) in zip(given[0].shape, pads, strict=True)])
    return np.pad(given[0], pads.tolist(), constant_values=value)


def _multiply(_node: Node, given: Sequence[Any]) -> Any:
    left, right = given
    bound((*left.shape[:-1], 1), (right.shape[-1],))
    return np.matmul(left, right)


OPERATORS: Mapping[str, Operator] = {
    "Abs": _elementwise(np.abs), "Add": _elementwise(np.add), "And": _elementwise(np.logical_and),
    "ArgMax": _arg(np.argmax), "ArgMin": _arg(np.argmin), "Cast": _cast, "Ceil": _alone(np.ceil), "Clip": _clip,
    "Concat": _concat, "ConstantOfShape": _fill, "Cos": _alone(np.cos), "CumSum": _cumulate, "Div": _divide,
    "Equal": _elementwise(np.equal), "Exp": _alone(np.exp), "Expand": _expand, "Floor": _alone(np.floor),
    "Gather": _gather, "GatherElements": _gather_elements, "GatherND": _gather_many,
    "Greater": _elementwise(np.greater), "GreaterOrEqual": _elementwise(np.greater_equal),
    "Identity": lambda _node, given: given[0], "IsNaN": _elementwise(np.isnan), "Less": _elementwise(np.less),
    "LessOrEqual": _elementwise(np.less_equal), "Log": _alone(np.log), "MatMul": _multiply, "Max": _fold(np.maximum),
    "Min": _fold(np.minimum), "Mod": _modulo, "Mul": _elementwise(np.multiply), "Neg": _alone(np.negative),
    "Not": _elementwise(np.logical_not), "Or": _elementwise(np.logical_or), "Pad": _pad, "Pow": _power,
    "Range": _range, "Reciprocal": _alone(np.reciprocal), "ReduceMax": _reduce(np.max), "ReduceMean": _reduce(np.mean),
    "ReduceMin": _reduce(np.min), "ReduceProd": _reduce(np.prod), "ReduceSum": _reduce(np.sum), "Reshape": _reshape,
    "Round": _alone(np.rint), "Shape": _shape, "Sign": _alone(np.sign), "Sin": _alone(np.sin), "Slice": _slice,
    "Split": _split, "Sqrt": _alone(np.sqrt), "Squeeze": _squeeze, "Sub": _elementwise(np.subtract), "Tile": _tile,
    "Transpose": _transpose, "Trilu": _triangle, "Unsqueeze": _unsqueeze, "Where": _elementwise(np.where),
    "Xor": _elementwise(np.logical_xor),
}  # fmt: skip
