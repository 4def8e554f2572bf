"""Standard streams as they may be: closed, full, a pipe that nobody reads any more, a console that is not UTF-8.

A stream that is closed when a command begins is opened on nothing: otherwise the next file that is opened would take
its number, and what a library writes to standard error would land in that file. Characters that a stream cannot hold
are written as escapes. What could not be written when a command ends is thrown away, since Python would try once more.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TextIO


def open_streams() -> bool:
    """Make the standard streams fit to be used; False if standard output is closed."""
    open_before = sys.stdout is not None
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            _open_nothing(number)
            setattr(sys, name, open(number, "r" if name == "stdin" else "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    return open_before


def settle_streams() -> bool:
    """Write out what is left in the standard streams; False if standard output did not take it.

    A stream that takes nothing leads to nothing from now on, so that Python does not complain of it when it ends.
    """
    settled = [_settle(stream) for stream in (sys.stdout, sys.stderr)]
    return settled[0]


def _settle(stream: TextIO) -> bool:
    try:
        stream.flush()
    except (OSError, ValueError):  # ValueError: it was closed meanwhile
        with contextlib.suppress(OSError, ValueError):
            _open_nothing(stream.fileno())
            stream.flush()
        return False
    return True


def _open_nothing(number: int) -> None:
    """Let a file descriptor lead to nothing."""
    descriptor = os.open(os.devnull, os.O_RDWR)
    if descriptor != number:
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.set_inheritable(number, True)
