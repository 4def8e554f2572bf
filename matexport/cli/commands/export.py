"""export: make a family from a job file, with every profile proven against the parent."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from matexport.cli.options import (
    PRECISIONS,
    Parsers,
    add_command,
)
from matexport.cli.output import (
    DONE,
    REFUSED,
    complain,
    describe_verification,
    note,
    print_decisions,
    print_json,
    print_unread,
    print_verification,
    say,
)
from matexport.cli.progress import show_progress
from matexport.io.terminal import show_plain
from matexport.spec.job import TWO_TOWERS
from matexport.spec.profile import NO_TARGETS, Precision, Target

if TYPE_CHECKING:
    from matexport.export import Exported

SUMMARY = "export a family and prove every profile against the parent"
DESCRIPTION = (
    "Trace the parent once, cut one ONNX graph per (layers, dim) point, write the weights that all of them share, "
    "and compare each with the parent's own vectors on the probes. The destination appears when all is proven, "
    "without profiles of small precisions that are off their floor (exit code 1 then); when it holds the family of "
    "the same inputs already, that is verified instead. A model with two towers gives two families, each with a "
    "destination of its own in DIR. Needs the [export] extra."
)
EXAMPLES = "example:\n  matexport export profiles/minilm.toml --out artifacts/minilm"


def add_parser(parsers: Parsers) -> None:
    """Add the command with its options and its help."""
    command = add_command(parsers, "export", run, SUMMARY, DESCRIPTION, EXAMPLES)
    command.add_argument("job", type=Path, metavar="JOB.toml", help="what to export; see profiles/")
    command.add_argument("--out", type=Path, metavar="DIR", help="directory to write (default: artifacts/NAME)")
    command.add_argument(
        "--parent",
        metavar="SOURCE",
        help="take this parent instead of the job's: a directory, a hub id or package:NAME/path; "
        "the job's sha256 and revision are not applied to it",
    )
    command.add_argument(
        "--precision",
        action="append",
        choices=PRECISIONS,
        metavar="NAME",
        help="instead of the job's precisions; may be repeated: " + ", ".join(Precision),
    )
    command.add_argument(
        "--target",
        type=_read_target,
        choices=[str(target) for target in Target],
        metavar="NAME",
        help="what the graphs are written for, instead of the job's: onnxruntime, the fastest on a CPU (default); "
        "portable, operators of the ONNX standard alone, of opset 17 where that has them; rknn or litert, one text of "
        "a fixed number of tokens (max_tokens in the job's [readout]), for converters (docs/targets.md)",
    )
    command.add_argument(
        "--preprocess-in-graph",
        action="store_true",
        help="of a parent that takes images: graphs take uint8 RGB pixels of any size, (1, height, width, 3), and "
        "resize, cut and normalise them as Pillow does",
    )
    command.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a family of other inputs in DIR; what people wrote there "
        "(README.md, report.html) and measurements stay",
    )


def _read_target(name: str) -> str:
    """As it is; argparse lists those that there are where it is none."""
    if name in NO_TARGETS:
        raise argparse.ArgumentTypeError(f"{name} was asked; {NO_TARGETS[name]}")
    return name


def run(options: argparse.Namespace) -> int:
    """Run ``matexport export JOB.toml`` and return its exit code."""
    from msgspec.structs import replace

    from matexport.family.manifest import REPORTED
    from matexport.io.jobs import change_precisions, load_job, preprocess_in_graph
    from matexport.towers import IMAGE, TEXT

    job = load_job(options.job)
    if options.parent is not None:
        # The job's digest and revision are its own parent's. A path given here starts from the current directory.
        source = str(Path(options.parent).resolve()) if Path(options.parent).is_dir() else options.parent
        job = replace(job, parent=replace(job.parent, source=source, sha256=None, revision=None))
    if options.precision:
        job = change_precisions(job, [Precision(name) for name in options.precision])
    if options.target:
        job = replace(job, target=Target(options.target))
    if options.preprocess_in_graph:
        job = preprocess_in_graph(job)
    from matexport.export import export_family, export_towers

    out = options.out or job.destination
    folders = [out / name for name in (TEXT, IMAGE)] if job.parent.kind == TWO_TOWERS else [out]
    reported = {folder for folder in folders if any((folder / name).is_file() for name in REPORTED)}
    with show_progress() as progress:
        if job.parent.kind == TWO_TOWERS:
            towers = export_towers(job, out, overwrite=options.overwrite, progress=progress, quiet=True)
            found = list(towers.values())
        else:
            found = [export_family(job, out, overwrite=options.overwrite, progress=progress, quiet=True)]
    if options.json:
        documents = [_describe(exported) for exported in found]
        print_json(documents[0] if len(found) == 1 else dict(zip((TEXT, IMAGE), documents, strict=True)))
    return max(_tell(exported, options, reported=exported.family.path in reported) for exported in found)


def _describe(exported: Exported) -> dict[str, object]:
    out = exported.family.path
    return {
        "family": str(out),
        "up_to_date": exported.up_to_date,
        "renewed": list(exported.renewed),
        "cut_anew": exported.cut_anew,
        "refused": dict(exported.family.facts.refused),
        **describe_verification(out, exported.verification),
    }


def _tell(exported: Exported, options: argparse.Namespace, *, reported: bool) -> int:
    """Print what became of a family, but for a document of it, and give the exit code.

    Args:
        reported: there is a report in its folder.
    """
    out = exported.family.path
    if not options.json:
        print_verification(out, exported.verification)
        state = "up to date" if exported.up_to_date else "written"
        if exported.cut_anew:
            state = "written, cut from the trace and the precisions of the family that was there"
        if exported.renewed:
            state = f"says what the job says of {', '.join(exported.renewed)}, all else was up to date"
        if exported.family.facts.trace.fallback:
            say(f"\ntraced with the TorchScript exporter: {show_plain(exported.family.facts.trace.fallback)}")
            say("its graphs say no shapes, so a cls profile computes all tokens of its last block")
        print_decisions(exported.family)
        print_unread(exported.family)
        say(f"\n{out}: {state}, {len(exported.verification.verdicts)} profiles")
    if reported and (exported.renewed or not exported.up_to_date):
        note(f"its report is of the family before: {shlex.join(['matexport', 'report', str(out)])} writes it anew")
    for reason in exported.family.facts.refused.values():
        complain(f"not in the family: {reason}", REFUSED)
    return DONE if exported.verification.passed and not exported.family.facts.refused else REFUSED
