"""Items in and vectors out, as streams: arguments, files or standard input -> .npy, JSON lines or standard output."""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from matexport.cli.output import print_json, spell_json
from matexport.errors import RequestError, one_line
from matexport.extras import require_extra
from matexport.io.files import describe_os_error, explain_write_errors, replace_file
from matexport.io.reading import read_lines
from matexport.io.terminal import show_plain

if TYPE_CHECKING:
    from matexport.family.manifest import Family
    from matexport.runtime.embedder import Embedder

#: Items between two moves of the progress bar.
PROGRESS_ITEMS = 256


def open_items(options: argparse.Namespace, family: Family) -> Iterable[Any]:
    """What `embed` is to embed, one at a time: texts, images or arrays, as the family takes them."""
    if family.facts.image:
        from matexport.cli.images import open_images

        return open_images(options, family)
    return open_texts(options) if family.facts.text else open_arrays(options, family)


def open_arrays(options: argparse.Namespace, family: Family) -> Any:
    """(n, *shape), mapped and not read."""
    import numpy as np

    taken = f"{options.family} takes arrays ({family.facts.inputs.describe()})"
    if options.texts or not options.input or options.input == "-" or options.column:
        raise RequestError(f"{taken}: give them with --input FILE.npy, one (n, ...) array")
    try:
        arrays = np.load(options.input, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        why = describe_os_error(error) if isinstance(error, OSError) else one_line(error)
        raise RequestError(f"cannot read {options.input}: {why}; {taken} as one .npy file") from None
    if not isinstance(arrays, np.ndarray) or not arrays.ndim:
        raise RequestError(f"{options.input} holds no (n, ...) array; {taken} as one .npy file")
    return arrays


def open_texts(options: argparse.Namespace) -> Iterator[str]:
    """The texts of `embed`, one at a time. The first is read at once, so that what is no text is said first.

    Raises:
        RequestError: there are none, or they cannot be read.
        MissingExtraError: they are in Parquet, and the ``[parquet]`` extra is not installed.
    """
    if options.texts and options.input:
        raise RequestError("give texts as arguments or with --input, not both")
    if options.column and (options.texts or options.input in (None, "-")):
        raise RequestError("--column is for --input FILE with a table, and for --on ray")
    if options.texts:
        return iter(options.texts)
    if options.input is None and sys.stdin.isatty():
        raise RequestError(_NO_TEXTS)
    if options.input in (None, "-"):
        texts = _read_plain(sys.stdin.buffer, "standard input")
    else:
        texts = _read_file(Path(options.input), options.column)
    first = next(texts, None)
    if first is None and options.input is None:  # nothing was piped in: more likely a TEXT that was forgotten
        raise RequestError(_NO_TEXTS)
    return texts if first is None else chain([first], texts)


_NO_TEXTS = "no texts: give them as arguments, with --input FILE, or on standard input"


def _read_plain(source: Path | BinaryIO, where: str) -> Iterator[str]:
    return (line.rstrip("\r\n") for line in read_lines(source, where))


def _read_file(path: Path, column: str | None) -> Iterator[str]:
    from matexport.io.tables import Form, find_form
    from matexport.io.texts import read_column

    form = find_form(path)
    if form is Form.LINES:
        if column:
            raise RequestError(
                f"--column {column} was asked; {path} is read as one text per line: a table is called .csv, .tsv, "
                ".jsonl or .parquet, with .gz or without"
            )
        return _read_plain(path, str(path))
    if form is Form.PARQUET:
        require_extra("parquet", f"reading Parquet ({path})", {"pyarrow": "pyarrow"})
    return read_column(path, column, "name the one that holds the texts with --column")


def embed_pairs(
    embedder: Embedder, items: Iterable[Any], options: argparse.Namespace, progress: Callable[[str, int, int], None]
) -> Iterator[tuple[Any, Any]]:
    """(item, vector) for each item of a stream."""
    waiting: deque[Any] = deque()

    def note() -> Iterator[Any]:
        for item in items:
            waiting.append(item)
            yield item

    vectors = embedder.embed_iter(note(), prompt=options.prompt, task=options.task, batch_budget=options.batch_budget)
    for done, vector in enumerate(vectors, 1):
        yield waiting.popleft(), vector
        if not done % PROGRESS_ITEMS:
            progress("embed", done, 0)


def format_lines(pairs: Iterable[tuple[Any, Any]]) -> Iterator[str]:
    """A JSON object for each: a text, the name of an image or the place of an array, and its vector."""
    for index, (item, vector) in enumerate(pairs):
        named = {"text": item} if isinstance(item, str) else {"index": index}
        if isinstance(item, tuple):  # a prepared image
            named = {"image": item.name}  # type: ignore[attr-defined]
        yield spell_json(named | {"embedding": vector.tolist()}) + "\n"


def write_pairs(
    pairs: Iterable[tuple[Any, Any]], options: argparse.Namespace, embedder: Any, called: str | None
) -> None:
    """Items and their vectors to where the command says: ``--output``, ``--json`` or standard output.

    Args:
        embedder: what they were embedded with.
        called: what a document calls the items whose names it lists, as the file beside an array does; None where the
            rows of an array are told apart by their order alone.
    """
    if options.output and options.output.suffix == ".npy":
        names: list[str] = []
        write_npy(options.output, _note_names(pairs, names), embedder)
        if called:
            from matexport.cli.images import write_names

            write_names(options.output.with_suffix(".names.txt"), names)
    elif options.output:
        with explain_write_errors(options.output), replace_file(options.output) as file:
            file.writelines(line.encode() for line in format_lines(pairs))
    elif options.json:
        found = list(pairs)
        listed = {called: [_name(item) for item, _ in found]} if called else {}
        vectors = [vector.tolist() for _, vector in found]
        print_json({"profile": embedder.profile, "dim": embedder.dim, **listed, "vectors": vectors})
    else:
        for line in format_lines(pairs):
            sys.stdout.write(line)
        sys.stdout.flush()


def _note_names(pairs: Iterable[tuple[Any, Any]], names: list[str]) -> Iterator[Any]:
    for item, vector in pairs:
        names.append(show_plain(_name(item)) if isinstance(item, str) else _name(item))
        yield vector


def _name(item: Any) -> str:
    return item if isinstance(item, str) else getattr(item, "name", "")


def write_npy(path: Path, vectors: Iterable[Any], embedder: Any) -> None:
    """An array of as many rows as there turn out to be, written as they come."""
    import numpy as np
    from numpy.lib import format as npy

    empty = embedder.embed([])
    count = 0
    with (
        explain_write_errors(path),
        replace_file(path) as file,
    ):  # first: what cannot be written is said before anything is embedded
        header = npy.header_data_from_array_1_0(empty)
        npy.write_array_header_1_0(file, header)
        body = file.tell()
        for vector in vectors:
            file.write(np.ascontiguousarray(vector).data)
            count += 1
        file.seek(0)  # numpy leaves room in a header for the first axis to grow
        npy.write_array_header_1_0(file, header | {"shape": (count, *empty.shape[1:])})
        assert file.tell() == body
