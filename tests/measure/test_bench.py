"""What is measured is what was asked, in fresh processes, in both orders; and what is kept belongs to a host and to
these very files. No test looks at how long something took."""

from __future__ import annotations

import json
import random
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commandline import Run
from conftest import TEXTS
from forge import edit_manifest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from matexport import load_family, pack_profile, verify_family
from matexport.cli.commands.bench import format_bench
from matexport.consumers.layouts import NATIVE
from matexport.errors import FamilyError, RequestError
from matexport.family.measurements.records import load_bench, load_measurement, record_bench
from matexport.family.measurements.sections import find_measurements, load_sections
from matexport.host import read_host
from matexport.measure import bench as bench_module
from matexport.measure.bench import BenchPlan, Trial, bench_family, complete_plan, list_trials, make_sample, summarise
from matexport.measure.trial import TrialResult, time_calls
from matexport.spec.measured import Bench, Engine, Timing
from matexport.verify.verdict import record_measurement

SMALL, LARGE = "L01-D008-fp32", "L03-D032-fp32"
QUICK = BenchPlan(profiles=(SMALL, LARGE), threads=(1,), shapes=((1, 4), (3, 8)), runs=4, seconds=5.0)


@pytest.fixture(scope="module")
def measured(exported: Path) -> Bench:
    return bench_family(exported, QUICK)


def test_every_profile_is_measured_at_every_shape(measured: Bench, exported: Path, tmp_path: Path) -> None:
    assert list(measured.profiles) == [SMALL, LARGE]
    for name, profile in measured.profiles.items():
        (timing,) = profile.threads.values()
        assert list(timing.latency) == ["1x4", "3x8"]
        assert [sample.runs for sample in timing.latency.values()] == [4, 4]
        assert timing.first_vector.runs == 4, "a process for each order, and as many that only start"
        assert timing.call.p50 > timing.graph.p50 > 0
        assert 0 < timing.overhead < 1
        assert timing.texts_per_s > 0
        assert timing.peak_bytes is not None
        assert 20e6 < timing.peak_bytes < 500e6
        pack = pack_profile(exported, name, tmp_path / name, layout=NATIVE)
        proof = {"probes.jsonl", "reference.safetensors"}
        needed = sum(file.bytes for file_name, file in pack.facts.files.items() if file_name not in proof)
        assert profile.disk_bytes == needed
        assert profile.download_bytes < profile.disk_bytes


def test_a_process_starts_before_its_first_vector(measured: Bench) -> None:
    """Python, numpy and onnxruntime are imported in between, which no run of the graph takes."""
    for profile in measured.profiles.values():
        timing = profile.threads[1]
        assert timing.first_vector.p50 > 10 * timing.graph.p50


def test_trials_go_there_and_back() -> None:
    names = ("L01-D008-fp32", "L01-D008-int8", "L02-D008-fp32")
    plan = BenchPlan(profiles=names, threads=(1, 4))
    there = [Trial(name, threads) for name in names for threads in (1, 4)]
    assert list_trials(plan) == there + there[::-1]


def test_what_is_left_open(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "count_cpus", lambda: 3)
    family = load_family(exported)
    plan = complete_plan(BenchPlan(), family)
    assert plan.profiles == tuple(profile.name for profile in family.profiles)
    assert plan.threads == (1, 3)
    assert plan.shapes == ((1, 16), (16, 32)), "the parent takes 48 tokens"
    assert len(plan.texts) > 10
    monkeypatch.setattr(bench_module, "count_cpus", lambda: 1)
    assert complete_plan(BenchPlan(), family).threads == (1,)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (BenchPlan(runs=0), "runs, seconds and threads must be above 0"),
        (BenchPlan(seconds=0), "runs, seconds and threads must be above 0"),
        (BenchPlan(seconds=float("nan")), "runs, seconds and threads must be above 0"),
        (BenchPlan(threads=(1, 0)), "runs, seconds and threads must be above 0"),
        (BenchPlan(shapes=((0, 4),)), "a shape is BATCHxTOKENS"),
        (BenchPlan(shapes=((1, 8), (2, 49))), "the shape 2x49 was asked; the parent takes 48 tokens"),
        (
            BenchPlan(parent="x", engine=Engine(provider="cuda")),
            "the parent in torch runs on the CPU: it is not timed against",
        ),
    ],
)
def test_what_cannot_be_measured(plan: BenchPlan, message: str, exported: Path) -> None:
    with pytest.raises(RequestError, match=message):
        bench_family(exported, plan)


def test_an_unknown_profile(exported: Path) -> None:
    with pytest.raises(FamilyError, match="profile 'L09-D008-fp32' was asked"):
        bench_family(exported, BenchPlan(profiles=("L09-D008-fp32",)))


def test_a_spoilt_family_is_not_measured(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "_run_process", lambda *_: pytest.fail("a process was started"))
    (family / "config.json").write_text("{}")
    with pytest.raises(FamilyError, match=r"config\.json"):
        bench_family(family, QUICK)


def test_a_provider_that_is_not_there(run: Run, exported: Path) -> None:
    result = run("bench", exported, "--profile", SMALL, "--provider", "cuda", "--runs", "1")
    result.complains(f"{SMALL}, 1 thread(s): the provider cuda was asked; the installed onnxruntime")
    assert "has: cpu" in result.err


def test_calls_are_timed_in_turns() -> None:
    order: list[str] = []
    first: list[float] = []
    second: list[float] = []
    time_calls([(lambda: order.append("a"), first), (lambda: order.append("b"), second)], 3, 60, warm_up=2)
    assert "".join(order) == "abab" + "ababab"
    assert (len(first), len(second)) == (3, 3)
    assert min(first) >= 0
    time_calls([(lambda: None, first)], 1000, 0.0)
    assert len(first) == 4, "at least once, and no more when time is up"


@given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=60))
def test_a_sample_lies_in_its_interval(seconds: list[float]) -> None:
    sample = make_sample(seconds)
    assert sample.runs == len(seconds)
    assert sample.p50 == pytest.approx(statistics.median(seconds) * 1e3)
    eps = 1e-9 + sample.p95 * 1e-9
    assert min(seconds) * 1e3 - eps <= sample.low <= sample.high <= max(seconds) * 1e3 + eps
    assert sample.p50 <= sample.p95 + eps
    assert sample == make_sample(seconds), "the same samples give the same interval"


def test_the_interval_covers_the_median_about_as_often_as_it_says() -> None:
    draw = random.Random(0)
    covered = 0
    for _ in range(200):
        sample = make_sample([draw.lognormvariate(0, 0.5) for _ in range(50)])
        covered += sample.low <= 1e3 <= sample.high
    assert 180 <= covered <= 199


def make_result(**other: Any) -> TrialResult:
    known: dict[str, Any] = {
        "first_vector_s": 0.5, "latency_s": {"1x4": [0.001, 0.003]}, "call_s": [0.010], "tokenize_s": [0.001],
        "graph_s": [0.008], "mix_s": [2.0], "peak_bytes": 100,
    }  # fmt: skip
    return TrialResult(**known | other)


def test_samples_of_all_processes_count() -> None:
    timing = summarise([make_result(), make_result(latency_s={"1x4": [0.002]}, mix_s=[4.0, 4.0], peak_bytes=300)], 8)
    assert timing.latency["1x4"].p50 == pytest.approx(2)
    assert timing.latency["1x4"].runs == 3
    assert timing.texts_per_s == pytest.approx(2)
    assert (timing.mix.runs, timing.mix.p50) == (3, pytest.approx(4000))
    assert timing.peak_bytes == 300
    assert timing.overhead == pytest.approx(0.2)
    assert summarise([make_result(peak_bytes=None)], 8).peak_bytes is None
    started = summarise([make_result(), make_result()], 8, [0.1, 0.2, 0.3]).first_vector
    assert (started.runs, started.p50) == (5, pytest.approx(300))


# --- what is kept


def test_a_bench_is_kept_beside_parity_and_changes_no_fact(measured: Bench, family: Path) -> None:
    loaded = load_family(family)
    record_measurement(loaded, verify_family(family))
    before, parity = (family / "family.json").read_bytes(), load_measurement(loaded, read_host())
    path = record_bench(loaded, measured)
    assert path == find_measurements(loaded, read_host())
    assert (family / "family.json").read_bytes() == before
    assert load_bench(loaded, read_host()) == measured
    assert load_measurement(loaded, read_host()) == parity
    assert verify_family(family).passed
    record_measurement(loaded, verify_family(family))
    assert load_bench(loaded, read_host()) == measured, "verify --record leaves it"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_other_profiles_keep_what_was_measured(measured: Bench, family: Path) -> None:
    loaded = load_family(family)
    first = replace(measured, profiles={SMALL: measured.profiles[SMALL]})
    changed = replace(measured.profiles[SMALL], disk_bytes=1)
    record_bench(loaded, measured)
    record_bench(loaded, replace(first, profiles={SMALL: changed}))
    known = load_bench(loaded, read_host())
    assert known is not None
    assert known.profiles == {SMALL: changed, LARGE: measured.profiles[LARGE]}


def test_other_threads_and_providers_keep_what_was_measured(measured: Bench, family: Path) -> None:
    loaded, small = load_family(family), measured.profiles[SMALL]
    timing = small.threads[1]
    record_bench(loaded, measured)
    record_bench(loaded, replace(measured, profiles={SMALL: replace(small, threads={2: timing})}))
    known = load_bench(loaded, read_host())
    assert known is not None
    assert known.profiles[SMALL].threads == {1: timing, 2: timing}
    record_bench(loaded, replace(measured, provider="cuda", profiles={SMALL: replace(small, threads={4: timing})}))
    assert load_bench(loaded, read_host()) == known
    on_cuda = load_bench(loaded, read_host(), "cuda")
    assert on_cuda is not None
    assert on_cuda.profiles[SMALL].threads == {4: timing}
    # Another mix of texts: lines of the two would stand beside each other and not compare.
    record_bench(loaded, replace(measured, profiles={SMALL: replace(small, mix_sha256="0", threads={8: timing})}))
    known = load_bench(loaded, read_host())
    assert known is not None
    assert known.profiles[SMALL].threads == {8: timing}


def test_the_parent_counts_in_the_run_that_it_was_timed_in_alone(measured: Bench, family: Path) -> None:
    loaded, small = load_family(family), measured.profiles[SMALL]
    timing = small.threads[1]
    both = replace(small, threads={1: timing, 2: timing}, parent={1: timing, 2: timing})
    record_bench(loaded, replace(measured, profiles={SMALL: both}))
    record_bench(loaded, replace(measured, profiles={SMALL: replace(small, threads={2: timing})}))
    known = load_bench(loaded, read_host())
    assert known is not None
    assert (known.profiles[SMALL].threads.keys(), known.profiles[SMALL].parent.keys()) == ({1, 2}, {1})


def test_a_process_is_held_to_its_threads() -> None:
    code = "import os; from matexport.measure.trial import hold_cpus; hold_cpus(1); print(len(os.sched_getaffinity(0)))"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "1"


def test_an_empty_file_of_texts(run: Run, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n \n")
    run("bench", exported, "--texts", tmp_path / "texts.txt").complains("are empty: give one per line")


def test_a_bench_of_other_files_or_hosts_is_not_believed(measured: Bench, family: Path) -> None:
    loaded = load_family(family)
    record_bench(loaded, measured)
    assert load_bench(loaded, replace(read_host(), cpu="another")) is None
    edit_manifest(family, lambda data: data["refused"].update({"L09-D008-fp32": "gone"}))
    assert load_sections(load_family(family), read_host()) == {}
    assert load_bench(load_family(family), read_host()) is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"family": 3}', "\0", '{"bench": {}}'])
def test_a_file_that_says_nothing(content: str, measured: Bench, family: Path) -> None:
    loaded = load_family(family)
    path = find_measurements(loaded, read_host())
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    assert load_bench(loaded, read_host()) is None
    record_bench(loaded, measured)
    assert load_bench(loaded, read_host()) == measured


# --- the command


def test_bench_as_a_user_does(run: Run, family: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS), encoding="utf-8")
    options = ("--profile", SMALL, "--threads", "1", "--shape", "2x8", "--runs", "2", "--texts", texts)
    result = run("bench", family, *options)
    assert (result.code, result.err) == (0, "")
    header, _, row = result.out.splitlines()[:3]
    assert header.startswith("profile")
    assert re.findall("[^ ]+(?: [^ ]+)*", header)[1:3] == ["threads", "size MB"]
    assert "2x8 ms" in header
    assert row.split()[:2] == [SMALL, "1"]
    assert "95 % interval" in result.out
    document = json.loads(run("bench", family, *options, "--json").out)
    assert document["profiles"][SMALL]["mix_texts"] == len(TEXTS)
    assert document["profiles"][SMALL]["threads"]["1"]["latency"]["2x8"]["runs"] == 2
    assert Path(document["recorded"]).is_file()


@pytest.mark.parametrize("options", [("--shape", "3"), ("--shape", "0x3"), ("--runs", "0"), ("--provider", "gpu")])
def test_wrong_options(options: tuple[str, str], run: Run, exported: Path) -> None:
    run("bench", exported, *options).complains(f"argument {options[0]}")


def test_the_table_has_a_line_per_number_of_threads(measured: Bench) -> None:
    timing: Timing = measured.profiles[SMALL].threads[1]
    profile = replace(measured.profiles[SMALL], threads={2: replace(timing, peak_bytes=None), 1: timing})
    lines = format_bench(replace(measured, profiles={SMALL: profile})).splitlines()
    assert [line.split()[1] for line in lines[2:]] == ["1", "2"]
    assert lines[3].split()[4] == "-"
