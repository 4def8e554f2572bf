"""Find the tokens that the texts of a corpus need to be tokenized as before."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from matexport.errors import RequestError
from matexport.export.parents.vocabulary.check import tokenize
from matexport.export.parents.vocabulary.model import BATCH_TEXTS, decorate, find_unknown, load_tokenizer, read_vocab
from matexport.io.reading import MAX_TEXT_CHARACTERS, read_lines

#: A larger corpus would take hours, and add hardly any token.
MAX_CORPUS_BYTES = 1 << 30


def read_corpus(path: Path, request: str) -> Iterator[list[str]]:
    """The texts of a file, one per line, in batches; blank lines are left out.

    Args:
        request: what the user asked for, for messages.

    Raises:
        RequestError: the file cannot be read, is too large (also when it is unpacked), is not UTF-8, has a line that is
            too long, or has no text.
    """
    asked = f"vocabulary = {request!r} was asked; {path}"
    wanted = 'give a UTF-8 text file with one text per line, or scripts such as "script:Latin,Cyrillic"'
    batch: list[str] = []
    texts = characters = total = 0
    try:
        if not path.is_file():
            raise RequestError(f"{asked} is not a file: {wanted}")
        if path.stat().st_size > MAX_CORPUS_BYTES:
            raise RequestError(
                f"{asked} has {path.stat().st_size} bytes, and at most {MAX_CORPUS_BYTES} are read: give a sample of it"
            )
        for line in read_lines(path, asked):
            if not line.strip():
                continue
            texts, characters, total = texts + 1, characters + len(line), total + len(line)
            if total > MAX_CORPUS_BYTES:  # of a file that is packed
                raise RequestError(f"{asked} has more than {MAX_CORPUS_BYTES} characters: give a sample of it")
            batch.append(line.rstrip("\r\n"))
            if len(batch) == BATCH_TEXTS or characters > MAX_TEXT_CHARACTERS:
                yield batch
                batch, characters = [], 0
    except OSError as error:
        raise RequestError(f"{asked} cannot be read ({error.strerror}): {wanted}") from error
    if not texts:
        raise RequestError(f"{asked} holds no text: {wanted}")
    yield batch


def find_used(data: Mapping[str, Any], parent: Tokenizer, batches: Iterable[Sequence[str]]) -> set[int]:
    """Ids of the tokens of some texts, of their single characters, and of the pieces before an unknown part of a word.

    Args:
        data: the parent's ``tokenizer.json``.
    """
    model, vocab = data["model"], read_vocab(data["model"])
    if model["type"] == "WordLevel":
        return {token_id for texts in batches for ids in tokenize(parent, texts) for token_id in ids}
    splitter = _make_splitter(data)
    unknown = find_unknown(data, parent)
    used: set[int] = set()
    characters: set[str] = set()
    for texts in batches:
        for ids, split in zip(tokenize(parent, texts), splitter.encode_batch(list(texts)), strict=True):
            used.update(ids)
            words = [word for word, word_id in zip(split.tokens, split.ids, strict=True) if word_id == 0]
            characters.update(*words)
            if model["type"] == "WordPiece" and unknown in ids:
                used.update(token_id for word in words for token_id in _walk_word(word, model, vocab))
    return used | {vocab[token] for token in decorate(characters, model) & vocab.keys()}


def _make_splitter(data: Mapping[str, Any]) -> Tokenizer:
    """A tokenizer whose tokens are the words that the parent's model is given, after normalization.

    Its model is a Unigram model whose only piece is a noncharacter, so that each word is one unknown token with id 0.
    """
    model = {"type": "Unigram", "unk_id": 0, "vocab": [["\U0010ffff", 0.0]], "byte_fallback": False}
    added = [token | {"id": index} for index, token in enumerate(data["added_tokens"], start=1)]
    return load_tokenizer(json.dumps({**data, "model": model, "added_tokens": added, "post_processor": None}))


def _walk_word(word: str, model: Mapping[str, Any], vocab: Mapping[str, int]) -> Iterator[int]:
    """Ids of the pieces that WordPiece takes from a word, always the longest, until the word ends or no piece fits."""
    if len(word) > model["max_input_chars_per_word"]:
        return
    start = 0
    while start < len(word):
        head = model["continuing_subword_prefix"] if start else ""
        ends = (end for end in range(len(word), start, -1) if head + word[start:end] in vocab)
        end = next(ends, None)
        if end is None:
            return
        yield vocab[head + word[start:end]]
        start = end
