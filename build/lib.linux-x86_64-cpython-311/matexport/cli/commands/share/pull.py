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
from matexport.io.terminal import show_plain

SUMMARY = "fetch a family, or one profile of it, from a model hub"
DESCRIPTION = (
    "Fetch the manifest of a family from a repository of a model hub, then the files that it lists; check their "
    "digests, verify it and put it into OUT. With PROFILE, as a pack: its graph and the first bytes of the weights are "
    "fetched alone. No code comes along. What was fetched stays in huggingface_hub's cache: a transfer that was cut "
    "off goes on there, and a deeper profile takes the bytes that are missing. The hub is that of HF_ENDPOINT, the "
    "token that of HF_TOKEN or `hf auth login`. Needs the [hub] extra."
)
EXAMPLES = (
    "examples:\n  matexport pull someone/minilm-family\n"
    "  matexport pull someone/minilm-family L02-D064-int8 artifacts/small --revision v1"
)


def add_parser(parsers: Parsers) -> None:
    """What the command takes, and the help that teaches it."""
    command = add_command(parsers, "pull", run, SUMMARY, DESCRIPTION, EXAMPLES)
    command.add_argument("repo", metavar="REPO", help="repository, such as someone/small-encoder")
    command.add_argument("profile", metavar="PROFILE", nargs="?", help="fetch this profile alone")
    command.add_argument(
        "out",
        type=Path,
        metavar="OUT",
        nargs="?",
        help="folder to write (default: called as the repository, with the profile behind it)",
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
    from matexport.hub.pull import pull_family

    profile: str | None = options.profile
    out: Path | None = options.out
    if out is None and profile is not None and not _is_profile(profile):
        out, profile = Path(profile), None  # REPO OUT
    if out is None:
        out = Path("-".join(filter(None, (options.repo.rpartition("/")[2], profile))))
    with show_progress() as progress:
        family = pull_family(
            options.repo,
            out,
            profile=profile,
            revision=options.revision,
            overwrite=options.overwrite,
            progress=progress,
        )
    total = sum(file.bytes for file in family.facts.files.values())
    if options.json:
        files = {name: file.bytes for name, file in family.facts.files.items()}
        print_json({"family": str(out), "repo": options.repo, "profile": profile, "bytes": total, "files": files})
        return DONE
    what = profile or f"{len(family.profiles)} profile{'' if len(family.profiles) == 1 else 's'}"
    say(show_plain(f"{out}: {what}, {len(family.facts.files) + 1} files, {total / 1e6:.1f} MB, verified"))
    return DONE


def _is_profile(name: str) -> bool:
    from matexport.spec.profile import Profile

    try:
        Profile.parse(name)
    except ValueError:
        return False
    return True
