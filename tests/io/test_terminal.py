"""Rows as text."""

from __future__ import annotations

from matexport.io.terminal import format_table, show_lines, show_plain


def test_columns_are_aligned() -> None:
    text = format_table(("name", "n"), [("a", "1"), ("longer", "1000")], left=(0,))
    assert text == "name       n\n------  ----\na          1\nlonger  1000"


def test_no_rows() -> None:
    assert format_table(("name", "n"), []) == "name  n\n----  -"


def test_no_line_ends_in_blanks() -> None:
    text = format_table(("a", "b"), [("x", "y"), ("x", "longer")], left=(0, 1))
    assert all(line == line.rstrip() for line in text.split("\n"))


def test_what_a_terminal_obeys_is_shown() -> None:
    """A processor's name from a file may hold anything."""
    assert show_plain("\x1b[2Jcpu\nchoice: FAKE\u202e") == "\\x1b[2Jcpu\\nchoice: FAKE\\u202e"
    assert format_table(["a"], [["x\ny"]]).splitlines() == ["   a", "----", "x\\ny"]


def test_lines_stay_lines() -> None:
    assert show_lines("a\n\x9bb\r\n\ud800") == "a\n\\x9bb\\r\n\\ud800"
    assert show_plain("Käse 猫 🙂") == "Käse 猫 🙂"
