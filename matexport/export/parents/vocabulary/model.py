"""What a tokenizer's vocabulary is made of: pieces, merges, special tokens, byte symbols.

And `PrunedVocabulary`: what is left of one, with the new ids.
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
    """Which tokens stay, and the tokenizer that knows only those.

    Attributes:
        tokenizer_json: for `tokenizers.Tokenizer.from_str`.
        kept: the parent's ids in the new order: new id ``i`` is the parent's ``kept[i]``. Ascending, but that added
            tokens which the model itself does not have come last, as the library numbers them.
        kept_by: the request; of a file only its name.
        parent_tokens: size of the parent's vocabulary.
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
    """The tokenizer of a ``tokenizer.json``, neither padding nor cutting."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def read_vocab(model: Mapping[str, Any]) -> dict[str, int]:
    """Token -> id of the model proper, added tokens outside it left out."""
    if model["type"] == "Unigram":
        return {piece: index for index, (piece, _score) in enumerate(model["vocab"])}
    return dict(model["vocab"])


# What must stay


def find_special(data: Mapping[str, Any], parent: Tokenizer) -> set[int]:
    """Ids of the added tokens, and of those that something names: the post-processor, the padding, the model."""
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
    """Id of the token that stands for what the model does not know; None where it has none."""
    model = data["model"]
    named: int | None = model.get("unk_id")  # only Unigram has a number
    return named if model["type"] == "Unigram" else parent.token_to_id(model.get("unk_token") or "")


def affixes(model: Mapping[str, Any]) -> tuple[str, str]:
    """What the model puts before a piece that continues a word, and after one that ends it; mostly nothing."""
    return model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""


def decorate(characters: Iterable[str], model: Mapping[str, Any]) -> set[str]:
    """The forms in which single characters may be in the vocabulary."""
    prefix, suffix = affixes(model)
    return {
        head + character + tail for character in characters for head in {"", prefix} for tail in {"", suffix}
    }  # fmt: skip


def read_merge(entry: str | Sequence[str]) -> Sequence[str]:
    """The two symbols of a BPE merge, in either spelling: ``"a b"`` or ``["a", "b"]``."""
    return entry.split(" ") if isinstance(entry, str) else entry


def is_byte_level(data: Mapping[str, Any]) -> bool:
    """Whether the model is given bytes, each written as one of 256 characters."""
    return any('"type": "ByteLevel"' in json.dumps(data.get(part)) for part in ("normalizer", "pre_tokenizer"))


def _list_byte_symbols() -> dict[str, int]:
    """The character for each byte: itself where it is visible in Latin-1, otherwise the next one from U+0100 on.

    GPT-2's table (Radford et al., 2019), which every byte-level tokenizer has taken over.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + index): byte for index, byte in enumerate(hidden)}


BYTE_SYMBOLS = _list_byte_symbols()
CONTINUATION_BYTES = bytes(range(0x80, 0xC0))


def spell_token(token: str, data: Mapping[str, Any]) -> str:
    """What a token stands for in a text, without characters that it has only a part of."""
    prefix, suffix = affixes(data["model"])
    bare = token.removeprefix(prefix).removesuffix(suffix)
    if not is_byte_level(data):
        return bare.replace("▁", " ")
    return bytes(BYTE_SYMBOLS[symbol] for symbol in bare if symbol in BYTE_SYMBOLS).decode(errors="ignore")


def renumber_processor(part: Any, renumber: Callable[[int], int]) -> Any:
    """A post-processor with every token id replaced."""
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
    """The kept tokens as texts, in batches; first nothing, which is framed only."""
    yield [""]
    texts = [spell_token(token, data) for token, token_id in read_vocab(data["model"]).items() if token_id in kept]
    for start in range(0, len(texts), BATCH_TEXTS):
        yield texts[start : start + BATCH_TEXTS]
