"""Lay out the report's page: the lines, tables and heat maps of each section as plain text. No HTML here.

All text of a family and its measurements stays a `str`, which the template escapes. The only markup is the SVG of
`pictures`. Numbers from another host than the one in question carry that host's letter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matexport.family.survey import is_same_host
from matexport.pick.limits import LIMITS
from matexport.pick.wording import describe_ties
from matexport.report.findings import Findings
from matexport.report.heatmaps import list_marks, map_parity, map_retention
from matexport.report.naming import (
    command,
    count_noun,
    describe_family,
    describe_host,
    describe_threads,
    name_hosts,
    name_item,
)
from matexport.report.pictures import Missing, draw_curves, draw_plots, list_series
from matexport.report.tables import (
    tabulate_failures,
    tabulate_files,
    tabulate_floors,
    tabulate_hosts,
    tabulate_profiles,
    tabulate_scores,
    tabulate_tasks,
)
from matexport.spec.facts import FamilyFacts
from matexport.spec.measured import Host
from matexport.spec.profile import Point


@dataclass(frozen=True)
class Line:
    """A line of text, and the names of its CSS classes."""

    text: str
    style: str = ""


def lay_out(findings: Findings) -> dict[str, Any]:
    """All values of the page, by the names that the template uses for them in `page`."""
    facts, survey = findings.family.facts, findings.survey
    letters = name_hosts(findings)
    sections = [
        ("verdict", "Verdict"), ("retention", "Retention"), ("parity", "Parity"), ("tradeoffs", "Trade-offs"),
        ("profiles", "Profiles"), ("tasks", "Tasks"), ("hosts", "Hosts"), ("parent", "Parent"), ("floors", "Floors"),
        ("files", "Files"),
    ]  # fmt: skip
    retention = map_retention(findings, letters)
    retentions = [candidate.retention for candidate in survey.candidates]
    kept = [known.value for known in retentions if known and math.isfinite(known.value)]
    return {
        "title": f"{findings.name}: sub-models of {facts.parent.source}",
        "lead": describe_family(findings),
        "identity": list_identity(findings),
        "sections": sections,
        "verdicts": judge(findings, letters),
        "proven": not findings.unproven,
        "failures": tabulate_failures(findings, letters),
        "unproven": _note_unproven(findings),
        "budget": describe_budget(findings),
        "choice": describe_choice(findings),
        "curves": draw_curves(findings),
        "retention": retention if kept else [],
        "retention_note": _note_retention(findings),
        "retention_scale": (f"{min(kept):.3f}", f"{max(kept):.3f}") if kept else ("", ""),
        "no_retention": _note_missing_retention(findings, len(kept)),
        "marks": list_marks(findings, letters),
        "parity": map_parity(findings, letters),
        "no_parity": _note_unproven(findings),
        "plots": (plots := draw_plots(findings)),
        "no_plots": None if plots else _note_missing_retention(findings, 0),
        "legend": list_series(findings),
        "plot_note": _note_plots(findings),
        "profiles": tabulate_profiles(findings, letters),
        "profiles_note": _note_profiles(findings, letters),
        "tasks": tabulate_tasks(findings, letters) if findings.tasks else None,
        "scores": tabulate_scores(findings) if findings.tasks else None,
        "no_tasks": Missing("No task was evaluated.", "Measure quality with", command(findings, "evaluate")),
        "hosts": tabulate_hosts(findings, letters),
        "hosts_note": _note_hosts(findings, letters),
        "parent": list_parent(findings),
        "floors": tabulate_floors(findings),
        "files": tabulate_files(findings),
        "files_note": "What the manifest says of each file. This page did not read them; to check every digest, and "
        "parity on your machine (commands are to be run in the folder of this page):",
        "verify_command": command(findings, "verify"),
        "versions": [*sorted(facts.provenance.versions.items()), ("inputs sha256", facts.provenance.inputs_sha256)],
    }


def list_identity(findings: Findings) -> list[tuple[str, str]]:
    """(name, value) of what identifies the family: its parent, and the digests of the weights and the manifest."""
    facts = findings.family.facts
    weights = [(f"sha256 of {name}", digest) for name, digest in sorted(facts.parent.weights.items())]
    return [("parent", facts.parent.source), *weights, ("sha256 of family.json", findings.manifest_sha256)]


def judge(findings: Findings, letters: Mapping[Host, str]) -> list[Line]:
    """A line for each host that recorded parity, and one for the profiles that were refused."""
    total = len(findings.family.profiles)
    lines = []
    for host, verdicts in findings.verdicts:
        passed = sum(verdict.passed for verdict in verdicts.values())
        failed, unknown = len(verdicts) - passed, total - len(verdicts)
        text = (
            f"{passed} of {count_noun(total, 'profile')} passed parity on {describe_host(host)} (host {letters[host]})"
        )
        text += f"; {failed} off their floor" if failed else ""
        text += f"; {unknown} not recorded" if unknown else ""
        lines.append(Line(f"{text}.", "no" if failed else "unknown" if unknown else ""))
    if not lines:
        lines.append(
            Line(f"No host has recorded the parity of these {total} profiles. They passed once, when the family was "
                 "made, or it would not exist.", "unknown")
        )  # fmt: skip
    if refused := len(findings.family.facts.refused):
        lines.append(Line(f"{count_noun(refused, 'profile')} that {_was(refused)} asked for did not keep the floor "
                          "when the family was made, and "
                          f"{'is' if refused == 1 else 'are'} not in it.", "no"))  # fmt: skip
    return lines


def _note_unproven(findings: Findings) -> Missing | None:
    names = findings.unproven
    if not names:
        return None
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    whose = "any profile" if len(names) == len(findings.family.profiles) else f"{len(names)} profiles ({shown})"
    return Missing(
        f"The parity of {whose} was recorded on no host.", "Measure it with", command(findings, "verify", "--record")
    )


def describe_budget(findings: Findings) -> str:
    """The limits, how many profiles keep them, the best of these, and what could not be checked; empty if no limits."""
    choice = findings.choice
    if not choice.checks:
        return ""
    limits = [(LIMITS[check.limit], check) for check in choice.checks]
    said = [
        "Budget: "
        + ", ".join(
            f"{limit.what} {'>=' if limit.least else '<='} {limit.show(check.allowed)}" for limit, check in limits
        )
    ]
    if any(check.done for check in choice.checks):
        fitting = [candidate.profile for candidate in choice.fitting]
        names = f": {', '.join(fitting)}" if 0 < len(fitting) <= 12 else ""
        total = count_noun(len(findings.survey.candidates), "profile")
        said.append(f"{len(fitting)} of {total} {'keeps' if len(fitting) == 1 else 'keep'} it{names}")
        said += [f"The choice: {fitting[0]}"] if len(fitting) > 1 else []
        said += [ties.replace("its retention", "Its retention", 1)] if (ties := describe_ties(choice)) else []
        off = [name for name in fitting if name in findings.broken]
        said += [f"Off their parity floor, at which pick does not look: {', '.join(off)}"] if off else []
    said += [
        f"Not checked, since it was measured for no profile: {limit.what}" for limit, check in limits if not check.done
    ]
    return f"{'. '.join(said)}."


def describe_choice(findings: Findings) -> str:
    """Which profile `pick` chooses, and by what."""
    choice = findings.choice
    if choice.chosen is None:
        return "Nothing fits, so there is no choice."
    name, kept = choice.chosen.profile, choice.chosen.retention
    limits = "within what could be checked of the budget" if choice.checks else "as no limit was set"
    if not choice.quality_known:
        limits += "; no retention was measured, so by trained points, depth and width"
    elif kept:
        limits += f", at a retention of {kept.value:.3f}"
    warning = " It is off its parity floor, at which pick does not look." if name in findings.broken else ""
    return f"The choice of pick: {name}, {limits}. It is outlined in the table, and ringed in the plots.{warning}"


def _note_retention(findings: Findings) -> str:
    tasks = findings.survey.tasks
    if not tasks:
        return "Quality of a sub-model over the whole parent's."
    of = f"the task {tasks[0]}" if len(tasks) == 1 else f"the least over {len(tasks)} tasks: {', '.join(tasks)}"
    trained = (
        "" if findings.family.facts.trained is not None else " Nobody said which points the parent was trained at."
    )
    return f"Quality of a sub-model over the whole parent's, 1 being the parent's own: {of}.{trained}"


def _note_missing_retention(findings: Findings, known: int) -> Missing | None:
    total = len(findings.survey.candidates)
    if known == total:
        return None
    what = f"Of {total - known} of {total} profiles no retention is known." if known else "No retention was measured."
    return Missing(what, "Measure it with", command(findings, "evaluate"))


def _note_plots(findings: Findings) -> str:
    threads = describe_threads(findings)
    return f"Points carry their names. Latency and memory {threads}." if threads else "Points carry their names."


def _note_hosts(findings: Findings, letters: Mapping[Host, str]) -> str:
    here = describe_host(findings.host)
    if not letters:
        return f"Nothing was measured on any host. This page was written on {here}."
    if any(is_same_host(host, findings.host) for host in letters):
        return f"The numbers are those of {here}. What was not measured there is the worst of the other hosts'."
    return (
        f"This page was written on {here}, where nothing was measured: each number is the worst of the other hosts', "
        "and an assumption here."
    )


def _note_profiles(findings: Findings, letters: Mapping[Host, str]) -> str:
    text = "Press a column's title to sort by it, and again for the other direction. – is not measured."
    if threads := describe_threads(findings):
        text += f" Latency is the median of one {name_item(findings)} {threads}."
    if any(not is_same_host(host, findings.host) for host in letters):
        text += " A raised letter names the host of a number that was not measured on this one."
    return text


def list_parent(findings: Findings) -> list[tuple[str, str]]:
    """(name, value) of what the manifest says of the parent, its read-out, its texts and its trace."""
    facts = findings.family.facts
    readout, trace = facts.readout, facts.trace
    pairs = [
        ("architecture", f"{facts.parent.architecture}, {facts.parent.blocks} blocks, width {facts.parent.width}, "
         f"vectors of {facts.parent.output_width}, {facts.parent.dtype}"),
        *((("judged by", facts.parent.judge),) if facts.parent.judge else ()),
        ("read-out", " -> ".join(filter(None, [" + ".join(readout.pooling), *readout.heads])) or "the last state"),
        ("final norm", str(readout.final_norm)),
        ("after the cut", "unit length" if readout.normalize else "not scaled"),
        *_list_inputs(facts),
        ("trained points", _describe_trained(facts.trained)),
        ("graphs", f"opset {trace.opset}, IR {trace.ir_version}, traced with {trace.exporter}"
         + (f" ({trace.fallback})" if trace.fallback else "")),
    ]  # fmt: skip
    if vocabulary := facts.vocabulary:
        pairs.append(("vocabulary", f"{vocabulary.tokens} of {vocabulary.parent_tokens} tokens ({vocabulary.kept_by}); "
                      f"{count_noun(len(vocabulary.changed_probes), 'probe')} left out"))  # fmt: skip
    return pairs


def _list_inputs(facts: FamilyFacts) -> list[tuple[str, str]]:
    """What one vector is of, and how the parent reads it."""
    text = facts.text
    if text is None:
        return [(facts.inputs.noun, facts.inputs.describe())]
    return [
        ("text", f"{text.describe()}, padded on the {text.padding_side} by the parent"),
        *((f"prompt {name!r}", prompt + (" (default)" if name == text.default_prompt else ""))
          for name, prompt in text.prompts.items()),
    ]  # fmt: skip


def _describe_trained(trained: tuple[Point, ...] | None) -> str:
    if trained is None:
        return "nobody said"
    return ", ".join(f"{point.layers} layers × {point.dim}" for point in sorted(trained)) or "none"


def _was(number: int) -> str:
    return "was" if number == 1 else "were"
