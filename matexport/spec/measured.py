"""What was measured, and the host it belongs to: timings, scores. To look at them needs no numpy."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from enum import StrEnum

import msgspec

from matexport.spec.record import Record

#: The provider where none is asked for.
CPU = "cpu"

#: What a session may run on: the name used here -> onnxruntime's.
PROVIDERS: Mapping[str, str] = {
    CPU: "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}

#: The engine where none is asked for, and our own.
ONNXRUNTIME, NATIVE = "onnxruntime", "native"


class Arithmetic(StrEnum):
    """How an engine multiplies numbers that a graph has in float32: with all of their bits, or as bfloat16."""

    F32 = "f32"
    BF16 = "bf16"


#: What runs graphs -> how it multiplies. OpenVINO's own runtime takes bfloat16 by default where a CPU has it, and says
#: nothing; here that is a name of its own.
ENGINES: Mapping[str, Arithmetic] = {
    ONNXRUNTIME: Arithmetic.F32,
    NATIVE: Arithmetic.F32,
    "openvino": Arithmetic.F32,
    "openvino-bf16": Arithmetic.BF16,
    "tract": Arithmetic.F32,
    "opencv": Arithmetic.F32,
}


class Engine(Record, frozen=True):
    """What is asked to run graphs.

    Attributes:
        name: a key of `ENGINES`.
        provider: a key of `PROVIDERS`; of onnxruntime alone.
        threads: of each run; None leaves it to whoever takes an engine: all CPUs of this process.
    """

    name: str = ONNXRUNTIME
    provider: str = CPU
    threads: int | None = None

    @property
    def is_default(self) -> bool:
        """Whether it is what families are proven with: onnxruntime on the CPU."""
        return (self.name, self.provider) == (ONNXRUNTIME, CPU)

    @property
    def label(self) -> str:
        """What measurements are kept under: the provider of onnxruntime, or the engine."""
        return self.provider if self.name == ONNXRUNTIME else f"engine {self.name}"

    @property
    def arithmetic(self) -> Arithmetic:
        return ENGINES[self.name]

    def with_threads(self, threads: int | None) -> Engine:
        """The same engine with so many threads, where some are asked for."""
        return self if threads is None else Engine(self.name, self.provider, threads)


#: What runs graphs where nothing is asked for.
DEFAULT_ENGINE = Engine()

#: The labels of all engines: what a host's measurements may be kept under.
LABELS = (*PROVIDERS, *(Engine(name).label for name in ENGINES if name != ONNXRUNTIME))


class EngineFacts(Record, frozen=True):
    """An engine as it ran.

    Attributes:
        name, provider: as in `Engine`.
        version: of its package, such as ``2026.4.1``; of a plug-in provider, its own and onnxruntime's.
        device: what it says it ran on; empty where it does not say.
    """

    name: str
    provider: str
    version: str
    device: str = ""

    @property
    def summary(self) -> str:
        """Such as ``openvino-bf16 2026.4.1 on Intel(R) Xeon(R) Processor``."""
        provider = "" if self.name != ONNXRUNTIME else f", provider {self.provider}"
        return f"{self.name} {self.version}{provider}" + (f", on {self.device}" if self.device else "")


class Host(Record, frozen=True):
    """Where a number was measured. `cpus` is what this process may use, not what the machine has."""

    cpu: str
    machine: str
    instruction_sets: tuple[str, ...]
    cpus: int
    os: str
    python: str
    onnxruntime: str

    @property
    def slug(self) -> str:
        """A file name for this host's measurements."""
        parts = (self.machine, self.cpu, f"{self.cpus}cpu", f"ort{self.onnxruntime}")
        return "-".join(re.sub(r"[^a-z0-9.]+", "-", part.lower()).strip("-.") for part in parts)[:120]


class HostPattern(Record, frozen=True):
    """Which hosts are machines of one kind.

    Attributes:
        cpu: name of the processor, as `Host.cpu` has it.
        cpus: how many of them a process may use; one that was held to fewer ran on less than the machine.
        instruction_sets: that the host must have, of `KERNEL_FLAGS`.
    """

    cpu: str
    cpus: int
    instruction_sets: tuple[str, ...] = ()

    def matches(self, host: Host) -> bool:
        """Whether a host is one of them."""
        return (host.cpu, host.cpus) == (self.cpu, self.cpus) and {*self.instruction_sets} <= {*host.instruction_sets}


class Sample(Record, frozen=True):
    """A duration that was measured several times, in milliseconds.

    Attributes:
        runs: how often.
        low, high: the bootstrap's 95 % interval of the median.
    """

    runs: int
    p50: float
    p95: float
    low: float
    high: float


class Timing(Record, frozen=True):
    """One profile with one number of threads.

    Attributes:
        first_vector: process start to first vector.
        latency: "BATCHxTOKENS" -> one run of the graph.
        call: embedding one short text.
        tokenize, graph: what that takes for its tokens, and for the run of the graph.
        mix: embedding all texts of the mix.
        texts_per_s: throughput on the mix, from the median.
        peak_bytes: largest resident memory of a process that did all of this; None where the system does not say.
    """

    first_vector: Sample
    latency: Mapping[str, Sample]
    call: Sample
    tokenize: Sample
    graph: Sample
    mix: Sample
    texts_per_s: float
    peak_bytes: int | None

    @property
    def overhead(self) -> float:
        """The part of a call that is not the graph: tokens, checks and arrays."""
        return max(0.0, 1 - self.graph.p50 / self.call.p50)


class ProfileBench(Record, frozen=True):
    """One profile: its bytes, and its timings by number of threads.

    Attributes:
        disk_bytes: of all that is needed to run it: graph, prefix of the weights, tokenizer, configuration.
        download_bytes: of the graph and the prefix of the weights.
        runs, seconds: of each shape, as they were asked for.
        mix_texts, mix_sha256: number of texts of the mix, and the digest of all of them.
        parent: the parent in torch at this profile's point, timed in the same run, by number of threads; or nothing.
    """

    disk_bytes: int
    download_bytes: int
    runs: int
    seconds: float
    mix_texts: int
    mix_sha256: str
    threads: Mapping[int, Timing]
    parent: Mapping[int, Timing] = msgspec.field(default_factory=dict)


class Bench(Record, frozen=True):
    """What `matexport.measure.bench.bench_family` measured on one host with one engine, by profile.

    Attributes:
        provider: the engine's label; of onnxruntime, its provider.
        engine: what ran, with its version and device; None in timings of older versions.
    """

    host: Host
    provider: str
    profiles: Mapping[str, ProfileBench]
    engine: EngineFacts | None = None


class TaskKind(StrEnum):
    """How quality is measured. The first two need no labels: they compare a profile with the whole parent.

    ``similarity``: Spearman correlation of all pairwise similarities with the parent's. ``neighbours``: share of each
    text's 10 nearest texts that is the parent's. ``sts``: Spearman correlation of similarities with people's scores.
    ``retrieval``: nDCG@10 of the documents that are found for queries. ``knn``: accuracy of the labels that the nearest
    images say. ``accuracy``: of those that a classifier says.
    """

    SIMILARITY = "similarity"
    NEIGHBOURS = "neighbours"
    STS = "sts"
    RETRIEVAL = "retrieval"
    KNN = "knn"
    ACCURACY = "accuracy"

    @property
    def has_labels(self) -> bool:
        return self not in (TaskKind.SIMILARITY, TaskKind.NEIGHBOURS)


class Score(Record, frozen=True):
    """How one profile does on one task.

    Attributes:
        score: of the task's metric, at most 1.
        retention: score over the whole parent's; None where the family cannot say what that is.
        others: further metrics by name, such as ``recall@100``.
        resampled: what `resamples` reads: float32, little-endian, in JSON as base64; empty where the retention is not
            known, and in evaluations of older versions.
    """

    score: float
    retention: float | None
    others: Mapping[str, float] = msgspec.field(default_factory=dict)
    resampled: bytes = b""

    @property
    def resamples(self) -> tuple[float, ...]:
        """The retention in each resample of the task, the same resamples for every profile (`measure.bootstrap`).

        Empty where it is not known.
        """
        return read_resamples(self.resampled)


def read_resamples(resampled: bytes) -> tuple[float, ...]:
    """The numbers that `Score.resampled` holds; none if it was cut off."""
    count, rest = divmod(len(resampled), 4)
    return () if rest else struct.unpack(f"<{count}f", resampled)


class Adaptive(Record, frozen=True):
    """One adaptive retrieval: documents shortlisted by few dims, re-ranked by a profile's own.

    Attributes:
        profile: the one that re-ranks.
        shortlist_dim: leading dims that the shortlist is found by, at the same depth, precision and encoding.
        shortlist: documents on it.
        score: of the task's metric.
        recall: share of the 10 documents that the profile finds among all, which it finds on the shortlist.
        speedup: time of searching all documents by the profile, over this; both exact, in memory.
    """

    profile: str
    shortlist_dim: int
    shortlist: int
    score: float
    recall: float
    speedup: float


class TaskQuality(Record, frozen=True):
    """One task.

    Attributes:
        metric: name of the score, such as ``nDCG@10``.
        texts: how many were embedded for it.
        data_sha256: digest of what was measured on.
        parent: the whole parent's score; None where the family cannot say.
        profiles: by name.
        adaptive: searches in two steps, where they were asked for.
    """

    kind: TaskKind
    metric: str
    texts: int
    data_sha256: str
    parent: Score | None
    profiles: Mapping[str, Score]
    adaptive: tuple[Adaptive, ...] = ()


class Quality(Record, frozen=True):
    """What `matexport.measure.evaluate.evaluate_family` measured on one host, by the task's name.

    Attributes:
        provider: label of the engine that gave the vectors.
        engine: what ran, with its version and device; None in evaluations of older versions.
    """

    host: Host
    tasks: Mapping[str, TaskQuality]
    provider: str = CPU
    engine: EngineFacts | None = None
