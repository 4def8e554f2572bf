"""How an RGB image is brought to the size that a graph takes: padded, resized, cut, as transformers rounds."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any

from matexport.errors import RequestError
from matexport.spec.inputs import ImageFacts

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

#: Pixels of an image, decoded and on the way to its size: where Pillow begins to warn of a decompression bomb.
MAX_PIXELS = 89_478_485


def pad_square(image: Image.Image, colour: tuple[int, ...], name: str) -> Image.Image:
    """An RGB image in the middle of a square of a colour.

    Raises:
        RequestError: it would have more than `MAX_PIXELS`.
    """
    from PIL import Image

    side = max(image.size)
    if side * side > MAX_PIXELS:
        raise RequestError(f"{name}, {image.width} x {image.height}, is padded to a square of {side * side} pixels; "
                           f"up to {MAX_PIXELS} are made")  # fmt: skip
    square = Image.new("RGB", (side, side), (colour[0], colour[1], colour[2]))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def fit_shorter(size: tuple[int, int], edge: int) -> tuple[int, int]:
    """(width, height) with the shorter side at `edge`; transformers rounds the longer one down."""
    short, long = min(size), max(size)
    longer = int(edge * long / short)
    return (edge, longer) if size[0] <= size[1] else (longer, edge)


def resize_middle(
    image: Image.Image, target: tuple[int, int], facts: ImageFacts
) -> tuple[Image.Image, tuple[int, int]]:
    """The middle of an image that would be too large as a whole: the same pixels, up to rounding."""
    wanted = tuple(min(side, crop) for side, crop in zip(target, (facts.width, facts.height), strict=True))
    starts = [(side - part) // 2 for side, part in zip(target, wanted, strict=True)]
    scales = [given / made for given, made in zip(image.size, target, strict=True)]
    (left, right), (top, bottom) = (
        (start * scale, (start + part) * scale) for start, part, scale in zip(starts, wanted, scales, strict=True)
    )
    size = wanted[0], wanted[1]
    return image.resize(size, find_filter(facts), box=(left, top, right, bottom)), size


def find_filter(facts: ImageFacts) -> Any:
    """Pillow's filter."""
    from PIL import Image

    return Image.Resampling[facts.resampling.upper()]


def crop_middle(pixels: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """(H, W, 3) -> (height, width, 3) around its centre, black where it has no pixels; odd rests as transformers."""
    import numpy as np

    high, wide = pixels.shape[:2]
    if high < height or wide < width:
        room = np.zeros((max(high, height), max(wide, width), 3), np.uint8)
        top, left = ceil((room.shape[0] - high) / 2), ceil((room.shape[1] - wide) / 2)
        room[top : top + high, left : left + wide] = pixels
        top, left = top + (high - height) // 2, left + (wide - width) // 2
        pixels = room
    else:
        top, left = (high - height) // 2, (wide - width) // 2
    return np.ascontiguousarray(pixels[top : top + height, left : left + width])
