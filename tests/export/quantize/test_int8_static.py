"""int8-static: standard operators, symmetric scales that are constants of the graph, measured on the user's texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import Precise, write_texts
from msgspec.structs import replace
from numpy.typing import NDArray
from toys import Floats, Toy, draw_rows, make_toy, observe_toy, run_model

from matexport import load_family
from matexport.export import export_family
from matexport.export.quantize.precisions.int8_static import apply_static_int8
from matexport.spec.profile import Point, Precision

WIDTH, HIDDEN, TOKENS = 64, 96, 512
FEEDS = {"input_ids": np.arange(60).reshape(3, 20)}
UP, DOWN = draw_rows(WIDTH, HIDDEN, seed=1) / 8, draw_rows(HIDDEN, WIDTH, seed=2) / 8


def make_static(change: Callable[[dict[str, Floats]], object] = lambda rows: None) -> Toy:
    toy = make_toy(draw_rows(TOKENS, WIDTH, seed=3), [{"up": UP, "down": DOWN}])
    rows = observe_toy(toy)
    change(rows)
    apply_static_int8(toy.traced, rows)
    return toy


def test_the_graph_is_the_formula() -> None:
    toy = make_static()
    stored = toy.initializers
    for site, weight, out in (("state_0", "up", "wide_1"), ("active_1", "down", "narrow_1")):
        values, given = run_model(toy.model, FEEDS, site, out)
        step = stored[f"{site}.scale"]
        codes = np.clip(np.rint(values / step), -128, 127).astype(np.float64)
        expected = codes * step @ (stored[f"{weight}.int8"].astype(np.float64) * stored[f"{weight}.scale"])
        np.testing.assert_allclose(given, expected, atol=1e-4)


def test_scales_are_constants_and_zero_points_are_zero() -> None:
    toy = make_static()
    assert {node.domain for node in toy.model.graph} == {""}
    pairs = toy.nodes("QuantizeLinear") + toy.nodes("DequantizeLinear")
    assert len(pairs) == 2 + 4
    for node in pairs:
        _, scale, zero = node.inputs
        assert scale is not None
        assert zero is not None
        assert scale.is_initializer()
        assert zero.is_initializer()
        assert zero.const_value is not None
        zeros = zero.const_value.numpy()
        assert zeros.dtype == np.int8
        assert not zeros.any()
    stored = toy.initializers
    assert stored["state_0.scale"].shape == ()
    assert stored["up.scale"].shape == (HIDDEN,)


@pytest.mark.parametrize("tail", [0.0, 1.0, 3.0], ids=["normal", "heavy", "very heavy"])
def test_the_range_is_the_one_that_disturbs_the_product_least(tail: float) -> None:
    """Of those that cover 99.9 to 100 % of the values: measured here on the product itself."""
    rows = draw_rows(1000, WIDTH, seed=4) * np.exp(tail / 2 * draw_rows(1000, WIDTH, seed=5))

    def disturb(step: float) -> float:
        back = np.clip(np.rint(rows / step), -128, 127) * step
        return float(np.linalg.norm((back - rows) @ UP))

    toy = make_static(lambda seen: seen.update({"state_0": rows}))
    assert "state_0.smoothing" not in toy.initializers
    shares = (0.99, 0.999, 0.9999, 0.99999, 1.0)
    errors = [disturb(float(np.quantile(np.abs(rows), share)) / 127) for share in shares]
    assert disturb(float(toy.initializers["state_0.scale"])) <= 1.02 * min(errors[1:])
    assert max(errors) > 1.3 * min(errors), "so the choice matters"


def test_values_beyond_the_range_are_clipped() -> None:
    toy = make_static(lambda rows: rows.update({"state_0": rows["state_0"] / 100}))
    state, wide = run_model(toy.model, FEEDS, "state_0", "wide_1")
    step, stored = toy.initializers["state_0.scale"], toy.initializers
    weight = stored["up.int8"].astype(np.float64) * stored["up.scale"]
    np.testing.assert_allclose(wide, np.clip(np.rint(state / step), -128, 127) * step @ weight, atol=1e-5)
    assert np.abs(wide).max() < 0.1 * np.abs(state @ UP).max()


def read_scales(family: Path, name: str) -> dict[str, NDArray[Any]]:
    """The activations' scales of a graph, by the value that they are for."""
    model = onnx.load(family / load_family(family).profile_facts(name).graph)
    stored = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    return {node.input[0]: stored[node.input[1]] for node in model.graph.node if node.op_type == "QuantizeLinear"}


@pytest.mark.parametrize("kind", ["bert", "rough", "modernbert", "qwen3"])
def test_a_familys_scales_are_its_graphs_constants(kind: str, precise: Callable[[str], Precise]) -> None:
    family = precise(kind).family
    model = onnx.load(family / "L02-D064.int8-static.onnx", load_external_data=False)
    assert {item.domain for item in model.opset_import} == {""}
    constants = {item.name: item for item in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) >= 2 * 8
    assert all(name in constants for node in pairs for name in node.input[1:])
    zeros = {node.input[2] for node in pairs}
    assert all(not onnx.numpy_helper.to_array(constants[name]).any() for name in zeros)
    assert {constants[name].data_type for name in zeros} == {onnx.TensorProto.INT8}
    assert not any(node.op_type.startswith("Dynamic") for node in model.graph.node)


@pytest.mark.usefixtures("quick_traces")
def test_other_texts_give_other_scales_and_the_same_texts_the_same_bytes(
    precise: Callable[[str], Precise], tmp_path: Path
) -> None:
    made = precise("bert")
    job = replace(made.job, precisions=(Precision.INT8_STATIC,), encodings=made.job.encodings[:1])
    same = export_family(job, tmp_path / "same").family
    other = export_family(
        replace(job, calibration=write_texts(tmp_path / "other.txt", seed=1)), tmp_path / "other"
    ).family
    name = "L02-D064-int8-static"
    expected, ours, theirs = (read_scales(path, name) for path in (made.family, same.path, other.path))
    assert ours == expected
    known = {float(scale) for scale in ours.values()}  # names shift with what is smoothed
    assert len(ours) == len(theirs)
    assert sum(float(scale) not in known for scale in theirs.values()) >= len(ours) / 2
    weights = "weights.int8-static.safetensors"
    assert same.facts.files[weights] == load_family(made.family).facts.files[weights]
    assert same.facts.provenance != other.facts.provenance
    assert other.facts.precisions[Precision.INT8_STATIC].calibration == "80 texts: other.txt"
    assert [profile.point for profile in other.profiles] == [Point(1, 64), Point(2, 20), Point(2, 64)]
