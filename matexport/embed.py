"""Texts -> vectors with one profile of a family: tokenise, run, (n, d) float32. The whole light runtime.

Needs numpy, onnxruntime and tokenizers; opens no socket. Everything that comes from disk is checked before a session
exists: digests of the files that the profile reads, and what its graph points to (`manifest.check_profile`).
Pooling, truncation and normalisation are in the graph, so there is nothing here that could disagree with the parent
but tokenisation, and the parity check runs through this very code.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

# Before onnxruntime is imported: its wheels report usage unless this is set.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime
import tokenizers
from numpy.typing import NDArray
from tokenizers import Tokenizer

from matexport.errors import FamilyError, RequestError
from matexport.host import count_cpus
from matexport.manifest import TOKENIZER, Family, check_profile, load_family
from matexport.spec import OUTPUT_NAME, Encoding, PaddingSide, TextFacts

#: float32, or the codes of a profile that encodes its output.
Vectors = NDArray[Any]
Feeds = dict[str, NDArray[np.int64]]

DEFAULT_BATCH_SIZE = 32

_DTYPES = {Encoding.FLOAT32: np.float32, Encoding.INT8: np.int8, Encoding.UBINARY: np.uint8}


@dataclass(frozen=True)
class Tokens:
    """One text as the graph takes it: ids and segment ids, without padding."""

    ids: tuple[int, ...]
    type_ids: tuple[int, ...]

    @classmethod
    def of(cls, encoding: tokenizers.Encoding) -> Tokens:
        return cls(tuple(encoding.ids), tuple(encoding.type_ids))


class Embedder:
    """One profile of a family, ready to embed texts.

    Args:
        family: the directory of a family or a pack, or a loaded `Family`.
        profile: name such as ``L02-D064-fp32``; may be left out when there is only one.
        threads: intra-op threads; all CPUs of this process by default.
        check: check digests and graph first. Only for a family that this process has just checked.

    Raises:
        FamilyError: the family has no such profile, or its files are not the ones that were exported.
    """

    def __init__(
        self, family: Family | Path | str, profile: str | None = None, *, threads: int | None = None, check: bool = True
    ) -> None:
        self.family = family if isinstance(family, Family) else load_family(family)
        self.profile = _choose_profile(self.family, profile)
        if threads is not None and threads < 1:
            raise RequestError(f"threads={threads} was asked; at least 1 is needed")
        if check:
            check_profile(self.family, self.profile)
        facts = self.family.profile_facts(self.profile)
        self.dim, self.encoding = facts.dim, facts.encoding
        self._width, self._dtype = facts.encoding.width(facts.dim), _DTYPES[facts.encoding]
        self._text = self.family.facts.text
        self._tokenizer = load_tokenizer(self.family.path, self._text)
        self._session = open_session(self.family.path / facts.graph, threads=threads)

    def embed(
        self, texts: Sequence[str], *, prompt: str | None = None, batch_size: int = DEFAULT_BATCH_SIZE
    ) -> Vectors:
        """Embed texts.

        Args:
            texts: any number of strings; longer ones than the parent takes are cut, as the parent does.
            prompt: name of one of the parent's prompts to put before each text; the parent's default prompt, if it
                has one, when left out; ``""`` for none.
            batch_size: texts per run. Vectors do not depend on it beyond rounding.

        Returns:
            (len(texts), dim) float32, in the order of the texts; for a profile that encodes its output, (len(texts),
            dim) int8 or (len(texts), ceil(dim / 8)) uint8.

        Raises:
            RequestError: a text is no string, has no tokens, or the prompt is not one of the parent's.
            FamilyError: the model gave a vector that is not finite.
        """
        texts = texts if isinstance(texts, str) else list(texts)
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise RequestError("embed takes a list of strings")
        if batch_size < 1:
            raise RequestError(f"batch_size={batch_size} was asked; at least 1 is needed")
        rows = self.tokenize(texts, prompt=prompt)
        vectors = np.empty((len(rows), self._width), dtype=self._dtype)
        by_length = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
        for batch in split_batches(len(rows), batch_size):
            chosen = by_length[batch.start : batch.stop]
            vectors[chosen] = self.run([rows[index] for index in chosen])
        if not np.isfinite(vectors).all():
            worst = int((~np.isfinite(vectors)).any(axis=1).argmax())
            raise FamilyError(f"{self.profile} gave a vector that is not finite for text {worst}")
        return vectors

    def tokenize(self, texts: Sequence[str], *, prompt: str | None = None) -> list[Tokens]:
        """Token ids of texts with the prompt put before them, cut to the parent's length, without padding.

        Raises:
            RequestError: the prompt is unknown, or a text has no tokens.
        """
        return tokenize_texts(self._tokenizer, self._text, texts, prompt)

    def run(self, rows: Sequence[Tokens], padding_side: PaddingSide = PaddingSide.RIGHT) -> Vectors:
        """Run the graph once on token rows padded to the longest; gives what `embed` gives.

        Args:
            padding_side: on the right a token's position is its own, whatever else is in the batch. The vector is the
                same with left padding, up to rounding, which a consumer may want that pads as the parent does.
        """
        feeds = pad_rows(rows, padding_side, self._text.pad_token_id)
        try:
            (vectors,) = self._session.run([OUTPUT_NAME], {name: feeds[name] for name in self._text.inputs})
        except Exception as error:  # onnxruntime's own exception classes share no base but Exception
            raise FamilyError(f"onnxruntime cannot run {self.profile}: {error}") from None
        if vectors.shape != (len(rows), self._width) or vectors.dtype != self._dtype:
            raise FamilyError(
                f"{self.profile} gave {vectors.dtype} vectors of shape {vectors.shape} for {len(rows)} texts"
            )
        return vectors  # type: ignore[no-any-return]

    def close(self) -> None:
        """Release the session and its memory."""
        del self._session

    def __enter__(self) -> Embedder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def tokenize_texts(
    tokenizer: Tokenizer, text: TextFacts, texts: Sequence[str], prompt: str | None = None
) -> list[Tokens]:
    """`Embedder.tokenize` without a session."""
    prefix = _find_prompt(text, prompt)
    for index, item in enumerate(texts):
        try:
            item.encode()
        except UnicodeEncodeError:
            raise RequestError(f"text {index} ({item[:40]!a}) is not Unicode text") from None
    rows = [Tokens.of(encoding) for encoding in tokenizer.encode_batch([prefix + item for item in texts])]
    empty = next((index for index, row in enumerate(rows) if not row.ids), None)
    if empty is not None:
        raise RequestError(f"text {empty} ({texts[empty][:40]!r}) has no tokens, so the parent has no vector for it")
    return rows


def _find_prompt(text: TextFacts, name: str | None) -> str:
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
    shape = (len(rows), max(len(row.ids) for row in rows))
    feeds = {
        "input_ids": np.full(shape, pad_token_id, dtype=np.int64),
        "attention_mask": np.zeros(shape, dtype=np.int64),
        "token_type_ids": np.zeros(shape, dtype=np.int64),
    }
    for index, row in enumerate(rows):
        length = len(row.ids)
        span = slice(0, length) if side is PaddingSide.RIGHT else slice(shape[1] - length, shape[1])
        feeds["input_ids"][index, span] = row.ids
        feeds["attention_mask"][index, span] = 1
        feeds["token_type_ids"][index, span] = row.type_ids
    return feeds


def load_tokenizer(folder: Path, text: TextFacts) -> Tokenizer:
    """The tokenizer in a family's folder, cutting at the parent's length and not padding.

    Raises:
        FamilyError: the file is no tokenizer that this version of tokenizers reads.
    """
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


def open_session(graph: Path, *, threads: int | None = None) -> onnxruntime.InferenceSession:
    """A CPU session on a graph file, polite to its host: no spinning, no more threads than CPUs it may use."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or count_cpus()
    options.inter_op_num_threads = 1
    options.log_severity_level = (
        4  # an error is raised, too: warnings go to standard error, past any logging configuration
    )
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(graph.resolve()), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exception classes share no base but Exception
        raise FamilyError(f"onnxruntime {onnxruntime.__version__} cannot load {graph.name}: {error}") from None


def _choose_profile(family: Family, name: str | None) -> str:
    if name is not None:
        family.profile_facts(name)
        return name
    if len(family.profiles) > 1:
        known = ", ".join(profile.name for profile in family.profiles)
        raise RequestError(f"{family.path} has several profiles; choose one of {known}")
    return family.profiles[0].name


def split_batches(count: int, size: int) -> Iterator[range]:
    """The indices 0 .. count-1 in runs of at most `size`."""
    for start in range(0, count, size):
        yield range(start, min(start + size, count))
