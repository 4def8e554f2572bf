"""report: what is known of a family as one HTML page and a model card."""

from __future__ import annotations

import argparse
from pathlib import Path

from matexport.cli.options import (
    Parsers,
    add_command,
    add_family,
    add_threads,
    read_limit,
    read_share,
)
from matexport.cli.output import (
    DONE,
    print_json,
    say,
)

SUMMARY = "write what is known of a family as one HTML page and a model card"
DESCRIPTION = (
    "One page that loads nothing, so it can be mailed and read offline: heat maps of retention and parity over "
    "layers and dims, retention against latency, memory and disk, a table that sorts, the hosts, the versions and "
    "what failed. Beside it a Markdown model card with the metadata that a hub reads. Shows what was measured "
    "before (verify --record, bench, evaluate), measures nothing, and names the command for what is missing. With "
    "limits, the profiles that keep them are named, and limits of latency, memory, disk and retention are drawn "
    "in. Needs the [report] extra."
)
EXAMPLES = (
    "examples:\n  matexport report artifacts/minilm\n"
    "  matexport report artifacts/minilm --max-latency-ms 5 --max-disk-mb 60 --min-retention 0.95\n"
    "  matexport report artifacts/minilm --out minilm.html"
)


def add_parser(parsers: Parsers) -> None:
    """Add the command with its options and its help."""
    command = add_command(parsers, "report", run, SUMMARY, DESCRIPTION, EXAMPLES)
    add_family(command)
    command.add_argument(
        "--out",
        type=Path,
        metavar="FILE.html",
        help="the page; card and picture lie beside it as FILE.md and FILE.svg "
        "(default: FAMILY/report.html, README.md and report.svg)",
    )
    command.add_argument(
        "--task",
        metavar="NAME",
        help="the one that retention is of (default: the least over the tasks with labels, or over those without)",
    )
    command.add_argument(
        "--overwrite",
        action="store_true",
        help="replace both files whole, whoever wrote them (default: of a card, only what stands between the "
        "report's own marks; a page that no report wrote is refused)",
    )
    add_threads(command, "the timings with so many threads (default: the most that were measured)")
    for name, metavar, explanation in (
        ("latency-ms", "MS", "latency of one short text; drawn into its plot"),
        ("disk-mb", "MB", "size on disk, in 10^6 bytes; drawn into its plot"),
        ("ram-mb", "MB", "peak memory, in 10^6 bytes; drawn into its plot"),
        ("cold-start-ms", "MS", "process start to first vector"),
    ):
        command.add_argument(
            f"--max-{name}",
            type=read_limit,
            metavar=metavar,
            help=f"say which profiles keep this limit of {explanation}",
        )
    command.add_argument(
        "--min-retention",
        type=read_share,
        metavar="SHARE",
        help="say which profiles keep, and draw, this least share of the parent's quality, such as 0.95",
    )


def run(options: argparse.Namespace) -> int:
    """Run ``matexport report FAMILY`` and return its exit code."""
    from matexport.pick.limits import Budget
    from matexport.report.findings import gather_findings
    from matexport.report.write import require_report_extra, write_report

    require_report_extra()
    budget = Budget(
        max_latency_ms=options.max_latency_ms,
        max_disk_mb=options.max_disk_mb,
        max_ram_mb=options.max_ram_mb,
        max_cold_start_ms=options.max_cold_start_ms,
        min_retention=options.min_retention,
    )
    findings = gather_findings(options.family, budget=budget, threads=options.threads, task=options.task)
    report = write_report(findings, options.out, overwrite=options.overwrite)
    if options.json:
        print_json(
            {
                "family": str(options.family),
                "report": str(report.page.path),
                "card": str(report.card.path),
                "picture": str(report.picture.path) if report.picture else None,
                "bytes": {str(file.path): file.bytes for file in report.files},
                "did": {str(file.path): file.did for file in report.files},
            }
        )
    else:
        for file in report.files:
            say(f"{file.path}: {file.bytes / 1e3:.0f} kB, {file.did}")
    return DONE
