"""Retentions that their task cannot tell apart are ties; against oracles that count in numpy and try all profiles."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from properties import given, st
from surveys import HERE, budgets, surveys

from matexport.family.survey import Candidate, Measured, Survey
from matexport.pick.choose import choose
from matexport.pick.limits import Budget
from matexport.pick.ties import find_unbeaten
from matexport.spec.profile import Profile

WHOLE, INT8, SMALL = "L06-D384-fp32", "L06-D384-int8", "L02-D064-int8"
#: 200 pairs' worth of noise, which two profiles of one model share but for a little.
NOISE = np.random.default_rng(0).normal(size=200) / 100
OWN = np.random.default_rng(1).normal(size=200) / 2000


def profile(name: str, retention: float, resamples: Any, *, ms: float = 1.0, mb: float = 1.0) -> Candidate:
    known = Profile.parse(name)
    return Candidate(
        name, known.point.layers, known.point.dim, None, int(mb * 1e6), 1,
        latency_ms=Measured(ms, HERE), retention=Measured(retention, HERE),
        resampled=(np.array(resamples, "<f4").tobytes(),),
    )  # fmt: skip


def survey_of(*candidates: Candidate) -> Survey:
    return Survey(HERE, candidates, ("stsb",), (HERE,))


def is_told_apart(one: Candidate, other: Candidate) -> bool:
    """The oracle: whether the first is better for sure."""

    def read(candidate: Candidate) -> float:
        value = candidate.retention.value if candidate.retention else -math.inf
        return value if math.isfinite(value) else -math.inf

    if not read(one) > read(other):
        return False
    if not one.resampled or not other.resampled or read(other) == -math.inf:
        return True
    ours, theirs = (np.frombuffer(found.resampled[0], "<f4") for found in (one, other))
    return float((ours > theirs).mean()) >= 0.975


def phone() -> Survey:
    return survey_of(
        profile(SMALL, 0.611, 0.611 + NOISE, ms=0.9, mb=16.2),
        profile(WHOLE, 1.0, 1 + NOISE, ms=18.8, mb=90.8),
        profile(INT8, 0.9999, 0.9999 + NOISE + OWN, ms=4.3, mb=23.4),
    )


def test_a_phone_gets_the_small_one_of_two_that_the_task_cannot_tell_apart() -> None:
    choice = choose(phone(), Budget())
    assert choice.chosen is not None
    assert choice.chosen.profile == INT8
    assert [candidate.profile for candidate in choice.tied] == [WHOLE, INT8], "the best retention first"
    assert [candidate.profile for candidate in choice.fitting] == [INT8, WHOLE, SMALL]
    assert [candidate.profile for candidate in choice.front] == [INT8, WHOLE, SMALL]
    assert choice.ties_known


def test_without_latencies_the_smallest_of_ties() -> None:
    survey = phone()
    untimed = replace(survey, candidates=tuple(replace(one, latency_ms=None) for one in survey.candidates))
    chosen = choose(untimed, Budget()).chosen
    assert chosen is not None
    assert chosen.profile == INT8


def test_a_difference_that_the_task_can_tell_is_no_tie() -> None:
    """0.5 %, where both scores alone are known to no better than 2 %."""
    whole = profile(WHOLE, 1.0, 1 + NOISE, ms=18.8)
    worse = profile(INT8, 0.995, 0.995 + NOISE + OWN, ms=4.3)
    assert np.std(NOISE) * 2 > 0.005
    choice = choose(survey_of(worse, whole), Budget())
    assert choice.chosen == whole
    assert choice.tied == (whole,)
    apart = profile(INT8, 0.995, 0.995 + np.random.default_rng(2).permutation(NOISE), ms=4.3)
    assert choose(survey_of(apart, whole), Budget()).chosen == apart, "the same numbers in another order are not paired"


@pytest.mark.parametrize(("wins", "better"), [(195, True), (194, False)])
def test_so_many_resamples_must_agree(wins: int, better: bool) -> None:
    """97.5 % of 200; where both are equal, that speaks for neither."""
    one = profile(WHOLE, 1.0, [1.0] * 200)
    other = profile(INT8, 0.9, [0.9] * wins + [1.0] * (200 - wins))
    assert find_unbeaten([other, one]) == ([one] if better else [one, other])


def test_the_lower_retention_is_never_better() -> None:
    one, other = profile(WHOLE, 1.0, [0.5] * 200), profile(INT8, 0.9, [0.6] * 200)
    assert find_unbeaten([one, other]) == [one, other]


def test_of_older_evaluations_the_highest_retention() -> None:
    old = survey_of(*(replace(one, resampled=()) for one in phone().candidates))
    choice = choose(old, Budget())
    assert choice.chosen is not None
    assert choice.chosen.profile == WHOLE
    assert not choice.ties_known
    mixed = survey_of(*old.candidates[:2], phone().candidates[2])
    assert not choose(mixed, Budget()).ties_known
    assert choose(survey_of(old.candidates[0]), Budget()).ties_known, "nothing to tell it from"


def test_who_is_beaten_is_not_saved_by_a_tie_with_the_best() -> None:
    """The first two cannot be told apart, nor the first and the third; but the second beats the third."""
    best = profile("L06-D384-fp32", 1.0, 1 + NOISE[::-1], ms=9)
    near = profile("L06-D256-fp32", 0.998, 0.998 + NOISE, ms=8)
    beaten = profile("L06-D128-fp32", 0.994, 0.994 + NOISE, ms=1)
    assert not is_told_apart(best, near)
    assert not is_told_apart(best, beaten)
    assert is_told_apart(near, beaten)
    choice = choose(survey_of(best, near, beaten), Budget())
    assert (choice.chosen, choice.tied) == (near, (best, near))


@given(surveys(resampled=True), budgets)
def test_the_choice_is_the_cheapest_that_nothing_is_known_to_be_better_than(survey: Survey, budget: Budget) -> None:
    choice = choose(survey, budget)
    unbeaten = [one for one in choice.fitting if not any(is_told_apart(other, one) for other in choice.fitting)]
    if choice.chosen is None:
        return
    assert choice.chosen in unbeaten
    assert choice.chosen == choice.front[0] == choice.fitting[0]
    known = [one for one in unbeaten if one.retention and math.isfinite(one.retention.value)]
    assert {one.profile for one in choice.tied} == {one.profile for one in known}

    def read_costs(candidate: Candidate) -> list[float]:
        latency = candidate.latency_ms.value if candidate.latency_ms else math.inf
        return [latency if 0 < latency < math.inf else math.inf, candidate.disk_bytes]

    if known:
        assert read_costs(choice.chosen) == min(read_costs(one) for one in known if one in choice.front)


@given(surveys(resampled=True), budgets, st.data())
def test_a_looser_budget_gives_nothing_that_is_known_to_be_worse(
    survey: Survey, budget: Budget, data: st.DataObject
) -> None:
    fields = data.draw(st.sets(st.sampled_from(Budget.__struct_fields__)))
    before, after = choose(survey, budget).chosen, choose(survey, replace(budget, **dict.fromkeys(fields))).chosen
    if before is not None:
        assert after is not None
        assert not is_told_apart(before, after)
