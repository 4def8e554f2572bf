"""What hubs, git and desktops add to a folder: named, never read, and no reason to refuse a family.

A family that was cloned, pulled, licensed or looked at in a file manager is still the one that was exported. What is
known here is told by its name and by what it is, a regular file or a folder, and nothing looks into it: a link or a
pipe of such a name is like any other file that is not listed. `verify --strict` refuses them all.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from pathlib import Path

from matexport.errors import Problem, RequestError
from matexport.io.files import open_file

#: Of a licence.
MAX_LICENCE_BYTES = 4 << 20

#: git, huggingface_hub (downloads into a folder, now and formerly), Jupyter.
FOLDERS = frozenset({".git", ".cache", ".huggingface", ".ipynb_checkpoints"})

#: git (a work tree's ``.git`` is a file), hubs, and the desktops of macOS, Windows and KDE.
FILES = frozenset({
    ".git", ".gitattributes", ".gitignore", ".gitkeep", ".DS_Store", "Thumbs.db", "desktop.ini", ".directory",
})  # fmt: skip

#: What macOS puts beside a file where the file system has no room for its attributes.
_APPLE_DOUBLE = re.compile(r"\._.+", re.DOTALL)

#: LICENSE, LICENSE-MIT, LICENSE.Apache-2.0, COPYING.LESSER, NOTICE.md; and not LICENSE.py or LICENSE-x.onnx.
_LICENCE = re.compile(
    r"(LICEN[CS]ES?|Licen[cs]e|licen[cs]e|NOTICES?|Notice|notice|COPYING|Copying|copying)"
    r"([-_][A-Za-z0-9_+-]+(\.[0-9]+)*|\.[A-Z][A-Za-z0-9_+-]*(\.[0-9]+)*)*(\.(txt|md|rst|html|pdf))?"
)


def is_licence(name: str) -> bool:
    """Whether a file is called like a licence, a notice or a copyright."""
    return bool(_LICENCE.fullmatch(name))


def is_addition(path: Path) -> bool:
    """Whether a path is what hubs, git, desktops and lawyers put beside a family's files."""
    mode, name = path.lstat().st_mode, path.name
    if stat.S_ISDIR(mode):
        return name in FOLDERS
    return stat.S_ISREG(mode) and (name in FILES or is_licence(name) or bool(_APPLE_DOUBLE.fullmatch(name)))


def copy_licences(source: Path, target: Path) -> None:
    """Copy the licences and notices that lie in a folder to another, over what has such a name there.

    What is made of a family stands under them, too.

    Raises:
        RequestError: one cannot be read, or is too large.
    """
    for path in sorted(source.iterdir()):
        if is_licence(path.name) and is_addition(path):
            (target / path.name).write_bytes(read_licence(path))


def read_licence(path: Path) -> bytes:
    """
    Raises:
        RequestError: it cannot be read, or is too large.
    """
    opened = open_file(path, MAX_LICENCE_BYTES)
    if isinstance(opened, Problem):
        raise RequestError(f"{path.parent}: {opened.text}; it goes where its family goes: mend it, or move it away")
    with opened as file:
        return file.read()


def keep_additions(old: Path, new: Path) -> None:
    """Take what was added to a folder along to the one that is about to take its place, where that has no such name.

    The files become hard links, so that nothing is read, and copies where the file system has no links.

    Raises:
        OSError: something cannot be linked or copied.
    """
    if old.is_symlink() or not old.is_dir():
        return
    for path in sorted(old.iterdir()):
        if is_addition(path) and not os.path.lexists(new / path.name):
            _link_all(path, new / path.name)


def _link_all(source: Path, target: Path) -> None:
    """Give a file, or a folder and all that is in it, a second name; links stay what they are."""
    pending, made = [(source, target)], []
    while pending:
        source, target = pending.pop()
        mode = source.lstat().st_mode
        if stat.S_ISDIR(mode):
            target.mkdir()
            made.append((source, target))
            pending += [(child, target / child.name) for child in source.iterdir()]
        elif stat.S_ISLNK(mode):
            target.symlink_to(source.readlink())
        else:
            _link(source, target, mode)
    for source, target in reversed(made):  # which may be read-only
        shutil.copystat(source, target)


def _link(source: Path, target: Path, mode: int) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        if not stat.S_ISREG(mode):
            raise
        shutil.copy2(source, target)
