"""What commands print and return: exit codes, errors, JSON documents, and the table of profiles.

A command writes its result to standard output (a table, vectors, or with ``--json`` one JSON document), and progress
and errors to standard error. Text goes through `say` and `complain`, which escape what would control a terminal.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matexport.io.terminal import format_table, show_lines, show_plain

if TYPE_CHECKING:
    from matexport.errors import Problem
    from matexport.family.manifest import Family
    from matexport.verify.verdict import Verification

#: Exit codes: done (0); a gate said no (1); what was asked cannot be done (2); interrupted (130); whoever reads the
#: output went away (141, as a shell says of a process that SIGPIPE ended).
DONE, REFUSED, UNUSABLE, INTERRUPTED, UNREAD = 0, 1, 2, 130, 141


def complain(message: object, code: int) -> int:
    """Print a message as one line to standard error, and return the exit code that was given."""
    note(message)
    return code


def note(message: object) -> None:
    """Print a message as one line to standard error, beside what a command's result is."""
    with contextlib.suppress(OSError, ValueError):  # nobody can be told that nobody can be told
        print(f"matexport: {show_plain(str(message))}", file=sys.stderr, flush=True)


def say(text: str = "", *, end: str = "\n", flush: bool = False) -> None:
    """Print text to standard output; its lines stay lines, and other characters that control a terminal are escaped."""
    print(show_lines(text), end=end, flush=flush)


_gathered: list[list[dict[str, Any]]] = []


@contextlib.contextmanager
def gather_documents() -> Iterator[list[dict[str, Any]]]:
    """Have what would be printed as JSON meanwhile put into the list that is given."""
    _gathered.append([])
    try:
        yield _gathered[-1]
    finally:
        _gathered.pop()


def print_json(document: dict[str, Any]) -> None:
    """Print a document as JSON to standard output; numbers that are not finite, which JSON lacks, are null."""
    if _gathered:
        _gathered[-1].append(document)
        return
    print(spell_json(_replace_nan(document), indent=1))


def spell_json(document: object, indent: int | None = None) -> str:
    """A document as JSON that any terminal and any encoding of standard output takes; the rest is escaped."""
    text = json.dumps(document, ensure_ascii=False, indent=indent, allow_nan=False)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    if encoding.lower().replace("-", "") != "utf8":
        return json.dumps(document, indent=indent, allow_nan=False)
    return text if text.isprintable() else _UNPRINTABLE.sub(_escape_json, text)


#: Outside of ASCII's own, which JSON escapes, and of the line breaks between its lines.
_UNPRINTABLE = re.compile(r"[^\n -~]")


def _escape_json(match: re.Match[str]) -> str:
    character = match[0]
    return character if character.isprintable() else json.dumps(character)[1:-1]


def _replace_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _replace_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_nan(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def format_profiles(rows: Sequence[Mapping[str, object]]) -> str:
    """The table of profiles that `export`, `verify` and `show` print.

    Args:
        rows: one for each profile, from `describe_rows` or `describe_profiles`. If any has not `passed`, a last column
            says which check failed on which probe; then all rows must have their `failure`.
    """
    header = [
        "profile",
        "layers",
        "dim",
        "size MB",
        "max abs diff",
        "mean cosine",
        "min cosine",
        "neighbours",
        "spread",
        "graph",
    ]
    cells = [
        [
            str(row["profile"]),
            str(row["layers"]),
            str(row["dim"]),
            f"{row['download_bytes'] / 1e6:.1f}",  # type: ignore[operator]
            format_number(row["max_abs"], ".1e"),
            format_number(row["cosine_mean"], ".6f"),
            format_number(row["cosine_min"], ".6f"),
            format_number(row["neighbours"], ".3f"),
            format_number(row["spread"], ".0e"),
            str(row["graph"]),
        ]
        for row in rows
    ]
    if any(row.get("passed") is False for row in rows):
        header.append("verdict")
        for row, line in zip(rows, cells, strict=True):
            line.append(_format_verdict(row))
    return format_table(header, cells, left=(0, 9, 10))


def _format_verdict(row: Mapping[str, object]) -> str:
    failure = row["failure"]
    if not isinstance(failure, Mapping):
        return "passed"
    return f"FAILED: {failure['check']}, probe {failure['probe']}"


def format_number(value: object, form: str) -> str:
    """A number as a format specification such as ``.3f`` writes it; a dash for None."""
    return "-" if value is None else format(value, form)


def print_verification(path: Path, verification: Verification) -> None:
    """Print the table of profiles of the family at `path`, and the host that it was verified on."""
    from matexport.family.manifest import load_family

    family, host = load_family(path), verification.host
    say(format_profiles(describe_rows(family, verification)))
    sets = ", ".join(host.instruction_sets)
    say(f"\n{show_plain(f'parity on {host.cpu} ({sets}), onnxruntime {host.onnxruntime}')}")
    if verification.engine:
        say(show_plain(f"run by {verification.engine.summary}; {_describe_engines(verification)}"))
    if _is_another(family, verification):
        first = ", ".join(family.facts.instruction_sets)
        say(f"measured anew: the family's own parity was measured on another instruction set ({show_plain(first)})")


def describe_verification(path: Path, verification: Verification) -> dict[str, object]:
    """What a verification of the family at `path` found, as ``--json`` gives it."""
    import msgspec

    from matexport.family.manifest import load_family

    family = load_family(path)
    described: dict[str, object] = {"token_ids": None, "pixels": None}
    if prepared := verification.prepared:
        found = {"passed": prepared.passed, **msgspec.to_builtins(prepared), "message": prepared.find_difference()}
        described["token_ids" if verification.token_ids else "pixels"] = found
    return {
        "passed": verification.passed,
        "host": msgspec.to_builtins(verification.host),
        "engine": msgspec.to_builtins(verification.engine),
        "another_instruction_set": _is_another(family, verification),
        **described,
        "profiles": describe_rows(family, verification),
    }


def describe_problems(problems: Iterable[Problem]) -> list[dict[str, str | None]]:
    """What is wrong with a family, as ``--json`` gives it; `message` is the line that standard error shows."""
    return [{"kind": problem.kind, "file": problem.file, "message": str(problem)} for problem in problems]


def describe_rows(family: Family, verification: Verification) -> list[dict[str, object]]:
    """One row per profile that was run: that of `describe_profiles`, whether it passed, and what failed if not."""
    import msgspec

    from matexport.family.summary import describe_profiles

    failures = describe_failures(family, verification)
    ran = {verdict.profile for verdict in verification.verdicts}
    rows = [row for row in describe_profiles(family, verification.measured) if row["profile"] in ran]
    found = [failures.get(str(row["profile"])) for row in rows]
    if verification.engine:
        engines = {verdict.profile: verdict.engine for verdict in verification.verdicts}
        rows = [row | {"engines": msgspec.to_builtins(engines[str(row["profile"])])} for row in rows]
    return [row | {"passed": not failure, "failure": failure} for row, failure in zip(rows, found, strict=True)]


def _describe_engines(verification: Verification) -> str:
    """How far another engine is from onnxruntime on the CPU at most, and in which profile."""
    found = [
        (parity, verdict.profile)
        for verdict in verification.verdicts
        if verdict.engine
        for parity in verdict.engine.parity.values()
    ]
    if not found:
        return "only codes, which are held to the parent's vectors"
    farthest, nearest = max(found, key=lambda pair: pair[0].max_abs), min(found, key=lambda pair: pair[0].cosine_min)
    return (
        f"from onnxruntime on the CPU at most {farthest[0].max_abs:.1e} ({farthest[1]}), "
        f"least cosine {nearest[0].cosine_min:.6f} ({nearest[1]})"
    )


def describe_failures(family: Family, verification: Verification) -> dict[str, dict[str, object]]:
    """Profile that is off its floor -> the check, the reason, the index of the probe, and all of these as a message."""
    from matexport.family.proof import load_probes, open_proof
    from matexport.family.token_rows import quote_probe

    probes = () if verification.passed else load_probes(open_proof(family))
    failures: dict[str, dict[str, object]] = {}
    for verdict in verification.verdicts:
        if found := verdict.find_breach():
            check, breach = found
            message = f"{breach.reason} ({check}), worst on {quote_probe(probes, breach.probe)}"
            said = {"check": check, "reason": breach.reason, "probe": breach.probe}
            failures[verdict.profile] = {**said, "message": message}
    return failures


def _is_another(family: Family, verification: Verification) -> bool:
    """Whether a family was made on other instruction sets than this host's; False where either is not known."""
    first, now = family.facts.instruction_sets, verification.host.instruction_sets
    return bool(first and now and first != now)


def print_decisions(family: Family) -> None:
    """Print what each precision keeps at a higher one, and what pruning the vocabulary did."""
    for precision, facts in family.facts.precisions.items():
        if facts.kept:
            kept = ", ".join(f"{part} in {held}" for part, held in facts.kept.items())
            say(f"\n{precision}: keeps {show_plain(kept)}")
    vocabulary = family.facts.vocabulary
    if vocabulary:
        kept_by = show_plain(vocabulary.kept_by)
        say(
            f"\nvocabulary: {vocabulary.tokens} of {vocabulary.parent_tokens} tokens ({kept_by}); "
            f"{len(vocabulary.changed_probes)} probes have other tokens now and are left out"
        )


def print_unread(family: Family) -> None:
    """Print which weights the parent's own library does not use, such as heads of another task."""
    unread = family.facts.parent.unread
    if unread:
        more = f" and {len(unread) - 3} more" if len(unread) > 3 else ""
        say(show_plain(f"weights that the parent's own library reads nothing from: {', '.join(unread[:3])}{more}"))
