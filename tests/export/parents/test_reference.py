"""The reference is the parent's: equal to sentence-transformers' own encode, and independent of the read-out."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from parents import WIDTH, make_parent

from matexport.errors import RequestError
from matexport.export.kinds.probes.text import prepare_probes
from matexport.export.parents.asking import find_tokenizer
from matexport.export.parents.reference import record_reference
from matexport.export.parents.text import load_parent, plan_parent
from matexport.io.texts import load_probes
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.probe import Probe
from matexport.spec.profile import Point

PROBES = (Probe("the cat sits"), Probe("a big red house and a small blue one"), Probe("Käse 猫"))


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_at_full_depth_it_is_what_sentence_transformers_encodes(pooling: str, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = make_parent(tmp_path / "parent", pooling=pooling, dense=[20])
    point = Point(3, 12)
    parent = load_parent(plan_parent(ExportJob(ParentSource(str(folder)), (point,))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = SentenceTransformer(str(folder), device="cpu")
        texts = [probe.text for probe in PROBES]
        expected = model.encode(texts, batch_size=1, truncate_dim=12, normalize_embeddings=True)
    np.testing.assert_allclose(record_reference(parent, PROBES).points[point], expected, atol=1e-6)


def test_progress_counts_every_probe(parent: Path) -> None:
    loaded = load_parent(plan_parent(ExportJob(ParentSource(str(parent)), (Point(1, WIDTH),))))
    seen: list[tuple[str, int, int]] = []
    record_reference(loaded, PROBES, lambda *event: seen.append(event))
    assert seen == [("reference", done, 3) for done in range(4)]


def test_shipped_probes_are_fitted_to_the_parent_and_a_users_are_not(tmp_path: Path) -> None:
    folder = make_parent(tmp_path / "parent", prompts={"query": "a cat: "})
    plan = plan_parent(ExportJob(ParentSource(str(folder)), (Point(1, 8),)))
    shipped = load_probes(None)
    longest = max(shipped, key=lambda probe: len(probe.text))
    assert prepare_probes(plan, shipped, shipped=True) == (
        *shipped,
        Probe(shipped[0].text, "query"),
        Probe(shipped[1].text, "query"),
        Probe(shipped[0].text, None, "query"),  # its `encode_query` writes that prompt before a text, too
        Probe(longest.text, None, "query"),
    )
    assert prepare_probes(plan, PROBES, shipped=False) == PROBES
    with pytest.raises(RequestError, match="asks for the prompt 'passage'; the parent's prompts are: query"):
        prepare_probes(plan, [Probe("x", "passage"), *PROBES], shipped=False)


def test_a_text_without_tokens_is_left_out_or_refused(tmp_path: Path) -> None:
    folder = make_parent(tmp_path / "parent", "llama", pooling="lasttoken")
    plan = plan_parent(ExportJob(ParentSource(str(folder)), (Point(3, 8),)))
    tokenizer = find_tokenizer(plan.opened.first, str(folder))
    bare = tokenizer.backend_tokenizer
    bare.post_processor = None  # no special tokens: the empty string is empty
    tokenizer._tokenizer = bare
    probes = (Probe(""), *PROBES)
    assert prepare_probes(plan, probes, shipped=True) == PROBES
    with pytest.raises(RequestError, match=r"probe 0 \(''\) has no tokens"):
        prepare_probes(plan, probes, shipped=False)
