"""pack: one profile as a self-contained folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

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
from matexport.consumers.layouts import ALL, LAYOUTS, NATIVE, SINGLE_FILE, TORCH
from matexport.errors import RequestError

if TYPE_CHECKING:
    from matexport.family.manifest import Family

SUMMARY = "write one profile as a self-contained folder"
DESCRIPTION = (
    "Copy one profile's graph, the prefix of the weights that it needs and the tokenizer into a folder of its own, as "
    "what loads it expects it, and prove it there: as `verify` does, and as a stranger would run it. A point, such as "
    "L02-D064, packs all its precisions under the names that transformers.js looks for. Every command that takes "
    "FAMILY works on a pack (but not on --for torch and --for single-file)."
)
EXAMPLES = (
    "what it may be for:\n"
    + "".join(f"  {name:<12} {layout.summary}\n" for name, layout in LAYOUTS.items())
    + "\nexamples:\n"
    "  matexport pack artifacts/minilm L02-D064-fp32 artifacts/small\n"
    "  matexport pack artifacts/minilm L02-D064 artifacts/small --for all\n"
    "  matexport pack artifacts/minilm L02-D064-fp32 artifacts/tuned --for torch --parent path/to/parent"
)


def add_parser(parsers: Parsers) -> None:
    """What the command takes, and the help that teaches it."""
    command = add_command(parsers, "pack", run, SUMMARY, DESCRIPTION, EXAMPLES)
    add_family(command)
    command.add_argument("profile", metavar="PROFILE", help="profile, as `show` lists them, or a point")
    command.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    command.add_argument(
        "--for",
        dest="layout",
        choices=list(LAYOUTS),
        metavar="NAME",
        help=f"who reads it (default: {ALL}; of images, of codes, and of texts that no other library prepares as the "
        f"parent does, {NATIVE}): {', '.join(LAYOUTS)}",
    )
    command.add_argument(
        "--token-states",
        action="store_true",
        help="also give the states of the tokens, as an output token_embeddings (batch, sequence, width)",
    )
    command.add_argument(
        "--parent",
        metavar="PARENT",
        help="with --for torch, where the parent is: a directory, a hub id or package:NAME/path (default: what the "
        "family says it was made from)",
    )
    command.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the family or pack in OUT; what people wrote there "
        "(README.md, report.html) and measurements stay",
    )


def run(options: argparse.Namespace) -> int:
    """``matexport pack FAMILY PROFILE OUT``"""
    from matexport.family.manifest import load_family
    from matexport.pack.write import choose_layout, pack_profile, pack_single_file, select_profiles
    from matexport.towers import holds_towers

    if holds_towers(options.family):
        from matexport.cli.towers import pack_both

        return pack_both(options)
    if options.parent is not None and options.layout != TORCH:
        raise RequestError(f"--parent was given, and only --for {TORCH} reads the parent")
    family = load_family(options.family)
    if options.token_states and options.layout in (SINGLE_FILE, TORCH):
        raise RequestError(f"--token-states was given; --for {options.layout} has no use for it")
    if options.layout == TORCH:
        return _write_torch(family, options)
    layout = options.layout or choose_layout(family, options.profile)
    if options.token_states and not LAYOUTS[layout].configured:
        raise RequestError(f"--token-states changes the graph, and --for {layout} keeps it as it was exported")
    out: Path = options.out
    if layout == SINGLE_FILE:
        _refuse_overwrite(options)
        pack_single_file(family, options.profile, out)
    else:
        with show_progress() as progress:
            shape = replace(LAYOUTS[layout], states=options.token_states)
            pack_profile(family, options.profile, out, layout=shape, overwrite=options.overwrite, progress=progress)
    files = {path.relative_to(out).as_posix(): path.stat().st_size for path in sorted(out.rglob("*")) if path.is_file()}
    if options.json:
        total = {"bytes": sum(files.values()), "files": files}
        print_json({"pack": str(options.out), "profile": options.profile, "for": layout, **total})
    else:
        names = ", ".join(select_profiles(family, options.profile))
        say(f"{options.out}: {names} for {layout}, {len(files)} files, {sum(files.values()) / 1e6:.1f} MB")
    return DONE


def _write_torch(family: Family, options: argparse.Namespace) -> int:
    from matexport.export import require_export_extra

    require_export_extra()
    from matexport.export.parents.folder.write import write_torch_folder
    from matexport.export.quiet import quiet_libraries

    quiet_libraries()

    _refuse_overwrite(options)
    with show_progress() as progress:
        parity = write_torch_folder(family, options.profile, options.out, parent=options.parent, progress=progress)
    if options.json:
        print_json({"pack": str(options.out), "profile": options.profile, "for": TORCH, "max_abs": parity.max_abs})
    else:
        say(f"{options.out}: {options.profile} for {TORCH}, max abs difference {parity.max_abs:.1e} in torch")
    return DONE


def _refuse_overwrite(options: argparse.Namespace) -> None:
    if options.overwrite:
        what = f"--for {options.layout} writes a folder that is none"
        raise RequestError(f"--overwrite replaces a pack, and {what}: choose another destination")
