"""LLaVA-NeXT's geometry, held to transformers' own functions: pinpoints, sizes, tiles, and which tokens are kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.numpy import save
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.models.llava_next import modeling_llava_next as theirs

from matexport.errors import FamilyError
from matexport.family.modality import NEWLINE, NEWLINE_FILE
from matexport.runtime.inputs import tiles
from matexport.runtime.inputs.image import ImageInputs
from matexport.spec.inputs import ImageFacts, Resampling, TileFacts

#: Those of LLaVA-NeXT, and others in which two fit alike.
PINPOINTS = (
    ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)),
    ((672, 672), (336, 672), (336, 336), (672, 336), (336, 2016)),
)
SIDE = 336


def draw_sizes() -> list[tuple[int, int]]:
    draws = np.random.default_rng(11)
    plain = [(int(high), int(wide)) for high, wide in draws.integers(1, 2000, (300, 2))]
    odd = [(1, 1), (1, 3000), (3000, 1), (336, 672), (672, 672), (337, 671), (2, 999), (500, 1501), (3, 7)]
    return plain + odd


@pytest.mark.parametrize("pinpoints", PINPOINTS)
def test_sizes_are_those_of_transformers(pinpoints: tuple[tuple[int, int], ...]) -> None:
    for size in draw_sizes():
        pinpoint = tiles.choose_pinpoint(size, pinpoints)
        assert pinpoint == select_best_resolution(size, pinpoints), size
        blank = np.empty((3, *size), np.uint8)
        assert tiles.fit_into(size, pinpoint) == get_patch_output_size(blank, pinpoint, "channels_first"), size


@pytest.mark.parametrize("pinpoints", PINPOINTS)
@pytest.mark.parametrize("part", [1, 3, 6, 12, 24])
def test_merged_tokens_are_those_of_transformers(part: int, pinpoints: tuple[tuple[int, int], ...]) -> None:
    """Each token is its own number, so that one that is lost, moved or doubled shows."""
    from types import SimpleNamespace

    vision = SimpleNamespace(image_size=SIDE, patch_size=SIDE // part)
    fake = SimpleNamespace(
        config=SimpleNamespace(vision_config=vision, image_grid_pinpoints=[list(pair) for pair in pinpoints])
    )
    facts = ImageFacts("pixels", SIDE, SIDE, (SIDE, SIDE), Resampling.BICUBIC, 1 / 255, (0, 0, 0), (1, 1, 1))
    most = ImageFacts(**{name: getattr(facts, name) for name in facts.__struct_fields__ if name != "tiles"},
                      tiles=TileFacts(pinpoints)).count_most_tokens(part**2)  # fmt: skip
    newline = np.array([-1.0, -2.0], np.float32)
    lengths = set()
    for size in draw_sizes()[::3]:
        height, width = tiles.choose_pinpoint(size, pinpoints)
        views = 1 + (height // SIDE) * (width // SIDE)
        numbers = np.arange(views * part**2 * 2, dtype=np.float32).reshape(views, part**2, 2)
        ours = tiles.merge_tiles(numbers, size, pinpoints=pinpoints, side=SIDE, newline=newline)
        (expected,), _ = theirs.LlavaNextModel.pack_image_features(
            fake, [torch.from_numpy(numbers)], torch.tensor([size]), "default", torch.from_numpy(newline)
        )
        np.testing.assert_array_equal(ours, expected.numpy())
        assert len(ours) == tiles.count_tokens(size, part**2, pinpoints, SIDE) <= most
        lengths.add(len(ours))
    assert len(lengths) > 1
    exact = max(tiles.count_tokens(pinpoint, part**2, pinpoints, SIDE) for pinpoint in pinpoints)
    assert exact == most  # of an image that fills what it is fitted into


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (333, 2), (48, 96), (50, 70), (97, 31), (64, 200)])
def test_tiles_are_those_of_the_processor(size: tuple[int, int]) -> None:
    try:
        from transformers.models.llava_next.image_processing_pil_llava_next import (
            LlavaNextImageProcessorPil as Processor,
        )
    except ImportError:  # transformers 4 has one on Pillow and one on torchvision, and this is the first
        from transformers import LlavaNextImageProcessor as Processor

    if size[0] == 1 and transformers.__version__ < "5":
        pytest.skip("transformers 4 takes one row of pixels for one channel")
    pinpoints = ((48, 96), (96, 48), (96, 96), (144, 48), (48, 144))
    mean, std = (0.5, 0.4, 0.6), (0.5, 0.3, 0.2)
    processor = Processor(
        size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}, image_mean=mean, image_std=std,
        image_grid_pinpoints=[list(pair) for pair in pinpoints],
    )  # fmt: skip
    facts = ImageFacts("pixels", 48, 48, (48, 48), Resampling.BICUBIC, 1 / 255, mean, std, tiles=TileFacts(pinpoints))
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (*size, 3), np.uint8))
    expected = processor(images=image, return_tensors="np")["pixel_values"][0]
    inputs = ImageInputs(facts)
    (row,) = inputs.prepare([image])
    assert (row.size, inputs.size(row)) == (size, len(expected))
    np.testing.assert_array_equal(inputs.feed([row])["pixels"], expected)
    assert inputs.weigh(image, 0) == 3 * 48 * 48 * 5


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"other": np.zeros(2, np.float32)}, "has no float32 'image_newline' of one row"),
        ({NEWLINE: np.zeros((2, 2), np.float32)}, "has no float32 'image_newline' of one row"),
        ({NEWLINE: np.zeros(2, np.float64)}, "has no float32 'image_newline' of one row"),
        ({NEWLINE: np.array([0, np.nan], np.float32)}, "not finite"),
    ],
)
def test_a_newline_that_is_none(content: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(FamilyError, match=words):
        tiles.read_newline(save(content))
    with pytest.raises(FamilyError, match=NEWLINE_FILE):
        tiles.read_newline(save({NEWLINE: np.zeros(9, np.float32)})[:-8])
    np.testing.assert_array_equal(tiles.read_newline(save({NEWLINE: np.arange(3.0, dtype=np.float32)})), [0, 1, 2])


def test_a_newline_of_another_width() -> None:
    facts = ImageFacts(
        "pixels", 4, 4, (4, 4), Resampling.BICUBIC, 1.0, (0, 0, 0), (1, 1, 1), tiles=TileFacts(((4, 8),))
    )
    row = tiles.TiledImage(np.zeros((3, 4, 4, 3), np.uint8), (4, 8))
    with pytest.raises(FamilyError, match="has 2 numbers, and visual tokens have 5"):
        ImageInputs(facts, np.zeros(2, np.float32)).gather([row], np.zeros((3, 4, 5), np.float32))
