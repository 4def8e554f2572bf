"""Texts -> token rows -> the arrays that a graph takes. The tokenizer is the parent's, cut at the parent's length."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from matexport.errors import FamilyError, RequestError
from matexport.manifest import TOKENIZER
from matexport.spec import PaddingSide, Record, TextFacts

if TYPE_CHECKING:
    import numpy as np
    import tokenizers
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

Feeds: TypeAlias = "dict[str, NDArray[np.int64]]"


class Tokens(Record, frozen=True):
    """One text as the graph takes it: ids and segment ids, without padding."""

    ids: Sequence[int]
    type_ids: Sequence[int]

    @classmethod
    def of(cls, encoding: tokenizers.Encoding) -> Tokens:
        return cls(encoding.ids, encoding.type_ids)


def tokenize_texts(
    tokenizer: Tokenizer, text: TextFacts, texts: Sequence[str], prompt: str | None = None, *, first: int = 0
) -> list[Tokens]:
    """`Embedder.tokenize` without a session.

    Args:
        first: what messages call the first of the texts.
    """
    prefix = find_prompt(text, prompt)
    for index, item in enumerate(texts, first):
        try:
            item.encode()
        except UnicodeEncodeError:
            raise RequestError(f"text {index} ({item[:40]!a}) is not Unicode text") from None
    # The fast one leaves out where in the text a token stood, which no graph asks for.
    rows = [Tokens.of(encoding) for encoding in tokenizer.encode_batch_fast([prefix + item for item in texts])]
    empty = next((index for index, row in enumerate(rows) if not row.ids), None)
    if empty is not None:
        raise RequestError(
            f"text {first + empty} ({texts[empty][:40]!r}) has no tokens, so the parent has no vector for it"
        )
    return rows


def find_prompt(text: TextFacts, name: str | None) -> str:
    """What a prompt puts before each text; the default one for None, nothing for ``""``.

    Raises:
        RequestError: the parent has no prompt of that name.
    """
    if name is None:
        name = text.default_prompt or ""
    if name == "":
        return ""
    if name not in text.prompts:
        known = ", ".join(text.prompts) or "none"
        raise RequestError(f"prompt {name!r} was asked; the parent's prompts are: {known}")
    return text.prompts[name]


def pad_rows(rows: Sequence[Tokens], side: PaddingSide, pad_token_id: int) -> Feeds:
    """Token rows as (len(rows), longest) int64 arrays: ``input_ids``, ``attention_mask``, ``token_type_ids``."""
    import numpy as np

    if len(rows) == 1:  # nothing to pad: what a search box asks for
        ids, type_ids = (np.array([part], dtype=np.int64) for part in (rows[0].ids, rows[0].type_ids))
        return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": type_ids}
    lengths = np.array([len(row.ids) for row in rows])
    places = np.arange(lengths.max())
    if side is PaddingSide.LEFT:
        places = places[::-1]
    attended = places < lengths[:, None]
    ids = np.full(attended.shape, pad_token_id, dtype=np.int64)
    ids[attended] = list(chain.from_iterable(row.ids for row in rows))
    type_ids = np.zeros(attended.shape, dtype=np.int64)
    type_ids[attended] = list(chain.from_iterable(row.type_ids for row in rows))
    return {"input_ids": ids, "attention_mask": attended.astype(np.int64), "token_type_ids": type_ids}


def load_tokenizer(folder: Path, text: TextFacts) -> Tokenizer:
    """The tokenizer in a family's folder, cutting at the parent's length and not padding.

    Raises:
        FamilyError: the file is no tokenizer that this version of tokenizers reads.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str((folder / TOKENIZER).read_text(encoding="utf-8"))
    except Exception as error:  # tokenizers raises bare Exception
        raise FamilyError(f"{folder / TOKENIZER} cannot be read: {error}") from None
    tokenizer.no_padding()
    try:
        tokenizer.enable_truncation(text.max_tokens)
    except Exception as error:
        raise FamilyError(f"{folder / TOKENIZER} cannot cut at {text.max_tokens} tokens: {error}") from None
    return tokenizer


def read_tokenizers_version() -> str:
    """Which version of tokenizers makes rows here."""
    import tokenizers

    return str(tokenizers.__version__)
