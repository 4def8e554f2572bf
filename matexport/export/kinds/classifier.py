"""Classifiers of MRL: nested dims of one feature, each with what its head says. The six functions of their kind.

A parent is a folder with the weights of a ResNet, as MRL's code saves them; see `parents.vision.resnet`. At a point
(all blocks, dim) comes out what the heads say, (B, classes), or with ``features = true`` the feature itself, cut to dim
and then scaled: what is searched by. Reading the numbers for a class is left to who knows the classes.

Whatever needs torch is imported inside of the functions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matexport.errors import RequestError
from matexport.export.kinds import image
from matexport.export.parents.plan import Example, Plan, Reference
from matexport.io.progress import Progress
from matexport.spec.facts import ParentFacts
from matexport.spec.inputs import ImageFacts, Resampling
from matexport.spec.job import ExportJob
from matexport.spec.profile import Encoding, Point
from matexport.spec.readout import FinalNorm, Readout

if TYPE_CHECKING:
    from torch import Tensor, nn

    from matexport.export.parents.vision.resnet import Shape

#: Names of the one output of the graphs: what the heads say, and the feature.
LOGITS, FEATURE = "logits", "image_embedding"

#: How MRL's `inference/pytorch_inference.py` prepares images, where a folder has no processor's file.
IMAGENET = ImageFacts(
    "pixel_values", 224, 224, (256,), Resampling.BILINEAR, 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
)


@dataclass(frozen=True)
class Details:
    """What is known of a planned classifier beyond `Plan`: its checkpoints are small enough to be read at once."""

    root: Path
    file: Path
    weights: Mapping[str, Tensor]
    shape: Shape


@contextmanager
def begin(job: ExportJob, _out: Path) -> Iterator[Path]:
    """Find the parent's folder."""
    from matexport.export.parents.folder.source import fetch_weights, locate_parent

    root = locate_parent(job.parent, job.base)
    fetch_weights(job.parent, job.base)
    yield root


def plan(job: ExportJob, root: Path) -> Plan:
    """Read the checkpoint, and settle what is asked of it.

    Raises:
        RequestError: a point is outside the parent.
        ParentError: the checkpoint cannot be read, is not the pinned one, or is of another network.
    """
    from matexport.export.parents.folder.model_card import read_license
    from matexport.export.parents.folder.source import check_pin
    from matexport.export.parents.vision.checkpoint import find_checkpoint, load_checkpoint
    from matexport.export.parents.vision.processor import PREPROCESSOR, read_processor, settle_size
    from matexport.export.parents.vision.resnet import check_weights, read_shape, rename_weights
    from matexport.io.files import hash_file

    source = job.parent.source
    image.refuse_text_requests(job)
    if job.readout.pooling is not None or job.readout.final_norm is not None:
        raise RequestError(f"pooling or final_norm was asked; {source} is a classifier: leave them out")
    file = find_checkpoint(root, allow_pickle=job.parent.allow_pickle)
    digests = {file.name: hash_file(file)}
    check_pin(job.parent, digests)
    weights = rename_weights(load_checkpoint(file), source)
    shape = read_shape(weights, source)
    check_weights(weights, shape, source)
    features = job.readout.features
    _check_points(job, shape, features=features)
    facts = read_processor(root) if (root / PREPROCESSOR).is_file() else IMAGENET
    facts = settle_size(facts, job.readout.image_size, 1, source)  # convolutions, and a mean over all places
    parent = ParentFacts(
        source=source,
        architecture=shape.describe(),
        blocks=shape.blocks,
        width=shape.width,
        output_width=shape.width,
        dtype="float32",
        weights=digests,
        license=read_license(root),
    )
    heads = () if features else (f"{shape.heads}({shape.classes} classes)",)
    readout = Readout(
        FinalNorm.ABSENT, (), heads, features and job.readout.normalize, classes=0 if features else shape.classes
    )
    probes, calibration = image.choose_images(job)
    details = Details(root, file, weights, shape)
    output = FEATURE if features else LOGITS
    return Plan(job, parent, readout, facts, probes, calibration, output, own_dims=True, details=details)


def load(plan: Plan, report: Progress) -> Any:
    """Nothing more: the weights were read when it was planned."""
    report("load", 1, 1)
    return plan.details


def runtime_files(plan: Plan) -> Mapping[str, bytes]:
    """The configuration of the parent's processor, where it has one."""
    return image.read_runtime_files(plan.details.root, plan)


def reference(plan: Plan, details: Details, report: Progress) -> Reference:
    """What a network that is written down apart makes of the probes' files.

    Raises:
        ParentError: the pixels are not those of the parent's own processor, or a number is not finite.
    """
    from matexport.export.judge.images import CheckpointJudge
    from matexport.export.kinds.image_probes import keep_pixels

    classes = plan.readout.classes
    report("reference", 0, len(plan.probes))
    with tempfile.TemporaryDirectory() as folder, CheckpointJudge(details.file, plan.job.parent.source) as judge:
        files = image.write_files(plan.probes, Path(folder))
        dims = sorted({point.dim for point in plan.job.points}) if classes else []
        found = judge.classify(files, dims, image_size=plan.job.readout.image_size)
        name = judge.name
    rows = keep_pixels(plan, found["pixels"])
    points = {
        point: image.check_finite(found[f"logits_{point.dim}"], point, plan)
        if classes
        else image.cut_vectors(found["features"], point, plan)
        for point in plan.job.points
    }
    report("judge", 1, 1)
    return Reference(points, rows, judge=name)


def module(plan: Plan, details: Details, reads: Sequence[Point]) -> nn.Module:
    """The network as it is traced, for each dim from the last block's last convolution on."""
    from matexport.export.parents.module import ExitsWithStates
    from matexport.export.parents.vision.resnet import Classifier

    features = not plan.readout.classes
    dims = [read.dim for read in reads]
    return ExitsWithStates(Classifier(details.weights, details.shape, dims, features=features)).eval()


def example(plan: Plan) -> Example:
    """Three images, of which only the number may change."""
    return image.example(plan)


def _check_points(job: ExportJob, shape: Shape, *, features: bool) -> None:
    from matexport.export.parents.vision.resnet import check_dim

    if not features and any(encoding is not Encoding.FLOAT32 for encoding in job.encodings):
        raise RequestError(f"encodings = {', '.join(job.encodings)} was asked; what heads say is given as float32")
    for point in (*job.points, *(job.trained or ())):
        if point.layers != shape.blocks or point.tokens:
            raise RequestError(
                f"{point.name} was asked; {job.parent.source} has {shape.blocks} blocks and is read after all of them: "
                f"ask for layers = [{shape.blocks}], without tokens"
            )
        check_dim(point.dim, shape, features=features, source=job.parent.source)
