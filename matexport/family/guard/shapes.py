"""How large the tensors of a whole graph are: every shape, worked out for inputs of three lengths.

`guard.sizes` bounds what one operator can make of a number, whatever the input. Here a graph is followed node by node,
as a runtime would follow it, with the shape of every tensor and the numbers of the short ones that shapes are made of.
So a tensor that many small steps make large is found, by broadcasting, products, joining or repeated indices, and so is
one that grows faster than with the square of a text's length. Two of the inputs are short; the third is as long as the
manifest lets a text be. Numbers that could be large at a length between these (a length that is compared, or taken
modulo a number, and what falls where lengths rise) are not followed into a shape.

The shapes are those of the ONNX operators' specification; where the ends of a slice are not known, what it is taken
from bounds it. Nothing is computed but shapes, and following ends with the first tensor that is too large: the time is
that of a walk over the nodes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from matexport.family.guard.node import Node, Numbers, Tensor, UnknownShapeError
from matexport.family.guard.numbers import compute_numbers, read_numbers
from matexport.family.guard.operators import MAX_RANK
from matexport.family.guard.rules import PRODUCTS, RULES
from matexport.family.guard.sizes import MAX_FACTOR
from matexport.spec.inputs import LONGEST_SIDE, ImageFacts, InputFacts, TextFacts

#: The short inputs: how many items, and how long each is if it may be.
SHORT, LONGER = (2, 16), (4, 32)

#: The longest text that is looked at, where the manifest allows longer ones.
LONGEST = 1 << 13

#: What one long text may become: pairs of tokens for each head, and numbers for each token.
MAX_HEADS, MAX_WIDTH = 1 << 8, 1 << 18

#: What is computed of an input that is large itself, an image, may have so many times its numbers.
MAX_GROWTH = 64

#: Of an image that is prepared in a graph: a tensor has at most so many times its numbers, or what is computed of what
#: is kept of it; each of its numbers is multiplied at most so often for each row and column that is kept, and so often
#: beside that.
MAX_COPIES, MAX_PASSES, MAX_STEPS = 2, 4, 1 << 10

#: Experts of a mixture whose weights are taken for one token.
MAX_EXPERTS = 16

#: Of the tensors that live at one time, in tensors of the largest size.
MAX_LIVE = 16

#: How often each weight may be used for each place of an input: by all blocks that share it, and for positions.
MAX_USES = 256

#: Tensors of fewer numbers may grow as they like between the two short inputs.
SMALL = 1 << 16

#: What a number costs that is no product, in products; one of a sort costs more.
COST, SORTING_COST = 32, 512
_SORTING = frozenset({"TopK"})

#: Operators whose result may be anything between two lengths.
_COMPARING = frozenset({"Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"})
_STEPPING = _COMPARING | {"Mod", "Not", "And", "Or", "Xor"}


def find_shape_problem(graph: Any, inputs: InputFacts) -> str | None:
    """Why a graph makes a tensor that no graph of its weights needs; None where it makes none.

    Args:
        graph: as `graph_file.parse_graph` gives it; of the allowed operators alone.
        inputs: what the manifest says of the graph's inputs.
    """
    if problem := _find_input_problem(graph, inputs):
        return problem
    short, longer, long = _list_sizes(inputs)
    constants = read_constants(graph)
    walks = [Walk(graph, constants, *size) for size in (short, longer, long)]
    bound = _ImageBounds if isinstance(inputs, ImageFacts) and inputs.in_graph else _Bounds
    allowed = [bound(graph, walk.given, size, inputs) for walk, size in ((walks[0], short), (walks[2], long))]
    steepest = 1.5 * longer[0] / short[0] * (longer[1] / short[1]) ** 2
    live = _Live(graph)
    for place, one in enumerate(graph.node):
        node, name = Node(one), f"{one.op_type} {one.name!r}"
        try:
            counts, later, last = follow_together(walks, node)
        except UnknownShapeError:
            return f"{name} makes a tensor of a size that cannot be worked out"
        if any(second > max(SMALL, steepest * first) for first, second in zip(counts, later, strict=True)):
            return f"{name} makes a tensor that grows faster than with the square of a text's length"
        constant = live.is_constant(node)
        for walk, made, bounds, which in zip(walks[::2], (counts, last), allowed, ("short", "long"), strict=True):
            if max(made, default=0) > (bounds.constant if constant else bounds.largest):
                return f"{name} makes a tensor of {max(made)} numbers of a {which} input"
            if walk.spent > bounds.spent:
                return f"{name} computes more than so many weights are used for, of a {which} input"
        if live.add(place, node, counts) > allowed[0].live:
            return f"{name} makes more tensors than are let live at one time"
    return None


def _list_sizes(inputs: InputFacts) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Items and length of a short, a longer and a long input. Of an image, the length is that of its sides."""
    if isinstance(inputs, ImageFacts) and inputs.in_graph:
        return (1, SHORT[1]), (1, LONGER[1]), (1, min(LONGEST_SIDE, LONGEST))
    short, longer = ((items, _measure_length(length, inputs)) for items, length in (SHORT, LONGER))
    return short, longer, (LONGER[0], min(inputs.longest, LONGEST))


def follow_together(walks: Sequence[Walk], node: Node) -> list[list[int]]:
    """How many numbers each output of a node has, for each of the inputs, the shorter ones first.

    Raises:
        UnknownShapeError: that does not follow.
    """
    counts, given = [], []
    for walk in walks:
        counts.append(walk.follow(node))
        given.append(node.given)
    made = [walk.known[name].numbers for name in node.outputs[:1] for walk in walks]
    if made and made[0] is not None and not (_rises(made) and (node.type not in _STEPPING or _is_sure(node, given))):
        for walk in walks:
            walk.forget(node.outputs)
    return counts


def _rises(made: Sequence[Numbers | None]) -> bool:
    """Whether numbers are nowhere smaller for a longer input: else they may be largest between two of them."""
    return all(
        before is after or (before is not None and after is not None and before.shape == after.shape
                            and (before <= after).all())
        for before, after in pairwise(made)
    )  # fmt: skip


def _is_sure(node: Node, given: Sequence[Sequence[Tensor | None]]) -> bool:
    """Whether what an operator says at some lengths it says at all of them: it may compare, or count up to a number.

    Args:
        given: what it is given, for each of the inputs.
    """
    rows = [[tensor.numbers for tensor in found if tensor is not None] for found in zip(*given, strict=True)]
    if any(numbers is None or numbers.shape != row[0].shape for row in rows for numbers in row):
        return False
    stacks = [np.stack(row) for row in rows]
    varying = [(stack != stack[0]).any(axis=0) for stack in stacks]
    if not any(varies.any() for varies in varying):
        return True
    if node.type not in _COMPARING:
        return False
    # No length is negative, so one compares with a negative number in one way.
    decided = [
        (mine >= 0).all(axis=0) & ~varies & (theirs < 0).all(axis=0)
        for mine, theirs, varies in ((*stacks, varying[1]), (*stacks[::-1], varying[0]))
    ]
    return bool((decided[0] | decided[1] | ~(varying[0] | varying[1])).all())


def _measure_length(length: int, inputs: InputFacts) -> int:
    """How long a text is that stands for short ones: as long as all are, where they have one length."""
    if isinstance(inputs, TextFacts) and inputs.one_length:
        return inputs.max_tokens
    return max(1, min(length, length * inputs.longest // LONGER[1]))


def _find_input_problem(graph: Any, inputs: InputFacts) -> str | None:
    """Whether a graph takes something else than the manifest says: sizes that are fixed stand for what is not there."""
    for value in graph.input:
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if len(dims) != len(inputs.dims) or any(
            dim not in (0, known) for dim, known in zip(dims, inputs.dims, strict=True)
        ):
            return f"its input {value.name!r} has another shape than the manifest says"
    return None


class _Bounds:
    """What a graph of such weights may make of an input of some items of a length, in numbers.

    Args:
        given: how many numbers that input has.
    """

    def __init__(self, graph: Any, given: int, size: tuple[int, int], _inputs: InputFacts) -> None:
        items, length = size
        tokens = items * length
        shapes = [tuple(tensor.dims) for tensor in graph.initializer]
        counts = [math.prod(shape) for shape in shapes]
        experts = [min(MAX_EXPERTS, shape[0]) * math.prod(shape[1:]) for shape in shapes if len(shape) == 3]
        self.constant = max(MAX_FACTOR, *counts, 0)  # of what a runtime may work out before it has an input
        text = tokens * (MAX_HEADS * length + MAX_WIDTH) if length > LONGER[1] else 0
        self.largest = max(self.constant, MAX_GROWTH * given, tokens * max(experts, default=0), text)
        self.live = MAX_LIVE * self.largest + 2 * sum(counts)
        self.spent = MAX_USES * max(tokens, given // MAX_GROWTH) * max(MAX_FACTOR, sum(counts))


class _ImageBounds(_Bounds):
    """The same where an image is prepared in the graph: what is done to its pixels, and then to those that are kept."""

    def __init__(self, graph: Any, given: int, _size: tuple[int, int], inputs: InputFacts) -> None:
        assert isinstance(inputs, ImageFacts)
        super().__init__(graph, math.prod(inputs.shape), (1, 1), inputs)
        self.largest = max(self.largest, MAX_COPIES * given)
        self.live = MAX_LIVE * self.largest + 2 * sum(math.prod(tensor.dims) for tensor in graph.initializer)
        self.spent += given * (MAX_STEPS + MAX_PASSES * (inputs.height + inputs.width))


def read_constants(graph: Any) -> dict[str, Tensor]:
    """A graph's initializers, by name."""
    return {tensor.name: Tensor(tuple(tensor.dims), read_numbers(tensor)) for tensor in graph.initializer}


class Walk:
    """What is known of the tensors of a graph for an input of one size.

    Attributes:
        known: by name.
        given: how many numbers the input has.
        spent: what was computed so far, in products.
    """

    def __init__(self, graph: Any, constants: Mapping[str, Tensor], items: int, length: int) -> None:
        self.known: dict[str, Tensor] = {}
        self.spent = 0
        for value in graph.input:
            dims = value.type.tensor_type.shape.dim
            free = (length if place else items for place in range(len(dims)))
            shape = tuple(dim.dim_value if dim.dim_value > 0 else other for dim, other in zip(dims, free, strict=True))
            self.known[value.name] = Tensor(shape)
        self.given = sum(math.prod(tensor.shape) for tensor in self.known.values())
        self.known |= constants

    def follow(self, node: Node) -> list[int]:
        """How many numbers each output of a node has.

        Raises:
            UnknownShapeError: that does not follow.
        """
        known = self.known
        try:
            node.given = [known[name] if name else None for name in node.inputs]
            numbers = compute_numbers(node)
            made = [Tensor(numbers.shape, numbers)] if numbers is not None else [*map(Tensor, RULES[node.type](node))]
            counts = [math.prod(tensor.shape) for tensor in made[: node.count]]
            if node.type in PRODUCTS:
                self.spent += counts[0] * PRODUCTS[node.type](node)
            if node.type in _SORTING:
                self.spent += SORTING_COST * math.prod(node.take(0).shape)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            raise UnknownShapeError from None
        if len(made) < node.count:
            raise UnknownShapeError
        for tensor in made:
            if tensor.shape and (min(tensor.shape) < 0 or len(tensor.shape) > MAX_RANK):
                raise UnknownShapeError
        known.update(zip(node.outputs, made, strict=False))
        self.spent += COST * sum(counts)
        return counts

    def forget(self, names: Sequence[str]) -> None:
        """Know the shapes of tensors, and not their numbers."""
        self.known.update((name, self.known[name]._replace(numbers=None)) for name in names)


class _Live:
    """The numbers of the tensors that a runtime holds at one time: up to its last reader; for ever, of constants."""

    def __init__(self, graph: Any) -> None:
        self._last = {name: place for place, node in enumerate(graph.node) for name in node.input}
        self._last |= {value.name: len(graph.node) for value in graph.output}
        self._constant = {tensor.name for tensor in graph.initializer}
        self._held: dict[str, int] = {}
        self._count = 0

    def is_constant(self, node: Node) -> bool:
        """Whether what a node gives depends on no input."""
        return all(name in self._constant for name in node.inputs if name)

    def add(self, place: int, node: Node, counts: Sequence[int]) -> int:
        """How many live once a node has run."""
        for name, count in zip(node.outputs, counts, strict=False):
            self._held[name] = count
            self._count += count
        live = self._count
        if self.is_constant(node):  # a runtime may work it out before all runs, and keep it
            self._constant.update(node.outputs)
        for name in {*node.inputs, *node.outputs}:
            if name not in self._constant and self._last.get(name, -1) <= place:
                self._count -= self._held.pop(name, 0)
        return live
