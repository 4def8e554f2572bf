"""Tokenizers that make a text many times as long, which are refused; and those of parents, which do not."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from forge import reseal
from places import GOLDEN
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from matexport import Embedder, load_family
from matexport.errors import FamilyError
from matexport.family.guard.tokenizer import check_growth

NAME = "L01-D008-fp32"


def edit(family: Path, **parts: Any) -> Path:
    path = family / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | parts), encoding="utf-8")
    reseal(family)
    return family


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "schema1", tmp_path / "family"))


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def chain(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(parts)}


def map_of(*strings: str) -> dict[str, Any]:
    trie = b"\0" * 1024
    content = len(trie).to_bytes(4, "little") + trie + b"\0".join(map(str.encode, strings)) + b"\0"
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(content).decode()}


TWICE = replace({"String": "a"}, "aa")
DEEP: dict[str, Any] = TWICE
for _ in range(20):
    DEEP = chain(DEEP)

LONGER = {
    "doubles": (chain(*[TWICE] * 7), "makes up to 128 characters of one; 64 are allowed"),
    "doubles, and doubles inside": (chain(*[TWICE] * 4, chain(*[TWICE] * 4)), "makes up to 256 characters"),
    "at every place": (replace({"Regex": ""}, "x" * 64), "makes up to 65 characters"),
    "an empty string": (replace({"String": ""}, "x" * 64), "makes up to 65 characters"),
    "a map": (map_of("a", "b" * 65), "makes up to 65 characters"),
    "in vain": (chain(*[chain(*[TWICE] * 200)] * 200), "makes up to inf characters"),
    "nested": (DEEP, "normalizers inside of normalizers, more than 16 times"),
}


@pytest.mark.parametrize("case", LONGER)
def test_a_normalizer_that_makes_much_of_little_is_refused(case: str, small: Path, no_session: None) -> None:
    normalizer, words = LONGER[case]
    with pytest.raises(FamilyError, match=f"tokenizer.json: .*{words}"):
        Embedder(edit(small, normalizer=normalizer), NAME)


@pytest.mark.parametrize("times", [2, 1000])
def test_a_template_that_repeats_the_text_is_refused(times: int, small: Path, no_session: None) -> None:
    piece = {"Sequence": {"id": "A", "type_id": 0}}
    processor = {"type": "TemplateProcessing", "single": [piece] * times, "pair": [], "special_tokens": {}}
    with pytest.raises(FamilyError, match=f"its template has the text {times} times"):
        Embedder(edit(small, post_processor={"type": "Sequence", "processors": [processor]}), NAME)


def test_a_special_token_of_many_ids_is_refused(small: Path, no_session: None) -> None:
    """No limit of tokens cuts what a template adds."""
    token = {"id": "[CLS]", "ids": [2] * 257, "tokens": ["[CLS]"] * 257}
    single = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    processor = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {"[CLS]": token}}
    with pytest.raises(FamilyError, match="its template has the text 1 times, and 257 other tokens"):
        Embedder(edit(small, post_processor=processor), NAME)


@pytest.mark.parametrize("special", [{}, {"[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}])
def test_a_template_with_a_token_that_it_does_not_define_is_refused(
    special: dict[str, Any], small: Path, no_session: None, capfd: pytest.CaptureFixture[str]
) -> None:
    """The library would panic, and say so on standard error by itself."""
    single = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    processor = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": special}
    with pytest.raises(FamilyError, match=r"its template has the token '\[CLS\]', which it does not define"):
        Embedder(edit(small, post_processor=processor), NAME)
    assert "panicked" not in capfd.readouterr().err


def test_words_without_end_are_not_taken_apart(small: Path, no_session: None) -> None:
    model = json.loads((small / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    with pytest.raises(FamilyError, match="takes words of 1000000000 characters apart; up to 1000 are allowed"):
        Embedder(edit(small, model=model | {"max_input_chars_per_word": 10**9}), NAME)


def test_an_id_beyond_all_is_not_counted_up_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library writes a tokenizer by counting to its largest id. No id is in this one's texts."""
    family = Path(shutil.copytree(GOLDEN / "schema4", tmp_path / "family"))
    model = json.loads((family / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    edit(family, model=model | {"vocab": model["vocab"] | {"cat": 1 << 30}})
    with Embedder(family, "L01-D020-fp32") as embedder:
        rows = embedder.prepare(["a dog in the snow on the mat and in the house " * 9], task="query")
    assert [len(row.ids) for row in rows] == [load_family(family).facts.text.tasks["query"].max_tokens]


def test_what_parents_have_is_not() -> None:
    """As the tokenizers library writes them: BERT, T5 and Llama by their parts."""
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2}, unk_token="[UNK]"))
    for normalizer in (
        normalizers.BertNormalizer(),
        normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " "), normalizers.Lowercase()]),
        normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]),
        normalizers.Sequence([normalizers.Replace("``", '"'), normalizers.Replace("''", '"'), normalizers.NFKD()]),
    ):
        tokenizer.normalizer = normalizer
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
        check_growth("tokenizer.json", tokenizer.to_str().encode())
    check_growth("tokenizer.json", json.dumps({"normalizer": map_of("a" * 18), "post_processor": None}).encode())
    check_growth("tokenizer.json", b"{}")


def test_the_growth_is_what_the_library_makes() -> None:
    """The bound is no smaller than what happens."""
    text = "banana a"
    for part, made in (
        (normalizers.Replace("a", "xyz"), 3.0),
        (normalizers.Replace("an", "xyzw"), 2.0),
        (normalizers.Replace(Regex("a|b"), "xy"), 3.0),
    ):
        assert len(part.normalize_str(text)) <= made * len(text)
