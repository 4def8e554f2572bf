"""The type of a function that long work calls to report its progress."""

from __future__ import annotations

from collections.abc import Callable

#: Called with (name of the stage, done, total). A stage begins with ``done == 0`` and ends with ``done == total``.
Progress = Callable[[str, int, int], None]
