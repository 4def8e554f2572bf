"""A node of a graph, and what is known of the tensors that it is given: what `guard.shapes` follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

Shape: TypeAlias = tuple[int, ...]
Numbers: TypeAlias = "np.ndarray[Any, Any]"


class Tensor(NamedTuple):
    """What is known of one: its shape, and its numbers where they are few and follow from shapes and constants."""

    shape: Shape
    numbers: Numbers | None = None


class UnknownShapeError(Exception):
    """The shape of what a node gives does not follow from shapes."""


class Node:
    """One of the graph, with what is known of its inputs: `given`, in a walk."""

    given: Sequence[Tensor | None] = ()

    def __init__(self, node: Any) -> None:
        self.type: str = node.op_type
        self.inputs, self.outputs = tuple(node.input), tuple(node.output)
        self.count = len(self.outputs)
        self._attributes = {attribute.name: attribute for attribute in node.attribute}

    def read_int(self, name: str, default: int) -> int:
        return self._attributes[name].i if name in self._attributes else default

    def read_ints(self, name: str) -> list[int]:
        return list(self._attributes[name].ints) if name in self._attributes else []

    def read_text(self, name: str) -> str:
        return self._attributes[name].s.decode() if name in self._attributes else ""

    def read_tensor(self, name: str) -> Any:
        return self._attributes[name].t if name in self._attributes else None

    def take(self, place: int) -> Tensor:
        """An input that must be there."""
        if place >= len(self.given) or (tensor := self.given[place]) is None:
            raise UnknownShapeError
        return tensor

    def find_numbers(self, place: int) -> list[int] | None:
        """An input's numbers; None where it is not there."""
        if place >= len(self.given) or (tensor := self.given[place]) is None:
            return None
        if tensor.numbers is None:
            raise UnknownShapeError
        return [int(number) for number in tensor.numbers.reshape(-1)]

    def find_axes(self, place: int) -> list[int] | None:
        """The axes, an input of newer operators and an attribute of older ones."""
        return self.find_numbers(place) if len(self.given) > place else self.read_ints("axes") or None
