"""Tables as people have them: cells by commas, semicolons or tabs, JSON Lines, Parquet; with the places of their rows.

CSV and JSON Lines are read with the standard library, so that a message names the line and the base install is enough.
Parquet needs pyarrow: whoever may meet it checks for the ``[parquet]`` extra first. Whether a table has a header is for
its reader to say: the first row is what stands first in the file; of JSON Lines and Parquet, the names of the columns.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum, auto
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from matexport.errors import RequestError, one_line
from matexport.io.files import describe_os_error
from matexport.io.reading import MAX_TEXT_CHARACTERS, PARQUET, read_lines, show

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.parquet import ParquetFile

#: Of a line of a table: it may hold several texts.
MAX_ROW_CHARACTERS = 16 * MAX_TEXT_CHARACTERS

#: What separates cells, in the order in which they are tried. Where semicolons do, numbers may hold commas: 4,5.
SEPARATORS = {"\t": "tabs", ";": "semicolons", ",": "commas"}

#: Rows of Parquet that are held at a time.
_CHUNK_ROWS = 256


class Form(Enum):
    """What a file of texts is: one text per line, or a table."""

    LINES = auto()
    SEPARATED = auto()
    OBJECTS = auto()
    PARQUET = auto()


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        place: where it stands, such as ``line 3``.
        cells: strings, and in JSON Lines and Parquet also what else there may be.
    """

    place: str
    cells: Sequence[Any]


_FORMS = {
    ".csv": Form.SEPARATED,
    ".tsv": Form.SEPARATED,
    ".tab": Form.SEPARATED,
    ".jsonl": Form.OBJECTS,
    ".ndjson": Form.OBJECTS,
    ".json": Form.OBJECTS,
    ".parquet": Form.PARQUET,
}


def show_row(row: Row) -> str:
    """A row in a message: the beginning of what it holds, and how many cells that are."""
    return f"{show(' | '.join(map(str, row.cells)))} ({len(row.cells)} cells)"


def find_form(path: Path) -> Form:
    """Parquet by content; what else is a table, by name (``.csv``, ``.tsv``, ``.jsonl``), with ``.gz`` or without.

    Raises:
        RequestError: the file cannot be read.
    """
    try:
        if path.is_file():  # a pipe would be read but once
            with path.open("rb") as file:
                if file.read(len(PARQUET)) == PARQUET:
                    return Form.PARQUET
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from None
    return _FORMS.get(strip_gz(path).suffix.lower(), Form.LINES)


def strip_gz(path: Path) -> Path:
    """The path without ``.gz`` at its end."""
    return path.with_suffix("") if path.suffix.lower() == ".gz" else path


def read_table(path: Path, fits: Callable[[Sequence[str]], bool]) -> Iterator[Row]:
    """The rows of a table in any form but blank lines; the first is the first line, or the names of the columns.

    Args:
        path: what is neither JSON Lines nor Parquet is read as cells.
        fits: whether the cells of the first line are what is expected. The first separator by which they are is taken;
            where there is none, the one that gives the most cells.

    Raises:
        RequestError: the file cannot be read, or is no table.
    """
    form = find_form(path)
    if form is Form.OBJECTS:
        return _read_object_rows(path)
    if form is Form.PARQUET:
        return _read_parquet_rows(path)
    return read_separated(path, fits, "\t" if strip_gz(path).suffix.lower() in (".tsv", ".tab") else None)


def read_separated(
    path: Path, fits: Callable[[Sequence[str]], bool] = lambda _: True, separator: str | None = None
) -> Iterator[Row]:
    """The rows of a file with cells by a separator, which is found by `fits` where it is not given; see `read_table`.

    Between tabs quotes are characters, as in STS-B and BEIR; otherwise they enclose cells that hold separators.
    """
    lines = read_lines(path, str(path), MAX_ROW_CHARACTERS)
    held: list[str] = []
    for line in lines:
        held.append(line)
        if line.strip():
            break
    else:
        return
    separator = separator or _choose_separator(held[-1], fits)
    blank = len(held) - 1  # a line of spaces in front is no header
    reader = _make_reader(chain(held[-1:], lines), separator, strict=True)
    while True:
        number = reader.line_num + 1 + blank
        try:
            with _long_cells():
                cells = next(reader, None)
        except csv.Error as error:
            raise RequestError(
                f"{path}, line {number}: no cells separated by {SEPARATORS[separator]} ({error})"
            ) from None
        if cells is None:
            return
        if cells:
            yield Row(f"line {number}", cells)


@contextmanager
def _long_cells() -> Iterator[None]:
    """Cells as long as a row while one is read; csv knows one limit, for the whole process."""
    before = csv.field_size_limit(MAX_ROW_CHARACTERS)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _make_reader(lines: Iterator[str], separator: str, *, strict: bool) -> Any:
    if separator == "\t":
        return csv.reader(lines, delimiter=separator, quoting=csv.QUOTE_NONE)
    return csv.reader(lines, delimiter=separator, strict=strict)


def _choose_separator(line: str, fits: Callable[[Sequence[str]], bool]) -> str:
    with _long_cells():
        cells = {
            separator: next(_make_reader(iter([line.rstrip("\r\n")]), separator, strict=False))
            for separator in SEPARATORS
        }
    found = next((separator for separator in cells if len(cells[separator]) > 1 and fits(cells[separator])), None)
    return found or max(cells, key=lambda separator: (len(cells[separator]), separator == ","))


def read_objects(path: Path, expected: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number of its line, object) of each line of JSON Lines that is not blank.

    Args:
        expected: what a line should be, for messages, such as ``an object with _id and text``.

    Raises:
        RequestError: the file cannot be read, or a line is no JSON object.
    """
    for number, line in enumerate(read_lines(path, str(path), MAX_ROW_CHARACTERS), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            why = f"not JSON ({one_line(error)})"
        else:
            if isinstance(found, dict):
                yield number, found
                continue
            why = "no JSON object"
        raise RequestError(f"{path}, line {number} is {why}: {show(line.strip())}; each line should be {expected}")


def _read_object_rows(path: Path) -> Iterator[Row]:
    names: list[str] | None = None
    for number, found in read_objects(path, "a JSON object"):
        if names is None:
            names = list(found)
            yield Row(f"line {number}", names)
        yield Row(f"line {number}", [found.get(name) for name in names])


def open_parquet(file: Path) -> ParquetFile:
    """A Parquet file whose columns have names of their own.

    Raises:
        RequestError: two columns have one name.
        OSError, pyarrow.ArrowException: the file cannot be read, or is no Parquet.
    """
    from pyarrow.parquet import ParquetFile

    opened = ParquetFile(file)
    names = opened.schema_arrow.names
    for name in names:
        if names.count(name) > 1:
            opened.close()
            raise RequestError(f"{file} has {names.count(name)} columns that are called {name!r}: rename all but one")
    return opened


def holds_text(kind: pyarrow.DataType) -> bool:
    """Whether a column of this type holds strings, perhaps as a dictionary (pandas' categories)."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def holds_bytes(kind: pyarrow.DataType) -> bool:
    """Bytes, or what `datasets` keeps of an image: a struct of ``bytes`` and ``path``."""
    from pyarrow import types

    if types.is_struct(kind):
        names = [kind.field(place).name for place in range(kind.num_fields)]
        return "bytes" in names and holds_bytes(kind.field(names.index("bytes")).type)
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _explain_parquet(path: Path, error: BaseException) -> RequestError:
    why = describe_os_error(error) if isinstance(error, OSError) and error.errno else one_line(error)
    return RequestError(f"{path} cannot be read as Parquet: {why}")


def read_parquet(path: Path, choose: Callable[[pyarrow.Schema], list[str]]) -> Iterator[Row]:
    """The names of the chosen columns, and the rows below them, which are counted from 0 as in data frames.

    Raises:
        RequestError: the file cannot be read, is no Parquet, or has two columns of one name; and what `choose` raises.
    """
    import pyarrow

    try:
        with open_parquet(path) as opened:
            names = choose(opened.schema_arrow)
            yield Row("its schema", names)
            number = -1
            for batch in opened.iter_batches(_CHUNK_ROWS, columns=names):
                columns = [batch.column(name).to_pylist() for name in names]
                for cells in zip(*columns, strict=True):
                    number += 1
                    yield Row(f"row {number}", cells)
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise _explain_parquet(path, error) from None


def _read_parquet_rows(path: Path) -> Iterator[Row]:
    return read_parquet(path, lambda schema: list(schema.names))


def read_number(cell: object, *, decimal_comma: bool = False) -> float | None:
    """A finite number, or a string that is one; None for all else."""
    if isinstance(cell, str):
        cell = cell.strip().replace(",", ".") if decimal_comma else cell
    elif isinstance(cell, bool) or not isinstance(cell, int | float):
        return None
    try:
        number = float(cell)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < float("inf") else None
