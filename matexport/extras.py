"""Packages that an optional extra installs: said with the pip line where they are missing, before any work."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

from matexport.errors import MissingExtraError


def require_extra(extra: str, doing: str, packages: Mapping[str, str]) -> None:
    """Refuse to go on without the packages of an extra.

    Args:
        extra: its name in pyproject.toml.
        doing: what needs it, such as ``exporting``.
        packages: module -> what pip calls it.

    Raises:
        MissingExtraError: some are not installed.
    """
    missing = [package for module, package in packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingExtraError(
            f"{doing} needs {', '.join(missing)}, which is not installed here; "
            f"install the [{extra}] extra, in matexport's own directory: pip install -c constraints.txt -e '.[{extra}]'"
        )
