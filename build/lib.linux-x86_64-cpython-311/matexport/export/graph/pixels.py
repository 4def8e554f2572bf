"""An image's preparation as ONNX nodes: uint8 pixels of any size in, what `ImageFacts` says of them out.

    (1, H, W, 3) uint8 -> planes -> weights of the columns, of the rows -> (3, height, width) grey levels -> float32

Pillow's own scheme (13.0, `src/libImaging/Resample.c`): a grey level of a pass is a sum of products with whole numbers
(weights times 2**22, rounded), rounded once and clipped. Such sums stay below 2**53, so a MatMul in float64 is exact in
any order, and the levels are Pillow's own. ONNX's Resize is not used: onnxruntime 1.31's, with antialias and
exclude_outside, gives 98.8 % of the levels where it is linear, and the others off by one; where it is cubic, and Pillow
resamples the rows first, it is off by up to 20. float32 parity does not bear one level.

Squaring, cutting and black borders are in the weights: only the rows and columns that are kept are worked out, of the
image as it is. So nothing is larger here than the image, or than its side times the side of what the graph takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir import convenience

from matexport.export.graph.edit import add_constant
from matexport.spec.inputs import ImageFacts, Resampling

#: What weights are multiplied by before they are rounded.
ONE = float(1 << 22)

CHANNELS = 3

OPSET, IR_VERSION = 20, 10


def put_preparation_in_front(model: ir.Model, facts: ImageFacts) -> None:
    """Have a graph take an image of any size in place of pixels that were prepared, in place.

    Args:
        model: its one input is (batch, 3, height, width) float32.
        facts: how images are prepared; the new input, (1, H, W, 3) uint8, is called `facts.input`.

    Raises:
        ValueError: the filter is none of `FILTERS`, or the graph has other inputs.
    """
    graph = model.graph
    if len(graph.inputs) != 1 or (facts.resized and facts.resampling not in FILTERS):
        raise ValueError(f"{len(graph.inputs)} inputs, {facts.resampling}")
    (pixels,) = graph.inputs
    shape = ir.Shape([1, "height", "width", CHANNELS])
    image = ir.Value(name=facts.input, shape=shape, type=ir.TensorType(ir.DataType.UINT8))
    prepared = _prepare(_Nodes(graph, graph[0]), image, facts)
    convenience.replace_all_uses_with(pixels, prepared)
    graph.inputs[:] = [image]
    prepared.name, prepared.shape, prepared.type = pixels.name, ir.Shape([1, *facts.shape]), pixels.type


def make_preparation(facts: ImageFacts) -> ir.Model:
    """A graph of the preparation alone, whose one output is (1, 3, height, width) float32."""
    shape, kind = ir.Shape([1, *facts.shape]), ir.TensorType(ir.DataType.FLOAT)
    pixels = ir.Value(name="pixels", shape=shape, type=kind)
    node = ir.node("Identity", [pixels], name="prepared")
    (prepared,) = node.outputs
    prepared.name, prepared.shape, prepared.type = "prepared", shape, kind
    graph = ir.Graph([pixels], [prepared], nodes=[node], opset_imports={"": OPSET}, name="matexport")
    model = ir.Model(graph, ir_version=IR_VERSION)
    put_preparation_in_front(model, facts)
    return model


@dataclass(frozen=True)
class _Nodes:
    """Inserts nodes before the one that came first, and the constants that they read, all called ``image.``"""

    graph: ir.Graph
    before: ir.Node

    def add(self, name: str, operator: str, *inputs: ir.Value, **attributes: int | Sequence[int]) -> ir.Value:
        node = ir.node(operator, inputs, attributes or None, name=f"image.{name}")
        node.outputs[0].name = node.name
        self.graph.insert_before(self.before, node)
        return node.outputs[0]

    def number(self, value: float) -> ir.Value:
        """A float64."""
        return add_constant(self.graph, f"image.{value!r}", np.array(value, np.float64))

    def whole(self, *values: int) -> ir.Value:
        """A list of int64."""
        return add_constant(self.graph, f"image.{list(values)}", np.array(values, np.int64))

    def array(self, name: str, content: NDArray[np.generic]) -> ir.Value:
        return add_constant(self.graph, f"image.{name}", content)

    def to_float64(self, name: str, value: ir.Value) -> ir.Value:
        return self.add(name, "Cast", value, to=int(ir.DataType.DOUBLE))


class Axis(NamedTuple):
    """Rows, or columns, of an image: how many there are.

    Attributes:
        name: ``rows`` or ``columns``.
        wanted: in what the graph takes.
        length: in the image; this and the others are (1,) int64.
        side: once it is square; `length` where it is not made so.
        target: once it is resized.
    """

    name: str
    wanted: int
    length: ir.Value
    side: ir.Value
    target: ir.Value


class Weights(NamedTuple):
    """What the pixels along an axis are multiplied with.

    Attributes:
        axis: which.
        inside: (length, wanted) whole numbers as float64.
        there: (wanted, 1), 1 where something is, and 0 where black is put around.
        outside: (1, wanted), what is left for the colour that makes an image square; None where none does.
    """

    axis: Axis
    inside: ir.Value
    there: ir.Value
    outside: ir.Value | None


def _prepare(nodes: _Nodes, image: ir.Value, facts: ImageFacts) -> ir.Value:
    """(1, H, W, 3) uint8 -> (1, 3, height, width) float32, in the arithmetic of `tabulate_levels`."""
    filtered = facts.resampling if facts.resized else Resampling.BILINEAR  # where nothing is resized, all are one
    rows, columns = (_weigh(nodes, axis, filtered) for axis in _find_axes(nodes, image, facts))
    only = nodes.add("only", "Squeeze", image, nodes.whole(0))
    level = _resample_in_order(nodes, only, (rows, columns), facts.square)
    scaled = nodes.add("scaled", "Mul", level, nodes.number(facts.scale))
    scaled = nodes.add("float32", "Cast", scaled, to=int(ir.DataType.FLOAT))
    mean, std = (np.array(numbers, np.float32).reshape(CHANNELS, 1, 1) for numbers in (facts.mean, facts.std))
    centred = nodes.add("centred", "Sub", scaled, nodes.array("mean", mean))
    normalised = nodes.add("normalised", "Div", centred, nodes.array("std", std))
    return nodes.add("batch", "Unsqueeze", normalised, nodes.whole(0))


def _find_axes(nodes: _Nodes, image: ir.Value, facts: ImageFacts) -> tuple[Axis, Axis]:
    """Rows and columns."""
    lengths = [
        nodes.add(f"{name}.length", "Shape", image, start=place, end=place + 1)
        for place, name in enumerate(("rows", "columns"), 1)
    ]
    sides = lengths
    if facts.square is not None:
        sides = [nodes.add("side", "Max", *lengths)] * 2
    targets = sides
    if len(facts.resized) == 2:
        targets = [nodes.whole(side) for side in facts.resized]
    elif facts.resized:
        edge, shorter = nodes.whole(facts.resized[0]), nodes.add("shorter", "Min", *sides)
        targets = [
            nodes.add(f"{name}.target", "Div", nodes.add(f"{name}.edges", "Mul", side, edge), shorter)
            for name, side in zip(("rows", "columns"), sides, strict=True)
        ]
    return (
        Axis("rows", facts.height, lengths[0], sides[0], targets[0]),
        Axis("columns", facts.width, lengths[1], sides[1], targets[1]),
    )


def _weigh(nodes: _Nodes, axis: Axis, resampling: Resampling) -> Weights:
    """What each pixel along an axis counts in each that is kept: `precompute_coeffs` and `normalize_coeffs_8bpc`."""
    name, half, zero, one = axis.name, nodes.number(0.5), nodes.number(0.0), nodes.number(1.0)
    target = nodes.to_float64(f"{name}.target.float64", axis.target)
    place = _place_kept(nodes, axis)
    last = nodes.add(f"{name}.last", "Sub", target, one)
    known = nodes.add(f"{name}.known", "Min", nodes.add(f"{name}.from-zero", "Max", place, zero), last)

    scale = nodes.add(f"{name}.scale", "Div", nodes.to_float64(f"{name}.side.float64", axis.side), target)
    centre = nodes.add(f"{name}.centre", "Mul", nodes.add(f"{name}.middle", "Add", known, half), scale)
    narrow = nodes.add(f"{name}.narrow", "Div", one, nodes.add(f"{name}.wide", "Max", scale, one))
    count = nodes.add(f"{name}.count", "Squeeze", axis.side, nodes.whole(0))
    start, step = (nodes.array(f"int64.{number}", np.array(number, np.int64)) for number in (0, 1))
    pixel = nodes.to_float64(f"{name}.pixels", nodes.add(f"{name}.range", "Range", start, count, step))
    away = nodes.add(f"{name}.off-centre", "Add", nodes.add(f"{name}.off", "Sub", pixel, centre), half)
    size = nodes.add(f"{name}.distance", "Abs", nodes.add(f"{name}.away", "Mul", away, narrow))
    weight = FILTERS[resampling](nodes, name, size)

    share = nodes.add(f"{name}.share", "Div", weight, nodes.add(f"{name}.sum", "ReduceSum", weight, nodes.whole(1)))
    large = nodes.add(f"{name}.large", "Mul", nodes.add(f"{name}.size", "Abs", share), nodes.number(ONE))
    whole = nodes.add(f"{name}.whole", "Floor", nodes.add(f"{name}.up", "Add", large, half))
    signed = nodes.add(f"{name}.signed", "Mul", whole, nodes.add(f"{name}.sign", "Sign", share))
    there = nodes.to_float64(f"{name}.there", nodes.add(f"{name}.within", "Equal", known, place))
    weights, outside = nodes.add(f"{name}.weights", "Mul", signed, there), None
    if axis.side is not axis.length:
        weights, outside = _leave_out_colour(nodes, axis, weights)
    return Weights(axis, nodes.add(f"{name}.weights.T", "Transpose", weights, perm=[1, 0]), there, outside)


def _place_kept(nodes: _Nodes, axis: Axis) -> ir.Value:
    """(wanted, 1): where what is kept lies in the resized image, which it is the middle of; odd rests as numpy's //.

    From (target - wanted) // 2 on; ONNX cuts whole numbers toward zero, so none is below it here.
    """
    name, wanted = axis.name, nodes.whole(axis.wanted)
    both = nodes.add(f"{name}.both", "Add", axis.target, wanted)
    first = nodes.add(f"{name}.first", "Sub", nodes.add(f"{name}.half", "Div", both, nodes.whole(2)), wanted)
    kept = nodes.array(f"{name}.kept", np.arange(axis.wanted, dtype=np.float64)[:, None])
    return nodes.add(f"{name}.place", "Add", kept, nodes.to_float64(f"{name}.first.float64", first))


def _leave_out_colour(nodes: _Nodes, axis: Axis, weights: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The weights of the pixels that there are, in the middle of a square, and the sum of all others."""
    name, along = axis.name, nodes.whole(1)
    before = nodes.add(
        f"{name}.before", "Div", nodes.add(f"{name}.padding", "Sub", axis.side, axis.length), nodes.whole(2)
    )
    after = nodes.add(f"{name}.after", "Add", before, axis.length)
    inside = nodes.add(f"{name}.inside", "Slice", weights, before, after, along)
    every, shown = (
        nodes.add(f"{name}.{part}", "ReduceSum", value, along)
        for part, value in (("every", weights), ("shown", inside))
    )
    outside = nodes.add(f"{name}.outside", "Sub", every, shown)
    return inside, nodes.add(f"{name}.outside.T", "Transpose", outside, perm=[1, 0])


def _resample_in_order(
    nodes: _Nodes, image: ir.Value, weights: tuple[Weights, Weights], square: tuple[int, ...] | None
) -> ir.Value:
    """(H, W, 3) uint8 -> (3, height, width) grey levels as float64.

    Pillow resamples the columns first, but where there are fewer rows then, by more than twice what columns are fewer.
    Both orders are written down, and all channels go one way: of no channels, nothing is computed.

    Args:
        weights: of rows and columns.
        square: the colour that makes an image square.
    """
    every, along, none = nodes.whole(CHANNELS), nodes.whole(0), nodes.whole(0)
    fewer = [nodes.add(f"{axis.name}.fewer", "Sub", axis.side, axis.target) for axis, *_ in weights]
    least = nodes.add("least", "Max", nodes.add("twice", "Mul", fewer[1], nodes.whole(2)), none)
    chosen = nodes.add("choice", "Cast", nodes.add("chosen", "Greater", fewer[0], least), to=int(ir.DataType.INT64))
    split = nodes.add("split", "Mul", chosen, every)
    colour = None
    if square is not None:
        colour = nodes.array("colour", np.array(square, np.float64).reshape(CHANNELS, 1, 1))

    def resample(first: int, start: ir.Value, end: ir.Value) -> ir.Value:
        """(n, first axis, second axis) of some channels."""
        here, there = weights[first], weights[1 - first]
        way = f"{here.axis.name}-first"
        taken = nodes.add(f"{way}.channels", "Slice", image, start, end, nodes.whole(2))
        planes = nodes.add(f"{way}.planes", "Transpose", taken, perm=[2, 1 - first, first])
        painted = None if colour is None else nodes.add(f"{way}.colour", "Slice", colour, start, end, along)
        level = _resample(nodes, f"{way}.1", nodes.to_float64(f"{way}.levels", planes), here, painted)
        if painted is not None:  # what is black stays so
            painted = nodes.add(f"{way}.painted", "Mul", painted, here.there)
        return _resample(
            nodes, f"{way}.2", nodes.add(f"{way}.turned", "Transpose", level, perm=[0, 2, 1]), there, painted
        )

    upright = nodes.add("upright", "Transpose", resample(1, split, every), perm=[0, 2, 1])
    both = nodes.add("both", "Concat", resample(0, none, split), upright, axis=0)
    return nodes.add("all", "Slice", both, none, every, along)  # so many they are: said for who cannot see it


def _resample(nodes: _Nodes, name: str, level: ir.Value, weights: Weights, colour: ir.Value | None) -> ir.Value:
    """One pass over grey levels, (n, other axis, length) -> (n, other axis, wanted).

    As a product of two matrices: onnxruntime refuses to repeat one for no channels.
    """
    any_number, wanted = nodes.whole(-1), nodes.whole(weights.axis.wanted)
    other, length = (nodes.add(f"{name}.axis-{axis}", "Shape", level, start=axis, end=axis + 1) for axis in (1, 2))
    flat = nodes.add(f"{name}.lines", "Reshape", level, nodes.add(f"{name}.flat", "Concat", any_number, length, axis=0))
    total = nodes.add(f"{name}.products", "MatMul", flat, weights.inside)
    shape = nodes.add(f"{name}.shape", "Concat", any_number, other, wanted, axis=0)
    total = nodes.add(f"{name}.sums", "Reshape", total, shape)
    if colour is not None and weights.outside is not None:
        total = nodes.add(f"{name}.all", "Add", total, nodes.add(f"{name}.around", "Mul", colour, weights.outside))
    total = nodes.add(f"{name}.half-up", "Add", total, nodes.number(ONE / 2))
    level = nodes.add(f"{name}.floor", "Floor", nodes.add(f"{name}.level", "Mul", total, nodes.number(1 / ONE)))
    return nodes.add(f"{name}.clip", "Clip", level, nodes.number(0.0), nodes.number(255.0))


def _filter_linear(nodes: _Nodes, name: str, size: ir.Value) -> ir.Value:
    """1 - x up to 1."""
    return nodes.add(
        f"{name}.linear", "Max", nodes.add(f"{name}.less", "Sub", nodes.number(1.0), size), nodes.number(0.0)
    )


def _filter_cubic(nodes: _Nodes, name: str, size: ir.Value) -> ir.Value:
    """Keys' with a = -0.5: ((a + 2) x - (a + 3)) x x + 1 up to 1, (((x - 5) x + 8) x - 4) a up to 2."""
    a, number = -0.5, nodes.number
    x = nodes.add(f"{name}.cubic.size", "Min", size, number(2.0))

    def chain(part: str, *steps: tuple[str, ir.Value]) -> ir.Value:
        value = x
        for place, (operator, other) in enumerate(steps):
            value = nodes.add(f"{name}.cubic.{part}.{place}", operator, value, other)
        return value

    near = chain("near", ("Mul", number(a + 2)), ("Sub", number(a + 3)), ("Mul", x), ("Mul", x), ("Add", number(1.0)))
    far = chain(
        "far", ("Sub", number(5.0)), ("Mul", x), ("Add", number(8.0)), ("Mul", x), ("Sub", number(4.0)),
        ("Mul", number(a)),
    )  # fmt: skip
    return nodes.add(f"{name}.cubic", "Where", nodes.add(f"{name}.cubic.near", "Less", x, number(1.0)), near, far)


#: What a pixel counts at a distance, in pixels of the smaller image; in Pillow's order of operations.
FILTERS: Mapping[Resampling, Callable[[_Nodes, str, ir.Value], ir.Value]] = {
    Resampling.BILINEAR: _filter_linear,
    Resampling.BICUBIC: _filter_cubic,
}
