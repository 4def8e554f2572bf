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

from matexport.spec.measured import CPU, ENGINES, ONNXRUNTIME, PROVIDERS, Engine
from matexport.spec.profile import Precision

Command = Callable[[argparse.Namespace], int]
#: Names of the precisions; argparse would show members of the enum by their representation.
PRECISIONS = [str(precision) for precision in Precision]

#: Threads that a session is asked for at most; a larger number is a slip, and onnxruntime counts them in 32 bits.
MOST_THREADS = 1024
#: Counts above this are out of range everywhere.
MOST = 2**31 - 1
#: Tokens of a shape, BATCH times TOKENS: more need terabytes.
MOST_SHAPE_TOKENS = 1 << 20

Parsers: TypeAlias = "argparse._SubParsersAction[Any]"


class Once(argparse.Action):
    """Store a value, and refuse a second one: the first would have no effect."""

    def __call__(
        self, _parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        given = vars(namespace).setdefault("given", set())
        if option is not None and self.dest in given:
            raise argparse.ArgumentError(self, f"was given twice: {getattr(namespace, self.dest)} and {values}")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


class Each(argparse.Action):
    """Collect values, and refuse one that was given before: it would be done twice, or not."""

    def __call__(
        self, _parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_option: Any
    ) -> None:
        before = getattr(namespace, self.dest) or []
        if values in before:
            raise argparse.ArgumentError(self, f"{values} was given twice")
        setattr(namespace, self.dest, [*before, values])


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
    command.register("action", None, Once)  # of options that do not say what they do
    command.register("action", "append", Each)
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
    command.add_argument("--threads", type=read_threads, metavar="N", help=explanation)


def add_engine(command: argparse.ArgumentParser) -> None:
    """Add the options ``--engine`` and ``--provider``; `read_engine` reads them."""
    command.add_argument(
        "--engine",
        choices=[*ENGINES],
        default=ONNXRUNTIME,
        help="what runs the graphs (default: onnxruntime); native: matexport's own, for int8 profiles of texts; "
        "openvino: its own runtime, in float32; openvino-bf16: with half of each factor's bits, faster on CPUs that "
        "have bfloat16, and with floors of its own; tract, opencv: these libraries' own, in float32",
    )
    command.add_argument(
        "--provider",
        choices=[*PROVIDERS],
        default=CPU,
        help="what onnxruntime runs them on (default: cpu); if it does not run all of them, that is an error",
    )


def read_engine(options: argparse.Namespace, threads: int | None = None) -> Engine:
    """The engine that the options of `add_engine` ask for."""
    return Engine(options.engine, options.provider, threads)


def read_shape(text: str) -> tuple[int, int]:
    """The batch size and number of tokens of a shape such as ``1x16``.

    Raises:
        ArgumentTypeError: the text is not two whole numbers of at least 1.
    """
    batch, _, tokens = text.partition("x")
    if not all(number.isascii() and number.isdigit() and number.strip("0") for number in (batch, tokens)):
        raise argparse.ArgumentTypeError(f"{text!r} is not BATCHxTOKENS, such as 1x16")
    shape = read_count(batch), read_count(tokens)
    if shape[0] * shape[1] > MOST_SHAPE_TOKENS:
        raise argparse.ArgumentTypeError(f"{text} is out of range: {MOST_SHAPE_TOKENS} tokens together are the most")
    return shape


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
    digits = text.lstrip("0") if text.isascii() and text.isdigit() else ""
    if not digits:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    if len(digits) > len(str(MOST)) or int(digits) > MOST:
        raise argparse.ArgumentTypeError(f"{shorten(text)} is out of range: {MOST} is the most")
    return int(digits)


def read_threads(text: str) -> int:
    """A number of threads: from 1 to `MOST_THREADS`.

    Raises:
        ArgumentTypeError: the text is none.
    """
    number = read_count(text)
    if number > MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{text} is out of range: {MOST_THREADS} threads are the most")
    return number


def shorten(text: str, most: int = 40) -> str:
    """The first characters of a text, for a message."""
    return text if len(text) <= most else f"{text[:most]}..."
