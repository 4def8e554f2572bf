"""Find the tokens that are written in some Unicode scripts."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import regex

from matexport.errors import RequestError
from matexport.export.parents.vocabulary.model import (
    BYTE_SYMBOLS,
    CONTINUATION_BYTES,
    affixes,
    is_byte_level,
    read_vocab,
    spell_token,
)

SCRIPT_PREFIX = "script:"


def choose_by_script(data: Mapping[str, Any], request: str, special: set[int]) -> set[int]:
    """Ids of the tokens that can be part of a text in some scripts; digits, punctuation and marks belong to all.

    Args:
        data: the parent's ``tokenizer.json``.
        request: ``script:`` and names of Unicode scripts, separated by commas.
        special: ids of the special tokens, which are never chosen here.

    Raises:
        RequestError: a script is unknown, or no token has a character of one of the scripts.
    """
    codes = np.r_[:0xD800, 0xE000:0x110000]  # without the surrogates
    every = codes.astype("<u4").tobytes().decode("utf-32-le")
    classes = "".join(_read_scripts(request))
    own = _find_characters(classes, every)
    fits = _make_filter(own | _find_characters(r"\p{Script=Common}\p{Script=Inherited}", every), is_byte_level(data))
    prefix, suffix = affixes(data["model"])
    chosen: set[int] = set()
    found = False
    for token, token_id in read_vocab(data["model"]).items():
        if token_id not in special and fits(token.removeprefix(prefix).removesuffix(suffix)):
            chosen.add(token_id)
            found = found or not own.isdisjoint(spell_token(token, data))
    if not found:
        raise RequestError(
            f"vocabulary = {request!r} was asked; the parent has no token with a character of it: "
            "give a script that the parent was trained on, or a text file"
        )
    return chosen


def _read_scripts(request: str) -> Iterator[str]:
    """The character class of each script that is asked for, to be used inside a set of a regular expression."""
    for name in request.removeprefix(SCRIPT_PREFIX).split(","):
        pattern = rf"\p{{Script={name.strip()}}}"
        try:
            if not regex.fullmatch("[A-Za-z]+(?:[_ ][A-Za-z]+)*", name.strip()):
                raise regex.error("not a name")
            regex.compile(pattern)
        except regex.error as error:
            raise RequestError(
                f"vocabulary = {request!r} was asked; {name.strip()!r} is not a Unicode script: give names such as "
                "Latin, Cyrillic, Greek, Arabic, Hebrew, Devanagari, Thai, Han, Hiragana, Katakana, Hangul"
            ) from error
        yield pattern


def _find_characters(classes: str, every: str) -> set[str]:
    return set("".join(regex.findall(f"[{classes}]+", every)))


def _make_filter(allowed: set[str], byte_level: bool) -> Callable[[str], bool]:
    """A test of whether a token can be part of a text of the allowed characters.

    A token of a byte-level tokenizer may begin and end inside a character.
    """
    if not byte_level:
        return allowed.issuperset
    encoded = [character.encode() for character in allowed if not character.isascii()]
    heads = {code[:end] for code in encoded for end in range(1, len(code))}
    tails = {code[start:end] for code in encoded for start in range(1, len(code)) for end in range(start + 1, 5)}

    def fits(token: str) -> bool:
        if not BYTE_SYMBOLS.keys() >= set(token):
            return False
        raw = bytes(BYTE_SYMBOLS[symbol] for symbol in token)
        rest = raw.lstrip(CONTINUATION_BYTES)
        tail = raw[: len(raw) - len(rest)]
        decoder = getincrementaldecoder("utf-8")()
        try:
            whole = decoder.decode(rest)
        except UnicodeDecodeError:
            return False
        head = decoder.getstate()[0]
        return allowed.issuperset(whole) and (not tail or tail in tails) and (not head or head in heads)

    return fits
