"""evaluate: what each profile keeps of the parent's quality."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from matexport.cli.options import (
    Parsers,
    add_command,
    add_engine,
    add_family,
    add_threads,
    read_count,
    read_engine,
)
from matexport.cli.output import (
    DONE,
    format_number,
    note,
    print_json,
    say,
)
from matexport.cli.progress import show_progress
from matexport.errors import RequestError
from matexport.io.files import explain_write_errors
from matexport.io.terminal import format_table

if TYPE_CHECKING:
    from matexport.family.manifest import Family
    from matexport.measure.tasks import RetrievalTask
    from matexport.measure.vectors import AnyTask
    from matexport.spec.measured import Quality


SUMMARY = "measure what each profile keeps of the parent's quality"
DESCRIPTION = (
    "Score profiles on your own tasks, and without labels against the whole parent: Spearman of all pairwise "
    "similarities, and how many of each text's 10 nearest are the parent's. Retention is a profile's score over "
    "the parent's. All points of a precision are computed in one pass. Kept in "
    "FAMILY/measurements/<host>.json, where pick and report find it. Without a task, the texts that come with "
    "matexport are compared. Needs the [evaluate] extra."
)
EXAMPLES = (
    "examples:\n  matexport evaluate artifacts/minilm --sts stsb-dev.csv\n"
    "  matexport evaluate artifacts/minilm --retrieval scifact --shortlist 200\n"
    "  matexport evaluate artifacts/minilm --texts my-texts.txt --profile L02-D064-fp32\n"
    "  matexport evaluate artifacts/digits --labelled artifacts/digits-images"
)


def add_parser(parsers: Parsers) -> None:
    """Add the command with its options and its help."""
    command = add_command(parsers, "evaluate", run, SUMMARY, DESCRIPTION, EXAMPLES)
    add_family(command)
    command.add_argument(
        "--sts",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="pairs with people's scores: a table by commas, semicolons or tabs, JSON Lines or Parquet (needs the "
        "[parquet] extra), with a header that names sentence1, sentence2 and score (or text1, text2, label, ...), or "
        "without one in this order, or STS-B's seven columns; packed with gzip or not; may be repeated",
    )
    command.add_argument(
        "--retrieval",
        action="append",
        type=Path,
        default=[],
        metavar="DIR",
        help="queries and documents in BEIR's layout (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv, packed with gzip "
        "or not); documents that only the grades name count as never found; may be repeated",
    )
    command.add_argument("--split", metavar="NAME", help="of the qrels (default: test)")
    command.add_argument(
        "--texts",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="texts without labels, one per line or the column text of a table (.csv, .tsv, .jsonl, Parquet); may be "
        "repeated",
    )
    _add_image_tasks(command)
    command.add_argument(
        "--shortlist",
        type=read_count,
        metavar="N",
        help="retrieval: also find N documents by each smaller dim and re-rank them by the largest; "
        "says what that keeps, and how much faster it is",
    )
    command.add_argument(
        "--profile", action="append", default=[], metavar="NAME", help="score this one; may be repeated (default: all)"
    )
    add_engine(command)
    add_threads(command)


def _add_image_tasks(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--cascade",
        type=Path,
        metavar="DIR",
        help="of a classifier of MRL: a cascade of its dims by confidence, thresholds from DIR/val/LABEL, scored on "
        "DIR/test/LABEL; printed, and not kept",
    )
    command.add_argument(
        "--labelled",
        action="append",
        type=Path,
        default=[],
        metavar="DIR",
        help="of a family of images: DIR/LABEL/FILE, each classified by its 20 nearest, or DIR/train and DIR/test of "
        "such; may be repeated",
    )
    command.add_argument(
        "--images",
        action="append",
        type=Path,
        default=[],
        metavar="DIR",
        help="of a family of images: a folder without labels; may be repeated",
    )


def run(options: argparse.Namespace) -> int:
    """Run ``matexport evaluate FAMILY`` and return its exit code."""
    from matexport.family.manifest import load_family
    from matexport.family.measurements.records import record_quality
    from matexport.family.measurements.sections import refuse_linked
    from matexport.measure.evaluate import evaluate_family, require_evaluate_extra
    from matexport.measure.tasks import RetrievalTask

    if not options.retrieval:
        for name in ("split", "shortlist"):
            if getattr(options, name) is not None:
                raise RequestError(f"--{name} is for --retrieval")
    require_evaluate_extra()
    family = load_family(options.family)
    if options.cascade:
        return _run_cascade(options, family)
    refuse_linked(family)  # before anything is computed
    tasks = _load_tasks(options, family)
    for task in tasks:
        if isinstance(task, RetrievalTask) and task.absent:
            note(describe_absent(task))
    with show_progress() as progress:
        quality = evaluate_family(
            family,
            tasks,
            profiles=options.profile,
            shortlist=options.shortlist,
            engine=read_engine(options, options.threads),
            progress=progress,
        )
    if not options.json:  # printed before it is recorded, which may fail
        say(format_quality(family, quality), flush=True)
        if any(task.adaptive for task in quality.tasks.values()):
            say(f"\n{format_adaptive(quality)}", flush=True)
    with explain_write_errors(options.family):
        path = record_quality(family, quality)
    if options.json:
        import msgspec

        print_json({"family": str(options.family), "recorded": str(path)} | msgspec.to_builtins(quality, str_keys=True))
        return DONE
    if all(task.parent is None for task in quality.tasks.values()):
        say("\nretention is unknown: the family lacks the whole parent in fp32; export with that point to have it")
    say(f"\nkept in {path}")
    return DONE


def _run_cascade(options: argparse.Namespace, family: Family) -> int:
    from matexport.measure.images import evaluate_cascade

    if options.sts or options.retrieval or options.texts or options.labelled or options.images or options.profile:
        raise RequestError("--cascade is asked for by itself")
    if not read_engine(options).is_default:
        raise RequestError("--cascade runs in onnxruntime on the CPU: leave out --engine and --provider")
    found = evaluate_cascade(family, options.cascade, threads=options.threads)
    if options.json:
        print_json({"family": str(options.family), **found._asdict()})
        return DONE
    rows = [
        (
            str(dim),
            f"{found.alone[dim]:.4f}",
            "" if place == len(found.thresholds) else f"{found.thresholds[place]:.2f}",
        )
        for place, dim in enumerate(found.dims)
    ]
    say(format_table(("dim", "accuracy alone", "passes on below"), rows, left=()))
    say(f"\nthe cascade: accuracy {found.accuracy:.4f} at {found.expected_dim:.1f} dims on average")
    return DONE


def _load_tasks(options: argparse.Namespace, family: Family) -> list[AnyTask]:
    """What the family is to be scored on; where nothing was named, the texts that come with matexport."""
    from matexport.measure.images import load_labelled, load_unlabelled_images
    from matexport.measure.tasks import load_retrieval, load_sts, load_unlabelled, read_shipped_texts

    tasks: list[AnyTask] = [
        *(load_sts(path) for path in options.sts),
        *(load_retrieval(path, options.split or "test") for path in options.retrieval),
        *(load_unlabelled(path) for path in options.texts),
        *(load_labelled(path) for path in options.labelled),
        *(load_unlabelled_images(path) for path in options.images),
    ]
    if not tasks and family.facts.image:
        raise RequestError("no task was given: name folders of images with --labelled or --images")
    return tasks or [read_shipped_texts()]


def describe_absent(task: RetrievalTask) -> str:
    """What is said of a task whose grades name documents that the corpus lacks."""
    count = len(task.absent)
    are, they_count, them = ("are", "they count", "them") if count > 1 else ("is", "it counts", "it")
    return (
        f"{task.name}: {count} document{'s' * (count > 1)} that the grades name {are} not in the corpus, such as "
        f"{task.absent[0]!r}; {they_count} as never found, as trec_eval counts {them}"
    )


def format_quality(family: Family, quality: Quality) -> str:
    """The table that `evaluate` prints: for each profile, its score and retention on each task."""
    header, footer = ["profile"], ["the whole parent"]
    for name, task in quality.tasks.items():
        header += [f"{name}: {task.metric}", "kept"]
        footer += [f"{task.parent.score:.4f}" if task.parent else "-", ""]
    rows = []
    names = {profile for task in quality.tasks.values() for profile in task.profiles}
    for profile in (profile.name for profile in family.profiles if profile.name in names):
        row = [profile + (" *" if family.is_trained(profile) is False else "")]
        for task in quality.tasks.values():
            score = task.profiles.get(profile)
            kept = score.retention if score else None
            row += [format_number(score.score if score else None, ".4f"), format_number(kept, ".1%")]
        rows.append(row)
    table = format_table(header, [*rows, footer], left=(0,))
    notes = "\n* the parent was not trained to be read there" if any(row[0].endswith("*") for row in rows) else ""
    if family.facts.trained is None:
        notes = "\nwhich points the parent was trained at is not known: name them in the job file's [trained] table"
    return table + notes


def format_adaptive(quality: Quality) -> str:
    """The table of searches in two steps that `evaluate --shortlist` prints."""
    header = ("task", "re-ranked by", "shortlisted by", "documents", "score", "of its own top 10", "speed")
    rows = [
        (
            name,
            found.profile,
            f"{found.shortlist_dim} dims",
            str(found.shortlist),
            f"{found.score:.4f}",
            f"{found.recall:.1%}",
            f"{found.speedup:.1f} x",
        )
        for name, task in quality.tasks.items()
        for found in task.adaptive
    ]
    return format_table(header, rows, left=(0, 1))
