"""Find the tokens that a pruned vocabulary keeps for every request, and those that BPE merges kept tokens from."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from matexport.export.parents.vocabulary.model import (
    BYTE_SYMBOLS,
    affixes,
    decorate,
    is_byte_level,
    read_merge,
    read_vocab,
)

#: Tokens up to the last special token whose id is below this are all kept, so that their ids stay the same.
LOW_IDS = 16


def find_needed(data: Mapping[str, Any], special: set[int]) -> set[int]:
    """Ids of the tokens without which the tokenizer's model, or a user of the tokenizer, would not work as before.

    Args:
        data: the parent's ``tokenizer.json``.
        special: ids of its special tokens (`model.find_special`).
    """
    model, vocab = data["model"], read_vocab(data["model"])
    tokens: set[str] = set()
    if is_byte_level(data):
        tokens |= decorate(BYTE_SYMBOLS, model)
    if model.get("byte_fallback"):
        tokens |= {f"<0x{byte:02X}>" for byte in range(256)}
    needed = {vocab[token] for token in tokens & vocab.keys()}
    if model["type"] == "Unigram":
        needed.add(min(range(len(model["vocab"])), key=lambda index: float(model["vocab"][index][1])))
    low = max((token_id for token_id in special if token_id < LOW_IDS), default=-1)
    return needed | {token_id for token_id in vocab.values() if token_id <= low}


def find_ingredients(kept: set[int], model: Mapping[str, Any]) -> set[int]:
    """Ids of all tokens that BPE makes on its way from single characters to the kept tokens.

    Args:
        kept: ids of the kept tokens.
        model: the ``model`` of the parent's ``tokenizer.json``, of type BPE.
    """
    vocab = read_vocab(model)
    prefix, suffix = affixes(model)
    ranks = {tuple(read_merge(entry)): rank for rank, entry in enumerate(model["merges"])}
    found: set[str] = set()
    for token in [token for token, token_id in vocab.items() if token_id in kept]:
        for symbols in _spell_symbols(token, prefix, suffix):
            made = [*symbols]
            while len(symbols) > 1:
                rank, at = min((ranks.get(pair, len(ranks)), at) for at, pair in enumerate(itertools.pairwise(symbols)))
                if rank == len(ranks):
                    break
                symbols[at : at + 2] = [symbols[at] + symbols[at + 1][len(prefix) :]]
                made.append(symbols[at])
            if symbols == [token]:  # otherwise no merges give this token, and it only stands for whole words
                found.update(made)
    return {vocab[token] for token in found & vocab.keys()}


def _spell_symbols(token: str, prefix: str, suffix: str) -> Iterator[list[str]]:
    """The lists of symbols that BPE may build a token from: it may begin a word, end it, do both, or neither."""
    for head, tail in itertools.product({"", prefix}, {"", suffix}):
        core = token[len(head) : len(token) - len(tail)]
        if core and token == head + core + tail:
            symbols = [head + core[0], *(prefix + character for character in core[1:])]
            symbols[-1] += tail
            yield symbols
