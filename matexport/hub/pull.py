"""A family, or one profile of it, from a model hub: only what is needed, checked and proven before it appears.

The manifest comes first, and says what may follow: no file is fetched that it does not list, nor one whose size, or
sha256 where the hub knows it, is another than it says; but for the card, licences and measurements, which are data and
bounded. Of the weights, one profile takes its prefix, which no digest covers on its own: its file on the hub has the
digest that the manifest says, its header and tensors are checked as in every family, and the parent's vectors are the
proof. Nothing that could be code is fetched, and the folder is verified before it takes its name.
"""

from __future__ import annotations

import hashlib
import mmap
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from matexport.errors import DestinationError, FamilyError, HubError, ParityError, ProblemKind
from matexport.family.guard.additions import is_licence
from matexport.family.guard.operators import MAX_GRAPH_BYTES
from matexport.family.integrity import Contents, refuse_occupied
from matexport.family.manifest import (
    CARD,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    MEASUREMENTS,
    TOWERS,
    Family,
    load_family,
)
from matexport.family.measurements.sections import MAX_BYTES, keep_unlisted
from matexport.family.modality import MAX_SIDE_FILE_BYTES
from matexport.family.weights_file import Buffer
from matexport.hub.listing import RemoteFile, list_folder
from matexport.hub.remote import (
    Arrived,
    Remote,
    explain_hub_errors,
    fetch_file,
    find_cached,
    forget_file,
    open_remote,
    require_hub,
    use_hub,
)
from matexport.io.files import explain_write_errors, hash_file
from matexport.io.progress import Progress
from matexport.io.staging import lock_destination, stage_directory
from matexport.pack.write import list_pack_files, write_pack
from matexport.spec.record import Record
from matexport.verify.judge import verify_family

#: Of a card, and of a licence; and how many licences and measurements are taken.
MAX_WORDS_BYTES, MAX_WORDS = 4 << 20, 100
_MB = 1_000_000

#: Bytes that are copied at a time.
COPIED_BYTES = 4 << 20

_MEASURED = re.compile(rf"{MEASUREMENTS}/[A-Za-z0-9][A-Za-z0-9._-]{{0,127}}\.json")


class Wanted(Record, frozen=True):
    """The first bytes of a file.

    Attributes:
        sha256: of all of it; None where nobody said, or where it is not all.
    """

    file: RemoteFile
    count: int
    sha256: str | None


def pull_family(
    repo: str,
    out: Path | str,
    *,
    profile: str | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Family:
    """Fetch a family from a model hub into a folder, or one profile of it as a pack.

    Args:
        repo: such as ``someone/small-encoder``.
        out: the folder to write; it must not exist, unless `overwrite` is set and it is a family or pack.
        profile: name such as ``L02-D064-fp32``: its graph and its prefix of the weights alone are fetched.
        revision: a branch, a tag or a commit; the main branch by default.
        overwrite: replace what is in `out`, but for what people wrote, measured or added.
        progress: called with (stage, done, total).

    Returns:
        the family or pack.

    Raises:
        HubError: the hub cannot be reached or does not have it, or its files are not those that the manifest says.
        FamilyError: what lies there is no sound family, or has no such profile.
        DestinationError: `out` exists, or cannot be written.
        ParityError: what came does not give the parent's vectors on this host.
        MissingExtraError: huggingface_hub is not installed.
    """
    require_hub("pulling")
    out = Path(out)
    with use_hub(), lock_destination(out):
        refuse_occupied(out, overwrite=overwrite)
        remote = open_remote(repo, revision, f"pull {repo}")
        family = fetch_manifest(remote)
        names = family.facts.files if profile is None else list_pack_files(family, [profile])
        wanted = {name: _want(remote, family, name, profile) for name in names}
        words = _list_words(remote, family, measured=profile is None)
        _refuse_large(remote, out, wanted)
        report = _count_megabytes({**wanted, **words}, progress)
        with stage_directory(out) as stage:
            if profile is None:
                for name in (MANIFEST, *wanted):
                    (stage / name).parent.mkdir(exist_ok=True)
                    _copy(remote, wanted.get(name) or _want_manifest(remote), stage / name, report)
                verify_family(stage, progress=progress).require_passed("pull", "nothing was written")
            else:
                _write_pack(remote, _open_fetched(remote, family, wanted, report), profile, stage, progress)
            for name, word in words.items():
                (stage / name).parent.mkdir(exist_ok=True)
                _copy(remote, word, stage / name, report)
            keep_unlisted(out, stage)
    return load_family(out)


def fetch_manifest(remote: Remote) -> Family:
    """The family that a repository holds, of which only the manifest is here.

    Raises:
        HubError: it holds none, or two.
        FamilyError: its manifest is none.
    """
    if MANIFEST not in remote.files and TOWERS in remote.files:
        raise HubError(f"{remote.repo} holds two families of one model, which `pull` does not fetch: clone it with git")
    with tempfile.TemporaryDirectory(prefix="matexport-") as folder:
        _copy(remote, _want_manifest(remote), Path(folder) / MANIFEST, lambda _count: None)
        try:
            return replace(load_family(folder), path=Path(remote.repo))
        except FamilyError as error:  # which names a folder that is gone
            said = str(error).replace(f"{folder}/", f"{remote.repo}: ").replace(folder, remote.repo)
            raise FamilyError(said, kind=ProblemKind.MANIFEST, file=MANIFEST) from None


def _want_manifest(remote: Remote) -> Wanted:
    file = remote.find(MANIFEST)
    if file.bytes > MAX_MANIFEST_BYTES:
        raise HubError(f"{MANIFEST} of {remote.repo} has {file.bytes} bytes; at most {MAX_MANIFEST_BYTES} are read")
    return Wanted(file, file.bytes, file.sha256)


def _want(remote: Remote, family: Family, name: str, profile: str | None) -> Wanted:
    """A listed file, or as much of it as a profile needs.

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
    used = family.profile_facts(profile) if profile else None
    if used and used.weights == name and used.weights_prefix_bytes < file.bytes:
        return Wanted(file, used.weights_prefix_bytes, None)
    return Wanted(file, file.bytes, facts.sha256)


def _list_words(remote: Remote, family: Family, *, measured: bool) -> dict[str, Wanted]:
    """The card, licences and, where all is fetched, measurements; what is too large of these is left where it is.

    A card goes with a family, and says too much of a pack.
    """
    words = {name: file for name, file in remote.files.items() if is_licence(name) or (measured and name == CARD)}
    limits = dict.fromkeys(words, MAX_WORDS_BYTES)
    if measured and MEASUREMENTS in remote.folders:
        with explain_hub_errors(remote.repo, f"pull {remote.repo}"):
            files, _ = list_folder(remote.repo, remote.commit, MEASUREMENTS)
        named = {name: file for name, file in files.items() if _MEASURED.fullmatch(name)}
        words, limits = {**words, **named}, {**limits, **dict.fromkeys(named, MAX_BYTES)}
    fitting = [name for name in sorted(words) if words[name].bytes <= limits[name] and name not in family.facts.files]
    return {name: Wanted(words[name], words[name].bytes, words[name].sha256) for name in fitting[:MAX_WORDS]}


def _refuse_large(remote: Remote, out: Path, wanted: Mapping[str, Wanted]) -> None:
    """Refuse what the disk has no room for, before any of it is fetched."""
    total, free = sum(one.count for one in wanted.values()), shutil.disk_usage(out.absolute().parent).free
    if total > free:
        raise DestinationError(f"{remote.repo} takes {total} bytes, and {out.absolute().parent} has {free} free")


def _count_megabytes(wanted: Mapping[str, Wanted], progress: Progress | None) -> Arrived:
    """What is called with the bytes that arrived, and reports megabytes."""
    total, arrived = max(1, round(sum(one.count for one in wanted.values()) / _MB)), 0

    def report(count: int) -> None:
        nonlocal arrived
        arrived += count
        if progress:
            progress("fetch MB", min(total, round(arrived / _MB)), total)

    report(0)
    return report


def _copy(remote: Remote, wanted: Wanted, target: Path, arrived: Arrived) -> None:
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


def _open_fetched(remote: Remote, family: Family, wanted: Mapping[str, Wanted], arrived: Arrived) -> Contents:
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


def _write_pack(remote: Remote, contents: Contents, profile: str, stage: Path, progress: Progress | None) -> None:
    """Write and prove a pack; where it is no good, the prefix of its weights, which has no digest, is fetched again."""
    try:
        write_pack(contents, [profile], stage, progress=progress)
    except (FamilyError, ParityError):
        forget_file(find_cached(remote, remote.find(contents.family.profile_facts(profile).weights)))
        raise


class _Known:
    """What is known of the bytes that are wanted: their sha256, or of a whole file what git calls it, or nothing.

    Args:
        cached: they may lie in a cache. What comes from the hub is taken under whatever name it has there: not every
            hub calls files as git does.
    """

    def __init__(self, wanted: Wanted, *, cached: bool) -> None:
        content, whole = wanted.file.content, wanted.count == wanted.file.bytes
        if (
            wanted.sha256 is None
            and cached
            and whole
            and len(content) == hashlib.sha1(usedforsecurity=False).digest_size * 2
        ):
            self._digest = hashlib.sha1(b"blob %d\0" % wanted.count, usedforsecurity=False)
            self._expected: str | None = content
        else:
            self._digest, self._expected = hashlib.sha256(), wanted.sha256

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
