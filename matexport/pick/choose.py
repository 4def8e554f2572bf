"""Choose the best profile of a family that fits a budget, and give a reason for every profile that does not fit.

Pure: nothing is read, measured or printed. The profiles are ordered by quality, then latency, disk, memory and name; in
each of these, profiles without a measurement come last. The order is total and does not depend on the budget, and the
choice is the first profile that fits. A looser budget lets at least the same profiles through, so its choice is never
worse.

Quality is retention. Where no profile has a retention, the order falls back on what is most likely closest to the
parent: trained points, more layers, more dims, then the more exact precision and encoding. `Choice.quality_known` is
False then.
"""

from __future__ import annotations

from matexport.family.survey import Candidate, Survey
from matexport.pick.front import find_front, read_losses
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
from matexport.spec.record import Record


class Choice(Record, frozen=True):
    """The profiles that fit a budget, and why the others do not.

    Attributes:
        chosen: the best profile that fits; None where nothing fits.
        fitting: all profiles that fit, best first.
        front: the Pareto front of `fitting` over quality, latency, disk and memory, best first. A profile is left out
            where another one is at least as good in all four and better in one. A missing measurement is the worst.
        rejections: one for each profile that does not fit, in the family's order.
        misses: where nothing fits, the nearest miss of each limit that rejects a profile; otherwise empty.
        checks: one for each limit of the budget.
        quality_known: whether any profile has a retention; if not, the order is a guess.
    """

    chosen: Candidate | None
    fitting: tuple[Candidate, ...]
    front: tuple[Candidate, ...]
    rejections: tuple[Rejection, ...]
    misses: tuple[Miss, ...]
    checks: tuple[LimitCheck, ...]
    quality_known: bool


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

    def rank(candidate: Candidate) -> tuple[object, ...]:
        return *read_losses(candidate, quality_known), candidate.profile

    fitting = sorted((candidate for candidate in candidates if rejected[candidate.profile] is None), key=rank)
    return Choice(
        chosen=fitting[0] if fitting else None,
        fitting=tuple(fitting),
        front=tuple(find_front(fitting, lambda candidate: read_losses(candidate, quality_known))),
        rejections=tuple(found for found in rejected.values() if found is not None),
        misses=() if fitting else tuple(find_misses(candidates, checked, trained_only)),
        checks=checks,
        quality_known=quality_known,
    )
