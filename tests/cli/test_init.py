"""``matexport init`` as a user types it, or answers it on a terminal."""

from __future__ import annotations

import io
import json
import os
import select
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from commandline import Run
from outlines import make_outline
from parents import make_parent

from matexport.cli.commands import init as initcommand
from matexport.cli.commands.init import ask, refuse_taken, write_job
from matexport.errors import DestinationError, ParentError, RequestError
from matexport.io.jobs import load_job
from matexport.io.proposal import Outline, Trained
from matexport.spec.job import ParentSource
from matexport.spec.profile import Point, Precision

TRAINED = Trained((Point(2, 32), Point(6, 384)), "matryoshka.json")


class Looked:
    """In place of a look that takes seconds: a parent of six blocks."""

    def __init__(self) -> None:
        self.asked: list[ParentSource] = []
        self.outline = make_outline()
        self.error: Exception | None = None

    def __call__(self, parent: ParentSource, base: Path) -> Outline:
        assert base == Path()
        self.asked.append(parent)
        if self.error:
            raise self.error
        return msgspec.structs.replace(self.outline, parent=parent)


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Looked:
    monkeypatch.chdir(tmp_path)
    looked = Looked()
    monkeypatch.setattr("matexport.export.outline.outline_parent", looked)
    monkeypatch.setattr("matexport.export.quiet.quiet_libraries", lambda: None)
    return looked


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch, run: Run) -> Callable[..., Any]:
    """A terminal on which these lines are typed; an exception is what happens in place of one."""

    def give(*lines: str | type[BaseException]) -> list[object]:
        left: list[object] = list(lines)

        def read() -> str:
            line = left.pop(0) if left else EOFError
            if isinstance(line, str):
                return line
            raise line  # type: ignore[misc]

        monkeypatch.setattr("builtins.input", read)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        return left

    return give


# --- with a parent


def test_a_file_is_written_and_what_comes_next_is_said(run: Run, looked: Looked, tmp_path: Path) -> None:
    result = run("init", "org/some model")
    assert (result.code, result.err) == (0, "")
    assert [parent.source for parent in looked.asked] == ["org/some model"]
    job = load_job(tmp_path / "some-model.toml")
    assert job.precisions == (Precision.FP32, Precision.INT8)
    assert len(job.points) == 12
    assert result.out.startswith("some-model.toml: written\n")
    assert result.out.endswith("\nnext: matexport export some-model.toml\n")
    for words in (
        "BertModel, 6 blocks, vectors of 384",
        "its files do not say",
        "3 depths (2, 4, 6) x 4 dims",
        "24, in ",
    ):
        assert words in result.out


def test_options_are_what_the_file_says(run: Run, looked: Looked, tmp_path: Path) -> None:
    looked.outline = make_outline(trained=TRAINED)
    out = tmp_path / "a job.toml"
    result = run(
        "init", "org/name", "--out", out, "--points", "trained", "--precision", "q8", "--precision", "fp32",
        "--revision", "v1", "--route", "query", "--allow-pickle", "--trust-remote-code",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert looked.asked == [ParentSource("org/name", "v1", None, True, True, "query")]
    job = load_job(out)
    assert job.parent == looked.asked[0]
    assert (job.precisions, job.points) == ((Precision.Q8, Precision.FP32), TRAINED.points)
    assert f"next: matexport export '{out}'" in result.out


@pytest.mark.parametrize(("asked", "count"), [((), 2), (("--points", "grid"), 12), (("--points", "whole"), 1)])
def test_points(asked: tuple[str, ...], count: int, run: Run, looked: Looked, tmp_path: Path) -> None:
    looked.outline = make_outline(trained=TRAINED)
    assert run("init", "org/name", *asked).code == 0
    assert len(load_job(tmp_path / "name.toml").points) == count


def test_standard_output(run: Run, looked: Looked, tmp_path: Path) -> None:
    result = run("init", "org/name", "--out", "-")
    assert (result.code, result.err) == (0, "")
    assert tomllib.loads(result.out)["parent"] == {"source": "org/name"}
    assert list(tmp_path.iterdir()) == []


def test_json(run: Run, looked: Looked, tmp_path: Path) -> None:
    looked.outline = make_outline(trained=TRAINED, ignored=("a \ud800",))
    document = run("init", "org/name", "--json").json
    assert document["job"] == "name.toml"
    assert document["next"] == "matexport export name.toml"
    assert (tmp_path / "name.toml").read_text() == document["toml"]
    assert document["points"] == [[2, 32], [6, 384]]
    assert document["outline"]["trained"]["source"] == "matryoshka.json"  # type: ignore[index]
    document = run("init", "org/name", "--json", "--out", "-").json
    assert (document["job"], document["next"]) == (None, None)


def test_a_directory_is_named_as_the_file_has_to(run: Run, looked: Looked, tmp_path: Path) -> None:
    (tmp_path / "models/minilm").mkdir(parents=True)
    (tmp_path / "jobs").mkdir()
    assert run("init", "models/minilm", "--out", "jobs/x.toml").code == 0
    assert load_job(tmp_path / "jobs/x.toml").parent.source == "../models/minilm"
    assert run("init", "models/minilm").code == 0
    assert load_job(tmp_path / "minilm.toml").parent.source == "./models/minilm"
    result = run("init", "models/minilm", "--out", "-")
    assert tomllib.loads(result.out)["parent"]["source"] == str(tmp_path / "models/minilm")


# --- refusals


def test_nothing_is_overwritten_unless_asked(run: Run, looked: Looked, tmp_path: Path) -> None:
    (tmp_path / "name.toml").write_text("mine")
    run("init", "org/name").complains("name.toml is there already: give another --out, or --overwrite")
    assert (tmp_path / "name.toml").read_text() == "mine"
    assert looked.asked == [], "refused before anything is looked at"
    assert run("init", "org/name", "--overwrite").code == 0
    assert load_job(tmp_path / "name.toml").name == "name"
    assert [path.name for path in tmp_path.iterdir()] == ["name.toml"]


def test_a_file_that_comes_to_be_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    refuse_taken(str(path), overwrite=False)
    path.write_text("mine")
    with pytest.raises(DestinationError, match="is there already"):
        write_job(path, "text", overwrite=False)
    assert path.read_text() == "mine"


def test_places_where_no_file_can_be(run: Run, looked: Looked, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling.toml").symlink_to(tmp_path / "gone")
    run("init", "p", "--out", tmp_path / "folder").complains("it is a directory; name a file in it", "job.toml")
    run("init", "p", "--out", "no/such/x.toml").complains("there is no directory no/such")
    run("init", "p", "--out", tmp_path / "dangling.toml").complains("is there already")
    assert looked.asked == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_disk_that_is_full_leaves_no_part_of_a_file(
    overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BytesIO):
        def write(self, _content: object) -> int:
            raise OSError(28, "No space left on device")

    def open_full(path: Path, _mode: str) -> Full:
        path.touch()
        return Full()

    monkeypatch.setattr(Path, "open", open_full)
    monkeypatch.setattr("matexport.io.files.os.fdopen", lambda descriptor, _mode: (os.close(descriptor), Full())[1])
    with pytest.raises(DestinationError, match=r"cannot write .*job.toml: the disk is full"):
        write_job(tmp_path / "job.toml", "text", overwrite=overwrite)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(DestinationError, match="there is no directory"):
        write_job(tmp_path / "gone" / "x.toml", "text", overwrite=True)


def test_a_refused_parent_leaves_no_file(run: Run, looked: Looked, tmp_path: Path) -> None:
    looked.error = ParentError("org/name has a surprise")
    run("init", "org/name").complains("matexport: org/name has a surprise\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["allow_pickle", "trust_remote_code"])
def test_what_a_job_could_allow_init_can(name: str, run: Run, looked: Looked) -> None:
    looked.error = ParentError(f"it needs {name} = true in the job's [parent]")
    run("init", "org/name").complains(f"to have init write that: --{name.replace('_', '-')}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("p", "--points", "trained"), "nothing in the files of p says where it was trained"),
        (("p", "--points", "some"), "invalid choice: 'some'"),
        (
            ("p", "--precision", "int8-static"),
            "int8-static was asked; it needs ranges measured on texts or images",
        ),
        (("p", "--precision", "fp8"), "invalid choice: 'fp8'"),
        (("p", "q"), "unrecognized arguments: q"),
    ],
)
def test_requests_that_make_no_file(
    arguments: tuple[str, ...], words: str, run: Run, looked: Looked, tmp_path: Path
) -> None:
    run("init", *arguments).complains(words)
    assert list(tmp_path.iterdir()) == []
    assert bool(looked.asked) == ("trained" in arguments), "refused as early as it can be"


def test_a_parent_without_blocks_has_no_small_precisions(run: Run, looked: Looked, tmp_path: Path) -> None:
    looked.outline = make_outline(0, 64)
    run("init", "p", "--precision", "int8").complains("int8 was asked; p looks its tokens up in a table")
    assert run("init", "p").code == 0
    assert load_job(tmp_path / "p.toml").precisions == (Precision.FP32,)


def test_a_path_that_is_no_text_is_refused(run: Run, looked: Looked, tmp_path: Path) -> None:
    folder = os.fsdecode(b"mod\xffel")
    (tmp_path / folder).mkdir()
    run("init", folder, "--out", "x.toml").complains("is not Unicode text")
    assert not (tmp_path / "x.toml").exists()


def test_without_a_parent_or_a_terminal(run: Run, looked: Looked) -> None:
    run("init", stdin=b"").complains("no parent, and no terminal to ask on", "matexport init path/to/model")
    run("init").complains("no parent, and no terminal to ask on")  # standard error is none here


# --- questions


def test_the_defaults_of_every_question(run: Run, looked: Looked, answers: Any, tmp_path: Path) -> None:
    left = answers("org/name", "", "", "")
    result = run("init")
    assert (result.code, left) == (0, [])
    job = load_job(tmp_path / "name.toml")
    assert (len(job.points), job.precisions) == (12, (Precision.FP32, Precision.INT8))
    for words in (
        "or package:NAME/path: ", "grid     3 depths (2, 4, 6)", "whole    1 depth (6) x 1 dim (384)",
        "Points [grid]: ", "Precisions [fp32 int8]: ", "Write to [name.toml]: ",
    ):  # fmt: skip
        assert words in result.err, words
    assert "trained  " not in result.err, "there are none"
    assert "Points" not in result.out


def test_answers_that_are_none_are_asked_for_again(run: Run, looked: Looked, answers: Any, tmp_path: Path) -> None:
    looked.outline = make_outline(trained=TRAINED)
    (tmp_path / "name.toml").touch()
    (tmp_path / "mine.toml").touch()
    left = answers(
        "", " org/name ", "some", "whole", "fp8", "int8-static", "fp32, q4,fp32", "mine.toml", "no/x.toml", ""
    )
    result = run("init")
    assert (result.code, left) == (0, []), result.err
    job = load_job(tmp_path / "name-2.toml")
    assert (job.points, job.precisions) == ((Point(6, 384),), (Precision.FP32, Precision.Q4))
    for words in (
        "a parent is needed", "the points 'some' were asked; there are trained, grid, whole", "the precision 'fp8'",
        "int8-static was asked", "mine.toml is there already", "there is no directory no",
        "Points [trained]: ", "Write to [name-2.toml]: ",
    ):  # fmt: skip
        assert words in result.err, words
    assert (tmp_path / "mine.toml").read_text() == ""


def test_what_was_given_is_not_asked(run: Run, looked: Looked, answers: Any, tmp_path: Path) -> None:
    left = answers("org/name")
    assert run("init", "--points", "whole", "--precision", "fp32", "--out", "x.toml").code == 0
    assert left == []
    assert load_job(tmp_path / "x.toml").points == (Point(6, 384),)


@pytest.mark.parametrize("stop", [EOFError, KeyboardInterrupt])
@pytest.mark.parametrize("place", range(4))
def test_a_terminal_that_is_left_ends_cleanly(
    place: int, stop: type[BaseException], run: Run, looked: Looked, answers: Any, tmp_path: Path
) -> None:
    answers(*["org/name", "", ""][:place], stop)
    result = run("init")
    assert (result.code, result.out) == (130, "")
    assert result.err.endswith("\nmatexport: interrupted; no file was changed\n")
    assert list(tmp_path.iterdir()) == []


def test_a_refused_parent_ends_the_questions(run: Run, looked: Looked, answers: Any) -> None:
    looked.error = ParentError("no such thing")
    answers("org/name")
    result = run("init")
    assert (result.code, result.out) == (2, "")
    assert result.err.endswith("matexport: no such thing\n")


def test_asking_goes_on_until_there_is_an_answer(answers: Any) -> None:
    def read(answer: str) -> int:
        if not answer.isdigit():
            raise RequestError("not a number")
        return int(answer)

    answers("x", "", "7")
    assert ask("How many", read) == 7
    answers("")
    assert ask("How many", read, "3") == 3


def test_what_a_terminal_is_shown_has_no_escapes(run: Run, looked: Looked) -> None:
    looked.outline = make_outline(ignored=("README.md: \x1b[31m red\nnext: rm -rf \u202e",))
    out = run("init", "org/name").out
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert not any(line.startswith("next: rm") for line in out.splitlines())


# --- the whole of it


def type_on_a_terminal(arguments: list[str], folder: Path, lines: list[tuple[str, str]], seconds: float = 120) -> str:
    """Run a command on a pseudo terminal and type each line when its prompt is there; all that was shown."""
    pty = pytest.importorskip("pty")
    main, other = pty.openpty()
    command = [sys.executable, "-m", "matexport", *arguments]
    process = subprocess.Popen(command, cwd=folder, stdin=other, stdout=other, stderr=other, close_fds=True)
    os.close(other)
    shown, end = "", time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            if not select.select([main], [], [], 0.2)[0]:
                continue
            try:
                shown += os.read(main, 4096).decode()
            except OSError:  # the other end was closed
                break
            if lines and lines[0][0] in shown:
                os.write(main, lines.pop(0)[1].encode() + b"\n")
        assert process.wait(timeout=10) == 0, shown
    finally:
        process.kill()
        os.close(main)
    return shown


def test_on_a_terminal(tmp_path: Path) -> None:
    make_parent(tmp_path / "small bert")
    (tmp_path / "small bert" / "matryoshka.json").write_text(json.dumps({"layers": [1, 3], "dims": [8, 32]}))
    lines = [
        ("package:NAME/path:", "small bert"),
        ("Points [trained]:", ""),
        ("[fp32 int8]:", "fp32"),
        ("[small-b", ""),
    ]
    shown = type_on_a_terminal(["init"], tmp_path, lines)
    assert "next: matexport export small-bert.toml" in shown
    job = load_job(tmp_path / "small-bert.toml")
    assert job.parent.source == "./small bert"
    assert (job.points, job.trained) == ((Point(1, 8), Point(1, 32), Point(3, 8), Point(3, 32)),) * 2


@pytest.mark.loads
def test_init_then_export(run: Run, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("init", parent, "--precision", "fp32", "--out", "job.toml").code == 0
    result = run("export", "job.toml")
    assert result.code == 0, result.err
    assert "artifacts/job: written, 3 profiles" in result.out


def test_help_costs_nothing() -> None:
    code = (
        "import matexport.cli.commands.init, sys; "
        "print(*(n for n in ('torch', 'msgspec', 'numpy') if n in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch" not in done.stdout
    assert "numpy" not in done.stdout
    assert initcommand.EXAMPLES.startswith("examples:\n  matexport init ")
