"""Options that several commands share, and how a command is added; what is wrong with a value takes one line."""

from __future__ import annotations

import argparse
import math
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from matexport.spec.profile import Precision

Command = Callable[[argparse.Namespace], int]
#: Names, since argparse shows the choices as they are.
PRECISIONS = [str(precision) for precision in Precision]

Parsers: TypeAlias = "argparse._SubParsersAction[Any]"


def add_command(
    parsers: Parsers, name: str, run: Command, summary: str, description: str, epilog: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = parsers.add_parser(
        name,
        help=summary,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.description = textwrap.fill(description, 80)
    command.set_defaults(run=run, parser=command)
    command.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    return command


def add_family(command: argparse.ArgumentParser) -> None:
    command.add_argument("family", type=Path, metavar="FAMILY", help="directory of a family or a pack")


def add_threads(
    command: argparse.ArgumentParser, explanation: str = "threads (default: all CPUs of this process)"
) -> None:
    command.add_argument("--threads", type=read_count, metavar="N", help=explanation)


def read_shape(text: str) -> tuple[int, int]:
    batch, _, tokens = text.partition("x")
    try:
        return read_count(batch), read_count(tokens)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not BATCHxTOKENS, such as 1x16") from None


def read_limit(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def read_share(text: str) -> float:
    number = read_limit(text)
    if number > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share of at most 1, such as 0.95")
    return number


def read_count(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number
