"""A tenth of transformers' text encoders, one of every kind that is built otherwise: exported and equal to an oracle in
plain torch, or refused in one line. `benchmarks/architectures.py` does the same with all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes import common
from toys import run_model
from zoo import ZooOracle, count_blocks, find_reason, has_other_inputs, list_types, make_zoo_parent

import matexport
from matexport.errors import MatexportError, RequestError
from matexport.export import export_family
from matexport.export.trace import canonical
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.profile import Point
from matexport.spec.readout import FinalNorm, PoolingMode, ReadoutRequest

MAX_ABS = 2e-6
TEXTS = ["the cat sits on the mat", "snow and a big red house " * 20, "", "dog", "money, river bank! 42"]

#: Type -> whether its final norm is asked to be kept.
EXPORTED = {
    "electra": False,  # BERT-like
    "deberta-v2": False,  # BERT-like, positions by disentangled attention
    "biogpt": True,  # decoder with absolute positions
    "bloom": True,  # decoder with ALiBi
    "gemma2": True,  # sliding windows and caps
    "clip_text_model": True,  # text tower
    "albert": False,  # blocks that share weights
    "gpt2": True,  # a view after the final norm
    "squeezebert": False,  # states of other axes, blocks that run past the hooks
    "t5": True,  # encoder of an encoder-decoder
    "qwen3_moe": True,  # mixture of experts
    "embedding_gemma2_text": True,  # a projection behind the final norm
    "xlm": False,  # looks at the values of its inputs, so it is planned with its weights
    "ctrl": True,  # indexes a table with a tensor
}
#: Type -> a part of what is said instead.
REFUSED = {
    "bart": "gives no hidden state for each of its blocks",  # encoder-decoder that is loaded whole
    "canine": "hidden states for",  # shortens the text between its blocks
    "funnel": "hidden states for",
    "mamba": "with its blocks cut",  # its hidden states are counted from the first block on
    "fnet": "depends on the texts beside it",  # no attention mask
    "convbert": "depends on the texts beside it",  # a convolution crosses padding
}
#: Some whose mask is looked up number by number in a trace.
LOOKED_UP = {"electra", "albert"}


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many lookups of a mask the trace of each parent had, once both of its graphs gave the same bits."""
    seen = []

    def watch(model: ir.Model) -> int:
        # Run here: afterwards the parent's memory, which both graphs read, is given back.
        before = _run_trace(model.clone())
        found = canonical_masks(model)
        for left, right in zip(before, _run_trace(model.clone()), strict=True):
            np.testing.assert_array_equal(left, right)
        seen.append(found)
        return found

    canonical_masks = canonical.write_plain_masks
    monkeypatch.setattr(canonical, "write_plain_masks", watch)
    return seen


def _run_trace(model: ir.Model) -> list[np.ndarray]:
    """What a graph that an exporter has not quite finished gives for rows that are padded on either side."""
    ids = np.random.default_rng(0).integers(5, 40, (4, 9))
    mask = np.ones_like(ids)
    mask[1, 5:], mask[2, :3], mask[3, 1:8] = 0, 0, 0
    feeds = {"input_ids": ids, "attention_mask": mask, "pooling_mask": mask, "token_type_ids": np.zeros_like(ids)}
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedFunctionsPass()(model)
    model.graph.opset_imports.clear()
    model.graph.opset_imports[""], model.ir_version = canonical.OPSET, canonical.IR_VERSION
    return run_model(model, {str(value.name): feeds[str(value.name)] for value in model.graph.inputs})


@pytest.mark.parametrize("kind", EXPORTED)
def test_exports_and_gives_what_plain_torch_gives(kind: str, tmp_path: Path, lookups: list[int]) -> None:
    parent = make_zoo_parent(kind, tmp_path / "parent")
    blocks = count_blocks(kind, parent)
    points = (Point(1, 32), Point(blocks - 1, 8), Point(blocks, 32))
    _export(parent, points, keep=EXPORTED[kind])
    oracle = ZooOracle(parent, kind, norm=EXPORTED[kind])
    for point in points:
        expected = np.stack([oracle.vectors(text, [(point.layers, point.dim)])[0] for text in TEXTS])
        embedder = matexport.Embedder(tmp_path / "family", f"{point.name}-fp32", threads=1)
        alone = np.concatenate([embedder.embed([text]) for text in TEXTS])
        assert np.abs(embedder.embed(TEXTS) - expected).max() <= MAX_ABS
        assert np.abs(alone - expected).max() <= MAX_ABS
    (found,) = lookups
    assert found or kind not in LOOKED_UP


@pytest.mark.parametrize("kind", REFUSED)
def test_refuses_in_one_line(kind: str, tmp_path: Path) -> None:
    parent = make_zoo_parent(kind, tmp_path / "parent")
    with pytest.raises(MatexportError) as caught:
        _export(parent, (Point(1, 32),), keep=None)
    assert REFUSED[kind] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "family").exists()


def test_every_type_is_tried_or_left_out_for_a_reason() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    tried = set(list_types())
    assert {*EXPORTED, *REFUSED} <= tried
    assert all(find_reason(kind) for kind in CONFIG_MAPPING if kind not in tried)
    assert len([kind for kind in tried if not has_other_inputs(kind)]) >= 200


def _export(parent: Path, points: tuple[Point, ...], *, keep: bool | None) -> None:
    """Export beside the parent; with `keep` unknown, keep the final norm of a parent that turns out to have one."""
    for norm in (FinalNorm.KEEP if keep else None, FinalNorm.KEEP):
        readout = ReadoutRequest(pooling=PoolingMode.MEAN, final_norm=norm)
        try:
            export_family(ExportJob(ParentSource(str(parent)), points, readout), parent.parent / "family")
        except RequestError as error:
            if keep is None and norm is None and "final_norm" in str(error):
                continue
            raise
        return
