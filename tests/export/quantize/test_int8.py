"""int8 against its own formula, worked out apart: in numpy on graphs small enough, and in torch on a parent whose
linear layers are replaced; and that a text's vector does not depend on what it is run with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from conftest import TEXTS, Precise, read_texts
from forge import reseal
from numpy.typing import NDArray
from oracle import Oracle
from properties import given, settings, st
from torch import nn
from toys import Floats, Toy, draw_rows, make_toy, observe_toy, run_model

from matexport import Embedder, load_family, pack_profile, verify_family
from matexport.consumers.layouts import NATIVE
from matexport.export.quantize.precisions.int8 import apply_int8
from matexport.family.measurements.records import load_measurement
from matexport.host import read_host
from matexport.runtime.inputs.text import Tokens
from matexport.spec.inputs import PaddingSide
from matexport.spec.parity import Breach
from matexport.spec.profile import Encoding, Precision
from matexport.spec.tolerance import FLOORS

WIDTH, HIDDEN, VOCABULARY = 64, 96, 512
#: Their table is below 64 KiB and stays as it is.
FEW_TOKENS = 200
NAME = "L02-D064-int8"
#: Gelu's least value is -0.16997: codes below its zero point, 32, must reach it.
GELU = (32, 223, 0.17 * 223 / 32)
SIGNED = (128, 127, 0.0)


def code_tokens(values: Floats, zero: int, levels: int, least: float) -> tuple[NDArray[np.float64], Floats]:
    """Each token's values as whole numbers around 0, and what its largest value was."""
    size = np.abs(values) if zero == 128 else values
    peak = np.maximum(size.max(axis=-1, keepdims=True), np.float32(least))
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.rint(np.nan_to_num(values / peak) / np.float32(1 / levels))
    return np.clip(codes + zero, 0, 255).astype(np.float64) - zero, peak


def multiply(values: Floats, codes: NDArray[np.int8], scales: Floats, kind: tuple[int, int, float]) -> Floats:
    """(B, T, K) @ int8 (K, N) with a scale per token: the formula."""
    whole, peak = code_tokens(values, *kind)
    return (whole @ codes.astype(np.float64) * scales / kind[1] * peak).astype(np.float32)


def make_small_toy(activation: str = "Gelu") -> tuple[Toy, dict[str, Floats]]:
    blocks = [
        {f"up_{block}": draw_rows(WIDTH, HIDDEN, seed=block) / 8, f"down_{block}": draw_rows(HIDDEN, WIDTH, seed=9) / 8}
        for block in (1, 2)
    ]
    toy = make_toy(draw_rows(VOCABULARY, WIDTH, seed=1), blocks, activation)
    return toy, quantize(toy)


def quantize(toy: Toy) -> dict[str, Floats]:
    """int8, in place, calibrated on all tokens; what was seen of each site."""
    rows = observe_toy(toy)
    apply_int8(toy.traced, rows)
    return rows


@pytest.mark.parametrize(
    ("activation", "kind"), [("Gelu", GELU), ("Relu", (0, 255, 0.0)), ("Sigmoid", (0, 255, 0.0)), ("Tanh", SIGNED)]
)
def test_the_graph_is_the_formula(activation: str, kind: tuple[int, int, float]) -> None:
    """What cannot be below some number has more codes above it."""
    toy, _ = make_small_toy(activation)
    stored, ids = toy.initializers, np.arange(40).reshape(2, 20) * 7
    feeds = {"input_ids": ids}
    state = (stored["table.int8"].astype(np.float32) * stored["table.scale"])[ids]
    for block in (1, 2):
        wide = multiply(state, stored[f"up_{block}.int8"], stored[f"up_{block}.scale"], SIGNED)
        wide_given, active = run_model(toy.model, feeds, f"wide_{block}", f"active_{block}")
        np.testing.assert_allclose(wide_given, wide, atol=2e-5)
        narrow = multiply(active, stored[f"down_{block}.int8"], stored[f"down_{block}.scale"], kind)
        narrow_given, state = run_model(toy.model, feeds, f"narrow_{block}", f"state_{block}")
        np.testing.assert_allclose(narrow_given, narrow, atol=2e-5)


def test_the_formula_is_near_the_product_and_full_range_scales_are_not() -> None:
    """One scale for the whole tensor, as the usual dynamic quantization takes, is another formula by far."""
    toy, _ = make_small_toy()
    stored = toy.initializers
    values = draw_rows(12, WIDTH, seed=2)
    values[3] *= 40  # one loud token
    codes, scales = stored["up_1.int8"], stored["up_1.scale"]
    exact = values.astype(np.float64) @ (codes.astype(np.float64) * scales)
    ours = multiply(values, codes, scales, SIGNED)
    peak = np.abs(values).max()
    one_scale = np.rint(values / peak * 127) / 127 * peak @ (codes.astype(np.float64) * scales)
    quiet = np.arange(len(values)) != 3
    assert np.abs(ours - exact)[quiet].max() < 0.05
    assert np.abs(one_scale - exact)[quiet].max() > 0.5


def test_weights_are_what_they_were_up_to_rounding() -> None:
    table = draw_rows(VOCABULARY, WIDTH, seed=1)
    plain = {"up_1": draw_rows(WIDTH, HIDDEN, seed=1) / 8, "down_1": draw_rows(HIDDEN, WIDTH, seed=9) / 8}
    toy, rows = make_small_toy()
    stored = toy.initializers
    for name, site in (("up_1", "state_0"), ("down_1", "active_1")):
        back = stored[f"{name}.int8"].astype(np.float32) * stored[f"{name}.scale"]
        exact, ours = rows[site] @ plain[name], rows[site] @ back
        assert np.linalg.norm(ours - exact) < 0.01 * np.linalg.norm(exact)
    back = stored["table.int8"] * stored["table.scale"]
    assert (np.abs(back - table) <= stored["table.scale"] / 2 + 1e-6).all()


@pytest.mark.parametrize("activation", ["Gelu", "Relu"])
def test_a_token_of_zeros_gives_finite_vectors(activation: str) -> None:
    """0 / 0 in front of the rounding, and whatever integer that gives times 0."""
    toy, _ = make_small_toy(activation)
    table = toy.model.graph.initializers["table.int8"]
    codes = table.const_value.numpy().copy()  # type: ignore[union-attr]
    codes[7] = 0
    table.const_value = ir.tensor(codes, name="table.int8")
    alone, beside, zeros = ({"input_ids": np.array(ids)} for ids in ([[3, 4]], [[3, 4], [7, 7]], [[7, 7, 7]]))
    for feeds in (alone, beside, zeros):
        for values in run_model(toy.model, feeds):
            assert np.isfinite(values).all()
    np.testing.assert_array_equal(run_model(toy.model, zeros)[-1], 0)
    np.testing.assert_array_equal(run_model(toy.model, beside)[-1][:1], run_model(toy.model, alone)[-1])


def run_loud_tokens(change: Callable[[NDArray[np.int8]], NDArray[np.int8]] | None = None) -> tuple[Floats, Floats]:
    """Products of the largest activations with equal weights, as the runtime gives them and by the formula."""
    table, up, down = (np.ones(shape, np.float32) for shape in ((FEW_TOKENS, WIDTH), (WIDTH, HIDDEN), (HIDDEN, WIDTH)))
    toy = make_toy(table, [{"up": up, "down": down}])
    quantize(toy)
    codes = toy.initializers["up.int8"]
    if change:
        codes = change(codes)
        toy.model.graph.initializers["up.int8"].const_value = ir.tensor(codes, name="up.int8")
    (given,) = run_model(toy.model, {"input_ids": np.arange(30)[None]}, "wide_1")
    return given, multiply(table[None, :30], codes, toy.initializers["up.scale"], SIGNED)


def test_the_runtime_does_not_saturate_on_this_machine() -> None:
    given, expected = run_loud_tokens()
    np.testing.assert_allclose(given, expected, rtol=1e-5)


@pytest.mark.skipif(
    "avx2" not in read_host().instruction_sets or any("vnni" in flag for flag in read_host().instruction_sets),
    reason="only x86 CPUs without VNNI saturate",
)
def test_the_runtime_saturates_where_weights_have_the_full_range() -> None:
    """So the test above can fail on such a machine."""
    given, expected = run_loud_tokens(lambda codes: np.full_like(codes, 127))
    assert np.abs(given / expected - 1).max() > 0.2


def test_an_outlier_channel_is_smoothed_and_a_flat_value_is_not() -> None:
    flat, _ = make_small_toy()
    assert not any(name.endswith(".smoothing") for name in flat.initializers)
    up, down = draw_rows(WIDTH, HIDDEN, seed=1) / 8, draw_rows(HIDDEN, WIDTH, seed=9) / 8
    table = draw_rows(FEW_TOKENS, WIDTH, seed=1)
    table[:, 5] *= 60
    rough = make_toy(table, [{"up": up, "down": down}])
    quantize(rough)
    stored = rough.initializers
    factors = stored["state_0.smoothing"]
    assert factors.argmin() == 5
    state, wide = run_model(rough.model, {"input_ids": np.arange(30)[None]}, "state_0", "wide_1")
    expected = multiply(state * factors, stored["up.int8"], stored["up.scale"], SIGNED)
    np.testing.assert_allclose(wide, expected, atol=1e-4)
    exact = state.astype(np.float64) @ up
    codes, peaks = code_tokens(state, *SIGNED)
    unsmoothed = codes / 127 * peaks @ up  # without even an error of its weights
    assert np.linalg.norm(wide - exact) < 0.5 * np.linalg.norm(unsmoothed - exact)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "apart"])
def test_weights_that_blocks_share_are_not_smoothed_and_stored_once(shared: bool) -> None:
    """As in ALBERT. The divisors of one block would be wrong in the other."""
    table = draw_rows(FEW_TOKENS, WIDTH, seed=1)
    table[:, 5] *= 60
    up, down = draw_rows(WIDTH, HIDDEN, seed=1) / 8, draw_rows(HIDDEN, WIDTH, seed=9) / 8
    names = [("up", "down")] * 2 if shared else [("up", "down"), ("up_2", "down_2")]
    toy = make_toy(table, [{first: up, second: down} for first, second in names])
    quantize(toy)
    stored = toy.initializers
    assert sorted(name for name in stored if name.endswith(".smoothing")) == (
        [] if shared else ["state_0.smoothing", "state_1.smoothing"]
    )
    assert sum(name.endswith(".int8") for name in stored) == (2 if shared else 4)
    readers = [str(node.inputs[1].name) for node in toy.nodes("MatMulIntegerToFloat")]  # type: ignore[union-attr]
    assert readers == [f"{name}.int8" for pair in names for name in pair]
    exact = make_toy(table, [{"up": up, "down": down}] * 2)
    feeds = {"input_ids": np.arange(20)[None]}
    ours, theirs = (run_model(model, feeds)[-1] for model in (toy.model, exact.model))
    assert np.linalg.norm(ours - theirs) < 0.02 * np.linalg.norm(theirs)


class FakeLinear(nn.Module):
    """A linear layer by the formula, from the weights that a graph holds."""

    def __init__(self, product: Product, bias: torch.Tensor) -> None:
        super().__init__()
        self.product, self.bias = product, bias

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        product = self.product
        rows = values.numpy() * product.factors
        return torch.from_numpy(multiply(rows, product.codes, product.scales, product.kind)) + self.bias


class Product:
    """One integer product of a graph: its weight, and how the value in front of it is coded."""

    def __init__(
        self, node: onnx.NodeProto, makers: dict[str, onnx.NodeProto], stored: dict[str, NDArray[Any]]
    ) -> None:
        self.codes, self.scales = stored[node.input[1]], stored[node.input[3]]
        self.kind = {128: SIGNED, 32: GELU}[int(stored[node.input[4]])]
        source = makers[makers[makers[node.input[0]].input[0]].input[0]]
        smoothed = source.op_type == "Mul" and source.input[1].endswith(".smoothing")
        self.factors = stored[source.input[1]] if smoothed else np.float32(1)


def read_products(graph: Path) -> tuple[dict[str, Product], dict[str, NDArray[Any]]]:
    """Weight name -> its product; and all stored arrays."""
    model = onnx.load(graph)
    stored = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    makers = {node.output[0]: node for node in model.graph.node}
    products = [node for node in model.graph.node if node.op_type == "MatMulIntegerToFloat"]
    return {node.input[1]: Product(node, makers, stored) for node in products}, stored


class Int8Oracle(Oracle):
    """The parent with its linear layers and its large table replaced."""

    def __init__(self, folder: Path, graph: Path) -> None:
        super().__init__(folder)
        products, stored = read_products(graph)
        for name, module in list(self.model.encoder.named_modules()):
            if isinstance(module, nn.Linear):
                parent, _, leaf = name.rpartition(".")
                product = products.pop(f"encoder.{name}.weight.T.int8")
                setattr(self.model.encoder.get_submodule(parent), leaf, FakeLinear(product, module.bias.detach()))
        assert not products
        table = stored["embeddings.word_embeddings.weight.int8"] * stored["embeddings.word_embeddings.weight.scale"]
        self.model.embeddings.word_embeddings.weight.data = torch.from_numpy(table.astype(np.float32))


@pytest.fixture(scope="module")
def bert(precise: Callable[[str], Precise]) -> Precise:
    return precise("bert")


@pytest.fixture(scope="module")
def embedder(bert: Precise) -> Embedder:
    return Embedder(bert.family, NAME)


def test_a_parents_graph_is_the_formula(bert: Precise, embedder: Embedder) -> None:
    """Differences are roundings that fall on the other side on the last digit of a float."""
    texts = [*TEXTS, *read_texts(bert.texts)[:20]]
    vectors = embedder.embed(texts)
    oracle = Int8Oracle(bert.parent, bert.family / "L02-D064.int8.onnx")
    ours = np.stack([oracle.vector(text, 2, 64) for text in texts])
    plain = np.stack([Oracle(bert.parent).vector(text, 2, 64) for text in texts])
    assert np.median(np.abs(vectors - ours).max(axis=1)) < 1e-5
    assert np.abs(vectors - ours).max() < 2e-3
    assert np.median(np.abs(vectors - plain).max(axis=1)) > 1e-3, "the parent itself is further away"


def test_all_linear_layers_and_the_large_table_are_int8_and_nothing_else_is(bert: Precise) -> None:
    products, stored = read_products(bert.family / "L02-D064.int8.onnx")
    assert len(products) == 2 * 6
    eight_bits = {name for name, array in stored.items() if array.dtype == np.int8 and array.size > 1}
    assert eight_bits == {*products, "embeddings.word_embeddings.weight.int8"}
    assert stored["embeddings.position_embeddings.weight"].dtype == np.float32, "32 KiB"


TEXT = st.one_of(st.sampled_from(TEXTS), st.text("abc dog the .é猫", max_size=120))


@settings(max_examples=150)
@given(text=TEXT, others=st.lists(TEXT, max_size=12), place=st.integers(0, 12))
def test_a_text_alone_and_in_any_batch(text: str, others: list[str], place: int, embedder: Embedder) -> None:
    rows = embedder.prepare([text, *others])
    place = min(place, len(others))
    batch = [*rows[1 : place + 1], rows[0], *rows[place + 1 :]]
    alone = embedder.run(rows[:1], PaddingSide.RIGHT)[0]
    beside = embedder.run(batch, PaddingSide.RIGHT)[place]
    assert np.abs(alone - beside).max() <= 1e-6


@settings(max_examples=150)
@given(text=TEXT, padding=st.integers(1, 60))
def test_a_text_at_any_padding(text: str, padding: int, embedder: Embedder) -> None:
    (row,) = embedder.prepare([text])
    long = Tokens((2,) * (len(row.ids) + padding), (0,) * (len(row.ids) + padding))
    alone = embedder.run([row], PaddingSide.RIGHT)[0]
    assert np.abs(alone - embedder.run([long, row], PaddingSide.RIGHT)[1]).max() <= 1e-6


def take_one_scale_for_all_tokens(graph: Path) -> None:
    """What the usual dynamic quantization does: the largest value is looked for over all axes."""
    model = onnx.load(graph, load_external_data=False)
    peaks = [node for node in model.graph.node if node.op_type == "ReduceMax"]
    assert len(peaks) == 2 * 4
    every_axis = onnx.numpy_helper.from_array(np.array([0, 1, 2], dtype=np.int64), "every_axis")
    model.graph.initializer.append(every_axis)
    for node in peaks:
        node.input[1] = "every_axis"
    graph.write_bytes(model.SerializeToString())


def test_one_scale_for_all_tokens_is_caught(bert: Precise, tmp_path: Path) -> None:
    """The vectors are good, by their cosines; but a text's vector depends on its batch."""
    family = pack_profile(bert.family, NAME, tmp_path / "family", layout=NATIVE).path
    assert verify_family(family).passed
    take_one_scale_for_all_tokens(family / "L02-D064.int8.onnx")
    reseal(family)
    (verdict,) = verify_family(family).verdicts
    assert verdict.spread is not None
    assert verdict.find_breach() == (
        "alone and in a batch",
        Breach(f"the same input differs by {verdict.spread.value:.2g}, allowed 1e-06", verdict.spread.worst),
    )
    assert verdict.spread.value > 1e-4
    assert all(parity.find_breach(FLOORS[Precision.INT8]) is None for parity in verdict.parity.values())


def test_the_spread_of_every_profile_is_measured(bert: Precise) -> None:
    family = load_family(bert.family)
    recorded = load_measurement(family, read_host())
    assert recorded is not None
    for profile in family.profiles:
        spread = recorded.spread[profile.name]
        assert spread is not None
        if profile.precision is Precision.INT8 and profile.encoding is Encoding.FLOAT32:
            assert spread.value <= 1e-6
