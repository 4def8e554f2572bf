"""Images that the package draws itself: the probes that a family of a vision parent is proven on, and what it is
calibrated on where the job gives none. All of the forms that files come in, and none that needs to be shipped. And what
the proof keeps of their pixels.

They are drawn, and not random pixels alone: a tower sees noise of any seed as the same thing.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from matexport.errors import ParentError, RequestError
from matexport.export.parents.plan import Plan
from matexport.family.pixel_rows import choose_pixel_rows, pack_pixel_rows
from matexport.io.files import list_images
from matexport.runtime.inputs.image import ImageInputs
from matexport.spec.inputs import ImageFacts
from matexport.spec.parity import MOST_LEVELS
from matexport.spec.probe import ImageProbe

#: Images that ranges are measured on where the job gives none.
CALIBRATION_IMAGES = 64

#: More do not move a percentile; the first of a larger folder are taken.
MAX_CALIBRATION_IMAGES = 256

#: EXIF: the camera was turned to the right.
_ORIENTATION, _TURNED = 0x0112, 6


@cache
def draw_probes() -> tuple[ImageProbe, ...]:
    """The shipped probes: one image for each way in which files differ."""
    drawn = {
        "gradient.png": _save(_draw_gradient(320, 240)),
        "shapes.png": _save(_draw_shapes(256, 256, seed=1)),
        "noise.png": _save(_draw_noise(200, 260, seed=2)),
        "soft-noise.png": _save(_draw_clouds(300, 300, seed=3)),
        "text.png": _save(_draw_text(400, 160)),
        "stripes.png": _save(_draw_stripes(224, 224, 3)),
        "checks.png": _save(_draw_stripes(250, 333, 16, both=True)),
        "wide.png": _save(_draw_shapes(900, 40, seed=4)),
        "tall.png": _save(_draw_shapes(30, 700, seed=5)),
        "tiny.png": _save(_draw_shapes(9, 7, seed=6)),
        "one-pixel.png": _save(Image.new("RGB", (1, 1), (200, 30, 90))),
        "large.png": _save(_draw_shapes(1200, 800, seed=7)),
        "black.png": _save(Image.new("RGB", (64, 48))),
        "white.png": _save(Image.new("RGB", (48, 64), "white")),
        "grey.png": _save(_draw_clouds(210, 180, seed=8).convert("L")),
        "grey-and-alpha.png": _save(_draw_clouds(128, 140, seed=9).convert("LA")),
        "one-bit.png": _save(_draw_shapes(160, 120, seed=10).convert("1")),
        "palette.png": _save(_draw_shapes(180, 200, seed=11).convert("P", palette=Image.Palette.ADAPTIVE, colors=16)),
        "transparent.png": _save(_fade(_draw_shapes(190, 150, seed=12))),
        "sixteen-bit.png": _save(_draw_sixteen_bit(150, 170)),
        "photo.jpg": _save(_draw_clouds(333, 250, seed=13), "JPEG", quality=85),
        "cmyk.jpg": _save(_draw_shapes(240, 200, seed=14).convert("CMYK"), "JPEG", quality=90),
        "turned.jpg": _save(_draw_text(260, 140), "JPEG", quality=90, exif=_turn()),
        "animation.gif": _save(_draw_shapes(120, 90, seed=15).convert("P"), "GIF"),
        "bitmap.bmp": _save(_draw_gradient(70, 110), "BMP"),
        "layers.tif": _save(_draw_shapes(130, 130, seed=16), "TIFF"),
    }  # fmt: skip
    return tuple(ImageProbe(name, content) for name, content in drawn.items())


@cache
def draw_calibration() -> tuple[ImageProbe, ...]:
    """Images that are no probes: shapes, clouds and noise of other seeds."""
    makers: tuple[Callable[..., Image.Image], ...] = (_draw_shapes, _draw_clouds, _draw_shapes, _draw_noise)
    return tuple(
        ImageProbe(f"drawn-{index:02d}.png", _save(makers[index % len(makers)](256, 224, seed=1000 + index)))
        for index in range(CALIBRATION_IMAGES)
    )


def read_folder(folder: Path, least: int, most: int, what: str) -> tuple[ImageProbe, ...]:
    """The images of a user's folder, as probes, in the order of their names; evenly spread where there are too many.

    Args:
        what: names them in messages, such as ``the probes``.

    Raises:
        RequestError: the folder cannot be read, or has too few.
    """
    found = list_images(folder)
    files = [found[place * len(found) // most] for place in range(most)] if len(found) > most else found
    if len(files) < least:
        raise RequestError(f"{what}: {folder} has {len(files)} images; at least {least} are needed")
    try:
        return tuple(ImageProbe(path.relative_to(folder).as_posix(), path.read_bytes()) for path in files)
    except OSError as error:
        raise RequestError(f"{what}: {error.filename} cannot be read: {error.strerror}") from None


def keep_pixels(plan: Plan, theirs: Sequence[NDArray[np.float32]] | NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """The parent's own pixels, normalised, as grey levels for the proof; checked alone where graphs take other things.

    Args:
        theirs: what the parent's own processor makes of each probe: (3, H, W), or (views, 3, H, W) of tiles.

    Raises:
        ParentError: as `check_pixels`.
    """
    check_pixels(plan, theirs)
    facts, shipped = plan.inputs, plan.shipped_inputs
    assert isinstance(facts, ImageFacts)
    assert isinstance(shipped, ImageFacts)
    if facts.tiles is not None or shipped.in_graph:
        return {}
    chosen = choose_pixel_rows([np.empty((facts.height, facts.width, 3), np.uint8)] * len(theirs))
    mean, std = (np.array(part, np.float64)[:, None, None] for part in (facts.mean, facts.std))
    kept = {}
    for index in chosen:
        levels = np.rint((theirs[index].astype(np.float64).reshape(facts.shape) * std + mean) / facts.scale)
        kept[index] = np.ascontiguousarray(levels.clip(0, 255).transpose(1, 2, 0), np.uint8)
    return pack_pixel_rows(kept)


def check_pixels(plan: Plan, theirs: Sequence[NDArray[np.float32]] | NDArray[np.float32]) -> None:
    """Refuse a processor that was read wrongly.

    Args:
        theirs: as for `keep_pixels`.

    Raises:
        ParentError: naming the first image with a pixel that is off by more than `MOST_LEVELS` grey levels.
    """
    facts = plan.inputs
    assert isinstance(facts, ImageFacts)
    inputs = ImageInputs(facts)
    level = facts.scale / np.array(facts.std, np.float64)[:, None, None]
    for probe, expected in zip(plan.probes, theirs, strict=True):
        ours = inputs.feed([inputs.prepare_probe(probe)])[facts.input]
        ours = ours if expected.ndim == ours.ndim else ours[0]
        if ours.shape != expected.shape:
            raise ParentError(
                f"the parent's own processor makes {expected.shape} of {probe.describe()}; {ours.shape} was read off "
                "its file"
            )
        off = float((np.abs(ours.astype(np.float64) - expected) / level).max())
        if not off <= MOST_LEVELS + 1e-3:
            raise ParentError(
                f"the parent's own processor gives other pixels for {probe.describe()} than was read off its file, by "
                f"up to {off:.1f} grey levels ({MOST_LEVELS} allowed)"
            )


def _save(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _draw_gradient(width: int, height: int) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    levels = np.stack([columns / width, rows / height, (rows + columns) / (width + height)], axis=-1)
    return Image.fromarray((levels * 255).astype(np.uint8))


def _draw_shapes(width: int, height: int, *, seed: int) -> Image.Image:
    draws = np.random.default_rng(seed)
    image = Image.new("RGB", (width, height), _draw_colour(draws))
    canvas = ImageDraw.Draw(image)
    for place in range(14):
        left, right = sorted(draws.integers(0, width, 2).tolist())
        top, bottom = sorted(draws.integers(0, height, 2).tolist())
        draw = (canvas.rectangle, canvas.ellipse)[place % 2]
        draw((left, top, right, bottom), fill=_draw_colour(draws), outline=_draw_colour(draws))
    return image


def _draw_colour(draws: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = draws.integers(0, 256, 3).tolist()
    return red, green, blue


def _draw_noise(width: int, height: int, *, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def _draw_clouds(width: int, height: int, *, seed: int) -> Image.Image:
    """Noise at several scales, as photographs have it."""
    draws = np.random.default_rng(seed)
    levels: NDArray[np.float64] = np.zeros((height, width, 3))
    for size in (3, 7, 19, 43):
        coarse = Image.fromarray(draws.integers(0, 256, (size, size, 3), np.uint8))
        levels += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float64) / size
    levels -= levels.min()
    return Image.fromarray((levels / levels.max() * 255).astype(np.uint8))


def _draw_text(width: int, height: int) -> Image.Image:
    image = Image.new("RGB", (width, height), (245, 240, 220))
    canvas = ImageDraw.Draw(image)
    for line, text in enumerate(("Nested like dolls:", "eight, sixteen,", "thirty-two ...")):
        canvas.text((12, 12 + line * height // 4), text, fill=(20, 30, 90))
    return image


def _draw_stripes(width: int, height: int, period: int, *, both: bool = False) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width] // period
    dark = (rows + columns if both else columns) % 2
    return Image.fromarray((dark[..., None] * np.array([230, 90, 20])).astype(np.uint8))


def _fade(image: Image.Image) -> Image.Image:
    image.putalpha(_draw_gradient(*image.size).convert("L"))
    return image


def _draw_sixteen_bit(width: int, height: int) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray((rows * columns % 400).astype(np.uint16))


def _turn() -> Image.Exif:
    exif = Image.Exif()
    exif[_ORIENTATION] = _TURNED
    return exif
