"""Texts from files: probes, calibration texts, and any file with one text per line or with a column of texts.

Sizes are bounded before anything is kept, and a message names the file and the line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matexport.errors import RequestError
from matexport.io.reading import read_lines, read_whole, refuse_long_text, show
from matexport.io.tables import Form, Row, find_form, holds_text, read_number, read_parquet, read_table
from matexport.spec.probe import Probe
from matexport.spec.record import read_record

if TYPE_CHECKING:
    import pyarrow

#: The column of texts where none is named.
TEXT_COLUMN = "text"

#: Rows that are looked at to see which columns hold texts.
_SAMPLE_ROWS = 100

#: A first line whose cell has more is taken for a text, unless its column was asked for.
_NAME_WORDS = 2

#: Of a table's columns, so many are listed in a message, and of their names so much.
_SHOWN_COLUMNS, _SHOWN_NAME = 20, 60

#: A probe file is read whole; this is far above what a gate in CI can use.
MAX_PROBES = 10_000

#: Ranges measured on fewer texts say more about the texts than about the parent.
MIN_CALIBRATION_TEXTS = 64

#: The least number of images in its place, of parents that take images.
MIN_CALIBRATION_IMAGES = 32

#: More do not move a percentile; the first of a longer file are taken.
MAX_CALIBRATION_TEXTS = 1024

#: Of a mix of texts that throughput is measured on.
MAX_MIX_TEXTS = 1024

#: Of a probe file: 10,000 probes of 25,000 characters.
MAX_PROBE_BYTES = 256 << 20


def load_probes(path: Path | None) -> tuple[Probe, ...]:
    """The probes of a job: JSON Lines, one ``{"text": ..., "prompt": ...}`` each; the shipped ones for None.

    Raises:
        RequestError: the file cannot be read, is empty, too long, or a line is no probe.
    """
    if path is None:
        lines = resources.files("matexport.io").joinpath("data/probes.jsonl").read_text(encoding="utf-8")
        return parse_probes(lines, "the shipped probes")
    return parse_probes(read_whole(path, f"the probes {path}", MAX_PROBE_BYTES), str(path))


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
            raise RequestError(
                f'{where}, line {number}: not JSON ({problem}): {show(line.strip())}; a probe is {{"text": ...}}'
            ) from None
        probes.append(read_record(data, Probe, f"{where}, line {number}", RequestError))
    if len(probes) < 2:
        raise RequestError(f"{where}: {len(probes)} probes; parity needs at least 2, to compare neighbours")
    if len(probes) > MAX_PROBES:
        raise RequestError(f"{where}: {len(probes)} probes; at most {MAX_PROBES} are taken")
    return tuple(probes)


def format_probes(probes: Iterable[Probe]) -> str:
    """Probes as JSON Lines, as `parse_probes` reads them; what is None is left out."""
    told = ({key: value for key, value in _to_dict(probe).items() if value is not None} for probe in probes)
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in told)


def _to_dict(probe: Probe) -> dict[str, str | None]:
    return {"text": probe.text, "prompt": probe.prompt, "task": probe.task}


def load_shipped_calibration() -> tuple[str, ...]:
    """The texts that precisions are measured on where a job gives none. None of them is a probe."""
    with resources.as_file(resources.files("matexport.io").joinpath("data/calibration.txt")) as path:
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
        RequestError: the file cannot be read, or a line has more than 1 MiB characters.
    """
    return take_texts(read_lines(path, f"{what} {path}"), most)


def take_texts(texts: Iterable[str], most: int) -> tuple[str, ...]:
    """The first different texts, without the spaces around them; what is blank is skipped."""
    return tuple(islice(_drop_repeated(text.strip() for text in texts), most))


def _drop_repeated(lines: Iterable[str]) -> Iterator[str]:
    seen = {""}
    for line in lines:
        if line not in seen:
            seen.add(line)
            yield line


def read_column(
    path: Path, column: str | None = None, remedy: str = f"call the one that holds the texts {TEXT_COLUMN!r}"
) -> Iterator[str]:
    """The texts of a table, one per row.

    Args:
        column: by default ``text``, or the only column that holds texts.
        remedy: what to do where it is not clear which column is meant, for messages.

    Raises:
        RequestError: the file cannot be read, has no such column or several that may be meant, or a row has no text.
    """
    form = find_form(path)
    if form is Form.PARQUET:

        def choose(schema: pyarrow.Schema) -> list[str]:
            texts = [name for name in schema.names if holds_text(schema.field(name).type)]
            name = choose_column(path, schema.names, texts, column, remedy)
            if name not in texts:
                raise RequestError(f"{path}: the column {name!r} holds {schema.field(name).type}, not text")
            return [name]

        rows = read_parquet(path, choose)
        (name,) = next(rows).cells
        return _read_cells(path, rows, name, 0, 1)
    rows = read_table(path, lambda names: (column or TEXT_COLUMN) in [name.strip() for name in names])
    header = next(rows, None)
    if header is None:
        return iter(())
    sample = list(islice(rows, _SAMPLE_ROWS))
    names = [name.strip() for name in header.cells]
    texts = [name for place, name in enumerate(names) if any(_is_wordy(row.cells, place) for row in sample)]
    name = choose_column(path, names, texts, column, remedy)
    guessed = form is not Form.OBJECTS and column is None and name != TEXT_COLUMN
    if guessed and not _may_be_header(name, names):
        raise RequestError(
            f"{path}, {header.place} is {show(', '.join(names))}, where the names of the columns were expected; if it "
            f"is that, {remedy}; a file with one text per line should be called .txt"
        )
    if names.count(name) > 1:
        raise RequestError(f"{path} has {names.count(name)} columns that are called {name!r}: rename all but one")
    return _read_cells(path, chain(sample, rows), name, names.index(name), len(names))


def _may_be_header(chosen: str, names: Sequence[str]) -> bool:
    """Whether the first line may be names and no texts: no number in it, and the chosen column has a short name."""
    return len(chosen.split()) <= _NAME_WORDS and all(read_number(name) is None for name in names)


def _is_wordy(cells: Sequence[Any], place: int) -> bool:
    """Whether a cell holds a text; a number is none."""
    cell = cells[place] if place < len(cells) else None
    return isinstance(cell, str) and bool(cell.strip()) and read_number(cell) is None


def choose_column(path: Path, names: Sequence[str], texts: Sequence[str], asked: str | None, remedy: str) -> str:
    """The column of the texts: the one that was asked, ``text``, or the only one that holds texts.

    Args:
        names: of all columns.
        texts: of those that hold texts.
        remedy: see `read_column`.

    Raises:
        RequestError: there is no such column, or it is not clear which; the message lists them.
    """
    if asked is None and TEXT_COLUMN not in names and len(texts) == 1:
        return texts[0]
    wanted = TEXT_COLUMN if asked is None else asked
    if wanted in names:
        return wanted
    shown = [name if name.isprintable() and len(name) <= _SHOWN_NAME else show(name) for name in names[:_SHOWN_COLUMNS]]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    listed = f"its columns are: {', '.join(shown) or 'none'}{more}"
    if asked is not None:
        raise RequestError(f"{path} has no column {asked!r}; {listed}")
    found = f"{len(texts)} columns hold" if texts else "none holds"
    raise RequestError(f"{path} has no column {wanted!r}, and {found} text; {remedy}; {listed}")


def _read_cells(path: Path, rows: Iterator[Row], name: str, place: int, width: int) -> Iterator[str]:
    for row in rows:
        if any(row.cells[width:]):
            raise RequestError(
                f"{path}, {row.place}: {len(row.cells)} cells, and there are {width} columns; put a text that holds a "
                "separator in quotes"
            )
        cell = row.cells[place] if place < len(row.cells) else None
        if not isinstance(cell, str):
            what = "no text" if cell is None else f"{show(str(cell))}, which is no text,"
            raise RequestError(f"{path}, {row.place}: {what} in the column {name!r}")
        refuse_long_text(cell, f"{path}, {row.place}")
        yield cell
