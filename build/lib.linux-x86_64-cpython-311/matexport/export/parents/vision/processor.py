"""``preprocessor_config.json`` -> `ImageFacts`: how a parent's own processor makes pixels of an image.

What transformers' processors of these towers do is read off their files and, where a file is silent, off the defaults
of the class that it names. A step that is not known is refused by its key. That this is what the processor does is
shown by running it: the pixels of every probe are compared with those that the judge's processor gives.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from matexport.errors import ParentError, RequestError
from matexport.export.parents.folder.files import CONFIG, read_object
from matexport.family.modality import MAX_SIDE
from matexport.spec.inputs import ImageFacts, Resampling, TileFacts

PREPROCESSOR = "preprocessor_config.json"

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
STANDARD = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

#: (height, width) of what LLaVA-NeXT fits an image into where its file does not say, and the key that does.
PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
_PINPOINTS = "image_grid_pinpoints"

_CROPPED = {
    "size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "resample": 3,
    "image_mean": OPENAI[0], "image_std": OPENAI[1], "default_to_square": False,
}  # fmt: skip
_WHOLE = {"size": {"height": 224, "width": 224}, "do_center_crop": False, "resample": 2}

#: Class of a processor, without its suffix -> what it does where its file does not say.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "CLIPImageProcessor": _CROPPED,
    "BitImageProcessor": _CROPPED,
    "LlavaImageProcessor": {**_CROPPED, "do_pad": False},
    "LlavaNextImageProcessor": {**_CROPPED, "image_grid_pinpoints": PINPOINTS},
    "ViTImageProcessor": {**_WHOLE, "image_mean": STANDARD[0], "image_std": STANDARD[1]},
    "SiglipImageProcessor": {**_WHOLE, "resample": 3, "image_mean": STANDARD[0], "image_std": STANDARD[1]},
    "DINOv3ViTImageProcessor": {**_WHOLE, "image_mean": IMAGENET[0], "image_std": IMAGENET[1]},
}

#: `model_type` of a configuration -> the processor of its model.
_BY_MODEL: Mapping[str, str] = {
    "vit": "ViTImageProcessor",
    "dinov2": "BitImageProcessor",
    "dinov2_with_registers": "BitImageProcessor",
    "dinov3_vit": "DINOv3ViTImageProcessor",
    "clip": "CLIPImageProcessor",
    "siglip": "SiglipImageProcessor",
    "llava": "LlavaImageProcessor",
    "llava_next": "LlavaNextImageProcessor",
}

#: What other names a class has had.
_SUFFIXES = ("Fast", "Pil")
_FORMER = "FeatureExtractor"

#: Keys that decide nothing of what comes out for an RGB image, or that are read below.
_READ = frozenset({
    "size", "crop_size", "do_center_crop", "do_resize", "do_rescale", "do_normalize", "do_pad", "resample",
    "rescale_factor", "image_mean", "image_std",
})  # fmt: skip
_IDLE = frozenset({
    "image_processor_type", "feature_extractor_type", "processor_class", "do_convert_rgb", "default_to_square",
    "data_format", "input_data_format", "device", "return_tensors", "disable_grouping", "_processor_class",
    "use_square_size", "crop_pct", "auto_map", "image_seq_length",
})  # fmt: skip

#: Pillow's numbers for its filters.
_FILTERS = (
    Resampling.NEAREST,
    Resampling.LANCZOS,
    Resampling.BILINEAR,
    Resampling.BICUBIC,
    Resampling.BOX,
    Resampling.HAMMING,
)


def read_processor(folder: Path, input_name: str = "pixel_values") -> ImageFacts:
    """What a parent's folder says of how its images are prepared.

    Raises:
        ParentError: there is no such file, its processor is not known, or it does something that is not.
    """
    path = folder / PREPROCESSOR
    if not path.is_file():
        raise ParentError(f"{folder} has no {PREPROCESSOR}, so nothing says how its images are prepared")
    said = read_object(path)
    name = _name_processor(said, path)
    asked = {**DEFAULTS[name], **{key: value for key, value in said.items() if value is not None}}
    known = _READ | _IDLE | set(DEFAULTS[name])
    unknown = sorted(key for key, value in said.items() if key not in known and value not in (None, False))
    if unknown:
        raise ParentError(f"{path}: {unknown[0]} = {said[unknown[0]]!r} is not known of {name}")
    if _PINPOINTS in asked:
        return _describe_tiles(asked, path, input_name)
    return _describe(asked, path, input_name)


def settle_size(facts: ImageFacts, asked: int | None, patch: int, source: str) -> ImageFacts:
    """How images are prepared for graphs of another size than the processor's.

    The crop becomes asked x asked, and what is resized before it follows in proportion: of "shorter side 256, centre
    224" and 518 asked, "shorter side 592, centre 518". So a picture shows as much of what it is of as before.

    Args:
        asked: side of a square; None for the processor's own size.
        patch: what the side has to be a multiple of.

    Raises:
        RequestError: it is no multiple, or too large, or the processor's own images are no squares.
    """
    if asked is None:
        return facts
    if facts.height != facts.width:
        raise RequestError(
            f"image_size={asked} was asked; the processor of {source} makes images of {facts.height} x {facts.width}, "
            "which are no squares: leave image_size out"
        )
    if asked < 1 or asked % patch:
        below = max(1, asked // patch) * patch
        raise RequestError(
            f"image_size={asked} was asked; {source} cuts images into patches of {patch} x {patch}: ask for a multiple "
            f"of {patch}, such as {below} or {below + patch}"
        )
    resized = tuple(scale_side(side, asked, facts.height) for side in facts.resized)
    if max(asked, *resized, 0) > MAX_SIDE:
        raise RequestError(f"image_size={asked} was asked; images of up to {MAX_SIDE} x {MAX_SIDE} are made")
    return replace(facts, height=asked, width=asked, resized=resized)


def scale_side(side: int, asked: int, own: int) -> int:
    """A side in proportion, a half rounded up."""
    return (2 * side * asked + own) // (2 * own)


def resize_processor(content: bytes, facts: ImageFacts) -> bytes:
    """A processor's file for images of another size, as transformers reads it: for other consumers of a family."""
    said = json.loads(content)
    if len(facts.resized) == 1:
        said["size"] = {"shortest_edge": facts.resized[0]}
    elif facts.resized:
        said["size"] = {"height": facts.resized[0], "width": facts.resized[1]}
    if said.get("crop_size") is not None or facts.resized != (facts.height, facts.width):
        said["crop_size"] = {"height": facts.height, "width": facts.width}
    return (json.dumps(said, indent=2) + "\n").encode()


def _name_processor(said: Mapping[str, Any], path: Path) -> str:
    given = said.get("image_processor_type") or said.get("feature_extractor_type")
    if given is None and (path.parent / CONFIG).is_file():  # then transformers goes by the model
        given = _BY_MODEL.get(str((read_object(path.parent / CONFIG) or {}).get("model_type")))
    name = str(given or "").replace(_FORMER, "ImageProcessor")
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    if name not in DEFAULTS:
        raise ParentError(f"{path}: its processor is {given!r}; known: {', '.join(sorted(DEFAULTS))}")
    return name


def _describe(asked: Mapping[str, Any], path: Path, input_name: str) -> ImageFacts:
    resized = _read_size(asked["size"], path, "size", bool(asked.get("default_to_square", True)))
    if not asked.get("do_resize", True):
        resized = ()
    cropped: tuple[int, ...] = resized
    if asked.get("do_center_crop"):
        cropped = _read_size(asked["crop_size"], path, "crop_size", square=True)
    if len(cropped) != 2:
        raise ParentError(
            f"{path}: images would keep their sides (size = {asked['size']!r}, no crop); a graph takes one size"
        )
    normalized = asked.get("do_normalize", True)
    square = None
    if asked.get("do_pad"):
        square = tuple(int(part * 255) for part in asked["image_mean"])
    return ImageFacts(
        input_name,
        cropped[0],
        cropped[1],
        resized,
        _read_filter(asked["resample"], path),
        float(asked.get("rescale_factor", 1 / 255)) if asked.get("do_rescale", True) else 1.0,
        _read_channels(asked["image_mean"], path, "image_mean") if normalized else (0.0, 0.0, 0.0),
        _read_channels(asked["image_std"], path, "image_std") if normalized else (1.0, 1.0, 1.0),
        square,
    )


def _describe_tiles(asked: Mapping[str, Any], path: Path, input_name: str) -> ImageFacts:
    """Of LLaVA-NeXT: the whole image and its tiles, all of one size, so that no tile is resized or cut once more."""
    pinpoints = read_pinpoints(asked[_PINPOINTS], str(path))
    # What this processor calls padding is done to batches, and not to images.
    facts = _describe({**asked, "do_pad": False}, path, input_name)
    side = facts.height
    if facts.resized not in ((side,), (side, side)) or facts.width != side:
        raise ParentError(
            f"{path}: size = {asked['size']!r} and crop_size = {asked['crop_size']!r}, so tiles would be resized once "
            "more or cut; tiles of one size are read"
        )
    if wrong := next((pinpoint for pinpoint in pinpoints if any(length % side for length in pinpoint)), None):
        raise ParentError(f"{path}: {wrong[0]} x {wrong[1]} is not cut into tiles of {side} x {side}")
    return msgspec.structs.replace(facts, resized=(side, side), tiles=TileFacts(pinpoints))


def read_pinpoints(said: Any, where: str) -> tuple[tuple[int, int], ...]:
    """(height, width) of each.

    Raises:
        ParentError: it is no list of two whole numbers each.
    """
    pairs = said if isinstance(said, list | tuple) else ()
    found = tuple(tuple(pair) if isinstance(pair, list | tuple) else () for pair in pairs)
    if not found or not all(len(pair) == 2 and all(type(n) is int and n > 0 for n in pair) for pair in found):
        raise ParentError(f"{where}: {_PINPOINTS} = {said!r} is no list of [height, width]")
    return found


def _read_size(size: Any, path: Path, key: str, square: bool) -> tuple[int, ...]:
    """(height, width), or (shorter side,). A bare number is a square, or the shorter side where the file says so."""
    if isinstance(size, int) and not isinstance(size, bool):
        return (size, size) if square else (size,)
    found: tuple[Any, ...]
    if isinstance(size, dict) and set(size) == {"height", "width"}:
        found = (size["height"], size["width"])
    elif isinstance(size, dict) and set(size) == {"shortest_edge"}:
        found = (size["shortest_edge"],)
    else:
        raise ParentError(f"{path}: {key} = {size!r} is not known: height and width, or shortest_edge")
    if not all(isinstance(side, int) and side > 0 for side in found):
        raise ParentError(f"{path}: {key} = {size!r} is no size")
    return found


def _read_filter(number: Any, path: Path) -> Resampling:
    if not isinstance(number, int) or not 0 <= number < len(_FILTERS):
        raise ParentError(f"{path}: resample = {number!r} is no filter of Pillow (0 to {len(_FILTERS) - 1})")
    return _FILTERS[number]


def _read_channels(numbers: Any, path: Path, key: str) -> tuple[float, float, float]:
    if (
        not isinstance(numbers, list | tuple)
        or len(numbers) != 3
        or not all(isinstance(n, int | float) for n in numbers)
    ):
        raise ParentError(f"{path}: {key} = {numbers!r} is not three numbers")
    red, green, blue = map(float, numbers)
    return red, green, blue
