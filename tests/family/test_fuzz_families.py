"""Families with small changes, signed again: refused in one line, or they work; `benchmarks/fuzz_families.py`."""

from __future__ import annotations

import sys

import pytest
from places import ROOT

CASES = 2_000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="alarms and peaks of processes are Linux's here")
def test_no_change_ends_in_a_traceback_a_hang_or_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from fuzz_families import Tally, run_cases

    found = Tally()
    run_cases(0, CASES, found)
    assert (found.wrong, found.above) == ([], 0)
    assert found.cases == CASES
    assert found.outcomes["works"] > CASES / 20
    assert found.outcomes["refused"] > CASES / 2
