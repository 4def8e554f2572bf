"""Check for the packages that an optional extra installs, before any work is done."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

from matexport.errors import MissingExtraError


def require_extra(extra: str, doing: str, packages: Mapping[str, str]) -> None:
    """Refuse to go on without the packages of an extra.

    Args:
        extra: name of the extra in pyproject.toml.
        doing: what needs the extra, such as ``exporting``; it begins the message.
        packages: module -> the name of its package for pip.

    Raises:
        MissingExtraError: a package is not installed; the message has the pip command.
    """
    missing = [package for module, package in packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingExtraError(
            f"{doing} needs {', '.join(missing)}, which is not installed here; "
            f"install the [{extra}] extra, in matexport's own directory: pip install -c constraints.txt -e '.[{extra}]'"
        )
