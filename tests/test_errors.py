"""What is wrong with a family, as a record and as the line that is shown."""

from __future__ import annotations

import pickle

import pytest

from matexport.errors import FamilyError, Problem, ProblemKind


@pytest.mark.parametrize("kind", ["missing", "changed", "extra", "refused"])
def test_a_line_of_these_begins_with_the_kind(kind: str) -> None:
    assert str(Problem(ProblemKind(kind), "a.json", "a.json has 2 bytes")) == f"{kind}: a.json has 2 bytes"


@pytest.mark.parametrize("kind", ["manifest", "proof", "token-ids", "unusable"])
def test_a_sentence_says_by_itself_what_is_wrong(kind: str) -> None:
    assert str(Problem(ProblemKind(kind), None, "it cannot be read")) == "it cannot be read"


def test_a_problem_of_the_baseline_says_so() -> None:
    problem = Problem(ProblemKind.MISSING, "old/a.json", "a.json", "old")
    assert str(problem) == f"{problem}" == "baseline old: missing: a.json"


def test_a_message_alone_is_the_one_problem() -> None:
    error = FamilyError("onnxruntime cannot run it")
    assert error.problems == (Problem(ProblemKind.UNUSABLE, None, "onnxruntime cannot run it"),)
    error = FamilyError("a.json is wrong", kind=ProblemKind.PROOF, file="a.json")
    assert error.problems == (Problem(ProblemKind.PROOF, "a.json", "a.json is wrong"),)


# Ray raises it again in another process.
def test_problems_reach_another_process() -> None:
    problems = (Problem(ProblemKind.MISSING, "a", "a"), Problem(ProblemKind.EXTRA, "b", "b is not listed"))
    error = pickle.loads(pickle.dumps(FamilyError("two things are wrong", problems)))
    assert (str(error), error.problems) == ("two things are wrong", problems)
