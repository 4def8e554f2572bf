"""A traced graph, and what tells the parent's blocks apart in it: what every precision is made from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir


@dataclass(frozen=True)
class Traced:
    """A graph in the form that a trace leaves: (B, T) int64 inputs, outputs named after points.

    Attributes:
        model: the graph; its weights are in memory, or on disk where `weights.write_nested_weights` wrote them.
        states: names of the (B, T, H) float32 values that hold the parent's token states after 0, 1, ... blocks, up to
            the deepest one that an exit reads, each before any final norm. What one of them needs and those before it
            do not is one block.
    """

    model: ir.Model
    states: tuple[str, ...]

    def copy(self) -> Traced:
        """One whose graph may be changed; weights are shared."""
        return replace(self, model=self.model.clone())
