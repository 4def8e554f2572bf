"""Rows of many requests -> runs that they share: what waits when a run ends goes together, by length.

A request that finds nothing running is run at once, alone. Those that come meanwhile wait, and when the run ends, the
row that has waited longest goes next, with those of the others that have its profile and are of like length, within
the budget of a run (`runtime.batches`). So nobody waits for a clock, and the busier the server, the fuller its runs.

All of it is the event loop's own but the runs, which happen in threads.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

from matexport.errors import FamilyError
from matexport.runtime.batches import pack_batches
from matexport.runtime.inputs.modality import Row
from matexport.serve.refusal import refuse_overload

if TYPE_CHECKING:
    from matexport.runtime.embedder import Embedder, Vectors

#: Rows that are looked at for one run: far more than share one, so that there are some of like length among them.
LOOKED_AT = 512


class _Work:
    """The rows of one request, and what is known of their vectors."""

    def __init__(self, embedder: Embedder, rows: Sequence[Row]) -> None:
        self.embedder, self.rows = embedder, rows
        self.done: asyncio.Future[Vectors] = asyncio.get_running_loop().create_future()
        self.left = len(rows)
        self.vectors: Vectors | None = None

    def fill(self, places: Sequence[int], vectors: Vectors) -> None:
        import numpy as np

        if self.done.done():  # whoever asked is gone
            return
        if self.vectors is None:
            self.vectors = np.empty((len(self.rows), *vectors.shape[1:]), vectors.dtype)
        self.vectors[list(places)] = vectors
        self.left -= len(places)
        if not self.left:
            self.done.set_result(self.vectors)

    def fail(self, error: BaseException) -> None:
        if not self.done.done():
            self.done.set_exception(error)


#: A row that waits: whose it is, and its place there.
_Ticket = tuple[_Work, int]


class Batcher:
    """Runs rows of several requests together. To be used from one event loop.

    Args:
        runs: how many happen at a time.
        max_waiting: rows of all requests together that may wait.
    """

    def __init__(self, runs: int, max_waiting: int) -> None:
        self._runs, self._max_waiting = runs, max_waiting
        self._waiting: deque[_Ticket] = deque()
        self._coming = 0
        self._running = 0
        self._pool = ThreadPoolExecutor(runs, thread_name_prefix="matexport-run")

    @property
    def waiting(self) -> int:
        """Rows that are in no run yet."""
        return len(self._waiting)

    @contextmanager
    def admit(self, count: int) -> Iterator[None]:
        """Keep places for so many rows that are still to be made, so that none are made that nobody could run.

        Raises:
            RefusedError: 503 too many wait, or are made, already.
        """
        self._check_room(count)
        self._coming += count
        try:
            yield
        finally:
            self._coming -= count

    async def run(self, embedder: Embedder, rows: Sequence[Row]) -> Vectors:
        """The vectors of some rows, in their order: (len(rows), numbers of an item). When cancelled, they leave.

        Raises:
            RefusedError: 503 too many wait already.
            FamilyError: the model cannot be run on one of these rows; those of others do not matter.
        """
        self._check_room(len(rows))
        work = _Work(embedder, rows)
        self._waiting.extend((work, place) for place in range(len(rows)))
        self._start_runs()
        try:
            return await work.done
        finally:
            if work.left:  # cancelled
                self._drop_done()

    def _check_room(self, count: int) -> None:
        """What comes to an empty queue is let in, however much it is."""
        there = len(self._waiting) + self._coming
        if there and there + count > self._max_waiting:
            raise refuse_overload(f"{there} texts are waiting, and {self._max_waiting} are the most")

    def close(self) -> None:
        """Let what runs end, and give up what waits."""
        for work, _ in self._waiting:
            work.done.cancel()
        self._waiting.clear()
        self._pool.shutdown(wait=True)

    def _start_runs(self) -> None:
        while self._waiting and self._running < self._runs:
            tickets = self._take_batch()
            self._running += 1
            loop = asyncio.get_running_loop()
            running = loop.run_in_executor(self._pool, _run, tickets)
            running.add_done_callback(partial(self._end_run, tickets))

    def _drop_done(self) -> None:
        """Let the rows go of requests that nobody waits for, or that have failed already."""
        self._waiting = deque(ticket for ticket in self._waiting if not ticket[0].done.done())

    def _take_batch(self) -> list[_Ticket]:
        """The row that has waited longest, and what goes with it."""
        first = self._waiting[0][0].embedder
        near = [ticket for ticket in islice(self._waiting, LOOKED_AT) if ticket[0].embedder is first]
        sizes = [first.inputs.size(work.rows[place]) for work, place in near]
        batch = next(batch for batch in pack_batches(sizes, first.inputs.budget) if 0 in batch)
        taken = sorted((near[index] for index in batch), key=lambda ticket: id(ticket[0]))  # each request's together
        gone = {(id(work), place) for work, place in taken}
        self._waiting = deque(ticket for ticket in self._waiting if (id(ticket[0]), ticket[1]) not in gone)
        return taken

    def _end_run(self, tickets: list[_Ticket], ended: asyncio.Future[list[Any]]) -> None:
        self._running -= 1
        results: Sequence[Any]
        if ended.cancelled():
            results = [asyncio.CancelledError()] * len(tickets)
        elif error := ended.exception():
            results = [error] * len(tickets)
        else:
            results = ended.result()
        for (work, places), result in zip(_group(tickets), results, strict=False):
            if isinstance(result, BaseException):
                work.fail(result)
                self._drop_done()
            else:
                work.fill(places, result)
        self._start_runs()


def _group(tickets: Sequence[_Ticket]) -> list[tuple[_Work, list[int]]]:
    """Of each request, the places of its rows."""
    grouped = groupby(tickets, key=lambda ticket: id(ticket[0]))
    return [(members[0][0], [place for _, place in members]) for members in (list(part) for _, part in grouped)]


def _run(tickets: Sequence[_Ticket]) -> list[Any]:
    """For each request among the rows of a run, its vectors or the error; one that fails is no other's concern."""
    groups = _group(tickets)
    embedder = tickets[0][0].embedder
    rows = [work.rows[place] for work, place in tickets]
    try:
        vectors = embedder.embed_rows(rows)
    except FamilyError as error:
        if len(groups) == 1:
            return [error]
        return [result for work, places in groups for result in _run([(work, place) for place in places])]
    found, start = [], 0
    for _, places in groups:
        found.append(vectors[start : start + len(places)])
        start += len(places)
    return found
