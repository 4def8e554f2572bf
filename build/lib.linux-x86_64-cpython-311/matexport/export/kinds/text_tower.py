"""The text towers of CLIP and SigLIP, as transformers loads them. The six functions of their kind.

A parent is the folder of a model with two towers, or of its text tower alone. Tokens are those of its own
``tokenizer.json``, held to what transformers' tokenizer gives for every probe (`reference`).

Whatever needs torch is imported inside of the functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matexport.errors import ParentError, RequestError
from matexport.export.kinds import image
from matexport.export.kinds.text import EXAMPLE_SHAPE
from matexport.export.parents.plan import Calibration, Example, Plan, Reference
from matexport.family.token_rows import pack_token_rows
from matexport.io.progress import Progress
from matexport.spec.facts import BATCH_AXIS, SEQUENCE_AXIS, ParentFacts
from matexport.spec.inputs import TextFacts
from matexport.spec.job import ExportJob
from matexport.spec.probe import Probe
from matexport.spec.profile import Encoding, Point, Precision
from matexport.spec.readout import FinalNorm, PoolingMode, Readout

if TYPE_CHECKING:
    from torch import nn

    from matexport.export.judge.images import TextTowerJudge
    from matexport.export.parents.vision.text_tower import TextTower

#: Name of the one output of a text tower's graphs.
OUTPUT = "text_embedding"

#: What a family keeps of its parent's folder.
FILES = ("tokenizer.json", "config.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class Begun:
    """A parent's folder, and its judge."""

    root: Path
    judge: TextTowerJudge


@dataclass(frozen=True)
class Details:
    """What is known of a planned tower beyond `Plan`."""

    begun: Begun
    tower: TextTower
    tokens: int


@contextmanager
def begin(job: ExportJob, _out: Path) -> Iterator[Begun]:
    """Find the parent's folder; its judge is started when all was accepted."""
    from matexport.export.judge.images import TextTowerJudge
    from matexport.export.parents.folder.source import locate_parent

    root = locate_parent(job.parent, job.base)
    with TextTowerJudge(root, job.parent.source) as judge:
        yield Begun(root, judge)


def plan(job: ExportJob, begun: Begun) -> Plan:
    """Settle the read-out, and the texts that the family is proven and calibrated on.

    Raises:
        RequestError: a point is outside the parent, or something was asked that its texts do not have.
        ParentError: the parent cannot be read, is not the pinned one, or is of a kind that is not known.
    """
    from matexport.export.parents.folder.model_card import read_license
    from matexport.export.parents.folder.source import pin_weights
    from matexport.export.parents.vision.text_tower import describe_text, find_text_tower
    from matexport.export.parents.vision.towers import read_config
    from matexport.io.jobs import check_points

    source = job.parent.source
    _refuse_other_requests(job)
    tower, config = find_text_tower(read_config(begun.root, source), source)
    facts = describe_text(begun.root, tower, config, job.readout.max_tokens, source)
    blocks, width = int(config.num_hidden_layers), tower.output_width(config)
    check_points(job.points, blocks, width, source)
    check_points(job.trained or (), blocks, width, source, "[trained]: ")
    probes, calibration = _choose_texts(job)
    parent = ParentFacts(
        source=source,
        architecture=tower.model,
        blocks=blocks,
        width=int(config.hidden_size),
        output_width=width,
        dtype=str(getattr(config, "dtype", None) or "float32").removeprefix("torch."),
        weights=pin_weights(begun.root, job.parent, job.base),
        license=read_license(begun.root),
    )
    norm = job.readout.final_norm or FinalNorm.KEEP
    readout = Readout(norm, (PoolingMode.POOLER,), (), job.readout.normalize)
    details = Details(begun, tower, int(config.vocab_size))
    return Plan(job, parent, readout, facts, probes, calibration, OUTPUT, details=details)


def load(plan: Plan, report: Progress) -> Any:
    """transformers' model of the tower, in float32 and eval mode.

    Raises:
        ParentError: it cannot be loaded, or lacks weights that are read.
    """
    from matexport.export.parents.vision.towers import load_tower

    details: Details = plan.details
    report("load", 0, 1)
    details.begun.judge.start()
    model = load_tower(details.begun.root, details.tower.model, plan.job.parent.source)
    report("load", 1, 1)
    return model


def runtime_files(plan: Plan) -> Mapping[str, bytes]:
    """The tokenizer, and the parent's own configuration for other consumers."""
    root = plan.details.begun.root
    return {name: (root / name).read_bytes() for name in FILES if (root / name).is_file()}


def reference(plan: Plan, _model: Any, report: Progress) -> Reference:
    """What transformers makes of the probes.

    Raises:
        ParentError: its tokens are not those that the family's tokenizer gives, or a vector is not finite.
    """
    details: Details = plan.details
    depths = sorted({point.layers for point in plan.job.points})
    report("reference", 0, len(plan.probes))
    texts = [probe.text for probe in plan.probes if isinstance(probe, Probe)]
    drops = plan.readout.final_norm is FinalNorm.DROP
    rows, vectors = details.begun.judge.read(texts, depths, _text_facts(plan).max_tokens, drops=drops)
    report("judge", 0, 1)
    _check_tokens(plan, rows)
    points = {point: image.cut_vectors(vectors[point.layers], point, plan) for point in plan.job.points}
    judge = details.begun.judge.name
    details.begun.judge.close()
    report("judge", 1, 1)
    return Reference(points, pack_token_rows(rows), judge)


def module(plan: Plan, model: Any, reads: Sequence[Point]) -> nn.Module:
    """The tower as it is traced."""
    from matexport.export.parents.module import ExitsWithStates
    from matexport.export.parents.vision.text_tower import TextTowerExits

    depths = [read.layers for read in reads]
    return ExitsWithStates(TextTowerExits(model, plan.details.tower, plan.readout.final_norm, depths)).eval()


def example(plan: Plan) -> Example:
    """Three rows of token ids, of `EXAMPLE_SHAPE`, or full where the parent's always are."""
    import torch

    facts, vocabulary = _text_facts(plan), plan.details.tokens
    rows, columns = EXAMPLE_SHAPE
    columns = facts.max_tokens if facts.full else min(columns, facts.max_tokens)
    ids = torch.arange(rows * columns).view(rows, columns) % max(vocabulary - 1, 1)
    axes = {0: BATCH_AXIS} if facts.full else {0: BATCH_AXIS, 1: SEQUENCE_AXIS}
    return Example({"input_ids": ids}, axes)


def _text_facts(plan: Plan) -> TextFacts:
    assert isinstance(plan.inputs, TextFacts)
    return plan.inputs


def _refuse_other_requests(job: ExportJob) -> None:
    """Refuse what other kinds of texts alone have.

    Raises:
        RequestError: naming it.
    """
    source = job.parent.source
    asked = {
        "vocabulary": job.vocabulary,
        "parent.route": job.parent.route,
        "features": job.readout.features or None,
        "image_size": job.readout.image_size,
    }
    for name, value in asked.items():
        if value is not None:
            raise RequestError(f"{name} = {value!r} was asked; {source} is read as a text tower: leave it out")
    if job.readout.pooling not in (None, PoolingMode.POOLER):
        raise RequestError(
            f"pooling = {job.readout.pooling!s} was asked; the text tower of {source} is read by its own pooler alone, "
            "whose vectors are in one space with those of its images: leave pooling out"
        )


def _choose_texts(job: ExportJob) -> tuple[tuple[Probe, ...], Calibration]:
    """What a family is proven and calibrated on: the job's texts, or the shipped ones.

    Raises:
        RequestError: a probe cannot be used, or too few calibration texts are left.
    """
    from matexport.io.jobs import check_probes
    from matexport.io.texts import (
        MIN_CALIBRATION_TEXTS,
        load_calibration,
        load_probes,
        load_shipped_calibration,
    )

    probes = load_probes(job.probes)
    check_probes(probes, job.name)
    asking = next((index for index, probe in enumerate(probes) if probe.prompt or probe.task), None)
    if asking is not None:
        raise RequestError(f"probe {asking} asks for a prompt or a task; {job.parent.source} has none")
    texts, source = load_shipped_calibration(), "shipped"
    if job.calibration:
        texts, source = load_calibration(job.calibration), job.calibration.name
    held = {probe.text for probe in probes}
    fresh = tuple(Probe(text) for text in texts if text not in held)
    measured = any(precision is not Precision.FP32 for precision in job.precisions) or Encoding.INT8 in job.encodings
    if measured and len(fresh) < MIN_CALIBRATION_TEXTS:
        raise RequestError(
            f"precisions other than fp32 are measured on at least {MIN_CALIBRATION_TEXTS} texts; of the {len(texts)} "
            f"calibration texts ({source}), {len(fresh)} are no probes: give more in [calibration]"
        )
    return probes, Calibration(fresh, f"{len(fresh)} texts: {source}")


def _check_tokens(plan: Plan, rows: Sequence[Sequence[int]]) -> None:
    """Refuse a tokenizer.json that does not give the ids of the parent's own tokenizer.

    Raises:
        ParentError: naming the first text with other ids.
    """
    from matexport.runtime.inputs.text import TextInputs
    from matexport.runtime.inputs.tokenizer import load_tokenizer

    inputs = TextInputs(load_tokenizer((plan.details.begun.root / FILES[0]).read_bytes(), _text_facts(plan)))
    for probe, theirs in zip(plan.probes, rows, strict=True):
        ours = list(inputs.prepare_probe(probe).ids)
        if ours != list(theirs):
            place = next((at for at, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]),
                         min(len(ours), len(theirs)))  # fmt: skip
            raise ParentError(
                f"{plan.job.parent.source}: transformers' tokenizer gives other tokens than {FILES[0]} for "
                f"{probe.describe()}: {list(theirs)[place : place + 4]} and {ours[place : place + 4]} from token "
                f"{place} on, {len(theirs)} and {len(ours)} tokens"
            )
