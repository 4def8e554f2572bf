"""What is pulled is what was pushed, to the byte; nothing else comes, nothing comes twice, and all of it is proven."""

from __future__ import annotations

import json
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commandline import Run
from fake_hub import TOKEN, Hub, describe_file, read_all, run_hub, send_file, use_endpoint
from forge import edit_manifest
from places import GOLDEN

from matexport import Embedder, load_family, pack_profile, pull_family, verify_family
from matexport.errors import DestinationError, FamilyError, HubError, MissingExtraError
from matexport.family.integrity import list_additions
from matexport.family.manifest import CARD, MANIFEST, MEASUREMENTS
from matexport.hub import remote as remote_module
from matexport.pack.write import pack_single_file

FAMILY = GOLDEN / "schema3"
REPO = "someone/family"
SHALLOW, DEEP = "L01-D012-fp32", "L02-D020-fp32"
GRAPH, WEIGHTS = "L01-D012.fp32.onnx", "weights.fp32.safetensors"


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that has the family, and an empty cache."""
    with run_hub() as hub:
        use_endpoint(hub.endpoint, tmp_path / "cache", monkeypatch)
        hub.put(REPO, read_all(FAMILY))
        yield hub


# --- what comes


def test_a_family_to_the_byte(run: Run, hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("pull", REPO, out)
    assert result.out == f"{out}: 6 profiles, 16 files, 0.3 MB, verified\n"
    assert read_all(out) == read_all(FAMILY)
    assert not any(path.is_symlink() or path.stat().st_nlink > 1 for path in out.rglob("*"))
    assert {path.name for path in tmp_path.iterdir()} == {"out", "cache"}
    assert run("verify", out).code == 0


def test_of_a_profile_only_what_it_needs(hub: Hub, tmp_path: Path) -> None:
    pull_family(REPO, tmp_path / "out", profile=SHALLOW)
    pack_profile(FAMILY, SHALLOW, tmp_path / "pack", layout="matexport")
    assert {**read_all(tmp_path / "out")} == {
        name: content for name, content in read_all(tmp_path / "pack").items() if not name.startswith(MEASUREMENTS)
    }
    prefix = load_family(FAMILY).profile_facts(SHALLOW).weights_prefix_bytes
    assert hub.sent[WEIGHTS] == [(0, prefix)]
    assert prefix < len(hub.head(REPO)[WEIGHTS])
    assert {name for name in hub.sent if name.endswith((".onnx", ".safetensors"))} == {
        GRAPH,
        WEIGHTS,
        "reference.safetensors",
    }
    assert Embedder(tmp_path / "out").embed(["a text"]).shape == (1, 12)


def test_a_deeper_profile_takes_the_bytes_that_are_missing(hub: Hub, tmp_path: Path) -> None:
    pull_family(REPO, tmp_path / "shallow", profile=SHALLOW)
    pull_family(REPO, tmp_path / "deep", profile=DEEP)
    size, begin = len(hub.head(REPO)[WEIGHTS]), load_family(FAMILY).profile_facts(SHALLOW).weights_prefix_bytes
    assert hub.sent[WEIGHTS] == [(0, begin), (begin, size - begin)]
    pull_family(REPO, tmp_path / "again", profile=DEEP)
    pull_family(REPO, tmp_path / "whole")
    for name in hub.sent:
        assert hub.count_sent(name) == len(hub.head(REPO)[name]), "never a byte twice"
    assert read_all(tmp_path / "whole") == read_all(FAMILY)


def test_where_parts_are_not_served(hub: Hub, tmp_path: Path) -> None:
    pull_family(REPO, tmp_path / "shallow", profile=SHALLOW)
    hub.ranges = False
    pull_family(REPO, tmp_path / "deep", profile=DEEP)
    assert hub.sent[WEIGHTS][1] == (0, len(hub.head(REPO)[WEIGHTS]))
    pack_profile(FAMILY, DEEP, tmp_path / "pack", layout="matexport")
    assert (tmp_path / "deep" / WEIGHTS).read_bytes() == (tmp_path / "pack" / WEIGHTS).read_bytes()


def test_what_huggingface_hub_has_is_not_fetched_again(hub: Hub, tmp_path: Path) -> None:
    from huggingface_hub import hf_hub_download

    hf_hub_download(REPO, WEIGHTS)
    before = hub.count_sent(WEIGHTS)
    pull_family(REPO, tmp_path / "out")
    assert hub.count_sent(WEIGHTS) == before
    assert read_all(tmp_path / "out") == read_all(FAMILY)


@pytest.mark.parametrize("profile", [None, DEEP, SHALLOW])
@pytest.mark.parametrize("name", [WEIGHTS, MANIFEST, "tokenizer.json", "LICENSE"])
def test_what_huggingface_hub_has_and_is_broken_is_fetched_anew(
    name: str, profile: str | None, hub: Hub, tmp_path: Path
) -> None:
    """As after a power cut: as large as it should be, and in a cache that is not ours to mend."""
    from huggingface_hub import hf_hub_download

    hub.put(REPO, read_all(FAMILY) | {"LICENSE": b"terms " * 100})
    cached = Path(hf_hub_download(REPO, name))
    broken = bytearray(cached.read_bytes())
    broken[find_weight() if name == WEIGHTS else 100] ^= 0x40
    cached.resolve().write_bytes(broken)
    hub.sent.clear()
    out = pull_family(REPO, tmp_path / "out", profile=profile).path
    if profile is None:
        assert read_all(out) == read_all(FAMILY) | {"LICENSE": b"terms " * 100}
    else:
        assert (out / "LICENSE").read_bytes() == b"terms " * 100
    assert [begin for begin, _ in hub.sent[name]] == [0], "once"
    assert cached.read_bytes() == broken
    hub.sent.clear()
    pull_family(REPO, tmp_path / "again", profile=profile)
    assert name not in hub.sent, "what was fetched is kept"


def test_a_hub_that_calls_files_in_a_way_of_its_own(hub: Hub, tmp_path: Path) -> None:
    """What is not in Git LFS has the name that the hub gives it."""

    def rename(handler: Any) -> bool:
        if "/tree/" not in handler.path:
            return False
        files = hub.head(REPO)
        entries = [describe_file(name, content) | {"oid": "a" * 40} for name, content in files.items()]
        handler.answer_json(entries)
        return True

    hub.faults.append(rename)
    pull_family(REPO, tmp_path / "out")
    assert read_all(tmp_path / "out") == read_all(FAMILY)


def test_nothing_that_could_be_code_comes(hub: Hub, tmp_path: Path) -> None:
    words = {CARD: b"# a card", "LICENSE": b"terms", f"{MEASUREMENTS}/host.json": b"{}"}
    code = {"modeling.py": b"raise SystemExit", "pytorch_model.bin": b"\x80\x04", "report.html": b"<script>",
            f"{MEASUREMENTS}/run.sh": b"#!", "onnx/model.onnx": b"x", ".git/hooks": b"x"}  # fmt: skip
    huge = {"NOTICE": bytes(5 << 20), f"{MEASUREMENTS}/huge.json": bytes(9 << 20)}
    hub.put(REPO, read_all(FAMILY) | words | code | huge)
    pull_family(REPO, tmp_path / "out")
    assert read_all(tmp_path / "out") == read_all(FAMILY) | words
    pull_family(REPO, tmp_path / "pack", profile=SHALLOW)
    assert {"LICENSE"} == set(words) & set(read_all(tmp_path / "pack"))
    assert hub.sent.keys() & (code.keys() | huge.keys()) == set()


def test_a_revision(hub: Hub, tmp_path: Path) -> None:
    first = hub.repos[REPO].branches["main"]
    hub.repos[REPO].commit("main", {})
    hub.repos[REPO].branches["v1"] = first
    for number, revision in enumerate((first, "v1")):
        assert pull_family(REPO, tmp_path / str(number), revision=revision).profiles
    with pytest.raises(HubError, match=r"has no family\.json"):
        pull_family(REPO, tmp_path / "main")
    with pytest.raises(HubError, match="has no such revision; name a branch"):
        pull_family(REPO, tmp_path / "other", revision="v9")


def test_where_it_goes(run: Run, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for given, out in {(): "family", (SHALLOW,): f"family-{SHALLOW}", ("here",): "here", (SHALLOW, "b"): "b"}.items():
        assert run("pull", REPO, *given, "--json").json["family"] == out
        assert verify_family(tmp_path / out).passed


def test_what_is_there_stays(run: Run, hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pull_family(REPO, out, profile=SHALLOW)
    (out / "LICENSE").write_text("mine")
    (out / CARD).write_text("# mine")
    run("pull", REPO, out).complains("holds another family; pass --overwrite")
    assert run("pull", REPO, out, "--overwrite").code == 0
    assert read_all(out) == read_all(FAMILY) | {"LICENSE": b"mine", CARD: b"# mine"}
    (out / "thesis.tex").touch()
    run("pull", REPO, out, "--overwrite").complains("thesis.tex")
    before = len(hub.log)
    run("pull", REPO, out).complains("thesis.tex")
    assert len(hub.log) == before, "that is said before anything is asked"


POINT = "L01-D012"


@pytest.mark.parametrize("layout", ["all", "infinity", "lean", "matexport"])
def test_as_what_pack_would_make(layout: str, run: Run, hub: Hub, tmp_path: Path) -> None:
    """To the byte, of what is fetched for the profile alone."""
    hub.put(REPO, read_all(FAMILY) | {"LICENSE": b"terms"})
    result = run("pull", REPO, SHALLOW, tmp_path / "out", "--for", layout, "--json").json
    assert (result["profile"], result["for"]) == (SHALLOW, layout)
    pack_profile(FAMILY, SHALLOW, tmp_path / "pack" / "out", layout=layout)
    assert read_all(tmp_path / "out") == read_all(tmp_path / "pack" / "out") | {"LICENSE": b"terms"}
    assert ("README.md" in read_all(tmp_path / "out")) == (layout != "matexport")
    prefix = load_family(FAMILY).profile_facts(SHALLOW).weights_prefix_bytes
    assert hub.sent[WEIGHTS] == [(0, prefix)]
    assert verify_family(tmp_path / "out").passed


def test_as_a_single_file(run: Run, hub: Hub, tmp_path: Path) -> None:
    result = run("pull", REPO, SHALLOW, tmp_path / "out", "--for", "single-file")
    pack_single_file(FAMILY, SHALLOW, tmp_path / "pack" / "out")
    found = read_all(tmp_path / "out")
    assert found == read_all(tmp_path / "pack" / "out")
    total = sum(map(len, found.values())) / 1e6
    assert result.out == f"{tmp_path / 'out'}: {SHALLOW}, {len(found)} files, {total:.1f} MB, verified\n"
    run("pull", REPO, SHALLOW, tmp_path / "out", "--for", "single-file").complains("it is no family of matexport")


@pytest.mark.parametrize("layout", [None, "all"])
def test_a_point_in_all_its_precisions(
    layout: str | None, run: Run, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("pull", REPO, POINT, *(("--for", layout) if layout else ())).code == 0
    pack_profile(FAMILY, POINT, tmp_path / "pack" / f"family-{POINT}", layout=layout or "matexport")
    assert read_all(tmp_path / f"family-{POINT}") == read_all(tmp_path / "pack" / f"family-{POINT}")
    assert [profile.name for profile in load_family(f"family-{POINT}").profiles] == [SHALLOW, f"{POINT}-int8"]
    facts = load_family(FAMILY).facts.profiles
    for name in (SHALLOW, f"{POINT}-int8"):
        assert hub.sent[facts[name].weights] == [(0, facts[name].weights_prefix_bytes)]
    assert run("pull", REPO, f"./{POINT}").code == 0, "a folder that is called so"
    assert len(load_family(POINT).profiles) == 6


def test_what_cannot_be_pulled_so(run: Run, hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = {
        (SHALLOW, out, "--for", "torch"): ("--for torch is made of the parent's weights, which are not in a family",),
        (out, "--for", "all"): ("--for all was given, and makes a folder of one profile or point",),
        (SHALLOW, out, "--for", "single-file", "--overwrite"): ("--overwrite replaces a pack",),
    }
    for given, words in asked.items():
        run("pull", REPO, *given).complains(*words)
    assert hub.log == [], "which is said before anything is asked"
    later = {
        (POINT, out, "--for", "lean"): (f"one graph takes one profile: name one of {SHALLOW}, {POINT}-int8",),
        ("L07-D012", out): ("'L07-D012' was asked", "has no such profile or point"),
    }
    for given, words in later.items():
        run("pull", REPO, *given).complains(*words)
    hub.put(REPO, read_all(GOLDEN / "schema2"))
    run("pull", REPO, "L01-D020-int8-int8", out, "--for", "all").complains("gives int8 codes", "use --for matexport")
    assert hub.sent.keys() == {MANIFEST}
    assert not out.exists()


def test_a_prefix_has_a_digest_of_its_own(run: Run, hub: Hub, tmp_path: Path) -> None:
    """What came otherwise is fetched anew, and one bit that the parent's vectors would not show is seen."""
    from forge import describe_prefixes, write_manifest
    from msgspec.structs import replace

    family = Path(shutil.copytree(FAMILY, tmp_path / "family"))
    facts = load_family(family).facts
    write_manifest(family, replace(facts, profiles=describe_prefixes(family, facts.profiles)))
    hub.put(REPO, read_all(family))
    at, size = find_weight() - 3, load_family(FAMILY).profile_facts(SHALLOW).weights_prefix_bytes  # its lowest byte
    broken = [spoil(WEIGHTS, at)]
    hub.faults.append(lambda handler: handler.path.endswith(WEIGHTS) and bool(broken) and broken.pop()(handler))
    pull_family(REPO, tmp_path / "out", profile=SHALLOW)
    pack_profile(family, SHALLOW, tmp_path / "pack", layout="matexport")
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (tmp_path / "pack" / WEIGHTS).read_bytes()
    assert hub.sent[WEIGHTS] == [(0, size)] * 2
    assert load_family(tmp_path / "out").profile_facts(SHALLOW).weights_prefix_sha256 is not None
    hub.faults[:] = [spoil(WEIGHTS, at)]
    shutil.rmtree(tmp_path / "cache")
    run("pull", REPO, SHALLOW, tmp_path / "other").complains(f"{WEIGHTS} of {REPO} came twice with another sha256")
    assert not (tmp_path / "other").exists()


def test_a_family_that_huggingface_hub_fetched_verifies(hub: Hub, tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download(REPO, local_dir=tmp_path / "out")
    assert list_additions(load_family(tmp_path / "out")) == [".cache", ".gitattributes"]
    assert verify_family(tmp_path / "out").passed


# --- a transfer that breaks


def break_off(keep: Callable[[int], int], times: int, name: str = WEIGHTS) -> Callable[[Any], bool]:
    """The first requests for a file end after a part of what was asked."""
    left = [times]

    def fault(handler: Any) -> bool:
        if handler.command != "GET" or not handler.path.endswith(name) or not left[0]:
            return False
        left[0] -= 1
        content = handler.hub.head(REPO)[name]
        begin, end = map(int, handler.headers["Range"].removeprefix("bytes=").split("-"))
        part = content[begin : begin + keep(end + 1 - begin)]
        handler.hub.sent.setdefault(name, []).append((begin, len(part)))
        ranged = f"bytes {begin}-{end}/{len(content)}"
        handler.answer(206, part, Content_Range=ranged, Content_Length=str(end + 1 - begin))
        handler.close_connection = True
        return True

    return fault


def test_a_transfer_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    hub.faults.append(break_off(lambda count: count // 2, 4))
    pull_family(REPO, tmp_path / "out")
    parts = hub.sent[WEIGHTS]
    assert len(parts) == 5
    assert [begin for begin, _ in parts] == [sum(count for _, count in parts[:at]) for at in range(5)]
    assert hub.count_sent(WEIGHTS) == len(hub.head(REPO)[WEIGHTS])
    assert read_all(tmp_path / "out") == read_all(FAMILY)


def test_the_next_pull_goes_on_where_one_gave_up(run: Run, hub: Hub, tmp_path: Path) -> None:
    cut = break_off(lambda count: count // 2, 1)
    hub.faults += [cut, break_off(lambda _count: 0, 100)]
    out = tmp_path / "out"
    half = len(hub.head(REPO)[WEIGHTS]) // 2
    run("pull", REPO, out).complains(f"{WEIGHTS} of {REPO} was cut off after {half} of {2 * half} bytes", "goes on")
    assert not out.exists()
    hub.faults.clear()
    hub.sent.clear()
    assert run("pull", REPO, out).code == 0
    assert hub.sent[WEIGHTS] == [(half, half)]
    assert read_all(out) == read_all(FAMILY)


def test_more_than_was_asked_is_not_taken(hub: Hub, tmp_path: Path) -> None:
    """An endpoint that never ends fills no disk."""

    def flood(handler: Any) -> bool:
        if not handler.path.endswith(WEIGHTS):
            return False
        handler.send_response(200)
        handler.end_headers()
        handler.close_connection = True
        content = handler.hub.head(REPO)[WEIGHTS]
        try:
            for _ in range(1000):
                handler.wfile.write(content)
        except OSError:
            stopped.append(True)
        return True

    stopped: list[bool] = []
    hub.faults.append(flood)
    pull_family(REPO, tmp_path / "out")
    (cached,) = (path for path in (tmp_path / "cache").rglob("*") if path.stat().st_size == 133120)
    assert cached.read_bytes() == hub.head(REPO)[WEIGHTS]
    assert read_all(tmp_path / "out") == read_all(FAMILY)


# --- what is not what it should be


def spoil(name: str, at: int) -> Callable[[Any], bool]:
    """What goes over the wire has one bit otherwise than what is on the hub."""

    def fault(handler: Any) -> bool:
        if handler.command != "GET" or not handler.path.endswith(name):
            return False
        content = bytearray(handler.hub.head(REPO)[name])
        content[at] ^= 0x40
        send_file(handler, name, bytes(content), handler.hub.repos[REPO].branches["main"])
        return True

    return fault


@pytest.mark.parametrize("name", [WEIGHTS, GRAPH, "tokenizer.json", "reference.safetensors"])
@pytest.mark.parametrize("profile", [None, DEEP, SHALLOW])
def test_a_bit_that_changed_on_the_way(name: str, profile: str | None, run: Run, hub: Hub, tmp_path: Path) -> None:
    if profile == DEEP and name == GRAPH:
        pytest.skip("not its graph")
    out = tmp_path / "out"
    at = find_weight() if name == WEIGHTS else 100
    hub.faults.append(spoil(name, at))
    result = run("pull", REPO, *filter(None, (profile,)), out)
    if (name, profile) == (WEIGHTS, SHALLOW):  # no digest covers a prefix: the parent's vectors do
        assert result.code == 1
        assert "is off its floor on this host" in result.err
    else:
        result.complains(f"{name} of {REPO} came twice with another sha256 than it should have", "do it again")
    assert not out.exists()
    hub.faults.clear()
    assert run("pull", REPO, *filter(None, (profile,)), out).code == 0, "it was not kept"


def find_weight() -> int:
    """The highest byte of a number that every text's vector depends on: of the second token's position."""
    content = (FAMILY / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    tensor = json.loads(content[8 : 8 + length])["embeddings.position_embeddings.weight"]
    return int(8 + length + tensor["data_offsets"][0] + 4 * tensor["shape"][1] + 3)


def change(name: str, content: bytes | None) -> Callable[[dict[str, bytes]], object]:
    def edit(files: dict[str, bytes]) -> None:
        files.pop(name) if content is None else files.update({name: content})

    return edit


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (change(WEIGHTS, None), f"has no {WEIGHTS} at"),
        (change(GRAPH, b"x"), f"{GRAPH} of {REPO} has 1 bytes"),
        (change(WEIGHTS, bytes(133120)), f"{WEIGHTS} of {REPO} has another sha256"),
        (change(MANIFEST, None), "has no family.json at"),
        (change(MANIFEST, b"{"), f"{REPO}: family.json is not JSON"),
        (change(MANIFEST, b" " * ((16 << 20) + 1)), "at most 16777216 are read"),
    ],
    ids=["no weights", "short graph", "other weights", "no manifest", "no JSON", "large manifest"],
)
def test_a_repository_that_holds_no_whole_family(
    edit: Callable[[dict[str, bytes]], object], says: str, run: Run, hub: Hub, tmp_path: Path
) -> None:
    files = read_all(FAMILY)
    edit(files)
    hub.put(REPO, files)
    run("pull", REPO, tmp_path / "out").complains(says)
    assert not (tmp_path / "out").exists()
    assert hub.sent.keys() <= {MANIFEST}, "which is said before anything else is fetched"


@pytest.mark.parametrize("name", ["../evil.onnx", "/etc/passwd", "a/b.onnx", "model.py", ".bashrc"])
def test_a_manifest_that_lists_what_it_must_not(name: str, hub: Hub, tmp_path: Path) -> None:
    family = Path(shutil.copytree(FAMILY, tmp_path / "family"))
    edit_manifest(family, lambda facts: facts["files"].update({name: facts["files"][GRAPH]}))
    hub.put(REPO, read_all(family))
    with pytest.raises(FamilyError, match=rf"{REPO}: family.json lists the file"):
        pull_family(REPO, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"family", "cache"}


def test_a_family_off_its_floor(run: Run, hub: Hub, tmp_path: Path) -> None:
    """Every digest agrees, and the parent says otherwise."""
    from forge import reseal
    from safetensors.numpy import load_file, save_file

    family = Path(shutil.copytree(FAMILY, tmp_path / "family"))
    stored = load_file(family / "reference.safetensors")
    stored["L01-D012"] = stored["L01-D012"][:, ::-1].copy()
    save_file(stored, family / "reference.safetensors")
    reseal(family)
    hub.put(REPO, read_all(family))
    for given in ((), (SHALLOW,)):
        result = run("pull", REPO, *given, tmp_path / "out")
        assert result.code == 1
        assert "L01-D012-fp32 is off its floor on this host" in result.err
        assert "nothing was written" in result.err
        assert not (tmp_path / "out").exists()
    assert pull_family(REPO, tmp_path / "out", profile=DEEP).profiles


def test_no_room(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=200_000))
    with pytest.raises(DestinationError, match="200000 free"):
        pull_family(REPO, tmp_path / "out")
    assert hub.sent.keys() == {MANIFEST}


def test_two_families(hub: Hub, tmp_path: Path) -> None:
    hub.put(REPO, {"towers.json": b"{}"})
    with pytest.raises(HubError, match="holds two families of one model"):
        pull_family(REPO, tmp_path / "out")


# --- what the hub says


def answer(status: int, code: str = "", message: str = "") -> Callable[[Any], bool]:
    def fault(handler: Any) -> bool:
        handler.fail(status, code, message)
        return True

    return fault


def test_tokens(run: Run, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos[REPO].private = True
    run("pull", REPO, tmp_path / "out").complains(
        f"there is no {REPO} on {hub.endpoint}, or it is private, and a token is missing"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    run("pull", REPO, tmp_path / "out").complains("or it is private, and a token was not accepted")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert run("pull", REPO, tmp_path / "out").code == 0


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (answer(401, message="Invalid credentials in Authorization header"), "it is private, and a token is missing"),
        (answer(403, message="no"), "does not allow it (403)"),
        (answer(403, "GatedRepo"), f"{REPO} is gated; ask for access at"),
        (answer(404, "RepoNotFound"), f"there is no {REPO} on"),
        (answer(404, "RevisionNotFound"), "has no such revision"),
        (answer(500), "answered 500"),
        (answer(503, message="down\n\x1b[2Jfor\nmaintenance"), "answered 503"),
    ],
    ids=["401", "403", "gated", "404", "revision", "500", "503"],
)  # fmt: skip
def test_what_a_hub_refuses(fault: Callable[[Any], bool], says: str, run: Run, hub: Hub, tmp_path: Path) -> None:
    hub.faults.append(fault)
    run("pull", REPO, tmp_path / "out").complains(says)


@pytest.mark.parametrize(
    "document", [b"", b"{", b"[]", b"{}", b'{"id": 1, "sha": "../.."}', b'{"sha": null, "id": "a"}']
)
def test_an_answer_that_makes_no_sense(document: bytes, run: Run, hub: Hub, tmp_path: Path) -> None:
    hub.faults.append(lambda handler: handler.answer(200, document, Content_Type="application/json") or True)
    run("pull", REPO, tmp_path / "out").complains("answered what is not understood")


@pytest.mark.parametrize(
    "entry",
    [
        {"type": "file", "path": "a", "size": -1, "oid": "0" * 40},
        {"type": "file", "path": "a", "size": "1", "oid": "0" * 40},
        {"type": "file", "path": "a", "size": 1, "oid": "../../../etc/passwd"},
        {"type": "file", "path": "a", "size": 1},
        {"type": "file", "path": "a", "size": 1, "oid": "0" * 40, "lfs": {"oid": "..", "size": 1, "pointerSize": 1}},
        7,
    ],
)
def test_a_listing_that_makes_no_sense(entry: object, run: Run, hub: Hub, tmp_path: Path) -> None:
    hub.faults.append(lambda handler: "/tree/" in handler.path and (handler.answer_json([entry]) or True))
    run("pull", REPO, tmp_path / "out").complains("answered what is not understood")


def test_too_many_files(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matexport.hub.listing.MAX_ENTRIES", 5)
    with pytest.raises(HubError, match="more than 5 files in one folder"):
        pull_family(REPO, tmp_path / "out")


def test_a_part_that_was_not_asked(run: Run, hub: Hub, tmp_path: Path) -> None:
    def shift(handler: Any) -> bool:
        if not handler.path.endswith(WEIGHTS):
            return False
        content = handler.hub.head(REPO)[WEIGHTS]
        handler.answer(206, content[1:], Content_Range=f"bytes 1-{len(content) - 1}/{len(content)}")
        return True

    hub.faults.append(shift)
    run("pull", REPO, tmp_path / "out").complains("bytes 0-133119/133120 were asked, bytes 1-133119/133120 came")


def test_offline(run: Run, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    run("pull", REPO, tmp_path / "out").complains("HF_HUB_OFFLINE is set, so", "is not asked; unset it")
    assert hub.log == []


def test_nobody_there(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # and not listening
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        use_endpoint(endpoint, tmp_path / "cache", monkeypatch)
        run("pull", REPO, tmp_path / "out").complains(f"{endpoint} cannot be reached")


@pytest.mark.parametrize("where", ["/api/models/", "/tree/", WEIGHTS])
def test_an_endpoint_that_says_nothing(
    where: str, run: Run, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of huggingface_hub's own requests would wait for ever."""
    import threading

    over = threading.Event()
    hub.faults.append(lambda handler: where in handler.path and (over.wait(60) or True))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    try:
        run("pull", REPO, tmp_path / "out").complains(f"{hub.endpoint} did not answer in time")
    finally:
        over.set()


def test_a_name_that_is_none(run: Run, tmp_path: Path) -> None:
    run("pull", "a/b/c", tmp_path / "out").complains("'a/b/c' is no name of a repository, such as someone/")
    run("pull", "../b", tmp_path / "out").complains("is no name of a repository")


def test_a_profile_that_is_none(run: Run, tmp_path: Path) -> None:
    run("pull", REPO, "L09-D012-fp32", tmp_path / "out").complains("'L09-D012-fp32' was asked", SHALLOW, REPO)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import importlib.util

    monkeypatch.setattr(remote_module, "version", lambda _name: "0.36.2")
    with pytest.raises(MissingExtraError, match=r"needs huggingface_hub 1\.0 or later; 0\.36\.2 is installed"):
        pull_family(REPO, tmp_path / "out")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r"install the \[hub\] extra"):
        pull_family(REPO, tmp_path / "out")
