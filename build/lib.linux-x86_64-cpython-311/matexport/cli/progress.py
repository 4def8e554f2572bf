"""Progress on standard error of work that takes long: bars on a terminal, a line for each stage elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from matexport.io.progress import Progress

#: Seconds after which lines are printed; what is done before says nothing.
QUIET_SECONDS = 2.0


@contextlib.contextmanager
def show_progress() -> Iterator[Progress]:
    """A function to report progress to.

    On a terminal it shows one bar per stage. Elsewhere, such as in the log of a CI, it prints a line when a stage
    begins, if the work takes longer than `QUIET_SECONDS`: then also those of the stages before.
    """
    if not sys.stderr.isatty():
        yield print_stages()
        return
    from tqdm import tqdm

    bar: Any = None

    def report(stage: str, done: int, total: int) -> None:
        nonlocal bar
        if bar is None or bar.desc.rstrip(": ") != stage:
            if bar is not None:
                bar.close()
            bar = tqdm(total=total or None, desc=stage, leave=True, dynamic_ncols=True)
        bar.update(done - bar.n)

    try:
        yield report
    finally:
        if bar is not None:
            bar.close()


def print_stages(clock: Callable[[], float] = time.monotonic) -> Progress:
    """A function to report progress to that prints a line for each stage, as `show_progress` says."""
    began = clock()
    waiting: list[str] = []
    last: str | None = None

    def report(stage: str, _done: int, total: int) -> None:
        nonlocal last
        if stage != last:
            waiting.append(f"matexport: {stage}" + (f" (of {total})" if total > 1 else ""))
            last = stage
        if waiting and clock() - began >= QUIET_SECONDS:
            print("\n".join(waiting), file=sys.stderr, flush=True)
            waiting.clear()

    return report
