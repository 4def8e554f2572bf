"""A traced graph together with the values that separate the parent's blocks; every precision is made from it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir


@dataclass(frozen=True)
class Traced:
    """A traced graph: its inputs are (B, T) int64, and its outputs are named after points.

    Attributes:
        model: the graph; its weights are in memory, or on disk where `weights.write_nested_weights` wrote them.
        states: names of the (B, T, H) float32 values that hold the parent's token states after 0, 1, ... blocks, up to
            the deepest one that an exit reads, each before any final norm. A block consists of the nodes that one of
            these values depends on and the values before it do not.
    """

    model: ir.Model
    states: tuple[str, ...]

    def copy(self) -> Traced:
        """A copy whose graph may be changed; its weights are shared with this one."""
        return replace(self, model=self.model.clone())
