"""Which of the parent's blocks q4-mixed keeps at 8 bits: those whose loss at 4 bits, as measured, is largest.

Each block is put to 4 bits alone and the vectors of all depths are compared with those of fp32. Blocks are then raised
to 8 bits in the order of loss per byte that this costs, until the vectors are near enough or a fifth of the weights is
raised; one block always may be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from matexport.export.graph.edit import Floats
from matexport.export.quantize.observe import open_values
from matexport.export.quantize.precisions.blocks import EMBEDDINGS, Rounded, apply_blocks
from matexport.export.quantize.sites import find_products, find_tables
from matexport.runtime.batches import split_batches
from matexport.runtime.inputs.text import Tokens
from matexport.spec.facts import TextFacts
from matexport.spec.profile import Point
from matexport.verify.parity import compare_vectors

#: Mean cosine to fp32, at the worst depth, at which no further block is raised.
ENOUGH = 0.995

#: Share of the weights that may be raised: beyond it the file is nearer to q8's size than to q4's.
MAX_SHARE = 0.2

#: Texts that blocks are compared on: a ranking needs fewer than a range.
MAX_TEXTS = 32
BATCH = 8
Progress = Callable[[int, int], None]


def choose_eight_bit_blocks(
    model: ir.Model,
    states: Sequence[str],
    points: Sequence[Point],
    rows: Mapping[str, Floats],
    tokens: Sequence[Tokens],
    text: TextFacts,
    folder: Path,
    rounded: Rounded,
    progress: Progress | None = None,
) -> list[int]:
    """The blocks that stay at 8 bits when the others go to 4; 0 stands for the embeddings.

    Args:
        model: the traced graph in fp32, with one output per point.
        rows: site name -> (n, K) rows seen in calibration.
        rounded: weights that were rounded already; those rounded here are added.
    """
    deepest = {point.layers: point for point in sorted(points)}  # of each depth, the widest
    outputs = [point.name for point in deepest.values()]
    chosen = sorted(tokens, key=lambda row: len(row.ids))[:: max(1, -(-len(tokens) // MAX_TEXTS))]

    def run(candidate: ir.Model) -> list[Floats]:
        values = open_values(candidate, outputs, text, folder)
        batches = [values([chosen[index] for index in batch]) for batch in split_batches(len(chosen), BATCH)]
        return [np.concatenate(parts) for parts in zip(*batches, strict=True)]

    expected = run(model)

    def measure_loss(four: Sequence[int], eight: Sequence[int]) -> list[float]:
        candidate = model.clone()
        apply_blocks(candidate, states, rows, four_bits=four, eight_bits=eight, rounded=rounded)
        return [
            1 - compare_vectors(ours, theirs).cosine_mean for ours, theirs in zip(run(candidate), expected, strict=True)
        ]

    costs = _count_weights(model, states)
    blocks = sorted(costs)
    losses = {}
    for done, block in enumerate(blocks):
        if progress:
            progress(done, len(blocks))
        losses[block] = float(np.mean(measure_loss([block], [])))
    ranked = sorted(blocks, key=lambda block: -losses[block] / costs[block])
    room = MAX_SHARE * sum(costs.values())
    raised: list[int] = []
    for block in ranked:
        if raised and sum(costs[other] for other in (*raised, block)) > room:
            continue
        if max(measure_loss([other for other in blocks if other not in raised], raised)) <= 1 - ENOUGH:
            break
        raised.append(block)
    return sorted(raised)


def _count_weights(model: ir.Model, states: Sequence[str]) -> dict[int, int]:
    """Number of weights that each block, and the embeddings, would store in another way."""
    counts: dict[int, int] = {}
    for site in find_products(model, states):
        counts[site.block] = counts.get(site.block, 0) + sum(_size(weight) for weight in site.weights)
    for table in find_tables(model, states):
        counts[EMBEDDINGS] = counts.get(EMBEDDINGS, 0) + _size(table.inputs[0])
    return counts


def _size(value: ir.Value | None) -> int:
    assert value is not None
    assert value.const_value is not None
    return int(np.prod([int(dim) for dim in value.const_value.shape]))  # type: ignore[arg-type]
