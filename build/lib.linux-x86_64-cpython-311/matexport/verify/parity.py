"""Numbers that compare the vectors of a sub-model with the parent's. numpy only; no opinion about where they came from.

`max_abs` is what fp32 is held by: one number per profile that bounds every coordinate of every probe. On random or
nearly constant vectors a cosine can look perfect while `max_abs` does not; the small precisions, whose error depends on
the parent, are held by the two cosines. The neighbour agreement is reported and not relied upon.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from matexport.spec.parity import Parity

Vectors = NDArray[np.float32]
Floats = TypeVar("Floats", NDArray[np.float32], NDArray[np.float64])

#: How many nearest neighbours of each probe are compared.
NEIGHBOURS = 5


def compare_vectors(vectors: Vectors, reference: Vectors) -> Parity:
    """Compare (n, d) float32 vectors with a reference of the same shape.

    Values that are not finite give ``max_abs = inf``.

    Raises:
        ValueError: the shapes differ, or there are no rows.
    """
    if vectors.shape != reference.shape or vectors.ndim != 2 or not len(vectors):
        raise ValueError(f"vectors of shape {vectors.shape} cannot be compared with a reference of {reference.shape}")
    if not (np.isfinite(vectors).all() and np.isfinite(reference).all()):
        return describe_bad(np.isfinite(vectors) & np.isfinite(reference))
    ours, theirs = vectors.astype(np.float64), reference.astype(np.float64)
    return summarise(np.abs(ours - theirs), ours, theirs, theirs)


def unit_rows(rows: Floats) -> Floats:
    """(n, d) rows at length 1, in their own precision, so that inner products are cosines; a zero row stays."""
    unit: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit


def describe_bad(sound: NDArray[np.bool_]) -> Parity:
    """The parity where some values, (n, d), are not finite."""
    first = int((~sound).any(axis=1).argmax())
    return Parity(float("inf"), float("nan"), float("nan"), 0.0, first, first)


def summarise(
    difference: NDArray[np.float64], ours: NDArray[np.float64], theirs: NDArray[np.float64], plain: NDArray[np.float64]
) -> Parity:
    """`difference` (n, d) is scaled by the largest values of `plain`; `ours` and `theirs` are compared by angle."""
    scale = np.maximum(1.0, np.abs(plain).max(axis=0))
    difference = (difference / scale).max(axis=1)
    ours, theirs = unit_rows(ours), unit_rows(theirs)
    both_zero = ~(ours.any(axis=1) | theirs.any(axis=1))
    cosine = np.where(both_zero, 1.0, (ours * theirs).sum(axis=1))
    return Parity(
        max_abs=float(difference.max()),
        cosine_mean=float(cosine.mean()),
        cosine_min=float(cosine.min()),
        neighbours=_neighbour_agreement(ours, theirs),
        worst=int((difference if difference.any() else -cosine).argmax()),
        farthest=int(cosine.argmin()),
    )


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
