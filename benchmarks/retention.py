"""What MiniLM keeps of its quality at each point: the picture in the README.

    python benchmarks/retention.py [--stsb FOLDER]

`matexport evaluate` of the 30 points of `profiles/minilm.toml` in fp32, on the pairs of STS-B dev. The parent was not
trained to be read anywhere but at its end, and the picture shows what that means. `render.py` draws it. Held to no bar.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from common import MINILM, MINILM_POINTS, STSB, Report, finish, make_parser, run_export, run_process


def main() -> int:
    parser = make_parser("retention", __doc__, repeats=1)
    parser.add_argument("--stsb", type=Path, default=STSB, help="folder with STS-B")
    options = parser.parse_args()
    points = MINILM_POINTS[-5:] if options.quick else MINILM_POINTS
    with tempfile.TemporaryDirectory(prefix="matexport-retention-") as name:
        family = Path(name) / "family"
        run_export({"source": MINILM, "points": points, "precisions": ("fp32",), "out": str(family)})
        pairs = options.stsb / "stsb-en-dev.csv"
        command = [sys.executable, "-m", "matexport", "evaluate", family, "--sts", pairs, "--json"]
        document = json.loads(run_process(command).stdout)
    (task,) = document["tasks"].values()
    retention = {name: score["retention"] for name, score in task["profiles"].items()}
    measured = {"metric": task["metric"], "parent": task["parent"]["score"], "retention": retention}
    return finish("retention", options, Report([], measured, {"pairs": "STS-B dev", "quick": options.quick}))


if __name__ == "__main__":
    sys.exit(main())
