"""The exceptions a caller may catch.

Every error that matexport raises on purpose is a `MatexportError`; its message is one sentence or a few, says
what was asked, what is true and what to do, and is fit to be shown to a user as it is. The command line turns
`ParityError` and a family that fails verification into exit code 1, everything else into exit code 2.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

#: Characters of another library's message that are passed on.
_QUOTED = 400
#: What colours a terminal.
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def one_line(error: BaseException) -> str:
    """What an error of another library says, on one line; its kind where it says nothing."""
    said = " ".join(_ESCAPES.sub("", str(error)).split())
    return (said if len(said) <= _QUOTED else f"{said[:_QUOTED]}...") or type(error).__name__


class MatexportError(Exception):
    """Base of everything that matexport raises on purpose."""


class RequestError(MatexportError):
    """What was asked cannot be done: a profile, a point, a probe file or an argument is wrong."""


class ParentError(MatexportError):
    """The parent cannot be read, is not what the profile pins, or is of a kind that is not supported."""


class MissingExtraError(MatexportError):
    """A command needs packages that an optional extra installs."""


class DestinationError(MatexportError):
    """The output directory cannot be written, is in use, or holds something else."""


class FamilyError(MatexportError):
    """A family or pack on disk is not what its manifest says, or not what this version can read.

    Attributes:
        problems: one line for each thing that is wrong, each naming the file it is about.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems) or (message,)


class ParityError(MatexportError):
    """A sub-model does not give the parent's vectors.

    Attributes:
        stage: the first stage of the build whose output differs from the parent
            (``read-out``, ``trace``, ``rewrite``, ``cut``).
    """

    def __init__(self, message: str, stage: str) -> None:
        super().__init__(message)
        self.stage = stage
