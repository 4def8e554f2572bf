"""A directory that appears complete or not at all.

The new content is built in a hidden directory beside the destination, on the same file system, flushed to disk, and put
in place by one rename. An existing destination is replaced by exchanging the two names in one step where the kernel can
do so (Linux), so that at every instant the destination is the old family or the new one. Elsewhere this takes two
renames, and the next writer repairs what a crash between them left. A lock keeps other writers away, and the kernel
releases it when a process dies. So a hidden directory that is found under the lock is left over from a dead process.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from matexport.errors import DestinationError
from matexport.io.files import explain_os_errors

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextmanager
def lock_destination(destination: Path) -> Iterator[None]:
    """Keep other processes from writing `destination`, and remove what dead writers left beside it.

    Raises:
        DestinationError: another process is writing it, or nothing can be written there.
    """
    destination = destination.absolute()
    with explain_os_errors(destination):
        _refuse_mount(destination)
        destination.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(destination.parent, os.W_OK):
            raise DestinationError(f"cannot write {destination}: nothing can be written in {destination.parent}")
        lock = FileLock(destination.parent / f".{destination.name}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise DestinationError(f"{destination} is being written by another process; wait for it to end") from None
    try:
        with explain_os_errors(destination):
            _clear_leftovers(destination)
        yield
    finally:
        lock.release()


def _refuse_mount(destination: Path) -> None:
    """Refuse a mount point, such as a container's volume, before anything is made: no rename puts a folder there."""
    if os.path.ismount(destination) or os.fsencode(destination.resolve()) in _list_mounts():
        raise DestinationError(
            f"{destination} is a mount point, where no folder can be put in place by renaming it: name a folder in it, "
            f"such as {destination / 'family'}"
        )


def _list_mounts() -> set[bytes]:
    """Where something is mounted; on Linux also folders of the same file system, which `os.path.ismount` misses."""
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return set()
    points = (line.split(b" ")[4] for line in lines if line.count(b" ") > 4)
    return {re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), point) for point in points}


@contextmanager
def stage_directory(destination: Path) -> Iterator[Path]:
    """An empty directory that becomes `destination` when the block ends without an error, and is removed otherwise.

    To be used inside of `lock_destination`.

    Raises:
        DestinationError: the disk is full, or the destination cannot be written.
    """
    destination = destination.absolute()
    stage = _hidden(destination, "staging")
    with explain_os_errors(destination):
        stage.mkdir()
        try:
            yield stage
            _flush(stage)
            _put_in_place(stage, destination)
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def _hidden(destination: Path, purpose: str) -> Path:
    return destination.parent / f".{destination.name}.{purpose}"


def _clear_leftovers(destination: Path) -> None:
    old = _hidden(destination, "old")
    if old.exists() and not destination.exists():
        old.rename(destination)  # a crash between the two renames of _put_in_place
    for leftover in (old, _hidden(destination, "staging")):
        if leftover.exists():
            shutil.rmtree(leftover)


def _put_in_place(stage: Path, destination: Path) -> None:
    if not destination.exists():
        stage.rename(destination)
    elif _exchange(stage, destination):
        shutil.rmtree(stage, ignore_errors=True)  # the old content; if any is left, the next writer removes it
    else:
        old = _hidden(destination, "old")
        destination.rename(old)
        try:
            stage.rename(destination)
        except BaseException:
            old.rename(destination)
            raise
        shutil.rmtree(old)
    _flush_directory(destination.parent)


def _exchange(left: Path, right: Path) -> bool:
    """Exchange two names in one step (renameat2 of Linux); False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    result = rename(_AT_FDCWD, os.fsencode(left), _AT_FDCWD, os.fsencode(right), _RENAME_EXCHANGE)
    return bool(result == 0)


def _flush(root: Path) -> None:
    for folder, _, names in os.walk(root):
        for name in names:
            descriptor = os.open(Path(folder) / name, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _flush_directory(Path(folder))


def _flush_directory(path: Path) -> None:
    if os.name != "posix":
        return  # directories cannot be opened on Windows
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
