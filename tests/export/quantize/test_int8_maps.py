"""Convolutions in int8: what is stored is the formula, each output channel has a scale, and no sum saturates."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from toys import constant

from matexport.export.graph.edit import assert_sound, drop_unused
from matexport.export.graph.traced import Traced
from matexport.export.quantize.maps import find_coded, find_convolutions
from matexport.export.quantize.precisions import int8_maps
from matexport.export.quantize.precisions.int8_maps import choose_map_codes, code_convolutions, round_kernel
from matexport.spec.profile import Precision
from matexport.spec.tolerance import FLOORS
from matexport.verify.parity import compare_vectors

Floats = NDArray[np.float32]

SIDE, WIDTH, CUT = 10, 16, 6


class Net:
    """pixels -> stem -> pool -> 3 x 3 -> blur by channel -> 1 x 1, to which the pooled map is added -> two exits.

    As in a classifier, the second exit takes the leading rows of the last kernel, and the leading channels of the map.
    """

    def __init__(self, weights: dict[str, NDArray[Any]]) -> None:
        self.weights = weights
        values = {name: constant(name, array) for name, array in weights.items()}
        for name, number in (("start", 0), ("end", CUT), ("rows", 0), ("channels", 1), ("step", 1)):
            values[name] = constant(name, np.array([number], np.int64))
        values["places"] = constant("places", np.array([2, 3], np.int64))
        self.pixels = ir.Value(name="pixels", shape=ir.Shape(["batch_size", 3, SIDE, SIDE]), type=FLOAT)
        self.nodes: list[ir.Node] = []
        self.values: dict[str, ir.Value] = {**values, "pixels": self.pixels}
        self.add("Conv", ["pixels", "stem", "stem_bias"], "wide", WIDTH, kernel_shape=[3, 3], pads=[1] * 4)
        self.add("Relu", ["wide"], "active", WIDTH)
        self.add("MaxPool", ["active"], "state_0", WIDTH, kernel_shape=[3, 3], pads=[1] * 4)
        self.add("Conv", ["state_0", "first", "first_bias"], "a", WIDTH, kernel_shape=[3, 3], pads=[1] * 4)
        self.add("Relu", ["a"], "first_out", WIDTH)
        self.add("Conv", ["first_out", "blur"], "blurred", WIDTH, kernel_shape=[3, 3], pads=[1] * 4, group=WIDTH)
        self.add("Conv", ["blurred", "last", "last_bias"], "b", WIDTH, kernel_shape=[1, 1])
        self.add("Add", ["b", "state_0"], "sum", WIDTH)
        self.add("Relu", ["sum"], "state_1", WIDTH)
        self.add("Slice", ["last", "start", "end", "rows", "step"], "rows_cut", None)
        self.add("Slice", ["last_bias", "start", "end", "rows", "step"], "bias_cut", None)
        self.add("Conv", ["blurred", "rows_cut", "bias_cut"], "c", CUT, kernel_shape=[1, 1])
        self.add("Slice", ["state_0", "start", "end", "channels", "step"], "state_cut", CUT)
        self.add("Add", ["c", "state_cut"], "sum_cut", CUT)
        self.add("Relu", ["sum_cut"], "narrow", CUT)
        for given, out, width in (("state_1", "whole", WIDTH), ("narrow", "cut", CUT)):
            self.add("ReduceMean", [given, "places"], out, None, keepdims=0)
            self.values[out].shape = ir.Shape(["batch_size", width])
        graph = ir.Graph(
            [self.pixels], [self.values["whole"], self.values["cut"]], nodes=self.nodes,
            initializers=list(values.values()), opset_imports={"": 20}, name="net",
        )  # fmt: skip
        self.traced = Traced(ir.Model(graph, ir_version=10), ("state_0", "state_1"))

    def add(self, operator: str, inputs: list[str], name: str, width: int | None, **attributes: Any) -> None:
        node = ir.node(operator, [self.values[given] for given in inputs], attributes)
        out = node.outputs[0]
        out.name, out.type = name, FLOAT
        if width is not None:
            out.shape = ir.Shape(["batch_size", width, SIDE, SIDE])
        elif name == "rows_cut":
            out.shape = ir.Shape([CUT, WIDTH, 1, 1])
        elif name == "bias_cut":
            out.shape = ir.Shape([CUT])
        self.nodes.append(node)
        self.values[name] = out

    def run(self, pixels: Floats, *names: str, plain: bool = False) -> list[Any]:
        """Values of the graph as it is now."""
        model = self.traced.model.clone()
        made = {value.name: value for node in model.graph for value in node.outputs}
        model.graph.outputs[:] = [made[name] for name in names]
        options = onnxruntime.SessionOptions()
        if plain:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        proto = ir.serde.serialize_model(model).SerializeToString()
        return list(onnxruntime.InferenceSession(proto, options).run(list(names), {"pixels": pixels}))

    def observe(self, pixels: Floats) -> dict[str, Floats]:
        names = [str(value.name) for value, origin in find_coded(self.traced).items() if value is origin]
        found = self.run(pixels, *names)
        return {
            name: value.transpose(0, 2, 3, 1).reshape(-1, value.shape[1])
            for name, value in zip(names, found, strict=True)
        }

    def read(self, name: str) -> NDArray[Any]:
        value = self.traced.model.graph.initializers[name]
        assert value.const_value is not None
        return value.const_value.numpy()

    def list_operators(self) -> list[str]:
        return [node.op_type for node in self.traced.model.graph]


FLOAT = ir.TensorType(ir.DataType.FLOAT)


def draw_weights(spread: float = 1.0) -> dict[str, NDArray[Any]]:
    """Kernels of output channels that differ by up to `spread`, as norms that are folded in leave them."""
    rng = np.random.default_rng(3)

    def draw(*shape: int) -> Floats:
        size = np.geomspace(1, spread, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:])) * size).astype(np.float32)

    return {
        "stem": draw(WIDTH, 3, 3, 3), "stem_bias": rng.standard_normal(WIDTH).astype(np.float32) / 4,
        "first": draw(WIDTH, WIDTH, 3, 3), "first_bias": rng.standard_normal(WIDTH).astype(np.float32) / 4,
        "blur": np.tile(np.outer([1, 2, 1], [1, 2, 1]).astype(np.float32) / 16, (WIDTH, 1, 1, 1)),
        "last": draw(WIDTH, WIDTH, 1, 1), "last_bias": rng.standard_normal(WIDTH).astype(np.float32) / 4,
    }  # fmt: skip


def draw_pixels(seed: int = 0, count: int = 8) -> Floats:
    return np.random.default_rng(seed).standard_normal((count, 3, SIDE, SIDE)).astype(np.float32)


def code(net: Net) -> Net:
    code_convolutions(net.traced, net.observe(draw_pixels(count=40)))
    drop_unused(net.traced.model)
    assert_sound(net.traced.model)
    return net


@pytest.fixture(scope="module")
def net() -> Net:
    return code(Net(draw_weights()))


def test_the_stem_and_the_readout_stay_as_they_are() -> None:
    net = Net(draw_weights())
    assert [convolution.kernel.name for convolution in find_convolutions(net.traced)] == [
        "first",
        "blur",
        "last",
        "last",
    ]
    coded = {str(value.name): str(origin.name) for value, origin in find_coded(net.traced).items()}
    assert coded == {
        "state_0": "state_0", "first_out": "first_out", "blurred": "blurred", "b": "b", "state_1": "state_1", "c": "c",
        "state_cut": "state_0", "narrow": "narrow",
    }  # fmt: skip


def convolve(numbers: NDArray[np.float64], kernel: NDArray[np.float64], bias: NDArray[np.float64]) -> Any:
    """(B, C, H, W) by sums over the places of the kernel, in float64."""
    _, depth, high, wide = kernel.shape
    padded = np.pad(numbers, ((0, 0), (0, 0), (high // 2,) * 2, (wide // 2,) * 2))
    found = np.zeros((len(numbers), len(kernel), SIDE, SIDE)) + bias[:, None, None]
    for y in range(high):
        for x in range(wide):
            part = padded[:, :, y : y + SIDE, x : x + SIDE]
            if depth == 1:
                found += part * kernel[:, 0, y, x][:, None, None]
            else:
                found += np.einsum("bchw,oc->bohw", part, kernel[:, :, y, x])
    return found


def fake(numbers: Any, net: Net, name: str) -> tuple[Any, float]:
    """Rounded to 256 codes and back, by the constants that the graph has for a map; and its step."""
    node = next(node for node in net.traced.model.graph if node.op_type == "QuantizeLinear" and is_of(node, name))
    step, zero = (float(net.read(str(value.name))) for value in node.inputs[1:])  # type: ignore[union-attr]
    return (np.clip(np.rint(numbers / step) + zero, 0, 255) - zero) * step, step


def is_of(node: ir.Node, name: str) -> bool:
    return node.inputs[0] is not None and node.inputs[0].name == name


def decode(net: Net, name: str) -> str:
    """What the readers of a map read of it."""
    (coded,) = (node for node in net.traced.model.graph if node.op_type == "QuantizeLinear" and is_of(node, name))
    return str(next(iter(coded.outputs[0].uses())).node.outputs[0].name)


@pytest.mark.parametrize("plain", [True, False], ids=["as written", "as fused"])
@pytest.mark.parametrize(
    ("source", "kernel", "out", "active"),
    [("state_0", "first", "first_out", True), ("first_out", "blur", "blurred", False), ("blurred", "last", "b", False)],
)
def test_a_convolution_is_the_formula(plain: bool, source: str, kernel: str, out: str, active: bool, net: Net) -> None:
    """Weights of code * scale on maps of (code - zero) * step, rounded to the codes of the map that is made."""
    values, given = net.run(draw_pixels(1), decode(net, source), decode(net, out), plain=plain)
    weight = net.read(f"{kernel}.int8") * net.read(f"{kernel}.scale").astype(np.float64)[:, None, None, None]
    bias = net.weights.get(f"{kernel}_bias", np.zeros(WIDTH))
    expected = convolve(values.astype(np.float64), weight, bias)
    expected, step = fake(np.maximum(expected, 0) if active else expected, net, out)
    off = np.abs(given - expected)
    assert off.max() < 1.01 * step, "a tie may go either way"
    assert (off < 0.01 * step).mean() > 0.99
    other = np.roll(net.read(f"{kernel}.scale"), 1).astype(np.float64)[:, None, None, None]
    wrong = convolve(values.astype(np.float64), net.read(f"{kernel}.int8") * other, bias)
    wrong, _ = fake(np.maximum(wrong, 0) if active else wrong, net, out)
    assert (np.abs(given - wrong) < 0.01 * step).mean() < 0.99 or kernel == "blur", "scales of other channels"


def test_every_output_channel_has_a_scale(net: Net) -> None:
    """Each weight is off by half of its own channel's scale at most."""
    for kernel in ("first", "blur", "last"):
        codes, scales, weight = net.read(f"{kernel}.int8"), net.read(f"{kernel}.scale"), net.weights[kernel]
        assert (codes.dtype, codes.shape, scales.shape) == (np.int8, weight.shape, (len(weight),))
        off = np.abs(codes * scales[:, None, None, None] - weight).reshape(len(weight), -1)
        assert (off.max(axis=1) <= 1.51 * scales).all()  # two that add up to 129 are one code lower
        assert (off <= 0.501 * scales[:, None]).mean() > 0.95
    node = next(
        node for node in net.traced.model.graph if node.op_type == "DequantizeLinear" and is_of(node, "first.int8")
    )
    assert node.attributes.get_int("axis", 1) == 0


def run_exits(net: Net) -> list[Any]:
    return net.run(draw_pixels(2, 30), "whole", "cut")


def make_per_tensor(kernel: Floats, biases: Floats, step: np.float32) -> tuple[NDArray[np.int8], Floats]:
    """One scale for all output channels, as it would be without care."""
    _, scales = round_kernel(kernel, biases, step)
    wide = np.full_like(scales, scales.max())
    return np.clip(np.rint(kernel / wide[:, None, None, None]), -127, 127).astype(np.int8), wide


def test_one_scale_for_all_channels_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside one large channel, such as a folded norm leaves, whose Relu is 0: the precision's floor refuses it."""
    weights = draw_weights()
    weights["first"][0] *= 300
    weights["first_bias"][0] = -1e4
    expected = run_exits(Net(weights))

    def find_breaches() -> list[Any]:
        made, floor = run_exits(code(Net(weights))), FLOORS[Precision.INT8_STATIC]
        return [compare_vectors(ours, theirs).find_breach(floor) for ours, theirs in zip(made, expected, strict=True)]

    assert find_breaches() == [None, None]
    monkeypatch.setattr(int8_maps, "round_kernel", make_per_tensor)
    assert None not in find_breaches()


def test_what_a_precision_costs(net: Net) -> None:
    expected = run_exits(Net(net.weights))
    for ours, theirs in zip(run_exits(net), expected, strict=True):
        parity = compare_vectors(ours, theirs)
        assert parity.cosine_min > 0.999
        assert not np.array_equal(ours, theirs)


def test_exits_share_the_leading_rows_of_one_kernel(net: Net) -> None:
    slices = [node for node in net.traced.model.graph if node.op_type == "Slice" and is_of(node, "last.int8")]
    assert len(slices) == 1
    assert np.array_equal(net.read("last[:6].scale"), net.read("last.scale")[:CUT])
    assert np.array_equal(net.read("last[:6].bias.int32"), net.read("last.bias.int32")[:CUT])
    narrow, b = net.run(draw_pixels(3), decode(net, "c"), decode(net, "b"))
    assert np.abs(narrow - b[:, :CUT]).max() < 2 * max(fake(0, net, "b")[1], fake(0, net, "c")[1])


def test_a_runtime_makes_integer_convolutions_of_it(net: Net, tmp_path: Path) -> None:
    """Behind the stem nothing is multiplied in float32."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    proto = ir.serde.serialize_model(net.traced.model.clone()).SerializeToString()
    onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    found = Counter(node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node)
    assert (found["QLinearConv"], found["QLinearAdd"]) == (4, 2)
    assert found["Conv"] + found["FusedConv"] == 1
    assert found["Relu"] <= 1


def test_no_sum_saturates() -> None:
    """A kernel of equal weights on maps of the largest codes: half of the sum would be left on AVX2."""
    weights = draw_weights()
    for name in ("first", "last"):
        weights[name] = np.full_like(weights[name], 0.02)
        weights[f"{name}_bias"] = np.zeros(WIDTH, np.float32)
    net = code(Net(weights))
    for name in ("first", "blur", "last"):
        columns = net.read(f"{name}.int8").astype(int).transpose(0, 2, 3, 1).reshape(WIDTH, -1)
        even, odd = np.abs(columns[:, 0::2]), np.abs(columns[:, 1::2])
        assert (even[:, : odd.shape[1]] + odd).max() <= 128
    bright = np.full((1, 3, SIDE, SIDE), 50, np.float32)  # beyond the calibration images: all codes are clipped
    plain, fused = (net.run(bright, decode(net, "first_out"), plain=plain)[0] for plain in (True, False))
    assert np.abs(plain - fused).max() <= 1.01 * fake(0, net, "first_out")[1]


def test_dead_channels_and_large_biases() -> None:
    """Norms fold a channel of theirs to nearly nothing, and leave its bias; the bias' code stays inside of int32."""
    weights = draw_weights()
    weights["first"][0], weights["first"][1], weights["first"][2] = 0, 1e-12, 0
    weights["first_bias"][0], weights["first_bias"][1], weights["first_bias"][2] = 0.7, 0.4, 0
    net = code(Net(weights))
    assert np.abs(net.read("first.bias.int32").astype(np.int64)).max() <= 2**30
    (given,) = net.run(draw_pixels(1), decode(net, "first_out"))
    step = fake(0, net, "first_out")[1]
    for channel, bias in enumerate((0.7, 0.4, 0)):
        np.testing.assert_allclose(given[:, channel], bias, atol=0.51 * step)


def test_a_kernel_that_two_maps_share_is_rounded_for_each() -> None:
    weights = draw_weights()
    net = Net(weights)
    convolution = find_convolutions(net.traced)[2]
    convolution.node.replace_input_with(0, net.values["first_out"])
    code(net)
    names = {name for name in net.traced.model.graph.initializers if str(name).endswith(".int8")}
    assert names == {"first.int8", "blur.int8", "last.first_out.int8", "last.blurred.int8"}


def test_ranges_are_measured_and_clipped_where_that_loses_less() -> None:
    rng = np.random.default_rng(0)
    active = np.maximum(rng.standard_normal((4000, 4)), 0).astype(np.float32)
    codes = choose_map_codes(active, 1.0)
    assert codes.zero == 0
    assert 0.7 * active.max() / 255 < codes.step <= np.float32(active.max() / 255 * 1.001)
    signed = choose_map_codes(active - 1, 1.0)
    assert 40 < signed.zero < 110
    many = np.maximum(rng.standard_normal((50000, 16)), 0).astype(np.float32)
    many[0, 0] = 12
    assert choose_map_codes(many, 1.0).step < 6 / 255, "one of 800,000 numbers is clipped"
    reach = np.zeros(16)
    reach[0] = 1
    assert choose_map_codes(many, reach).step > 11 / 255, "its channel is all that is read"
    assert choose_map_codes(np.zeros((10, 2), np.float32), 1.0).zero == 0


def test_channels_count_by_what_reads_them() -> None:
    net = Net(draw_weights())
    convolutions = find_convolutions(net.traced)
    first, blur = (net.weights[name].astype(np.float64) for name in ("first", "blur"))
    state = int8_maps.measure_reach(net.values["state_0"], convolutions)
    np.testing.assert_allclose(state, 1 + (first**2).sum(axis=(0, 2, 3)))  # an Add and a Slice read it as well
    np.testing.assert_allclose(
        int8_maps.measure_reach(net.values["first_out"], convolutions), (blur**2).sum(axis=(1, 2, 3))
    )
    assert int8_maps.measure_reach(net.values["state_1"], convolutions) == 1


def test_torch_agrees_with_the_oracle() -> None:
    """The sums that this file takes for a convolution are torch's."""
    rng = np.random.default_rng(1)
    numbers, bias = rng.standard_normal((2, 4, SIDE, SIDE)), rng.standard_normal(4)
    for shape, groups in (((4, 4, 3, 3), 1), ((4, 1, 3, 3), 4)):
        kernel = rng.standard_normal(shape)
        parts = (torch.from_numpy(part) for part in (numbers, kernel, bias))
        expected = torch.nn.functional.conv2d(*parts, padding=1, groups=groups)
        np.testing.assert_allclose(convolve(numbers, kernel, bias), expected.numpy(), atol=1e-10)
