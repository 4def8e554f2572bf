"""What is asked: a parent, its points and precisions, and how it is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from matexport.spec.profile import Encoding, Point, Precision, Profile, Target
from matexport.spec.readout import ReadoutRequest
from matexport.spec.record import Record
from matexport.spec.tolerance import Tolerance

#: The kind of a parent that embeds texts.
TEXT = "text"

#: The kind of a parent with two towers, of which `export.export_towers` makes two families.
TWO_TOWERS = "two-towers"


class ParentSource(Record, frozen=True):
    """Which parent a job asks for.

    Attributes:
        source: a local directory, a hub id, or ``package:NAME/path`` for files inside an installed package.
        revision: the commit, tag or branch of a hub id.
        sha256: hex digest that the parent's one safetensors file must have, or file name -> digest when the
            weights are in several files.
        allow_pickle: read pickled weights when there are no safetensors ones. Pickles can run code.
        trust_remote_code: let transformers and sentence-transformers run Python code that comes with the parent.
        route: which route of a parent whose texts are routed (sentence-transformers' Router, formerly Asym).
        kind: what the parent is, a key of `export.kinds.kind.KINDS`, or `TWO_TOWERS`.
    """

    source: str
    revision: str | None = None
    sha256: str | Mapping[str, str] | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
    route: str | None = None
    kind: str = TEXT


class ExportJob(Record, frozen=True):
    """Everything that decides what a family contains.

    Attributes:
        name: what the family is called when nothing else is said; a job file's name.
        base: directory against which a relative `parent.source` and `probes` are read.
        probes: a JSON Lines file that replaces the shipped probes.
        calibration: a file of the texts that ranges are measured on, one per line.
        vocabulary: keep only the tokens of a text file (a path), or those written in some scripts
            (``script:Latin,Cyrillic``); None keeps all.
        preprocess_in_graph: of a parent that takes images: its graphs take uint8 pixels of any size, and resize, cut
            and normalise them themselves.
        trained: the points that the parent was trained to be read at; None where nobody says.
        target: what the graphs are written for.
        text_layers: of a model with two towers, after how many blocks of its text tower to read, for each number of
            blocks of its image tower; empty where both are read after as many.
    """

    parent: ParentSource
    points: tuple[Point, ...]
    readout: ReadoutRequest = msgspec.field(default_factory=ReadoutRequest)
    precisions: tuple[Precision, ...] = (Precision.FP32,)
    encodings: tuple[Encoding, ...] = (Encoding.FLOAT32,)
    probes: Path | None = None
    calibration: Path | None = None
    vocabulary: str | None = None
    preprocess_in_graph: bool = False
    target: Target = Target.ONNXRUNTIME
    trained: tuple[Point, ...] | None = None
    text_layers: Mapping[int, int] = msgspec.field(default_factory=dict)
    tolerances: Mapping[Precision, Tolerance] = msgspec.field(default_factory=dict)
    base: Path = msgspec.field(default_factory=Path)
    name: str = "family"

    @property
    def destination(self) -> Path:
        """Where its family lies when nothing else is said."""
        return Path("artifacts", self.name)

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """Every profile that is asked for."""
        return tuple(
            Profile(point, precision, encoding)
            for precision in self.precisions
            for point in self.points
            for encoding in self.encodings
        )
