"""Bytes become lines: unpacked, without a mark, counted; what is no text is named by its line; nothing is unbounded."""

from __future__ import annotations

import gzip
import io
import os
import random
import threading
import tracemalloc
from pathlib import Path

import pytest

from matexport.errors import RequestError
from matexport.io import reading
from matexport.io.files import read_toml
from matexport.io.reading import MAX_TEXT_CHARACTERS, read_lines, read_whole, show
from matexport.io.texts import load_probes, read_texts
from matexport.spec.probe import Probe

BOM = b"\xef\xbb\xbf"


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_lines(pack: type[bytes], tmp_path: Path) -> None:
    path = write(tmp_path / "a", pack(BOM + "ä\u2028b\r\n\n\ufeffc".encode()))
    assert list(read_lines(path, "a")) == ["ä\u2028b\r\n", "\n", "\ufeffc"], "a mark is one at the beginning only"
    assert read_whole(path, "a", 100) == "ä\u2028b\r\n\n\ufeffc"


def test_a_gzip_file_is_told_by_its_content(tmp_path: Path) -> None:
    assert list(read_lines(write(tmp_path / "packed.txt", gzip.compress(b"a\n", mtime=0)), "it")) == ["a\n"]
    assert list(read_lines(write(tmp_path / "plain.gz", b"a\n"), "it")) == ["a\n"]
    two = gzip.compress(b"a\n", mtime=0) + gzip.compress(b"b\n")  # as `cat a.gz b.gz` makes it
    assert list(read_lines(write(tmp_path / "two.gz", two), "it")) == ["a\n", "b\n"]


def test_an_open_file_is_read_and_left_open() -> None:
    for data in (BOM + b"a\nb", gzip.compress(BOM + b"a\nb", mtime=0)):
        file = io.BytesIO(data)
        assert list(read_lines(file, "it")) == ["a\n", "b"]
        assert not file.closed


def test_a_line_of_a_pipe_is_there_before_the_next() -> None:
    ours, theirs = os.pipe()
    with os.fdopen(ours, "rb") as pipe, os.fdopen(theirs, "wb", buffering=0) as writer:
        lines = read_lines(pipe, "it")
        writer.write(b"first\n")
        assert next(lines) == "first\n"
        writer.write(b"second\n")
        assert next(lines) == "second\n"


def test_a_named_pipe_is_read_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[b"a\nb\n"])
    writer.start()
    assert list(read_lines(tmp_path / "pipe", "it")) == ["a\n", "b\n"]
    writer.join()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"a\nb\xff\n", r"here, line 2: not UTF-8 text \(byte 2 is 0xff\)"),
        (b"\xff\xfea\x00", r"here, line 1: not UTF-8 text \(it begins with the byte order mark of UTF-16: save it as"),
        (b"PAR1....PAR1", "here: a Parquet file, where text was expected"),
        (gzip.compress(b"a\n" * 999, mtime=0)[:-9], "here: a damaged gzip file"),
        (gzip.compress(b"a\n" * 999, mtime=0)[:20], "here: a damaged gzip file"),
        (gzip.compress(b"a", mtime=0)[:-8] + bytes(8), "here: a damaged gzip file .*CRC"),
        (b"\x1f\x8b no gzip", "here: a damaged gzip file"),
    ],
)
def test_what_is_no_text_is_named(data: bytes, words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x", data)
    for read in (lambda: list(read_lines(path, "here")), lambda: read_whole(path, "here", 1 << 20)):
        with pytest.raises(RequestError, match=words):
            read()


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot read here: No such file or directory"):
        next(read_lines(tmp_path / "absent", "here"))
    with pytest.raises(RequestError, match="cannot read here: Is a directory"):
        read_whole(tmp_path, "here", 10)


@pytest.mark.parametrize("letter", ["a", "ä", "\U0001f600"])
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_text_has_at_most_a_mebi_of_characters(letter: str, end: str, tmp_path: Path) -> None:
    longest = letter * MAX_TEXT_CHARACTERS + end
    path = write(tmp_path / "x", f"\ufeff{longest}{'a' if end else ''}".encode())
    assert list(read_lines(path, "x")) == [longest, *(["a"] if end else [])]
    path = write(tmp_path / "x", f"a\n{letter}{longest}".encode())
    with pytest.raises(RequestError, match="x, line 2 has more than 1048576 characters"):
        list(read_lines(path, "x"))


def test_a_line_without_end_is_not_held(tmp_path: Path) -> None:
    path = write(tmp_path / "x", b"a" * (20 << 20))
    tracemalloc.start()
    with pytest.raises(RequestError, match="x, line 1 has more than 1048576 characters"):
        list(read_lines(path, "x"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    bomb = write(tmp_path / "bomb.gz", gzip.compress((b"a" * 65_535 + b"\n") * 2048, mtime=0))
    assert bomb.stat().st_size < 200_000
    tracemalloc.start()
    with pytest.raises(RequestError, match=r"bytes of gzip became more than 6\d{7}, over 200 times as many") as caught:
        for _ in read_lines(bomb, str(bomb)):
            pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(caught.value).startswith(str(bomb))
    assert peak < 4 << 20
    with pytest.raises(RequestError, match="has more than 1000 bytes"):
        read_whole(bomb, "it", 1000)


def test_what_packs_as_text_does_is_no_bomb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """However much it is, and also where a part of it repeats."""
    monkeypatch.setattr(reading, "FREE_UNPACKED_BYTES", 1 << 16)
    words = random.Random(0).choices(["cat", "dog", "tree", "house"], k=400_000)
    data = "\n".join(words).encode() + b"\nsame" * 100_000
    assert len(list(read_lines(write(tmp_path / "x", gzip.compress(data, mtime=0)), "x"))) == 500_000


def test_a_byte_order_mark_is_no_character(tmp_path: Path) -> None:
    """Of texts, of probes, of a job or device."""
    assert read_texts(write(tmp_path / "a.txt", BOM + b"a\nb\n"), 9, "the texts") == ("a", "b")
    probes = BOM + b'{"text": "a"}\n{"text": "b"}\n'
    assert load_probes(write(tmp_path / "a.jsonl", probes)) == (Probe("a"), Probe("b"))
    assert load_probes(write(tmp_path / "b.jsonl", gzip.compress(probes, mtime=0))) == (Probe("a"), Probe("b"))
    assert read_toml(write(tmp_path / "a.toml", BOM + b"x = 1\n"), "job") == {"x": 1}


def test_what_is_shown_of_a_text_fits_on_a_line() -> None:
    assert show("a\nb") == r"'a\nb'"
    assert show("a" * 100) == repr("a" * 60 + "...")
