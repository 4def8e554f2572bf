"""What the embedders of one family share: the preparation of items, and threads."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from matexport.errors import RequestError
from matexport.family.integrity import Contents
from matexport.host import count_cpus
from matexport.runtime.inputs.modality import Inputs, open_inputs


class Shared:
    """What the embedders of one family share: what prepares items, and threads to compute in.

    Args:
        threads: all CPUs of this process by default.

    Raises:
        RequestError: fewer than one thread was asked.
    """

    def __init__(self, threads: int | None) -> None:
        if threads is not None and threads < 1:
            raise RequestError(f"threads={threads} was asked; at least 1 is needed")
        self.threads = threads or count_cpus()
        self._pool, self._process = self._make_pool(), os.getpid()
        self._inputs: Inputs | None = None

    @property
    def pool(self) -> ThreadPoolExecutor:
        """Threads to compute in. A process that was forked has none of its parent's, and gets its own."""
        if self._process != os.getpid():
            self._pool, self._process = self._make_pool(), os.getpid()
        return self._pool

    def open_inputs(self, contents: Contents) -> Inputs:
        """The family's inputs, opened when they are first asked for, from files whose digests were checked."""
        if self._inputs is None:
            self._inputs = open_inputs(contents)
        return self._inputs

    def _make_pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.threads, thread_name_prefix="matexport")
