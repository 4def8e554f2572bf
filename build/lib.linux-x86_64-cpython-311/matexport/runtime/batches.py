"""How many items are held at a time, and which of them share a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

#: Items are prepared, sorted and held this many at a time; a window also ends at so many characters or bytes.
WINDOW_ITEMS = 4096
WINDOW_WEIGHT = 4 << 20


def split_windows(items: Iterable[Any], weigh: Callable[[Any, int], int]) -> Iterator[list[Any]]:
    """A stream in lists of at most `WINDOW_ITEMS` items and, but for one heavy item, `WINDOW_WEIGHT` together.

    Args:
        weigh: what an item, given with its place in the stream, takes of memory; raises where it is none.
    """
    window: list[Any] = []
    held = 0
    for index, item in enumerate(items):
        weight = weigh(item, index)
        if window and (len(window) == WINDOW_ITEMS or held + weight > WINDOW_WEIGHT):
            yield window
            window, held = [], 0
        window.append(item)
        held += weight
    if window:
        yield window


def pack_batches(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of rows of like size that share a run within a budget, all padded to the largest; a larger row is alone.

    Args:
        sizes: of each row.

    Returns:
        batches that hold every index once, the largest rows first: what is left to the end should be small.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        if batches and (len(batches[-1]) + 1) * sizes[batches[-1][0]] <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def split_batches(count: int, size: int) -> Iterator[range]:
    """The indices 0 .. count-1 in runs of at most `size`."""
    for start in range(0, count, size):
        yield range(start, min(start + size, count))
