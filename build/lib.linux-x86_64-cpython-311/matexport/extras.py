"""Check for the packages that an optional extra installs, before any work is done, and say how to install it."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Mapping
from pathlib import Path

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
            f"install the [{extra}] extra: {spell_install(extra)}"
        )


def spell_install(extra: str) -> str:
    """The command that installs an extra as matexport itself was: from its checkout with its pins, or as a package."""
    root = Path(__file__).resolve().parent.parent
    pins = root / "constraints.txt"
    if (root / "pyproject.toml").is_file() and pins.is_file():
        return shlex.join(["pip", "install", "-c", str(pins), "-e", f"{root}[{extra}]"])
    return f"pip install 'matexport[{extra}]'"
