"""Every command as a user types it: results on standard output, one sentence on standard error, a meaningful code."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from commandline import Run, read_lines
from conftest import TEXTS
from forge import edit_manifest, edit_tokenizer, flip_byte, reseal, store_token_rows
from places import GOLDEN
from safetensors.numpy import load_file, save_file

import matexport
from matexport import Embedder, load_family, verify_family
from matexport.family.manifest import SCHEMA
from matexport.family.measurements.records import load_measurement
from matexport.host import read_host

NAME = "L02-D032-fp32"
COMMANDS = (
    "init", "export", "verify", "show", "bench", "evaluate", "pick", "embed", "pack", "push", "pull", "serve", "report",
)  # fmt: skip


@pytest.fixture(scope="module")
def vectors(exported: Path) -> np.ndarray:
    return Embedder(exported, NAME).embed(TEXTS)


@pytest.fixture
def texts_file(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def job(parent: Path, tmp_path: Path) -> Path:
    """The job file of the exported family."""
    path = tmp_path / "small.toml"
    path.write_text(f'[parent]\nsource = "{parent}"\n[points]\nlayers = [1, 2, 3]\ndims = [8, 32]\n')
    return path


# --- every command


def test_help(run: Run) -> None:
    result = run("--help")
    assert (result.code, result.err) == (0, "")
    assert all(command in result.out for command in COMMANDS)
    assert "exit codes: 0 done; 1 a gate said no" in result.out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(command: str, run: Run) -> None:
    result = run(command, "--help")
    assert (result.code, result.err) == (0, "")
    assert f"usage: matexport {command}" in result.out
    assert f"matexport {command} " in result.out.partition("example")[2], "an example to copy"
    assert "--json" in result.out
    assert len(result.out) > 400, "more than its usage"


def test_every_command_has_a_test_here(run: Run) -> None:
    listed = run("--help").out.partition("commands:")[2].partition("exit codes")[0]
    found = {line.split()[0] for line in listed.splitlines() if line.startswith("    ") and line[4:5].isalpha()}
    assert found == set(COMMANDS)


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_version(flag: str, run: Run) -> None:
    result = run(flag)
    assert result.code == 0
    version, _, engine = result.out.partition(" (")
    assert version == f"matexport {matexport.__version__}"
    assert re.fullmatch(r"(native engine: .*portable|no native engine: .*)\)\n", engine)


def test_python_m(exported: Path) -> None:
    command = [sys.executable, "-m", "matexport", "embed", str(exported), "--profile", "L99-D032-fp32", "text"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("matexport: profile 'L99-D032-fp32' was asked; ")
    assert result.stderr.count("\n") == 1


# argparse alone would put its usage, of several lines, before the sentence.
@pytest.mark.parametrize(
    "arguments",
    [
        ("frobnicate",),
        ("verify",),
        ("verify", "F", "--threads", "0"),
        ("verify", "F", "--threads", "-1"),
        ("verify", "F", "--threads", "two"),
        ("verify", "F", "--threads", "٢"),
        ("verify", "F", "extra"),
        ("verify", "F", "--no-such-option"),
        ("embed", "F", "--profile", NAME, "--threads", "0", "text"),
        ("embed", "F", "--batch-tokens", "0", "text"),
        ("embed", "F", "--profile", NAME, "--no-such-option", "text"),
        ("pack", "F", NAME),
        ("pack", "F", NAME, "OUT", "extra"),
        ("export",),
    ],
    ids=" ".join,
)
def test_arguments_that_no_command_takes(arguments: tuple[str, ...], run: Run) -> None:
    run(*arguments).complains()


@pytest.mark.parametrize("command", ["verify", "show", "embed", "pack"])
def test_what_is_no_family(command: str, run: Run, tmp_path: Path) -> None:
    rest = {"pack": (NAME, tmp_path / "out"), "embed": ("text",)}.get(command, ())
    run(command, tmp_path / "absent", *rest).complains("absent is not a directory; a family is the folder")
    run(command, tmp_path, *rest).complains("has no family.json: it is not a family or pack of matexport")
    (tmp_path / "family.json").write_text(json.dumps({"schema": SCHEMA + 1}))
    run(command, tmp_path, *rest).complains(f"has schema {SCHEMA + 1}; this matexport reads up to {SCHEMA}: upgrade")
    assert not (tmp_path / "out").exists()


def test_interrupted(run: Run, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_path: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("matexport.family.manifest.load_family", interrupt)
    run("show", exported).complains("interrupted; no file was changed", code=130)


# --- show


def test_show(run: Run, exported: Path) -> None:
    result = run("show", exported)
    assert (result.code, result.err) == (0, "")
    assert "BertModel, 3 blocks, 32 dims" in result.out
    assert "mean, final norm absent, unit length after the cut" in result.out
    assert "up to 48 tokens; prompts: none" in result.out
    for profile in load_family(exported).profiles:
        assert profile.name in result.out
    assert "parity was not measured on this host" not in result.out


def test_show_before_anything_was_measured(run: Run, family: Path) -> None:
    for path in (family / "measurements").iterdir():
        path.unlink()
    result = run("show", family)
    assert result.code == 0
    assert f"parity was not measured on this host: run matexport verify {family} --record" in result.out


def test_show_json(run: Run, exported: Path) -> None:
    result = run("show", exported, "--json")
    assert (result.code, result.err) == (0, "")
    document = result.json
    assert document["family"] == str(exported)
    assert document["facts"]["readout"]["pooling"] == ["mean"]  # type: ignore[index]
    profiles = document["profiles"]
    assert [row["profile"] for row in profiles] == [profile.name for profile in load_family(exported).profiles]  # type: ignore[attr-defined]
    assert all(row["max_abs"] < 2e-6 for row in profiles)  # type: ignore[attr-defined]


# --- verify


def test_verify(run: Run, exported: Path) -> None:
    result = run("verify", exported, "--threads", "1")
    assert (result.code, result.err) == (0, "")
    assert all(profile.name in result.out for profile in load_family(exported).profiles)
    assert f"onnxruntime {read_host().onnxruntime}" in result.out
    assert "verdict" not in result.out, "a column for what failed"
    assert re.fullmatch(
        r"passed: 6 profiles are the parent at their points on this machine \(worst \d\.\de-0[78] of 1e-05 allowed, "
        r"L0\d-D0\d\d-fp32\)(; token ids of \d+ probes are the parent's)?",
        result.out.splitlines()[-1],
    )


def test_verify_a_pack_of_a_small_precision(run: Run, tmp_path: Path) -> None:
    golden = GOLDEN
    matexport.pack_profile(golden / "schema3", "L01-D020-int8", tmp_path / "pack")
    result = run("verify", tmp_path / "pack")
    assert result.code == 0
    assert re.search(
        r"\npassed: 1 profile is the parent at its point on this machine \(worst least cosine 0\.\d{6}, at least "
        r"0\.975 asked, L01-D020-int8\)\n$",
        result.out,
    )


def test_verify_json_and_junit(run: Run, exported: Path, tmp_path: Path) -> None:
    result = run("verify", exported, "--json", "--junit", tmp_path / "r.xml")
    assert (result.code, result.err) == (0, "")
    document = result.json
    assert document["passed"] is True
    assert document["problems"] == []
    assert document["host"]["cpus"] == read_host().cpus  # type: ignore[index]
    assert [row["passed"] for row in document["profiles"]] == [True] * 6  # type: ignore[attr-defined]
    suite = ElementTree.parse(tmp_path / "r.xml").getroot()[0]
    assert (len(suite.findall("testcase[@classname!='tokenizer']")), suite.attrib["failures"]) == (19, "0"), (
        "the files, and six profiles in three ways"
    )


def test_verify_a_changed_file(run: Run, family: Path, tmp_path: Path) -> None:
    flip_byte(family / "L01-D008.fp32.onnx")
    (family / "extra.txt").touch()
    result = run("verify", family, "--junit", tmp_path / "r.xml")
    assert (result.code, result.out) == (1, "")
    assert result.err.splitlines() == [
        "matexport: extra: extra.txt is not listed in family.json",
        "matexport: changed: L01-D008.fp32.onnx has another sha256 than the manifest says",
    ]
    suite = ElementTree.parse(tmp_path / "r.xml").getroot()[0]
    counts = {name: suite.attrib[name] for name in ("tests", "failures", "skipped")}
    profiles = 18 + ("token ids" in {case.attrib["name"] for case in suite})
    assert counts == {"tests": str(2 + profiles), "failures": "2", "skipped": str(profiles)}
    failed = [case for case in suite if case.find("failure") is not None]
    assert [(case.attrib["classname"], case.attrib["name"]) for case in failed] == [
        ("files.extra", "extra.txt"),
        ("files.changed", "L01-D008.fp32.onnx"),
    ]
    assert [failure.attrib["type"] for failure in suite.iter("failure")] == ["extra", "changed"]


def test_verify_a_changed_file_of_the_baseline(run: Run, exported: Path, family: Path, tmp_path: Path) -> None:
    flip_byte(family / "L01-D008.fp32.onnx")
    result = run("verify", exported, "--baseline", family, "--junit", tmp_path / "r.xml")
    result.complains(f"baseline {family}: changed: L01-D008.fp32.onnx", code=1)
    suite = ElementTree.parse(tmp_path / "r.xml").getroot()[0]
    assert suite.attrib["failures"] == "1"
    drifts = [case for case in suite if case.attrib["name"] == "drift"]
    assert [case.find("skipped") is not None for case in drifts] == [True] * 6


def test_verify_a_changed_file_json(run: Run, family: Path) -> None:
    (family / "config.json").unlink()
    result = run("verify", family, "--json")
    assert result.code == 1
    problem = {"kind": "missing", "file": "config.json", "message": "missing: config.json"}
    assert result.json == {"family": str(family), "passed": False, "problems": [problem]}
    assert result.err == "matexport: missing: config.json\n"


def test_verify_several_problems_json(run: Run, family: Path) -> None:
    """All of them, in the order in which standard error has them; the same twice."""
    (family / "config.json").unlink()
    (family / "notes.txt").touch()
    flip_byte(family / "L02-D032.fp32.onnx")
    flip_byte(family / "L01-D008.fp32.onnx")
    first, second = run("verify", family, "--json"), run("verify", family, "--json")
    assert first.json == second.json
    problems: list[dict[str, str]] = first.json["problems"]  # type: ignore[assignment]
    assert [(problem["kind"], problem["file"]) for problem in problems] == [
        ("extra", "notes.txt"),
        ("changed", "L01-D008.fp32.onnx"),
        ("changed", "L02-D032.fp32.onnx"),
        ("missing", "config.json"),
    ]
    assert first.err.splitlines() == [f"matexport: {problem['message']}" for problem in problems]


def test_verify_a_baseline_that_changed_json(run: Run, exported: Path, family: Path) -> None:
    (family / "config.json").unlink()
    (problem,) = run("verify", exported, "--baseline", family, "--json").json["problems"]  # type: ignore[misc]
    assert problem == {
        "kind": "missing",
        "file": str(family / "config.json"),
        "message": f"baseline {family}: missing: config.json",
    }


def test_verify_what_is_no_family_json(run: Run, tmp_path: Path) -> None:
    result = run("verify", tmp_path, "--json")
    assert result.code == 2
    (problem,) = result.json["problems"]  # type: ignore[misc]
    assert (problem["kind"], problem["file"]) == ("manifest", "family.json")
    assert result.err == f"matexport: {problem['message']}\n"


def spoil_reference(family: Path, value: float) -> None:
    arrays = load_file(family / "reference.safetensors")
    arrays["L02-D008"][1, 2] += value
    save_file(arrays, family / "reference.safetensors")
    reseal(family)


def test_verify_a_profile_that_is_off(run: Run, family: Path, tmp_path: Path) -> None:
    spoil_reference(family, 0.25)
    result = run("verify", family, "--junit", tmp_path / "r.xml")
    assert result.code == 1
    assert "2.5e-01" in result.out
    header, _, *rows = result.out.split("\n\n")[0].splitlines()
    assert header.endswith("  verdict")
    verdicts = {row.split()[0]: row[header.index("verdict") :] for row in rows}
    passed = dict.fromkeys((profile.name for profile in load_family(family).profiles), "passed")
    assert verdicts == passed | {"L02-D008-fp32": "FAILED: batched, probe 1"}
    text = json.loads((family / "probes.jsonl").read_text(encoding="utf-8").splitlines()[1])["text"]
    assert result.err == (
        "matexport: L02-D008-fp32 is off its floor: max abs difference 0.25, allowed 1e-05 (batched), worst on probe 1 "
        f"({text[:40]!r})\n"
    )
    assert result.out.endswith("\n\nfailed: 1 of 6 profiles is off its floor\n")
    suite = ElementTree.parse(tmp_path / "r.xml").getroot()[0]
    failed = [case.attrib["classname"] for case in suite if case.find("failure") is not None]
    assert failed == ["L02-D008-fp32"] * 3


def test_verify_a_profile_that_is_off_json(run: Run, family: Path) -> None:
    spoil_reference(family, 0.25)
    result = run("verify", family, "--json")
    assert result.code == 1
    assert result.json["passed"] is False
    failed = [row["profile"] for row in result.json["profiles"] if not row["passed"]]  # type: ignore[attr-defined]
    assert failed == ["L02-D008-fp32"]
    (failure,) = (row["failure"] for row in result.json["profiles"] if row["failure"])  # type: ignore[attr-defined]
    assert (failure["check"], failure["probe"]) == ("batched", 1)
    assert failure["message"].startswith("max abs difference 0.25, allowed 1e-05 (batched), worst on probe 1 ('")


# --- verify, token ids


def test_verify_token_ids(run: Run, family: Path) -> None:
    store_token_rows(family)
    result = run("verify", family)
    assert (result.code, result.err) == (0, "")
    assert re.search(r"\npassed: 6 profiles are .*; token ids of \d+ probes are the parent's\n$", result.out)
    token_ids = run("verify", family, "--json").json["token_ids"]
    assert (token_ids["passed"], token_ids["differing"], token_ids["message"]) == (True, [], None)  # type: ignore[index]


def test_verify_token_ids_that_differ(run: Run, family: Path, tmp_path: Path) -> None:
    def change(rows: list[list[int]]) -> None:
        rows[3][1] += 1

    store_token_rows(family, change)
    result = run("verify", family, "--junit", tmp_path / "r.xml", "--record")
    assert result.code == 1
    assert re.fullmatch(
        r"matexport: token ids differ in 1 of \d+ probes, first in probe 3 \(.*\): \[.*\] here, \[.*\] in the parent "
        rf"\(tokenizers {re.escape(tokenizers.__version__)} here\)\n",
        result.err,
    )
    assert all(profile.name in result.out for profile in load_family(family).profiles), "vectors are still measured"
    assert re.search(r"\nfailed: token ids differ in 1 of \d+ probes\n$", result.out)
    suite = ElementTree.parse(tmp_path / "r.xml").getroot()[0]
    (failed,) = (case for case in suite if case.find("failure") is not None)
    assert failed.attrib["name"] == "token ids"
    show = run("show", family)
    assert show.code == 0
    assert f"on this host, {result.err.removeprefix('matexport: ')}" in show.out

    document = run("verify", family, "--json").json
    assert document["passed"] is False
    assert all(row["passed"] for row in document["profiles"])  # type: ignore[attr-defined]
    assert document["token_ids"]["differing"] == [3]  # type: ignore[index]
    (problem,) = document["problems"]  # type: ignore[misc]
    assert (problem["kind"], problem["file"]) == ("token-ids", "tokenizer.json")
    assert f"matexport: {document['token_ids']['message']}\n" == f"matexport: {problem['message']}\n" == result.err  # type: ignore[index]


def test_token_ids_are_said_before_anything_of_vectors(run: Run, family: Path) -> None:
    store_token_rows(family)

    def swap(tokenizer: dict[str, Any]) -> None:
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary["a"], vocabulary["the"] = vocabulary["the"], vocabulary["a"]

    edit_tokenizer(family, swap)
    result = run("verify", family)
    assert result.code == 1
    first, *others = result.err.splitlines()
    assert first.startswith("matexport: token ids differ in ")
    assert len(others) == 6
    assert all(" is off its floor: " in line for line in others)
    last = result.out.splitlines()[-1]
    assert re.fullmatch(r"failed: token ids differ in \d+ of \d+ probes; 6 of 6 profiles are off their floor", last)


# onnxruntime refuses an id that it has no embedding for: the ids say why.
def test_token_ids_that_no_session_takes(run: Run, family: Path, tmp_path: Path) -> None:
    store_token_rows(family)
    edit_tokenizer(family, lambda tokenizer: tokenizer["model"]["vocab"].update(a=5000))
    result = run("verify", family, "--json", "--junit", tmp_path / "r.xml")
    assert result.code == 1
    first, second = result.err.splitlines()
    assert first.startswith("matexport: token ids differ in ")
    assert "onnxruntime cannot run exits.fp32.onnx" in second
    problems = result.json["problems"]
    assert [f"matexport: {problem['message']}" for problem in problems] == [first, second]  # type: ignore[attr-defined]
    assert [problem["kind"] for problem in problems] == ["token-ids", "unusable"]  # type: ignore[attr-defined]
    suite = ElementTree.parse(tmp_path / "r.xml").getroot()[0]
    assert [failure.attrib["type"] for failure in suite.iter("failure")] == ["token-ids", "unusable"]


def test_verify_records_when_asked(run: Run, family: Path) -> None:
    for path in (family / "measurements").iterdir():
        path.unlink()
    assert run("verify", family).code == 0
    assert load_measurement(load_family(family), read_host()) is None
    assert run("verify", family, "--record").code == 0
    measured = load_measurement(load_family(family), read_host())
    assert measured is not None
    assert len(measured.parity) == len(measured.spread) == 6
    assert run("verify", family).code == 0, "what was recorded is no extra file"


@pytest.mark.parametrize("where", ["absent/r.xml", "file/r.xml", "."])
@pytest.mark.parametrize("sound", [True, False], ids=["sound", "spoilt"])
def test_a_junit_file_that_cannot_be_written(where: str, sound: bool, run: Run, family: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    if not sound:
        flip_byte(family / "config.json")
    result = run("verify", family, "--junit", tmp_path / where)
    assert result.code == 2 or (not sound and result.code == 1)
    assert f"cannot write {tmp_path / where}" in result.err
    # Shows a defect: for a spoilt family, what is wrong with it goes unsaid.
    assert sound or "changed: config.json" in result.err


# The family may lie on a disk that cannot be written.
def test_a_measurement_that_cannot_be_written(run: Run, family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_args: object, **_options: object) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "replace", refuse)
    result = run("verify", family, "--record")
    assert result.code == 2
    assert "read-only file system" in result.err.lower()


# What is wrong is the family and not what was asked, so this is a gate that said no, and wants its JUnit.
def test_verify_with_spoilt_probes(run: Run, family: Path, tmp_path: Path) -> None:
    (family / "probes.jsonl").write_text("hello\n")
    reseal(family)
    run("verify", family, "--junit", tmp_path / "r.xml").complains("probes.jsonl", code=1)
    assert (tmp_path / "r.xml").exists()


def test_progress_is_for_terminals(run: Run, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    result = run("verify", exported)
    assert result.code == 0
    assert "verify: 100%" in terminal.getvalue()
    assert "6/6" in terminal.getvalue()


# --- embed


def test_embed_arguments(run: Run, exported: Path, vectors: np.ndarray) -> None:
    result = run("embed", exported, "--profile", NAME, *TEXTS)
    assert (result.code, result.err) == (0, "")
    texts, numbers = read_lines(result.out)
    assert texts == TEXTS
    np.testing.assert_array_equal(numbers, vectors)


@pytest.mark.parametrize(
    "place",
    [
        lambda family, texts: [family, *texts, "--profile", NAME],
        lambda family, texts: ["--profile", NAME, family, *texts],
        lambda family, texts: [family, "--profile", NAME, "--", *texts],
        lambda family, texts: [family, texts[0], "--profile", NAME, *texts[1:]],
        lambda family, texts: [family, texts[0], "--profile", NAME, "--", *texts[1:]],
        lambda family, texts: [family, "--profile", NAME, texts[0], "--threads", "1", *texts[1:]],
    ],
    ids=["before", "after", "after --", "around", "around --", "between"],
)
def test_texts_may_stand_anywhere(place: object, run: Run, exported: Path, vectors: np.ndarray) -> None:
    result = run("embed", *place(exported, TEXTS))  # type: ignore[operator]
    assert (result.code, result.err) == (0, "")
    texts, numbers = read_lines(result.out)
    assert texts == TEXTS
    np.testing.assert_allclose(numbers, vectors, atol=1e-6)


@pytest.mark.parametrize("texts", [["--json"], ["-5", "--help"], ["a", "--", "b"], ["--"], ["-x y"]], ids=" ".join)
def test_after_two_dashes_everything_is_text(texts: list[str], run: Run, exported: Path) -> None:
    result = run("embed", exported, "--profile", NAME, "--", *texts)
    assert (result.code, result.err) == (0, "")
    assert read_lines(result.out)[0] == texts


def test_a_dash_before_two_dashes_is_an_option(run: Run, exported: Path) -> None:
    result = run("embed", exported, "--profile", NAME, "-x", "--", "text")
    assert (result.code, result.out) == (2, "")
    assert "unrecognized arguments: -x" in result.err


def test_embed_a_file(run: Run, exported: Path, texts_file: Path, vectors: np.ndarray) -> None:
    texts, numbers = read_lines(run("embed", exported, "--profile", NAME, "--input", texts_file).out)
    assert texts == TEXTS
    np.testing.assert_array_equal(numbers, vectors)


@pytest.mark.parametrize("arguments", [(), ("--input", "-")], ids=["nothing else given", "-"])
def test_embed_standard_input(arguments: tuple[str, ...], run: Run, exported: Path, vectors: np.ndarray) -> None:
    result = run("embed", exported, "--profile", NAME, *arguments, stdin="\n".join(TEXTS).encode())
    texts, numbers = read_lines(result.out)
    assert texts == TEXTS
    np.testing.assert_array_equal(numbers, vectors)


def test_lines_end_at_newlines_only(run: Run, exported: Path) -> None:
    lines = ["one\u2028line", "two\x0bparts", "", "three\x85parts"]
    result = run("embed", exported, "--profile", NAME, stdin="\r\n".join(lines).encode())
    assert read_lines(result.out)[0] == lines


def test_embed_to_npy(run: Run, exported: Path, texts_file: Path, tmp_path: Path, vectors: np.ndarray) -> None:
    result = run("embed", exported, "--profile", NAME, "--input", texts_file, "--output", tmp_path / "v.npy")
    assert (result.code, result.out, result.err) == (0, "", "")
    written = np.load(tmp_path / "v.npy", allow_pickle=False)
    assert written.dtype == np.float32
    np.testing.assert_array_equal(written, vectors)


def test_embed_to_jsonl(run: Run, exported: Path, tmp_path: Path, vectors: np.ndarray) -> None:
    result = run("embed", exported, "--profile", NAME, "--output", tmp_path / "v.jsonl", *TEXTS)
    assert (result.code, result.out, result.err) == (0, "", "")
    texts, numbers = read_lines((tmp_path / "v.jsonl").read_text(encoding="utf-8"))
    assert texts == TEXTS
    np.testing.assert_array_equal(numbers, vectors)
    assert {path.name for path in tmp_path.iterdir()} == {"v.jsonl"}


def test_embed_json(run: Run, exported: Path, vectors: np.ndarray) -> None:
    document = run("embed", exported, "--profile", NAME, "--json", *TEXTS).json
    assert (document["profile"], document["dim"]) == (NAME, 32)
    np.testing.assert_array_equal(np.array(document["vectors"], np.float32), vectors)


@pytest.mark.parametrize(
    ("arguments", "stdin"), [(("--input", "-"), b""), (("--input", os.devnull), None)], ids=["standard input", "file"]
)
def test_embed_no_lines(
    arguments: tuple[str, ...], stdin: bytes | None, run: Run, exported: Path, tmp_path: Path
) -> None:
    result = run("embed", exported, "--profile", NAME, *arguments, stdin=stdin)
    assert (result.code, result.out, result.err) == (0, "", "")
    run("embed", exported, "--profile", NAME, "--output", tmp_path / "v.npy", *arguments, stdin=stdin)
    assert np.load(tmp_path / "v.npy").shape == (0, 32)


def test_embed_without_a_text_is_not_taken_for_success(run: Run, exported: Path) -> None:
    run("embed", exported, "--profile", NAME, stdin=b"").complains("no texts: give them as arguments")


def test_embed_more_texts_than_a_window(
    run: Run, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matexport.runtime.batches.WINDOW_ITEMS", 4)
    run("embed", exported, "--profile", NAME, "--output", tmp_path / "v.npy", *TEXTS)
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), Embedder(exported, NAME).embed(TEXTS), atol=1e-6)


def test_embed_with_a_prompt(run: Run, left_exported: Path) -> None:
    arguments = ("embed", left_exported, "--profile", "L01-D016-fp32")
    expected = Embedder(left_exported, "L01-D016-fp32").embed(["cat"], prompt="query")
    np.testing.assert_array_equal(read_lines(run(*arguments, "--prompt", "query", "cat").out)[1], expected)
    run(*arguments, "--prompt", "passage", "cat").complains(
        "prompt 'passage' was asked; the parent's prompts are: query"
    )


def test_embed_with_no_prompt_though_there_is_a_default(run: Run, family: Path) -> None:
    edit_manifest(family, lambda data: data["text"].update(prompts={"query": "a red "}, default_prompt="query"))
    plain = read_lines(run("embed", family, "--profile", NAME, "--prompt", "", "cat").out)[1]
    default = read_lines(run("embed", family, "--profile", NAME, "cat").out)[1]
    assert np.abs(plain - default).max() > 1e-3


def test_embed_wants_texts_from_one_place(run: Run, exported: Path, texts_file: Path) -> None:
    run("embed", exported, "--profile", NAME, "--input", texts_file, "text").complains("not both")
    run("embed", exported, "--profile", NAME).complains("no texts: give them as arguments, with --input FILE, or on")


def test_embed_an_unknown_profile(run: Run, exported: Path) -> None:
    run("embed", exported, "--profile", "L09-D032-fp32", "text").complains("'L09-D032-fp32' was asked", "has L01-D008-")
    run("embed", exported, "text").complains("has several profiles; choose one of L01-D008-fp32")


def test_embed_an_unknown_prompt(run: Run, exported: Path) -> None:
    run("embed", exported, "--profile", NAME, "--prompt", "query", "text").complains("the parent's prompts are: none")


def test_embed_input_that_cannot_be_read(run: Run, exported: Path, tmp_path: Path) -> None:
    arguments = ("embed", exported, "--profile", NAME, "--input")
    run(*arguments, tmp_path / "absent.txt").complains("cannot read", "absent.txt: No such file or directory")
    run(*arguments, tmp_path).complains("cannot read", "Is a directory")
    (tmp_path / "binary").write_bytes(b"text\n\xff\xfe\x00\n")
    run(*arguments, tmp_path / "binary").complains("not UTF-8")
    result = run("embed", exported, "--profile", NAME, stdin=b"\xff\xfe")
    result.complains("not UTF-8")


# Python hands over an argument with bytes that are no UTF-8 as a lone surrogate.
def test_embed_an_argument_that_is_not_utf8(run: Run, exported: Path) -> None:
    run("embed", exported, "--profile", NAME, "caf\udce9").complains()


@pytest.mark.parametrize("name", ["v.txt", "v", "v.NPY", "v.npy.gz"])
def test_embed_to_a_file_of_another_kind(name: str, run: Run, exported: Path, tmp_path: Path) -> None:
    result = run("embed", exported, "--profile", NAME, "--output", tmp_path / name, "text")
    result.complains(name, "its name must end in .npy or .jsonl")
    assert list(tmp_path.iterdir()) == []


# Where the parent is a file or the name too long, removing the temporary file fails as well as opening it.
@pytest.mark.parametrize("suffix", [".npy", ".jsonl"])
@pytest.mark.parametrize("where", ["absent/v", "file/v", "directory", "n" * 260])
def test_embed_to_a_file_that_cannot_be_written(
    where: str, suffix: str, run: Run, exported: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / f"directory{suffix}").mkdir()
    before = sorted(tmp_path.iterdir())
    path = tmp_path / f"{where}{suffix}"
    run("embed", exported, "--profile", NAME, "--output", path, "text").complains(f"cannot write {path}: ")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_embed_to_a_full_disk(run: Run, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = str(tmp_path / "v.npy.1.tmp")
    monkeypatch.setattr("tempfile.mkstemp", lambda **_options: (os.open("/dev/full", os.O_WRONLY), full))
    (tmp_path / "v.npy").write_bytes(b"old")
    arguments = ("embed", exported, "--profile", NAME, "--output", tmp_path / "v.npy")
    run(*arguments, "text").complains("cannot write", "the disk is full")
    assert (tmp_path / "v.npy").read_bytes() == b"old"


def test_embed_json_to_a_file(run: Run, exported: Path, tmp_path: Path) -> None:
    arguments = ("embed", exported, "--profile", NAME, "--json", "--output", tmp_path / "v.npy", "text")
    run(*arguments).complains("--json prints to standard output")


def test_embed_leaves_the_old_file_when_it_fails(run: Run, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\n")
    (tmp_path / "v.jsonl").write_text("old")
    arguments = ("embed", exported, "--profile", NAME, "--output", tmp_path / "v.jsonl")
    run(*arguments, "--input", tmp_path / "binary").complains("not UTF-8")
    assert (tmp_path / "v.jsonl").read_text() == "old"
    assert not list(tmp_path.glob(".*"))


def test_embed_a_changed_family(run: Run, family: Path) -> None:
    flip_byte(family / "weights.fp32.safetensors")
    run("embed", family, "--profile", NAME, "text").complains("changed: weights.fp32.safetensors has another sha256")


def test_embed_into_a_pipe_that_closes(exported: Path) -> None:
    command = [sys.executable, "-m", "matexport", "embed", str(exported), "--profile", NAME]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, err = process.communicate(b"the cat sits on the mat\n" * 2000)
        assert (process.returncode, err) == (141, b"")


# --- pack


def test_pack(run: Run, exported: Path, tmp_path: Path, vectors: np.ndarray) -> None:
    result = run("pack", exported, NAME, tmp_path / "pack")
    assert (result.code, result.err) == (0, "")
    files = [path for path in (tmp_path / "pack").rglob("*") if path.is_file()]
    assert result.out.startswith(f"{tmp_path / 'pack'}: {NAME} for all, {len(files)} files, 0.2 MB")
    np.testing.assert_array_equal(read_lines(run("embed", tmp_path / "pack", *TEXTS).out)[1], vectors)
    assert run("verify", tmp_path / "pack").code == 0
    assert NAME in run("show", tmp_path / "pack").out


def test_pack_json(run: Run, exported: Path, tmp_path: Path) -> None:
    document = run("pack", exported, NAME, tmp_path / "pack", "--json").json
    out = tmp_path / "pack"
    files = {path.relative_to(out).as_posix(): path.stat().st_size for path in out.rglob("*") if path.is_file()}
    assert document == {
        "pack": str(out),
        "profile": NAME,
        "for": "all",
        "bytes": sum(files.values()),
        "files": files,
    }


def test_pack_refuses(run: Run, exported: Path, family: Path, tmp_path: Path) -> None:
    run("pack", exported, "L09-D032-fp32", tmp_path / "pack").complains("'L09-D032-fp32' was asked; ")
    assert not (tmp_path / "pack").exists()
    assert run("pack", exported, NAME, tmp_path / "pack").code == 0
    run("pack", exported, NAME, tmp_path / "pack").complains("pass --overwrite to replace it")
    assert run("pack", exported, NAME, tmp_path / "pack", "--overwrite").code == 0
    (tmp_path / "file").touch()
    run("pack", exported, NAME, tmp_path / "file").complains("exists and is not a directory")
    run("pack", exported, NAME, tmp_path / "file" / "pack").complains("cannot write")
    flip_byte(family / "tokenizer.json")
    run("pack", family, NAME, tmp_path / "other").complains("changed: tokenizer.json")


# --- export


def test_export_what_is_there_already(run: Run, job: Path, family: Path) -> None:
    result = run("export", job, "--out", family)
    assert result.code == 0
    assert f"{family}: up to date, 6 profiles" in result.out
    assert NAME in result.out


def test_export_of_other_trained_points_says_what_it_did(run: Run, job: Path, family: Path) -> None:
    (family / "README.md").write_text("our own words")
    job.write_text(job.read_text() + "[trained]\npairs = [[3, 32]]\n")
    result = run("export", job, "--out", family)
    assert result.code == 0
    assert f"{family}: says what the job says of trained, all else was up to date, 6 profiles" in result.out
    assert f"its report is of the family before: matexport report {family} writes it anew" in result.err
    assert run("export", job, "--out", family, "--json").json["renewed"] == []


def test_export_what_is_there_already_json(run: Run, job: Path, family: Path) -> None:
    document = run("export", job, "--out", family, "--json").json
    assert (document["up_to_date"], document["passed"], document["family"]) == (True, True, str(family))
    assert [row["profile"] for row in document["profiles"]] == [p.name for p in load_family(family).profiles]  # type: ignore[attr-defined]


def test_export_over_something_else(run: Run, job: Path, family: Path, tmp_path: Path) -> None:
    job.write_text(job.read_text().replace("[8, 32]", "[8]"))
    run("export", job, "--out", family).complains("pass --overwrite to replace it")
    assert verify_family(family).passed
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    run("export", job, "--out", tmp_path / "photos", "--overwrite").complains("it is no family of matexport")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[8, 32]", "[8, 33]", "dim=33 was asked"),
        ("[1, 2, 3]", "[4]", "layers=4 was asked"),
        ("[1, 2, 3]", "[0]", "layers=0"),
        ("[points]", "[point]", "unknown key 'point'; known here: parent, points"),
        ("[parent]", "[parent", "is not a TOML file"),
        ("[points]", 'sha256 = "00"\n[points]', "sha256"),
        ("[points]", '[probes]\nfile = "absent.jsonl"\n[points]', "cannot read the probes"),
        ("[points]", '[readout]\npooling = "cls"\nmax_tokens = 0\n[points]', "max_tokens=0 was asked"),
        ("[points]", "[tolerances.fp32]\nmax_abs = 1.0\n[points]", "the floor is 1e-05"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_export_refuses(old: str, new: str, words: str, run: Run, job: Path, tmp_path: Path) -> None:
    job.write_text(job.read_text().replace(old, new))
    run("export", job, "--out", tmp_path / "out").complains(words)
    assert not (tmp_path / "out").exists()


def test_export_without_a_profile_or_a_parent(run: Run, job: Path, tmp_path: Path) -> None:
    run("export", tmp_path / "absent.toml").complains("cannot read the job", "No such file or directory")
    (tmp_path / "empty").mkdir()
    run("export", job, "--parent", tmp_path / "empty", "--out", tmp_path / "out").complains()
    run("export", job, "--parent", "package:no_such_package/x", "--out", tmp_path / "out").complains("no_such_package")
    (tmp_path / "file").touch()
    run("export", job, "--out", tmp_path / "file" / "out").complains("cannot write")


# --- what somebody may have meant


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("exprot", "x"), "did you mean 'export'?"),
        (("embed", "FAMILY", "--ouput", "x", "a"), "unrecognized arguments: --ouput; did you mean '--output'?"),
        (("pick", "FAMILY", "--max-disk", "3", "--shpae=1x2"), "did you mean '--shape'?"),
        (("export", "job.toml", "--precision", "int-8"), "did you mean 'int8'?"),
        (("embed", "FAMILY", "--profile", "L2-D032-fp32", "a"), "did you mean 'L02-D032-fp32'?"),
    ],
)
def test_a_close_name_is_suggested(words: tuple[str, ...], meant: str, exported: Path) -> None:
    command = [sys.executable, "-m", "matexport", *(str(exported) if word == "FAMILY" else word for word in words)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert meant in result.stderr
    assert result.stderr.count("\n") == 1
    assert "Precision." not in result.stderr


def test_an_option_before_its_command_is_not_suggested_for_itself(exported: Path) -> None:
    command = [sys.executable, "-m", "matexport", "--json", "show", str(exported)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert "--json was given before the command: it has to stand behind it" in result.stderr
    assert "did you mean" not in result.stderr


def test_a_baseline_that_is_none_is_said_in_every_document(run: Run, exported: Path, tmp_path: Path) -> None:
    junit = tmp_path / "parity.xml"
    result = run("verify", exported, "--baseline", tmp_path / "none", "--json", "--junit", junit)
    assert result.code == 2
    assert json.loads(result.out)["passed"] is False
    assert f"{tmp_path / 'none'} is not a directory" in result.err
    assert len(ElementTree.parse(junit).findall(".//failure")) == 1


def test_nothing_is_suggested_for_what_is_close_to_nothing(exported: Path) -> None:
    command = [sys.executable, "-m", "matexport", "embed", str(exported), "--zzzzzz", "a"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "did you mean" not in result.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "matexport", "--print-completion", "bash"], capture_output=True, text=True, check=True
    )
    (tmp_path / "complete.sh").write_text(printed.stdout)

    def complete(*words: str) -> list[str]:
        """What bash offers behind some words, as its own completion calls the function."""
        script = (
            f"source {tmp_path / 'complete.sh'}\nCOMP_WORDS=(matexport {' '.join(words)})\n"
            "COMP_CWORD=$((${#COMP_WORDS[@]} - 1))\n"
            "$(complete -p matexport | sed -e 's/.*-F //' -e 's/ .*//') matexport\necho ${COMPREPLY[@]}"
        )
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
        return done.stdout.split()

    assert complete("ver") == ["verify"]
    assert complete("pick", "--max-d") == ["--max-disk-mb"]
    assert complete("export", "--precision", "int8-") == ["int8-static"]
    (tmp_path / "job.toml").write_text("")
    assert complete("export", "jo") == ["job.toml"]
