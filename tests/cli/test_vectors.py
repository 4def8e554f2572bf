"""`embed --input`: files as people have them, whatever they hold and however they are packed, or one line."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commandline import Run, read_lines
from conftest import TEXTS

from matexport import Embedder
from matexport.cli.images import write_names

NAME = "L02-D032-fp32"
BOM = b"\xef\xbb\xbf"


@pytest.fixture(scope="module")
def vectors(exported: Path) -> np.ndarray:
    return Embedder(exported, NAME).embed(TEXTS)


def make_rows(separator: str) -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=separator).writerows([["id", "text"], *enumerate(TEXTS)])
    return file.getvalue().encode()


PLAIN = {
    "texts.txt": "\n".join(TEXTS).encode() + b"\n",
    "texts.csv": make_rows(","),
    "semicolons.csv": make_rows(";"),
    "texts.tsv": b"id\ttext\n" + "".join(f"0\t{text}\n" for text in TEXTS).encode(),
    "texts.jsonl": "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in TEXTS).encode(),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", PLAIN)
def test_every_form_gives_the_same_vectors(
    name: str, packed: bool, run: Run, exported: Path, tmp_path: Path, vectors: np.ndarray
) -> None:
    data = BOM + PLAIN[name]
    path = tmp_path / (f"{name}.gz" if packed and name != "texts.csv" else name)  # by its content, not by its name
    path.write_bytes(gzip.compress(data, mtime=0) if packed else data)
    texts, numbers = read_lines(run("embed", exported, "--profile", NAME, "--input", path).out)
    assert texts == TEXTS
    np.testing.assert_array_equal(numbers, vectors)


@pytest.mark.parametrize("categories", [False, True], ids=["strings", "categories"])
def test_parquet_without_ray(
    categories: bool, run: Run, exported: Path, tmp_path: Path, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = pa.array(TEXTS).dictionary_encode() if categories else TEXTS
    pq.write_table(pa.table({"id": range(len(TEXTS)), "body": texts}), tmp_path / "a.parquet")
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    common = ("embed", exported, "--profile", NAME, "--input", tmp_path / "a.parquet", "--output", tmp_path / "v.npy")
    for column in ((), ("--column", "body")):
        result = run(*common, *column)
        assert (result.code, result.out, result.err) == (0, "", "")
        np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), vectors)


@pytest.mark.parametrize(
    "data", [BOM + PLAIN["texts.txt"], gzip.compress(BOM + PLAIN["texts.txt"], mtime=0)], ids=["BOM", "gzip"]
)
def test_standard_input_as_files(data: bytes, run: Run, exported: Path, vectors: np.ndarray) -> None:
    texts, numbers = read_lines(run("embed", exported, "--profile", NAME, stdin=data).out)
    assert texts == TEXTS
    np.testing.assert_array_equal(numbers, vectors)


def test_the_column_that_was_asked(run: Run, exported: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("title,text,body\na cat,a dog,a tree\n")
    common = ("embed", exported, "--profile", NAME, "--input", path)
    assert read_lines(run(*common).out)[0] == ["a dog"]
    assert read_lines(run(*common, "--column", "body").out)[0] == ["a tree"]
    run(*common, "--column", "bdy").complains("a.csv has no column 'bdy'; its columns are: title, text, body")
    path.write_text("title,body\na cat,a tree\n")
    run(*common).complains(
        "a.csv has no column 'text', and 2 columns hold text; name the one that holds the texts with --column; "
        "its columns are: title, body"
    )


def test_a_column_is_of_a_table(run: Run, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    common = ("embed", exported, "--profile", NAME, "--column", "text")
    run(*common, "--input", tmp_path / "a.txt").complains("--column text was asked; ", "is read as one text per line")
    run(*common, "a").complains("--column is for --input FILE with a table, and for --on ray")
    run(*common, stdin=b"a\n").complains("--column is for --input FILE with a table, and for --on ray")


def test_a_line_of_20_mb_is_named(run: Run, exported: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "a.txt", tmp_path / "v.npy"
    path.write_bytes(b"a\n" + b"word " * (4 << 20) + b"\nb\n")
    common = ("embed", exported, "--profile", NAME, "--output", out, "--input")
    run(*common, path).complains("a.txt, line 2 has more than 1048576 characters, the most that are taken")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "word " * (1 << 18)}))
    run(*common, tmp_path / "a.jsonl").complains("a.jsonl, line 1: a text of 1310720 characters; at most 1048576")
    assert not list(tmp_path.glob("v.npy*")), "nothing half-written"


def test_a_bomb_is_refused(run: Run, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matexport.io.reading.FREE_UNPACKED_BYTES", 1 << 16)
    (tmp_path / "a.txt").write_bytes(gzip.compress(b"\n" * (1 << 20), mtime=0))
    result = run("embed", exported, "--profile", NAME, "--input", tmp_path / "a.txt", "--output", tmp_path / "v.npy")
    result.complains("a.txt: ", "bytes of gzip became more than ", "over 200 times as many")
    assert not list(tmp_path.glob("v.npy*"))


def test_parquet_without_its_extra(run: Run, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("text\na\n")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    common = ("embed", exported, "--profile", NAME, "--input")
    run(*common, tmp_path / "a.parquet").complains(
        "a.parquet) needs pyarrow, which is not installed here; install the [parquet] extra: pip install"
    )
    assert read_lines(run(*common, tmp_path / "a.csv").out)[0] == ["a"], "needs no extra"


def test_two_columns_of_one_name(run: Run, exported: Path, tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 2, ["text", "text"]), tmp_path / "a.parquet")
    result = run("embed", exported, "--profile", NAME, "--input", tmp_path / "a.parquet")
    result.complains("a.parquet has 2 columns that are called 'text': rename all but one")


def test_a_job_with_a_byte_order_mark(run: Run, tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_bytes(BOM + b'x = 1\n[parent]\nsource = "nowhere"\n[points]\npairs = [[1, 8]]\n')
    run("export", tmp_path / "job.toml", "--out", tmp_path / "out").complains("job.toml: unknown key 'x'")


def test_a_name_with_a_line_break_takes_one_line(tmp_path: Path) -> None:
    """Or the names behind it would be of other rows."""
    write_names(tmp_path / "v.names.txt", ["one\ntwo\r.png", "other.png"])
    assert (tmp_path / "v.names.txt").read_bytes() == b"one\\ntwo\\r.png\nother.png\n"
