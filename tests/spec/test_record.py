"""Parsed data becomes records, and nothing that a record lacks is let through."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import msgspec
import pytest

from matexport.errors import FamilyError, RequestError
from matexport.spec.record import Record, read_record


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Leaf(Record, frozen=True):
    size: int
    colour: Colour = Colour.RED


class Tree(Record, frozen=True):
    leaf: Leaf
    spare: Leaf | None = None
    row: tuple[Leaf, ...] = ()
    named: Mapping[str, Leaf] = msgspec.field(default_factory=dict)
    label: str | tuple[str, ...] | None = None


def test_reads_nested_records_with_their_defaults() -> None:
    data = {"leaf": {"size": 1}, "row": [{"size": 2, "colour": "blue"}], "named": {"x": {"size": 3}}, "label": ["a"]}
    expected = Tree(Leaf(1), row=(Leaf(2, Colour.BLUE),), named={"x": Leaf(3)}, label=("a",))
    assert read_record(data, Tree, "here", RequestError) == expected


@pytest.mark.parametrize(
    ("data", "path", "known"),
    [
        ({"leaf": {"size": 1}, "leafs": 1}, "leafs", "leaf, spare, row, named, label"),
        ({"leaf": {"size": 1, "siz": 1}}, "leaf.siz", "size, colour"),
        ({"leaf": {"size": 1}, "spare": {"size": 1, "siz": 1}}, "spare.siz", "size, colour"),
        ({"leaf": {"size": 1}, "row": [{"size": 1}, {"size": 1, "siz": 1}]}, "row[1].siz", "size, colour"),
        ({"leaf": {"size": 1}, "named": {"x": {"size": 1, "siz": 1}}}, "named.x.siz", "size, colour"),
    ],
)
def test_unknown_key_is_refused_with_its_path_and_the_known_ones(data: object, path: str, known: str) -> None:
    with pytest.raises(RequestError) as refusal:
        read_record(data, Tree, "here", RequestError)
    meant = {"leafs": "leaf"}.get(path, "size")
    assert str(refusal.value) == f"here: unknown key {path!r}; known here: {known}; did you mean {meant!r}?"


def test_nothing_is_suggested_where_no_key_is_close() -> None:
    with pytest.raises(RequestError, match=r"known here: size, colour$"):
        read_record({"leaf": {"size": 1, "zebra": 1}}, Tree, "here", RequestError)


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ({"leaf": {"size": "1"}}, "$.leaf.size"),
        ({"leaf": {"size": 1.5}}, "$.leaf.size"),
        ({"leaf": {"size": True}}, "$.leaf.size"),
        ({"leaf": {}}, "$.leaf"),
        ({"leaf": {"size": 1}, "named": [1]}, "$.named"),
        ({"leaf": {"size": 1}, "row": [{"size": None}]}, "$.row[0].size"),
    ],
)
def test_wrong_type_is_refused_with_its_path(data: object, path: str) -> None:
    with pytest.raises(RequestError, match="here: ") as refusal:
        read_record(data, Tree, "here", RequestError)
    assert f"`{path}`" in str(refusal.value)


def test_a_choice_that_is_not_there_is_refused_with_those_that_are() -> None:
    for data, path in (
        ({"leaf": {"size": 1, "colour": "green"}}, "leaf.colour 'green'"),
        ({"leaf": {"size": 1}, "row": [{"size": 1, "colour": "green"}]}, r"row\[0\].colour 'green'"),
    ):
        with pytest.raises(RequestError, match=f"here: unknown {path}; known here: red"):
            read_record(data, Tree, "here", RequestError)


@pytest.mark.parametrize("data", [[], "tree", 1, None])
def test_what_is_no_table_is_refused_by_the_callers_error(data: object) -> None:
    with pytest.raises(FamilyError, match="here: Expected `object`"):
        read_record(data, Tree, "here", FamilyError)
