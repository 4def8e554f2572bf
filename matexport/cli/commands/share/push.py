"""push: a family, or a pack of one profile, to a model hub."""

from __future__ import annotations

import argparse

from matexport.cli.options import (
    Parsers,
    add_command,
    add_family,
)
from matexport.cli.output import (
    DONE,
    print_json,
    say,
)
from matexport.cli.progress import show_progress
from matexport.io.terminal import show_plain

SUMMARY = "send a family, or one profile of it, to a model hub"
DESCRIPTION = (
    "Verify a family, or pack one profile and verify that, and send it to a repository of a model hub in one commit: "
    "what the manifest lists, the card (README.md), licences and measurements. Files of a family that was there before "
    "go; a repository that holds something else is left alone. The hub is that of HF_ENDPOINT, the token that of "
    "HF_TOKEN or `hf auth login`. Needs the [hub] extra."
)
EXAMPLES = (
    "examples:\n  matexport push artifacts/minilm --to someone/minilm-family --dry-run\n"
    "  matexport push artifacts/minilm L02-D064-int8 --to someone/minilm-small --private"
)


def add_parser(parsers: Parsers) -> None:
    """What the command takes, and the help that teaches it."""
    command = add_command(parsers, "push", run, SUMMARY, DESCRIPTION, EXAMPLES)
    add_family(command)
    command.add_argument("profile", metavar="PROFILE", nargs="?", help="send a pack of this profile alone")
    command.add_argument("--to", required=True, metavar="REPO", help="repository, such as someone/small-encoder")
    command.add_argument(
        "--private", action="store_true", help="make the repository private; one that is public already is refused"
    )
    command.add_argument("--revision", metavar="BRANCH", help="branch, made if there is none (default: the main one)")
    command.add_argument("--message", metavar="TEXT", help="message of the commit")
    command.add_argument(
        "--dry-run", action="store_true", help="verify, and list the files and their bytes; the hub is not asked"
    )


def run(options: argparse.Namespace) -> int:
    """``matexport push FAMILY [PROFILE] --to REPO``"""
    from matexport.hub.push import PushTarget, push_family

    target = PushTarget(options.to, options.private, options.revision, options.message)
    with show_progress() as progress:
        pushed = push_family(
            options.family, target, profile=options.profile, dry_run=options.dry_run, progress=progress
        )
    total = sum(pushed.files.values())
    if options.json:
        document = {"repo": pushed.repo, "profile": options.profile, "bytes": total, "files": dict(pushed.files)}
        print_json(document | {"removed": list(pushed.removed), "commit": pushed.commit, "url": pushed.url})
        return DONE
    if options.dry_run:
        for name, count in sorted(pushed.files.items()):
            say(show_plain(f"{count:>13,}  {name}"))
        say(f"\n{show_plain(pushed.repo)}: {len(pushed.files)} files, {total / 1e6:.1f} MB would be sent")
        return DONE
    removed = f", {len(pushed.removed)} of the family before removed" if pushed.removed else ""
    say(show_plain(f"{pushed.repo}: {len(pushed.files)} files, {total / 1e6:.1f} MB{removed}; {pushed.url}"))
    if "README.md" not in pushed.files:
        say("it has no card: `matexport report` writes one (README.md), which the next push sends")
    return DONE
