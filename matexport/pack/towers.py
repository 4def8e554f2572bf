"""A profile of both towers of a model -> a folder of two packs, and which of their points go together."""

from __future__ import annotations

import shutil
from pathlib import Path

from matexport.consumers.layouts import NATIVE
from matexport.errors import DestinationError
from matexport.family.guard.additions import copy_licences, keep_additions
from matexport.family.integrity import refuse_occupied
from matexport.family.manifest import CARD
from matexport.family.measurements.sections import keep_unlisted
from matexport.io.progress import Progress
from matexport.io.staging import lock_destination, stage_directory
from matexport.pack.write import pack_profile
from matexport.spec.profile import Profile
from matexport.towers import IMAGE, TEXT, TwoTowers, holds_towers, list_others, load_towers, write_towers


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
                pack_profile(family, chosen, stage / name, layout=NATIVE, progress=progress)
                keep_unlisted(out / name, stage / name)
            write_towers(stage, {Profile.parse(image).point: Profile.parse(text).point})
            copy_licences(towers.path, stage)
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
