"""What is known of values while a graph is read: matrices, how the graph sees them, and half-read patterns.

A matrix is made by a step that is only written down when something needs it (`Source`). A graph sees it with axes in
some order, its columns split into heads, cut or scaled (`Grid`): none of which is a step of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from matexport.runtime.engines.native.geometry.known import BATCH, FIRST, FLAT, TOKENS, Axis, column
from matexport.runtime.engines.native.geometry.node import Node, UnknownGraphError
from matexport.runtime.engines.native.geometry.operators import Array
from matexport.runtime.engines.native.steps import Affine, Columns, Matrix, Step
from matexport.spec.record import Record

#: Axes before the columns, of a matrix that is seen as it is.
ROW_AXES = ((BATCH, TOKENS), (BATCH,), (BATCH, FIRST), (FLAT,))


class Source:
    """A matrix.

    Args:
        width: its columns.
        make: (its number, those of `needs`) -> the step that makes it.
        needs: the matrices that the step reads.
        made_by: what a rule may still take up into the step: see who sets it.

    Attributes:
        number: once the step is written down.
        parts: of some columns, or scaled, as they were asked for.
    """

    def __init__(
        self, width: int, make: Callable[..., Step], needs: tuple[Source, ...] = (), *, made_by: Any = None
    ) -> None:
        self.width, self.make, self.needs, self.made_by = width, make, needs, made_by
        self.number: Matrix | None = None
        self.parts: dict[Any, Source] = {}


class Grid(Record, frozen=True):
    """How a graph sees a matrix.

    Attributes:
        axes: those of the texts and tokens, and of its columns.
        first: the column that all columns are counted from.
        factor: what all its numbers are multiplied by.
    """

    source: Source
    axes: tuple[Axis, ...]
    first: int = 0
    factor: float = 1.0

    @property
    def width(self) -> int:
        """Of its last axis."""
        return self.axes[-1].size * self.axes[-1].repeat

    @property
    def is_rows(self) -> bool:
        """Whether it is seen as rows of columns that lie side by side."""
        last = self.axes[-1]
        return self.axes[:-1] in ROW_AXES and last.kind == "columns" and last.stride == 1 == last.repeat

    def like(self, source: Source) -> Grid:
        """Another matrix with the same rows."""
        return Grid(source, (*self.axes[:-1], column(source.width)))


class Scaled(Record, frozen=True):
    """`made_by` of rows times a (K,) vector, and plus another: either may be missing."""

    base: Source
    weight: Array | None
    bias: Array | None


class Biasable(Record, frozen=True):
    """`made_by` of a product that a bias may be added to."""

    add: Callable[[Array], Source]


Value: TypeAlias = Any
#: (the node, what it is given) -> what it gives; a tuple where that is several values.
Rule: TypeAlias = Callable[[Node, Sequence[Value]], Value]


def find_rows(value: Value, what: str = "it") -> Source:
    """The matrix of a value that is seen as rows; cut columns and a factor become steps.

    Raises:
        UnknownGraphError: it is seen otherwise, or is no matrix.
    """
    if not isinstance(value, Grid):
        raise UnknownGraphError(f"{what} is no matrix of texts or tokens")
    if not value.is_rows:
        raise UnknownGraphError(f"{what} has the axes {describe_axes(value.axes)}, not rows")
    return cut_columns(value.source, value.first, value.width, value.factor)


def cut_columns(source: Source, first: int, count: int, factor: float = 1.0) -> Source:
    """Some columns of a matrix, times a factor; the matrix itself where that is all of it."""
    found = source
    if (first, count) != (0, source.width):
        found = keep_part(
            source, (first, count), lambda: Source(count, lambda out, of: Columns(out, of, first, count), (source,))
        )
    if factor != 1.0:
        weight = np.full(count, factor, np.float32)
        found = keep_part(found, factor, lambda base=found: scale_rows(base, weight, None))  # type: ignore[misc]
    return found


def keep_part(source: Source, key: Any, make: Callable[[], Source]) -> Source:
    """What is made of a matrix, made once."""
    if key not in source.parts:
        source.parts[key] = make()
    return source.parts[key]


def scale_rows(base: Source, weight: Array | None, bias: Array | None) -> Source:
    """Rows times a vector, and plus another."""
    return Source(
        base.width, lambda out, of: Affine(out, of, weight, bias), (base,), made_by=Scaled(base, weight, bias)
    )


def describe_axes(axes: Sequence[Axis]) -> str:
    """As messages name them."""
    named = (f"{axis.size * axis.repeat} columns" if axis.kind == "columns" else axis.kind for axis in axes)
    return f"({', '.join(named)})"


def refuse(text: str) -> UnknownGraphError:
    """An error to raise."""
    return UnknownGraphError(text)


def as_vector(array: Array, width: int) -> Array | None:
    """A constant that broadcasts along rows of some width, as (width,) float32; None where it is another."""
    if array.dtype != np.float32 or array.shape[-1:] != (width,) or array.size != width:
        return None
    return array.reshape(width)
