"""A verification as JUnit XML, which every CI system shows: one test case per profile and way of running; and
one per profile that was compared with another family's."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from matexport.drift import Drift, ProfileDrift
from matexport.parity import Parity, Spread
from matexport.verify import Verification

# What XML 1.0 cannot hold, even escaped.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_junit(path: Path, family: Path, result: Verification | tuple[str, ...], drift: Drift | None = None) -> None:
    """Write a verification, or the problems for which there was none, as JUnit XML.

    Args:
        path: the XML file.
        family: the directory that was verified; names the suite.
        result: the verification, or the problems with the family's files.
        drift: what a comparison with another family found, if there was one: a case for each profile.
    """
    suite = ElementTree.Element("testsuite", name=_clean(f"matexport {family}"))
    files = ElementTree.SubElement(suite, "testcase", classname="files", name="digests, paths and ranges")
    if isinstance(result, tuple):
        _fail(files, result[0], "\n".join(result))
    else:
        _add_parity(suite, result)
    for profile in drift.profiles if drift else ():
        _add_drift(suite, profile)
    cases, failures = suite.findall("testcase"), suite.findall("testcase/failure")
    suite.set("tests", str(len(cases)))
    suite.set("failures", str(len(failures)))
    suite.set("errors", "0")
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def _add_parity(suite: ElementTree.Element, verification: Verification) -> None:
    for verdict in verification.verdicts:
        for check, breach in verdict.list_checks():
            case = ElementTree.SubElement(suite, "testcase", classname=verdict.profile, name=f"parity {check}")
            measured = verdict.parity.get(check) or verdict.spread
            if breach:
                _fail(case, breach.reason, f"{breach}\n{_spell(measured)}")
            ElementTree.SubElement(case, "system-out").text = _spell(measured)


def _add_drift(suite: ElementTree.Element, drift: ProfileDrift) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname=drift.profile, name="drift")
    if drift.reasons:
        _fail(case, drift.reasons[0], "\n".join(drift.reasons))
    numbers = ("texts", "max_abs", "cosine_mean", "cosine_min", "equal")
    measured = [(name, getattr(drift, name)) for name in numbers]
    if drift.search:
        measured += [(name, getattr(drift.search, name)) for name in drift.search.__struct_fields__]
    spelt = " ".join(f"{name}={value:.6g}" for name, value in measured if value is not None)
    ElementTree.SubElement(case, "system-out").text = spelt


def _spell(measured: Parity | Spread | None) -> str:
    return " ".join(f"{name}={value:.6g}" for name, value in vars(measured).items()) if measured else ""


def _fail(case: ElementTree.Element, message: str, detail: str) -> None:
    ElementTree.SubElement(case, "failure", message=_clean(message)).text = _clean(detail)


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
