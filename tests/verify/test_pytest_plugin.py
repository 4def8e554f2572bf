"""The plugin, in pytest processes of its own: what is collected, what fails, and how that reads."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import pytest
from forge import edit_manifest, flip_byte, overwrite_values, reseal, store_token_rows
from places import INSTALLED, ROOT
from safetensors.numpy import load_file, save_file

from matexport import load_family, pack_profile, verify_family
from matexport.family.manifest import MANIFEST, REFERENCE
from matexport.family.measurements.records import record_quality
from matexport.family.weights_file import read_header
from matexport.host import read_host
from matexport.spec.measured import Quality, Score, TaskKind, TaskQuality

GOLDEN = ROOT / "tests" / "golden" / "schema2"
WAYS = ("batched", "single", "together")
NAMES = ["L01-D008-fp32", "L01-D032-fp32", "L02-D008-fp32", "L02-D032-fp32", "L03-D008-fp32", "L03-D032-fp32"]
WEIGHTS = "weights.fp32.safetensors"


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    results: dict[str, str]

    @property
    def failed(self) -> list[str]:
        return self.list_items("FAILED")

    @property
    def skipped(self) -> list[str]:
        return self.list_items("SKIPPED")

    def list_items(self, wanted: str) -> list[str]:
        return [name for name, result in self.results.items() if result == wanted]


def check(folder: Path, *arguments: object) -> Outcome:
    """``pytest -v ARGUMENTS`` in a folder."""
    # Of the other plugins, these two take most of the time that it takes to start.
    plugin = ["-p", "no:hypothesispytest", "-p", "no:anyio"]
    plugin += [] if INSTALLED else ["-p", "matexport.verify.pytest_plugin"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE", "PYTEST"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plugin, "-v", "-p", "no:cacheprovider", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=environment | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"},
    )
    pattern = r"^(?:\[gw\d+\].*?)?(?:(\S+::\S+) )?(PASSED|FAILED|ERROR|SKIPPED)(?: (\S+::\S+))?"
    results = {}
    for first, result, second in re.findall(pattern, done.stdout.partition("short test summary")[0], re.MULTILINE):
        results[first or second] = result
    assert "INTERNALERROR" not in done.stdout + done.stderr
    return Outcome(done.returncode, done.stdout + done.stderr, results)


@pytest.fixture
def project(exported: Path, tmp_path: Path) -> Path:
    """An empty project with a family in it, the parent's token ids included, that a test may spoil."""
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "pytest.ini").write_text("[pytest]\n")
    shutil.copytree(exported, tmp_path / "project" / "art" / "small")
    store_token_rows(tmp_path / "project" / "art" / "small")
    return tmp_path / "project"


def rate(family: Path, retentions: dict[str, float | None], **tasks: float) -> None:
    """Keep an evaluation of one task (or of several, each that much worse), as `matexport evaluate` does."""
    for name, less in (tasks or {"sts": 0.0}).items():
        scores = {profile: Score(0.8, None if value is None else value - less) for profile, value in retentions.items()}
        task = TaskQuality(TaskKind.STS, "Spearman", 4, "0" * 64, Score(0.9, 1.0), scores)
        record_quality(load_family(family), Quality(read_host(), {name: task}))


def test_the_entry_point_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"matexport": "matexport.verify.pytest_plugin"}
    from matexport.verify import pytest_plugin

    assert pytest_plugin.pytest_addoption


def test_without_a_family_nothing_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import sys\n"
        "def test_it():\n"
        "    loaded = [name for name in sys.modules if name.startswith('matexport.')]\n"
        "    assert loaded == ['matexport.version', 'matexport.verify', 'matexport.verify.pytest_plugin']\n"
        "    assert not {'numpy', 'onnxruntime', 'tokenizers', 'msgspec'} & set(sys.modules)\n"
    )
    outcome = check(tmp_path, "-p", "no:hypothesispytest", "-p", "no:xdist", "test_it.py")
    assert outcome.code == 0, outcome.out


def test_a_sound_family_in_an_empty_directory(project: Path) -> None:
    outcome = check(project, "--matexport-family", "art/small", "--junitxml", "r.xml")
    assert outcome.code == 0, outcome.out
    ways = [f"art/small::{name}::{way}" for name in NAMES for way in WAYS]
    assert outcome.results == dict.fromkeys(["art/small::digests", "art/small::token-ids", *ways], "PASSED")
    assert "collected 20 items" in outcome.out
    cases = ElementTree.parse(project / "r.xml").getroot().findall("testsuite/testcase")
    assert [(case.attrib["classname"], case.attrib["name"]) for case in cases] == [
        ("art.small", "digests"),
        ("art.small", "token-ids"),
        *((f"art.small.{name}", way) for name in NAMES for way in WAYS),
    ]


def test_every_check_of_every_kind(left_exported: Path, tmp_path: Path) -> None:
    outcome = check(tmp_path, "--matexport-family", GOLDEN, "--matexport-family", left_exported, "-c", os.devnull)
    assert outcome.code == 0, outcome.out
    found: dict[str, list[str]] = {}
    for name in outcome.results:
        *_, profile, way = name.split("::")
        found.setdefault(profile, []).append(way)
    ways = ["batched", "single"]
    assert ("schema2", "token-ids") not in [tuple(name.split("/")[-1].split("::")) for name in outcome.results]
    assert found["L01-D016-fp32"] == [*ways, "left", "together"]
    assert found["L01-D020-fp32"] == ways
    assert found["L01-D020-fp32-ubinary"] == [*ways, "float32"]
    assert found["L01-D020-fp32-int8"] == [*ways, "ranges", "float32"]
    assert found["L01-D020-int8"] == [*ways, "spread"]
    assert found["L01-D020-int8-int8"] == [*ways, "ranges", "spread", "float32"]


def test_what_is_listed_is_what_verify_checks(left_exported: Path) -> None:
    from matexport.verify.verdict import VECTORS_CHECK, list_expected_checks

    for family in (GOLDEN, left_exported):
        for verdict in verify_family(family).verdicts:
            listed = list_expected_checks(load_family(family), verdict.profile)
            made = [name for name, _ in verdict.list_checks()]
            assert [name for name in listed if name != VECTORS_CHECK] == made


def test_items_are_added_to_what_is_collected(project: Path) -> None:
    (project / "test_own.py").write_text("def test_own():\n    assert True\n")
    family = ("--matexport-family", "art/small")
    both = check(project, *family)
    assert len(both.results) == 21
    assert next(iter(both.results)) == "test_own.py::test_own"
    only = check(project, *family, "--matexport-only")
    assert len(only.results) == 20
    assert "test_own.py::test_own" not in only.results
    some = check(project, *family, "-k", "(L02-D032 and batched) or test_own")
    assert list(some.results) == ["test_own.py::test_own", "art/small::L02-D032-fp32::batched"]
    assert check(project).results == {"test_own.py::test_own": "PASSED"}


def test_the_ini_file(project: Path) -> None:
    (project / "test_own.py").write_text("def test_own():\n    assert True\n")
    (project / "pytest.ini").write_text(
        "[pytest]\nmatexport_families =\n    art/small\nmatexport_min_retention = 0.9\n"
    )
    outcome = check(project)
    assert len(outcome.results) == 27
    assert outcome.failed == [f"art/small::{name}::retention" for name in NAMES]
    assert list(check(project, "test_own.py").results) == ["test_own.py::test_own"], "a path was given"
    assert len(check(project, "-n", "2").results) == 27


# --- what fails


def test_a_weight_of_the_last_block_that_moved(project: Path) -> None:
    """Though every digest agrees: the very items of the profiles that verify rejects."""
    family = project / "art" / "small"
    prefix = load_family(family).profile_facts("L02-D032-fp32").weights_prefix_bytes
    last = next(it for it in read_header(family / WEIGHTS).entries if it.offset >= prefix and it.dtype == "F32")
    overwrite_values(family / WEIGHTS, last.name, load_file(family / WEIGHTS)[last.name] * 1.01)
    reseal(family)
    rejected = [verdict for verdict in verify_family(family).verdicts if not verdict.passed]
    outcome = check(project, "--matexport-family", "art/small", "--junitxml", "r.xml")
    assert outcome.code == 1
    assert [verdict.profile for verdict in rejected] == ["L03-D008-fp32", "L03-D032-fp32"]
    assert outcome.failed == [f"art/small::{it.profile}::{way}" for it in rejected for way in WAYS]
    (failure, *_) = ElementTree.parse(project / "r.xml").getroot().findall("testsuite/testcase/failure")
    assert failure.text is not None
    first, second, third = failure.text.splitlines()
    breach = rejected[0].parity["batched"].find_breach(rejected[0].tolerance)
    assert breach is not None
    assert first == f"L03-D008-fp32, batched: {breach.reason}"
    assert re.fullmatch(rf"worst on probe {breach.probe}.*: ['\"].*", second)
    assert third.startswith("measured: max_abs ")
    assert "Traceback" not in outcome.out
    assert "pytest_plugin.py" not in outcome.out.partition("FAILURES")[2]


def test_one_coordinate_of_one_reference(project: Path) -> None:
    family = project / "art" / "small"
    arrays = load_file(family / REFERENCE)
    arrays["L02-D008"][3, 5] += 1.2e-5
    save_file(arrays, family / REFERENCE)
    reseal(family)
    outcome = check(project, "--matexport-family", "art/small")
    assert outcome.failed == [f"art/small::L02-D008-fp32::{way}" for way in WAYS]
    assert "allowed 1e-05\nworst on probe 3: " in outcome.out


def test_codes_of_vectors_that_are_off(tmp_path: Path) -> None:
    """No bit shows it; the codes fail for the vectors' sake, as they do in verify."""
    family = Path(shutil.copytree(GOLDEN, tmp_path / "family"))
    arrays = load_file(family / REFERENCE)
    arrays["L01-D020"][0, 0] += 1.3e-5
    save_file(arrays, family / REFERENCE)
    reseal(family)
    rejected = [it.profile for it in verify_family(family).verdicts if not it.passed]
    outcome = check(tmp_path, "--matexport-family", "family", "-c", os.devnull)
    assert {name.split("::")[1] for name in outcome.failed} == set(rejected)
    assert any(name.endswith("::L01-D020-fp32-ubinary::float32") for name in outcome.failed)


def test_a_changed_file_is_one_failure_and_runs_nothing(project: Path) -> None:
    flip_byte(project / "art" / "small" / "L02-D032.fp32.onnx")
    (project / "conftest.py").write_text(
        "import onnxruntime, pytest\n"
        "def refuse(*_args, **_options):\n"
        "    raise SystemExit('a session was created')\n"
        "onnxruntime.InferenceSession = refuse\n"
    )
    outcome = check(project, "--matexport-family", "art/small", "--junitxml", "r.xml", "-rs")
    assert outcome.code == 1
    assert outcome.failed == ["art/small::digests"]
    ways = [f"art/small::{name}::{way}" for name in NAMES for way in WAYS]
    assert outcome.skipped == ["art/small::token-ids", *ways]
    problem = "changed: L02-D032.fp32.onnx has another sha256 than the manifest says"
    assert f"\n{problem}\n" in outcome.out
    assert f"not checked, since the family's files are refused: {problem}" in outcome.out
    suite = ElementTree.parse(project / "r.xml").getroot()[0]
    assert (suite.attrib["failures"], suite.attrib["skipped"], suite.attrib["tests"]) == ("1", "19", "20")


def test_problems_are_grouped_by_kind(project: Path) -> None:
    family = project / "art" / "small"
    for name in ("tokenizer_config.json", "L01-D008.fp32.onnx"):
        (family / name).unlink()
    flip_byte(family / "config.json")
    (family / "notes.txt").touch()
    outcome = check(project, "--matexport-family", "art/small", "--junitxml", "r.xml")
    assert outcome.failed == ["art/small::digests"]
    (failure,) = ElementTree.parse(project / "r.xml").getroot().findall("testsuite/testcase/failure")
    assert failure.text is not None
    assert failure.text.splitlines() == [
        "digests: 2 missing, 1 changed, 1 extra",
        "missing: L01-D008.fp32.onnx",
        "missing: tokenizer_config.json",
        "changed: config.json has another sha256 than the manifest says",
        "extra: notes.txt is not listed in family.json",
    ]


# Otherwise a job that selects some profiles would pass on files that nobody exported.
@pytest.mark.parametrize("more", [(), ("-n", "2")], ids=["one process", "two"])
def test_of_a_changed_file_something_always_fails(more: tuple[str, ...], project: Path) -> None:
    flip_byte(project / "art" / "small" / "L02-D032.fp32.onnx")
    outcome = check(project, "--matexport-family", "art/small", "-k", "L01-D008-fp32", *more)
    assert outcome.code == 1
    assert [name.partition("@")[0] for name in outcome.failed] == ["art/small::L01-D008-fp32::batched"]
    assert len(outcome.skipped) == 2
    problem = "changed: L02-D032.fp32.onnx has another sha256 than the manifest says"
    assert f"L01-D008-fp32, batched: not checked, since the family's files are refused: {problem}" in outcome.out


def test_one_of_two_families_is_changed(project: Path) -> None:
    shutil.copytree(project / "art" / "small", project / "other")
    flip_byte(project / "other" / "L02-D032.fp32.onnx")
    families = ("--matexport-family", "art/small", "--matexport-family", "other")
    outcome = check(project, *families, "-k", "L01-D008-fp32")
    assert outcome.failed == ["other::L01-D008-fp32::batched"]
    assert outcome.list_items("PASSED") == [f"art/small::L01-D008-fp32::{way}" for way in WAYS]


def test_token_ids_that_are_the_parents(project: Path) -> None:
    outcome = check(project, "--matexport-family", "art/small", "-k", "token-ids or digests")
    assert outcome.results == {"art/small::digests": "PASSED", "art/small::token-ids": "PASSED"}


def test_one_token_of_one_probe(project: Path) -> None:
    def change(rows: list[list[int]]) -> None:
        rows[3][1] += 1

    store_token_rows(project / "art" / "small", change)
    outcome = check(project, "--matexport-family", "art/small")
    assert (outcome.code, outcome.failed) == (1, ["art/small::token-ids"])
    assert len(outcome.list_items("PASSED")) == 19
    assert re.search(r"^token ids differ in 1 of \d+ probes, first in probe 3 \('", outcome.out, re.MULTILINE)
    assert "pytest_plugin.py" not in outcome.out.partition("FAILURES")[2]


@pytest.mark.parametrize("content", [None, "{", '{"schema": 99}'], ids=["missing", "no JSON", "later"])
def test_a_manifest_that_cannot_be_read_is_one_failing_item(content: str | None, project: Path) -> None:
    manifest = project / "art" / "small" / MANIFEST
    manifest.unlink() if content is None else manifest.write_text(content)
    outcome = check(project, "--matexport-family", "art/small")
    assert (outcome.code, outcome.failed) == (1, ["art/small::digests"])


def test_a_folder_that_is_not_there(project: Path) -> None:
    outcome = check(project, "--matexport-family", "art/smal")
    assert (outcome.code, outcome.failed) == (1, ["art/smal::digests"])
    assert re.search(r"^digests: 1 manifest\n.*art/smal is not a directory", outcome.out, re.MULTILINE)


# --- retention


RETENTION = [f"art/small::{name}::retention" for name in NAMES]


def test_a_floor_of_retention(project: Path) -> None:
    family = project / "art" / "small"
    rate(family, dict.fromkeys(NAMES, 0.97) | {"L01-D008-fp32": 0.951, "L02-D008-fp32": 0.949})
    arguments = ("--matexport-family", "art/small", "-k", "retention", "--matexport-min-retention")
    outcome = check(project, *arguments, "0.95")
    assert list(outcome.results) == RETENTION
    assert outcome.failed == ["art/small::L02-D008-fp32::retention"]
    assert "L02-D008-fp32, retention: 0.9490 of the parent's quality, at least 0.95 asked\n" in outcome.out
    assert check(project, *arguments, "0.94").code == 0


def test_the_worst_task_counts_or_the_one_that_is_named(project: Path) -> None:
    rate(project / "art" / "small", dict.fromkeys(NAMES, 0.97), good=0.0, bad=0.1)
    arguments = ("--matexport-family", "art/small", "-k", "retention", "--matexport-min-retention", "0.95")
    assert check(project, *arguments).failed == RETENTION
    assert check(project, *arguments, "--matexport-task", "good").failed == []
    outcome = check(project, *arguments, "--matexport-task", "best")
    assert outcome.failed == RETENTION
    assert "the task 'best' was asked; evaluated are: bad, good" in outcome.out


# A floor that nobody could check is not kept.
def test_retention_that_nobody_measured(project: Path) -> None:
    arguments = ("--matexport-family", "art/small", "-k", "retention", "--matexport-min-retention", "0.5")
    outcome = check(project, *arguments)
    assert outcome.failed == RETENTION
    assert "at least 0.5 was asked, and nobody measured it on these files\nrun: matexport evaluate " in outcome.out
    rate(project / "art" / "small", dict.fromkeys(NAMES[:-1], 0.9) | {NAMES[-1]: None})
    assert check(project, *arguments).failed == RETENTION[-1:]
    edit_manifest(project / "art" / "small", lambda data: data.update(instruction_sets=["avx9"]))
    assert check(project, *arguments).failed == RETENTION, "measured on other files"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--matexport-min-retention", "95"), "a floor of retention '95' was asked; it is a share above 0"),
        (("--matexport-min-retention", "high"), "a floor of retention 'high' was asked"),
        (("--matexport-min-retention", "nan"), "a floor of retention 'nan' was asked"),
        (("--matexport-threads", "0"), "--matexport-threads 0 was asked; it is a whole number"),
        (("--matexport-task", "sts"), "give --matexport-min-retention, too"),
    ],
)
def test_wrong_options_take_one_line(arguments: tuple[str, ...], message: str, project: Path) -> None:
    outcome = check(project, "--matexport-family", "art/small", *arguments)
    assert outcome.code == pytest.ExitCode.USAGE_ERROR
    assert outcome.out.strip().startswith("ERROR: ")
    assert outcome.out.strip().count("\n") == 0
    assert message in outcome.out


def test_only_without_a_family(project: Path) -> None:
    outcome = check(project, "--matexport-only")
    assert outcome.code == pytest.ExitCode.USAGE_ERROR
    assert "no family to check: give --matexport-family DIR" in outcome.out


# --- with pytest-xdist


@pytest.mark.parametrize("dist", ["load", "loadgroup", "loadfile"])
def test_in_several_processes(dist: str, project: Path) -> None:
    (project / "test_own.py").write_text("def test_own():\n    assert True\n")
    family = project / "art" / "small"
    arrays = load_file(family / REFERENCE)
    arrays["L02-D008"][3, 5] += 1.2e-5
    save_file(arrays, family / REFERENCE)
    reseal(family)
    outcome = check(project, "--matexport-family", "art/small", "-n", "2", "--dist", dist)
    results = {name.partition("@")[0]: result for name, result in outcome.results.items()}
    assert len(results) == 21, outcome.out
    failed = sorted(name for name, result in results.items() if result == "FAILED")
    assert failed == [f"art/small::L02-D008-fp32::{way}" for way in WAYS]


def test_codes_share_a_process_with_their_vectors(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "def pytest_collection_modifyitems(items):\n"
        "    with open('groups.txt', 'w') as file:\n"
        "        for item in items:\n"
        "            print(item.name, *item.get_closest_marker('xdist_group').args, file=file)\n"
    )
    outcome = check(tmp_path, f"--matexport-family={GOLDEN}", "--collect-only")
    assert outcome.code == 0, outcome.out
    groups = [line.split()[1] for line in (tmp_path / "groups.txt").read_text().splitlines()]
    checks = 2 + 3 + 4, 3 + 4 + 5
    assert groups == ["L01-D020-fp32"] * (1 + checks[0]) + ["L01-D020-int8"] * checks[1]


def test_a_pack_is_a_family(project: Path) -> None:
    pack_profile(project / "art" / "small", "L01-D008-fp32", project / "pack")
    outcome = check(project, "--matexport-family", "pack", "--matexport-threads", "1")
    assert outcome.code == 0
    ways = [f"pack::L01-D008-fp32::{way}" for way in ("batched", "single")]
    assert list(outcome.results) == ["pack::digests", "pack::token-ids", *ways]
