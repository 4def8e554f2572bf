"""What is true of a family's bytes: the content of ``family.json``, record by record.

Facts only: nothing that was measured, no time, no absolute path, so that the same inputs give the same bytes. Data
only: nothing here reads, writes or computes on arrays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from matexport.spec.inputs import MODALITIES, ArrayFacts, ImageFacts, InputFacts, TextFacts
from matexport.spec.profile import Encoding, Point, Precision, Target
from matexport.spec.readout import Readout
from matexport.spec.record import Record
from matexport.spec.tolerance import Tolerance

#: Names of the axes of a graph's inputs, and of the one output of a text encoder's, as consumers expect them.
BATCH_AXIS = "batch_size"
SEQUENCE_AXIS = "sequence_length"
OUTPUT_NAME = "sentence_embedding"

#: The graph's input that says which tokens are pooled, where those of a prompt are not.
POOLING_MASK = "pooling_mask"


class ParentFacts(Record, frozen=True):
    """What the family came from.

    Attributes:
        weights: the parent's weight files -> their sha256.
        judge: what said, in a process of its own, what the parent's vectors are: ``sentence-transformers 6.2.0``. None
            for families that were made before there was one.
        unread: weights in those files that the parent's own library reads nothing from.
        license: what the parent's own model card calls its licence, such as ``apache-2.0``; None where it names none.
    """

    source: str
    architecture: str
    blocks: int
    width: int
    output_width: int
    dtype: str
    weights: Mapping[str, str]
    judge: str | None = None
    unread: tuple[str, ...] = ()
    license: str | None = None


class TraceFacts(Record, frozen=True):
    """How the graphs were made. `fallback` says why the TorchScript exporter had to be used, if it was."""

    exporter: str
    opset: int
    ir_version: int
    fallback: str | None = None


class ProfileFacts(Record, frozen=True):
    """One profile: its graph, the weights it points into, and how long a prefix of them it needs.

    Attributes:
        narrowed_nodes: operators that compute only the token that is read (token push-down); 0 where the read-out
            needs all tokens, or where the TorchScript exporter left no shapes to reason with.
        encoding: what the graph's output holds.
        weights_prefix_sha256: of that prefix, for whoever fetches no more; None where a family does not say.
    """

    layers: int
    dim: int
    precision: Precision
    graph: str
    weights: str
    weights_prefix_bytes: int
    narrowed_nodes: int = 0
    encoding: Encoding = Encoding.FLOAT32
    tokens: int = 0
    weights_prefix_sha256: str | None = None

    @property
    def point(self) -> Point:
        """Where the parent is read."""
        return Point(self.layers, self.dim, self.tokens)


class PrecisionFacts(Record, frozen=True):
    """What was decided when one precision was made, beyond its name.

    Attributes:
        calibration: what activations were measured on, as readable text.
        kept: what is held at a higher precision than the rest (``block 3``, or a matrix by name) -> that precision.
        onnxruntime: the least version that runs its graphs, such as ``1.22``; None where a family does not say.
    """

    calibration: str | None = None
    kept: Mapping[str, str] = msgspec.field(default_factory=dict)
    onnxruntime: str | None = None


class VocabularyFacts(Record, frozen=True):
    """What pruning the vocabulary did.

    Attributes:
        kept_by: the request, such as ``script:Latin`` or the name of the corpus' file.
        tokens: size of the vocabulary that is left.
        parent_tokens: size of the parent's.
        changed_probes: texts of the probes whose tokens are no longer the parent's. They are not compared with it, and
            are not in the family.
    """

    kept_by: str
    tokens: int
    parent_tokens: int
    changed_probes: tuple[str, ...] = ()


class FileFacts(Record, frozen=True):
    """Digest and size of one file of a family."""

    sha256: str
    bytes: int


class Provenance(Record, frozen=True):
    """What a family was made from.

    Attributes:
        inputs_sha256: covers the job, the parent's files, the probes and `versions`: same digest, same bytes.
        versions: package -> version.
        parts: what `inputs_sha256` covers, one by one -> the first 16 digits of its sha256, to say what differs.
    """

    inputs_sha256: str
    versions: Mapping[str, str]
    parts: Mapping[str, str] = msgspec.field(default_factory=dict)


class FamilyFacts(Record, frozen=True):
    """The content of ``family.json``. `profiles` and `files` are keyed by profile name and by file name.

    Attributes:
        precisions: what was decided when each was made.
        refused: profiles that were asked for and did not keep their floor -> how, and on which probe.
        instruction_sets: of the CPU on which parity was first measured, when the family was made.
        vocabulary: what pruning it did, if it was pruned.
        exits: precision -> a graph that gives the vectors of all its points in one run, each under the point's name; to
            evaluate a family in one pass. Its outputs are float32.
        trained: the points that the parent was trained to be read at; None where it is not known.
        copies: graph files for other consumers -> the profile whose graph they are; see `family.guard.copies`.
        text, array, image: what turns an item into the graph's inputs; exactly one of them (`MODALITIES`) is set.
        output: name of every profile's one output.
        target: what the graphs are written for.
    """

    schema: int
    parent: ParentFacts
    readout: Readout
    trace: TraceFacts
    tolerances: Mapping[Precision, Tolerance]
    profiles: Mapping[str, ProfileFacts]
    files: Mapping[str, FileFacts]
    provenance: Provenance
    precisions: Mapping[Precision, PrecisionFacts] = msgspec.field(default_factory=dict)
    refused: Mapping[str, str] = msgspec.field(default_factory=dict)
    instruction_sets: tuple[str, ...] = ()
    vocabulary: VocabularyFacts | None = None
    exits: Mapping[Precision, str] = msgspec.field(default_factory=dict)
    trained: tuple[Point, ...] | None = None
    copies: Mapping[str, str] = msgspec.field(default_factory=dict)
    text: TextFacts | None = None
    array: ArrayFacts | None = None
    image: ImageFacts | None = None
    output: str = OUTPUT_NAME
    target: Target = Target.ONNXRUNTIME

    @property
    def tiled(self) -> bool:
        """Whether items are cut into tiles, so that the graph runs more than once for each."""
        return self.image is not None and self.image.tiles is not None

    def graph_shape_at(self, point: Point) -> tuple[int, ...]:
        """Of what a graph gives for each of its batch at a point: (dim,), (classes,), or (tokens, dim)."""
        if self.readout.classes:
            return (self.readout.classes,)
        return (point.tokens, point.dim) if point.tokens else (point.dim,)

    def shape_at(self, point: Point) -> tuple[int, ...]:
        """Of what an item has at a point: what the graph gives; of tiles, the most tokens of an image, and dim."""
        if self.image is not None and self.image.tiles is not None:
            return (self.image.count_most_tokens(point.tokens), point.dim)
        return self.graph_shape_at(point)

    def width_at(self, point: Point) -> int:
        """How many numbers that are."""
        return math.prod(self.shape_at(point))

    @property
    def modality(self) -> str:
        """Which of `MODALITIES` it is."""
        return next(name for name in MODALITIES if getattr(self, name) is not None)

    @property
    def inputs(self) -> InputFacts:
        """What turns an item into the graph's inputs."""
        facts: InputFacts = getattr(self, self.modality)
        return facts
