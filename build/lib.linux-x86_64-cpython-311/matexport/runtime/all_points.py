"""Items -> vectors at every point of a precision in one pass, from the graph that holds all exits.

    items -> windows -> rows -> sorted by size -> batches -> one run each -> {point: (n, dim)}

What a family is evaluated with: its blocks are computed once, and not once per profile. The vectors are those of the
profiles (`verify` holds them to the same floor), float32 whatever a profile's encoding is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from matexport.errors import FamilyError, one_line
from matexport.family.integrity import Contents, check_exits
from matexport.family.manifest import Family
from matexport.host import count_cpus
from matexport.runtime.batches import pack_batches, split_windows
from matexport.runtime.engines.door import open_checked
from matexport.runtime.inputs.modality import Asked, Row, open_inputs
from matexport.spec.measured import Engine
from matexport.spec.profile import Point, Precision

if TYPE_CHECKING:
    from numpy.typing import NDArray


class ExitsEmbedder:
    """All points of one precision of a family, ready to embed.

    Args:
        family: a loaded family that has a graph of all exits for this precision (`FamilyFacts.exits`).
        threads: of each run, and how many runs go at a time; all CPUs of this process by default.
        contents: the family's files, where this process has just checked them; else they are checked first.
        engine: what runs the graph; onnxruntime on the CPU by default.

    Raises:
        RequestError, MissingExtraError: there is no such engine here.
        FamilyError: the files are not the ones that were exported, or there is no such graph.
    """

    def __init__(
        self,
        family: Family,
        precision: Precision,
        *,
        threads: int | None = None,
        contents: Contents | None = None,
        engine: Engine | None = None,
    ) -> None:
        graph = family.facts.exits.get(precision)
        if graph is None:
            raise FamilyError(f"{family.path} has no graph of all exits in {precision}: an older matexport made it")
        self._contents = check_exits(family, precision) if contents is None else contents
        self.points = tuple(sorted({profile.point for profile in family.profiles if profile.precision is precision}))
        self._facts = family.facts
        asked = (engine or Engine()).with_threads(threads)
        self._graph, self._threads = graph, asked.threads or count_cpus()
        self._engine = asked.with_threads(self._threads)
        self.inputs = open_inputs(self._contents)
        self._session = open_checked(self._contents, graph, self._engine)

    def embed_windows(
        self, items: Sequence[Any], *, prompt: str | None = None, task: str | None = None
    ) -> Iterator[Mapping[Point, NDArray[np.float32]]]:
        """Embed items, one window of some thousands after the other.

        Args:
            items, prompt, task: as for `Embedder.embed`.

        Returns:
            for each window, by point, (items of the window, dim) float32 in the order of the items.

        Raises:
            RequestError: as `Embedder.embed`.
            FamilyError: the graph gave a vector that is not finite, or something else than the manifest says.
        """
        asked, done = Asked(prompt, task), 0
        self.inputs.check(asked)
        with ThreadPoolExecutor(self._threads) as pool:
            for window in split_windows(items, self.inputs.weigh):
                rows = self.inputs.prepare(window, asked, first=done)
                yield self._embed_rows(rows, pool)
                done += len(rows)

    def run(self, rows: Sequence[Row]) -> dict[str, NDArray[np.float32]]:
        """Run the graph once on some rows: point name -> (len(rows), numbers of an item) float32."""
        names, feeds = [point.name for point in self.points], self.inputs.feed(rows)
        count = len(feeds[self._facts.inputs.inputs[0]])
        try:
            vectors = self._session.run(names, feeds)
        except Exception as error:  # engines' own exception classes share no base but Exception
            raise FamilyError(f"{self._engine.name} cannot run {self._graph}: {one_line(error)}") from None
        for point, found in zip(self.points, vectors, strict=True):
            if found.shape != (count, *self._facts.graph_shape_at(point)) or found.dtype != np.float32:
                what = f"{len(rows)} {self.inputs.facts.noun}s at {point.name}"
                raise FamilyError(f"{self._graph} gave {found.dtype} {found.shape} for {what}")
        return {name: self.inputs.gather(rows, found) for name, found in zip(names, vectors, strict=True)}

    def close(self) -> None:
        """Release the session and its memory."""
        del self._session

    def __enter__(self) -> ExitsEmbedder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _embed_rows(self, rows: Sequence[Row], pool: ThreadPoolExecutor) -> dict[Point, NDArray[np.float32]]:
        widths = {point: self._facts.width_at(point) for point in self.points}
        vectors = {point: np.empty((len(rows), width), dtype=np.float32) for point, width in widths.items()}

        def run(batch: Sequence[int]) -> None:
            for name, found in self.run([rows[index] for index in batch]).items():
                vectors[by_name[name]][batch] = found

        by_name = {point.name: point for point in self.points}
        for _ in pool.map(run, pack_batches([self.inputs.size(row) for row in rows], self.inputs.budget)):
            pass
        for point, found in vectors.items():
            if not np.isfinite(found).all():
                raise FamilyError(f"{self._graph} gave a vector that is not finite at {point.name}")
        return vectors
