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
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}


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
    """What `matexport.measure.bench.bench_family` measured on one host with one provider, by profile."""

    host: Host
    provider: str
    profiles: Mapping[str, ProfileBench]


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
    """What `matexport.measure.evaluate.evaluate_family` measured on one host, by the task's name."""

    host: Host
    tasks: Mapping[str, TaskQuality]
