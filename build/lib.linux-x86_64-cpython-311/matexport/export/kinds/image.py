"""Vision towers: ViT, DINOv2, DINOv3, CLIP and SigLIP, as transformers loads them. The six functions of their kind.

The configuration says how deep and wide a tower is, and the processor's file how images are prepared (`plan`). What
transformers itself makes of the probes' files, in a process of its own, is the reference: pixels and vectors; what was
read of the processor's file is held to the pixels (`reference`).

Whatever needs torch is imported inside of the functions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from matexport.errors import ParentError, RequestError
from matexport.export.kinds.probes.several import cut_patches, name_patches, thin_out
from matexport.export.parents.plan import Calibration, Example, Plan, Reference
from matexport.io.progress import Progress
from matexport.spec.facts import BATCH_AXIS, ParentFacts
from matexport.spec.inputs import ImageFacts
from matexport.spec.job import ExportJob
from matexport.spec.probe import ImageProbe
from matexport.spec.profile import Point
from matexport.spec.readout import FinalNorm, PoolingMode, Readout

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from matexport.export.judge.images import ImageJudge
    from matexport.export.parents.vision.towers import Tower

#: Name of the one output of a vision parent's graphs.
OUTPUT = "image_embedding"


@dataclass(frozen=True)
class Begun:
    """A parent's folder, and its judge."""

    root: Path
    judge: ImageJudge


@dataclass(frozen=True)
class Details:
    """What is known of a planned tower beyond `Plan`."""

    begun: Begun
    tower: Tower
    pooling: PoolingMode


@contextmanager
def begin(job: ExportJob, _out: Path) -> Iterator[Begun]:
    """Find the parent's folder; its judge is started when all was accepted."""
    from matexport.export.judge.images import ImageJudge
    from matexport.export.parents.folder.source import locate_parent

    root = locate_parent(job.parent, job.base)
    with ImageJudge(root, job.parent.source) as judge:
        yield Begun(root, judge)


def plan(job: ExportJob, begun: Begun) -> Plan:
    """Settle the read-out, how images are prepared, and those that the family is proven and calibrated on.

    Raises:
        RequestError: a point is outside the parent, or something was asked that is for texts.
        ParentError: the parent cannot be read, is not the pinned one, or is of a kind that is not known.
    """
    from matexport.export.parents.folder.model_card import read_license
    from matexport.export.parents.folder.source import pin_weights
    from matexport.export.parents.vision.processor import read_processor, settle_size
    from matexport.export.parents.vision.towers import find_tower, read_config, settle_pooling
    from matexport.io.jobs import check_points

    source = job.parent.source
    refuse_text_requests(job)
    facts = read_processor(begun.root)
    tower, config = find_tower(read_config(begun.root, source), source)
    patch = int(config.patch_size)
    facts = settle_size(facts, job.readout.image_size, patch, source)
    _check_patches(patch, facts, source)
    pooling = settle_pooling(tower, job.readout.pooling, source)
    if pooling is PoolingMode.PATCHES:
        job = name_patches(job, facts.count_patches(patch))
    width = tower.pooled_width(config) if pooling is PoolingMode.POOLER else int(config.hidden_size)
    blocks = int(config.num_hidden_layers)
    several = pooling is PoolingMode.PATCHES
    check_points(job.points, blocks, width, source, several=several)
    check_points(job.trained or (), blocks, width, source, "[trained]: ", several=several)
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
    readout = Readout(job.readout.final_norm or FinalNorm.KEEP, (pooling,), (), job.readout.normalize)
    probes, calibration = choose_images(job)
    if several:
        probes = thin_out(probes, job.points)
    return Plan(
        job, parent, readout, facts, probes, calibration, OUTPUT, details=Details(begun, tower, pooling)
    )  # fmt: skip


def load(plan: Plan, report: Progress) -> Any:
    """transformers' model of the tower, in float32 and eval mode.

    Raises:
        ParentError: it cannot be loaded, or lacks weights that are read.
    """
    from matexport.export.parents.vision.towers import load_tower

    details: Details = plan.details
    report("load", 0, 1)
    details.begun.judge.start()
    model = load_tower(
        details.begun.root,
        details.tower.model,
        plan.job.parent.source,
        lambda name: "pooler" in name and details.pooling is not PoolingMode.POOLER,
    )
    report("load", 1, 1)
    return model


def runtime_files(plan: Plan) -> Mapping[str, bytes]:
    """The parent's own configuration and that of its processor, for other consumers."""
    return read_runtime_files(plan.details.begun.root, plan)


def read_runtime_files(root: Path, plan: Plan) -> dict[str, bytes]:
    """Name -> content of what a folder keeps for other consumers; of another size, the processor's says that one."""
    from matexport.export.parents.vision.processor import PREPROCESSOR, resize_processor
    from matexport.family.modality import IMAGE_FILES

    found = {name: (root / name).read_bytes() for name in IMAGE_FILES if (root / name).is_file()}
    if plan.job.readout.image_size is not None and PREPROCESSOR in found:
        found[PREPROCESSOR] = resize_processor(found[PREPROCESSOR], image_facts(plan))
    return found


def reference(plan: Plan, _model: Any, report: Progress) -> Reference:
    """What transformers makes of the probes' files.

    Raises:
        ParentError: the pixels that the runtime makes of a file are not those of the parent's own processor, or a
            vector is not finite.
    """
    from matexport.export.kinds.probes.image import keep_pixels

    details: Details = plan.details
    depths = sorted({point.layers for point in plan.job.points})
    report("reference", 0, len(plan.probes))
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(plan.probes, Path(folder))
        drops = plan.readout.final_norm is FinalNorm.DROP
        found = details.begun.judge.read(
            files, depths, details.pooling, drops=drops, image_size=plan.job.readout.image_size
        )
    report("judge", 0, 1)
    rows = keep_pixels(plan, found["pixels"])
    points = {point: cut_vectors(found[f"layers_{point.layers}"], point, plan) for point in plan.job.points}
    judge = details.begun.judge.name
    details.begun.judge.close()
    report("judge", 1, 1)
    return Reference(points, rows, judge=judge)


def module(plan: Plan, model: Any, reads: Sequence[Point]) -> nn.Module:
    """The tower as it is traced: its position table made for the size of its images."""
    from matexport.export.parents.module import ExitsWithStates
    from matexport.export.parents.vision.module import TowerExits, bake_positions

    details: Details = plan.details
    bake_positions(model, image_facts(plan))
    depths = [read.layers for read in reads]
    exits = TowerExits(model, details.tower, details.pooling, plan.readout.final_norm, depths)
    return ExitsWithStates(exits).eval()


def example(plan: Plan) -> Example:
    """Three images, of which only the number may change."""
    import torch

    facts = image_facts(plan)
    pixels = torch.linspace(-1, 1, 3 * 3 * facts.height * facts.width).reshape(3, 3, facts.height, facts.width)
    return Example({facts.input: pixels}, {0: BATCH_AXIS})


def image_facts(plan: Plan) -> ImageFacts:
    """How a plan's images are prepared."""
    assert isinstance(plan.inputs, ImageFacts)
    return plan.inputs


def refuse_text_requests(job: ExportJob) -> None:
    """Refuse what is asked of texts alone.

    Raises:
        RequestError: naming it.
    """
    asked = {
        "vocabulary": job.vocabulary,
        "readout.max_tokens": job.readout.max_tokens,
        "parent.route": job.parent.route,
    }
    if job.readout.features and job.parent.kind != "classifier":
        raise RequestError(
            f"features = true was asked; {job.parent.source} is read as a {job.parent.kind}: leave it out"
        )
    for name, value in asked.items():
        if value is not None:
            raise RequestError(f"{name} = {value!r} was asked; {job.parent.source} takes images: leave it out")


def _check_patches(patch: int, facts: ImageFacts, source: str) -> None:
    if facts.height % patch or facts.width % patch:
        raise ParentError(
            f"{source} cuts images into patches of {patch} x {patch}; its processor makes them {facts.height} x "
            f"{facts.width}"
        )


def choose_images(job: ExportJob) -> tuple[tuple[ImageProbe, ...], Calibration]:
    """What a family is proven and calibrated on: the job's folders, or what the package draws.

    Raises:
        RequestError: a folder cannot be read, or has too few images.
    """
    from matexport.export.kinds.probes.image import (
        MAX_CALIBRATION_IMAGES,
        draw_calibration,
        draw_probes,
        read_folder,
    )
    from matexport.io.texts import MAX_PROBES, MIN_CALIBRATION_IMAGES

    probes = read_folder(job.probes, 2, MAX_PROBES, "the probes") if job.probes else draw_probes()
    if job.calibration is None:
        drawn = draw_calibration()
        return probes, Calibration(drawn, f"{len(drawn)} images that matexport draws")
    given = read_folder(job.calibration, MIN_CALIBRATION_IMAGES, MAX_CALIBRATION_IMAGES, "the calibration images")
    return probes, Calibration(given, f"{len(given)} images of {job.calibration.name}")


def write_files(probes: Sequence[Any], folder: Path) -> list[Path]:
    """The probes as files, with the endings that they had: a library may go by them."""
    files = []
    for index, probe in enumerate(probes):
        files.append(folder / f"{index:05d}{Path(probe.name).suffix}")
        files[-1].write_bytes(probe.content)
    return files


def check_finite(vectors: NDArray[np.float32], point: Point, plan: Plan) -> NDArray[np.float32]:
    """(n, W) vectors of the probes as they are.

    Raises:
        ParentError: one is not finite.
    """
    if not np.isfinite(vectors).all():
        worst = int((~np.isfinite(vectors)).any(axis=1).argmax())
        raise ParentError(
            f"{plan.job.parent.source} itself gives values that are not finite at {point.name} for "
            f"{plan.probes[worst].describe()}; are its weights sound?"
        )
    return vectors


def cut_vectors(vectors: NDArray[np.float32], point: Point, plan: Plan) -> NDArray[np.float32]:
    """(n, W) -> (n, dim), each row at length 1 where asked; of patches (n, patches, W) -> (n, patches * dim).

    Raises:
        ParentError: one is not finite.
    """
    if point.tokens:
        return check_finite(cut_patches(vectors, point.dim, normalize=plan.readout.normalize), point, plan)
    cut = check_finite(vectors[:, : point.dim], point, plan)
    if plan.readout.normalize:
        cut = np.stack([row / max(float(np.linalg.norm(row)), 1e-12) for row in cut])
    return np.ascontiguousarray(cut, dtype=np.float32)
