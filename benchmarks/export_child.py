"""One export in a process of its own, for the benchmarks that time stages or read peak memory.

Takes one JSON object as its argument: ``source`` (a parent), ``points`` ([[layers, dim], ...]), ``out``, and
optionally ``precisions`` (fp32 alone without), ``target`` (onnxruntime without), ``probes`` (a JSON Lines file in place
of the shipped ones) and ``calibration`` (a file of texts). Prints one JSON line: for every stage of the export, when
its first and its last progress call came (system-wide monotonic clock) and the peak of this process's resident memory
at the last one; then the worst parity, the sizes of the files, and the profiles that were refused. Measures nothing
else and is held to no bar: the scripts that start it are.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import read_peak_bytes


class StageClock:
    """The `progress` callback of an export: keeps first and last call of each stage, and the memory at the last."""

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}

    def __call__(self, stage: str, _done: int, _total: int) -> None:
        now = time.monotonic()
        entry = self.stages.setdefault(stage, {"first_s": now})
        entry |= {"last_s": now, "peak_bytes": read_peak_bytes()}


def main() -> int:
    spec = json.loads(sys.argv[1])
    clock = StageClock()
    result = run_job(spec, clock)
    print(json.dumps({"stages": clock.stages, **result}))
    return 0


def run_job(spec: Mapping[str, Any], clock: StageClock) -> dict[str, Any]:
    """Export, and describe what came out."""
    from matexport.export import export_family
    from matexport.spec.job import ExportJob, ParentSource
    from matexport.spec.profile import Point, Precision, Target

    job = ExportJob(
        parent=ParentSource(spec["source"]),
        points=tuple(Point(layers, dim) for layers, dim in spec["points"]),
        precisions=tuple(Precision(name) for name in spec.get("precisions", ("fp32",))),
        target=Target(spec.get("target", Target.ONNXRUNTIME)),
        probes=Path(spec["probes"]) if spec.get("probes") else None,
        calibration=Path(spec["calibration"]) if spec.get("calibration") else None,
    )
    out = Path(spec["out"])
    exported = export_family(job, out, progress=clock)
    graphs = [path.stat().st_size for path in out.glob("*.onnx")]
    return {
        "worst_max_abs": max(verdict.worst[1].max_abs for verdict in exported.verification.verdicts),
        "graphs_bytes": sum(graphs),
        "largest_graph_bytes": max(graphs),
        "weights_bytes": sum(path.stat().st_size for path in out.glob("weights.*.safetensors")),
        "refused": dict(exported.family.facts.refused),
        "exporter": exported.family.facts.trace.exporter,
    }


if __name__ == "__main__":
    raise SystemExit(main())
