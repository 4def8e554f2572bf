"""What a repository of a hub has at one commit: the files in its folders that a family may have files in."""

from __future__ import annotations

import re
from itertools import islice
from typing import Any

from matexport.family.manifest import FOLDERS
from matexport.spec.record import Record

#: Files and folders that are listed of one folder of a repository.
MAX_ENTRIES = 10_000

#: What git calls a commit or a file, or a sha256.
COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")


class RemoteFile(Record, frozen=True):
    """One file of a repository.

    Attributes:
        content: names what it holds: its sha256, or git's name for it where the hub does not know the sha256.
        sha256: as the hub says, which it does of files in Git LFS.
    """

    name: str
    bytes: int
    content: str
    sha256: str | None = None


def list_family(repo: str, commit: str) -> tuple[dict[str, RemoteFile], frozenset[str]]:
    """The files of a repository's top folder and of those in which a family has files, and the folders at the top.

    Raises:
        ValueError: there are too many, or one makes no sense.
    """
    files, folders = list_folder(repo, commit)
    for folder in sorted(folders & set(FOLDERS)):
        files |= list_folder(repo, commit, folder)[0]
    return files, folders


def list_folder(repo: str, commit: str, folder: str | None = None) -> tuple[dict[str, RemoteFile], frozenset[str]]:
    """The files in a folder of a repository, by path, and the folders in it.

    Raises:
        ValueError: there are too many, or one makes no sense.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    entries = list(islice(HfApi().list_repo_tree(repo, folder, revision=commit), MAX_ENTRIES + 1))
    if len(entries) > MAX_ENTRIES:
        raise ValueError(f"more than {MAX_ENTRIES} files in one folder")
    files = {entry.path: _read_entry(entry) for entry in entries if isinstance(entry, RepoFile)}
    return files, frozenset(entry.path for entry in entries if not isinstance(entry, RepoFile))


def _read_entry(entry: Any) -> RemoteFile:
    sha256 = entry.lfs.sha256 if entry.lfs else None
    content = sha256 or entry.blob_id
    if not isinstance(content, str) or not COMMIT.fullmatch(content):
        raise ValueError(f"{content!r} is no name of what a file holds")
    if type(entry.size) is not int or entry.size < 0:
        raise ValueError(f"{entry.size!r} is no size")
    return RemoteFile(entry.path, entry.size, content, sha256)
