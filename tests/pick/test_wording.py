"""`matexport pick` as a user types it: the choice, a reason for every other profile, and how each limit was checked."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from commandline import Run
from forge import forge_bench, forge_quality
from msgspec.structs import replace

import matexport.measure.bench
from matexport import load_family, record_bench, verify_family
from matexport.family.manifest import Family
from matexport.family.measurements.records import load_bench, record_quality
from matexport.host import read_host
from matexport.measure.bench import DEFAULT_SHAPES, BenchPlan
from matexport.spec.measured import Bench

NAMES = ["L01-D008-fp32", "L01-D032-fp32", "L02-D008-fp32", "L02-D032-fp32", "L03-D008-fp32", "L03-D032-fp32"]
CALLS = dict(zip(NAMES, (1.0, 2.0, 3.0, 4.0, 5.0, 6.0), strict=True))
RETENTIONS = dict(zip(NAMES, (0.7, 0.8, 0.85, 0.96, 0.9, 1.0), strict=True))
HERE = read_host()
THERE = replace(HERE, cpu="another processor")


@pytest.fixture
def known(family: Path) -> Path:
    """A family whose profiles were timed and evaluated here, as far as the files say."""
    loaded = load_family(family)
    record_bench(loaded, forge_bench(HERE, {name: {1: call} for name, call in CALLS.items()}))
    record_quality(loaded, forge_quality(HERE, {"sts": RETENTIONS}))
    return family


def test_the_choice_with_its_numbers_and_a_reason_for_the_rest(run: Run, known: Path) -> None:
    result = run("pick", known, "--max-latency-ms", 5, "--min-retention", 0.82)
    assert (result.code, result.err) == (0, "")
    lines = result.out.split("\n")
    assert lines[0] == "choice: L02-D032-fp32"
    assert "  retention on sts: 0.96 (this host)" in lines
    assert "  latency: 4 ms (1 thread, this host)" in lines
    front = [line.split()[0] for line in lines[lines.index("") + 4 :][:2]]
    assert front == ["L02-D032-fp32", "L02-D008-fp32"], "three layers are slower and no better"
    for name, reason in {
        "L01-D008-fp32": "retention 0.7 < 0.82",
        "L01-D032-fp32": "retention 0.8 < 0.82",
        "L03-D032-fp32": "latency 6 ms > 5 ms",
    }.items():
        assert [line.partition("  ")[2] for line in lines if line.startswith(name)] == [reason]
    assert "  latency <= 5 ms: checked on measurements of this host (6 profiles)" in lines
    assert "  retention >= 0.82: checked on measurements of this host (6 profiles)" in lines


def test_without_limits_the_best(run: Run, known: Path) -> None:
    result = run("pick", known)
    assert result.out.startswith("choice: L03-D032-fp32\n")
    assert "no limit was set" in result.out
    assert "rejected" not in result.out


def test_what_nobody_measured_is_named_and_strict_refuses(run: Run, family: Path, tmp_path: Path) -> None:
    result = run("pick", family, "--max-latency-ms", 5, "--max-disk-mb", 400)
    assert (result.code, result.err) == (0, "")
    assert "latency <= 5 ms: COULD NOT BE CHECKED, nobody measured it: run matexport bench" in result.out
    assert "disk <= 400 MB: checked, from the sizes in the manifest" in result.out
    assert "quality was not measured" in result.out
    assert "matexport evaluate" in result.out
    out = tmp_path / "pack"
    result = run("pick", family, "--max-latency-ms", 5, "--strict", "--out", out)
    assert result.code == 1
    assert result.err == "matexport: --strict: --max-latency-ms could not be checked; nothing was written\n"
    assert not out.exists()
    assert run("pick", family, "--max-disk-mb", 400, "--strict").code == 0


def test_numbers_of_another_host_are_named_as_its(run: Run, family: Path) -> None:
    record_bench(load_family(family), forge_bench(THERE, {name: {1: call} for name, call in CALLS.items()}))
    result = run("pick", family, "--max-latency-ms", 5)
    assert result.out.startswith("choice: L03-D008-fp32")
    assert f"  latency: 5 ms (1 thread, another host (another processor, {HERE.cpus} CPU" in result.out
    assert "latency <= 5 ms: checked on measurements of another host (another processor" in result.out
    assert "numbers of another host say what to expect of this host, no more" in result.out


def test_nothing_fits(run: Run, known: Path, tmp_path: Path) -> None:
    result = run("pick", known, "--max-latency-ms", 2.5, "--min-retention", 0.82, "--out", tmp_path / "pack")
    assert result.code == 1
    assert result.err == "matexport: nothing fits: --min-retention rejects 2, --max-latency-ms rejects 4\n"
    assert not (tmp_path / "pack").exists()
    lines = result.out.split("\n")
    assert lines[:3] == [
        "nothing fits",
        "  nearest in latency: L02-D008-fp32 with 3 ms, 2.5 ms allowed; keeps everything else",
        "  nearest in retention: L01-D032-fp32 with 0.8, 0.82 allowed; keeps everything else",
    ]
    document = run("pick", known, "--max-latency-ms", 2.5, "--min-retention", 0.82, "--json").json
    assert document["chosen"] is None
    assert [(miss["limit"], miss["profile"]) for miss in document["nearest_misses"]] == [  # type: ignore[attr-defined]
        ("max_latency_ms", "L02-D008-fp32"),
        ("min_retention", "L01-D032-fp32"),
    ]


def test_json_says_the_same(run: Run, known: Path) -> None:
    document = run("pick", known, "--max-latency-ms", 5, "--min-retention", 0.82, "--json").json
    assert document["chosen"]["profile"] == "L02-D032-fp32"  # type: ignore[index]
    latency = document["chosen"]["latency_ms"]  # type: ignore[index]
    assert (latency["value"], latency["host_in_question"], latency["threads"]) == (4.0, True, 1)
    assert document["fitting"] == ["L02-D032-fp32", "L03-D008-fp32", "L02-D008-fp32"]
    assert len(document["rejections"]) == 3  # type: ignore[arg-type]
    assert [limit["checked"] for limit in document["limits"]] == [True, True]  # type: ignore[attr-defined]


def test_points_that_were_not_trained_are_flagged_or_rejected(run: Run, family: Path) -> None:
    manifest = family / "family.json"
    data = json.loads(manifest.read_text())
    data["trained"] = [{"layers": 2, "dim": 32}]
    data["schema"] = 3
    manifest.write_text(json.dumps(data))
    record_quality(load_family(family), forge_quality(HERE, {"sts": RETENTIONS}))
    assert run("pick", family).out.startswith("choice: L03-D032-fp32 (a point that the parent was not trained")
    result = run("pick", family, "--trained-only", "--strict")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("choice: L02-D032-fp32\n")
    assert "trained points only: checked, from the manifest" in result.out
    assert "L03-D032-fp32  the parent was not trained to be read at this point" in result.out


def test_out_packs_the_choice(run: Run, known: Path, tmp_path: Path) -> None:
    out = tmp_path / "pack"
    result = run("pick", known, "--max-latency-ms", 5, "--out", out)
    assert result.code == 0
    assert [profile.name for profile in load_family(out).profiles] == ["L02-D032-fp32"]
    assert verify_family(out).passed
    run("pick", known, "--out", out).complains("exists", "--overwrite")
    assert run("pick", known, "--out", out, "--overwrite", "--json").json["pack"] == str(out)
    assert [profile.name for profile in load_family(out).profiles] == ["L03-D032-fp32"]


def write_device(folder: Path, cpu: str) -> Path:
    path = folder / "board.toml"
    path.write_text(
        'name = "a board"\nsources = ["https://example.org/board"]\n'
        "[limits]\nmax_latency_ms = 3\nmin_retention = 0.75\n"
        f'[host]\ncpu = "{cpu}"\ncpus = {HERE.cpus}\n'
    )
    return path


def test_a_device_is_the_host_in_question(run: Run, known: Path, tmp_path: Path) -> None:
    device = write_device(tmp_path, THERE.cpu)
    slow = forge_bench(THERE, {name: {1: 3 * call} for name, call in CALLS.items()})
    assert run("pick", known, "--device", device).out.split("\n")[2] == "choice: L02-D008-fp32", "for want of a better"
    record_bench(load_family(known), slow)
    result = run("pick", known, "--device", device)
    assert result.code == 1, "3 ms on the board leave a retention of 0.7"
    result = run("pick", known, "--device", device, "--max-latency-ms", 7)
    assert result.out.startswith("device: a board (https://example.org/board)\n\nchoice: L01-D032-fp32\n")
    assert "  latency: 6 ms (1 thread, the device)" in result.out
    assert "latency <= 7 ms: checked on measurements of the device (6 profiles)" in result.out
    assert "retention >= 0.75: checked on measurements of another host" in result.out


class Benched:
    """Takes the place of a bench: notes the plan, and gives made-up timings."""

    def __init__(self) -> None:
        self.plans: list[BenchPlan] = []

    def __call__(self, family: Family, plan: BenchPlan, *, progress: object) -> Bench:
        self.plans.append(plan)
        return forge_bench(HERE, {name: dict.fromkeys(plan.threads or (1,), 7.0) for name in plan.profiles})


@pytest.fixture
def benched(monkeypatch: pytest.MonkeyPatch) -> Benched:
    fake = Benched()
    monkeypatch.setattr(matexport.measure.bench, "bench_family", fake)
    return fake


def test_measure_times_what_lacks_timings_and_keeps_them(run: Run, family: Path, benched: Benched) -> None:
    loaded = load_family(family)
    record_bench(loaded, forge_bench(HERE, {name: {1: 2.0} for name in NAMES[:4]}))
    result = run("pick", family, "--max-latency-ms", 5, "--measure")
    assert [plan.profiles for plan in benched.plans] == [tuple(NAMES[4:])]
    assert result.out.startswith("choice: L02-D032-fp32\n")
    assert "latency 7 ms > 5 ms" in result.out
    kept = load_bench(loaded, HERE)
    assert kept is not None
    assert sorted(kept.profiles) == NAMES
    run("pick", family, "--measure")
    assert len(benched.plans) == 1, "nothing lacks any"


def test_measure_another_shape_beside_the_usual_ones(run: Run, family: Path, benched: Benched) -> None:
    run("pick", family, "--measure", "--shape", "3x8", "--threads", 2).complains("the shape 3x8 was asked")
    (plan,) = benched.plans
    assert plan.shapes[-1] == (3, 8)
    assert set(plan.shapes[:-1]) <= set(DEFAULT_SHAPES["text"])
    assert set(plan.threads) == {1, 2, HERE.cpus}


def test_another_device_cannot_be_measured_here(run: Run, family: Path, benched: Benched, tmp_path: Path) -> None:
    device = write_device(tmp_path, THERE.cpu)
    run("pick", family, "--measure", "--device", device).complains("a board; this machine is another one", "bench")
    assert not benched.plans
    assert run("pick", family, "--measure", "--device", write_device(tmp_path, HERE.cpu)).code == 1, "7 ms of 3"
    assert len(benched.plans) == 1


def test_different_numbers_of_threads_are_said(run: Run, family: Path) -> None:
    record_bench(load_family(family), forge_bench(HERE, {NAMES[0]: {1: 2.0}, NAMES[1]: {1: 3.0, 4: 1.0}}))
    assert "latencies are of different numbers of threads (1, 4): give --threads" in run("pick", family).out
    assert "different numbers" not in run("pick", family, "--threads", 1).out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-latency-ms", "0"], "'0' is not a number above 0"),
        (["--max-disk-mb", "nan"], "'nan' is not a number above 0"),
        (["--max-ram-mb", "inf"], "'inf' is not a number above 0"),
        (["--min-retention", "95"], "'95' is not a share of at most 1, such as 0.95"),
        (["--task", "none"], "the task 'none' was asked; evaluated are: sts"),
        (["--shape", "9x9"], "the shape 9x9 was asked; timed are: 1x16"),
        (["--threads", "9"], "threads=9 was asked; timed are: threads=1"),
        (["--overwrite"], "--overwrite is for --out DIR"),
        (["--device", "none.toml"], "cannot read the device none.toml"),
    ],
)
def test_wrong_options(options: list[str], words: str, run: Run, known: Path) -> None:
    run("pick", known, *options).complains(words)


def record_ties(family: Path) -> None:
    """Three layers are best by a hair, in every second resample; the others are worse in all."""
    even, odd = [1.0, 0.99] * 100, [0.99, 1.0] * 100
    resamples = {name: [retention - 0.01] * 200 for name, retention in RETENTIONS.items()}
    resamples |= {"L03-D032-fp32": even, "L02-D032-fp32": odd}
    quality = forge_quality(HERE, {"sts": RETENTIONS | {"L02-D032-fp32": 0.9999}})
    task = quality.tasks["sts"]
    scores = {
        name: replace(score, resampled=struct.pack("<200f", *resamples[name])) for name, score in task.profiles.items()
    }
    record_quality(load_family(family), replace(quality, tasks={"sts": replace(task, profiles=scores)}))


def test_ties_are_named_and_the_faster_is_chosen(run: Run, known: Path) -> None:
    record_ties(known)
    result = run("pick", known)
    lines = result.out.split("\n")
    assert lines[0] == "choice: L02-D032-fp32"
    assert "  retention on sts: 0.9999 (this host)" in lines
    assert (
        "  its retention of 0.9999 cannot be told from that of L03-D032-fp32 (1): of ties, the fastest is chosen, "
        "then the smallest"
    ) in lines
    assert "is not known" not in result.out
    document = run("pick", known, "--json").json
    assert (document["tied"], document["ties_known"]) == (["L03-D032-fp32", "L02-D032-fp32"], True)
    assert document["fitting"][:2] == ["L02-D032-fp32", "L03-D032-fp32"]  # type: ignore[index]
    assert run("pick", known, "--min-retention", 1).out.startswith("choice: L03-D032-fp32\n"), "a limit is a limit"


def test_evaluations_of_older_versions_know_no_ties_and_it_says_so(run: Run, known: Path) -> None:
    result = run("pick", known)
    assert result.out.startswith("choice: L03-D032-fp32\n")
    assert "whether the tasks can tell these retentions apart is not known, so the highest counts" in result.out
    assert f"run matexport evaluate {known}" in result.out
    assert run("pick", known, "--json").json["ties_known"] is False


def test_trained_only_where_nothing_is_known_of_training(run: Run, known: Path, tmp_path: Path) -> None:
    result = run("pick", known, "--trained-only")
    assert (result.code, result.err) == (0, "")
    assert "trained points only: COULD NOT BE CHECKED, nothing is known of the parent's training" in result.out
    assert run("pick", known, "--trained-only", "--json").json["trained_only_checked"] is False
    assert run("pick", known, "--json").json["trained_only_checked"] is None
    result = run("pick", known, "--trained-only", "--strict", "--out", tmp_path / "pack")
    assert result.code == 1
    assert result.err == "matexport: --strict: --trained-only could not be checked; nothing was written\n"
    assert not (tmp_path / "pack").exists()


def test_a_device_by_its_name(run: Run, known: Path) -> None:
    result = run("pick", known, "--device", "raspberry-pi-5")
    assert result.code == 0
    assert result.out.startswith("device: Raspberry Pi 5, 4 GB (https://www.raspberrypi.com/")
    run("pick", known, "--device", "rasberry-pi-5").complains("jetson-orin-nano", "did you mean 'raspberry-pi-5'?")
