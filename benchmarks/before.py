"""What three commands cost against an earlier build of matexport: a checkout of another commit, in turns.

    git worktree add ../before a68d360
    python benchmarks/before.py --before ../before

`pick` of 200 profiles, the cold start of a two-layer profile of MiniLM (`embed` of one text), and `verify` of all 30.
Each build makes its own families and reads those; that compiles its modules, which a cold start is not about. What is
compared is the CPU time of whole commands, user and system, which other work on the machine disturbs least; the
median of the ratios of neighbouring runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import Bar, Report, count_repeats, finish, make_parser, median, print_bars, say, take_turns

ROOT = Path(__file__).resolve().parents[1]
PICK = Bar("pick, 200 profiles / before", 1.05, " x")
COLD = Bar("cold start of two layers / before", 1.05, " x")
VERIFY = Bar("verify of MiniLM's 30 profiles / before", 1.05, " x")
BARS = [PICK, COLD, VERIFY]
#: Runs of a command for each repeat that is asked for: short ones more often.
OFTEN = {PICK: 8, COLD: 4, VERIFY: 1}


def main() -> int:
    parser = make_parser("before", __doc__, repeats=6)
    parser.add_argument("--before", type=Path, required=True, help="a checkout of the earlier commit")
    options = parser.parse_args()
    print_bars(BARS)
    repeats = count_repeats(options, quick=1)
    sides = {"before": options.before.resolve(), "now": ROOT}
    with tempfile.TemporaryDirectory(prefix="matexport-before-") as name:
        families = {side: make_families(root, Path(name) / side) for side, root in sides.items()}
        runs = {bar: time_turns(bar, sides, families, repeats * OFTEN[bar]) for bar in BARS}
    ratios = {
        bar: median(now / before for before, now in zip(found["before"], found["now"], strict=True))
        for bar, found in runs.items()
    }
    measured = {
        bar.name: {"medians_s": {side: median(found) for side, found in runs[bar].items()}, "runs": runs[bar]}
        for bar in BARS
    }
    commit = subprocess.run(
        ["git", "-C", options.before, "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    settings = {"before": commit, "repeats": repeats, "quick": options.quick}
    return finish("before", options, Report([(bar, ratios[bar]) for bar in BARS], measured, settings))


def make_families(root: Path, folder: Path) -> dict[str, Path]:
    """What a build makes of MiniLM, and its forged family of 200 profiles."""
    folder.mkdir()
    forge = "import sys; from pathlib import Path; sys.path.insert(0, 'benchmarks'); import pick; "
    spend(root, ["-c", f"{forge}pick.forge_family(Path({str(folder / 'forged')!r}))"])
    spend(root, ["-m", "matexport", "export", "profiles/minilm.toml", "--out", str(folder / "minilm")])
    spend(root, ["-m", "matexport", "embed", str(folder / "minilm"), "--profile", "L02-D064-fp32", "a text"])
    spend(root, ["-m", "matexport", "pick", str(folder / "forged")])
    return {"forged": folder / "forged", "minilm": folder / "minilm"}


def time_turns(
    bar: Bar, sides: dict[str, Path], families: dict[str, dict[str, Path]], count: int
) -> dict[str, list[float]]:
    """CPU seconds of one command, by each build in turn."""
    runs: dict[str, list[float]] = {side: [] for side in sides}
    for side in take_turns(list(sides), count):
        arguments = {
            PICK: ["pick", families[side]["forged"]],
            COLD: ["embed", families[side]["minilm"], "--profile", "L02-D064-fp32", "a text"],
            VERIFY: ["verify", families[side]["minilm"], "--threads", "1"],
        }[bar]
        runs[side].append(spend(sides[side], ["-m", "matexport", *map(str, arguments)]))
    say(f"{bar.name}: {', '.join(f'{side} {median(found):.3f} s' for side, found in runs.items())}")
    return runs


def spend(root: Path, arguments: list[str]) -> float:
    """Run Python with the package of a checkout; the CPU seconds that it took, user and system.

    Raises:
        SystemExit: it failed.
    """
    environment = {**os.environ, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # all modules would be compiled in every run
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{arguments} in {root} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    sys.exit(main())
