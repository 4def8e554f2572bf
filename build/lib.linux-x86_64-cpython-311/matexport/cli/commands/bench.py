"""bench: what each profile costs on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from matexport.cli.options import (
    Parsers,
    add_command,
    add_engine,
    add_family,
    read_count,
    read_engine,
    read_limit,
    read_shape,
    read_threads,
)
from matexport.cli.output import (
    DONE,
    print_json,
    say,
)
from matexport.cli.progress import show_progress
from matexport.errors import RequestError
from matexport.io.files import explain_write_errors
from matexport.io.terminal import format_table
from matexport.spec.measured import CPU
from matexport.spec.profile import Profile

if TYPE_CHECKING:
    from matexport.spec.measured import Bench, Sample, Timing


SUMMARY = "measure what each profile costs on this machine"
DESCRIPTION = (
    "Per profile: size, cold start (process start to first vector), latency at several shapes, throughput on a mix "
    "of lengths, peak memory; with 1 thread and with all CPUs of this process. Every measurement runs in a fresh "
    "process, profiles in turns, forwards and backwards. Kept in FAMILY/measurements/<host>.json. A whole family "
    "takes minutes: name profiles to be quicker."
)
EXAMPLES = (
    "examples:\n  matexport bench artifacts/minilm --profile L02-D064-fp32 --profile L06-D384-fp32\n"
    "  matexport bench artifacts/minilm --threads 1 --shape 1x16 --texts my-texts.txt\n"
    "  matexport bench artifacts/minilm --profile L02-D064-fp32 --against torch\n"
    "  matexport bench artifacts/minilm --profile L02-D064-fp32 --engine openvino-bf16"
)


def add_parser(parsers: Parsers) -> None:
    """What the command takes, and the help that teaches it."""
    command = add_command(parsers, "bench", run, SUMMARY, DESCRIPTION, EXAMPLES)
    add_family(command)
    command.add_argument(
        "--profile",
        action="append",
        default=[],
        metavar="NAME",
        help="measure this one; may be repeated (default: all)",
    )
    command.add_argument(
        "--threads",
        action="append",
        type=read_threads,
        default=[],
        metavar="N",
        help="may be repeated (default: 1 and all CPUs of this process)",
    )
    command.add_argument(
        "--shape",
        action="append",
        type=read_shape,
        default=[],
        metavar="BATCHxTOKENS",
        help="may be repeated (default: 1x16 1x128 16x32 16x128)",
    )
    command.add_argument(
        "--texts",
        type=Path,
        metavar="FILE",
        help="one text per line, as long as yours are, for the throughput (default: the probes)",
    )
    command.add_argument("--runs", type=read_count, default=200, metavar="N", help="runs of each shape (default: 200)")
    command.add_argument(
        "--seconds",
        type=read_limit,
        default=10.0,
        metavar="S",
        help="stop a shape after so long, if there were not enough runs by then (default: 10)",
    )
    add_engine(command)
    command.add_argument(
        "--against",
        choices=["torch"],
        help="also time the parent itself, in sentence-transformers and "
        "cut to the same points, in turns with the profiles; needs the [export] extra",
    )
    command.add_argument(
        "--parent",
        metavar="SOURCE",
        help="with --against: where that parent is: a directory, a hub "
        "id or package:NAME/path (default: where the family was exported from)",
    )


def run(options: argparse.Namespace) -> int:
    """``matexport bench FAMILY``"""
    from matexport.family.manifest import load_family
    from matexport.family.measurements.records import record_bench
    from matexport.io.texts import MAX_MIX_TEXTS, read_texts
    from matexport.measure.bench import BenchPlan, bench_family

    family = load_family(options.family)
    if options.parent is not None and not options.against:
        raise RequestError("--parent is for --against torch")
    if options.against:
        from matexport.export import require_export_extra

        require_export_extra()
    texts = read_texts(options.texts, MAX_MIX_TEXTS, "the texts") if options.texts else ()
    if options.texts and not texts:
        raise RequestError(f"the texts {options.texts} are empty: give one per line")
    plan = BenchPlan(
        profiles=tuple(options.profile),
        threads=tuple(options.threads),
        shapes=tuple(options.shape),
        texts=texts,
        runs=options.runs,
        seconds=options.seconds,
        engine=read_engine(options),
        parent=(options.parent or family.facts.parent.source) if options.against else None,
    )
    with show_progress() as progress:
        bench = bench_family(family, plan, progress=progress)
    if not options.json:  # before it is kept: that may fail, and took minutes
        mix = next(iter(bench.profiles.values())).mix_texts
        noun = family.facts.inputs.noun
        say(format_bench(bench, noun))
        say(f"\n{bench.host.cpu}, {bench.host.cpus} CPUs, onnxruntime {bench.host.onnxruntime}, ", end="")
        say(f"{_name_engine(bench)}; {noun}s/s on {mix} {'texts of yours' if texts else 'probes'}")
        say("medians, in brackets their 95 % interval", flush=True)
    with explain_write_errors(options.family):
        path = record_bench(family, bench)
    if options.json:
        import msgspec

        print_json({"family": str(options.family), "recorded": str(path)} | msgspec.to_builtins(bench, str_keys=True))
    else:
        say(f"kept in {path}")
    return DONE


def _name_engine(bench: Bench) -> str:
    return "provider cpu" if bench.provider == CPU or bench.engine is None else f"run by {bench.engine.summary}"


def format_bench(bench: Bench, noun: str = "text") -> str:
    """The table that `bench` prints: one line per profile and number of threads; then the parent, if it was timed.

    Beside each profile stands how many times the texts per second of the parent at its point it gives.
    """
    timings: list[tuple[str, int, tuple[str, str], Timing, Mapping[int, Timing]]] = []
    parents: dict[tuple[str, int], Timing] = {}
    for name, profile in bench.profiles.items():
        sizes = f"{profile.download_bytes / 1e6:.1f}", f"{profile.disk_bytes / 1e6:.1f}"
        timings += [(name, count, sizes, timing, profile.parent) for count, timing in sorted(profile.threads.items())]
        point = Profile.parse(name).point.name
        parents |= {(f"{point} in torch", count): timing for count, timing in sorted(profile.parent.items())}
    timings += [(name, count, ("-", "-"), timing, {}) for (name, count), timing in parents.items()]
    shapes = list(dict.fromkeys(shape for _, _, _, timing, _ in timings for shape in timing.latency))
    against = ["x torch"] if parents else []
    header = (
        "profile",
        "threads",
        "size MB",
        "disk MB",
        "RAM MB",
        "cold start s",
        *(f"{shape} ms (p95)" for shape in shapes),
        f"1 {noun} ms",
        "not graph",
        f"{noun}s/s",
        *against,
    )
    rows = [
        (
            name,
            str(count),
            *sizes,
            "-" if timing.peak_bytes is None else f"{timing.peak_bytes / 1e6:.0f}",
            f"{timing.first_vector.p50 / 1e3:.2f}",
            *(_format_sample(timing.latency.get(shape)) for shape in shapes),
            f"{timing.call.p50:.2f}",
            f"{timing.overhead:.0%}",
            _format_rate(timing),
            *([f"{timing.texts_per_s / parent[count].texts_per_s:.2f}" if count in parent else "-"] if against else []),
        )
        for name, count, sizes, timing, parent in timings
    ]
    return format_table(header, rows, left=(0,))


def _format_rate(timing: Timing) -> str:
    texts = timing.texts_per_s * timing.mix.p50
    return f"{timing.texts_per_s:.0f} [{texts / timing.mix.high:.0f}, {texts / timing.mix.low:.0f}]"


def _format_sample(sample: Sample | None) -> str:
    return "-" if sample is None else f"{sample.p50:.2f} [{sample.low:.2f}, {sample.high:.2f}] ({sample.p95:.2f})"
