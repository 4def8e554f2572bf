"""Environments from locks, with what lies on this machine already: files are linked instead of installed again.

torch alone has 700 MB, and four environments of consumers hold it. pip puts a new file where it replaces one, so that
what is linked is never changed from another environment.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from packaging.utils import canonicalize_name


def read_lock(lock: Path) -> Iterator[tuple[str, str]]:
    """(name, version) of each line of a lock."""
    for line in lock.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            yield canonicalize_name(name), version


def find_complaints(lock: Path, said: str) -> list[str]:
    """What ``pip check`` complains of, but for packages that a lock leaves out: ``# without NAME: why``."""
    lines = lock.read_text(encoding="utf-8").splitlines()
    without = {line.removeprefix("# without ").partition(":")[0] for line in lines if line.startswith("# without ")}
    complaints = [line for line in said.splitlines() if " requires " in line or " has requirement " in line]
    return [
        line for line in complaints if not any(f" requires {name}, which is not installed" in line for name in without)
    ]


def link_packages(wanted: Mapping[str, str], site: Path, sources: Sequence[Path]) -> list[str]:
    """Link the files of packages that are wanted and lie in a source at the wanted version; returns their names.

    A package whose files cannot be linked (the source is on another disk) is left to pip, as one that is nowhere.
    """
    known, linked = [list_installed(source) for source in sources], []
    for name in sorted(wanted.keys() - list_installed(site).keys()):
        found = next((at[name] for at in known if name in at and public(at[name].version) == wanted[name]), None)
        if found is not None and found.files and link_files(found, site):
            linked.append(name)
    return linked


def link_files(found: importlib.metadata.Distribution, site: Path) -> bool:
    """Link a package's modules and metadata; not its scripts, which name the interpreter that they are for."""
    for file in found.files or ():
        if ".." in file.parts or "__pycache__" in file.parts:
            continue
        target = site / file
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(found.locate_file(file), target)
        except FileExistsError:
            continue  # a file of two packages
        except OSError:
            return False
    return True


def list_installed(site: Path) -> dict[str, importlib.metadata.Distribution]:
    """Name -> package, of those in a folder."""
    found = importlib.metadata.distributions(path=[str(site)])
    return {canonicalize_name(package.metadata["Name"]): package for package in found}


def public(version: str) -> str:
    """A version without what a local build adds, such as ``+cpu``."""
    return version.partition("+")[0]
