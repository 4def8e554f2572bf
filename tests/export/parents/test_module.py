"""The read-out: every pooling, every head, both padding sides, against the oracle and sentence-transformers."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TEXTS
from oracle import Oracle
from parents import make_parent

from matexport import Embedder
from matexport.errors import ParityError
from matexport.export import export_family
from matexport.export.parents.module import POOLINGS, Attended
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.profile import Point
from matexport.spec.readout import TEXT_POOLINGS, FinalNorm, PoolingMode, ReadoutRequest

pytestmark = pytest.mark.usefixtures("quick_traces")

POINTS = (Point(1, 8), Point(2, 32), Point(3, 20))
MODES = [str(mode) for mode in TEXT_POOLINGS]


def pool_rows(mode: str, state: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return POOLINGS[PoolingMode(mode)](state, Attended(mask))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_does_not_change_a_pooling(mode: str, side: str) -> None:
    if (mode, side) == ("cls", "left"):
        pytest.skip("cls reads position 0; the runtime pads cls parents on the right only")
    torch.manual_seed(0)
    alone = torch.randn(1, 5, 4) - 3  # all negative: a maximum over zeroed padding would be 0
    padding = torch.full((1, 3, 4), 1e4)
    parts = [alone, padding] if side == "right" else [padding, alone]
    masks = [torch.ones(1, 5), torch.zeros(1, 3)]
    mask = torch.cat(masks if side == "right" else masks[::-1], dim=1).to(torch.int64)
    expected = pool_rows(mode, alone, torch.ones(1, 5, dtype=torch.int64))
    torch.testing.assert_close(pool_rows(mode, torch.cat(parts, dim=1), mask), expected)


@pytest.mark.parametrize("mode", MODES)
def test_every_pooling_gives_the_oracles_vectors(mode: str, tmp_path: Path) -> None:
    parent = make_parent(tmp_path / "parent", pooling=mode)
    family = export_family(ExportJob(ParentSource(str(parent)), POINTS), tmp_path / "family").family
    oracle = Oracle(parent)
    for point in POINTS:
        expected = np.stack([oracle.vector(text, point.layers, point.dim, mode) for text in TEXTS])
        np.testing.assert_allclose(Embedder(family, f"{point.name}-fp32").embed(TEXTS), expected, atol=2e-6)


@pytest.mark.parametrize("mode", MODES)
def test_poolings_differ_from_each_other(mode: str) -> None:
    torch.manual_seed(1)
    state, mask = torch.randn(1, 6, 4), torch.ones(1, 6, dtype=torch.int64)
    vectors = {other: pool_rows(other, state, mask) for other in MODES}
    others = [vector for other, vector in vectors.items() if other != mode]
    assert all((vectors[mode] - other).abs().max() > 1e-2 for other in others)


def test_concatenated_poolings_heads_and_truncation_equal_sentence_transformers(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    parent = make_parent(
        tmp_path / "parent", pooling=["cls", "mean"], dense=[48, 24], layer_norm=True, normalize=True, max_length=24
    )
    job = ExportJob(ParentSource(str(parent)), (Point(3, 24), Point(3, 10), Point(1, 24)))
    family = export_family(job, tmp_path / "family").family
    assert family.facts.readout.heads == ("Dense(64->48, Tanh)", "Dense(48->24, Tanh)", "LayerNorm(24)", "Normalize")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sentence-transformers warns about its own legacy layout
        model = SentenceTransformer(str(parent), device="cpu")
        for dim in (24, 10):
            expected = model.encode(TEXTS, truncate_dim=dim, normalize_embeddings=True)
            np.testing.assert_allclose(Embedder(family, f"L03-D{dim:03d}-fp32").embed(TEXTS), expected, atol=2e-6)
        model[0].auto_model.encoder.layer = model[0].auto_model.encoder.layer[:1]  # the field's way of cutting layers
        expected = model.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(Embedder(family, "L01-D024-fp32").embed(TEXTS), expected, atol=2e-6)


def test_without_normalisation_vectors_keep_their_length(tmp_path: Path) -> None:
    parent = make_parent(tmp_path / "parent")
    readout = ReadoutRequest(normalize=False)
    family = export_family(ExportJob(ParentSource(str(parent)), POINTS, readout), tmp_path / "family").family
    oracle = Oracle(parent)
    expected = np.stack([oracle.vector(text, 2, 32, unit=False) for text in TEXTS])
    vectors = Embedder(family, "L02-D032-fp32").embed(TEXTS)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).min() > 0.1


def test_final_norm_keep_and_drop_are_different_exits(tmp_path: Path) -> None:
    parent = make_parent(tmp_path / "parent", "qwen3", pooling="lasttoken")
    vectors = {}
    for choice, norm in ((FinalNorm.KEEP, "norm"), (FinalNorm.DROP, None)):
        job = ExportJob(ParentSource(str(parent)), POINTS, ReadoutRequest(final_norm=choice))
        family = export_family(job, tmp_path / choice).family
        oracle = Oracle(parent, norm)
        vectors[choice] = Embedder(family, "L02-D032-fp32").embed(TEXTS)
        expected = np.stack([oracle.vector(text, 2, 32, "lasttoken") for text in TEXTS])
        np.testing.assert_allclose(vectors[choice], expected, atol=2e-6)
        full = Embedder(family, "L03-D020-fp32").embed(TEXTS)  # the parent's own output either way
        np.testing.assert_allclose(full, np.stack([oracle.vector(t, 3, 20, "lasttoken") for t in TEXTS]), atol=2e-6)
    assert np.abs(vectors[FinalNorm.KEEP] - vectors[FinalNorm.DROP]).max() > 1e-2


def test_a_wrong_pooling_is_blamed_on_the_readout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = make_parent(tmp_path / "parent")
    monkeypatch.setitem(POOLINGS, PoolingMode.MEAN, lambda state, mask: state.mean(1))  # padding counted in
    with pytest.raises(
        ParityError, match=r"^read-out: in torch, L01-D008 is not the parent's: max abs difference .* allowed 1e-05"
    ) as caught:
        export_family(ExportJob(ParentSource(str(parent)), POINTS), tmp_path / "family")
    assert caught.value.stage == "read-out"
    assert not (tmp_path / "family").exists()
