"""Items (texts, arrays) -> vectors with one profile of a family: prepare, run, (n, d) float32. The light runtime.

    items -> windows -> rows (ahead, in a thread of their own) -> sorted by size -> batches within a budget
      -> runs, as many at a time as there are threads -> back in the items' order

Needs numpy, onnxruntime and what the family's modality needs (of texts, tokenizers); opens no socket. Everything that
comes from disk is checked before a session exists: digests of the files that the profile reads, and what its graph
points to (`family.integrity.check_profile`). Pooling, truncation and normalisation are in the graph, so there is
nothing here that could disagree with the parent but the preparation, and the parity check runs through this very code.

numpy, tokenizers and onnxruntime take half of a cold start to import, so they are imported where they are used: while
digests are computed, which needs none of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from matexport.errors import FamilyError, RequestError, one_line
from matexport.family.integrity import Contents, check_profile
from matexport.family.manifest import Family, load_family
from matexport.runtime.batches import pack_batches, split_windows
from matexport.runtime.engines.door import load_engine, open_checked
from matexport.runtime.inputs.modality import BATCHED, Asked, Feeds, Inputs, Row
from matexport.runtime.shared import Shared
from matexport.spec.measured import CPU, ONNXRUNTIME, Engine
from matexport.spec.profile import Encoding

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from matexport.runtime.engines.session import Session


#: float32, or the codes of a profile that encodes its output.
Vectors: TypeAlias = "NDArray[Any]"
_DTYPES = {Encoding.FLOAT32: "float32", Encoding.INT8: "int8", Encoding.UBINARY: "uint8"}


class Embedder:
    """One profile of a family, ready to embed. May be used by several threads.

    Args:
        family: the directory of a family or a pack, or a loaded `Family`, whose files are checked first; or the
            `Contents` of one, where this process has just checked them.
        profile: name such as ``L02-D064-fp32``; may be left out when there is only one.
        threads: of each run, and how many runs go at a time; all CPUs of this process by default.
        engine: what runs the graph, a key of `matexport.spec.measured.ENGINES`, or an `Engine`.
        provider: of onnxruntime, a key of `matexport.spec.measured.PROVIDERS`; all of the graph, or it is refused.
        shared: what several embedders of one family have in common; see `runtime.sessions`.

    Raises:
        RequestError: there is no such engine or provider here.
        MissingExtraError: the engine's package is not installed.
        FamilyError: the family has no such profile, its files are not the ones that were exported, or the provider
            does not run all of the graph.
    """

    def __init__(
        self,
        family: Family | Contents | Path | str,
        profile: str | None = None,
        *,
        threads: int | None = None,
        engine: Engine | str = ONNXRUNTIME,
        provider: str = CPU,
        shared: Shared | None = None,
    ) -> None:
        contents = family if isinstance(family, Contents) else None
        self.family = _find_family(family)
        self.profile = _choose_profile(self.family, profile)
        facts = self.family.profile_facts(self.profile)
        self.dim, self.encoding = facts.dim, facts.encoding
        asked = engine if isinstance(engine, Engine) else Engine(engine, provider)
        self._shared, self._owns_shared = (
            shared or Shared(asked.threads if threads is None else threads),
            shared is None,
        )
        self._engine = asked.with_threads(self._shared.threads)
        opened = self._shared.pool.submit(self._open_checked, contents)
        load_engine(asked)  # with numpy: reads nothing of the family, and takes longer than digests of 20 MB
        checked, self.inputs = opened.result()
        import numpy as np

        self._shape, self._graph_shape = (at(facts.point) for at in (self.family.facts.shape_at,
                                                                     self.family.facts.graph_shape_at))  # fmt: skip
        if facts.encoding is not Encoding.FLOAT32:
            self._shape = self._graph_shape = (facts.encoding.width(facts.dim),)
        self._tokens, self.tiled = facts.tokens, self.family.facts.tiled
        self._width, self._dtype = math.prod(self._shape), np.dtype(_DTYPES[facts.encoding])
        self._session: Session | None = open_checked(checked, facts.graph, self._engine)

    def embed(
        self,
        items: Sequence[Any],
        *,
        prompt: str | None = None,
        task: str | None = None,
        batch_budget: int | None = None,
    ) -> Vectors:
        """Embed texts, or whatever the family takes.

        Args:
            items: any number of strings, of which longer ones than the parent takes are cut, as the parent does; or of
                arrays of the shape that the family takes, such as one (n, *shape).
            prompt: name of one of the parent's prompts to put before each text; the parent's default prompt, if it
                has one, when left out; ``""`` for none.
            task: ``query`` or ``document``: the prompt and the length that the parent has for it, as
                sentence-transformers' `encode_query` and `encode_document`. Takes the place of `prompt`.
            batch_budget: size of a run: of texts, tokens, padding included; of arrays, how many. What is larger runs
                alone, and all are where graphs take one. Items of like size share a run. Vectors do not depend on it
                beyond rounding.

        Returns:
            (len(items), dim) float32, in the order of the items; for a profile that encodes its output, (len(items),
            dim) int8 or (len(items), ceil(dim / 8)) uint8; of tokens, (len(items), tokens, dim) float32, and of
            images that are cut into tiles, (len(items),) arrays, each (tokens of the image, dim) float32; of a
            classifier, (len(items), classes) float32.

        Raises:
            RequestError: an item is no string (or array of the shape) or has no tokens, or the prompt or task is not
                one of the parent's.
            FamilyError: the model gave a vector that is not finite.
        """
        import numpy as np

        items = items if isinstance(items, str) else list(items)
        if self.tiled:
            return self._list_tokens(items, Asked(prompt, task), batch_budget)
        windows = (window for _, window in self._embed_windows(items, Asked(prompt, task), batch_budget))
        first = next(windows, None)
        if first is not None and len(first) == len(items):
            return first.reshape(len(items), *self._shape)
        vectors = np.empty((len(items), self._width), dtype=self._dtype)
        done = 0
        for window in () if first is None else chain([first], windows):
            vectors[done : done + len(window)] = window
            done += len(window)
        return vectors.reshape(len(items), *self._shape)

    def embed_iter(
        self,
        items: Iterable[Any],
        *,
        prompt: str | None = None,
        task: str | None = None,
        batch_budget: int | None = None,
    ) -> Iterator[Vectors]:
        """Embed a stream: one vector per item, in order, in memory that does not grow with the number of items.

        Items are taken from `items` some thousands ahead of the vectors that are given.

        Args:
            items, prompt, task, batch_budget: as for `embed`.

        Returns:
            an iterator of (dim,) float32 vectors, (width,) codes or (tokens, dim) float32 visual tokens; see `embed`.

        Raises:
            RequestError, FamilyError: as `embed` does, when the iterator comes to the item.
        """
        for rows, window in self._embed_windows(items, Asked(prompt, task), batch_budget):
            for row, vector in zip(rows, window, strict=True):  # one that is kept keeps no others in memory
                yield self.inputs.trim(row, vector.reshape(self._shape), self._tokens).copy()

    def prepare(self, items: Sequence[Any], *, prompt: str | None = None, task: str | None = None) -> list[Row]:
        """Items as `run` takes them: of texts, `runtime.inputs.text.Tokens`, cut to the parent's length; see `embed`.

        Raises:
            RequestError: as `embed`.
        """
        return self.inputs.prepare(items, Asked(prompt, task))

    def feed(self, rows: Sequence[Row], way: str = BATCHED) -> Feeds:
        """The graph's inputs for some rows, by name, as a way of running has them; see `runtime.inputs.modality`."""
        return self.inputs.feed(rows, way)

    @property
    def session(self) -> Session:
        """The engine's session on the graph.

        Raises:
            RequestError: the embedder was closed.
        """
        if self._session is None:
            raise RequestError(f"the embedder of {self.profile} was closed")
        return self._session

    def run(self, rows: Sequence[Row], way: str = BATCHED) -> Vectors:
        """Run the graph once on some rows: (len(rows), numbers of an item); see `Inputs.gather` of tiles."""
        return self.inputs.gather(rows, self.compute(self.feed(rows, way)))

    def compute(self, feeds: Feeds) -> Vectors:
        """Run the graph once on what `feed` gave, and give what it gives for each of the batch.

        Raises:
            FamilyError: the engine cannot run it, or it gives something else than the manifest says.
        """
        facts, session = self.family.facts, self.session
        count = len(feeds[facts.inputs.inputs[0]])
        try:
            (vectors,) = session.run([facts.output], feeds)
        except Exception as error:  # engines' own exception classes share no base but Exception
            raise FamilyError(f"{self._engine.name} cannot run {self.profile}: {one_line(error)}") from None
        if vectors.shape != (count, *self._graph_shape) or vectors.dtype != self._dtype:
            what = f"{count} tiles" if self.tiled else f"{count} {facts.inputs.noun}s"
            raise FamilyError(f"{self.profile} gave {vectors.dtype} vectors of shape {vectors.shape} for {what}")
        return vectors

    def embed_rows(self, rows: Sequence[Row], *, batch_budget: int | None = None, first: int = 0) -> Vectors:
        """Vectors of rows that `prepare` gave, (len(rows), numbers of an item); messages call the first `first`.

        Raises:
            FamilyError: the model gave a vector that is not finite.
        """
        import numpy as np

        if len(rows) == 1:  # what a search box asks for
            vectors = self.run(rows)
        else:
            vectors = np.empty((len(rows), self._width), dtype=self._dtype)

            def run(batch: Sequence[int]) -> None:
                vectors[batch] = self.run([rows[index] for index in batch])

            budget = batch_budget
            if budget is None or self.inputs.facts.alone:  # of one item, whatever is asked for
                budget = self.inputs.budget
            batches = pack_batches([self.inputs.size(row) for row in rows], budget)
            if len(batches) == 1:
                run(batches[0])
            else:
                for _ in self._shared.pool.map(run, batches):
                    pass
        # The sum of squares is finite when all are (unit vectors or raw states): one pass, and a tenth of a short call.
        if self.encoding is Encoding.FLOAT32 and not math.isfinite(np.vdot(vectors, vectors)):
            worst = int((~np.isfinite(vectors)).any(axis=1).argmax())
            if not np.isfinite(vectors[worst]).all():  # and not merely large
                what = f"{self.inputs.facts.noun} {first + worst}"
                raise FamilyError(f"{self.profile} gave a vector that is not finite for {what}")
        return vectors

    def check(self) -> None:
        """Check digests and graph, as is done before a session is made.

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

    def _open_checked(self, contents: Contents | None) -> tuple[Contents, Inputs]:
        if contents is None:
            contents = check_profile(self.family, self.profile)
        return contents, self._shared.open_inputs(contents)

    def _list_tokens(self, items: Sequence[Any], asked: Asked, batch_budget: int | None) -> Vectors:
        """(len(items),) arrays, of as many tokens as each image has."""
        import numpy as np

        listed = np.empty(len(items), object)
        for index, tokens in enumerate(self.embed_iter(items, **asked._asdict(), batch_budget=batch_budget)):
            listed[index] = tokens
        return listed

    def _embed_windows(
        self, items: Iterable[Any], asked: Asked, batch_budget: int | None
    ) -> Iterator[tuple[list[Row], Vectors]]:
        """Rows and vectors of one window of items after the other; the next is prepared while one is run."""
        inputs, _open = self.inputs, self.session  # or it was closed
        if isinstance(items, str):
            raise RequestError(f"embed takes a list of {inputs.facts.noun}s; one string was given")
        budget = inputs.budget if batch_budget is None else batch_budget
        if budget < 1:
            raise RequestError(f"batch_budget={budget} was asked; at least 1 is needed")
        inputs.check(asked)
        windows = split_windows(items, inputs.weigh)
        first = next(windows, None)
        if first is None:
            return
        rows, done = inputs.prepare(first, asked), 0
        while True:
            ahead: Future[list[Row]] | None = None
            try:
                window = next(windows, None)
                if window is not None:
                    ahead = self._shared.pool.submit(inputs.prepare, window, asked, first=done + len(rows))
            except Exception as error:  # of the source; the items before it are sound
                ahead = Future()
                ahead.set_exception(error)
            yield rows, self.embed_rows(rows, batch_budget=budget, first=done)
            if ahead is None:
                return
            done += len(rows)
            rows = ahead.result()


def _find_family(given: Family | Contents | Path | str) -> Family:
    if isinstance(given, Contents):
        return given.family
    return given if isinstance(given, Family) else load_family(given)


def _choose_profile(family: Family, name: str | None) -> str:
    if name is not None:
        family.profile_facts(name)
        return name
    if len(family.profiles) > 1:
        known = ", ".join(profile.name for profile in family.profiles)
        raise RequestError(f"{family.path} has several profiles; choose one of {known}")
    return family.profiles[0].name
