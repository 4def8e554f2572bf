"""Items in and vectors out, as streams: arguments, files or standard input -> .npy, JSON lines or standard output."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matexport.cli.output import spell_json
from matexport.errors import RequestError, one_line
from matexport.io.files import describe_os_error, explain_write_errors, replace_file

if TYPE_CHECKING:
    from matexport.family.manifest import Family
    from matexport.runtime.embedder import Embedder

#: Items between two moves of the progress bar.
PROGRESS_ITEMS = 256


def open_items(options: argparse.Namespace, family: Family) -> contextlib.AbstractContextManager[Iterable[Any]]:
    """What `embed` is to embed, one at a time: texts, or arrays, as the family takes them."""
    return open_texts(options) if family.facts.text else contextlib.nullcontext(open_arrays(options, family))


def open_arrays(options: argparse.Namespace, family: Family) -> Any:
    """(n, *shape), mapped and not read."""
    import numpy as np

    taken = f"{options.family} takes arrays ({family.facts.inputs.describe()})"
    if options.texts or not options.input or options.input == "-":
        raise RequestError(f"{taken}: give them with --input FILE.npy, one (n, ...) array")
    try:
        arrays = np.load(options.input, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        why = describe_os_error(error) if isinstance(error, OSError) else one_line(error)
        raise RequestError(f"cannot read {options.input}: {why}; {taken} as one .npy file") from None
    if not isinstance(arrays, np.ndarray) or not arrays.ndim:
        raise RequestError(f"{options.input} holds no (n, ...) array; {taken} as one .npy file")
    return arrays


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
    """A JSON object for each: a text, or the place of an array, and its vector."""
    for index, (item, vector) in enumerate(pairs):
        named = {"text": item} if isinstance(item, str) else {"index": index}
        yield spell_json(named | {"embedding": vector.tolist()}) + "\n"


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
