"""Rows of tables in every form, with where they stand; and the column that holds texts."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from matexport.errors import RequestError
from matexport.io.reading import MAX_TEXT_CHARACTERS
from matexport.io.tables import Form, find_form, read_number, read_table
from matexport.io.texts import read_column

TEXTS = ["A man, dancing; he sings.", 'He said "hi"\nand left.', "", "plain"]


def write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def write_table(path: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=3)
    return path


def read(path: Path) -> list[tuple[str, list[Any]]]:
    return [(row.place, list(row.cells)) for row in read_table(path, lambda cells: "text" in cells)]


@pytest.mark.parametrize("separator", [",", ";"])
def test_cells_and_their_lines(separator: str, tmp_path: Path) -> None:
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=separator).writerows([["id", "text"], [1, TEXTS[0]], [2, TEXTS[1]], [3, TEXTS[3]]])
    assert read(tmp_path / "a.csv") == [
        ("line 1", ["id", "text"]),
        ("line 2", ["1", TEXTS[0]]),
        ("line 3", ["2", TEXTS[1]]),
        ("line 5", ["3", TEXTS[3]]),
    ]


def test_between_tabs_quotes_are_characters(tmp_path: Path) -> None:
    rows = [("line 1", ["id", "text"]), ("line 3", ["1", '"Hi," he said; he left'])]
    for name in ("a.tsv", "a.csv", "a.txt"):
        assert read(write(tmp_path / name, 'id\ttext\r\n\r\n1\t"Hi," he said; he left\r\n')) == rows


def test_a_long_cell(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    path = write(tmp_path / "a.csv", f'id,text\n1,"{"a," * 200_000}"\n')
    assert read(path)[1][1] == ["1", "a," * 200_000]
    assert csv.field_size_limit() == before, "of the whole process"


def test_objects(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '\ufeff{"id": 1, "text": "a"}\n\n{"text": "b\\nc", "more": 2}\n')
    assert read(path) == [("line 1", ["id", "text"]), ("line 1", [1, "a"]), ("line 3", [None, "b\nc"])]


def test_parquet_whatever_it_is_called(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.csv", {"id": [1, 2], "text": ["a", None]})
    assert find_form(path) is Form.PARQUET
    assert read(path) == [("its schema", ["id", "text"]), ("row 0", [1, "a"]), ("row 1", [2, None])]


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.txt", Form.LINES),
        ("a", Form.LINES),
        ("a.gz", Form.LINES),
        ("a.txt.gz", Form.LINES),
        ("a.csv.gz", Form.SEPARATED),
        ("a.TSV", Form.SEPARATED),
        ("a.ndjson.GZ", Form.OBJECTS),
        ("a.parquet", Form.PARQUET),
    ],
)
def test_the_form_is_said_by_the_name(name: str, form: Form, tmp_path: Path) -> None:
    assert find_form(tmp_path / name) is form, "also where there is none"


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", ["a.csv", "semicolons.csv", "a.jsonl"])
def test_the_column_of_texts(name: str, packed: bool, tmp_path: Path) -> None:
    if name == "a.jsonl":
        data = "".join(json.dumps({"id": "x", "text": text}) + "\n" for text in TEXTS).encode()
    else:
        with (tmp_path / "plain").open("w", newline="") as file:
            writer = csv.writer(file, delimiter=";" if name != "a.csv" else ",")
            writer.writerows([["id", "text"], *(["x", text] for text in TEXTS)])
        data = (tmp_path / "plain").read_bytes()
    path = write(tmp_path / name, gzip.compress(data, mtime=0) if packed else data)
    assert list(read_column(path)) == TEXTS
    assert list(read_column(path, "id")) == ["x"] * 4


def test_the_only_column_that_holds_texts(tmp_path: Path) -> None:
    assert list(read_column(write(tmp_path / "a.csv", "id, Review ,stars\n1,good,5\n2,12,1\n"))) == ["good", "12"]
    assert list(read_column(write(tmp_path / "b.csv", 'sentence\na man\n"a dog, old"\n'))) == ["a man", "a dog, old"]
    assert list(read_column(write(tmp_path / "a.jsonl", '{"n": 1, "body": "a"}\n'))) == ["a"]
    table = {"id": [1, 2], "body": ["a", "b"], "vector": [[1.0], [2.0]]}
    assert list(read_column(write_table(tmp_path / "a.parquet", table))) == ["a", "b"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()], ids=str)
def test_parquet_texts_of_every_type(kind: pa.DataType, tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(700)]
    path = write_table(tmp_path / "a.parquet", {"text": pa.array(texts, kind)})
    assert list(read_column(path)) == texts


def test_categories_are_read(tmp_path: Path) -> None:
    texts = ["b", "a", "b", "c", "c"]
    path = write_table(tmp_path / "a.parquet", {"id": range(5), "text": pa.array(texts).dictionary_encode()})
    assert pa.types.is_dictionary(pq.read_schema(path).field("text").type)
    assert list(read_column(path)) == texts


def test_no_rows(tmp_path: Path) -> None:
    assert list(read_column(write(tmp_path / "a.csv", "text\n"))) == []
    assert list(read_column(write(tmp_path / "b.csv", "\n\n"))) == []
    assert list(read_column(write_table(tmp_path / "a.parquet", {"text": pa.array([], pa.string())}))) == []


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        (
            "a.csv",
            "id,title,body\n1,a,b\n",
            r"no column 'text', and 2 columns hold text; .*columns are: id, title, body",
        ),
        ("a.csv", "id,n\n1,2\n", r"no column 'text', and none holds text; .*columns are: id, n"),
        ("a.csv", "id,text,text\n1,a,b\n", "has 2 columns that are called 'text': rename all but one"),
        ("a.csv", "text\na\nb, c\n", r"a\.csv, line 3: 2 cells, and there are 1 columns"),
        ("a.csv", "id,text\n1\n", r"a\.csv, line 2: no text in the column 'text'"),
        ("a.csv", 'id,text\n1,"a\n2,b\n', r"a\.csv, line 2: no cells separated by commas \(unexpected end of data\)"),
        ("a.csv", "id,text\n1,caf\xe9\n".encode("latin-1"), r"a\.csv, line 2: not UTF-8 text \(byte 6 is 0xe9\)"),
        (
            "a.csv",
            "A man is dancing.\nA dog barks.\n",
            r"line 1 is 'A man is dancing\.', where the names of the columns",
        ),
        ("a.csv", "1,a film\n2,a book\n", "line 1 is '1, a film', where the names of the columns were expected"),
        (
            "a.csv",
            f"text\n{'a' * (MAX_TEXT_CHARACTERS + 1)}\n",
            "line 2: a text of 1048577 characters; at most 1048576",
        ),
        ("a.jsonl", '{"text": "a"}\n["b"]\n', r"line 2 is no JSON object: '\[\"b\"\]'; each line should be a JSON obj"),
        ("a.jsonl", '{"text": "a"}\n{"text"\n', "line 2 is not JSON .*each line should be a JSON object"),
        ("a.jsonl", '{"text": "a"}\n{"text": 5}\n', "line 2: '5', which is no text, in the column 'text'"),
        ("a.jsonl", '{"text": "a"}\n{"txt": "b"}\n', "line 2: no text in the column 'text'"),
        ("a.jsonl", json.dumps({"a\nb": "x", "c": "y"}), r"its columns are: 'a\\nb', c$"),
        ("a.parquet", b"PAR1 and no more PAR1", "cannot be read as Parquet"),
        ("a.parquet", "text\na\n", "cannot be read as Parquet"),
        ("a.parquet", gzip.compress(b"PAR1", mtime=0), "cannot be read as Parquet"),
    ],
)
def test_what_holds_no_texts_is_refused(name: str, data: bytes | str, words: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        list(read_column(write(tmp_path / name, data)))
    assert "\n" not in str(caught.value)


def test_parquet_that_holds_no_texts_is_refused(tmp_path: Path) -> None:
    cases = [
        ({"text": [1, 2]}, None, "the column 'text' holds int64, not text"),
        ({"text": ["a"], "n": [1]}, "n", "the column 'n' holds int64, not text"),
        ({"text": ["a"], "n": [1]}, "body", "has no column 'body'; its columns are: text, n"),
        ({"title": ["a"], "body": ["b"]}, None, "no column 'text', and 2 columns hold text"),
        ({"text": ["a", None]}, None, r"a\.parquet, row 1: no text in the column 'text'"),
    ]
    for columns, column, words in cases:
        with pytest.raises(RequestError, match=words):
            list(read_column(write_table(tmp_path / "a.parquet", columns), column))


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 3, ["text", "id", "text"]), tmp_path / "a.parquet")
    with pytest.raises(RequestError, match=r"a\.parquet has 2 columns that are called 'text': rename all but one"):
        list(read_column(tmp_path / "a.parquet"))


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        *[("2.0", 2), (" 3 ", 3), (4, 4), (0.5, 0.5), ("x", None), ("", None), ("nan", None), ("inf", None)],
        *[(None, None), (True, None), ("4,5", None), (10**400, None), (float("nan"), None)],
    ],
)
def test_numbers(cell: object, number: float | None) -> None:
    assert read_number(cell) == number
    assert read_number("4,5", decimal_comma=True) == 4.5
