"""The choice by budget, against oracles that try all: it fits, nothing that fits is better, and a looser budget never
gives a worse one."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from properties import given, st
from surveys import HERE, THERE, TIMES, budgets, surveys

from matexport.family.survey import Candidate, Measured, Survey
from matexport.pick.choose import Choice, choose
from matexport.pick.front import ENCODINGS, EXACTNESS
from matexport.pick.limits import LIMITS, TRAINED_ONLY, Budget
from matexport.spec.profile import Encoding, Precision, Profile
from matexport.spec.tolerance import FLOORS

#: field of the budget -> of the candidate, and the candidate's units in one of the budget's.
FIELDS = {
    "max_latency_ms": ("latency_ms", 1),
    "max_disk_mb": ("disk_bytes", 1_000_000),
    "max_ram_mb": ("peak_bytes", 1_000_000),
    "max_cold_start_ms": ("cold_start_ms", 1),
    "min_retention": ("retention", 1),
}


def value_of(candidate: Candidate, limit: str) -> float | None:
    """The oracle's reading of a candidate."""
    field, scale = FIELDS[limit]
    held: Any = getattr(candidate, field)
    if isinstance(held, Measured):
        held = held.value
        if held != held or abs(held) == math.inf or (held <= 0 and limit != "min_retention"):
            return None
    return None if held is None else held / scale


def fits(candidate: Candidate, survey: Survey, budget: Budget, trained_only: bool) -> bool:
    for limit in FIELDS:
        allowed = getattr(budget, limit)
        if allowed is None or all(value_of(other, limit) is None for other in survey.candidates):
            continue
        value = value_of(candidate, limit)
        if value is None or (value < allowed if limit == "min_retention" else value > allowed):
            return False
    return not (trained_only and candidate.trained is False)


def goodness(candidate: Candidate) -> tuple[float, float]:
    """Retention, and latency turned round: the more the better."""
    retention, latency = value_of(candidate, "min_retention"), value_of(candidate, "max_latency_ms")
    return (
        -math.inf if retention is None else retention,
        -math.inf if latency is None else -latency,
    )


def is_quality_known(survey: Survey) -> bool:
    return any(value_of(candidate, "min_retention") is not None for candidate in survey.candidates)


def quality_of(candidate: Candidate, survey: Survey) -> tuple[float, ...]:
    if is_quality_known(survey):
        return (goodness(candidate)[0],)
    profile = Profile.parse(candidate.profile)
    order = ["fp32", "int8", "q4"], ["float32", "int8", "ubinary"]
    return (
        candidate.trained is not False,
        candidate.layers,
        candidate.dim,
        -order[0].index(profile.precision),
        -order[1].index(profile.encoding),
    )


def dominates(one: Candidate, other: Candidate, survey: Survey) -> bool:
    def costs(candidate: Candidate) -> list[float]:
        found = [value_of(candidate, limit) for limit in ("max_latency_ms", "max_disk_mb", "max_ram_mb")]
        return [math.inf if cost is None else cost for cost in found]

    first, second = quality_of(one, survey), quality_of(other, survey)
    pairs = list(zip(costs(one), costs(other), strict=True))
    as_good = first >= second and all(mine <= theirs for mine, theirs in pairs)
    return as_good and (first > second or any(mine < theirs for mine, theirs in pairs))


@given(surveys(), budgets, st.booleans())
def test_what_fits_is_what_keeps_every_limit(survey: Survey, budget: Budget, trained_only: bool) -> None:
    choice = choose(survey, budget, trained_only=trained_only)
    expected = {it.profile for it in survey.candidates if fits(it, survey, budget, trained_only)}
    assert {candidate.profile for candidate in choice.fitting} == expected
    assert (choice.chosen is None) == (not expected)
    assert choice.chosen is None or choice.chosen.profile in expected


@given(surveys(), budgets, st.booleans())
def test_nothing_that_fits_is_better(survey: Survey, budget: Budget, trained_only: bool) -> None:
    choice = choose(survey, budget, trained_only=trained_only)
    assert choice.quality_known == is_quality_known(survey)
    if choice.chosen is None:
        return
    for candidate in survey.candidates:
        if fits(candidate, survey, budget, trained_only):
            best, other = quality_of(choice.chosen, survey), quality_of(candidate, survey)
            assert best >= other
            if best == other:
                assert goodness(choice.chosen)[1] >= goodness(candidate)[1], "ties by latency"


@given(surveys(), budgets, st.booleans(), st.data())
def test_a_looser_budget_is_never_worse(
    survey: Survey, budget: Budget, trained_only: bool, data: st.DataObject
) -> None:
    looser = {}
    for limit in FIELDS:
        allowed = getattr(budget, limit)
        if allowed is not None:
            factors = (1.0, 0.5, 0.1) if limit == "min_retention" else (1.0, 1.5, 4.0, 100.0)
            looser[limit] = data.draw(st.none() | st.sampled_from([factor * allowed for factor in factors]))
    before = choose(survey, budget, trained_only=trained_only).chosen
    after = choose(survey, replace(budget, **looser), trained_only=trained_only and data.draw(st.booleans())).chosen
    if before is None:
        return
    assert after is not None
    assert quality_of(after, survey) >= quality_of(before, survey)
    if is_quality_known(survey):
        assert goodness(after) >= goodness(before), "retention; at equal retention, latency"


@given(surveys(), budgets, st.booleans())
def test_the_front_is_what_nothing_dominates(survey: Survey, budget: Budget, trained_only: bool) -> None:
    choice = choose(survey, budget, trained_only=trained_only)
    fitting = [it for it in survey.candidates if fits(it, survey, budget, trained_only)]
    front = {it.profile for it in fitting if not any(dominates(other, it, survey) for other in fitting)}
    assert {candidate.profile for candidate in choice.front} == front
    assert choice.front[:1] == ((choice.chosen,) if choice.chosen else ())


@given(surveys(), budgets, st.booleans())
def test_every_profile_fits_or_has_one_reason(survey: Survey, budget: Budget, trained_only: bool) -> None:
    choice = choose(survey, budget, trained_only=trained_only)
    rejected = [rejection.profile for rejection in choice.rejections]
    named = [candidate.profile for candidate in choice.fitting] + rejected
    assert sorted(named) == sorted(candidate.profile for candidate in survey.candidates)
    by_name = {candidate.profile: candidate for candidate in survey.candidates}
    for rejection in choice.rejections:
        assert rejection.reason
        assert "\n" not in rejection.reason
        if rejection.limit == TRAINED_ONLY:
            assert trained_only
            assert by_name[rejection.profile].trained is False
            continue
        assert rejection.measured == value_of(by_name[rejection.profile], rejection.limit)
        assert rejection.allowed == getattr(budget, rejection.limit)
        alone = Budget(**{rejection.limit: rejection.allowed})
        assert not fits(by_name[rejection.profile], survey, alone, False), "the limit that is named does reject it"


@given(surveys(), budgets)
def test_a_near_miss_would_fit_if_its_limit_were_what_it_has(survey: Survey, budget: Budget) -> None:
    choice = choose(survey, budget)
    assert not (choice.misses and choice.chosen)
    by_name = {candidate.profile: candidate for candidate in survey.candidates}
    for miss in choice.misses:
        assert miss.measured == value_of(by_name[miss.profile], miss.limit)
        loosened = Budget(**{name: getattr(budget, name) for name in FIELDS if name != miss.limit})
        would = [it for it in survey.candidates if fits(it, survey, loosened, False)]
        values = [value for it in would if (value := value_of(it, miss.limit)) is not None]
        assert miss.alone == bool(values)
        if values:
            assert fits(by_name[miss.profile], survey, loosened, False)
            assert miss.measured == (max(values) if miss.limit == "min_retention" else min(values))


@given(surveys(), budgets)
def test_every_limit_says_how_it_was_checked(survey: Survey, budget: Budget) -> None:
    choice = choose(survey, budget)
    asked = [limit for limit in FIELDS if getattr(budget, limit) is not None]
    assert {check.limit for check in choice.checks} == set(asked)
    for check in choice.checks:
        values = {it.profile: value_of(it, check.limit) for it in survey.candidates}
        have = [it for it in survey.candidates if values[it.profile] is not None]
        assert check.done == bool(have)
        assert check.missing == len(survey.candidates) - len(have)
        assert check.here + sum(count for _, count in check.elsewhere) == len(have)
        if check.limit == "max_disk_mb":
            assert check.here == len(survey.candidates)
            continue
        hosts = [getattr(it, FIELDS[check.limit][0]).host for it in have]
        assert check.here == hosts.count(HERE)
        assert dict(check.elsewhere).get(THERE, 0) == hosts.count(THERE)
        if not check.done:
            assert not any(rejection.limit == check.limit for rejection in choice.rejections)


def candidate(name: str, **other: Any) -> Candidate:
    profile = Profile.parse(name)
    numbers = {key: Measured(value, HERE) for key, value in other.items() if key not in ("trained", "disk_bytes")}
    facts = {"trained": other.get("trained"), "disk_bytes": other.get("disk_bytes", 10**6)}
    return Candidate(name, profile.point.layers, profile.point.dim, download_bytes=1, **facts, **numbers)


def survey_of(*candidates: Candidate) -> Survey:
    return Survey(HERE, candidates, ("a task",), (HERE,))


def chosen(choice: Choice) -> str | None:
    return choice.chosen.profile if choice.chosen else None


def test_the_best_retention_that_fits_and_ties_by_latency() -> None:
    survey = survey_of(
        candidate("L01-D008-fp32", retention=0.9, latency_ms=1.0),
        candidate("L02-D008-fp32", retention=0.95, latency_ms=3.0),
        candidate("L02-D016-fp32", retention=0.95, latency_ms=2.0),
        candidate("L03-D008-fp32", retention=0.99, latency_ms=9.0),
    )
    assert chosen(choose(survey, Budget())) == "L03-D008-fp32"
    assert chosen(choose(survey, Budget(max_latency_ms=9.0))) == "L03-D008-fp32", "met exactly"
    choice = choose(survey, Budget(max_latency_ms=8.99))
    assert chosen(choice) == "L02-D016-fp32"
    assert [it.profile for it in choice.front] == ["L02-D016-fp32", "L01-D008-fp32"]
    assert [it.reason for it in choice.rejections] == ["latency 9 ms > 8.99 ms"]


def test_the_reason_is_the_limit_that_is_missed_most() -> None:
    one = candidate("L01-D008-fp32", latency_ms=11.0, peak_bytes=300e6, retention=0.9)
    choice = choose(survey_of(one), Budget(max_latency_ms=10, max_ram_mb=200, min_retention=0.95))
    assert [(it.limit, it.reason) for it in choice.rejections] == [("max_ram_mb", "memory 300 MB > 200 MB")]
    assert {miss.limit: miss.alone for miss in choice.misses} == {
        "max_latency_ms": False, "max_ram_mb": False, "min_retention": False,
    }  # fmt: skip


def test_numbers_that_round_alike_are_told_apart() -> None:
    choice = choose(survey_of(candidate("L01-D008-fp32", latency_ms=10.0004)), Budget(max_latency_ms=10))
    assert choice.rejections[0].reason == "latency 10.0004 ms > 10 ms"


def test_some_measured_means_that_the_others_are_rejected_and_none_that_nothing_is() -> None:
    timed, other = candidate("L01-D008-fp32", latency_ms=1.0), candidate("L02-D008-fp32")
    choice = choose(survey_of(timed, other), Budget(max_latency_ms=10))
    assert chosen(choice) == "L01-D008-fp32"
    assert choice.rejections[0].measured is None
    assert "not measured" in choice.rejections[0].reason
    choice = choose(survey_of(other), Budget(max_latency_ms=10))
    assert chosen(choice) == "L02-D008-fp32"
    assert not choice.checks[0].done


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -3.0])
def test_a_time_that_cannot_be_does_not_count(value: float) -> None:
    choice = choose(
        survey_of(candidate("L01-D008-fp32", latency_ms=value), candidate("L02-D008-fp32", latency_ms=5.0)),
        Budget(max_latency_ms=10),
    )
    assert chosen(choice) == "L02-D008-fp32"
    assert "not measured" in choice.rejections[0].reason


def test_without_retention_the_order_is_a_guess_and_says_so() -> None:
    names = ["L03-D016-fp32", "L03-D016-fp16", "L03-D016-q8", "L03-D016-int8", "L03-D016-q4-mixed",
             "L03-D016-int8-static", "L03-D016-q4", "L03-D008-fp32", "L02-D016-fp32"]  # fmt: skip
    survey = survey_of(candidate("L04-D016-fp32", trained=False), *(candidate(name) for name in reversed(names)))
    choice = choose(survey, Budget())
    assert not choice.quality_known
    assert [it.profile for it in choice.fitting] == [*names, "L04-D016-fp32"]
    assert [it.profile for it in choose(survey, Budget(), trained_only=True).fitting] == names


def test_the_order_of_precisions_is_that_of_their_floors() -> None:
    floors = [FLOORS[precision].cosine_mean or 1.0 for precision in EXACTNESS]
    assert floors == sorted(floors, reverse=True)


def test_every_precision_and_encoding_has_its_place() -> None:
    assert sorted(EXACTNESS) == sorted(Precision)
    assert sorted(ENCODINGS) == sorted(Encoding)
    assert set(LIMITS) == set(FIELDS) == set(Budget.__struct_fields__)


@pytest.mark.parametrize("limit", FIELDS)
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_limit_that_cannot_be(limit: str, value: float) -> None:
    with pytest.raises(ValueError, match=limit):
        Budget(**{limit: value})


def test_retention_is_a_share() -> None:
    with pytest.raises(ValueError, match=r"min_retention = 95 was asked; it is a share of 1"):
        Budget(min_retention=95)
    assert Budget(min_retention=1).min_retention == max(TIMES) / 4


def test_pick_loads_no_library_of_numbers(exported: Path) -> None:
    code = (
        "import sys, matexport.cli.main\n"
        f"assert matexport.cli.main.main(['pick', {str(exported)!r}, '--max-disk-mb', '40']) == 0\n"
        "print('loaded', [name for name in ('torch', 'onnxruntime', 'numpy', 'onnx') if name in sys.modules])\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE", "PYTEST"))}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.endswith("loaded []\n")
    assert "choice: L03-D032-fp32" in result.stdout
