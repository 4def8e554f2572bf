"""Texts -> vectors at every point of a precision in one pass, from the graph that holds all exits.

    texts -> windows -> token rows -> sorted by length -> batches -> one run each -> {point: (n, dim)}

What a family is evaluated with: its blocks are computed once, and not once per profile. The vectors are those of the
profiles (`verify` holds them to the same floor), float32 whatever a profile's encoding is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from matexport.errors import FamilyError, one_line
from matexport.family.integrity import check_exits
from matexport.family.manifest import Family
from matexport.host import count_cpus
from matexport.runtime.batches import DEFAULT_BATCH_TOKENS, pack_batches, split_windows
from matexport.runtime.engine import open_session
from matexport.runtime.inputs.text import Tokens, check_task, feed_rows, load_tokenizer, tokenize_texts
from matexport.spec.profile import Point, Precision

if TYPE_CHECKING:
    from numpy.typing import NDArray


class ExitsEmbedder:
    """All points of one precision of a family, ready to embed texts.

    Args:
        family: a loaded family that has a graph of all exits for this precision (`FamilyFacts.exits`).
        threads: of each run, and how many runs go at a time; all CPUs of this process by default.
        check: check digests and graph first. Only for a family that this process has just checked.

    Raises:
        FamilyError: the files are not the ones that were exported, or there is no such graph.
    """

    def __init__(self, family: Family, precision: Precision, *, threads: int | None = None, check: bool = True) -> None:
        graph = family.facts.exits.get(precision)
        if graph is None:
            raise FamilyError(f"{family.path} has no graph of all exits in {precision}: an older matexport made it")
        if check:
            check_exits(family, precision)
        self.points = tuple(sorted({profile.point for profile in family.profiles if profile.precision is precision}))
        self._graph, self._text, self._schema = graph, family.facts.text, family.facts.schema
        self._threads = threads or count_cpus()
        self._tokenizer = load_tokenizer(family.path, self._text)
        self._session = open_session(family.path / graph, threads=self._threads)

    def embed_windows(
        self, texts: Sequence[str], *, prompt: str | None = None, task: str | None = None
    ) -> Iterator[Mapping[Point, NDArray[np.float32]]]:
        """Embed texts, one window of some thousands after the other.

        Args:
            prompt, task: as for `Embedder.embed`.

        Returns:
            for each window, by point, (texts of the window, dim) float32 in the order of the texts.

        Raises:
            RequestError: a text is no string, has no tokens, or the prompt is not one of the parent's.
            FamilyError: the graph gave a vector that is not finite, or something else than the manifest says.
        """
        check_task(self._schema, self._text, task)
        done = 0
        with ThreadPoolExecutor(self._threads) as pool:
            for window in split_windows(texts):
                rows = tokenize_texts(self._tokenizer, window, prompt, task=task, first=done)
                yield self._embed_rows(rows, pool)
                done += len(rows)

    def run(self, rows: Sequence[Tokens]) -> dict[str, NDArray[np.float32]]:
        """Run the graph once on token rows padded to the longest: point name -> (len(rows), dim) float32."""
        names = [point.name for point in self.points]
        try:
            vectors = self._session.run(names, feed_rows(rows, self._text))
        except Exception as error:  # onnxruntime's own exception classes share no base but Exception
            raise FamilyError(f"onnxruntime cannot run {self._graph}: {one_line(error)}") from None
        for point, found in zip(self.points, vectors, strict=True):
            if found.shape != (len(rows), point.dim) or found.dtype != np.float32:
                raise FamilyError(
                    f"{self._graph} gave {found.dtype} {found.shape} for {len(rows)} texts at {point.name}"
                )
        return dict(zip(names, vectors, strict=True))

    def close(self) -> None:
        """Release the session and its memory."""
        del self._session

    def __enter__(self) -> ExitsEmbedder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _embed_rows(self, rows: Sequence[Tokens], pool: ThreadPoolExecutor) -> dict[Point, NDArray[np.float32]]:
        vectors = {point: np.empty((len(rows), point.dim), dtype=np.float32) for point in self.points}

        def run(batch: Sequence[int]) -> None:
            for name, found in self.run([rows[index] for index in batch]).items():
                vectors[by_name[name]][batch] = found

        by_name = {point.name: point for point in self.points}
        for _ in pool.map(run, pack_batches([len(row.ids) for row in rows], DEFAULT_BATCH_TOKENS)):
            pass
        for point, found in vectors.items():
            if not np.isfinite(found).all():
                raise FamilyError(f"{self._graph} gave a vector that is not finite at {point.name}")
        return vectors
