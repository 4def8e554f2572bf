"""Franca, from its own checkpoints, and DINOv2 from those that have the same names. The six functions of their kind.

A parent is a folder with the weights that the code of Franca saves; see `parents.vision.franca`. At a point (layers,
dim) comes out the class token, the mean of the patches or each patch, after the final norm over the full width, cut to
dim.

Whatever needs torch is imported inside of the functions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from matexport.errors import RequestError
from matexport.export.kinds import classifier, image
from matexport.export.kinds.probes.several import name_patches, thin_out
from matexport.export.parents.plan import Example, Plan, Reference
from matexport.io.progress import Progress
from matexport.spec.facts import ParentFacts
from matexport.spec.inputs import Resampling
from matexport.spec.job import ExportJob
from matexport.spec.profile import Point
from matexport.spec.readout import FinalNorm, PoolingMode, Readout

if TYPE_CHECKING:
    from torch import Tensor, nn

#: How Franca's and DINOv2's evaluations prepare images, where a folder has no processor's file.
EVALUATION = replace(classifier.IMAGENET, resampling=Resampling.BICUBIC)

#: How one can be read.
POOLINGS = (PoolingMode.CLS, PoolingMode.MEAN, PoolingMode.PATCHES)


@dataclass(frozen=True)
class Details:
    """What is known of a planned parent beyond `Plan`."""

    root: Path
    file: Path
    weights: Mapping[str, Tensor]
    pooling: PoolingMode


@contextmanager
def begin(job: ExportJob, out: Path) -> Iterator[Path]:
    """Find the parent's folder."""
    with classifier.begin(job, out) as root:
        yield root


def plan(job: ExportJob, root: Path) -> Plan:
    """Read the checkpoint, and settle the read-out.

    Raises:
        RequestError: a point is outside the parent.
        ParentError: the checkpoint cannot be read, is not the pinned one, or is of another network.
    """
    from matexport.export.parents.folder.model_card import read_license
    from matexport.export.parents.folder.source import check_pin
    from matexport.export.parents.vision.checkpoint import find_checkpoint, load_checkpoint
    from matexport.export.parents.vision.franca import count_blocks, rename_weights
    from matexport.export.parents.vision.processor import PREPROCESSOR, read_processor, settle_size
    from matexport.io.files import hash_file
    from matexport.io.jobs import check_points

    source = job.parent.source
    image.refuse_text_requests(job)
    pooling = job.readout.pooling or PoolingMode.CLS
    if pooling not in POOLINGS:
        raise RequestError(f"pooling = {pooling!s} was asked; {source} can be read by {', '.join(POOLINGS)}")
    file = find_checkpoint(root, allow_pickle=job.parent.allow_pickle)
    digests = {file.name: hash_file(file)}
    check_pin(job.parent, digests)
    weights = rename_weights(load_checkpoint(file), source)
    blocks, width = count_blocks(weights, source), int(weights["norm.weight"].shape[0])
    facts = read_processor(root) if (root / PREPROCESSOR).is_file() else EVALUATION
    patch = int(weights["patch_embed.proj.weight"].shape[-1])
    facts = settle_size(facts, job.readout.image_size, patch, source)
    if several := pooling is PoolingMode.PATCHES:
        job = name_patches(job, facts.count_patches(patch))
    check_points(job.points, blocks, width, source, several=several)
    check_points(job.trained or (), blocks, width, source, "[trained]: ", several=several)
    parent = ParentFacts(
        source=source,
        architecture="Franca" if "blocks.0.mlp.w12.weight" in weights else "DINOv2",
        blocks=blocks,
        width=width,
        output_width=width,
        dtype="float32",
        weights=digests,
        license=read_license(root),
    )
    readout = Readout(job.readout.final_norm or FinalNorm.KEEP, (PoolingMode(pooling),), (), job.readout.normalize)
    probes, calibration = image.choose_images(job)
    if several:
        probes = thin_out(probes, job.points)
    details = Details(root, file, weights, PoolingMode(pooling))
    return Plan(job, parent, readout, facts, probes, calibration, image.OUTPUT, details=details)


def load(plan: Plan, report: Progress) -> Any:
    """The network with its weights, its position table for the size of its images.

    Raises:
        ParentError: a weight is missing, or images are no whole patches.
    """
    from matexport.export.parents.vision.franca import FrancaModel

    report("load", 0, 1)
    facts = image.image_facts(plan)
    model = FrancaModel(plan.details.weights, facts.height, facts.width, plan.job.parent.source)
    report("load", 1, 1)
    return model.eval()


def runtime_files(plan: Plan) -> Mapping[str, bytes]:
    """The configuration of the parent's processor, where it has one."""
    return image.read_runtime_files(plan.details.root, plan)


def reference(plan: Plan, _model: Any, report: Progress) -> Reference:
    """What a network that is written down apart makes of the probes' files.

    Raises:
        ParentError: the pixels are not those of the parent's own processor, or a number is not finite.
    """
    from matexport.export.judge.images import CheckpointJudge
    from matexport.export.kinds.probes.image import keep_pixels

    depths = sorted({point.layers for point in plan.job.points})
    report("reference", 0, len(plan.probes))
    drops = plan.readout.final_norm is FinalNorm.DROP
    with tempfile.TemporaryDirectory() as folder, CheckpointJudge(plan.details.file, plan.job.parent.source) as judge:
        files = image.write_files(plan.probes, Path(folder))
        found = judge.read_tower(
            files, depths, plan.details.pooling, drops=drops, image_size=plan.job.readout.image_size
        )
        name = judge.name
    rows = keep_pixels(plan, found["pixels"])
    points = {point: image.cut_vectors(found[f"layers_{point.layers}"], point, plan) for point in plan.job.points}
    report("judge", 1, 1)
    return Reference(points, rows, judge=name)


def module(plan: Plan, model: Any, reads: Sequence[Point]) -> nn.Module:
    """The network as it is traced."""
    from matexport.export.parents.module import ExitsWithStates
    from matexport.export.parents.vision.module import TowerExits
    from matexport.export.parents.vision.towers import Tower

    depths = [read.layers for read in reads]
    tower = Tower("FrancaModel", "norm", lambda _: 1)
    return ExitsWithStates(TowerExits(model, tower, plan.details.pooling, plan.readout.final_norm, depths)).eval()


def example(plan: Plan) -> Example:
    """Three images, of which only the number may change."""
    return image.example(plan)
