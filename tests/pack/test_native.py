"""One profile as a folder of its own: the same numbers from a part of the bytes, and nothing unchecked goes in."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from commandline import Run
from conftest import POINTS, TEXTS
from forge import flip_byte, forge_bench, forge_quality, store_token_rows
from msgspec.structs import replace
from safetensors.numpy import load_file

import matexport
from matexport import Embedder, gather_findings, load_family, record_bench, verify_family
from matexport.consumers.layouts import NATIVE
from matexport.errors import DestinationError, FamilyError, ParityError
from matexport.family.integrity import check_family
from matexport.family.manifest import MANIFEST, MEASUREMENTS, REFERENCE
from matexport.family.measurements.records import load_measurements, record_quality
from matexport.family.survey import Measured
from matexport.host import read_host
from matexport.spec.measured import Adaptive, Score
from matexport.spec.profile import Point
from matexport.verify.verdict import record_measurement

#: As it was exported; `test_layouts.py` has the folders for others.
pack_profile = partial(matexport.pack_profile, layout=NATIVE)

NAME, OTHER = "L01-D008-fp32", "L02-D032-fp32"
WEIGHTS = "weights.fp32.safetensors"


def read_all(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.name)
def test_a_pack_of_any_profile_verifies_and_embeds_alike(point: Point, exported: Path, tmp_path: Path) -> None:
    name = f"{point.name}-fp32"
    pack = pack_profile(exported, name, tmp_path / "pack")
    assert pack.path == tmp_path / "pack"
    assert [profile.name for profile in pack.profiles] == [name]
    verification = verify_family(tmp_path / "pack")
    assert verification.passed
    assert [verdict.profile for verdict in verification.verdicts] == [name]
    np.testing.assert_array_equal(Embedder(pack).embed(TEXTS), Embedder(exported, name).embed(TEXTS))


def test_left_padding_and_prompts_go_along(left_exported: Path, tmp_path: Path) -> None:
    pack = pack_profile(left_exported, "L01-D016-fp32", tmp_path / "pack")
    assert pack.facts.text == load_family(left_exported).facts.text
    assert list(verify_family(tmp_path / "pack").verdicts[0].parity) == ["batched", "single", "left"]
    theirs = Embedder(left_exported, "L01-D016-fp32").embed(TEXTS, prompt="query")
    np.testing.assert_array_equal(Embedder(pack).embed(TEXTS, prompt="query"), theirs)


def test_only_what_the_profile_needs(exported: Path, tmp_path: Path) -> None:
    pack_profile(exported, NAME, tmp_path / "pack")
    files = {path.name for path in (tmp_path / "pack").iterdir()}
    assert {path.name for path in exported.iterdir()} - files == {"exits.fp32.onnx"} | {
        f"{point.name}.fp32.onnx" for point in POINTS if point.name != "L01-D008"
    }
    assert files <= {path.name for path in exported.iterdir()}
    assert load_file(tmp_path / "pack" / REFERENCE).keys() - {"token_ids", "token_counts"} == {"L01-D008"}
    for name in files - {WEIGHTS, REFERENCE, "family.json", MEASUREMENTS}:
        assert (tmp_path / "pack" / name).read_bytes() == (exported / name).read_bytes()


def test_the_parents_token_ids_go_along(family: Path, tmp_path: Path) -> None:
    store_token_rows(family)
    pack_profile(family, NAME, tmp_path / "pack")
    ours, theirs = load_file(tmp_path / "pack" / REFERENCE), load_file(family / REFERENCE)
    assert ours.keys() == {"L01-D008", "token_ids", "token_counts"}
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor, theirs[name])
    token_ids = verify_family(tmp_path / "pack").token_ids
    assert token_ids is not None
    assert token_ids.passed


def test_a_pack_that_reads_a_probe_otherwise_than_the_parent(family: Path, tmp_path: Path) -> None:
    store_token_rows(family, lambda rows: rows[0].append(1))
    with pytest.raises(ParityError, match=r"L01-D008-fp32: token ids differ in 1 of .*; nothing was written"):
        pack_profile(family, NAME, tmp_path / "pack")
    assert not (tmp_path / "pack").exists()


def test_the_weights_are_a_prefix_and_far_smaller(exported: Path, tmp_path: Path) -> None:
    facts = load_family(exported).profile_facts(NAME)
    pack_profile(exported, NAME, tmp_path / "pack")
    packed, whole = tmp_path / "pack" / WEIGHTS, exported / WEIGHTS
    assert packed.stat().st_size == facts.weights_prefix_bytes < 0.6 * whole.stat().st_size
    shallow, deep = load_file(packed), load_file(whole)
    assert any("layer.0." in name for name in shallow)
    assert not any("layer.1." in name or "layer.2." in name for name in shallow)
    for name, tensor in shallow.items():
        np.testing.assert_array_equal(tensor, deep[name])


def test_the_deepest_profile_needs_all_weights(exported: Path, tmp_path: Path) -> None:
    pack_profile(exported, "L03-D008-fp32", tmp_path / "pack")
    assert (tmp_path / "pack" / WEIGHTS).read_bytes() == (exported / WEIGHTS).read_bytes()


def test_a_pack_of_a_pack_is_the_pack(exported: Path, tmp_path: Path) -> None:
    pack_profile(exported, NAME, tmp_path / "first")
    pack_profile(tmp_path / "first", NAME, tmp_path / "second")
    pack_profile(load_family(exported), NAME, str(tmp_path / "third"))
    assert read_all(tmp_path / "first") == read_all(tmp_path / "second") == read_all(tmp_path / "third")


HERE = read_host()
THERE = replace(HERE, cpu="another processor")


@pytest.fixture
def measured(family: Path) -> Path:
    """A family with timings, scores and parity of two profiles, on two hosts."""
    loaded = load_family(family)
    verification = verify_family(family)
    record_measurement(loaded, verification)
    for host, slower in ((HERE, 1), (THERE, 2)):
        record_bench(loaded, forge_bench(host, {NAME: {1: 2.0 * slower}, OTHER: {1: 3.0 * slower}}))
        quality = forge_quality(host, {"sts": {NAME: 0.5, OTHER: 0.75}, "retrieval": {OTHER: 0.9}})
        search = Adaptive(NAME, 4, 20, 0.4, 0.5, 2.0)
        sts = replace(quality.tasks["sts"], adaptive=(search,), parent=Score(0.8, 1.0, {}, b"1234"))
        record_quality(loaded, replace(quality, tasks={**quality.tasks, "sts": sts}))
    return family


def test_what_was_measured_of_the_profile_goes_along(measured: Path, tmp_path: Path) -> None:
    """Of every host, and of this profile alone; in one run with others it was no pack."""
    pack = pack_profile(measured, NAME, tmp_path / "pack")
    ours, theirs = load_measurements(pack), load_measurements(load_family(measured))
    assert ours.manifest_sha256 != theirs.manifest_sha256
    assert [one.host for one in ours.hosts] == [one.host for one in theirs.hosts]
    for mine, whole in zip(ours.hosts, theirs.hosts, strict=True):
        assert mine.benches["cpu"].profiles == {NAME: whole.benches["cpu"].profiles[NAME]}
        assert mine.quality is not None
        assert whole.quality is not None
        assert set(mine.quality.tasks) == {"sts"}
        task, before = mine.quality.tasks["sts"], whole.quality.tasks["sts"]
        assert task == replace(before, profiles={NAME: before.profiles[NAME]}, adaptive=())
    mine, whole = (next(one for one in both.hosts if one.host == HERE).parity for both in (ours, theirs))
    assert mine is not None
    assert whole is not None
    assert set(whole.parity[NAME]) == {"batched", "single", "together"}
    assert mine.parity == {NAME: {way: whole.parity[NAME][way] for way in ("batched", "single")}}
    assert mine.spread == {NAME: whole.spread[NAME]}
    assert mine.token_ids == whole.token_ids
    check_family(pack)


def test_commands_find_the_measurements_of_a_pack(run: Run, measured: Path, tmp_path: Path) -> None:
    pack_profile(measured, NAME, tmp_path / "pack")
    assert run("pick", measured, "--max-latency-ms", 2.5).out.startswith(f"choice: {NAME}\n")
    result = run("pick", tmp_path / "pack", "--max-latency-ms", 2.5, "--min-retention", 0.5, "--strict")
    assert result.code == 0
    assert "  retention on sts: 0.5 (this host)" in result.out
    assert "  latency: 2 ms (1 thread, this host)" in result.out
    (row,) = run("show", tmp_path / "pack", "--json").json["profiles"]  # type: ignore[misc]
    assert row["parity"] is not None
    findings = gather_findings(tmp_path / "pack")
    assert findings.survey.candidates[0].latency_ms == Measured(2.0, HERE, 1)
    assert (findings.unproven, [task.name for task in findings.tasks]) == ((), ["sts"])


def test_measurements_of_a_pack_are_not_believed_of_another_manifest(measured: Path, tmp_path: Path) -> None:
    pack = pack_profile(measured, NAME, tmp_path / "pack")
    assert load_measurements(pack).hosts
    manifest = pack.path / MANIFEST
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    assert load_measurements(load_family(pack.path)).hosts == ()


def test_measurements_that_are_not_of_this_family_stay_behind(measured: Path, tmp_path: Path) -> None:
    """Nothing that nobody would believe is made believable."""
    manifest = measured / MANIFEST
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    pack = pack_profile(measured, NAME, tmp_path / "pack")
    assert load_measurements(pack).hosts == ()
    assert not (pack.path / MEASUREMENTS).exists()


def test_a_profile_that_nobody_measured_takes_nothing_along(measured: Path, tmp_path: Path) -> None:
    shutil.rmtree(measured / MEASUREMENTS)
    record_bench(load_family(measured), forge_bench(HERE, {NAME: {1: 2.0}}))
    pack_profile(measured, OTHER, tmp_path / "pack")
    assert not (tmp_path / "pack" / MEASUREMENTS).exists()


def test_a_pack_has_no_other_profile(exported: Path, tmp_path: Path) -> None:
    pack_profile(exported, NAME, tmp_path / "pack")
    with pytest.raises(FamilyError, match=f"'L02-D008-fp32' was asked; .* has no such profile or point: {NAME}"):
        pack_profile(tmp_path / "pack", "L02-D008-fp32", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_an_occupied_destination(exported: Path, tmp_path: Path) -> None:
    pack_profile(exported, NAME, tmp_path / "pack")
    before = read_all(tmp_path / "pack")
    with pytest.raises(DestinationError, match="pass --overwrite to replace it"):
        pack_profile(exported, "L02-D008-fp32", tmp_path / "pack")
    assert read_all(tmp_path / "pack") == before
    pack = pack_profile(exported, "L02-D008-fp32", tmp_path / "pack", overwrite=True)
    check_family(pack)
    assert [profile.name for profile in pack.profiles] == ["L02-D008-fp32"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_someone_elses_folder(overwrite: bool, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(DestinationError, match="it is no family of matexport"):
        pack_profile(exported, NAME, tmp_path / "photos", overwrite=overwrite)
    assert read_all(tmp_path / "photos") == {"cat.jpg": b"cat"}


def test_an_empty_folder_is_free(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    check_family(pack_profile(exported, NAME, tmp_path / "pack"))


def test_a_destination_that_cannot_be_written(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DestinationError, match=r"cannot write .*file/pack: "):
        pack_profile(exported, NAME, tmp_path / "file" / "pack")


@pytest.mark.parametrize("name", [WEIGHTS, "L01-D008.fp32.onnx", "tokenizer.json"])
def test_a_changed_file_that_the_profile_reads(name: str, family: Path, tmp_path: Path) -> None:
    flip_byte(family / name)
    with pytest.raises(FamilyError, match=f"changed: {name} has another sha256"):
        pack_profile(family, NAME, tmp_path / "pack")
    assert not (tmp_path / "pack").exists()


# Embedding does not read these, but a pack gives what it copies a fresh digest.
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "probes.jsonl", REFERENCE])
def test_a_changed_file_that_goes_into_the_pack(name: str, family: Path, tmp_path: Path) -> None:
    path = family / name
    content = path.read_bytes()
    path.write_bytes(
        content.replace(b"the", b"tha") if name == "probes.jsonl" else content[:-1] + bytes([content[-1] ^ 1])
    )
    with pytest.raises(FamilyError, match=f"changed: {name} has another sha256"):
        pack_profile(family, NAME, tmp_path / "pack")
    assert not (tmp_path / "pack").exists()


def test_a_missing_file_that_goes_into_the_pack(family: Path, tmp_path: Path) -> None:
    (family / "config.json").unlink()
    with pytest.raises(FamilyError, match=r"missing: config\.json"):
        pack_profile(family, NAME, tmp_path / "pack")


def test_the_graph_of_another_profile_may_be_spoilt(family: Path, tmp_path: Path) -> None:
    flip_byte(family / "L03-D032.fp32.onnx")
    check_family(pack_profile(family, NAME, tmp_path / "pack"))


def test_a_family_that_is_refused_leaves_the_old_pack(family: Path, tmp_path: Path) -> None:
    pack_profile(family, NAME, tmp_path / "pack")
    before = read_all(tmp_path / "pack")
    flip_byte(family / WEIGHTS)
    with pytest.raises(FamilyError, match="changed"):
        pack_profile(family, NAME, tmp_path / "pack", overwrite=True)
    assert read_all(tmp_path / "pack") == before
    assert {path.name for path in tmp_path.iterdir()} <= {"family", "pack", ".pack.lock"}


# The lock and the pack would be files that the family's manifest does not list.
def test_a_pack_inside_its_own_family(family: Path) -> None:
    with pytest.raises(DestinationError):
        pack_profile(family, NAME, family / "small")
    check_family(load_family(family))


# Every other profile would be gone.
def test_a_pack_over_its_own_family(family: Path) -> None:
    with pytest.raises(DestinationError):
        pack_profile(family, NAME, family, overwrite=True)
    assert len(load_family(family).profiles) == len(POINTS)


def test_the_family_is_left_alone(family: Path, tmp_path: Path) -> None:
    shutil.rmtree(family / MEASUREMENTS)
    before = read_all(family)
    pack_profile(family, NAME, tmp_path / "pack")
    assert read_all(family) == before
