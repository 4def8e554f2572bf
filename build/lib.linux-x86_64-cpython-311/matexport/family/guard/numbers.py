"""The numbers that shapes are made of: those of short tensors that follow from shapes and constants, by arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np

from matexport.family.guard.node import Node, Numbers
from matexport.family.guard.rules import RULES, list_slices
from matexport.family.guard.sizes import MAX_SIZES

#: TensorProto.DataType -> the type of numpy, and the field that has the numbers where they are not raw.
_NUMBERS = {1: ("<f4", "float_data"), 6: ("<i4", "int32_data"), 7: ("<i8", "int64_data"), 9: ("?", "int32_data"),
            11: ("<f8", "double_data")}  # fmt: skip


def read_numbers(tensor: Any) -> Numbers | None:
    """The numbers of a small constant that lies in the graph."""
    count = math.prod(tensor.dims)
    if not 0 <= count <= MAX_SIZES or tensor.data_type not in _NUMBERS or tensor.external_data:
        return None
    kind, field = _NUMBERS[tensor.data_type]
    numbers = np.frombuffer(tensor.raw_data, kind) if tensor.raw_data else np.array(getattr(tensor, field), kind)
    return numbers.reshape(tuple(tensor.dims)) if numbers.size == count else None


def _divide(left: Numbers, right: Numbers) -> Numbers:
    """Whole numbers are cut toward zero."""
    if left.dtype.kind != "i":
        return np.asarray(left / right)
    return np.asarray(np.sign(left) * np.sign(right) * (np.abs(left) // np.maximum(np.abs(right), 1)))


_COMPUTED: Mapping[str, Callable[..., Any]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": _divide, "Neg": np.negative, "Abs": np.abs,
    "Identity": np.array, "Floor": np.floor, "Ceil": np.ceil, "Round": np.round, "Sqrt": np.sqrt, "Equal": np.equal,
    "Less": np.less, "LessOrEqual": np.less_equal, "Greater": np.greater, "GreaterOrEqual": np.greater_equal,
    "Not": np.logical_not, "And": np.logical_and, "Or": np.logical_or, "Where": np.where,
}  # fmt: skip
_CHOSEN: Mapping[str, Callable[..., Any]] = {"Max": np.maximum, "Min": np.minimum}
_REDUCED: Mapping[str, Callable[..., Any]] = {
    "ReduceProd": np.prod,
    "ReduceSum": np.sum,
    "ReduceMax": np.max,
    "ReduceMin": np.min,
}


def compute_numbers(node: Node) -> Numbers | None:
    """The numbers that a node gives, where all that it is given is known and what it gives is short."""
    if node.type == "Shape":
        shape = node.take(0).shape
        start, end = node.read_int("start", 0), node.read_int("end", len(shape))
        return np.array(shape[start:end], np.int64)
    if not node.given or any(tensor is not None and tensor.numbers is None for tensor in node.given):
        return None
    given = [tensor.numbers for tensor in node.given if tensor is not None]
    with np.errstate(all="ignore"):
        made = _compute_known(node, [numbers for numbers in given if numbers is not None])
    return made if made is not None and made.size <= MAX_SIZES else None


def _compute_known(node: Node, given: Sequence[Numbers]) -> Numbers | None:
    kind, first = node.type, given[0]
    if kind in _COMPUTED:
        return np.asarray(_COMPUTED[kind](*given))
    if kind in _CHOSEN:
        return np.asarray(reduce(_CHOSEN[kind], given))
    if kind in _REDUCED:
        axes = node.find_axes(1) or None
        if axes is None and node.read_int("noop_with_empty_axes", 0):
            return first
        kept = bool(node.read_int("keepdims", 1))
        return np.asarray(_REDUCED[kind](first, axis=None if axes is None else tuple(axes), keepdims=kept))
    if kind == "Cast":
        wanted = _NUMBERS.get(node.read_int("to", 0))
        return None if wanted is None else first.astype(wanted[0])
    if kind == "Mod" and first.dtype.kind == "i" and given[1].all():
        return np.asarray(np.fmod(*given) if node.read_int("fmod", 0) else np.mod(*given))
    if kind == "Concat":
        return np.concatenate(given, axis=node.read_int("axis", 0))
    if kind == "Gather":
        return np.take(first, given[1], axis=node.read_int("axis", 0))
    if kind == "Slice":
        return first[tuple(list_slices(node, first.shape))]
    if kind in ("Squeeze", "Unsqueeze", "Reshape"):
        return first.reshape(RULES[kind](node)[0])
    if kind in ("ConstantOfShape", "Expand", "Range") and math.prod(shape := RULES[kind](node)[0]) <= MAX_SIZES:
        if kind == "Expand":
            return np.broadcast_to(first, shape)
        if kind == "Range":
            return np.arange(given[0].item(), given[1].item(), given[2].item(), dtype=first.dtype)
        value = node.read_tensor("value")
        filled = np.zeros(1, np.float32) if value is None else read_numbers(value)
        return None if filled is None else np.full(shape, filled.reshape(-1)[0])
    return None
