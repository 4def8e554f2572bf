"""The native engine beside onnxruntime on the same families, and beside sentence-transformers: MiniLM, int8.

    python benchmarks/native.py [--family FAMILY] [--stsb FOLDER]

Three parts, each in processes of their own, with the sides taking turns in each:

- shapes: one run of the fp32 graph, of the int8 graph and of the native engine, with 1 and 2 threads, as this CPU is
  and, where CPUID can be made to fault (`kernels.py`), with AVX-512 hidden;
- texts: all sentences of a file through the fp32 and int8 profiles, the native engine, and sentence-transformers in
  torch, with 2 threads; and how far the native engine's vectors are from the parent's and from the int8 graph's;
- start: from the start of a process to its first vector, at two layers, and the peak of its memory.

Without --family, one with two points of MiniLM is exported. The sentences are STS-B's, where it is at hand.
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from common import MINILM, STSB, Bar, Report, count_repeats, finish, locate_minilm, make_parser, median, print_bars

from common import read_peak_bytes, run_process, say, take_turns  # isort: skip

DEEP, SHALLOW = "L06-D384", "L02-D064"
SHAPES = ((1, 16), (1, 128), (16, 32), (16, 128))
THREADS = (1, 2)
WARM_UP = 3
#: Runs of a shape, by its tokens: about the same time for each.
TOKENS_PER_SIDE = 4096
BARS = {
    "vnni": Bar("fp32 graph / native, AVX-512 with VNNI, least of shapes and threads", 3.4, " x", at_least=True),
    "vnni short": Bar("fp32 graph / native, AVX-512 with VNNI, 1x16, least of threads", 4.5, " x", at_least=True),
    "avx2": Bar("fp32 graph / native, AVX-512 hidden, least of shapes and threads", 1.75, " x", at_least=True),
    "torch": Bar("sentence-transformers in torch fp32 / native, sentences, 2 threads", 5.5, " x", at_least=True),
    "scaling": Bar("texts per second, native, 2 threads / 1", 1.75, " x", at_least=True),
    "mean": Bar("native and parent, mean cosine", 0.999, at_least=True),
    "least": Bar("native and parent, least cosine", 0.997, at_least=True),
    "graph": Bar("native and int8 graph, least cosine", 0.9995, at_least=True),
    "start": Bar("first vector of a process, native / onnxruntime", 0.65, " x"),
    "memory": Bar("peak of a process, native / onnxruntime", 0.75, " x"),
}


def main() -> int:
    if len(sys.argv) > 1 and sys.argv[1] == "--child":
        part, arguments = sys.argv[2], json.loads(sys.argv[3])
        print(json.dumps({"shapes": time_shapes, "texts": time_texts, "start": start_up}[part](**arguments)))
        return 0
    parser = make_parser("native", __doc__, repeats=5)
    parser.add_argument("--family", type=Path, help="a family of MiniLM with these points, in fp32 and int8")
    parser.add_argument("--stsb", type=Path, default=STSB, help="folder with STS-B")
    options = parser.parse_args()
    print_bars(BARS.values())
    repeats = count_repeats(options, quick=1)
    with tempfile.TemporaryDirectory(prefix="matexport-native-") as made:
        from kernels import find_modes

        family = str(options.family or export_minilm(Path(made) / "family"))
        shapes = {}
        for mode in find_modes(Path(made), ("as it is", "as AVX2")):
            say(f"shapes, {mode.kernels}")
            shapes[mode.kernels] = run_child("shapes", {"family": family, "repeats": repeats}, mode.environment)
        say("sentences")
        texts = read_sentences(options.stsb)[: 200 if options.quick else 2000]
        found = run_child("texts", {"family": family, "texts": texts, "repeats": repeats})
        say("starts")
        starts = compare_starts(family, 4 * repeats)
    report = Report(hold(shapes, found, starts), {"shapes": shapes, "texts": found, "start": starts},
                    {"repeats": repeats, "texts": len(texts)})  # fmt: skip
    return finish("native", options, report)


def hold(shapes: Mapping[str, Any], texts: Mapping[str, Any], starts: Mapping[str, Any]) -> list[tuple[Bar, float]]:
    """The value of each bar that was measured here."""
    values = {}
    for kernels, found in shapes.items():
        if "VNNI" in kernels:
            values["vnni"] = min(found["ratios"].values())
            values["vnni short"] = min(v for name, v in found["ratios"].items() if name.startswith("1x16,"))
        if kernels == "AVX2":
            values["avx2"] = min(found["ratios"].values())
    seconds = texts["seconds"]
    values |= {
        "torch": seconds["torch"] / seconds["native"],
        "scaling": seconds["native, 1 thread"] / seconds["native"],
        "mean": texts["parent"]["mean"],
        "least": texts["parent"]["least"],
        "graph": texts["graph"]["least"],
        "start": starts["seconds"]["native"] / starts["seconds"]["onnxruntime"],
        "memory": starts["bytes"]["native"] / starts["bytes"]["onnxruntime"],
    }
    return [(BARS[name], value) for name, value in values.items()]


def run_child(part: str, arguments: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Any:
    command = [sys.executable, __file__, "--child", part, json.dumps(arguments)]
    return json.loads(run_process(command, **(environment or {})).stdout.splitlines()[-1])


def export_minilm(out: Path) -> Path:
    say("exporting")
    job = out.with_suffix(".toml")
    asked = f'precisions = ["fp32", "int8"]\n[parent]\nsource = "{MINILM}"\n[points]\npairs = [[2, 64], [6, 384]]\n'
    job.write_text(asked, encoding="utf-8")
    run_process([sys.executable, "-m", "matexport", "export", job, "--out", out])
    return out


def read_sentences(stsb: Path) -> list[str]:
    """The sentences of STS-B's development set, each once."""
    with (stsb / "stsb-en-dev.csv").open(encoding="utf-8", newline="") as file:
        return list(dict.fromkeys(sentence for row in csv.reader(file) for sentence in row[:2]))


def time_turns(sides: Mapping[str, Callable[[], Any]], repeats: int, warm_up: int = WARM_UP) -> dict[str, list[float]]:
    """Seconds of each run of each side."""
    times: dict[str, list[float]] = {side: [] for side in sides}
    for turn, side in enumerate(take_turns(tuple(sides), warm_up + repeats)):
        start = time.perf_counter()
        sides[side]()
        if turn >= warm_up * len(sides):
            times[side].append(time.perf_counter() - start)
    return times


def time_shapes(family: str, repeats: int) -> dict[str, Any]:
    """Median milliseconds of each side at each shape, and the fp32 graph's over the native engine's."""
    import numpy as np

    import matexport
    from matexport.runtime.engines.native.library import choose_kernels
    from matexport.spec.measured import Engine

    milliseconds, ratios = {}, {}
    for threads in THREADS:
        sides = {
            "fp32": (f"{DEEP}-fp32", Engine(threads=threads)),
            "int8": (f"{DEEP}-int8", Engine(threads=threads)),
            "native": (f"{DEEP}-int8", Engine("native", threads=threads)),
        }
        sessions = {
            name: matexport.Embedder(family, profile, engine=engine).session
            for name, (profile, engine) in sides.items()
        }
        for batch, tokens in SHAPES:
            ids = np.random.default_rng(0).integers(1000, 30_000, (batch, tokens))
            feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
            given = {name: partial(session.run, ["sentence_embedding"], feeds) for name, session in sessions.items()}
            count = max(repeats, min(30, repeats * TOKENS_PER_SIDE // (batch * tokens)))
            times = {side: median(found) for side, found in time_turns(given, count).items()}
            name = f"{batch}x{tokens}, {threads} thread{'s' if threads > 1 else ''}"
            milliseconds[name] = {side: round(1000 * value, 3) for side, value in times.items()}
            ratios[name] = times["fp32"] / times["native"]
    return {"kernels": choose_kernels(), "milliseconds": milliseconds, "ratios": ratios}


def time_texts(family: str, texts: list[str], repeats: int) -> dict[str, Any]:
    """Median seconds for all texts, and cosines of what the native engine gives."""
    import torch
    from sentence_transformers import SentenceTransformer

    import matexport
    from matexport.spec.measured import Engine

    torch.set_num_threads(2)
    parent = SentenceTransformer(str(locate_minilm()), device="cpu")
    embedders = {
        "fp32": matexport.Embedder(family, f"{DEEP}-fp32", threads=2),
        "int8": matexport.Embedder(family, f"{DEEP}-int8", threads=2),
        "native": matexport.Embedder(family, f"{DEEP}-int8", engine=Engine("native", threads=2)),
        "native, 1 thread": matexport.Embedder(family, f"{DEEP}-int8", engine=Engine("native", threads=1)),
    }
    sides: dict[str, Callable[[], Any]] = {name: partial(one.embed, texts) for name, one in embedders.items()}
    sides["torch"] = lambda: parent.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    times = time_turns(sides, repeats, warm_up=1)
    vectors = {name: side() for name, side in sides.items() if name != "native, 1 thread"}
    cosines = {
        name: (vectors["native"] * vectors[side]).sum(axis=1) for name, side in (("parent", "torch"), ("graph", "int8"))
    }
    alone = embedders["native"].embed(texts[:50])
    for text, vector in zip(texts, alone, strict=False):
        assert (embedders["native, 1 thread"].embed([text])[0] == vector).all(), "a text's vector depends on its batch"
    return {
        "seconds": {name: median(found) for name, found in times.items()},
        **{name: {"mean": float(found.mean()), "least": float(found.min())} for name, found in cosines.items()},
    }


def compare_starts(family: str, repeats: int) -> dict[str, Any]:
    """Median seconds and bytes of processes that embed one text."""
    seconds: dict[str, list[float]] = {"onnxruntime": [], "native": []}
    peaks: dict[str, list[float]] = {"onnxruntime": [], "native": []}
    for turn, engine in enumerate(take_turns(tuple(seconds), repeats + 1)):
        command = [sys.executable, __file__, "--child", "start", json.dumps({"family": family, "engine": engine})]
        done = run_process(command)
        if turn >= len(seconds):
            seconds[engine].append(done.seconds)
            peaks[engine].append(json.loads(done.stdout.splitlines()[-1])["bytes"])
    return {
        "seconds": {engine: median(found) for engine, found in seconds.items()},
        "bytes": {engine: median(found) for engine, found in peaks.items()},
    }


def start_up(family: str, engine: str) -> dict[str, Any]:
    import matexport

    matexport.Embedder(family, f"{SHALLOW}-int8", engine=engine, threads=1).embed(["the first text"])
    return {"bytes": read_peak_bytes()}


if __name__ == "__main__":
    raise SystemExit(main())
