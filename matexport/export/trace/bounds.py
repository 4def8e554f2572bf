"""A bound on what may take for ever: tracing a parent whose layers walk through a text piece by piece.

Linear attention and state-space layers are unrolled by a trace into thousands of operators, and some architectures give
no answer in an hour. What takes long is named by the line of the model that was being traced when time was up. Seconds
are of this process's CPU, so that a busy machine changes nothing; where there is no such clock (Windows, or a thread
that is not the main one) there is no bound.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from matexport.errors import ParentError

#: Of a trace: a tiny parent takes 3 to 15 seconds, all-MiniLM-L6-v2 10, a parent of 335 million parameters 60.
BASE_SECONDS = 50
PARAMETERS_PER_SECOND = 1_000_000


class _OutOfTimeError(BaseException):
    """Not an Exception: libraries that catch those would go on."""


@contextlib.contextmanager
def bound_seconds(seconds: float, what: str) -> Iterator[None]:
    """Refuse to go on after some seconds of CPU time.

    Raises:
        ParentError: saying what took long, and where it was.
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
    """The innermost line of a model, or of whatever runs."""
    innermost = frame
    while frame is not None:
        if Path(frame.f_code.co_filename).name.startswith("modeling_"):
            return f"{frame.f_code.co_qualname} ({Path(frame.f_code.co_filename).name}, line {frame.f_lineno})"
        frame = frame.f_back
    return innermost.f_code.co_qualname if innermost else "nothing"
