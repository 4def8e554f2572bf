"""pull: a family, or one profile of it, from a model hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from matexport.cli.options import (
    Parsers,
    add_command,
)
from matexport.cli.output import (
    DONE,
    print_json,
    say,
)
from matexport.cli.progress import show_progress
from matexport.consumers.layouts import LAYOUTS, NATIVE, TORCH
from matexport.errors import RequestError
from matexport.family.manifest import MANIFEST, load_family
from matexport.io.terminal import show_plain

SUMMARY = "fetch a family, or one profile of it, from a model hub"
DESCRIPTION = (
    "Fetch the manifest of a family from a repository of a model hub, then the files that it lists; check their "
    "digests, verify it and put it into OUT. With PROFILE, as a pack: its graph and the first bytes of the weights are "
    "fetched alone. A point, such as L02-D064, is fetched in all its precisions. No code comes along. What was fetched "
    "stays in huggingface_hub's cache: a transfer that was cut off goes on there, and a deeper profile takes the bytes "
    "that are missing. The hub is that of HF_ENDPOINT, the token that of HF_TOKEN or `hf auth login`. Needs the [hub] "
    "extra."
)
EXAMPLES = (
    "examples:\n  matexport pull someone/minilm-family\n"
    "  matexport pull someone/minilm-family L02-D064-int8 artifacts/small --revision v1\n"
    "  matexport pull someone/minilm-family L02-D064 artifacts/small --for all"
)


def add_parser(parsers: Parsers) -> None:
    """What the command takes, and the help that teaches it."""
    command = add_command(parsers, "pull", run, SUMMARY, DESCRIPTION, EXAMPLES)
    command.add_argument("repo", metavar="REPO", help="repository, such as someone/small-encoder")
    command.add_argument(
        "profile", metavar="PROFILE", nargs="?", help="fetch this profile alone, or this point in all its precisions"
    )
    command.add_argument(
        "out",
        type=Path,
        metavar="OUT",
        nargs="?",
        help="folder to write (default: called as the repository, with the profile behind it)",
    )
    command.add_argument(
        "--for",
        dest="layout",
        choices=list(LAYOUTS),
        metavar="NAME",
        help=f"with PROFILE, the folder that `pack --for NAME` makes (default: {NATIVE}; {TORCH} is made of the "
        f"parent, and cannot be pulled): {', '.join(LAYOUTS)}",
    )
    command.add_argument("--revision", metavar="REV", help="branch, tag or commit (default: the main branch)")
    command.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the family or pack in OUT; what people wrote there (README.md, report.html), measurements and "
        "what git and desktops added stay",
    )


def run(options: argparse.Namespace) -> int:
    """``matexport pull REPO [PROFILE] [OUT]``"""
    from matexport.hub.pull import Part, pull_family, pull_pack

    profile: str | None = options.profile
    out: Path | None = options.out
    if out is None and profile is not None and not _is_part(profile):
        out, profile = Path(profile), None  # REPO OUT
    if options.layout is not None and profile is None:
        raise RequestError(
            f"--for {options.layout} was given, and makes a folder of one profile or point: name it behind the "
            "repository"
        )
    if out is None:
        out = Path("-".join(filter(None, (options.repo.rpartition("/")[2], profile))))
    asked = {"revision": options.revision, "overwrite": options.overwrite}
    with show_progress() as progress:
        if profile is None:
            pull_family(options.repo, out, **asked, progress=progress)
        else:
            pull_pack(options.repo, Part(profile, options.layout or NATIVE), out, **asked, progress=progress)
    files, what = _describe(out, profile)
    total = sum(files.values())
    if options.json:
        document = {"family": str(out), "repo": options.repo, "profile": profile, "for": options.layout}
        print_json(document | {"bytes": total, "files": files})
        return DONE
    count = len(files) + (out / MANIFEST).is_file()
    say(show_plain(f"{out}: {what}, {count} files, {total / 1e6:.1f} MB, verified"))
    return DONE


def _describe(out: Path, profile: str | None) -> tuple[dict[str, int], str]:
    """Name -> bytes of what was written and is covered by a digest, and what it is in words."""
    if not (out / MANIFEST).is_file():  # a single file of ONNX, and what stands beside it
        paths = [path for path in sorted(out.rglob("*")) if path.is_file()]
        return {path.relative_to(out).as_posix(): path.stat().st_size for path in paths}, str(profile)
    family = load_family(out)
    count = len(family.profiles)
    files = {name: file.bytes for name, file in family.facts.files.items()}
    return files, profile or f"{count} profile{'' if count == 1 else 's'}"


def _is_part(name: str) -> bool:
    """Whether a word names a profile or a point; a folder that is called so is ``./L02-D064``."""
    from matexport.spec.profile import Precision, Profile

    for spelt in (name, f"{name}-{Precision.FP32}"):
        try:
            Profile.parse(spelt)
        except ValueError:
            continue
        return True
    return False
