"""A precision's name -> the traced graph in that precision. What is measured on texts is measured once for all.

`MAKERS` says what each precision is: a function that rewrites a copy of the traced graph in place, and says what it
kept at a higher precision than the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import onnx_ir as ir

from matexport.errors import RequestError
from matexport.export.graph.edit import Floats
from matexport.export.graph.portable import make_portable
from matexport.export.graph.traced import Traced
from matexport.export.quantize.embeddings import fits_int4
from matexport.export.quantize.maps import find_coded
from matexport.export.quantize.observe import Sample, observe_maps, observe_peaks, observe_rows
from matexport.export.quantize.oldest import find_least_runtime
from matexport.export.quantize.precisions.blocks import EMBEDDINGS, Rounded, apply_blocks
from matexport.export.quantize.precisions.fp16 import apply_half
from matexport.export.quantize.precisions.int8 import apply_int8
from matexport.export.quantize.precisions.int8_static import apply_static_int8
from matexport.export.quantize.precisions.mixed import choose_eight_bit_blocks
from matexport.export.quantize.sites import find_products, find_tables
from matexport.io.progress import Progress
from matexport.spec.facts import PrecisionFacts
from matexport.spec.profile import Point, Precision, Target

#: Precisions that need no weight matrices to work on, and no rows of what these are multiplied by.
WITHOUT_ROWS = frozenset({Precision.FP32, Precision.FP16})

Report = Callable[[int, int], None]
Kept = Mapping[str, Precision]


@dataclass(frozen=True)
class Material:
    """What precisions are made from.

    Attributes:
        traced: the graph in fp32, its weights on disk in the sample's folder; it is copied, not changed.
        points: of the job.
        sample: the calibration texts.
        source: what those texts are, for the manifest.
        rows: name of a product group, or of a map -> (n, K) float32 rows seen on the texts; empty where no precision
            needs them.
        target: what the graphs are written for.
        rounded: weights that were rounded to blocks, by all precisions so far: two may share them.
    """

    traced: Traced
    points: Sequence[Point]
    sample: Sample
    source: str
    rows: Mapping[str, Floats]
    target: Target = Target.ONNXRUNTIME
    rounded: Rounded = field(default_factory=dict)


def observe_products(
    precisions: Sequence[Precision], traced: Traced, sample: Sample, scratch: Path, progress: Report | None = None
) -> dict[str, Floats]:
    """What the weights of the blocks are multiplied by on the sample's items, if one of some precisions needs it.

    Args:
        scratch: for large files, removed by the caller.
        progress: called with (done, total) texts.

    Returns:
        name of a product group -> (n, K) float32 rows; and of each map that int8-static codes (see `maps`).

    Raises:
        RequestError: one of the precisions needs it, and the graph has no such products.
    """
    needing = [precision for precision in precisions if precision not in WITHOUT_ROWS]
    if not needing:
        return {}
    names = [group.name for group in find_products(traced)]
    static = Precision.INT8_STATIC in needing
    maps = [str(value.name) for value, origin in find_coded(traced).items() if value is origin] if static else []
    without = [precision for precision in needing if not (maps and precision is Precision.INT8_STATIC)]
    if not names and without:
        raise RequestError(
            f"{without[0]} was asked; nothing in the parent's blocks multiplies by a weight matrix in the form that "
            "is known (MatMul with the weight on the right): ask for fp32 or fp16"
        )
    rows = observe_rows(traced.model, names, sample, scratch, progress) if names else {}
    return rows | (observe_maps(traced.model, maps, sample, scratch, progress) if maps else {})


def make_precision(precision: Precision, material: Material, report: Progress) -> tuple[ir.Model, PrecisionFacts]:
    """The graph in one precision, spelt for the target, weights in memory, and what was decided on the way.

    Raises:
        RequestError: the graph does not allow this precision, or this target.
    """
    copy = material.traced.copy()
    kept = MAKERS[precision](copy, material, partial(report, f"quantize {precision}"))
    if material.target.is_standard:
        make_portable(copy.model, material.target)
    source = None if precision is Precision.FP32 else material.source
    return copy.model, PrecisionFacts(source, kept, find_least_runtime(copy.model))


def _make_fp32(_copy: Traced, _material: Material, _report: Report) -> Kept:
    return {}


def _make_fp16(copy: Traced, material: Material, _report: Report) -> Kept:
    kept = apply_half(copy, observe_peaks(material.traced.model, material.sample))
    return {_name_block(block): Precision.FP32 for block in kept}


def _make_int8(copy: Traced, material: Material, report: Report) -> Kept:
    apply_int8(copy, material.rows, report)
    return {}


def _make_int8_static(copy: Traced, material: Material, report: Report) -> Kept:
    apply_static_int8(copy, material.rows, report)
    return {}


def _make_q8(copy: Traced, material: Material, report: Report) -> Kept:
    eight = _list_blocks(copy)
    apply_blocks(copy, material.rows, four_bits=[], eight_bits=eight, rounded=material.rounded, progress=report)
    return {}


def _make_q4(copy: Traced, material: Material, report: Report) -> Kept:
    return _make_four_bits(copy, material, [], report)


def _make_four_bits(copy: Traced, material: Material, raised: Sequence[int], report: Report) -> Kept:
    """All blocks at 4 bits but those that are raised to 8.

    No standard operator looks rows of 4 bits up, so a portable graph has them at 8.
    """
    eight = {*raised, *([EMBEDDINGS] if material.target.is_standard else [])}
    four = [block for block in _list_blocks(copy) if block not in eight]
    apply_blocks(copy, material.rows, four_bits=four, eight_bits=eight, rounded=material.rounded, progress=report)
    tables = find_tables(material.traced)
    wide = tables and (EMBEDDINGS in eight or not all(map(fits_int4, tables)))
    kept = {_name_block(block): Precision.Q8 for block in raised}
    return ({_name_block(EMBEDDINGS): Precision.Q8} if wide else {}) | kept


def _make_q4_mixed(copy: Traced, material: Material, report: Report) -> Kept:
    eight = choose_eight_bit_blocks(
        material.traced, material.points, material.rows, material.sample, material.rounded, report
    )
    return _make_four_bits(copy, material, eight, report)


MAKERS: Mapping[Precision, Callable[[Traced, Material, Report], Kept]] = {
    Precision.FP32: _make_fp32,
    Precision.FP16: _make_fp16,
    Precision.INT8: _make_int8,
    Precision.INT8_STATIC: _make_int8_static,
    Precision.Q8: _make_q8,
    Precision.Q4: _make_q4,
    Precision.Q4_MIXED: _make_q4_mixed,
}


def _list_blocks(traced: Traced) -> list[int]:
    return [EMBEDDINGS, *range(1, len(traced.states))]


def _name_block(block: int) -> str:
    return f"block {block}" if block else "embeddings"
