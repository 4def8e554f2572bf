"""Rotary positions: x cos + turned(x) sin, where turned puts the second half of a head, with the other sign, first.

Cosines and sines are worked out for small batches and for a longer text, and compared with those of positions times
frequencies; the frequencies are a constant that they are made with, or the angles at position 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from matexport.runtime.engines.native.geometry.known import (
    BATCH,
    CASES,
    FIRST,
    ONE,
    TOKENS,
    Axis,
    Case,
    Constant,
    Known,
    column,
    find_reach,
    list_parts,
    make_case,
)
from matexport.runtime.engines.native.geometry.node import Node
from matexport.runtime.engines.native.geometry.operators import Array
from matexport.runtime.engines.native.patterns.values import Grid, Source, Value, cut_columns, describe_axes, refuse
from matexport.runtime.engines.native.steps import Index, Rotate
from matexport.spec.record import Record

#: Tokens of a text that angles are looked at for, at least and at most.
_LENGTH, _MOST_TOKENS = 300, 1 << 15

#: How far a cosine may be from the formula's: in float32, p times a frequency is off by 2^-24 of it.
_TOLERANCE, _TOLERANCE_BY_PLACE = 2e-6, 2.0**-22


class Turned(Record, frozen=True):
    """The second half of each head with the other sign, and the first behind it."""

    grid: Grid


class Spun(Record, frozen=True, eq=False):
    """That times what follows from places alone."""

    grid: Grid
    by: Known


class Angles(NamedTuple):
    """What cosines and sines are those of: see `Rotate`."""

    frequencies: Array
    scale: float
    places: Index


class Partly(Record, frozen=True, eq=False):
    """The first columns of each head, rotated; the rest of a head is still missing."""

    grid: Grid
    angles: Angles


def join(node: Node, given: Sequence[Value]) -> Turned | Grid:
    """Concat of the halves of heads, or of their rotated columns and the others.

    Raises:
        UnknownGraphError: of something else.
    """
    if len(given) != 2 or not isinstance(given[1], Grid):
        raise refuse("it joins other than two parts of heads")
    second, first = given
    rank = len(first.axes)
    if node.read_int("axis", 0) not in (-1, rank - 1):
        raise refuse("it joins along another axis than the columns of heads")
    if isinstance(second, Partly):
        return _join_rest(second, first)
    whole = _join_grids(first, Grid(second.source, second.axes, second.first, -second.factor))
    if whole is None or first.width != second.width:
        raise refuse("it joins columns that are not the halves of heads")
    return Turned(whole)


def _join_grids(left: Grid, right: Grid) -> Grid | None:
    """Columns that lie beside each other; None where they do not."""
    beside = right.first == left.first + left.width and left.axes[:-1] == right.axes[:-1]
    plain = all(grid.axes[-1].kind == "columns" and grid.axes[-1].stride == 1 for grid in (left, right))
    if left.source is not right.source or left.factor != right.factor or not beside or not plain:
        return None
    return Grid(left.source, (*left.axes[:-1], column(left.width + right.width)), left.first, left.factor)


def spin(_node: Node, given: Sequence[Value]) -> Spun:
    """Turned heads times sines."""
    return Spun(given[0].grid, given[1])


def rotate(_node: Node, given: Sequence[Value]) -> Grid | Partly:
    """Heads times cosines, plus turned heads times sines.

    Raises:
        UnknownGraphError: they are not those of positions.
    """
    timed, spun = given
    grid = timed.grid
    if grid != spun.grid or len(grid.axes) != 4:
        raise refuse("it adds parts of other heads")
    angles = read_angles(timed.by, spun.by, grid)
    if FIRST in grid.axes:  # position 0, where nothing is turned
        return Grid(grid.source, grid.axes, grid.first, grid.factor * angles.scale)
    heads = _find_heads(grid)
    whole = grid.width == (heads.stride if heads.size > 1 else grid.source.width)
    return _rotate(grid, heads, angles) if whole else Partly(grid, angles)


def _find_heads(grid: Grid) -> Axis:
    others = [axis for axis in grid.axes[:-1] if axis not in (BATCH, TOKENS, ONE)]
    if len(others) > 1 or any(axis.kind != "columns" or axis.repeat != 1 for axis in others):
        raise refuse(f"a rotation of {describe_axes(grid.axes)}")
    return others[0] if others else column(1)


def _rotate(grid: Grid, heads: Axis, angles: Angles) -> Grid:
    source = cut_columns(grid.source, grid.first, heads.size * grid.width, grid.factor)

    def make(out: int, of: int) -> Rotate:
        return Rotate(out, of, heads.size, angles.frequencies, angles.scale, False, angles.places)

    return Grid(Source(source.width, make, (source,)), grid.axes)


def _join_rest(part: Partly, rest: Grid) -> Grid:
    whole = _join_grids(part.grid, rest)
    heads = _find_heads(part.grid)
    if whole is None or (heads.size > 1 and heads.stride != whole.width):
        raise refuse("it joins rotated columns with those of other heads")
    return _rotate(whole, heads, part.angles)


def read_angles(cosines: Known, sines: Known, grid: Grid) -> Angles:
    """The angles of a matrix's tokens.

    Raises:
        UnknownGraphError: they are not positions times frequencies, the same for both halves of all heads.
    """
    axes = grid.axes
    key = "angles", id(sines), tuple(axis.kind for axis in axes), grid.width
    notes = cosines.notes  # type: ignore[union-attr]
    if key not in notes:
        notes[key] = sines, _read_angles(cosines, sines, axes)
    found: Angles = notes[key][1]
    return found


def _read_angles(cosines: Known, sines: Known, axes: Sequence[Axis]) -> Angles:
    half = axes[-1].size // 2
    if axes[-1].size % 2 or not half:
        raise refuse("heads of an odd number of columns are turned")
    reach = find_reach((cosines, sines), _MOST_TOKENS) or 0
    cases = (*CASES, make_case(max(_LENGTH, reach), left=FIRST not in axes))
    pairs = [(_spread(cosines, case, axes), _spread(sines, case, axes)) for case in cases]
    scale = float(pairs[0][0][0, 0])
    if FIRST in axes:
        if all((cos == scale).all() and not sin.any() for cos, sin in pairs):
            return Angles(np.zeros(half, np.float32), scale, Index.ORDER)
        raise refuse("the first token is turned")
    for frequencies in _list_frequencies(cosines, pairs[0], half):
        for index in (Index.COLUMNS, Index.ORDER):
            if all(_fit(pair, case, frequencies, scale, index) for pair, case in zip(pairs, cases, strict=True)):
                return Angles(frequencies, scale, index)
    raise refuse("cosines and sines are not those of positions times frequencies")


def _spread(known: Known, case: Case, axes: Sequence[Axis]) -> Array:
    """(unmasked tokens, columns of a head)."""
    array = np.asarray(known.work_out(case))
    try:
        # The heads are not told apart: 1 of them is enough, and more than 1 does not fit.
        whole = np.broadcast_to(
            array, case.measure([*(ONE if axis.kind == "columns" else axis for axis in axes[:-1]), axes[-1]])
        )
    except ValueError:
        raise refuse(f"heads {describe_axes(axes)} are multiplied with numbers of the shape {array.shape}") from None
    places = [axes.index(BATCH), next(place for place, axis in enumerate(axes) if axis in (TOKENS, FIRST))]
    rows = np.moveaxis(whole, places, (0, 1)).reshape(case.texts, -1, axes[-1].size)
    real = case.mask[:, :1] if FIRST in axes else case.mask
    found: Array = rows[real]
    return found


def _list_frequencies(cosines: Known, pair: tuple[Array, Array], half: int) -> list[Array]:
    """Frequencies to try: constants of that size, and the angles of the first text's second token."""
    known = [
        part.array.reshape(-1)
        for part in list_parts(cosines)
        if isinstance(part, Constant) and np.prod(part.shape) == half
    ]
    angles = np.arctan2(pair[1][1, :half].astype(np.float64), pair[0][1, :half].astype(np.float64))
    return [array for array in known if array.dtype == np.float32] + [angles.astype(np.float32)]


def _fit(pair: tuple[Array, Array], case: Case, frequencies: Array, scale: float, index: Index) -> bool:
    counted = np.cumsum(case.mask, axis=1) - 1
    places = counted if index is Index.ORDER else np.broadcast_to(np.arange(case.tokens), case.mask.shape)
    angles = places[case.mask][:, None] * frequencies.astype(np.float64)
    allowed = abs(scale) * (_TOLERANCE + _TOLERANCE_BY_PLACE * np.abs(angles))
    for array, made in zip(pair, (np.cos(angles), np.sin(angles)), strict=True):
        halves = array[:, : len(frequencies)], array[:, len(frequencies) :]
        if any((np.abs(found - scale * made) > allowed).any() for found in halves):
            return False
    return True
