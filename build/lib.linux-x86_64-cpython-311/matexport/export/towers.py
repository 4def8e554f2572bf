"""A model with two towers (CLIP, SigLIP) -> two jobs, one for each tower; what they make is `towers`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msgspec.structs import replace

from matexport.errors import DestinationError, RequestError
from matexport.spec.job import ExportJob
from matexport.spec.profile import Point
from matexport.towers import IMAGE, TEXT, list_others

#: Kind of the parent of each family.
KINDS = {TEXT: "text-tower", IMAGE: "image"}


def split_job(job: ExportJob) -> tuple[dict[str, ExportJob], dict[Point, Point]]:
    """The job of each family, by its name, and for each point of the images that of the texts.

    Probes and calibration are a file of texts, or a folder of images: the other tower takes those that matexport ships.

    Raises:
        RequestError: the towers have different numbers of blocks, and the job does not say which go together.
        ParentError: the parent has no two towers that are known.
    """
    from matexport.export.parents.folder.source import locate_parent
    from matexport.export.parents.vision.text_tower import find_text_tower
    from matexport.export.parents.vision.towers import find_tower, read_config

    source = job.parent.source
    config = read_config(locate_parent(job.parent, job.base), source)
    if not hasattr(config, "text_config") or not hasattr(config, "vision_config"):
        raise RequestError(
            f'kind = "two-towers" was asked; {source} is a {config.model_type!r}, which has one: ask for '
            f"{' or '.join(repr(kind) for kind in KINDS.values())}"
        )
    deep = {
        TEXT: int(find_text_tower(config, source)[1].num_hidden_layers),
        IMAGE: int(find_tower(config, source)[1].num_hidden_layers),
    }
    layers = sorted({point.layers for point in job.points})
    if deep[TEXT] != deep[IMAGE] and not job.text_layers:
        halves = [max(1, round(layer * deep[TEXT] / deep[IMAGE])) for layer in layers]
        raise RequestError(
            f"layers = {layers} was asked; {source} has {deep[IMAGE]} blocks for images and {deep[TEXT]} for texts: "
            f"say which go together, such as text_layers = {halves}, one for each of layers"
        )
    pairs = {point: replace(point, layers=job.text_layers.get(point.layers, point.layers)) for point in job.points}
    return {name: _make_job(job, name, pairs) for name in (TEXT, IMAGE)}, pairs


def _make_job(job: ExportJob, name: str, pairs: Mapping[Point, Point]) -> ExportJob:
    texts = name == TEXT
    points = tuple(sorted(set(pairs.values()))) if texts else job.points
    trained = job.trained
    if texts and trained is not None:
        known = {point.layers: other.layers for point, other in pairs.items()}
        trained = tuple(replace(point, layers=known[point.layers]) for point in trained if point.layers in known)

    def choose(given: Path | None) -> Path | None:
        return given if given is not None and given.is_dir() != texts else None

    return replace(
        job,
        parent=replace(job.parent, kind=KINDS[name]),
        points=points,
        trained=trained or None,
        probes=choose(job.probes),
        calibration=choose(job.calibration),
        readout=replace(job.readout, image_size=None) if texts else replace(job.readout, max_tokens=None),
        preprocess_in_graph=job.preprocess_in_graph and not texts,
        text_layers={},
        name=f"{job.name}-{name}",
    )


def refuse_others(out: Path) -> None:
    """Refuse a destination that holds something else than two families.

    Raises:
        DestinationError: naming what is there.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise DestinationError(f"{out} exists and is no directory; choose another destination")
    hidden = (f".{TEXT}.", f".{IMAGE}.")  # of an export that died
    others = [name for name in (list_others(out) if out.is_dir() else ()) if not name.startswith(hidden)]
    if others:
        raise DestinationError(f"{out} holds {others[0]}, which is of no two families; choose another destination")
