"""``measurements/<host>.json``: what was measured on one host, in sections (parity, bench, ...). Facts are elsewhere.

Sections are used only if they were measured on exactly these files: the measurements hold the digest of the manifest,
which holds the digests of all other files. For one host, the instruction sets, which decide what kernels run, must be
the same, too.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from matexport.errors import FamilyError, Problem, ProblemKind
from matexport.family.guard.additions import keep_additions
from matexport.family.manifest import MANIFEST, MEASUREMENTS, Family, list_words, load_family
from matexport.io.files import hash_file, open_file, replace_file
from matexport.spec.measured import Host

#: Larger files are ignored: matexport writes none.
MAX_BYTES = 8 << 20


def find_measurements(family: Family, host: Host) -> Path:
    """Path of the measurements of one host, whether the file exists or not."""
    return family.path / MEASUREMENTS / f"{host.slug}.json"


def load_sections(family: Family, host: Host) -> dict[str, object]:
    """All sections of a host's file; empty if it cannot be read, or was measured on other files than the family's."""
    known = read_sections(find_measurements(family, host), family.digest)
    try:
        # A virtual machine may hide some instruction sets, and has the same file name then.
        if known and known["host"]["instruction_sets"] == list(host.instruction_sets):
            return known
    except (KeyError, TypeError):
        pass
    return {}


def write_sections(
    family: Family, host: Host, sections: Mapping[str, object] | Callable[[], Mapping[str, object]]
) -> Path:
    """Write sections into a host's file in place of those of the same name, and keep the others.

    Args:
        sections: the sections, or a function that returns them. The function is called while no other process can
            write, so that it may read what is there and add to it.

    Returns:
        the path of the file, which is written beside it and then renamed, so that it is never half there.

    Raises:
        FamilyError: another family lies there now than the one that was measured.
        OSError: the file cannot be written.
        FamilyError: ``measurements`` is a link.
    """
    refuse_linked(family)
    target = find_measurements(family, host)
    target.parent.mkdir(exist_ok=True)
    with _hold(target.parent):
        if hash_file(family.path / MANIFEST) != family.digest:
            raise FamilyError(f"{family.path} was replaced while it was measured: nothing was recorded; do it again")
        new = sections() if callable(sections) else sections
        known = load_sections(family, host)
        known |= {"family": family.digest, "host": msgspec.to_builtins(host), **new}
        with replace_file(target) as file:
            file.write(_format(known).encode("utf-8"))
    return target


def keep_unlisted(old: Path, new: Path, *, same_files: bool = False) -> None:
    """Copy what people wrote and what was measured from a family to the one that is about to take its place.

    What hubs, git and desktops added goes along unread, also from a folder that holds nothing else. Measurements do
    not count for other files than those that they were made on. Where the new family was measured on the same host, the
    old ones get another name.

    Args:
        same_files: the two differ in what their manifests say and in no file, so measurements count for both.

    Raises:
        OSError: a file cannot be read or written.
    """
    keep_additions(old, new)
    if not (old / MANIFEST).is_file():
        return
    for path in list_words(load_family(old)):
        shutil.copyfile(path, new / path.name)
    digest = hash_file(new / MANIFEST)
    for path in sorted((old / MEASUREMENTS).glob("*.json")):
        (new / MEASUREMENTS).mkdir(exist_ok=True)
        target = new / MEASUREMENTS / path.name
        if same_files and (known := read_sections(path, hash_file(old / MANIFEST))):
            target.write_text(_format(known | {"family": digest}), encoding="utf-8")
            continue
        if target.exists() and (known := read_sections(path, digest)):  # the same files, built again
            target.write_text(_format(known | read_sections(target, digest)), encoding="utf-8")
            continue
        if target.exists():
            target = target.with_suffix(f".{hash_file(old / MANIFEST)[:8]}.json")
        shutil.copyfile(path, target)
    if (new / MEASUREMENTS).is_dir():
        keep_additions(old / MEASUREMENTS, new / MEASUREMENTS)


def refuse_linked(family: Family) -> None:
    """Refuse to write measurements through a link, which may lead anywhere.

    Raises:
        FamilyError: ``measurements`` is a link or no folder.
    """
    folder = family.path / MEASUREMENTS
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        why = f"{folder} is a link or no folder; measurements are kept in a folder of the family's own: move it away"
        raise FamilyError(why, kind=ProblemKind.EXTRA, file=MEASUREMENTS)


def read_sections(path: Path, manifest_sha256: str) -> dict[str, Any]:
    """A file's sections; empty where it cannot be read, or is about other files than the family's."""
    opened = open_file(path, MAX_BYTES)
    if isinstance(opened, Problem):
        return {}
    try:
        with opened as file:
            known = _parse(file.read())
        if not isinstance(known, dict) or known["family"] != manifest_sha256:
            return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return known


def _parse(content: bytes) -> Any:
    try:
        return msgspec.json.decode(content)  # three times as fast as json, which can also read NaN
    except msgspec.DecodeError:
        return json.loads(content.decode("utf-8-sig"))  # an editor may have put a byte order mark before it


def _format(sections: Mapping[str, object]) -> str:
    return json.dumps(sections, indent=1, sort_keys=True, allow_nan=True) + "\n"


@contextmanager
def _hold(folder: Path) -> Iterator[None]:
    """Keep other matexport processes from writing in a folder meanwhile, where the system can lock a folder itself."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
