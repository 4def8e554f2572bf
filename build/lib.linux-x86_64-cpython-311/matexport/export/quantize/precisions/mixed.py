"""Choose the blocks of the parent that q4-mixed keeps at 8 bits: those whose measured loss at 4 bits is largest.

For each block, a graph with only this block at 4 bits is compared with fp32 by its vectors at all depths. Blocks are
then raised to 8 bits, those with the largest loss per weight first, until the vectors are near enough to fp32, or every
other block would bring the raised ones above a fifth of the weights. The first block may have any size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from matexport.export.graph.edit import Floats
from matexport.export.graph.traced import Traced
from matexport.export.quantize.observe import Sample, open_values
from matexport.export.quantize.precisions.blocks import EMBEDDINGS, Rounded, apply_blocks
from matexport.export.quantize.sites import find_products, find_tables
from matexport.runtime.batches import split_batches
from matexport.runtime.inputs.modality import Row
from matexport.spec.profile import Point
from matexport.verify.parity import compare_vectors

#: No further block is raised when the mean cosine to fp32 is at least this at every depth.
ENOUGH = 0.995

#: Share of the weights that may be raised; with more, the file would be nearer to q8's size than to q4's.
MAX_SHARE = 0.2

#: Number of texts that blocks are compared on; ranking blocks needs fewer texts than calibrating a range.
MAX_TEXTS = 32
BATCH = 8


def choose_eight_bit_blocks(
    traced: Traced,
    points: Sequence[Point],
    rows: Mapping[str, Floats],
    sample: Sample,
    rounded: Rounded,
    progress: Callable[[int, int], None] | None = None,
) -> list[int]:
    """The numbers of the blocks to keep at 8 bits when all others are at 4 bits, sorted; 0 stands for the embeddings.

    Args:
        traced: the graph in fp32, with one output per point; it is left as it is.
        rows: name of a product group -> (n, K) float32 rows of its value seen in calibration.
        sample: the calibration items, on some of which the graphs are compared.
        rounded: weights that were rounded already; weights rounded here are added.
        progress: called with (done, total) blocks.
    """
    deepest = {point.layers: point for point in sorted(points)}  # depth -> its widest point
    outputs = [point.name for point in deepest.values()]
    some = replace(sample, rows=_choose_rows(sample))
    expected = _run_outputs(traced.model, outputs, some)

    def measure_losses(four: Sequence[int], eight: Sequence[int]) -> list[float]:
        candidate = traced.copy()
        apply_blocks(candidate, rows, four_bits=four, eight_bits=eight, rounded=rounded)
        given = _run_outputs(candidate.model, outputs, some)
        return [1 - compare_vectors(ours, theirs).cosine_mean for ours, theirs in zip(given, expected, strict=True)]

    costs = _count_weights(traced)
    losses = {}
    for done, block in enumerate(sorted(costs)):
        if progress:
            progress(done, len(costs))
        losses[block] = float(np.mean(measure_losses([block], [])))
    return _raise_blocks(costs, losses, measure_losses)


def _raise_blocks(
    costs: Mapping[int, int],
    losses: Mapping[int, float],
    measure_losses: Callable[[Sequence[int], Sequence[int]], list[float]],
) -> list[int]:
    """The blocks with the largest loss per weight, as many as are needed and as `MAX_SHARE` allows.

    Args:
        costs: block -> number of its weights.
        losses: block -> 1 - mean cosine to fp32, averaged over depths, when only this block is at 4 bits.
        measure_losses: called with the blocks at 4 and the blocks at 8 bits; returns the loss at each depth.
    """
    blocks = sorted(costs)
    room = MAX_SHARE * sum(costs.values())
    raised: list[int] = []
    for block in sorted(blocks, key=lambda block: -losses[block] / costs[block]):
        if raised and sum(costs[other] for other in (*raised, block)) > room:
            continue
        if max(measure_losses([other for other in blocks if other not in raised], raised)) <= 1 - ENOUGH:
            break
        raised.append(block)
    return sorted(raised)


def _choose_rows(sample: Sample) -> list[Row]:
    """At most `MAX_TEXTS` of the sample's rows, evenly spread over their sizes, the smallest first."""
    return sorted(sample.rows, key=sample.inputs.size)[:: max(1, -(-len(sample.rows) // MAX_TEXTS))]


def _run_outputs(model: ir.Model, outputs: Sequence[str], sample: Sample) -> list[Floats]:
    """(n, numbers of an item) float32 of the sample's items, for each of some outputs."""
    run, rows = open_values(model, outputs, sample), sample.rows
    batches = [run([rows[index] for index in batch]) for batch in split_batches(len(rows), BATCH)]
    return [np.concatenate(parts).reshape(len(rows), -1) for parts in zip(*batches, strict=True)]


def _count_weights(traced: Traced) -> dict[int, int]:
    """Block, or 0 for the embeddings -> number of its weights that a precision would quantize."""
    counts: dict[int, int] = {}
    for group in find_products(traced):
        counts[group.block] = counts.get(group.block, 0) + sum(_size(weight) for weight in group.weights)
    for table in find_tables(traced):
        counts[EMBEDDINGS] = counts.get(EMBEDDINGS, 0) + _size(table.inputs[0])
    return counts


def _size(value: ir.Value | None) -> int:
    assert value is not None
    assert value.const_value is not None
    return int(np.prod([int(dim) for dim in value.const_value.shape]))  # type: ignore[arg-type]
