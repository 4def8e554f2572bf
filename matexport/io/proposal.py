"""What was found about a parent, and which points and precisions are worth exporting.

`export.outline` looks at the parent and makes an `Outline`; `job_file` writes a job file from it. The proposed points
are those that the parent's files name as trained, or else a few depths and halved dims, so that the first family shows
what they cost. The proposed precisions are those that need no further input from the user.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from itertools import product

from matexport.errors import RequestError
from matexport.spec.facts import ParentFacts
from matexport.spec.inputs import TextFacts
from matexport.spec.job import ParentSource
from matexport.spec.profile import Point, Precision
from matexport.spec.readout import Readout, ReadoutRequest
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
        tail: names of the modules after the last block, such as a final norm; empty for post-norm parents.
    """

    parent: ParentFacts
    readout: Readout
    text: TextFacts
    tail: tuple[str, ...] = ()


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

    @property
    def blocks(self) -> int:
        """Number of the parent's blocks; 0 for a parent that looks its tokens up in a table."""
        return self.found.parent.blocks


def choose_points(outline: Outline, selection: Selection | None = None) -> tuple[Point, ...]:
    """Points that are worth exporting, at least one, sorted.

    Args:
        selection: which points to choose; None for the trained ones where they are known, else a grid.

    Raises:
        RequestError: trained points were asked for, and no file of the parent names a point that can be read.
    """
    if selection is Selection.WHOLE:
        return (Point(outline.depths[-1], outline.width),)
    stated = outline.trained.points if outline.trained else ()
    readable = [point for point in stated if point.layers in outline.depths]
    if selection is Selection.GRID or (selection is None and not readable):
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
        RequestError: a name is not that of a precision, or the precision needs calibration texts from the user.
    """
    for name in asked:
        if name not in list(Precision):
            raise RequestError(f"the precision {name!r} was asked; there are {', '.join(Precision)}")
        if name == Precision.INT8_STATIC:
            raise RequestError(
                f"{name} was asked; it needs ranges measured on texts of yours: have the file written without it, then "
                "add it there together with [calibration]"
            )


def choose_precisions(outline: Outline, asked: Sequence[str] = ()) -> tuple[Precision, ...]:
    """The precisions that were asked for, each once.

    If none was asked for, these are fp32 and int8, or only fp32 for a parent without blocks.

    Raises:
        RequestError: a name is not that of a precision, or export would refuse this precision in the job.
    """
    if not asked:
        return (Precision.FP32, Precision.INT8) if outline.blocks else (Precision.FP32,)
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
    if len(points) == len(layers) * len(dims):
        return f"{_count(layers, 'depth')} x {_count(dims, 'dim')}"
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
    if len(points) <= MOST_POINTS or len(points) != len(layers) * len(dims):
        return tuple(sorted(points))
    kept = _spread(layers, max(DEPTHS, MOST_POINTS // len(dims)))
    return tuple(sorted(Point(*pair) for pair in product(kept, _spread(dims, MOST_POINTS // len(kept)))))


def split_grid(points: Iterable[Point]) -> tuple[list[int], list[int]]:
    """The different layers and the different dims of some points, both sorted."""
    points = list(points)
    return sorted({point.layers for point in points}), sorted({point.dim for point in points})
