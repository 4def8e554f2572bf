"""Families with numbers that nobody measured, for reports: plausible, and worked out apart from the package."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from forge import edit_manifest

from matexport import load_family
from matexport.family.manifest import Family
from matexport.family.measurements.records import record_bench, record_quality
from matexport.family.measurements.sections import write_sections
from matexport.host import read_host
from matexport.spec.measured import Bench, Host, ProfileBench, Quality, Sample, Score, TaskKind, TaskQuality, Timing

OTHER = Host("Another CPU", "x86_64", ("avx2",), 8, "Linux", "3.12.0", "1.31.1")


def sample(p50: float) -> Sample:
    return Sample(10, p50, p50 * 1.2, p50 * 0.9, p50 * 1.1)


def timing(ms: float, *, peak_bytes: int | None = 100_000_000) -> Timing:
    return Timing(
        sample(400), {"1x16": sample(ms)}, sample(ms), sample(ms / 10), sample(ms), sample(9), 100 / ms, peak_bytes
    )


def record_timings(family: Family, latencies: dict[str, float], host: Host | None = None, threads: int = 1) -> None:
    profiles = {
        name: ProfileBench(1, 1, 10, 1.0, 4, "0" * 64, {threads: timing(ms, peak_bytes=int(ms * 5e7))})
        for name, ms in latencies.items()
    }
    record_bench(family, Bench(host or read_host(), "cpu", profiles))


def record_scores(
    family: Family,
    retentions: dict[str, float],
    host: Host | None = None,
    *,
    name: str = "sts",
    kind: TaskKind = TaskKind.STS,
) -> None:
    scores = {profile: Score(0.8 * kept, kept) for profile, kept in retentions.items()}
    task = TaskQuality(kind, "Spearman", 100, "1" * 64, Score(0.8, 1.0), scores)
    record_quality(family, Quality(host or read_host(), {name: task}))


def record_parity(family: Family, differences: dict[str, float], host: Host | None = None) -> None:
    parity = {
        name: {
            way: {
                "max_abs": it,
                "cosine_mean": 1.0,
                "cosine_min": 1.0 - it,
                "neighbours": 1.0,
                "worst": 1,
                "farthest": 2,
            }
            for way in ("batched", "single")
        }
        for name, it in differences.items()
    }
    spread = {name: {"value": 1e-7, "worst": 0} for name in differences}
    write_sections(family, host or read_host(), {"parity": parity, "spread": spread})


def forge_large(family: Path, layers: int = 6, dims: tuple[int, ...] = (4, 8, 16, 24, 32)) -> Family:
    """60 profiles out of a small family: each point in fp32 and int8, one graph for all. Fit to be reported only."""
    shutil.rmtree(family / "measurements", ignore_errors=True)

    def edit(data: dict) -> None:  # type: ignore[type-arg]
        known = next(iter(data["profiles"].values()))
        data["tolerances"]["int8"] = {"cosine_mean": 0.993, "cosine_min": 0.975, "spread": 1e-6}
        data["profiles"] = {
            f"L{layer:02d}-D{dim:03d}-{precision}": known | {"layers": layer, "dim": dim, "precision": precision}
            for layer in range(1, layers + 1)
            for dim in dims
            for precision in ("fp32", "int8")
        }
        used = {known["graph"], *data["exits"].values()}
        data["files"] = {it: facts for it, facts in data["files"].items() if it in used or not it.endswith(".onnx")}
        data["trained"] = [{"layers": layer, "dim": dim} for layer in range(2, layers + 1, 2) for dim in dims]
        data["refused"] = {"L01-D004-q4": "L01-D004-q4: least cosine 0.8, allowed 0.85"}

    edit_manifest(family, edit)
    return load_family(family)


def measure_large(family: Family) -> None:
    """Numbers for all of a large family: deeper and wider is better and slower; on two hosts."""
    facts = family.facts.profiles
    half = {name: 0.5 if it.precision == "int8" else 1.0 for name, it in facts.items()}
    latencies = {name: half[name] * (0.2 + it.layers) + it.dim / 1000 for name, it in facts.items()}
    kept = {name: 1 - 0.3 / it.layers - 0.5 / it.dim - 0.01 * (half[name] < 1) for name, it in facts.items()}
    for host in (read_host(), OTHER):
        record_timings(family, latencies, host)
        record_parity(family, dict.fromkeys(facts, 2e-7), host)
    record_scores(family, kept)
    record_scores(family, kept, name="retrieval", kind=TaskKind.RETRIEVAL)


HOSTILE = "</style></title><script>alert(1)</script><img src=http://x.test/ onerror=alert(2)> \"'> {{ 7*7 }} |`$&amp;"


def spoil(family: Path) -> Family:
    """Put hostile text wherever a family and its measurements hold text."""

    def edit(data: dict[str, Any]) -> None:
        data["parent"] |= {"source": HOSTILE, "architecture": HOSTILE, "dtype": HOSTILE, "weights": {HOSTILE: HOSTILE}}
        data["readout"]["heads"] = [HOSTILE]
        data["text"] |= {"prompts": {HOSTILE: HOSTILE}, "default_prompt": HOSTILE}
        data["trace"] |= {"exporter": HOSTILE, "fallback": HOSTILE}
        data["refused"] = {"L01-D004-q4": HOSTILE}
        data["provenance"] = {"inputs_sha256": HOSTILE, "versions": {HOSTILE: HOSTILE}}
        data["precisions"] = {"fp32": {"calibration": HOSTILE, "kept": {HOSTILE: HOSTILE}}}
        data["vocabulary"] = {"kept_by": HOSTILE, "tokens": 1, "parent_tokens": 2, "changed_probes": [HOSTILE]}

    shutil.rmtree(family / "measurements")
    edit_manifest(family, edit)
    loaded = load_family(family)
    names = [profile.name for profile in loaded.profiles]
    host = type(OTHER)(HOSTILE, HOSTILE, (HOSTILE,), 8, HOSTILE, HOSTILE, HOSTILE)
    record_timings(loaded, dict.fromkeys(names, 1.0), host)
    record_scores(loaded, dict.fromkeys(names, 0.9), host, name=HOSTILE)
    record_parity(loaded, dict.fromkeys(names, 1.0), host)
    return loaded
