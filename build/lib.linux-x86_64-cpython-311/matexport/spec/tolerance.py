"""How far vectors may be off: `Tolerance`, and the `FLOORS` of each precision.

A floor is a number with a source and a date. What is asked may tighten it and never loosen it. The numbers that are
held to it are `spec.parity`'s.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping

from matexport.spec.measured import Arithmetic
from matexport.spec.profile import Precision
from matexport.spec.record import Record


class Tolerance(Record, frozen=True):
    """How far a sub-model may be from the parent, in the numbers of `Parity`; None is not held.

    Attributes:
        max_abs: at most, every coordinate of every probe.
        cosine_mean: at least, the mean over the probes.
        cosine_min: at least, the worst probe.
        spread: at most, the largest difference of a coordinate between a text alone and in a batch, padded on the
            right.
    """

    max_abs: float | None = None
    cosine_mean: float | None = None
    cosine_min: float | None = None
    spread: float | None = None


#: Parity floor of each precision, for every exit, batched, padded and alone. A job may tighten it.
#:
#: `max_abs` is absolute where a coordinate stays within 1 (as in unit vectors), otherwise in units of its largest value
#: among the probes. What the small precisions cost depends on the parent, so they are held by cosine; "seen" are the
#: worst mean and the least of 30 points of all-MiniLM-L6-v2 on the shipped probes, with the shipped calibration texts
#: or with 512 sentences of STS-B, whichever was worse (2026-11-21). `spread` is what a text may owe to its batch.
FLOORS: Mapping[Precision, Tolerance] = {
    # Ten times the 1e-6 that two orders of summation in 24 layers were seen to give; optimum validates at 1e-5, too.
    Precision.FP32: Tolerance(max_abs=1e-5),
    # 0.999999 was seen; 11 bits of every product leave room for deeper parents.
    Precision.FP16: Tolerance(cosine_mean=0.9999, cosine_min=0.999),
    # Above what other exporters' dynamic presets reached at their best, on sentences of STS-B: 0.992 and 0.973
    # (benchmarks/results/precisions.json). 0.9988 and 0.9955 were seen. And a text is itself in any batch.
    Precision.INT8: Tolerance(cosine_mean=0.993, cosine_min=0.975, spread=1e-6),
    # 0.983 and 0.960 were seen: one scale per value is the coarsest of all.
    Precision.INT8_STATIC: Tolerance(cosine_mean=0.95, cosine_min=0.85, spread=1e-5),
    # 0.9994 and 0.9978 were seen.
    Precision.Q8: Tolerance(cosine_mean=0.999, cosine_min=0.997, spread=1e-5),
    # 0.979 and 0.934 were seen.
    Precision.Q4: Tolerance(cosine_mean=0.93, cosine_min=0.85, spread=1e-5),
    # 0.985 and 0.945 were seen.
    Precision.Q4_MIXED: Tolerance(cosine_mean=0.97, cosine_min=0.92, spread=1e-5),
}


#: What an engine may be off from onnxruntime on the CPU on the same graph, by how it multiplies; for every exit, in
#: every way of running. `max_abs` is scaled as in `FLOORS`, and is of six layers: see `find_engine_floor`.
#:
#: "Seen" are the largest difference and the least cosine of all-MiniLM-L6-v2 at two and six layers, dims 64 and 384, 12
#: texts, in the engines of docs/engines.md and those that were tried beside them (tract, nxrt, IREE, OpenCV, TVM,
#: onnxruntime-web; 2026-11-27). A code that flips on the last bit before it is rounded moves a whole vector, so what
#: is quantized is held by cosine. What a text owes to its batch (`spread`) is more there, since only onnxruntime's CPU
#: sums in the same order in any batch: where it was not looked at itself, twice the largest difference that was seen,
#: as alone and in a batch a vector may be so far off to either side.
ENGINE_FLOORS: Mapping[Arithmetic, Mapping[Precision, Tolerance]] = {
    Arithmetic.F32: {
        # 4e-7 was seen.
        Precision.FP32: Tolerance(max_abs=1e-6),
        # 4e-4 was seen.
        Precision.FP16: Tolerance(max_abs=5e-4),
        # 0.9985 was seen, and a spread of 4.4e-3 (OpenVINO 2026.4.1, the shipped probes, 2026-11-28).
        Precision.INT8: Tolerance(cosine_min=0.998, spread=1e-2),
        # 0.9946 was seen, in WebAssembly, and a difference of 2e-2.
        Precision.INT8_STATIC: Tolerance(cosine_min=0.994, spread=4e-2),
        # 0.9991 and 0.9992 were seen, and differences of 5e-3 and 7e-3.
        Precision.Q8: Tolerance(cosine_min=0.999, spread=1.5e-2),
        Precision.Q4: Tolerance(cosine_min=0.999, spread=1.5e-2),
        Precision.Q4_MIXED: Tolerance(cosine_min=0.999, spread=1.5e-2),
    },
    # Of OpenVINO, which makes bfloat16 of what a graph has in float32.
    Arithmetic.BF16: {
        # 0.99997 was seen, and 0.99998 of two layers of width 32.
        Precision.FP32: Tolerance(cosine_mean=0.9999, cosine_min=0.9999),
        Precision.FP16: Tolerance(cosine_mean=0.9999, cosine_min=0.9999),
        # 0.9983 was seen, and a difference of 1e-2.
        Precision.INT8: Tolerance(cosine_mean=0.998, cosine_min=0.997, spread=2e-2),
        # 0.982 was seen, and a difference of 4e-2.
        Precision.INT8_STATIC: Tolerance(cosine_mean=0.98, cosine_min=0.975, spread=8e-2),
        # 0.9993 and 0.9995 were seen, and differences of 6e-3 and 5e-3.
        Precision.Q8: Tolerance(cosine_mean=0.999, cosine_min=0.999, spread=1.2e-2),
        Precision.Q4: Tolerance(cosine_mean=0.999, cosine_min=0.999, spread=1.2e-2),
        Precision.Q4_MIXED: Tolerance(cosine_mean=0.999, cosine_min=0.999, spread=1.2e-2),
    },
}

#: Layers of the model that `ENGINE_FLOORS` were measured on.
FLOOR_LAYERS = 6


def find_engine_floor(arithmetic: Arithmetic, precision: Precision, layers: int) -> Tolerance:
    """What an engine may be off from onnxruntime on the CPU at a profile of so many layers.

    Rounding adds up from layer to layer, at most in proportion to their number: so does what `max_abs` allows.
    """
    floor = ENGINE_FLOORS[arithmetic][precision]
    if floor.max_abs is None:
        return floor
    return Tolerance(floor.max_abs * max(1.0, layers / FLOOR_LAYERS), floor.cosine_mean, floor.cosine_min, floor.spread)


def tighten(asked: Tolerance, floor: Tolerance) -> Tolerance:
    """The tighter of the two, number by number: what is asked cannot loosen the floor."""

    def choose(mine: float | None, theirs: float | None, tighter: Callable[[float, float], bool]) -> float | None:
        if mine is None or theirs is None:
            return theirs if mine is None else mine
        return mine if tighter(mine, theirs) else theirs  # False for NaN: the floor stays

    return Tolerance(
        max_abs=choose(asked.max_abs, floor.max_abs, operator.le),
        cosine_mean=choose(asked.cosine_mean, floor.cosine_mean, operator.ge),
        cosine_min=choose(asked.cosine_min, floor.cosine_min, operator.ge),
        spread=choose(asked.spread, floor.spread, operator.le),
    )
