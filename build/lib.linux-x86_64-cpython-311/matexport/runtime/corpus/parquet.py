"""Parquet files: the rows and columns of a corpus, and the column that its vectors are written as."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.parquet import ParquetFile

VECTOR_COLUMN = "embedding"

#: Rows that a worker holds at a time.
CHUNK_ROWS = 4096


@dataclass(frozen=True)
class Part:
    """A run of rows of one input file, and the output file that they become.

    Attributes:
        row_groups: in which the rows lie.
        first: number of the first row in its file.
        skip: rows of the first row group that belong to parts before.
        rows: how many.
    """

    number: int
    file: str
    row_groups: tuple[int, ...]
    first: int
    skip: int
    rows: int

    @property
    def name(self) -> str:
        return f"part-{self.number:06d}.parquet"


def make_vector_field(embedder: Any) -> pyarrow.Field:
    """``embedding``: lists of a fixed length of float32, int8 or uint8."""
    import pyarrow

    empty = embedder.embed([])
    return pyarrow.field(VECTOR_COLUMN, pyarrow.list_(pyarrow.from_numpy_dtype(empty.dtype), empty.shape[1]), False)


def make_vector_column(vectors: Any, kind: pyarrow.DataType) -> pyarrow.Array:
    """(n, d) vectors as a column, without a copy."""
    import pyarrow

    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.reshape(-1)), type=kind)


def hash_footer(file: Path) -> str:
    """Digest of a Parquet file's metadata (its last bytes: footer, length of the footer, "PAR1") and its size."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        opened.seek(max(0, size - 8))
        length = int.from_bytes(opened.read(4), "little")
        opened.seek(max(0, size - 8 - length))
        return hashlib.sha256(size.to_bytes(8, "little") + opened.read()).hexdigest()


def find_files(folder: Path) -> list[Path]:
    """Parquet files at any depth, in the order of their paths."""

    def is_data(file: Path) -> bool:
        return not any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)

    return sorted(file for file in folder.rglob("*.parquet") if file.is_file() and is_data(file))


def count_nulls(metadata: Any, column: str) -> int:
    """Rows without a text, as far as the footer says."""
    places = [index for index in range(metadata.num_columns) if metadata.schema.column(index).path == column]
    statistics = [
        metadata.row_group(group).column(place).statistics
        for group in range(metadata.num_row_groups)
        for place in places
    ]
    return sum(found.null_count for found in statistics if found is not None and found.has_null_count)


def read_rows(source: ParquetFile, part: Part) -> Iterator[pyarrow.RecordBatch]:
    """The rows of a part, `CHUNK_ROWS` at most at a time."""
    skip, left = part.skip, part.rows
    for batch in source.iter_batches(CHUNK_ROWS, row_groups=list(part.row_groups)):
        if skip >= len(batch):
            skip -= len(batch)
            continue
        rows = batch.slice(skip, left)
        skip, left = 0, left - len(rows)
        yield rows
        if not left:
            return
