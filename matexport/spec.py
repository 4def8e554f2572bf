"""The nouns of matexport as frozen records. Data only: nothing here reads, writes or computes on arrays.

A `Point` is where a parent is read: after `layers` blocks, the leading `dim` coordinates. A `Profile` is a point
at a `Precision`; its name (``L02-D064-fp32``) is what one builds, ships and picks. A `Readout` says how token
states become a vector and is never inferred silently: it is stated by the parent's own files or by the job.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

import msgspec

#: Names of the axes of every graph's inputs, and of its one output, as consumers expect them.
BATCH_AXIS = "batch_size"
SEQUENCE_AXIS = "sequence_length"
OUTPUT_NAME = "sentence_embedding"


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of what is read from a file or named in one. As a dataclass each would take 1 ms of a cold start to define.

    `msgspec.structs.replace` changes a copy. `records.read_record` reads one, and refuses what it does not have.
    """


class PoolingMode(StrEnum):
    """How sentence-transformers' Pooling module turns (B, T, H) token states into (B, H)."""

    CLS = "cls"
    MEAN = "mean"
    MAX = "max"
    MEAN_SQRT_LEN = "mean_sqrt_len_tokens"
    WEIGHTED_MEAN = "weightedmean"
    LAST_TOKEN = "lasttoken"


class FinalNorm(StrEnum):
    """What happens to the parent's final normalisation at an exit before the last block.

    ``keep`` applies it to the intermediate state, as cutting the layers of the module does; ``drop`` reads the raw
    residual stream, as `hidden_states[k]` does; ``absent``: the parent is post-norm and has none. The exit at full
    depth is the parent's own output in each case.
    """

    KEEP = "keep"
    DROP = "drop"
    ABSENT = "absent"


class Precision(StrEnum):
    """How the weights (and the arithmetic) of a sub-model are stored.

    ``fp16``: half precision, the read-out and whatever would overflow in fp32. ``int8``: integer products, one
    activation scale per token, for CPUs. ``int8-static``: QuantizeLinear/DequantizeLinear pairs with calibrated scales.
    ``q8``, ``q4``: weights in blocks, arithmetic in fp32. ``q4-mixed``: q4, but q8 where 4 bits cost most.
    """

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    INT8_STATIC = "int8-static"
    Q8 = "q8"
    Q4 = "q4"
    Q4_MIXED = "q4-mixed"


class Encoding(StrEnum):
    """What a graph's output holds.

    ``float32``: (B, dim). ``int8``: (B, dim) codes between stored ranges. ``ubinary``: (B, ceil(dim / 8)) uint8, one
    bit per coordinate. Both as sentence-transformers' `quantize_embeddings` makes them from the float32 vectors.
    """

    FLOAT32 = "float32"
    INT8 = "int8"
    UBINARY = "ubinary"

    def width(self, dim: int) -> int:
        """Columns of the output for vectors of `dim` coordinates."""
        return -(-dim // 8) if self is Encoding.UBINARY else dim


class PaddingSide(StrEnum):
    """The side on which the parent's tokenizer pads a batch."""

    RIGHT = "right"
    LEFT = "left"


class Point(Record, frozen=True, order=True):
    """Where a parent is read.

    Attributes:
        layers: number of transformer blocks run, 1 to N; the index into ``hidden_states``.
        dim: number of leading coordinates kept.
    """

    layers: int
    dim: int

    @property
    def name(self) -> str:
        return f"L{self.layers:02d}-D{self.dim:03d}"


_PRECISIONS = "|".join(sorted(Precision, key=len, reverse=True))
_ENCODINGS = "|".join(encoding for encoding in Encoding if encoding is not Encoding.FLOAT32)
_PROFILE_NAME = re.compile(rf"L(\d{{2,}})-D(\d{{3,}})-({_PRECISIONS})(?:-({_ENCODINGS}))?")


class Profile(Record, frozen=True, order=True):
    """A point at a precision, and what its output holds: one sub-model of a family."""

    point: Point
    precision: Precision
    encoding: Encoding = Encoding.FLOAT32

    @property
    def name(self) -> str:
        return "-".join((self.point.name, self.precision, *self._suffix))

    @property
    def graph_file(self) -> str:
        return ".".join((self.point.name, self.precision, *self._suffix, "onnx"))

    @property
    def _suffix(self) -> tuple[str, ...]:
        return () if self.encoding is Encoding.FLOAT32 else (self.encoding,)

    @classmethod
    def parse(cls, name: str) -> Profile:
        """Read a name such as ``L02-D064-fp32`` or ``L02-D064-int8-ubinary``; raises ValueError when it is none."""
        match = _PROFILE_NAME.fullmatch(name)
        if not match:
            raise ValueError(f"{name!r} is not a profile name such as L02-D064-fp32 or L02-D064-int8-ubinary")
        return cls(Point(int(match[1]), int(match[2])), Precision(match[3]), Encoding(match[4] or Encoding.FLOAT32))


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
    """

    source: str
    revision: str | None = None
    sha256: str | Mapping[str, str] | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
    route: str | None = None


class ReadoutRequest(Record, frozen=True):
    """What a job says about the read-out; None leaves it to the parent's own files.

    Attributes:
        pooling: one mode, or several to be concatenated. Needed for a parent without ``modules.json``.
        final_norm: needed for a pre-norm parent that is read before its last block.
        normalize: scale each vector to unit length after it has been cut to ``dim``.
        max_tokens: a limit below the parent's own ``max_seq_length``.
    """

    pooling: PoolingMode | tuple[PoolingMode, ...] | None = None
    final_norm: FinalNorm | None = None
    normalize: bool = True
    max_tokens: int | None = None


class Tolerance(Record, frozen=True):
    """How far a sub-model may be from the parent, in the numbers of `matexport.parity.Parity`; None is not held.

    Attributes:
        max_abs: at most, every coordinate of every probe.
        cosine_mean: at least, the mean over the probes.
        cosine_min: at least, the worst probe.
        spread: at most, the largest difference of a coordinate between the ways of running: batched or alone, with
            padding or without.
    """

    max_abs: float | None = None
    cosine_mean: float | None = None
    cosine_min: float | None = None
    spread: float | None = None


class Budget(Record, frozen=True):
    """What a device allows, and how good a profile must be; None is no limit. MB are 10^6 bytes.

    Attributes:
        max_latency_ms: of one short text, or of the shape that is asked for.
        max_disk_mb: of all that is needed to run the profile.
        max_ram_mb: of the largest resident memory of a process that runs it.
        max_cold_start_ms: from the start of the process to the first vector.
        min_retention: share of the whole parent's quality.

    Raises:
        ValueError: a limit is not a finite number above 0, or `min_retention` is above 1.
    """

    max_latency_ms: float | None = None
    max_disk_mb: float | None = None
    max_ram_mb: float | None = None
    max_cold_start_ms: float | None = None
    min_retention: float | None = None

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            limit = getattr(self, name)
            if limit is not None and not 0 < limit < math.inf:
                raise ValueError(f"{name} = {limit:g} was asked; a limit is a finite number above 0")
        if self.min_retention is not None and self.min_retention > 1:
            raise ValueError(f"min_retention = {self.min_retention:g} was asked; it is a share of 1, such as 0.95")


class ExportJob(Record, frozen=True):
    """Everything that decides what a family contains.

    Attributes:
        name: what the family is called when nothing else is said; a profile's file name.
        base: directory against which a relative `parent.source` and `probes` are read.
        probes: a JSON Lines file that replaces the shipped probes.
        calibration: a file of the texts that ranges are measured on, one per line.
        vocabulary: keep only the tokens of a text file (a path), or those written in some scripts
            (``script:Latin,Cyrillic``); None keeps all.
        trained: the points that the parent was trained to be read at; None where nobody says.
    """

    parent: ParentSource
    points: tuple[Point, ...]
    readout: ReadoutRequest = msgspec.field(default_factory=ReadoutRequest)
    precisions: tuple[Precision, ...] = (Precision.FP32,)
    encodings: tuple[Encoding, ...] = (Encoding.FLOAT32,)
    probes: Path | None = None
    calibration: Path | None = None
    vocabulary: str | None = None
    trained: tuple[Point, ...] | None = None
    tolerances: Mapping[Precision, Tolerance] = msgspec.field(default_factory=dict)
    base: Path = msgspec.field(default_factory=Path)
    name: str = "family"

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """Every profile that is asked for."""
        return tuple(
            Profile(point, precision, encoding)
            for precision in self.precisions
            for point in self.points
            for encoding in self.encodings
        )


class Probe(Record, frozen=True):
    """An input kept with a family.

    Attributes:
        prompt: name of one of the parent's prompts, put before `text`.
        task: ``query`` or ``document``: as sentence-transformers' `encode_query` and `encode_document` read it.
    """

    text: str
    prompt: str | None = None
    task: str | None = None


class Readout(Record, frozen=True):
    """How token states become a vector, in this order.

    Attributes:
        final_norm: see `FinalNorm`.
        pooling: modes whose results are concatenated.
        heads: the parent's own modules after pooling, at full width (``Dense(384->128, Tanh)``, ``LayerNorm(128)``,
            ``Normalize``), as readable text.
        normalize: L2 after the vector has been cut to the profile's dim.
    """

    final_norm: FinalNorm
    pooling: tuple[PoolingMode, ...]
    heads: tuple[str, ...]
    normalize: bool


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
        tasks: ``query`` and ``document``, where the parent treats them otherwise than other texts.
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

    def describe_limit(self) -> str:
        """The limit in words."""
        if self.max_tokens == NO_LIMIT:
            return "texts of any length"
        return f"up to {self.max_tokens} tokens" + (", the last ones" if self.cuts is PaddingSide.LEFT else "")


class ParentFacts(Record, frozen=True):
    """What the family came from.

    Attributes:
        weights: the parent's weight files -> their sha256.
        judge: what said, in a process of its own, what the parent's vectors are: ``sentence-transformers 6.2.0``. None
            for families that were made before there was one.
        unread: weights in those files that the parent's own library reads nothing from.
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
    """`inputs_sha256` covers the job, the parent's files, the probes and `versions`: same digest, same bytes."""

    inputs_sha256: str
    versions: Mapping[str, str]


#: What a session may run on: the name used here -> onnxruntime's.
CPU = "cpu"
PROVIDERS: Mapping[str, str] = {
    CPU: "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}
