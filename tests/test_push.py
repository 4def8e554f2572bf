"""What is pushed is what was verified, all of it and nothing else, and it verifies when it comes back."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commandline import Run
from fake_hub import TOKEN, Hub, read_all, run_hub, use_endpoint
from forge import flip_byte, overwrite_values, reseal
from places import GOLDEN, ROOT

from matexport import PushTarget, load_family, pack_profile, pull_family, push_family, verify_family
from matexport.family.integrity import list_additions
from matexport.family.manifest import CARD, MANIFEST, MEASUREMENTS
from matexport.hub import push
from matexport.verify.judge import verify_case

NAME = "L01-D020-fp32"
REPO = "someone/family"
WEIGHTS = "weights.fp32.safetensors"


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that has nothing, and a token for it."""
    with run_hub() as hub:
        use_endpoint(hub.endpoint, tmp_path / "cache", monkeypatch)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def family(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "schema4", tmp_path / "family"))


def test_there_and_back(run: Run, hub: Hub, family: Path, tmp_path: Path) -> None:
    result = run("push", family, "--to", REPO)
    oid = hub.repos[REPO].branches["main"]
    assert f"{REPO}: 10 files, 0.2 MB; {hub.endpoint}/{REPO}/commit/{oid}\n" in result.out
    assert "it has no card: `matexport report` writes one" in result.out
    there = hub.head(REPO)
    assert there == read_all(family) | {".gitattributes": there[".gitattributes"]}
    assert not hub.repos[REPO].private
    pull_family(REPO, tmp_path / "out")
    assert read_all(tmp_path / "out") == read_all(family)


def test_words_and_measurements_go_and_nothing_else(hub: Hub, family: Path, tmp_path: Path) -> None:
    sent = {CARD: "# mine", "LICENSE": "terms", "NOTICE": "more"}
    for name, text in {**sent, "report.html": "<p>", ".DS_Store": "x", ".gitattributes": "* text"}.items():
        (family / name).write_text(text)
    for folder in (".git", ".cache", MEASUREMENTS):
        (family / folder).mkdir(exist_ok=True)
        (family / folder / "host.json").write_text("{}")
    before = set(read_all(GOLDEN / "schema4"))
    pushed = push_family(family, PushTarget(REPO))
    assert set(pushed.files) == {*before, *sent, f"{MEASUREMENTS}/host.json"}
    assert set(hub.head(REPO)) == {*pushed.files, ".gitattributes"}
    assert b"filter=lfs" in hub.head(REPO)[".gitattributes"], "the hub's own"
    clone = tmp_path / "clone"
    for name, content in hub.head(REPO).items():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_bytes(content)
    assert verify_family(clone).passed, "what git would clone"
    assert list_additions(load_family(clone)) == [".gitattributes", "LICENSE", "NOTICE"]


def test_a_profile_and_then_another(run: Run, hub: Hub, family: Path, tmp_path: Path) -> None:
    (family / "LICENSE").write_text("terms")
    push_family(family, PushTarget(REPO))
    result = run("push", family, NAME, "--to", REPO, "--message", "only one", "--json").json
    assert result["profile"] == NAME
    assert result["removed"] == ["L02-D020.fp32.onnx", "exits.fp32.onnx"]
    pack_profile(family, NAME, tmp_path / "pack")
    there = hub.head(REPO)
    assert there == read_all(tmp_path / "pack") | {
        "LICENSE": b"terms",
        ".gitattributes": there[".gitattributes"],
    }
    assert result["files"] == {name: len(content) for name, content in there.items() if name != ".gitattributes"}
    assert {path.name for path in tmp_path.iterdir()} == {"family", "pack", "cache"}


@pytest.mark.parametrize("profile", ["L01-D012-fp32", "L01-D012"])
def test_a_pack_for_other_libraries_comes_and_goes_whole(profile: str, run: Run, hub: Hub, tmp_path: Path) -> None:
    """Its graphs lie in a folder of their own. Twice, and over a family that was there before."""
    source = GOLDEN / "schema3"
    assert run("push", source, "--to", REPO).code == 0
    for _ in range(2):
        assert run("push", source, profile, "--to", REPO).code == 0
    pack = pack_profile(source, profile, tmp_path / "pack")
    there = {name: content for name, content in hub.head(REPO).items() if name != ".gitattributes"}
    assert there == read_all(pack.path)
    assert "onnx/model.onnx" in there
    assert run("pull", REPO, tmp_path / "out").code == 0
    assert read_all(tmp_path / "out") == read_all(pack.path)
    assert verify_family(tmp_path / "out").passed


def test_a_branch_that_is_private(run: Run, hub: Hub, family: Path, tmp_path: Path) -> None:
    assert run("push", family, "--to", REPO, "--private", "--revision", "v1").code == 0
    assert hub.repos[REPO].private
    assert set(hub.head(REPO)) == {".gitattributes"}
    assert MANIFEST in hub.head(REPO, "v1")
    assert run("push", family, "--to", REPO, "--private", "--revision", "v1").code == 0
    assert pull_family(REPO, tmp_path / "out", revision="v1").profiles


def test_one_that_is_public_does_not_become_private(run: Run, hub: Hub, family: Path) -> None:
    hub.put(REPO, {})
    run("push", family, "--to", REPO, "--private").complains(f"{REPO} is public already", code=2)
    assert set(hub.head(REPO)) == {".gitattributes"}


def test_a_dry_run_asks_nobody(run: Run, hub: Hub, family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = run("push", family, "--to", REPO, "--dry-run")
    assert result.code == 0
    listed = {line.split()[1]: int(line.split()[0].replace(",", "")) for line in result.out.splitlines()[:10]}
    assert listed == {name: len(content) for name, content in read_all(family).items()}
    assert result.out.endswith(f"{REPO}: 10 files, 0.2 MB would be sent\n")
    document = run("push", family, NAME, "--to", REPO, "--dry-run", "--json").json
    assert (document["commit"], document["url"]) == (None, None)
    assert hub.log == []


# --- what is not sent


def test_a_family_off_its_floor(run: Run, hub: Hub, family: Path) -> None:
    import numpy as np

    overwrite_values(family / WEIGHTS, "embeddings.position_embeddings.weight", np.full(64, 3.0, np.float32))
    reseal(family)
    for given in ((), (NAME,)):
        result = run("push", family, *given, "--to", REPO)
        assert result.code == 1
        assert "off its floor on this host" in result.err
    assert hub.log == []


def test_a_family_that_was_changed(run: Run, hub: Hub, family: Path) -> None:
    flip_byte(family / WEIGHTS)
    run("push", family, "--to", REPO).complains(f"changed: {WEIGHTS}")
    run("push", family / "nowhere", "--to", REPO).complains("is not a directory")
    assert hub.log == []


@pytest.mark.parametrize("name", [WEIGHTS, MANIFEST])
def test_what_is_changed_between_the_proof_and_the_push(
    name: str, run: Run, hub: Hub, family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was verified is what goes, or nothing."""

    def verify_and_change(case: Any, **options: Any) -> Any:
        verification = verify_case(case, **options)
        content = (family / name).read_bytes()
        (family / name).unlink()  # a file that is mapped is not written over
        (family / name).write_bytes(content[:-1] + b"\0")
        return verification

    monkeypatch.setattr(push, "verify_case", verify_and_change)
    run("push", family, "--to", REPO).complains("nothing was sent; do it again")
    assert set(hub.head(REPO) if REPO in hub.repos else ()) <= {".gitattributes"}


@pytest.mark.parametrize("name", ["model.safetensors", "onnx/model.onnx", "LICENSE.py", ".git2/x"])
def test_a_repository_that_holds_something_else(name: str, run: Run, hub: Hub, family: Path) -> None:
    hub.put(REPO, {name: b"x"})
    run("push", family, "--to", REPO).complains(f"{REPO} holds {name.split('/')[0]}", "which is of no family")
    assert set(hub.head(REPO)) == {".gitattributes", name}


def test_a_card_that_leads_elsewhere(run: Run, hub: Hub, family: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine")
    (family / MEASUREMENTS).mkdir(exist_ok=True)
    (family / CARD).symlink_to(tmp_path / "secret")
    run("push", family, "--to", REPO).complains(f"extra: {CARD} is not listed")
    (family / CARD).unlink()
    (family / CARD).write_bytes(bytes(5 << 20))
    run("push", family, "--to", REPO).complains(f"{CARD} has 5242880 bytes", "it cannot be sent")
    assert hub.log == []


def test_somebody_pushed_meanwhile(run: Run, hub: Hub, family: Path) -> None:
    def commit_first(handler: Any) -> bool:
        if "/commit/" in handler.path and len(hub.repos[REPO].commits) == 1:
            hub.repos[REPO].commit("main", {"other": b"x"})
        return False

    hub.faults.append(commit_first)
    run("push", family, "--to", REPO).complains("answered 412 (A commit has happened since")
    assert set(hub.head(REPO)) == {"other"}


def test_a_hub_that_leaves_something_out(run: Run, hub: Hub, family: Path) -> None:
    def ignore(handler: Any) -> bool:
        if "/preupload/" not in handler.path:
            return False
        files = [
            {"path": file["path"], "uploadMode": "regular", "shouldIgnore": file["path"] == "config.json"}
            for file in json.loads(handler.body)["files"]
        ]
        handler.answer_json({"files": files})
        return True

    hub.faults.append(ignore)
    run("push", family, "--to", REPO).complains(f"config.json is not in {REPO} at", "look at its .gitignore")


@pytest.mark.parametrize("token", ["", "hf_wrong"])
def test_tokens(token: str, run: Run, hub: Hub, family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    says = "and a token was not accepted" if token else "and a token is missing"
    run("push", family, "--to", REPO).complains(f"cannot push to {REPO}", says)


def test_a_token_that_may_not_write(run: Run, hub: Hub, family: Path) -> None:
    hub.faults.append(lambda handler: handler.command == "POST" and (handler.fail(403, "", "read only") or True))
    run("push", family, "--to", REPO).complains("does not allow it (403): the token may not do that")


def test_two_families(family: Path) -> None:
    (family / "towers.json").touch()
    with pytest.raises(Exception, match="holds two families"):
        push_family(family, PushTarget(REPO))


@pytest.mark.parametrize("name", ["a/b/c", "../a", "a b", "", "a/--b", "a" * 97])
def test_a_name_that_is_none(name: str, run: Run, hub: Hub, family: Path) -> None:
    """It is said before anything is verified, or asked."""
    flip_byte(family / WEIGHTS)
    for given in ((), ("--dry-run",)):
        run("push", family, "--to", name, *given).complains(f"{name!r} is no name of a repository")
    assert hub.log == []


def test_as_users_run_it(hub: Hub, family: Path, tmp_path: Path) -> None:
    """In processes of their own, with nothing but the environment of huggingface_hub."""
    environment = {
        "PATH": "/usr/bin:/bin", "HOME": str(tmp_path / "home"), "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN,
        "HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(ROOT),
    }  # fmt: skip

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", "-m", "matexport", *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    pushed = call("push", family, "--to", REPO)
    stages = {"matexport: verify (of 2)", "matexport: push"}  # on a slow machine
    assert (pushed.returncode, set(pushed.stderr.splitlines()) - stages) == (0, set()), pushed.stderr
    assert "10 files" in pushed.stdout
    pulled = call("pull", REPO, NAME, tmp_path / "out")
    assert pulled.returncode == 0, pulled.stderr
    assert verify_family(tmp_path / "out").passed
    environment["HF_HUB_OFFLINE"] = "1"
    refused = call("pull", REPO, tmp_path / "again")
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
