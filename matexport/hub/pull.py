"""A family, or one profile of it, from a model hub: only what is needed, checked and proven before it appears.

The manifest comes first, and says what may follow (`fetch`); but for the card, licences and measurements, which are
data and bounded. Of the weights, one profile takes its prefix, whose digest the manifest says. Older ones do not: there
the file on the hub has the digest that they say, header and tensors are checked as in every family, and the parent's
vectors are the proof. Nothing that could be code is fetched, and the folder is verified before it takes its name.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from matexport.consumers.layouts import LAYOUTS, NATIVE, SINGLE_FILE, TORCH
from matexport.errors import DestinationError, FamilyError, ParityError, RequestError
from matexport.family.guard.additions import MAX_LICENCE_BYTES, is_licence
from matexport.family.integrity import refuse_occupied
from matexport.family.manifest import CARD, MANIFEST, MEASUREMENTS, Family, load_family
from matexport.family.measurements.sections import MAX_BYTES, keep_unlisted
from matexport.hub.fetch import Wanted, copy_file, fetch_manifest, open_fetched, want_file, want_manifest
from matexport.hub.listing import list_folder
from matexport.hub.remote import (
    Arrived,
    Remote,
    explain_hub_errors,
    find_cached,
    forget_file,
    open_remote,
    require_hub,
    use_hub,
)
from matexport.io.progress import Progress
from matexport.io.staging import lock_destination, stage_directory
from matexport.pack.write import (
    find_layout,
    list_pack_files,
    select_profiles,
    write_card,
    write_pack,
    write_single_file,
)
from matexport.spec.record import Record
from matexport.verify.judge import verify_family

#: How many licences and measurements are taken.
MAX_WORDS = 100
_MB = 1_000_000

_MEASURED = re.compile(rf"{MEASUREMENTS}/[A-Za-z0-9][A-Za-z0-9._-]{{0,127}}\.json")


class Part(Record, frozen=True):
    """What of a family is pulled, and as what.

    Attributes:
        profile: name such as ``L02-D064-fp32``; or of a point, such as ``L02-D064``, in all its precisions.
        layout: a key of `consumers.layouts.LAYOUTS`; but ``torch``, whose folder is made of the parent.
    """

    profile: str
    layout: str = NATIVE


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
        profile: as in `Part`: its graph and its prefix of the weights alone are fetched.
        revision: a branch, a tag or a commit; the main branch by default.
        overwrite: replace what is in `out`, but for what people wrote, measured or added.
        progress: called with (stage, done, total).

    Returns:
        the family or pack.

    Raises:
        HubError: the hub cannot be reached or does not have it, or its files are not those that the manifest says.
        FamilyError: what lies there is no sound family, or has no such profile.
        RequestError: the profile cannot have the layout.
        DestinationError: `out` exists, or cannot be written.
        ParityError: what came does not give the parent's vectors on this host.
        MissingExtraError: huggingface_hub is not installed.
    """
    if profile is not None:
        pulled = pull_pack(repo, Part(profile), out, revision=revision, overwrite=overwrite, progress=progress)
        return load_family(pulled)
    out = Path(out)
    with _open_pulled(repo, revision, out, overwrite=overwrite) as remote:
        family = fetch_manifest(remote)
        wanted = {name: want_file(remote, family, name, None) for name in family.facts.files}
        words = _list_words(remote, family, measured=True)
        _refuse_large(remote, out, wanted)
        report = _count_megabytes({**wanted, **words}, progress)
        with stage_directory(out) as stage:
            for name in (MANIFEST, *wanted):
                (stage / name).parent.mkdir(exist_ok=True)
                copy_file(remote, wanted.get(name) or want_manifest(remote), stage / name, report)
            verify_family(stage, progress=progress).require_passed("pull", "nothing was written")
            _copy_words(remote, words, stage, report)
            keep_unlisted(out, stage)
    return load_family(out)


def pull_pack(
    repo: str,
    part: Part,
    out: Path | str,
    *,
    revision: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Fetch what one profile needs, and make the folder of it that `pack` would make, but for what was measured.

    Args:
        repo, out, revision, overwrite, progress: as for `pull_family`; what is no family replaces nothing.

    Returns:
        `out`.

    Raises:
        HubError, FamilyError, RequestError, DestinationError, ParityError, MissingExtraError: as `pull_family`.
    """
    out = Path(out)
    _refuse_layout(part.layout, overwrite=overwrite)
    with _open_pulled(repo, revision, out, overwrite=overwrite) as remote:
        family = fetch_manifest(remote)
        names = select_profiles(family, part.profile)
        shape = find_layout(part.layout, family, names)
        files = list_pack_files(family, names)
        wanted = {name: want_file(remote, family, name, names) for name in files}
        words = _list_words(remote, family, measured=False)
        _refuse_large(remote, out, wanted)
        report = _count_megabytes({**wanted, **words}, progress)
        with stage_directory(out) as stage:
            contents = open_fetched(remote, family, wanted, report)
            with _forget_unproven(remote, family, names):
                if part.layout == SINGLE_FILE:
                    write_single_file(contents, names, stage, out.name)
                else:
                    pack = write_pack(contents, names, stage, shape, progress=progress)
                    if shape.configured:
                        write_card(pack, out.name)
            _copy_words(remote, words, stage, report)
            keep_unlisted(out, stage)
    return out


@contextmanager
def _open_pulled(repo: str, revision: str | None, out: Path, *, overwrite: bool) -> Iterator[Remote]:
    """A repository, while a destination is ours to write."""
    require_hub("pulling")
    with use_hub(), lock_destination(out):
        refuse_occupied(out, overwrite=overwrite)
        yield open_remote(repo, revision, f"pull {repo}")


def _refuse_layout(layout: str, *, overwrite: bool) -> None:
    """Refuse what can be seen before anything is asked."""
    if layout == TORCH:
        raise RequestError(
            f"--for {TORCH} is made of the parent's weights, which are not in a family: pull the family, then run "
            f"`matexport pack` --for {TORCH} --parent PARENT"
        )
    if overwrite and layout in LAYOUTS and not LAYOUTS[layout].family:
        raise RequestError(
            f"--overwrite replaces a pack, and --for {layout} writes a folder that is none: choose another destination"
        )


def _list_words(remote: Remote, family: Family, *, measured: bool) -> dict[str, Wanted]:
    """The card, licences and, where all is fetched, measurements; what is too large of these is left where it is.

    A card goes with a family, and says too much of a pack.
    """
    words = {name: file for name, file in remote.files.items() if is_licence(name) or (measured and name == CARD)}
    limits = dict.fromkeys(words, MAX_LICENCE_BYTES)
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


def _copy_words(remote: Remote, words: Mapping[str, Wanted], stage: Path, arrived: Arrived) -> None:
    for name, word in words.items():
        (stage / name).parent.mkdir(exist_ok=True)
        copy_file(remote, word, stage / name, arrived)


@contextmanager
def _forget_unproven(remote: Remote, family: Family, names: Sequence[str]) -> Iterator[None]:
    """Where a pack is no good, have prefixes of weights that no digest covers fetched again the next time."""
    try:
        yield
    except (FamilyError, ParityError):
        for name in names:
            forget_file(find_cached(remote, remote.find(family.profile_facts(name).weights)))
        raise
