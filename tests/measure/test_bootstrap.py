"""Resamples of a task, against an oracle that writes each one out and ranks it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from matexport.measure.bootstrap import RESAMPLES, ResampledRanks, average_resamples, draw_resamples, retain
from matexport.spec.measured import Score


def rank(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks, the mean of those that share a value."""
    return np.array([(values < value).sum() + ((values == value).sum() + 1) / 2 for value in values])


def correlate(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    return float(np.corrcoef(rank(ours), rank(theirs))[0, 1])


def test_the_draws_are_the_same_for_ever() -> None:
    """Evaluations of different days and hosts are compared by them."""
    np.random.seed(7)
    draws = draw_resamples(6)
    assert draws.shape == (RESAMPLES, 6)
    assert (draws.sum(axis=1) == 6).all()
    assert draws[:3].tolist() == [[1, 0, 0, 3, 0, 2], [1, 2, 0, 1, 2, 0], [1, 1, 0, 3, 1, 0]]
    np.testing.assert_array_equal(draw_resamples(6), draws)
    many = draw_resamples(500)
    assert len(np.unique(many, axis=0)) == RESAMPLES
    assert (many == 0).mean() == pytest.approx(np.exp(-1), abs=0.01), "drawn with replacement"


@pytest.mark.parametrize("values", [17, 4], ids=["few that are equal", "many"])
def test_pairs_are_ranked_anew_in_every_resample(values: int) -> None:
    draw = np.random.default_rng(0)
    ours, theirs = draw.integers(0, 3 * values, 40) / 7, draw.integers(0, values, 40) / 3
    draws = draw_resamples(40)
    found = ResampledRanks(theirs, (np.arange(40),), draws).correlate(ours)
    assert found.shape == (RESAMPLES,)
    for place in range(0, RESAMPLES, 9):
        taken = np.repeat(np.arange(40), draws[place])
        assert found[place] == pytest.approx(correlate(ours[taken], theirs[taken]), abs=1e-12)


def test_pairs_of_texts_occur_as_often_as_both_texts_do() -> None:
    draw = np.random.default_rng(1)
    pairs = np.triu_indices(12, 1)
    ours, theirs = draw.random(len(pairs[0])), draw.random(len(pairs[0]))
    at = {(int(one), int(other)): place for place, (one, other) in enumerate(zip(*pairs, strict=True))}
    draws = draw_resamples(12)
    found = ResampledRanks(theirs, pairs, draws).correlate(ours)
    for place in range(0, RESAMPLES, 29):
        texts = np.repeat(np.arange(12), draws[place]).tolist()
        taken = [
            at[min(one, other), max(one, other)]
            for first, one in enumerate(texts)
            for other in texts[first + 1 :]
            if one != other
        ]
        assert found[place] == pytest.approx(correlate(ours[taken], theirs[taken]), abs=1e-12)


def test_a_single_value_ranks_nothing_in_any_resample() -> None:
    draws, units = draw_resamples(9), (np.arange(9),)
    assert not ResampledRanks(np.ones(9), units, draws).correlate(np.arange(9.0)).any()
    assert not ResampledRanks(np.arange(9.0), units, draws).correlate(np.ones(9)).any()
    np.testing.assert_allclose(ResampledRanks(np.arange(9.0), units, draws).correlate(np.arange(9.0) ** 3), 1)


def test_means_of_what_was_drawn() -> None:
    values = np.random.default_rng(2).random(30)
    draws = draw_resamples(30)
    expected = [np.repeat(values, times).mean() for times in draws]
    np.testing.assert_allclose(average_resamples(values, draws), expected, atol=1e-12)


def test_retentions_to_four_decimals_and_none_of_a_parent_that_ranks_nothing() -> None:
    kept = retain(np.array([0.4, 0.80004, -0.2, 0.5]), np.array([0.8, 0.8, 0.8, -0.1]))
    assert Score(0.4, 0.5, {}, kept).resamples == pytest.approx((0.5, 1.0, -0.25, 0.0), abs=1e-9)
    assert Score(0.4, 0.5, {}, kept[:-1]).resamples == (), "cut off"
    assert Score(0.4, 0.5).resamples == ()
