"""Choose the best profile of a family that fits a budget, and give a reason for every profile that does not fit.

Pure: nothing is read, measured or printed. The profiles are ordered by quality, then latency, disk, memory and name; in
each of these, profiles without a measurement come last. Of those that fit, the first is chosen, unless its retention
cannot be told from that of others (`matexport.pick.ties`): of all that nothing is known to be better than, the one of
the least latency, disk and memory goes first, as long as nothing beats it in all of these and in retention, too. A
looser budget lets at least the same profiles through, so its choice is never known to be worse.

Quality is retention. Where no profile has a retention, the order falls back on what is most likely closest to the
parent: trained points, more layers, more dims, then the more exact precision and encoding. `Choice.quality_known` is
False then.
"""

from __future__ import annotations

from typing import Any

from matexport.family.survey import Candidate, Survey
from matexport.pick.front import find_front, read_costs, read_losses
from matexport.pick.limits import (
    LIMITS,
    Budget,
    LimitCheck,
    Miss,
    Rejection,
    check_limit,
    find_misses,
    list_limits,
    read_retention,
    reject,
)
from matexport.pick.ties import are_ties_known, find_unbeaten
from matexport.spec.record import Record


class Choice(Record, frozen=True):
    """The profiles that fit a budget, and why the others do not.

    Attributes:
        chosen: the best profile that fits; None where nothing fits.
        fitting: all profiles that fit, the chosen one first, then from the best on.
        front: the Pareto front of `fitting` over quality, latency, disk and memory, in the same order. A profile is
            left out where another one is at least as good in all four and better in one. A missing measurement is the
            worst.
        tied: the profiles that fit whose retention no other one's is known to be better than, the best retention first;
            the chosen one is one of them. Empty where the chosen one has no retention.
        ties_known: whether that could be asked of all that fit; False where evaluations kept no resamples.
        rejections: one for each profile that does not fit, in the family's order.
        misses: where nothing fits, the nearest miss of each limit that rejects a profile; otherwise empty.
        checks: one for each limit of the budget.
        quality_known: whether any profile has a retention; if not, the order is a guess.
        training_checked: whether ``trained_only`` could be held against the profiles; None where it was not asked.
    """

    chosen: Candidate | None
    fitting: tuple[Candidate, ...]
    front: tuple[Candidate, ...]
    tied: tuple[Candidate, ...]
    ties_known: bool
    rejections: tuple[Rejection, ...]
    misses: tuple[Miss, ...]
    checks: tuple[LimitCheck, ...]
    quality_known: bool
    training_checked: bool | None


def choose(survey: Survey, budget: Budget, *, trained_only: bool = False) -> Choice:
    """Choose the best profile that fits.

    Args:
        survey: what `matexport.family.survey.survey_family` gathered.
        budget: the limits; see `Budget` for their units.
        trained_only: refuse points that the parent is known not to have been trained at.

    Returns:
        the choice, with a reason for each profile that does not fit; `chosen` is None where none does.
    """
    candidates = survey.candidates
    limits = [(LIMITS[name], allowed) for name, allowed in list_limits(budget)]
    checks = tuple(check_limit(survey, limit, allowed) for limit, allowed in limits)
    checked = [pair for pair, check in zip(limits, checks, strict=True) if check.done]
    quality_known = any(read_retention(candidate) is not None for candidate in candidates)
    rejected = {candidate.profile: reject(candidate, checked, trained_only) for candidate in candidates}

    def read(candidate: Candidate) -> tuple[Any, ...]:
        return read_losses(candidate, quality_known)

    fitting = [candidate for candidate in candidates if rejected[candidate.profile] is None]
    front = find_front(fitting, read)
    tied = find_unbeaten(fitting)
    ahead = {candidate.profile for candidate in tied} & {candidate.profile for candidate in front}

    def rank(candidate: Candidate) -> tuple[object, ...]:
        if candidate.profile in ahead:
            return 0, read_costs(candidate), read(candidate), candidate.profile
        return 1, read(candidate), candidate.profile

    fitting.sort(key=rank)
    return Choice(
        chosen=fitting[0] if fitting else None,
        fitting=tuple(fitting),
        front=tuple(sorted(front, key=rank)),
        tied=tuple(tied),
        ties_known=are_ties_known(fitting),
        rejections=tuple(found for found in rejected.values() if found is not None),
        misses=() if fitting else tuple(find_misses(candidates, checked, trained_only)),
        checks=checks,
        quality_known=quality_known,
        training_checked=any(one.trained is not None for one in candidates) if trained_only else None,
    )
