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


def test_what_is_saved_is_loaded_again(exported: Path, tmp_path: Path) -> None:
    """By us, and by sentence-transformers itself; its files and ours do not lie in each other's way."""
    model = load_model(exported, PROFILE)
    model.max_seq_length = 6
    wanted = model.encode(TEXTS)
    for _ in range(2):  # over what was saved before
        model.save_pretrained(str(tmp_path / "saved"))
    assert matexport.verify_family(tmp_path / "saved" / "0_OnnxFamily" / "pack").passed
    ours = load_model(tmp_path / "saved", threads=1)
    theirs = SentenceTransformer(str(tmp_path / "saved"), device="cpu", trust_remote_code=True)
    for again in (ours, theirs):
        assert np.array_equal(again.encode(TEXTS), wanted)
        assert again.max_seq_length == 6
        assert again.prompts == model.prompts
        assert again.default_prompt_name == model.default_prompt_name
    with pytest.raises(ValueError, match="trust_remote_code"):
        SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    weights = tmp_path / "saved" / "0_OnnxFamily" / "pack" / "weights.fp32.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(matexport.MatexportError, match=r"weights\.fp32\.safetensors"):
        load_model(tmp_path / "saved")


def test_texts_may_be_cut_sooner(exported: Path, parent: Path) -> None:
    """As the parent in torch does with the same length; later than the parent they may not."""
    model, torch_model = load_model(exported, PROFILE), SentenceTransformer(str(parent), device="cpu")
    limit, texts = model.max_seq_length, [*TEXTS, " ".join(["the red cat sits on a mat"] * 20)]
    whole = model.encode(texts)
    model.max_seq_length = torch_model.max_seq_length = 5
    wanted = torch_model.encode(texts, truncate_dim=32, normalize_embeddings=True)
    assert np.abs(model.encode(texts) - wanted).max() <= 1e-5
    assert np.abs(model.encode(texts) - whole).max() > 1e-3
    assert model.max_seq_length == model.tokenizer.model_max_length == 5
    for asked in (limit + 1, 0, -1, 2.5, "7"):
        with pytest.raises(RequestError, match=rf"max_seq_length={asked} was asked; the parent takes 1 to {limit} tok"):
            model.max_seq_length = asked
    assert model.max_seq_length == 5
    model.max_seq_length = None
    assert np.array_equal(model.encode(texts), whole)


def test_its_tokenizer_is_the_parents(exported: Path, parent: Path) -> None:
    from transformers import AutoTokenizer

    ours, theirs = load_model(exported, PROFILE).tokenizer, AutoTokenizer.from_pretrained(parent)
    limit = matexport.load_family(exported).facts.text.max_tokens
    texts = [*TEXTS, "", " ".join(["the red cat sits on a mat"] * 20)]
    given, wanted = (
        ours(texts, padding=True, truncation=True),
        theirs(texts, padding=True, truncation=True, max_length=limit),
    )
    assert given["input_ids"] == wanted["input_ids"]
    assert given["attention_mask"] == wanted["attention_mask"]
    assert (ours.model_max_length, ours.pad_token_id) == (limit, theirs.pad_token_id)
    assert ours.decode(given["input_ids"][0]) == theirs.decode(wanted["input_ids"][0])


def test_a_pack_needs_no_profile(exported: Path, tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    matexport.pack_profile(exported, PROFILE, pack)
    shutil.rmtree(pack / "measurements", ignore_errors=True)
    assert np.array_equal(load_model(pack).encode(TEXTS), load_model(exported, PROFILE).encode(TEXTS))
