"""fp16: what is in half precision and what is not, and that it holds in half-precision arithmetic. onnxruntime's CPU
kernels run much of such a graph in fp32, so it is also run by onnx's reference evaluator, in numpy's float16."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conftest import SMALL, TEXTS, Precise
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from oracle import Oracle
from parents import calm, make_parent
from toys import Floats, Toy, bare_inputs, draw_rows, make_toy, run_model

from matexport import Embedder, load_family, verify_family
from matexport.errors import RequestError
from matexport.export import export_family
from matexport.export.graph.edit import assert_sound
from matexport.export.quantize.make import Material, make_precision
from matexport.export.quantize.observe import Sample, observe_peaks
from matexport.export.quantize.precisions import fp16 as half
from matexport.export.quantize.precisions.fp16 import apply_half, round_to_half
from matexport.runtime.inputs.text import Tokens, pad_rows, tokenize_texts
from matexport.runtime.inputs.tokenizer import load_tokenizer
from matexport.spec.inputs import PaddingSide, TextFacts
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.profile import Point, Precision
from matexport.spec.readout import FinalNorm, ReadoutRequest

TOKENS, WIDTH, HIDDEN = 256, 64, 96
TEXT = TextFacts(("input_ids",), 64, PaddingSide.RIGHT, 0, {})
KINDS = ["bert", "rough", "modernbert", "qwen3"]


def run_in_half(graph: Path | ir.Model, feeds: Mapping[str, NDArray[Any]], *outputs: str) -> list[NDArray[Any]]:
    """Every operator in the type that the graph says, in numpy."""
    if isinstance(graph, ir.Model):
        assert_sound(graph)
    model = onnx.load(graph) if isinstance(graph, Path) else ir.serde.serialize_model(graph)
    evaluator = ReferenceEvaluator(model)
    with np.errstate(over="ignore", invalid="ignore"):
        found: list[NDArray[Any]] = evaluator.run(list(outputs) or None, dict(feeds))
    return found


def find_types(graph: Path) -> tuple[onnx.ModelProto, dict[str, int]]:
    """A written graph, and the element type of each of its values by onnx's own inference."""
    model = onnx.shape_inference.infer_shapes(onnx.load(graph, load_external_data=False))
    inferred = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    types = {item.name: item.type.tensor_type.elem_type for item in inferred}
    return model, types | {item.name: item.data_type for item in model.graph.initializer}


def make_loud_toy(loudness: float = 1.0) -> Toy:
    """Three blocks; what goes into the second one's activation is made loud, and quiet again after it."""
    blocks: list[Mapping[str, Floats]] = []
    for block in (1, 2, 3):
        gain = loudness if block == 2 else 1.0
        up, down = draw_rows(WIDTH, HIDDEN, seed=block) / 8 * gain, draw_rows(HIDDEN, WIDTH, seed=9) / 8 / gain
        blocks.append({f"up_{block}": up.astype(np.float32), f"down_{block}": down.astype(np.float32)})
    return make_toy(draw_rows(TOKENS, WIDTH, seed=5), blocks)


def calibrate(toy: Toy, folder: Path) -> dict[str, float]:
    return observe_peaks(toy.model, Sample([Tokens(tuple(range(TOKENS)), (0,) * TOKENS)], bare_inputs(TEXT), folder))


FEEDS = {"input_ids": np.arange(60).reshape(3, 20)}


def test_peaks_are_the_largest_values(tmp_path: Path) -> None:
    toy = make_loud_toy()
    peaks = calibrate(toy, tmp_path)
    names = [str(node.outputs[0].name) for node in toy.model.graph]
    values = run_model(toy.model, {"input_ids": np.arange(TOKENS)[None]}, *names)
    assert set(peaks) == set(names)
    for name, value in zip(names, values, strict=True):
        assert peaks[name] == pytest.approx(np.abs(value).max(), rel=1e-6)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mask", [-3.4028235e38, -np.inf], ids=["least float", "-inf"])
def test_masks_are_left_out_of_peaks(mask: float, tmp_path: Path) -> None:
    """What a mask hides is no value, and what stands beside it still is one."""
    toy = make_loud_toy()
    table = toy.model.graph.initializers["table"]
    rows = table.const_value.numpy().copy()  # type: ignore[union-attr]
    rows[3, 4] = mask
    rows[4, 5] = -50_000
    table.const_value = ir.tensor(rows, name="table")
    assert calibrate(toy, tmp_path)["state_0"] == pytest.approx(50_000)


def test_half_precision_is_near_and_half_as_large(tmp_path: Path) -> None:
    toy = make_loud_toy()
    expected = run_model(toy.model, FEEDS)
    assert apply_half(toy.traced, calibrate(toy, tmp_path)) == []
    for given in (run_model(toy.model, FEEDS), run_in_half(toy.model, FEEDS)):
        for ours, theirs in zip(given, expected, strict=True):
            assert ours.dtype == np.float32
            assert np.abs(ours - theirs).max() < 4e-3 * np.abs(theirs).max()
    matrices = {name: array for name, array in toy.initializers.items() if array.ndim == 2}
    assert {array.dtype for array in matrices.values()} == {np.dtype(np.float16)}
    assert len(matrices) == 7


@pytest.mark.parametrize(("loudness", "kept"), [(1e3, []), (8e3, [2]), (1e6, [2])])
def test_a_block_that_comes_near_the_limit_stays_in_fp32(loudness: float, kept: list[int], tmp_path: Path) -> None:
    toy = make_loud_toy(loudness)
    expected = run_model(toy.model, FEEDS)
    peaks = calibrate(toy, tmp_path)
    assert (peaks["wide_2"] > 65504 / 4) == bool(kept)
    assert apply_half(toy.traced, peaks) == kept
    matrices = {name: array.dtype for name, array in toy.initializers.items() if array.ndim == 2}
    assert (matrices.get("up_2") == np.float32) == bool(kept)
    assert matrices["up_1.fp16"] == matrices["up_3.fp16"] == np.float16
    for ours, theirs in zip(run_in_half(toy.model, FEEDS), expected, strict=True):
        assert np.abs(ours - theirs).max() < 4e-3 * np.abs(theirs).max()


def test_a_weight_beyond_the_limit_keeps_its_block_in_fp32() -> None:
    """Whatever the calibration texts gave: its product may cancel there."""
    toy = make_loud_toy()
    toy.initializers["up_2"][0, 0] = 66_000
    assert apply_half(toy.traced, {}) == [2]


def test_a_value_that_is_taken_over_from_fp32_counts() -> None:
    """A statistic of a token, such as the reciprocal of a tiny deviation, stays in fp32 until it is multiplied."""
    for peak, kept in ((1e3, []), (1e5, [2])):
        toy = make_loud_toy()
        values = {str(value.name): value for node in toy.model.graph for value in node.outputs}
        state, wide = values["state_1"], values["wide_2"]
        assert state.shape is not None
        statistic = ir.node("ReduceSum", [state, toy.model.graph.initializers["tokens"]], {"keepdims": 1})
        product = ir.node("Mul", [wide, statistic.outputs[0]])
        for node, like, last in ((statistic, state, 1), (product, wide, 96)):
            node.outputs[0].type, node.outputs[0].shape = like.type, ir.Shape([*state.shape[:-1], last])
        statistic.outputs[0].name = "statistic"
        (gelu,) = (use.node for use in wide.uses() if use.node is not product)
        gelu.replace_input_with(0, product.outputs[0])
        toy.model.graph.insert_before(gelu, [statistic, product])
        assert apply_half(toy.traced, {"statistic": peak}) == kept


def test_without_the_check_it_overflows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In half-precision arithmetic, that is: onnxruntime's CPU kernels would not show it."""
    monkeypatch.setattr(half, "_overflows", lambda *_: False)
    toy = make_loud_toy(1e6)
    assert apply_half(toy.traced, calibrate(toy, tmp_path)) == []
    first, second, _ = run_in_half(toy.model, FEEDS)
    assert np.isfinite(first).all()
    assert not np.isfinite(second).all()


def test_rounding_weights_to_half() -> None:
    numbers = np.array([[0.1, -65504, 65519, 1e6], [-1e9, -3.4028235e38, -np.inf, 6e-8]], dtype=np.float32)
    rounded = round_to_half(numbers)
    assert rounded.dtype == np.float16
    assert np.isfinite(rounded).all()
    np.testing.assert_array_equal(rounded[0, :2], numbers[0, :2].astype(np.float16))
    np.testing.assert_array_equal(rounded[0, 2:], [65504, 65504])
    np.testing.assert_array_equal(rounded[1, :3], [-32752] * 3)
    assert np.isfinite(rounded[1, 1] + rounded[1, 2]), "two masks may be added"


def make_material(toy: Toy, folder: Path) -> Material:
    sample = Sample([Tokens((1, 2, 3), (0, 0, 0))], bare_inputs(TEXT), folder)
    return Material(toy.traced, [Point(block, WIDTH) for block in (1, 2, 3)], sample, "three words", {})


def test_a_graph_without_types_is_refused_by_name(tmp_path: Path) -> None:
    """As the TorchScript exporter leaves it."""
    toy = make_loud_toy()
    for node in toy.model.graph:
        for value in node.outputs:
            if value not in toy.model.graph.outputs:
                value.type, value.shape = None, None
    with pytest.raises(RequestError, match=r"fp16 was asked; the TorchScript exporter.* ask for another precision"):
        make_precision(Precision.FP16, make_material(toy, tmp_path), lambda _stage, _done, _total: None)


def test_a_parent_with_a_small_vocabulary_is_not_blamed_on_torchscript(tmp_path: Path) -> None:
    """Tables below 64 KiB are not worth quantizing, but they are where the tokens' vectors begin."""
    weights = {"up": draw_rows(WIDTH, HIDDEN, seed=1) / 8, "down": draw_rows(HIDDEN, WIDTH, seed=2) / 8}
    toy = make_toy(draw_rows(100, WIDTH, seed=5), [weights])
    peaks = observe_peaks(toy.model, Sample([Tokens((1, 2, 3), (0, 0, 0))], bare_inputs(TEXT), tmp_path))
    assert apply_half(toy.traced, peaks) == []
    assert toy.initializers["up.fp16"].dtype == np.float16


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_outputs_and_readout_are_not_in_half(kind: str, precise: Callable[[str], Precise]) -> None:
    model, types = find_types(precise(kind).family / "L02-D064.fp16.onnx")
    assert {types[item.name] for item in model.graph.input} == {onnx.TensorProto.INT64}
    assert [types[item.name] for item in model.graph.output] == [onnx.TensorProto.FLOAT]
    halves = {name for name, kind in types.items() if kind == onnx.TensorProto.FLOAT16}
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    in_half = [node for node in products if node.output[0] in halves]
    assert len(in_half) >= len(products) / 2 - 1, "the rest is rotary positions, or a block that is kept"
    makers = {name: node for node in model.graph.node for name in node.output}
    pending, readout = [item.name for item in model.graph.output], []
    while pending:  # from the output back to the last value in half precision
        node = makers.get(pending.pop())
        if node is not None and node.op_type != "Cast":
            assert not halves & set(node.output)
            readout.append(node.op_type)
            pending.extend(name for name in node.input if types.get(name) == onnx.TensorProto.FLOAT)
    assert {"Sqrt", "ReduceSum", "Div"} <= set(readout)
    if kind == "bert":
        assert "ReduceSum" in readout
    if kind in ("modernbert", "qwen3"):
        assert {"modernbert": "LayerNormalization", "qwen3": "ReduceMean"}[kind] in readout, "the final norm"


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_and_squares_are_not_in_half(kind: str, precise: Callable[[str], Precise]) -> None:
    model, types = find_types(precise(kind).family / "L02-D064.fp16.onnx")
    delicate = [node for node in model.graph.node if node.op_type in ("Pow", "ReduceMean", "ReduceSum", "Sqrt")]
    assert all(types[name] != onnx.TensorProto.FLOAT16 for node in delicate for name in node.output)
    if kind == "qwen3":
        assert len(delicate) >= 3 * 4, "two norms of the block, and those of queries and keys"


def test_the_block_that_overflows_is_in_the_manifest(precise: Callable[[str], Precise]) -> None:
    """What goes into block 1's Gelu is 30,000 times larger than usual."""
    family = load_family(precise("rough").family)
    assert family.facts.precisions[Precision.FP16].kept == {"block 1": "fp32"}
    weights = ir.load(family.path / "L02-D064.fp16.onnx").graph.initializers
    kinds = {name: value.dtype for name, value in weights.items() if ".dense.weight" in name or ".query.weight" in name}
    assert {name: kind for name, kind in kinds.items() if "layer.0." in name and kind is not ir.DataType.FLOAT} == {}
    assert {name: kind for name, kind in kinds.items() if "layer.1." in name and kind is ir.DataType.FLOAT} == {}
    for other in ("bert", "modernbert", "qwen3"):
        assert load_family(precise(other).family).facts.precisions[Precision.FP16].kept == {}


def tokenize(family: Path, texts: Sequence[str]) -> tuple[list[Tokens], TextFacts]:
    text = load_family(family).text
    return tokenize_texts(load_tokenizer((family / "tokenizer.json").read_bytes(), text), texts), text


@pytest.mark.parametrize("kind", KINDS)
def test_in_half_precision_arithmetic_it_is_still_the_parent(kind: str, precise: Callable[[str], Precise]) -> None:
    """Short texts beside long ones, padded on the parent's own side: nothing that a mask hides becomes NaN."""
    made = precise(kind)
    rows, text = tokenize(made.family, ["dog", *TEXTS])
    feeds = pad_rows(rows, text.padding_side, text.pad_token_id)
    (vectors,) = run_in_half(made.family / "L02-D064.fp16.onnx", {name: feeds[name] for name in text.inputs})
    assert np.isfinite(vectors).all()
    oracle = Oracle(made.parent)
    pooling = {"rough": "cls", "qwen3": "lasttoken"}.get(kind, "mean")
    expected = np.stack([oracle.vector(item, 2, 64, pooling) for item in ["dog", *TEXTS]])
    assert (vectors * expected).sum(axis=1).min() > 0.9995


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padding", [1, 40])
def test_heavy_padding_gives_no_nan(kind: str, padding: int, precise: Callable[[str], Precise]) -> None:
    """A row of padding in front attends to nothing at all."""
    made = precise(kind)
    (row,), text = tokenize(made.family, ["dog"])
    long = Tokens((5,) * (len(row.ids) + padding), (0,) * (len(row.ids) + padding))
    embedder = Embedder(made.family, "L02-D064-fp16")
    alone = embedder.run([row], text.padding_side)[0]
    beside = embedder.run([row, long], text.padding_side)
    assert np.isfinite(beside).all()
    assert alone @ beside[0] > 0.9999
    feeds = pad_rows([row, long], text.padding_side, text.pad_token_id)
    (vectors,) = run_in_half(made.family / "L02-D064.fp16.onnx", {name: feeds[name] for name in text.inputs})
    assert np.isfinite(vectors).all()
    assert alone @ vectors[0] > 0.9995


def test_llama_stays_accurate_and_blocks_that_no_exit_reads_cost_nothing(tmp_path: Path) -> None:
    """Rotary positions, RMSNorm, grouped keys, padding on the right; the first of two blocks is read."""
    config = SMALL | {"head_dim": 16}
    parent = make_parent(tmp_path / "parent", "llama", pooling="mean", config=config, change=calm)
    probes = tmp_path / "probes.jsonl"
    probes.write_text("".join(f'{{"text": "{text}"}}\n' for text in TEXTS), encoding="utf-8")
    job = ExportJob(
        ParentSource(str(parent)),
        (Point(1, 32), Point(1, 64)),
        ReadoutRequest(final_norm=FinalNorm.DROP),
        precisions=(Precision.FP16, Precision.INT8),
        probes=probes,
    )
    seen: list[tuple[str, int, int]] = []
    family = export_family(job, tmp_path / "family", progress=lambda *report: seen.append(report)).family
    assert max(total for stage, _, total in seen if stage == "quantize int8") == 4, "one block's products"
    assert family.facts.precisions[Precision.FP16].kept == {}
    assert "weights.fp32.safetensors" not in family.facts.files
    for verdict in verify_family(family.path).verdicts:
        if verdict.profile.endswith("fp16"):
            assert verdict.worst[1].cosine_min > 0.99999
