"""What the pipeline knows of a parent, whatever its kind: what is planned, what is traced, and its own vectors.

A kind of parent (`export.kinds`) fills these records; nothing that reads them knows which kind it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from matexport.spec.facts import OUTPUT_NAME, ParentFacts, VocabularyFacts
from matexport.spec.inputs import InputFacts
from matexport.spec.job import ExportJob
from matexport.spec.probe import AnyProbe
from matexport.spec.profile import Point
from matexport.spec.readout import Readout

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Calibration:
    """What weights are rounded and ranges are measured on, and what it is, for the manifest. None of it is a probe."""

    items: tuple[AnyProbe, ...] = ()
    source: str = "none"


@dataclass(frozen=True)
class Plan:
    """What is known of a parent before its weights are loaded.

    Attributes:
        parent, readout, output, vocabulary: as the family's manifest says them.
        inputs: what the traced module takes; as the manifest says it, where nothing else is shipped.
        shipped: what the family's graphs take, where a part of the preparation goes into them.
        probes: what every profile is compared with the parent on.
        made_from: what else decides a family's bytes, by name; plain data, which goes into its digest.
        own_dims: the parent's module is read at each dim on its own, and not once at full width.
        details: what the kind needs for its later stages; nobody else looks at it.
    """

    job: ExportJob
    parent: ParentFacts
    readout: Readout
    inputs: InputFacts
    probes: tuple[AnyProbe, ...]
    calibration: Calibration = Calibration()
    output: str = OUTPUT_NAME
    vocabulary: VocabularyFacts | None = None
    made_from: Mapping[str, object] = field(default_factory=dict)
    own_dims: bool = False
    details: Any = None
    shipped: InputFacts | None = None

    @property
    def shipped_inputs(self) -> InputFacts:
        """What the family's graphs take, as the manifest says it."""
        return self.shipped or self.inputs


@dataclass(frozen=True)
class Example:
    """What a parent's module is traced on.

    Attributes:
        tensors: the module's arguments by the names of the graph's inputs, in order. More than one row, since exporters
            freeze axes of length 1.
        axes: which axes of every input may have any length, and their names.
        own_classes: classes of the parent's own in the module, which nobody here has read: what an exporter freezes of
            their decisions is refused.
    """

    tensors: Mapping[str, torch.Tensor]
    axes: Mapping[int, str]
    own_classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reference:
    """The parent's own vectors of the probes.

    Attributes:
        points: for each point of the job, (len(probes), dim) float32, scaled where the read-out says so.
        rows: what stands beside them in the proof: what the parent's own preprocessing makes of the probes.
        judge: what said, in a process of its own, that these are the vectors; None where nothing did.
        unread: weights in the parent's files that its own library reads nothing from.
    """

    points: Mapping[Point, NDArray[np.float32]]
    rows: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    judge: str | None = None
    unread: tuple[str, ...] = ()
