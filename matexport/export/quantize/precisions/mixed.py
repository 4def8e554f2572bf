"""Which of the parent's blocks q4-mixed keeps at 8 bits: those whose loss at 4 bits, as measured, is largest.

Each block is put to 4 bits alone and the vectors of all depths are compared with those of fp32. Blocks are then raised
to 8 bits in the order of loss per byte that this costs, until the vectors are near enough or a fifth of the weights is
raised; one block always may be.
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

#: Mean cosine to fp32, at the worst depth, at which no further block is raised.
ENOUGH = 0.995

#: Share of the weights that may be raised: beyond it the file is nearer to q8's size than to q4's.
MAX_SHARE = 0.2

#: Texts that blocks are compared on: a ranking needs fewer than a range.
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
    """The blocks that stay at 8 bits when the others go to 4; 0 stands for the embeddings.

    Args:
        traced: the graph in fp32, with one output per point; it is left as it is.
        rows: site name -> (n, K) float32 rows seen in calibration.
        sample: the calibration texts, some of which the graphs are compared on.
        rounded: weights that were rounded already; those rounded here are added.
        progress: called with (done, total) blocks.
    """
    deepest = {point.layers: point for point in sorted(points)}  # of each depth, the widest
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
    """The blocks with the largest loss per weight, as many as it takes and as there is room for.

    Args:
        costs: block -> number of its weights.
        losses: block -> mean loss when it alone is at 4 bits.
        measure_losses: blocks at 4 and blocks at 8 bits -> the loss at each depth.
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
    """At most `MAX_TEXTS` of the sample's rows, of all sizes, the small ones first."""
    return sorted(sample.rows, key=sample.inputs.size)[:: max(1, -(-len(sample.rows) // MAX_TEXTS))]


def _run_outputs(model: ir.Model, outputs: Sequence[str], sample: Sample) -> list[Floats]:
    """(n, dim) float32 vectors of the sample's texts, for each of some outputs."""
    run, rows = open_values(model, outputs, sample), sample.rows
    batches = [run([rows[index] for index in batch]) for batch in split_batches(len(rows), BATCH)]
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


def _count_weights(traced: Traced) -> dict[int, int]:
    """Number of weights that each block, and the embeddings, would store in another way."""
    counts: dict[int, int] = {}
    for site in find_products(traced):
        counts[site.block] = counts.get(site.block, 0) + sum(_size(weight) for weight in site.weights)
    for table in find_tables(traced):
        counts[EMBEDDINGS] = counts.get(EMBEDDINGS, 0) + _size(table.inputs[0])
    return counts


def _size(value: ir.Value | None) -> int:
    assert value is not None
    assert value.const_value is not None
    return int(np.prod([int(dim) for dim in value.const_value.shape]))  # type: ignore[arg-type]
