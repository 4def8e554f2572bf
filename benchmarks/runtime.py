"""The runtime against what users have today: throughput, cold start, memory, and a stream of a million texts.

* Throughput: the sentences of STS-B train, on 2 CPUs with 2 threads; matexport's fp32 and int8 at MiniLM's full point,
  `SentenceTransformer.encode` (torch, batches of 32), and fastembed on the very graph and weights of the fp32 profile.
  Every side is a process; they take turns, and the median over turns counts.
* Cold start and peak memory: process start to the first vector of a two-layer int8 profile's pack, against
  sentence-transformers with the parent (which can do no less); the fp32 one, whose file is four times as large to
  digest, is timed beside it.
* Stream: `matexport embed --input FILE --output FILE.npy` on 100,000 and on 1,000,000 short texts (the first words of
  the sentences, and a number), with the two-layer int8 profile; peak memory of the whole process.
* Overhead: what a call with one short text spends outside the graph (two-layer int8, 1 thread), as `matexport bench`
  measures it.

Without STS-B, sentences are made of the shipped probes.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import (
    MINILM,
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
from peers import FASTEMBED, make_environment, read_versions_in

HERE = Path(__file__).resolve().parent
CPUS = 2
SENTENCES = 4096
STREAM = (100_000, 1_000_000)
STREAM_WORDS = 3
POINTS = ((2, 64), (6, 384))
FULL, SMALL = "L06-D384", "L02-D064"

FP32 = Bar("fp32 / sentence-transformers, texts per second", 1.5, " x", at_least=True)
INT8 = Bar("int8 / sentence-transformers, texts per second", 2.3, " x", at_least=True)
OVER_FASTEMBED = Bar("fp32 / fastembed on the same graph, texts per second", 2, " x", at_least=True)
COLD = Bar("sentence-transformers / two layers int8, cold start", 20, " x", at_least=True)
COLD_S = Bar("cold start of two layers int8", 0.6, " s")
PEAK = Bar("two layers int8 / sentence-transformers, peak memory", 0.2, " x")
STREAM_PEAK = Bar("peak memory of embedding 1 million texts, int8", 400, " MB")
STREAM_GROWTH = Bar("the same / that of 100,000 texts", 1.1, " x")
OVERHEAD = Bar("one short text, two layers int8, 1 thread: outside the graph", 15, " %")
BARS = [FP32, INT8, OVER_FASTEMBED, COLD, COLD_S, PEAK, STREAM_PEAK, STREAM_GROWTH, OVERHEAD]


def main() -> int:
    options = parse_options()
    print_bars(BARS)
    python = options.fastembed_python or make_environment("fastembed", FASTEMBED)
    repeats = count_repeats(options, quick=1)
    with tempfile.TemporaryDirectory(prefix="matexport-runtime-") as name, use_cpus(CPUS):
        folder = Path(name)
        packs = make_packs(folder)
        sentences = read_sentences(options.stsb)
        texts = folder / "texts.json"
        texts.write_text(json.dumps(sentences[: 512 if options.quick else SENTENCES]), encoding="utf-8")
        throughput = measure_throughput(packs, texts, python, repeats)
        cold = measure_cold(packs, texts, repeats)
        stream = measure_stream(folder, packs, sentences, [1000, 10_000] if options.quick else list(STREAM))
        overhead = measure_overhead(folder / "family")
    values = {
        FP32.name: throughput["ratios"]["fp32 / sentence-transformers"],
        INT8.name: throughput["ratios"]["int8 / sentence-transformers"],
        OVER_FASTEMBED.name: throughput["ratios"]["fp32 / fastembed"],
        COLD.name: cold["sentence-transformers"]["seconds"] / cold["two layers"]["seconds"],
        COLD_S.name: cold["two layers"]["seconds"],
        PEAK.name: cold["two layers"]["peak_bytes"] / cold["sentence-transformers"]["peak_bytes"],
        STREAM_PEAK.name: stream["peak_bytes"][-1] / 1e6,
        STREAM_GROWTH.name: stream["peak_bytes"][-1] / stream["peak_bytes"][0],
        OVERHEAD.name: overhead["outside_percent"],
    }
    measured = {"throughput": throughput, "cold": cold, "stream": stream, "overhead": overhead}
    settings = {"cpus": CPUS, "repeats": repeats, "sentences": "STS-B train" if options.stsb else "probes",
                "quick": options.quick}  # fmt: skip
    versions = read_versions_in(python, FASTEMBED, common=(), peer="fastembed")
    return finish("runtime", options, Report([(bar, values[bar.name]) for bar in BARS], measured, settings, versions))


def parse_options() -> argparse.Namespace:
    parser = make_parser("runtime", __doc__, repeats=5)
    parser.add_argument("--fastembed-python", type=Path, help="python of an environment with fastembed; made if absent")
    parser.add_argument("--stsb", type=Path, default=STSB if STSB.is_dir() else None, help="folder with STS-B")
    return parser.parse_args()


def make_packs(folder: Path) -> dict[str, Path]:
    """Export MiniLM at two points in fp32 and int8, and pack what is measured."""
    say("exporting")
    spec = {"source": MINILM, "points": POINTS, "precisions": ("fp32", "int8"), "out": str(folder / "family")}
    run_export(spec)
    packs = {}
    for name in (f"{FULL}-fp32", f"{FULL}-int8", f"{SMALL}-fp32", f"{SMALL}-int8"):
        packs[name] = folder / name
        run_process([sys.executable, "-m", "matexport", "pack", folder / "family", name, packs[name]])
    return packs


def read_sentences(stsb: Path | None) -> list[str]:
    """Different sentences, in the order of the file."""
    if stsb is None:
        from matexport.io.texts import load_probes

        texts = [probe.text for probe in load_probes(None) if probe.text.strip()]
        return [f"{text} {number}" for number in range(100) for text in texts]
    with (stsb / "stsb-en-train.csv").open(encoding="utf-8", newline="") as file:
        return list(dict.fromkeys(" ".join(text.split()) for row in csv.reader(file) for text in row[:2]))


def run_child(side: str, model: Path, task: str, texts: Path, python: Path | str = sys.executable) -> dict[str, Any]:
    spec = {"side": side, "model": str(model), "task": task, "texts": str(texts), "threads": CPUS}
    finished = run_process([python, HERE / "runtime_child.py", json.dumps(spec)], HF_HUB_OFFLINE="1")
    result: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return result


def measure_throughput(packs: dict[str, Path], texts: Path, python: Path, repeats: int) -> dict[str, Any]:
    """Texts per second of every side, in turns; and that all give the same vectors."""
    sides = {
        "fp32": ("matexport", packs[f"{FULL}-fp32"], sys.executable),
        "int8": ("matexport", packs[f"{FULL}-int8"], sys.executable),
        "sentence-transformers": ("sentence-transformers", locate_minilm(), sys.executable),
        "fastembed": ("fastembed", packs[f"{FULL}-fp32"], python),
    }
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for side in take_turns(list(sides), repeats):
        kind, model, interpreter = sides[side]
        runs[side].append(run_child(kind, model, "throughput", texts, interpreter))
        say(f"{side}: {runs[side][-1]['texts_per_s']:.0f} texts/s")
    parent = runs["sentence-transformers"][0]["rows"]
    for side, least in {"fp32": 0.99999, "fastembed": 0.99999, "int8": 0.99}.items():
        for rows in (run.pop("rows") for run in runs[side]):
            worst = min(sum(a * b for a, b in zip(*pair, strict=True)) for pair in zip(rows, parent, strict=True))
            if not worst >= least:
                raise SystemExit(f"{side} gives other vectors: cosine {worst}")
    speeds = {side: [run["texts_per_s"] for run in found] for side, found in runs.items()}
    pairs = [("fp32", "sentence-transformers"), ("int8", "sentence-transformers"), ("fp32", "fastembed")]
    ratios = {
        f"{one} / {other}": median(a / b for a, b in zip(speeds[one], speeds[other], strict=True))
        for one, other in pairs
    }
    return {"medians": {side: median(found) for side, found in speeds.items()}, "ratios": ratios, "runs": speeds}


def measure_cold(packs: dict[str, Path], texts: Path, repeats: int) -> dict[str, Any]:
    """Process start to first vector, and peak memory by then; in turns, after a run that fills the page cache."""
    sides = {
        "two layers": ("matexport", packs[f"{SMALL}-int8"]),
        "two layers, fp32": ("matexport", packs[f"{SMALL}-fp32"]),
        "sentence-transformers": ("sentence-transformers", locate_minilm()),
    }
    runs: dict[str, list[tuple[float, int]]] = {side: [] for side in sides}
    for side in (*sides, *take_turns(list(sides), repeats)):
        kind, model = sides[side]
        started = time.monotonic_ns()
        result = run_child(kind, model, "first", texts)
        runs[side].append(((result["at_ns"] - started) / 1e9, result["peak_bytes"]))
        say(f"cold start, {side}: {runs[side][-1][0]:.2f} s")
    return {
        side: {
            "seconds": median(seconds for seconds, _ in found[1:]),
            "peak_bytes": median(peak for _, peak in found[1:]),
            "runs": found[1:],
        }
        for side, found in runs.items()
    }


def measure_stream(folder: Path, packs: dict[str, Path], sentences: list[str], counts: list[int]) -> dict[str, Any]:
    """Peak memory of the command on files of so many texts, and its texts per second."""
    peaks, speeds = [], []
    for count in counts:
        source, out = folder / "stream.txt", folder / "stream.npy"
        with source.open("w", encoding="utf-8") as file:
            for number in range(count):
                words = sentences[number % len(sentences)].split()[:STREAM_WORDS]
                file.write(f"{' '.join(words)} {number}\n")
        command = [sys.executable, "-m", "matexport", "embed", packs[f"{SMALL}-int8"], "--input", source,
                   "--output", out, "--threads", str(CPUS)]  # fmt: skip
        finished = run_process(command)
        peaks.append(finished.peak_bytes)
        speeds.append(count / finished.seconds)
        say(f"{count} texts: {peaks[-1] / 1e6:.0f} MB, {speeds[-1]:.0f} texts/s")
    return {"texts": counts, "peak_bytes": peaks, "texts_per_s": speeds}


def measure_overhead(family: Path) -> dict[str, Any]:
    """Where the time of one short text goes."""
    command = [sys.executable, "-m", "matexport", "bench", family, "--profile", f"{SMALL}-int8", "--threads", "1",
               "--shape", "1x16", "--runs", "1000", "--json"]  # fmt: skip
    timing = json.loads(run_process(command).stdout)["profiles"][f"{SMALL}-int8"]["threads"]["1"]
    call, graph, tokenize = (timing[name]["p50"] for name in ("call", "graph", "tokenize"))
    return {
        "call_ms": call,
        "graph_ms": graph,
        "tokenize_ms": tokenize,
        "python_ms": call - graph - tokenize,
        "outside_percent": 100 * (1 - graph / call),
    }


if __name__ == "__main__":
    raise SystemExit(main())
