"""A precision's name -> the traced graph in that precision. What is measured on texts is measured once for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx_ir as ir

from matexport.errors import RequestError
from matexport.export.graph.edit import Floats
from matexport.export.quantize.embeddings import fits_int4
from matexport.export.quantize.observe import observe_peaks, observe_rows, open_values
from matexport.export.quantize.precisions.blocks import EMBEDDINGS, Rounded, apply_blocks
from matexport.export.quantize.precisions.fp16 import apply_half
from matexport.export.quantize.precisions.int8 import apply_int8
from matexport.export.quantize.precisions.int8_static import apply_static_int8
from matexport.export.quantize.precisions.mixed import choose_eight_bit_blocks
from matexport.export.quantize.sites import find_products, find_tables
from matexport.io.progress import Progress
from matexport.runtime.inputs.text import Tokens
from matexport.spec.facts import PrecisionFacts, TextFacts
from matexport.spec.profile import Point, Precision


@dataclass(frozen=True)
class Calibration:
    """The texts that activations are measured on.

    Attributes:
        tokens: of each text, as the runtime makes them.
        source: what the texts are, for the manifest.
    """

    tokens: Sequence[Tokens]
    text: TextFacts
    source: str


@dataclass(frozen=True)
class Quantizer:
    """Makes precisions of one traced graph.

    Attributes:
        model: the graph in fp32, its weights on disk in `folder`; it is copied, not changed.
        states: names of the token states after 0, 1, ... N blocks.
        points: of the job.
        folder: where the weights lie; graphs to run are put beside them for a moment.
        scratch: for large files, removed by the caller.
    """

    model: ir.Model
    states: Sequence[str]
    points: Sequence[Point]
    calibration: Calibration
    folder: Path
    scratch: Path
    report: Progress
    _rounded: Rounded = field(default_factory=dict)

    def make(self, precision: Precision) -> tuple[ir.Model, PrecisionFacts]:
        """The graph in one precision, weights in memory, and what was decided on the way.

        Raises:
            RequestError: the graph does not allow this precision.
        """
        if precision not in (Precision.FP32, Precision.FP16) and not find_products(self.model, self.states):
            raise RequestError(
                f"{precision} was asked; nothing in the parent's blocks multiplies by a weight matrix in the form that "
                "is known (MatMul with the weight on the right): ask for fp32 or fp16"
            )
        model = self.model.clone()
        facts = PrecisionFacts(calibration=None if precision is Precision.FP32 else self.calibration.source)
        if precision is Precision.FP16:
            peaks = observe_peaks(self.model, self.calibration.tokens, self.calibration.text, self.folder)
            kept = apply_half(model, self.states, peaks)
            facts = PrecisionFacts(facts.calibration, {_name_block(block): Precision.FP32 for block in kept})
        elif precision is Precision.INT8:
            apply_int8(model, self.states, self._rows, self._progress(precision))
        elif precision is Precision.INT8_STATIC:
            apply_static_int8(model, self.states, self._rows, self._progress(precision))
        elif precision is Precision.Q8:
            self._apply_blocks(model, [], self._blocks, precision)
        elif precision is Precision.Q4:
            self._apply_blocks(model, self._blocks, [], precision)
            facts = PrecisionFacts(facts.calibration, self._describe_wide_tables())
        elif precision is Precision.Q4_MIXED:
            eight = choose_eight_bit_blocks(
                self.model,
                self.states,
                self.points,
                self._rows,
                self.calibration.tokens,
                self.calibration.text,
                self.folder,
                self._rounded,
                self._progress(precision),
            )
            self._apply_blocks(model, [block for block in self._blocks if block not in eight], eight, precision)
            raised = {_name_block(block): Precision.Q8 for block in eight}
            facts = PrecisionFacts(facts.calibration, self._describe_wide_tables() | raised)
        return model, facts

    def run_points(self) -> dict[Point, Floats]:
        """The fp32 graph's vectors for the calibration texts: point -> (n, dim)."""
        run = open_values(self.model, [point.name for point in self.points], self.calibration.text, self.folder)
        vectors: dict[Point, list[Floats]] = {point: [] for point in self.points}
        for row in self.calibration.tokens:
            for point, value in zip(self.points, run([row]), strict=True):
                vectors[point].append(value)
        return {point: np.concatenate(parts) for point, parts in vectors.items()}

    def _apply_blocks(self, model: ir.Model, four: Sequence[int], eight: Sequence[int], precision: Precision) -> None:
        apply_blocks(
            model,
            self.states,
            self._rows,
            four_bits=four,
            eight_bits=eight,
            rounded=self._rounded,
            progress=self._progress(precision),
        )

    def _describe_wide_tables(self) -> dict[str, Precision]:
        """Embeddings whose rows are no whole 4-bit blocks stay at 8 bits."""
        wide = not all(map(fits_int4, find_tables(self.model, self.states)))
        return {_name_block(EMBEDDINGS): Precision.Q8} if wide else {}

    @property
    def _blocks(self) -> list[int]:
        return [EMBEDDINGS, *range(1, len(self.states))]

    @cached_property
    def _rows(self) -> dict[str, Floats]:
        names = [site.name for site in find_products(self.model, self.states)]
        return observe_rows(
            self.model,
            names,
            self.calibration.tokens,
            self.calibration.text,
            self.folder,
            self.scratch,
            lambda done, total: self.report("calibrate", done, total),
        )

    def _progress(self, precision: Precision) -> Callable[[int, int], None]:
        return lambda done, total: self.report(f"quantize {precision}", done, total)


def _name_block(block: int) -> str:
    return f"block {block}" if block else "embeddings"
