"""A folder of two families, of the two towers of one model: texts and images whose vectors lie in one space.

    FOLDER/text     a family that takes texts
    FOLDER/image    a family that takes images
    FOLDER/towers.json    which points of the two go together

Each is a family like any other: what is done with one is done with ``FOLDER/text`` and ``FOLDER/image``. What makes
their vectors comparable is checked when they are opened: that they were cut from the same weights, at the same dims.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from matexport.errors import FamilyError, Problem, ProblemKind, RequestError
from matexport.family.guard.additions import is_addition
from matexport.family.manifest import CARD, TOWERS, Family, load_family
from matexport.io.files import ENDINGS, open_file, parse_json, replace_file
from matexport.runtime.embedder import Embedder
from matexport.spec.profile import Point, Profile
from matexport.spec.record import Record, read_record, suggest

if TYPE_CHECKING:
    from numpy.typing import NDArray

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


def list_others(path: Path) -> list[str]:
    """What lies in a folder of two families and is neither theirs, nor a card, nor what hubs, git and desktops add."""
    known = (TEXT, IMAGE, TOWERS)
    return sorted(
        found.name
        for found in path.iterdir()
        if found.name not in known and not is_addition(found) and not _is_card(found)
    )


def _is_card(path: Path) -> bool:
    return path.name == CARD and path.is_file() and not path.is_symlink()


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


class TwoTowerEmbedder:
    """One profile of both towers, ready to embed: the dot product of a text's and an image's vector is their score.

    What a model scales that product by (CLIP's and SigLIP's ``logit_scale``, and SigLIP's bias) changes no ranking, and
    is left to whoever needs probabilities.

    Args:
        towers: the folder of two families, or what `load_towers` gave.
        profile: name of a profile of the images; may be left out when there is only one.
        threads: of each run; all CPUs of this process by default.

    Attributes:
        text, image: the `Embedder` of each tower.

    Raises:
        FamilyError: there is no such profile, or its files are not the ones that were exported.
    """

    def __init__(
        self, towers: TwoTowers | Path | str, profile: str | None = None, *, threads: int | None = None
    ) -> None:
        self.towers = towers if isinstance(towers, TwoTowers) else load_towers(towers)
        text, self.profile = self.towers.find(profile)
        self.text = Embedder(self.towers.text, text, threads=threads)
        self.image = Embedder(self.towers.image, self.profile, threads=threads)
        self.dim = self.image.dim

    def embed(self, items: Sequence[Any]) -> NDArray[Any]:
        """Embed texts and images, in any order.

        Args:
            items: a string is a text; a `Path`, a file's bytes, a Pillow image or an (H, W, 3) uint8 array an image.

        Returns:
            (len(items), dim) float32, or codes, in the order of the items; see `Embedder.embed`.

        Raises:
            RequestError: an item is neither, or cannot be read; a string names an image file.
        """
        import numpy as np

        for index, item in enumerate(items):
            if isinstance(item, str) and item.lower().endswith(tuple(ENDINGS)) and not any(map(str.isspace, item)):
                raise RequestError(f"item {index} is the text {item!r}, which names an image: give Path({item!r})")
        texts = [index for index, item in enumerate(items) if isinstance(item, str)]
        images = [index for index, item in enumerate(items) if not isinstance(item, str)]
        found = [self.text.embed([items[at] for at in texts]), self.image.embed([items[at] for at in images])]
        vectors: NDArray[Any] = np.empty((len(items), *found[0].shape[1:]), found[0].dtype)
        vectors[texts], vectors[images] = found
        return vectors

    def close(self) -> None:
        """Give both sessions back."""
        self.text.close()
        self.image.close()

    def __enter__(self) -> TwoTowerEmbedder:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()


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
