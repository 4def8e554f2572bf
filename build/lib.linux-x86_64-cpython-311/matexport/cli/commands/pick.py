"""pick: the best profile that fits a budget, and a reason for every other one."""

from __future__ import annotations

import argparse
import gc
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from matexport.cli.options import (
    Parsers,
    add_command,
    add_family,
    add_threads,
    read_limit,
    read_shape,
    read_share,
)
from matexport.cli.output import (
    DONE,
    REFUSED,
    complain,
    print_json,
    say,
)
from matexport.cli.progress import show_progress
from matexport.errors import RequestError
from matexport.io.files import explain_write_errors
from matexport.io.terminal import show_plain

if TYPE_CHECKING:
    from matexport.family.manifest import Family
    from matexport.family.survey import Survey
    from matexport.pick.choose import Choice
    from matexport.pick.device import Device
    from matexport.pick.limits import Budget


SUMMARY = "choose the best profile that fits a budget"
DESCRIPTION = (
    "Of the profiles that keep every limit, choose the one of the best retention; of those whose retentions the "
    "task cannot tell apart (a paired bootstrap, kept by evaluate), the fastest, then the smallest. Show "
    "those that no other one beats (the Pareto front) and a reason for each that was rejected. Sizes come "
    "from the manifest, the rest from what bench and evaluate measured: on this host, or else on another one, "
    "which is then named. A limit that nobody measured anything for is named, too, and rejects nothing, unless "
    "--strict. MB are 10^6 bytes. Exit code 1: nothing fits."
)
EXAMPLES = (
    "examples:\n  matexport pick artifacts/minilm --max-latency-ms 10 --max-disk-mb 40 --min-retention 0.95\n"
    "  matexport pick artifacts/minilm --device raspberry-pi-5 --out artifacts/for-the-pi"
)


def add_parser(parsers: Parsers) -> None:
    """Add the command with its options and its help."""
    command = add_command(parsers, "pick", run, SUMMARY, DESCRIPTION, EXAMPLES)
    add_family(command)
    command.add_argument(
        "--max-latency-ms", type=read_limit, metavar="MS", help="median of embedding one short text, or of the --shape"
    )
    command.add_argument("--max-disk-mb", type=read_limit, metavar="MB", help="all files that are needed to run it")
    command.add_argument(
        "--max-ram-mb", type=read_limit, metavar="MB", help="peak resident memory of a process that runs it"
    )
    command.add_argument("--max-cold-start-ms", type=read_limit, metavar="MS", help="process start to first vector")
    command.add_argument(
        "--min-retention", type=read_share, metavar="SHARE", help="of the whole parent's quality, 0 to 1"
    )
    command.add_argument(
        "--device",
        metavar="DEVICE",
        help="take the limits, and the host whose measurements count, from a device: one that comes along, such as "
        "raspberry-pi-5 (any other name lists them), or a TOML file; limits given as options go first",
    )
    command.add_argument("--trained-only", action="store_true", help="reject points that the parent was not trained at")
    command.add_argument(
        "--strict", action="store_true", help="exit code 1 when a limit, or --trained-only, could not be checked"
    )
    command.add_argument(
        "--task",
        metavar="NAME",
        help="whose retention counts, as evaluate names it (default: the least "
        "of the tasks with labels; without any, of the others)",
    )
    command.add_argument("--shape", type=read_shape, metavar="BATCHxTOKENS", help="whose latency counts, such as 1x16")
    command.add_argument(
        "--measure",
        action="store_true",
        help="first bench the profiles that lack timings of this host, and keep them; takes minutes",
    )
    command.add_argument("--out", type=Path, metavar="DIR", help="also write the choice there, as pack does")
    command.add_argument("--overwrite", action="store_true", help="replace the family or pack in DIR, as pack does")
    add_threads(command, "whose timings count (default: the most that were measured on a host)")


def run(options: argparse.Namespace) -> int:
    """Run ``matexport pick FAMILY`` and return its exit code."""
    # All that is made here is kept to the end, and to look for garbage takes a twentieth of the time.
    collects = gc.isenabled()
    gc.disable()
    try:
        return _pick(options)
    finally:
        if collects:
            gc.enable()


def _pick(options: argparse.Namespace) -> int:
    from matexport.family.manifest import load_family
    from matexport.family.survey import survey_family
    from matexport.host import read_host
    from matexport.pick.choose import choose
    from matexport.pick.wording import describe_choice, list_unchecked, summarise_rejections

    if options.overwrite and options.out is None:
        raise RequestError("--overwrite is for --out DIR")
    budget, device = _read_budget(options)
    family = load_family(options.family)
    if options.out is not None:
        from matexport.family.integrity import refuse_occupied

        refuse_occupied(options.out, overwrite=options.overwrite)
    if options.measure:
        _measure_missing(family, device, options)
    survey = survey_family(
        family,
        device.host if device else read_host(),
        threads=options.threads,
        shape=options.shape,
        task=options.task,
    )
    choice = choose(survey, budget, trained_only=options.trained_only)
    unchecked = list_unchecked(choice) if options.strict else ()
    pack = None
    if options.out is not None and choice.chosen and not unchecked:
        from matexport.pack.write import pack_profile

        with show_progress() as progress:
            pack = pack_profile(
                family, choice.chosen.profile, options.out, overwrite=options.overwrite, progress=progress
            )
    if options.json:
        document = {"family": str(options.family), "device": device.name if device else None}
        written = str(options.out) if pack else None
        print_json(document | describe_choice(survey, choice) | {"pack": written})
    else:
        _print_choice(survey, choice, device, pack, options)
    if choice.chosen is None:
        return complain(f"nothing fits: {summarise_rejections(choice.rejections)}", REFUSED)
    if unchecked:
        unwritten = "; nothing was written" if options.out else ""
        return complain(f"--strict: {', '.join(unchecked)} could not be checked{unwritten}", REFUSED)
    return DONE


def _read_budget(options: argparse.Namespace) -> tuple[Budget, Device | None]:
    """The limits given as options, or else those of the device, and the device."""
    from msgspec.structs import fields, replace

    from matexport.pick.device import load_device
    from matexport.pick.limits import Budget

    device = load_device(options.device) if options.device is not None else None
    asked = {field.name: getattr(options, field.name) for field in fields(Budget)}
    given = {name: limit for name, limit in asked.items() if limit is not None}
    return replace(device.limits if device else Budget(), **given), device


def _print_choice(
    survey: Survey, choice: Choice, device: Device | None, pack: Family | None, options: argparse.Namespace
) -> None:
    from matexport.pick.wording import format_choice

    if device:
        say(show_plain(f"device: {device.name} ({', '.join(device.sources)})") + "\n")
    say(format_choice(survey, choice, shlex.quote(str(options.family))))
    if pack:
        total = sum(file.bytes for file in pack.facts.files.values())
        say(f"\n{options.out}: {len(pack.facts.files) + 1} files, {total / 1e6:.1f} MB")


def _measure_missing(family: Family, device: Device | None, options: argparse.Namespace) -> None:
    """Bench the profiles that lack timings of this host, and record the timings.

    Raises:
        RequestError: the device in question is not this machine.
    """
    from matexport.family.measurements.records import record_bench
    from matexport.family.survey import list_unmeasured
    from matexport.host import read_host
    from matexport.measure.bench import BenchPlan, bench_family, list_default_shapes

    here = read_host()
    if device and not (device.host and device.host.matches(here)):
        raise RequestError(
            f"--measure was asked for {device.name}; this machine is another one ({here.cpu}, {here.cpus} CPUs): run "
            f"matexport bench on the device, and copy its {options.family}/measurements/*.json here"
        )
    profiles = list_unmeasured(family, here, threads=options.threads, shape=options.shape)
    if not profiles:
        return
    shapes: tuple[tuple[int, int], ...] = ()
    if options.shape and options.shape not in list_default_shapes(family):
        shapes = (*list_default_shapes(family), options.shape)
    threads = (options.threads,) if options.threads else ()
    if shapes:  # recording other shapes drops all timings from before, so the usual numbers of threads are timed again
        threads = (1, here.cpus, *threads)
    with show_progress() as progress:
        bench = bench_family(family, BenchPlan(profiles, threads, shapes), progress=progress)
    with explain_write_errors(options.family):
        record_bench(family, bench)
