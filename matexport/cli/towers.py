"""What commands do with a folder of two families: with each in turn, or with texts and images alike."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from matexport.cli.output import DONE, UNUSABLE, complain, print_json, say
from matexport.cli.progress import show_progress
from matexport.errors import RequestError
from matexport.towers import IMAGE, TEXT, load_towers


def run_each(options: argparse.Namespace, run: Callable[[argparse.Namespace], int]) -> int:
    """Run a command on both families, and give the worse exit code.

    Raises:
        RequestError: what it writes is one document or file.
    """
    towers = load_towers(options.family)
    for name in ("json", "junit"):
        if getattr(options, name, None):
            raise RequestError(
                f"--{name} is of one family; {towers.path} holds two: name {towers.text.path} or {towers.image.path}"
            )
    codes = []
    for name, family in ((TEXT, towers.text), (IMAGE, towers.image)):
        say(f"{'' if name == TEXT else chr(10)}{family.path}: {name}s\n")
        one = copy.copy(options)
        one.family = family.path
        if baseline := getattr(options, "baseline", None):
            old = load_towers(baseline)
            one.baseline = (old.text if name == TEXT else old.image).path
        codes.append(run(one))
    others = {image: text for image, text in towers.profiles.items() if image != text}
    for image, text in others.items():
        say(f"{image} of images goes with {text} of texts")
    return max(codes)


def choose_tower(options: argparse.Namespace) -> bool:
    """Have `embed` go on with one of the two families, where all that it is given is for that one.

    Returns:
        False where there are texts and images.
    """
    towers = load_towers(options.family)
    text, image = towers.find(options.profile)
    given = [options.input] if options.input else options.texts
    kinds = {is_image(item, options) for item in given} or {False}
    if len(kinds) > 1:
        return False
    family, profile = (towers.image, image) if kinds.pop() else (towers.text, text)
    options.family, options.profile = family.path, profile
    return True


def is_image(given: str, options: argparse.Namespace) -> bool:
    """Whether an argument of `embed`, or its ``--input``, is of images: a file or folder; a table, by its column."""
    from matexport.io.files import ENDINGS

    path = Path(given)
    try:
        if not options.input:
            return path.exists()
        if path.is_dir() or path.suffix.lower() in ENDINGS:
            return True
        return path.is_file() and _holds_images(path, options.column)
    except (OSError, ValueError):  # too long for a name, or with a null character
        return False


def _holds_images(path: Path, column: str | None) -> bool:
    from matexport.extras import require_extra
    from matexport.io.tables import Form, find_form, holds_bytes, open_parquet

    if find_form(path) is not Form.PARQUET:
        return False
    require_extra("parquet", f"reading Parquet ({path})", {"pyarrow": "pyarrow"})
    with open_parquet(path) as opened:
        schema = opened.schema_arrow
    names = [column] if column in schema.names else schema.names
    return any(holds_bytes(schema.field(name).type) for name in names)


def embed_both(options: argparse.Namespace) -> int:
    """``matexport embed FOLDER`` of texts and images, in the order in which they are given.

    Raises:
        RequestError: a prompt or task was asked, which neither tower has.
    """
    from matexport.cli.images import ImageStream
    from matexport.cli.vectors import write_pairs
    from matexport.io.files import list_images
    from matexport.runtime.inputs.image import ImageInputs
    from matexport.towers import TwoTowerEmbedder

    if options.prompt or options.task:
        raise RequestError("--prompt and --task are for texts; texts and images were given, and towers have none")
    files: dict[int, list[Path]] = {}
    for at, given in enumerate(options.texts):
        if is_image(given, options):
            files[at] = list_images(Path(given)) if Path(given).is_dir() else [Path(given)]
    texts = [given for at, given in enumerate(options.texts) if at not in files]
    with (
        show_progress() as progress,
        TwoTowerEmbedder(options.family, options.profile, threads=options.threads) as both,
    ):
        facts = both.towers.image.facts.image
        assert facts is not None  # `load_towers` saw to it
        stream = ImageStream((file for found in files.values() for file in found), ImageInputs(facts))
        progress("embed", 0, 0)
        images = {image.name: image for image in stream}
        of_texts = iter(zip(texts, both.text.embed(texts), strict=True))
        of_images = dict(zip(images, both.image.embed(list(images.values())), strict=True))

        def pairs() -> Iterator[tuple[Any, Any]]:
            for at in range(len(options.texts)):
                if at not in files:
                    yield next(of_texts)
                else:
                    yield from ((images[name], of_images[name]) for name in map(str, files[at]) if name in images)

        write_pairs(pairs(), options, both, "items")
    if stream.refused:
        return complain(f"{stream.refused} of {stream.refused + stream.taken} images could not be read", UNUSABLE)
    return DONE


def pack_both(options: argparse.Namespace) -> int:
    """``matexport pack FOLDER PROFILE OUT``"""
    from matexport.pack import pack_towers

    with show_progress() as progress:
        packed = pack_towers(
            options.family, options.profile, options.out, overwrite=options.overwrite, progress=progress
        )
    text, image = packed.find(None)
    totals = {
        name: sum(file.bytes for file in family.facts.files.values())
        for name, family in ((TEXT, packed.text), (IMAGE, packed.image))
    }
    if options.json:
        print_json({"pack": str(options.out), "profiles": {TEXT: text, IMAGE: image}, "bytes": totals})
    else:
        for name, profile in ((TEXT, text), (IMAGE, image)):
            say(f"{options.out / name}: {profile}, {totals[name] / 1e6:.1f} MB")
    return DONE
