"""A folder of two families, of the two towers of one model: texts and images whose vectors lie in one space.

    FOLDER/text     a family that takes texts
    FOLDER/image    a family that takes images
    FOLDER/towers.json    which points of the two go together

Each is a family like any other: what is done with one is done with ``FOLDER/text`` and ``FOLDER/image``. What makes
their vectors comparable is checked when they are opened: that they were cut from the same weights, at the same dims.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from matexport.errors import FamilyError, Problem, ProblemKind
from matexport.family.manifest import TOWERS, Family, load_family
from matexport.io.files import open_file, parse_json, replace_file
from matexport.spec.profile import Point, Profile
from matexport.spec.record import Record, read_record, suggest

#: Names of the two families.
TEXT, IMAGE = "text", "image"

SCHEMA = 1
MAX_TOWERS_BYTES = 1 << 20


class TowersFile(Record, frozen=True):
    """``towers.json`` as it is written.

    Attributes:
        points: name of a point of the image family -> that of the text family which belongs to it.
    """

    schema: int
    points: Mapping[str, str]


@dataclass(frozen=True)
class TwoTowers:
    """Two families of one model, and which of their points go together.

    Attributes:
        pairs: a point of `image` -> the point of `text`, of the same dim.
    """

    path: Path
    text: Family
    image: Family
    pairs: Mapping[Point, Point]

    @property
    def profiles(self) -> Mapping[str, str]:
        """Name of a profile of the images -> the profile of the texts that gives vectors to compare with."""
        found = {}
        for profile in self.image.profiles:
            other = self.pairs.get(profile.point)
            name = Profile(other, profile.precision, profile.encoding).name if other else ""
            if name in self.text.facts.profiles:
                found[profile.name] = name
        return found

    def find(self, profile: str | None) -> tuple[str, str]:
        """The profile of the texts and that of the images, by the name of the latter; None where there is only one.

        Raises:
            FamilyError: there is none of that name; those that there are, are listed.
        """
        known = self.profiles
        if profile is None:
            if len(known) != 1:
                raise FamilyError(f"{self.path} has {len(known)} profiles: name one of {', '.join(known)}")
            profile = next(iter(known))
        if profile not in known:
            raise FamilyError(
                f"profile {profile!r} was asked; {self.path} has {', '.join(known)}{suggest(profile, list(known))}"
            )
        return known[profile], profile


def holds_towers(path: Path | str) -> bool:
    """Whether a folder is one of two families."""
    return (Path(path) / TOWERS).is_file()


def load_towers(path: Path | str) -> TwoTowers:
    """Read and check the manifests of both families. Files other than these are not touched.

    Raises:
        FamilyError: one of them is missing or malformed, or their vectors cannot be compared.
    """
    root = Path(path)
    opened = open_file(root / TOWERS, MAX_TOWERS_BYTES)
    if isinstance(opened, Problem):
        raise _refuse(f"{root}: {opened}")
    with opened as file:
        content = file.read()
    try:
        data = parse_json(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _refuse(f"{root / TOWERS} is not JSON ({error})") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise _refuse(f"{root / TOWERS} is not of schema {SCHEMA}, which is what this matexport reads: upgrade it")
    written = read_record(data, TowersFile, str(root / TOWERS), _refuse)
    towers = TwoTowers(
        root, load_family(root / TEXT), load_family(root / IMAGE), _read_pairs(written.points, root / TOWERS)
    )
    _check_space(towers)
    return towers


def write_towers(root: Path, pairs: Mapping[Point, Point]) -> None:
    """Say which points go together, in one step.

    Args:
        pairs: a point of the images -> the point of the texts.
    """
    written = {"schema": SCHEMA, "points": {image.name: text.name for image, text in sorted(pairs.items())}}
    with replace_file(root / TOWERS) as file:
        file.write((json.dumps(written, indent=1) + "\n").encode())


def _read_pairs(points: Mapping[str, str], where: Path) -> dict[Point, Point]:
    pairs = {}
    for image, text in points.items():
        try:
            one, two = (Profile.parse(f"{name}-fp32").point for name in (image, text))
        except ValueError:
            raise _refuse(f"{where}: {image!r} and {text!r} are not two points, such as L02-D064") from None
        if one.dim != two.dim:
            raise _refuse(f"{where}: {image} and {text} have different dims, so their vectors cannot be compared")
        pairs[one] = two
    if not pairs:
        raise _refuse(f"{where} names no points that go together")
    return pairs


def _check_space(towers: TwoTowers) -> None:
    """Refuse two families whose vectors do not lie in one space.

    Raises:
        FamilyError: they take other things than texts and images, or are cut from other weights or otherwise.
    """
    text, image = towers.text.facts, towers.image.facts
    if text.text is None or image.image is None:
        raise _refuse(f"{towers.path}: {TEXT} takes {text.inputs.noun}s and {IMAGE} takes {image.inputs.noun}s")
    if text.parent.weights != image.parent.weights:
        raise _refuse(
            f"{towers.path}: {TEXT} and {IMAGE} were cut from other weights ({text.parent.source} and "
            f"{image.parent.source}), so their vectors cannot be compared: export both again"
        )
    if text.readout.normalize != image.readout.normalize:
        raise _refuse(
            f"{towers.path}: vectors of one of {TEXT} and {IMAGE} have unit length, those of the other do not"
        )
    if not towers.profiles:
        raise _refuse(f"{towers.path}: {TEXT} and {IMAGE} have no profiles that go together")


def _refuse(why: str) -> FamilyError:
    return FamilyError(why, kind=ProblemKind.MANIFEST, file=TOWERS)
