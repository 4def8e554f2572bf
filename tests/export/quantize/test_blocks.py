"""q8, q4 and q4-mixed: what is stored is decoded in numpy, by the layout that onnxruntime documents for MatMulNBits,
and multiplied in full precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from conftest import Precise
from numpy.typing import NDArray
from toys import Floats, Toy, draw_rows, make_toy, observe_toy, run_model

from matexport import load_family, verify_family
from matexport.export.quantize.precisions.blocks import BLOCK, Rounded, apply_blocks
from matexport.spec.profile import Precision

FEW_TOKENS = 200
#: Whole blocks; a half block; three blocks, an odd number, so that a zero point is left over in the last byte.
DEPTHS = [(64, 96), (48, 80), (64, 33)]


def make_blocks(
    width: int, hidden: int, bits: Sequence[int], tokens: int = FEW_TOKENS
) -> tuple[Toy, dict[str, Floats]]:
    """A toy with one block of the parent per entry of `bits`, stored so; and its weights as they were."""
    plain = {}
    for block in range(1, len(bits) + 1):
        plain[f"up_{block}"] = draw_rows(width, hidden, seed=block) / 8 + np.float32(0.1)
        plain[f"down_{block}"] = draw_rows(hidden, width, seed=10 + block) / 8
    names = list(plain)
    pairs = [{name: plain[name] for name in names[start : start + 2]} for start in range(0, len(names), 2)]
    toy = make_toy(draw_rows(tokens, width, seed=20), pairs)
    four = [block for block, kind in enumerate(bits, start=1) if kind == 4]
    eight = [block for block, kind in enumerate(bits, start=1) if kind == 8]
    apply_blocks(toy.traced, observe_toy(toy), four_bits=four, eight_bits=eight)
    return toy, plain


def decode(node: ir.Node, stored: dict[str, NDArray[Any]]) -> Floats:
    """(K, N) from codes (N, blocks, bytes), scales (N, blocks) and zero points (N, bytes or blocks)."""
    depth, width, bits = (node.attributes.get_int(name) for name in ("K", "N", "bits"))
    codes, scales, zeros = (stored[str(value.name)] for value in node.inputs[1:4])  # type: ignore[union-attr]
    count = -(-depth // BLOCK)
    assert (codes.dtype, zeros.dtype, scales.dtype) == (np.uint8, np.uint8, np.float32)
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1)
        zeros = np.stack([zeros & 15, zeros >> 4], axis=-1).reshape(width, -1)[:, :count]
    levels = codes.reshape(width, count, BLOCK).astype(np.float64) - zeros.reshape(width, count, 1)
    return (levels * scales.reshape(width, count, 1)).reshape(width, -1)[:, :depth].T.astype(np.float32)


def set_accuracy(toy: Toy, level: int) -> None:
    for node in toy.nodes("MatMulNBits"):
        node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", level)


def multiply_by_parts(values: Floats, weight: Floats) -> Floats:
    """Accuracy level 4: each block of 32 of a token in 8 bits with a scale of its own, then whole products."""
    total = np.zeros((*values.shape[:-1], weight.shape[1]))
    for start in range(0, values.shape[-1], BLOCK):
        part = values[..., start : start + BLOCK].astype(np.float64)
        scale = np.abs(part).max(axis=-1, keepdims=True) / 127
        total += np.rint(part / np.maximum(scale, 1e-30)) * scale @ weight[start : start + BLOCK]
    return total.astype(np.float32)


FEEDS = {"input_ids": np.arange(60).reshape(3, 20)}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", DEPTHS, ids=str)
def test_the_stored_weights_give_the_products(shape: tuple[int, int], bits: int) -> None:
    toy, _ = make_blocks(*shape, [bits])
    set_accuracy(toy, 0)
    stored = toy.initializers
    for node in toy.nodes("MatMulNBits"):
        source, out = str(node.inputs[0].name), str(node.outputs[0].name)  # type: ignore[union-attr]
        values, given = run_model(toy.model, FEEDS, source, out)
        np.testing.assert_allclose(given, values @ decode(node, stored), atol=2e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_other_order_of_packing_is_another_weight(bits: int) -> None:
    """So a decoder that mistakes nibbles, or rows for columns, would be seen."""
    toy, plain = make_blocks(64, 96, [bits])
    node = toy.nodes("MatMulNBits")[0]
    stored, name = toy.initializers, str(node.inputs[1].name)  # type: ignore[union-attr]
    right = decode(node, stored)
    swapped = (stored[name] >> 4 | stored[name] << 4) if bits == 4 else stored[name][..., ::-1]
    wrong = decode(node, stored | {name: swapped})
    assert np.linalg.norm(right - plain["up_1"]) < 0.2 * np.linalg.norm(plain["up_1"])
    assert np.linalg.norm(wrong - plain["up_1"]) > np.linalg.norm(plain["up_1"])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", DEPTHS, ids=str)
def test_the_products_as_they_are_written(shape: tuple[int, int], bits: int) -> None:
    """With the accuracy level of the family: activations in 8 bits for each block of a token."""
    toy, _ = make_blocks(*shape, [bits])
    stored = toy.initializers
    for node in toy.nodes("MatMulNBits"):
        source, out = str(node.inputs[0].name), str(node.outputs[0].name)  # type: ignore[union-attr]
        values, given = run_model(toy.model, FEEDS, source, out)
        weight = decode(node, stored)
        expected, exact = multiply_by_parts(values, weight), values @ weight
        assert np.linalg.norm(given - exact) < 0.02 * np.linalg.norm(exact)
        assert np.linalg.norm(given - expected) < 0.5 * np.linalg.norm(given - exact)


def test_products_do_not_saturate_at_eight_bits() -> None:
    """The largest codes times the largest activations, in every place: 255 * 127 twice does not fit 16 bits."""
    table = np.ones((FEW_TOKENS, 64), np.float32)
    up, down = np.full((64, 96), 3, np.float32), draw_rows(96, 64)
    up[::32] = -0.01  # so that a block's zero point is low and its codes are high
    toy = make_toy(table, [{"up": up, "down": down}])
    apply_blocks(toy.traced, observe_toy(toy), four_bits=[], eight_bits=[1])
    (given,) = run_model(toy.model, FEEDS, "wide_1")
    np.testing.assert_allclose(given, table[None, :1] @ up + np.zeros_like(given), rtol=0.01)


def test_a_block_at_eight_bits_beside_one_at_four_and_one_as_it_was() -> None:
    toy, plain = make_blocks(64, 96, [8, 4, 32])
    found = [(node.attributes.get_int("bits"), str(node.outputs[0].name)) for node in toy.nodes("MatMulNBits")]
    assert found == [(8, "wide_1"), (8, "narrow_1"), (4, "wide_2"), (4, "narrow_2")]
    assert [str(node.inputs[1].name) for node in toy.nodes("MatMul")] == ["up_3", "down_3"]  # type: ignore[union-attr]
    assert not any(name in toy.initializers for name in ("up_1", "down_1", "up_2", "down_2"))
    np.testing.assert_array_equal(toy.initializers["up_3"], plain["up_3"])


def test_eight_bits_are_to_the_nearest_and_four_with_feedback() -> None:
    """Within half a step in 8 bits; at 4 bits it is the product that is near, not every weight."""
    toy, plain = make_blocks(64, 96, [8, 4])
    stored = toy.initializers
    first, _, third, _ = toy.nodes("MatMulNBits")
    steps = np.repeat(stored["up_1.q8.scale"].T, BLOCK, axis=0)[:64]
    assert (np.abs(decode(first, stored) - plain["up_1"]) <= steps * 0.51 + np.abs(plain["up_1"]).max() * 0.01).all()
    rows = draw_rows(300, 64, seed=30)
    assert np.linalg.norm(rows @ (decode(third, stored) - plain["up_2"])) < 0.2 * np.linalg.norm(rows @ plain["up_2"])


def test_weights_that_were_rounded_are_not_rounded_again() -> None:
    pairs = [{"up": draw_rows(64, 96, seed=1), "down": draw_rows(96, 64, seed=2)}]
    first, second = (make_toy(draw_rows(FEW_TOKENS, 64, seed=3), pairs) for _ in range(2))
    rounded: Rounded = {}
    rows = observe_toy(first)
    apply_blocks(first.traced, rows, four_bits=[1], eight_bits=[], rounded=rounded)
    assert set(rounded) == {"up.q4", "down.q4"}
    other = {name: values[::-1] * 3 for name, values in rows.items()}
    apply_blocks(second.traced, other, four_bits=[1], eight_bits=[], rounded=rounded)
    for name, array in first.initializers.items():
        np.testing.assert_array_equal(array, second.initializers[name])


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
@pytest.mark.parametrize(("precision", "bits"), [("q8", {8}), ("q4", {4})])
def test_every_product_of_a_family_is_in_blocks(
    precision: str, bits: set[int], kind: str, precise: Callable[[str], Precise]
) -> None:
    family = precise(kind).family
    model = ir.load(family / f"L02-D064.{precision}.onnx")
    nodes = [node for node in model.graph if node.op_type == "MatMulNBits"]
    assert {node.attributes.get_int("bits") for node in nodes} == bits
    assert len(nodes) == 2 * {"bert": 6, "modernbert": 4}[kind]
    plain = [node for node in model.graph if node.op_type == "MatMul"]
    assert not any(value is not None and value.is_initializer() for node in plain for value in node.inputs[1:])
    sizes = {name: file.bytes for name, file in load_family(family).facts.files.items()}
    assert sizes[f"weights.{precision}.safetensors"] < 0.5 * sizes["weights.fp32.safetensors"]


def test_mixed_keeps_the_block_that_suffers_and_says_so(precise: Callable[[str], Precise]) -> None:
    """In block 2, every 32 weights share their scale with one that is far larger."""
    family = load_family(precise("rough").family)
    assert family.facts.precisions[Precision.Q4_MIXED].kept == {"block 2": "q8"}
    assert family.facts.precisions[Precision.Q4].kept == family.facts.precisions[Precision.Q8].kept == {}
    model = ir.load(family.path / "L02-D064.q4-mixed.onnx")
    bits = {
        str(node.inputs[1].name).split(".layer.")[1].split(".")[0]: node.attributes.get_int("bits")  # type: ignore[union-attr]
        for node in model.graph
        if node.op_type == "MatMulNBits"
    }
    assert bits == {"0": 4, "1": 8}
    assert any(node.op_type == "GatherBlockQuantized" for node in model.graph), "the embeddings stay at 4 bits"


def test_mixed_is_nearer_than_four_bits_and_smaller_than_eight(precise: Callable[[str], Precise]) -> None:
    path = precise("rough").family
    verdicts = {verdict.profile: verdict for verdict in verify_family(path).verdicts}
    four, mixed = (verdicts[f"L02-D064-{kind}"].worst[1].cosine_mean for kind in ("q4", "q4-mixed"))
    assert 1 - mixed < 0.3 * (1 - four)
    sizes = [(path / f"weights.{kind}.safetensors").stat().st_size for kind in ("q4", "q4-mixed", "q8")]
    assert sizes == sorted(sizes)


def test_a_parent_that_keeps_up_has_nothing_raised(precise: Callable[[str], Precise]) -> None:
    assert load_family(precise("bert").family).facts.precisions[Precision.Q4_MIXED].kept == {}
