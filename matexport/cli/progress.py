"""Progress bars on standard error for work that takes long."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def show_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A function to report progress to (see `matexport.io.progress.Progress`).

    It shows one bar per stage on standard error, and nothing if that is no terminal.
    """
    if not sys.stderr.isatty():
        yield lambda _stage, _done, _total: None
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
