"""What was found about a parent, and which points and precisions are worth exporting.

`export.outline` looks at the parent and makes an `Outline`; `job_file` writes a job file from it. The proposed points
are those that the parent's files name as trained, or else a few depths and halved dims, so that the first family shows
what they cost. The proposed precisions are those that need no further input from the user.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from itertools import product
from pathlib import Path

from matexport.errors import RequestError
from matexport.spec.facts import ParentFacts
from matexport.spec.inputs import ImageFacts, TextFacts
from matexport.spec.job import ParentSource
from matexport.spec.profile import Point, Precision
from matexport.spec.readout import PoolingMode, Readout, ReadoutRequest
from matexport.spec.record import Record

#: At most so many points are proposed, unless the trained points are pairs that are no grid.
MOST_POINTS = 30
#: The grid for parents whose trained points are not known: number of depths, and the smallest of the halved dims.
DEPTHS, LEAST_DIM = 3, 32


class Selection(StrEnum):
    """Which points a job file asks for: those the parent was trained at, a grid over it, or the whole parent alone."""

    TRAINED = "trained"
    GRID = "grid"
    WHOLE = "whole"


class Trained(Record, frozen=True):
    """Where a parent's files say that it was trained to be read.

    Attributes:
        points: those that lie within the parent's depths and dims, sorted.
        source: the file and the part of it that says so, such as ``README.md (MatryoshkaLoss)``.
        raw: whether training read the states after early blocks without the final norm.
    """

    points: tuple[Point, ...]
    source: str
    raw: bool = False


class Found(Record, frozen=True):
    """What export's own plan of the parent says.

    Attributes:
        text, image: what it takes; exactly one of them is set.
        tail: names of the modules after the last block, such as a final norm; empty for post-norm parents.
        poolings: of a parent that takes images, how it can be read; empty where nothing is pooled.
    """

    parent: ParentFacts
    readout: Readout
    text: TextFacts | None = None
    tail: tuple[str, ...] = ()
    image: ImageFacts | None = None
    poolings: tuple[PoolingMode, ...] = ()


class Outline(Record, frozen=True):
    """What was found about a parent.

    Attributes:
        parent: the parent as the job names it.
        request: the settings of the job's ``[readout]``: those that it needs, and those that are proposed.
        found: what export's plan says with these settings.
        width: number of coordinates of a vector that the parent's users get.
        depths: numbers of blocks after which the parent can be read.
        routes: names of the routes of a parent that routes its texts.
        trained: the trained points; None where no file names any.
        refused: a sentence for each thing that export would refuse, with the reason.
        ignored: a sentence for each statement of the parent's files that cannot be used.
        commit: the revision of a hub parent that was looked at.
        only: the points that can be read where these are no grid: a classifier's heads, numbers of visual tokens.
    """

    parent: ParentSource
    request: ReadoutRequest
    found: Found
    width: int
    depths: tuple[int, ...]
    routes: tuple[str, ...] = ()
    trained: Trained | None = None
    refused: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    commit: str | None = None
    only: tuple[Point, ...] = ()

    @property
    def blocks(self) -> int:
        """Number of the parent's blocks; 0 for a parent that looks its tokens up in a table."""
        return self.found.parent.blocks


def spell_source(source: str, folder: Path | None) -> str:
    """A parent's source as a job file in `folder` has to name it: a relative path from there, anything else unchanged.

    Args:
        source: what the user typed; a relative path starts from the current directory.
        folder: the folder of the job file; None if it may be put anywhere, so that paths are absolute.
    """
    given = Path(source)
    if source.startswith(("package:", "~")) or not given.is_dir():
        return source
    # Links are resolved only in a path with ".."; in others, the user means the link itself.
    absolute = given.resolve() if ".." in given.parts else given.absolute()
    if folder is None or given.is_absolute():
        return absolute.as_posix()
    try:
        relative = Path(os.path.relpath(absolute, folder.resolve())).as_posix()
    except ValueError:  # another drive
        return absolute.as_posix()
    return relative if relative.startswith(".") else f"./{relative}"  # or it could be taken for a hub id


def name_job(source: str) -> str:
    """A file name without suffix for the job of a parent; the family is named after it, too."""
    if source.startswith("package:"):
        name = source.removeprefix("package:").partition("/")[0].replace("_", "-")
    else:
        name = Path(source).name if Path(source).name not in ("", "..") else Path(source).absolute().resolve().name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "parent"


def choose_points(outline: Outline, selection: Selection | None = None) -> tuple[Point, ...]:
    """Points that are worth exporting, at least one, sorted.

    Args:
        selection: which points to choose; None for the trained ones where they are known, else a grid.

    Raises:
        RequestError: trained points were asked for, and no file of the parent names a point that can be read.
    """
    if selection is Selection.WHOLE:
        return outline.only[-1:] or (Point(outline.depths[-1], outline.width),)
    stated = outline.trained.points if outline.trained else ()
    readable = [point for point in stated if point.layers in outline.depths]
    if selection is Selection.GRID or (selection is None and not readable):
        if outline.only:
            return outline.only
        return tuple(sorted(Point(*pair) for pair in product(_spread(outline.depths, DEPTHS), _halve(outline.width))))
    if not readable:
        raise RequestError(
            f"the points {Selection.TRAINED} were asked; nothing in the files of {outline.parent.source} says where it "
            f"was trained to be read: ask for {Selection.GRID} or {Selection.WHOLE}"
        )
    return _thin(readable)


def check_precisions(asked: Sequence[str]) -> None:
    """Refuse names of precisions that `init` can propose for no parent.

    Raises:
        RequestError: a name is not that of a precision, or the precision needs the user's own calibration items.
    """
    for name in asked:
        if name not in list(Precision):
            raise RequestError(f"the precision {name!r} was asked; there are {', '.join(Precision)}")
        if name == Precision.INT8_STATIC:
            raise RequestError(
                f"{name} was asked; it needs ranges measured on texts or images of yours: have the file written "
                "without it, then add it there together with [calibration]"
            )


def choose_precisions(outline: Outline, asked: Sequence[str] = ()) -> tuple[Precision, ...]:
    """The precisions that were asked for, each once.

    If none was asked for, these are fp32 and int8, or only fp32 for a parent without blocks.

    Raises:
        RequestError: a name is not that of a precision, or export would refuse this precision in the job.
    """
    if not asked:
        small = outline.blocks and outline.parent.kind != "classifier"  # whose blocks are convolutions
        return (Precision.FP32, Precision.INT8) if small else (Precision.FP32,)
    check_precisions(asked)
    for name in asked:
        if not outline.blocks and name not in (Precision.FP32, Precision.FP16):
            raise RequestError(
                f"{name} was asked; {outline.parent.source} looks its tokens up in a table and has no blocks, whose "
                f"products {name} would make smaller: ask for {Precision.FP32}"
            )
    return tuple(dict.fromkeys(Precision(name) for name in asked))


def describe_points(points: Iterable[Point]) -> str:
    """Points in a few words, such as ``3 depths (2, 4, 6) x 4 dims (48, 96, 192, 384)``."""
    points = sorted(points)
    layers, dims = split_grid(points)
    tokens = sorted({point.tokens for point in points} - {0})
    if len(points) == len(layers) * len(dims) * max(len(tokens), 1):
        more = f" x {_count(tokens, 'number')} of tokens" if tokens else ""
        return f"{_count(layers, 'depth')} x {_count(dims, 'dim')}{more}"
    listed = [f"({point.layers}, {point.dim})" for point in points]
    return f"{len(points)} pairs of layers and dim: {join_some(listed)}"


def _count(numbers: Sequence[int], noun: str) -> str:
    listed = join_some([str(number) for number in numbers], 12)
    if len(numbers) > 3 and numbers[-1] - numbers[0] == len(numbers) - 1:
        listed = f"{numbers[0]} to {numbers[-1]}"
    return f"{len(numbers)} {noun}{'' if len(numbers) == 1 else 's'} ({listed})"


def join_some(items: Sequence[str], most: int = 6) -> str:
    """The first `most` items as a list in words, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def _spread(values: Sequence[int], count: int) -> list[int]:
    """At most `count` of some sorted numbers, evenly spread, the last one included."""
    count = min(count, len(values))
    return [values[-(-len(values) * place // count) - 1] for place in range(1, count + 1)]


def _halve(width: int) -> list[int]:
    """The width, its half, and so on down to `LEAST_DIM`, smallest first."""
    dims = [width]
    while dims[0] // 2 >= LEAST_DIM:
        dims.insert(0, dims[0] // 2)
    return dims


def _thin(points: Sequence[Point]) -> tuple[Point, ...]:
    """At most `MOST_POINTS` of the points of a grid, with fewer depths first and then fewer dims; other points stay."""
    layers, dims = split_grid(points)
    if any(point.tokens for point in points):
        return tuple(sorted(points))
    if len(points) <= MOST_POINTS or len(points) != len(layers) * len(dims):
        return tuple(sorted(points))
    kept = _spread(layers, max(DEPTHS, MOST_POINTS // len(dims)))
    return tuple(sorted(Point(*pair) for pair in product(kept, _spread(dims, MOST_POINTS // len(kept)))))


def split_grid(points: Iterable[Point]) -> tuple[list[int], list[int]]:
    """The different layers and the different dims of some points, both sorted."""
    points = list(points)
    return sorted({point.layers for point in points}), sorted({point.dim for point in points})
