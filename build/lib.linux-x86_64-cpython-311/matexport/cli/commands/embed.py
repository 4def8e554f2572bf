"""embed: texts or images -> vectors by one profile, as a stream; a corpus of Parquet files with Ray."""

from __future__ import annotations

import argparse
from pathlib import Path

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
    UNUSABLE,
    complain,
    print_json,
    say,
)
from matexport.cli.progress import show_progress
from matexport.cli.vectors import embed_pairs, open_items, write_pairs
from matexport.errors import RequestError
from matexport.runtime.inputs.text import BATCH_TOKENS

SUMMARY = "embed texts or images with one profile"
DESCRIPTION = (
    "Embed texts given as arguments, as the lines of a file, as a column of a table, or on standard input; or images: "
    "files, folders, or a column of Parquet that holds the bytes of files. Without --output, prints one JSON object "
    "per text or image. A folder of two towers (CLIP, SigLIP) takes both: an argument that names a file or folder "
    "is an image, any other a text. An image that cannot be read is named, the others are embedded, and the exit code "
    "is 2."
)
EXAMPLES = (
    "examples:\n  matexport embed artifacts/minilm --profile L02-D064-fp32 'a text' 'another'\n"
    "  matexport embed artifacts/minilm --profile L02-D064-fp32 --input texts.txt --output vectors.npy\n"
    "  matexport embed artifacts/minilm --profile L02-D064-fp32 --input reviews.csv --column body --output v.npy\n"
    "  cat texts.txt | matexport embed artifacts/minilm --profile L02-D064-fp32 > vectors.jsonl\n"
    "  matexport embed artifacts/minilm --profile L02-D064-fp32 --on ray corpus.parquet vectors/\n"
    "  matexport embed artifacts/minilm --profile L02-D064-fp32 --engine openvino 'a text'\n"
    "  matexport embed artifacts/digits --profile L02-D016-fp32 photos/ one-more.png --output vectors.npy\n"
    "  matexport embed artifacts/clip --profile L12-D256-fp32 'a photo of a cat' cat.jpg"
)


def add_parser(parsers: Parsers) -> None:
    """What the command takes, and the help that teaches it."""
    command = add_command(parsers, "embed", run, SUMMARY, DESCRIPTION, EXAMPLES)
    add_family(command)
    command.add_argument(
        "texts", nargs="*", metavar="TEXT", help="texts to embed; of a family of images, files and folders"
    )
    command.add_argument("--profile", metavar="NAME", help="profile, as `show` lists them; optional for a pack")
    command.add_argument(
        "--input",
        metavar="FILE",
        help="one text per line, or a table with a column of texts: .csv (commas, semicolons or tabs; the first line "
        "names the columns), .tsv, .jsonl, or Parquet (needs the [parquet] extra); packed with gzip or not; - is "
        "standard input, one text per line. Of a family of images: a file, a folder, or Parquet; of arrays: FILE.npy",
    )
    command.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write to FILE.npy ((n, dim) float32, or codes where the profile encodes) or FILE.jsonl; of images, the "
        "names of the rows of FILE.npy go to FILE.names.txt; of images that are cut into tiles, FILE.jsonl alone",
    )
    command.add_argument("--prompt", metavar="NAME", help="one of the parent's prompts ('' for none; default: its own)")
    command.add_argument(
        "--task",
        choices=["query", "document"],
        help="read texts as the parent reads queries or documents: its prompt and its length for them",
    )
    command.add_argument(
        "--batch-tokens",
        dest="batch_budget",
        type=read_count,
        metavar="N",
        help=f"tokens per run, padding included (default: {BATCH_TOKENS}); texts of like length share a run",
    )
    _add_ray(command)
    add_engine(command)
    add_threads(command, "threads (default: all CPUs of this process; ray: 2 for each worker)")


def _add_ray(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--on",
        choices=["local", "ray"],
        default="local",
        help="ray: embed CORPUS.parquet (or a folder of such files) into the folder OUT, both given in "
        "place of texts, with many processes or machines (RAY_ADDRESS); a run that was stopped "
        "goes on where it was. Needs the [ray] extra",
    )
    command.add_argument(
        "--column",
        metavar="NAME",
        help="the column of a table that holds the texts or images (default: text, image; without Ray, else the only "
        "one that does)",
    )
    command.add_argument("--workers", type=read_count, metavar="N", help="ray: processes (default: as the CPUs allow)")


def run(options: argparse.Namespace) -> int:
    """``matexport embed FAMILY``"""
    if options.on == "ray":
        return _embed_on_ray(options)
    if options.workers:
        raise RequestError("--workers is for --on ray")
    from matexport.family.manifest import load_family
    from matexport.runtime.embedder import Embedder
    from matexport.towers import holds_towers

    if options.output and options.output.suffix not in (".npy", ".jsonl"):
        raise RequestError(f"--output {options.output} was asked; its name must end in .npy or .jsonl")
    if options.json and options.output:
        raise RequestError("--json prints to standard output; leave out --output or --json")
    if holds_towers(options.family):
        from matexport.cli.towers import choose_tower, embed_both

        if not choose_tower(options):
            if not read_engine(options).is_default:
                raise RequestError("--engine and --provider are for texts or images alone; texts and images were given")
            return embed_both(options)
    family = load_family(options.family)
    if family.facts.tiled and options.output and options.output.suffix == ".npy":
        raise RequestError(
            f"--output {options.output} was asked; images that {options.family} cuts into tiles have differing numbers "
            "of tokens, which are no array: its name must end in .jsonl"
        )
    items = open_items(options, family)
    with show_progress() as progress:
        embedder = Embedder(family, options.profile, engine=read_engine(options, options.threads))
        pairs = embed_pairs(embedder, items, options, progress)
        write_pairs(pairs, options, embedder, "images" if family.facts.image else None)
    if refused := getattr(items, "refused", 0):
        return complain(f"{refused} of {refused + items.taken} images could not be read", UNUSABLE)  # type: ignore[attr-defined]
    return DONE


def _embed_on_ray(options: argparse.Namespace) -> int:
    from dataclasses import fields

    from matexport.runtime.corpus.ray import CorpusJob, embed_corpus

    if not read_engine(options).is_default:
        raise RequestError("--engine and --provider are for this machine: --on ray runs onnxruntime on CPUs")
    if len(options.texts) != 2 or options.input or options.output:
        raise RequestError("--on ray takes a Parquet corpus and a folder to write: embed FAMILY ... CORPUS.parquet OUT")
    corpus, out = options.texts
    with show_progress() as progress:
        asked = {field.name: getattr(options, field.name) for field in fields(CorpusJob)}
        job = CorpusJob(**{name: value for name, value in asked.items() if value is not None})
        result = embed_corpus(options.family, corpus, out, job, progress=progress)
    if options.json:
        print_json({"out": out, "rows": result.rows, "parts": result.parts, "done_before": result.parts_done_before})
    else:
        before = f", {result.parts_done_before} of them there before" if result.parts_done_before else ""
        say(f"{out}: {result.rows} vectors in {result.parts} files{before}")
    return DONE
