"""Find what int8-static codes of a network of convolutions: their weights, and the values between them.

A map is a (B, C, H, W) value. onnxruntime multiplies integers in a convolution only where all around it is coded: the
map that it reads, its weights, and the map that it gives, behind a Relu where there is one. So what is added to such a
map, the sum itself, and what a pool or a slice takes of it are coded, too. What makes the first state of a parent (a
stem, a patch embedding) is left alone, as all embeddings of that kind are.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from matexport.export.graph.prefix import count_leading_rows
from matexport.export.graph.traced import Traced
from matexport.export.quantize.sites import find_blocks

#: Operators that give numbers which they were given: what they give has the codes of what they take.
PICKING = frozenset({"MaxPool", "Slice"})


@dataclass(frozen=True)
class Convolution:
    """A convolution whose weights are constants.

    Attributes:
        kernel: its (O, I / groups, h, w) float32 weights; more rows than it has channels where `rows` is set.
        rows: the Slice that takes its leading rows of the kernel, if there is one.
        biases: (O,) float32, of which it takes as many as it has channels; None where it has none.
    """

    node: ir.Node
    kernel: ir.Value
    rows: ir.Node | None
    biases: ir.Value | None

    @property
    def source(self) -> ir.Value:
        """The map that it reads."""
        source = self.node.inputs[0]
        assert source is not None
        return source

    @property
    def groups(self) -> int:
        """In how many parts its channels are convolved on their own."""
        return self.node.attributes.get_int("group", 1)

    @property
    def channels(self) -> int:
        """How many it gives."""
        shape = self.node.outputs[0].shape
        assert shape is not None
        return int(shape[1])  # type: ignore[arg-type]


def find_convolutions(traced: Traced) -> list[Convolution]:
    """The convolutions of maps behind a traced graph's first state, in the order in which the graph computes them.

    An exit may have some of its own, which are part of no block: a narrower last convolution.
    """
    blocks, found = find_blocks(traced), []
    for node in traced.model.graph:
        if node.op_type != "Conv" or blocks.get(node) == 0:
            continue
        kernel, rows = _find_constant(node.inputs[1], axes=4)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        known = _find_constant(bias, axes=1)[0]
        if kernel is not None and (bias is None or known is not None):
            found.append(Convolution(node, kernel, rows, known))
    return found


def find_coded(traced: Traced) -> dict[ir.Value, ir.Value]:
    """Each map that is coded -> the map whose range it has: itself, or what it was picked out of."""
    convolutions = {convolution.node for convolution in find_convolutions(traced)}
    coded: dict[ir.Value, ir.Value] = {}
    for node in traced.model.graph if convolutions else ():
        given = [value for value in node.inputs if value is not None]
        if node in convolutions:
            coded.setdefault(given[0], given[0])
        elif node.op_type in PICKING and given[0] in coded:
            coded[node.outputs[0]] = coded[given[0]]
            continue
        elif node.op_type != "Add" or not all(value in coded for value in given):
            continue
        made = _find_active(node.outputs[0])
        coded[made] = made
    return coded


def _find_active(value: ir.Value) -> ir.Value:
    """What a Relu makes of a value that nothing else reads; the value itself where that is not so."""
    uses = list(value.uses())
    if len(uses) == 1 and uses[0].node.op_type == "Relu" and not value.is_graph_output():
        return uses[0].node.outputs[0]
    return value


def _find_constant(value: ir.Value | None, axes: int) -> tuple[ir.Value | None, ir.Node | None]:
    """The float32 initializer of so many axes that a value is, or is the leading rows of, and what takes these."""
    maker = value.producer() if value is not None else None
    rows = maker if maker is not None and maker.op_type == "Slice" and count_leading_rows(maker) else None
    known = rows.inputs[0] if rows else value
    if known is None or not known.is_initializer() or known.const_value is None:
        return None, None
    if known.const_value.dtype is not ir.DataType.FLOAT or len(known.const_value.shape) != axes:
        return None, None
    return known, rows
