"""Operators that change how a graph sees a matrix, and not its numbers: views, and rows or columns that are cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from matexport.runtime.engines.native.geometry.known import (
    BATCH,
    CASES,
    FIRST,
    FLAT,
    ONE,
    TOKENS,
    Axis,
    Dims,
    Known,
    column,
    find_constant,
)
from matexport.runtime.engines.native.geometry.node import Node
from matexport.runtime.engines.native.patterns.values import Grid, Rule, Source, Value, describe_axes, keep_part, refuse
from matexport.runtime.engines.native.steps import Pool, Pooling

#: A length that a graph gives an axis: a number, or the kind of an axis whose length is the batch's.
Length: TypeAlias = int | str

_FLOAT = 1
#: An end that is past any text.
_NO_END = 1 << 31


def pool_first(source: Source) -> Source:
    """The rows of the first tokens."""
    return keep_part(
        source, Pooling.FIRST, lambda: Source(source.width, lambda out, of: Pool(out, of, Pooling.FIRST), (source,))
    )


def name_lengths(target: Known, axes: Sequence[Axis], *, zeros: bool) -> tuple[Length, ...]:
    """What a shape, worked out by a graph, says in general: its numbers for all `CASES` tell.

    Args:
        axes: of what is given the shape.
        zeros: whether 0 is an axis's old length.

    Raises:
        UnknownGraphError: a length is neither a number nor one of the batch's.
    """
    key = tuple(axes), zeros
    if key not in target.notes:  # type: ignore[union-attr]
        target.notes[key] = _name_lengths(target, axes, zeros)  # type: ignore[union-attr]
    found: tuple[Length, ...] = target.notes[key]  # type: ignore[union-attr]
    return found


def _name_lengths(target: Known, axes: Sequence[Axis], zeros: bool) -> tuple[Length, ...]:
    seen = []
    for case in CASES:
        shape = case.measure(axes)
        size = 1
        for dim in shape:
            size *= dim
        dims = [int(dim) for dim in target.work_out(case).reshape(-1)]
        if zeros:
            dims = [dim or shape[place] for place, dim in enumerate(dims)]
        if -1 in dims:
            rest = 1
            for dim in dims:
                rest *= dim if dim != -1 else 1
            if rest <= 0 or size % rest:
                raise refuse(f"{dims} is no shape of {describe_axes(axes)}")
            dims[dims.index(-1)] = size // rest
        seen.append(dims)
    if len({len(dims) for dims in seen}) != 1:
        raise refuse("the number of axes depends on the batch")
    return tuple(_name_length([dims[place] for dims in seen]) for place in range(len(seen[0])))


def _name_length(numbers: Sequence[int]) -> Length:
    if len(set(numbers)) == 1:
        return numbers[0]
    for axis in (BATCH, TOKENS, FLAT):
        if all(case.measure((axis,)) == (number,) for case, number in zip(CASES, numbers, strict=True)):
            return axis.kind
    raise refuse(f"a length is {', '.join(map(str, numbers))} for some small batches, which is none of theirs")


def regroup(axes: Sequence[Axis], lengths: Sequence[Length]) -> tuple[Axis, ...]:
    """The axes of a matrix that is given a shape: columns split or joined, the batch's axes kept.

    Raises:
        UnknownGraphError: that is not all that becomes of them.
    """
    pending, made = list(axes), list[Axis]()
    for length in lengths:
        while pending and pending[0] in (ONE, FIRST) and length != 1:
            pending.pop(0)
        if length == 1:
            made.append(pending.pop(0) if pending and pending[0] in (ONE, FIRST) else ONE)
        elif isinstance(length, str):
            made.append(_take_rows(pending, length))
        else:
            made.append(_take_columns(pending, length))
    if any(axis not in (ONE, FIRST) for axis in pending):
        raise refuse(f"{describe_axes(axes)} in the shape {tuple(lengths)}")
    return tuple(made)


def _take_rows(pending: list[Axis], kind: str) -> Axis:
    if pending and pending[0].kind == kind:
        return pending.pop(0)
    if kind == FLAT.kind and pending[:2] == [BATCH, TOKENS]:
        del pending[:2]
        return FLAT
    if kind == BATCH.kind and pending and pending[0] == FLAT:
        pending[0] = TOKENS
        return BATCH
    raise refuse(f"{describe_axes(pending)} become {kind}")


def _take_columns(pending: list[Axis], length: int) -> Axis:
    taken = pending.pop(0) if pending else ONE
    while taken.kind == "columns" and taken.size * taken.repeat < length and pending:
        taken = _join(taken, pending.pop(0))
    size = taken.size * taken.repeat
    if taken.kind != "columns" or length < 1 or size % length or (size != length and taken.repeat > 1):
        raise refuse(f"{describe_axes((taken, *pending))} become {length} columns")
    if size == length:
        return taken
    inner = size // length
    pending.insert(0, column(inner, taken.stride))
    return column(length, taken.stride * inner)


def _join(outer: Axis, inner: Axis) -> Axis:
    """Two axes beside each other as one."""
    if inner == ONE:
        return outer
    if inner.kind == "columns" and outer.repeat == 1:
        if inner.size == 1:
            return outer._replace(repeat=inner.repeat)
        if inner.repeat == 1 and (outer.size == 1 or outer.stride == inner.size * inner.stride):
            return column(outer.size * inner.size, inner.stride)
    raise refuse(f"{describe_axes((outer, inner))} become one")


def _reshape(node: Node, given: Sequence[Value]) -> Grid:
    grid, target = given
    lengths = name_lengths(target, grid.axes, zeros=not node.read_int("allowzero", 0))
    return Grid(grid.source, regroup(grid.axes, lengths), grid.first, grid.factor)


def _flatten(node: Node, given: Sequence[Value]) -> Grid:
    grid = given[0]
    if node.read_int("axis", 1) % len(grid.axes) != len(grid.axes) - 1:
        raise refuse("it flattens columns")
    axes = regroup(grid.axes, (FLAT.kind if TOKENS in grid.axes else BATCH.kind, grid.width))
    return Grid(grid.source, axes, grid.first, grid.factor)


def _transpose(node: Node, given: Sequence[Value]) -> Grid:
    grid = given[0]
    order = node.read_ints("perm") or list(range(len(grid.axes)))[::-1]
    return Grid(grid.source, tuple(grid.axes[place] for place in order), grid.first, grid.factor)


def read_axes(node: Node, given: Sequence[Value], rank: int) -> list[int]:
    """The axes that a node names, an input of newer operators and an attribute of older ones; counted from 0.

    Raises:
        UnknownGraphError: they are no constants, or out of range.
    """
    if len(given) > 1 and given[1] is not None:
        array = find_constant(given[1])
        if array is None:
            raise refuse("its axes are no constants")
        axes = [int(axis) for axis in array.reshape(-1)]
    else:
        axes = node.read_ints("axes")
    if any(not -rank <= axis < rank for axis in axes):
        raise refuse(f"its axes are {axes}")
    return [axis % rank for axis in axes]


def _unsqueeze(node: Node, given: Sequence[Value]) -> Grid:
    grid = given[0]
    named = node.read_ints("axes") or find_constant(given[1])
    rank = len(grid.axes) + len(named if named is not None else ())
    axes = list(grid.axes)
    for place in sorted(read_axes(node, given, rank)):
        axes.insert(place, ONE)
    return Grid(grid.source, tuple(axes), grid.first, grid.factor)


def _squeeze(node: Node, given: Sequence[Value]) -> Grid:
    grid = given[0]
    gone = read_axes(node, given, len(grid.axes))
    if not gone or any(grid.axes[place] not in (ONE, FIRST, column(1)) for place in gone):
        raise refuse(f"it drops axes {gone} of {describe_axes(grid.axes)}")
    kept = tuple(axis for place, axis in enumerate(grid.axes) if place not in gone)
    return Grid(grid.source, kept, grid.first, grid.factor)


def _expand(_node: Node, given: Sequence[Value]) -> Grid:
    grid, target = given
    lengths = name_lengths(target, grid.axes, zeros=False)
    if len(lengths) != len(grid.axes):
        raise refuse(f"it gives {describe_axes(grid.axes)} the shape {lengths}")
    axes = []
    for axis, length in zip(grid.axes, lengths, strict=True):
        if axis == ONE and isinstance(length, int):
            axes.append(Axis("columns", 1, 1, length) if length > 1 else ONE)
        elif length in (1, _measure(axis)):
            axes.append(axis)
        else:
            raise refuse(f"it gives {describe_axes(grid.axes)} the shape {lengths}")
    return Grid(grid.source, tuple(axes), grid.first, grid.factor)


def _measure(axis: Axis) -> Length:
    return axis.size * axis.repeat if axis.kind in ("columns", "one", "first") else axis.kind


def _slice(_node: Node, given: Sequence[Value]) -> Grid:
    grid: Grid = given[0]
    arrays = [None if value is None else find_constant(value) for value in given[1:]]
    if any(array is None for array, value in zip(arrays, given[1:], strict=True) if value is not None):
        raise refuse("its bounds are no constants")
    starts, ends, places, steps = (
        [int(number) for number in array.reshape(-1)] if array is not None else None
        for array in (*arrays, None, None)[:4]
    )
    if starts is None or ends is None or any(step != 1 for step in steps or ()):
        raise refuse("it takes every other place, or backwards")
    for place, start, end in zip(places if places is not None else range(len(starts)), starts, ends, strict=True):
        grid = cut_axis(grid, place % len(grid.axes), start, end)
    return grid


def cut_axis(grid: Grid, place: int, start: int, end: int) -> Grid:
    """Some places of one axis of a matrix.

    Raises:
        UnknownGraphError: they are not columns, nor all places, nor the first token.
    """
    axis, axes = grid.axes[place], list(grid.axes)
    if axis.kind == "columns" and axis.repeat == 1:
        start, end, _ = slice(start, end).indices(axis.size)
        if end > start:
            axes[place] = column(end - start, axis.stride)
            return Grid(grid.source, tuple(axes), grid.first + start * axis.stride, grid.factor)
    elif start == 0 and (end >= _NO_END or (axis == FIRST and end > 0)):
        return grid
    elif axis == TOKENS and (start, end) == (0, 1):
        axes[place] = FIRST
        return Grid(pool_first(grid.source), tuple(axes), grid.first, grid.factor)
    raise refuse(f"it takes {start} to {end} of {axis.kind}")


def _gather(node: Node, given: Sequence[Value]) -> Grid:
    grid: Grid = given[0]
    places = find_constant(given[1])
    place = node.read_int("axis", 0) % len(grid.axes)
    if places is None or places.size != 1 or places.ndim > 1:
        raise refuse("it picks other than one place")
    at = int(places.reshape(()))
    if at < 0:
        if grid.axes[place].kind != "columns":
            raise refuse("it picks a place counted from the end, which is padding or not")
        at += grid.axes[place].size
    cut = cut_axis(grid, place, at, at + 1)
    if places.ndim:
        return cut
    axes = tuple(axis for number, axis in enumerate(cut.axes) if number != place)
    return Grid(cut.source, axes, cut.first, cut.factor)


def _split(node: Node, given: Sequence[Value]) -> tuple[Grid, ...]:
    grid = given[0]
    place = node.read_int("axis", 0) % len(grid.axes)
    sizes = find_constant(given[1]) if len(given) > 1 and given[1] is not None else None
    size = grid.axes[place].size
    parts = [-(-size // node.count)] * node.count if sizes is None else [int(part) for part in sizes.reshape(-1)]
    if len(parts) != node.count or sum(parts) != size or min(parts) < 1:
        raise refuse(f"it splits {size} columns into {parts}")
    ends = [sum(parts[: number + 1]) for number in range(len(parts))]
    return tuple(cut_axis(grid, place, end - part, end) for end, part in zip(ends, parts, strict=True))


def _shape(node: Node, given: Sequence[Value]) -> Dims:
    axes = given[0].axes
    return Dims(axes[node.read_int("start", 0) : node.read_int("end", len(axes))])


def _cast(node: Node, given: Sequence[Value]) -> Value:
    if node.read_int("to", 0) != _FLOAT:
        raise refuse("it makes other numbers than float32 of a matrix")
    return given[0]


#: Of a matrix.
RULES: Mapping[str, Rule] = {
    "Cast": _cast,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Identity": lambda _node, given: given[0],
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
