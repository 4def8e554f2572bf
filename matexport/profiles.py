"""``profiles/*.toml`` -> an `ExportJob`. Everything that can be refused without looking at the parent is refused here.

The file's tables are the records below, so what a key means is said once, in `matexport.spec`. What needs the
parent (does it have that many blocks, is it that wide) is checked by `check_points` as soon as its configuration
has been read, before any weights are.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import pairwise, product
from pathlib import Path

from matexport.errors import RequestError
from matexport.records import read_record
from matexport.spec import ExportJob, ParentSource, Point, Precision, Probe, ReadoutRequest, Tolerance

#: Parity floor of each precision: the largest difference of one coordinate, absolute where that coordinate stays
#: within 1 (as in unit vectors), otherwise in units of its largest value among the probes. fp32: ten times the 1e-6
#: that two orders of summation in 24 layers of fp32 were seen to give (2026-11; optimum validates at 1e-5, too).
FLOORS: Mapping[Precision, Tolerance] = {Precision.FP32: Tolerance(max_abs=1e-5)}

#: A probe file is read whole; this is far above what a gate in CI can use.
MAX_PROBES = 10_000


@dataclass(frozen=True)
class PointsTable:
    """The ``[points]`` table: ``pairs``, or every combination of ``layers`` and ``dims``."""

    layers: tuple[int, ...] | None = None
    dims: tuple[int, ...] | None = None
    pairs: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True)
class ProbesTable:
    """The ``[probes]`` table."""

    file: str


@dataclass(frozen=True)
class ProfileFile:
    """A profile file as it is written."""

    parent: ParentSource
    points: PointsTable
    precisions: tuple[Precision, ...] = (Precision.FP32,)
    readout: ReadoutRequest = field(default_factory=ReadoutRequest)
    probes: ProbesTable | None = None
    tolerances: Mapping[Precision, Tolerance] = field(default_factory=dict)


def load_job(path: Path | str) -> ExportJob:
    """Read a profile file.

    Args:
        path: a TOML file such as ``profiles/minilm.toml``.

    Raises:
        RequestError: the file cannot be read, has unknown keys, or asks for something that no parent can give.
    """
    path = Path(path)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise RequestError(f"cannot read the profile {path}: {problem.strerror}") from None
    except (ValueError, RecursionError) as problem:  # TOML, UTF-8, or more digits or brackets than Python reads
        raise RequestError(f"{path} is not a TOML file: {problem}") from None
    file = read_record(data, ProfileFile, str(path), RequestError)
    _check_tolerances(file.tolerances, path)
    if not file.precisions or len(set(file.precisions)) != len(file.precisions):
        raise RequestError(f"{path}: precisions must name at least one of {_join(Precision)}, each once")
    base = path.resolve().parent
    return ExportJob(
        parent=file.parent,
        points=expand_points(file.points, str(path)),
        readout=file.readout,
        precisions=file.precisions,
        probes=base / file.probes.file if file.probes else None,
        tolerances=file.tolerances,
        base=base,
        name=path.stem,
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
        if layers < 1 or dim < 1:
            raise RequestError(f"{where}: the point (layers={layers}, dim={dim}) was asked for; both start at 1")
    points = sorted(Point(layers, dim) for layers, dim in pairs)
    twice = next((left for left, right in pairwise(points) if left == right), None)
    if twice:
        raise RequestError(f"{where}: the point (layers={twice.layers}, dim={twice.dim}) is asked for twice")
    return tuple(points)


def check_points(points: Sequence[Point], blocks: int, width: int, source: str) -> None:
    """Refuse points that a parent does not contain.

    Args:
        blocks: the parent's number of transformer blocks.
        width: width of its sentence vector, after its heads.

    Raises:
        RequestError: naming the first such point and what is allowed.
    """
    for point in points:
        if point.layers > blocks:
            raise RequestError(f"layers={point.layers} was asked; {source} has {blocks} blocks: ask for 1 to {blocks}")
        if point.dim > width:
            raise RequestError(
                f"dim={point.dim} was asked; the vectors of {source} have {width} coordinates: ask for 1 to {width}"
            )


def load_probes(path: Path | None) -> tuple[Probe, ...]:
    """The probes of a job: JSON Lines, one ``{"text": ..., "prompt": ...}`` each; the shipped ones for None.

    Raises:
        RequestError: the file cannot be read, is empty, too long, or a line is no probe.
    """
    if path is None:
        lines = resources.files("matexport").joinpath("data/probes.jsonl").read_text(encoding="utf-8")
        return parse_probes(lines, "the shipped probes")
    try:
        return parse_probes(path.read_text(encoding="utf-8"), str(path))
    except OSError as problem:
        raise RequestError(f"cannot read the probes {path}: {problem.strerror}") from None
    except UnicodeDecodeError:
        raise RequestError(f"the probes {path} are not UTF-8 text") from None


def parse_probes(lines: str, where: str) -> tuple[Probe, ...]:
    """Read JSON Lines of probes. `where` names the source in messages."""
    probes = []
    # Not str.splitlines: it also cuts at U+2028 and others, which JSON leaves unescaped inside strings.
    for number, line in enumerate(lines.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except (ValueError, RecursionError) as problem:  # ValueError: also more digits than Python reads
            raise RequestError(f"{where}, line {number}: not JSON ({problem})") from None
        probes.append(read_record(data, Probe, f"{where}, line {number}", RequestError))
    if len(probes) < 2:
        raise RequestError(f"{where}: {len(probes)} probes; parity needs at least 2, to compare neighbours")
    if len(probes) > MAX_PROBES:
        raise RequestError(f"{where}: {len(probes)} probes; at most {MAX_PROBES} are taken")
    return tuple(probes)


def _check_tolerances(tolerances: Mapping[Precision, Tolerance], path: Path) -> None:
    for precision, tolerance in tolerances.items():
        floor = FLOORS[precision].max_abs
        if not 0 < tolerance.max_abs <= floor:
            raise RequestError(
                f"{path}: tolerances.{precision}.max_abs = {tolerance.max_abs:g} was asked; the floor is {floor:g}: "
                "a profile may tighten it, not loosen it"
            )


def _join(names: object) -> str:
    return ", ".join(str(name) for name in names)  # type: ignore[attr-defined]
