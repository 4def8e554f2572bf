"""Families whose graphs prepare images themselves: the same vectors as those that the runtime prepares for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from commandline import Run
from conftest import make_once
from memory import trace_once
from msgspec.structs import replace
from PIL import Image
from safetensors.numpy import load_file
from vision import CROPPED, SIDE, TowerOracle, make_tower, save_images

import matexport
from matexport.errors import ParityError, RequestError
from matexport.export import export_family, pipeline
from matexport.export.graph import pixels
from matexport.export.kinds import in_graph
from matexport.export.kinds.classifier import IMAGENET
from matexport.export.kinds.probes import image as image_probes
from matexport.export.parents.plan import Plan
from matexport.family.manifest import MANIFEST, load_family, write_manifest
from matexport.io.jobs import load_job
from matexport.runtime.all_points import ExitsEmbedder
from matexport.runtime.inputs.whole_image import WholeImageInputs
from matexport.spec.inputs import ArrayFacts, ImageFacts, Resampling
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.profile import Encoding, Point, Precision
from matexport.spec.readout import PoolingMode, ReadoutRequest

pytestmark = pytest.mark.usefixtures("quick_traces")

KIND = "clip"
POINTS = tuple(Point(layers, dim) for layers in (1, 3) for dim in (8, 24))
#: Long, tall, of one pixel, turned by a camera, with alpha; the last two are resampled rows first.
SOME = ("gradient.png", "wide.png", "one-pixel.png", "turned.jpg", "transparent.png", "tall.png", "noise.png")


@pytest.fixture(scope="session")
def tower(shared: Path) -> Path:
    return make_once(shared / f"tower-{KIND}", lambda: make_tower(shared / f"tower-{KIND}", KIND))


@pytest.fixture(scope="session")
def job(tower: Path, shared: Path) -> ExportJob:
    def make() -> None:
        folder.mkdir()
        for probe in image_probes.draw_probes():
            if probe.name in SOME:
                (folder / probe.name).write_bytes(probe.content)

    folder = shared / "in-graph-probes"
    return ExportJob(
        ParentSource(str(tower), kind="image"),
        POINTS,
        ReadoutRequest(pooling=PoolingMode.CLS),
        (Precision.FP32, Precision.INT8),
        (Encoding.FLOAT32, Encoding.INT8),
        probes=make_once(folder, make),
        preprocess_in_graph=True,
    )


@pytest.fixture(scope="session")
def family(job: ExportJob, shared: Path) -> Path:
    """Of a parent with a bicubic resize and a crop. Not to be changed: copy it."""
    return export_once(job, shared / "family-in-graph")


@pytest.fixture(scope="session")
def plain(job: ExportJob, shared: Path) -> Path:
    """The same, prepared by the runtime."""
    return export_once(replace(job, preprocess_in_graph=False), shared / "family-beside")


def export_once(job: ExportJob, folder: Path) -> Path:
    def make() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline, "trace_exits", trace_once)
            assert export_family(job, folder).verification.passed

    return make_once(folder, make)


def save_shapes(folder: Path) -> list[Path]:
    """Pictures of all shapes, and some of ordinary ones."""
    files = save_images(folder, 3)
    draws = np.random.default_rng(3)
    for height, width in ((1, 1), (1, 900), (901, 2), (28, 28), (300, 211)):
        files.append(folder / f"noise-{height}-{width}.png")
        Image.fromarray(draws.integers(0, 256, (height, width, 3), np.uint8)).save(files[-1])
    return files


def test_vectors_are_those_of_the_oracle_and_of_the_runtime(
    family: Path, plain: Path, tower: Path, tmp_path: Path
) -> None:
    files, oracle = save_shapes(tmp_path), TowerOracle(tower, KIND)
    for point in POINTS:
        with matexport.Embedder(family, f"{point.name}-fp32") as embedder:
            found = embedder.embed(files)
        with matexport.Embedder(plain, f"{point.name}-fp32") as embedder:
            beside = embedder.embed(files)
        expected = np.stack([oracle.vector(file, point.layers, point.dim, "cls") for file in files])
        np.testing.assert_allclose(found, expected, atol=2e-5)
        np.testing.assert_allclose(found, beside, atol=1e-6)
        assert np.abs(found[:-1] - found[1:]).max(axis=1).min() > 1e-3, "images differ"


def test_all_graphs_take_an_image_of_any_size(family: Path, job: ExportJob) -> None:
    facts = load_family(family).facts
    assert facts.image == ImageFacts(
        "image", SIDE, SIDE, (CROPPED["size"]["shortest_edge"],), Resampling.BICUBIC, 1 / 255,  # type: ignore[index]
        (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), in_graph=True,
    )  # fmt: skip
    graphs = [*(profile.graph for profile in facts.profiles.values()), *facts.exits.values()]
    assert len(graphs) == len(job.profiles) + 2
    pixels = np.random.default_rng(1).integers(0, 256, (1, 50, 41, 3), np.uint8)
    for name in graphs:
        session = ort.InferenceSession(family / name)
        (given,) = session.get_inputs()
        assert (given.name, given.type, given.shape) == ("image", "tensor(uint8)", [1, "height", "width", 3])
        for vectors in session.run(None, {"image": pixels}):
            assert vectors.shape[0] == 1


def test_weights_and_profiles_are_those_of_the_family_beside(family: Path, plain: Path) -> None:
    """What is in front has no weights: the nested files are the same bytes, prefixes and all."""
    ours, theirs = (load_family(path).facts for path in (family, plain))
    assert ours.profiles == theirs.profiles
    for name in ("weights.fp32.safetensors", "weights.int8.safetensors", "ranges.safetensors"):
        assert ours.files[name] == theirs.files[name]
    vectors, beside = (load_file(path / "reference.safetensors") for path in (family, plain))
    assert {*beside} - {*vectors} == {"pixels", "pixel_probes"}, "whose sizes in the graph are nobody's"
    assert all((vectors[name] == beside[name]).all() for name in vectors)


def test_all_exits_give_the_profiles_vectors(family: Path, tmp_path: Path) -> None:
    files = save_shapes(tmp_path)
    with ExitsEmbedder(load_family(family), Precision.FP32) as exits:
        (window,) = exits.embed_windows(files)
    for point in POINTS:
        with matexport.Embedder(family, f"{point.name}-fp32") as embedder:
            np.testing.assert_allclose(window[point], embedder.embed(files), atol=1e-6)


def test_each_image_has_a_run_to_itself(family: Path, tmp_path: Path) -> None:
    files = save_shapes(tmp_path)
    items = [files[0], str(files[0]), files[0].read_bytes(), Image.open(files[0]), np.asarray(Image.open(files[0]))]
    with matexport.Embedder(family, "L03-D024-fp32") as embedder:
        rows = embedder.embed(items)
        assert (rows == rows[0]).all()
        assert (embedder.embed(files, batch_budget=64) == embedder.embed(files)).all()
        assert (np.stack(list(embedder.embed_iter(iter(files)))) == embedder.embed(files)).all()
        prepared = embedder.prepare(files[:2])
        with pytest.raises(RequestError, match="2 images were given to one run"):
            embedder.run(prepared)
        with pytest.raises(RequestError, match=r"image 1 is int; a path, a file's bytes"):
            embedder.embed([files[0], 7])


def test_images_weigh_what_they_are_decoded(tmp_path: Path) -> None:
    inputs = WholeImageInputs(replace(IMAGENET, in_graph=True))
    file, array = tmp_path / "one.png", np.zeros((300, 500, 3), np.uint8)
    Image.fromarray(array).save(file)
    decoded = 3 * 300 * 500
    for item in (file, str(file), file.read_bytes(), Image.fromarray(array), array):
        assert decoded <= inputs.weigh(item, 0) <= 2 * decoded
    (tmp_path / "none.png").write_text("no picture")
    assert inputs.weigh(tmp_path / "none.png", 0) < decoded
    with pytest.raises(RequestError, match="image 3 is int"):
        inputs.weigh(7, 3)


def test_a_side_that_is_too_long_is_refused(tmp_path: Path) -> None:
    inputs = WholeImageInputs(replace(IMAGENET, in_graph=True))
    Image.new("RGB", (32769, 1)).save(tmp_path / "long.png")
    with pytest.raises(RequestError, match=r"long\.png has 32769 x 1 pixels; .* sides of up to 32768"):
        inputs.prepare_one(tmp_path / "long.png")
    assert inputs.prepare_one(Image.new("RGB", (32768, 1))).shape == (1, 32768, 3)


def test_its_commands(family: Path, plain: Path, tmp_path: Path, run: Run) -> None:
    copy = Path(shutil.copytree(family, tmp_path / "family"))
    assert "(bicubic), cut to 28 x 28, inside of the graph" in run("show", copy).out
    assert "passed: 16 profiles" in run("verify", copy, "--record").out
    run("bench", copy, "--profile", "L01-D008-fp32", "--runs", 2, "--threads", 1)
    run("bench", copy, "--shape", "8x1").complains("takes one image in a run: ask for 1x1")
    run("report", copy)
    assert "inside of the graph" in (copy / "README.md").read_text(encoding="utf-8")
    pack = tmp_path / "pack"
    run("pack", copy, "L03-D008-fp32", pack)
    for old in (copy, plain):
        assert "compatible with" in run("verify", pack, "--baseline", old).out
    files = save_shapes(tmp_path / "pictures")
    files[1].write_bytes(files[1].read_bytes()[:60])
    said = run("embed", pack, tmp_path / "pictures", "--output", tmp_path / "v.npy")
    assert said.code == 2
    assert "1 of 8 images could not be read" in said.err
    with matexport.Embedder(plain, "L03-D008-fp32") as embedder:
        names = (tmp_path / "v.names.txt").read_text().splitlines()
        np.testing.assert_allclose(np.load(tmp_path / "v.npy"), embedder.embed(names), atol=1e-6)


def test_families_that_prepare_otherwise_are_told_apart(family: Path, plain: Path, tmp_path: Path, run: Run) -> None:
    """Rows of the one are whole images, and of the other pixels: it is what is done to them that is compared."""
    for name, changes in {
        "cubic": {"resampling": Resampling.BILINEAR},
        "square": {"square": (1, 2, 3)},
        "std": {"std": (0.5, 0.5, 0.5)},
    }.items():
        other = Path(shutil.copytree(plain, tmp_path / name))
        facts = load_family(other).facts
        assert facts.image is not None
        (other / MANIFEST).unlink()
        write_manifest(other, replace(facts, image=replace(facts.image, **changes)))
        said = run("verify", family, "--baseline", other)
        assert said.code == 1
        assert "pixels differ" in said.err if name != "std" else "grey levels are normalised otherwise" in said.err


def test_other_points_are_cut_from_what_is_there(job: ExportJob, family: Path, tower: Path, tmp_path: Path) -> None:
    """The graphs that are reused have the preparation in front, and new ranges are measured through it."""
    copy = Path(shutil.copytree(family, tmp_path / "family"))
    other = replace(job, points=tuple(Point(layers, dim) for layers in (1, 3) for dim in (8, 16)))
    exported = export_family(other, copy, overwrite=True)
    assert exported.cut_anew
    assert exported.verification.passed
    files, oracle = save_shapes(tmp_path), TowerOracle(tower, KIND)
    expected = np.stack([oracle.vector(file, 3, 16, "cls") for file in files])
    with matexport.Embedder(copy, "L03-D016-fp32") as embedder:
        np.testing.assert_allclose(embedder.embed(files), expected, atol=2e-5)


def test_a_family_without_it_is_another(job: ExportJob, family: Path) -> None:
    with pytest.raises(matexport.errors.DestinationError, match="made from other preparation of images"):
        export_family(replace(job, preprocess_in_graph=False), family)


# --- what is refused, and what a gate finds


def make_plan(inputs: Any, probes: tuple[Any, ...] = (), **changes: Any) -> Plan:
    job = ExportJob(ParentSource("a/parent", kind="image"), POINTS, preprocess_in_graph=True)
    return Plan(job, None, None, inputs, probes, **changes)  # type: ignore[arg-type]


def test_other_pixels_than_pillows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = tuple(probe for probe in image_probes.draw_probes() if probe.name in SOME)
    plan = in_graph.settle_preparation(make_plan(replace(IMAGENET, resampling=Resampling.BICUBIC), probes))
    assert plan.inputs.inputs == ("pixel_values",)
    assert plan.shipped_inputs.inputs == ("image",)
    in_graph.put_preparation_in_front(plan, [])
    other = {**pixels.FILTERS, Resampling.BICUBIC: pixels.FILTERS[Resampling.BILINEAR]}
    monkeypatch.setattr(pixels, "FILTERS", other)
    with pytest.raises(
        ParityError, match=r"in the graph, '.*\.png' .* has other pixels than Pillow gives, by up to"
    ) as told:
        in_graph.put_preparation_in_front(plan, [])
    assert told.value.stage == "preparation"


@pytest.mark.parametrize("name", ["nearest", "box", "hamming", "lanczos"])
def test_other_filters_are_refused_by_name(name: str) -> None:
    facts = replace(IMAGENET, resampling=Resampling(name))
    with pytest.raises(
        RequestError, match=f"a/parent are resized by {name}, and in a graph by bilinear, bicubic alone"
    ):
        in_graph.settle_preparation(make_plan(facts))
    unresized = in_graph.settle_preparation(make_plan(replace(facts, resized=())))
    assert unresized.shipped is not None, "there is nothing to filter"


def test_what_takes_no_images_is_refused(tmp_path: Path, run: Run) -> None:
    with pytest.raises(RequestError, match="preprocess_in_graph was asked; a/parent takes arrays: leave it out"):
        in_graph.settle_preparation(make_plan(ArrayFacts("x", (3,))))
    text = '[parent]\nsource = "nothing"\n[points]\nlayers = [1]\ndims = [8]\n'
    (tmp_path / "job.toml").write_text(text)
    assert not load_job(tmp_path / "job.toml").preprocess_in_graph
    words = "job: preprocess_in_graph was asked; nothing is read as a parent of texts"
    run("export", tmp_path / "job.toml", "--preprocess-in-graph").complains(words)
    (tmp_path / "job.toml").write_text(f"preprocess_in_graph = true\n{text}")
    run("export", tmp_path / "job.toml").complains(words)
    images = text.replace("[points]", 'kind = "image"\n[points]')
    (tmp_path / "job.toml").write_text(f"preprocess_in_graph = true\n{images}")
    assert load_job(tmp_path / "job.toml").preprocess_in_graph


def test_an_older_pillow_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.__version__", "12.3.0")
    with pytest.raises(RequestError, match=r"as Pillow 13 does, and 12\.3\.0 is installed, .* pillow>=13"):
        in_graph.settle_preparation(make_plan(IMAGENET))
