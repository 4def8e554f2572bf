"""verify: is a family what was exported, and does it give the parent's vectors on this machine? The gate of a CI."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matexport.cli.options import (
    Parsers,
    add_command,
    add_engine,
    add_family,
    add_threads,
    read_engine,
)
from matexport.cli.output import (
    DONE,
    REFUSED,
    UNUSABLE,
    complain,
    describe_failures,
    describe_problems,
    describe_verification,
    format_number,
    print_json,
    print_verification,
    say,
)
from matexport.cli.progress import show_progress
from matexport.errors import FamilyError, Problem, ProblemKind, RequestError
from matexport.io.files import explain_write_errors
from matexport.io.terminal import format_table, show_plain

if TYPE_CHECKING:
    from matexport.family.manifest import Family
    from matexport.spec.measured import Engine
    from matexport.verify.drift import Drift
    from matexport.verify.judge import Case
    from matexport.verify.verdict import Verification

#: Additions that are named.
MOST_ADDITIONS = 12

SUMMARY = "check a family's files and its parity on this machine"
DESCRIPTION = (
    "Check every file's digest, that no path leaves the folder and that all weights are finite; then that the "
    "probes have the parent's token ids or pixels, where the family stores them; then run every profile on the "
    "family's probes, batched and one by one, and compare with the parent's stored vectors. The last line is the "
    "verdict. Needs neither torch nor the parent. With --baseline, also say whether an index that was built with "
    "another export may be queried with this one: both embed the probes of both, and the vectors of the same input "
    "may differ by no more than the two tolerances together (see docs/ci.md). With --engine or --provider, profiles "
    "are held to onnxruntime on the CPU as well (see docs/engines.md)."
)
EXAMPLES = (
    "examples (gates in CI):\n  matexport verify artifacts/minilm --junit parity.xml\n"
    "  matexport verify artifacts/minilm --baseline released/minilm\n"
    "  matexport verify artifacts/minilm --engine openvino"
)


def add_parser(parsers: Parsers) -> None:
    """What the command takes, and the help that teaches it."""
    command = add_command(parsers, "verify", run, SUMMARY, DESCRIPTION, EXAMPLES)
    add_family(command)
    command.add_argument(
        "--baseline",
        type=Path,
        metavar="OLD_FAMILY",
        help="also compare with this family or pack, profile by profile of the same name; exit code 1 "
        "where an index built with it has to be rebuilt",
    )
    command.add_argument(
        "--junit",
        type=Path,
        metavar="FILE",
        help="also write the result as JUnit XML; each problem with the files is a failure there, of its "
        "kind, and what was not run for it is skipped",
    )
    command.add_argument(
        "--strict",
        action="store_true",
        help="fail for what hubs, git and desktops add to a folder, too (licences, .gitattributes, .git, .cache, "
        ".DS_Store), which is otherwise named and not read",
    )
    command.add_argument("--record", action="store_true", help="keep the result in FAMILY/measurements/<host>.json")
    command.add_argument(
        "--profile",
        action="append",
        default=[],
        metavar="NAME",
        help="run this one; may be repeated (default: all, which is what a gate needs)",
    )
    add_engine(command)
    add_threads(command)


def run(options: argparse.Namespace) -> int:
    """``matexport verify FAMILY``"""
    from matexport.towers import holds_towers

    if holds_towers(options.family):
        from matexport.cli.towers import run_each

        return run_each(options, run)
    from matexport.family.manifest import load_family
    from matexport.runtime.engines.door import check_engine
    from matexport.verify.drift import compare_families, find_common
    from matexport.verify.judge import open_case, verify_case
    from matexport.verify.verdict import record_measurement

    engine = _read_engine(options)
    family, drift = None, None
    compared: tuple[str, ...] = ()
    input_problems: tuple[Problem, ...] = ()
    try:
        baseline = load_family(options.baseline) if options.baseline else None
        family = load_family(options.family)
        check_engine(engine)
        if baseline:
            compared = tuple(find_common(family, baseline))
        case = open_case(family, strict=options.strict)
        old = _open_baseline(baseline) if baseline else None  # both, before any session
        input_problems = _list_input_problems(case)
        for problem in input_problems:
            complain(problem, REFUSED)
        with show_progress() as progress:
            verification = verify_case(case, profiles=options.profile, engine=engine, progress=progress)
            if old is not None:
                drift = compare_families(case, old, threads=options.threads, progress=progress)
    except RequestError as error:  # what is to run it is not to be had here
        _write_junit(options, family, (Problem(ProblemKind.UNUSABLE, None, str(error)),), compared)
        raise
    except FamilyError as error:
        for problem in error.problems:
            complain(problem, REFUSED)
        _report_refused(options, family, (*input_problems, *error.problems), compared)
        return UNUSABLE if family is None else REFUSED  # not a family at all is a wrong argument
    _write_junit(options, family, verification, drift)
    if options.record:
        with explain_write_errors(options.family):
            record_measurement(family, verification)
    return _print_result(options, family, verification, drift, input_problems)


def _print_result(
    options: argparse.Namespace,
    family: Family,
    verification: Verification,
    drift: Drift | None,
    input_problems: tuple[Problem, ...],
) -> int:
    """What was found, as a table or a document, and the exit code that it means."""
    if options.json:
        document = {"family": str(options.family), **describe_verification(options.family, verification)}
        document |= {"problems": describe_problems(input_problems), "additions": _list_additions(family)}
        print_json(document | ({"drift": _describe_drift(drift)} if drift else {}))
    else:
        print_verification(options.family, verification)
        _print_additions(family)
        if drift:
            _print_drift(drift, family.facts.inputs.noun)
    sys.stdout.flush()  # so that what is wrong follows the table where both go to one file
    _complain_of_profiles(options, family, verification, drift)
    passed = verification.passed and (drift is None or drift.compatible)
    if not options.json:
        say(f"\n{_format_verdict(verification, drift)}")
    return DONE if passed else REFUSED


def _read_engine(options: argparse.Namespace) -> Engine:
    """The engine that is asked for.

    Raises:
        RequestError: together with what is only done with all profiles, or in onnxruntime on the CPU.
    """
    engine = read_engine(options, options.threads)
    if options.baseline and not (engine.is_default and not options.profile):
        raise RequestError(
            "--baseline compares all profiles in onnxruntime on the CPU: leave out --engine, --provider and --profile"
        )
    if options.record and options.profile and engine.is_default:
        raise RequestError("--record keeps what is known of all profiles: leave out --profile")
    return engine


def format_drift(drift: Drift) -> str:
    """The table that ``verify --baseline`` prints: one line per profile that both families have."""
    header = (
        "profile",
        "max abs diff",
        "mean cosine",
        "min cosine",
        "equal codes",
        "top 1",
        "top 10",
        "margin (OLD's)",
        "an index of OLD",
    )
    cells = [
        (
            profile.profile,
            format_number(profile.max_abs, ".1e"),
            format_number(profile.cosine_mean, ".6f"),
            format_number(profile.cosine_min, ".6f"),
            format_number(profile.equal, ".4f"),
            format_number(profile.search and profile.search.top_1, ".3f"),
            format_number(profile.search and profile.search.top_10, ".3f"),
            f"{profile.search.margin:.3f} ({profile.search.old_margin:.3f})" if profile.search else "-",
            "compatible" if profile.compatible else "not compatible: rebuild it",
        )
        for profile in drift.profiles
    ]
    return format_table(header, cells, left=(0, 8))


def _complain_of_profiles(
    options: argparse.Namespace, family: Family, verification: Verification, drift: Drift | None
) -> None:
    for name, failure in describe_failures(family, verification).items():
        complain(f"{name} is off its floor: {failure['message']}", REFUSED)
    for profile in drift.profiles if drift else ():
        for reason in profile.reasons:
            complain(f"{profile.profile} is not compatible with {options.baseline}: {reason}", REFUSED)


def _list_additions(family: Family) -> list[str]:
    from matexport.family.integrity import list_additions

    return list_additions(family)


def _print_additions(family: Family) -> None:
    """What lies beside the family's files and is no reason to refuse it."""
    if names := _list_additions(family):
        more = f" and {len(names) - MOST_ADDITIONS} more" if len(names) > MOST_ADDITIONS else ""
        say(show_plain(f"not the family's, and not read: {', '.join(names[:MOST_ADDITIONS])}{more}"))


def _report_refused(
    options: argparse.Namespace, family: Family | None, problems: tuple[Problem, ...], compared: tuple[str, ...]
) -> None:
    """What is wrong with the files, where it was asked for as a document."""
    if options.json:
        document = {"family": str(options.family), "passed": False, "problems": describe_problems(problems)}
        print_json(document)
    _write_junit(options, family, problems, compared)


def _write_junit(options: argparse.Namespace, family: Family | None, *found: Any) -> None:
    """Where it was asked for: what was found, as `write_junit` takes it."""
    from matexport.verify.junit import write_junit

    if options.junit:
        with explain_write_errors(options.junit):
            write_junit(options.junit, family or options.family, *found)


def _list_input_problems(case: Case) -> tuple[Problem, ...]:
    """Token ids or pixels that are not the parent's."""
    from matexport.family.modality import TOKENIZER

    difference = case.prepared.find_difference() if case.prepared else None
    if not difference:
        return ()
    if case.token_ids:
        return (Problem(ProblemKind.TOKEN_IDS, TOKENIZER, difference),)
    return (Problem(ProblemKind.PIXELS, case.family.probes_file, difference),)


def _open_baseline(family: Family) -> Case:
    """The other family of a comparison; what is wrong with it says that it is that one."""
    from matexport.verify.judge import open_case

    try:
        return open_case(family)
    except FamilyError as error:
        problems = [_name_baseline(problem, family.path) for problem in error.problems]
        raise FamilyError("; ".join(map(str, problems)), problems) from None


def _name_baseline(problem: Problem, folder: Path) -> Problem:
    file = str(folder / problem.file) if problem.file else None
    return problem._replace(baseline=str(folder), file=file)


def _describe_drift(drift: Drift) -> dict[str, Any]:
    import msgspec

    profiles = [msgspec.to_builtins(profile) | {"compatible": profile.compatible} for profile in drift.profiles]
    return msgspec.to_builtins(drift) | {"compatible": drift.compatible, "profiles": profiles}  # type: ignore[no-any-return]


def _print_drift(drift: Drift, noun: str) -> None:
    """What a comparison found; `noun` is what one vector is of."""
    parent = "the same parent" if drift.same_parent else "another parent (its weights have other digests)"
    say(f"\nNEW {drift.new} against OLD {drift.old}: {parent}, {len(drift.texts)} {noun}s\n")
    say(format_drift(drift))
    for side, names in (("NEW", drift.only_new), ("OLD", drift.only_old)):
        if names:
            say(f"only in {side}, so not compared: {', '.join(names)}")
    for note in drift.notes:
        say(show_plain(note))
    if drift.compatible:
        count = len(drift.profiles)
        say(
            f"an index that was built with OLD may be queried with NEW, and the other way round, by the {count} ",
            end="",
        )
        say("profile(s) that both have")
        if drift.only_old:
            say(f"an index of one of the {len(drift.only_old)} that only OLD has cannot be queried with NEW")


def _format_verdict(verification: Verification, drift: Drift | None) -> str:
    """The last line of `verify`: what was proven, and how near it was; or how much failed."""
    from matexport.report.findings import measure_floor_use

    verdicts, prepared = verification.verdicts, verification.prepared
    total, off = len(verdicts), sum(not verdict.passed for verdict in verdicts)
    failed = []
    if prepared and not prepared.passed:
        failed.append(prepared.summary)
    if off:
        failed.append(f"{off} of {total} profiles {'is off its floor' if off == 1 else 'are off their floor'}")
    if drift and not drift.compatible:
        moved = sum(not profile.compatible for profile in drift.profiles)
        are = "is" if moved == 1 else "are"
        failed.append(f"{moved} of {len(drift.profiles)} profiles {are} not compatible with {drift.old}")
    if failed:
        return f"failed: {'; '.join(failed)}"
    worst = max((measure_floor_use(verification.host, verdict) for verdict in verdicts), key=lambda use: use.used)
    if worst.number == "least cosine":
        nearest = f"worst least cosine {worst.value:.6f}, at least {worst.allowed:g} asked"
    elif worst.allowed is None:
        nearest = f"worst {worst.value:.1e}"
    else:
        nearest = f"worst {worst.value:.1e} of {worst.allowed:g} allowed"
    profiles = (
        "1 profile is the parent at its point" if total == 1 else f"{total} profiles are the parent at their points"
    )
    proven = [f"{profiles} on this machine ({nearest}, {worst.verdict.profile})"]
    proven += [prepared.summary] if prepared else []
    proven += [f"compatible with {drift.old}"] if drift else []
    return f"passed: {'; '.join(proven)}"
