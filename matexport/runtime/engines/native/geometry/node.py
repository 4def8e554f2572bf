"""A node of a parsed graph, and why a graph is not understood."""

from __future__ import annotations

from typing import Any

from matexport.family.guard.node import Node as GuardedNode


class UnknownGraphError(Exception):
    """A graph holds something whose meaning is not known here; the message names it."""


class Node(GuardedNode):
    """One operator of a graph.

    Attributes:
        name: the node's own, or of what it gives.
    """

    def __init__(self, node: Any) -> None:
        super().__init__(node)
        self.name: str = node.name or (self.outputs[0] if self.outputs else "")

    def read_number(self, name: str, default: float) -> float:
        """A float32 attribute."""
        return float(self._attributes[name].f) if name in self._attributes else default

    def describe(self) -> str:
        """As messages name it."""
        return f"{self.type} ({self.name})"
