"""``matexport init`` on parents that take images: the job that it writes loads, and is planned as it stands."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import transformers as hf
from commandline import Run
from conftest import make_once
from vision import TOWERS, make_tower

from matexport.export.kinds.kind import find_kind
from matexport.export.kinds.outline import find_image_kind, outline_images
from matexport.export.parents.plan import Plan
from matexport.io.jobs import load_job
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.profile import Point, Precision
from matexport.spec.readout import FinalNorm, PoolingMode


def borrow(name: str) -> Any:
    """A module of tests beside this one, for what it makes its parents with."""
    spec = spec_from_file_location(f"borrowed_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


classifiers, francas, llavas = map(borrow, ("test_classifier", "test_franca", "test_visual_tokens"))

MAKERS: dict[str, Callable[[Path], Any]] = {
    **{kind: (lambda folder, kind=kind: make_tower(folder, kind)) for kind in TOWERS},
    "franca": lambda folder: francas.make_parent(folder, chunks=2),
    "MRL": lambda folder: classifiers.make_parent(folder, "MRL"),
    "FF": lambda folder: classifiers.make_parent(folder, "FF"),
    "MRL-E": lambda folder: classifiers.make_parent(folder, "MRL-E"),
    "llava": llavas.make_llava,
}


@pytest.fixture(scope="session")
def parents(shared: Path) -> Callable[[str], Path]:
    return lambda name: make_once(shared / f"look-{name}", lambda: MAKERS[name](shared / f"look-{name}"))


def test_the_text_tower_of_two_is_no_text_encoder(run: Run, tmp_path: Path) -> None:
    """Which would be read by a mean of its tokens."""
    model = hf.CLIPTextModelWithProjection(hf.CLIPTextConfig(hidden_size=16, num_hidden_layers=1, vocab_size=9))
    model.save_pretrained(tmp_path / "text")
    run("init", tmp_path / "text", "--out", "-").complains(
        "is the text tower of a model with two", 'kind = "text-tower"'
    )


@pytest.fixture
def planned(run: Run, parents: Callable[[str], Path], tmp_path: Path) -> Callable[..., tuple[ExportJob, Plan]]:
    """The name of a parent -> the job that init writes for it, loaded, and its plan."""

    def plan(name: str, *options: str) -> tuple[ExportJob, Plan]:
        result = run("init", parents(name), "--out", tmp_path / "job.toml", "--overwrite", *options)
        assert result.code == 0, result.err
        job = load_job(tmp_path / "job.toml")
        kind = find_kind(job)
        with kind.begin(job, tmp_path / "family") as begun:
            return job, kind.plan(job, begun)

    return plan


@pytest.mark.parametrize(
    ("name", "pooling"),
    [("vit", "cls"), ("dinov2", "cls"), ("registers", "cls"), ("dinov3", "cls"), ("clip", "pooler"),
     ("siglip", "pooler")],
)  # fmt: skip
def test_towers(name: str, pooling: str, planned: Callable[..., tuple[ExportJob, Plan]]) -> None:
    job, plan = planned(name)
    assert job.parent.kind == "image"
    assert (job.readout.pooling, job.readout.final_norm, job.readout.normalize) == (pooling, FinalNorm.KEEP, True)
    assert plan.readout.pooling == (PoolingMode(pooling),)
    width = 24 if name == "clip" else 32
    assert {point.layers for point in job.points} == {1, 2, 3}
    assert max(point.dim for point in job.points) == width
    assert job.precisions == (Precision.FP32, Precision.INT8)
    assert job.trained is None


def test_a_folder_of_franca(planned: Callable[..., tuple[ExportJob, Plan]]) -> None:
    job, plan = planned("franca")
    assert (job.parent.kind, job.readout.pooling) == ("franca", PoolingMode.CLS)
    assert {(point.layers, point.dim) for point in job.points} == {
        (layers, dim) for layers in (1, 2, 3) for dim in (32, 64, 128)
    }
    assert plan.parent.architecture == "Franca"


def test_classifiers(planned: Callable[..., tuple[ExportJob, Plan]]) -> None:
    """Heads of their own say which dims there are; of a shared one, any dim can be cut."""
    blocks = classifiers.BLOCKS
    job, plan = planned("MRL")
    assert job.parent.kind == "classifier"
    assert job.points == job.trained == tuple(Point(blocks, dim) for dim in classifiers.DIMS)
    assert job.precisions == (Precision.FP32,)
    assert (job.readout.pooling, job.readout.features) == (None, False)
    assert plan.readout.classes == classifiers.CLASSES
    job, _ = planned("FF")
    assert job.points == (Point(blocks, 16),)
    job, _ = planned("MRL-E")
    assert (job.points, job.trained) == (tuple(Point(blocks, dim) for dim in (32, 64, 128)), None)
    job, _ = planned("MRL", "--points", "whole")
    assert job.points == (Point(blocks, 128),)


def test_visual_tokens(planned: Callable[..., tuple[ExportJob, Plan]], run: Run, tmp_path: Path) -> None:
    job, plan = planned("llava")
    assert job.parent.kind == "visual-tokens"
    assert job.points == job.trained == llavas.POINTS
    assert plan.output == "visual_tokens"
    text = (tmp_path / "job.toml").read_text()
    assert "tokens = [1, 9, 36, 144]" in text
    assert "pooling" not in [line.split(" = ")[0] for line in text.splitlines()]


def test_what_is_commented_out_loads_when_it_is_not(parents: Callable[[str], Path], run: Run, tmp_path: Path) -> None:
    run("init", parents("vit"), "--out", tmp_path / "job.toml")
    lines = (tmp_path / "job.toml").read_text().split("\n")
    marked = ("# image_size", "# [probes]", "# file =", "# [calibration]", "# encodings", "# sha256")
    assert sum(line.startswith(marked) for line in lines) == 7
    (tmp_path / "job.toml").write_text(
        "\n".join(line[2:] if line.startswith(marked) else line for line in lines if not line.startswith("# [trained]"))
    )
    job = load_job(tmp_path / "job.toml")
    assert job.readout.image_size == 28
    assert job.probes == tmp_path / "pictures"
    assert job.calibration == tmp_path / "more-pictures"
    assert job.parent.sha256


def test_what_it_says(parents: Callable[[str], Path], run: Run, tmp_path: Path) -> None:
    said = run("init", parents("registers"), "--out", tmp_path / "job.toml")
    assert "Dinov2WithRegistersModel, 3 blocks, vectors of 32 coordinates" in said.out
    text = (tmp_path / "job.toml").read_text()
    assert "# Images: image files of any size, the shorter side resized to 32 (bicubic), cut to 28 x 28." in text
    assert "vocabulary" not in text
    assert "Also: mean, patches" in text
    document = run("init", parents("llava"), "--out", "-", "--json").json
    assert document["points"] == [[3, 40, count] for count in (1, 9, 36, 144)]
    assert document["outline"]["found"]["image"]["height"] == 48
    (tmp_path / "trained").mkdir()
    folder = make_tower(tmp_path / "trained" / "vit", "vit")
    (folder / "matryoshka.json").write_text(json.dumps({"layers": [2, 3], "dims": [8, 32]}))
    run("init", folder, "--out", tmp_path / "trained.toml")
    assert load_job(tmp_path / "trained.toml").trained == tuple(Point(k, d) for k in (2, 3) for d in (8, 32))


def test_texts_are_not_taken_for_images(parent: Path, tmp_path: Path) -> None:
    assert find_image_kind(parent, allow_pickle=False) is None
    assert outline_images(ParentSource(str(parent)), Path()) is None
    (tmp_path / "config.json").write_text('{"model_type": ["vit"]}')
    assert find_image_kind(tmp_path, allow_pickle=False) is None
    (tmp_path / "config.json").unlink()
    assert find_image_kind(tmp_path, allow_pickle=False) is None


def test_pickles_are_refused_unless_allowed(run: Run, tmp_path: Path) -> None:
    folder = francas.make_parent(tmp_path / "franca", pickled=True)
    run("init", folder, "--out", tmp_path / "job.toml").complains("pickled weights only", "--allow-pickle")
    assert run("init", folder, "--out", tmp_path / "job.toml", "--allow-pickle").code == 0
    job = load_job(tmp_path / "job.toml")
    assert (job.parent.kind, job.parent.allow_pickle) == ("franca", True)
