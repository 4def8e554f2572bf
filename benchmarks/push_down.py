"""What the token push-down saves: a two-layer cls profile of a BERT, with and without it.

A cls read-out uses one token of its last block, so that block can compute queries, attention rows, feed-forward and
norms for this token alone. Both graphs are cut from the same trace (the weights of all-MiniLM-L6-v2, read out by cls
for this purpose) and point into the same weights file; one is written as it was cut, the other after
`narrow_to_first_token`. They run in one process on the same batch of 16 x 128 tokens without padding, turn by turn,
with 1 and with 2 threads.

Bar: the median time without it / with it >= 1.4 x, for each number of threads. The largest difference between the
two graphs' vectors is reported.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from common import MINILM, Bar, Report, count_repeats, finish, make_parser, median, print_bars, say, take_turns
from numpy.typing import NDArray

from matexport.export.graph.cut import cut_exit
from matexport.export.graph.edit import write_graph
from matexport.export.graph.narrow import narrow_to_first_token
from matexport.export.kinds import text
from matexport.export.kinds.probes.text import prepare_probes
from matexport.export.parents.plan import Plan
from matexport.export.parents.reference import record_reference
from matexport.export.parents.text import TextPlan, load_parent, plan_parent, runtime_files
from matexport.export.pipeline import list_reads, trace_and_write
from matexport.runtime.engines.onnxruntime import open_session
from matexport.spec.facts import OUTPUT_NAME
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.probe import Probe
from matexport.spec.profile import Point
from matexport.spec.readout import PoolingMode, ReadoutRequest

POINT = Point(2, 384)
BATCH, TOKENS = 16, 128
THREADS = (1, 2)
WARM_UP = 5
BARS = {threads: Bar(f"without / with push-down, {threads} thread(s)", 1.4, " x", at_least=True) for threads in THREADS}

#: Enough for the check that the traced module is the parent; parity is not what is measured here.
PROBES = (Probe("a cat sits on the mat"), Probe("two dogs"), Probe("it is snowing"))

Feeds = Mapping[str, NDArray[np.int64]]


def main() -> int:
    options = make_parser("push_down", __doc__, repeats=60).parse_args()
    print_bars(BARS.values())
    repeats = count_repeats(options, quick=10)
    with tempfile.TemporaryDirectory(prefix="matexport-push-down-") as folder:
        plan, narrowed = build_graphs(Path(folder))
        feeds = make_feeds(plan)
        difference = compare_outputs(Path(folder), feeds)
        results = {threads: time_sides(Path(folder), feeds, threads, repeats) for threads in THREADS}
    held = [(bar, results[threads]["ratio"]) for threads, bar in BARS.items()]
    measured = {
        "max_abs_difference": difference,
        "nodes_narrowed": narrowed,
        **{f"{threads} thread(s)": result for threads, result in results.items()},
    }
    settings = {"parent": MINILM, "pooling": "cls", "point": POINT.name, "batch": BATCH, "tokens": TOKENS}
    return finish("push_down", options, Report(held, measured, settings | {"repeats": repeats}))


def build_graphs(folder: Path) -> tuple[TextPlan, int]:
    """Write ``without.onnx`` and ``with.onnx`` beside the weights that both read: the plan, and the nodes narrowed."""
    say("tracing")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    job = ExportJob(ParentSource(MINILM), (POINT,), ReadoutRequest(pooling=PoolingMode.CLS))
    planned = plan_parent(job)
    for name, content in runtime_files(planned).items():
        (folder / name).write_bytes(content)
    probes = prepare_probes(planned, PROBES, shipped=False)
    plan = Plan(job, planned.parent, planned.readout, planned.text, probes, details=text.Details(planned))
    loaded = text.Loaded(load_parent(planned))
    reference = record_reference(loaded.parent, probes)
    module = text.module(plan, loaded, list_reads(plan))
    traced, *_ = trace_and_write(
        plan, module, text.example(plan), reference.points, folder, lambda _stage, _done, _total: None
    )
    narrowed = 0
    for side in ("without", "with"):
        part = cut_exit(traced.model, POINT.name, name=OUTPUT_NAME)
        if side == "with":
            narrowed = narrow_to_first_token(part)
        write_graph(part, folder / f"{side}.onnx")
    return planned, narrowed


def make_feeds(plan: TextPlan) -> Feeds:
    """A batch of random tokens, none of them padding, the same in every run."""
    shape = (BATCH, TOKENS)
    feeds = {
        "input_ids": np.random.default_rng(0).integers(1000, plan.tokens, shape),
        "attention_mask": np.ones(shape, dtype=np.int64),
        "token_type_ids": np.zeros(shape, dtype=np.int64),
    }
    return {name: feeds[name] for name in plan.text.inputs}


def compare_outputs(folder: Path, feeds: Feeds) -> float:
    """Largest difference of one coordinate between the vectors of the two graphs."""
    left, right = (_run(open_session(folder / f"{side}.onnx"), feeds) for side in ("without", "with"))
    return float(np.abs(left - right).max())


def time_sides(folder: Path, feeds: Feeds, threads: int, repeats: int) -> dict[str, Any]:
    """Run both graphs turn by turn: medians in ms, and their ratio."""
    sessions = {side: open_session(folder / f"{side}.onnx", threads=threads) for side in ("without", "with")}
    for session in sessions.values():
        for _ in range(WARM_UP):
            _run(session, feeds)
    runs: dict[str, list[float]] = {side: [] for side in sessions}
    for side in take_turns(list(sessions), repeats):
        started = time.perf_counter()
        _run(sessions[side], feeds)
        runs[side].append(1e3 * (time.perf_counter() - started))
    medians = {side: median(times) for side, times in runs.items()}
    return {
        "without_ms": medians["without"],
        "with_ms": medians["with"],
        "ratio": medians["without"] / medians["with"],
        "runs": runs,
    }


def _run(session: onnxruntime.InferenceSession, feeds: Feeds) -> NDArray[np.float32]:
    vectors: NDArray[np.float32] = session.run([OUTPUT_NAME], dict(feeds))[0]
    return vectors


if __name__ == "__main__":
    raise SystemExit(main())
