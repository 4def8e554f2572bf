"""Classifiers of MRL: nested dims of one feature, each with what its head says. The six functions of their kind.

A parent is a folder with the weights of a ResNet, as MRL's code saves them (`parents.vision.resnet`), or of a ViT with
the same heads (`parents.vision.vit`). At a point (all blocks, dim) comes out what the heads say, (B, classes), or with
``features = true`` the feature itself, cut to dim and then scaled: what is searched by. Reading the numbers for a class
is left to who knows the classes.

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
from matexport.spec.profile import Encoding, Point, Precision
from matexport.spec.readout import FinalNorm, Readout

if TYPE_CHECKING:
    from torch import Tensor, nn

    from matexport.export.judge.images import CheckpointJudge
    from matexport.export.parents.vision.heads import Shape

#: Precisions that are there for convolutions; the others round matrices, of which a ResNet's blocks have none.
OF_CONVOLUTIONS = (Precision.FP32, Precision.FP16, Precision.INT8_STATIC)

#: Names of the one output of the graphs: what the heads say, and the feature.
LOGITS, FEATURE = "logits", "image_embedding"

#: How MRL's `inference/pytorch_inference.py` prepares images, where a folder has no processor's file.
IMAGENET = ImageFacts(
    "pixel_values", 224, 224, (256,), Resampling.BILINEAR, 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
)


@dataclass(frozen=True)
class Details:
    """What is known of a planned classifier beyond `Plan`: its checkpoints are small enough to be read at once.

    Attributes:
        weights: renamed.
        vit: it is a ViT, and no ResNet.
    """

    root: Path
    file: Path
    weights: Mapping[str, Tensor]
    shape: Shape
    vit: bool


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
        RequestError: a point is outside the parent, or it is not made in a precision.
        ParentError: the checkpoint cannot be read, is not the pinned one, or is of another network.
    """
    from matexport.export.parents.folder.model_card import read_license
    from matexport.export.parents.folder.source import check_pin
    from matexport.export.parents.vision import resnet, vit
    from matexport.export.parents.vision.checkpoint import find_checkpoint, load_checkpoint
    from matexport.export.parents.vision.processor import PREPROCESSOR, read_processor, settle_size
    from matexport.io.files import hash_file

    source = job.parent.source
    image.refuse_text_requests(job)
    if job.readout.pooling is not None or job.readout.final_norm is not None:
        raise RequestError(f"pooling or final_norm was asked; {source} is a classifier: leave them out")
    file = find_checkpoint(root, allow_pickle=job.parent.allow_pickle)
    digests = {file.name: hash_file(file)}
    check_pin(job.parent, digests)
    loaded = load_checkpoint(file)
    of_vit = vit.is_vit(loaded)
    weights, shape = (vit if of_vit else resnet).read_classifier(loaded, source)
    features = job.readout.features
    _check_points(job, shape, features=features)
    facts = read_processor(root) if (root / PREPROCESSOR).is_file() else IMAGENET
    facts = settle_size(facts, job.readout.image_size, 1, source)  # convolutions, and a mean over all places
    if of_vit:
        vit.check_size(weights, facts.height, facts.width, source)
    else:
        _check_precisions(job, shape)
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
    probes, calibration = image.choose_images(job)
    details = Details(root, file, weights, shape, of_vit)
    readout, output = _settle_readout(job, shape)
    own_dims = not (of_vit and features)  # of a ViT one feature is cut, of a ResNet each dim has channels of its own
    return Plan(job, parent, readout, facts, probes, calibration, output, own_dims=own_dims, details=details)


def _settle_readout(job: ExportJob, shape: Shape) -> tuple[Readout, str]:
    """What is given of an item, and what it is called: the feature, or what heads say of it."""
    if job.readout.features:
        return Readout(FinalNorm.ABSENT, (), (), job.readout.normalize), FEATURE
    heads = (f"{shape.heads}({shape.classes} classes)",)
    return Readout(FinalNorm.ABSENT, (), heads, normalize=False, classes=shape.classes), LOGITS


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
    from matexport.export.kinds.probes.image import keep_pixels

    classes = plan.readout.classes
    report("reference", 0, len(plan.probes))
    with tempfile.TemporaryDirectory() as folder, _open_judge(plan, details) as judge:
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
    """The network as it is traced: of a ResNet for each dim from the last block's last convolution on."""
    from matexport.export.parents.module import ExitsWithStates
    from matexport.export.parents.vision.resnet import Classifier
    from matexport.export.parents.vision.vit import ViTClassifier

    features = not plan.readout.classes
    dims = [read.dim for read in reads]
    if not details.vit:
        return ExitsWithStates(Classifier(details.weights, details.shape, dims, features=features)).eval()
    facts = image.image_facts(plan)
    size = (facts.height, facts.width)
    made = ViTClassifier(details.weights, details.shape, dims, features=features, size=size)
    return ExitsWithStates(made).eval()


def example(plan: Plan) -> Example:
    """Three images, of which only the number may change."""
    return image.example(plan)


def _open_judge(plan: Plan, details: Details) -> CheckpointJudge:
    from matexport.export.judge.images import CheckpointJudge

    return CheckpointJudge(details.file, plan.job.parent.source, heads=details.vit)


def _check_precisions(job: ExportJob, shape: Shape) -> None:
    """Refuse precisions that round matrices.

    Raises:
        RequestError: naming the first, and those that there are.
    """
    for precision in job.precisions:
        if precision not in OF_CONVOLUTIONS:
            raise RequestError(
                f"precisions = {precision!s} was asked; {job.parent.source} ({shape.network}) is made of convolutions, "
                f"and {precision!s} rounds matrices: ask for {', '.join(OF_CONVOLUTIONS)}"
            )


def _check_points(job: ExportJob, shape: Shape, *, features: bool) -> None:
    from matexport.export.parents.vision.heads import check_dim

    if not features and any(encoding is not Encoding.FLOAT32 for encoding in job.encodings):
        raise RequestError(f"encodings = {', '.join(job.encodings)} was asked; what heads say is given as float32")
    for point in (*job.points, *(job.trained or ())):
        if point.layers != shape.blocks or point.tokens:
            raise RequestError(
                f"{point.name} was asked; {job.parent.source} has {shape.blocks} blocks and is read after all of them: "
                f"ask for layers = [{shape.blocks}], without tokens"
            )
        check_dim(point.dim, shape, features=features, source=job.parent.source)
