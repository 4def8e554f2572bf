"""Graphs for another size of images than the parent's processor makes: pixels, positions, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from conftest import make_once
from msgspec.structs import replace
from numpy.typing import NDArray
from vision import CROPPED, PATCH, TOWERS, WHOLE, WIDTH, TowerOracle, make_tower, prepare, save_images

import matexport
from matexport.errors import DestinationError, ParentError, ParityError, RequestError
from matexport.export import export_family
from matexport.export.kinds.probes import image as image_probes
from matexport.export.parents.vision import module as vision_module
from matexport.export.parents.vision import processor as vision_processor
from matexport.runtime.inputs.image import ImageInputs
from matexport.spec.inputs import ImageFacts, Resampling
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.profile import Point
from matexport.spec.readout import PoolingMode, ReadoutRequest

pytestmark = pytest.mark.usefixtures("quick_traces")

#: Six patches wide. dinov2 has a table for eight and a processor that gives four; the others have four of both.
ASKED, GRID = 42, 6
POINTS = (Point(1, 8), Point(3, 24))

#: Kind -> its processor with the size that is asked for: the side that is resized to grows in proportion, 32 * 42 / 28.
SIZES: Mapping[str, Mapping[str, Any]] = {
    "dinov2": {**CROPPED, "size": {"shortest_edge": 48}},
    "vit": {**WHOLE, "size": {"height": ASKED, "width": ASKED}},
    "clip": {**CROPPED, "size": {"shortest_edge": 48}},
    "dinov3": {**WHOLE, "size": {"height": ASKED, "width": ASKED}},
}


@pytest.fixture(scope="session")
def probes(shared: Path) -> Path:
    def make() -> None:
        folder.mkdir()
        for probe in image_probes.draw_probes()[:4]:
            (folder / probe.name).write_bytes(probe.content)

    folder = shared / "size-probes"
    return make_once(folder, make)


@pytest.fixture(scope="session")
def towers(shared: Path) -> Callable[[str], Path]:
    return lambda kind: make_once(shared / f"size-{kind}", lambda: make_tower(shared / f"size-{kind}", kind))


def make_job(parent: Path, probes: Path, **readout: Any) -> ExportJob:
    asked = ReadoutRequest(**{"image_size": ASKED, "pooling": PoolingMode.CLS, **readout})
    return ExportJob(ParentSource(str(parent), kind="image"), POINTS, asked, probes=probes)


def ask_oracle(parent: Path, kind: str, files: list[Path], layers: int) -> torch.Tensor:
    """(n, T, H), normed: transformers' own model, told to interpolate, on pixels that were made here."""
    oracle = TowerOracle(parent, kind)
    pixels = torch.from_numpy(np.stack([prepare(file, SIZES[kind], ASKED) for file in files]))
    told = {"interpolate_pos_encoding": True} if kind in ("vit", "clip") else {}
    with torch.no_grad():
        states = oracle.model(pixel_values=pixels, output_hidden_states=True, **told).hidden_states
        return oracle.norm(states[layers])


def scale(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("kind", "pooling"), [("dinov2", "patches"), ("vit", "cls"), ("clip", "mean"), ("dinov3", "patches")]
)
def test_vectors_are_those_of_the_oracle(
    kind: str, pooling: str, towers: Callable[[str], Path], probes: Path, tmp_path: Path
) -> None:
    parent = towers(kind)
    exported = export_family(make_job(parent, probes, pooling=PoolingMode(pooling)), tmp_path / "family")
    facts = exported.family.facts.image
    assert facts is not None
    assert (facts.height, facts.width) == (ASKED, ASKED)
    assert facts.resized == ((48,) if kind in ("dinov2", "clip") else (ASKED, ASKED))
    files = save_images(tmp_path / "pictures", 3)
    before = 3 if kind == "dinov3" else 1
    for layers, dim in ((point.layers, point.dim) for point in POINTS):
        normed = ask_oracle(parent, kind, files, layers)
        patches = normed[:, before:]
        assert patches.shape[1] == GRID * GRID
        read = {"cls": normed[:, 0], "mean": patches.mean(1), "patches": patches}[pooling]
        name = Point(layers, dim, GRID * GRID if pooling == "patches" else 0).name
        with matexport.Embedder(tmp_path / "family", f"{name}-fp32") as embedder:
            np.testing.assert_allclose(embedder.embed(files), scale(read[..., :dim].numpy()), atol=2e-5)


def test_other_consumers_get_that_size_too(towers: Callable[[str], Path], probes: Path, tmp_path: Path) -> None:
    """The processor's file in the family is read by transformers to the pixels that the runtime makes."""
    job = replace(make_job(towers("dinov2"), probes), points=(Point(1, 8),))
    family = export_family(job, tmp_path / "family").family
    assert family.facts.image is not None
    processor = hf.AutoImageProcessor.from_pretrained(tmp_path / "family", use_fast=False)
    for probe in image_probes.draw_probes()[:3]:
        (tmp_path / probe.name).write_bytes(probe.content)
        inputs = ImageInputs(family.facts.image)
        ours = inputs.feed(inputs.prepare([tmp_path / probe.name]))["pixel_values"]
        image = hf.image_utils.load_image(str(tmp_path / probe.name))
        np.testing.assert_array_equal(ours, processor(images=image, return_tensors="np")["pixel_values"])
    own = json.loads((towers("dinov2") / "preprocessor_config.json").read_text())
    there = json.loads((tmp_path / "family" / "preprocessor_config.json").read_text())
    assert there == {**own, "size": {"shortest_edge": 48}, "crop_size": {"height": ASKED, "width": ASKED}}
    with pytest.raises(DestinationError, match="made from other configuration, preparation of images"):
        export_family(make_job(towers("dinov2"), probes, image_size=None), tmp_path / "family")


# --- what is wrong, subtly


def bake_bilinear(backbone: Any, facts: ImageFacts) -> None:
    """The table resampled as images are."""
    table = backbone.embeddings.position_embeddings
    grid = table[:, 1:].reshape(1, 8, 8, WIDTH).permute(0, 3, 1, 2)
    small = torch.nn.functional.interpolate(grid, size=(GRID, GRID), mode="bilinear", align_corners=False)
    made = torch.cat([table[:, :1], small.permute(0, 2, 3, 1).reshape(1, -1, WIDTH)], dim=1).detach()
    backbone.embeddings.interpolate_pos_encoding = lambda *_: made


def bake_corners(backbone: Any, facts: ImageFacts) -> None:
    """Bicubic, from corner to corner."""
    table = backbone.embeddings.position_embeddings
    grid = table[:, 1:].reshape(1, 8, 8, WIDTH).permute(0, 3, 1, 2)
    small = torch.nn.functional.interpolate(grid, size=(GRID, GRID), mode="bicubic", align_corners=True)
    made = torch.cat([table[:, :1], small.permute(0, 2, 3, 1).reshape(1, -1, WIDTH)], dim=1).detach()
    backbone.embeddings.interpolate_pos_encoding = lambda *_: made


@pytest.mark.parametrize("bake", [bake_bilinear, bake_corners])
def test_a_wrong_interpolation_is_refused(
    bake: Any, towers: Callable[[str], Path], probes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vision_module, "bake_positions", bake)
    with pytest.raises(ParityError, match="read-out: in torch"):
        export_family(make_job(towers("dinov2"), probes), tmp_path / "family")


def test_another_proportion_is_refused(
    towers: Callable[[str], Path], probes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resized to what is asked and not beyond it: the crop would take all of the shorter side."""
    monkeypatch.setattr(vision_processor, "scale_side", lambda side, asked, own: asked)
    with pytest.raises(ParentError, match="gives other pixels"):
        export_family(make_job(towers("dinov2"), probes), tmp_path / "family")


# --- what cannot be asked


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (30, r"image_size=30 was asked; .* patches of 7 x 7: ask for a multiple of 7, such as 28 or 35"),
        (3, r"image_size=3 was asked; .* such as 7 or 14"),
        (0, "image_size=0 was asked"),
        (-7, "image_size=-7 was asked"),
        (7 * 2000, "image_size=14000 was asked; images of up to 8192 x 8192 are made"),
    ],
)
def test_sizes_that_cannot_be(
    asked: int, words: str, towers: Callable[[str], Path], probes: Path, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=words):
        export_family(make_job(towers("vit"), probes, image_size=asked), tmp_path / "family")


def test_images_that_are_no_squares(towers: Callable[[str], Path], probes: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(towers("vit"), tmp_path / "other"))
    file = other / "preprocessor_config.json"
    file.write_text(json.dumps({**TOWERS["vit"][1], "size": {"height": 28, "width": 4 * PATCH + PATCH}}))
    with pytest.raises(RequestError, match=r"images of 28 x 35, which are no squares"):
        export_family(make_job(other, probes), tmp_path / "family")


def test_texts_have_no_size(parent: Path, tmp_path: Path) -> None:
    job = ExportJob(ParentSource(str(parent)), (Point(1, 8),), ReadoutRequest(image_size=28))
    with pytest.raises(RequestError, match=r"image_size = 28 was asked; .* embeds texts"):
        export_family(job, tmp_path / "family")


def test_sizes_are_in_proportion() -> None:
    facts = ImageFacts("x", 224, 224, (256,), Resampling.BICUBIC, 1.0, (0.0,) * 3, (1.0,) * 3)
    for asked, edge in ((518, 592), (112, 128), (98, 112), (14, 16), (224, 256)):
        found = vision_processor.settle_size(facts, asked, 14, "it")
        assert (found.height, found.width, found.resized) == (asked, asked, (edge,))
    assert vision_processor.settle_size(facts, None, 14, "it") is facts
    unresized = replace(facts, resized=())
    assert vision_processor.settle_size(unresized, 42, 14, "it").resized == ()


def test_a_job_file_says_it(tmp_path: Path) -> None:
    from matexport.io.jobs import load_job

    (tmp_path / "job.toml").write_text(
        '[parent]\nsource = "x"\nkind = "image"\n[readout]\nimage_size = 518\n[points]\nlayers = [1]\ndims = [8]\n'
    )
    assert load_job(tmp_path / "job.toml").readout.image_size == 518
    (tmp_path / "job.toml").write_text(
        '[parent]\nsource = "x"\n[readout]\nimage_size = "large"\n[points]\nlayers = [1]\ndims = [8]\n'
    )
    with pytest.raises(RequestError, match=r"image_size"):
        load_job(tmp_path / "job.toml")
