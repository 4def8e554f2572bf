"""Files: digests, replacing a file in one step, reading TOML and JSON, and words for what an OSError means."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO, RawIOBase
from pathlib import Path
from typing import IO, Any

from matexport.errors import DestinationError, Problem, ProblemKind, RequestError

#: Of a TOML file: a job has kilobytes.
MAX_TOML_BYTES = 4 << 20


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Parse a TOML file from a user.

    Args:
        what: what the file is, for messages, such as ``job``.

    Raises:
        RequestError: the file cannot be read, is larger than 4 MiB, or is not TOML.
    """
    import tomllib

    from matexport.io.reading import read_whole  # not while a process that only embeds starts

    text = read_whole(path, f"the {what} {path}", MAX_TOML_BYTES)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as problem:  # not TOML, or too many digits or brackets
        raise RequestError(f"{path} is not a TOML file: {problem}") from None


def parse_json(text: str | bytes) -> Any:
    """Parse JSON from an untrusted file strictly (RFC 8259).

    Python's own reader also accepts a name that occurs twice in an object and takes its last value, where another
    reader may take the first. It accepts NaN and Infinity, reads 1e999 as infinite, and whole numbers of any length,
    which other readers round: up to 2^53 all read the same (RFC 7493, 2.2).

    Raises:
        ValueError: the text is not JSON, a name occurs twice in an object, or a number is not finite or too large.
        RecursionError: the text is nested too deeply.
    """
    return json.loads(
        text,
        object_pairs_hook=_refuse_repeated_names,
        parse_constant=_refuse_number,
        parse_float=_read_finite,
        parse_int=_read_whole,
    )


def _refuse_repeated_names(pairs: list[tuple[str, object]]) -> dict[str, object]:
    data = dict(pairs)
    if len(data) != len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the name {name!r} occurs twice")
    return data


def _read_whole(literal: str) -> int:
    number = int(literal) if len(literal) <= _MAX_DIGITS else None
    if number is None or abs(number) > 1 << 53:
        raise ValueError(f"{literal[:24]} is larger than 2^53")
    return number


#: 2**53 has 16 digits.
_MAX_DIGITS = 20


def _refuse_number(literal: str) -> float:
    raise ValueError(f"{literal} is no number")


def _read_finite(literal: str) -> float:
    number = float(literal)
    return number if math.isfinite(number) else _refuse_number(literal)


#: Bytes that are hashed at a time. hashlib releases Python's lock meanwhile, so that other threads can go on.
HASH_CHUNK = 16 << 20


def hash_file(path: Path) -> str:
    """The sha256 of a file, as 64 hex digits.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        return hash_open_file(file)


def hash_open_file(file: RawIOBase) -> str:
    """The sha256 of what an open binary file holds from here on, as 64 hex digits."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(HASH_CHUNK, max(1, os.fstat(file.fileno()).st_size))))
    while count := file.readinto(buffer):
        digest.update(buffer[:count])
    return digest.hexdigest()


_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file size limit was reached",
}


def describe_os_error(error: OSError) -> str:
    """What an error of the system means, in the same words in every message."""
    return _FULL.get(error.errno or 0) or (error.strerror or str(error)).lower()


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError in the block, in which `path` is written, into a message for the user.

    Raises:
        DestinationError: the block raised an OSError.
    """
    try:
        yield
    except OSError as error:
        raise DestinationError(f"cannot write {path}: {describe_os_error(error)}") from None


@contextmanager
def replace_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that replaces `path` when the block ends without an error; until then it is a file beside `path`.

    The name of that file begins with the name of `path` and ends in ``.tmp``; each writer has one of its own, so that
    of two writers at once the last one's file is whole. If this process is killed, it stays: the checks of a family
    ignore it, and whoever writes `path` next removes it.

    Raises:
        OSError: the file cannot be written; `path` is not changed then.
    """
    _remove_leftovers(path)
    file, temporary = _open_temporary(path)
    try:
        with file:
            yield file
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _open_temporary(path: Path) -> tuple[IO[bytes], Path]:
    """A new file beside `path`, locked for as long as it is open."""
    import tempfile  # takes 4 ms, which a cold start that writes nothing should not pay

    while True:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=f"{path.suffix}.tmp")
        file = os.fdopen(descriptor, "wb")
        if not _lock(descriptor) or os.fstat(descriptor).st_nlink:
            return file, Path(name)
        file.close()  # another writer took it for a leftover before it was locked


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary files of writers of `path` that were killed: nobody holds their lock."""
    name, suffix = re.escape(path.name), re.escape(path.suffix)
    pattern = re.compile(rf"{name}\.[a-z0-9_]{{8}}{suffix}\.tmp")
    with suppress(OSError):
        for leftover in [entry.path for entry in os.scandir(path.parent) if pattern.fullmatch(entry.name)]:
            with suppress(OSError), Path(leftover).open("rb") as file:
                if _lock(file.fileno()):
                    Path(leftover).unlink()


def _lock(descriptor: int) -> bool:
    """Lock a file without waiting; False where somebody else holds it, or where the system cannot."""
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def explain_os_errors(destination: Path) -> Iterator[None]:
    """Turn an OSError in the block, in which the directory `destination` is made, into a message for the user.

    Raises:
        DestinationError: the block raised an OSError; the message also names another file that the error is about.
    """
    try:
        yield
    except OSError as error:
        reason = describe_os_error(error)
        if error.filename and not Path(os.fsdecode(error.filename)).absolute().is_relative_to(destination.parent):
            raise DestinationError(f"{os.fsdecode(error.filename)}: {reason}; {destination} was not changed") from error
        raise DestinationError(f"cannot write {destination}: {reason}; nothing there was changed") from error


def find_file_problem(path: Path, limit: int) -> Problem | None:
    """Why a file must not be opened: it is missing, no regular file, or larger than `limit` bytes; None if it may."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return Problem(ProblemKind.MISSING, path.name, path.name)
    # Symbolic links could lead out of the folder. Hard links are accepted: package installers make them, and whoever
    # can make one could also have copied the file here.
    if not stat.S_ISREG(status.st_mode):
        return Problem(ProblemKind.REFUSED, path.name, f"{path.name} is not a regular file (links are not followed)")
    if status.st_size > limit:
        why = f"{path.name} has {status.st_size} bytes, more than the {limit} that are allowed"
        return Problem(ProblemKind.CHANGED, path.name, why)
    return None


#: Links are not followed, and a pipe that was put there meanwhile does not wait for a writer.
_OPEN_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))


def open_file(path: Path, limit: int) -> FileIO | Problem:
    """A regular file of at most `limit` bytes, open for reading; or why it must not be opened.

    It is looked at before it is opened, and again by what was opened: nothing that could wait, run or lead elsewhere is
    read.
    """
    if problem := find_file_problem(path, limit):
        return problem
    try:
        file = FileIO(os.open(path, _OPEN_FLAGS), "rb")
    except OSError as error:
        return Problem(ProblemKind.REFUSED, path.name, f"{path.name} cannot be read: {describe_os_error(error)}")
    status = os.fstat(file.fileno())
    if stat.S_ISREG(status.st_mode) and status.st_size <= limit:
        return file
    file.close()
    return Problem(ProblemKind.CHANGED, path.name, f"{path.name} was replaced while it was opened")


#: Endings of the files of a folder that are taken for images. A file that is named may have any.
ENDINGS = frozenset({
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".tga", ".ico",
    ".avif", ".jp2",
})  # fmt: skip


def list_images(folder: Path) -> list[Path]:
    """The image files in a folder and below it, by name; what is hidden is left out, and links are not followed.

    Raises:
        RequestError: it is no folder, or cannot be read.
    """
    if not folder.is_dir():
        raise RequestError(f"{folder} is no folder of images")
    return sorted(_walk(folder), key=lambda path: path.relative_to(folder).parts)


def _walk(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise RequestError(f"{error.filename} cannot be read: {describe_os_error(error)}") from None

    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (
            Path(root, name) for name in names if not name.startswith(".") and Path(name).suffix.lower() in ENDINGS
        )
