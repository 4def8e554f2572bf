"""``profiles/*.toml`` -> an `ExportJob`. Everything that can be refused without looking at the parent is refused here.

The file's tables are the records below, so what a key means is said once, in `spec.job`, `spec.readout` and
`spec.tolerance`. What needs the parent (does it have that many blocks, is it that wide) is checked by `check_points` as
soon as its configuration has been read, before any weights are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import msgspec

from matexport.errors import RequestError
from matexport.io.files import read_toml
from matexport.io.texts import MIN_CALIBRATION_IMAGES, MIN_CALIBRATION_TEXTS, load_calibration, load_probes
from matexport.spec.job import TEXT, TWO_TOWERS, ExportJob, ParentSource
from matexport.spec.probe import Probe
from matexport.spec.profile import NO_TARGETS, Encoding, Point, Precision, Target
from matexport.spec.readout import ReadoutRequest
from matexport.spec.record import Record, read_record
from matexport.spec.tolerance import FLOORS, Tolerance


class PointsTable(Record, frozen=True):
    """The ``[points]`` and ``[trained]`` tables: ``pairs``, or every combination of ``layers`` and ``dims``.

    With ``tokens``, each of them with each of so many visual tokens. With ``text_layers``, of a model with two towers,
    one number for each of ``layers``: how many blocks of the text tower go with so many of the image tower.
    """

    layers: tuple[int, ...] | None = None
    dims: tuple[int, ...] | None = None
    pairs: tuple[tuple[int, int], ...] | None = None
    tokens: tuple[int, ...] | None = None
    text_layers: tuple[int, ...] | None = None


class ProbesTable(Record, frozen=True):
    """The ``[probes]`` table."""

    file: str


class CalibrationTable(Record, frozen=True):
    """The ``[calibration]`` table."""

    file: str


class ExportTable(Record, frozen=True):
    """The ``[export]`` table."""

    target: Target = Target.ONNXRUNTIME


class JobFile(Record, frozen=True):
    """A job file as it is written."""

    parent: ParentSource
    points: PointsTable
    precisions: tuple[Precision, ...] = (Precision.FP32,)
    encodings: tuple[Encoding, ...] = (Encoding.FLOAT32,)
    vocabulary: str | None = None
    preprocess_in_graph: bool = False
    calibration: CalibrationTable | None = None
    export: ExportTable = msgspec.field(default_factory=ExportTable)
    readout: ReadoutRequest = msgspec.field(default_factory=ReadoutRequest)
    probes: ProbesTable | None = None
    trained: PointsTable | None = None
    tolerances: Mapping[Precision, Tolerance] = msgspec.field(default_factory=dict)


def load_job(path: Path | str) -> ExportJob:
    """Read a job file.

    Args:
        path: a TOML file such as ``profiles/minilm.toml``.

    Raises:
        RequestError: the file, or its probes or calibration items, cannot be read, has unknown keys, or asks for
            something that no parent can give.
    """
    path = Path(path)
    data = read_toml(path, "job")
    _refuse_no_target(data, path)
    file = read_record(data, JobFile, str(path), RequestError)
    _check_tolerances(file.tolerances, path)
    if not file.precisions or len(set(file.precisions)) != len(file.precisions):
        raise RequestError(f"{path}: precisions must name at least one of {_join(Precision)}, each once")
    if not file.encodings or len(set(file.encodings)) != len(file.encodings):
        raise RequestError(f"{path}: encodings must name at least one of {_join(Encoding)}, each once")
    for name in (file.probes and file.probes.file, file.calibration and file.calibration.file, file.vocabulary):
        if name and "\0" in name:
            raise RequestError(f"{path}: {name!r} has a null character, which no file's name can have")
    base = path.resolve().parent
    job = ExportJob(
        parent=file.parent,
        points=expand_points(file.points, str(path)),
        readout=file.readout,
        precisions=file.precisions,
        encodings=file.encodings,
        vocabulary=file.vocabulary,
        preprocess_in_graph=file.preprocess_in_graph,
        target=file.export.target,
        trained=expand_points(file.trained, f"{path}: trained") if file.trained else None,
        text_layers=_pair_layers(file, str(path)),
        calibration=base / file.calibration.file if file.calibration else None,
        probes=base / file.probes.file if file.probes else None,
        tolerances=file.tolerances,
        base=base,
        name=path.stem,
    )
    check_calibration(job)
    check_preprocessing(job)
    if job.parent.kind == TEXT:  # what is wrong with these files is said before the parent is looked at
        check_probes(load_probes(job.probes), job.name)
        if job.calibration:
            load_calibration(job.calibration)
    return job


def _refuse_no_target(data: Mapping[str, Any], path: Path) -> None:
    """Say what to do where a target is asked for that is the layout of a pack; what it should be, the record says."""
    table = data.get("export")
    asked = table.get("target") if isinstance(table, Mapping) else None
    if isinstance(asked, str) and asked in NO_TARGETS:
        raise RequestError(f"{path}: target = {asked!r} was asked; {NO_TARGETS[asked]}")


def change_precisions(job: ExportJob, precisions: Sequence[Precision]) -> ExportJob:
    """The job with other precisions than its file names.

    Raises:
        RequestError: one of them needs something to calibrate on, and the job has nothing.
    """
    job = msgspec.structs.replace(job, precisions=tuple(dict.fromkeys(precisions)))
    check_calibration(job)
    return job


def preprocess_in_graph(job: ExportJob) -> ExportJob:
    """The job, whose graphs shall prepare images themselves.

    Raises:
        RequestError: its parent takes texts.
    """
    job = msgspec.structs.replace(job, preprocess_in_graph=True)
    check_preprocessing(job)
    return job


def check_preprocessing(job: ExportJob) -> None:
    """Refuse to put what is done to a text into a graph.

    Raises:
        RequestError: saying what the parent is.
    """
    if job.preprocess_in_graph and job.parent.kind == TEXT:
        raise RequestError(
            f"{job.name}: preprocess_in_graph was asked; {job.parent.source} is read as a parent of texts, which are "
            "split into tokens outside of the graph: leave it out"
        )


def expand_points(table: PointsTable, where: str) -> tuple[Point, ...]:
    """The points that a ``[points]`` table asks for, sorted.

    Raises:
        RequestError: both or neither form is given, a number is not positive, or a point is named twice.
    """
    grid = table.layers is not None or table.dims is not None
    if grid == (table.pairs is not None) or (grid and (table.layers is None or table.dims is None)):
        raise RequestError(f"{where}: [points] takes either layers and dims (a grid), or pairs = [[layers, dim], ...]")
    pairs = list(table.pairs or product(table.layers or (), table.dims or ()))
    if not pairs:
        raise RequestError(f"{where}: [points] asks for no point at all")
    for layers, dim in pairs:
        if layers < 0 or dim < 1:
            raise RequestError(
                f"{where}: the point (layers={layers}, dim={dim}) was asked for; dims start at 1, and layers at 1, or "
                "are 0 for a parent without blocks"
            )
    if any(count < 1 for count in table.tokens or ()):
        raise RequestError(f"{where}: tokens = {list(table.tokens or ())} was asked for; visual tokens start at 1")
    points = sorted(Point(layers, dim, tokens) for layers, dim in pairs for tokens in table.tokens or (0,))
    twice = next((left for left, right in pairwise(points) if left == right), None)
    if twice:
        raise RequestError(f"{where}: the point (layers={twice.layers}, dim={twice.dim}) is asked for twice")
    return tuple(points)


def _pair_layers(file: JobFile, where: str) -> dict[int, int]:
    """Blocks of the image tower -> blocks of the text tower.

    Raises:
        RequestError: they are asked of another kind of parent, or not one for each of the layers.
    """
    asked = file.points.text_layers
    if file.trained and file.trained.text_layers:
        raise RequestError(f"{where}: text_layers belong into [points]; [trained] names points of the image tower")
    if asked is None:
        return {}
    layers = file.points.layers
    if file.parent.kind != TWO_TOWERS:
        raise RequestError(
            f'{where}: text_layers were asked for; they are for parents of kind = "{TWO_TOWERS}", and this one is of '
            f'kind = "{file.parent.kind}"'
        )
    if layers is None or len(layers) != len(asked) or min(asked, default=0) < 1:
        raise RequestError(
            f"{where}: text_layers = {list(asked)} was asked for; it takes one number of at least 1 for each of "
            f"layers{'' if layers is None else f' = {list(layers)}'}"
        )
    return dict(zip(layers, asked, strict=True))


def check_points(
    points: Sequence[Point],
    blocks: int | None,
    width: int | None,
    source: str,
    where: str = "",
    *,
    several: bool = False,
) -> None:
    """Refuse points that a parent does not contain.

    Args:
        where: begins the message: the table that asks for them, if it is not ``[points]``.
        blocks: the parent's number of transformer blocks; None where that is not known yet.
        width: width of its sentence vector, after its heads; None where that is not known yet.
        several: it gives several vectors for an item, whose number is checked already.

    Raises:
        RequestError: naming the first such point and what is allowed.
    """
    for point in points:
        if point.tokens and not several:
            raise RequestError(
                f"{where}tokens={point.tokens} was asked; {source} gives one vector and has no visual tokens: leave "
                "tokens out"
            )
        if blocks == 0 and point.layers:
            raise RequestError(
                f"{where}layers={point.layers} was asked; {source} looks its tokens up in a table and has no blocks: "
                "ask for layers = [0], and for dims alone"
            )
        if blocks and not 1 <= point.layers <= blocks:
            raise RequestError(
                f"{where}layers={point.layers} was asked; {source} has {blocks} blocks: ask for 1 to {blocks}"
            )
        if width is not None and point.dim > width:
            raise RequestError(
                f"{where}dim={point.dim} was asked; the vectors of {source} have {width} coordinates: ask for 1 to "
                f"{width}"
            )


def check_probes(probes: Sequence[Probe], where: str) -> None:
    """Refuse probes that say nothing of a parent.

    Raises:
        RequestError: a text is not Unicode text, or all probes are the same one.
    """
    for index, probe in enumerate(probes):
        if any("\ud800" <= character <= "\udfff" for character in probe.text):
            raise RequestError(f"{where}: probe {index} has half of a surrogate pair, which is no text: take it out")
    if len(set(probes)) < 2:
        raise RequestError(
            f"{where}: all {len(probes)} probes are the text {probes[0].text[:40]!r}; parity compares neighbours, so "
            "give different texts"
        )


def check_calibration(job: ExportJob) -> None:
    """Refuse a job that needs ranges and has nothing to measure them on.

    Raises:
        RequestError: saying what needs them.
    """
    needing = []
    if Precision.INT8_STATIC in job.precisions:
        needing.append("the precision int8-static")
    if Encoding.INT8 in job.encodings:
        needing.append("the encoding int8")
    if needing and job.calibration is None:
        give = f'texts: give [calibration] file = "texts.txt", at least {MIN_CALIBRATION_TEXTS} of them, one per line'
        if job.parent.kind != TEXT:
            give = (
                f'images: give [calibration] file = "pictures/", a folder of at least {MIN_CALIBRATION_IMAGES} of them'
            )
        raise RequestError(
            f"{job.name}: {' and '.join(needing)} need{'s' if len(needing) == 1 else ''} ranges measured on your {give}"
        )


def _check_tolerances(tolerances: Mapping[Precision, Tolerance], path: Path) -> None:
    for precision, tolerance in tolerances.items():
        floor = FLOORS[precision]
        for name in ("max_abs", "cosine_mean", "cosine_min", "spread"):
            asked, allowed = getattr(tolerance, name), getattr(floor, name)
            if asked is None:
                continue
            least = name.startswith("cosine")
            if not (-1 <= asked <= 1 if least else 0 < asked < math.inf):
                raise RequestError(f"{path}: tolerances.{precision}.{name} = {asked:g} was asked; that cannot be held")
            if allowed is not None and not (asked >= allowed if least else asked <= allowed):
                raise RequestError(
                    f"{path}: tolerances.{precision}.{name} = {asked:g} was asked; the floor is {allowed:g}: "
                    "a job may tighten it, not loosen it"
                )


def _join(names: object) -> str:
    return ", ".join(str(name) for name in names)  # type: ignore[attr-defined]
