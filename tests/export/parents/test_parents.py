"""Every kind of parent goes the whole way, and gives what the oracle gives."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TEXTS
from oracle import Oracle
from parents import BLOCKS, SHAPES, WIDTH, make_parent
from safetensors.torch import load_file

from matexport import Embedder
from matexport.export import export_family
from matexport.spec.inputs import PaddingSide
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.profile import Point
from matexport.spec.readout import FinalNorm, ReadoutRequest

pytestmark = pytest.mark.usefixtures("quick_traces")

POINTS = (Point(1, 8), Point(2, WIDTH), Point(BLOCKS, WIDTH))
NORMS = {"modernbert": "final_norm", "qwen3": "norm", "llama": "norm", "gemma3": "norm"}


@pytest.mark.parametrize("kind", SHAPES)
def test_every_architecture_gives_the_parents_vectors(kind: str, tmp_path: Path) -> None:
    pooling = "lasttoken" if SHAPES[kind].decoder else "mean"
    parent = make_parent(tmp_path / kind, kind, pooling=pooling)
    readout = ReadoutRequest(final_norm=FinalNorm.KEEP if SHAPES[kind].prenorm else None)
    exported = export_family(ExportJob(ParentSource(str(parent)), POINTS, readout), tmp_path / "family")
    assert exported.family.facts.trace.exporter == "dynamo"
    oracle = Oracle(parent, NORMS.get(kind))
    for point in POINTS:
        vectors = Embedder(exported.family, f"{point.name}-fp32").embed(TEXTS, batch_budget=64)
        expected = np.stack([oracle.vector(text, point.layers, point.dim, pooling) for text in TEXTS])
        np.testing.assert_allclose(vectors, expected, atol=2e-6)


def test_the_shape_of_embedding_gemma_goes_the_whole_way(tmp_path: Path) -> None:
    """Gemma3-text with two Dense modules, Normalize and prompts; sentence-transformers itself is the second oracle."""
    from sentence_transformers import SentenceTransformer

    prompts = {"query": "a cat | ", "document": "the house | "}
    parent = make_parent(tmp_path / "parent", "gemma3", dense=[96, 24], normalize=True, prompts=prompts)
    points = (Point(1, 24), Point(BLOCKS, 24), Point(BLOCKS, 8))
    job = ExportJob(ParentSource(str(parent)), points, ReadoutRequest(final_norm=FinalNorm.DROP))
    family = export_family(job, tmp_path / "family").family
    assert family.facts.readout.heads == ("Dense(32->96, Tanh)", "Dense(96->24, Tanh)", "Normalize")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = SentenceTransformer(str(parent), device="cpu")
        for dim in (24, 8):
            expected = model.encode(TEXTS, prompt_name="query", truncate_dim=dim, normalize_embeddings=True)
            vectors = Embedder(family, f"L03-D{dim:03d}-fp32").embed(TEXTS, prompt="query")
            np.testing.assert_allclose(vectors, expected, atol=2e-6)
    oracle, early = Oracle(parent), Embedder(family, "L01-D024-fp32").embed(TEXTS)
    weights = [load_file(parent / folder / "model.safetensors") for folder in ("2_Dense", "3_Dense")]
    for text, vector in zip(TEXTS, early, strict=True):
        pooled = oracle.state(text, 1).mean(0)
        for dense in weights:
            pooled = torch.tanh(dense["linear.weight"] @ pooled + dense["linear.bias"])
        np.testing.assert_allclose(vector, (pooled / pooled.norm()).numpy(), atol=2e-6)


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_a_decoder_reads_the_last_token_under_either_padding(kind: str, tmp_path: Path) -> None:
    parent = make_parent(tmp_path / kind, kind, pooling="lasttoken")
    job = ExportJob(ParentSource(str(parent)), POINTS, ReadoutRequest(final_norm=FinalNorm.KEEP))
    family = export_family(job, tmp_path / "family").family
    assert family.facts.text.padding_side is (PaddingSide.LEFT if kind == "qwen3" else PaddingSide.RIGHT)
    oracle = Oracle(parent, "norm")
    with Embedder(family, "L02-D032-fp32") as embedder:
        rows = embedder.prepare(TEXTS)
        expected = np.stack([oracle.vector(text, 2, WIDTH, "lasttoken") for text in TEXTS])
        for side in PaddingSide:
            np.testing.assert_allclose(embedder.run(rows, side), expected, atol=2e-6)
