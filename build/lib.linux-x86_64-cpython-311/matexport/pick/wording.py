"""Turn a choice by budget into text, and into plain values for JSON. Pure: nothing is printed here."""

from __future__ import annotations

from collections.abc import Iterable

from matexport.family.survey import Candidate, Measured, Survey, is_measured_on
from matexport.io.terminal import format_table, show_plain
from matexport.pick.choose import Choice
from matexport.pick.limits import (
    LIMITS,
    TRAINED_ONLY,
    LimitCheck,
    Rejection,
    read_cold_start,
    read_disk,
    read_latency,
    read_ram,
    read_retention,
    show_number,
)
from matexport.spec.measured import Host, HostPattern

NOT_MEASURED = "-"


def format_choice(survey: Survey, choice: Choice, family: str) -> str:
    """What `pick` prints: the choice, the front, a reason for each rejection, and how each limit was checked.

    Args:
        family: the family's name as the user gave it, for the commands that are proposed.
    """
    parts = [_format_chosen(survey, choice) if choice.chosen else _format_misses(choice)]
    if choice.front:
        parts.append(f"Pareto front, {len(choice.front)} of {len(choice.fitting)} that fit:\n" + _format_front(choice))
    if choice.rejections:
        rows = [(rejection.profile, rejection.reason) for rejection in choice.rejections]
        parts.append(f"rejected, {len(rows)}:\n" + format_table(("profile", "why"), rows, left=(0, 1)))
    notes = [_format_check(survey, check, family) for check in choice.checks]
    if choice.training_checked is not None:
        notes.append(_format_training(choice.training_checked))
    notes = notes or ["no limit was set"]
    parts.append("limits:\n" + "\n".join(f"  {note}" for note in notes))
    return "\n\n".join([*parts, *_list_warnings(survey, choice, family)])


def describe_choice(survey: Survey, choice: Choice) -> dict[str, object]:
    """What `format_choice` says, as plain values for JSON: latencies in ms, sizes in MB of 10^6 bytes."""
    return {
        "chosen": None if choice.chosen is None else _describe_candidate(survey, choice.chosen),
        "quality_measured": choice.quality_known,
        "tied": [candidate.profile for candidate in choice.tied],
        "ties_known": choice.ties_known,
        "tasks": list(survey.tasks),
        "tasks_left_out": dict(survey.left_out),
        "fitting": [candidate.profile for candidate in choice.fitting],
        "front": [_describe_candidate(survey, candidate) for candidate in choice.front],
        "rejections": [
            {
                "profile": rejection.profile,
                "limit": rejection.limit,
                "measured": rejection.measured,
                "allowed": rejection.allowed,
                "reason": rejection.reason,
            }
            for rejection in choice.rejections
        ],
        "nearest_misses": [
            {
                "limit": miss.limit,
                "profile": miss.profile,
                "measured": miss.measured,
                "allowed": miss.allowed,
                "keeps_all_else": miss.alone,
            }
            for miss in choice.misses
        ],
        "limits": [_describe_check(survey, check) for check in choice.checks],
        "trained_only_checked": choice.training_checked,
    }


def describe_host(host: Host | HostPattern) -> str:
    """A host in a few words: processor, CPUs, and the version of onnxruntime where it is one host."""
    runtime = f", onnxruntime {host.onnxruntime}" if isinstance(host, Host) else ""
    return show_plain(f"{host.cpu}, {_count(host.cpus, 'CPU')}{runtime}")


def _format_chosen(survey: Survey, choice: Choice) -> str:
    chosen = choice.chosen
    assert chosen is not None
    lines = [f"choice: {chosen.profile}"]
    if chosen.trained is False:
        lines[0] += " (a point that the parent was not trained to be read at; --trained-only leaves such out)"
    tasks = show_plain(f" on {', '.join(survey.tasks)}") if survey.tasks else ""
    worst = "the least " if len(survey.tasks) > 1 and read_retention(chosen) is not None else ""
    numbers = (
        (f"retention{tasks}", worst + _show_retention(chosen), "", chosen.retention),
        ("latency", _show(read_latency(chosen)), " ms", chosen.latency_ms),
        ("memory", _show(read_ram(chosen)), " MB", chosen.peak_bytes),
        ("cold start", _show(read_cold_start(chosen)), " ms", chosen.cold_start_ms),
    )
    lines.append(f"  disk: {show_number(read_disk(chosen))} MB (manifest)")
    for what, shown, unit, known in numbers:
        if shown == NOT_MEASURED or known is None:
            lines.append(f"  {what}: not measured")
        else:
            threads = f"{_count(known.threads, 'thread')}, " if known.threads else ""
            lines.append(f"  {what}: {shown}{unit} ({threads}{_name_host(survey, known.host)})")
    if said := describe_ties(choice):
        lines.append(f"  {said}")
    return "\n".join(lines)


def describe_ties(choice: Choice, most: int = 6) -> str:
    """With which profiles the choice is tied in retention, and why it goes before them; empty where with none.

    Args:
        most: how many of them are named.
    """
    chosen, others = choice.chosen, [candidate for candidate in choice.tied if candidate is not choice.chosen]
    if chosen is None or not others:
        return ""
    named = [f"{candidate.profile} ({_show_retention(candidate)})" for candidate in others[:most]]
    more = f" and {len(others) - most} more" if len(others) > most else ""
    return (
        f"its retention of {_show_retention(chosen)} cannot be told from that of {', '.join(named)}{more}: "
        "of ties, the fastest is chosen, then the smallest"
    )


def _show_retention(candidate: Candidate) -> str:
    """With four digits, to which retentions are compared."""
    retention = read_retention(candidate)
    return NOT_MEASURED if retention is None else f"{retention:.4g}"


def _format_misses(choice: Choice) -> str:
    lines = ["nothing fits"]
    for miss in choice.misses:
        limit = LIMITS[miss.limit]
        kept = "keeps everything else" if miss.alone else "misses something else, too, as all do that miss this"
        measured, allowed = _show(miss.measured), _show(miss.allowed)
        lines.append(
            f"  nearest in {limit.what}: {miss.profile} with {measured}{limit.unit}, "
            f"{allowed}{limit.unit} allowed; {kept}"
        )
    return "\n".join(lines)


def _format_front(choice: Choice) -> str:
    header = ("profile", "retention", "latency ms", "RAM MB", "disk MB", "cold start ms", "trained point")
    trained = {True: "yes", False: "no", None: "not known"}
    rows = [
        (
            candidate.profile,
            _show_retention(candidate),
            _show(read_latency(candidate)),
            _show(read_ram(candidate)),
            _show(read_disk(candidate)),
            _show(read_cold_start(candidate)),
            trained[candidate.trained],
        )
        for candidate in choice.front
    ]
    return format_table(header, rows, left=(0,))


def _format_check(survey: Survey, check: LimitCheck, family: str) -> str:
    limit = LIMITS[check.limit]
    asked = f"{limit.what} {'>=' if limit.least else '<='} {_show(check.allowed)}{limit.unit}"
    if limit.known is None:
        return f"{asked}: checked, from the sizes in the manifest"
    if not check.done:
        return (
            f"{asked}: COULD NOT BE CHECKED, nobody measured it: run matexport {limit.command} {family}{_where(survey)}"
        )
    parts = []
    if check.here:
        parts.append(f"checked on measurements of {_name_here(survey)} ({_count(check.here, 'profile')})")
    for host, count in check.elsewhere:
        parts.append(f"checked on measurements of {_name_host(survey, host)} ({_count(count, 'profile')})")
    if check.missing:
        parts.append(f"{_count(check.missing, 'profile')} not measured, so rejected")
    return f"{asked}: {'; '.join(parts)}"


def _format_training(checked: bool) -> str:
    if checked:
        return "trained points only: checked, from the manifest"
    return (
        "trained points only: COULD NOT BE CHECKED, nothing is known of the parent's training: name its points in the "
        "job file's [trained] table and export again"
    )


def _list_warnings(survey: Survey, choice: Choice, family: str) -> list[str]:
    warnings = []
    if not choice.quality_known:
        warnings.append(
            "quality was not measured, so none is known to be the best: chosen by trained points, then more layers, "
            f"more dims, the more exact precision; run matexport evaluate {family}"
        )
    if not choice.ties_known:
        warnings.append(
            "whether the tasks can tell these retentions apart is not known, so the highest counts, by however little: "
            f"evaluations of this version keep what that takes; run matexport evaluate {family}"
        )
    warnings += [show_plain(f"the task {name} does not count: {why}") for name, why in survey.left_out.items()]
    threads = {candidate.latency_ms.threads for candidate in survey.candidates if candidate.latency_ms}
    if len(threads) > 1:
        counts = ", ".join(str(count) for count in sorted(count or 0 for count in threads))
        warnings.append(
            f"latencies are of different numbers of threads ({counts}): give --threads to compare like with like"
        )
    if any(check.elsewhere for check in choice.checks):
        warnings.append(
            f"numbers of another host say what to expect of {_name_here(survey)}, no more: run matexport bench there"
        )
    return warnings


def _describe_check(survey: Survey, check: LimitCheck) -> dict[str, object]:
    fact = LIMITS[check.limit].known is None
    return {
        "limit": check.limit,
        "allowed": check.allowed,
        "checked": check.done,
        "from_manifest": fact,
        "on_host_in_question": 0 if fact else check.here,
        "on_other_hosts": {_name_host(survey, host): count for host, count in check.elsewhere},
        "not_measured": check.missing,
    }


def _describe_candidate(survey: Survey, candidate: Candidate) -> dict[str, object]:
    def describe(value: float | None, known: Measured | None) -> dict[str, object] | None:
        if value is None or known is None:
            return None
        here = is_measured_on(known.host, survey.host)
        return {"value": value, "host": describe_host(known.host), "host_in_question": here, "threads": known.threads}

    return {
        "profile": candidate.profile,
        "layers": candidate.layers,
        "dim": candidate.dim,
        "trained": candidate.trained,
        "disk_mb": read_disk(candidate),
        "retention": describe(read_retention(candidate), candidate.retention),
        "latency_ms": describe(read_latency(candidate), candidate.latency_ms),
        "ram_mb": describe(read_ram(candidate), candidate.peak_bytes),
        "cold_start_ms": describe(read_cold_start(candidate), candidate.cold_start_ms),
    }


def _name_here(survey: Survey) -> str:
    return "this host" if isinstance(survey.host, Host) else "the device"


def _where(survey: Survey) -> str:
    return "" if isinstance(survey.host, Host) else " on the device"


def _name_host(survey: Survey, host: Host) -> str:
    if is_measured_on(host, survey.host):
        return _name_here(survey)
    same = isinstance(survey.host, Host) and survey.host.slug == host.slug
    return f"another host ({describe_host(host)}{', with other instruction sets' if same else ''})"


def _show(value: float | None) -> str:
    return NOT_MEASURED if value is None else show_number(value)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def list_unchecked(choice: Choice) -> Iterable[str]:
    """The limits that could not be checked, as options of the command line, such as ``--max-ram-mb``."""
    unchecked = [check.limit for check in choice.checks if not check.done]
    if choice.training_checked is False:
        unchecked.append(TRAINED_ONLY)
    return ["--" + limit.replace("_", "-") for limit in unchecked]


def summarise_rejections(rejections: Iterable[Rejection]) -> str:
    """How many profiles each limit rejects, in one line."""
    counts: dict[str, int] = {}
    for rejection in rejections:
        counts[rejection.limit] = counts.get(rejection.limit, 0) + 1
    return ", ".join(f"--{limit.replace('_', '-')} rejects {count}" for limit, count in counts.items())
