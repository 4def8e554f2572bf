"""What commands do with a folder of two families: with each in turn, or with texts and images alike."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from matexport.cli.output import DONE, UNUSABLE, complain, gather_documents, print_json, say
from matexport.cli.progress import show_progress
from matexport.errors import RequestError
from matexport.towers import IMAGE, TEXT, load_towers


def run_each(options: argparse.Namespace, run: Callable[[argparse.Namespace], int]) -> int:
    """Run a command on both families, and give the worse exit code.

    With ``--json``, one document has both, by the families' names; a file of ``--junit`` is written for each, with the
    family's name behind its own.
    """
    towers = load_towers(options.family)
    codes, documents = [], {}
    for name, family in ((TEXT, towers.text), (IMAGE, towers.image)):
        one = copy.copy(options)
        one.family = family.path
        if junit := getattr(options, "junit", None):
            one.junit = junit.with_name(f"{junit.stem}-{name}{junit.suffix}")
        if baseline := getattr(options, "baseline", None):
            old = load_towers(baseline)
            one.baseline = (old.text if name == TEXT else old.image).path
        if not options.json:
            say(f"{'' if name == TEXT else chr(10)}{family.path}: {name}s\n")
        with gather_documents() as found:
            codes.append(run(one))
        documents[name] = found[0] if found else {}
    if options.json:
        print_json({"family": str(towers.path), "pairs": dict(towers.profiles), **documents})
        return max(codes)
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
    """Whether an argument of `embed`, or its ``--input``, is of images: a file or folder; a table, by its column.

    Raises:
        RequestError: it is called as an image or a folder, and there is none.
    """
    from matexport.io.files import ENDINGS

    path = Path(given)
    try:
        if not options.input and path.exists():
            return True
        if not options.input:
            if given.endswith("/") or (path.suffix.lower() in ENDINGS and not any(map(str.isspace, given))):
                raise RequestError(
                    f"{given} is no file and no folder; nothing was embedded. A text that is called so is given with "
                    "--input texts.txt"
                )
            return False
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
    from matexport.cli.vectors import embed_pairs, write_pairs
    from matexport.io.files import list_images
    from matexport.runtime.inputs.whole_image import make_image_inputs
    from matexport.towers import TwoTowerEmbedder

    if options.prompt or options.task:
        raise RequestError("--prompt and --task are for texts; texts and images were given, and towers have none")
    files: dict[int, list[Path]] = {}
    for at, given in enumerate(options.texts):
        if is_image(given, options):
            files[at] = list_images(Path(given)) if Path(given).is_dir() else [Path(given)]
    texts = [given for at, given in enumerate(options.texts) if at not in files]
    streams: list[ImageStream] = []
    with (
        show_progress() as progress,
        TwoTowerEmbedder(options.family, options.profile, threads=options.threads) as both,
    ):
        facts = both.towers.image.facts.image
        assert facts is not None  # `load_towers` saw to it
        inputs = make_image_inputs(facts)
        of_texts = iter(zip(texts, both.text.embed(texts), strict=True))

        def pairs() -> Iterator[tuple[Any, Any]]:
            for at in range(len(options.texts)):
                if at not in files:
                    yield next(of_texts)
                else:
                    streams.append(ImageStream(files[at], inputs))
                    yield from embed_pairs(both.image, streams[-1], options, progress)

        write_pairs(pairs(), options, both, "items")
    refused, taken = (sum(getattr(stream, name) for stream in streams) for name in ("refused", "taken"))
    if refused:
        return complain(f"{refused} of {refused + taken} images could not be read", UNUSABLE)
    return DONE


def pack_both(options: argparse.Namespace) -> int:
    """``matexport pack FOLDER PROFILE OUT``"""
    from matexport.pack.towers import pack_towers

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
