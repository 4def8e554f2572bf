"""What nothing beats: profiles that no other one is at least as good as in everything and better in something."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from matexport.family.survey import Candidate
from matexport.pick.limits import read_disk, read_latency, read_ram, read_retention
from matexport.spec.profile import Encoding, Precision, Profile

T = TypeVar("T")

#: From the closest to fp32 to the farthest, by the floors that each is held to (`matexport.spec.tolerance.FLOORS`).
EXACTNESS = (
    Precision.FP32, Precision.FP16, Precision.Q8, Precision.INT8, Precision.Q4_MIXED, Precision.INT8_STATIC,
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


def find_front(items: Iterable[T], read: Callable[[T], tuple[Any, ...]]) -> list[T]:
    """Those that none dominates: no other is at most as much in every number of `read`, and less in one.

    Args:
        read: the numbers of an item, the less the better; a number may itself be a tuple.

    Returns:
        the front in the order of `read`, equal items in their own; those with the same numbers are all there.
    """
    front: list[tuple[tuple[Any, ...], T]] = []
    for numbers, item in sorted(((read(item), item) for item in items), key=lambda pair: pair[0]):
        # Only an earlier one can dominate: one that is at most as much in all comes before in this order.
        if not any(
            other != numbers and all(mine <= theirs for mine, theirs in zip(other, numbers, strict=True))
            for other, _ in front
        ):
            front.append((numbers, item))
    return [item for _, item in front]


def read_losses(candidate: Candidate, quality_known: bool) -> tuple[Any, ...]:
    """What a profile lacks in quality, then its latency, disk and memory: the less the better, first things first."""
    lacks = tuple(-value for value in read_quality(candidate, quality_known))
    return lacks, *read_costs(candidate)
