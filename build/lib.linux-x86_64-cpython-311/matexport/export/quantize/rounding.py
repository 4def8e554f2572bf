"""Round weights to integers with feedback. numpy and linear algebra only; nothing here knows of graphs.

The method is GPTQ (Frantar et al., "GPTQ: Accurate Post-Training Quantization", ICLR 2023, equations 2 and 3). The rows
of a weight are rounded one after the other, and the rows that are not rounded yet are changed so that they make up for
the error, as far as possible on the inputs seen in calibration.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int8]
Doubles = NDArray[np.float64]

#: GPTQ's damping, as a share of the mean of the diagonal of X^T X. The paper's 0.01 fits some thousand calibration
#: tokens too closely: on all-MiniLM-L6-v2, 0.1 was better on held-out sentences (benchmarks/LOG.md, 2026-11-21).
DAMPING = 0.1

#: Rows whose errors are collected before the rest of the matrix is updated.
FEEDBACK_ROWS = 32

#: x86 CPUs without VNNI multiply 8-bit pairs into a saturating 16-bit sum: 255 * (|w0| + |w1|) must stay below 2**15.
PAIR_LIMIT = 128
MAX_INT8 = 127


def choose_scales(weight: Floats) -> Floats:
    """Scales for a weight's columns at which no pair of rows can saturate a 16-bit sum (see `PAIR_LIMIT`).

    Rows 2k and 2k+1 are added up in one 16-bit lane, so the sum of their absolute codes is kept to 128. This costs less
    precision than the usual remedy, 7-bit weights, since few pairs consist of two large weights.

    Args:
        weight: (K, N) float32.

    Returns:
        (N,) float32, above 0.
    """
    size = np.abs(weight)
    if len(size) % 2:
        size = np.vstack([size, np.zeros((1, size.shape[1]), np.float32)])
    scales = np.maximum(size.max(axis=0) / MAX_INT8, (size[0::2] + size[1::2]).max(axis=0) / PAIR_LIMIT)
    floor = np.finfo(np.float32).tiny
    bounded: Floats = np.maximum(scales, floor).astype(np.float32)
    return bounded


def round_columns(weight: Floats, scales: Floats, inputs: Floats) -> Integers:
    """Round a weight to int8 with feedback, and keep the sum of each pair's absolute codes to `PAIR_LIMIT`.

    Args:
        weight: (K, N) float32.
        scales: (N,) float32, one for each column.
        inputs: (n, K) float32 rows that the weight was multiplied by in calibration.

    Returns:
        (K, N) int8 codes; a weight is about code * scale.
    """
    chosen = np.zeros(weight.shape, dtype=np.int8)

    def quantize(row: int, values: Doubles) -> Doubles:
        limit: NDArray[np.int64] | int = MAX_INT8
        if row % 2:
            limit = np.minimum(PAIR_LIMIT - np.abs(chosen[row - 1].astype(np.int64)), MAX_INT8)
        level = np.clip(np.rint(values / scales), -limit, limit)
        chosen[row] = level
        return level * scales

    round_with_feedback(weight, inputs, quantize)
    return chosen


def round_with_feedback(
    weight: Floats,
    inputs: Floats,
    quantize: Callable[[int, Doubles], Doubles],
    *,
    start_block: Callable[[int, Doubles], None] | None = None,
    block: int = FEEDBACK_ROWS,
) -> None:
    """Round the rows of a weight in order, each corrected for the errors of the rows before it.

    The correction is equation 2 of GPTQ, with the inverse of X^T X + damping held as a triangular factor (Algorithm 1).

    Args:
        weight: (K, N) float32; it is left as it is.
        inputs: X, (n, K) float32 rows that the weight was multiplied by in calibration.
        quantize: called with each row's index and its corrected (N,) float64 values; returns the (N,) values that the
            rounded row stands for.
        start_block: called before each block of rows with the index of its first row and its corrected (block, N)
            float64 values; the last block may be shorter.
        block: rows per block.
    """
    work = weight.astype(np.float64)
    upper = _inverse_factor(inputs, len(work))
    for start in range(0, len(work), block):
        stop = min(start + block, len(work))
        part, errors = work[start:stop], np.zeros((stop - start, work.shape[1]))
        if start_block:
            start_block(start, part)
        for row in range(start, stop):
            here = row - start
            errors[here] = (part[here] - quantize(row, part[here])) / upper[row, row]
            if row + 1 < stop:
                part[here + 1 :] -= np.outer(upper[row, row + 1 : stop], errors[here])
        if stop < len(work):
            work[stop:] -= upper[start:stop, stop:].T @ errors


def _inverse_factor(inputs: Floats, size: int) -> Doubles:
    """The (K, K) upper triangular R with R^T R = (X^T X + damping)^-1, for inputs X of shape (n, K)."""
    rows = torch.from_numpy(np.array(inputs, dtype=np.float32))
    hessian = (rows.T @ rows).to(torch.float64)
    mean = float(hessian.diagonal().mean()) or 1.0
    hessian.diagonal().add_(DAMPING * mean)
    # H = U U^T with U upper triangular, from the Cholesky factor of H read backwards; then R is the inverse of U.
    backwards = torch.linalg.cholesky(hessian.flip(0, 1))
    upper = backwards.flip(0, 1)
    inverse: Doubles = torch.linalg.solve_triangular(upper, torch.eye(size, dtype=torch.float64), upper=True).numpy()
    return inverse
