"""Whether a folder may take a family."""

from __future__ import annotations

from pathlib import Path

from matexport.errors import DestinationError, FamilyError
from matexport.manifest import list_foreign_files, load_family


def refuse_occupied(out: Path, *, overwrite: bool) -> None:
    """Refuse a destination that exists, unless it is ours to replace.

    Raises:
        DestinationError: saying what is there and what to do.
    """
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        kind = "a symbolic link" if out.is_symlink() else "not a directory"
        raise DestinationError(f"{out} exists and is {kind}; choose another destination")
    if not any(out.iterdir()):
        return
    try:
        foreign = list_foreign_files(load_family(out))
    except FamilyError:
        raise DestinationError(f"{out} exists, and it is no family of matexport: choose another destination") from None
    if foreign:
        raise DestinationError(f"{out} holds files that are not the family's ({foreign[0]}); move them first")
    if not overwrite:
        raise DestinationError(f"{out} exists and holds another family; pass --overwrite to replace it")
