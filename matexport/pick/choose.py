"""What is known of a family's profiles, and a budget -> the best profile that fits, with a reason for every other one.

Pure: nothing is read, measured or printed. The order is total and does not depend on the budget: quality first, then
latency, disk, memory and name, with what nobody measured last in each. So the choice is the first of the profiles that
fit, and as a looser budget lets at least the same profiles through, it never gives a worse choice.

Quality is retention. Where no profile has any, none is the best, and the order falls back on what is most likely
closest to the parent: trained points, more layers, more dims, then the more exact precision and encoding
(`Choice.quality_known` says so).
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
    """What fits a budget.

    Attributes:
        chosen: None where nothing fits.
        fitting: all that fit, best first.
        front: those of them that no other one is at least as good as in quality, latency, disk and memory and better in
            one; best first. What was not measured counts as the worst.
        rejections: one for each profile that does not fit, in the family's order.
        misses: where nothing fits, the nearest miss of each limit that rejects something.
        checks: one for each limit.
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
        trained_only: refuse points that the parent is known not to have been trained at.

    Returns:
        the choice, and what speaks against every other profile; nothing may fit.
    """
    candidates = survey.candidates
    limits = [(LIMITS[name], allowed) for name, allowed in list_limits(budget)]
    checks = tuple(check_limit(survey, limit, allowed) for limit, allowed in limits)
    checked = [pair for pair, check in zip(limits, checks, strict=True) if check.done]
    quality_known = any(read_retention(it) is not None for it in candidates)
    rejected = {it.profile: reject(it, checked, trained_only) for it in candidates}

    def rank(candidate: Candidate) -> tuple[object, ...]:
        return *read_losses(candidate, quality_known), candidate.profile

    fitting = sorted((it for it in candidates if rejected[it.profile] is None), key=rank)
    return Choice(
        chosen=fitting[0] if fitting else None,
        fitting=tuple(fitting),
        front=tuple(find_front(fitting, lambda it: read_losses(it, quality_known))),
        rejections=tuple(found for found in rejected.values() if found is not None),
        misses=() if fitting else tuple(find_misses(candidates, checked, trained_only)),
        checks=checks,
        quality_known=quality_known,
    )
