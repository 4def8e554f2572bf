"""Locks pin all, and what is linked into an environment is what its lock says."""

from __future__ import annotations

from pathlib import Path

import pytest
from environments import find_complaints, link_packages, list_installed, read_lock
from places import ROOT

LOCKS = sorted((ROOT / "ci" / "consumers" / "locks").glob("*.txt"))


def make_package(site: Path, name: str, version: str) -> None:
    """A package with a module, its metadata, and a script outside of the folder."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    (site / name).mkdir(parents=True)
    info.mkdir()
    (site / name / "__init__.py").write_text(f"version = {version!r}\n")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (site.parent / "script").write_text("#!/elsewhere/python\n")
    files = [f"{name}/__init__.py", f"{info.name}/METADATA", f"{info.name}/RECORD", "../script"]
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_a_lock_pins_every_package_once(lock: Path) -> None:
    pinned = list(read_lock(lock))
    assert len(pinned) == len(dict(pinned)) > 10
    assert all(version and not set(version) & set("+*<>=~ ;@") for _, version in pinned)
    shared = dict(read_lock(ROOT / "constraints.txt"))
    assert dict(pinned).get("torch", shared["torch"]) == shared["torch"], "it is linked from where matexport runs"


def test_only_the_wanted_version_is_linked(tmp_path: Path) -> None:
    here, there, site = (tmp_path / name / "packages" for name in ("here", "there", "site"))
    make_package(here, "alpha", "1.0")
    make_package(here, "beta-b", "2.0")
    make_package(there, "alpha", "1.1+cpu")
    site.mkdir(parents=True)
    linked = link_packages({"alpha": "1.1", "beta-b": "2.1", "gamma": "1"}, site, [here, there])
    assert linked == ["alpha"]
    assert (site / "alpha" / "__init__.py").samefile(there / "alpha" / "__init__.py")
    assert not (site.parent / "script").exists()
    assert {name: package.version for name, package in list_installed(site).items()} == {"alpha": "1.1+cpu"}
    assert link_packages({"alpha": "1.0"}, site, [here]) == [], "another version lies there: that is left to pip"


def test_what_a_lock_leaves_out_is_no_complaint_and_all_else_is(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("# of something\n# without beta: it breaks\nalpha==1.0\n")
    left_out = "alpha 1.0 requires beta, which is not installed."
    others = [
        "alpha 1.0 requires betatwo, which is not installed.",
        "alpha 1.0 has requirement gamma<2, but you have 2.0.",
    ]
    assert find_complaints(lock, "\n".join([left_out, *others])) == others
    assert find_complaints(lock, f"{left_out}\n") == []
    assert find_complaints(lock, "No broken requirements found.") == []
