"""Judge what consumers in Node wrote down, with the comparison of all others."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from harness import Cases, Outcome, Verdict, judge, keep, limit_for, load_cases


def judge_all(cases: Cases, given: dict[str, Any]) -> Outcome:
    """One document of harness.mjs -> what came of it."""
    outcome = Outcome(given["consumer"], given["layout"], given["how"], given["versions"], given["onnxruntime"])
    outcome.seconds = given["seconds"]
    limits = limit_for(given["onnxruntime"])
    for profile in cases.dims:
        found = given["profiles"].get(profile, {"error": "was not tried"})
        if "error" in found:
            outcome.profiles[profile] = Verdict(limit=limits.of(profile), error=found["error"])
        else:
            outcome.profiles[profile] = judge(
                cases, profile, found["batched"], found["single"], limits, closes=given["closes"]
            )
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", type=Path, help="the folder that prepare.py wrote")
    parser.add_argument("given", type=Path, help="the folder that scripts in Node wrote to")
    parser.add_argument("--out", type=Path, help="write JSON documents to this folder as well")
    options = parser.parse_args()
    cases = load_cases(options.cases)
    files = sorted(options.given.glob("*.json"))
    outcomes = [judge_all(cases, json.loads(path.read_text(encoding="utf-8"))) for path in files]
    for outcome in outcomes:
        print(keep(outcome, options.out))
    return 0 if outcomes and all(outcome.passed for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
