"""One family in every engine that is installed here: what loads, what agrees, and by how much.

    pip install -c constraints.txt -e '.[demo,openvino,tract,opencv,openvino-ep,webgpu]'
    python benchmarks/engines.py artifacts/every-precision

Each engine runs in a process of its own, profile by profile, in all ways of running; it is held to the parent's vectors
and to those of onnxruntime on the CPU, as `matexport verify --engine` holds it. A profile that an engine refuses is
kept with its reason. An engine that is not here is left out, and named. For WebGPU without a GPU, run it in the
environment that `ci/webgpu.sh` sets (VK_DRIVER_FILES, ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER).

`benchmarks/render.py` writes the table of docs/engines.md from the result.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import Bar, Report, finish, make_parser, print_bars, run_process, say

#: (engine, provider), in the order of the table.
ENGINES = (
    ("openvino", "cpu"),
    ("openvino-bf16", "cpu"),
    ("tract", "cpu"),
    ("opencv", "cpu"),
    ("onnxruntime", "openvino"),
    ("onnxruntime", "webgpu"),
)


#: Precisions whose products unpack blocks of weights.
BLOCKS = ("q8", "q4", "q4-mixed")


def make_bar(label: str) -> Bar:
    return Bar(f"{label}: profiles that run and are off a floor", 0)


def run_child(family: str, name: str, provider: str) -> dict[str, Any]:
    """Judge every profile in one engine; of one that is not here, why."""
    import msgspec

    from matexport.errors import MatexportError
    from matexport.runtime.engines.door import describe_engine
    from matexport.spec.measured import Engine
    from matexport.verify.judge import judge_profile, open_case

    engine = Engine(name, provider)
    try:
        described = describe_engine(engine)
    except MatexportError as error:
        return {"absent": str(error)}
    case = open_case(family)
    profiles: dict[str, Any] = {}
    for profile in case.family.profiles:
        if "software adapter" in described.device and profile.precision in BLOCKS:
            profiles[profile.name] = {"skipped": "a run takes minutes on a software adapter"}
            continue
        say(f"{name} {provider}: {profile.name}")
        try:
            verdict = judge_profile(case, profile.name, engine=engine)
        except MatexportError as error:
            profiles[profile.name] = {"refused": str(error)}
            continue
        assert verdict.engine is not None
        between, breach = list(verdict.engine.parity.values()), verdict.find_breach()
        profiles[profile.name] = {
            "max_abs": max(one.max_abs for one in between),
            "cosine_mean": min(one.cosine_mean for one in between),
            "cosine_min": min(one.cosine_min for one in between),
            "spread": verdict.spread.value if verdict.spread else None,
            "parent_max_abs": max(one.max_abs for one in verdict.parity.values()),
            "parent_cosine_min": min(one.cosine_min for one in verdict.parity.values()),
            "failure": f"{breach[1]} ({breach[0]})" if breach else None,
        }
    return {"engine": msgspec.to_builtins(described), "profiles": profiles}


def judge_in_child(family: Path, engine: tuple[str, str]) -> dict[str, Any]:
    """What `run_child` gives in a process of its own."""
    command = [sys.executable, __file__, family, "--child", "/".join(engine)]
    result: dict[str, Any] = json.loads(run_process(command).stdout.splitlines()[-1])
    say(f"{name_engine(*engine)}: {json.dumps(result)}")
    return result


def main() -> int:
    parser = make_parser("engines", __doc__, repeats=1)
    parser.add_argument("family", type=Path, help="directory of a family, of every precision that the table shall have")
    names = [name_engine(*engine) for engine in ENGINES]
    parser.add_argument("--engine", action="append", choices=names, help="these alone; may be repeated")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(run_child(str(options.family), *options.child.split("/"))))
        return 0
    chosen = [engine for engine in ENGINES if name_engine(*engine) in (options.engine or names)]
    bars = {engine: make_bar(name_engine(*engine)) for engine in chosen}
    print_bars(bars.values())
    with ThreadPoolExecutor(len(chosen)) as pool:  # nothing is timed: they may run side by side
        results = list(pool.map(lambda engine: judge_in_child(options.family, engine), chosen))
    found: dict[str, Any] = {}
    held = []
    for engine, result in zip(chosen, results, strict=True):
        found[name_engine(*engine)] = result
        if "absent" in result:
            say(f"{name_engine(*engine)}: not here: {result['absent']}")
            continue
        off = {name: one["failure"] for name, one in result["profiles"].items() if one.get("failure")}
        say(f"{name_engine(*engine)}: {len(result['profiles'])} profiles, off a floor: {off or 'none'}")
        held.append((bars[engine], float(len(off))))
    if not held:
        print("engines: none of them is installed here", file=sys.stderr)
        return 2
    absent = [name for name, result in found.items() if "absent" in result]
    left = [name for name in names if name not in found]
    return finish(
        "engines", options, Report(held, found, {"family": options.family.name, "absent": absent, "not run": left})
    )


def name_engine(name: str, provider: str) -> str:
    """Such as ``openvino-bf16`` or ``onnxruntime webgpu``."""
    return name if provider == "cpu" else f"{name} {provider}"


if __name__ == "__main__":
    sys.exit(main())
