"""A verification as JUnit XML, which every CI system shows: one test case for the files, one for the token ids or the
pixels where the family stores the parent's, one per profile and way of running; and one per profile that was compared
with another family's.

Of files that are refused nothing is run: each problem is a failed case in the place of that of the files, and the cases
that could not be made for it are skipped. A failure's ``type`` says of what kind it is, and so does the class name of a
problem (``files.changed``), since CI systems group by either.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

from matexport.errors import Problem, ProblemKind
from matexport.family.integrity import list_additions
from matexport.family.manifest import Family
from matexport.family.pixel_rows import stores_pixel_rows
from matexport.family.token_rows import stores_token_rows
from matexport.spec.parity import Parity, Prepared, Spread, TokenParity
from matexport.verify.drift import Drift, ProfileDrift
from matexport.verify.verdict import Verification, explain_unchecked, list_expected_checks

#: Types of the failures that are no problem with the files: a profile off its floor, or not compatible with another's.
PARITY, DRIFT = "parity", "drift"

#: Class name and name of the case of the token ids, and of that of the pixels.
TOKENIZER, PREPROCESSING = ("tokenizer", "token ids"), ("preprocessing", "pixels")
_PREPARED = {ProblemKind.TOKEN_IDS: TOKENIZER, ProblemKind.PIXELS: PREPROCESSING}

# What XML 1.0 cannot hold, even escaped.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_junit(
    path: Path,
    family: Family | Path,
    result: Verification | tuple[Problem, ...],
    drift: Drift | tuple[str, ...] | None = None,
) -> None:
    """Write a verification, or the problems for which there was none, as JUnit XML.

    Args:
        path: the XML file.
        family: what was verified; its directory names the suite. Of one whose manifest was read, the checks that could
            not be made are written as skipped.
        result: the verification, or what is wrong with the family, for which there was none.
        drift: what a comparison with another family found, if there was one: a case for each profile; or the names of
            the profiles that were to be compared.
    """
    folder = family.path if isinstance(family, Family) else family
    suite = ElementTree.Element("testsuite", name=_clean(f"matexport {folder}"))
    if isinstance(result, Verification):
        case = _add_case(suite, "files", "digests, paths and ranges")
        if isinstance(family, Family) and (additions := list_additions(family)):
            ElementTree.SubElement(case, "system-out").text = _clean(f"added, and not read: {', '.join(additions)}")
        if result.prepared:
            _add_prepared(suite, result.prepared)
        _add_parity(suite, result)
    else:
        _add_problems(suite, result)
        if isinstance(family, Family):
            _add_skipped(suite, family, result)
    if isinstance(drift, Drift):
        for profile in drift.profiles:
            _add_drift(suite, profile)
    elif drift and not isinstance(result, Verification):
        for name in drift:
            _skip(_add_case(suite, name, "drift"), result)
    counted = ("tests", "testcase"), ("failures", "testcase/failure"), ("skipped", "testcase/skipped")
    for name, kind in counted:
        suite.set(name, str(len(suite.findall(kind))))
    suite.set("errors", "0")
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def _add_problems(suite: ElementTree.Element, problems: tuple[Problem, ...]) -> None:
    seen: Counter[tuple[str, str]] = Counter()
    for problem in problems:
        place = (f"files.{problem.kind}", problem.file or "family")
        place = _PREPARED.get(problem.kind, place)  # which have a case where they are the parent's, too
        seen[place] += 1
        classname, name = place
        case = _add_case(suite, classname, name if seen[place] == 1 else f"{name} ({seen[place]})")
        _fail(case, str(problem), str(problem), problem.kind)


def _add_prepared(suite: ElementTree.Element, prepared: Prepared) -> None:
    kind = ProblemKind.TOKEN_IDS if isinstance(prepared, TokenParity) else ProblemKind.PIXELS
    case = _add_case(suite, *_PREPARED[kind])
    if reason := prepared.find_difference():
        _fail(case, reason, f"{reason}\nprobes: {', '.join(map(str, prepared.differing))}", kind)
    ElementTree.SubElement(case, "system-out").text = prepared.summary


def _add_skipped(suite: ElementTree.Element, family: Family, problems: tuple[Problem, ...]) -> None:
    """The cases that a verification of the family would have had."""
    compared = any(problem.kind in _PREPARED for problem in problems)
    for stores, place in ((stores_token_rows, TOKENIZER), (stores_pixel_rows, PREPROCESSING)):
        if stores(family) and not compared:
            _skip(_add_case(suite, *place), problems)
    for profile in family.profiles:
        for check in list_expected_checks(family, profile.name):
            _skip(_add_case(suite, profile.name, f"parity {check}"), problems)


def _add_parity(suite: ElementTree.Element, verification: Verification) -> None:
    for verdict in verification.verdicts:
        for check, breach in verdict.list_checks():
            case = _add_case(suite, verdict.profile, f"parity {check}")
            measured = verdict.find_measured(check)
            if breach:
                _fail(case, breach.reason, f"{breach}\n{_spell(measured)}", PARITY)
            ElementTree.SubElement(case, "system-out").text = _spell(measured)


def _add_drift(suite: ElementTree.Element, drift: ProfileDrift) -> None:
    case = _add_case(suite, drift.profile, "drift")
    if drift.reasons:
        _fail(case, drift.reasons[0], "\n".join(drift.reasons), DRIFT)
    numbers = ("texts", "max_abs", "cosine_mean", "cosine_min", "equal")
    measured = [(name, getattr(drift, name)) for name in numbers]
    if drift.search:
        measured += [(name, getattr(drift.search, name)) for name in drift.search.__struct_fields__]
    spelt = " ".join(f"{name}={value:.6g}" for name, value in measured if value is not None)
    ElementTree.SubElement(case, "system-out").text = spelt


def _spell(measured: Parity | Spread | None) -> str:
    return " ".join(f"{name}={value:.6g}" for name, value in vars(measured).items()) if measured else ""


def _add_case(suite: ElementTree.Element, classname: str, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname=classname, name=_clean(name))


def _skip(case: ElementTree.Element, problems: tuple[Problem, ...]) -> None:
    ElementTree.SubElement(case, "skipped", message=_clean(explain_unchecked(problems)))


def _fail(case: ElementTree.Element, message: str, detail: str, kind: str) -> None:
    ElementTree.SubElement(case, "failure", type=kind, message=_clean(message)).text = _clean(detail)


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
