"""show: what a family contains, and what was measured of it on this host."""

from __future__ import annotations

import argparse
import shlex

from matexport.cli.options import (
    Parsers,
    add_command,
    add_family,
)
from matexport.cli.output import (
    DONE,
    format_profiles,
    print_decisions,
    print_json,
    print_unread,
    say,
)
from matexport.io.terminal import show_plain

SUMMARY = "print what a family contains"
DESCRIPTION = (
    "Print a family's parent, read-out and profiles: size of the download (graph and the prefix of the weights "
    "that it needs), parity as measured on this host, and the graph's file. "
    "Reads the manifest and what was measured on this host."
)
EXAMPLES = "example:\n  matexport show artifacts/minilm"


def add_parser(parsers: Parsers) -> None:
    """What the command takes, and the help that teaches it."""
    command = add_command(parsers, "show", run, SUMMARY, DESCRIPTION, EXAMPLES)
    add_family(command)


def run(options: argparse.Namespace) -> int:
    """``matexport show FAMILY``"""
    from matexport.towers import holds_towers

    if holds_towers(options.family):
        from matexport.cli.towers import run_each

        return run_each(options, run)
    from matexport.family.manifest import load_family
    from matexport.family.measurements.records import load_measurement
    from matexport.family.summary import describe_profiles, describe_target
    from matexport.host import read_host

    family = load_family(options.family)
    measured = load_measurement(family, read_host())
    rows = describe_profiles(family, measured)
    if options.json:
        import msgspec

        facts = msgspec.to_builtins(family.facts)
        print_json({"family": str(options.family), "facts": facts, "profiles": rows})
        return DONE
    facts = family.facts
    heads = " -> ".join(filter(None, [" + ".join(facts.readout.pooling), *facts.readout.heads])) or "the last state"
    parent = facts.parent
    scaled = "unit length after the cut" if facts.readout.normalize else "not scaled after the cut"
    told = [
        f"parent    {parent.source} ({parent.architecture}, {parent.blocks} blocks, {parent.output_width} dims)",
        f"read-out  {heads}, final norm {facts.readout.final_norm}, {scaled}",
        *([f"judge     {parent.judge}"] if parent.judge else []),
    ]
    prompts = f"; prompts: {', '.join(facts.text.prompts) or 'none'}" if facts.text else ""
    told.append(f"{facts.inputs.noun:<10}{facts.inputs.describe()}{prompts}")
    told.append(f"target    {describe_target(facts)}")
    say("\n".join(map(show_plain, told)))
    say(f"\n{format_profiles(rows)}")
    prepared = measured and (measured.token_ids or measured.pixels)
    if prepared and (difference := prepared.find_difference()):
        say(f"\non this host, {show_plain(difference)}")
    print_decisions(family)
    print_unread(family)
    for reason in facts.refused.values():
        say(f"not in the family: {show_plain(reason)}")
    if all(row["max_abs"] is None for row in rows):
        command = shlex.join(["matexport", "verify", str(options.family), "--record"])
        say(f"\nparity was not measured on this host: run {command}")
    return DONE
