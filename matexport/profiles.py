"""``profiles/*.toml`` -> an `ExportJob`. Everything that can be refused without looking at the parent is refused here.

The file's tables are the records below, so what a key means is said once, in `matexport.spec`. What needs the
parent (does it have that many blocks, is it that wide) is checked by `check_points` as soon as its configuration
has been read, before any weights are.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import resources
from itertools import islice, pairwise, product
from pathlib import Path

import msgspec

from matexport.errors import RequestError
from matexport.records import read_record, read_toml
from matexport.spec import Encoding, ExportJob, ParentSource, Point, Precision, Probe, ReadoutRequest, Record, Tolerance

#: Parity floor of each precision, for every exit, batched, padded and alone. A profile file may tighten it.
#:
#: `max_abs` is absolute where a coordinate stays within 1 (as in unit vectors), otherwise in units of its largest value
#: among the probes. What the small precisions cost depends on the parent, so they are held by cosine; "seen" are the
#: worst mean and the least of 30 points of all-MiniLM-L6-v2 on the shipped probes, with the shipped calibration texts
#: or with 512 sentences of STS-B, whichever was worse (2026-11-21). `spread` is what a text may owe to its batch.
FLOORS: Mapping[Precision, Tolerance] = {
    # Ten times the 1e-6 that two orders of summation in 24 layers were seen to give; optimum validates at 1e-5, too.
    Precision.FP32: Tolerance(max_abs=1e-5),
    # 0.999999 was seen; 11 bits of every product leave room for deeper parents.
    Precision.FP16: Tolerance(cosine_mean=0.9999, cosine_min=0.999),
    # Above what other exporters' dynamic presets reached at their best, on sentences of STS-B: 0.992 and 0.973
    # (benchmarks/results/precisions.json). 0.9988 and 0.9955 were seen. And a text is itself in any batch.
    Precision.INT8: Tolerance(cosine_mean=0.993, cosine_min=0.975, spread=1e-6),
    # 0.983 and 0.960 were seen: one scale per value is the coarsest of all.
    Precision.INT8_STATIC: Tolerance(cosine_mean=0.95, cosine_min=0.85, spread=1e-5),
    # 0.9994 and 0.9978 were seen.
    Precision.Q8: Tolerance(cosine_mean=0.999, cosine_min=0.997, spread=1e-5),
    # 0.979 and 0.934 were seen.
    Precision.Q4: Tolerance(cosine_mean=0.93, cosine_min=0.85, spread=1e-5),
    # 0.985 and 0.945 were seen.
    Precision.Q4_MIXED: Tolerance(cosine_mean=0.97, cosine_min=0.92, spread=1e-5),
}

#: A probe file is read whole; this is far above what a gate in CI can use.
MAX_PROBES = 10_000

#: Ranges measured on fewer texts say more about the texts than about the parent.
MIN_CALIBRATION_TEXTS = 64
#: More do not move a percentile; the first of a longer file are taken.
MAX_CALIBRATION_TEXTS = 1024
#: Of a mix of texts that throughput is measured on.
MAX_MIX_TEXTS = 1024
#: A longer line is a file without line breaks.
MAX_TEXT_CHARACTERS = 1 << 20


class PointsTable(Record, frozen=True):
    """The ``[points]`` and ``[trained]`` tables: ``pairs``, or every combination of ``layers`` and ``dims``."""

    layers: tuple[int, ...] | None = None
    dims: tuple[int, ...] | None = None
    pairs: tuple[tuple[int, int], ...] | None = None


class ProbesTable(Record, frozen=True):
    """The ``[probes]`` table."""

    file: str


class CalibrationTable(Record, frozen=True):
    """The ``[calibration]`` table."""

    file: str


class ProfileFile(Record, frozen=True):
    """A profile file as it is written."""

    parent: ParentSource
    points: PointsTable
    precisions: tuple[Precision, ...] = (Precision.FP32,)
    encodings: tuple[Encoding, ...] = (Encoding.FLOAT32,)
    vocabulary: str | None = None
    calibration: CalibrationTable | None = None
    readout: ReadoutRequest = msgspec.field(default_factory=ReadoutRequest)
    probes: ProbesTable | None = None
    trained: PointsTable | None = None
    tolerances: Mapping[Precision, Tolerance] = msgspec.field(default_factory=dict)


def load_job(path: Path | str) -> ExportJob:
    """Read a profile file.

    Args:
        path: a TOML file such as ``profiles/minilm.toml``.

    Raises:
        RequestError: the file, or its probes or calibration texts, cannot be read, has unknown keys, or asks for
            something that no parent can give.
    """
    path = Path(path)
    data = read_toml(path, "profile")
    file = read_record(data, ProfileFile, str(path), RequestError)
    _check_tolerances(file.tolerances, path)
    if not file.precisions or len(set(file.precisions)) != len(file.precisions):
        raise RequestError(f"{path}: precisions must name at least one of {_join(Precision)}, each once")
    if not file.encodings or len(set(file.encodings)) != len(file.encodings):
        raise RequestError(f"{path}: encodings must name at least one of {_join(Encoding)}, each once")
    base = path.resolve().parent
    job = ExportJob(
        parent=file.parent,
        points=expand_points(file.points, str(path)),
        readout=file.readout,
        precisions=file.precisions,
        encodings=file.encodings,
        vocabulary=file.vocabulary,
        trained=expand_points(file.trained, f"{path}: trained") if file.trained else None,
        calibration=base / file.calibration.file if file.calibration else None,
        probes=base / file.probes.file if file.probes else None,
        tolerances=file.tolerances,
        base=base,
        name=path.stem,
    )
    check_calibration(job)
    load_probes(job.probes)  # what is wrong with these files is said before the parent is looked at
    if job.calibration:
        load_calibration(job.calibration)
    return job


def change_precisions(job: ExportJob, precisions: Sequence[Precision]) -> ExportJob:
    """The job with other precisions than its profile file names.

    Raises:
        RequestError: one of them needs calibration texts, and the job has none.
    """
    job = msgspec.structs.replace(job, precisions=tuple(dict.fromkeys(precisions)))
    check_calibration(job)
    return job


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
    points = sorted(Point(layers, dim) for layers, dim in pairs)
    twice = next((left for left, right in pairwise(points) if left == right), None)
    if twice:
        raise RequestError(f"{where}: the point (layers={twice.layers}, dim={twice.dim}) is asked for twice")
    return tuple(points)


def check_points(points: Sequence[Point], blocks: int | None, width: int | None, source: str) -> None:
    """Refuse points that a parent does not contain.

    Args:
        blocks: the parent's number of transformer blocks; None where that is not known yet.
        width: width of its sentence vector, after its heads; None where that is not known yet.

    Raises:
        RequestError: naming the first such point and what is allowed.
    """
    for point in points:
        if blocks == 0 and point.layers:
            raise RequestError(
                f"layers={point.layers} was asked; {source} looks its tokens up in a table and has no blocks: ask for "
                "layers = [0], and for dims alone"
            )
        if blocks and not 1 <= point.layers <= blocks:
            raise RequestError(f"layers={point.layers} was asked; {source} has {blocks} blocks: ask for 1 to {blocks}")
        if width is not None and point.dim > width:
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


def load_shipped_calibration() -> tuple[str, ...]:
    """The texts that precisions are measured on where a job gives none. None of them is a probe."""
    with resources.as_file(resources.files("matexport").joinpath("data/calibration.txt")) as path:
        return load_calibration(path)


def load_calibration(path: Path) -> tuple[str, ...]:
    """The different texts of a calibration file, one per line; of a longer one, the first 1024.

    Raises:
        RequestError: the file cannot be read, or has fewer than 64 different texts.
    """
    texts = read_texts(path, MAX_CALIBRATION_TEXTS, "the calibration texts")
    if len(texts) < MIN_CALIBRATION_TEXTS:
        raise RequestError(
            f"{path} has {len(texts)} different texts; ranges need at least {MIN_CALIBRATION_TEXTS}, one per line, "
            "of the kind that will be embedded"
        )
    return texts


def read_texts(path: Path, most: int, what: str) -> tuple[str, ...]:
    """The first different texts of a file with one per line; blank lines are skipped.

    Args:
        what: names the texts in messages.

    Raises:
        RequestError: the file cannot be read, or a text is longer than any tokenizer's limit.
    """
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            lines = (line.strip() for line in iter(lambda: file.readline(MAX_TEXT_CHARACTERS + 1), ""))
            texts = tuple(islice(_drop_repeated(lines), most))
    except OSError as problem:
        raise RequestError(f"cannot read {what} {path}: {problem.strerror}") from None
    except UnicodeDecodeError:
        raise RequestError(f"{what} {path} are not UTF-8 text") from None
    if any(len(text) >= MAX_TEXT_CHARACTERS for text in texts):
        raise RequestError(f"{what} {path} hold a line of {MAX_TEXT_CHARACTERS} characters; one text per line is taken")
    return texts


def _drop_repeated(lines: Iterable[str]) -> Iterator[str]:
    seen = {""}
    for line in lines:
        if line not in seen:
            seen.add(line)
            yield line


def check_calibration(job: ExportJob) -> None:
    """Refuse a job that needs ranges and has no texts to measure them on.

    Raises:
        RequestError: saying what needs them.
    """
    needing = []
    if Precision.INT8_STATIC in job.precisions:
        needing.append("the precision int8-static")
    if Encoding.INT8 in job.encodings:
        needing.append("the encoding int8")
    if needing and job.calibration is None:
        raise RequestError(
            f"{job.name}: {' and '.join(needing)} need{'s' if len(needing) == 1 else ''} ranges measured on your "
            f'texts: give [calibration] file = "texts.txt", at least {MIN_CALIBRATION_TEXTS} of them, one per line'
        )


def tighten(asked: Tolerance, floor: Tolerance) -> Tolerance:
    """The tighter of the two, number by number: what is asked cannot loosen the floor."""

    def choose(mine: float | None, theirs: float | None, tighter: Callable[[float, float], bool]) -> float | None:
        if mine is None or theirs is None:
            return theirs if mine is None else mine
        return mine if tighter(mine, theirs) else theirs  # False for NaN: the floor stays

    return Tolerance(
        max_abs=choose(asked.max_abs, floor.max_abs, operator.le),
        cosine_mean=choose(asked.cosine_mean, floor.cosine_mean, operator.ge),
        cosine_min=choose(asked.cosine_min, floor.cosine_min, operator.ge),
        spread=choose(asked.spread, floor.spread, operator.le),
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
                    "a profile may tighten it, not loosen it"
                )


def _join(names: object) -> str:
    return ", ".join(str(name) for name in names)  # type: ignore[attr-defined]
