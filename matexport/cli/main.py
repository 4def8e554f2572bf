"""The command line: parse it, run one command, and turn an error into one line and an exit code.

Exit codes: 0 done; 1 a gate said no (parity off its floor, a family that is not what was exported, a budget that
nothing fits); 2 what was asked cannot be done, whatever the reason; 130 interrupted; 141 nobody reads the output any
more. Only `cli` prints or chooses an exit code. torch is imported only by commands that look at a parent. Each command
is a module of `commands`: options, call and printing.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from matexport.cli.options import shorten
from matexport.cli.output import INTERRUPTED, REFUSED, UNREAD, UNUSABLE, complain
from matexport.cli.streams import open_streams, settle_streams
from matexport.errors import MatexportError, ParityError
from matexport.io.files import describe_os_error
from matexport.io.terminal import show_plain
from matexport.spec.record import suggest
from matexport.version import __version__

#: Metavars of arguments that are completed as files although they take text, since a hub id or ``-`` is possible, too.
FILE_METAVARS = ("PARENT", "SOURCE", "FILE", "FILE.toml", "DEVICE")
#: What a write to a stream without a name fails with.
_UNWRITTEN = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}
#: Names of the commands, in the order of ``--help``.
COMMANDS = (
    "init", "export", "verify", "show", "bench", "evaluate", "pick", "embed", "pack", "push", "pull", "serve", "report",
)  # fmt: skip
#: Those that hand a family to others, in a folder of their own.
SHARING = ("pack", "push", "pull", "serve")


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    if not open_streams():
        return complain("standard output is closed, so there is nowhere to print to", UNUSABLE)
    options = argparse.Namespace()
    try:
        try:
            options = parse_arguments(arguments)
            run: Callable[[argparse.Namespace], int] = options.run
            return run(options)
        finally:
            sys.stdout.flush()
    except ParityError as error:
        return complain(error, REFUSED)
    except MatexportError as error:
        return complain(error, UNUSABLE)
    except KeyboardInterrupt:
        return complain(_describe_interruption(options), INTERRUPTED)
    except BrokenPipeError:
        return UNREAD
    except OSError as error:
        return complain(_describe_os_error(error), UNUSABLE)
    except MemoryError:
        return complain("there is not enough memory", UNUSABLE)
    except Exception:
        import traceback  # not while a command that ends well starts

        with contextlib.suppress(OSError, ValueError):
            traceback.print_exc()
        return complain("this is a fault of matexport; please report it with the lines above", UNUSABLE)
    finally:
        settle_streams()


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Parse a command line; None is that of this process.

    Raises:
        SystemExit: the command line is wrong (one line on standard error, exit code 2), or only asks for help.
    """
    words = sys.argv[1:] if arguments is None else arguments
    if not words:
        parser = make_parser()
        parser.print_help(sys.stderr)
        parser.exit(UNUSABLE)
    # Making the parsers of all commands would be a third of a cold start; they are for help and unknown commands.
    parser = make_parser(words[:1] if words and words[0] in COMMANDS else COMMANDS)
    options, rest = parser.parse_known_args(arguments)
    # argparse ends a list of positionals at the first option, so `embed FAMILY --profile P TEXT` leaves TEXT in `rest`.
    options_end = rest.index("--") if "--" in rest else len(rest)
    if rest and (not hasattr(options, "texts") or any(text.startswith("-") for text in rest[:options_end])):
        command: argparse.ArgumentParser = options.parser
        known = [option for action in command._actions for option in action.option_strings]
        wrong = [text for text in rest[:options_end] if text.startswith("-")] or rest  # not texts after an option
        if (name := wrong[0].partition("=")[0]) in known:
            command.error(f"{name} was given before the command: it has to stand behind it")
        command.error(f"unrecognized arguments: {' '.join(wrong)}{suggest(wrong[0].partition('=')[0], known)}")
    if rest:
        options.texts += rest[:options_end] + rest[options_end + 1 :]
    return options


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors take one line, with a suggestion; it shows its usage for ``--help`` only."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:  # argparse checks choices here
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            known = [str(choice) for choice in action.choices or ()]
            raise argparse.ArgumentError(action, f"{error.message}{suggest(str(value), known)}") from None

    def _print_message(self, message: str, file: Any = None) -> None:
        """Unlike argparse's own, this does not keep to itself that help could not be printed."""
        if message:
            (file or sys.stderr).write(message)

    def error(self, message: str) -> NoReturn:
        """Print a message on one line and exit with code 2."""
        self.exit(UNUSABLE, show_plain(f"{self.prog}: {message}; see {self.prog} --help") + "\n")


class PrintCompletion(argparse.Action):
    """Print a shell's completion script, made by shtab from the parser itself, and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *arguments: Any, **_options: Any) -> NoReturn:
        try:
            import shtab
        except ImportError:
            parser.error("completion needs shtab, which is not installed here: pip install shtab")
        _, shell, *_ = arguments
        for command in (parser, *_list_parsers(parser)):
            for action in command._actions:
                if action.type is Path or action.metavar in FILE_METAVARS:
                    action.complete = shtab.FILE  # type: ignore[attr-defined]
        print(shtab.complete(parser, shell=shell))
        parser.exit()


def _list_parsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """The parsers of the commands."""
    return [
        command
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for command in action.choices.values()
    ]


class PrintVersion(argparse.Action):
    """Print the version, and whether the native engine was built, and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        from matexport.runtime.engines.native.library import describe_library

        print(f"matexport {__version__} ({describe_library()})")
        parser.exit()


def make_parser(names: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """A parser with some of the commands; each command's parser sets ``run`` to its function."""
    parser = Parser(
        prog="matexport",
        description="Turn a 2D-Matryoshka encoder into a family of ONNX sub-models, one per (layers, dim) profile, "
        "each proven equal to its parent at that point.",
        epilog="exit codes: 0 done; 1 a gate said no (parity, changed files, a budget); 2 what was asked cannot be "
        "done; 130 interrupted; 141 nobody reads the output any more",
    )
    parser.add_argument("-V", "--version", action=PrintVersion, nargs=0, help="print the version, and what it has here")
    parser.add_argument(
        "--print-completion",
        choices=["bash", "zsh", "tcsh"],
        action=PrintCompletion,
        help="print a script that completes commands, options and files in that shell, such as "
        'eval "$(matexport --print-completion bash)"',
    )
    parsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in names:
        folder = "share." if name in SHARING else ""
        importlib.import_module(f"matexport.cli.commands.{folder}{name}").add_parser(parsers)
    return parser


def _describe_interruption(options: argparse.Namespace) -> str:
    if getattr(options, "on", None) == "ray":
        return "interrupted; the same command goes on where it was"
    return "interrupted; no file was changed"


def _describe_os_error(error: OSError) -> str:
    """An error of the system that no command expected, and what it is about."""
    reason = describe_os_error(error)
    if error.filename is not None:
        return f"{shorten(os.fsdecode(error.filename), 200)}: {reason}"
    if not settle_streams() or error.errno in _UNWRITTEN:  # files that are written have names in their errors
        return f"cannot write to standard output: {reason}"
    try:
        os.getcwd()  # noqa: PTH109  Path.cwd is the same, and says less of what is asked here
    except OSError:
        return "the working directory is gone: change to another one"
    return reason
