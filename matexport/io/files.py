"""Files: their digests, one file that appears whole, TOML and JSON, and what an OSError means in words."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from matexport.errors import DestinationError, Problem, ProblemKind, RequestError


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Parse a TOML file from a user.

    Args:
        what: names the file in messages, such as ``job``.

    Raises:
        RequestError: it cannot be read, or is not TOML.
    """
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise RequestError(f"cannot read the {what} {path}: {problem.strerror}") from None
    except (ValueError, RecursionError) as problem:  # TOML, UTF-8, or more digits or brackets than Python reads
        raise RequestError(f"{path} is not a TOML file: {problem}") from None


def parse_json(text: str | bytes) -> Any:
    """JSON of a file that anyone may have written, as its specification has it.

    Python's reader takes the last of several values of one name, where another reader takes the first; and it knows
    NaN and Infinity, and reads 1e999 as one.

    Raises:
        ValueError: it is not JSON, a name occurs twice in a table, or a number is none.
        RecursionError: it nests too deep.
    """
    return json.loads(
        text, object_pairs_hook=_refuse_repeated_names, parse_constant=_refuse_number, parse_float=_read_finite
    )


def _refuse_repeated_names(pairs: list[tuple[str, object]]) -> dict[str, object]:
    data = dict(pairs)
    if len(data) != len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the name {name!r} occurs twice")
    return data


def _refuse_number(literal: str) -> float:
    raise ValueError(f"{literal} is no number")


def _read_finite(literal: str) -> float:
    number = float(literal)
    return number if math.isfinite(number) else _refuse_number(literal)


#: Hashed at a time, without Python's lock: what else is loaded meanwhile goes on in another thread.
HASH_CHUNK = 16 << 20


def hash_file(path: Path) -> str:
    """sha256 of a file, as a hex digest."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        buffer = memoryview(bytearray(min(HASH_CHUNK, max(1, path.stat().st_size))))
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file size limit was reached",
}


def describe_os_error(error: OSError) -> str:
    """What happened, in the words that every message has for it."""
    return _FULL.get(error.errno or 0) or (error.strerror or str(error)).lower()


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of writing `path` into a DestinationError that says what happened."""
    try:
        yield
    except OSError as error:
        raise DestinationError(f"cannot write {path}: {describe_os_error(error)}") from None


@contextmanager
def replace_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` when the block ends well; until then it lies beside it, unseen.

    Its name begins with that of `path` and ends in ``.tmp``, so that a family's checks let it lie should this process
    be killed.

    Raises:
        OSError: it cannot be written; nothing is changed then.
    """
    import tempfile  # 4 ms, of a cold start that writes nothing

    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=f"{path.suffix}.tmp")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def explain_os_errors(destination: Path) -> Iterator[None]:
    """Turn an OSError of writing `destination` into a DestinationError that says what happened to what."""
    try:
        yield
    except OSError as error:
        reason = describe_os_error(error)
        if error.filename and not Path(os.fsdecode(error.filename)).absolute().is_relative_to(destination.parent):
            raise DestinationError(f"{os.fsdecode(error.filename)}: {reason}; {destination} was not changed") from error
        raise DestinationError(f"cannot write {destination}: {reason}; nothing there was changed") from error


def find_file_problem(path: Path, limit: int) -> Problem | None:
    """Why a file is not opened: it is missing, no regular file, or larger than `limit` bytes; None where it may be."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return Problem(ProblemKind.MISSING, path.name, path.name)
    # Symbolic links could leave the folder. Hard links are let through: package installers make them, and they
    # cannot show a file that its owner could not have copied here.
    if not stat.S_ISREG(status.st_mode):
        return Problem(ProblemKind.REFUSED, path.name, f"{path.name} is not a regular file (links are not followed)")
    if status.st_size > limit:
        why = f"{path.name} has {status.st_size} bytes, more than the {limit} that are allowed"
        return Problem(ProblemKind.CHANGED, path.name, why)
    return None
