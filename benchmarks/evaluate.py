"""What it costs to evaluate a family, and what adaptive retrieval gains on a million vectors.

* One pass: `matexport evaluate` of MiniLM's 30 points in fp32 on the pairs of STS-B dev, against `evaluate` of its one
  full point, which is embedded by its own graph; whole commands, in turns. Without STS-B, pairs are made of the
  shipped probes.
* Adaptive retrieval: a million clustered vectors of 384 dims whose variance falls with the dim, as Matryoshka training
  makes it (see `draw_vectors`), and queries near documents. Shortlists of several lengths by several dims, re-ranked
  by all, against exact search by all dims; by faiss on the same CPUs, in turns, one and many queries at once. The
  whole curve is kept. What few dims find depends on how tight the clusters are: the bars are held on tight ones
  (documents half as far from their centre as centres are from the origin), and loose ones (as far) stand beside them.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import tempfile
import time
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
    make_parser,
    median,
    print_bars,
    run_export,
    run_process,
    say,
    take_turns,
    use_cpus,
)

CPUS = 2
VECTORS, DIM, QUERIES, CLUSTERS = 1_000_000, 384, 100, 2000
TIGHT, LOOSE = 0.5, 1.0
SHORTLIST_DIMS, SHORTLISTS = (16, 32, 64, 128), (50, 100, 200, 400)
HELD_DIM, HELD_SHORTLIST, TOP = 32, 200, 10
#: Of the queries, that are also asked one at a time.
SINGLE_QUERIES = 10

PASS = Bar("evaluate 30 points / evaluate one", 2, " x")
RECALL = Bar(
    f"recall@{TOP}, tight clusters: shortlist {HELD_SHORTLIST} at {HELD_DIM} dims, re-ranked at {DIM}",
    0.95,
    at_least=True,
)
SPEED = Bar(f"its speed against exact search, {VECTORS:,} vectors, one query at a time", 5, " x", at_least=True)
BATCHED = Bar(f"the same, {QUERIES} queries at a time", 5, " x", at_least=True)
BARS = [PASS, RECALL, SPEED, BATCHED]


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        return search_child(json.loads(sys.argv[2]))
    parser = make_parser("evaluate", __doc__, repeats=5)
    parser.add_argument("--stsb", type=Path, default=STSB if STSB.is_dir() else None, help="folder with STS-B")
    options = parser.parse_args()
    print_bars(BARS)
    repeats = count_repeats(options, quick=1)
    with use_cpus(CPUS):
        evaluated = measure_pass(options, repeats)
        count = 20_000 if options.quick else VECTORS
        curve, loose = (
            json.loads(run_process([sys.executable, __file__, "--child", json.dumps(task)]).stdout)
            for task in (
                {"vectors": count, "repeats": repeats, "within": TIGHT},
                {"vectors": count, "repeats": 1, "within": LOOSE},
            )
        )
    held = next(row for row in curve if (row["dim"], row["shortlist"]) == (HELD_DIM, HELD_SHORTLIST))
    values = {PASS: evaluated["ratio"], RECALL: held["recall"], SPEED: held["speedup_alone"], BATCHED: held["speedup"]}
    settings = {"cpus": CPUS, "repeats": repeats, "pairs": "STS-B dev" if options.stsb else "probes",
                "vectors": count, "dim": DIM, "queries": QUERIES, "clusters": CLUSTERS,
                "quick": options.quick}  # fmt: skip
    measured = {"one pass": evaluated, "adaptive retrieval": {"tight clusters": curve, "loose clusters": loose}}
    return finish("evaluate", options, Report([(bar, values[bar]) for bar in BARS], measured, settings))


def measure_pass(options: argparse.Namespace, repeats: int) -> dict[str, Any]:
    """Seconds of evaluating all points, and one; in turns."""
    with tempfile.TemporaryDirectory(prefix="matexport-evaluate-") as name:
        folder = Path(name)
        run_export({"source": MINILM, "points": MINILM_POINTS, "precisions": ("fp32",), "out": str(folder / "family")})
        command = [sys.executable, "-m", "matexport", "evaluate", folder / "family", "--threads", str(CPUS),
                   "--sts", find_pairs(options.stsb, folder)]  # fmt: skip
        sides = {"all": command, "one": [*command, "--profile", "L06-D384-fp32"]}
        runs: dict[str, list[float]] = {side: [] for side in sides}
        for side in take_turns(list(sides), repeats):
            runs[side].append(run_process(sides[side]).seconds)
            say(f"evaluate, {side}: {runs[side][-1]:.1f} s")
    ratio = median(a / b for a, b in zip(runs["all"], runs["one"], strict=True))
    return {"seconds": {side: median(found) for side, found in runs.items()}, "ratio": ratio, "runs": runs}


def find_pairs(stsb: Path | None, folder: Path) -> Path:
    if stsb is not None:
        return stsb / "stsb-en-dev.csv"
    from matexport.io.texts import load_probes

    texts = [probe.text for probe in load_probes(None) if probe.text.strip()]
    path = folder / "pairs.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows((text, texts[(7 * at) % len(texts)], at % 6) for at, text in enumerate(texts))
    return path


def draw_vectors(count: int, within: float) -> tuple[Any, Any]:
    """Documents (count, DIM) and queries (QUERIES, DIM), unit rows, float32.

    A document is its cluster's centre and `within` times as much noise of its own; coordinate i has variance 1 / i,
    which puts the same share of it into every doubling of the dims. A query is a document moved by `within` / 3.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    spread = (np.arange(1, DIM + 1) ** -0.5).astype(np.float32)
    centres = rng.standard_normal((CLUSTERS, DIM), dtype=np.float32) * spread
    documents = np.empty((count, DIM), dtype=np.float32)
    for start in range(0, count, 50_000):
        part = documents[start : start + 50_000]
        part[:] = centres[rng.integers(0, CLUSTERS, len(part))]
        part += within * rng.standard_normal(part.shape, dtype=np.float32) * spread
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    near = rng.integers(0, count, QUERIES)
    noise = rng.standard_normal((QUERIES, DIM), dtype=np.float32) * spread
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    queries = documents[near] + noise * within / 3
    return documents, queries / np.linalg.norm(queries, axis=1, keepdims=True)


def search_child(task: dict[str, Any]) -> int:
    """Recall and speed of every shortlist; prints one JSON list."""
    import faiss
    import numpy as np

    from matexport.measure.search import search_adaptively, search_exactly
    from matexport.verify.parity import unit_rows

    faiss.omp_set_num_threads(CPUS)
    documents, queries = draw_vectors(task["vectors"], task["within"])
    leading = {dim: unit_rows(documents[:, :dim]) for dim in SHORTLIST_DIMS}
    leading_queries = {dim: unit_rows(queries[:, :dim]) for dim in SHORTLIST_DIMS}
    ways = [(dim, shortlist) for dim in SHORTLIST_DIMS for shortlist in SHORTLISTS]
    seconds: dict[tuple[int, int], list[float]] = {way: [] for way in ways}
    found: dict[tuple[int, int], Any] = {}
    alone: dict[tuple[int, int], list[float]] = {way: [] for way in ways}
    exact_s, exact_alone_s = [], []
    singles = range(0, QUERIES, QUERIES // SINGLE_QUERIES)
    for _ in range(task["repeats"]):
        started = time.perf_counter()
        exact, _products = search_exactly(documents, queries, TOP)
        exact_s.append(time.perf_counter() - started)
        started = time.perf_counter()
        for query in singles:
            search_exactly(documents, queries[query : query + 1], TOP)
        exact_alone_s.append(time.perf_counter() - started)
        for dim, shortlist in ways:
            started = time.perf_counter()
            found[dim, shortlist], _products = search_adaptively(
                leading[dim], documents, leading_queries[dim], queries, shortlist=shortlist, count=TOP
            )
            seconds[dim, shortlist].append(time.perf_counter() - started)
            started = time.perf_counter()
            for query in singles:
                one = slice(query, query + 1)
                search_adaptively(
                    leading[dim], documents, leading_queries[dim][one], queries[one], shortlist=shortlist, count=TOP
                )
            alone[dim, shortlist].append(time.perf_counter() - started)
    rows = [
        {
            "dim": dim,
            "shortlist": shortlist,
            "recall": float(np.mean([len(set(ours) & set(best)) / TOP for ours, best in
                                     zip(found[dim, shortlist], exact, strict=True)])),
            "speedup": statistics.median(a / b for a, b in zip(exact_s, seconds[dim, shortlist], strict=True)),
            "ms_per_query": 1e3 * statistics.median(seconds[dim, shortlist]) / QUERIES,
            "exact_ms_per_query": 1e3 * statistics.median(exact_s) / QUERIES,
            "speedup_alone": statistics.median(
                a / b for a, b in zip(exact_alone_s, alone[dim, shortlist], strict=True)
            ),
            "ms_alone": 1e3 * statistics.median(alone[dim, shortlist]) / SINGLE_QUERIES,
            "exact_ms_alone": 1e3 * statistics.median(exact_alone_s) / SINGLE_QUERIES,
        }
        for dim, shortlist in ways
    ]  # fmt: skip
    print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
