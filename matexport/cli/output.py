"""What commands print and return: exit codes, errors, JSON documents, and the table of profiles.

A command writes its result to standard output (a table, vectors, or with ``--json`` one JSON document), and progress
and errors to standard error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matexport.io.terminal import format_table

if TYPE_CHECKING:
    from matexport.errors import Problem
    from matexport.family.manifest import Family
    from matexport.verify.verdict import Verification

#: Exit codes: done (0); a check failed (1); what was asked cannot be done (2); interrupted (130).
DONE, REFUSED, UNUSABLE, INTERRUPTED = 0, 1, 2, 130


def complain(message: object, code: int) -> int:
    """Print a message to standard error, and return the exit code that was given."""
    note(message)
    return code


def note(message: object) -> None:
    """Print a message to standard error, beside what a command's result is."""
    print(f"matexport: {message}", file=sys.stderr)


def print_json(document: dict[str, Any]) -> None:
    """Print a document as JSON to standard output; numbers that are not finite, which JSON lacks, are null."""
    print(json.dumps(_replace_nan(document), ensure_ascii=False, indent=1, allow_nan=False))


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
    print(format_profiles(describe_rows(family, verification)))
    print(f"\nparity on {host.cpu} ({', '.join(host.instruction_sets)}), onnxruntime {host.onnxruntime}")
    if _is_another(family, verification):
        first = ", ".join(family.facts.instruction_sets)
        print(f"measured anew: the family's own parity was measured on another instruction set ({first})")


def describe_verification(path: Path, verification: Verification) -> dict[str, object]:
    """What a verification of the family at `path` found, as ``--json`` gives it."""
    import msgspec

    from matexport.family.manifest import load_family

    family, token_ids = load_family(path), verification.token_ids
    described = None
    if token_ids:
        described = {"passed": token_ids.passed, **msgspec.to_builtins(token_ids)}
        described["message"] = token_ids.find_difference()
    return {
        "passed": verification.passed,
        "host": msgspec.to_builtins(verification.host),
        "another_instruction_set": _is_another(family, verification),
        "token_ids": described,
        "profiles": describe_rows(family, verification),
    }


def describe_problems(problems: Iterable[Problem]) -> list[dict[str, str | None]]:
    """What is wrong with a family, as ``--json`` gives it; `message` is the line that standard error shows."""
    return [{"kind": problem.kind, "file": problem.file, "message": str(problem)} for problem in problems]


def describe_rows(family: Family, verification: Verification) -> list[dict[str, object]]:
    """One row per profile: that of `describe_profiles`, whether the profile passed, and what failed if it did not."""
    from matexport.family.summary import describe_profiles

    failures = describe_failures(family, verification)
    rows = describe_profiles(family, verification.measured)
    found = [failures.get(str(row["profile"])) for row in rows]
    return [row | {"passed": not failure, "failure": failure} for row, failure in zip(rows, found, strict=True)]


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
            print(f"\n{precision}: keeps {kept}")
    vocabulary = family.facts.vocabulary
    if vocabulary:
        print(
            f"\nvocabulary: {vocabulary.tokens} of {vocabulary.parent_tokens} tokens ({vocabulary.kept_by}); "
            f"{len(vocabulary.changed_probes)} probes have other tokens now and are left out"
        )


def print_unread(family: Family) -> None:
    """Print which weights the parent's own library does not use, such as heads of another task."""
    unread = family.facts.parent.unread
    if unread:
        more = f" and {len(unread) - 3} more" if len(unread) > 3 else ""
        print(f"weights that the parent's own library reads nothing from: {', '.join(unread[:3])}{more}")
