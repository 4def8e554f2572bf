"""The parent in torch, timed beside its family: it must be that parent, cut where the profile is."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from commandline import Run
from conftest import TEXTS
from msgspec.structs import replace
from oracle import Oracle
from parents import make_parent

from matexport import load_family
from matexport.cli.commands.bench import format_bench
from matexport.errors import ParentError
from matexport.export import export_family
from matexport.export.parents import in_torch
from matexport.export.parents.in_torch import ParentInTorch
from matexport.family.manifest import Family
from matexport.family.measurements.records import load_bench
from matexport.host import read_host
from matexport.measure.bench import BenchPlan, Trial, list_trials
from matexport.measure.trial import TrialPlan, run_trial
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.profile import Point
from matexport.spec.readout import FinalNorm, ReadoutRequest

pytestmark = pytest.mark.usefixtures("quick_traces")

SMALL, LARGE = "L01-D008-fp32", "L03-D032-fp32"


def open_live(family: Family, point: Point, parent: Path) -> ParentInTorch:
    return ParentInTorch(family, point, source=str(parent), threads=1)


def test_it_gives_the_vectors_of_every_point(exported: Path, parent: Path) -> None:
    family, oracle = load_family(exported), Oracle(parent)
    for point in {profile.point for profile in family.profiles}:
        live_parent = open_live(family, point, parent)
        live_parent.check()
        expected = np.stack([oracle.vector(text, point.layers, point.dim, "mean") for text in TEXTS])
        np.testing.assert_allclose(live_parent.embed(TEXTS), expected, atol=1e-5)
        rows = live_parent.prepare(TEXTS)
        np.testing.assert_allclose(live_parent.compute(live_parent.feed(rows)), expected, atol=1e-5)


@pytest.mark.parametrize("final_norm", [FinalNorm.KEEP, FinalNorm.DROP])
def test_the_final_norm_is_that_of_the_family(final_norm: FinalNorm, left_parent: Path, tmp_path: Path) -> None:
    job = ExportJob(ParentSource(str(left_parent)), (Point(1, 16), Point(3, 32)), ReadoutRequest(final_norm=final_norm))
    family = export_family(job, tmp_path / "family").family
    for point in job.points:
        open_live(family, point, left_parent).check()
    other = FinalNorm.DROP if final_norm is FinalNorm.KEEP else FinalNorm.KEEP
    facts = replace(family.facts, readout=replace(family.facts.readout, final_norm=other))
    with pytest.raises(ParentError, match="does not give the vectors"):
        open_live(replace(family, facts=facts), Point(1, 16), left_parent).check()


def test_a_block_too_many_is_noticed(exported: Path, parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = in_torch.cut_blocks
    monkeypatch.setattr(in_torch, "cut_blocks", lambda model, layers, norm: cut(model, layers + 1, norm))
    with pytest.raises(ParentError, match=r"cut to L01-D008, does not give the vectors that the family was made from"):
        open_live(load_family(exported), Point(1, 8), parent).check()


def test_another_parent_is_noticed(exported: Path, tmp_path: Path) -> None:
    other = make_parent(tmp_path / "other", "bert", seed=1)
    with pytest.raises(ParentError, match=r"on probe \d+\): name the family's own parent with --parent"):
        open_live(load_family(exported), Point(3, 32), other).check()


def test_it_is_measured_as_a_profile_is(exported: Path, parent: Path) -> None:
    plan = TrialPlan(
        0, str(exported), SMALL, 1, "onnxruntime", "cpu", ((1, 4), (2, 8)), tuple(TEXTS), 3, 60.0, str(parent)
    )
    result = run_trial(plan, in_torch.open_parent)
    assert {shape: len(samples) for shape, samples in result.latency_s.items()} == {"1x4": 3, "2x8": 3}
    assert len(result.call_s) == len(result.graph_s) == len(result.mix_s) == 3


def test_it_takes_its_turns_once_per_point() -> None:
    plan = BenchPlan(profiles=(SMALL, "L01-D008-int8", LARGE), threads=(1, 2), parent="somewhere")
    there = [
        *(Trial(SMALL, threads) for threads in (1, 2)),
        *(Trial(SMALL, threads, in_torch=True) for threads in (1, 2)),
        *(Trial("L01-D008-int8", threads) for threads in (1, 2)),
        *(Trial(LARGE, threads) for threads in (1, 2)),
        *(Trial(LARGE, threads, in_torch=True) for threads in (1, 2)),
    ]
    assert list_trials(plan) == there + there[::-1]


def test_bench_against_torch(run: Run, family: Path, parent: Path, tmp_path: Path) -> None:
    quick = ("--threads", "1", "--shape", "1x4", "--runs", "1")
    both = ("--profile", SMALL, "--profile", LARGE, *quick)
    result = run("bench", family, *both, "--against", "torch", "--parent", parent)
    assert (result.code, result.err) == (0, "")
    assert "x torch" in result.out
    bench = load_bench(load_family(family), read_host())
    assert bench is not None
    for name in (SMALL, LARGE):
        ours, theirs = bench.profiles[name].threads[1], bench.profiles[name].parent[1]
        assert theirs.first_vector.runs == 2, "there and back"
        assert theirs.peak_bytes is not None
        assert ours.peak_bytes is not None
        assert theirs.peak_bytes > 2 * ours.peak_bytes, "it has torch in it"
        (line,) = (line for line in format_bench(bench).splitlines() if re.match(rf"{name} (?!in torch)", line))
        assert line.split()[-1] == f"{ours.texts_per_s / theirs.texts_per_s:.2f}"
    assert len(re.findall(r"^L0\S+ in torch", result.out, re.MULTILINE)) == 2

    quick = ("--profile", SMALL, *quick)
    run("bench", family, *quick, "--parent", parent).complains("--parent is for --against torch")
    result = run("bench", family, *quick, "--against", "torch", "--parent", tmp_path / "absent")
    result.complains("the parent at L01-D008, 1 thread(s): the parent", "is not a directory")
