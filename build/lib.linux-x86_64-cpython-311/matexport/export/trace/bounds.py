"""A time limit for tracing, which may take for ever where a parent's layers walk through a text piece by piece.

A trace unrolls linear attention and state-space layers into thousands of operators, and for some architectures it does
not end within an hour. The error names the line of the model that was being traced when time was up. Seconds are CPU
time of this process, so that the load of the machine does not matter. Where this time cannot be limited (on Windows,
or outside the main thread), there is no limit.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from matexport.errors import ParentError

#: The limit of a trace is the first number plus the parent's parameters divided by the second. A trace of a tiny parent
#: takes 3 to 15 seconds, of all-MiniLM-L6-v2 10, and of a parent with 335 million parameters 60.
BASE_SECONDS = 50
PARAMETERS_PER_SECOND = 1_000_000


class _OutOfTimeError(BaseException):
    """Time is up. Not an Exception, since libraries that catch exceptions would go on."""


@contextlib.contextmanager
def bound_seconds(seconds: float, what: str) -> Iterator[None]:
    """Stop the block after some seconds of CPU time.

    Args:
        what: what is done in the block; it begins the message.

    Raises:
        ParentError: time was up; the message says what took long, and where it was.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, frame: FrameType | None) -> None:
        raise _OutOfTimeError(_describe(frame))

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    except _OutOfTimeError as error:
        raise ParentError(
            f"{what} took more than {seconds:.0f} s of CPU time, which is the bound for a parent of this size; it was "
            f"in {error}: layers that walk through a text piece by piece are unrolled, and may take for ever"
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _describe(frame: FrameType | None) -> str:
    """The innermost frame in a file of a transformers model (``modeling_*``), or else the innermost one of all."""
    innermost = frame
    while frame is not None:
        if Path(frame.f_code.co_filename).name.startswith("modeling_"):
            return f"{frame.f_code.co_qualname} ({Path(frame.f_code.co_filename).name}, line {frame.f_lineno})"
        frame = frame.f_back
    return innermost.f_code.co_qualname if innermost else "nothing"
