"""Options that several commands share, how a command is added, and how values of options are read.

The functions that read a value raise an error that argparse shows on one line.
"""

from __future__ import annotations

import argparse
import math
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from matexport.spec.profile import Precision

Command = Callable[[argparse.Namespace], int]
#: Names of the precisions; argparse would show members of the enum by their representation.
PRECISIONS = [str(precision) for precision in Precision]

Parsers: TypeAlias = "argparse._SubParsersAction[Any]"


def add_command(
    parsers: Parsers, name: str, run: Command, summary: str, description: str, epilog: str
) -> argparse.ArgumentParser:
    """Add a command, with the option ``--json``.

    Args:
        parsers: where the commands are added.
        run: takes the parsed options and returns an exit code.
        summary: the command's line in the help of matexport.
        description, epilog: text before and after the options in the command's own help.
    """
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
    """Add the argument FAMILY, a path."""
    command.add_argument("family", type=Path, metavar="FAMILY", help="directory of a family or a pack")


def add_threads(
    command: argparse.ArgumentParser, explanation: str = "threads (default: all CPUs of this process)"
) -> None:
    """Add the option ``--threads``; `explanation` is its help."""
    command.add_argument("--threads", type=read_count, metavar="N", help=explanation)


def read_shape(text: str) -> tuple[int, int]:
    """The batch size and number of tokens of a shape such as ``1x16``.

    Raises:
        ArgumentTypeError: the text is not two whole numbers of at least 1.
    """
    batch, _, tokens = text.partition("x")
    try:
        return read_count(batch), read_count(tokens)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not BATCHxTOKENS, such as 1x16") from None


def read_limit(text: str) -> float:
    """A finite number above 0.

    Raises:
        ArgumentTypeError: the text is none.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def read_share(text: str) -> float:
    """A number above 0 and at most 1.

    Raises:
        ArgumentTypeError: the text is none.
    """
    number = read_limit(text)
    if number > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share of at most 1, such as 0.95")
    return number


def read_count(text: str) -> int:
    """A whole number of at least 1.

    Raises:
        ArgumentTypeError: the text is none.
    """
    number = int(text) if text.isascii() and text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number
