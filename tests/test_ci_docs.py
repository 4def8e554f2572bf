"""docs/ci.md: its workflow is YAML, and its commands do on a small family what is written."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from commandline import Run
from forge import flip_byte, forge_quality
from places import GOLDEN, INSTALLED, ROOT

from matexport import load_family, record_quality
from matexport.errors import ProblemKind
from matexport.host import read_host
from matexport.verify.checks import DIGESTS, Check, FamilyChecks, Requirements

PAGE = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")


def read_workflow() -> dict[Any, Any]:
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    workflow: dict[Any, Any] = yaml.safe_load(block)
    return workflow


def test_the_workflow_is_whole() -> None:
    workflow = read_workflow()
    assert workflow["env"]["ORT_DISABLE_TELEMETRY"] == "1"
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML 1.1 reads `on` so
    (job,) = workflow["jobs"].values()
    assert all(("run" in step) != ("uses" in step) for step in job["steps"])


def test_its_commands_do_what_is_written(exported: Path, tmp_path: Path) -> None:
    """In a folder as the job leaves it: the user's own tests and settings, matexport's checkout, both families."""
    for folder in ("artifacts/minilm", "released/artifacts/minilm"):
        shutil.copytree(exported, tmp_path / folder)
        loaded = load_family(tmp_path / folder)
        scores = {profile.name: 0.9 for profile in loaded.profiles}
        record_quality(loaded, forge_quality(read_host(), {"sts": scores}))
    (tmp_path / "test_of_the_user.py").write_text("def test_own():\n    raise AssertionError\n")
    (job,) = read_workflow()["jobs"].values()
    commands = [shlex.split(step["run"]) for step in job["steps"] if "run" in step]
    ours = [command for command in commands if command[0] in ("pytest", "matexport")]
    assert [command[0] for command in ours] == ["pytest", "matexport", "matexport"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE", "PYTEST"))}
    for program, *arguments in ours:
        plugin = ["-p", "matexport.verify.pytest_plugin"] if program == "pytest" and not INSTALLED else []
        done = subprocess.run(
            [sys.executable, "-m", program, *plugin, *arguments],
            cwd=tmp_path, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in tmp_path.glob("*.xml")) == ["drift.xml", "parity.xml", "verify.xml"]
    items = list(ElementTree.parse(tmp_path / "parity.xml").getroot().iter("testcase"))
    assert {item.attrib["name"].rpartition("::")[2] for item in items} >= {"digests", "batched", "single", "retention"}


def test_what_it_installs_is_what_it_checked_out() -> None:
    """Every path of an install is one that a step before put there, and that the checkout holds."""
    (job,) = read_workflow()["jobs"].values()
    checkouts = {
        step["with"]["path"] for step in job["steps"] if "checkout" in step.get("uses", "") and "path" in step["with"]
    }
    (install,) = (shlex.split(step["run"]) for step in job["steps"] if step.get("run", "").startswith("pip"))
    paths = [Path(word) for word in install if "/" in word]
    assert len(paths) == 2
    for path in paths:
        folder, *rest = path.parts
        assert folder in checkouts
        assert ROOT.joinpath(*rest).exists()


def test_every_option_that_it_names_exists() -> None:
    places = ("verify/pytest_plugin.py", "cli/main.py", "cli/options.py", "cli/commands/*.py")
    known = "".join(path.read_text() for place in places for path in (ROOT / "matexport").glob(place))
    named = set(re.findall(r"--matexport-[a-z-]+|--baseline|--junit\b", PAGE))
    assert len(named) >= 6
    assert all(f'"{option}"' in known for option in named)


def read_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_its_problems_are_what_is_printed(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    family = Path("artifacts/minilm")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(GOLDEN / "schema4", family)
    (family / "config.json").unlink()
    (family / "notes.txt").touch()
    flip_byte(family / "L02-D020.fp32.onnx")
    assert run("verify", family, "--json", "--junit", "verify.xml").out == read_blocks("json")[0]
    assert read_blocks("xml")[0] in Path("verify.xml").read_text(encoding="utf-8")
    checks = FamilyChecks(family, Requirements())
    assert f"{checks.find_failure(Check(DIGESTS))}\n" in read_blocks("text")


def test_it_names_every_kind_of_problem() -> None:
    section = PAGE.partition("## What is wrong with the files")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `([a-z-]+)` \|", section, re.MULTILINE) == list(ProblemKind)
