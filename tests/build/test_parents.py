"""Every kind of parent goes the whole way, and gives what the oracle gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import TEXTS
from oracle import Oracle
from parents import BLOCKS, SHAPES, WIDTH, make_parent

from matexport import Embedder
from matexport.build import export_family
from matexport.spec import ExportJob, FinalNorm, ParentSource, Point, ReadoutRequest

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
        vectors = Embedder(exported.family, f"{point.name}-fp32").embed(TEXTS, batch_size=3)
        expected = np.stack([oracle.vector(text, point.layers, point.dim, pooling) for text in TEXTS])
        np.testing.assert_allclose(vectors, expected, atol=2e-6)
