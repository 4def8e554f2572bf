"""The light runtime gives the parent's vectors, for any batch and any text, or says in words why not."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import POINTS, TEXTS
from forge import edit_manifest, hold, overwrite_values, reseal
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracle import Oracle
from parents import VOCABULARY

from matexport import Embedder, Sessions, load_family, pack_profile
from matexport.errors import FamilyError, RequestError
from matexport.runtime.batches import pack_batches, split_batches, split_windows
from matexport.runtime.engines.onnxruntime import open_checked, open_session
from matexport.runtime.inputs.text import Tokens, pad_rows
from matexport.runtime.inputs.tokenizer import load_tokenizer
from matexport.spec.inputs import PaddingSide
from matexport.spec.profile import Point

NAME = "L02-D032-fp32"
WEIGHTS = "weights.fp32.safetensors"
WORDS = "word_embeddings"
TOLERANCE = 2e-6


@pytest.fixture(scope="module")
def oracle(parent: Path) -> Oracle:
    return Oracle(parent)


@pytest.fixture(scope="module")
def embedder(exported: Path) -> Embedder:
    return Embedder(exported, NAME)


def expect(oracle: Oracle, layers: int, dim: int, pooling: str = "mean", unit: bool = True) -> NDArray[np.float32]:
    return np.stack([oracle.vector(text, layers, dim, pooling, unit) for text in TEXTS])


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.name)
def test_every_profile_gives_the_parents_vectors(point: Point, exported: Path, oracle: Oracle) -> None:
    vectors = Embedder(exported, f"{point.name}-fp32").embed(TEXTS, batch_budget=64)
    assert (vectors.dtype, vectors.shape) == (np.float32, (len(TEXTS), point.dim))
    np.testing.assert_allclose(vectors, expect(oracle, point.layers, point.dim), atol=TOLERANCE)


def test_the_comparison_sees_what_is_subtly_wrong(embedder: Embedder, oracle: Oracle) -> None:
    vectors = embedder.embed(TEXTS)
    wrong = {
        "a block less": expect(oracle, 1, 32),
        "a block more": expect(oracle, 3, 32),
        "another pooling": expect(oracle, 2, 32, "cls"),
        "not scaled": expect(oracle, 2, 32, unit=False),
        "the texts in another order": expect(oracle, 2, 32)[::-1],
    }
    for what, other in wrong.items():
        assert np.abs(vectors - other).max() > 1000 * TOLERANCE, what
    cut_after_scaling = np.abs(Embedder(embedder.family, "L02-D008-fp32").embed(TEXTS) - vectors[:, :8]).max()
    assert cut_after_scaling > 1000 * TOLERANCE


def test_left_padding_last_token_and_prompts(left_exported: Path, left_parent: Path) -> None:
    oracle = Oracle(left_parent, "norm")
    embedder = Embedder(left_exported, "L01-D016-fp32")
    plain = np.stack([oracle.vector(text, 1, 16, "lasttoken") for text in TEXTS])
    prompted = np.stack([oracle.vector(f"a red house {text}", 1, 16, "lasttoken") for text in TEXTS])
    np.testing.assert_allclose(embedder.embed(TEXTS, batch_budget=64), plain, atol=TOLERANCE)
    np.testing.assert_allclose(embedder.embed(TEXTS, prompt="query"), prompted, atol=TOLERANCE)


@pytest.mark.parametrize("batch_budget", [1, 20, 49, 96, 200, 100_000])
def test_the_order_is_kept_for_any_batch(batch_budget: int, embedder: Embedder, oracle: Oracle) -> None:
    vectors = embedder.embed(TEXTS, batch_budget=batch_budget)
    np.testing.assert_allclose(vectors, expect(oracle, 2, 32), atol=TOLERANCE)


def test_a_text_does_not_depend_on_its_batch(embedder: Embedder) -> None:
    alone = np.concatenate([embedder.embed([text]) for text in TEXTS])
    np.testing.assert_allclose(embedder.embed(TEXTS), alone, atol=1e-6)


def test_no_texts(embedder: Embedder) -> None:
    vectors = embedder.embed([])
    assert (vectors.dtype, vectors.shape) == (np.float32, (0, 32))


def test_an_empty_text_has_a_vector(embedder: Embedder, oracle: Oracle) -> None:
    np.testing.assert_allclose(embedder.embed([""])[0], oracle.vector("", 2, 32), atol=TOLERANCE)


@pytest.mark.parametrize("texts", ["one text", "", [b"bytes"], ["a", None], ["a", 1], [["a"]]], ids=repr)
def test_what_is_no_list_of_strings(texts: object, embedder: Embedder) -> None:
    with pytest.raises(RequestError, match=r"embed takes (strings; text [01] is|a list of texts; one string was)"):
        embedder.embed(texts)  # type: ignore[arg-type]


# Looking at the items uses an iterator up; nothing would be left to embed.
def test_an_iterator_is_not_silently_empty(embedder: Embedder) -> None:
    try:
        vectors = embedder.embed(iter(["a", "b"]))  # type: ignore[arg-type]
    except RequestError:
        return
    np.testing.assert_array_equal(vectors, embedder.embed(["a", "b"]))


# Lone surrogates: what Python makes of bytes that are no UTF-8. tokenizers raises TypeError for them.
@pytest.mark.parametrize("text", ["\ud800", "caf\udce9"], ids=ascii)
def test_text_that_is_no_unicode(text: str, embedder: Embedder) -> None:
    with pytest.raises(RequestError, match="text 1 "):
        embedder.embed(["a", text])


@pytest.mark.parametrize("text", ["a\0b", "\u2028", "\ufeff", "👩‍👩‍👧‍👦", "e\u0301", " ", "\n"], ids=ascii)
def test_text_that_is_odd(text: str, embedder: Embedder, oracle: Oracle) -> None:
    np.testing.assert_allclose(embedder.embed([text])[0], oracle.vector(text, 2, 32), atol=TOLERANCE)


def test_a_long_text_is_cut_as_the_parent_does(embedder: Embedder, oracle: Oracle) -> None:
    text = "snow " * 200
    (tokens,) = embedder.prepare([text])
    assert len(tokens.ids) == 48
    assert tokens.ids[-1] == VOCABULARY.index("[SEP]")
    np.testing.assert_allclose(embedder.embed([text])[0], oracle.vector(text, 2, 32), atol=TOLERANCE)
    np.testing.assert_array_equal(embedder.embed([text]), embedder.embed(["snow " * 46]))
    assert np.abs(embedder.embed([text]) - embedder.embed(["snow " * 45])).max() > TOLERANCE


def test_prompts(family: Path) -> None:
    plain = Embedder(family, NAME)
    edit_manifest(family, lambda data: data["text"].update(prompts={"query": "a red "}, default_prompt="query"))
    embedder = Embedder(family, NAME)
    prompted = plain.embed(["a red cat"])
    np.testing.assert_array_equal(embedder.embed(["cat"], prompt="query"), prompted)
    np.testing.assert_array_equal(embedder.embed(["cat"]), prompted)
    np.testing.assert_array_equal(embedder.embed(["cat"], prompt=""), plain.embed(["cat"]))
    with pytest.raises(RequestError, match="prompt 'passage' was asked; the parent's prompts are: query"):
        embedder.embed(["cat"], prompt="passage")
    with pytest.raises(RequestError, match="prompt 'query' was asked; the parent's prompts are: none"):
        plain.embed(["cat"], prompt="query")


def test_a_pack_gives_the_same_numbers(exported: Path, tmp_path: Path, embedder: Embedder) -> None:
    pack = pack_profile(exported, NAME, tmp_path / "pack")
    np.testing.assert_array_equal(Embedder(pack).embed(TEXTS), embedder.embed(TEXTS))


def test_a_family_may_be_given_in_three_ways(exported: Path, embedder: Embedder) -> None:
    for family in (exported, str(exported), load_family(exported)):
        assert Embedder(family, NAME).profile == embedder.profile


def test_a_profile_must_be_chosen_from_several(exported: Path) -> None:
    with pytest.raises(RequestError, match="has several profiles; choose one of L01-D008-fp32, L01-D032-fp32, "):
        Embedder(exported)


@pytest.mark.parametrize("name", ["L04-D032-fp32", "L02-D032", "l02-d032-fp32", ""])
def test_an_unknown_profile(name: str, exported: Path) -> None:
    with pytest.raises(FamilyError, match=f"profile {name!r} was asked; .* has L01-D008-fp32"):
        Embedder(exported, name)


@pytest.mark.parametrize("threads", [0, -1])
def test_no_threads(threads: int, exported: Path) -> None:
    with pytest.raises(RequestError, match=f"threads={threads} was asked; at least 1 is needed"):
        Embedder(exported, NAME, threads=threads)


@pytest.mark.parametrize("batch_budget", [0, -1])
def test_no_batch(batch_budget: int, embedder: Embedder) -> None:
    with pytest.raises(RequestError, match=f"batch_budget={batch_budget} was asked; at least 1 is needed"):
        embedder.embed(["a"], batch_budget=batch_budget)


@pytest.mark.parametrize(("threads", "expected"), [(1, 1), (3, 3), (None, 5)])
def test_threads_are_what_was_asked_or_the_cpus(
    threads: int | None, expected: int, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matexport.runtime.engines.onnxruntime.count_cpus", lambda: 5)
    options = open_session(exported / "L01-D008.fp32.onnx", threads=threads).get_session_options()
    assert options.intra_op_num_threads == expected
    assert options.inter_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_closes(exported: Path) -> None:
    with Embedder(exported, NAME) as embedder:
        assert embedder.embed(["a"]).shape == (1, 32)
    assert embedder._session is None


def test_opens_no_socket(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", lambda *_args, **_options: pytest.fail("a socket was opened"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: pytest.fail("a name was looked up"))
    assert Embedder(exported, NAME).embed(TEXTS).shape == (6, 32)


NOTE_TELEMETRY = """
import os, sys

class Note:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            print(os.environ.get("ORT_DISABLE_TELEMETRY"))

sys.meta_path.insert(0, Note())
{statement}
assert "onnxruntime" not in sys.modules, "it costs a tenth of a cold start, during which files are checked"
from matexport.runtime.engines.onnxruntime import load_runtime
load_runtime()
"""


@pytest.mark.parametrize(
    "statement",
    ["import matexport.runtime.embedder", "from matexport import Embedder", "import matexport.verify.judge"],
)
@pytest.mark.parametrize(("before", "expected"), [(None, "1"), ("0", "0")], ids=["by default", "as the user says"])
def test_telemetry_is_off_before_onnxruntime_is_imported(statement: str, before: str | None, expected: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    if before is not None:
        environment["ORT_DISABLE_TELEMETRY"] = before
    command = [sys.executable, "-c", NOTE_TELEMETRY.format(statement=statement)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.split() == [expected]


def test_a_vector_that_is_not_finite_names_its_text(family: Path) -> None:
    """Only the row of one word is broken, so only the text with that word is."""
    name = next(name for name in _tensor_names(family / WEIGHTS) if WORDS in name)
    row = np.zeros((VOCABULARY.index("dog") + 1, 32), np.float32)
    row[-1, 3] = np.nan
    overwrite_values(family / WEIGHTS, name, row)
    embedder = Embedder(hold(family), NAME)
    with pytest.raises(FamilyError, match=f"{NAME} gave a vector that is not finite for text 2"):
        embedder.embed(["a cat", "the house", "a dog", "the mat"])
    assert np.isfinite(embedder.embed(["a cat"])).all()


def test_a_text_without_tokens(family: Path) -> None:
    tokenizer = json.loads((family / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["post_processor"] = None  # nothing is put around the text
    (family / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    reseal(family)
    with pytest.raises(RequestError, match=r"text 1 \('  '\) has no tokens, so the parent has no vector for it"):
        Embedder(family, NAME).embed(["cat", "  "])


def test_what_the_tokenizer_file_says_of_padding_and_length_is_not_followed(family: Path, embedder: Embedder) -> None:
    """The manifest decides; a stored truncation would cut at another place than the parent."""
    tokenizer = json.loads((family / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["truncation"] = {"direction": "Left", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    tokenizer["padding"] = {"strategy": {"Fixed": 60}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
                            "pad_type_id": 0, "pad_token": "[PAD]"}  # fmt: skip
    (family / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    reseal(family)
    np.testing.assert_array_equal(Embedder(family, NAME).embed(TEXTS), embedder.embed(TEXTS))


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"version": "99"}'])
def test_what_is_no_tokenizer(content: bytes, family: Path) -> None:
    (family / "tokenizer.json").write_bytes(content)
    with pytest.raises(FamilyError, match=r"tokenizer\.json cannot be read: "):
        load_tokenizer((family / "tokenizer.json").read_bytes(), load_family(family).text)


def test_a_graph_that_onnxruntime_does_not_load(family: Path) -> None:
    graph = family / "L02-D032.fp32.onnx"
    model = onnx.load(graph, load_external_data=False)
    model.graph.node[-1].op_type = "Cast"  # without what to
    del model.graph.node[-1].input[1:]
    graph.write_bytes(model.SerializeToString())
    reseal(family)
    with pytest.raises(FamilyError, match=r"onnxruntime .* cannot load L02-D032\.fp32\.onnx: .*Cast"):
        Embedder(family, NAME)


def test_weights_that_are_too_short_are_not_read_past_their_end(family: Path) -> None:
    """Without the check, as `verify` calls it after its own: onnxruntime refuses too."""
    os.truncate(family / WEIGHTS, 70_000)
    assert Embedder(hold(family), "L01-D008-fp32").embed(["a"]).shape == (1, 8)
    with pytest.raises(FamilyError, match="cannot load"):
        Embedder(hold(family), NAME)


def test_the_folder_may_have_any_name(exported: Path, tmp_path: Path, embedder: Embedder) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "a 'b' é 猫 %20 $HOME"))
    np.testing.assert_array_equal(Embedder(folder, NAME).embed(TEXTS), embedder.embed(TEXTS))


def test_pad_rows() -> None:
    rows = [Tokens((5, 6, 7), (0, 0, 1)), Tokens((8,), (1,))]
    right = pad_rows(rows, PaddingSide.RIGHT, 9)
    assert right["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert right["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert right["token_type_ids"].tolist() == [[0, 0, 1], [1, 0, 0]]
    left = pad_rows(rows, PaddingSide.LEFT, 9)
    assert left["input_ids"].tolist() == [[5, 6, 7], [9, 9, 8]]
    assert left["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert left["token_type_ids"].tolist() == [[0, 0, 1], [0, 0, 1]]
    assert {array.dtype for array in (*right.values(), *left.values())} == {np.dtype(np.int64)}


def test_a_stream_gives_what_a_list_gives(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = embedder.embed(TEXTS * 4)
    monkeypatch.setattr("matexport.runtime.batches.WINDOW_ITEMS", 5)
    streamed = list(embedder.embed_iter(iter(TEXTS * 4), batch_budget=100))
    assert {vector.shape for vector in streamed} == {(32,)}
    np.testing.assert_allclose(np.stack(streamed), expected, atol=1e-6)
    assert list(embedder.embed_iter([])) == []
    with pytest.raises(RequestError, match="prompt 'query' was asked"):
        next(embedder.embed_iter(["a"], prompt="query"))


def test_a_stream_is_read_no_further_than_needed(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts without end: memory does not grow with them."""
    monkeypatch.setattr("matexport.runtime.batches.WINDOW_ITEMS", 10)
    taken = itertools.count()
    vectors = embedder.embed_iter(f"the cat {number}" for number in taken)
    given = [next(vectors) for _ in range(25)]
    assert len(given) == 25
    assert next(taken) <= 25 + 3 * 10


@pytest.mark.parametrize("place", [0, 4, 5, 13])
def test_a_stream_names_the_text_that_is_wrong_by_its_place(
    place: int, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matexport.runtime.batches.WINDOW_ITEMS", 5)
    for wrong in ("\ud800", None):
        texts: list[Any] = ["a"] * 14
        texts[place] = wrong
        with pytest.raises(RequestError, match=f"text {place} "):
            list(embedder.embed_iter(texts))


def test_two_threads_share_an_embedder(embedder: Embedder) -> None:
    expected = embedder.embed(TEXTS)
    with ThreadPoolExecutor(4) as pool:
        for vectors in pool.map(lambda _: embedder.embed(TEXTS, batch_budget=60), range(16)):
            np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_sessions_hold_several_profiles(exported: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(
        "matexport.runtime.embedder.open_checked",
        lambda contents, graph, *engine, **options: opened.append(graph) or open_checked(contents, graph),
    )
    sessions = Sessions(exported, threads=2)
    assert list(sessions) == [f"{point.name}-fp32" for point in POINTS]
    assert (len(sessions), opened) == (6, [])
    np.testing.assert_array_equal(sessions[NAME].embed(TEXTS), embedder.embed(TEXTS))
    assert sessions["L01-D008-fp32"].embed(TEXTS).shape == (6, 8)
    assert sessions[NAME] is sessions[NAME]
    assert opened == ["L02-D032.fp32.onnx", "L01-D008.fp32.onnx"]
    sessions.release(NAME)
    sessions.release(NAME)
    assert sessions[NAME].embed(["a"]).shape == (1, 32)
    assert len(opened) == 3
    assert "L09-D032-fp32" not in sessions
    with pytest.raises(FamilyError, match="profile 'L09-D032-fp32' was asked"):
        sessions["L09-D032-fp32"]


def test_sessions_check_a_profile_before_they_open_it(family: Path, no_session: None) -> None:
    sessions = Sessions(family)
    graph = family / "L02-D032.fp32.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"!")
    with pytest.raises(FamilyError, match=r"L02-D032\.fp32\.onnx"):
        sessions[NAME]


@given(lengths=st.lists(st.integers(1, 512), max_size=60), tokens=st.integers(1, 2048))
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], tokens: int) -> None:
    batches = pack_batches(lengths, tokens)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    longest = [max(lengths[index] for index in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    for batch, most in zip(batches, longest, strict=True):
        assert len(batch) == 1 or len(batch) * most <= tokens
    for batch, following in pairwise(batches):  # no room was left
        assert (len(batch) + 1) * lengths[batch[0]] > tokens
        assert min(lengths[index] for index in batch) >= lengths[following[0]]


@given(texts=st.lists(st.text(max_size=30), max_size=40), most=st.integers(1, 9), characters=st.integers(1, 60))
def test_windows_are_bounded(texts: list[str], most: int, characters: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matexport.runtime.batches.WINDOW_ITEMS", most)
        patch.setattr("matexport.runtime.batches.WINDOW_WEIGHT", characters)
        windows = list(split_windows(iter(texts), lambda text, _: len(text)))
    assert [text for window in windows for text in window] == texts
    for window in windows:
        assert 1 <= len(window) <= most
        assert len(window) == 1 or sum(map(len, window)) <= characters


@pytest.mark.parametrize(("count", "size", "lengths"), [(0, 3, []), (3, 3, [3]), (7, 3, [3, 3, 1]), (2, 100, [2])])
def test_split_batches(count: int, size: int, lengths: list[int]) -> None:
    batches = list(split_batches(count, size))
    assert [len(batch) for batch in batches] == lengths
    assert [index for batch in batches for index in batch] == list(range(count))


def _tensor_names(weights: Path) -> list[str]:
    from matexport.family.weights_file import read_header

    return [entry.name for entry in read_header(weights).entries]


def test_a_source_that_fails_costs_no_vector_before(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matexport.runtime.batches.WINDOW_ITEMS", 2)

    def read() -> Iterator[str]:
        yield from ["a cat", "a dog", "the mat"]
        raise OSError("the disk is gone")

    vectors = Embedder(exported, NAME).embed_iter(read())
    expected = Embedder(exported, NAME).embed(["a cat", "a dog"])
    np.testing.assert_allclose([next(vectors), next(vectors)], expected, atol=1e-6)
    with pytest.raises(OSError, match="the disk is gone"):
        next(vectors)


def test_a_vector_of_a_stream_keeps_no_others(exported: Path) -> None:
    vector = next(iter(Embedder(exported, NAME).embed_iter(TEXTS)))
    assert vector.base is None


def test_a_closed_embedder_says_so(exported: Path) -> None:
    embedder = Embedder(exported, NAME)
    embedder.close()
    with pytest.raises(RequestError, match=f"the embedder of {NAME} was closed"):
        embedder.embed(["a cat"])


def test_sessions_are_opened_once(exported: Path) -> None:
    sessions = Sessions(exported, threads=2)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: sessions[NAME], range(32)))
    assert len({id(embedder) for embedder in found}) == 1
