"""Numbers that compare the vectors of a sub-model with the parent's. numpy only; no opinion about where they came from.

`max_abs` is the gate: one number per profile that bounds every coordinate of every probe. The cosines and the
neighbour agreement say what a difference means for search; on random or nearly constant vectors they can look
perfect while `max_abs` does not, so they are reported and not relied upon.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from matexport.spec import Encoding, Tolerance

Vectors = NDArray[np.float32]

#: How many nearest neighbours of each probe are compared.
NEIGHBOURS = 5

#: sentence-transformers cuts each coordinate's range into this many steps (`quantize_embeddings`).
INT8_STEPS = 255

#: How many standard deviations more bits may differ than an angle makes differ on average: one case in 700 does.
SIGN_DEVIATIONS = 3


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

    def find_breach(self, tolerance: Tolerance) -> str | None:
        """What of a tolerance is not kept, as ``max abs difference 3e-4, allowed 1e-5``; None when all of it is."""
        held = (  # `not (a <= b)`, since a comparison with NaN is false
            ("max abs difference", self.max_abs, tolerance.max_abs, 1),
            ("mean cosine", self.cosine_mean, tolerance.cosine_mean, -1),
            ("least cosine", self.cosine_min, tolerance.cosine_min, -1),
        )
        for name, value, allowed, sign in held:
            if allowed is not None and not sign * value <= sign * allowed:
                return f"{name} {value:.{6 if sign < 0 else 2}g}, allowed {allowed:g}"
        return None


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
    return _summarise(np.abs(ours - theirs), ours, theirs, theirs)


def compare_codes(
    codes: NDArray[np.int8] | NDArray[np.uint8], reference: Vectors, encoding: Encoding, ranges: Vectors | None = None
) -> Parity:
    """Compare encoded vectors with a float32 reference.

    `max_abs` is then the smallest difference of a coordinate that explains the codes: 0 where the reference itself
    has this code. The cosines and neighbours compare what the codes stand for (±1; the middle of a step) with what
    the reference's own codes stand for.

    Args:
        codes: (n, d) int8, or (n, ceil(d / 8)) uint8.
        reference: (n, d) float32.
        ranges: (2, d) float32, least and greatest value of each coordinate, for int8.

    Raises:
        ValueError: shapes or types do not fit.
    """
    width = encoding.width(reference.shape[1])
    kind = np.uint8 if encoding is Encoding.UBINARY else np.int8
    if codes.shape != (len(reference), width) or codes.dtype != kind:
        raise ValueError(
            f"codes of shape {codes.shape}, {codes.dtype} cannot stand for a reference of {reference.shape}"
        )
    theirs = reference.astype(np.float64)
    if not np.isfinite(theirs).all():
        return Parity(float("inf"), float("nan"), float("nan"), 0.0, int((~np.isfinite(theirs)).any(axis=1).argmax()))
    if encoding is Encoding.UBINARY:
        bits = np.unpackbits(codes.view(np.uint8), axis=1, count=reference.shape[1]).astype(bool)
        difference = np.where(bits == (reference > 0), 0.0, np.abs(theirs))
        return _summarise(difference, np.where(bits, 1.0, -1.0), np.where(reference > 0, 1.0, -1.0), theirs)
    if ranges is None or ranges.shape != (2, reference.shape[1]):
        raise ValueError("int8 codes stand for nothing without the (2, d) ranges that they were made with")
    start = ranges[0].astype(np.float64)
    step = (ranges[1].astype(np.float64) - start) / INT8_STEPS
    step = np.where(step == 0, 1.0, step)
    level = codes.astype(np.float64) + 128
    low = np.where(level == 0, -np.inf, start + level * step)  # the first and the last step have no outer bound
    high = np.where(level == INT8_STEPS, np.inf, start + (level + 1) * step)
    difference = np.maximum(0.0, np.maximum(low - theirs, theirs - high))
    expected = np.clip(np.floor((theirs - start) / step), 0, INT8_STEPS)
    return _summarise(difference, start + (level + 0.5) * step, start + (expected + 0.5) * step, theirs)


def encode_tolerance(
    tolerance: Tolerance, encoding: Encoding, dim: int | None = None, vectors: int | None = None
) -> Tolerance:
    """What a float32 tolerance becomes for codes.

    The sign patterns of two vectors at an angle t differ in a share t / pi of their bits (Goemans and Williamson
    1995, lemma 3.2: it is the chance that a random plane separates them), so a cosine c between vectors becomes
    1 - 2 arccos(c) / pi between their ±1 vectors. That is an average. Of the bits that are looked at (`dim` in the
    worst vector, `dim` times `vectors` in all), as many more may differ as three standard deviations of that many
    tosses, and one. `spread` is not held: a bit may flip on the last digit of a zero.
    """
    if encoding is Encoding.FLOAT32:
        return tolerance
    mean, least = tolerance.cosine_mean, tolerance.cosine_min
    if encoding is Encoding.UBINARY:
        mean = None if mean is None else _compare_signs(mean, dim * vectors if dim and vectors else None)
        least = None if least is None else _compare_signs(least, dim)
    return Tolerance(tolerance.max_abs, mean, least)


def _compare_signs(cosine: float, bits: int | None) -> float:
    """Cosine of two vectors' signs that is still to be expected; a cosine above 1 stays what cannot be held."""
    if cosine > 1:
        return cosine
    share = math.acos(max(cosine, -1.0)) / math.pi
    if bits:
        share += SIGN_DEVIATIONS * math.sqrt(share * (1 - share) / bits) + 1 / bits
    return 1 - 2 * share


def _summarise(
    difference: NDArray[np.float64], ours: NDArray[np.float64], theirs: NDArray[np.float64], plain: NDArray[np.float64]
) -> Parity:
    """`difference` (n, d) is scaled by the largest values of `plain`; `ours` and `theirs` are compared by angle."""
    scale = np.maximum(1.0, np.abs(plain).max(axis=0))
    difference = (difference / scale).max(axis=1)
    ours, theirs = _unit_rows(ours), _unit_rows(theirs)
    both_zero = ~(ours.any(axis=1) | theirs.any(axis=1))
    cosine = np.where(both_zero, 1.0, (ours * theirs).sum(axis=1))
    return Parity(
        max_abs=float(difference.max()),
        cosine_mean=float(cosine.mean()),
        cosine_min=float(cosine.min()),
        neighbours=_neighbour_agreement(ours, theirs),
        worst=int((difference if difference.any() else -cosine).argmax()),
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
