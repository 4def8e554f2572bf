"""Retentions that their task cannot tell apart: ties, among which `choose` takes the cheaper profile.

A profile is better than another if its retention is higher, and higher in at least 97.5 % of the task's resamples
(`matexport.measure.bootstrap`): a two-sided test of 95 % by the paired bootstrap (Efron & Tibshirani 1993; Koehn 2004).
A resample in which both are equal speaks for neither. Where one of the two has no resamples, as in evaluations of older
versions, the higher retention is better, whatever it is worth.

Being tied does not carry over from one pair of profiles to the next, so what counts is not who is tied with whom, but
who is beaten by nobody: the profile of the best retention always is among them. A profile more may beat some of them,
and never clears one that is beaten, so that a looser budget gives no choice that is known to be worse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import gt
from typing import NamedTuple

from matexport.family.survey import Candidate
from matexport.pick.limits import read_retention
from matexport.spec.measured import read_resamples

#: Share of the resamples that must agree.
AGREEING = 0.975


class Retention(NamedTuple):
    """A retention, and what it is in each resample; no resamples where they are not known."""

    value: float
    resamples: tuple[float, ...]

    def is_better(self, other: Retention) -> bool:
        """Whether it is known to be better than another one."""
        if self.value <= other.value:
            return False
        if not self.resamples or len(self.resamples) != len(other.resamples):
            return True
        wins: int = sum(map(gt, self.resamples, other.resamples))
        return wins >= AGREEING * len(self.resamples)


def find_unbeaten(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates whose retention no other one's is better than, the best first; none of those without one."""
    known = [(value, candidate) for candidate in candidates if (value := read_retention(candidate)) is not None]
    known.sort(key=lambda pair: (-pair[0], pair[1].profile))
    unbeaten: list[Candidate] = []
    above: list[Retention] = []  # those that are not worse in all resamples than the best one is at its worst
    lowest = -math.inf
    for value, candidate in known:
        if above and value < above[0].value and _find_highest(candidate, len(above[0].resamples)) < lowest:
            continue  # as all that it could beat is beaten by the best one, too
        mine = Retention(value, candidate.resamples)
        # Asked from the best on, since most are beaten by the first.
        if not any(other.is_better(mine) for other in above):
            unbeaten.append(candidate)
        above.append(mine)
        if len(above) == 1:
            lowest = min(mine.resamples, default=-math.inf)
    return unbeaten


def _find_highest(candidate: Candidate, count: int) -> float:
    """What no resample of a candidate is above; infinite where it does not have so many."""
    rows = [read_resamples(resampled) for resampled in candidate.resampled]
    if not rows or any(len(row) != count for row in rows):
        return math.inf
    return min(map(max, rows))  # of several tasks, the least counts in each resample


def are_ties_known(candidates: Sequence[Candidate]) -> bool:
    """Whether any two of the candidates that have a retention can be compared by resamples."""
    known = [candidate.resampled for candidate in candidates if read_retention(candidate) is not None]
    sizes = {tuple(map(len, resampled)) for resampled in known}
    return len(known) < 2 or (len(sizes) == 1 and () not in sizes)
