"""Write what was measured into README.md and two pages of docs: the only way in which a number gets there.

Reads `results/*.json` as the benchmarks left them, replaces the lines between ``<!-- measured -->`` and
``<!-- /measured -->``, and draws `docs/retention.svg`. With ``--check`` nothing is written and the exit code says
whether all are what the results say.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
CONSUMERS = ROOT / "docs" / "consumers.md"
PICTURE = ROOT / "docs" / "retention.svg"
ENGINES = ROOT / "docs" / "engines.md"
BEGIN, END = "<!-- measured -->\n", "<!-- /measured -->"
ORDER = (
    "architectures",
    "fuzz_parents",
    "judge",
    "build",
    "main_job",
    "large_parent",
    "push_down",
    "precisions",
    "runtime",
    "evaluate",
    "pick",
    "fuzz_families",
    "replaced_families",
    "images_resnet",
    "native",
    "fuzz_plans",
)


def render_table(results: list[dict[str, Any]]) -> str:
    """One row per bar, and below each host with its versions and the benchmarks that ran on it."""
    lines = ["| what | bar | measured |", "|---|---|---|"]
    for result in results:
        for row in result["bars"]:
            what, sign, limit = split_bar(row["bar"])
            missed = "" if row["held"] else " (missed)"
            lines.append(f"| {what} | {sign} {limit} | {show_number(row['measured'], limit)}{missed} |")
    hosts: dict[str, list[str]] = {}
    for result in results:
        hosts.setdefault(describe_host(result), []).append(result["benchmark"])
    for host, names in hosts.items():
        lines += ["", host if len(hosts) == 1 else f"{', '.join(names)}: {host}"]
    return "\n".join(lines) + "\n"


def render_consumers(result: dict[str, Any]) -> str:
    """One row per consumer: its version, the call, the onnxruntime that it brings, how far it was from the vector."""
    lines = [
        "| consumer | call | onnxruntime | fp32 | int8 | |",
        "|---|---|---|---|---|---|",
    ]
    outcomes: dict[str, dict[str, Any]] = result["measured"]["consumers"]
    for name in result["settings"]["tried"]:
        outcome = outcomes.get(name)
        if outcome is None:
            lines.append(f"| {name} | | | | | not run |")
            continue
        package, version = next(iter(outcome["versions"].items()))
        fp32, int8 = (show_worst(outcome, precision) for precision in ("-fp32", "-int8"))
        cells = (name, f"{package} {version}: `{outcome['how']}`", outcome["onnxruntime"] or "–", fp32, int8)
        lines.append(f"| {' | '.join(cells)} | {explain(outcome)} |")
    return "\n".join(lines) + "\n\n" + describe_host(result) + "\n"


def show_worst(outcome: dict[str, Any], precision: str) -> str:
    """The largest difference of all texts, batched and single, at both points."""
    verdicts = [verdict for profile, verdict in outcome["profiles"].items() if profile.endswith(precision)]
    found = [max(verdict["batched"], verdict["single"]) for verdict in verdicts if verdict["batched"] is not None]
    return f"{max(found):.1e}" if len(found) == len(verdicts) and found else "–"


def explain(outcome: dict[str, Any]) -> str:
    """What has to be known of a consumer beside the numbers."""
    verdicts = outcome["profiles"].values()
    said = [f"`--for {outcome['layout']}`"] if outcome["layout"] != "all" else []
    cuts = [verdict["cut"] for verdict in verdicts if verdict["cut"] is not None]
    if cuts:
        said.append(f"texts that it cuts lose their closing token, and are {max(cuts):.1e} off")
    said += sorted({verdict["error"].replace("|", "/") for verdict in verdicts if verdict["error"]})
    if not outcome["passed"] and not any(verdict["error"] for verdict in verdicts):
        said.append("off its limit")
    return "; ".join(said)


def describe_host(result: dict[str, Any]) -> str:
    """The host, the kernels where a benchmark chose them, and the versions that its numbers depend on."""
    host, versions = result["host"], result["versions"]
    sets = ", ".join(host["instruction_sets"])
    libraries = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "onnxruntime"))
    ways = result["settings"].get("kernels", {})
    kernels = "; ".join(f"{way}: {kernels} kernels" for way, kernels in ways.items())
    chosen = f" ({kernels})" if kernels else ""
    return f"{host['cpu']} ({sets}), {host['cpus']} CPUs{chosen}, {libraries}, {result['date']}."


def show_number(value: float, limit: str) -> str:
    """Three digits and the unit of the limit; below 1, a cosine needs more of them to be told from its bar."""
    cosine = 0.9 < value < 1 and " " not in limit
    return f"{value:.5f}" if cosine else f"{value:.3g}{unit_of(limit)}"


def split_bar(text: str) -> tuple[str, str, str]:
    """``name <= limit`` -> its name, sign and limit."""
    for sign, shown in ((" <= ", "≤"), (" >= ", "≥")):
        name, found, limit = text.rpartition(sign)
        if found:
            return name, shown, limit
    raise ValueError(f"{text!r} is no bar")


def unit_of(limit: str) -> str:
    """What follows the number in a limit such as ``1.25 x``."""
    _, _, unit = limit.partition(" ")
    return f" {unit}" if unit else ""


def render_engines(result: dict[str, Any]) -> str:
    """One row per engine, one column per precision, then what was refused and why, and the host."""
    rows = {name: found for name, found in result["measured"].items() if "profiles" in found}
    names = [profile for found in rows.values() for profile in found["profiles"]]
    precisions = list(dict.fromkeys(name.split("-", 2)[2] for name in names))
    lines = [f"| engine | {' | '.join(precisions)} |", "|---" * (len(precisions) + 1) + "|"]
    reasons: dict[str, list[str]] = {}
    for name, found in rows.items():
        cells = []
        for precision in precisions:
            profiles = {key: one for key, one in found["profiles"].items() if key.split("-", 2)[2] == precision}
            refused = [one["refused"] for one in profiles.values() if "refused" in one]
            if refused:
                reasons.setdefault(f"{name}, {precision}", refused)
            skipped = [one for one in profiles.values() if "skipped" in one]
            said = "refused" if refused else "not tried" if skipped else describe_agreement(list(profiles.values()))
            cells.append(said)
        lines.append(f"| {name} {found['engine']['version']} | {' | '.join(cells)} |")
    lines += ["", *(f"Refused, {where}: {said[0]}" + "\n" for where, said in reasons.items())]
    host = result["host"]
    sets, devices = ", ".join(host["instruction_sets"]), {one["engine"]["device"] for one in rows.values()}
    lines.append(f"On {host['cpu']} ({sets}), {host['cpus']} CPUs, {result['date']}; {'; '.join(sorted(devices))}.")
    return "\n".join(lines) + "\n"


def describe_agreement(profiles: list[dict[str, Any]]) -> str:
    """Largest difference of a coordinate and least cosine to onnxruntime on the CPU; said where a floor is not kept."""
    worst, least = max(one["max_abs"] for one in profiles), min(one["cosine_min"] for one in profiles)
    off = " (off its floor)" if any(one["failure"] for one in profiles) else ""
    return f"{worst:.0e} / {least:.6f}{off}"


def draw_retention(result: dict[str, Any]) -> str:
    """Retention over dims, a line for each depth, as a file."""
    from matexport.report.plots import draw_lines, stand_alone
    from matexport.spec.profile import Profile

    lines: dict[int, list[tuple[int, float]]] = {}
    for name, retention in sorted(result["measured"]["retention"].items()):
        point = Profile.parse(name).point
        lines.setdefault(point.layers, []).append((point.dim, retention))
    said = f"Retention of all-MiniLM-L6-v2 over dims, a line for each number of layers: {result['settings']['pairs']}"
    return stand_alone(draw_lines(lines, "retention", description=said)) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say whether the pages are up to date")
    options = parser.parse_args()
    results = [json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in ORDER]
    text = README.read_text(encoding="utf-8")
    wanted = replace_measured(text, render_table(results))
    consumers, engines = read(CONSUMERS), read(ENGINES)
    if (measured := RESULTS / "consumers.json").is_file():
        consumers = replace_measured(consumers, render_consumers(json.loads(read(measured))))
    if (measured := RESULTS / "engines.json").is_file():
        engines = replace_measured(engines, render_engines(json.loads(read(measured))))
    picture = draw_retention(json.loads((RESULTS / "retention.json").read_text(encoding="utf-8")))
    if not options.check:
        README.write_text(wanted, encoding="utf-8")
        PICTURE.write_text(picture, encoding="utf-8")
        CONSUMERS.write_text(consumers, encoding="utf-8")
        ENGINES.write_text(engines, encoding="utf-8")
        return 0
    pages = ((README, wanted), (PICTURE, picture), (CONSUMERS, consumers), (ENGINES, engines))
    old = [path.name for path, content in pages if read(path) != content]
    if old:
        print(
            f"{' and '.join(old)}: not what benchmarks/results says: run python benchmarks/render.py", file=sys.stderr
        )
    return bool(old)


def replace_measured(text: str, table: str) -> str:
    """A page with a table in the place of that between its two marks."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}{table}{END}{tail}"


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


if __name__ == "__main__":
    sys.exit(main())
