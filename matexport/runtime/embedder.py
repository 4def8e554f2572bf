"""Texts -> vectors with one profile of a family: tokenise, run, (n, d) float32. The whole light runtime.

    texts -> windows -> token rows (ahead, in a thread of their own) -> sorted by length -> batches of a token budget
      -> runs, as many at a time as there are threads -> back in the texts' order

Needs numpy, onnxruntime and tokenizers; opens no socket. Everything that comes from disk is checked before a session
exists: digests of the files that the profile reads, and what its graph points to (`family.integrity.check_profile`).
Pooling, truncation and normalisation are in the graph, so there is nothing here that could disagree with the parent
but tokenisation, and the parity check runs through this very code.

numpy, tokenizers and onnxruntime take half of a cold start to import, so they are imported where they are used: while
digests are computed, which needs none of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, TypeAlias

from matexport.errors import FamilyError, RequestError, one_line
from matexport.family.integrity import check_profile
from matexport.family.manifest import Family, load_family
from matexport.host import count_cpus
from matexport.runtime.batches import DEFAULT_BATCH_TOKENS, pack_batches, split_windows
from matexport.runtime.engine import load_runtime, open_session
from matexport.runtime.inputs.text import (
    Asked,
    Feeds,
    TextTokenizer,
    Tokens,
    check_task,
    feed_rows,
    find_wrapping,
    load_tokenizer,
    tokenize_texts,
)
from matexport.spec.facts import OUTPUT_NAME, PaddingSide
from matexport.spec.measured import CPU
from matexport.spec.profile import Encoding

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray
    from onnxruntime import InferenceSession


#: float32, or the codes of a profile that encodes its output.
Vectors: TypeAlias = "NDArray[Any]"
_DTYPES = {Encoding.FLOAT32: "float32", Encoding.INT8: "int8", Encoding.UBINARY: "uint8"}


class Embedder:
    """One profile of a family, ready to embed texts. May be used by several threads.

    Args:
        family: the directory of a family or a pack, or a loaded `Family`.
        profile: name such as ``L02-D064-fp32``; may be left out when there is only one.
        threads: of each run, and how many runs go at a time; all CPUs of this process by default.
        check: check digests and graph first. Only for a family that this process has just checked.
        provider: what runs the graph, a key of `matexport.spec.measured.PROVIDERS`; all of it, or it is refused.

    Raises:
        RequestError: onnxruntime lacks the provider.
        FamilyError: the family has no such profile, its files are not the ones that were exported, or the provider
            does not run all of the graph.
    """

    def __init__(
        self,
        family: Family | Path | str,
        profile: str | None = None,
        *,
        threads: int | None = None,
        check: bool = True,
        provider: str = CPU,
        _shared: _Shared | None = None,
    ) -> None:
        self.family = family if isinstance(family, Family) else load_family(family)
        self.profile = _choose_profile(self.family, profile)
        facts = self.family.profile_facts(self.profile)
        self.dim, self.encoding = facts.dim, facts.encoding
        self._text = self.family.facts.text
        self._shared, self._owns_shared = _shared or _Shared(self.family, threads), _shared is None
        tokenizer = self._shared.pool.submit(self._load_checked_tokenizer, check)
        load_runtime()  # with numpy: reads nothing of the family, and takes longer than digests of 20 MB
        self._tokenizer = tokenizer.result()
        import numpy as np

        self._width, self._dtype = facts.encoding.width(facts.dim), np.dtype(_DTYPES[facts.encoding])
        self._session: InferenceSession | None = open_session(
            self.family.path / facts.graph, threads=self._shared.threads, provider=provider
        )

    def embed(
        self,
        texts: Sequence[str],
        *,
        prompt: str | None = None,
        task: str | None = None,
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
    ) -> Vectors:
        """Embed texts.

        Args:
            texts: any number of strings; longer ones than the parent takes are cut, as the parent does.
            prompt: name of one of the parent's prompts to put before each text; the parent's default prompt, if it
                has one, when left out; ``""`` for none.
            task: ``query`` or ``document``: the prompt and the length that the parent has for it, as
                sentence-transformers' `encode_query` and `encode_document`. Takes the place of `prompt`.
            batch_tokens: tokens per run, padding included; a longer text runs alone. Texts of like length share a
                run. Vectors do not depend on it beyond rounding.

        Returns:
            (len(texts), dim) float32, in the order of the texts; for a profile that encodes its output, (len(texts),
            dim) int8 or (len(texts), ceil(dim / 8)) uint8.

        Raises:
            RequestError: a text is no string, has no tokens, or the prompt or task is not one of the parent's.
            FamilyError: the model gave a vector that is not finite.
        """
        import numpy as np

        texts = texts if isinstance(texts, str) else list(texts)
        windows = self._embed_windows(texts, Asked(prompt, task), batch_tokens)
        first = next(windows, None)
        if first is not None and len(first) == len(texts):
            return first
        vectors = np.empty((len(texts), self._width), dtype=self._dtype)
        done = 0
        for window in () if first is None else chain([first], windows):
            vectors[done : done + len(window)] = window
            done += len(window)
        return vectors

    def embed_iter(
        self,
        texts: Iterable[str],
        *,
        prompt: str | None = None,
        task: str | None = None,
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
    ) -> Iterator[Vectors]:
        """Embed a stream: one vector per text, in order, in memory that does not grow with the number of texts.

        Texts are taken from `texts` some thousands ahead of the vectors that are given.

        Args:
            texts, prompt, task, batch_tokens: as for `embed`.

        Returns:
            an iterator of (dim,) float32 vectors, or (width,) codes; see `embed`.

        Raises:
            RequestError, FamilyError: as `embed` does, when the iterator comes to the text.
        """
        for window in self._embed_windows(texts, Asked(prompt, task), batch_tokens):
            yield from (vector.copy() for vector in window)  # one that is kept keeps no others in memory

    def tokenize(self, texts: Sequence[str], *, prompt: str | None = None, task: str | None = None) -> list[Tokens]:
        """Token ids of texts as the parent asks for them, cut to its length, without padding; see `embed`.

        Raises:
            RequestError: the prompt or task is unknown, or a text has no tokens.
        """
        check_task(self.family.facts.schema, self._text, task)
        return tokenize_texts(self._tokenizer, texts, prompt, task=task)

    def pad(self, rows: Sequence[Tokens], padding_side: PaddingSide = PaddingSide.RIGHT) -> Feeds:
        """The graph's inputs, by name: each (len(rows), longest) int64."""
        return feed_rows(rows, self._text, padding_side)

    @property
    def session(self) -> InferenceSession:
        """onnxruntime's session on the graph.

        Raises:
            RequestError: the embedder was closed.
        """
        if self._session is None:
            raise RequestError(f"the embedder of {self.profile} was closed")
        return self._session

    def run(self, rows: Sequence[Tokens], padding_side: PaddingSide = PaddingSide.RIGHT) -> Vectors:
        """Run the graph once on token rows padded to the longest; gives what `embed` gives.

        Args:
            padding_side: on the right a token's position is its own, whatever else is in the batch. The vector is the
                same with left padding, up to rounding, which a consumer may want that pads as the parent does.
        """
        return self.compute(self.pad(rows, padding_side))

    def compute(self, feeds: Feeds) -> Vectors:
        """Run the graph once on what `pad` gave.

        Raises:
            FamilyError: onnxruntime cannot run it, or it gives something else than the manifest says.
        """
        texts, session = len(feeds[self._text.inputs[0]]), self.session
        try:
            (vectors,) = session.run([OUTPUT_NAME], feeds)
        except Exception as error:  # onnxruntime's own exception classes share no base but Exception
            raise FamilyError(f"onnxruntime cannot run {self.profile}: {one_line(error)}") from None
        if vectors.shape != (texts, self._width) or vectors.dtype != self._dtype:
            raise FamilyError(f"{self.profile} gave {vectors.dtype} vectors of shape {vectors.shape} for {texts} texts")
        return vectors  # type: ignore[no-any-return]

    def check(self) -> None:
        """Check digests and graph, as is done before a session is made unless that was turned off.

        Raises:
            FamilyError: the files are not the ones that were exported.
        """
        check_profile(self.family, self.profile)

    def close(self) -> None:
        """Release the session and its memory; what is running ends first."""
        self._session = None
        if self._owns_shared:
            self._shared.pool.shutdown(wait=False)

    def __enter__(self) -> Embedder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _load_checked_tokenizer(self, check: bool) -> TextTokenizer:
        if check:
            self.check()
        return self._shared.load_tokenizer()

    def _embed_windows(self, texts: Iterable[str], asked: Asked, batch_tokens: int) -> Iterator[Vectors]:
        """Vectors of one window of texts after the other; the next is tokenised while one is run."""
        if isinstance(texts, str):
            raise RequestError("embed takes a list of strings")
        if batch_tokens < 1:
            raise RequestError(f"batch_tokens={batch_tokens} was asked; at least 1 is needed")
        check_task(self.family.facts.schema, self._text, asked.task)
        find_wrapping(self._text, asked.prompt, asked.task)
        windows = split_windows(texts)
        first = next(windows, None)
        if first is None:
            return
        rows, done = self._tokenize_window(first, 0, asked), 0
        while True:
            ahead: Future[list[Tokens]] | None = None
            try:
                window = next(windows, None)
                if window is not None:
                    ahead = self._shared.pool.submit(self._tokenize_window, window, done + len(rows), asked)
            except Exception as error:  # of the source; the texts before it are sound
                ahead = Future()
                ahead.set_exception(error)
            yield self._embed_rows(rows, done, batch_tokens)
            if ahead is None:
                return
            done += len(rows)
            rows = ahead.result()

    def _tokenize_window(self, texts: Sequence[str], first: int, asked: Asked) -> list[Tokens]:
        return tokenize_texts(self._tokenizer, texts, asked.prompt, task=asked.task, first=first)

    def _embed_rows(self, rows: Sequence[Tokens], first: int, batch_tokens: int) -> Vectors:
        import numpy as np

        if len(rows) == 1:  # what a search box asks for
            vectors = self.run(rows)
        else:
            vectors = np.empty((len(rows), self._width), dtype=self._dtype)

            def run(batch: Sequence[int]) -> None:
                vectors[batch] = self.run([rows[index] for index in batch])

            batches = pack_batches([len(row.ids) for row in rows], batch_tokens)
            if len(batches) == 1:
                run(batches[0])
            else:
                for _ in self._shared.pool.map(run, batches):
                    pass
        # The sum of squares is finite when all are (unit vectors or raw states): one pass, and a tenth of a short call.
        if self.encoding is Encoding.FLOAT32 and not math.isfinite(np.vdot(vectors, vectors)):
            worst = int((~np.isfinite(vectors)).any(axis=1).argmax())
            if not np.isfinite(vectors[worst]).all():  # and not merely large
                raise FamilyError(f"{self.profile} gave a vector that is not finite for text {first + worst}")
        return vectors


class Sessions(Mapping[str, Embedder]):
    """Several profiles of one family at once: profile name -> `Embedder`.

    Each is checked and opened when it is first asked for. All share the tokenizer and one pool of threads, and on disk
    and in the page cache the weights; a session's own copy of its matrices, in the order that the CPU's kernels want,
    is not shared (onnxruntime offers that to C++ alone).

    Args:
        family: the directory of a family, or a loaded `Family`.
        threads: of each run, and how many runs go at a time for all profiles together; all CPUs of this process by
            default.

    Raises:
        FamilyError: when a profile is asked for that is not there, or whose files are not the ones that were exported.
    """

    def __init__(self, family: Family | Path | str, *, threads: int | None = None) -> None:
        self.family = family if isinstance(family, Family) else load_family(family)
        self._names = tuple(profile.name for profile in self.family.profiles)
        self._shared = _Shared(self.family, threads)
        self._open: dict[str, Embedder] = {}
        self._lock = Lock()

    def __getitem__(self, name: str) -> Embedder:
        with self._lock:
            if name not in self._open:
                self._open[name] = Embedder(self.family, name, _shared=self._shared)
            return self._open[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def release(self, name: str) -> None:
        """Close a profile's session; it is opened again when it is asked for again."""
        with self._lock:
            opened = self._open.pop(name, None)
        if opened is not None:
            opened.close()


class _Shared:
    """What the embedders of one family share: the tokenizer, and threads to compute in."""

    def __init__(self, family: Family, threads: int | None) -> None:
        if threads is not None and threads < 1:
            raise RequestError(f"threads={threads} was asked; at least 1 is needed")
        self.threads = threads or count_cpus()
        self.pool = ThreadPoolExecutor(self.threads, thread_name_prefix="matexport")
        self._family = family
        self._tokenizer: TextTokenizer | None = None

    def load_tokenizer(self) -> TextTokenizer:
        """The family's tokenizer, read when it is first asked for: after its digest was checked."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._family.path, self._family.facts.text)
        return self._tokenizer


def _choose_profile(family: Family, name: str | None) -> str:
    if name is not None:
        family.profile_facts(name)
        return name
    if len(family.profiles) > 1:
        known = ", ".join(profile.name for profile in family.profiles)
        raise RequestError(f"{family.path} has several profiles; choose one of {known}")
    return family.profiles[0].name
