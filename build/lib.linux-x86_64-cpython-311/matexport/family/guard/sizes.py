"""How large one operator can make its output by a number in the graph: constants of a shape, expansions, tiles, pads.

The sizes are followed back: to constants, to lengths of the inputs, and to arithmetic on both. What they multiply to is
bounded for each of these operators. A size that cannot be followed is refused, since no graph of ours has one.

These bounds hold for any input, and for one operator each. What several make together, with broadcasting and products,
is `guard.shapes`' to find.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

#: What the constants in the size of one tensor may multiply to: heads times a dimension, with much room.
MAX_FACTOR = 1 << 22

#: How many lengths of the inputs may stand in the size of one tensor: batch, heads' rows and columns, and one more.
MAX_LENGTHS = 4

#: Where counting ends.
TOO_MUCH = 1 << 62

#: Constants of more numbers are no sizes.
MAX_SIZES = 64


class Size(NamedTuple):
    """At most `factor` times the longest input's length to the power of `lengths`."""

    factor: int
    lengths: int = 0


Sizes = tuple[Size, ...]

#: Operator -> which of its inputs say how large its output is.
GROWING: Mapping[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Tile": (1,),
    "Pad": (1,),
    "Range": (0, 1),  # from, to
}

_INT32, _INT64 = 6, 7


def find_size_problem(graph: Any) -> str | None:
    """Why a graph could make a huge tensor; None where it cannot by these operators.

    Args:
        graph: as `graph_file.parse_graph` gives it.
    """
    known: dict[str, Sizes] = {}
    reach: dict[str, int] = {}  # value -> the largest factor in any of its axes that a growing operator put there
    for tensor in graph.initializer:
        if (sizes := _read_constant(tensor)) is not None:
            known[tensor.name] = sizes
    for node in graph.node:
        widest = max((reach.get(name, 1) for name in node.input), default=1)
        if node.op_type in GROWING:
            given = [known.get(node.input[place]) for place in GROWING[node.op_type] if place < len(node.input)]
            parts = [sizes for sizes in given if sizes is not None]
            if len(parts) < len(given) or not parts:
                return f"{node.op_type} {node.name!r} makes a tensor of a size that cannot be followed"
            made = _larger([*parts[0], *parts[-1]]) if node.op_type == "Range" else _multiply(parts[0])
            if made.factor > MAX_FACTOR or made.lengths > MAX_LENGTHS:
                return f"{node.op_type} {node.name!r} makes a tensor of {made.factor} numbers or more of a short input"
            widest = max([widest, *(size.factor for sizes in parts for size in sizes)])
        for name in node.output:
            reach[name] = widest
            if (found := _follow(node, known, widest)) is not None:
                known[name] = found
    return None


def _follow(node: Any, known: Mapping[str, Sizes], widest: int) -> Sizes | None:
    """The sizes that a node gives, where it computes with sizes."""
    if node.op_type == "Shape":
        told = {attribute.name: attribute.i for attribute in node.attribute}
        asked = told["end"] - told.get("start", 0) if told.get("end", 0) > 0 else MAX_LENGTHS
        return (Size(widest, 1),) * min(max(asked, 1), MAX_LENGTHS)  # of a tensor that is there: it has no more axes
    given = [known.get(name) for name in node.input if name]
    if node.op_type == "ConstantOfShape" and given and given[0]:
        return _fill(node, given[0])
    if node.op_type == "Gather" and len(given) == 2 and given[0]:
        return _pick(given[0], given[1])
    if node.op_type == "Slice" and given and given[0]:
        return given[0]
    if node.op_type in _PASSING:
        return given[0] if given else None
    if node.op_type == "Where":
        given = given[1:]  # which of both is taken does not matter
    if any(sizes is None for sizes in given) or not given:
        return None
    lists = [sizes for sizes in given if sizes is not None]
    if node.op_type == "Concat":
        joined = tuple(size for sizes in lists for size in sizes)
        return joined if len(joined) <= MAX_SIZES else None
    if node.op_type in _COMBINING and len(lists) >= 2:
        return tuple(_COMBINING[node.op_type](row) for row in _broadcast(lists))
    if node.op_type == "Where":
        return tuple(_larger(row) for row in _broadcast(lists))
    if node.op_type in ("ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin"):
        return (_multiply(lists[0]) if node.op_type == "ReduceProd" else _add(lists[0]),)
    return None


def _fill(node: Any, shape: Sizes) -> Sizes | None:
    """One number as often as a short constant says."""
    count = _multiply(shape)
    values = [_read_constant(attribute.t) for attribute in node.attribute if attribute.name == "value"]
    if count.lengths or count.factor > MAX_SIZES or not values or not values[0]:
        return None
    return values[0] * count.factor


def _pick(sizes: Sizes, places: Sizes | None) -> Sizes:
    """What an index picks; any of them where it is not a constant."""
    if places is None or any(place.lengths for place in places):
        return (_larger(sizes),)
    return tuple(sizes[place.factor] if place.factor < len(sizes) else _larger(sizes) for place in places)


def _broadcast(lists: Sequence[Sizes]) -> Iterator[tuple[Size, ...]]:
    longest = max(map(len, lists))
    for place in range(longest):
        yield tuple(sizes[place if len(sizes) == longest else 0] for sizes in lists if sizes)


def _larger(row: Sequence[Size]) -> Size:
    return Size(max((size.factor for size in row), default=1), max((size.lengths for size in row), default=0))


def _multiply(row: Sequence[Size]) -> Size:
    factor, lengths = 1, 0
    for size in row:
        factor, lengths = _bound(factor * max(size.factor, 1), lengths + size.lengths)
    return Size(factor, lengths)


def _add(row: Sequence[Size]) -> Size:
    return _bound(sum(size.factor for size in row), max((size.lengths for size in row), default=0))


def _bound(factor: int, lengths: int) -> Size:
    """Numbers that stay small: above what is allowed, one is as good as another."""
    return Size(min(factor, TOO_MUCH), min(lengths, MAX_LENGTHS + 1))


#: Operators that give the sizes that they are given, in one order or another.
_PASSING = frozenset({"Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Neg", "Abs", "Expand", "Floor", "Ceil"})
_COMBINING = {"Mul": _multiply, "Add": _add, "Sub": _add, "Div": lambda row: row[0], "Mod": lambda row: row[-1],
              "Max": _larger, "Min": _larger}  # fmt: skip


def _read_constant(tensor: Any) -> Sizes | None:
    """The numbers of a small constant of whole numbers that lies in the graph."""
    if len(tensor.dims) > 1 or any(dim > MAX_SIZES for dim in tensor.dims):
        return None  # no list of sizes
    count = math.prod(tensor.dims)
    if tensor.data_type not in (_INT32, _INT64) or tensor.external_data or not 0 <= count <= MAX_SIZES:
        return None
    form, width = ("q", 8) if tensor.data_type == _INT64 else ("i", 4)
    if tensor.raw_data:
        if len(tensor.raw_data) != count * width:
            return None
        values: Sequence[int] = struct.unpack(f"<{count}{form}", tensor.raw_data)
    else:
        values = list(tensor.int64_data if tensor.data_type == _INT64 else tensor.int32_data)
    return tuple(Size(abs(value)) for value in values)
