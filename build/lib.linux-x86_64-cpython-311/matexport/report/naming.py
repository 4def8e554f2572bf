"""How a report names and spells things: hosts by a letter, groups of profiles, numbers, and commands for the family."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping

from matexport.family.survey import is_same_host
from matexport.report.findings import Findings
from matexport.spec.measured import CPU, Host
from matexport.spec.profile import Encoding, Precision, Profile


def command(findings: Findings, verb: str, *options: str) -> str:
    """A command line for this family, quoted for a shell, to be run where the report is read."""
    return shlex.join(["matexport", verb, findings.place, *options])


def name_hosts(findings: Findings) -> Mapping[Host, str]:
    """Host -> its letter (a, b, ..., z, aa, ...), for each host that something was measured on; this host first."""
    hosts = sorted(findings.survey.hosts, key=lambda host: not is_same_host(host, findings.host))
    return {host: _letter(index) for index, host in enumerate(hosts)}


def _letter(index: int) -> str:
    letters = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        letters = chr(ord("a") + rest) + letters
    return letters


def describe_family(findings: Findings) -> str:
    """The lead of a report: how many sub-models of which parent, and in which precisions."""
    facts = findings.family.facts
    points = {(profile.layers, profile.dim) for profile in facts.profiles.values()}
    present = {profile.precision for profile in facts.profiles.values()}
    precisions = [precision for precision in Precision if precision in present]
    return (
        f"{count_noun(len(facts.profiles), 'ONNX sub-model')} of one {facts.parent.architecture} encoder "
        f"({facts.parent.blocks} blocks, {facts.parent.output_width} dims): {count_noun(len(points), 'point')} "
        f"(layers, dim) in {', '.join(precisions)}. Each is a cut of the parent's own graph, held to the parent's "
        "vectors at the same point."
    )


def describe_host(host: Host) -> str:
    """A host in one line: processor, instruction sets, CPUs and the version of onnxruntime."""
    sets = f" ({', '.join(host.instruction_sets)})" if host.instruction_sets else ""
    return f"{host.cpu}{sets}, {count_noun(host.cpus, 'CPU')}, onnxruntime {host.onnxruntime}"


def describe_threads(findings: Findings) -> str:
    """The numbers of threads that timings on CPUs are shown for, such as ``with 4 threads``; empty without timings."""
    counts = {
        findings.threads if findings.threads is not None else max(profile.threads)
        for bench in findings.benches
        for profile in bench.profiles.values()
        if bench.provider == CPU and profile.threads
    }
    return f"with {' or '.join(map(str, sorted(counts)))} thread{'s' if counts != {1} else ''}" if counts else ""


def list_groups(findings: Findings) -> list[tuple[tuple[Precision, Encoding], list[Profile]]]:
    """The profiles of each precision and encoding that the family has, in the order of both enums."""
    profiles = findings.family.profiles
    return [
        ((precision, encoding), members)
        for precision in Precision
        for encoding in Encoding
        if (members := [one for one in profiles if (one.precision, one.encoding) == (precision, encoding)])
    ]


def name_group(precision: Precision, encoding: Encoding) -> str:
    """A precision, with its encoding where that is not float32."""
    return str(precision) if encoding is Encoding.FLOAT32 else f"{precision}, vectors as {encoding}"


def format_number(value: float | None, form: str) -> str:
    """A number as a format specification such as ``.3f`` writes it; a dash for None, and ∞ or words if not finite."""
    if value is None:
        return "–"
    return format(value, form) if math.isfinite(value) else {True: "∞", False: "not a number"}[value == value]


def mark_host(findings: Findings, letters: Mapping[Host, str], host: Host) -> str:
    """The letter of a host; empty for the host in question, whose numbers carry none."""
    return "" if is_same_host(host, findings.host) else letters[host]


def count_noun(number: int, noun: str) -> str:
    """A number and a noun, with an s unless the number is 1."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def name_item(findings: Findings) -> str:
    """What one latency is of."""
    noun = findings.family.facts.inputs.noun
    return "short text" if noun == "text" else noun
