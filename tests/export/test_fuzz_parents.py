"""A small share of `benchmarks/fuzz_parents.py`: folders with random settings are read as sentence-transformers reads
them, or refused."""

from __future__ import annotations

import pytest
from places import ROOT

FOLDERS = 40


@pytest.mark.loads
@pytest.mark.filterwarnings("ignore")
def test_random_parents_are_read_as_sentence_transformers_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setenv("HF_MODULES_CACHE", "")  # restored afterwards; each run has its own
    fuzz_parents = pytest.importorskip("fuzz_parents")
    verdicts = list(fuzz_parents.judge_seeds(range(FOLDERS)))
    failures = [verdict for verdict in verdicts if verdict.outcome in ("wrong", "traceback")]
    assert failures == [], "\n".join(f"--only {v.seed}: {v.outcome}: {v.detail}" for v in failures)
    outcomes = [verdict.outcome for verdict in verdicts]
    assert outcomes.count("agree") >= FOLDERS // 4, outcomes
