"""A family as a model of sentence-transformers gives the parent's own vectors, and refuses what it cannot give."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import TEXTS
from sentence_transformers import SentenceTransformer

import matexport
from matexport.adapters.sentence_transformers import load_model
from matexport.errors import RequestError

PROFILE = "L03-D032-fp32"


def test_it_encodes_as_the_parent_itself(exported: Path, parent: Path) -> None:
    """The oracle is the parent in torch, at full depth; a text past its limit and an empty one are among the texts."""
    model = load_model(exported, PROFILE)
    wanted = SentenceTransformer(str(parent), device="cpu").encode(
        [*TEXTS, ""], truncate_dim=32, normalize_embeddings=True
    )
    assert np.abs(model.encode([*TEXTS, ""]) - wanted).max() <= 1e-5
    assert np.abs(model.encode(TEXTS[0]) - wanted[0]).max() <= 1e-5
    assert model.get_embedding_dimension() == 32
    assert model.max_seq_length == matexport.load_family(exported).facts.text.max_tokens


def test_it_gives_the_point_that_was_asked_and_no_other(exported: Path) -> None:
    vectors = load_model(exported, "L01-D008-fp32").encode(TEXTS)
    assert np.array_equal(vectors, load_model(exported, "L01-D008-fp32").encode(TEXTS))
    for name, near in (("L01-D008-fp32", True), ("L02-D008-fp32", False), ("L03-D008-fp32", False)):
        wanted = matexport.Embedder(exported, name).embed(TEXTS)
        assert bool(np.abs(vectors - wanted).max() <= 1e-6) is near, name


def test_a_prompt_is_one_of_the_parents(exported: Path) -> None:
    model, facts = load_model(exported, PROFILE), matexport.load_family(exported).facts.text
    embedder = matexport.Embedder(exported, PROFILE)
    for name in facts.prompts:
        assert np.abs(model.encode(TEXTS, prompt_name=name) - embedder.embed(TEXTS, prompt=name)).max() <= 1e-6
    with pytest.raises(RequestError, match="the prompt 'no such: ' was asked; the parent has: "):
        model.encode(TEXTS, prompt="no such: ")


def test_queries_and_documents_are_read_as_the_parent_reads_them(exported: Path) -> None:
    model, embedder = load_model(exported, PROFILE), matexport.Embedder(exported, PROFILE)
    for encode, task in ((model.encode_query, "query"), (model.encode_document, "document")):
        assert np.abs(encode(TEXTS) - embedder.embed(TEXTS, task=task)).max() <= 1e-6, task


def test_it_reads_nothing_that_was_changed(family: Path) -> None:
    weights = family / "weights.fp32.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(matexport.MatexportError, match=r"weights\.fp32\.safetensors"):
        load_model(family, PROFILE)


def test_saving_it_is_refused(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"it is the files in .*: copy those"):
        load_model(exported, PROFILE).save_pretrained(str(tmp_path / "saved"))


def test_a_pack_needs_no_profile(exported: Path, tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    matexport.pack_profile(exported, PROFILE, pack)
    shutil.rmtree(pack / "measurements", ignore_errors=True)
    assert np.array_equal(load_model(pack).encode(TEXTS), load_model(exported, PROFILE).encode(TEXTS))
