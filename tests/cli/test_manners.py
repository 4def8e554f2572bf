"""Exit codes mean what they say, whatever the machine: 1 only where a gate said no. In processes of their own."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commandline import Run
from forge import edit_manifest
from places import GOLDEN

FAMILY = GOLDEN / "schema4"
NAME = "L01-D020-fp32"
MATEXPORT = shlex.join([sys.executable, "-m", "matexport"])
posix = pytest.mark.skipif(os.name != "posix", reason="no POSIX shell")
full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")


def run_shell(line: str, folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A line of bash in which ``$M`` is the command and ``$F`` a family; its code is that of the part that failed."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        capture_output=True,
        check=False,
        cwd=folder,
        env={**os.environ, "M": MATEXPORT, "F": str(FAMILY), **environment},
    )


# --- standard streams


@posix
@full
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "words", ["show $F", "show $F --json", f"embed $F --profile {NAME} a", "--help", "show --help", "verify $F"]
)
def test_a_full_disk_behind_standard_output(words: str, unbuffered: str) -> None:
    result = run_shell(f"$M {words} > /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert result.stderr == b"matexport: cannot write to standard output: the disk is full\n"
    assert result.returncode == 2


@posix
def test_standard_output_is_closed() -> None:
    result = run_shell("$M show $F >&-")
    assert result.returncode == 2
    assert result.stderr == b"matexport: standard output is closed, so there is nowhere to print to\n"


@posix
@full
@pytest.mark.parametrize("where", ["2>&-", "2>/dev/full"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_nobody_can_be_told(where: str, unbuffered: str, tmp_path: Path) -> None:
    """The code still says what happened, and what libraries say to standard error lands in no file of the user's."""
    environment = {"PYTHONUNBUFFERED": unbuffered}
    assert run_shell(f"$M show /nowhere {where}", **environment).returncode == 2
    assert run_shell(f"$M bogus {where}", **environment).returncode == 2
    assert run_shell(f"$M show $F {where}", **environment).returncode == 0
    result = run_shell(f"$M embed $F --profile {NAME} --output v.npy a b {where}", tmp_path, **environment)
    assert (result.returncode, (tmp_path / "v.npy").stat().st_size) == (0, 128 + 2 * 20 * 4)
    assert run_shell(f"$M verify $F {where} 0<&-", **environment).returncode == 0


@posix
@pytest.mark.parametrize("words", ["show $F", f"embed $F --profile {NAME} a", "--help", "verify $F --json"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_went_away(words: str, unbuffered: str) -> None:
    """As a process that SIGPIPE ended: quietly, and not as if all had been said."""
    result = run_shell(f"$M {words} | sleep 0", PYTHONUNBUFFERED=unbuffered)
    assert (result.returncode, result.stderr) == (128 + signal.SIGPIPE, b"")


@posix
@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437"])
def test_a_console_that_is_not_utf8(encoding: str, tmp_path: Path) -> None:
    environment = {"PYTHONIOENCODING": encoding}
    result = run_shell(f"$M embed $F --profile {NAME} 'Käse 猫'", **environment)
    assert (result.returncode, result.stderr) == (0, b"")
    assert json.loads(result.stdout)["text"] == "Käse 猫"
    result = run_shell("$M show 'Käse 猫'", **environment)
    assert result.returncode == 2
    assert b"Traceback" not in result.stderr
    assert result.stderr.count(b"\n") == 1
    family = edit_copy(tmp_path, "猫\u2581")
    for words in (f"show {family}", f"show {family} --json", f"verify {family}"):
        result = run_shell(f"$M {words}", **environment)
        assert (result.returncode, result.stderr) == (0, b""), words


@posix
def test_the_locale_c(tmp_path: Path) -> None:
    family = edit_copy(tmp_path, "猫")
    result = run_shell(f"$M show {family}", LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")
    assert (result.returncode, result.stderr) == (0, b"")


# --- files and folders


@posix
def test_the_working_directory_was_removed(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    result = run_shell(f"rmdir ../gone; $M pack $F {NAME} relative", gone)
    assert result.returncode == 2
    assert result.stderr == b"matexport: the working directory is gone: change to another one\n"


@pytest.mark.parametrize("command", ["show", "verify", "pick", "bench", "embed"])
def test_a_family_that_cannot_be_read(command: str, run: Run, family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For root nothing is unreadable, so the system is asked to say so."""

    known = os.open

    def refuse(path: object, *arguments: Any, **options: Any) -> int:
        if str(path).startswith(str(family)):
            raise PermissionError(13, "Permission denied", str(path))
        return known(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    more = ("--profile", "L01-D008-fp32", "a") if command == "embed" else ()
    run(command, family, *more).complains("ermission denied")


def test_a_folder_that_cannot_be_listed(run: Run, family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    run("verify", family).complains(str(family), "permission denied")


def test_what_no_command_expected_is_no_gate(run: Run, family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_family: object) -> None:
        raise ValueError("a fault")

    monkeypatch.setattr("matexport.family.summary.describe_profiles", fail)
    monkeypatch.setattr("matexport.family.manifest.load_family", fail)
    result = run("show", family)
    assert (result.code, result.out) == (2, "")
    assert "ValueError: a fault" in result.err
    assert result.err.endswith("matexport: this is a fault of matexport; please report it with the lines above\n")
    monkeypatch.setattr("matexport.family.manifest.load_family", raise_memory_error)
    run("show", family).complains("there is not enough memory")


def raise_memory_error(_family: object) -> None:
    raise MemoryError


# --- what is printed


def edit_copy(folder: Path, source: str) -> Path:
    """A family whose parent is called so."""
    import shutil

    family = Path(shutil.copytree(FAMILY, folder / "copy"))
    edit_manifest(family, lambda facts: facts["parent"].update(source=source))
    return family


EVIL = "\x1b[2J\x9b31m\u202e\r\nmatexport: passed\x7f"


def test_a_family_cannot_control_the_terminal(run: Run, family: Path) -> None:
    def spoil(facts: dict[str, object]) -> None:
        facts["parent"].update(source=EVIL, judge=EVIL, architecture=EVIL, unread=[EVIL])  # type: ignore[attr-defined]
        facts["text"].update(prompts={EVIL: EVIL})  # type: ignore[attr-defined]
        facts["instruction_sets"] = [EVIL]
        facts["refused"] = {"L01-D007-int8": EVIL}

    edit_manifest(family, spoil)
    for words in (("show", family), ("verify", family), ("embed", family, "--profile", "absent", "a")):
        result = run(*words)
        for line in (result.out + result.err).split("\n"):
            assert line.isprintable(), words
            assert not line.startswith("matexport: passed"), words
    result = run("show", family)
    assert r"\x1b[2J\x9b31m\u202e\r\nmatexport: passed\x7f" in result.out


def test_json_stays_json(run: Run, family: Path) -> None:
    edit_manifest(family, lambda facts: facts["parent"].update(source=EVIL))
    result = run("show", family, "--json")
    assert result.json["facts"]["parent"]["source"] == EVIL  # type: ignore[index]
    assert result.out.replace("\n", "").isprintable()


def test_what_libraries_say_is_one_line(run: Run, family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise RuntimeError(f"onnxruntime says {EVIL}")

    monkeypatch.setattr("onnxruntime.InferenceSession", fail)
    result = run("embed", family, "--profile", "L01-D008-fp32", "a")
    assert result.code == 2
    assert result.err[:-1].isprintable()


# --- command lines


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("verify", "F", "--threads", "9" * 30), "is out of range"),
        (("verify", "F", "--threads", "9" * 5000), "is out of range"),
        (("verify", "F", "--threads", "1025"), "1024 threads are the most"),
        (("verify", "F", "--threads", "0"), "is not a whole number of at least 1"),
        (("bench", "F", "--runs", str(2**31)), "is out of range"),
        (("bench", "F", "--seconds", "inf"), "is not a number above 0"),
        (("bench", "F", "--seconds", "nan"), "is not a number above 0"),
        (("bench", "F", "--profile", "a", "--profile", "a"), "a was given twice"),
        (("bench", "F", "--threads", "2", "--threads", "2"), "2 was given twice"),
        (("bench", "F", "--shape", "1x100000000000"), "is out of range"),
        (("bench", "F", "--shape", "100000000000x1"), "is out of range"),
        (("bench", "F", "--shape", "65536x512"), "1048576 tokens together are the most"),
        (("bench", "F", "--shape", "1x16x3"), "is not BATCHxTOKENS"),
        (("pick", "F", "--shape", "1x100000000000"), "is out of range"),
        (("evaluate", "F", "--profile", "a", "--profile", "a"), "a was given twice"),
        (("evaluate", "F", "--split", "dev"), "--split is for --retrieval"),
        (("embed", "F", "--profile", "a", "--profile", "b", "x"), "was given twice: a and b"),
        (("export", "x.toml", "--precision", "int4"), "'fp32', 'fp16', 'int8'"),
        (("export", "x.toml", "--precision", "int8", "--precision", "int8"), "int8 was given twice"),
        (("embed", "F", "--ouput", "x", "a"), "unrecognized arguments: --ouput; did you mean '--output'?"),
        (("embed", "F", "--ouput=x", "a"), "did you mean '--output'?"),
        (("show", "F", "\x1b[2J"), r"\x1b[2J"),
    ],
)
def test_what_cannot_be_meant(words: tuple[str, ...], message: str, run: Run) -> None:
    result = run(*(FAMILY if word == "F" else word for word in words))
    result.complains(message)
    assert "Precision." not in result.err


def test_several_values_are_several(run: Run, family: Path) -> None:
    threads = ("--threads", "1", "--threads", "2")
    result = run("bench", family, "--profile", "L01-D008-fp32", "--profile", "absent", *threads)
    result.complains("'absent' was asked")


def test_no_arguments_is_no_success(run: Run) -> None:
    """An empty variable in a script must not pass for a command that was done."""
    result = run()
    assert (result.code, result.out) == (2, "")
    assert "usage: matexport" in result.err
    assert "verify" in result.err
