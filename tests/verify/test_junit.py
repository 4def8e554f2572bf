"""A verification as JUnit XML: what a CI system reads back is what was found."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
from forge import store_token_rows
from places import GOLDEN
from properties import given, st

from matexport import load_family, verify_family
from matexport.host import read_host
from matexport.spec.tolerance import Parity, TokenParity, Tolerance
from matexport.verify.junit import write_junit
from matexport.verify.verdict import ProfileVerdict, Verification, list_expected_checks

GOOD = Parity(1e-7, 1.0, 1.0, 1.0, 0, 0)
BAD = Parity(0.25, 0.5, 0.125, 0.5, 3, 4)
FLOOR = Tolerance(max_abs=1e-5)


def read_suite(path: Path) -> ElementTree.Element:
    root = ElementTree.parse(path).getroot()
    assert root.tag == "testsuites"
    (suite,) = root
    assert suite.tag == "testsuite"
    assert suite.attrib["tests"] == str(len(suite.findall("testcase")))
    assert suite.attrib["failures"] == str(len(suite.findall("testcase/failure")))
    assert suite.attrib["skipped"] == str(len(suite.findall("testcase/skipped")))
    assert suite.attrib["errors"] == "0"
    return suite


def list_cases(suite: ElementTree.Element, kind: str = ".") -> list[tuple[str, str]]:
    """(classname, name) of the cases that hold an element, such as ``failure``."""
    return [(case.attrib["classname"], case.attrib["name"]) for case in suite if case.find(kind) is not None]


def verification(*parities: dict[str, Parity]) -> Verification:
    verdicts = (ProfileVerdict(f"L0{index}-D008-fp32", FLOOR, ways) for index, ways in enumerate(parities, start=1))
    return Verification(read_host(), tuple(verdicts))


def test_everything_passed(tmp_path: Path) -> None:
    write_junit(
        tmp_path / "r.xml", Path("some/family"), verification({"batched": GOOD, "single": GOOD}, {"single": GOOD})
    )
    suite = read_suite(tmp_path / "r.xml")
    assert suite.attrib["name"] == "matexport some/family"
    assert [(case.attrib["classname"], case.attrib["name"]) for case in suite] == [
        ("files", "digests, paths and ranges"),
        ("L01-D008-fp32", "parity batched"),
        ("L01-D008-fp32", "parity single"),
        ("L02-D008-fp32", "parity single"),
    ]
    assert suite.attrib["failures"] == "0"


def test_one_way_of_one_profile_failed(tmp_path: Path) -> None:
    write_junit(tmp_path / "r.xml", Path("f"), verification({"batched": GOOD}, {"batched": GOOD, "single": BAD}))
    suite = read_suite(tmp_path / "r.xml")
    (failed,) = (case for case in suite if case.find("failure") is not None)
    assert (failed.attrib["classname"], failed.attrib["name"]) == ("L02-D008-fp32", "parity single")
    failure = failed.find("failure")
    assert failure is not None
    assert failure.attrib["message"] == "max abs difference 0.25, allowed 1e-05"
    numbers = "max_abs=0.25 cosine_mean=0.5 cosine_min=0.125 neighbours=0.5 worst=3 farthest=4"
    assert failure.text == f"max abs difference 0.25, allowed 1e-05; worst on probe 3\n{numbers}"
    assert failed.findtext("system-out") == numbers


def test_what_is_not_a_number_failed(tmp_path: Path) -> None:
    nothing = Parity(float("inf"), float("nan"), float("nan"), 0.0, 0, 0)
    write_junit(tmp_path / "r.xml", Path("f"), verification({"batched": nothing}))
    assert read_suite(tmp_path / "r.xml").attrib["failures"] == "1"


def test_the_files_were_refused(tmp_path: Path) -> None:
    problems = ("missing: config.json", "changed: weights.fp32.safetensors has another sha256")
    write_junit(tmp_path / "r.xml", Path("f"), problems)
    suite = read_suite(tmp_path / "r.xml")
    assert suite.attrib["tests"] == suite.attrib["failures"] == "1"
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert failure.attrib["message"] == problems[0]
    assert failure.text == "\n".join(problems)


PARITY = [f"parity {way}" for way in ("batched", "single", "together")]


@pytest.mark.parametrize("schema", ["schema2", "schema3"])
def test_what_could_not_be_checked_is_skipped(schema: str, tmp_path: Path) -> None:
    family = load_family(GOLDEN / schema)
    problems = ("changed: weights.fp32.safetensors has another sha256", "missing: config.json")
    write_junit(tmp_path / "r.xml", family, problems, ("L01-D020-fp32",))
    suite = read_suite(tmp_path / "r.xml")
    assert suite.attrib["name"] == f"matexport {GOLDEN / schema}"
    assert list_cases(suite, "failure") == [("files", "digests, paths and ranges")]
    skipped = list_cases(suite, "skipped")
    assert skipped == [
        *((it.name, f"parity {check}") for it in family.profiles for check in list_expected_checks(family, it.name)),
        ("L01-D020-fp32", "drift"),
    ]
    why = f"not checked, since the family's files are refused: {problems[0]} (and 1 more)"
    assert {case.attrib["message"] for case in suite.iter("skipped")} == {why}

    write_junit(tmp_path / "r.xml", family, verify_family(family.path))
    passed = list_cases(read_suite(tmp_path / "r.xml"))
    assert set(passed) == {("files", "digests, paths and ranges"), *skipped[:-1]} - {
        (it.name, "parity as float32") for it in family.profiles
    }


def test_token_ids_are_skipped_where_the_family_has_some(family: Path, tmp_path: Path) -> None:
    store_token_rows(family)
    write_junit(tmp_path / "r.xml", load_family(family), ("missing: config.json",))
    skipped = list_cases(read_suite(tmp_path / "r.xml"), "skipped")
    assert skipped[0] == ("tokenizer", "token ids")
    assert [name for _, name in skipped[1:4]] == PARITY


def test_token_ids_that_differ(tmp_path: Path) -> None:
    token_ids = TokenParity(66, "0.1", (12, 40), "probe 12 ('a cat')", (2, 7), (2, 9))
    write_junit(tmp_path / "r.xml", Path("f"), replace(verification({"batched": GOOD}), token_ids=token_ids))
    suite = read_suite(tmp_path / "r.xml")
    assert list_cases(suite)[1:] == [("tokenizer", "token ids"), ("L01-D008-fp32", "parity batched")]
    assert list_cases(suite, "failure") == [("tokenizer", "token ids")]
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert failure.attrib["message"] == token_ids.find_difference()
    assert failure.text == f"{failure.attrib['message']}\nprobes: 12, 40"


def test_token_ids_that_are_the_parents(tmp_path: Path) -> None:
    token_ids = TokenParity(66, "0.1")
    write_junit(tmp_path / "r.xml", Path("f"), replace(verification({"batched": GOOD}), token_ids=token_ids))
    suite = read_suite(tmp_path / "r.xml")
    assert ("tokenizer", "token ids") in list_cases(suite)
    assert suite.attrib["failures"] == "0"


@pytest.mark.parametrize("letter", ["\0", "\x08", "\x1b", "\ud800", "\ufffe", "\uffff"], ids=ascii)
def test_what_xml_cannot_hold_is_replaced(letter: str, tmp_path: Path) -> None:
    write_junit(tmp_path / "r.xml", Path(f"f{letter}"), (f"extra: a{letter}b",))
    suite = read_suite(tmp_path / "r.xml")
    assert suite.attrib["name"] == "matexport f\ufffd"
    assert suite.findtext("testcase/failure") == "extra: a\ufffdb"


@given(st.text(st.characters(exclude_characters="\r")), st.text(st.characters(exclude_characters="\r")))
def test_any_text_is_read_back(tmp_path_factory: pytest.TempPathFactory, first: str, second: str) -> None:
    path = tmp_path_factory.getbasetemp() / "r.xml"
    write_junit(path, Path("f"), (first, second))
    text = read_suite(path).findtext("testcase/failure")
    assert text is not None
    assert len(text) == len(f"{first}\n{second}")
    assert all(ours in (theirs, "\ufffd") for ours, theirs in zip(text, f"{first}\n{second}", strict=True))
