"""How long `matexport pick` takes on a family of 200 profiles, from process start to end.

The family is forged: a manifest of 200 profiles (10 depths, 10 dims, 2 precisions) and measurements of two hosts, this
one and another, each with two numbers of threads, four shapes and two tasks, whose retentions are kept on 200
resamples. `pick` reads nothing else of a family, so no graphs are needed. Every number in it is made up; the time is
not. Beside it, for scale, a bare interpreter; all take turns, on 2 CPUs where the system lets a process choose, and
medians are reported.

Bars: <= 0.3 s; and the process loads none of torch, onnxruntime and numpy, which is read from its own list of imports
(``python -X importtime``).
"""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from common import (
    Bar,
    Report,
    count_repeats,
    finish,
    make_parser,
    median,
    print_bars,
    run_process,
    take_turns,
    use_cpus,
)
from msgspec.structs import replace

from matexport.family.manifest import load_family, write_manifest
from matexport.family.measurements.records import record_bench, record_quality
from matexport.host import read_host
from matexport.spec.facts import FamilyFacts, FileFacts, ParentFacts, ProfileFacts, Provenance, TraceFacts
from matexport.spec.inputs import PaddingSide, TextFacts
from matexport.spec.measured import Bench, ProfileBench, Quality, Sample, Score, TaskKind, TaskQuality, Timing
from matexport.spec.profile import Point, Precision, Profile
from matexport.spec.readout import FinalNorm, PoolingMode, Readout
from matexport.spec.tolerance import Tolerance

CPUS = 2
LAYERS, DIMS, PRECISIONS = range(1, 11), range(32, 352, 32), (Precision.FP32, Precision.INT8)
RESAMPLES = 200
SHAPES = ("1x16", "1x128", "16x32", "16x128")
HEAVY = ("torch", "onnxruntime", "numpy")
LIMITS = ("--max-latency-ms", "6", "--max-disk-mb", "60", "--max-ram-mb", "200", "--min-retention", "0.8")

TIME = Bar("matexport pick, 200 profiles, process start to end", 0.3, " s")
LOADED = Bar("packages of numbers loaded by pick", 0)


def main() -> int:
    options = make_parser("pick", __doc__, repeats=21).parse_args()
    print_bars([TIME, LOADED])
    repeats = count_repeats(options, quick=3)
    with tempfile.TemporaryDirectory(prefix="matexport-pick-") as name, use_cpus(CPUS):
        family = forge_family(Path(name) / "family")
        os.environ["PYTHONDONTWRITEBYTECODE"] = ""  # an installed package has its bytecode
        command = [sys.executable, "-m", "matexport", "pick", str(family), *LIMITS]
        loaded = list_loaded(command)
        chosen = json.loads(run_process([*command, "--json"]).stdout)
        if len(chosen["fitting"]) + len(chosen["rejections"]) != 200 or not chosen["chosen"]:
            raise SystemExit("the forged family is not one of 200 profiles, or nothing of it fits")
        sides: dict[str, Sequence[str]] = {"pick": command, "bare interpreter": [sys.executable, "-c", "pass"]}
        runs: dict[str, list[float]] = {side: [] for side in sides}
        for side in take_turns(list(sides), repeats):
            runs[side].append(run_process(sides[side]).seconds)
    heavy = sorted(package for package in HEAVY if package in loaded)
    measured: dict[str, Any] = {
        "medians": {side: median(found) for side, found in runs.items()},
        "heavy": heavy,
        "modules": len(loaded),
        "runs": runs,
    }
    held = [(TIME, measured["medians"]["pick"]), (LOADED, float(len(heavy)))]
    return finish("pick", options, Report(held, measured, {"cpus": CPUS, "repeats": repeats, "limits": list(LIMITS)}))


def list_loaded(command: Sequence[str]) -> set[str]:
    """Full names of the modules that a Python command imports."""
    traced = [command[0], "-X", "importtime", *command[1:]]
    lines = subprocess.run(traced, check=True, capture_output=True, text=True).stderr.splitlines()
    loaded = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    if "matexport.pick.choose" not in loaded:
        raise SystemExit("the list of imports does not show pick itself")
    return loaded


def forge_family(root: Path) -> Path:
    """A manifest of 200 profiles, and measurements of them on two hosts."""
    root.mkdir()
    points = [Point(layers, dim) for layers, dim in product(LAYERS, DIMS)]
    profiles = [Profile(point, precision) for point, precision in product(points, PRECISIONS)]
    block = {Precision.FP32: 7_000_000, Precision.INT8: 1_800_000}
    digest = "0" * 64
    files = {name: FileFacts(digest, 500_000) for name in ("tokenizer.json", "probes.jsonl", "reference.safetensors")}
    files |= {profile.graph_file: FileFacts(digest, 20_000) for profile in profiles}
    files |= {f"weights.{name}.safetensors": FileFacts(digest, 8 * size * 4) for name, size in block.items()}
    facts = FamilyFacts(
        schema=3,
        parent=ParentFacts("forged", "bert", max(LAYERS), max(DIMS), max(DIMS), "float32", {}),
        readout=Readout(FinalNorm.ABSENT, (PoolingMode.MEAN,), (), True),
        text=TextFacts(("input_ids", "attention_mask"), 256, PaddingSide.RIGHT, 0, {}),
        trace=TraceFacts("dynamo", 20, 10),
        tolerances=dict.fromkeys(PRECISIONS, Tolerance()),
        profiles={
            profile.name: ProfileFacts(
                profile.point.layers,
                profile.point.dim,
                profile.precision,
                profile.graph_file,
                f"weights.{profile.precision}.safetensors",
                (4 + profile.point.layers) * block[profile.precision],
            )
            for profile in profiles
        },
        files=files,
        provenance=Provenance(digest, {}),
        trained=tuple(point for point in points if point.layers % 2 == 0),
    )
    write_manifest(root, facts)
    family = load_family(root)
    here = read_host()
    for host in (here, replace(here, cpu="another processor")):
        record_bench(family, Bench(host, "cpu", {profile.name: forge_timings(profile) for profile in profiles}))
        tasks = {name: forge_scores(profiles, kind) for name, kind in (("a", TaskKind.STS), ("b", TaskKind.RETRIEVAL))}
        record_quality(family, Quality(host, tasks))
    return root


def forge_timings(profile: Profile) -> ProfileBench:
    """Timings that grow with depth and width."""

    def sample(value: float) -> Sample:
        return Sample(200, value, 1.2 * value, 0.9 * value, 1.1 * value)

    cost = profile.point.layers * (1 + profile.point.dim / 1000) * (0.7 if profile.precision is Precision.INT8 else 1)
    timings = {
        threads: Timing(
            first_vector=sample(500 + 10 * cost),
            latency={shape: sample(cost * (number + 1) / threads) for number, shape in enumerate(SHAPES)},
            call=sample(cost / threads),
            tokenize=sample(0.1),
            graph=sample(0.9 * cost / threads),
            mix=sample(100 * cost),
            texts_per_s=1000 / cost,
            peak_bytes=int(80e6 + 10e6 * cost),
        )
        for threads in (1, 2)
    }
    return ProfileBench(1, 1, 200, 10.0, 66, "0" * 64, timings)


def forge_scores(profiles: Sequence[Profile], kind: TaskKind) -> TaskQuality:
    """Retentions that grow with depth and width, of which some are ties."""
    dice, scores = random.Random(0), {}
    for profile in profiles:
        kept = 1 - 0.03 * (max(LAYERS) - profile.point.layers) - 3 / profile.point.dim
        resamples = [kept + dice.gauss(0, 0.005) for _ in range(RESAMPLES)]
        scores[profile.name] = Score(0.8, kept, {}, struct.pack(f"<{RESAMPLES}f", *resamples))
    return TaskQuality(kind, "score", 1000, "0" * 64, Score(0.8, 1.0), scores)


if __name__ == "__main__":
    raise SystemExit(main())
