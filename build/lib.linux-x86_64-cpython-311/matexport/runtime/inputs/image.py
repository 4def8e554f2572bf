"""Image files -> the pixels that a graph takes, to the grey level as the parent's own processor makes them.

    file -> Pillow: orientation, RGB, square, resize -> crop -> (height, width, 3) uint8: a row
    rows -> a table of 256 numbers for each channel -> (n, 3, height, width) float32

Decoding and resampling are Pillow's, which is what transformers' processors use; so what is left to get right is the
order, the rounding of sizes and the arithmetic of normalising. That has only 256 inputs for each channel, so it is
worked out once, in the very steps of transformers (float64 for the scale, float32 after it), and looked up.

Files may come from anywhere: only formats whose decoders are part of Pillow are opened (EPS would start a program),
sizes are looked at before a pixel is decoded, and what is broken is refused by the name of its file.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from matexport.errors import RequestError, one_line
from matexport.extras import require_extra
from matexport.host import count_cpus
from matexport.runtime.inputs.modality import BATCHED, NOTHING_ASKED, Asked, Compared, Feeds
from matexport.runtime.inputs.resize import (
    MAX_PIXELS,
    crop_middle,
    find_filter,
    fit_shorter,
    pad_square,
    resize_middle,
)
from matexport.runtime.inputs.tiles import TiledImage, count_tokens, cut_tiles, merge_rows
from matexport.spec.inputs import ImageFacts

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from matexport.family.integrity import Contents
    from matexport.spec.probe import AnyProbe

#: Images per run. More gain nothing on a CPU.
BATCH_IMAGES = 8

#: Formats that are decoded by Pillow itself, as it names them.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "ICO", "AVIF", "JPEG2000")

#: Bytes of an image file.
MAX_FILE_BYTES = 256 << 20


class ImageInputs:
    """Decodes, resizes and normalises. An item is a path, a file's bytes, a Pillow image or an (H, W, 3) uint8 array;
    a row is an (height, width, 3) uint8 array, or a `TiledImage` where images are cut into tiles.

    Args:
        newline: (d,) float32, which `gather` puts behind rows of merged tiles.

    Raises:
        MissingExtraError: Pillow is not installed.
    """

    budget = BATCH_IMAGES

    def __init__(self, facts: ImageFacts, newline: NDArray[Any] | None = None) -> None:
        require_extra("image", "images", {"PIL": "pillow"})
        self.facts, self._newline = facts, newline
        self._levels = tabulate_levels(facts)

    @property
    def short(self) -> NDArray[Any]:
        """A grey image of the size that the graph takes."""
        import numpy as np

        return np.full((self.facts.height, self.facts.width, 3), 128, np.uint8)

    def check(self, asked: Asked) -> None:
        """Raise RequestError for a prompt or a task."""
        if asked.prompt or asked.task:
            how = f"prompt {asked.prompt!r}" if asked.prompt else f"task {asked.task!r}"
            raise RequestError(f"{how} was asked; this family takes images, which have none")

    def weigh(self, item: Any, index: int) -> int:
        """Bytes of the file and of its row."""
        row = 3 * self.facts.height * self.facts.width * self.facts.most_views
        if isinstance(item, PreparedImage):
            return row
        if isinstance(item, bytes | bytearray | memoryview):
            return row + len(item)
        if isinstance(item, str | os.PathLike):
            try:
                return row + Path(item).stat().st_size
            except (OSError, ValueError) as error:
                raise RequestError(f"{name_image(item, index)} cannot be read: {_explain(error)}") from None
        if hasattr(item, "size") and hasattr(item, "convert"):
            return row
        return row + int(_read_array(item, index).nbytes)

    def prepare(self, items: Sequence[Any], asked: Asked = NOTHING_ASKED, *, first: int = 0) -> list[Any]:
        """Images as rows, some at a time: Pillow decodes and resamples outside of Python's lock.

        Raises:
            RequestError: one cannot be read or is too large, or a prompt or task was asked.
        """
        self.check(asked)
        places = range(first, first + len(items))
        if len(items) < 2:
            return [self.prepare_one(item, index) for item, index in zip(items, places, strict=True)]
        with ThreadPoolExecutor(min(count_cpus(), len(items))) as pool:
            return list(pool.map(self.prepare_one, items, places))

    def prepare_one(self, item: Any, index: int = 0) -> Any:
        """One image as a row; `index` names it in messages where it has no name.

        Raises:
            RequestError: it cannot be read, or is too large.
        """
        if isinstance(item, PreparedImage):
            return item.row
        name = name_image(item, index)
        try:
            with open_image(item, index) as opened:
                return self._fit(_upright(opened, name), name)
        except RequestError:
            raise
        except (MemoryError, RecursionError):
            raise RequestError(f"{name} needs more memory than there is") from None
        except Exception as error:  # decoders raise whatever they come across: OSError, SyntaxError, struct.error ...
            raise RequestError(f"{name} cannot be read as an image: {_explain(error)}") from None

    def prepare_probe(self, probe: AnyProbe) -> Any:
        """A probe's pixels."""
        return self.prepare_one(NamedBytes(probe.content, probe.name))  # type: ignore[union-attr]

    def unpack(self, probe: AnyProbe) -> bytes:
        """A probe's file."""
        return NamedBytes(probe.content, probe.name)  # type: ignore[union-attr]

    def size(self, row: Any) -> int:
        """How many views it has: all of them count alike."""
        return len(list_views([row]))

    def feed(self, rows: Sequence[Any], _way: str = BATCHED) -> Feeds:
        """(views of all rows, 3, height, width) float32 under the input's name; a row has one view, or its tiles."""
        import numpy as np

        views = list_views(rows)
        pixels = np.empty((len(views), *self.facts.shape), np.float32)
        for image, view in zip(pixels, views, strict=True):
            for channel, levels in enumerate(self._levels):
                np.take(levels, view[:, :, channel], out=image[channel], mode="clip")
        return {self.facts.input: pixels}

    def gather(self, rows: Sequence[Any], found: NDArray[Any]) -> NDArray[Any]:
        """A row of numbers for each image; of tiles, its merged tokens and zeros behind them."""
        if self.facts.tiles is None:
            return found.reshape(len(rows), -1)
        assert self._newline is not None
        return merge_rows(rows, found, self.facts, self._newline)

    def trim(self, row: Any, vector: NDArray[Any], tokens: int) -> NDArray[Any]:
        """The tokens that an image has."""
        if self.facts.tiles is None:
            return vector
        return vector[: count_tokens(row.size, tokens, self.facts.tiles.pinpoints, self.facts.height)]

    def stretch(self, row: Any, _size: int) -> Any:
        """The row: all have one size."""
        return row

    def compare_proof(self, contents: Contents, probes: Sequence[AnyProbe], rows: Sequence[NDArray[Any]]) -> Compared:
        """The probes' pixels here against the parent's, on which graphs are judged where the family stores them.

        Raises:
            FamilyError: what it stores cannot be read.
        """
        from matexport.family.pixel_rows import compare_pixel_rows, load_pixel_rows

        stored = load_pixel_rows(contents, len(probes)) if self.facts.tiles is None else None
        if stored is None:
            return Compared(None, rows)
        parity = compare_pixel_rows(rows, stored, probes, read_pillow_version())
        return Compared(parity, [stored.get(index, row) for index, row in enumerate(rows)])

    def _fit(self, image: Image.Image, name: str) -> Any:
        """An RGB image at the size that the graph takes, or its views."""
        import numpy as np

        facts = self.facts
        if facts.tiles is not None:
            return cut_tiles(image, facts.tiles.pinpoints, facts.height, find_filter(facts))
        if facts.square is not None:
            image = pad_square(image, facts.square, name)
        if len(facts.resized) == 1:
            target = fit_shorter(image.size, facts.resized[0])
        else:
            target = (facts.resized[1], facts.resized[0]) if facts.resized else image.size
        if target[0] * target[1] > MAX_PIXELS:  # a very long image, of which the middle alone is wanted
            image, target = resize_middle(image, target, facts)
        elif facts.resized:
            image = image.resize(target, find_filter(facts))
        return crop_middle(np.asarray(image), facts.height, facts.width)


class PreparedImage(NamedTuple):
    """An image that was prepared already, by `ImageInputs.prepare_one`, and what it is called."""

    name: str
    row: Any


class NamedBytes(bytes):
    """A file's content that knows what the file is called."""

    def __new__(cls, content: bytes, name: str) -> NamedBytes:
        """Bytes with a name."""
        made = super().__new__(cls, content)
        made.name = name
        return made

    name: str


def list_views(rows: Sequence[Any]) -> list[NDArray[Any]]:
    """(height, width, 3) uint8 of all that a graph is given for some rows, in order."""
    return [view for row in rows for view in (row.views if isinstance(row, TiledImage) else [row])]


def tabulate_levels(facts: ImageFacts) -> NDArray[Any]:
    """(3, 256) float32: what each grey level of each channel becomes, in transformers' arithmetic."""
    import numpy as np

    scaled = (np.arange(256).astype(np.float64) * facts.scale).astype(np.float32)
    mean, std = (np.array(numbers, np.float32)[:, None] for numbers in (facts.mean, facts.std))
    levels: NDArray[Any] = (scaled - mean) / std
    return levels


def name_image(item: Any, index: int) -> str:
    """What messages call an image: its file, or its place."""
    if isinstance(item, NamedBytes):
        return item.name
    return os.fspath(item) if isinstance(item, str | os.PathLike) else f"image {index}"


def read_pillow_version() -> str:
    """Which version of Pillow makes rows here; ``none`` where it is not installed."""
    try:
        import PIL
    except ImportError:
        return "none"
    return str(PIL.__version__)


def silence_bombs() -> None:
    """Have Pillow not warn of images that are refused in words here; of a whole process."""
    import warnings

    from PIL import Image

    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def open_image(item: Any, index: int) -> Image.Image:
    """An item, opened but not decoded; raises RequestError, or whatever a decoder raises, where it is no image."""
    from PIL import Image

    if isinstance(item, Image.Image):
        return item.copy()  # the caller's stays open
    if isinstance(item, str | os.PathLike):
        if not Path(item).is_file():
            raise RequestError(f"{os.fspath(item)} is no file")
        source: Any = item
        size = Path(item).stat().st_size
    elif isinstance(item, bytes | bytearray | memoryview):
        source, size = io.BytesIO(item), len(item)
    else:
        return Image.fromarray(_read_array(item, index))
    if size > MAX_FILE_BYTES:
        raise RequestError(
            f"{name_image(item, index)} has {size} bytes; image files of up to {MAX_FILE_BYTES} are taken"
        )
    Image.init()  # loads the decoders, once
    return Image.open(source, formats=[name for name in FORMATS if name in Image.ID])


def _upright(image: Image.Image, name: str) -> Image.Image:
    """RGB, as it was held. As transformers opens a file; what is behind transparency shows."""
    from PIL import ImageOps

    if image.width * image.height > MAX_PIXELS:
        raise RequestError(f"{name} has {image.width} x {image.height} pixels; up to {MAX_PIXELS} are decoded")
    turned = ImageOps.exif_transpose(image)
    assert turned is not None
    return turned.convert("RGB")


def _read_array(item: Any, index: int) -> NDArray[Any]:
    import numpy as np

    try:
        array = np.asarray(item)
    except (ValueError, TypeError):
        array = np.empty(0)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise RequestError(
            f"image {index} is {type(item).__name__}"
            + (f" of {array.dtype} {array.shape}" if isinstance(item, np.ndarray) else "")
            + "; a path, a file's bytes, a Pillow image or an (H, W, 3) uint8 array is taken"
        )
    return array


def _explain(error: BaseException) -> str:
    from matexport.io.files import describe_os_error

    if isinstance(error, OSError) and error.errno:
        return describe_os_error(error)
    if type(error).__name__ == "UnidentifiedImageError":
        return "it is none of " + ", ".join(FORMATS)
    return one_line(error) or type(error).__name__
