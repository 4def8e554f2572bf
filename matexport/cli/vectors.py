"""Texts in and vectors out, as streams: arguments, files or standard input -> .npy, JSON lines or standard output."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matexport.errors import RequestError
from matexport.io.files import explain_write_errors, replace_file

if TYPE_CHECKING:
    from matexport.runtime.embedder import Embedder

#: Texts between two moves of the progress bar.
PROGRESS_TEXTS = 256


@contextlib.contextmanager
def open_texts(options: argparse.Namespace) -> Iterator[Iterable[str]]:
    """The texts of `embed`, one at a time."""
    if options.texts and options.input:
        raise RequestError("give texts as arguments or with --input, not both")
    if options.texts:
        yield options.texts
    elif options.input == "-" or (options.input is None and not sys.stdin.isatty()):
        sys.stdin.reconfigure(encoding="utf-8", newline="\n")  # type: ignore[union-attr]
        lines = _strip_lines(sys.stdin)
        first = next(lines, None)
        if first is None and options.input is None:  # nothing was piped in: more likely a TEXT that was forgotten
            raise RequestError("no texts: give them as arguments, with --input FILE, or on standard input")
        yield lines if first is None else chain([first], lines)
    elif options.input is None:
        raise RequestError("no texts: give them as arguments, with --input FILE, or on standard input")
    else:
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(Path(options.input).open(encoding="utf-8", newline="\n"))
            except OSError as error:
                raise RequestError(f"cannot read {options.input}: {error.strerror}") from None
            yield _strip_lines(file)


def _strip_lines(lines: Iterable[str]) -> Iterator[str]:
    try:
        for line in lines:
            yield line.rstrip("\r\n")
    except UnicodeDecodeError:
        raise RequestError("the texts are not UTF-8") from None


def embed_pairs(
    embedder: Embedder, texts: Iterable[str], options: argparse.Namespace, progress: Callable[[str, int, int], None]
) -> Iterator[tuple[str, Any]]:
    """(text, vector) for each text of a stream."""
    waiting: deque[str] = deque()

    def note() -> Iterator[str]:
        for text in texts:
            waiting.append(text)
            yield text

    vectors = embedder.embed_iter(note(), prompt=options.prompt, task=options.task, batch_tokens=options.batch_tokens)
    for done, vector in enumerate(vectors, 1):
        yield waiting.popleft(), vector
        if not done % PROGRESS_TEXTS:
            progress("embed", done, 0)


def format_lines(pairs: Iterable[tuple[str, Any]]) -> Iterator[str]:
    for text, vector in pairs:
        yield json.dumps({"text": text, "embedding": vector.tolist()}, ensure_ascii=False) + "\n"


def write_npy(path: Path, vectors: Iterable[Any], embedder: Embedder) -> None:
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
