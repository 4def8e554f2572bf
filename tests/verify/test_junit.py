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
from matexport.errors import Problem, ProblemKind
from matexport.host import read_host
from matexport.spec.parity import Parity, TokenParity
from matexport.spec.tolerance import Tolerance
from matexport.verify.junit import write_junit
from matexport.verify.verdict import ProfileVerdict, Verification, list_expected_checks

GOOD = Parity(1e-7, 1.0, 1.0, 1.0, 0, 0)
BAD = Parity(0.25, 0.5, 0.125, 0.5, 3, 4)
WEIGHTS = "weights.fp32.safetensors"
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
    assert failure.attrib["type"] == "parity"
    assert failure.attrib["message"] == "max abs difference 0.25, allowed 1e-05"
    numbers = "max_abs=0.25 cosine_mean=0.5 cosine_min=0.125 neighbours=0.5 worst=3 farthest=4"
    assert failure.text == f"max abs difference 0.25, allowed 1e-05; worst on probe 3\n{numbers}"
    assert failed.findtext("system-out") == numbers


def test_what_is_not_a_number_failed(tmp_path: Path) -> None:
    nothing = Parity(float("inf"), float("nan"), float("nan"), 0.0, 0, 0)
    write_junit(tmp_path / "r.xml", Path("f"), verification({"batched": nothing}))
    assert read_suite(tmp_path / "r.xml").attrib["failures"] == "1"


PROBLEMS = (
    Problem(ProblemKind.CHANGED, WEIGHTS, f"{WEIGHTS} has another sha256"),
    Problem(ProblemKind.MISSING, "config.json", "config.json"),
)


def test_each_problem_is_a_failed_case_of_its_kind(tmp_path: Path) -> None:
    write_junit(tmp_path / "r.xml", Path("f"), PROBLEMS)
    suite = read_suite(tmp_path / "r.xml")
    assert list_cases(suite) == list_cases(suite, "failure")
    assert list_cases(suite) == [("files.changed", WEIGHTS), ("files.missing", "config.json")]
    failures = [(it.attrib["type"], it.attrib["message"], it.text) for it in suite.iter("failure")]
    assert failures == [(problem.kind, str(problem), str(problem)) for problem in PROBLEMS]


@pytest.mark.parametrize("kind", ProblemKind)
def test_every_kind_is_the_type_of_its_failure(kind: ProblemKind, tmp_path: Path) -> None:
    write_junit(tmp_path / "r.xml", Path("f"), (Problem(kind, "a.json", "a.json is wrong"),))
    suite = read_suite(tmp_path / "r.xml")
    assert [failure.attrib["type"] for failure in suite.iter("failure")] == [kind]
    prepared = {"token-ids": ("tokenizer", "token ids"), "pixels": ("preprocessing", "pixels")}
    assert list_cases(suite, "failure") == [prepared.get(kind, (f"files.{kind}", "a.json"))]


# CI systems take cases of the same names for one.
def test_no_two_cases_are_named_alike(tmp_path: Path) -> None:
    again = [Problem(ProblemKind.REFUSED, "a.onnx", f"a.onnx: {why}") for why in ("one", "two")]
    elsewhere = [Problem(ProblemKind.UNUSABLE, None, why) for why in ("one", "two")]
    write_junit(tmp_path / "r.xml", Path("f"), (*again, *elsewhere))
    assert list_cases(read_suite(tmp_path / "r.xml")) == [
        ("files.refused", "a.onnx"),
        ("files.refused", "a.onnx (2)"),
        ("files.unusable", "family"),
        ("files.unusable", "family (2)"),
    ]


PARITY = [f"parity {way}" for way in ("batched", "single", "together")]


@pytest.mark.parametrize("schema", ["schema2", "schema3"])
def test_what_could_not_be_checked_is_skipped(schema: str, tmp_path: Path) -> None:
    family = load_family(GOLDEN / schema)
    write_junit(tmp_path / "r.xml", family, PROBLEMS, ("L01-D020-fp32",))
    suite = read_suite(tmp_path / "r.xml")
    assert suite.attrib["name"] == f"matexport {GOLDEN / schema}"
    assert list_cases(suite, "failure") == [("files.changed", WEIGHTS), ("files.missing", "config.json")]
    skipped = list_cases(suite, "skipped")
    assert skipped == [
        *((it.name, f"parity {check}") for it in family.profiles for check in list_expected_checks(family, it.name)),
        ("L01-D020-fp32", "drift"),
    ]
    why = f"not checked, since the family's files are refused: {PROBLEMS[0]} (and 1 more)"
    assert {case.attrib["message"] for case in suite.iter("skipped")} == {why}

    write_junit(tmp_path / "r.xml", family, verify_family(family.path))
    passed = list_cases(read_suite(tmp_path / "r.xml"))
    assert set(passed) == {("files", "digests, paths and ranges"), *skipped[:-1]} - {
        (it.name, "parity as float32") for it in family.profiles
    }


def test_token_ids_are_skipped_where_the_family_has_some(family: Path, tmp_path: Path) -> None:
    store_token_rows(family)
    write_junit(tmp_path / "r.xml", load_family(family), PROBLEMS)
    skipped = list_cases(read_suite(tmp_path / "r.xml"), "skipped")
    assert skipped[0] == ("tokenizer", "token ids")
    assert [name for _, name in skipped[1:4]] == PARITY


# onnxruntime may refuse an id that it has no embedding for: the ids were compared before.
def test_token_ids_that_differ_where_nothing_runs(family: Path, tmp_path: Path) -> None:
    store_token_rows(family)
    problems = (
        Problem(ProblemKind.TOKEN_IDS, "tokenizer.json", "token ids differ in 1 of 66 probes"),
        Problem(ProblemKind.UNUSABLE, None, "onnxruntime cannot run it"),
    )
    write_junit(tmp_path / "r.xml", load_family(family), problems)
    suite = read_suite(tmp_path / "r.xml")
    assert list_cases(suite, "failure") == [("tokenizer", "token ids"), ("files.unusable", "family")]
    assert {classname for classname, _ in list_cases(suite, "skipped")} == {
        it.name for it in load_family(family).profiles
    }


def test_token_ids_that_differ(tmp_path: Path) -> None:
    token_ids = TokenParity(66, "0.1", (12, 40), "probe 12 ('a cat')", (2, 7), (2, 9))
    write_junit(tmp_path / "r.xml", Path("f"), replace(verification({"batched": GOOD}), token_ids=token_ids))
    suite = read_suite(tmp_path / "r.xml")
    assert list_cases(suite)[1:] == [("tokenizer", "token ids"), ("L01-D008-fp32", "parity batched")]
    assert list_cases(suite, "failure") == [("tokenizer", "token ids")]
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert failure.attrib["type"] == "token-ids"
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
    write_junit(tmp_path / "r.xml", Path(f"f{letter}"), (Problem(ProblemKind.EXTRA, f"a{letter}b", f"a{letter}b"),))
    suite = read_suite(tmp_path / "r.xml")
    assert suite.attrib["name"] == "matexport f\ufffd"
    assert list_cases(suite) == [("files.extra", "a\ufffdb")]
    assert suite.findtext("testcase/failure") == "extra: a\ufffdb"


@given(st.text(st.characters(exclude_characters="\r")), st.text(st.characters(exclude_characters="\r")))
def test_any_text_is_read_back(tmp_path_factory: pytest.TempPathFactory, file: str, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "r.xml"
    write_junit(path, Path("f"), (Problem(ProblemKind.REFUSED, file, text),))
    suite = read_suite(path)
    (case,) = suite.iter("testcase")
    for found, said in (
        (case.attrib["name"], file or "family"),
        (suite.findtext("testcase/failure"), f"refused: {text}"),
    ):
        assert found is not None
        assert len(found) == len(said)
        assert all(ours in (theirs, "\ufffd") for ours, theirs in zip(found, said, strict=True))
