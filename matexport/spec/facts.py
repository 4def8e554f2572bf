"""What is true of a family's bytes: the content of ``family.json``, record by record.

Facts only: nothing that was measured, no time, no absolute path, so that the same inputs give the same bytes. Data
only: nothing here reads, writes or computes on arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import ClassVar, TypeAlias

import msgspec

from matexport.spec.probe import Dtype
from matexport.spec.profile import Encoding, Point, Precision
from matexport.spec.readout import Readout
from matexport.spec.record import Record
from matexport.spec.tolerance import Tolerance

#: Names of the axes of a graph's inputs, and of the one output of a text encoder's, as consumers expect them.
BATCH_AXIS = "batch_size"
SEQUENCE_AXIS = "sequence_length"
OUTPUT_NAME = "sentence_embedding"

#: The graph's input that says which tokens are pooled, where those of a prompt are not.
POOLING_MASK = "pooling_mask"


class PaddingSide(StrEnum):
    """The side on which the parent's tokenizer pads a batch."""

    RIGHT = "right"
    LEFT = "left"


#: What a text may be to a parent that tells them apart, as sentence-transformers calls it.
TASKS = ("query", "document")


class TaskFacts(Record, frozen=True):
    """What the parent does with the texts of a task, where it tells queries from documents.

    Attributes:
        prompt: name of the prompt put before them; ``""`` for none, None for the default prompt.
        max_tokens: their own limit; None for that of all texts.
    """

    prompt: str | None = None
    max_tokens: int | None = None


class Frame(Record, frozen=True):
    """What a chat template puts around a text. `ending` are the token ids that a text which was cut ends in again."""

    before: str
    after: str
    ending: tuple[int, ...] = ()


class ChatFacts(Record, frozen=True):
    """A chat template, written out for each prompt.

    Attributes:
        frames: name of a prompt -> what stands around a text; under ``""`` what does without a prompt.
        strips: where white space is taken off a text first: ``left``, ``right``, ``both``, or ``""`` for nowhere.
    """

    frames: Mapping[str, Frame]
    strips: str = ""


#: `TextFacts.max_tokens` of a parent that takes texts of any length: the largest that the tokenizers library counts to.
NO_LIMIT = (1 << 31) - 1


class TextFacts(Record, frozen=True):
    """What turns a text into the graph's inputs.

    Attributes:
        inputs: names of the graph's inputs, each (batch_size, sequence_length) int64.
        max_tokens: longer token sequences are cut, special tokens counted; `NO_LIMIT` where none are.
        padding_side: the parent's own; every graph takes right padding too.
        prompts: name -> text put before the input; it may be empty.
        default_prompt: name of the prompt used when none is asked for.
        cuts: the side on which a text that is too long loses tokens.
        special_tokens: whether the tokenizer adds its special tokens.
        tasks: some of `TASKS`, where the parent treats them otherwise than other texts.
        chat: the parent's chat template, if its texts go through one. The prompt is then inside of the frame.
        route: of a parent that routes its texts; a task that is not among `tasks` takes another route.
        unpooled: name of a prompt -> how many leading tokens are left out of the pooling with it. None where the
            parent pools its prompts; else the graph has an input ``pooling_mask``.
    """

    inputs: tuple[str, ...]
    max_tokens: int
    padding_side: PaddingSide
    pad_token_id: int
    prompts: Mapping[str, str]
    default_prompt: str | None = None
    cuts: PaddingSide = PaddingSide.RIGHT
    special_tokens: bool = True
    tasks: Mapping[str, TaskFacts] = msgspec.field(default_factory=dict)
    chat: ChatFacts | None = None
    route: str | None = None
    unpooled: Mapping[str, int] | None = None

    #: What one vector is of, in words.
    noun: ClassVar[str] = "text"

    @property
    def longest(self) -> int:
        """The largest size (tokens) of what one vector is of."""
        return self.max_tokens

    def describe(self) -> str:
        """What is taken, in words."""
        if self.max_tokens == NO_LIMIT:
            return "texts of any length"
        return f"up to {self.max_tokens} tokens" + (", the last ones" if self.cuts is PaddingSide.LEFT else "")


class ArrayFacts(Record, frozen=True):
    """A graph that takes arrays as they are: features that something else computed, or pixels.

    Attributes:
        input: name of the graph's one input, (batch_size, *shape).
        shape: of what one vector is of.
    """

    input: str
    shape: tuple[int, ...]
    dtype: Dtype = Dtype.FLOAT32

    noun: ClassVar[str] = "array"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the graph's inputs."""
        return (self.input,)

    @property
    def longest(self) -> int:
        """All arrays have one size."""
        return 1

    def describe(self) -> str:
        """What is taken, in words."""
        return f"{self.dtype} of shape ({', '.join(map(str, self.shape))})"


#: What turns an item into a graph's inputs: one record for each modality.
InputFacts: TypeAlias = TextFacts | ArrayFacts

#: The fields of `FamilyFacts` of which a family has exactly one.
MODALITIES = ("text", "array")


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

    @property
    def point(self) -> Point:
        """Where the parent is read."""
        return Point(self.layers, self.dim, self.tokens)


class PrecisionFacts(Record, frozen=True):
    """What was decided when one precision was made, beyond its name.

    Attributes:
        calibration: what activations were measured on, as readable text.
        kept: what is held at a higher precision than the rest (``block 3``, or a matrix by name) -> that precision.
    """

    calibration: str | None = None
    kept: Mapping[str, str] = msgspec.field(default_factory=dict)


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
        text, array: what turns an item into the graph's inputs; exactly one of them (`MODALITIES`) is set.
        output: name of every profile's one output.
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
    text: TextFacts | None = None
    array: ArrayFacts | None = None
    output: str = OUTPUT_NAME

    @property
    def modality(self) -> str:
        """Which of `MODALITIES` it is."""
        return next(name for name in MODALITIES if getattr(self, name) is not None)

    @property
    def inputs(self) -> InputFacts:
        """What turns an item into the graph's inputs."""
        facts: InputFacts = getattr(self, self.modality)
        return facts
