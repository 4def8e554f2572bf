"""How long the commands take that people run: the shipped export, its rerun, and the light half's start.

`matexport export profiles/minilm.toml` runs as a whole process into an empty directory, then again, when everything
is up to date and is verified only. `import matexport` and `matexport --help` run in fresh processes, beside a bare
interpreter for scale. All take turns, on 2 CPUs where the system lets a process choose; medians are reported.

Bars: export <= 60 s on 2 cores; import and --help <= 0.3 s each; and `import matexport, matexport.cli.main` loads none
of torch, transformers and onnx, which is checked in the process that imports them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import (
    Bar,
    Finished,
    Report,
    count_repeats,
    finish,
    make_parser,
    median,
    print_bars,
    run_process,
    say,
    use_cpus,
)

CPUS = 2
PROFILE = Path(__file__).resolve().parents[1] / "profiles" / "minilm.toml"
HEAVY = ("torch", "transformers", "onnx")

EXPORT = Bar("matexport export profiles/minilm.toml", 60, " s")
IMPORT = Bar("import matexport", 0.3, " s")
HELP = Bar("matexport --help", 0.3, " s")
LOADED = Bar("heavy packages loaded by the light half", 0)

#: Short commands, by what they are called in the result.
SHORT: Mapping[str, Sequence[str]] = {
    "bare interpreter": ("-c", "pass"),
    "import matexport": ("-c", "import matexport"),
    "import matexport, matexport.cli.main": ("-c", "import matexport, matexport.cli.main"),
    "matexport --help": ("-m", "matexport", "--help"),
}
FIND_HEAVY = (
    "import json, sys, matexport, matexport.cli.main; print(json.dumps([n for n in sys.argv[1:] if n in sys.modules]))"
)


def main() -> int:
    parser = make_parser("main_job", __doc__, repeats=5)
    parser.add_argument("--short-repeats", type=int, default=20, help="runs of the short commands (default: 20)")
    options = parser.parse_args()
    bars = (EXPORT, IMPORT, HELP, LOADED)
    print_bars(bars)
    repeats = count_repeats(options, quick=1)
    with use_cpus(CPUS):
        loaded = json.loads(run_process([sys.executable, "-c", FIND_HEAVY, *HEAVY]).stdout)
        runs = time_short_commands(5 if options.quick else options.short_repeats)
        runs |= time_exports(repeats)
    medians = {name: median(times) for name, times in runs.items()}
    values = (medians["export"], medians["import matexport"], medians["matexport --help"], len(loaded))
    measured: dict[str, Any] = {"medians_s": medians, "heavy_loaded": loaded, "runs": runs}
    settings = {"repeats": repeats, "short_repeats": len(runs["import matexport"]), "cpus": CPUS}
    return finish("main_job", options, Report(list(zip(bars, values, strict=True)), measured, settings))


def time_short_commands(repeats: int) -> dict[str, list[float]]:
    """Seconds of every short command, one of each in a turn, after one turn that fills the caches."""
    runs: dict[str, list[float]] = {name: [] for name in SHORT}
    for turn in range(repeats + 1):
        for name, arguments in SHORT.items():
            seconds = run_process([sys.executable, *arguments]).seconds
            if turn:
                runs[name].append(seconds)
    return runs


def time_exports(repeats: int) -> dict[str, list[float]]:
    """Seconds of exports into an empty directory, each followed by a rerun that finds everything up to date."""
    runs: dict[str, list[float]] = {"export": [], "up-to-date rerun": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="matexport-main-job-") as folder:
            out = Path(folder) / "minilm"
            first, second = export(out), export(out)
            if json.loads(first.stdout)["up_to_date"] or not json.loads(second.stdout)["up_to_date"]:
                raise SystemExit("the rerun did not find the family up to date")
        say(f"export {first.seconds:.1f} s, rerun {second.seconds:.1f} s")
        runs["export"].append(first.seconds)
        runs["up-to-date rerun"].append(second.seconds)
    return runs


def export(out: Path) -> Finished:
    """The command, as a user runs it."""
    return run_process([sys.executable, "-m", "matexport", "export", PROFILE, "--out", out, "--json"])


if __name__ == "__main__":
    raise SystemExit(main())
