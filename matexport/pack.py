"""One profile of a family -> one self-contained folder: the graph, its prefix of the weights, tokenizer, manifest.

A pack is a family of one profile: the same manifest, so `embed`, `show` and `verify` work on it. The graph keeps its
bytes (and its digest), since the prefix keeps every offset. The parent's vectors at the other points stay behind.
The parent's token ids of the probes stay. A pack is verified where it is made, before it appears.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from msgspec.structs import replace
from safetensors.numpy import save

from matexport.errors import DestinationError, ParityError
from matexport.family.integrity import check_files, check_profile, describe_files, refuse_occupied
from matexport.family.manifest import RANGES, REFERENCE, Family, load_family, write_manifest
from matexport.family.measurements import keep_unlisted
from matexport.family.proof import load_ranges, load_references
from matexport.family.token_rows import load_token_rows, pack_token_rows
from matexport.family.weights_file import write_prefix
from matexport.io.progress import Progress
from matexport.io.staging import lock_destination, stage_directory
from matexport.spec.profile import Encoding, Profile
from matexport.verify.judge import verify_family


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
    family.profile_facts(profile)  # there is one of that name
    out = Path(out)
    if out.absolute().resolve().is_relative_to(family.path.resolve()):
        raise DestinationError(f"{out} is the family itself or inside it; choose another destination")
    with lock_destination(out):
        refuse_occupied(out, overwrite=overwrite)
        check_profile(family, profile)
        check_files(family, [*family.side_files, *({family.probes_file, REFERENCE, RANGES} & set(family.facts.files))])
        with stage_directory(out) as stage:
            _copy(family, profile, stage)
            verification = verify_family(stage, progress=progress)
            if verification.token_ids and (reason := verification.token_ids.find_difference()):
                raise ParityError(f"{profile}: {reason}; nothing was written", "pack")
            if found := verification.verdicts[0].find_breach():
                check, breach = found
                raise ParityError(
                    f"{profile} is off its floor on this host: {breach} ({check}); nothing was written", "pack"
                )
            keep_unlisted(out, stage)
    return load_family(out)


def _copy(family: Family, profile: str, stage: Path) -> None:
    """Write the files of a pack, its manifest last."""
    facts = family.profile_facts(profile)
    for name in family.side_files:
        shutil.copyfile(family.path / name, stage / name)
    shutil.copyfile(family.path / facts.graph, stage / facts.graph)
    with (stage / facts.weights).open("wb") as target:
        write_prefix(family.path / facts.weights, target, facts.weights_prefix_bytes)
    point = Profile.parse(profile).point.name
    probes, references = load_references(family)
    rows = load_token_rows(family, len(probes))
    kept = {point: references[point]} | ({} if rows is None else pack_token_rows(rows))
    (stage / REFERENCE).write_bytes(save(kept))
    shutil.copyfile(family.path / family.probes_file, stage / family.probes_file)
    if facts.encoding is Encoding.INT8:
        (stage / RANGES).write_bytes(save({point: load_ranges(family)[point]}))
    packed = replace(family.facts, profiles={profile: facts}, refused={}, exits={}, files=describe_files(stage))
    write_manifest(stage, packed)
