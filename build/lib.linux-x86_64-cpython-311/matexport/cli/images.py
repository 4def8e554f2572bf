"""Images as `embed` takes them: files, folders, a Parquet column of bytes. One that is broken does not stop the others.

    names -> decoded some at a time, ahead of the runs -> rows, in the order of the names

What cannot be read is said in a line each, and the command ends in 2 when all the others are embedded.
"""

from __future__ import annotations

import argparse
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matexport.cli.output import note
from matexport.errors import RequestError
from matexport.extras import require_extra
from matexport.host import count_cpus
from matexport.io.files import list_images
from matexport.io.tables import Form, find_form, holds_bytes, read_parquet
from matexport.runtime.inputs.image import ImageInputs, NamedBytes, PreparedImage, name_image, silence_bombs
from matexport.runtime.inputs.whole_image import make_image_inputs

if TYPE_CHECKING:
    import pyarrow

    from matexport.family.manifest import Family

#: The column of a Parquet file that holds images where none is named, and that of datasets which keep files in it.
IMAGE_COLUMN = "image"

#: Images that are decoded ahead, for each CPU.
AHEAD = 4


class ImageStream:
    """The images of a command's arguments, decoded.

    Attributes:
        refused, taken: how many could not be read so far, and how many could.
    """

    def __init__(self, sources: Iterable[Any], inputs: ImageInputs) -> None:
        self._sources, self._inputs = sources, inputs
        self.refused = self.taken = 0

    def __iter__(self) -> Iterator[PreparedImage]:
        silence_bombs()
        waiting: deque[tuple[str, Future[Any]]] = deque()
        with ThreadPoolExecutor(count_cpus()) as pool:
            for index, source in enumerate(self._sources):
                waiting.append((name_image(source, index), pool.submit(self._inputs.prepare_one, source, index)))
                if len(waiting) >= AHEAD * count_cpus():
                    yield from self._take(*waiting.popleft())
            while waiting:
                yield from self._take(*waiting.popleft())

    def _take(self, name: str, prepared: Future[Any]) -> Iterator[PreparedImage]:
        try:
            row = prepared.result()
        except RequestError as error:
            self.refused += 1
            note(error)
        else:
            self.taken += 1
            yield PreparedImage(name, row)


def open_images(options: argparse.Namespace, family: Family) -> ImageStream:
    """What `embed` is to embed.

    Raises:
        RequestError: there are none, or a folder or table cannot be read.
        MissingExtraError: Pillow is not installed, or pyarrow, for Parquet.
    """
    facts = family.facts.image
    assert facts is not None
    if options.texts and options.input:
        raise RequestError("give images as arguments or with --input, not both")
    given = options.texts or ([options.input] if options.input else [])
    if not given or given == ["-"]:
        raise RequestError(
            "no images: give files or folders as arguments, or with --input FILE, FOLDER or FILE.parquet"
        )
    paths = [Path(path) for path in given]
    for path in paths:
        if not path.exists():
            raise RequestError(f"{path} is no file and no folder; nothing was embedded")
    if options.column and not (len(paths) == 1 and _is_parquet(paths[0])):
        raise RequestError("--column is for --input FILE.parquet, whose column holds the bytes of image files")
    if len(paths) == 1 and _is_parquet(paths[0]):
        require_extra("parquet", f"reading Parquet ({paths[0]})", {"pyarrow": "pyarrow"})
        return ImageStream(_read_column(paths[0], options.column), make_image_inputs(facts))
    found = [file for path in paths for file in (list_images(path) if path.is_dir() else [path])]
    if not found:
        raise RequestError(f"{paths[0]} has no image files in it")
    return ImageStream(found, make_image_inputs(facts))


def _is_parquet(path: Path) -> bool:
    return path.is_file() and os.access(path, os.R_OK) and find_form(path) is Form.PARQUET


def _read_column(path: Path, asked: str | None) -> Iterator[NamedBytes]:
    rows = read_parquet(path, lambda schema: [_choose_column(path, schema, asked)])
    next(rows)
    for row in rows:
        (cell,) = row.cells
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        yield NamedBytes(bytes(content or b""), f"{path}, {row.place}")


def _choose_column(path: Path, schema: pyarrow.Schema, asked: str | None) -> str:
    """The column that was asked, ``image``, or the only one that holds bytes."""
    fitting = [name for name in schema.names if holds_bytes(schema.field(name).type)]
    if asked is None:
        if IMAGE_COLUMN in fitting or len(fitting) == 1:
            return IMAGE_COLUMN if IMAGE_COLUMN in fitting else fitting[0]
        raise RequestError(
            f"{path}: {len(fitting)} columns hold bytes ({', '.join(fitting) or 'none'}): name one with --column"
        )
    if asked not in schema.names:
        raise RequestError(f"{path} has no column {asked!r}; it has {', '.join(schema.names)}")
    if asked not in fitting:
        raise RequestError(f"{path}: the column {asked!r} holds {schema.field(asked).type}, not the bytes of files")
    return asked


def write_names(path: Path, names: Iterable[str]) -> None:
    """A name per line, its line breaks spelt out: which image a row is of, since one that cannot be read has none."""
    from matexport.io.files import explain_write_errors, replace_file

    with explain_write_errors(path), replace_file(path) as file:
        lines = (name.replace("\r", "\\r").replace("\n", "\\n") for name in names)
        file.writelines(line.encode("utf-8", "surrogateescape") + b"\n" for line in lines)
