"""Building a family: 30 points of all-MiniLM-L6-v2 against 1 point, and against 30 exports with optimum.

Every build is a fresh process; the sides take turns, and medians are compared. "Trace to files" is from the first
`trace` event to the last `cut` event. `optimum-cli export onnx` exports the whole parent from an environment of its
own and is scaled to 30; a copy cut to one block is exported too, since most of 30 exports would be that much quicker.

Bars: trace to files for 30 points <= 1.25 x that for 1, and >= 20 x faster than 30 optimum processes; weights and
graphs <= 1.05 x the parent's file; a graph <= 150 kB; parity <= 2e-6. Trace to files leaves out our imports and
loading, which optimum's processes pay 30 times; whole process against whole process is reported beside it, with and
without verification, and is not held to the bar.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from common import (
    MINILM,
    MINILM_POINTS,
    Bar,
    Report,
    count_repeats,
    finish,
    locate_minilm,
    make_parser,
    median,
    print_bars,
    run_export,
    run_process,
    say,
    take_turns,
)
from peers import OPTIMUM, add_optimum_option, make_environment, read_versions_in

ONE_POINT = ((6, 384),)

RATIO = Bar("trace to files, 30 points / 1 point", 1.25, " x")
SPEEDUP = Bar("30 optimum exports / 30 points, trace to files", 20, " x", at_least=True)
DISK = Bar("weights and graphs / parent's model.safetensors", 1.05, " x")
GRAPH = Bar("largest graph", 150, " kB")
PARITY = Bar("worst max_abs over all exits, fp32", 2e-6)

#: Sides of the comparison. The command line cannot skip validation, optimum's main_export can.
SIDES = ("30 points", "1 point", "optimum", "optimum, unvalidated", "optimum, 1 block")
UNVALIDATED = (
    "import sys; from optimum.exporters.onnx import main_export; "
    "main_export(sys.argv[1], sys.argv[2], task='feature-extraction', library_name='transformers', do_validation=False)"
)


def main() -> int:
    parser = make_parser("build", __doc__, repeats=5)
    add_optimum_option(parser)
    options = parser.parse_args()
    bars = (RATIO, SPEEDUP, DISK, GRAPH, PARITY)
    print_bars(bars)
    optimum = options.optimum_python or make_environment("optimum", OPTIMUM)
    repeats = count_repeats(options, quick=1)
    with tempfile.TemporaryDirectory(prefix="matexport-build-") as folder:
        runs = run_all(Path(folder), optimum, repeats)
    measured = summarise(runs)
    held = [(bar, measured["bars"].pop(bar.name)) for bar in bars]
    del measured["bars"]
    settings = {"points": len(MINILM_POINTS), "repeats": repeats, "parent": MINILM}
    return finish("build", options, Report(held, measured, settings, read_versions_in(optimum, OPTIMUM)))


def run_all(folder: Path, optimum: Path, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Every side, `repeats` times in turns, after one run of each tool that only fills the caches."""
    parent = locate_minilm()
    shallow = copy_with_one_block(parent, folder / "shallow")
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    run_side("1 point", folder, optimum, parent, shallow)
    run_side("optimum", folder, optimum, parent, shallow)
    for side in take_turns(SIDES, repeats):
        result = run_side(side, folder, optimum, parent, shallow)
        say(f"{side}: {result['total_s']:.1f} s")
        runs[side].append(result)
    return runs


def run_side(side: str, folder: Path, optimum: Path, parent: Path, shallow: Path) -> dict[str, Any]:
    """One run of one side into a directory that does not exist yet; the directory is removed."""
    out = folder / "out"
    if side in ("30 points", "1 point"):
        points = MINILM_POINTS if side == "30 points" else ONE_POINT
        result = run_export({"source": str(parent), "points": points, "out": str(out)})
        result |= measure_spans(result["stages"])
    else:
        source = shallow if side == "optimum, 1 block" else parent
        command = optimum_command(optimum, source, out, validate=side != "optimum, unvalidated")
        result = {"total_s": run_process(command, HF_HUB_OFFLINE="1").seconds}
    shutil.rmtree(out)
    return result


def measure_spans(stages: dict[str, dict[str, float]]) -> dict[str, float]:
    """Seconds to the last graph: from the trace, from loading, and from the start of the process."""
    done = stages["cut"]["last_s"]
    return {
        "trace_to_files_s": done - stages["trace"]["first_s"],
        "load_to_files_s": done - stages["load"]["first_s"],
        "process_to_files_s": done,
    }


def summarise(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians, the ratios between them, and the value of every bar."""
    medians = {side: {key: median(run[key] for run in runs[side]) for key in _times(runs[side][0])} for side in SIDES}
    family, single = medians["30 points"], medians["1 point"]
    speedups = compare_with_optimum(family, medians)
    built = runs["30 points"][0]
    disk = built["weights_bytes"] + built["graphs_bytes"]
    return {
        "bars": {
            RATIO.name: family["trace_to_files_s"] / single["trace_to_files_s"],
            SPEEDUP.name: speedups["trace to files / optimum with validation"],
            DISK.name: disk / parent_bytes(),
            GRAPH.name: built["largest_graph_bytes"] / 1e3,
            PARITY.name: max(run["worst_max_abs"] for run in runs["30 points"]),
        },
        "medians_s": medians,
        "load_to_files_ratio": family["load_to_files_s"] / single["load_to_files_s"],
        "optimum_ratios": speedups,
        "disk_bytes": {
            "weights": built["weights_bytes"],
            "graphs": built["graphs_bytes"],
            "parent": parent_bytes(),
        },
        "exporter": built["exporter"],
        "runs": runs,
    }


def compare_with_optimum(family: dict[str, float], medians: dict[str, dict[str, float]]) -> dict[str, float]:
    """Thirty exports with optimum against one family, in every pairing that a reader may find the fair one."""
    validated, plain, shallow = (medians[side]["total_s"] for side in SIDES[2:])
    count = len(MINILM_POINTS)
    by_depth = count * (validated + shallow) / 2  # depths 1 to 6 alike, and time grows linearly with depth
    return {
        "process without verification / optimum with validation": count * validated / family["process_to_files_s"],
        "process without verification / optimum without": count * plain / family["process_to_files_s"],
        "process with verification / optimum with validation": count * validated / family["total_s"],
        "trace to files / optimum with validation": count * validated / family["trace_to_files_s"],
        "process without verification / optimum with validation, matching depths": by_depth
        / family["process_to_files_s"],
        "process with verification / optimum with validation, matching depths": by_depth / family["total_s"],
    }


def _times(run: dict[str, Any]) -> list[str]:
    return [key for key in run if key.endswith("_s")]


def optimum_command(python: Path, source: Path, out: Path, *, validate: bool) -> list[str | Path]:
    """Optimum's command line, which validates what it wrote; or the function behind it, told not to."""
    if not validate:
        return [python, "-c", UNVALIDATED, source, out]
    library = ["--library-name", "transformers", "--task", "feature-extraction"]
    return [python.with_name("optimum-cli"), "export", "onnx", *library, "-m", source, out]


def parent_bytes() -> int:
    return (locate_minilm() / "model.safetensors").stat().st_size


def copy_with_one_block(parent: Path, folder: Path) -> Path:
    """A copy of the parent whose configuration keeps the first block; the weights of the others are not loaded."""
    shutil.copytree(parent, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}), encoding="utf-8")
    return folder


if __name__ == "__main__":
    raise SystemExit(main())
