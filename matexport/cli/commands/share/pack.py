"""pack: one profile as a self-contained folder."""

from __future__ import annotations

import argparse
from pathlib import Path

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

SUMMARY = "write one profile as a self-contained folder"
DESCRIPTION = (
    "Copy one profile's graph, the prefix of the weights that it needs, the tokenizer and the proof into a folder "
    "of its own; every command that takes FAMILY works on it."
)
EXAMPLES = "example:\n  matexport pack artifacts/minilm L02-D064-fp32 artifacts/small"


def add_parser(parsers: Parsers) -> None:
    """What the command takes, and the help that teaches it."""
    command = add_command(parsers, "pack", run, SUMMARY, DESCRIPTION, EXAMPLES)
    add_family(command)
    command.add_argument("profile", metavar="PROFILE", help="profile, as `show` lists them")
    command.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    command.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the family or pack in OUT; what people wrote there "
        "(README.md, report.html) and measurements stay",
    )


def run(options: argparse.Namespace) -> int:
    """``matexport pack FAMILY PROFILE OUT``"""
    from matexport.pack import pack_profile
    from matexport.towers import holds_towers

    if holds_towers(options.family):
        from matexport.cli.towers import pack_both

        return pack_both(options)
    with show_progress() as progress:
        pack = pack_profile(
            options.family, options.profile, options.out, overwrite=options.overwrite, progress=progress
        )
    total = sum(file.bytes for file in pack.facts.files.values())
    if options.json:
        files = {name: file.bytes for name, file in pack.facts.files.items()}
        print_json({"pack": str(options.out), "profile": options.profile, "bytes": total, "files": files})
    else:
        say(f"{options.out}: {options.profile}, {len(pack.facts.files) + 1} files, {total / 1e6:.1f} MB")
    return DONE
