"""The house stays small: what its folders, modules, functions and calls may be, counted in the source."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from test_layers import EXPORT, WINGS

import matexport

ROOT = Path(matexport.__file__).parent
SOURCES = {path: path.read_text(encoding="utf-8") for path in sorted(ROOT.rglob("*.py"))}


def list_functions(source: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def count_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def count_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Without the object that a method is of."""
    given = function.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


FUNCTIONS = {
    f"{path.relative_to(ROOT)}: {function.name}": function
    for path, source in SOURCES.items()
    for function in list_functions(source)
}


def test_no_function_is_long() -> None:
    lengths = {name: count_lines(function) for name, function in FUNCTIONS.items()}
    assert {name: lines for name, lines in lengths.items() if lines > 60} == {}
    assert len([name for name, lines in lengths.items() if lines > 50]) <= 5


def test_no_call_takes_over_six_parameters() -> None:
    assert [name for name, function in FUNCTIONS.items() if count_parameters(function) > 6] == []


def test_no_module_is_long() -> None:
    lines = {str(path.relative_to(ROOT)): len(source.splitlines()) for path, source in SOURCES.items()}
    assert {name: count for name, count in lines.items() if count > 350} == {}


def test_no_folder_is_wide() -> None:
    """An empty door is no room."""
    rooms = Counter(path.parent for path, source in SOURCES.items() if source.strip())
    assert {str(folder.relative_to(ROOT)): count for folder, count in rooms.items() if count > 10} == {}


def test_there_are_few_floors() -> None:
    assert len(set(WINGS.values())) <= 9
    assert len(set(EXPORT.values())) <= 9


def test_what_is_counted() -> None:
    """A count that sees nothing is always small."""
    (function,) = list_functions("class A:\n    def f(self, a, /, b, *, c):\n        return a\n")
    assert (count_lines(function), count_parameters(function)) == (2, 3)
    assert len(FUNCTIONS) > 900
    assert len(SOURCES) > 100
