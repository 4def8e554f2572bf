"""A hub parent whose files are not in the cache: what is fetched when."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cases import add_asym, build_router, build_static
from folders import read_all
from hub import NAME, FakeHub, open_hub
from parents import BLOCKS, WIDTH, make_parent
from safetensors.torch import load_file

from matexport import load_family
from matexport.errors import MatexportError, ParentError, RequestError
from matexport.export import export_family
from matexport.export.outline import outline_parent
from matexport.export.parents import text
from matexport.export.parents.in_torch import ParentInTorch
from matexport.export.parents.preflight import locate
from matexport.export.parents.text import load_parent, plan_parent
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.profile import Point

POINTS = (Point(1, 8), Point(BLOCKS, 16))


def make_job(hub: FakeHub, points: tuple[Point, ...] = POINTS, **source: object) -> ExportJob:
    return ExportJob(ParentSource(NAME, **source), points, base=hub.parent.parent)  # type: ignore[arg-type]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """Of a parent with a Dense and a LayerNorm behind its Pooling."""
    parent = make_parent(tmp_path / "parent", dense=[16], layer_norm=True)
    return open_hub(parent, tmp_path / "cache", monkeypatch)


def test_the_backbones_weights_are_fetched_when_everything_else_was_accepted(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    last: list[str] = []
    describe = text.describe_text
    monkeypatch.setattr(text, "describe_text", lambda *parts: (last.extend(hub.fetched_weights), describe(*parts))[1])
    plan = plan_parent(make_job(hub))
    assert last == ["2_Dense/model.safetensors", "3_LayerNorm/model.safetensors"]
    assert hub.fetched_weights == [*last, "model.safetensors"]
    assert plan.parent.weights.keys() == set(hub.fetched_weights)
    assert (plan.parent.source, plan.parent.output_width) == (NAME, 16)


def test_of_a_refused_parent_nothing_is_fetched_but_its_settings(hub: FakeHub) -> None:
    for points, words in (((Point(9, 8),), "layers=9 was asked"), ((Point(1, 17),), "dim=17 was asked")):
        with pytest.raises(RequestError, match=words):
            plan_parent(make_job(hub, points))
    assert "2_Dense/config.json" in hub.fetched
    assert hub.fetched_weights == []


def test_what_planning_alone_finds_is_said_without_the_backbone(hub: FakeHub) -> None:
    job = make_job(hub)
    long = ExportJob(job.parent, job.points, readout=type(job.readout)(max_tokens=99), base=job.base)
    with pytest.raises(RequestError, match="max_tokens=99 was asked; the parent takes 1 to 48"):
        plan_parent(long)
    assert hub.fetched_weights == ["2_Dense/model.safetensors", "3_LayerNorm/model.safetensors"]


def test_a_first_look_fetches_what_planning_loads(hub: FakeHub) -> None:
    outline = outline_parent(ParentSource(NAME), hub.parent.parent)
    assert (outline.found.parent.output_width, outline.depths) == (16, (1, 2, 3))
    assert hub.fetched_weights == ["2_Dense/model.safetensors", "3_LayerNorm/model.safetensors"]


@pytest.mark.usefixtures("quick_traces")
def test_its_family_is_that_of_the_folder(hub: FakeHub, tmp_path: Path) -> None:
    """But for the parent's name, which is in the manifest; and it is timed beside a parent that is fetched again."""
    export_family(make_job(hub), tmp_path / "from_hub")
    export_family(ExportJob(ParentSource(str(hub.parent)), POINTS), tmp_path / "from_folder")
    ours, theirs = read_all(tmp_path / "from_hub"), read_all(tmp_path / "from_folder")
    assert ours.keys() == theirs.keys()
    compared = [name for name in ours if name.endswith((".onnx", ".safetensors", ".jsonl", "tokenizer.json"))]
    assert len(compared) >= 6
    assert [name for name in compared if ours[name] != theirs[name]] == []
    hub.cache = tmp_path / "cold"
    ParentInTorch(load_family(tmp_path / "from_hub"), POINTS[1], source=NAME, threads=1).check()


@pytest.mark.parametrize(
    ("build", "route", "before", "after"),
    [
        (build_static, None, ["0_StaticEmbedding/model.safetensors"], []),
        (build_router, "query", [], [f"{route}_0_Transformer/model.safetensors" for route in ("document", "query")]),
        (
            lambda folder: (make_parent(folder), add_asym(folder)),
            "query",
            ["2_Asym/document_0/model.safetensors", "2_Asym/query_0/model.safetensors"],
            ["model.safetensors"],
        ),
    ],
    ids=["static", "router", "asym"],
)
def test_what_planning_loads_is_fetched_for_it(
    build: Callable[[Path], object],
    route: str | None,
    before: list[str],
    after: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A table of tokens has nothing but its file that says how wide it is; a Router loads its other routes, too."""
    build(tmp_path / "parent")
    hub = open_hub(tmp_path / "parent", tmp_path / "cache", monkeypatch)
    job = make_job(hub, (Point(0 if build is build_static else 1, 8),), route=route)
    located = locate(job)
    assert hub.fetched_weights == before
    plan = plan_parent(job, located)
    assert hub.fetched_weights == [*before, *after]
    assert load_parent(plan).plan.parent.width == WIDTH


def test_pickled_heads_are_fetched_when_that_is_allowed(hub: FakeHub) -> None:
    head = hub.parent / "2_Dense"
    torch.save(load_file(head / "model.safetensors"), head / "pytorch_model.bin")
    (head / "model.safetensors").unlink()
    with pytest.raises(ParentError, match="2_Dense has no safetensors weights"):
        plan_parent(make_job(hub))
    assert "2_Dense/pytorch_model.bin" not in hub.fetched
    assert "model.safetensors" not in hub.fetched
    assert "2_Dense/pytorch_model.bin" in plan_parent(make_job(hub, allow_pickle=True)).parent.weights


def test_a_hub_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = open_hub(make_parent(tmp_path / "parent", dense=[16]), tmp_path / "cache", monkeypatch)
    locate(make_job(hub))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_names, **_options: _fail())
    with pytest.raises(MatexportError, match="could not be fetched from the hub: no network"):
        plan_parent(make_job(hub))


def _fail() -> None:
    raise OSError("no network")
