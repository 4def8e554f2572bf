"""What a tokenizer's vocabulary is made of: pieces, merges, special tokens, byte symbols.

`PrunedVocabulary` describes a pruned one: the tokens that are left, with their new ids.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

BATCH_TEXTS = 1024


@dataclass(frozen=True)
class PrunedVocabulary:
    """The tokens that stay, and the tokenizer that has only those.

    Attributes:
        tokenizer_json: text for `tokenizers.Tokenizer.from_str`.
        kept: the parent's ids in the new order: new id ``i`` is the parent's ``kept[i]``. Ascending, except that added
            tokens that the model itself does not have come last, as the library numbers them.
        kept_by: the request, or the file's name where a file was given.
        parent_tokens: number of tokens of the parent's vocabulary.
    """

    tokenizer_json: str
    kept: tuple[int, ...]
    kept_by: str
    parent_tokens: int

    @property
    def new_ids(self) -> dict[int, int]:
        """The parent's id -> new id, in the order of the new ids."""
        return {old: new for new, old in enumerate(self.kept)}


def load_tokenizer(tokenizer_json: str) -> Tokenizer:
    """The tokenizer of the text of a ``tokenizer.json``, without padding and truncation."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def read_vocab(model: Mapping[str, Any]) -> dict[str, int]:
    """Token -> id in the vocabulary of a tokenizer's model, without added tokens that the model does not have."""
    if model["type"] == "Unigram":
        return {piece: index for index, (piece, _score) in enumerate(model["vocab"])}
    return dict(model["vocab"])


# What must stay


def find_special(data: Mapping[str, Any], parent: Tokenizer) -> set[int]:
    """Ids of the added tokens, and of the tokens that the post-processor, the padding or the model refer to.

    Args:
        data: the parent's ``tokenizer.json``, as in the other functions here.
    """
    found = set(parent.get_added_tokens_decoder())

    def note(token_id: int) -> int:
        found.add(token_id)
        return token_id

    renumber_processor(data.get("post_processor"), note)
    if data.get("padding"):
        found.add(data["padding"]["pad_id"])
    unknown = find_unknown(data, parent)
    return found if unknown is None else found | {unknown}


def find_unknown(data: Mapping[str, Any], parent: Tokenizer) -> int | None:
    """Id of the unknown token; None where the model has none."""
    model = data["model"]
    named: int | None = model.get("unk_id")  # only Unigram has a number
    return named if model["type"] == "Unigram" else parent.token_to_id(model.get("unk_token") or "")


def affixes(model: Mapping[str, Any]) -> tuple[str, str]:
    """The prefix of pieces that continue a word, and the suffix of pieces that end a word; often empty.

    Args:
        model: the ``model`` of a ``tokenizer.json``, as in the other functions here.
    """
    return model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""


def decorate(characters: Iterable[str], model: Mapping[str, Any]) -> set[str]:
    """All forms in which single characters may be in the vocabulary: with and without the model's prefix and suffix."""
    prefix, suffix = affixes(model)
    return {
        head + character + tail for character in characters for head in {"", prefix} for tail in {"", suffix}
    }  # fmt: skip


def read_merge(entry: str | Sequence[str]) -> Sequence[str]:
    """The two symbols of a BPE merge, which is spelt ``"a b"`` or ``["a", "b"]``."""
    return entry.split(" ") if isinstance(entry, str) else entry


def is_byte_level(data: Mapping[str, Any]) -> bool:
    """Whether the model is given bytes, each as one of the 256 characters of `BYTE_SYMBOLS`."""
    return any('"type": "ByteLevel"' in json.dumps(data.get(part)) for part in ("normalizer", "pre_tokenizer"))


def _list_byte_symbols() -> dict[str, int]:
    """Character -> the byte that it stands for: of the same number where visible in Latin-1, else from U+0100 on.

    This is GPT-2's table (Radford et al., 2019), which all byte-level tokenizers use.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + index): byte for index, byte in enumerate(hidden)}


BYTE_SYMBOLS = _list_byte_symbols()
CONTINUATION_BYTES = bytes(range(0x80, 0xC0))


def spell_token(token: str, data: Mapping[str, Any]) -> str:
    """The text that a token stands for, without characters of which it has only some bytes."""
    prefix, suffix = affixes(data["model"])
    bare = token.removeprefix(prefix).removesuffix(suffix)
    if not is_byte_level(data):
        return bare.replace("▁", " ")
    return bytes(BYTE_SYMBOLS[symbol] for symbol in bare if symbol in BYTE_SYMBOLS).decode(errors="ignore")


def renumber_processor(part: Any, renumber: Callable[[int], int]) -> Any:
    """A copy of a post-processor with every token id replaced.

    Args:
        part: the ``post_processor`` of a ``tokenizer.json``, or a part of one; may be None.
        renumber: gives the new id of an old one.
    """
    match part and part["type"]:
        case "Sequence":
            return part | {"processors": [renumber_processor(inner, renumber) for inner in part["processors"]]}
        case "TemplateProcessing":
            tokens = part["special_tokens"].items()
            return part | {
                "special_tokens": {key: token | {"ids": list(map(renumber, token["ids"]))} for key, token in tokens}
            }
        case "BertProcessing" | "RobertaProcessing":
            return part | {end: [part[end][0], renumber(part[end][1])] for end in ("sep", "cls")}
    return part


def spell_tokens(data: Mapping[str, Any], kept: set[int]) -> Iterator[list[str]]:
    """The kept tokens as texts, in batches. The first batch is an empty text, which has special tokens only."""
    yield [""]
    texts = [spell_token(token, data) for token, token_id in read_vocab(data["model"]).items() if token_id in kept]
    for start in range(0, len(texts), BATCH_TEXTS):
        yield texts[start : start + BATCH_TEXTS]
