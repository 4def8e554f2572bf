"""The command line's door: parse, run one command, turn what it raises into one line and an exit code.

Exit codes: 0 done; 1 a gate said no (parity off its floor, a family that is not what was exported, a budget that
nothing fits); 2 what was asked cannot be done; 130 interrupted. Only `cli` prints or picks an exit code, and torch is
imported by ``export`` alone. Each command is a module of `commands`: its options, its call, its printing.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from matexport.cli.commands import bench, embed, evaluate, export, pack, pick, report, show, verify
from matexport.cli.output import DONE, INTERRUPTED, REFUSED, UNUSABLE, complain
from matexport.errors import MatexportError, ParityError
from matexport.version import __version__

#: In the order of ``--help``.
COMMANDS = (export, verify, show, bench, evaluate, pick, embed, pack, report)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parse_arguments(arguments)
    try:
        run: Callable[[argparse.Namespace], int] = options.run
        return run(options)
    except ParityError as error:
        return complain(error, REFUSED)
    except MatexportError as error:
        return complain(error, UNUSABLE)
    except KeyboardInterrupt:
        return complain(_describe_interruption(options), INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at exit
        return DONE


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Parse a command line; what is wrong with it ends the process with one line and exit code 2."""
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse closes a list of positionals at the first option, so `embed FAMILY --profile P TEXT` leaves TEXT over.
    options_end = rest.index("--") if "--" in rest else len(rest)
    if rest and (not hasattr(options, "texts") or any(text.startswith("-") for text in rest[:options_end])):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.texts += rest[:options_end] + rest[options_end + 1 :]
    return options


class Parser(argparse.ArgumentParser):
    """argparse, but what is wrong takes one line; the usage is for ``--help``."""

    def error(self, message: str) -> NoReturn:
        self.exit(UNUSABLE, f"{self.prog}: {message}; see {self.prog} --help\n")


def make_parser() -> argparse.ArgumentParser:
    """The parser; each command sets ``run`` to its function."""
    parser = Parser(
        prog="matexport",
        description="Turn a 2D-Matryoshka encoder into a family of ONNX sub-models, one per (layers, dim) profile, "
        "each proven equal to its parent at that point.",
        epilog="exit codes: 0 done, 1 a gate said no (parity, changed files, a budget), 2 what was asked cannot be "
        "done",
    )
    parser.add_argument("--version", action="version", version=f"matexport {__version__}")
    parsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(parsers)
    return parser


def _describe_interruption(options: argparse.Namespace) -> str:
    if getattr(options, "engine", None) == "ray":
        return "interrupted; the same command goes on where it was"
    return "interrupted; no file was changed"
