"""How much longer a tokenizer can make a text: replacements one after the other multiply, and templates repeat.

Of the normalizers of the tokenizers library, ``Replace`` and ``Precompiled`` (a map of SentencePiece) make as much of a
text as they say; the Unicode forms make at most 18 characters of one (https://unicode.org/faq/normalization.html), and
the others add a constant. Of its post-processors, ``TemplateProcessing`` puts the text where its template says, as
often as that says it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from matexport.errors import refuse_file

#: Characters that may become of one. Those of parents make one of one, or one of several; SentencePiece's maps 18.
MAX_GROWTH = 64

#: Of normalizers inside of normalizers.
MAX_DEPTH = 16

#: Tokens that a template puts beside the text, which stands in it once.
MAX_PIECES = 256

#: Characters of a word that WordPiece looks for pieces of, in a time that grows with their cube; BERT has 100.
MAX_WORD = 1000


class _Model(msgspec.Struct):
    """Of the model, not its vocabulary, which would take as long as all the rest."""

    max_input_chars_per_word: Any = None


class _Document(msgspec.Struct):
    """The parts of tokenizer.json that are looked at; the rest is skipped."""

    normalizer: Any = None
    post_processor: Any = None
    model: _Model | None = None


def check_growth(name: str, content: bytes) -> None:
    """Refuse a tokenizer that could make a text many times as long.

    Args:
        name: of the file.
        content: ``tokenizer.json``, as the tokenizers library reads it.

    Raises:
        FamilyError: its normalizer makes more than `MAX_GROWTH` characters of one, its template has the text more than
            once, more than `MAX_PIECES` other tokens or one that it does not define, one of both is nested without
            end, or it looks for pieces of words that are longer than `MAX_WORD`.
    """
    try:
        document = msgspec.json.decode(content, type=_Document)
        growth = 1.0
        for part in _walk(document.normalizer, "normalizers", MAX_DEPTH):
            if measure := _GROWING.get(str(part.get("type"))):
                growth *= max(1.0, measure(part))
        processors = list(_walk(document.post_processor, "processors", MAX_DEPTH))
        longest = document.model and document.model.max_input_chars_per_word
    except (msgspec.DecodeError, RecursionError) as error:
        raise refuse_file(name, f"not a tokenizer: {error}") from None
    if growth > MAX_GROWTH:
        raise refuse_file(name, f"its normalizer makes up to {growth:.3g} characters of one; {MAX_GROWTH} are allowed")
    if unknown := next(filter(None, map(_find_undefined, processors)), None):
        raise refuse_file(name, f"its template has the token {unknown!r}, which it does not define")
    texts, tokens = map(sum, zip((0, 0), *map(_count_pieces, processors), strict=True))
    if tokens > MAX_PIECES or texts > 1:
        raise refuse_file(name, f"its template has the text {texts} times, and {tokens} other tokens")
    if isinstance(longest, int | float) and longest > MAX_WORD:
        raise refuse_file(name, f"it takes words of {longest} characters apart; up to {MAX_WORD} are allowed")


def _find_undefined(processor: dict[str, Any]) -> str | None:
    """A token of a template that it says no ids for: the library ends in a panic of its own when it comes to it."""
    template, special = processor.get("single"), processor.get("special_tokens")
    for piece in template if isinstance(template, list) else ():
        token = piece.get("SpecialToken") if isinstance(piece, dict) else None
        if isinstance(token, dict) and str(token.get("id")) not in (special if isinstance(special, dict) else {}):
            return str(token.get("id"))
    return None


def _count_pieces(processor: dict[str, Any]) -> tuple[int, int]:
    """How often a template has the text, and how many tokens beside it."""
    template, special = processor.get("single"), processor.get("special_tokens")
    texts = tokens = 0
    for piece in template if isinstance(template, list) else ():
        if not isinstance(piece, dict):
            continue
        if "Sequence" in piece:
            texts += 1
            continue
        token = piece.get("SpecialToken")
        found = special.get(str(token.get("id"))) if isinstance(token, dict) and isinstance(special, dict) else None
        ids = found.get("ids") if isinstance(found, dict) else None
        tokens += len(ids) if isinstance(ids, list) else 1
    return texts, tokens


def _walk(part: Any, inner: str, depth: int) -> Iterator[dict[str, Any]]:
    """A part and those that it holds under the key `inner`."""
    if not isinstance(part, dict):
        return
    if depth == 0:
        raise RecursionError(f"{inner} inside of {inner}, more than {MAX_DEPTH} times")
    yield part
    parts = part.get(inner)
    for one in parts if isinstance(parts, list) else ():
        yield from _walk(one, inner, depth - 1)


def _measure_replacement(part: dict[str, Any]) -> float:
    """Of a string, each of its occurrences becomes the content; an expression may match between any two characters."""
    pattern, content = part.get("pattern"), part.get("content")
    found = pattern.get("String") if isinstance(pattern, dict) else None
    length = len(content) if isinstance(content, str) else 0
    return length / len(found) if isinstance(found, str) and found else 1.0 + length


def _measure_map(part: dict[str, Any]) -> float:
    """The longest of the strings that a map of SentencePiece has: they follow the trie, whose size comes first."""
    try:
        content = base64.b64decode(part.get("precompiled_charsmap") or b"")
    except (binascii.Error, TypeError, ValueError):
        return 1.0  # which the tokenizers library refuses
    strings = content[4 + int.from_bytes(content[:4], "little") :].split(b"\0")
    return float(max(len(string.decode("utf-8", "replace")) for string in strings))


_GROWING: dict[str, Callable[[dict[str, Any]], float]] = {"Replace": _measure_replacement, "Precompiled": _measure_map}
