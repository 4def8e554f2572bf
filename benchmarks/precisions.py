"""Precisions of all-MiniLM-L6-v2: what int8 and weight-only profiles keep of fp32, their speed, size and export time.

The peers are the `avx2` and `avx512_vnni` presets as sentence-transformers' `export_dynamic_quantized_onnx_model`
writes them, in an environment of their own; all graphs run in this one's onnxruntime with the same options (spinning
off) on the same tokens.

* Accuracy: the full point against fp32 on the sentences of STS-B dev, in batches of 32 in the order of the file; every
  fourth also alone, and some of those beside a text of the parent's full length. Without that file, on the shipped
  probes.
* Speed: the median of turns in one process per number of threads, several such processes in turns, and the median of
  their ratios. The peers' graphs are timed without pooling, which ours contain.
* Size: weights and graphs of 30 points. Export: whole processes with verification, on as many CPUs as the main job.

onnxruntime chooses its kernels by CPUID. Where AVX-512 can be hidden from a process (see `kernels`), accuracy and speed
are measured with the CPU's own kernels and with those of an AVX2 CPU. Speed is then held with the latter, and accuracy
with both: the worse counts.

Bars, int8: cosine to fp32 >= 0.999 (mean) and >= 0.997 (least); the same text alone or in any batch within 1e-6; for 1
and 2 threads, fp32 / int8 >= 1.45 (median of four shapes) and the faster peer / int8 >= 0.97 at each shape; Spearman on
STS-B dev within 0.002 of fp32; weights and 30 graphs <= 0.27 x fp32; exporting 30 points with int8 <= 10 s longer than
without. q8: mean cosine >= 0.9995. q4-mixed: mean cosine >= 0.985, size <= 0.20 x fp32.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import (
    MINILM,
    MINILM_POINTS,
    STSB,
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
    use_cpus,
)
from kernels import AVX2, Mode, find_modes
from peers import SENTENCE_TRANSFORMERS, add_optimum_option, make_environment, read_versions_in

HERE = Path(__file__).resolve().parent

PRESETS = ("avx2", "avx512_vnni")
#: What a family of 30 points is exported with, and what is looked at in one point, after calibration where possible.
FAMILY = ("fp32", "int8", "q8", "q4", "q4-mixed")
FULL_POINT = (6, 384)
FULL_NAME = "L06-D384"

THREADS = (1, 2)
#: Batch, tokens, and how often each model runs in one process.
SHAPES = ((1, 16, 100), (1, 128, 30), (16, 32, 9), (16, 128, 6))
QUICK_SHAPES = ((1, 16, 8), (1, 128, 4), (16, 32, 2), (16, 128, 2))
QUICK_TEXTS = 128
#: Reported without a bar, so timed in every third turn.
SELDOM = ("q8", "q4-mixed", "peer fp32")

#: Compared with fp32 with every set of kernels; the other precisions with those that speed is held with.
COMPARED = ("fp32", "int8", "q8", "q4-mixed", *(f"peer {preset}" for preset in PRESETS))

CALIBRATION_TEXTS = 512
#: Exports are timed on as many CPUs as the main job.
EXPORT_CPUS = 2
EXPORTS = {"fp32": ("fp32",), "fp32 and int8": ("fp32", "int8")}

COSINE = Bar("int8 cosine to fp32, mean", 0.999, at_least=True)
LEAST_COSINE = Bar("int8 cosine to fp32, least", 0.997, at_least=True)
DIFFERENCE = Bar("int8, a text alone or in any batch, max_abs", 1e-6)
SPEARMAN = Bar("int8, Spearman on STS-B dev, distance from fp32", 0.002)
SIZE = Bar("int8 weights and 30 graphs / fp32", 0.27, " x")
Q8_COSINE = Bar("q8 cosine to fp32, mean", 0.9995, at_least=True)
MIXED_COSINE = Bar("q4-mixed cosine to fp32, mean", 0.985, at_least=True)
MIXED_SIZE = Bar("q4-mixed weights and 30 graphs / fp32", 0.20, " x")
ONE_MORE = Bar("export of 30 points with int8 - without", 10, " s")


def main() -> int:
    options = parse_options()
    with tempfile.TemporaryDirectory(prefix="matexport-precisions-") as name:
        folder = Path(name)
        modes = find_modes(folder, options.kernels)
        timed = next((mode for mode in modes if mode.kernels == AVX2), modes[0])
        stsb = find_stsb(options.stsb)
        bars = list_bars(timed, stsb)
        print_bars(bars)
        python = options.optimum_python or make_environment("sentence-transformers", SENTENCE_TRANSFORMERS)
        repeats = count_repeats(options, quick=1)
        models = make_models(folder, python, stsb)
        accuracy = measure_accuracy(folder, models, modes, timed, stsb, QUICK_TEXTS if options.quick else 0)
        speed = measure_speed(folder, models, modes, QUICK_SHAPES if options.quick else SHAPES, repeats)
        sizes = measure_sizes(folder / "family")
        exports = time_exports(folder / "timed", repeats)
    values = find_values(accuracy, speed, timed, sizes, exports)
    held = [(bar, values[bar.name]) for bar in bars]
    measured = {"accuracy": accuracy, "speed": speed, "sizes": sizes, "exports": exports}
    settings = {
        "parent": MINILM,
        "points": len(MINILM_POINTS),
        "repeats": repeats,
        "kernels": {mode.name: mode.kernels for mode in modes},
        "speed_held_with": timed.kernels,
        "texts": f"sentences of {stsb.name}" if stsb else "the shipped probes",
        "int8-static calibrated": "int8-static" in models,
        "shapes": QUICK_SHAPES if options.quick else SHAPES,
        "export_cpus": EXPORT_CPUS,
        "quick": options.quick,
    }
    versions = read_versions_in(python, SENTENCE_TRANSFORMERS)
    return finish("precisions", options, Report(held, measured, settings, versions))


def parse_options() -> argparse.Namespace:
    parser = make_parser("precisions", __doc__, repeats=3)
    add_optimum_option(parser)
    parser.add_argument("--stsb", type=Path, default=STSB, help="folder with STS-B, or stsb-en-dev.csv itself")
    kernels = parser.add_mutually_exclusive_group()
    kernels.add_argument("--as-is", dest="kernels", action="store_const", const=["as it is"], help="hide nothing")
    kernels.add_argument("--as-avx2", dest="kernels", action="store_const", const=["as AVX2"], help="AVX2 kernels only")
    parser.set_defaults(kernels=["as it is", "as AVX2"])
    return parser.parse_args()


def find_stsb(path: Path) -> Path | None:
    """The dev file of STS-B, if it is there."""
    file = path / "stsb-en-dev.csv" if path.is_dir() else path
    if file.is_file():
        return file
    say(f"{file} is not there: the shipped probes are compared, and nothing is correlated")
    return None


def list_bars(timed: Mode, stsb: Path | None) -> list[Bar]:
    """What this run is held to, in the order of the report."""
    speed = [bar for threads in THREADS for bar in speed_bars(timed, threads)]
    correlation = [SPEARMAN] if stsb else []
    return [COSINE, LEAST_COSINE, DIFFERENCE, *speed, *correlation, SIZE, Q8_COSINE, MIXED_COSINE, MIXED_SIZE, ONE_MORE]


def speed_bars(mode: Mode, threads: int) -> tuple[Bar, Bar]:
    """Against fp32, and against the faster of the peers."""
    where = f"{threads} thread(s), {mode.kernels} kernels"
    return (
        Bar(f"fp32 / int8, median of four shapes, {where}", 1.45, " x", at_least=True),
        Bar(f"faster peer / int8, worst of four shapes, {where}", 0.97, " x", at_least=True),
    )


def make_models(folder: Path, python: Path, stsb: Path | None) -> dict[str, Path]:
    """Export the peers' graphs and our families: model name -> the graph of the full point."""
    say("exporting the peers")
    peers = folder / "peers"
    quiet = {"HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}
    run_process([python, HERE / "export_peers.py", locate_minilm(), peers, *PRESETS], **quiet)
    say("exporting the family")
    models = export(folder / "family", FAMILY, MINILM_POINTS)
    train = stsb.with_name("stsb-en-train.csv") if stsb else None
    if train and train.is_file():
        calibration = write_calibration(train, folder / "calibration.txt")
        models |= export(folder / "others", ("fp16", "int8-static"), (FULL_POINT,), calibration)
    else:
        say("int8-static is left out: it needs texts to calibrate on that are not those it is judged by")
        models |= export(folder / "others", ("fp16",), (FULL_POINT,))
    models |= {f"peer {preset}": peers / "onnx" / f"model_{preset}.onnx" for preset in PRESETS}
    return models | {"peer fp32": peers / "onnx" / "model.onnx"}


def export(
    out: Path, precisions: Sequence[str], points: Sequence[tuple[int, int]], calibration: Path | None = None
) -> dict[str, Path]:
    """Export and verify a family: precision -> the graph of its full point. A refused profile ends the benchmark."""
    spec = {"source": MINILM, "points": points, "precisions": precisions, "out": str(out)}
    refused = run_export(spec | {"calibration": str(calibration) if calibration else None})["refused"]
    if refused:
        raise SystemExit(f"the export refused profiles: {refused}")
    return {precision: out / f"{FULL_NAME}.{precision}.onnx" for precision in precisions}


def write_calibration(train: Path, out: Path) -> Path:
    """Sentences spread over the train file, one per line."""
    with train.open(encoding="utf-8", newline="") as file:
        sentences = dict.fromkeys(" ".join(text.split()) for row in csv.reader(file) for text in row[:2])
    step = max(1, len(sentences) // CALIBRATION_TEXTS)
    out.write_text("\n".join(list(sentences)[::step][:CALIBRATION_TEXTS]) + "\n", encoding="utf-8")
    return out


def measure_accuracy(
    folder: Path, models: Mapping[str, Path], modes: Sequence[Mode], timed: Mode, stsb: Path | None, limit: int
) -> dict[str, Any]:
    """Kernels -> what `precisions_child.measure_accuracy` found with them."""
    found: dict[str, Any] = {}
    before = None
    for mode in sorted(modes, key=lambda mode: mode is not timed):
        say(f"accuracy, {mode.kernels} kernels")
        wanted = (*COMPARED, *(name for name in models if mode is timed and name not in (*COMPARED, "peer fp32")))
        vectors = folder / f"vectors-{len(found)}.npz"
        spec = {"stsb": stsb and str(stsb), "limit": limit, "vectors": str(vectors), "compare": before}
        found[mode.kernels] = run_child("accuracy", folder, {name: models[name] for name in wanted}, mode, spec)
        before = str(vectors)
    return found


def measure_speed(
    folder: Path, models: Mapping[str, Path], modes: Sequence[Mode], shapes: Sequence[tuple[int, ...]], repeats: int
) -> dict[str, Any]:
    """Kernels -> number of threads -> medians over the processes of times and ratios."""
    timed = {name: models[name] for name in dict.fromkeys((*COMPARED, *SELDOM))}
    sides = {f"{mode.kernels}, {threads}": (mode, threads) for mode in modes for threads in THREADS}
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for side in take_turns(list(sides), repeats):
        mode, threads = sides[side]
        spec = {"threads": threads, "shapes": shapes, "seldom": SELDOM}
        runs[side].append(run_child("speed", folder, timed, mode, spec)["median_ms"])
        say(f"speed, {side} thread(s): fp32 / int8 {describe_ratios(runs[side][-1])}")
    found: dict[str, Any] = {mode.kernels: {} for mode in modes}
    for side, (mode, threads) in sides.items():
        found[mode.kernels][f"{threads} thread(s)"] = summarise_speed(runs[side])
    return found


def describe_ratios(times: Mapping[str, Mapping[str, float]]) -> str:
    return ", ".join(f"{shape} {ms['fp32'] / ms['int8']:.2f}" for shape, ms in times.items())


def summarise_speed(runs: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Medians over processes, each of which compares what it ran itself."""
    shapes = list(runs[0])
    ratios = {
        shape: {name: median(run[shape]["fp32"] / run[shape][name] for run in runs) for name in runs[0][shape]}
        for shape in shapes
    }
    faster = {
        shape: median(min(run[shape][f"peer {preset}"] for preset in PRESETS) / run[shape]["int8"] for run in runs)
        for shape in shapes
    }
    return {
        "median_ms": {
            shape: {name: median(run[shape][name] for run in runs) for name in runs[0][shape]} for shape in shapes
        },
        "fp32_over": ratios,
        "fp32_over_int8": median(by_model["int8"] for by_model in ratios.values()),
        "faster_peer_over_int8": faster,
        "runs": list(runs),
    }


def run_child(
    task: str, folder: Path, models: Mapping[str, Path], mode: Mode, spec: Mapping[str, Any]
) -> dict[str, Any]:
    """One process of `precisions_child`, which must have found the kernels that it was started for."""
    common = {
        "task": task,
        "family": str(folder / "family"),
        "models": {name: str(graph) for name, graph in models.items()},
        "library": str(mode.library) if mode.library else None,
    }
    finished = run_process(
        [sys.executable, HERE / "precisions_child.py", json.dumps(common | dict(spec))], **mode.environment
    )
    result: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    if result["kernels"] != mode.kernels:
        raise SystemExit(f"{mode.name}: a process ran {result['kernels']} kernels, not {mode.kernels}")
    return result


def measure_sizes(family: Path) -> dict[str, Any]:
    """Precision -> bytes of its weights and of its graphs, and the ratio of their sum to that of fp32."""
    sizes: dict[str, Any] = {}
    for precision in FAMILY:
        graphs = [path.stat().st_size for path in family.glob(f"*.{precision}.onnx")]
        if len(graphs) != len(MINILM_POINTS):
            raise SystemExit(f"{precision}: {len(graphs)} graphs")
        weights = (family / f"weights.{precision}.safetensors").stat().st_size
        sizes[precision] = {"weights_bytes": weights, "graphs_bytes": sum(graphs)}
    totals = {precision: sum(size.values()) for precision, size in sizes.items()}
    for precision, size in sizes.items():
        size["ratio"] = totals[precision] / totals["fp32"]
    return sizes


def time_exports(folder: Path, repeats: int) -> dict[str, Any]:
    """Seconds of whole, verified exports of 30 points with fp32 alone and with one more precision."""
    runs: dict[str, list[float]] = {side: [] for side in EXPORTS}
    with use_cpus(EXPORT_CPUS):
        for number, side in enumerate(take_turns(list(EXPORTS), repeats)):
            out = folder / str(number)
            spec = {"source": MINILM, "points": MINILM_POINTS, "precisions": EXPORTS[side], "out": str(out)}
            runs[side].append(run_export(spec)["total_s"])
            say(f"export, {side}: {runs[side][-1]:.1f} s")
    medians = {side: median(times) for side, times in runs.items()}
    return {"medians_s": medians, "difference_s": medians["fp32 and int8"] - medians["fp32"], "runs": runs}


def find_values(
    accuracy: Mapping[str, Any],
    speed: Mapping[str, Any],
    timed: Mode,
    sizes: Mapping[str, Any],
    exports: dict[str, Any],
) -> dict[str, float]:
    """The value of every bar, by its name. Accuracy is the worst of all kernels."""
    models = [found["models"] for found in accuracy.values()]
    values = {
        COSINE.name: min(found["int8"]["cosine_mean"] for found in models),
        LEAST_COSINE.name: min(found["int8"]["cosine_min"] for found in models),
        DIFFERENCE.name: max(max(found["int8"]["max_abs_difference"].values()) for found in models),
        SIZE.name: sizes["int8"]["ratio"],
        Q8_COSINE.name: min(found["q8"]["cosine_mean"] for found in models),
        MIXED_COSINE.name: min(found["q4-mixed"]["cosine_mean"] for found in models),
        MIXED_SIZE.name: sizes["q4-mixed"]["ratio"],
        ONE_MORE.name: exports["difference_s"],
    }
    if "spearman" in models[0]["fp32"]:
        values[SPEARMAN.name] = max(abs(found["int8"]["spearman"] - found["fp32"]["spearman"]) for found in models)
    for threads in THREADS:
        against_fp32, against_peer = speed_bars(timed, threads)
        found = speed[timed.kernels][f"{threads} thread(s)"]
        values[against_fp32.name] = found["fp32_over_int8"]
        values[against_peer.name] = min(found["faster_peer_over_int8"].values())
    return values


if __name__ == "__main__":
    raise SystemExit(main())
