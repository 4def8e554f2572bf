"""A directory that appears complete or not at all.

The new content is built in a hidden directory beside the destination, on the same file system, flushed to disk, and put
in place by one rename. An existing destination is replaced by exchanging the two names in one step where the kernel can
do so (Linux), so that at every instant the destination is the old family or the new one. Elsewhere this takes two
renames, and the next writer repairs what a crash between them left. A lock keeps other writers away, and the kernel
releases it when a process dies. So a hidden directory that is found under the lock is left over from a dead process.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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
        release = _take_lock(_hidden(destination, "lock"))
        if release is None:
            raise DestinationError(f"{destination} is being written by another process; wait for it to end")
    try:
        with explain_os_errors(destination):
            _clear_leftovers(destination)
        yield
    finally:
        release()


def _take_lock(path: Path) -> Callable[[], None] | None:
    """Take the lock that a file is, without waiting: what gives it back and removes the file; None where it is held.

    Whoever opened the file before its holder removed it locks a file that has no name any more, beside which the next
    one would make another. So a lock counts only where the name leads to the very file that was locked, and the name is
    removed before the lock is given back. filelock, which leaves its files, does it where there is no flock.

    Raises:
        OSError: the file cannot be made.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return _take_elsewhere(path)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _leads_to(path, descriptor):
                return lambda: _give_back(path, descriptor)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return None
            if error.errno == errno.ENOSYS:  # a file system without it
                return _take_elsewhere(path)
            raise
        os.close(descriptor)


def _leads_to(path: Path, descriptor: int) -> bool:
    """Whether a name is that of an open file, and not of a link to it."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _give_back(path: Path, descriptor: int) -> None:
    import fcntl

    try:
        with suppress(OSError):  # of somebody else, in a folder where only owners remove files: it does no harm there
            if _leads_to(path, descriptor):  # and not somebody's who was let in by a hand that removed it
                path.unlink()
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child process may have the descriptor, too
    finally:
        os.close(descriptor)


def _take_elsewhere(path: Path) -> Callable[[], None] | None:
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    return lock.release


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
            status = (Path(folder) / name).lstat()
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                continue  # kept of somebody's: opening a link or a pipe may wait, or lead elsewhere
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
