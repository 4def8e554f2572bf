"""How large the tensors of a whole graph are: every shape, worked out for two short inputs of different lengths.

`guard.sizes` bounds what one operator can make of a number, whatever the input. Here a graph is followed node by node,
as a runtime would follow it, with the shape of every tensor and the numbers of the short ones that shapes are made of.
So a tensor that many small steps make large is found, by broadcasting, products, joining or repeated indices, and so is
one that grows faster than with the square of a text's length. The shapes are those of the ONNX operators'
specification; where the ends of a slice are not known, what it is taken from bounds it.

Nothing is computed but shapes, and following ends with the first tensor that is too large: the time is that of a walk
over the nodes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matexport.family.guard.node import Node, Tensor, UnknownShapeError
from matexport.family.guard.numbers import compute_numbers, read_numbers
from matexport.family.guard.operators import MAX_RANK
from matexport.family.guard.rules import PRODUCTS, RULES
from matexport.family.guard.sizes import MAX_FACTOR
from matexport.spec.facts import ArrayFacts, InputFacts

#: The two inputs: how many items, and how long each is if it may be.
SHORT, LONGER = (2, 16), (4, 32)

#: What is computed of an input that is large itself, an image, may have so many times its numbers.
MAX_GROWTH = 64

#: Of the tensors that live at one time, in tensors of the largest size.
MAX_LIVE = 16

#: How often each weight may be used for each place of an input: by all blocks that share it, and for positions.
MAX_USES = 256

#: Tensors of fewer numbers may grow as they like between the two inputs.
SMALL = 1 << 16


def find_shape_problem(graph: Any, inputs: InputFacts) -> str | None:
    """Why a graph makes a tensor that no graph of its weights needs; None where it makes none.

    Args:
        graph: as `graph_file.parse_graph` gives it; of the allowed operators alone.
        inputs: what the manifest says of the graph's inputs.
    """
    if problem := _find_input_problem(graph, inputs):
        return problem
    short, longer = (
        (items, max(1, min(length, length * inputs.longest // LONGER[1]))) for items, length in (SHORT, LONGER)
    )
    constants = read_constants(graph)
    walk, further = Walk(graph, constants, *short), Walk(graph, constants, *longer)
    bounds, live, products = _Bounds(graph, short, longer, walk.count_given()), _Live(graph), 0
    for place, one in enumerate(graph.node):
        node, name = Node(one), f"{one.op_type} {one.name!r}"
        try:
            counts, more = walk.follow(node)
            later, _ = further.follow(node)
        except UnknownShapeError:
            return f"{name} makes a tensor of a size that cannot be worked out"
        products += more
        if max(counts, default=0) > (bounds.constant if live.is_constant(node) else bounds.largest):
            return f"{name} makes a tensor of {max(counts)} numbers of a short input"
        if any(second > max(SMALL, bounds.steepest * first) for first, second in zip(counts, later, strict=True)):
            return f"{name} makes a tensor that grows faster than with the square of a text's length"
        if live.add(place, node, counts) > bounds.live:
            return f"{name} makes more tensors than are let live at one time"
        if products > bounds.products:
            return f"{name} computes more than so many weights are used for: {products} products for a short input"
    return None


def _find_input_problem(graph: Any, inputs: InputFacts) -> str | None:
    """Whether a graph takes something else than the manifest says: sizes that are fixed stand for what is not there."""
    item = inputs.shape if isinstance(inputs, ArrayFacts) else (0,)
    for value in graph.input:
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if len(dims) != 1 + len(item) or any(
            dim not in (0, known) for dim, known in zip(dims, (0, *item), strict=True)
        ):
            return f"its input {value.name!r} has another shape than the manifest says"
    return None


class _Bounds:
    """What a graph of such weights may make of the shorter of two inputs, in numbers."""

    def __init__(self, graph: Any, short: tuple[int, int], longer: tuple[int, int], given: int) -> None:
        counts = [math.prod(tensor.dims) for tensor in graph.initializer]
        places = max(math.prod(short), given // MAX_GROWTH)
        self.constant = max(MAX_FACTOR, *counts, 0)  # of what a runtime may work out before it has an input
        self.largest = max(self.constant, MAX_GROWTH * given)
        self.steepest = 1.5 * longer[0] / short[0] * (longer[1] / short[1]) ** 2
        self.live = MAX_LIVE * self.largest + 2 * sum(counts)
        self.products = MAX_USES * places * max(MAX_FACTOR, sum(counts))


def read_constants(graph: Any) -> dict[str, Tensor]:
    """A graph's initializers, by name."""
    return {tensor.name: Tensor(tuple(tensor.dims), read_numbers(tensor)) for tensor in graph.initializer}


class Walk:
    """What is known of the tensors of a graph for an input of one size: `known`, by name."""

    def __init__(self, graph: Any, constants: Mapping[str, Tensor], items: int, length: int) -> None:
        self.known: dict[str, Tensor] = {}
        for value in graph.input:
            dims = value.type.tensor_type.shape.dim
            free = (length if place else items for place in range(len(dims)))
            shape = tuple(dim.dim_value if dim.dim_value > 0 else other for dim, other in zip(dims, free, strict=True))
            self.known[value.name] = Tensor(shape)
        self._given = sum(math.prod(tensor.shape) for tensor in self.known.values())
        self.known |= constants

    def count_given(self) -> int:
        """How many numbers the input has."""
        return self._given

    def follow(self, node: Node) -> tuple[list[int], int]:
        """How many numbers each output of a node has, and how many products they are the sums of.

        Raises:
            UnknownShapeError: that does not follow.
        """
        known = self.known
        try:
            node.given = [known[name] if name else None for name in node.inputs]
            numbers = compute_numbers(node)
            made = [Tensor(numbers.shape, numbers)] if numbers is not None else [*map(Tensor, RULES[node.type](node))]
            counts = [math.prod(tensor.shape) for tensor in made[: node.count]]
            products = counts[0] * PRODUCTS[node.type](node) if node.type in PRODUCTS else 0
        except (IndexError, ValueError, KeyError, TypeError, OverflowError, ZeroDivisionError):
            raise UnknownShapeError from None
        if len(made) < node.count or any(
            len(tensor.shape) > MAX_RANK or min(tensor.shape, default=0) < 0 for tensor in made
        ):
            raise UnknownShapeError
        known.update(zip(node.outputs, made, strict=False))
        return counts, products


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
