"""The exceptions that a caller may catch.

Every error that matexport raises on purpose is a `MatexportError`. Its message has one or a few sentences, says what
was asked, what is true and what to do, and can be shown to a user as it is. The command line turns `ParityError` and
a family that fails verification into exit code 1, and every other one of these errors into exit code 2.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

#: How many characters of another library's message are passed on.
_QUOTED = 400
#: Escape sequences that set a terminal's colours.
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def one_line(error: BaseException) -> str:
    """The message of another library's error on one line, cut to 400 characters; its type's name where it is empty."""
    said = " ".join(_ESCAPES.sub("", str(error)).split())
    return (said if len(said) <= _QUOTED else f"{said[:_QUOTED]}...") or type(error).__name__


class MatexportError(Exception):
    """Base of everything that matexport raises on purpose."""


class RequestError(MatexportError):
    """What was asked cannot be done: a profile, a point, a probe file or an argument is wrong."""


class ParentError(MatexportError):
    """The parent cannot be read, is not what the job pins, or is of a kind that is not supported."""


class MissingExtraError(MatexportError):
    """A command needs packages that an optional extra installs."""


class DestinationError(MatexportError):
    """The output directory cannot be written, is in use, or holds something else."""


class HubError(MatexportError):
    """A model hub cannot be reached, does not have or allow what was asked, or gave something else."""


class ProblemKind(StrEnum):
    """The kind of a problem with a family, by which JUnit, pytest and ``--json`` group problems.

    ``missing``: a listed file is not there. ``changed``: a file has another size or digest than the listed one.
    ``extra``: there is a file that is not listed. ``refused``: a file must not be given to a runtime: a link, a graph
    that reads other files, weights that are not finite. ``manifest``: ``family.json`` cannot be read, or contradicts
    itself. ``proof``: the probes, the parent's vectors and token ids, or the ranges cannot be read, or do not fit each
    other. ``token-ids``, ``pixels``: the probes have other token ids or pixels here than in the parent. ``unusable``:
    the files are sound, but the libraries on this machine cannot run them, or give something else than the manifest
    says.
    """

    MISSING = "missing"
    CHANGED = "changed"
    EXTRA = "extra"
    REFUSED = "refused"
    MANIFEST = "manifest"
    PROOF = "proof"
    TOKEN_IDS = "token-ids"
    PIXELS = "pixels"
    UNUSABLE = "unusable"


#: Kinds whose name begins the line that is shown. For the others the text alone says what is wrong.
_NAMED = frozenset({ProblemKind.MISSING, ProblemKind.CHANGED, ProblemKind.EXTRA, ProblemKind.REFUSED})


class Problem(NamedTuple):
    """One thing that is wrong with a family; `str` gives the line that is shown.

    A NamedTuple, since a dataclass would add 1 ms to a cold start.

    Attributes:
        file: the file that it is about, by its name in the family's folder; of a file of the baseline, with the
            baseline's folder before it. None where it is not about one file.
        text: what is wrong, without the kind.
        baseline: the folder of the baseline, the family that another one is compared with, if the problem is in it.
    """

    kind: ProblemKind
    file: str | None
    text: str
    baseline: str | None = None

    def __str__(self) -> str:
        line = f"{self.kind}: {self.text}" if self.kind in _NAMED else self.text
        return f"baseline {self.baseline}: {line}" if self.baseline else line


class FamilyError(MatexportError):
    """A family or pack on disk is not what its manifest says, or not what this version can read.

    Attributes:
        problems: all problems that were found, in a stable order. If the error was made without any, its message is
            the only one.
    """

    def __init__(
        self,
        message: str,
        problems: Iterable[Problem] = (),
        *,
        kind: ProblemKind = ProblemKind.UNUSABLE,
        file: str | None = None,
    ) -> None:
        super().__init__(message)
        self.problems = tuple(problems) or (Problem(kind, file, message),)


#: Characters of a reason, which may quote a name of any length.
MAX_REASON = 400


def refuse_file(name: str, why: str) -> FamilyError:
    """The error to raise for a file of a family that must not be given to a runtime.

    Args:
        name: the file, as it is called in the family's folder.
        why: what is wrong with it.
    """
    shown = why if len(why) <= MAX_REASON else f"{why[: MAX_REASON - 3]}..."
    # Names in a file may be anything.
    shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in shown)
    return FamilyError(f"{name}: {shown}", kind=ProblemKind.REFUSED, file=name)


class ParityError(MatexportError):
    """A sub-model does not give the parent's vectors.

    Attributes:
        stage: the first stage of the export whose output differs from the parent (``read-out``, ``trace``, ``cut``,
            ``narrow``, ``encode``, ``quantize``, ``tokenizer``), or ``pack``, ``push``, ``pull``.
    """

    def __init__(self, message: str, stage: str) -> None:
        super().__init__(message)
        self.stage = stage
