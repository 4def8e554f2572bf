"""Patch tokens: as many vectors of an image as it has patches, against an oracle of its own, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commandline import Run
from conftest import make_once
from memory import trace_once
from msgspec.structs import replace
from vision import BLOCKS, WIDTH, TowerOracle, make_tower, save_images

import matexport
from matexport.errors import ParityError, RequestError
from matexport.export import export_family, pipeline
from matexport.export.kinds.probes import image as image_probes
from matexport.export.parents.vision import module as vision_module
from matexport.family.manifest import load_family
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.profile import Encoding, Point, Precision
from matexport.spec.readout import FinalNorm, PoolingMode, ReadoutRequest

pytestmark = pytest.mark.usefixtures("quick_traces")

#: 28 x 28 pixels in patches of 7 x 7.
COUNT = 16
POINTS = tuple(Point(layers, dim) for layers in (1, 2, 3) for dim in (8, WIDTH))
PATCHES = ReadoutRequest(pooling=PoolingMode.PATCHES)


@pytest.fixture(scope="session")
def probes(shared: Path) -> Path:
    def make() -> None:
        folder.mkdir()
        for probe in image_probes.draw_probes()[:5]:
            (folder / probe.name).write_bytes(probe.content)

    folder = shared / "patch-probes"
    return make_once(folder, make)


@pytest.fixture(scope="session")
def parent(shared: Path) -> Path:
    """A DINOv2 with four registers: a class token and registers stand before the patches."""
    folder = shared / "patch-tower"
    return make_once(folder, lambda: make_tower(folder, "registers"))


def make_job(parent: Path, probes: Path, **changes: Any) -> ExportJob:
    job = ExportJob(ParentSource(str(parent), kind="image"), POINTS, PATCHES, probes=probes)
    return replace(job, **changes)


@pytest.fixture(scope="session")
def family(parent: Path, probes: Path, shared: Path) -> Path:
    """Not to be changed: copy it."""

    def make() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline, "trace_exits", trace_once)
            precisions = (Precision.FP32, Precision.INT8, Precision.Q4_MIXED)
            export_family(make_job(parent, probes, precisions=precisions), folder)

    folder = shared / "family-patches"
    return make_once(folder, make)


def test_patches_are_those_of_the_oracle(family: Path, parent: Path, tmp_path: Path) -> None:
    oracle, files = TowerOracle(parent, "registers"), save_images(tmp_path, 2)
    for layers, dim, _ in ((point.layers, point.dim, point.tokens) for point in POINTS):
        with matexport.Embedder(family, f"L0{layers}-D{dim:03d}-T016-fp32") as embedder:
            found = embedder.embed(files)
            assert next(iter(embedder.embed_iter(files))).shape == (COUNT, dim)
        assert found.shape == (2, COUNT, dim)
        assert found.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(found, axis=2), 1, atol=1e-6)
        for row, file in zip(found, files, strict=True):
            np.testing.assert_allclose(row, oracle.patches(file, layers, dim), atol=2e-5)
        wrong = {
            "class token left in": oracle.patches(files[0], layers, dim, before=0),
            "registers left in": oracle.patches(files[0], layers, dim, before=1),
            "a block on or back": oracle.patches(files[0], layers % BLOCKS + 1, dim),
            "no norm": oracle.patches(files[0], layers, dim, norm="none"),
            "another image": oracle.patches(files[1], layers, dim),
        }
        if dim < WIDTH:
            wrong["norm of what is sliced"] = oracle.patches(files[0], layers, dim, norm="sliced")
        for name, other in wrong.items():
            assert np.abs(found[0] - other).max() > 1e-2, name


def test_the_family_says_what_it_gives(family: Path, tmp_path: Path, run: Run) -> None:
    facts = load_family(family).facts
    assert facts.refused == {}
    assert facts.readout.pooling == (PoolingMode.PATCHES,)
    assert {profile.point for profile in load_family(family).profiles} == {replace(p, tokens=COUNT) for p in POINTS}
    assert facts.shape_at(Point(1, 8, COUNT)) == (COUNT, 8)
    assert matexport.verify_family(family).passed
    assert "patches" in run("show", family).out
    save_images(tmp_path / "pictures", 20)
    run("evaluate", family, "--images", tmp_path / "pictures").complains(
        "gives 16 tokens for each image, and a task compares vectors"
    )


def test_other_dims_are_cut_anew(family: Path, parent: Path, probes: Path, tmp_path: Path) -> None:
    """To the same bytes as when all is made, its output of three axes included."""
    points = tuple(Point(layers, dim) for layers in (1, 2, 3) for dim in (8, 12))
    job = make_job(parent, probes, points=points)
    export_family(make_job(parent, probes), tmp_path / "one")
    anew = export_family(job, tmp_path / "one", overwrite=True)
    assert anew.cut_anew
    export_family(job, tmp_path / "two")
    for name in ("L02-D012-T016.fp32.onnx", "exits.fp32.onnx"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_norm_that_is_dropped(parent: Path, probes: Path, tmp_path: Path) -> None:
    """And lengths that are kept: a patch's raw state, cut."""
    readout = ReadoutRequest(pooling=PoolingMode.PATCHES, final_norm=FinalNorm.DROP, normalize=False)
    points = (Point(2, 8), Point(3, 8))
    export_family(make_job(parent, probes, readout=readout, points=points), tmp_path / "family")
    oracle, files = TowerOracle(parent, "registers"), save_images(tmp_path / "pictures", 1)
    for layers in (2, 3):
        state = oracle.state(files[0], layers)
        expected = (oracle.norm(state) if layers == BLOCKS else state)[0, 5:, :8].numpy()
        with matexport.Embedder(tmp_path / "family", f"L0{layers}-D008-T016-fp32") as embedder:
            np.testing.assert_allclose(embedder.embed(files)[0], expected, atol=2e-5 * np.abs(expected).max())


def read_one_block_on(self: Any, state: torch.Tensor, last: bool) -> torch.Tensor:
    return READ(self, state if last else self.backbone.encoder.layer[0](state), last)


def norm_after_the_slice(self: Any, state: torch.Tensor, last: bool) -> torch.Tensor:
    norm = self.backbone.layernorm
    sliced = torch.nn.functional.layer_norm(state[:, 5:, :8], (8,), norm.weight[:8], norm.bias[:8], norm.eps)
    return torch.nn.functional.pad(sliced, (0, WIDTH - 8))


def keep_the_class_token(self: Any, state: torch.Tensor, last: bool) -> torch.Tensor:
    return self.backbone.layernorm(torch.cat([state[:, :1], state[:, 6:]], dim=1))  # type: ignore[no-any-return]


def keep_the_registers(self: Any, state: torch.Tensor, last: bool) -> torch.Tensor:
    return self.backbone.layernorm(state[:, 1:17])  # type: ignore[no-any-return]


def shuffle_two_patches(self: Any, state: torch.Tensor, last: bool) -> torch.Tensor:
    return READ(self, torch.cat([state[:, :5], state[:, 6:7], state[:, 5:6], state[:, 7:]], dim=1), last)


READ = vision_module.TowerExits._read


@pytest.mark.parametrize(
    "wrong",
    [read_one_block_on, norm_after_the_slice, keep_the_class_token, keep_the_registers, shuffle_two_patches],
)
def test_a_wrong_read_out_is_refused(
    wrong: Any, parent: Path, probes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vision_module.TowerExits, "_read", wrong)
    points = (Point(1, 8), Point(2, 8))
    with pytest.raises(ParityError, match=r"read-out: in torch, L0.-D008-T016 is not the parent's"):
        export_family(make_job(parent, probes, points=points), tmp_path / "family")
    assert not (tmp_path / "family").exists()


def test_a_count_that_is_not_the_parents_is_refused(parent: Path, probes: Path, tmp_path: Path) -> None:
    job = make_job(parent, probes, points=(Point(1, 8, 25),))
    with pytest.raises(RequestError, match=r"tokens=25 was asked; .* has 16 patches, all of which are given"):
        export_family(job, tmp_path / "family")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encodings": (Encoding.FLOAT32, Encoding.UBINARY)}, "patch tokens are given as float32"),
        ({"encodings": (Encoding.INT8,)}, "patch tokens are given as float32"),
        ({"points": (Point(4, 8),)}, "layers=4 was asked; .* has 3 blocks"),
        ({"points": (Point(1, 33),)}, "dim=33 was asked"),
        ({"points": (Point(1, 8, COUNT),), "readout": ReadoutRequest(pooling=PoolingMode.MEAN)}, "gives one vector"),
    ],
)
def test_what_a_job_cannot_ask(
    changes: Mapping[str, Any], words: str, parent: Path, probes: Path, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=words):
        export_family(make_job(parent, probes, **changes), tmp_path / "family")


def test_towers_without_a_class_token_give_all_tokens(
    probes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SigLIP's first token is a patch, and the order is kept."""
    job = make_job(make_tower(tmp_path / "siglip", "siglip"), probes, points=(Point(2, 8),))
    export_family(job, tmp_path / "family")
    oracle, files = TowerOracle(tmp_path / "siglip", "siglip"), save_images(tmp_path / "pictures", 1)
    with matexport.Embedder(tmp_path / "family") as embedder:
        np.testing.assert_allclose(embedder.embed(files)[0], oracle.patches(files[0], 2, 8), atol=2e-5)
    monkeypatch.setattr(vision_module.TowerExits, "_read", lambda self, state, last: READ(self, state.flip(1), last))
    with pytest.raises(ParityError, match="read-out"):
        export_family(job, tmp_path / "wrong")
