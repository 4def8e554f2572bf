"""What is known of each profile, and from which host."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forge import edit_manifest, forge_bench, forge_quality
from msgspec.structs import replace

from matexport import load_family, record_bench, survey_family
from matexport.errors import RequestError
from matexport.family.manifest import MEASUREMENTS, Family
from matexport.family.measurements.records import load_quality, record_quality
from matexport.family.survey import Candidate, Measured, list_unmeasured
from matexport.host import read_host
from matexport.spec.measured import Host, HostPattern, Score

SMALL, LARGE = "L01-D008-fp32", "L03-D032-fp32"
HERE = read_host()
THERE = replace(HERE, cpu="another processor")
ELSEWHERE = replace(HERE, cpu="a third processor")


def survey_one(family: Path, name: str = SMALL, host: Any = HERE, **options: Any) -> Candidate:
    survey = survey_family(load_family(family), host, **options)
    return next(candidate for candidate in survey.candidates if candidate.profile == name)


def record(family: Path, host: Host, calls_ms: dict[int, float], name: str = SMALL) -> Family:
    loaded = load_family(family)
    record_bench(loaded, forge_bench(host, {name: calls_ms}))
    return loaded


def test_nothing_measured(exported: Path) -> None:
    loaded = load_family(exported)
    survey = survey_family(loaded, HERE)
    assert [candidate.profile for candidate in survey.candidates] == [profile.name for profile in loaded.profiles]
    assert survey.tasks == ()
    for candidate in survey.candidates:
        assert candidate.disk_bytes == loaded.measure_disk(candidate.profile) > candidate.download_bytes
        assert candidate.latency_ms is candidate.peak_bytes is candidate.cold_start_ms is candidate.retention is None


def test_this_host_counts_before_others_and_the_worst_of_others(family: Path) -> None:
    record(family, THERE, {1: 9.0})
    record(family, ELSEWHERE, {1: 7.0})
    assert survey_one(family).latency_ms == Measured(9.0, THERE, 1)
    assert survey_one(family).texts_per_s == Measured(1000 / 9, THERE, 1), "the least"
    record(family, HERE, {1: 3.0})
    assert survey_one(family).latency_ms == Measured(3.0, HERE, 1)
    assert survey_one(family, LARGE).latency_ms is None


def test_machines_of_a_kind(family: Path) -> None:
    record(family, HERE, {1: 99.0})
    record(family, THERE, {1: 9.0})
    pattern = HostPattern("another processor", HERE.cpus)
    assert survey_one(family, host=pattern).latency_ms == Measured(9.0, THERE, 1)
    assert survey_one(family, host=replace(pattern, cpus=HERE.cpus + 1)).latency_ms == Measured(99.0, HERE, 1), (
        "the worst"
    )
    assert survey_one(family, host=replace(pattern, instruction_sets=("sme",))).latency_ms == Measured(99.0, HERE, 1)
    assert survey_one(family, host=None).latency_ms == Measured(99.0, HERE, 1)


def test_the_most_threads_or_those_that_are_asked_for(family: Path) -> None:
    record(family, HERE, {1: 4.0, 2: 3.0})
    assert survey_one(family).latency_ms == Measured(3.0, HERE, 2)
    assert survey_one(family, threads=1).latency_ms == Measured(4.0, HERE, 1)
    with pytest.raises(RequestError, match=r"threads=3 was asked; timed are: threads=1, threads=2"):
        survey_one(family, threads=3)


def test_the_shape_that_is_asked_for(family: Path) -> None:
    record(family, HERE, {1: 4.0})
    assert survey_one(family, shape=(1, 16)).latency_ms == Measured(3.0, HERE, 1), "a run of the graph"
    with pytest.raises(RequestError, match="the shape 2x16 was asked; timed are: 1x16"):
        survey_one(family, shape=(2, 16))


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0])
def test_what_cannot_have_been_measured_was_not(value: float, family: Path) -> None:
    """The worst of a NaN and a number depends on their order; nothing is at most infinity."""
    record(family, THERE, {1: value})
    record(family, ELSEWHERE, {1: 7.0})
    assert survey_one(family).latency_ms == Measured(7.0, ELSEWHERE, 1)


def test_the_least_retention_of_the_tasks_with_labels(family: Path) -> None:
    loaded = load_family(family)
    tasks = {"sts": {SMALL: 0.9, LARGE: 1.0}, "retrieval": {SMALL: 0.8}, "neighbours": {SMALL: 0.1, LARGE: 0.2}}
    record_quality(loaded, forge_quality(HERE, tasks))
    found = survey_family(loaded, HERE)
    assert found.tasks == ("sts",), "the one that was evaluated for the most profiles"
    assert found.left_out == {"retrieval": "evaluated for 1 profiles, where others were for 2"}
    assert survey_one(family).retention == Measured(0.9, HERE)
    assert survey_one(family, LARGE).retention == Measured(1.0, HERE)
    assert survey_one(family, task="retrieval").retention == Measured(0.8, HERE)
    record_quality(loaded, forge_quality(HERE, {"retrieval": {SMALL: 0.8, LARGE: 0.95}}))
    assert survey_family(loaded, HERE).tasks == ("retrieval", "sts")
    assert survey_one(family).retention == Measured(0.8, HERE)
    assert survey_one(family, LARGE).retention == Measured(0.95, HERE)
    assert survey_one(family, task="neighbours").retention == Measured(0.1, HERE)
    with pytest.raises(RequestError, match="the task 'x' was asked; evaluated are: neighbours, retrieval, sts"):
        survey_one(family, task="x")


def test_tasks_of_several_hosts_are_put_together(family: Path) -> None:
    """One more task, evaluated on another machine, takes nothing away."""
    loaded = load_family(family)
    both = {SMALL: 0.9, LARGE: 1.0}
    record_quality(loaded, forge_quality(HERE, {"sts": both}))
    record_quality(loaded, forge_quality(THERE, {"retrieval": {SMALL: 0.95, LARGE: 0.7}, "sts": {SMALL: 0.1}}))
    assert survey_one(family).retention == Measured(0.9, HERE), "of sts this host's counts"
    assert survey_one(family, LARGE).retention == Measured(0.7, THERE)


def test_a_task_in_which_the_parent_ranks_nothing_takes_nothing_away(family: Path) -> None:
    loaded = load_family(family)
    record_quality(loaded, forge_quality(HERE, {"sts": {SMALL: 0.9}}))
    known = load_quality(loaded, HERE)
    assert known is not None
    task = known.tasks["sts"]
    nothing = replace(task, profiles={SMALL: Score(-0.5, None)})
    record_quality(loaded, replace(known, tasks={"of chance": nothing}))
    assert survey_one(family).retention == Measured(0.9, HERE)
    assert survey_family(loaded, HERE).left_out.keys() == {"of chance"}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_retention_that_is_no_number(value: float, family: Path) -> None:
    record_quality(load_family(family), forge_quality(HERE, {"sts": {SMALL: value}}))
    assert survey_one(family).retention is None


def test_measurements_of_other_files_do_not_count(family: Path) -> None:
    record(family, HERE, {1: 4.0})
    edit_manifest(family, lambda data: data["refused"].update({"L09-D008-fp32": "gone"}))
    assert survey_one(family).latency_ms is None


@pytest.mark.parametrize("spoil", [b"", b"[1]", b"{", b'{"family": 1}', b"\xff", b"[" * 100_000])
def test_a_file_that_says_nothing_is_passed_over(spoil: bytes, family: Path) -> None:
    record(family, HERE, {1: 4.0})
    (family / MEASUREMENTS / "a.json").write_bytes(spoil)
    assert survey_one(family).latency_ms == Measured(4.0, HERE, 1)


def test_a_byte_order_mark_takes_nothing_away(family: Path) -> None:
    """An editor may have put it there."""
    record(family, HERE, {1: 4.0})
    (path,) = (family / MEASUREMENTS).iterdir()
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert survey_one(family).latency_ms == Measured(4.0, HERE, 1)


def test_a_section_that_is_not_one_is_passed_over(family: Path) -> None:
    record(family, HERE, {1: 4.0})
    (path,) = (family / MEASUREMENTS).iterdir()
    data = json.loads(path.read_text())
    data["bench"]["profiles"] = [1]
    path.write_text(json.dumps(data))
    assert survey_one(family).latency_ms is None


def test_what_a_host_has_not_timed(family: Path) -> None:
    loaded = record(family, HERE, {1: 4.0})
    names = [profile.name for profile in loaded.profiles]
    assert list_unmeasured(loaded, THERE) == tuple(names)
    names.remove(SMALL)
    assert list_unmeasured(loaded, HERE) == list_unmeasured(loaded, HERE, threads=1, shape=(1, 16)) == tuple(names)
    assert SMALL in list_unmeasured(loaded, HERE, threads=2)
    assert SMALL in list_unmeasured(loaded, HERE, shape=(1, 128))


def resample(*retentions: float) -> bytes:
    return np.array(retentions, "<f4").tobytes()


def record_resampled(family: Path, host: Host, task: str, digest: str = "0", **retentions: tuple[float, ...]) -> None:
    """Retentions in resamples by profile; the first is the retention itself."""
    quality = forge_quality(host, {task: {NAMES[name]: values[0] for name, values in retentions.items()}})
    known = quality.tasks[task]
    scores = {
        NAMES[name]: replace(known.profiles[NAMES[name]], resampled=resample(*values))
        for name, values in retentions.items()
    }
    task_quality = replace(known, profiles=scores, data_sha256=digest)
    record_quality(load_family(family), replace(quality, tasks={task: task_quality}))


NAMES = {"small": SMALL, "large": LARGE}


def test_resamples_are_the_least_over_the_tasks_as_retention_is(family: Path) -> None:
    record_resampled(family, HERE, "sts", small=(0.5, 0.75), large=(1.0, 1.0))
    assert survey_one(family).resamples == (0.5, 0.75)
    record_resampled(family, HERE, "retrieval", small=(0.75, 0.25), large=(1.0, 1.0))
    assert survey_one(family).resamples == (0.5, 0.25)
    assert survey_one(family, task="retrieval").resamples == (0.75, 0.25)


def test_resamples_are_of_the_host_that_the_retention_is_of(family: Path) -> None:
    record_resampled(family, THERE, "sts", small=(0.5, 0.75))
    record_resampled(family, ELSEWHERE, "sts", small=(0.25, 0.5))
    assert survey_one(family).resamples == (0.25, 0.5), "the worst of the others"
    record_resampled(family, HERE, "sts", small=(1.0, 0.25))
    assert survey_one(family).resamples == (1.0, 0.25)


def test_resamples_of_other_data_or_of_another_number_do_not_compare(family: Path) -> None:
    record_resampled(family, HERE, "sts", small=(0.5, 0.75))
    record_resampled(family, THERE, "sts", "1", large=(1.0, 1.0))
    assert survey_one(family).retention == Measured(0.5, HERE)
    assert survey_one(family).resamples == survey_one(family, LARGE).resamples == ()
    assert survey_one(family, task="sts").resamples == ()
    record_resampled(family, THERE, "sts", small=(0.75, 0.5, 0.25), large=(1.0, 1.0, 1.0))
    record_resampled(family, HERE, "retrieval", small=(0.75, 0.5), large=(1.0, 1.0))
    assert survey_one(family, host=THERE).resamples == ()


def test_a_task_without_resamples_leaves_none(family: Path) -> None:
    record_resampled(family, HERE, "sts", small=(0.5, 0.75))
    record_quality(load_family(family), forge_quality(HERE, {"retrieval": {SMALL: 0.75}}))
    assert survey_one(family).retention == Measured(0.5, HERE)
    assert survey_one(family).resamples == ()
