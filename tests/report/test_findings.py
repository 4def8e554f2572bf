"""What is gathered: this host's numbers before others', the worst of these; floors, limits, and what is missing."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import pytest
from forge import edit_manifest, flip_byte
from msgspec.structs import replace
from reporting import OTHER, record_parity, record_scores, record_timings

from matexport import load_family, survey_family
from matexport.errors import FamilyError
from matexport.family.measurements import sections
from matexport.family.measurements.records import load_measurement, load_quality, record_quality
from matexport.host import read_host
from matexport.pick.choose import choose
from matexport.pick.limits import Budget
from matexport.report.findings import gather_findings, measure_floor_use
from matexport.report.page import describe_budget
from matexport.report.write import render_page
from matexport.spec.parity import Parity
from matexport.spec.tolerance import Tolerance
from matexport.verify.verdict import ProfileVerdict, judge_recorded, load_verification

SMALL, LARGE = "L01-D008-fp32", "L03-D032-fp32"


def test_this_host_comes_before_others_and_the_worst_of_those(family: Path) -> None:
    loaded = load_family(family)
    (family / "measurements").joinpath(f"{read_host().slug}.json").unlink()
    record_parity(loaded, {SMALL: 3e-6, LARGE: 2e-6}, OTHER)
    assert gather_findings(family).floor_uses[SMALL].host == OTHER
    record_parity(loaded, {SMALL: 1e-7})
    found = gather_findings(family)
    assert (found.floor_uses[SMALL].host, found.floor_uses[SMALL].value) == (read_host(), 1e-7)
    assert (found.floor_uses[LARGE].host, found.floor_uses[LARGE].value) == (OTHER, 2e-6)
    assert set(found.unproven) == {it.name for it in loaded.profiles} - {SMALL, LARGE}
    assert [host for host, _ in found.verdicts] == [read_host(), OTHER]
    assert found.broken == {}


def test_a_few_profiles_are_judged_and_do_not_pass_for_all(family: Path) -> None:
    loaded = load_family(family)
    record_parity(loaded, {SMALL: 1e-4})
    recorded = load_measurement(loaded, read_host())
    assert recorded is not None
    (verdict,) = judge_recorded(loaded, recorded)
    assert (verdict.profile, verdict.passed) == (SMALL, False)
    assert load_verification(loaded, read_host()) is None
    record_parity(loaded, dict.fromkeys((it.name for it in loaded.profiles), 1e-7))
    verification = load_verification(loaded, read_host())
    assert verification is not None
    assert verification.passed


def test_numbers_that_are_none_are_breaches(family: Path) -> None:
    loaded = load_family(family)
    record_parity(loaded, {SMALL: math.nan, LARGE: math.inf})
    found = gather_findings(family)
    assert found.broken.keys() == {SMALL, LARGE}
    assert math.isnan(found.floor_uses[SMALL].used)
    assert found.floor_uses[LARGE].used == math.inf


@pytest.mark.parametrize(
    ("tolerance", "number", "used"),
    [
        (Tolerance(max_abs=1e-5), "max abs difference", 0.2),
        (Tolerance(cosine_mean=0.99, cosine_min=0.9), "least cosine", 0.5),
        (Tolerance(max_abs=1e-5, cosine_min=0.9), "max abs difference", 0.5),
        (Tolerance(cosine_mean=0.999), "max abs difference", 4.0),
        (Tolerance(cosine_min=1.0), "least cosine", math.inf),
    ],
)
def test_the_share_of_a_floor(tolerance: Tolerance, number: str, used: float) -> None:
    parities = {
        "batched": Parity(1e-6, 0.996, 0.98, 1.0, 0, 0),
        "single": Parity(2e-6, 0.998, 0.95, 1.0, 0, 0),
    }
    ranges = Parity(1.0, 0.0, 0.0, 0.0, 0, 0)
    use = measure_floor_use(OTHER, ProfileVerdict(SMALL, tolerance, parities, ranges=ranges))
    assert use.number == number
    assert use.used == pytest.approx(used)


def test_the_budget_is_what_pick_says_of_it(family: Path) -> None:
    """A limit that nobody measured anything for rejects nothing, in the report as on the command line."""
    loaded = load_family(family)
    for budget in (Budget(max_latency_ms=5.0), Budget(max_cold_start_ms=1.0), Budget(max_disk_mb=0.06)):
        found = gather_findings(loaded, budget=budget)
        choice = choose(survey_family(loaded, read_host()), budget)
        assert found.choice == choice
    assert gather_findings(loaded, budget=Budget(max_latency_ms=5.0)).choice.fitting


def test_a_limit_that_nobody_measured_is_no_limit_kept(family: Path) -> None:
    page = render_page(gather_findings(family, budget=Budget(max_cold_start_ms=5.0)))
    assert "Budget: cold start &lt;= 5 ms. Not checked, since it was measured for no profile: cold start." in page
    assert ">kept<" not in page
    assert page.count("not checked") == len(load_family(family).profiles)
    assert "budget; outside it is shaded" not in page


def test_the_report_counts_what_pick_counts(family: Path) -> None:
    """Pick does not look at parity; the report says so where it matters."""
    loaded = load_family(family)
    record_parity(loaded, {SMALL: 1e-2})
    found = gather_findings(loaded, budget=Budget(max_disk_mb=1000.0))
    said = describe_budget(found)
    assert f"{len(found.choice.fitting)} of {len(loaded.profiles)} profiles keep it" in said
    assert said.endswith(f"Off their parity floor, at which pick does not look: {SMALL}.")


def test_the_report_names_ties_as_pick_does(family: Path) -> None:
    loaded = load_family(family)
    best, near = (0.9, 0.8) * 100, (0.8, 0.9) * 100
    retentions = dict(zip([profile.name for profile in loaded.profiles], (1.0, 0.9999, *(0.5,) * 9), strict=False))
    resamples = dict(zip(retentions, (best, near, *((0.1,) * 200,) * 9), strict=False))
    record_scores(loaded, retentions)
    known = load_quality(loaded, read_host())
    assert known is not None
    task = known.tasks["sts"]
    scores = {
        name: replace(score, resampled=struct.pack("<200f", *resamples[name])) for name, score in task.profiles.items()
    }
    record_quality(loaded, replace(known, tasks={"sts": replace(task, profiles=scores)}))
    first, second, *_ = retentions
    record_timings(loaded, dict.fromkeys(retentions, 3.0) | {second: 2.0})
    said = describe_budget(gather_findings(loaded, budget=Budget(max_disk_mb=1000.0)))
    assert f"The choice: {second}. Its retention of 0.9999 cannot be told from that of {first} (1): of ties" in said


def test_what_was_measured_is_read_once(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_family(family)
    record_parity(loaded, {SMALL: 1e-7})
    record_timings(loaded, {SMALL: 1.0}, OTHER)
    record_scores(loaded, {SMALL: 0.9})
    files = sorted((family / "measurements").glob("*.json"))
    assert len(files) == 2
    reads: list[Path] = []
    hashes: list[Path] = []
    open_file, hash_file = sections.open_file, sections.hash_file
    monkeypatch.setattr(sections, "open_file", lambda path, most: (reads.append(path), open_file(path, most))[1])
    monkeypatch.setattr(sections, "hash_file", lambda path: (hashes.append(path), hash_file(path))[1])
    gather_findings(loaded)
    assert sorted(reads) == files
    assert hashes == [], "the digest is that of the manifest that was read"


def test_tasks_of_this_host_come_first_and_those_with_labels(family: Path) -> None:
    from matexport.spec.measured import TaskKind

    loaded = load_family(family)
    record_scores(loaded, {SMALL: 0.5}, OTHER)
    record_scores(loaded, {SMALL: 0.7}, name="a", kind=TaskKind.SIMILARITY)
    assert [(task.name, task.host) for task in gather_findings(family).tasks] == [("sts", OTHER), ("a", read_host())]
    record_scores(loaded, {SMALL: 0.6})
    assert next((task.name, task.host) for task in gather_findings(family).tasks) == ("sts", read_host())


def test_timings_are_those_of_the_threads(family: Path) -> None:
    loaded = load_family(family)
    record_timings(loaded, {SMALL: 4.0})
    record_timings(loaded, {SMALL: 1.5}, threads=4)

    def latency(threads: int | None) -> float:
        known = gather_findings(family, threads=threads).survey.candidates[0].latency_ms
        assert known
        return known.value

    assert (latency(None), latency(1)) == (1.5, 4.0)


def test_probes_that_changed_are_not_read(family: Path) -> None:
    flip_byte(family / "probes.jsonl")
    with pytest.raises(FamilyError, match=r"changed: probes\.jsonl"):
        gather_findings(family)


def test_measurements_of_other_files_do_not_count(family: Path) -> None:
    record_scores(load_family(family), {SMALL: 0.5})
    edit_manifest(family, lambda data: data["refused"].update({"L09-D008-fp32": "gone"}))
    found = gather_findings(family)
    assert (found.tasks, found.verdicts, found.survey.hosts) == ((), (), ())
