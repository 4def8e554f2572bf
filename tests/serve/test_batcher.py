"""What shares a run, and in which order: numbers in place of rows of tokens, and a model that is told what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from matexport.errors import FamilyError
from matexport.serve.batcher import Batcher
from matexport.serve.refusal import RefusedError


class Fake:
    """An embedder whose rows are numbers: their size, and what their vector holds. It notes its runs."""

    def __init__(self, budget: int = 12) -> None:
        self.inputs = SimpleNamespace(size=lambda row: int(row), budget=budget)
        self.runs: list[list[int]] = []
        self.before: Callable[[], None] = lambda: None
        self.wrong: set[int] = set()

    def embed_rows(self, rows: list[int]) -> np.ndarray:
        self.runs.append(sorted(rows))
        self.before()
        if self.wrong & set(rows):
            raise FamilyError(f"not finite: {self.wrong & set(rows)}")
        return np.array([[row, -row] for row in rows], np.float32)


def play(scene: Callable[[Batcher], Coroutine[Any, Any, None]], most: int = 1000) -> None:
    async def run() -> None:
        batcher = Batcher(1, most)
        try:
            await asyncio.wait_for(scene(batcher), 60)
        finally:
            batcher.close()

    asyncio.run(run())


def hold(fake: Fake, batcher: Batcher, then: int) -> None:
    """Let the first run wait until so many rows wait behind it."""

    def wait() -> None:
        while len(fake.runs) == 1 and batcher.waiting < then:
            pass

    fake.before = wait


def test_rows_come_back_in_their_order_whoever_shares_their_runs() -> None:
    async def scene(batcher: Batcher) -> None:
        fake, asked = Fake(), [[1, 5, 2], [4], [9, 9, 1, 3], [2] * 7]
        found = await asyncio.gather(*(batcher.run(fake, rows) for rows in asked))  # type: ignore[arg-type]
        for rows, vectors in zip(asked, found, strict=True):
            assert vectors.tolist() == [[row, -row] for row in rows]
        assert sum(map(len, fake.runs)) == sum(map(len, asked))
        assert all(max(run) * len(run) <= 12 for run in fake.runs)

    play(scene)


def test_the_row_that_waited_longest_goes_next_with_those_of_like_length() -> None:
    async def scene(batcher: Batcher) -> None:
        fake = Fake()
        hold(fake, batcher, 6)
        await asyncio.gather(*(batcher.run(fake, [row]) for row in (1, 3, 11, 3, 10, 4, 2)))  # type: ignore[arg-type]
        assert fake.runs[0] == [1]
        assert fake.runs[1] == [3, 3, 4], "not the longest, which came later"
        assert sorted(fake.runs[2:]) == [[2], [10], [11]]

    play(scene)


def test_profiles_do_not_mix() -> None:
    async def scene(batcher: Batcher) -> None:
        one, other = Fake(), Fake()
        hold(one, batcher, 4)
        asked = [(one, 1), (other, 2), (one, 2), (other, 3), (one, 3)]
        await asyncio.gather(*(batcher.run(fake, [row]) for fake, row in asked))  # type: ignore[arg-type]
        assert one.runs == [[1], [2, 3]]
        assert other.runs == [[2, 3]]

    play(scene)


def test_an_error_is_its_own_request_s() -> None:
    async def scene(batcher: Batcher) -> None:
        fake = Fake()
        fake.wrong = {3}
        hold(fake, batcher, 4)
        found = await asyncio.gather(
            *(batcher.run(fake, rows) for rows in ([1], [2, 2], [3], [4])),  # type: ignore[arg-type]
            return_exceptions=True,
        )
        assert isinstance(found[2], FamilyError)
        assert [vectors.tolist() for vectors in (found[0], found[1], found[3])] == [
            [[1, -1]],
            [[2, -2], [2, -2]],
            [[4, -4]],
        ]

    play(scene)


def test_rows_of_a_request_that_failed_or_was_cancelled_are_not_run() -> None:
    async def scene(batcher: Batcher) -> None:
        fake = Fake()
        fake.wrong = {12}
        with pytest.raises(FamilyError):
            await batcher.run(fake, [12, 11, 10])  # type: ignore[arg-type]
        fake.runs.clear()
        hold(fake, batcher, 4)
        first = asyncio.create_task(batcher.run(fake, [1]))  # type: ignore[arg-type]
        gone = asyncio.create_task(batcher.run(fake, [5, 6, 7]))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        await asyncio.gather(*(batcher.run(fake, [2]) for _ in range(4)), first)  # type: ignore[arg-type]
        assert fake.runs == [[1], [2, 2, 2, 2]]

    play(scene)


def test_no_more_wait_than_is_allowed() -> None:
    async def scene(batcher: Batcher) -> None:
        fake = Fake()
        hold(fake, batcher, 3)
        first = asyncio.create_task(batcher.run(fake, [1]))  # type: ignore[arg-type]
        second = asyncio.create_task(batcher.run(fake, [2, 3]))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        with pytest.raises(RefusedError, match="2 texts are waiting, and 3 are the most"):
            await batcher.run(fake, [4, 5])  # type: ignore[arg-type]
        assert (await batcher.run(fake, [4])).tolist() == [[4, -4]]  # type: ignore[arg-type]
        await asyncio.gather(first, second)

    play(scene, most=3)


def test_one_request_may_be_larger_than_what_may_wait() -> None:
    """Where nothing waits: it could never be answered else."""

    async def scene(batcher: Batcher) -> None:
        assert len(await batcher.run(Fake(), [2] * 30)) == 30  # type: ignore[arg-type]

    play(scene, most=3)
