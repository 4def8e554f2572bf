"""LLaVA-NeXT's tiles: an image -> the whole of it and its tiles, and their visual tokens -> those of the image.

    image -> the pinpoint that keeps most of it -> fitted into it, black around -> tiles, row by row
    (views, s, d) -> tiles side by side -> without the rows or columns of padding -> a newline behind each row -> (T, d)

The first view is the whole image, resized without regard to its sides; its tokens come first and have no newline. What
is merged was averaged before, tile by tile (M3), so padding is cut off in units of what s leaves of a tile, and how
many tokens an image has depends on s and on its sides.

The sizes are worked out with the floating-point steps of transformers' processor and `pack_image_features`, in their
order: another order rounds otherwise at some sides. numpy alone, but for `cut_tiles`, which has Pillow resample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from matexport.errors import FamilyError, ProblemKind
from matexport.family.modality import NEWLINE, NEWLINE_FILE

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from matexport.family.weights_file import Buffer
    from matexport.spec.inputs import ImageFacts

#: (height, width), in pixels.
Size = tuple[int, int]


class TiledImage(NamedTuple):
    """A prepared image.

    Attributes:
        views: (1 + tiles, side, side, 3) uint8: the whole image, then its tiles.
        size: (height, width) that it had.
    """

    views: NDArray[Any]
    size: Size


def choose_pinpoint(size: Size, pinpoints: Sequence[Size]) -> Size:
    """(height, width) of the pinpoint in which most of an image's pixels are kept, and of those the least wasteful."""
    high, wide = size

    def rank(pinpoint: Size) -> tuple[int, int]:
        scale = min(pinpoint[1] / wide, pinpoint[0] / high)
        kept = min(int(wide * scale) * int(high * scale), wide * high)
        return kept, kept - pinpoint[0] * pinpoint[1]

    return max(pinpoints, key=rank)  # the first of those that rank alike


def fit_into(size: Size, pinpoint: Size) -> Size:
    """(height, width) of an image that fills a pinpoint on one side at least, the other rounded up."""
    (high, wide), (height, width) = size, pinpoint
    across, down = width / wide, height / high
    if across < down:
        return min(math.ceil(high * across), height), width
    return height, min(math.ceil(wide * down), width)


def cut_tiles(image: Image.Image, pinpoints: Sequence[Size], side: int, resampling: Any) -> TiledImage:
    """An RGB image -> the whole of it at (side, side), and the tiles of what it is fitted into.

    Args:
        pinpoints: (height, width), multiples of `side`.
        resampling: Pillow's filter.
    """
    import numpy as np

    size = image.height, image.width
    height, width = pinpoint = choose_pinpoint(size, pinpoints)
    high, wide = fit_into(size, pinpoint)
    room = np.zeros((height, width, 3), np.uint8)
    top, left = (height - high) // 2, (width - wide) // 2
    room[top : top + high, left : left + wide] = np.asarray(image.resize((wide, high), resampling))
    tiles = room.reshape(height // side, side, width // side, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    whole = np.asarray(image.resize((side, side), resampling))
    return TiledImage(np.concatenate([whole[None], tiles]), size)


def find_kept(size: Size, grid: Size) -> tuple[slice, slice]:
    """Rows and columns of merged tokens that are not of padding alone.

    Args:
        size: of the image.
        grid: rows and columns of merged tokens.
    """
    (high, wide), (rows, columns) = size, grid
    if wide / high > columns / rows:
        padding = (rows - int(round(high * (columns / wide), 7))) // 2
        return slice(padding, rows - padding), slice(0, columns)
    padding = (columns - int(round(wide * (rows / high), 7))) // 2
    return slice(0, rows), slice(padding, columns - padding)


def count_tokens(size: Size, tokens: int, pinpoints: Sequence[Size], side: int) -> int:
    """How many visual tokens an image of a size has, where each of its views has `tokens`."""
    part = math.isqrt(tokens)
    height, width = choose_pinpoint(size, pinpoints)
    grid = height // side * part, width // side * part
    rows, columns = (len(range(length)[kept]) for length, kept in zip(grid, find_kept(size, grid), strict=True))
    return tokens + rows * (columns + 1)


def merge_tiles(
    views: NDArray[Any], size: Size, *, pinpoints: Sequence[Size], side: int, newline: NDArray[Any]
) -> NDArray[Any]:
    """The visual tokens of one image.

    Args:
        views: (1 + tiles, s, d) float32: what the graph gives for the whole image and its tiles; s is a square.
        size: (height, width) of the image before anything was done to it.
        pinpoints: as it was cut with.
        side: of a tile, in pixels.
        newline: (d,) float32, put behind each row.

    Returns:
        (T, d) float32, T being `count_tokens`.
    """
    import numpy as np

    _, tokens, dim = views.shape
    part = math.isqrt(tokens)
    height, width = choose_pinpoint(size, pinpoints)
    down, across = height // side, width // side
    grid = views[1:].reshape(down, across, part, part, dim).swapaxes(1, 2).reshape(down * part, across * part, dim)
    kept = grid[find_kept(size, (down * part, across * part))]
    ends = np.broadcast_to(newline, (len(kept), 1, dim))
    return np.concatenate([views[0], np.concatenate([kept, ends], axis=1).reshape(-1, dim)])


def merge_rows(
    rows: Sequence[TiledImage], found: NDArray[Any], facts: ImageFacts, newline: NDArray[Any]
) -> NDArray[Any]:
    """(views of all rows, s, d) float32 -> (len(rows), most tokens * d): each image's tokens, and zeros behind them.

    Raises:
        FamilyError: the newline is none of the graph's tokens.
    """
    import numpy as np

    _, tokens, dim = found.shape
    if newline.shape != (dim,):
        raise refuse_newline(f"{NEWLINE_FILE} has {len(newline)} numbers, and visual tokens have {dim}")
    assert facts.tiles is not None
    merged = np.zeros((len(rows), facts.count_most_tokens(tokens), dim), found.dtype)
    start = 0
    for image, row in zip(merged, rows, strict=True):
        views = found[start : start + len(row.views)]
        own = merge_tiles(views, row.size, pinpoints=facts.tiles.pinpoints, side=facts.height, newline=newline)
        image[: len(own)] = own
        start += len(views)
    return merged.reshape(len(rows), -1)


def read_newline(content: Buffer) -> NDArray[Any]:
    """(d,) float32 from a family's file.

    Raises:
        FamilyError: it holds something else, or numbers that are not finite.
    """
    import numpy as np

    from matexport.family.weights_file import parse_header

    entries = [entry for entry in parse_header(NEWLINE_FILE, content).entries if entry.name == NEWLINE]
    if len(entries) != 1 or entries[0].dtype != "F32" or len(entries[0].shape) != 1 or entries[0].end > len(content):
        raise refuse_newline(f"{NEWLINE_FILE} has no float32 {NEWLINE!r} of one row")
    newline = np.frombuffer(content, "<f4", count=entries[0].shape[0], offset=entries[0].offset)
    if not np.isfinite(newline).all():
        raise refuse_newline(f"{NEWLINE_FILE} holds values that are not finite")
    return newline


def refuse_newline(why: str) -> FamilyError:
    """What is wrong with a family's newline."""
    return FamilyError(why, kind=ProblemKind.REFUSED, file=NEWLINE_FILE)
