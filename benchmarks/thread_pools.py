"""Why sessions share no thread pool of onnxruntime: the one that they could share spins, and nothing turns that off.

MiniLM at its full point (fp32), batches of 4 x 32 tokens with a pause after each, as a server has them. Each way in a
process of its own, in turns:

* `own, waiting`: threads of the session, which sleep between two pieces of work, as matexport has it;
* `own, spinning`: onnxruntime's default;
* `shared`: onnxruntime's global pool, asked not to spin (`session.intra_op.allow_spinning`) and to stop between two
  runs (`session.force_spinning_stop`).

Held to nothing: it says why the runtime is as it is. Threads are those of this process' CPUs.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import MINILM, Report, count_repeats, finish, make_parser, median, run_export, run_process, say, take_turns

from matexport.host import count_cpus
from matexport.runtime.engines.onnxruntime import load_runtime

WAYS = ("own, waiting", "own, spinning", "shared")
RUNS, PAUSE_S = 100, 0.01
BATCH, TOKENS = 4, 32


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        return run_child(*sys.argv[2:])
    options = make_parser("thread_pools", __doc__, repeats=5).parse_args()
    repeats = count_repeats(options, quick=1)
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="matexport-pools-") as name:
        family = Path(name) / "family"
        run_export({"source": MINILM, "points": ((6, 384),), "precisions": ("fp32",), "out": str(family)})
        for way in take_turns(WAYS, repeats):
            finished = run_process([sys.executable, __file__, "--child", way, str(next(family.glob("*.onnx")))])
            runs[way].append(json.loads(finished.stdout))
            say(f"{way}: {runs[way][-1]}")
    measured: dict[str, Any] = {
        way: {key: median(run[key] for run in found) for key in found[0]} for way, found in runs.items()
    }
    settings = {"threads": count_cpus(), "batch": BATCH, "tokens": TOKENS, "pause_s": PAUSE_S, "repeats": repeats}
    return finish("thread_pools", options, Report([], measured | {"runs": runs}, settings))


def run_child(way: str, graph: str) -> int:
    import numpy as np

    runtime = load_runtime()
    options = runtime.SessionOptions()
    if way == "shared":
        runtime.set_global_thread_pool_sizes(count_cpus(), 1)
        options.use_per_session_threads = False
        options.add_session_config_entry("session.force_spinning_stop", "1")
    else:
        options.intra_op_num_threads = count_cpus()
    if way != "own, spinning":
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = runtime.InferenceSession(graph, options)
    feeds = {item.name: np.ones((BATCH, TOKENS), dtype=np.int64) for item in session.get_inputs()}
    for _ in range(5):
        session.run(None, feeds)
    seconds = []
    before = time.process_time()
    for _ in range(RUNS):
        started = time.perf_counter()
        session.run(None, feeds)
        seconds.append(time.perf_counter() - started)
        time.sleep(PAUSE_S)
    cpu = (time.process_time() - before) / RUNS
    print(json.dumps({"run_ms": 1e3 * median(seconds), "cpu_ms_per_run": 1e3 * cpu}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
