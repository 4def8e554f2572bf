"""One profile of a family -> one self-contained folder: the graph, its prefix of the weights, tokenizer, manifest.

A pack is a family of one profile: the same manifest, so `embed`, `show` and `verify` work on it. The graph keeps its
bytes (and its digest), since the prefix keeps every offset. The parent's vectors at the other points stay behind.
The parent's token ids or pixels of the probes stay. A pack is verified where it is made, before it appears.

What was measured of the profile goes along, of every host: it was measured on the same graph, the same bytes of the
weights and the same tokenizer. In the pack it stands under the digest of the pack's own manifest. Left behind is what
is true of the family alone: parity in one run with other profiles, and searches that a narrower profile shortlists for.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace
from safetensors.numpy import save

from matexport.errors import DestinationError, ParityError
from matexport.family.guard.additions import keep_additions
from matexport.family.integrity import Contents, check_files, check_profile, describe_files, refuse_occupied
from matexport.family.manifest import CARD, RANGES, REFERENCE, Family, load_family, write_manifest
from matexport.family.measurements.records import (
    HostMeasurements,
    Measurement,
    load_measurements,
    record_bench,
    record_parity,
    record_quality,
)
from matexport.family.measurements.sections import keep_unlisted
from matexport.family.pixel_rows import load_pixel_rows, pack_pixel_rows
from matexport.family.proof import load_ranges, load_references, open_proof
from matexport.family.token_rows import load_token_rows, pack_token_rows
from matexport.family.weights_file import write_prefix
from matexport.io.progress import Progress
from matexport.io.staging import lock_destination, stage_directory
from matexport.spec.parity import TOGETHER_WAY
from matexport.spec.profile import Encoding, Profile
from matexport.towers import IMAGE, TEXT, TwoTowers, holds_towers, list_others, load_towers, write_towers
from matexport.verify.judge import verify_family

if TYPE_CHECKING:
    from numpy.typing import NDArray


def pack_profile(
    family: Family | Path | str,
    profile: str,
    out: Path | str,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Family:
    """Write one profile as a folder of its own.

    Args:
        family: the directory of a family, or a loaded `Family`.
        profile: name such as ``L02-D064-fp32``.
        out: the folder to write; it must not exist, unless `overwrite` is set and it is a family or pack.
        overwrite: replace what is in `out`, but for a README.md or report.html that somebody wrote, and measurements.
        progress: called with (stage, done, total).

    Returns:
        the pack.

    Raises:
        FamilyError: there is no such profile, or its files are not the ones that were exported.
        DestinationError: `out` exists, or cannot be written.
        ParityError: the pack does not give the parent's token ids or vectors on this host.
    """
    family = family if isinstance(family, Family) else load_family(family)
    family.profile_facts(profile)  # or there is no such profile
    out = Path(out)
    if out.absolute().resolve().is_relative_to(family.path.resolve()):
        raise DestinationError(f"{out} is the family itself or inside it; choose another destination")
    with lock_destination(out):
        refuse_occupied(out, overwrite=overwrite)
        parts = (check_profile(family, profile), check_files(family, family.side_files), open_proof(family))
        contents = Contents(family, {name: part.read(name) for part in parts for name in part})
        with stage_directory(out) as stage:
            staged = write_pack(contents, profile, stage, progress=progress)
            for measured in load_measurements(family).hosts:
                _record(staged, profile, measured)
            keep_unlisted(out, stage)
    return load_family(out)


def list_pack_files(family: Family, profile: str) -> tuple[str, ...]:
    """The files of a family that a pack of one profile is made of; of the weights, their prefix."""
    ranges = {RANGES} if family.profile_facts(profile).encoding is Encoding.INT8 else set()
    proof = {family.probes_file, REFERENCE, *ranges}
    return tuple(sorted({*family.profile_files(profile), *family.side_files, *proof}))


def write_pack(contents: Contents, profile: str, stage: Path, *, progress: Progress | None = None) -> Family:
    """Write one profile into an empty folder, and verify it there.

    Args:
        contents: those of `list_pack_files`, as they were checked; the weights may end with the profile's prefix.

    Raises:
        FamilyError: the files are no sound family.
        ParityError: the pack does not give the parent's token ids or vectors on this host.
    """
    family, point = contents.family, Profile.parse(profile).point.name
    facts = family.profile_facts(profile)
    for name in (*family.side_files, facts.graph, family.probes_file):
        (stage / name).write_bytes(contents.read(name))
    with (stage / facts.weights).open("wb") as target:
        write_prefix(facts.weights, contents.read(facts.weights), target, facts.weights_prefix_bytes)
    probes, references = load_references(contents)
    (stage / REFERENCE).write_bytes(save({point: references[point]} | _keep_rows(contents, len(probes))))
    if facts.encoding is Encoding.INT8:
        (stage / RANGES).write_bytes(save({point: load_ranges(contents)[point]}))
    packed = replace(family.facts, profiles={profile: facts}, refused={}, exits={}, files=describe_files(stage))
    write_manifest(stage, packed)
    _prove(stage, profile, progress)
    return load_family(stage)


def pack_towers(
    towers: TwoTowers | Path | str,
    profile: str,
    out: Path | str,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TwoTowers:
    """Write one profile of both towers of a model as a folder of two packs.

    Args:
        towers: the folder of two families, or what `load_towers` gave.
        profile: name of a profile of the images; that of the texts which goes with it is packed, too.
        out, overwrite, progress: as for `pack_profile`, of each.

    Raises:
        FamilyError, DestinationError, ParityError: as `pack_profile`.
    """
    towers = towers if isinstance(towers, TwoTowers) else load_towers(towers)
    text, image = towers.find(profile)
    out = Path(out)
    if out.absolute().resolve().is_relative_to(towers.path.resolve()):
        raise DestinationError(f"{out} is the folder of the two families or inside it; choose another destination")
    with lock_destination(out):
        if out.exists() and not (overwrite and holds_towers(out)):
            ours = holds_towers(out)
            what = "it holds two families; pass --overwrite to replace them" if ours else "it holds no two families"
            raise DestinationError(f"{out} exists, and {what}{'' if ours else ': choose another destination'}")
        if out.exists():
            _refuse_others(out)
        with stage_directory(out) as stage:
            for name, family, chosen in ((TEXT, towers.text, text), (IMAGE, towers.image, image)):
                pack_profile(family, chosen, stage / name, progress=progress)
                keep_unlisted(out / name, stage / name)
            write_towers(stage, {Profile.parse(image).point: Profile.parse(text).point})
            keep_additions(out, stage)
            if (out / CARD).is_file():
                shutil.copyfile(out / CARD, stage / CARD)
    return load_towers(out)


def _refuse_others(out: Path) -> None:
    """Refuse to replace a folder of two families with somebody's files in it.

    Raises:
        DestinationError: naming one.
    """
    if others := list_others(out):
        raise DestinationError(f"{out} holds {others[0]}, which is of no two families; move it first")
    for name in (TEXT, IMAGE):
        refuse_occupied(out / name, overwrite=True)


def _keep_rows(proof: Contents, probes: int) -> dict[str, NDArray[Any]]:
    """What the parent's own preprocessing made of the probes, as the family stores it."""
    rows, pixels = load_token_rows(proof, probes), load_pixel_rows(proof, probes)
    if rows is not None:
        return {**pack_token_rows(rows)}
    return {} if pixels is None else pack_pixel_rows(pixels)


def _prove(stage: Path, profile: str, progress: Progress | None) -> None:
    """Refuse a pack that does not give the parent's token ids or pixels, and vectors, on this host."""
    verification = verify_family(stage, progress=progress)
    if verification.prepared and (reason := verification.prepared.find_difference()):
        raise ParityError(f"{profile}: {reason}; nothing was written", "pack")
    if found := verification.verdicts[0].find_breach():
        check, breach = found
        raise ParityError(f"{profile} is off its floor on this host: {breach} ({check}); nothing was written", "pack")


def _record(pack: Family, profile: str, measured: HostMeasurements) -> None:
    """Record in a pack what was measured of its profile on one host, as far as it holds of the profile on its own."""
    for bench in measured.benches.values():
        if profile in bench.profiles:
            record_bench(pack, replace(bench, profiles={profile: bench.profiles[profile]}))
    tasks = {
        name: replace(task, profiles={profile: task.profiles[profile]}, adaptive=())
        for name, task in (measured.quality.tasks if measured.quality else {}).items()
        if profile in task.profiles
    }
    if measured.quality and tasks:
        record_quality(pack, replace(measured.quality, tasks=tasks))
    known = measured.parity
    if known and profile in known.parity:
        alone = {way: parity for way, parity in known.parity[profile].items() if way != TOGETHER_WAY}
        spread = {profile: known.spread[profile]} if profile in known.spread else {}
        ranges = {profile: known.ranges[profile]} if profile in known.ranges else {}
        record_parity(pack, measured.host, Measurement({profile: alone}, spread, ranges, known.token_ids, known.pixels))
