"""The shapes of what operators give, from the shapes of what they are given.

As ONNX specifies them (https://onnx.ai/onnx/operators), and onnxruntime those of its own. Shapes that do not fit are
left to the runtime, which refuses them; a rule that meets such may raise whatever Python raises then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

from matexport.family.guard.node import Node, Shape, UnknownShapeError

Rule: TypeAlias = Callable[[Node], Sequence[Shape]]


def _broadcast(*shapes: Shape) -> Shape:
    """Shapes that do not fit are left to the runtime, which refuses them."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(0 if 0 in axis else max(axis) for axis in zip(*padded, strict=True))


def _list_given(node: Node) -> list[Shape]:
    return [tensor.shape for tensor in node.given if tensor is not None]


def _keep(node: Node) -> list[Shape]:
    return [node.take(0).shape] * max(node.count, 1)


def _combine(node: Node) -> list[Shape]:
    return [_broadcast(*_list_given(node))]


def _reduce(node: Node, named: str = "") -> list[Shape]:
    shape = node.take(0).shape
    axes = [node.read_int(named, 0)] if named else node.find_axes(1)
    if not axes:  # none are named, or an empty list of them
        axes = [] if node.read_int("noop_with_empty_axes", 0) else [*range(len(shape))]
    gone = {axis % len(shape) for axis in axes}
    kept = node.read_int("keepdims", 1)
    return [tuple(1 if place in gone else dim for place, dim in enumerate(shape) if kept or place not in gone)]


def _multiply(left: Shape, right: Shape) -> Shape:
    """numpy.matmul's."""
    rows = left if len(left) > 1 else (1, *left)
    columns = right if len(right) > 1 else (*right, 1)
    made = (*_broadcast(rows[:-2], columns[:-2]), rows[-2], columns[-1])
    return (
        made if len(left) > 1 < len(right) else made[:-2] + made[-2:-1] * (len(left) > 1) + made[-1:] * (len(right) > 1)
    )


def _multiply_blocks(node: Node) -> list[Shape]:
    return [(*node.take(0).shape[:-1], node.read_int("N", 0))]


def _multiply_general(node: Node) -> list[Shape]:
    (rows, inner), (other, columns) = node.take(0).shape, node.take(1).shape
    return [(inner if node.read_int("transA", 0) else rows, other if node.read_int("transB", 0) else columns)]


def _read_letters(node: Node) -> tuple[dict[str, int], Shape, str]:
    """Einsum's: the length of each letter, the shape of what the dots stand for, and the letters of the result."""
    given, arrow, result = node.read_text("equation").replace(" ", "").partition("->")
    letters: dict[str, int] = {}
    dotted: Shape = ()
    for part, shape in zip(given.split(","), _list_given(node), strict=True):
        before, dots, after = part.partition("...")
        count = len(shape) - len(before) - len(after)
        if count < 0 or (count and not dots):
            raise UnknownShapeError
        dotted = _broadcast(dotted, shape[len(before) : len(before) + count])
        for letter, dim in (*zip(before, shape, strict=False), *zip(after, shape[len(before) + count :], strict=True)):
            letters[letter] = max(letters.get(letter, 0), dim)  # one that is 1 is repeated
    if not arrow:
        plain = given.replace("...", "").replace(",", "")
        result = "..." * ("..." in given) + "".join(letter for letter in sorted(letters) if plain.count(letter) == 1)
    return letters, dotted, result


def _sum_products(node: Node) -> list[Shape]:
    letters, dotted, result = _read_letters(node)
    before, dots, after = result.partition("...")
    return [
        (*(letters[letter] for letter in before), *(dotted if dots else ()), *(letters[letter] for letter in after))
    ]


def _count_summed(node: Node) -> int:
    letters, dotted, result = _read_letters(node)
    summed = math.prod(dim for letter, dim in letters.items() if letter not in result)
    return summed * (1 if "..." in result else math.prod(dotted))


def _join(node: Node) -> list[Shape]:
    shapes = _list_given(node)
    axis = node.read_int("axis", 0) % len(shapes[0])
    return [(*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :])]


def _split(node: Node) -> list[Shape]:
    shape = node.take(0).shape
    axis = node.read_int("axis", 0) % len(shape)
    parts = node.find_numbers(1) or node.read_ints("split") or [-(-shape[axis] // node.count)] * node.count
    return [(*shape[:axis], part, *shape[axis + 1 :]) for part in parts]


def list_slices(node: Node, shape: Shape) -> list[slice]:
    starts, ends = node.find_numbers(1), node.find_numbers(2)
    if starts is None or ends is None:
        raise UnknownShapeError
    axes, steps = node.find_numbers(3) or [*range(len(starts))], node.find_numbers(4) or [1] * len(starts)
    slices = [slice(None)] * len(shape)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        # Backwards, an end before the first one is the front, and not one from behind.
        slices[axis] = slice(start, None if step < 0 and end < -shape[axis] else end, step)
    return slices


def _slice(node: Node) -> list[Shape]:
    shape = node.take(0).shape
    try:
        slices = list_slices(node, shape)
    except UnknownShapeError:
        return [shape]
    return [tuple(len(range(dim)[part]) for dim, part in zip(shape, slices, strict=True))]


def _gather(node: Node, named: str = "axis", wider: int = 1) -> list[Shape]:
    shape, places = node.take(0).shape, node.take(1).shape
    axis = node.read_int(named, 0) % len(shape)
    made = (*shape[:axis], *places, *shape[axis + 1 :])
    return [(*made[:-1], made[-1] * wider)]


def _gather_slices(node: Node) -> list[Shape]:
    shape, places = node.take(0).shape, node.take(1).shape
    return [(*places[:-1], *shape[node.read_int("batch_dims", 0) + places[-1] :])]


def _gather_blocks(node: Node) -> list[Shape]:
    """Codes of 4 bits lie two in a byte where they are kept as bytes: as many columns again, at most."""
    return _gather(node, "gather_axis", wider=max(1, 8 // max(1, node.read_int("bits", 4))))


def _transpose(node: Node) -> list[Shape]:
    shape = node.take(0).shape
    order = node.read_ints("perm") or [*range(len(shape))][::-1]
    if sorted(order) != [*range(len(shape))]:
        raise UnknownShapeError
    return [tuple(shape[place] for place in order)]


def _reshape(node: Node) -> list[Shape]:
    shape, wanted = node.take(0).shape, node.find_numbers(1)
    if wanted is None:
        raise UnknownShapeError
    zeros = node.read_int("allowzero", 0)
    dims = [shape[place] if dim == 0 and not zeros else dim for place, dim in enumerate(wanted)]
    if -1 in dims:
        dims[dims.index(-1)] = -(-math.prod(shape) // max(1, math.prod(dim for dim in dims if dim != -1)))
    return [tuple(dims)]


def _flatten(node: Node) -> list[Shape]:
    shape = node.take(0).shape
    axis = node.read_int("axis", 1)
    return [(math.prod(shape[:axis]), math.prod(shape[axis:]))]


def _squeeze(node: Node) -> list[Shape]:
    shape, axes = node.take(0).shape, node.find_axes(1)
    gone = (
        {place for place, dim in enumerate(shape) if dim == 1} if axes is None else {axis % len(shape) for axis in axes}
    )
    return [tuple(dim for place, dim in enumerate(shape) if place not in gone)]


def _unsqueeze(node: Node) -> list[Shape]:
    shape, axes = node.take(0).shape, node.find_axes(1)
    if axes is None:
        raise UnknownShapeError
    rank = len(shape) + len(axes)
    new = {axis % rank for axis in axes}
    if len(new) < len(axes):  # one of them twice
        raise UnknownShapeError
    kept = iter(shape)
    return [tuple(1 if place in new else next(kept) for place in range(rank))]


def _read_shape(node: Node, place: int) -> Shape:
    numbers = node.find_numbers(place)
    if numbers is None:
        raise UnknownShapeError
    return tuple(numbers)


def _tile(node: Node) -> list[Shape]:
    times = _read_shape(node, 1)
    return [tuple(dim * count for dim, count in zip(node.take(0).shape, times, strict=True))]


def _pad(node: Node) -> list[Shape]:
    shape = node.take(0).shape
    pads = node.find_numbers(1) if len(node.given) > 1 else node.read_ints("pads")
    axes = node.find_numbers(3) or [*range(len(shape))]
    dims = list(shape)
    for place, axis in enumerate(axes):
        dims[axis] += (pads or [])[place] + (pads or [])[place + len(axes)]
    return [tuple(dims)]


def _count_range(node: Node) -> list[Shape]:
    start, limit, step = (node.take(place).numbers for place in range(3))
    if start is None or limit is None or step is None:
        raise UnknownShapeError
    return [(max(0, math.ceil((limit.item() - start.item()) / step.item())),)]


def _find_top(node: Node) -> list[Shape]:
    shape, count = node.take(0).shape, _read_shape(node, 1)
    axis = node.read_int("axis", -1) % len(shape)
    return [(*shape[:axis], count[0], *shape[axis + 1 :])] * 2


def _slide(node: Node, kernel: Shape, channels: int) -> list[Shape]:
    """Of convolutions and pools: all pads that they are given, at least those that `auto_pad` adds."""
    shape = node.take(0).shape
    rank = len(kernel)
    strides, dilations = node.read_ints("strides") or [1] * rank, node.read_ints("dilations") or [1] * rank
    pads = node.read_ints("pads") or [0] * (2 * rank)
    same, up = node.read_text("auto_pad").startswith("SAME"), node.read_int("ceil_mode", 0)
    dims = []
    for place, dim in enumerate(shape[2:]):
        reach = dilations[place] * (kernel[place] - 1) + 1
        room = dim - 1 if same else dim + pads[place] + pads[place + rank] - reach
        dims.append(max(0, (room + (strides[place] - 1) * up) // strides[place] + 1))
    return [(shape[0], channels, *dims)] * max(node.count, 1)


def _convolve(node: Node) -> list[Shape]:
    channels, _, *kernel = node.take(1).shape
    return _slide(node, tuple(kernel), channels)


def _pool(node: Node) -> list[Shape]:
    return _slide(node, tuple(node.read_ints("kernel_shape")), node.take(0).shape[1])


def _pool_all(node: Node) -> list[Shape]:
    shape = node.take(0).shape
    return [(*shape[:2], *(1 for _ in shape[2:]))]


_KEEPING = (
    "Abs", "BatchNormalization", "Cast", "Ceil", "Clip", "Cos", "CumSum", "DequantizeLinear", "Elu", "Erf", "Exp",
    "Floor", "Gelu", "GroupNormalization", "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization", "IsInf",
    "IsNaN", "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax", "LpNormalization", "Mish", "Neg", "Not",
    "QuantizeLinear", "Reciprocal", "Relu", "Round", "ScatterElements", "ScatterND", "Selu", "Sigmoid", "Sign", "Sin",
    "Softmax", "Softplus", "Softsign", "Sqrt", "Tanh", "Trilu",
)  # fmt: skip
_BROADCASTING = (
    "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Or",
    "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
)  # fmt: skip
_REDUCING = (
    "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
_MULTIPLYING = ("MatMul", "MatMulInteger", "MatMulIntegerToFloat")

#: Operator -> the shapes of its outputs. Every operator of `guard.operators` has one.
RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_KEEPING, _keep),
    **dict.fromkeys(_BROADCASTING, _combine),
    **dict.fromkeys(_REDUCING, _reduce),
    **dict.fromkeys(("ArgMax", "ArgMin"), partial(_reduce, named="axis")),
    **dict.fromkeys(
        ("MatMul", "MatMulInteger", "MatMulIntegerToFloat"),
        lambda node: [_multiply(node.take(0).shape, node.take(1).shape)],
    ),
    **dict.fromkeys(("AveragePool", "MaxPool"), _pool),
    "Concat": _join,
    "ConstantOfShape": lambda node: [_read_shape(node, 0)],
    "Conv": _convolve,
    "Einsum": _sum_products,
    "Expand": lambda node: [_broadcast(node.take(0).shape, _read_shape(node, 1))],
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherBlockQuantized": _gather_blocks,
    "GatherElements": lambda node: [node.take(1).shape],
    "GatherND": _gather_slices,
    "Gemm": _multiply_general,
    "GlobalAveragePool": _pool_all,
    "MatMulNBits": _multiply_blocks,
    "Pad": _pad,
    "Range": _count_range,
    "Reshape": _reshape,
    "Shape": lambda node: [(len(node.take(0).shape),)],
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "TopK": _find_top,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}

#: Operator -> how many products each number is the sum of, or how many numbers it is chosen from.
PRODUCTS: Mapping[str, Callable[[Node], int]] = {
    **dict.fromkeys((*_MULTIPLYING, "MatMulNBits"), lambda node: node.take(0).shape[-1]),
    **dict.fromkeys(("AveragePool", "MaxPool"), lambda node: math.prod(node.read_ints("kernel_shape"))),
    "Conv": lambda node: math.prod(node.take(1).shape[1:]),
    "Einsum": _count_summed,
    "Gemm": lambda node: node.take(0).shape[0 if node.read_int("transA", 0) else -1],
}
