"""The Pareto front of profiles: no other profile is at least as good in everything and better in something."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from operator import le
from typing import Any, TypeVar

from matexport.family.survey import Candidate
from matexport.pick.limits import read_disk, read_latency, read_ram, read_retention
from matexport.spec.profile import Encoding, Precision, Profile

T = TypeVar("T")

#: From the most exact to the least, by the floors that each precision is held to (`matexport.spec.tolerance.FLOORS`).
EXACTNESS = (
    Precision.FP32, Precision.FP16, Precision.Q8, Precision.INT8, Precision.Q4_MIXED, Precision.INT8_STATIC,
    Precision.Q4,
)  # fmt: skip
ENCODINGS = (Encoding.FLOAT32, Encoding.INT8, Encoding.UBINARY)


def read_quality(candidate: Candidate, quality_known: bool) -> tuple[float, ...]:
    """Numbers that rank a profile by quality; larger is better, and earlier numbers decide first.

    Returns:
        the retention alone if `quality_known` (minus infinity where it was not measured); otherwise whether the point
        is trained, layers, dim, and the exactness of precision and encoding.
    """
    if quality_known:
        retention = read_retention(candidate)
        return (-math.inf if retention is None else retention,)
    profile = Profile.parse(candidate.profile)
    trained = 0 if candidate.trained is False else 1
    exactness = -EXACTNESS.index(profile.precision), -ENCODINGS.index(profile.encoding)
    return trained, candidate.layers, candidate.dim, *exactness


def read_costs(candidate: Candidate) -> tuple[float, float, float]:
    """Latency in ms, disk and memory in MB; infinite where it was not measured."""
    costs = (read_latency(candidate), read_disk(candidate), read_ram(candidate))
    return tuple(math.inf if cost is None else cost for cost in costs)  # type: ignore[return-value]


def find_front(items: Iterable[T], read: Callable[[T], tuple[Any, ...]]) -> list[T]:
    """The items that no other item dominates, that is, is at most equal to in every number of `read` and less in one.

    Args:
        read: gives the numbers of an item, as many for each; smaller is better. A number may itself be a tuple.

    Returns:
        the front, sorted by `read`. Items with the same numbers are all included, in the order that they came in.
    """
    front: list[tuple[tuple[Any, ...], T]] = []
    for numbers, item in sorted(((read(item), item) for item in items), key=lambda pair: pair[0]):
        # Only an earlier item can dominate this one: in this order, an item that is at most equal in all comes before.
        if not any(other != numbers and all(map(le, other, numbers)) for other, _ in front):
            front.append((numbers, item))
    return [item for _, item in front]


def read_losses(candidate: Candidate, quality_known: bool) -> tuple[Any, ...]:
    """Numbers that rank a profile; smaller is better, and earlier numbers decide first.

    Returns:
        the negated numbers of `read_quality` as one tuple, then latency in ms, disk and memory in MB.
    """
    lacks = tuple(-value for value in read_quality(candidate, quality_known))
    return lacks, *read_costs(candidate)
