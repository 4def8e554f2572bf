"""Text as people have it in files: packed with gzip or not, with a byte order mark or without, and bounded in any case.

Everything that a user gives as text is opened here: texts, probes, tables, jobs. gzip is told by content, since names
lie; what it unpacks to is counted, since 1 MB can become 1 GB. Lines are decoded one by one, so that a message names
the line. What is a table and what is not is said in `io.tables`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from matexport.errors import RequestError

if TYPE_CHECKING:
    from gzip import GzipFile

    from _typeshed import WriteableBuffer

#: A longer text is longer than any tokenizer's limit: a file without line breaks.
MAX_TEXT_CHARACTERS = 1 << 20

#: Of what gzip unpacks to, bytes for each packed byte. Text has 3 to 10, logs up to 100; a file of zeros has 1000.
MAX_UNPACKED_RATIO = 200

#: Bytes that may be unpacked at any ratio: so few do no harm.
FREE_UNPACKED_BYTES = 64 << 20

GZIP, PARQUET = b"\x1f\x8b", b"PAR1"
_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_CHUNK = 1 << 16
_SHOWN = 60


def show(text: str) -> str:
    """A text from a file in a message: in quotes, with escapes, its first 60 characters."""
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def refuse_long_text(text: str, where: str) -> None:
    """
    Raises:
        RequestError: the text has more than 1 MiB characters.
    """
    if len(text) > MAX_TEXT_CHARACTERS:
        raise RequestError(f"{where}: a text of {len(text)} characters; at most {MAX_TEXT_CHARACTERS} are taken")


def read_lines(source: Path | BinaryIO, where: str, most: int = MAX_TEXT_CHARACTERS) -> Iterator[str]:
    """The lines of a UTF-8 file with their line breaks, one at a time; only ``\\n`` ends a line.

    Args:
        source: a path, or an open binary file such as that of standard input, which is not closed.
        where: names the file in messages.
        most: characters of a line, without its line break.

    Raises:
        RequestError: the file cannot be read, is not UTF-8, has a longer line, or unpacks to too much.
    """
    with open_unpacked(source, where) as file:
        number, longest = 0, len(_BOM) + 4 * most + len("\r\n")
        while line := file.readline(longest + 1):
            number += 1
            if len(line) > longest:  # cut, perhaps inside a character
                raise _refuse_line(f"{where}, line {number}", most)
            yield _decode_line(line.removeprefix(_BOM) if number == 1 else line, f"{where}, line {number}", most)


def _decode_line(line: bytes, where: str, most: int) -> str:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"{where}: not UTF-8 text {_describe_bytes(line, error.start)}") from None
    if len(text.rstrip("\r\n")) > most:
        raise _refuse_line(where, most)
    return text


def _refuse_line(where: str, most: int) -> RequestError:
    return RequestError(f"{where} has more than {most} characters, the most that are taken")


def _describe_bytes(data: bytes, place: int, first: int = 0) -> str:
    """What stands at a place, which is counted from 1 in the line that begins at `first`."""
    if data.startswith(_UTF16):
        return "(it begins with the byte order mark of UTF-16: save it as UTF-8)"
    return f"(byte {place - first + 1} is 0x{data[place]:02x})"


def read_whole(path: Path, where: str, most: int) -> str:
    """A UTF-8 file of at most `most` bytes, without its byte order mark.

    Raises:
        RequestError: the file cannot be read, is not UTF-8, or is larger.
    """
    parts, size = [], 0
    with open_unpacked(path, where) as file:
        while part := file.read(min(_CHUNK, most + 1)):
            parts.append(part)
            size += len(part)
            if size > most:
                raise RequestError(f"{where} has more than {most} bytes, the most that are read")
    data = b"".join(parts).removeprefix(_BOM)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line, first = data.count(b"\n", 0, error.start) + 1, data.rfind(b"\n", 0, error.start) + 1
        raise RequestError(
            f"{where}, line {line}: not UTF-8 text {_describe_bytes(data, error.start, first)}"
        ) from None


@contextmanager
def open_unpacked(source: Path | BinaryIO, where: str) -> Iterator[BinaryIO]:
    """The bytes of a file for reading, unpacked where they are gzip's.

    Raises:
        RequestError: the file cannot be read, is Parquet, is damaged, or unpacks to too much.
    """
    try:
        if isinstance(source, Path):
            with source.open("rb") as file:
                yield _unpack(file, where)
        else:
            yield _unpack(source, where)
    except OSError as error:
        raise RequestError(f"cannot read {where}: {error.strerror or error}") from None


def _unpack(file: BinaryIO, where: str) -> BinaryIO:
    head = file.read(len(PARQUET))
    if head == PARQUET:
        raise RequestError(f"{where}: a Parquet file, where text was expected")
    packed = _Counted(file, head)
    if not head.startswith(GZIP):
        return io.BufferedReader(packed, _CHUNK)
    from gzip import GzipFile

    unpacked = GzipFile(fileobj=io.BufferedReader(packed, _CHUNK), mode="rb")
    return io.BufferedReader(_Bounded(unpacked, packed, where), _CHUNK)


class _Counted(io.RawIOBase):
    """A file whose first bytes were read already, and how many were read of it. Does not close it."""

    def __init__(self, file: BinaryIO, head: bytes) -> None:
        self._file, self._head, self.count = file, head, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer)
        # read1: what a pipe has now, and not what would fill the buffer
        data = self._head[: len(view)] or getattr(self._file, "read1", self._file.read)(len(view))
        self._head = self._head[len(view) :]
        view[: len(data)] = data
        self.count += len(data)
        return len(data)


class _Bounded(io.RawIOBase):
    """What gzip unpacks, as long as it is no bomb."""

    def __init__(self, unpacked: GzipFile, packed: _Counted, where: str) -> None:
        self._unpacked, self._packed, self._where, self._count = unpacked, packed, where, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        import zlib

        view = memoryview(buffer)
        try:
            data = self._unpacked.read1(len(view))
        except (EOFError, zlib.error, OSError) as error:
            raise RequestError(f"{self._where}: a damaged gzip file ({error})") from None
        self._count += len(data)
        if self._count > max(FREE_UNPACKED_BYTES, MAX_UNPACKED_RATIO * self._packed.count):
            raise RequestError(
                f"{self._where}: {self._packed.count} bytes of gzip became more than {self._count - len(data)}, over "
                f"{MAX_UNPACKED_RATIO} times as many; that is no text: unpack it first if it is"
            )
        view[: len(data)] = data
        return len(data)
