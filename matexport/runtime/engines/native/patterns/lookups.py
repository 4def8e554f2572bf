"""Embeddings: rows of tables, by the tokens, their types or their places, and their sum.

A place is whatever a graph works out from shapes, the mask and the ids: it is worked out for small batches and for a
text as long as the table, and compared with what `Index` means.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from matexport.runtime.engines.native.geometry.known import (
    BATCH,
    CASES,
    TOKENS,
    Case,
    Constant,
    Input,
    Known,
    Worked,
    column,
    find_constant,
    list_parts,
    make_case,
)
from matexport.runtime.engines.native.geometry.node import Node
from matexport.runtime.engines.native.geometry.operators import Array
from matexport.runtime.engines.native.patterns.values import Grid, Source, Value, refuse, scale_rows
from matexport.runtime.engines.native.steps import Embed, Index, Table

_INDICES = {"input_ids": Index.TOKENS, "token_type_ids": Index.TYPES}

#: Tables whose rows are added; encoders have up to three.
MOST_TABLES = 8

#: The longest text that places are worked out for.
_MOST_TOKENS = 1 << 14


class Picked:
    """Rows of a constant by an input."""

    def __init__(self, rows: Constant, index: Index) -> None:
        self.rows, self.index = rows, index

    @cached_property
    def embedded(self) -> Embedded:
        """The rows, of float32.

        Raises:
            UnknownGraphError: they are codes.
        """
        if self.rows.array.dtype != np.float32:
            raise refuse("it reads codes without their scales")
        return Embedded((Table(self.rows.array, None, self.index),))


class Embedded:
    """The sum of rows of tables, and of one row that is the same for all; a matrix when something reads it.

    Args:
        tables: whose rows are added.
        constant: (K,) float32; None where there is none.
    """

    def __init__(self, tables: tuple[Table, ...], constant: Array | None = None) -> None:
        self.tables, self.constant = tables, constant

    @cached_property
    def grid(self) -> Grid:
        """The matrix.

        Raises:
            UnknownGraphError: the tables have rows of several widths.
        """
        if len({table.rows.shape[1] for table in self.tables}) != 1:
            raise refuse("it adds rows of several widths")
        width = self.tables[0].rows.shape[1]
        source = Source(width, lambda out: Embed(out, self.tables))
        if self.constant is not None:
            if self.constant.shape != (width,):
                raise refuse("it adds rows of several widths")
            source = scale_rows(source, None, self.constant)
        return Grid(source, (BATCH, TOKENS, column(width)))


def pick(node: Node, given: Sequence[Value]) -> Picked | None:
    """Rows of a constant by an input of the graph; None where a Gather is something else."""
    table, index = given
    if not isinstance(table, Constant) or len(table.shape) != 2 or not isinstance(index, Input):
        return None
    if index.name not in _INDICES or node.read_int("axis", 0):
        return None
    return Picked(table, _INDICES[index.name])


def find_embedded(value: Value) -> Embedded | None:
    """Rows of tables; None where a value is something else.

    Raises:
        UnknownGraphError: it looks like rows by their places, and these are not known.
    """
    if isinstance(value, Embedded):
        return value
    if isinstance(value, Picked):
        return value.embedded
    return _read_places(value) if isinstance(value, Worked) else None


def as_grid(value: Value) -> Value:
    """The matrix of rows that were looked up; any other value as it is."""
    embedded = find_embedded(value) if isinstance(value, Embedded | Picked) else None
    return value if embedded is None else embedded.grid


def cast_codes(node: Node, given: Sequence[Value]) -> Picked:
    """Codes as float32, which the scales are multiplied with."""
    if node.read_int("to", 0) != 1:
        raise refuse("it makes other numbers than float32 of codes")
    picked: Picked = given[0]
    return picked


def scale_codes(_node: Node, given: Sequence[Value]) -> Embedded:
    """int8 rows times their scales."""
    codes, scales = given if given[0].rows.array.dtype == np.int8 else given[::-1]
    rows, steps = codes.rows.array, scales.rows.array
    if rows.dtype != np.int8 or steps.dtype != np.float32 or steps.shape != (len(rows), 1):
        raise refuse("it multiplies rows of two tables")
    if codes.index is not scales.index:
        raise refuse("codes and scales are looked up by different inputs")
    return Embedded((Table(rows, steps.reshape(-1), codes.index),))


def add_rows(_node: Node, given: Sequence[Value]) -> Embedded | None:
    """The sum of what was looked up; None where one of the two is something else."""
    left, right = map(find_embedded, given)
    if left is None or right is None:
        return None
    if len(left.tables) + len(right.tables) > MOST_TABLES:
        raise refuse(f"it adds rows of more than {MOST_TABLES} tables")
    constant = left.constant if right.constant is None else right.constant
    if left.constant is not None and right.constant is not None:
        constant = left.constant + right.constant
    return Embedded(left.tables + right.tables, constant)


def _read_places(value: Worked) -> Embedded | None:
    """Rows of a constant by places that the graph works out."""
    if "embedded" not in value.notes:
        value.notes["embedded"] = _find_places(value)
    found: Embedded | None = value.notes["embedded"]
    return found


def _find_places(value: Worked) -> Embedded | None:
    if value.node.type == "Gather":
        return _find_table(value, None)
    if value.node.type != "Mul":
        return None
    for codes, scales in (value.given, value.given[::-1]):
        if isinstance(codes, Worked) and codes.node.type == "Cast" and isinstance(scales, Worked):
            inner = codes.given[0]
            if isinstance(inner, Worked) and inner.node.type == scales.node.type == "Gather":
                return _find_table(inner, scales)
    return None


def _find_table(gathered: Worked, scaled: Worked | None) -> Embedded | None:
    rows, places = gathered.given
    steps = None
    if not isinstance(rows, Constant) or len(rows.shape) != 2 or gathered.node.read_int("axis", 0) or places is None:
        return None
    if scaled is not None:
        steps = find_constant(scaled.given[0])
        if scaled.given[1] is not places or scaled.node.read_int("axis", 0) or steps is None:
            raise refuse(f"{scaled.node.describe()}: codes and scales are looked up by different places")
        if rows.array.dtype != np.int8 or steps.dtype != np.float32 or steps.shape != (len(rows.array), 1):
            raise refuse(f"{scaled.node.describe()}: these are no codes with a scale for each row")
        steps = steps.reshape(-1)
    elif rows.array.dtype != np.float32:
        raise refuse(f"{gathered.node.describe()}: codes without their scales")
    found = find_index(places, len(rows.array))
    if isinstance(found, int):
        row = rows.array[found].astype(np.float32)
        return Embedded((), row if steps is None else row * steps[found])
    index, shift, uncounted = found
    return Embedded((Table(rows.array, steps, index, shift, uncounted),))


def find_index(places: Known, rows: int) -> tuple[Index, int, int | None] | int:
    """What places say, of the rows of a table: an index, what is added, and the id that is not counted.

    A number where it is the same for all tokens.

    Raises:
        UnknownGraphError: it is none of `Index`.
    """
    if isinstance(places, Worked | Constant) and rows in places.notes:
        known: tuple[Index, int, int | None] | int = places.notes[rows]
        return known
    found = _find_index(places, rows)
    if isinstance(places, Worked | Constant):
        places.notes[rows] = found
    return found


def _find_index(places: Known, rows: int) -> tuple[Index, int, int | None] | int:
    if rows > _MOST_TOKENS:
        raise refuse(f"a table of {rows} places is too long to be looked at")
    reads = {part.name for part in list_parts(places) if isinstance(part, Input)}
    if "input_ids" in reads and _sees_ids(places):
        return _find_uncounted(places, rows)
    shift = int(_compare(places, CASES[0])[0])
    if all((_compare(places, case) == shift).all() for case in (*CASES, _make_longest(rows, 0))):
        return shift
    for index in (Index.COLUMNS, Index.ORDER):
        shift = int((_compare(places, CASES[0]) - _count(CASES[0], index)[CASES[0].mask])[0])
        cases = (*CASES, _make_longest(rows, shift))
        if all((_compare(places, case) == (_count(case, index) + shift)[case.mask]).all() for case in cases):
            return index, shift, None
    raise refuse("places of tokens are none that are known")


def _make_longest(rows: int, shift: int) -> Case:
    """A batch as long as a table allows."""
    return make_case(max(1, rows - max(0, shift)))


def _compare(places: Known, case: Case) -> Array:
    """The places of the unmasked tokens."""
    found = np.asarray(places.work_out(case))
    try:
        spread: Array = np.broadcast_to(found, case.mask.shape)[case.mask]
    except ValueError:
        raise refuse("places have other axes than the tokens") from None
    return spread


def _count(case: Case, index: Index) -> Array:
    if index is Index.COLUMNS:
        return np.broadcast_to(np.arange(case.tokens), case.mask.shape)
    return np.cumsum(case.mask, axis=1) - 1


def _sees_ids(places: Known) -> bool:
    """Whether places change with the ids, and not with their shape alone."""
    case = CASES[0]
    other = Case(case.mask, padding=2, inside=3)
    plain = Case(case.mask, padding=3, inside=2)
    return any(
        not np.array_equal(places.work_out(one), places.work_out(case))
        for number in _list_numbers(places)
        for one in (other, plain, Case(case.mask, padding=number), Case(case.mask, inside=number))
    )


def _list_numbers(places: Known) -> list[int]:
    """The whole numbers that places are made with."""
    numbers = [part.array for part in list_parts(places) if isinstance(part, Constant) and len(part.shape) <= 1]
    whole = [array.reshape(-1) for array in numbers if array.size == 1 and array.dtype == np.int64]
    return sorted({int(array[0]) for array in whole if array[0] >= 0})


def _find_uncounted(places: Known, rows: int) -> tuple[Index, int, int | None]:
    """Places that leave one id out: how many others came before, and nothing for the id itself (RoBERTa's)."""
    for number in _list_numbers(places):
        longest = make_case(max(1, rows - number - 1)).mask
        cases = [Case(case.mask, padding=number) for case in CASES]
        cases += [Case(case.mask, padding=number, inside=number) for case in CASES[:2]]
        cases.append(Case(longest, padding=number, inside=number))
        shift: int | None = None
        for case in cases:
            counted = case.feeds["input_ids"] != number
            expected = np.where(counted, np.cumsum(counted, axis=1) - 1, -1)[case.mask]
            found = _compare(places, case)
            shift = int(found[0] - expected[0]) if shift is None else shift
            if not np.array_equal(found, expected + shift):
                break
        else:
            assert shift is not None
            return Index.ORDER, shift, number
    raise refuse("places of tokens are none that are known")
