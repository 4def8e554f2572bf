"""The exceptions a caller may catch.

Every error that matexport raises on purpose is a `MatexportError`; its message is one sentence or a few, says
what was asked, what is true and what to do, and is fit to be shown to a user as it is. The command line turns
`ParityError` and a family that fails verification into exit code 1, everything else into exit code 2.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

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
    """The parent cannot be read, is not what the job pins, or is of a kind that is not supported."""


class MissingExtraError(MatexportError):
    """A command needs packages that an optional extra installs."""


class DestinationError(MatexportError):
    """The output directory cannot be written, is in use, or holds something else."""


class ProblemKind(StrEnum):
    """What sort of thing is wrong with a family: what JUnit, pytest and ``--json`` group by.

    ``missing``: a listed file is not there. ``changed``: it has another size or digest. ``extra``: a file lies there
    that is not listed. ``refused``: it is not fit to be given to a runtime: a link, a graph that reads elsewhere,
    weights that are not finite. ``manifest``: ``family.json`` cannot be read, or says what cannot be. ``proof``: the
    probes, the parent's vectors and token ids, or the ranges cannot be read, or do not fit each other.
    ``token-ids``: the probes have other token ids here than in the parent. ``unusable``: the files are sound, and the
    libraries on this machine cannot run them, or give something else than the manifest says.
    """

    MISSING = "missing"
    CHANGED = "changed"
    EXTRA = "extra"
    REFUSED = "refused"
    MANIFEST = "manifest"
    PROOF = "proof"
    TOKEN_IDS = "token-ids"
    UNUSABLE = "unusable"


#: Kinds whose name begins the line. Of the others the sentence says by itself what is wrong.
_NAMED = frozenset({ProblemKind.MISSING, ProblemKind.CHANGED, ProblemKind.EXTRA, ProblemKind.REFUSED})


class Problem(NamedTuple):
    """One thing that is wrong with a family; as text, the line that is shown. A dataclass would cost a cold start 1 ms.

    Attributes:
        file: what it is about, by its name in the family's folder; one of the baseline's with that folder. None where
            it is not one file.
        text: what is wrong, without the kind.
        baseline: the folder of the family that another is compared with, where it is that one's.
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
        problems: all that was found wrong, in a stable order. Where a message is all that was given, that is the one
            problem.
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


def refuse_file(name: str, why: str) -> FamilyError:
    """What to raise of a family's file that no runtime is to be given."""
    return FamilyError(f"{name}: {why}", kind=ProblemKind.REFUSED, file=name)


class ParityError(MatexportError):
    """A sub-model does not give the parent's vectors.

    Attributes:
        stage: the first stage of the export whose output differs from the parent (``read-out``, ``trace``, ``cut``,
            ``rewrite``, ``encode``, ``quantize``, ``tokenizer``), or ``pack``.
    """

    def __init__(self, message: str, stage: str) -> None:
        super().__init__(message)
        self.stage = stage
