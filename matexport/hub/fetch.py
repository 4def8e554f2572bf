"""The files of a family from a model hub: which bytes are wanted, had and checked before anybody reads them.

No file is fetched that the manifest does not list, nor one whose size, or sha256 where the hub knows it, is another
than it says. What lies in a cache and is not what it should be is fetched anew, once.
"""

from __future__ import annotations

import hashlib
import mmap
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from matexport.errors import FamilyError, HubError, ProblemKind
from matexport.family.guard.operators import MAX_GRAPH_BYTES
from matexport.family.integrity import Contents
from matexport.family.manifest import MANIFEST, MAX_MANIFEST_BYTES, TOWERS, Family, load_family
from matexport.family.modality import MAX_SIDE_FILE_BYTES
from matexport.family.weights_file import Buffer
from matexport.hub.listing import RemoteFile
from matexport.hub.remote import Arrived, Remote, fetch_file, forget_file
from matexport.io.files import explain_write_errors, hash_file
from matexport.spec.record import Record

#: Bytes that are copied at a time.
COPIED_BYTES = 4 << 20


class Wanted(Record, frozen=True):
    """The first bytes of a file.

    Attributes:
        sha256: of these bytes; None where nobody said.
    """

    file: RemoteFile
    count: int
    sha256: str | None


def fetch_manifest(remote: Remote) -> Family:
    """The family that a repository holds, of which only the manifest is here.

    Raises:
        HubError: it holds none, or two.
        FamilyError: its manifest is none.
    """
    if MANIFEST not in remote.files and TOWERS in remote.files:
        raise HubError(f"{remote.repo} holds two families of one model, which `pull` does not fetch: clone it with git")
    with tempfile.TemporaryDirectory(prefix="matexport-") as folder:
        copy_file(remote, want_manifest(remote), Path(folder) / MANIFEST, lambda _count: None)
        try:
            return replace(load_family(folder), path=Path(remote.repo))
        except FamilyError as error:  # which names a folder that is gone
            said = str(error).replace(f"{folder}/", f"{remote.repo}: ").replace(folder, remote.repo)
            raise FamilyError(said, kind=ProblemKind.MANIFEST, file=MANIFEST) from None


def want_manifest(remote: Remote) -> Wanted:
    file = remote.find(MANIFEST)
    if file.bytes > MAX_MANIFEST_BYTES:
        raise HubError(f"{MANIFEST} of {remote.repo} has {file.bytes} bytes; at most {MAX_MANIFEST_BYTES} are read")
    return Wanted(file, file.bytes, file.sha256)


def want_file(remote: Remote, family: Family, name: str, profiles: Sequence[str] | None) -> Wanted:
    """A listed file, or as much of it as some profiles need; all of it where none are named.

    Raises:
        HubError: the hub's file is another one than the manifest lists, or too large.
    """
    file, facts = remote.find(name), family.facts.files[name]
    if file.bytes != facts.bytes or file.sha256 not in (None, facts.sha256):
        there = f"{file.bytes} bytes" if file.bytes != facts.bytes else "another sha256"
        raise HubError(f"{name} of {remote.repo} has {there}; its {MANIFEST} lists {facts.bytes} with {facts.sha256}")
    limit = MAX_GRAPH_BYTES if name.endswith(".onnx") else MAX_SIDE_FILE_BYTES
    if name not in family.weights_files and not name.endswith(".safetensors") and file.bytes > limit:
        raise HubError(f"{name} of {remote.repo} has {file.bytes} bytes; at most {limit} are read")
    users = [facts for facts in map(family.profile_facts, profiles or ()) if facts.weights == name]
    deepest = max(users, key=lambda facts: facts.weights_prefix_bytes, default=None)
    if deepest and deepest.weights_prefix_bytes < file.bytes:
        return Wanted(file, deepest.weights_prefix_bytes, deepest.weights_prefix_sha256)
    return Wanted(file, file.bytes, facts.sha256)


def copy_file(remote: Remote, wanted: Wanted, target: Path, arrived: Arrived) -> None:
    """Fetch a whole file and write it anew, so that no name in the cache leads to it.

    Raises:
        HubError: it is not the file that it should be.
        DestinationError: it cannot be written.
    """

    def take(source: Path, known: _Known) -> bool:
        left = wanted.count
        with source.open("rb") as file, explain_write_errors(target), target.open("wb") as copy:
            while part := file.read(min(left, COPIED_BYTES)):
                copy.write(part)
                known.update(part)
                left -= len(part)
        return not left and known.is_met

    _fetch_sound(remote, wanted, take, arrived)


def open_fetched(remote: Remote, family: Family, wanted: Mapping[str, Wanted], arrived: Arrived) -> Contents:
    """The files of one profile, as far as they are needed and their digests are known."""
    contents: dict[str, Buffer] = {}

    def take(one: Wanted, source: Path, known: _Known) -> bool:
        name = one.file.name
        with source.open("rb") as file:
            if name in family.weights_files and one.count:
                contents[name] = mmap.mmap(file.fileno(), one.count, access=mmap.ACCESS_READ)
            else:
                contents[name] = file.read(one.count)
        if one.sha256 is None and source.stat().st_size == one.file.bytes:  # all of it is here, whose digest is known
            return hash_file(source) == family.facts.files[name].sha256
        known.update(contents[name])
        return known.is_met

    for one in wanted.values():
        _fetch_sound(remote, one, partial(take, one), arrived)
    return Contents(family, contents)


class _Known:
    """What is known of the bytes that are wanted: their sha256, or of a whole file what git calls it, or nothing.

    Args:
        cached: they may lie in a cache. What comes from the hub is taken under whatever name it has there: not every
            hub calls files as git does.
    """

    def __init__(self, wanted: Wanted, *, cached: bool) -> None:
        blob = hashlib.sha1(b"blob %d\0" % wanted.count, usedforsecurity=False)
        whole, named = wanted.count == wanted.file.bytes, len(wanted.file.content) == 2 * blob.digest_size
        by_git = wanted.sha256 is None and cached and whole and named
        self._digest = blob if by_git else hashlib.sha256()
        self._expected = wanted.file.content if by_git else wanted.sha256

    def update(self, part: Buffer) -> None:
        """Take more of the bytes."""
        if self._expected is not None:
            self._digest.update(part)

    @property
    def is_met(self) -> bool:
        """Whether all that came is what was wanted, as far as that is known."""
        return self._expected in (None, self._digest.hexdigest())


def _fetch_sound(remote: Remote, wanted: Wanted, take: Callable[[Path, _Known], bool], arrived: Arrived) -> None:
    """Have a file taken that is the one that it should be; where the cache holds another, it is fetched anew, once.

    Args:
        take: reads the bytes from a file, and says whether they are those that are known.

    Raises:
        HubError: they are not, again.
    """
    source = fetch_file(remote, wanted.file, wanted.count, arrived)
    if take(source, _Known(wanted, cached=True)):
        return
    source = fetch_file(remote, wanted.file, wanted.count, lambda _count: None, anew=True)
    if not take(source, _Known(wanted, cached=False)):
        forget_file(source)
        raise HubError(
            f"{wanted.file.name} of {remote.repo} came twice with another sha256 than it should have; nothing was "
            "written: do it again"
        )
