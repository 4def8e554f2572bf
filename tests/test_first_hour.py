"""What somebody sees first: a licence, hints that fit how the package was installed, the licence of a parent."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from forge import edit_manifest
from places import ROOT

from matexport import extras, load_family
from matexport.export.parents.folder.model_card import read_license
from matexport.family.manifest import CARD
from matexport.report.findings import gather_findings
from matexport.report.write import write_report


def test_the_licence_is_the_standard_text() -> None:
    """As apache.org and Debian have it, whatever blank lines stand around it."""
    text = (ROOT / "LICENSE").read_text(encoding="utf-8").strip("\n")
    assert hashlib.sha256(text.encode()).hexdigest() == STANDARD
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (project["license"], project["license-files"]) == ("Apache-2.0", ["LICENSE"])
    assert "Apache-2.0" in (ROOT / "README.md").read_text(encoding="utf-8")


STANDARD = "43070e2d4e532684de521b885f385d0841030efa2b1a20bafb76133a5e1379c1"


@pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="no checkout")
def test_the_licence_is_in_the_wheel(tmp_path: Path) -> None:
    setuptools = pytest.importorskip("setuptools", minversion="77")
    assert setuptools
    source = tmp_path / "source"
    (source / "matexport").mkdir(parents=True)
    for name in ("pyproject.toml", "LICENSE", "README.md", "matexport/__init__.py"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), "."]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())
        metadata = next(name for name in wheel.namelist() if name.endswith("METADATA"))
        assert b"License-Expression: Apache-2.0" in wheel.read(metadata)


def test_a_checkout_is_installed_with_its_pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "my code" / "matexport" / "extras.py"))
    assert extras.spell_install("report") == "pip install 'matexport[report]'"
    (tmp_path / "my code").mkdir()
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / "my code" / name).touch()
    root = tmp_path / "my code"
    assert extras.spell_install("report") == f"pip install -c '{root}/constraints.txt' -e '{root}[report]'"


@pytest.mark.parametrize(
    ("card", "found"),
    [
        ("---\nlicense: apache-2.0\ntags: []\n---\n# x", "apache-2.0"),
        ('---\ntags: []\nlicense: "mit"\n---\n', "mit"),
        ("---\nlicense:\n- cc-by-nc-4.0\n---\n", "cc-by-nc-4.0"),
        ("---\nlicense: [gpl-3.0, mit]\n---\n", "gpl-3.0"),
        ("---\r\nlicense: mit\r\n---\r\n", "mit"),
        ("---\ntags: []\n---\nlicense: mit\n", None),
        ("license: mit\n", None),
        ("# words\n---\nlicense: mit\n---\n", None),
        ("---\nlicense: <b>\n---\n", None),
        ("---\nlicense:\n---\n", None),
    ],
)
def test_what_a_card_says_of_its_licence(card: str, found: str | None, tmp_path: Path) -> None:
    (tmp_path / CARD).write_bytes(card.encode())
    assert read_license(tmp_path) == found
    assert read_license(tmp_path / "absent") is None


def test_the_card_says_the_parents_licence(family: Path) -> None:
    write_report(gather_findings(family))
    assert "its licence, not recorded here" in (family / CARD).read_text()
    edit_manifest(family, lambda facts: facts["parent"].update(license="mit"))
    write_report(gather_findings(load_family(family)))
    text = (family / CARD).read_text()
    assert "its licence, which its model card calls `mit`" in text
    assert 'license: "mit"' in text


@pytest.mark.usefixtures("quick_traces")
def test_a_family_keeps_the_licence_of_its_parent(parent: Path, tmp_path: Path) -> None:
    import shutil

    from matexport.export import export_family
    from matexport.spec.job import ExportJob, ParentSource
    from matexport.spec.profile import Point

    licensed = Path(shutil.copytree(parent, tmp_path / "parent"))
    (licensed / CARD).write_text("---\nlicense: mit\n---\n# A parent\n")
    points = (Point(1, 8), Point(2, 8), Point(3, 8))
    exported = export_family(ExportJob(ParentSource(str(licensed)), points), tmp_path / "out")
    assert exported.family.facts.parent.license == "mit"
