"""An image's preparation in a graph, against Pillow's: squared, resized, cut and normalised by an oracle of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx_ir import convenience
from PIL import Image

from matexport.export.graph.edit import assert_sound
from matexport.export.graph.pixels import FILTERS, make_preparation, put_preparation_in_front
from matexport.family.graph_file import check_graph
from matexport.spec.inputs import ImageFacts, Resampling

Array = NDArray[Any]

MEAN, STD = (0.5, 0.4, 0.6), (0.5, 0.3, 0.2)
PILLOW = {Resampling.BILINEAR: Image.Resampling.BILINEAR, Resampling.BICUBIC: Image.Resampling.BICUBIC}

#: Rows and columns: of one pixel, long and thin, smaller and larger than what is made of them, of like and odd sides;
#: some whose rows Pillow resamples first (260 x 200), and some whose columns (200 x 260).
SIZES = [
    (1, 1), (1, 4000), (4000, 1), (2, 3), (9, 7), (40, 900), (700, 30), (28, 28), (27, 29), (260, 200), (200, 260),
    (333, 250), (100, 300), (300, 100), (640, 801),
]  # fmt: skip

#: What a processor does: height and width, what is resized to, the filter, the colour of a square.
WAYS: Mapping[str, tuple[tuple[int, int], tuple[int, ...], Resampling, tuple[int, int, int] | None]] = {
    "vit": ((28, 28), (28, 28), Resampling.BILINEAR, None),
    "siglip": ((40, 24), (40, 24), Resampling.BICUBIC, None),
    "large": ((224, 224), (224, 224), Resampling.BICUBIC, None),
    "clip": ((28, 28), (32,), Resampling.BICUBIC, None),
    "resnet": ((28, 28), (32,), Resampling.BILINEAR, None),
    "llava": ((28, 28), (28,), Resampling.BICUBIC, (122, 116, 104)),
    "a square, cut": ((24, 20), (31,), Resampling.BICUBIC, (9, 200, 77)),
    "a square, with black around it": ((60, 59), (33, 47), Resampling.BILINEAR, (1, 200, 255)),
    "black on one side": ((40, 20), (33,), Resampling.BICUBIC, None),
    "black around it": ((51, 48), (33, 31), Resampling.BICUBIC, None),
    "not resized": ((30, 51), (), Resampling.LANCZOS, None),
}


class Off(NamedTuple):
    """The largest difference in grey levels of 255, and the share of levels that are the same."""

    worst: float
    same: float


def describe(way: str) -> ImageFacts:
    (height, width), resized, resampling, square = WAYS[way]
    return ImageFacts("image", height, width, resized, resampling, 1 / 255, MEAN, STD, square, in_graph=True)


def draw(height: int, width: int) -> Array:
    """Noise with flat parts: overshoot at their edges is clipped between the passes."""
    draws = np.random.default_rng(height * 10_000 + width)
    image = draws.integers(0, 256, (height, width, 3), np.uint8)
    image[height // 3 : height // 2] = (250, 3, 128)
    image[:, width // 2 : 2 * width // 3] = (0, 255, 30)
    return image


def prepare(pixels: Array, way: str) -> Array:
    """(height, width, 3) grey levels, by Pillow's own square, resize and crop."""
    (height, width), resized, resampling, square = WAYS[way]
    image = Image.fromarray(pixels)
    if square is not None:
        side = max(image.size)
        canvas = Image.new("RGB", (side, side), square)
        canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = canvas
    wide, high = image.size
    if len(resized) == 2:
        high, wide = resized
    elif resized:
        short = min(wide, high)
        wide, high = resized[0] * wide // short, resized[0] * high // short
    if resized:
        image = image.resize((wide, high), PILLOW[resampling])
    left, top = (wide - width) // 2, (high - height) // 2
    return np.asarray(image.crop((left, top, left + width, top + height)))  # black where there is nothing


def compare(model: ir.Model, way: str, sizes: list[tuple[int, int]] = SIZES, *, optimized: bool = True) -> Off:
    options = ort.SessionOptions()
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    worst, same, count = 0.0, 0, 0
    for size in sizes:
        pixels = draw(*size)
        (found,) = session.run(None, {"image": pixels[None]})
        levels = (found[0].transpose(1, 2, 0) * np.array(STD) + np.array(MEAN)) * 255
        expected = prepare(pixels, way)
        assert levels.shape == expected.shape
        assert found.dtype == np.float32
        off = np.abs(levels - expected)
        worst, same, count = max(worst, float(off.max())), same + int((off < 0.01).sum()), count + off.size
    return Off(worst, same / count)


@pytest.mark.parametrize("way", WAYS)
def test_levels_are_those_of_pillow(way: str) -> None:
    """One grey level is what is allowed; none is what there is."""
    model = make_preparation(describe(way))
    assert_sound(model)
    off = compare(model, way)
    assert off.worst <= 1
    assert off.same == 1
    assert compare(model, way, [(9, 7), (260, 200)], optimized=False).same == 1, "whatever onnxruntime fuses"


def test_numbers_are_those_of_transformers_to_the_bit() -> None:
    """Grey levels by float64, the rest by float32, as its processors do."""
    (found,) = run(make_preparation(describe("not resized")), draw(30, 51))
    scaled = (draw(30, 51).astype(np.float64) * (1 / 255)).astype(np.float32)
    expected = (scaled - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    assert (found.transpose(1, 2, 0) == expected).all()


def run(model: ir.Model, pixels: Array) -> Array:
    found: Array = ort.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, {"image": pixels[None]})[0]
    return found


# --- each step done subtly wrong is noticed


def change(model: ir.Model, name: str, content: object, dtype: type = np.float64) -> None:
    model.graph.initializers[f"image.{name}"].const_value = ir.tensor(np.array(content, dtype), name=f"image.{name}")


def find(model: ir.Model, name: str) -> ir.Node:
    return next(node for node in model.graph if node.name == f"image.{name}")


def pass_by(model: ir.Model, name: str, value: ir.Value) -> None:
    """Have the readers of a node read another value."""
    convenience.replace_all_uses_with(find(model, name).outputs[0], value)


def use_onnx_cubic(model: ir.Model) -> None:
    """ONNX's default coefficient, -0.75."""
    for name, number in (("-0.5", -0.75), ("1.5", 1.25), ("2.5", 2.25)):
        change(model, name, number)


def leave_out_antialias(model: ir.Model) -> None:
    for axis in ("rows", "columns"):
        pass_by(model, f"{axis}.narrow", model.graph.initializers["image.1.0"])


def swap_channels(model: ir.Model) -> None:
    order = ir.Value(name="order", const_value=ir.tensor(np.array([2, 1, 0]), name="order"))
    model.graph.initializers.add(order)
    (image,), first = model.graph.inputs, find(model, "only")
    node = ir.node("Gather", [image, order], {"axis": 3})
    node.outputs[0].name = "swapped"
    model.graph.insert_before(first, node)
    first.replace_input_with(0, node.outputs[0])


def cut_beside(axis: str) -> Callable[[ir.Model], None]:
    def cut(model: ir.Model) -> None:
        kept = model.graph.initializers[f"image.{axis}.kept"]
        assert kept.const_value is not None
        change(model, f"{axis}.kept", kept.const_value.numpy() + 1)

    return cut


def pad_beside(model: ir.Model) -> None:
    """An odd rest above, and not below."""
    before = find(model, "rows.before")
    node = ir.node("Add", [find(model, "rows.padding").outputs[0], model.graph.initializers["image.[1]"]])
    node.outputs[0].name = "one-more"
    model.graph.insert_before(before, node)
    before.replace_input_with(0, node.outputs[0])


def sample_corners(model: ir.Model) -> None:
    """Pixels are points at whole numbers, and not squares."""
    for axis in ("rows", "columns"):
        pass_by(model, f"{axis}.middle", find(model, f"{axis}.known").outputs[0])


def resample_columns_first(model: ir.Model) -> None:
    """As Pillow did before its version 13."""
    find(model, "split").replace_input_with(0, model.graph.initializers["image.[0]"])


def forget_to_clip(model: ir.Model) -> None:
    for way in ("rows", "columns"):
        pass_by(model, f"{way}-first.1.clip", find(model, f"{way}-first.1.floor").outputs[0])


def swap_colours(model: ir.Model) -> None:
    change(model, "colour", np.array([104, 116, 122]).reshape(3, 1, 1))


WRONG: Mapping[str, tuple[str, Callable[[ir.Model], None]]] = {
    "the cubic coefficient": ("clip", use_onnx_cubic),
    "no antialias": ("clip", leave_out_antialias),
    "no antialias, linear": ("vit", leave_out_antialias),
    "BGR": ("clip", swap_channels),
    "one row below": ("clip", cut_beside("rows")),
    "one column to the right": ("clip", cut_beside("columns")),
    "the square's odd rest": ("llava", pad_beside),
    "the square's colour": ("llava", swap_colours),
    "corners": ("vit", sample_corners),
    "the order of the passes": ("large", resample_columns_first),
    "no clip between the passes": ("large", forget_to_clip),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_subtly_wrong_is_noticed(case: str) -> None:
    way, spoil = WRONG[case]
    model = make_preparation(describe(way))
    spoil(model)
    assert compare(model, way).worst > 1


def test_the_rounding_between_the_passes_is_noticed() -> None:
    """It is less than a level each, which float32 parity does not bear."""
    model = make_preparation(describe("clip"))
    for way in ("rows", "columns"):
        clip = find(model, f"{way}-first.1.clip")
        clip.replace_input_with(0, find(model, f"{way}-first.1.level").outputs[0])
    off = compare(model, "clip")
    assert off.worst <= 1 + 1e-3
    assert off.same < 0.999


# --- in front of a graph


def test_what_is_in_front_is_sound_and_passes_the_guard() -> None:
    for way in WAYS:
        facts = describe(way)
        model = make_preparation(facts)
        assert check_graph("pixels.onnx", ir.to_proto(model).SerializeToString(), {}, facts) is not None
        names = [str(node.name) for node in model.graph]
        assert len(set(names)) == len(names)


def test_what_cannot_be_in_front_is_refused() -> None:
    model = make_preparation(describe("clip"))
    for other in set(Resampling) - set(FILTERS):
        facts = ImageFacts("image", 8, 8, (8, 8), other, 1 / 255, MEAN, STD, in_graph=True)
        with pytest.raises(ValueError, match=other):
            put_preparation_in_front(model, facts)
