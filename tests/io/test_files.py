"""JSON that anyone may have written, and files that are not opened."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from properties import given, st

from matexport.errors import Problem, ProblemKind
from matexport.io.files import find_file_problem, parse_json

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 53), 1 << 53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(PLAIN)
def test_what_was_written_is_read(value: object) -> None:
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '[{"b": {"a": 1, "c": 1, "\\u0061": 1}}]'])
def test_a_name_that_occurs_twice(text: str) -> None:
    with pytest.raises(ValueError, match=r"^the name 'a' occurs twice$"):
        parse_json(text)


@pytest.mark.parametrize("literal", ["9007199254740993", "-9007199254740993", "1" * 400, "-" + "1" * 5000])
def test_whole_numbers_that_not_every_reader_reads_alike(literal: str) -> None:
    with pytest.raises(ValueError, match=r"is larger than 2\^53"):
        parse_json(f'{{"a": {literal}}}')


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e309", "-1e309"])
def test_what_is_no_number(literal: str) -> None:
    with pytest.raises(ValueError, match=f"^{literal} is no number$"):
        parse_json(f'{{"a": [{literal}]}}')


def test_the_largest_and_the_least_are_numbers() -> None:
    assert parse_json("[1.7976931348623157e308, 5e-324, 1e-999]") == [1.7976931348623157e308, 5e-324, 0.0]


def link(path: Path) -> None:
    path.symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda _path: None, ProblemKind.MISSING),
        (link, ProblemKind.REFUSED),
        (Path.mkdir, ProblemKind.REFUSED),
        (os.mkfifo, ProblemKind.REFUSED),
        (lambda path: path.write_bytes(b"12345"), ProblemKind.CHANGED),
        (lambda path: path.write_bytes(b"1234"), None),
        (Path.touch, None),
    ],
    ids=["none", "link", "folder", "pipe", "too long", "as long", "empty"],
)
def test_files_that_are_not_opened(make: Callable[[Path], object], kind: ProblemKind | None, tmp_path: Path) -> None:
    make(tmp_path / "a.json")
    problem = find_file_problem(tmp_path / "a.json", 4)
    assert problem is None if kind is None else isinstance(problem, Problem)
    assert problem is None or (problem.kind, problem.file) == (kind, "a.json")
