"""int8-static of convolutions: every map is uint8, every kernel int8 with a scale for each of its output channels.

QuantizeLinear/DequantizeLinear pairs of standard operators, in the places where onnxruntime's CPU provider makes
QLinearConv and QLinearAdd of them. It takes a Relu into the rounding behind it only where 0 has the least code, so maps
are uint8 and not the symmetric int8 of products: behind a Relu the zero point is 0, and all 255 codes are used. A map's
range is measured on the calibration images; biases are int32 in units of the two scales.

Kernels are rounded to the nearest. Their scales keep the sum of two neighbours' codes to `rounding.PAIR_LIMIT`, in the
order (h, w, I) in which onnxruntime multiplies: a kernel of 127s on a map of 255s gave half of its sum on AVX2 without.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from matexport.export.graph.edit import Floats, Inserter, add_constant, read_weight
from matexport.export.graph.traced import Traced
from matexport.export.quantize.maps import Convolution, find_coded, find_convolutions
from matexport.export.quantize.rounding import MAX_INT8, PAIR_LIMIT, choose_scales

#: Shares of a map's numbers that its range may cover on either side; numbers beyond are clipped.
PERCENTILES = (0.999, 0.9999, 0.99999, 1.0)
LEVELS = 255

#: Steps below these are of maps and channels that are always 0; two of them multiplied are still a float32.
LEAST_STEP, LEAST_SCALE = 1e-8, 1e-20

#: The largest code of a bias: with any sum of products of 8 bits it stays inside of int32.
MAX_BIAS = 2**30


@dataclass(frozen=True)
class Codes:
    """How a map is coded: code = round(x / step) + zero, clipped to 0 .. 255."""

    step: np.float32
    zero: int

    def round(self, numbers: Floats) -> NDArray[np.float64]:
        """What the codes of numbers stand for."""
        codes = np.clip(np.rint(numbers / self.step) + self.zero, 0, LEVELS)
        back: NDArray[np.float64] = (codes.astype(np.float64) - self.zero) * float(self.step)
        return back


def code_convolutions(
    traced: Traced, rows: Mapping[str, Floats], progress: Callable[[int, int], None] | None = None
) -> None:
    """Code the convolutions of a traced graph, and the maps between them, in place.

    Args:
        rows: name of a map -> (n, C) float32, its channels at some places of the calibration images.
        progress: called with (done, total) maps.
    """
    graph = traced.model.graph
    convolutions, coded = find_convolutions(traced), find_coded(traced)
    codes: dict[ir.Value, Codes] = {}
    for done, value in enumerate(known for known, origin in coded.items() if known is origin):
        if progress:
            progress(done, len(coded))
        codes[value] = choose_map_codes(rows[str(value.name)], measure_reach(value, convolutions))
    sources = Counter(kernel for kernel, _ in {(part.kernel, part.source) for part in convolutions})
    following = dict(zip(list(graph), list(graph)[1:], strict=False))
    kernels: dict[tuple[ir.Value, ir.Value], list[Convolution]] = {}
    for convolution in convolutions:
        kernels.setdefault((convolution.kernel, convolution.source), []).append(convolution)
    for (kernel, source), reading in kernels.items():
        name = str(kernel.name)
        if sources[kernel] > 1:  # other maps have other steps, and so biases other scales
            name += f".{source.name}"
        _code_kernel(graph, reading, name, codes[coded[source]].step)
    for value, origin in coded.items():
        maker = value.producer()
        before = following[maker] if maker is not None else graph[0]
        _code_map(Inserter(graph, before), value, str(origin.name), codes[origin])
    if progress and coded:
        progress(len(coded), len(coded))


def measure_reach(value: ir.Value, convolutions: list[Convolution]) -> Floats | float:
    """By how much what reads a map multiplies the squared error of each of its channels: (C,), or 1."""
    reading = [convolution for convolution in convolutions if convolution.source is value]
    others = {use.node for use in value.uses()} - {convolution.node for convolution in reading}
    reach: Floats | float = 1.0 if others or not reading else 0.0
    for convolution in reading:
        kernel = read_weight(convolution.kernel)[: convolution.channels].astype(np.float64)
        groups = kernel.reshape(convolution.groups, -1, *kernel.shape[1:])
        reach = reach + (groups**2).sum(axis=(1, 3, 4)).reshape(-1)
    return reach


def choose_map_codes(rows: Floats, reach: Floats | float) -> Codes:
    """The range of a map: from the percentiles whose rounding and clipping disturb what reads it least.

    Args:
        rows: (n, C) float32, its channels at some places.
        reach: (C,), how much an error of each channel counts.
    """
    numbers = np.asarray(rows)
    low = np.minimum(np.quantile(numbers, [1 - share for share in PERCENTILES]), 0)
    high = np.maximum(np.quantile(numbers, PERCENTILES), 0)
    found = []
    for least, most in zip(low, high, strict=True):
        step = np.float32(max((most - least) / LEVELS, LEAST_STEP))
        codes = Codes(step, int(np.clip(np.rint(-least / step), 0, LEVELS)))
        error = float((((codes.round(numbers) - numbers) ** 2).mean(axis=0) * reach).sum())
        found.append((error, codes))
    return min(found, key=lambda pair: pair[0])[1]


def round_kernel(kernel: Floats, biases: Floats, step: np.float32) -> tuple[NDArray[np.int8], Floats]:
    """Round a kernel to int8 with a scale for each output channel.

    Args:
        kernel: (O, I, h, w) float32.
        biases: (O,) float32; a channel's scale is at least so large that the code of its bias stays below `MAX_BIAS`.
        step: of the map that is convolved.

    Returns:
        (O, I, h, w) int8 codes and (O,) float32 scales; a weight is about code * scale.
    """
    columns = kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel))  # as they are multiplied: (h * w * I, O)
    least = np.abs(biases.astype(np.float64)) / (float(step) * MAX_BIAS)
    scales = np.maximum(choose_scales(columns), np.maximum(least * (1 + 1e-6), LEAST_SCALE)).astype(np.float32)
    codes = np.clip(np.rint(columns / scales), -MAX_INT8, MAX_INT8)
    odd = codes[1::2]
    limit = PAIR_LIMIT - np.abs(codes[0::2][: len(odd)])  # two that were rounded up may be one above it
    codes[1::2] = np.clip(odd, -limit, limit)
    order = codes.astype(np.int8).reshape(*kernel.shape[2:], kernel.shape[1], len(kernel)).transpose(3, 2, 0, 1)
    return np.ascontiguousarray(order), scales


def _code_kernel(graph: ir.Graph, reading: Sequence[Convolution], name: str, step: np.float32) -> None:
    """Have convolutions of one map with one kernel, of which they may take the leading rows, read codes of it.

    Args:
        name: what the codes are called after.
        step: of the map.
    """
    kernel = read_weight(reading[0].kernel)
    biases = np.zeros(len(kernel), np.float32)
    for known in (read_weight(convolution.biases) for convolution in reading if convolution.biases is not None):
        biases[: len(known)] = known  # leading ones of the same: a trace may have cut them already
    codes, scales = round_kernel(kernel, biases, step)
    whole = add_constant(graph, f"{name}.int8", codes)
    for convolution in reading:
        node, count = convolution.node, convolution.channels
        here, weight = Inserter(graph, node), node.inputs[1]
        assert weight is not None
        taken, part = whole, name
        if convolution.rows:
            taken = here.add("Slice", [whole, *convolution.rows.inputs[1:]], like=weight, dtype=ir.DataType.INT8)
            part = f"{name}[:{count}]"
        scale = add_constant(graph, f"{part}.scale", np.ascontiguousarray(scales[:count]))
        zero = add_constant(graph, f"zeros_int8_{count}", np.zeros(count, np.int8))
        back = here.add("DequantizeLinear", [taken, scale, zero], {"axis": 0}, like=weight, dtype=ir.DataType.FLOAT)
        node.replace_input_with(1, back)
        if convolution.biases is not None:
            _code_biases(here, part, biases[:count], scales[:count].astype(np.float64) * float(step))


def _code_biases(here: Inserter, name: str, biases: Floats, units: NDArray[np.float64]) -> None:
    """Have the convolution behind read int32 biases in units of its two scales."""
    steps, count = units.astype(np.float32), len(biases)
    numbers = np.rint(biases / steps.astype(np.float64)).astype(np.int32)
    inputs = [
        add_constant(here.graph, f"{name}.bias.int32", numbers),
        add_constant(here.graph, f"{name}.bias.scale", steps),
        add_constant(here.graph, f"zeros_int32_{count}", np.zeros(count, np.int32)),
    ]
    bias = here.before.inputs[2]
    assert bias is not None
    back = here.add("DequantizeLinear", inputs, {"axis": 0}, like=bias, dtype=ir.DataType.FLOAT)
    here.before.replace_input_with(2, back)


def _code_map(here: Inserter, value: ir.Value, origin: str, codes: Codes) -> None:
    """Have all that reads a map read what its codes stand for."""
    uses = list(value.uses())
    scale = add_constant(here.graph, f"{origin}.step", np.array(codes.step))
    zero = add_constant(here.graph, f"zero_uint8_{codes.zero}", np.array(codes.zero, dtype=np.uint8))
    coded = here.add("QuantizeLinear", [value, scale, zero], like=value, dtype=ir.DataType.UINT8)
    back = here.add("DequantizeLinear", [coded, scale, zero], like=value, dtype=ir.DataType.FLOAT)
    for use in uses:
        use.node.replace_input_with(use.idx, back)
