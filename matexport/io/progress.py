"""How long work says where it is: called with the name of a stage, what is done of it, and out of how many."""

from __future__ import annotations

from collections.abc import Callable

#: ``(stage, done, total)``; a stage begins with ``done == 0`` and ends with ``done == total``.
Progress = Callable[[str, int, int], None]
