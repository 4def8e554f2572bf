"""What nothing beats: profiles that no other one is at least as good as in everything and better in something."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from matexport.family.survey import Candidate
from matexport.pick.limits import read_disk, read_latency, read_ram, read_retention
from matexport.spec.profile import Encoding, Precision, Profile

#: From the closest to fp32 to the farthest, by the floors that each is held to (`matexport.spec.tolerance.FLOORS`).
EXACTNESS = (
    Precision.FP32, Precision.FP16, Precision.Q8, Precision.INT8, Precision.INT8_STATIC, Precision.Q4_MIXED,
    Precision.Q4,
)  # fmt: skip
ENCODINGS = (Encoding.FLOAT32, Encoding.INT8, Encoding.UBINARY)


def read_quality(candidate: Candidate, quality_known: bool) -> tuple[float, ...]:
    """The more the better, from the first number on."""
    if quality_known:
        retention = read_retention(candidate)
        return (-math.inf if retention is None else retention,)
    profile = Profile.parse(candidate.profile)
    trained = 0 if candidate.trained is False else 1
    exactness = -EXACTNESS.index(profile.precision), -ENCODINGS.index(profile.encoding)
    return trained, candidate.layers, candidate.dim, *exactness


def read_costs(candidate: Candidate) -> tuple[float, float, float]:
    """Latency, disk and memory; infinite where nobody measured it."""
    costs = (read_latency(candidate), read_disk(candidate), read_ram(candidate))
    return tuple(math.inf if cost is None else cost for cost in costs)  # type: ignore[return-value]


def find_candidate_front(ranked: Iterable[Candidate], quality_known: bool) -> Iterable[Candidate]:
    """Those that none dominates, of candidates from the best on: only an earlier one can dominate.

    (One that is at least as good in all and better in one comes before in the order, which compares the same numbers.)
    """
    front: list[tuple[tuple[float, ...], tuple[float, ...]]] = []
    for candidate in ranked:
        quality, costs = read_quality(candidate, quality_known), read_costs(candidate)
        if any(
            best >= quality and all(map(float.__le__, cheap, costs)) and (best, cheap) != (quality, costs)
            for best, cheap in front
        ):
            continue
        front.append((quality, costs))
        yield candidate


def find_front(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """Which of n pairs no other beats: none costs at most as much and gains at least as much, and differs.

    Returns:
        indices, by cost; pairs that are equal are all there. O(n log n).
    """
    front: list[int] = []
    best = -math.inf
    for index in sorted(range(len(costs)), key=lambda index: (costs[index], -gains[index])):
        if gains[index] > best:
            front.append(index)
            best = gains[index]
        elif front and (costs[index], gains[index]) == (costs[front[-1]], gains[front[-1]]):
            front.append(index)
    return front
