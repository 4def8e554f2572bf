"""A padding mask that is looked up number by number -> the attention mask itself, with axes of length 1 put in.

transformers says of a mask what it holds at (row, key): `attention_mask[row, key]`. A trace makes that two Ranges that
are spread over a grid, joined to indices, and looked up by GatherND, joined by And to what is always true. Many
converters and accelerators have none of these for truth values. Where the indices are proven to be the positions of
the grid themselves, one by one and over the whole of the axis that is looked up, the lookup is
`Unsqueeze(attention_mask)`, bit for bit; and so it is written.

Nothing is matched by name or by architecture. Facts are worked out from the nodes, value by value: which axis of the
grid a value counts, and of what length; whether a truth value is always true. Lengths are equal where the axes' names
are, which is what a graph promises of its inputs. Whatever else stands there (a window, the future hidden from the
past, positions that do not start at 0 or count another input's axis) has no such fact, and stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from onnx_ir import convenience

from matexport.export.graph.edit import Inserter, add_constant, replace_node

#: Lengths of a value's axes; a name stands for the length of every axis that is called so.
Dims: TypeAlias = tuple[int | str, ...]

#: Operators that compute number by number, and repeat what is shorter.
_ELEMENTWISE = frozenset({"Add", "And", "Cast", "Div", "Identity", "Mul", "Not", "Or", "Sub", "Where"})


@dataclass(frozen=True)
class Positions:
    """What a value holds at each place of a grid: how far along one of the grid's axes that place is.

    Attributes:
        shape: of the grid.
        axis: that axis, counted from behind (-1 is the last). It has its whole length.
    """

    shape: Dims
    axis: int


@dataclass
class _Facts:
    """What is known of the values of a graph; worked out when it is asked for, and kept."""

    positions: dict[ir.Value, Positions | None] = field(default_factory=dict)
    truths: dict[ir.Value, Dims | None] = field(default_factory=dict)

    def find_positions(self, value: ir.Value | None) -> Positions | None:
        """What a value of whole numbers counts; None where that is not proven."""
        node = value.producer() if value is not None else None
        if value is None or node is None:
            return None
        if value not in self.positions:
            self.positions[value] = None
            self.positions[value] = self._work_out_positions(node)
        return self.positions[value]

    def _work_out_positions(self, node: ir.Node) -> Positions | None:
        if node.op_type == "Range":
            start, step = (_read_number(node.inputs[place]) for place in (0, 2))
            length = _find_length(node.inputs[1])
            return Positions((length,), -1) if (start, step) == (0, 1) and length is not None else None
        known = self.find_positions(node.inputs[0]) if node.inputs else None
        if known is None:
            return None
        if node.op_type == "Identity" or (node.op_type == "Cast" and _is_wide(node)):
            return known
        if node.op_type == "Unsqueeze" and (axes := _read_numbers(node.inputs[1])) is not None:
            rank = len(known.shape) + len(axes)
            shape = _put_ones(known.shape, axes)
            kept = [place for place in range(rank) if place not in {axis % rank for axis in axes}]
            return Positions(shape, kept[known.axis] - rank)
        if node.op_type == "Reshape" and (sizes := _read_numbers(node.inputs[1])) is not None:
            return _turn(known, sizes)
        if node.op_type == "Expand" and (wanted := self._find_shape(node.inputs[1])) is not None:
            wide = _broadcast(known.shape, wanted)
            return Positions(wide, known.axis) if wide and wide[known.axis] == known.shape[known.axis] else None
        return None

    def _find_shape(self, value: ir.Value | None) -> Dims | None:
        """The lengths that a list of sizes holds: the shape of what is larger of two values that count."""
        node = value.producer() if value is not None else None
        if (
            node is None
            or node.op_type != "Shape"
            or node.attributes.get_int("start", 0) != 0
            or "end" in node.attributes
        ):
            return None
        source = node.inputs[0]
        made = source.producer() if source is not None else None
        parts = list(made.inputs) if made is not None and made.op_type in ("Max", "Add") else [source]
        found = [self.find_positions(part) for part in parts]
        shapes = [known.shape for known in found if known is not None]
        return _broadcast(*shapes) if len(shapes) == len(parts) else None

    def find_truth(self, value: ir.Value | None) -> Dims | None:
        """The shape of a value that is true everywhere; None where that is not proven."""
        if value is None:
            return None
        if value not in self.truths:
            self.truths[value] = None
            self.truths[value] = self._work_out_truth(value)
        return self.truths[value]

    def _work_out_truth(self, value: ir.Value) -> Dims | None:
        numbers = value.const_value.numpy() if value.const_value is not None and value.is_initializer() else None
        if numbers is not None:
            return tuple(numbers.shape) if numbers.dtype == np.bool_ and numbers.all() else None
        node = value.producer()
        if node is not None and node.op_type == "And":
            left, right = (self.find_truth(source) for source in node.inputs)
            return _broadcast(left, right) if left is not None and right is not None else None
        if node is not None and node.op_type == "GreaterOrEqual":
            known, least = self.find_positions(node.inputs[0]), _read_number(node.inputs[1])
            true = known is not None and least is not None and least <= 0  # no position is negative
            return known.shape if known is not None and true else None
        return None


def write_plain_masks(model: ir.Model) -> int:
    """Replace lookups of a value at its own places by that value, and And(true, x) by x, in place.

    Args:
        model: a trace whose inputs' axes have names. Where a shape is not known, the graph stays as it is.

    Returns:
        how many lookups there were.
    """
    graph, facts = model.graph, _Facts()
    lookups = [node for node in graph if node.op_type == "GatherND" and _is_lookup(node, facts)]
    lookups = [node for node in lookups if node.outputs[0] not in graph.outputs]
    for node in lookups:
        source, out = node.inputs[0], node.outputs[0]
        assert source is not None
        shape, axes = _read_grid(node, facts)
        out.shape = ir.Shape(shape)
        if not axes:
            convenience.replace_all_uses_with(out, source)
            graph.remove(node, safe=True)
            continue
        places = add_constant(graph, f"mask_axes_{'_'.join(map(str, axes))}", np.array(axes, dtype=np.int64))
        plain = Inserter(graph, node).add("Unsqueeze", [source, places], like=out)
        plain.type = source.type  # which the trace may not say of what it looks up
        replace_node(graph, node, plain)
    for node in [node for node in graph if node.op_type == "And"]:
        _drop_truth(graph, node, facts)
    return len(lookups)


def _is_lookup(node: ir.Node, facts: _Facts) -> bool:
    """Whether a GatherND gives the (N, M) value that it reads, each number once and in order, in more axes."""
    source = node.inputs[0]
    if source is None or node.attributes.get_int("batch_dims", 0) != 0 or (dims := _read_dims(source)) is None:
        return False
    found = _find_indices(node.inputs[1], facts)
    if len(dims) != 2 or len(found) != 2 or found[0].shape != found[1].shape or not found[0].axis < found[1].axis:
        return False
    shape, places = found[0].shape, [index.axis for index in found]
    others = [dim for place, dim in enumerate(shape, start=-len(shape)) if place not in places]
    return tuple(shape[place] for place in places) == dims and all(dim == 1 for dim in others)


def _find_indices(value: ir.Value | None, facts: _Facts) -> list[Positions]:
    """What each number of an index counts, without the axis in which an index lies; none where one is not proven."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Concat":
        return []
    found = [facts.find_positions(part) for part in node.inputs]
    known = [part for part in found if part is not None and part.shape[-1] == 1 and part.axis < -1]
    ranks = {len(part.shape) for part in known}
    if len(known) != len(found) or len(ranks) != 1 or node.attributes.get_int("axis", 0) not in (-1, max(ranks) - 1):
        return []
    return [Positions(part.shape[:-1], part.axis + 1) for part in known]


def _read_grid(node: ir.Node, facts: _Facts) -> tuple[Dims, list[int]]:
    """The shape of what a lookup gives, and the axes in it that its source has not."""
    first, second = _find_indices(node.inputs[1], facts)
    rank = len(first.shape)
    return first.shape, [place for place in range(rank) if place - rank not in (first.axis, second.axis)]


def _drop_truth(graph: ir.Graph, node: ir.Node, facts: _Facts) -> None:
    """Replace And(true, x) by x, where nobody misses that And repeats x to the length of what is true."""
    for true, other in (node.inputs, node.inputs[::-1]):
        shape = facts.find_truth(true)
        dims = _read_dims(other) if other is not None else None
        wide = _broadcast(shape, dims) if shape is not None and dims is not None else None
        if wide is None or dims is None or other is None or len(wide) != len(dims):
            continue
        repeated = {place: wide[place] for place in range(-len(dims), 0) if wide[place] != dims[place]}
        short = _find_short(node.outputs[0], repeated) if repeated else set()
        if short is None or not short.isdisjoint(graph.outputs) or node.outputs[0] in graph.outputs:
            continue
        for value in short:
            value.shape = ir.Shape(1 if place in repeated else dim for place, dim in _count_from_behind(value))
        convenience.replace_all_uses_with(node.outputs[0], other)
        graph.remove(node, safe=True)
        return


def _find_short(first: ir.Value, repeated: Mapping[int, int | str]) -> set[ir.Value] | None:
    """The values that have length 1 in some axes once `first` has; None where that could change anything else.

    A reader gives what it gave before where something else that it reads has the whole length in all of these axes, and
    does not come from `first` itself.

    Args:
        repeated: axis from behind -> the length that it had.
    """
    short, before = {first}, 0
    while len(short) > before:
        before = len(short)
        for node in {use.node for value in short for use in value.uses()}:
            others = [_read_dims(other) for other in node.inputs if other is not None and other not in short]
            if node.op_type not in _ELEMENTWISE or any(dims is None for dims in others):
                return None
            rows = [{dims[place] for dims in others if dims and len(dims) >= -place} - {1} for place in repeated]
            if rows == [{length} for length in repeated.values()]:
                continue
            if any(rows) or _read_dims(node.outputs[0]) is None:
                return None
            short.add(node.outputs[0])
    return short


def _find_length(value: ir.Value | None) -> int | str | None:
    """The name or length of the one axis whose length a number is; None where it is not known."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in ("Squeeze", "Identity"):
        value = node.inputs[0]
        node = value.producer() if value is not None else None
    if node is None or node.op_type != "Shape" or node.inputs[0] is None:
        return None
    dims = _read_dims(node.inputs[0])
    if dims is None:
        return None
    asked = dims[slice(node.attributes.get_int("start", 0), node.attributes.get_int("end", len(dims)))]
    return asked[0] if len(asked) == 1 else None


def _count_from_behind(value: ir.Value) -> list[tuple[int, int | str]]:
    """(axis, length) of each axis, the last of which is -1."""
    dims = _read_dims(value)
    assert dims is not None
    return [*enumerate(dims, start=-len(dims))]


def _read_dims(value: ir.Value) -> Dims | None:
    """The lengths of a value's axes; None where one is not known."""
    if value.shape is None:
        return None
    dims = tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
    return None if any(dim is None for dim in dims) else dims  # type: ignore[return-value]


def _broadcast(*shapes: Dims) -> Dims | None:
    """The shape that shapes are repeated to; None where two lengths differ, or have different names."""
    rank = max(map(len, shapes), default=0)
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    axes = [{dim for dim in axis if dim != 1} for axis in zip(*padded, strict=True)]
    return None if any(len(axis) > 1 for axis in axes) else tuple(axis.pop() if axis else 1 for axis in axes)


def _turn(known: Positions, sizes: Sequence[int]) -> Positions | None:
    """What a Reshape gives that puts positions along another axis; None where they lie in more than one."""
    if sorted(sizes) != [-1, *(1 for _ in sizes[1:])] or sum(dim != 1 for dim in known.shape) > 1:
        return None
    length = known.shape[known.axis]
    return Positions(tuple(length if size == -1 else 1 for size in sizes), sizes.index(-1) - len(sizes))


def _put_ones(shape: Dims, axes: Sequence[int]) -> Dims:
    rank, kept = len(shape) + len(axes), iter(shape)
    new = {axis % rank for axis in axes}
    return tuple(1 if place in new else next(kept) for place in range(rank))


def _is_wide(node: ir.Node) -> bool:
    """Whether a Cast holds every position of a text."""
    return node.attributes.get_int("to", 0) in (int(ir.DataType.INT64), int(ir.DataType.INT32))


def _read_numbers(value: ir.Value | None) -> list[int] | None:
    if value is None or value.const_value is None or value.const_value.size > 64:
        return None
    numbers = value.const_value.numpy()
    return [int(number) for number in numbers.reshape(-1)] if numbers.dtype.kind in "iu" else None


def _read_number(value: ir.Value | None) -> int | None:
    numbers = _read_numbers(value)
    return numbers[0] if numbers is not None and len(numbers) == 1 else None
