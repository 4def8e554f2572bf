"""Numbers that compare codes (int8, ubinary) with the parent's vectors, and what a tolerance becomes for them.

Codes are made as sentence-transformers' `quantize_embeddings` makes them from float32 vectors.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matexport.spec.parity import Parity, Spread
from matexport.spec.profile import Encoding
from matexport.spec.tolerance import Tolerance
from matexport.verify.parity import Vectors, compare_vectors, describe_bad, summarise

#: sentence-transformers cuts each coordinate's range into this many steps (`quantize_embeddings`).
INT8_STEPS = 255

#: What the ranges of int8 codes may cut off of the parent's own vectors; see `compare_ranges`. On all-MiniLM-L6-v2 and
#: the shipped probes, ranges from 64 sentences gave 0.990 and 0.958 at the worst of four points, from 512 sentences
#: 0.997 and 0.970, from 64 texts of three words 0.980 and 0.917; from 64 that differ in a number only 0.77 and 0.63 at
#: the best (2026-11-21).
RANGES_TOLERANCE = Tolerance(cosine_mean=0.95, cosine_min=0.8)

#: Share of codes that may differ between a text alone and in a batch: where vectors are within 1e-5, one of a hundred
#: steps of 1e-3 begins between them.
CODES_SPREAD = 0.01

#: How many standard deviations more bits may differ than an angle makes differ on average: one case in 700 does.
SIGN_DEVIATIONS = 3


def compare_codes(
    codes: NDArray[np.int8] | NDArray[np.uint8], reference: Vectors, encoding: Encoding, ranges: Vectors | None = None
) -> Parity:
    """Compare encoded vectors with a float32 reference.

    `max_abs` is then the smallest difference of a coordinate that explains the codes: 0 where the reference itself
    has this code, clipped or not. The cosines and neighbours compare what the codes stand for (±1; the middle of a
    step) with what the reference's own codes stand for. What these have lost is for `compare_ranges` to say.

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
        return describe_bad(np.isfinite(theirs))
    if encoding is Encoding.UBINARY:
        bits = np.unpackbits(codes.view(np.uint8), axis=1, count=reference.shape[1]).astype(bool)
        difference = np.where(bits == (reference > 0), 0.0, np.abs(theirs))
        return summarise(difference, np.where(bits, 1.0, -1.0), np.where(reference > 0, 1.0, -1.0), theirs)
    if ranges is None or ranges.shape != (2, reference.shape[1]):
        raise ValueError("int8 codes stand for nothing without the (2, d) ranges that they were made with")
    start, step = _split_ranges(ranges)
    level = codes.astype(np.float64) + 128
    low = np.where(level == 0, -np.inf, start + level * step)  # the first and the last step have no outer bound
    high = np.where(level == INT8_STEPS, np.inf, start + (level + 1) * step)
    difference = np.maximum(0.0, np.maximum(low - theirs, theirs - high))
    return summarise(difference, start + (level + 0.5) * step, _decode_own(theirs, ranges), theirs)


def encode_vectors(
    vectors: Vectors, encoding: Encoding, ranges: Vectors | None = None
) -> NDArray[np.float32] | NDArray[np.int8] | NDArray[np.uint8]:
    """(n, d) float32 as the codes that a graph with this encoding gives, as `quantize_embeddings` makes them.

    Args:
        ranges: (2, d) float32, least and greatest value of each coordinate, for int8.

    Raises:
        ValueError: int8 was asked without ranges.
    """
    if encoding is Encoding.FLOAT32:
        return vectors
    if encoding is Encoding.UBINARY:
        return np.packbits(vectors > 0, axis=1)
    if ranges is None or ranges.shape != (2, vectors.shape[1]):
        raise ValueError("int8 codes need the (2, d) ranges of their coordinates")
    start, step = _split_ranges(ranges)
    return (np.clip(np.floor((vectors - start) / step), 0, INT8_STEPS) - 128).astype(np.int8)


def decode_vectors(
    vectors: NDArray[Any], encoding: Encoding, dim: int, ranges: Vectors | None = None
) -> NDArray[np.float32]:
    """What vectors or codes stand for: (n, dim) float32; of bits ±1, of int8 the middles of the steps of some ranges.

    Args:
        ranges: (2, dim) float32, least and greatest value of each coordinate, for int8.
    """
    if encoding is Encoding.UBINARY:
        return np.where(np.unpackbits(vectors, axis=1, count=dim), np.float32(1), np.float32(-1))
    if encoding is Encoding.INT8:
        assert ranges is not None, "a family with int8 outputs has ranges"
        step = (ranges[1].astype(np.float64) - ranges[0]) / INT8_STEPS
        return np.asarray(ranges[0] + (vectors.astype(np.float64) + 128.5) * step, np.float32)
    return vectors


def compare_ranges(reference: Vectors, ranges: Vectors) -> Parity:
    """Compare (n, d) float32 vectors with what their own int8 codes stand for: what the ranges cut off.

    `max_abs` is how far a coordinate lies outside of them. The cosines and neighbours are of vectors from which the
    mean of the reference is taken: what all texts share is not what tells them apart, and where it is most of a vector,
    codes that hold nothing else would look good.

    Args:
        ranges: (2, d) float32, least and greatest value of each coordinate.
    """
    theirs = reference.astype(np.float64)
    outside = np.maximum(0.0, np.maximum(ranges[0] - theirs, theirs - ranges[1]))
    centre = theirs.mean(axis=0)
    return summarise(outside, _decode_own(theirs, ranges) - centre, theirs - centre, theirs)


def _decode_own(vectors: NDArray[np.float64], ranges: Vectors) -> NDArray[np.float64]:
    """The middles of the steps that vectors fall into."""
    start, step = _split_ranges(ranges)
    middles: NDArray[np.float64] = start + (np.clip(np.floor((vectors - start) / step), 0, INT8_STEPS) + 0.5) * step
    return middles


def _split_ranges(ranges: Vectors) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where each coordinate's first step begins, and how wide its steps are."""
    start = ranges[0].astype(np.float64)
    step = (ranges[1].astype(np.float64) - start) / INT8_STEPS
    return start, np.where(step == 0, 1.0, step)


def compare_batched(single: NDArray[np.generic], batched: NDArray[np.generic], encoding: Encoding) -> Spread:
    """Compare what the same texts gave alone and in batches: vectors, or codes, (n, d) both."""
    if encoding is Encoding.FLOAT32:
        parity = compare_vectors(single, batched)  # type: ignore[arg-type]
        return Spread(parity.max_abs, parity.worst)
    if encoding is Encoding.UBINARY:
        single, batched = (np.unpackbits(codes.view(np.uint8), axis=1) for codes in (single, batched))
    differs = (single != batched).mean(axis=1)
    return Spread(float(differs.mean()), int(differs.argmax()))


def encode_tolerance(
    tolerance: Tolerance, encoding: Encoding, dim: int | None = None, vectors: int | None = None
) -> Tolerance:
    """What a float32 tolerance becomes for codes.

    The sign patterns of two vectors at an angle t differ in a share t / pi of their bits (Goemans and Williamson
    1995, lemma 3.2: it is the chance that a random plane separates them), so a cosine c between vectors becomes
    1 - 2 arccos(c) / pi between their ±1 vectors. That is an average. Of the bits that are looked at (`dim` in the
    worst vector, `dim` times `vectors` in all), as many more may differ as three standard deviations of that many
    tosses, and one.

    A `spread` becomes `CODES_SPREAD`: a code may change on the last digit of a vector.
    """
    if encoding is Encoding.FLOAT32:
        return tolerance
    mean, least = tolerance.cosine_mean, tolerance.cosine_min
    spread = None if tolerance.spread is None else CODES_SPREAD
    if encoding is Encoding.UBINARY:
        mean = None if mean is None else _compare_signs(mean, dim * vectors if dim and vectors else None)
        least = None if least is None else _compare_signs(least, dim)
    return Tolerance(tolerance.max_abs, mean, least, spread)


def _compare_signs(cosine: float, bits: int | None) -> float:
    """Cosine of two vectors' signs that is still to be expected; a cosine above 1 stays what cannot be held."""
    if cosine > 1:
        return cosine
    share = math.acos(max(cosine, -1.0)) / math.pi
    if bits:
        share += SIGN_DEVIATIONS * math.sqrt(share * (1 - share) / bits) + 1 / bits
    return 1 - 2 * share
