"""A family's tokenizer, as the tokenizers library reads it: bounded, cut at the parent's lengths, and not padding.

Of a parent that attends to padding, what pads a row is tokens as all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matexport.errors import FamilyError, RequestError, one_line
from matexport.family.guard.tokenizer import check_growth
from matexport.family.modality import TOKENIZER
from matexport.spec.inputs import TextFacts

if TYPE_CHECKING:
    import tokenizers
    from tokenizers import Tokenizer


class TextTokenizer:
    """A family's tokenizer; one more is made for each task with a limit of its own, when it is first asked for.

    The library keeps the limit inside of its tokenizer, where threads share it: so it is never changed here.

    Args:
        written: the content of the family's ``tokenizer.json``.

    Raises:
        FamilyError: it is no tokenizer that this version of tokenizers reads.
    """

    def __init__(self, written: str, text: TextFacts) -> None:
        self.text, self._written = text, written
        self._by_limit: dict[int, Tokenizer] = {}
        self._at(text.max_tokens)

    def encode(self, texts: Sequence[str], max_tokens: int) -> list[tokenizers.Encoding]:
        """One encoding per text; the fast kind, which leaves out where in the text a token stood."""
        return self._at(max_tokens).encode_batch_fast(texts, add_special_tokens=self.text.special_tokens)

    def spell(self, token: int) -> str | None:
        """A token id as text."""
        return self._at(self.text.max_tokens).id_to_token(token)

    def _at(self, max_tokens: int) -> Tokenizer:
        """From what was read, always: what the library would write takes as long as the largest id is large."""
        known = self._by_limit.get(max_tokens)
        if known is None:
            from tokenizers import Tokenizer

            try:
                known = Tokenizer.from_str(self._written)
            except Exception as error:  # tokenizers raises bare Exception
                raise FamilyError(f"{TOKENIZER} cannot be read: {one_line(error)}") from None
            known.no_padding()
            try:
                known.enable_truncation(max_tokens, direction=str(self.text.cuts))
                if self.text.full:
                    known.enable_padding(length=max_tokens, pad_id=self.text.pad_token_id)
            except Exception as error:
                raise FamilyError(f"{TOKENIZER} cannot cut at {max_tokens} tokens: {one_line(error)}") from None
            self._by_limit[max_tokens] = known
        return known


def load_tokenizer(content: bytes, text: TextFacts) -> TextTokenizer:
    """A family's tokenizer.

    Args:
        content: of the family's ``tokenizer.json``.

    Raises:
        FamilyError: it is no tokenizer that this version of tokenizers reads, or one that makes texts many times as
            long.
    """
    try:
        written = content.decode("utf-8")
    except UnicodeDecodeError:
        raise FamilyError(f"{TOKENIZER} cannot be read: not UTF-8 text") from None
    tokenizer = TextTokenizer(written, text)
    check_growth(TOKENIZER, content)
    return tokenizer


def encode(tokenizer: TextTokenizer, texts: Sequence[str], max_tokens: int, first: int) -> list[tokenizers.Encoding]:
    """As `TextTokenizer.encode`, naming the text that the library cannot take (such as a pattern that gives up).

    Args:
        first: what messages call the first of the texts.

    Raises:
        RequestError: a text cannot be tokenized.
    """
    try:
        return tokenizer.encode(texts, max_tokens)
    except BaseException as error:  # tokenizers raises bare Exception, and a panic of its own is not even that
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if len(texts) == 1:
            raise RequestError(f"text {first} ({texts[0][:40]!r}) cannot be tokenized: {one_line(error)}") from None
        return [encode(tokenizer, [text], max_tokens, index)[0] for index, text in enumerate(texts, first)]


def read_tokenizers_version() -> str:
    """Which version of tokenizers makes rows here."""
    import tokenizers

    return str(tokenizers.__version__)
