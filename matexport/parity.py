"""Numbers that compare the vectors of a sub-model with the parent's. numpy only; no opinion about where they came from.

`max_abs` is the gate: one number per profile that bounds every coordinate of every probe. The cosines and the
neighbour agreement say what a difference means for search; on random or nearly constant vectors they can look
perfect while `max_abs` does not, so they are reported and not relied upon.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

#: How many nearest neighbours of each probe are compared.
NEIGHBOURS = 5


@dataclass(frozen=True)
class Parity:
    """Distance between two sets of n vectors.

    Attributes:
        max_abs: largest difference of one coordinate. Where the reference's largest value of that coordinate exceeds
            1, it is divided by that value, so that one floor serves unit vectors and raw residual streams alike, and
            a coordinate with huge values excuses no other.
        cosine_mean: mean over rows of the cosine between the two vectors of a row.
        cosine_min: the smallest of them.
        neighbours: share of each row's nearest rows (at most 5, by cosine) that is the same in both sets.
        worst: index of the row with the largest difference.
    """

    max_abs: float
    cosine_mean: float
    cosine_min: float
    neighbours: float
    worst: int

    def within(self, max_abs: float) -> bool:
        """Whether `max_abs` of this parity is a number and at most the given one."""
        return bool(self.max_abs <= max_abs)  # False for NaN


def compare_vectors(vectors: Vectors, reference: Vectors) -> Parity:
    """Compare (n, d) float32 vectors with a reference of the same shape.

    Values that are not finite give ``max_abs = inf``.

    Raises:
        ValueError: the shapes differ, or there are no rows.
    """
    if vectors.shape != reference.shape or vectors.ndim != 2 or not len(vectors):
        raise ValueError(f"vectors of shape {vectors.shape} cannot be compared with a reference of {reference.shape}")
    if not (np.isfinite(vectors).all() and np.isfinite(reference).all()):
        bad = ~(np.isfinite(vectors) & np.isfinite(reference)).all(axis=1)
        return Parity(float("inf"), float("nan"), float("nan"), 0.0, int(bad.argmax()))
    ours, theirs = vectors.astype(np.float64), reference.astype(np.float64)
    scale = np.maximum(1.0, np.abs(theirs).max(axis=0))
    difference = (np.abs(ours - theirs) / scale).max(axis=1)
    ours, theirs = _unit_rows(ours), _unit_rows(theirs)
    both_zero = ~(ours.any(axis=1) | theirs.any(axis=1))
    cosine = np.where(both_zero, 1.0, (ours * theirs).sum(axis=1))
    return Parity(
        max_abs=float(difference.max()),
        cosine_mean=float(cosine.mean()),
        cosine_min=float(cosine.min()),
        neighbours=_neighbour_agreement(ours, theirs),
        worst=int(difference.argmax()),
    )


def _unit_rows(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    unit: NDArray[np.float64] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit


def _neighbour_agreement(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    count = min(NEIGHBOURS, len(ours) - 1)
    if count < 1:
        return 1.0
    pairs = zip(_nearest(ours, count), _nearest(theirs, count), strict=True)
    return float(np.mean([len(set(left) & set(right)) / count for left, right in pairs]))


def _nearest(rows: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    similarity = rows @ rows.T
    np.fill_diagonal(similarity, -np.inf)
    return np.argsort(-similarity, axis=1, kind="stable")[:, :count].astype(np.int64)
