"""The parent's own pixels in the proof: what is stored, and what `verify` says of a machine that prepares otherwise."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as hf
from commandline import Run
from conftest import make_once
from forge import edit_manifest, hold, reseal
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file, save_file
from vision import SIDE, make_tower

import matexport
from matexport.errors import FamilyError, ParityError
from matexport.export import export_family
from matexport.export.kinds.probes import image as image_probes
from matexport.family.manifest import REFERENCE, load_family
from matexport.family.measurements.records import load_measurement
from matexport.family.pixel_rows import choose_pixel_rows, load_pixel_rows, pack_pixel_rows, stores_pixel_rows
from matexport.host import read_host
from matexport.pack.write import pack_profile
from matexport.runtime.inputs import image as image_inputs
from matexport.runtime.inputs.image import ImageInputs
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.parity import PixelParity
from matexport.spec.profile import Point
from matexport.verify.verdict import load_verification

pytestmark = pytest.mark.usefixtures("quick_traces")

#: Two of them JPEG, whose decoders differ.
SOME = ("gradient.png", "shapes.png", "soft-noise.png", "wide.png", "turned.jpg", "transparent.png")


@pytest.fixture(scope="session")
def tower(shared: Path) -> Path:
    folder = shared / "pixel-tower"
    return make_once(folder, lambda: make_tower(folder, "vit"))


@pytest.fixture(scope="session")
def exported(shared: Path, tower: Path) -> Path:
    """Not to be changed: `family` is a copy."""

    def make() -> None:
        (shared / "pixel-probes").mkdir()
        for probe in image_probes.draw_probes():
            if probe.name in SOME:
                (shared / "pixel-probes" / probe.name).write_bytes(probe.content)
        job = ExportJob(
            ParentSource(str(tower), kind="image"), (Point(2, 8), Point(3, 32)), probes=shared / "pixel-probes"
        )
        export_family(job, folder)

    folder = shared / "pixel-family"
    return make_once(folder, make)


@pytest.fixture
def family(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "family"))


def edit_reference(family: Path, edit: Callable[[dict[str, NDArray[Any]]], object]) -> None:
    arrays = load_file(family / REFERENCE)
    edit(arrays)
    save_file(arrays, family / REFERENCE)
    reseal(family)


def make_older(family: Path) -> None:
    """As earlier versions wrote it."""
    edit_reference(family, lambda arrays: [arrays.pop("pixels"), arrays.pop("pixel_probes")])


def test_what_is_stored_is_the_parents(exported: Path, tower: Path) -> None:
    """transformers' own processor, told neither to scale nor to normalise, gives the same grey levels."""
    stored = load_file(exported / REFERENCE)
    assert stored["pixels"].dtype == np.uint8
    assert stored["pixels"].shape == (len(SOME), SIDE, SIDE, 3)
    assert stored["pixel_probes"].tolist() == list(range(len(SOME)))
    processor = hf.AutoImageProcessor.from_pretrained(tower, use_fast=False, do_rescale=False, do_normalize=False)
    files = sorted((exported.parent / "pixel-probes").iterdir())
    for file, pixels in zip(files, stored["pixels"], strict=True):
        expected = processor(images=hf.image_utils.load_image(str(file)), return_tensors="np")["pixel_values"][0]
        np.testing.assert_array_equal(pixels, expected.transpose(1, 2, 0), err_msg=file.name)


def test_it_is_said_and_kept(family: Path, run: Run, tmp_path: Path) -> None:
    result = run("verify", family, "--record", "--junit", tmp_path / "junit.xml")
    assert "; pixels of 6 probes are the parent's" in result.out
    assert '<testcase classname="preprocessing" name="pixels">' in (tmp_path / "junit.xml").read_text()
    document = run("verify", family, "--json").json
    assert document["token_ids"] is None
    pixels = document["pixels"]
    assert (pixels["passed"], pixels["identical"], pixels["most"], pixels["message"]) == (True, 1.0, 0, None)  # type: ignore[index]
    loaded = load_family(family)
    measured = load_measurement(loaded, read_host())
    assert measured is not None
    assert measured.pixels == PixelParity(6, Image.__version__)


def test_what_another_pillow_recorded_does_not_count(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_family(family)
    assert load_verification(loaded, read_host()) is not None
    monkeypatch.setattr("matexport.verify.verdict.read_pillow_version", lambda: "0.1")
    assert load_verification(loaded, read_host()) is None


PREPARE = ImageInputs.prepare_one


def shift(levels: int) -> Callable[..., NDArray[Any]]:
    """A decoder that is so many grey levels off in one colour of a tenth of the rows, in JPEG files alone."""

    def prepare(self: ImageInputs, item: Any, index: int = 0) -> NDArray[Any]:
        row = PREPARE(self, item, index).astype(int)
        if getattr(item, "name", "").endswith(".jpg"):
            row[::10, :, 1] += np.where(row[::10, :, 1] < 128, levels, -levels)
        return row.astype(np.uint8)

    return prepare


def test_another_decoder_is_not_taken_for_a_wrong_graph(
    family: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One grey level: vectors of what was decoded here are off their floor, those of the parent's pixels are not."""
    monkeypatch.setattr(ImageInputs, "prepare_one", shift(1))
    verification = matexport.verify_family(family)
    assert verification.passed
    assert verification.pixels is not None
    assert verification.pixels.most == 1
    assert 0.99 < verification.pixels.identical < 1
    assert "pixels of 6 probes are within 1 of 255 grey levels of the parent's (99." in run("verify", family).out
    make_older(family)
    old = matexport.verify_family(family)
    assert not old.passed
    assert old.pixels is None


def test_two_grey_levels_are_too_many(family: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageInputs, "prepare_one", shift(2))
    verification = matexport.verify_family(family)
    assert not verification.passed
    assert all(verdict.passed for verdict in verification.verdicts)
    result = run("verify", family, "--junit", tmp_path / "junit.xml", "--record")
    assert result.code == 1
    assert "failed: pixels differ in 1 of 6 probes" in result.out
    assert "pixels differ in 1 of 6 probes, by up to 2 of 255 grey levels (1 allowed), most in probe 4 (" in result.err
    assert "'turned.jpg' (" in result.err
    assert "% identical (Pillow " in result.err
    assert 'type="pixels"' in (tmp_path / "junit.xml").read_text()
    assert "on this host, pixels differ in 1 of 6 probes" in run("show", family).out
    document = run("verify", family, "--json").json
    assert document["problems"][0]["kind"] == "pixels"
    assert document["pixels"]["differing"] == [4]
    with pytest.raises(ParityError, match="pixels differ in 1 of 6 probes"):
        pack_profile(family, "L02-D008-fp32", tmp_path / "pack")


def swap_channels(image: Image.Image, name: str) -> Image.Image:
    red, green, blue = UPRIGHT(image, name).split()
    return Image.merge("RGB", (blue, green, red))


def forget_orientation(image: Image.Image, _name: str) -> Image.Image:
    return image.convert("RGB")


UPRIGHT = image_inputs._upright


@pytest.mark.parametrize("wrong", [swap_channels, forget_orientation])
def test_a_wrong_runtime_is_found(wrong: Any, family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_inputs, "_upright", wrong)
    verification = matexport.verify_family(family)
    assert all(verdict.passed for verdict in verification.verdicts)
    assert verification.pixels is not None
    assert not verification.passed
    assert verification.pixels.most > 1


@pytest.mark.parametrize("name", ["bicubic", "hamming", "nearest"])
def test_a_wrong_filter_is_found(name: str, family: Path) -> None:
    edit_manifest(family, lambda facts: facts["image"].update(resampling=name))
    verification = matexport.verify_family(family)
    assert verification.pixels is not None
    assert not verification.pixels.passed
    assert not verification.passed


def test_wrong_colours_are_not_hidden_by_what_is_stored(family: Path) -> None:
    """Grey levels are the parent's, and become other numbers: the vectors show it."""
    edit_manifest(family, lambda facts: facts["image"].update(std=[0.5, 0.3, 0.21]))
    verification = matexport.verify_family(family)
    assert verification.pixels is not None
    assert verification.pixels.passed
    assert not any(verdict.passed for verdict in verification.verdicts)


def test_stored_pixels_that_are_not_the_parents_are_found(family: Path) -> None:
    """They would make a wrong runtime right: the vectors are not of them."""
    edit_reference(family, lambda arrays: arrays.update(pixels=arrays["pixels"][..., ::-1].copy()))
    verification = matexport.verify_family(family)
    assert not verification.passed
    assert not any(verdict.passed for verdict in verification.verdicts)


def test_families_without_them_verify_as_before(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_older(family)
    assert not stores_pixel_rows(load_family(family))
    verification = matexport.verify_family(family)
    assert verification.passed
    assert (verification.pixels, verification.measured.pixels) == (None, None)
    monkeypatch.setattr(image_inputs, "_upright", swap_channels)
    assert not matexport.verify_family(family).passed


def test_a_pack_keeps_them(family: Path, tmp_path: Path) -> None:
    pack_profile(family, "L02-D008-fp32", tmp_path / "pack")
    ours, theirs = (load_file(folder / REFERENCE) for folder in (tmp_path / "pack", family))
    for name in ("pixels", "pixel_probes"):
        np.testing.assert_array_equal(ours[name], theirs[name])
    verification = matexport.verify_family(tmp_path / "pack")
    assert dataclasses.asdict(verification.pixels or PixelParity(0, ""))["probes"] == 6


def edit(name: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[dict[str, NDArray[Any]]], object]:
    return lambda arrays: arrays.update({name: np.ascontiguousarray(change(arrays[name]))})


FORGERIES: dict[str, tuple[Callable[[dict[str, NDArray[Any]]], object], str]] = {
    "pixels alone": (lambda arrays: arrays.pop("pixel_probes"), "has pixels alone"),
    "places alone": (lambda arrays: arrays.pop("pixels"), "has pixel_probes alone"),
    "pixels of int8": (edit("pixels", lambda it: it.astype(np.int8)), r"no \(6, 28, 28, 3\) uint8 pixels"),
    "floats": (edit("pixels", lambda it: it.astype(np.float32)), "uint8 pixels"),
    "an image less": (edit("pixels", lambda it: it[:-1]), r"no \(6, 28, 28, 3\) uint8 pixels"),
    "another size": (edit("pixels", lambda it: it[:, :-1]), "uint8 pixels"),
    "colours first": (edit("pixels", lambda it: it.transpose(0, 3, 1, 2)), "uint8 pixels"),
    "places of int64": (edit("pixel_probes", lambda it: it.astype(np.int64)), "no int32 pixel_probes"),
    "places with an axis more": (edit("pixel_probes", lambda it: it[:, None]), "no int32 pixel_probes"),
    "a place twice": (edit("pixel_probes", lambda it: it - (it == 5)), "not places of the 6 probes"),
    "a place below 0": (edit("pixel_probes", lambda it: it - 1), "not places of the 6 probes"),
    "a place beyond": (edit("pixel_probes", lambda it: it + 1), "not places of the 6 probes"),
    "out of order": (edit("pixel_probes", lambda it: it[::-1]), "not places of the 6 probes"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_what_are_no_pixels(forgery: str, family: Path) -> None:
    spoil, words = FORGERIES[forgery]
    edit_reference(family, spoil)
    with pytest.raises(FamilyError, match=words):
        load_pixel_rows(hold(family), 6)
    with pytest.raises(FamilyError, match=words):
        matexport.verify_family(family)
    assert stores_pixel_rows(load_family(family)), "which is no reason to leave the check out"


def test_there_is_a_bound(monkeypatch: pytest.MonkeyPatch, family: Path) -> None:
    """Of many probes 32, evenly spread; of large images, as many as fit into 32 MB; of huge ones none."""
    small = [np.full((2, 2, 3), index % 256, np.uint8) for index in range(96)]
    assert list(choose_pixel_rows(small)) == list(range(0, 96, 3))
    large = [np.zeros((1400, 1400, 3), np.uint8)] * 20
    assert list(choose_pixel_rows(large)) == [0, 4, 8, 12, 16]
    assert pack_pixel_rows(choose_pixel_rows([np.zeros((3400, 3400, 3), np.uint8)] * 2)) == {}
    monkeypatch.setattr("matexport.family.pixel_rows.MAX_PIXEL_BYTES", 1000)
    with pytest.raises(FamilyError, match=r"14112 bytes of pixels; at most 1000"):
        load_pixel_rows(hold(family), 6)


def test_some_probes_have_pixels_and_others_not(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are judged on what is made of their files here."""
    edit_reference(
        family,
        lambda arrays: arrays.update(
            pixels=arrays["pixels"][::2].copy(), pixel_probes=np.arange(0, 6, 2, dtype=np.int32)
        ),
    )
    verification = matexport.verify_family(family)
    assert verification.passed
    assert verification.pixels is not None
    assert verification.pixels.probes == 3
    monkeypatch.setattr(image_inputs, "_upright", swap_channels)
    verification = matexport.verify_family(family)
    assert verification.pixels is not None
    assert verification.pixels.differing == (0, 2, 4)
    assert not any(verdict.passed for verdict in verification.verdicts)


def test_the_checks_of_pytest_know_them(family: Path) -> None:
    from matexport.verify.checks import PIXELS, Check, FamilyChecks, Requirements

    checks = FamilyChecks(family, Requirements())
    assert Check(PIXELS) in checks.list_checks()
    assert checks.find_failure(Check(PIXELS)) is None
    edit_manifest(family, lambda facts: facts["image"].update(resampling="nearest"))
    found = FamilyChecks(family, Requirements()).find_failure(Check(PIXELS))
    assert found is not None
    assert "pixels differ in" in found
    assert json.loads((family / "family.json").read_text())["image"]["resampling"] == "nearest"
