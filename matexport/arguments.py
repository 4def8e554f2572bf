"""What the command line takes: commands, options, and the help that teaches them. What they do is in `cli`."""

from __future__ import annotations

import argparse
import math
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from matexport.runtime.batches import DEFAULT_BATCH_TOKENS
from matexport.spec.measured import CPU, PROVIDERS
from matexport.spec.profile import Precision
from matexport.version import __version__

Command = Callable[[argparse.Namespace], int]

UNUSABLE = 2


class Parser(argparse.ArgumentParser):
    """argparse, but what is wrong takes one line; the usage is for ``--help``."""

    def error(self, message: str) -> NoReturn:
        self.exit(UNUSABLE, f"{self.prog}: {message}; see {self.prog} --help\n")


def parse_arguments(arguments: list[str] | None, commands: Mapping[str, Command]) -> argparse.Namespace:
    """Parse a command line; what is wrong with it ends the process with one line and exit code 2."""
    parser = make_parser(commands)
    options, rest = parser.parse_known_args(arguments)
    # argparse closes a list of positionals at the first option, so `embed FAMILY --profile P TEXT` leaves TEXT over.
    options_end = rest.index("--") if "--" in rest else len(rest)
    if rest and (not hasattr(options, "texts") or any(text.startswith("-") for text in rest[:options_end])):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.texts += rest[:options_end] + rest[options_end + 1 :]
    return options


def make_parser(commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    """The parser; each command sets ``run`` to its function of `commands`."""
    parser = Parser(
        prog="matexport",
        description="Turn a 2D-Matryoshka encoder into a family of ONNX sub-models, one per (layers, dim) profile, "
        "each proven equal to its parent at that point.",
        epilog="exit codes: 0 done, 1 a gate said no (parity, changed files, a budget), 2 what was asked cannot be "
        "done",
    )
    parser.add_argument("--version", action="version", version=f"matexport {__version__}")
    parsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    export = _add_command(
        parsers, "export", commands["export"], "export a family and prove every profile against the parent",
        "Trace the parent once, cut one ONNX graph per (layers, dim) point, write the weights that all of them share, "
        "and compare each with the parent's own vectors on the probes. The destination appears when all is proven, "
        "without profiles of small precisions that are off their floor (exit code 1 then); when it holds the family of "
        "the same inputs already, that is verified instead. Needs the [export] extra.",
        "example:\n  matexport export profiles/minilm.toml --out artifacts/minilm",
    )  # fmt: skip
    export.add_argument("profile", type=Path, metavar="PROFILE.toml", help="what to export; see profiles/")
    export.add_argument("--out", type=Path, metavar="DIR", help="directory to write (default: artifacts/NAME)")
    export.add_argument("--parent", metavar="SOURCE",
                        help="take this parent instead of the profile's: a directory, a hub id or package:NAME/path; "
                        "the profile's sha256 and revision are not applied to it")  # fmt: skip
    export.add_argument(
        "--precision",
        action="append",
        choices=[*Precision],
        metavar="NAME",
        help="instead of the profile's precisions; may be repeated: " + ", ".join(Precision),
    )
    export.add_argument("--overwrite", action="store_true", help="replace a family of other inputs in DIR")

    verify = _add_command(
        parsers, "verify", commands["verify"], "check a family's files and its parity on this machine",
        "Check every file's digest, that no path leaves the folder and that all weights are finite; then that the "
        "probes have the parent's token ids, where the family stores them; then run every profile on the family's "
        "probes, batched and one by one, and compare with the parent's stored vectors. The last line is the verdict. "
        "Needs neither torch nor the parent. With --baseline, also say whether an index that was built with another "
        "export may be queried with this one: both embed the probes of both, and the vectors of the same text may "
        "differ by no more than the two tolerances together (see docs/ci.md).",
        "examples (gates in CI):\n  matexport verify artifacts/minilm --junit parity.xml\n"
        "  matexport verify artifacts/minilm --baseline released/minilm",
    )  # fmt: skip
    _add_family(verify)
    verify.add_argument("--baseline", type=Path, metavar="OLD_FAMILY",
                        help="also compare with this family or pack, profile by profile of the same name; exit code 1 "
                        "where an index built with it has to be rebuilt")  # fmt: skip
    verify.add_argument("--junit", type=Path, metavar="FILE",
                        help="also write the result as JUnit XML; files that are refused are one failure there, and "
                        "what was not run for it is skipped")  # fmt: skip
    verify.add_argument("--record", action="store_true", help="keep the result in FAMILY/measurements/<host>.json")
    _add_threads(verify)

    show = _add_command(
        parsers, "show", commands["show"], "print what a family contains",
        "Print a family's parent, read-out and profiles: size of the download (graph and the prefix of the weights "
        "that it needs), parity as measured on this host, and the graph's file. "
        "Reads the manifest and what was measured on this host.",
        "example:\n  matexport show artifacts/minilm",
    )  # fmt: skip
    _add_family(show)

    bench = _add_command(
        parsers, "bench", commands["bench"], "measure what each profile costs on this machine",
        "Per profile: size, cold start (process start to first vector), latency at several shapes, throughput on a mix "
        "of lengths, peak memory; with 1 thread and with all CPUs of this process. Every measurement runs in a fresh "
        "process, profiles in turns, forwards and backwards. Kept in FAMILY/measurements/<host>.json. A whole family "
        "takes minutes: name profiles to be quicker.",
        "examples:\n  matexport bench artifacts/minilm --profile L02-D064-fp32 --profile L06-D384-fp32\n"
        "  matexport bench artifacts/minilm --threads 1 --shape 1x16 --texts my-texts.txt\n"
        "  matexport bench artifacts/minilm --profile L02-D064-fp32 --against torch",
    )  # fmt: skip
    _add_family(bench)
    bench.add_argument("--profile", action="append", default=[], metavar="NAME",
                       help="measure this one; may be repeated (default: all)")  # fmt: skip
    bench.add_argument("--threads", action="append", type=_positive, default=[], metavar="N",
                       help="may be repeated (default: 1 and all CPUs of this process)")  # fmt: skip
    bench.add_argument("--shape", action="append", type=_shape, default=[], metavar="BATCHxTOKENS",
                       help="may be repeated (default: 1x16 1x128 16x32 16x128)")  # fmt: skip
    bench.add_argument(
        "--texts",
        type=Path,
        metavar="FILE",
        help="one text per line, as long as yours are, for the throughput (default: the probes)",
    )
    bench.add_argument("--runs", type=_positive, default=200, metavar="N", help="runs of each shape (default: 200)")
    bench.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        metavar="S",
        help="stop a shape after so long, if there were not enough runs by then (default: 10)",
    )
    bench.add_argument(
        "--provider",
        choices=[*PROVIDERS],
        default=CPU,
        help="what runs the graphs (default: cpu); if it does not run all of them, that is an error",
    )
    bench.add_argument("--against", choices=["torch"], help="also time the parent itself, in sentence-transformers and "
                       "cut to the same points, in turns with the profiles; needs the [export] extra")  # fmt: skip
    bench.add_argument("--parent", metavar="SOURCE", help="with --against: where that parent is: a directory, a hub "
                       "id or package:NAME/path (default: where the family was exported from)")  # fmt: skip

    evaluate = _add_command(
        parsers, "evaluate", commands["evaluate"], "measure what each profile keeps of the parent's quality",
        "Score profiles on your own tasks, and without labels against the whole parent: Spearman of all pairwise "
        "similarities, and how many of each text's 10 nearest are the parent's. Retention is a profile's score over "
        "the parent's. All points of a precision are computed in one pass. Kept in "
        "FAMILY/measurements/<host>.json, where pick and report find it. Without a task, the texts that come with "
        "matexport are compared. Needs the [evaluate] extra.",
        "examples:\n  matexport evaluate artifacts/minilm --sts stsb-dev.csv\n"
        "  matexport evaluate artifacts/minilm --retrieval scifact --shortlist 200\n"
        "  matexport evaluate artifacts/minilm --texts my-texts.txt --profile L02-D064-fp32",
    )  # fmt: skip
    _add_family(evaluate)
    evaluate.add_argument("--sts", action="append", type=Path, default=[], metavar="FILE.csv",
                          help="pairs with people's scores: columns sentence1, sentence2, score, with a header that "
                          "names them or alone in this order; may be repeated")  # fmt: skip
    evaluate.add_argument("--retrieval", action="append", type=Path, default=[], metavar="DIR",
                          help="queries and documents in BEIR's layout (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv); "
                          "may be repeated")  # fmt: skip
    evaluate.add_argument("--split", default="test", metavar="NAME", help="of the qrels (default: test)")
    evaluate.add_argument("--texts", action="append", type=Path, default=[], metavar="FILE",
                          help="texts without labels, one per line; may be repeated")  # fmt: skip
    evaluate.add_argument("--shortlist", type=_positive, metavar="N",
                          help="retrieval: also find N documents by each smaller dim and re-rank them by the largest; "
                          "says what that keeps, and how much faster it is")  # fmt: skip
    evaluate.add_argument("--profile", action="append", default=[], metavar="NAME",
                          help="score this one; may be repeated (default: all)")  # fmt: skip
    _add_threads(evaluate)

    pick = _add_command(
        parsers, "pick", commands["pick"], "choose the best profile that fits a budget",
        "Of the profiles that keep every limit, choose the one of the best retention, and of equal ones the fastest; "
        "show those that no other one beats (the Pareto front) and a reason for each that was rejected. Sizes come "
        "from the manifest, the rest from what bench and evaluate measured: on this host, or else on another one, "
        "which is then named. A limit that nobody measured anything for is named, too, and rejects nothing, unless "
        "--strict. MB are 10^6 bytes. Exit code 1: nothing fits.",
        "examples:\n  matexport pick artifacts/minilm --max-latency-ms 10 --max-disk-mb 40 --min-retention 0.95\n"
        "  matexport pick artifacts/minilm --device profiles/devices/raspberry-pi-5.toml --out artifacts/for-the-pi",
    )  # fmt: skip
    _add_family(pick)
    pick.add_argument("--max-latency-ms", type=_limit, metavar="MS",
                      help="median of embedding one short text, or of the --shape")  # fmt: skip
    pick.add_argument("--max-disk-mb", type=_limit, metavar="MB", help="all files that are needed to run it")
    pick.add_argument("--max-ram-mb", type=_limit, metavar="MB", help="peak resident memory of a process that runs it")
    pick.add_argument("--max-cold-start-ms", type=_limit, metavar="MS", help="process start to first vector")
    pick.add_argument("--min-retention", type=_share, metavar="SHARE", help="of the whole parent's quality, 0 to 1")
    pick.add_argument("--device", type=Path, metavar="FILE.toml",
                      help="take the limits, and the host whose measurements count, from a device's file (see "
                      "profiles/devices/); limits given as options go first")  # fmt: skip
    pick.add_argument("--trained-only", action="store_true", help="reject points that the parent was not trained at")
    pick.add_argument("--strict", action="store_true", help="exit code 1 when a limit could not be checked")
    pick.add_argument("--task", metavar="NAME", help="whose retention counts, as evaluate names it (default: the least "
                      "of the tasks with labels; without any, of the others)")  # fmt: skip
    pick.add_argument("--shape", type=_shape, metavar="BATCHxTOKENS", help="whose latency counts, such as 1x16")
    pick.add_argument(
        "--measure",
        action="store_true",
        help="first bench the profiles that lack timings of this host, and keep them; takes minutes",
    )
    pick.add_argument("--out", type=Path, metavar="DIR", help="also write the choice there, as pack does")
    pick.add_argument("--overwrite", action="store_true", help="replace the family or pack in DIR")
    _add_threads(pick, "whose timings count (default: the most that were measured on a host)")

    embed = _add_command(
        parsers, "embed", commands["embed"], "embed texts with one profile",
        "Embed texts given as arguments, as the lines of a file, or on standard input. Without --output, prints one "
        "JSON object per text.",
        "examples:\n  matexport embed artifacts/minilm --profile L02-D064-fp32 'a text' 'another'\n"
        "  matexport embed artifacts/minilm --profile L02-D064-fp32 --input texts.txt --output vectors.npy\n"
        "  cat texts.txt | matexport embed artifacts/minilm --profile L02-D064-fp32 > vectors.jsonl\n"
        "  matexport embed artifacts/minilm --profile L02-D064-fp32 --engine ray corpus.parquet vectors/",
    )  # fmt: skip
    _add_family(embed)
    embed.add_argument("texts", nargs="*", metavar="TEXT", help="texts to embed")
    embed.add_argument("--profile", metavar="NAME", help="profile, as `show` lists them; optional for a pack")
    embed.add_argument("--input", metavar="FILE", help="read one text per line; - is standard input")
    embed.add_argument("--output", type=Path, metavar="FILE", help="write to FILE.npy ((n, dim) float32) or FILE.jsonl")
    embed.add_argument("--prompt", metavar="NAME", help="one of the parent's prompts ('' for none; default: its own)")
    embed.add_argument(
        "--task",
        choices=["query", "document"],
        help="read texts as the parent reads queries or documents: its prompt and its length for them",
    )
    embed.add_argument("--batch-tokens", type=_positive, default=DEFAULT_BATCH_TOKENS, metavar="N",
                       help=f"tokens per run, padding included (default: {DEFAULT_BATCH_TOKENS}); texts of like length "
                            "share a run")  # fmt: skip
    embed.add_argument("--engine", choices=["local", "ray"], default="local",
                       help="ray: embed CORPUS.parquet (or a folder of such files) into the folder OUT, both given in "
                            "place of texts, with many processes or machines (RAY_ADDRESS); a run that was stopped "
                            "goes on where it was. Needs the [ray] extra")  # fmt: skip
    embed.add_argument("--column", metavar="NAME", help="ray: the column of the texts (default: text)")
    embed.add_argument("--workers", type=_positive, metavar="N", help="ray: processes (default: as the CPUs allow)")
    _add_threads(embed, "threads (default: all CPUs of this process; ray: 2 for each worker)")

    pack = _add_command(
        parsers, "pack", commands["pack"], "write one profile as a self-contained folder",
        "Copy one profile's graph, the prefix of the weights that it needs, the tokenizer and the proof into a folder "
        "of its own; embed, show, verify and bench work on it.",
        "example:\n  matexport pack artifacts/minilm L02-D064-fp32 artifacts/small",
    )  # fmt: skip
    _add_family(pack)
    pack.add_argument("profile", metavar="PROFILE", help="profile, as `show` lists them")
    pack.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    pack.add_argument("--overwrite", action="store_true", help="replace the family or pack in OUT")

    report = _add_command(
        parsers, "report", commands["report"], "write what is known of a family as one HTML page and a model card",
        "One page that loads nothing, so it can be mailed and read offline: heat maps of retention and parity over "
        "layers and dims, retention against latency, memory and disk, a table that sorts, the hosts, the versions and "
        "what failed. Beside it a Markdown model card with the metadata that a hub reads. Shows what was measured "
        "before (verify --record, bench, evaluate), measures nothing, and names the command for what is missing. With "
        "limits, the budget is drawn in. Needs the [report] extra.",
        "examples:\n  matexport report artifacts/minilm\n"
        "  matexport report artifacts/minilm --max-latency-ms 5 --max-disk-mb 60 --min-retention 0.95\n"
        "  matexport report artifacts/minilm --out minilm.html",
    )  # fmt: skip
    _add_family(report)
    report.add_argument("--out", type=Path, metavar="FILE.html",
                        help="the page; the card lies beside it as FILE.md (default: FAMILY/report.html and "
                        "FAMILY/README.md)")  # fmt: skip
    report.add_argument("--task", metavar="NAME", help="the one that retention is of (default: the least over the "
                        "tasks with labels, or over those without)")  # fmt: skip
    _add_threads(report, "the timings with so many threads (default: the most that were measured)")
    for name, metavar, explanation in (
        ("latency-ms", "MS", "latency of one short text"),
        ("disk-mb", "MB", "size on disk, in 10^6 bytes"),
        ("ram-mb", "MB", "peak memory, in 10^6 bytes"),
    ):
        report.add_argument(f"--max-{name}", type=_limit, metavar=metavar, help=f"draw this limit of {explanation}")
    report.add_argument("--min-retention", type=_share, metavar="SHARE",
                        help="draw this least share of the parent's quality, such as 0.95")  # fmt: skip
    return parser


def _add_command(
    parsers: Any, name: str, run: Command, summary: str, description: str, epilog: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = parsers.add_parser(
        name, help=summary, description=description, epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    command.description = textwrap.fill(description, 80)
    command.set_defaults(run=run)
    command.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    return command


def _add_family(command: argparse.ArgumentParser) -> None:
    command.add_argument("family", type=Path, metavar="FAMILY", help="directory of a family or a pack")


def _add_threads(
    command: argparse.ArgumentParser, explanation: str = "threads (default: all CPUs of this process)"
) -> None:
    command.add_argument("--threads", type=_positive, metavar="N", help=explanation)


def _shape(text: str) -> tuple[int, int]:
    batch, _, tokens = text.partition("x")
    try:
        return _positive(batch), _positive(tokens)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not BATCHxTOKENS, such as 1x16") from None


def _limit(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def _share(text: str) -> float:
    number = _limit(text)
    if number > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share of at most 1, such as 0.95")
    return number


def _positive(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number
