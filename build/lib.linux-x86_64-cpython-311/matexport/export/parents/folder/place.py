"""Where a parent's files lie that need not be fetched: in a directory, or inside an installed package.

A source is what a user typed or a stranger wrote, so it may be anything: too long, of no user, with a NUL in it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from matexport.errors import ParentError, RequestError
from matexport.io.files import describe_os_error
from matexport.spec.job import ParentSource

#: Longer sources are cut to this many characters in messages.
_SHOWN = 200


def find_local(source: str, base: Path) -> Path:
    """Where a source lies if it is a directory.

    Raises:
        ParentError: no system could have a directory of that name, or there is no such user.
    """
    try:
        local = base / Path(source).expanduser()
        local.lstat()
    except FileNotFoundError:
        return local
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: a NUL in it; RuntimeError: no such user
        reason = describe_os_error(error) if isinstance(error, OSError) else str(error)
        shown = source if len(source) <= _SHOWN else f"{source[:_SHOWN]}..."
        raise ParentError(f"the parent {shown!r} is not a directory: {reason}") from None
    return local


def refuse_revision(parent: ParentSource, kind: str) -> None:
    """Refuse a revision of what has none; `kind` is what the source is.

    Raises:
        RequestError: the parent's source has a revision.
    """
    if parent.revision is not None:
        raise RequestError(
            f"revision = {parent.revision!r} was asked; {parent.source} is {kind}, and only a hub id has revisions: "
            "leave it out"
        )


def locate_in_package(rest: str) -> Path:
    """The directory ``NAME/path`` inside an installed package, which is not imported.

    Raises:
        RequestError: `rest` names no package, or leads out of it.
        ParentError: there is no such package or directory.
    """
    name, _, inner = rest.partition("/")
    module = name.replace("-", "_")
    if not module.isidentifier():
        raise RequestError(f"package:{rest} names no package; the form is package:NAME/path")
    try:
        spec = importlib.util.find_spec(module)  # finds a top-level package without importing it
    except ValueError:  # a module that is loaded and was never found, such as __main__
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ParentError(f"the package {name!r} is not installed; install it with: pip install {name}")
    root = Path(next(iter(spec.submodule_search_locations))).resolve()
    try:
        directory = (root / inner).resolve()
        directory.lstat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        reason = describe_os_error(error) if isinstance(error, OSError) else str(error)
        raise ParentError(f"the package {name!r} has no directory {inner[:_SHOWN]!r}: {reason}") from None
    if not directory.is_relative_to(root):
        raise RequestError(f"package:{rest} leads out of the package")
    if not directory.is_dir():
        raise ParentError(f"the package {name!r} is installed, but has no directory {inner!r}")
    return directory
