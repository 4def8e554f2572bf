"""Vision towers end to end: from image files to vectors that an oracle of its own gives, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commandline import Run
from conftest import make_once
from forge import flip_byte
from memory import trace_once
from msgspec.structs import replace
from PIL import Image
from vision import BLOCKS, SIDE, TOWERS, WIDTH, TowerOracle, make_tower, prepare, save_images

import matexport
from matexport.errors import DestinationError, FamilyError, ParentError, ParityError, RequestError
from matexport.export import export_family, pipeline
from matexport.export.kinds.probes import image as image_probes
from matexport.export.parents.vision import module as vision_module
from matexport.export.parents.vision.processor import read_processor
from matexport.family.manifest import load_family
from matexport.runtime.inputs.image import ImageInputs
from matexport.spec.inputs import ImageFacts, Resampling
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.profile import Point, Precision
from matexport.spec.readout import FinalNorm, PoolingMode, ReadoutRequest

pytestmark = pytest.mark.usefixtures("quick_traces")

POINTS = tuple(Point(layers, dim) for layers in (1, 2, 3) for dim in (8, 24))
#: Six of the probes: of each kind of file one is enough here, and `test_pixels` has them all.
SOME = ("gradient.png", "shapes.png", "soft-noise.png", "wide.png", "turned.jpg", "transparent.png")


@pytest.fixture(scope="session")
def probes(shared: Path) -> Path:
    """A user's own folder of probes: some of the shipped ones."""

    def make() -> None:
        folder.mkdir()
        for probe in image_probes.draw_probes():
            if probe.name in SOME:
                (folder / probe.name).write_bytes(probe.content)

    folder = shared / "image-probes"
    return make_once(folder, make)


@pytest.fixture(scope="session")
def towers(shared: Path) -> Callable[[str], Path]:
    """Kind -> the folder of a small random tower."""
    return lambda kind: make_once(shared / f"tower-{kind}", lambda: make_tower(shared / f"tower-{kind}", kind))


def make_job(parent: Path, probes: Path, **changes: Any) -> ExportJob:
    job = ExportJob(ParentSource(str(parent), kind="image"), POINTS, probes=probes)
    return replace(job, **changes)


@pytest.fixture(scope="session")
def vit(towers: Callable[[str], Path], probes: Path, shared: Path) -> Path:
    """Its family. Not to be changed: copy it."""

    def make() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline, "trace_exits", trace_once)
            job = make_job(towers("vit"), probes, precisions=(Precision.FP32, Precision.INT8))
            export_family(job, folder)

    folder = shared / "family-vit"
    return make_once(folder, make)


WAYS = [
    ("vit", "cls"), ("vit", "pooler"), ("dinov2", "cls"), ("registers", "mean"), ("dinov3", "cls"),
    ("clip", "pooler"), ("siglip", "pooler"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "pooling"), WAYS)
def test_vectors_are_those_of_the_oracle(
    kind: str, pooling: str, towers: Callable[[str], Path], probes: Path, tmp_path: Path
) -> None:
    parent = towers(kind)
    job = make_job(parent, probes, readout=ReadoutRequest(pooling=PoolingMode(pooling)))
    exported = export_family(job, tmp_path / "family")
    assert exported.verification.passed
    oracle, files = TowerOracle(parent, kind), save_images(tmp_path / "pictures", 3)
    for point in POINTS:
        expected = np.stack([oracle.vector(file, point.layers, point.dim, pooling) for file in files])
        with matexport.Embedder(tmp_path / "family", f"{point.name}-fp32") as embedder:
            found = embedder.embed(files)
            np.testing.assert_allclose(found, expected, atol=2e-5)
        # What would be wrong is another vector, so that the bound above says something.
        other = oracle.vector(files[0], point.layers % BLOCKS + 1, point.dim, pooling)
        unnormed = oracle.vector(files[0], point.layers, point.dim, pooling, norm=False)
        for wrong in (other, unnormed, expected[1]):
            assert np.abs(found[0] - wrong).max() > 1e-3
    facts = exported.family.facts
    assert (facts.readout.pooling, facts.readout.final_norm) == ((PoolingMode(pooling),), FinalNorm.KEEP)
    narrowed = facts.profiles["L03-D008-fp32"].narrowed_nodes
    assert (narrowed > 0) == (pooling == "cls" or (pooling == "pooler" and kind != "siglip"))


@pytest.mark.parametrize("layers", [1, 3])
def test_a_norm_that_is_dropped_is_dropped_before_the_last_block_alone(
    layers: int, towers: Callable[[str], Path], probes: Path, tmp_path: Path
) -> None:
    readout = ReadoutRequest(pooling=PoolingMode.CLS, final_norm=FinalNorm.DROP)
    export_family(make_job(towers("vit"), probes, readout=readout), tmp_path / "family")
    oracle, files = TowerOracle(towers("vit"), "vit"), save_images(tmp_path / "pictures", 2)
    expected = np.stack([oracle.vector(file, layers, 24, "cls", norm=layers == BLOCKS) for file in files])
    with matexport.Embedder(tmp_path / "family", f"L0{layers}-D024-fp32") as embedder:
        np.testing.assert_allclose(embedder.embed(files), expected, atol=2e-5)


def test_every_precision_keeps_its_floor(
    vit: Path, towers: Callable[[str], Path], probes: Path, tmp_path: Path
) -> None:
    job = make_job(towers("vit"), probes, precisions=tuple(Precision))
    exported = export_family(job, tmp_path / "family")
    assert exported.family.facts.refused == {}
    assert {profile.precision for profile in exported.family.profiles} == set(Precision)


# --- what is wrong, subtly, in what is traced or stored


def read_one_block_on(self: Any, state: torch.Tensor, last: bool) -> torch.Tensor:
    return READ(self, state if last else self.backbone.layers[0](state), last)


def norm_after_the_slice(self: Any, state: torch.Tensor, last: bool) -> torch.Tensor:
    norm = self.backbone.layernorm
    sliced = torch.nn.functional.layer_norm(state[:, 0, :24], (24,), norm.weight[:24], norm.bias[:24], norm.eps)
    return torch.nn.functional.pad(sliced, (0, WIDTH - 24))


def pool_the_class_token_as_well(self: Any, state: torch.Tensor, last: bool) -> torch.Tensor:
    return self.backbone.layernorm(state).mean(1)  # type: ignore[no-any-return]


READ = vision_module.TowerExits._read


@pytest.mark.parametrize(
    ("wrong", "pooling"),
    [(read_one_block_on, "cls"), (norm_after_the_slice, "cls"), (pool_the_class_token_as_well, "mean")],
)
def test_a_wrong_read_out_is_refused(
    wrong: Any, pooling: str, towers: Callable[[str], Path], probes: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(vision_module.TowerExits, "_read", wrong)
    job = make_job(towers("vit"), probes, readout=ReadoutRequest(pooling=PoolingMode(pooling)))
    with pytest.raises(ParityError, match=r"read-out: in torch, L0.-D0.. is not the parent's"):
        export_family(job, tmp_path / "family")
    assert not (tmp_path / "family").exists()


def test_positions_of_another_size_are_refused(
    towers: Callable[[str], Path], probes: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """The table resampled as images are, bilinear, and not as the model does it."""

    def bake(backbone: Any, facts: ImageFacts) -> None:
        embeddings = backbone.embeddings
        table = embeddings.position_embeddings
        grid = table[:, 1:].reshape(1, 8, 8, WIDTH).permute(0, 3, 1, 2)
        small = torch.nn.functional.interpolate(grid, size=(4, 4), mode="bilinear", align_corners=False)
        made = torch.cat([table[:, :1], small.permute(0, 2, 3, 1).reshape(1, 16, WIDTH)], dim=1).detach()
        embeddings.interpolate_pos_encoding = lambda *_: made

    monkeypatch.setattr(vision_module, "bake_positions", bake)
    with pytest.raises(ParityError, match="read-out: in torch"):
        export_family(make_job(towers("dinov2"), probes), tmp_path / "family")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resample": 3}, "other pixels for .* grey levels"),
        ({"image_mean": [0.5, 0.5, 0.6]}, "other pixels"),
        ({"image_std": [0.5, 0.3, 0.21]}, "other pixels"),
        ({"rescale_factor": 1 / 127.5}, "other pixels"),
    ],
)
def test_a_processor_that_was_read_wrongly_is_refused(
    changes: Mapping[str, Any],
    words: str,
    towers: Callable[[str], Path],
    probes: Path,
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    """What the runtime does is not what the parent's own processor does, by little."""
    other = Path(shutil.copytree(towers("vit"), tmp_path / "other"))
    path = other / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    misread = read_processor(other)
    monkeypatch.setattr("matexport.export.parents.vision.processor.read_processor", lambda _: misread)
    with pytest.raises(ParentError, match=words):
        export_family(make_job(towers("vit"), probes), tmp_path / "family")


def test_older_files_are_read_as_their_class_reads_them(towers: Callable[[str], Path], tmp_path: Path) -> None:
    """A number for CLIP's size is that of the shorter side; a file without a processor's name goes by the model."""
    clip = Path(shutil.copytree(towers("clip"), tmp_path / "clip"))
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 28, "do_center_crop": True}
    (clip / "preprocessor_config.json").write_text(json.dumps(old))
    facts = read_processor(clip)
    assert (facts.resized, facts.height, facts.width) == ((32,), 28, 28)
    vit = Path(shutil.copytree(towers("vit"), tmp_path / "vit"))
    (vit / "preprocessor_config.json").write_text(json.dumps({"size": 28}))
    facts = read_processor(vit)
    assert (facts.resized, facts.resampling) == ((28, 28), Resampling.BILINEAR)


def test_too_many_calibration_images_are_drawn_evenly(tmp_path: Path) -> None:
    for index in range(9):
        (tmp_path / f"{index}.png").write_bytes(b"x")
    found = image_probes.read_folder(tmp_path, 2, 3, "the calibration images")
    assert [probe.name for probe in found] == ["0.png", "3.png", "6.png"]


def test_a_changed_probe_and_a_wrong_depth_are_found(vit: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(vit, tmp_path / "copy"))
    flip_byte(copy / "probes.safetensors", -30)
    with pytest.raises(FamilyError, match=r"probes\.safetensors"):
        matexport.verify_family(copy)


# --- what a family says, and its commands


def test_the_family_says_what_it_takes(vit: Path) -> None:
    facts = load_family(vit).facts
    assert facts.modality == "image"
    assert facts.output == "image_embedding"
    assert facts.image == ImageFacts(
        "pixel_values", SIDE, SIDE, (SIDE, SIDE), Resampling.BILINEAR, 1 / 255, (0.5, 0.4, 0.6), (0.5, 0.3, 0.2)
    )
    assert facts.parent.judge is not None
    assert facts.parent.judge.endswith("ViTModel")
    assert sorted(facts.files)[:3] == ["L01-D008.fp32.onnx", "L01-D008.int8.onnx", "L01-D024.fp32.onnx"]
    assert {"config.json", "preprocessor_config.json"} <= set(facts.files)


def test_items_of_all_kinds_are_one_image(vit: Path, tmp_path: Path) -> None:
    (file,) = save_images(tmp_path, 1)
    image = Image.open(file)
    items = [file, str(file), file.read_bytes(), image, np.asarray(image)]
    with matexport.Embedder(vit, "L02-D024-fp32") as embedder:
        rows = embedder.embed(items)
        assert (rows == rows[0]).all()
        assert embedder.embed(items[:1]).shape == (1, 24)
        assert (embedder.embed(items, batch_budget=2) == rows).all()
        for wrong in (np.zeros((4, 4)), 7, np.zeros((4, 4, 3), np.float32)):
            with pytest.raises(RequestError, match=r"image 1 is .*; a path, a file's bytes, a Pillow image"):
                embedder.embed([file, wrong])
        with pytest.raises(RequestError, match="prompt 'query' was asked; this family takes images"):
            embedder.embed([file], prompt="query")


def test_its_commands(vit: Path, tmp_path: Path, run: Run) -> None:
    family = Path(shutil.copytree(vit, tmp_path / "family"))
    assert "image     image files of any size, resized to 28 x 28 (bilinear)" in run("show", family).out
    assert "passed: 12 profiles" in run("verify", family, "--record").out
    run("bench", family, "--profile", "L01-D008-fp32", "--profile", "L03-D024-int8", "--runs", 2, "--threads", 1)
    assert run("pick", family, "--max-disk-mb", 5, "--json").json["chosen"]["profile"].startswith("L03-D024-")
    run("report", family)
    page, card = ((family / name).read_text(encoding="utf-8") for name in ("report.html", "README.md"))
    assert "image files of any size" in page
    assert "images/s" in page
    assert 'embedder.embed(["one.png", "another.jpg"])  # (2, 24) float32' in card
    pack = tmp_path / "pack"
    run("pack", family, "L02-D008-fp32", pack)
    compared = run("verify", pack, "--baseline", family).out
    assert "passed" in compared
    assert "the same parent, 6 images" in compared
    files = save_images(tmp_path / "pictures", 5)
    (files[1]).write_bytes(files[1].read_bytes()[:60])
    (tmp_path / "pictures" / "notes.png").write_text("no picture")
    said = run("embed", pack, tmp_path / "pictures", "--output", tmp_path / "v.npy")
    assert said.code == 2
    assert said.err.count("\n") == 3
    assert "2 of 6 images could not be read" in said.err
    assert np.load(tmp_path / "v.npy").shape == (4, 8)
    names = (tmp_path / "v.names.txt").read_text().splitlines()
    assert [Path(name).name for name in names] == ["picture-0.png", "picture-2.png", "picture-3.png", "picture-4.png"]
    lines = [json.loads(line) for line in run("embed", pack, files[0]).out.splitlines()]
    np.testing.assert_allclose(lines[0]["embedding"], np.load(tmp_path / "v.npy")[0], atol=1e-6)
    run("embed", pack).complains("no images: give files or folders")
    run("embed", pack, tmp_path / "none.png").complains("none.png is no file and no folder")
    run("evaluate", family).complains("no task was given: name folders of images with --labelled or --images")


def test_a_column_of_bytes_is_read(vit: Path, tmp_path: Path, run: Run) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    files = save_images(tmp_path / "pictures", 3)
    content = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    parquet.write_table(pyarrow.table({"image": content, "label": [0, 1, 0]}), tmp_path / "images.parquet")
    out = run("embed", vit, "--profile", "L02-D008-fp32", "--input", tmp_path / "images.parquet").out
    rows = [json.loads(line) for line in out.splitlines()]
    with matexport.Embedder(vit, "L02-D008-fp32") as embedder:
        np.testing.assert_allclose([row["embedding"] for row in rows], embedder.embed(files), atol=1e-6)
    assert rows[2]["image"].endswith("images.parquet, row 2")
    run(
        "embed", vit, "--profile", "L02-D008-fp32", "--input", tmp_path / "images.parquet", "--column", "label"
    ).complains("the column 'label' holds int64, not the bytes of files")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"points": (Point(4, 8),)}, "layers=4 was asked; .* has 3 blocks"),
        ({"points": (Point(1, 33),)}, "dim=33 was asked"),
        (
            {"readout": ReadoutRequest(pooling=PoolingMode.MAX)},
            "pooling = max was asked; .* can be read by cls, mean, patches, pooler",
        ),
        ({"vocabulary": "script:Latin"}, "vocabulary = 'script:Latin' was asked; .* takes images"),
        ({"readout": ReadoutRequest(max_tokens=8)}, "readout.max_tokens = 8 was asked"),
        ({"calibration": Path("/nonexistent")}, "/nonexistent is no folder of images"),
    ],
)
def test_what_a_job_cannot_ask(
    changes: Mapping[str, Any], words: str, towers: Callable[[str], Path], probes: Path, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=words):
        export_family(make_job(towers("vit"), probes, **changes), tmp_path / "family")


@pytest.mark.parametrize(
    "readout",
    [
        ReadoutRequest(pooling=PoolingMode.POOLER),
        ReadoutRequest(pooling=(PoolingMode.MEAN, PoolingMode.PATCHES)),
        ReadoutRequest(features=True),
    ],
)
def test_what_is_of_images_is_refused_of_texts(readout: ReadoutRequest, parent: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="it is for parents that take images"):
        export_family(ExportJob(ParentSource(str(parent)), POINTS, readout=readout), tmp_path / "family")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"do_reduce_labels": True}, "do_reduce_labels = True is not known of ViTImageProcessor"),
        ({"image_processor_type": "OddProcessor"}, "its processor is 'OddProcessor'; known: "),
        ({"resample": 9}, "resample = 9 is no filter of Pillow"),
        ({"size": {"longest_edge": 8}}, "size = .* is not known"),
        ({"size": {"shortest_edge": 28}}, "images would keep their sides"),
        ({"size": {"height": 30, "width": 28}}, "patches of 7 x 7; its processor makes them 30 x 28"),
        ({"image_mean": [0.5]}, "image_mean = .* is not three numbers"),
    ],
)
def test_a_processor_that_is_not_known(
    changes: Mapping[str, Any], words: str, towers: Callable[[str], Path], probes: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(towers("vit"), tmp_path / "other"))
    path = other / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ParentError, match=words):
        export_family(make_job(other, probes), tmp_path / "family")


def test_a_tower_without_its_weights_or_its_processor(
    towers: Callable[[str], Path], probes: Path, tmp_path: Path
) -> None:
    bare = Path(shutil.copytree(towers("vit"), tmp_path / "bare"))
    (bare / "preprocessor_config.json").unlink()
    with pytest.raises(ParentError, match=r"has no preprocessor_config\.json"):
        export_family(make_job(bare, probes), tmp_path / "family")
    shallow = Path(shutil.copytree(towers("vit"), tmp_path / "shallow"))
    config = json.loads((shallow / "config.json").read_text())
    (shallow / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(
        ParentError, match=r"has no weights for .*layers?\.3\..*; transformers would draw them at random"
    ):
        export_family(make_job(shallow, probes), tmp_path / "family")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot read .*config.json"),
        ('{"model_type": "no_such_thing"}', "transformers does not take its config.json"),
        ('{"model_type": "bert"}', "is a 'bert'; vision towers that are known: clip_vision_model"),
        ('{"model_type": "vit", "hidden_size": "wide"}', "transformers does not take its config.json|dim=8 was asked"),
    ],
)
def test_a_configuration_that_is_none(
    content: str, words: str, towers: Callable[[str], Path], probes: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(towers("vit"), tmp_path / "other"))
    (other / "config.json").write_text(content)
    with pytest.raises((ParentError, RequestError), match=words):
        export_family(make_job(other, probes), tmp_path / "family")


def test_a_tower_that_is_taken_for_a_text_encoder(towers: Callable[[str], Path], tmp_path: Path, run: Run) -> None:
    job = ExportJob(ParentSource(str(towers("vit"))), POINTS, readout=ReadoutRequest(pooling=PoolingMode.CLS))
    with pytest.raises(ParentError, match=r'\(vit\) takes images and no texts: say kind = "image" in \[parent\]'):
        export_family(job, tmp_path / "family")
    assert run("init", towers("vit"), "--out", tmp_path / "job.toml").code == 0  # which looks for itself
    assert 'kind = "image"' in (tmp_path / "job.toml").read_text().splitlines()


def test_the_same_inputs_are_up_to_date_and_other_dims_are_cut(
    vit: Path, towers: Callable[[str], Path], probes: Path, tmp_path: Path
) -> None:
    family = Path(shutil.copytree(vit, tmp_path / "family"))
    job = make_job(towers("vit"), probes, precisions=(Precision.FP32, Precision.INT8))
    assert export_family(job, family).up_to_date
    points = tuple(Point(layers, dim) for layers in (1, 2, 3) for dim in (12, 24))
    with pytest.raises(DestinationError, match="other points"):
        export_family(make_job(towers("vit"), probes, precisions=job.precisions, points=points), family)
    anew = export_family(
        make_job(towers("vit"), probes, precisions=job.precisions, points=points), family, overwrite=True
    )
    assert anew.cut_anew
    assert anew.verification.pixels is not None


# --- pixels


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # transformers leaves files open
@pytest.mark.parametrize("kind", ["vit", "clip", "siglip"])
def test_pixels(kind: str, towers: Callable[[str], Path], tmp_path: Path) -> None:
    """Every form of file, against transformers' own processor and against one that was written here."""
    import transformers

    folder = towers(kind)
    inputs = ImageInputs(read_processor(folder))
    processor = transformers.AutoImageProcessor.from_pretrained(folder, use_fast=False)
    for probe in image_probes.draw_probes():
        file = tmp_path / probe.name
        file.write_bytes(probe.content)
        ours = inputs.feed(inputs.prepare([file]))["pixel_values"]
        theirs = processor(images=transformers.image_utils.load_image(str(file)), return_tensors="np")["pixel_values"]
        np.testing.assert_array_equal(ours, theirs, err_msg=probe.name)
        np.testing.assert_allclose(ours[0], prepare(file, TOWERS[kind][1]), atol=1e-5, err_msg=probe.name)


def test_a_square_is_padded_and_a_small_image_is_surrounded() -> None:
    square = ImageFacts("x", 8, 8, (8, 8), Resampling.NEAREST, 1.0, (0.0,) * 3, (1.0,) * 3, square=(9, 8, 7))
    (row,) = ImageInputs(square).prepare([np.full((4, 8, 3), 200, np.uint8)])
    assert row[:2].tolist() == [[[9, 8, 7]] * 8] * 2
    assert (row[2:6] == 200).all()
    small = ImageFacts("x", 5, 6, (), Resampling.NEAREST, 1.0, (0.0,) * 3, (1.0,) * 3)
    (row,) = ImageInputs(small).prepare([np.full((2, 3, 3), 200, np.uint8)])
    assert np.argwhere(row[:, :, 0] == 200).min(0).tolist() == [2, 2]
    assert row.shape == (5, 6, 3)
    assert (row == 200).sum() == 18


def test_the_middle_of_a_very_long_image_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = ImageFacts("x", 20, 20, (20,), Resampling.BICUBIC, 1.0, (0.0,) * 3, (1.0,) * 3)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 4000, 3), np.uint8))
    (whole,) = ImageInputs(facts).prepare([image])
    monkeypatch.setattr("matexport.runtime.inputs.image.MAX_PIXELS", 100_000)
    (middle,) = ImageInputs(facts).prepare([image])
    assert np.abs(whole.astype(int) - middle).max() <= 1


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_image_is_refused_in_one_line(content: bytes) -> None:
    facts = ImageFacts("x", 8, 8, (8, 8), Resampling.BILINEAR, 1.0, (0.0,) * 3, (1.0,) * 3)
    with pytest.raises(RequestError) as caught:
        ImageInputs(facts).prepare([content])
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("image 0 cannot be read as an image: ")
    assert " at 0x" not in str(caught.value)


def test_an_image_of_too_many_pixels_is_not_decoded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    facts = ImageFacts("x", 8, 8, (8, 8), Resampling.BILINEAR, 1.0, (0.0,) * 3, (1.0,) * 3)
    monkeypatch.setattr("matexport.runtime.inputs.image.MAX_PIXELS", 1000)
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("it was decoded"))
    Image.new("RGB", (40, 30)).save(tmp_path / "large.png")
    with pytest.raises(RequestError, match=r"large\.png has 40 x 30 pixels; up to 1000 are decoded"):
        ImageInputs(facts).prepare([tmp_path / "large.png"])
