"""What it costs in onnxruntime that graphs are written for any engine: the same family for both targets, side by side.

MiniLM at two points and in each precision that has another form for `portable`, one thread, a single short text and a
batch. Both graphs in one process; the sides take turns run by run, and medians are compared. The bar is on int8: if its
standard form (MatMulInteger, Cast, Mul) were as fast as MatMulIntegerToFloat, there would be no reason for the other.
It also says how far the vectors of the two are apart.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import (
    MINILM,
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
)

TARGETS = ("onnxruntime", "portable")
POINTS = ((2, 64), (6, 384))
PRECISIONS = ("fp32", "int8", "q8", "q4")
SHAPES = ((1, 16), (16, 32))
#: portable over onnxruntime; at most this is "as fast".
AS_FAST = Bar("int8: portable over onnxruntime, the worst point and shape", 1.02, " x")


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        return run_child(json.loads(sys.argv[2]))
    parser = make_parser("targets", __doc__, repeats=200)
    parser.add_argument("--precision", action="append", choices=PRECISIONS, help="these alone; may be repeated")
    options = parser.parse_args()
    repeats = count_repeats(options, quick=5)
    print_bars([AS_FAST])
    precisions = tuple(options.precision or PRECISIONS)
    with tempfile.TemporaryDirectory(prefix="matexport-targets-") as name:
        folders = {target: str(Path(name) / target) for target in TARGETS}
        for target, out in folders.items():
            say(f"exporting for {target}")
            run_export({"source": MINILM, "points": POINTS, "precisions": precisions, "out": out, "target": target})
        spec = {"folders": folders, "precisions": precisions, "repeats": repeats}
        measured = json.loads(run_process([sys.executable, __file__, "--child", json.dumps(spec)]).stdout)
    held = [(AS_FAST, max(found["ratio"] for name, found in measured.items() if "-int8 " in name))]
    settings = {"threads": 1, "repeats": repeats, "points": POINTS, "shapes": SHAPES}
    return finish("targets", options, Report(held if "int8" in precisions else [], measured, settings))


def run_child(spec: dict[str, Any]) -> int:
    """Time the two graphs of each point, precision and shape; print name -> medians in ms, their ratio, distance."""
    import numpy as np

    from matexport import Embedder

    rng, measured = np.random.default_rng(0), {}
    for precision in spec["precisions"]:
        for layers, dim in POINTS:
            profile = f"L{layers:02d}-D{dim:03d}-{precision}"
            sides = {target: Embedder(folder, profile, threads=1) for target, folder in spec["folders"].items()}
            for batch, tokens in SHAPES:
                ids = rng.integers(1000, 20000, (batch, tokens))
                full = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
                feeds = {name: full[name] for name in sides["portable"].family.text.inputs}
                sessions = {target: embedder._session for target, embedder in sides.items()}
                vectors = {target: session.run(None, feeds)[0] for target, session in sessions.items()}
                times: dict[str, list[float]] = {target: [] for target in TARGETS}
                for target in take_turns(TARGETS, spec["repeats"]):
                    started = time.perf_counter()
                    sessions[target].run(None, feeds)
                    times[target].append(1e3 * (time.perf_counter() - started))
                found: dict[str, float] = {f"{target}_ms": median(times[target]) for target in TARGETS}
                found["ratio"] = found["portable_ms"] / found["onnxruntime_ms"]
                found["max_abs"] = float(np.abs(vectors["portable"] - vectors["onnxruntime"]).max())
                measured[f"{profile} {batch}x{tokens}"] = found
                say(f"{profile} {batch}x{tokens}: {found}")
    print(json.dumps(measured))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
