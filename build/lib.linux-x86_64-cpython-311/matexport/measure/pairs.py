"""A table of pairs of texts with people's scores, in the layouts in which such tables are handed around."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matexport.errors import RequestError
from matexport.io.reading import refuse_long_text
from matexport.io.tables import Row, read_number, read_table, show_row


class Pair(NamedTuple):
    """Two texts, and how alike people find them."""

    left: str
    right: str
    score: float


class Columns(NamedTuple):
    """Where the texts and the score of a pair stand in a row."""

    left: int
    right: int
    score: int


#: Names of columns, in lower case and without spaces, underscores and hyphens. The first that is there is taken.
_PAIR_NAMES = [(f"{word}{a}", f"{word}{b}") for word in ("sentence", "text", "sent", "s") for a, b in ("12", "ab")]
_SCORE_NAMES = (
    "score",
    "similarityscore",
    "similarity",
    "relatednessscore",
    "relatedness",
    "gold",
    "goldscore",
    "label",
)

_PLAIN = Columns(0, 1, 2)
#: genre, filename, year, id, score from 0 to 5, sentence1, sentence2; some rows say after these where they come from.
_STSB = Columns(5, 6, 4)
_STSB_COLUMNS, _STSB_TOP = 7, 5

_EXPECTED = (
    "a header with two columns of texts (sentence1 and sentence2, text1 and text2, sentence_a and sentence_b) and one "
    "of scores (score, similarity_score, similarity, gold, label); or without a header sentence1, sentence2 and a "
    "number; or STS-B's seven columns by tabs (genre, filename, year, id, score from 0 to 5, sentence1, sentence2)"
)


def read_pairs(path: Path) -> Iterator[Pair]:
    """The pairs of a table, one at a time; blank rows are skipped.

    Args:
        path: cells by commas, semicolons or tabs, JSON Lines, or Parquet, with a header that names two columns of texts
            (``sentence1`` and ``sentence2``, ``text1`` and ``text2``, ...) and one of scores (``score``, ``label``,
            ...), in any order and perhaps among others. Without such a header, these are the first three columns, or
            STS-B's seven.

    Raises:
        RequestError: the file cannot be read, its first row is neither a header nor a pair, or a row is no pair.
    """
    table = read_table(path, lambda cells: find_columns(cells) is not None)
    rows = (row for row in table if any(map(_is_filled, row.cells)))
    first = next(rows, None)
    if first is None:
        return
    columns = find_columns(first.cells)
    if columns is None:
        raise RequestError(f"{path}, {first.place} is {show_row(first)}; expected {_EXPECTED}")
    if read_number(first.cells[columns.score], decimal_comma=True) is not None:  # a pair itself
        yield _read_pair(path, first, columns)
    for row in rows:
        yield _read_pair(path, row, columns)


def find_columns(cells: Sequence[Any]) -> Columns | None:
    """Where a first row says that pairs stand: by names, or by being a pair itself; None where it is neither."""
    names = [str(cell).strip().lower().translate(str.maketrans("", "", " _-")) for cell in cells]
    score = next((name for name in _SCORE_NAMES if name in names), None)
    for left, right in _PAIR_NAMES:
        if left in names and right in names and score is not None:
            return Columns(names.index(left), names.index(right), names.index(score))
    if len(cells) >= _STSB_COLUMNS:
        top = read_number(cells[_STSB.score])
        if top is not None and 0 <= top <= _STSB_TOP and read_number(cells[_STSB.left]) is None:
            return _STSB
    if len(cells) > _PLAIN.score and read_number(cells[_PLAIN.score], decimal_comma=True) is not None:
        return _PLAIN
    return None


def _read_pair(path: Path, row: Row, columns: Columns) -> Pair:
    cells = row.cells
    if len(cells) > max(columns):
        left, right = cells[columns.left], cells[columns.right]
        score = read_number(cells[columns.score], decimal_comma=True)
        if isinstance(left, str) and isinstance(right, str) and score is not None:
            for text in (left, right):
                refuse_long_text(text, f"{path}, {row.place}")
            return Pair(left, right, score)
    wanted = f"texts in the columns {columns.left + 1} and {columns.right + 1} and a number in {columns.score + 1}"
    raise RequestError(f"{path}, {row.place} is {show_row(row)}; expected {wanted}, as the first line says")


def _is_filled(cell: object) -> bool:
    return bool(cell.strip()) if isinstance(cell, str) else cell is not None
