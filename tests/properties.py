"""Hypothesis as these tests use it: the same examples in each run, and no deadlines, since others use the machine."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

settings.register_profile("steady", deadline=None, derandomize=True, database=None)
settings.load_profile("steady")

__all__ = ["given", "settings", "st"]
