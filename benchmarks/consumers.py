"""Put what every consumer's script found (see `noxfile.py`) into one result, and hold it to the bars.

A consumer that was not run is missed, as one that is off: the names are written down here, not taken from the folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import common

#: Which texts, profiles and limits: ci/consumers/prepare.py and harness.py.
NAMES = (
    "chromadb", "embed-anything", "fastembed 0.8", "fastembed 0.9", "fastembed npm", "infinity", "light-embed",
    "llama-index", "onnxruntime 1.24", "onnxruntime 1.32", "optimum-onnx", "pymilvus", "sentence-transformers 5 onnx",
    "sentence-transformers 6 module", "sentence-transformers 6 openvino", "sentence-transformers 6 torch",
    "transformers.js AutoModel", "transformers.js pipeline cls", "transformers.js pipeline mean", "txtai",
)  # fmt: skip
#: The folder of these is another, made with --for.
OTHER_FOLDERS = {"infinity": "infinity", "sentence-transformers 6 torch": "torch"}
INT8_SINCE = (1, 30)

BARS = (
    common.Bar("consumers that give the vector of every text, of all that were tried", len(NAMES), at_least=True),
    common.Bar("of these, with the one default folder", len(NAMES) - len(OTHER_FOLDERS), at_least=True),
    common.Bar("largest difference of any, fp32", 1e-5),
    common.Bar("largest difference, int8, onnxruntime 1.30 and later", 1e-5),
)


def read_outcomes(folder: Path) -> dict[str, dict[str, Any]]:
    """Name -> what its script left behind."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    outcomes = {outcome["consumer"]: outcome for outcome in found}
    if unknown := outcomes.keys() - set(NAMES):
        raise SystemExit(f"{folder} holds {', '.join(sorted(unknown))}, which benchmarks/consumers.py does not name")
    return outcomes


def count(outcomes: dict[str, dict[str, Any]], *, default: bool) -> int:
    """How many pass; with `default`, on the one folder that others share."""
    return sum(
        outcome["passed"] and (not default or (outcome["layout"] == "all" and name not in OTHER_FOLDERS))
        for name, outcome in outcomes.items()
    )


def find_worst(outcomes: dict[str, dict[str, Any]], precision: str) -> float:
    """The largest difference at a precision, of runtimes that are held to rounding; infinity where there is none."""
    differences = [
        max(verdict["batched"], verdict["single"])
        for outcome in outcomes.values()
        for profile, verdict in outcome["profiles"].items()
        if profile.endswith(precision) and verdict["batched"] is not None
        and (precision == "-fp32" or runs_new_kernels(outcome["onnxruntime"]))
    ]  # fmt: skip
    return max(differences, default=float("inf"))


def runs_new_kernels(onnxruntime: str) -> bool:
    """Whether it is an onnxruntime whose int8 kernels are those that the family was proven with."""
    return bool(onnxruntime) and tuple(int(part) for part in onnxruntime.split(".")[:2]) >= INT8_SINCE


def main() -> int:
    parser = common.make_parser("consumers", __doc__, repeats=1)
    parser.add_argument("folder", type=Path, help="where the consumers' scripts left their JSON documents")
    options = parser.parse_args()
    common.print_bars(BARS)
    outcomes = read_outcomes(options.folder)
    for name in NAMES:
        if name not in outcomes:
            common.say(f"{name} was not run")
    values = (
        count(outcomes, default=False),
        count(outcomes, default=True),
        find_worst(outcomes, "-fp32"),
        find_worst(outcomes, "-int8"),
    )
    report = common.Report(list(zip(BARS, values, strict=True)), {"consumers": outcomes}, {"tried": list(NAMES)})
    return common.finish("consumers", options, report)


if __name__ == "__main__":
    sys.exit(main())
