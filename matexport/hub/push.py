"""A family, or one profile of it, to a model hub: verified here, then one commit, then looked up there.

What goes is what the manifest lists, the manifest, the card, licences and measurements; no page, and nothing that git
and desktops add. What is sent has the digests that were verified, whatever happens to the folder meanwhile. A
repository that holds something else than a family is left alone; files of a family that was there before, and that the
new one lacks, go with the same commit, so that a clone of it verifies.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matexport.errors import FamilyError, HubError, Problem, RequestError
from matexport.family import manifest
from matexport.family.guard.additions import FILES, FOLDERS, MAX_LICENCE_BYTES, is_licence
from matexport.family.integrity import list_additions
from matexport.family.manifest import CARD, MANIFEST, MAX_MANIFEST_BYTES, MEASUREMENTS, REPORTED
from matexport.family.measurements.sections import MAX_BYTES
from matexport.hub.fetch import fetch_manifest
from matexport.hub.listing import list_family, list_folder
from matexport.hub.remote import Remote, check_name, explain_hub_errors, open_remote, require_hub, use_hub
from matexport.io.files import open_file
from matexport.io.progress import Progress
from matexport.pack.write import pack_profile
from matexport.spec.record import Record
from matexport.towers import holds_towers
from matexport.verify.judge import Case, open_case, verify_case

#: How long the hub may take to make a commit.
PATIENCE_SECONDS = 60.0


class PushTarget(Record, frozen=True):
    """Where a family goes.

    Attributes:
        repo: such as ``someone/small-encoder``; made if it does not exist.
        private: make it private; one that is public already is refused.
        revision: a branch, made if it does not exist; the main one by default.
        message: of the commit.
    """

    repo: str
    private: bool = False
    revision: str | None = None
    message: str | None = None


class Pushed(Record, frozen=True):
    """What was sent, or would be.

    Attributes:
        files: path in the repository -> bytes.
        removed: paths of a family that was there before, which are gone now.
        commit, url: of the commit; None where nothing was sent.
    """

    repo: str
    files: Mapping[str, int]
    removed: tuple[str, ...] = ()
    commit: str | None = None
    url: str | None = None


class Sent(Record, frozen=True):
    """A file to send: its content, or the path of a large one, and its digest."""

    content: bytes | Path
    bytes: int
    sha256: str


def push_family(
    family: Path | str,
    target: PushTarget,
    *,
    profile: str | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Pushed:
    """Send a family, or a pack of one of its profiles, to a model hub.

    Args:
        family: its folder.
        profile: name such as ``L02-D064-fp32``: a pack of it is sent.
        dry_run: verify it and say what would be sent; the hub is not asked anything.
        progress: called with (stage, done, total).

    Raises:
        FamilyError: the folder is no family, or its files are not the ones that were exported.
        ParityError: it does not give the parent's vectors on this host.
        HubError: the hub cannot be reached, or does not allow it; or the repository holds something else, or cannot be
            called so.
        MissingExtraError: huggingface_hub is not installed.
    """
    require_hub("pushing")
    check_name(target.repo)
    with _open_pushed(Path(family), profile, progress) as case:
        if profile is None:  # a pack was proven where it was made
            verify_case(case, progress=progress).require_passed("push", "nothing was sent")
        files = _gather(case)
        sizes = {name: sent.bytes for name, sent in files.items()}
        if dry_run:
            return Pushed(target.repo, sizes)
        if progress:
            progress("push", 0, 1)
        with use_hub(PATIENCE_SECONDS):
            pushed = _commit(files, target, profile or "a family")
        if progress:
            progress("push", 1, 1)
    return pushed


@contextmanager
def _open_pushed(family: Path, profile: str | None, progress: Progress | None) -> Iterator[Case]:
    """The family, or a pack of it, its files checked."""
    if holds_towers(family):
        raise RequestError(f"{family} holds two families, {family / 'text'} and {family / 'image'}: push one of them")
    if profile is None:
        yield open_case(family)
        return
    with tempfile.TemporaryDirectory(prefix="matexport-") as folder:
        pack = pack_profile(family, profile, Path(folder) / "pack", progress=progress)
        yield open_case(pack)


def _gather(case: Case) -> dict[str, Sent]:
    """The files to send, by their path in the repository.

    Raises:
        RequestError: one that no digest covers cannot be read, or is too large.
    """
    family = case.family
    files: dict[str, Sent] = {}
    for name, facts in sorted(family.facts.files.items()):
        content = case.contents.read(name)
        held = content if isinstance(content, bytes) else family.path / name
        files[name] = Sent(held, facts.bytes, facts.sha256)
    limits = {MANIFEST: MAX_MANIFEST_BYTES}
    limits |= {name: MAX_LICENCE_BYTES for name in [*list_additions(family)] if is_licence(name)}
    limits |= {CARD: MAX_LICENCE_BYTES} if (family.path / CARD).exists() else {}
    limits |= {f"{MEASUREMENTS}/{path.name}": MAX_BYTES for path in (family.path / MEASUREMENTS).glob("*.json")}
    for name, limit in limits.items():
        content = _read(family.path / name, limit)
        files[name] = Sent(content, len(content), hashlib.sha256(content).hexdigest())
    if files[MANIFEST].sha256 != family.digest:
        raise FamilyError(f"{family.path} was replaced while it was read: nothing was sent; do it again")
    return files


def _read(path: Path, limit: int) -> bytes:
    opened = open_file(path, limit)
    if isinstance(opened, Problem):
        raise RequestError(f"{opened}: it cannot be sent")
    with opened as file:
        return file.read()


def _commit(files: Mapping[str, Sent], target: PushTarget, what: str) -> Pushed:
    """Send the files in one commit, and look whether they are there."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    repo, api = target.repo, HfApi()
    doing = f"push to {repo}"
    with explain_hub_errors(repo, doing):
        api.create_repo(repo, private=target.private or None, exist_ok=True)
        if target.private and not api.repo_info(repo).private:
            raise HubError(f"{repo} is public already, and --private would not change that: choose another repository")
        if target.revision:
            api.create_branch(repo, branch=target.revision, exist_ok=True)
    remote = open_remote(repo, target.revision, doing)
    removed = _list_obsolete(remote, files)
    operations: list[Any] = [CommitOperationDelete(name) for name in removed]
    for name, sent in files.items():
        operation = CommitOperationAdd(name, sent.content)
        if operation.upload_info.sha256.hex() != sent.sha256:
            raise FamilyError(f"{name} was changed since it was verified: nothing was sent; do it again")
        operations.append(operation)
    with explain_hub_errors(repo, doing):
        info = api.create_commit(
            repo,
            operations,
            commit_message=target.message or f"matexport: {what}",
            revision=target.revision,
            parent_commit=remote.commit,
        )
    _check_sent(repo, info.oid, files)
    return Pushed(repo, {name: sent.bytes for name, sent in files.items()}, removed, info.oid, info.commit_url)


def _list_obsolete(remote: Remote, files: Mapping[str, Sent]) -> tuple[str, ...]:
    """Files of the family that a repository holds, which the new one does not have.

    Raises:
        HubError: it holds files that are of no family.
    """
    known = {*REPORTED, MANIFEST, *FILES}
    listed = set(fetch_manifest(remote).facts.files) if MANIFEST in remote.files else set()
    others = sorted(
        {name for name in remote.files if name not in known | listed and not is_licence(name)}
        | (remote.folders - {MEASUREMENTS} - FOLDERS - set(manifest.FOLDERS))
    )
    if others:
        raise HubError(
            f"{remote.repo} holds {others[0]}, which is of no family of matexport: choose another repository, or move "
            "it there first"
        )
    return tuple(sorted(listed & set(remote.files) - set(files)))


def _check_sent(repo: str, commit: str, files: Mapping[str, Sent]) -> None:
    """Refuse to say that it was pushed where the hub left something out, as its ``.gitignore`` may ask."""
    with explain_hub_errors(repo, f"see what was pushed to {repo}"):
        found, folders = list_family(repo, commit)
        if MEASUREMENTS in folders:
            found |= list_folder(repo, commit, MEASUREMENTS)[0]
    for name, sent in files.items():
        there = found.get(name)
        if there is None or there.bytes != sent.bytes or there.sha256 not in (None, sent.sha256):
            raise HubError(
                f"{name} is not in {repo} at {commit[:12]} as it was sent: look at its .gitignore, push again"
            )
