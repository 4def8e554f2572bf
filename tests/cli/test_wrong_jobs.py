"""Jobs that no parent can fulfil: one line, and exit code 2, before any weights are loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commandline import Run

HEAD = "[points]\nlayers = [1]\ndims = [8]\n"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("x" * 100_000, "name too long"),
        ("/" + "x/" * 5000, "name too long"),
        ("~nobody-of-this-name/x", "is not a directory"),
        ("package:__main__/x", "'__main__' is not installed"),
        ("package:__main__", "'__main__' is not installed"),
        ("a\\u0000b", "null"),
        ("package:numpy/a\\u0000b", "null"),
        (f"package:numpy/{'x' * 5000}", "name too long"),
    ],
    ids=lambda value: str(value)[:24],
)
@pytest.mark.parametrize("command", ["export", "init"])
def test_a_source_that_nothing_can_be_called(source: str, words: str, command: str, run: Run, tmp_path: Path) -> None:
    if command == "init":
        result = run("init", json.loads(f'"{source}"'), "--out", "-")
    else:
        (tmp_path / "job.toml").write_text(f'[parent]\nsource = "{source}"\n{HEAD}')
        result = run("export", tmp_path / "job.toml", "--out", tmp_path / "out")
    result.complains(words)
    assert len(result.err) < 1000
    assert not (tmp_path / "out").exists()


def test_a_path_with_a_nul(run: Run, parent: Path, tmp_path: Path) -> None:
    for line in ('[probes]\nfile = "N"\n', '[calibration]\nfile = "N"\n', 'vocabulary = "N"\n'):
        job = tmp_path / "job.toml"
        job.write_text(f'{line}[parent]\nsource = "{parent}"\n{HEAD}'.replace('"N"', '"a\\u0000b"'))
        run("export", job, "--out", tmp_path / "out").complains("null")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ('revision = "main"\n', "only a hub id has revisions"),
        ("[readout]\nmax_tokens = 2\n", "are the same 2 tokens, so they have one vector"),
        ("[trained]\npairs = [[4, 8]]\n", "[trained]: layers=4 was asked"),
        ("[trained]\npairs = [[1, 33]]\n", "[trained]: dim=33 was asked"),
        ('[probes]\nfile = "one.jsonl"\n', "are the text 'the cat'"),
        ('[probes]\nfile = "half.jsonl"\n', "half of a surrogate pair"),
        ('[probes]\nfile = "spaces.jsonl"\n', "tokens, so they have one vector"),
    ],
    ids=["revision", "max_tokens", "trained layers", "trained dim", "one text", "surrogate", "one row of tokens"],
)
def test_what_says_nothing_of_a_parent(change: str, words: str, run: Run, parent: Path, tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"text": "the cat"}\n' * 3)
    (tmp_path / "half.jsonl").write_text('{"text": "the cat"}\n{"text": "a \\ud83d house"}\n')
    (tmp_path / "spaces.jsonl").write_text('{"text": "the cat"}\n{"text": "the  cat"}\n')
    job = tmp_path / "job.toml"
    job.write_text(f'[parent]\nsource = "{parent}"\n{change}{HEAD}')
    run("export", job, "--out", tmp_path / "out").complains(words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("source", ["x" * 100_000, "~nobody-of-this-name/x"], ids=["long", "nobody"])
def test_a_parent_that_nothing_can_be_called(source: str, run: Run, parent: Path, tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(f'[parent]\nsource = "{parent}"\n{HEAD}')
    result = run("export", tmp_path / "job.toml", "--parent", source, "--out", tmp_path / "out")
    result.complains()
    assert len(result.err) < 1000
