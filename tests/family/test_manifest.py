"""A family is what its manifest says, byte for byte, or it is refused by name before any session exists."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forge import edit_manifest, flip_byte, reseal
from properties import given, settings, st

from matexport import Embedder, verify_family
from matexport.errors import FamilyError, Problem, ProblemKind
from matexport.family.integrity import check_family, check_profile, describe_files
from matexport.family.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    MEASUREMENTS,
    SCHEMA,
    load_family,
    write_manifest,
)
from matexport.io.files import hash_file
from matexport.spec.facts import POOLING_MASK

pytestmark = pytest.mark.usefixtures("no_session")

NAME = "L01-D008-fp32"
GRAPH = "L01-D008.fp32.onnx"
WEIGHTS = "weights.fp32.safetensors"
DIGEST = "0" * 64


def refuse(family: Path, *problems: str) -> None:
    """Verification stops at the files, and says exactly these things about them: of what kind, and of which file."""
    with pytest.raises(FamilyError) as refusal:
        verify_family(family)
    assert tuple(map(str, refusal.value.problems)) == problems
    for problem in refusal.value.problems:
        assert str(problem).startswith(f"{problem.kind}: {problem.file}")
    assert str(family) in str(refusal.value)


def refuse_manifest(family: Path, *words: str) -> None:
    """The manifest itself is refused, so that nothing can be done with the family at all."""
    for use in (load_family, verify_family, lambda path: Embedder(path, NAME)):
        with pytest.raises(FamilyError) as refusal:
            use(family)
        assert str(family) in str(refusal.value)
        assert refusal.value.problems == (Problem(ProblemKind.MANIFEST, MANIFEST, str(refusal.value)),)
        for word in words:
            assert word in str(refusal.value)


def test_a_sound_family_is_let_through(family: Path) -> None:
    check_family(load_family(family))
    check_profile(load_family(family), NAME)


def test_the_manifest_lists_every_file(family: Path) -> None:
    facts = load_family(family).facts
    assert {path.name for path in family.iterdir()} == {*facts.files, MANIFEST, MEASUREMENTS}
    assert describe_files(family) == facts.files


def test_writing_what_was_read_gives_the_same_bytes(family: Path) -> None:
    before = (family / MANIFEST).read_bytes()
    write_manifest(family, load_family(family).facts)
    assert (family / MANIFEST).read_bytes() == before


def test_profiles_are_in_order(family: Path) -> None:
    def reverse(data: dict[str, Any]) -> None:
        data["profiles"] = dict(reversed(data["profiles"].items()))

    edit_manifest(family, reverse)
    profiles = load_family(family).profiles
    assert [(profile.point.layers, profile.point.dim) for profile in profiles] == [
        (1, 8), (1, 32), (2, 8), (2, 32), (3, 8), (3, 32),
    ]  # fmt: skip


def test_an_unknown_profile_lists_the_known_ones(family: Path) -> None:
    with pytest.raises(FamilyError, match=r"profile 'L09-D008-fp32' was asked; .* has L01-D008-fp32, L01-D032-fp32, "):
        load_family(family).profile_facts("L09-D008-fp32")


def test_one_flipped_byte_in_any_file(family: Path) -> None:
    loaded = load_family(family)
    for name, facts in loaded.facts.files.items():
        for position in (0, facts.bytes // 2, facts.bytes - 1):
            flip_byte(family / name, position)
            refuse(family, f"changed: {name} has another sha256 than the manifest says")
            if name in loaded.profile_files(NAME):
                with pytest.raises(FamilyError, match=f"changed: {name}"):
                    Embedder(family, NAME)
            flip_byte(family / name, position)
    check_family(loaded)


def test_any_missing_file(family: Path) -> None:
    for name in load_family(family).facts.files:
        kept = (family / name).rename(family.parent / "kept")
        refuse(family, f"missing: {name}")
        kept.rename(family / name)


@pytest.mark.parametrize("change", [-1, -1000, 1], ids=["a byte less", "truncated", "a byte more"])
def test_weights_of_another_length(change: int, family: Path) -> None:
    size = (family / WEIGHTS).stat().st_size
    os.truncate(family / WEIGHTS, size + change)
    says = f"the manifest says {size}" if change < 0 else f"more than the {size} that are allowed"
    problem = f"changed: {WEIGHTS} has {size + change} bytes, {says}"
    refuse(family, problem)
    with pytest.raises(FamilyError, match=problem):
        Embedder(family, NAME)


def test_all_problems_are_named_at_once(family: Path) -> None:
    (family / "config.json").unlink()
    flip_byte(family / WEIGHTS)
    (family / "notes.txt").touch()
    refuse(
        family,
        f"extra: notes.txt is not listed in {MANIFEST}",
        "missing: config.json",
        f"changed: {WEIGHTS} has another sha256 than the manifest says",
    )


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "weights.fp32.safetensors.bak", "modeling_bert.py"])
def test_an_extra_file(name: str, family: Path) -> None:
    (family / name).touch()
    refuse(family, f"extra: {name} is not listed in {MANIFEST}")


def test_an_extra_directory(family: Path) -> None:
    (family / "sub").mkdir()
    refuse(family, f"extra: sub is not listed in {MANIFEST}")


def test_measurements_are_no_extra_files(family: Path) -> None:
    (family / MEASUREMENTS / "other-host.json").write_text("{}")
    check_family(load_family(family))
    shutil.rmtree(family / MEASUREMENTS)
    check_family(load_family(family))


def test_what_is_no_measurement(family: Path) -> None:
    (family / MEASUREMENTS / "run.sh").touch()
    refuse(family, f"extra: {MEASUREMENTS}/run.sh is not listed in {MANIFEST}")


def test_a_linked_measurement(family: Path) -> None:
    (family / MEASUREMENTS / "linked.json").symlink_to("/etc/hostname")
    refuse(family, f"extra: {MEASUREMENTS}/linked.json is not listed in {MANIFEST}")


@pytest.mark.parametrize("kind", ["link", "dangling link", "file"])
def test_measurements_that_are_no_directory(kind: str, family: Path) -> None:
    outside = (family / MEASUREMENTS).rename(family.parent / "outside")
    if kind == "file":
        (family / MEASUREMENTS).touch()
    else:
        (family / MEASUREMENTS).symlink_to(outside if kind == "link" else "nowhere")
    refuse(family, f"extra: {MEASUREMENTS} is not listed in {MANIFEST}")


def test_a_directory_that_is_called_like_a_measurement(family: Path) -> None:
    (family / MEASUREMENTS / "host.json").mkdir()
    refuse(family, f"extra: {MEASUREMENTS}/host.json is not listed in {MANIFEST}")


@pytest.mark.parametrize("name", [GRAPH, WEIGHTS, "tokenizer.json", "config.json", "probes.jsonl"])
def test_a_link_out_of_the_folder(name: str, family: Path) -> None:
    """Even one to the same bytes: they may change after the check."""
    outside = (family / name).rename(family.parent / "outside")
    (family / name).symlink_to(outside)
    problem = f"refused: {name} is not a regular file (links are not followed)"
    refuse(family, problem)
    if name in load_family(family).profile_files(NAME):
        with pytest.raises(FamilyError, match=f"refused: {name}"):
            Embedder(family, NAME)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["directory", "pipe"])
def test_what_is_no_file(make: Callable[[Path], None], family: Path) -> None:
    (family / WEIGHTS).unlink()
    make(family / WEIGHTS)
    refuse(family, f"refused: {WEIGHTS} is not a regular file (links are not followed)")


def test_a_hard_link_is_a_file(family: Path) -> None:
    os.link(family / WEIGHTS, family.parent / "other-name")
    check_family(load_family(family))


def test_a_link_to_the_folder_is_the_users_own(family: Path) -> None:
    (family.parent / "link").symlink_to(family)
    check_family(load_family(family.parent / "link"))


def test_only_the_profiles_own_files_matter_to_it(family: Path) -> None:
    flip_byte(family / "L03-D032.fp32.onnx")
    (family / "extra").touch()
    loaded = load_family(family)
    check_profile(loaded, NAME)
    with pytest.raises(FamilyError, match=r"changed: L03-D032\.fp32\.onnx"):
        check_profile(loaded, "L03-D032-fp32")


def test_the_tokenizer_of_another_model(family: Path) -> None:
    tokenizer = json.loads((family / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["cat"], vocabulary["dog"] = vocabulary["dog"], vocabulary["cat"]
    (family / "tokenizer.json").write_text(json.dumps(tokenizer, separators=(",", ":")), encoding="utf-8")
    with pytest.raises(FamilyError, match=r"changed: tokenizer\.json"):
        verify_family(family)
    with pytest.raises(FamilyError, match=r"changed: tokenizer\.json"):
        Embedder(family, NAME)


def test_a_graph_that_points_elsewhere_though_the_digests_agree(family: Path) -> None:
    graph = (family / GRAPH).read_bytes()
    (family / GRAPH).write_bytes(graph.replace(WEIGHTS.encode(), b"../" + WEIGHTS[3:].encode()))
    reseal(family)
    with pytest.raises(FamilyError) as refusal:
        verify_family(family)
    (problem,) = refusal.value.problems
    assert str(problem).startswith(f"refused: {GRAPH}: tensor ")
    assert "points to '../ghts.fp32.safetensors'" in problem.text
    with pytest.raises(FamilyError, match="which is not a weights file of this family"):
        Embedder(family, NAME)


def test_weights_that_end_too_early_though_the_digests_agree(family: Path) -> None:
    os.truncate(family / WEIGHTS, load_family(family).profile_facts("L02-D008-fp32").weights_prefix_bytes)
    manifest = json.loads((family / MANIFEST).read_text(encoding="utf-8"))
    manifest["files"][WEIGHTS] = {
        "bytes": (family / WEIGHTS).stat().st_size,
        "sha256": hash_file(family / WEIGHTS),
    }
    (family / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    refuse_manifest(family, f"needs more of {WEIGHTS} than there is")
    for facts in manifest["profiles"].values():
        facts["weights_prefix_bytes"] = min(facts["weights_prefix_bytes"], manifest["files"][WEIGHTS]["bytes"])
    (family / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    check_profile(load_family(family), "L02-D008-fp32")
    with pytest.raises(FamilyError, match=r"refused: L03-D008\.fp32\.onnx: tensor '.*' ends at byte"):
        verify_family(family)


# A pack of it would be refused when it is written, and `show` says bytes that nobody needs to load.
@pytest.mark.parametrize("shift", [1, -1, None], ids=["a byte more", "a byte less", "inside the header"])
def test_a_prefix_that_ends_inside_a_tensor(shift: int | None, family: Path) -> None:
    prefix = 8 if shift is None else load_family(family).profile_facts(NAME).weights_prefix_bytes + shift
    edit_manifest(family, lambda data: data["profiles"][NAME].update(weights_prefix_bytes=prefix))
    words = f"{MANIFEST}: {prefix} bytes of {WEIGHTS} are no prefix of it that ends with a tensor"
    for check in (check_family, lambda loaded: check_profile(loaded, NAME)):
        with pytest.raises(FamilyError) as refusal:
            check(load_family(family))
        assert refusal.value.problems[0] == Problem(ProblemKind.MANIFEST, MANIFEST, words)
    check_profile(load_family(family), "L03-D032-fp32")


def test_a_digest_of_a_prefix_that_is_another_s(family: Path) -> None:
    """Whoever fetches the prefix alone would refuse what is right, or take what is wrong."""
    facts = load_family(family).facts.profiles
    shallow, deep = (facts[name].weights_prefix_sha256 for name in ("L01-D008-fp32", "L02-D008-fp32"))
    assert shallow != deep
    content = (family / WEIGHTS).read_bytes()
    for one in facts.values():
        assert one.weights_prefix_sha256 == hashlib.sha256(content[: one.weights_prefix_bytes]).hexdigest()
    check_family(load_family(family))
    edit_manifest(family, lambda data: data["profiles"]["L02-D008-fp32"].update(weights_prefix_sha256=shallow))
    said = f"the {facts['L02-D008-fp32'].weights_prefix_bytes} bytes of {WEIGHTS} that L02-D008-fp32 needs have another"
    with pytest.raises(FamilyError, match=said):
        check_family(load_family(family))
    edit_manifest(family, lambda data: data["profiles"]["L02-D008-fp32"].update(weights_prefix_sha256=None))
    check_family(load_family(family))


@pytest.mark.parametrize(
    "name",
    ["../evil", "/etc/passwd", "sub/file", "a\\b", "..", ".", "", ".hidden", "C:evil", "a\0b", "a\nb", "é", "a" * 129,
     MANIFEST],
    ids=repr,
)  # fmt: skip
def test_a_listed_name_that_is_no_bare_file_name(name: str, family: Path) -> None:
    edit_manifest(family, lambda data: data["files"].update({name: {"sha256": DIGEST, "bytes": 1}}))
    refuse_manifest(family, f"lists the file {name!r}; only bare file names inside the folder, or in ")


@pytest.mark.parametrize("key", ["graph", "weights"])
@pytest.mark.parametrize("name", ["../weights.fp32.safetensors", "/etc/passwd", "unlisted", MANIFEST])
def test_a_profile_that_uses_another_file(key: str, name: str, family: Path) -> None:
    edit_manifest(family, lambda data: data["profiles"][NAME].update({key: name}))
    refuse_manifest(family, f"{NAME} uses {name!r}, which is not among the listed files")


@pytest.mark.parametrize("schema", [SCHEMA + 1, 99, 0, -1, "1", None, [1], 1.5])
def test_a_schema_that_this_version_does_not_read(schema: object, family: Path) -> None:
    edit_manifest(family, lambda data: data.update(schema=schema))
    refuse_manifest(family, f"has schema {schema!r}; this matexport reads up to {SCHEMA}: upgrade matexport")


def test_a_later_schema_is_named_whatever_else_it_holds(family: Path) -> None:
    (family / MANIFEST).write_text(json.dumps({"schema": SCHEMA + 1, "everything": "else"}))
    refuse_manifest(family, f"has schema {SCHEMA + 1}")


@pytest.mark.parametrize(("key", "value"), [("layers", 2), ("layers", 0), ("dim", 7), ("dim", 9)])
def test_a_profile_name_that_disagrees_with_its_point(key: str, value: int, family: Path) -> None:
    edit_manifest(family, lambda data: data["profiles"][NAME].update({key: value}))
    facts = {"layers": 1, "dim": 8} | {key: value}
    refuse_manifest(family, f"the profile {NAME} says {facts['layers']} layers, dim {facts['dim']}")


@pytest.mark.parametrize(
    "name", ["small", "L1-D8-fp32", "L01-D008-fp99", "L01-D008", "../L01-D008-fp32", "L01-D008-fp32\n"]
)
def test_what_is_no_profile_name(name: str, family: Path) -> None:
    edit_manifest(family, lambda data: data["profiles"].update({name: data["profiles"].pop(NAME)}))
    refuse_manifest(family, f"{name!r} is not a profile name such as L02-D064-fp32")


# int() would read them as L01-D008-fp32.
@pytest.mark.parametrize("name", ["L001-D008-fp32", "L01-D0008-fp32", "L٠١-D008-fp32"])
def test_a_profile_name_that_is_spelt_otherwise(name: str, family: Path) -> None:
    edit_manifest(family, lambda data: data["profiles"].update({name: data["profiles"].pop(NAME)}))
    refuse_manifest(family, f"the profile {name!r} is spelt L01-D008-fp32")


@pytest.mark.parametrize("name", ["L001-D016-fp32", "L01-D0016-fp32"])
def test_a_refused_profile_that_is_spelt_otherwise(name: str, family: Path) -> None:
    edit_manifest(family, lambda data: data["refused"].update({"L01-D016-fp32": "off its floor"}))
    assert load_family(family).facts.refused
    edit_manifest(family, lambda data: data["refused"].update({name: data["refused"].pop("L01-D016-fp32")}))
    refuse_manifest(family, f"the profile {name!r} is spelt L01-D016-fp32")


def leave_out(**unpooled: int) -> Callable[[dict[str, Any]], None]:
    """A parent with the prompt ``query``, of which so many tokens are not pooled."""

    def edit(data: dict[str, Any]) -> None:
        text = data["text"]
        text.update(inputs=[*text["inputs"], POOLING_MASK], prompts={"query": "a cat: "}, unpooled=unpooled)

    return edit


def test_tokens_that_are_not_pooled(family: Path) -> None:
    edit_manifest(family, leave_out(query=4))
    assert load_family(family).facts.text.unpooled == {"query": 4}


def drop(key: str, *path: str) -> Callable[[dict[str, Any]], object]:
    def edit(data: dict[str, Any]) -> None:
        for step in path:
            data = data[step]
        del data[key]

    return edit


EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "unknown key": (lambda data: data.update(extra=1), "unknown key 'extra'; known here: schema, parent"),
    "unknown key inside": (lambda data: data["text"].update(max_token=1), "unknown key 'text.max_token'"),
    "unknown key of a file": (lambda data: data["files"][GRAPH].update(md5="x"), f"unknown key 'files.{GRAPH}.md5'"),
    "missing key": (drop("readout"), "missing required field `readout`"),
    "missing key inside": (drop("pad_token_id", "text"), "missing required field `pad_token_id`"),
    "text for a number": (lambda data: data["text"].update(max_tokens="48"), "$.text.max_tokens"),
    "number for a list": (lambda data: data["text"].update(inputs=1), "$.text.inputs"),
    "list for a table": (lambda data: data.update(files=[]), "$.files"),
    "unknown pooling": (lambda data: data["readout"].update(pooling=["median"]), "readout.pooling[0]"),
    "unknown padding": (lambda data: data["text"].update(padding_side="both"), "text.padding_side"),
    "unknown task": (
        lambda data: data["text"].update(tasks={"passage": {}}),
        "the task 'passage' is none of query, document",
    ),
    "fewer tokens than none that are not pooled": (
        leave_out(query=-1),
        "-1 tokens of the prompt 'query' are not pooled, which cannot be",
    ),
    "more tokens than there are that are not pooled": (leave_out(query=1 << 31), f"{1 << 31} tokens of the prompt"),
    "tokens of an unknown prompt that are not pooled": (
        leave_out(passage=4),
        "the prompt 'passage' are not pooled, which is not among the prompts",
    ),
    "no profile": (lambda data: data.update(profiles={}), "lists no profile"),
    "short digest": (lambda data: data["files"][GRAPH].update(sha256="00"), f"{GRAPH} has no valid sha256"),
    "digest in capitals": (lambda data: data["files"][GRAPH].update(sha256="A" * 64), f"{GRAPH} has no valid sha256"),
    "negative size": (lambda data: data["files"][GRAPH].update(bytes=-1), f"{GRAPH} has no valid sha256 and size"),
    "no tokenizer": (drop("tokenizer.json", "files"), "does not list tokenizer.json"),
    "no probes": (drop("probes.jsonl", "files"), "does not list probes.jsonl"),
    "no reference": (drop("reference.safetensors", "files"), "does not list reference.safetensors"),
    "no tolerance": (lambda data: data.update(tolerances={}), "gives no tolerance for fp32"),
    "long prefix": (
        lambda data: data["profiles"][NAME].update(weights_prefix_bytes=10**12),
        f"needs more of {WEIGHTS}",
    ),
    "short digest of a prefix": (
        lambda data: data["profiles"][NAME].update(weights_prefix_sha256="00"),
        f"{NAME} has no valid sha256 of what it needs of {WEIGHTS}",
    ),
    "two weights files of a precision": (
        lambda data: data["profiles"][NAME].update(weights="config.json", weights_prefix_bytes=0),
        f"the profiles in fp32 read config.json and {WEIGHTS}; they share one file",
    ),
    "negative prefix": (
        lambda data: data["profiles"][NAME].update(weights_prefix_bytes=-1),
        f"{NAME} needs -1 bytes of {WEIGHTS}, which cannot be",
    ),
}


@pytest.mark.parametrize("edit", EDITS, ids=str)
def test_a_manifest_that_cannot_be(edit: str, family: Path) -> None:
    change, words = EDITS[edit]
    edit_manifest(family, change)
    refuse_manifest(family, words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"1" * 5000, "is not JSON"),
        (b"[]", "has schema None"),
        (b"null", "has schema None"),
        (b'"schema"', "has schema None"),
        (b"{}", "has schema None"),
        (b'{"schema": 1}', "missing required field"),
        (b'{"schema": true}', "has schema True"),
    ],
    ids=["empty", "cut off", "binary", "deep", "long", "list", "null", "text", "object", "bare schema", "true"],
)
def test_what_is_no_manifest(content: bytes, words: str, family: Path) -> None:
    (family / MANIFEST).write_bytes(content)
    refuse_manifest(family, words)


# Python takes the last of them, another reader the first: what was checked is then not what is used.
@pytest.mark.parametrize(
    ("name", "value"),
    [("schema", SCHEMA), (GRAPH, {"sha256": DIGEST, "bytes": 1}), ("max_tokens", 1), ("max_tokens", 48)],
    ids=["a fact", "a file", "a fact inside", "the same fact"],
)
def test_a_name_that_occurs_twice(name: str, value: object, family: Path) -> None:
    text = (family / MANIFEST).read_text(encoding="utf-8")
    assert text.count(f'"{name}": ') == 1
    (family / MANIFEST).write_text(text.replace(f'"{name}": ', f'"{name}": {json.dumps(value)}, "{name}": '))
    refuse_manifest(family, f"the name {name!r} occurs twice")


def test_a_name_that_occurs_twice_in_other_letters(family: Path) -> None:
    text = (family / MANIFEST).read_text(encoding="utf-8")
    (family / MANIFEST).write_text(text.replace('"schema": ', f'"\\u0073chema": {SCHEMA}, "schema": '))
    refuse_manifest(family, "the name 'schema' occurs twice")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_what_is_no_number(number: str, family: Path) -> None:
    edit_manifest(family, lambda data: data["tolerances"]["fp32"].update(max_abs="here"))
    text = (family / MANIFEST).read_text(encoding="utf-8")
    (family / MANIFEST).write_text(text.replace('"here"', number))
    refuse_manifest(family, f"{number} is no number")


def test_a_huge_manifest_is_not_read(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.truncate(family / MANIFEST, MAX_MANIFEST_BYTES + 1)
    monkeypatch.setattr(Path, "read_text", lambda *_args, **_options: pytest.fail("was read"))
    refuse_manifest(family, f"{MANIFEST} has {MAX_MANIFEST_BYTES + 1} bytes, more than the {MAX_MANIFEST_BYTES}")


def test_a_linked_manifest(family: Path) -> None:
    (family / MANIFEST).symlink_to((family / MANIFEST).rename(family.parent / "outside.json"))
    refuse_manifest(family, f"refused: {MANIFEST} is not a regular file")


def test_no_manifest(family: Path) -> None:
    (family / MANIFEST).unlink()
    refuse_manifest(family, f"has no {MANIFEST}: it is not a family or pack of matexport")


@pytest.mark.parametrize("name", ["absent", "file"])
def test_no_directory(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refuse_manifest(tmp_path / name, "is not a directory; a family is the folder that `matexport export` writes")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=200)
@given(data=st.data())
def test_no_value_anywhere_raises_anything_else(
    data: st.DataObject, exported: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One value of the manifest is replaced; the family is refused in words, or still whole."""
    manifest = json.loads((exported / MANIFEST).read_text(encoding="utf-8"))
    path = data.draw(st.sampled_from(list(walk(manifest))))
    forged = copy.deepcopy(manifest)
    holder = forged
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = data.draw(JSON)
    folder = tmp_path_factory.getbasetemp() / "forged"
    folder.mkdir(exist_ok=True)
    (folder / MANIFEST).write_text(json.dumps(forged), encoding="utf-8")
    for name in manifest["files"]:
        if not (folder / name).exists():
            shutil.copy(exported / name, folder / name)
    message = None
    try:
        check_family(load_family(folder))
    except FamilyError as error:
        message = str(error)
    assert message is None or str(folder) in message


def walk(value: Any, path: tuple[Any, ...] = ()) -> Any:
    """The path of every value inside a JSON document."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from walk(child, (*path, key))
