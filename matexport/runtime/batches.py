"""How many texts are held at a time, and which of them share a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from matexport.errors import RequestError

#: Tokens per run, padding included: more gain nothing, and what is computed on leaves a core's caches.
DEFAULT_BATCH_TOKENS = 512

#: Texts are tokenised, sorted and held this many at a time; a window also ends at so many characters.
WINDOW_TEXTS = 4096
WINDOW_CHARACTERS = 4 << 20


def split_windows(texts: Iterable[str]) -> Iterator[list[str]]:
    """A stream in lists of at most `WINDOW_TEXTS` texts and, but for one long text, `WINDOW_CHARACTERS` characters.

    Raises:
        RequestError: something in it is no string.
    """
    window: list[str] = []
    characters = 0
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise RequestError(f"embed takes strings; text {index} is of type {type(text).__name__}")
        if window and (len(window) == WINDOW_TEXTS or characters + len(text) > WINDOW_CHARACTERS):
            yield window
            window, characters = [], 0
        window.append(text)
        characters += len(text)
    if window:
        yield window


def pack_batches(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Indices of rows of like length, padded to at most so many tokens together; a longer row is alone.

    Args:
        lengths: tokens of each row.

    Returns:
        batches that hold every index once, the longest rows first: what is left to the end should be small.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def split_batches(count: int, size: int) -> Iterator[range]:
    """The indices 0 .. count-1 in runs of at most `size`."""
    for start in range(0, count, size):
        yield range(start, min(start + size, count))
