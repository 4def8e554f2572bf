"""What hubs, git and desktops add is named and never read; whatever else lies there still fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from commandline import Run
from places import GOLDEN

from matexport import load_family, pack_profile, verify_family
from matexport.errors import DestinationError, FamilyError
from matexport.family.guard import additions
from matexport.family.guard.additions import is_addition, keep_additions
from matexport.family.integrity import check_family, list_additions, refuse_occupied
from matexport.family.manifest import CARD, MANIFEST, MEASUREMENTS
from matexport.towers import IMAGE, TEXT, TOWERS, list_others

NAME, OTHER = "L01-D020-fp32", "L02-D020-fp32"

FILES = [
    "LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENSE-MIT", "LICENSE-APACHE-2.0.txt", "LICENSE.Apache-2.0",
    "LICENSES", "License.txt", "license", "NOTICE", "NOTICE.txt", "NOTICES.md", "COPYING", "COPYING.LESSER",
    "LICENSE_3rd-party.rst", ".gitattributes", ".gitignore", ".gitkeep", ".git", ".DS_Store", "Thumbs.db",
    "desktop.ini", ".directory", "._family.json", "._.DS_Store",
]  # fmt: skip
FOLDERS = [".git", ".cache", ".huggingface", ".ipynb_checkpoints"]
OTHERS = [
    "LICENSE.py", "LICENSE.onnx", "LICENSE-x.onnx", "LICENSE.safetensors", "LICENSE-MIT.so", "LICENSE.md.exe",
    "LICENSE.", "LICENSEE", "UNLICENSE", "NOTICE\n", "COPYING/", "LICENSE/", ".gitattributes/", ".DS_Store/",
    ".gitmodules", ".gitattributes~", "thumbs.db", ".cache", ".huggingface", ".ipynb_checkpoints", ".idea/", "onnx/",
    ".hidden", "._", "_LICENSE", "model.py", "config.yaml", "pytorch_model.bin",
]  # fmt: skip


@pytest.fixture
def family(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "schema3", tmp_path / "family"))


def add(family: Path, name: str) -> Path:
    """A file, or a folder with something in it where the name ends with a slash."""
    path = family / name.rstrip("/")
    if name.endswith("/"):
        path.mkdir()
        (path / "evil.py").write_text("raise SystemExit")
    else:
        path.write_bytes(b"\xff")
    return path


@pytest.mark.parametrize("name", [*FILES, *(f"{name}/" for name in FOLDERS)])
def test_what_is_known_is_named_and_fails_when_that_is_asked(name: str, family: Path) -> None:
    path = add(family, name)
    assert is_addition(path)
    loaded = load_family(family)
    assert list_additions(loaded) == [path.name]
    check_family(loaded)
    with pytest.raises(FamilyError) as refused:
        check_family(loaded, strict=True)
    assert [str(problem) for problem in refused.value.problems] == [f"extra: {path.name} is not listed in {MANIFEST}"]


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_known_fails(name: str, family: Path) -> None:
    path = add(family, name)
    assert list_additions(load_family(family)) == []
    with pytest.raises(FamilyError) as refused:
        check_family(load_family(family))
    assert [problem.file for problem in refused.value.problems] == [path.name]


@pytest.mark.parametrize("name", ["LICENSE", ".gitattributes", ".git", ".cache", ".DS_Store"])
@pytest.mark.parametrize("kind", ["link to a file", "link to a folder", "dangling link", "pipe"])
def test_what_only_has_such_a_name_fails(kind: str, name: str, family: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    if kind == "pipe":
        os.mkfifo(family / name)
    else:
        (family / name).symlink_to(
            {"link to a file": tmp_path / "file", "dangling link": "nowhere"}.get(kind, tmp_path)
        )
    with pytest.raises(FamilyError, match=f"extra: {name} is not listed"):
        check_family(load_family(family))
    with pytest.raises(DestinationError, match="holds files that are not the family's"):
        refuse_occupied(family, overwrite=True)


def test_nothing_looks_into_them(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever lies there: a pipe would wait for ever."""
    inside = family / ".git" / "objects"
    inside.mkdir(parents=True)
    os.mkfifo(inside / "pipe")
    (family / "LICENSE").write_text("x")
    (family / "LICENSE").chmod(0)
    opened, really = [], os.open
    monkeypatch.setattr(os, "open", lambda path, *rest, **more: opened.append(str(path)) or really(path, *rest, **more))
    assert verify_family(family).passed
    assert any(path.endswith("reference.safetensors") for path in opened), "the walk sees what is opened"
    assert not any("LICENSE" in path or ".git" in path for path in opened)


def test_in_the_folder_of_measurements(family: Path) -> None:
    (family / MEASUREMENTS).mkdir(exist_ok=True)
    (family / MEASUREMENTS / ".DS_Store").touch()
    check_family(load_family(family))
    assert list_additions(load_family(family)) == [f"{MEASUREMENTS}/.DS_Store"]


def test_verify_names_them(run: Run, family: Path, tmp_path: Path) -> None:
    clean = run("verify", family, "--json").json
    assert clean["additions"] == []
    assert "not read" not in run("verify", family).out
    for name in ("LICENSE", ".git/", "._a\x1b[2J"):
        add(family, name)
    result = run("verify", family, "--junit", tmp_path / "r.xml")
    assert result.code == 0
    assert r"not the family's, and not read: ._a\x1b[2J, .git, LICENSE" in result.out
    assert run("verify", family, "--json").json["additions"] == ["._a\x1b[2J", ".git", "LICENSE"]
    (files,) = ElementTree.parse(tmp_path / "r.xml").findall("testsuite/testcase[@classname='files']")
    assert files.findtext("system-out") == "added, and not read: ._a\ufffd[2J, .git, LICENSE"
    strict = run("verify", family, "--strict", "--json")
    assert strict.code == 1
    assert [problem["file"] for problem in strict.json["problems"]] == ["._a\x1b[2J", ".git", "LICENSE"]


def test_many_are_not_all_named(run: Run, family: Path) -> None:
    for number in range(20):
        add(family, f"LICENSE-{number:02}")
    assert "LICENSE-11 and 8 more" in run("verify", family).out


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_family_that_went_through_git_verifies(family: Path, tmp_path: Path) -> None:
    def git(*arguments: str, at: Path) -> None:
        given = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.autocrlf=false", *arguments]
        subprocess.run(["git", *given], cwd=at, check=True, capture_output=True)

    (family / ".gitattributes").write_text("*.safetensors -text\n*.onnx -text\n")
    (family / "LICENSE").write_text("terms")
    git("init", "-q", at=family)
    git("add", "-A", at=family)
    git("commit", "-q", "-m", "a family", at=family)
    git("clone", "-q", str(family), "clone", at=tmp_path)
    assert verify_family(tmp_path / "clone").passed
    assert list_additions(load_family(tmp_path / "clone")) == [".git", ".gitattributes", "LICENSE"]


# --- what is written over


def fill(folder: Path) -> None:
    objects = folder / ".git" / "objects"
    objects.mkdir(parents=True)
    (objects / "aa").write_text("history")
    (objects / "aa").chmod(0o444)
    (folder / ".git" / "link").symlink_to("/nowhere")
    os.mkfifo(folder / ".git" / "pipe")
    objects.chmod(0o755)
    (folder / "LICENSE").write_text("terms")


def check_filled(folder: Path) -> None:
    assert (folder / ".git" / "objects" / "aa").read_text() == "history"
    assert (folder / ".git" / "objects" / "aa").stat().st_mode & 0o777 == 0o444
    assert (folder / ".git" / "link").readlink() == Path("/nowhere")
    assert (folder / ".git" / "pipe").is_fifo()
    assert (folder / "LICENSE").read_text() == "terms"


@pytest.mark.parametrize("way", ["links", "copies"])
def test_pack_keeps_what_was_added(way: str, family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "pack"
    pack_profile(family, NAME, out)
    fill(out)
    if way == "copies":  # a file system without hard links; what is no file cannot be copied
        (out / ".git" / "pipe").unlink()
        monkeypatch.setattr(os, "link", lambda *_arguments, **_options: (_ for _ in ()).throw(PermissionError(1, "no")))
    pack_profile(family, OTHER, out, overwrite=True)
    if way == "copies":
        os.mkfifo(out / ".git" / "pipe")
    check_filled(out)
    assert [profile.name for profile in load_family(out).profiles] == [OTHER]
    assert verify_family(out).passed
    assert {path.name for path in tmp_path.iterdir()} == {"family", "pack"}


def test_what_cannot_be_kept_is_not_destroyed(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "pack"
    pack_profile(family, NAME, out)
    fill(out)
    monkeypatch.setattr(os, "link", lambda *_arguments, **_options: (_ for _ in ()).throw(PermissionError(1, "no")))
    with pytest.raises(DestinationError, match="nothing there was changed"):
        pack_profile(family, OTHER, out, overwrite=True)
    check_filled(out)
    assert [profile.name for profile in load_family(out).profiles] == [NAME]


def test_a_pack_into_the_clone_of_an_empty_repository(family: Path, tmp_path: Path) -> None:
    out = tmp_path / "clone"
    out.mkdir()
    fill(out)
    pack_profile(family, NAME, out)
    check_filled(out)
    assert verify_family(out).passed
    (tmp_path / "other").mkdir()
    fill(tmp_path / "other")
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(DestinationError, match="it is no family of matexport"):
        pack_profile(family, NAME, tmp_path / "other")


def test_a_pack_leaves_nothing_beside_it(family: Path, tmp_path: Path) -> None:
    pack_profile(family, NAME, tmp_path / "pack")
    assert {path.name for path in tmp_path.iterdir()} == {"family", "pack"}


def test_the_new_ones_own_file_stays(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "LICENSE").write_text(name)
    (tmp_path / "old" / "notes").touch()
    keep_additions(tmp_path / "old", tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["LICENSE"]
    assert (tmp_path / "new" / "LICENSE").read_text() == "new"
    keep_additions(tmp_path / "nowhere", tmp_path / "new")
    (tmp_path / "link").symlink_to("old")
    (tmp_path / "new" / "LICENSE").unlink()
    keep_additions(tmp_path / "link", tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_beside_two_families(tmp_path: Path) -> None:
    for name in (TEXT, IMAGE, ".git"):
        (tmp_path / name).mkdir()
    for name in (TOWERS, "LICENSE", ".gitattributes", CARD):
        (tmp_path / name).touch()
    assert list_others(tmp_path) == []
    (tmp_path / "thesis.tex").touch()
    (tmp_path / CARD).unlink()
    (tmp_path / CARD).symlink_to("LICENSE")
    assert list_others(tmp_path) == [CARD, "thesis.tex"]


def test_every_name_is_said_in_the_format(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "format.md").read_text(encoding="utf-8")
    for name in (*additions.FILES, *additions.FOLDERS, "LICENSE", "NOTICE", "COPYING", "._"):
        assert f"`{name}" in page, name
