"""A family whose points alone changed: what it has is taken over, and it is the same bytes as if all were made anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from commandline import Run
from conftest import Precise
from folders import read_all
from forge import flip_byte
from memory import trace_once
from msgspec.structs import replace

from matexport import verify_family
from matexport.errors import DestinationError
from matexport.export import export_family, pipeline, reuse
from matexport.export.graph.edit import write_graph
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.profile import Encoding, Point, Precision
from matexport.spec.tolerance import Tolerance

pytestmark = pytest.mark.usefixtures("quick_traces")

FIRST = (Point(1, 64), Point(2, 20), Point(2, 64))
#: One that stays, one that is new at each depth, one that goes; in no order.
CHANGED = (Point(2, 33), Point(1, 24), Point(2, 64))
ALL = tuple(precision for precision in Precision if precision is not Precision.Q4_MIXED)


@pytest.fixture
def nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a trace nor a precision."""
    monkeypatch.setattr(pipeline, "trace_exits", lambda *_, **__: pytest.fail("the parent was traced"))
    monkeypatch.setattr(pipeline, "make_precisions", lambda *_, **__: pytest.fail("something was quantized"))


def refuse_to_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matexport.export.parents.text.load_parent", lambda plan: pytest.fail("weights were loaded"))


@pytest.mark.parametrize("kind", ["bert", "rough"])
def test_it_is_as_if_all_had_been_made(kind: str, precise: Callable[[str], Precise], tmp_path: Path) -> None:
    """Every precision and encoding; of rough, whose cls profiles compute one token of their last block."""
    known = precise(kind)
    job = replace(known.job, points=FIRST, precisions=ALL)
    changed = replace(job, points=CHANGED)
    whole = export_family(changed, tmp_path / "whole")
    assert not whole.cut_anew
    export_family(job, tmp_path / "family")
    with pytest.MonkeyPatch.context() as patch:
        nothing_is_made.__wrapped__(patch)  # type: ignore[attr-defined]
        with pytest.raises(DestinationError, match=r"other points \(new: L01-D024, L02-D033; left out: L01-D064"):
            export_family(changed, tmp_path / "family")
        anew = export_family(changed, tmp_path / "family", overwrite=True)
    assert anew.cut_anew
    assert anew.verification.passed
    ours, theirs = read_all(tmp_path / "family"), read_all(tmp_path / "whole")
    facts = {name for name in theirs if "/" not in name}  # measurements are of each family
    assert {name for name in ours if "/" not in name} == facts
    assert [name for name in sorted(facts) if ours[name] != theirs[name]] == []


@pytest.mark.usefixtures("nothing_is_made")
def test_points_that_go_need_no_parent(family: Path, parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_to_load(monkeypatch)
    kept = (Point(1, 8), Point(2, 32), Point(3, 8))
    exported = export_family(ExportJob(ParentSource(str(parent)), kept), family, overwrite=True)
    assert exported.cut_anew
    assert {profile.point for profile in exported.family.profiles} == set(kept)
    assert not (family / "L01-D032.fp32.onnx").exists()
    assert verify_family(family).passed


def give_other() -> dict[str, dict[str, Any]]:
    points = (Point(1, 8), Point(2, 16), Point(3, 32))
    same = {"points": points}
    return {
        "depths": {"points": points[:2]},
        "precisions": same | {"precisions": (Precision.FP32, Precision.FP16)},
        "tolerances": same | {"tolerances": {Precision.FP32: Tolerance(5e-6)}},
        "encodings": same | {"encodings": (Encoding.FLOAT32, Encoding.UBINARY)},
    }


@pytest.mark.parametrize("what", ["depths", "precisions", "tolerances", "encodings"])
def test_what_changes_more_than_dims_is_made(what: str, family: Path, parent: Path) -> None:
    job = ExportJob(ParentSource(str(parent)), (Point(1, 8),))
    exported = export_family(replace(job, **give_other()[what]), family, overwrite=True)
    assert not exported.cut_anew
    assert exported.verification.passed


def test_a_pack_and_a_spoilt_family_give_nothing(family: Path, parent: Path, tmp_path: Path, run: Run) -> None:
    points = (Point(1, 8), Point(2, 16), Point(3, 32))
    job = ExportJob(ParentSource(str(parent)), points)
    run("pack", family, "L01-D008-fp32", tmp_path / "pack")
    assert not export_family(replace(job, points=(Point(1, 16),)), tmp_path / "pack", overwrite=True).cut_anew
    flip_byte(family / "weights.fp32.safetensors", -3)
    assert not export_family(job, family, overwrite=True).cut_anew


def test_where_4_bits_cost_most_is_asked_again(precise: Callable[[str], Precise], tmp_path: Path) -> None:
    known = precise("modernbert")
    family = Path(shutil.copytree(known.family, tmp_path / "family"))
    points = tuple(replace(point, dim=48) if point.dim == 20 else point for point in known.job.points)
    assert Precision.Q4_MIXED in known.job.precisions
    assert not export_family(replace(known.job, points=points), family, overwrite=True).cut_anew


def test_a_new_profile_that_is_off_its_floor_is_left_out_by_the_whole_pipeline(
    precise: Callable[[str], Precise], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph of a new dim that reads coordinates 1 to 33 and not 0 to 32: nothing of it is kept."""
    known = precise("bert")
    job = replace(known.job, points=FIRST, precisions=(Precision.FP32,), encodings=(Encoding.FLOAT32,))
    out = tmp_path / "family"
    export_family(job, out)

    def write_shifted(model: ir.Model, path: Path) -> None:
        if path.name == "L02-D033.fp32.onnx":
            for name, content in (("dim_start", 1), ("dim_33", 34)):
                model.graph.initializers[name].const_value = ir.tensor([content], name=name)
        write_graph(model, path)

    def trace(*given: Any, **asked: Any) -> Any:
        made.append("trace")
        return trace_once(*given, **asked)

    made: list[str] = []
    monkeypatch.setattr(reuse, "write_graph", write_shifted)
    monkeypatch.setattr(pipeline, "trace_exits", trace)
    exported = export_family(replace(job, points=CHANGED), out, overwrite=True)
    assert made == ["trace"]
    assert not exported.cut_anew
    assert exported.verification.passed
    assert {profile.point for profile in exported.family.profiles} == set(CHANGED)


def test_the_command_says_so(family: Path, parent: Path, tmp_path: Path, run: Run) -> None:
    job = tmp_path / "job.toml"
    job.write_text(f"[parent]\nsource = {json.dumps(str(parent))}\n[points]\nlayers = [1, 2, 3]\ndims = [8, 16]\n")
    run("export", job, "--out", family).complains("other points (new: L01-D016, L02-D016, L03-D016; left out: L01-D032")
    said = run("export", job, "--out", family, "--overwrite")
    assert "cut from the trace and the precisions of the family that was there, 6 profiles" in said.out
