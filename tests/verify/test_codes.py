"""Families whose profiles have encoded outputs and small precisions: judged, packed, embedded, and never fooled."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import places
import pytest
from commandline import Run, read_lines
from conftest import TEXTS
from forge import edit_manifest, hold, overwrite_values, reseal
from safetensors.numpy import load_file, save_file

from matexport import Embedder, load_family, pack_profile, verify_family
from matexport.errors import FamilyError, RequestError
from matexport.family.manifest import MANIFEST, RANGES, REFERENCE
from matexport.family.measurements.records import load_measurement
from matexport.family.proof import load_ranges
from matexport.family.summary import describe_profiles
from matexport.host import read_host
from matexport.report.findings import gather_findings
from matexport.spec.profile import Profile
from matexport.verify.verdict import load_verification, record_measurement

GOLDEN = places.GOLDEN / "schema2"
PLAIN, BITS, STEPS = "L01-D020-int8", "L01-D020-int8-ubinary", "L01-D020-int8-int8"
POINT, WEIGHTS = "L01-D020", "weights.int8.safetensors"
KINDS = {PLAIN: (np.float32, 20), BITS: (np.uint8, 3), STEPS: (np.int8, 20)}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A family of fp32 and int8, each with every encoding, that a test may spoil."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "small"))


def failing(family: Path) -> list[str]:
    reseal(family)
    return [verdict.profile for verdict in verify_family(family).verdicts if not verdict.passed]


def edit_ranges(family: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    arrays = load_file(family / RANGES)
    edit(arrays)
    save_file(arrays, family / RANGES)


# --- embedding


@pytest.mark.parametrize("name", KINDS)
def test_vectors_have_the_type_of_their_encoding(name: str) -> None:
    kind, width = KINDS[name]
    embedder = Embedder(GOLDEN, name)
    assert (embedder.dim, embedder.encoding) == (20, Profile.parse(name).encoding)
    for texts in (TEXTS, TEXTS[:1], []):
        vectors = embedder.embed(texts)
        assert (vectors.dtype, vectors.shape) == (kind, (len(texts), width))


@pytest.mark.parametrize("name", KINDS)
def test_codes_do_not_depend_on_the_batch(name: str) -> None:
    embedder = Embedder(GOLDEN, name)
    alone = np.concatenate([embedder.embed([text]) for text in TEXTS])
    np.testing.assert_allclose(embedder.embed(TEXTS, batch_budget=64), alone, atol=1e-6)
    np.testing.assert_allclose(embedder.embed(TEXTS[::-1])[::-1], alone, atol=1e-6)


def test_codes_stand_for_the_vectors() -> None:
    vectors = Embedder(GOLDEN, PLAIN).embed(TEXTS)
    np.testing.assert_array_equal(Embedder(GOLDEN, BITS).embed(TEXTS), np.packbits(vectors > 0, axis=1))
    least, greatest = load_file(GOLDEN / RANGES)[POINT]
    codes = Embedder(GOLDEN, STEPS).embed(TEXTS).astype(int)
    level = np.clip(np.floor((vectors - least) / ((greatest - least) / np.float32(255))), 0, 255)
    np.testing.assert_array_equal(codes + 128, level)


def test_a_graph_that_gives_another_type_than_its_manifest_says(small: Path) -> None:
    shutil.copy(small / "L01-D020.int8.onnx", small / "L01-D020.int8.ubinary.onnx")
    reseal(small)
    with pytest.raises(FamilyError, match=r"gave float32 vectors of shape \(1, 20\) for 1 texts"):
        Embedder(small, BITS).embed(["a dog"])


# --- the command line


@pytest.mark.parametrize("name", KINDS)
def test_embed_to_npy(name: str, run: Run, tmp_path: Path) -> None:
    expected = Embedder(GOLDEN, name).embed(TEXTS)
    result = run("embed", GOLDEN, "--profile", name, "--output", tmp_path / "v.npy", *TEXTS)
    assert (result.code, result.out, result.err) == (0, "", "")
    written = np.load(tmp_path / "v.npy", allow_pickle=False)
    assert written.dtype == KINDS[name][0]
    np.testing.assert_array_equal(written, expected)
    assert run("embed", GOLDEN, "--profile", name, "--output", tmp_path / "e.npy", "--input", "-", stdin=b"").code == 0
    empty = np.load(tmp_path / "e.npy")
    assert (empty.dtype, empty.shape) == (KINDS[name][0], (0, KINDS[name][1]))


@pytest.mark.parametrize("name", [BITS, STEPS])
def test_embed_as_json_gives_whole_numbers(name: str, run: Run) -> None:
    expected = Embedder(GOLDEN, name).embed(TEXTS).tolist()
    document = run("embed", GOLDEN, "--profile", name, "--json", *TEXTS).json
    assert (document["profile"], document["vectors"]) == (name, expected)
    assert all(isinstance(code, int) for row in document["vectors"] for code in row)  # type: ignore[attr-defined]
    texts, numbers = read_lines(run("embed", GOLDEN, "--profile", name, *TEXTS).out)
    assert texts == TEXTS
    np.testing.assert_array_equal(numbers, expected)


def test_show_lists_precisions_and_encodings(run: Run) -> None:
    result = run("show", GOLDEN)
    assert (result.code, result.err) == (0, "")
    assert all(profile.name in result.out for profile in load_family(GOLDEN).profiles)
    rows = run("show", GOLDEN, "--json").json["profiles"]
    assert [(row["precision"], row["encoding"]) for row in rows] == [  # type: ignore[attr-defined]
        (precision, encoding) for precision in ("fp32", "int8") for encoding in ("float32", "int8", "ubinary")
    ]


def test_verify_on_the_same_instruction_set_says_nothing_of_it(run: Run, small: Path) -> None:
    edit_manifest(small, lambda data: data.update(instruction_sets=list(read_host().instruction_sets)))
    result = run("verify", small)
    assert result.code == 0
    assert "instruction set" not in result.out


@pytest.mark.parametrize("first", [["avx2", "fma", "avx512_vnni"], ["asimd", "i8mm"]])
def test_verify_on_another_instruction_set_says_so_and_measures_anew(first: list[str], run: Run, small: Path) -> None:
    edit_manifest(small, lambda data: data.update(instruction_sets=first))
    result = run("verify", small)
    assert result.code == 0
    assert "measured anew: the family's own parity was measured on another instruction set" in result.out
    assert ", ".join(first) in result.out
    assert f"({', '.join(read_host().instruction_sets)})" in result.out


def test_a_family_that_does_not_say_where_it_was_measured(run: Run) -> None:
    """As those of schema 1."""
    result = run("verify", GOLDEN.parent / "schema1")
    assert result.code == 0
    assert "instruction set" not in result.out


def test_verify_says_what_was_refused_before(run: Run, small: Path) -> None:
    """The family is sound, and lacks what was asked for."""
    reason = "L01-D020-q4: mean cosine 0.9, allowed 0.93 (single), worst on probe 1 ('a dog')"
    edit_manifest(small, lambda data: data.update(refused={"L01-D020-q4": reason}))
    assert run("verify", small).code == 0
    assert reason in run("show", small).out


# --- packing


@pytest.mark.parametrize("name", KINDS)
def test_a_pack_of_any_encoding(name: str, tmp_path: Path) -> None:
    pack = pack_profile(GOLDEN, name, tmp_path / "pack")
    assert [profile.name for profile in pack.profiles] == [name]
    assert verify_family(pack.path).passed
    np.testing.assert_array_equal(Embedder(pack).embed(TEXTS), Embedder(GOLDEN, name).embed(TEXTS))
    files = {path.name for path in pack.path.iterdir()}
    assert (RANGES in files) == (name == STEPS)
    assert len([file for file in files if file.endswith(".onnx")]) == 1
    assert pack.facts.instruction_sets == load_family(GOLDEN).facts.instruction_sets
    assert pack.facts.precisions["int8"] == load_family(GOLDEN).facts.precisions["int8"]  # type: ignore[index]
    again = pack_profile(pack.path, name, tmp_path / "again")
    assert again.facts == pack.facts


def test_a_pack_has_the_ranges_of_its_own_point_only(small: Path, tmp_path: Path) -> None:
    edit_ranges(small, lambda arrays: arrays.update({"L09-D001": np.zeros((2, 1), np.float32)}))
    reseal(small)
    pack = pack_profile(small, STEPS, tmp_path / "pack")
    assert load_file(pack.path / RANGES).keys() == {POINT}


def test_a_pack_forgets_what_others_were_refused_for(small: Path, tmp_path: Path) -> None:
    edit_manifest(small, lambda data: data.update(refused={"L01-D020-q4": "off"}))
    assert pack_profile(small, PLAIN, tmp_path / "pack").facts.refused == {}


def test_changed_ranges_do_not_go_into_a_pack(small: Path, tmp_path: Path) -> None:
    content = (small / RANGES).read_bytes()
    (small / RANGES).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(FamilyError, match=f"changed: {RANGES} has another sha256"):
        pack_profile(small, STEPS, tmp_path / "pack")


# --- the judge


def test_every_profile_is_held_to_the_floor_of_its_precision_and_encoding() -> None:
    for verdict in verify_family(GOLDEN).verdicts:
        profile, held = Profile.parse(verdict.profile), verdict.tolerance
        assert (held.max_abs is not None) == (profile.precision == "fp32")
        assert held.spread == {"fp32": None, PLAIN: 1e-6, BITS: 0.01, STEPS: 0.01}.get(
            "fp32" if profile.precision == "fp32" else verdict.profile
        )
        assert verdict.spread is not None
        if verdict.profile == BITS:
            assert held.cosine_min is not None
            assert 0.3 < held.cosine_min <= 1 - 2 * np.arccos(0.97) / np.pi + 1e-9, "20 bits, some more of which differ"
    assert verify_family(GOLDEN).passed


def change_constant(graph: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Put other numbers in the place of a constant of a graph."""
    model = onnx.load(graph, load_external_data=False)
    found = next(item for item in model.graph.initializer if item.name == name)
    found.CopyFrom(onnx.numpy_helper.from_array(change(onnx.numpy_helper.to_array(found)), name))
    graph.write_bytes(model.SerializeToString())


def test_one_coordinates_bit_that_is_never_set(small: Path) -> None:
    levels = np.zeros(20, np.float32)
    levels[load_file(small / REFERENCE)[POINT].max(axis=0).argmax()] = 10  # no unit vector reaches it
    change_constant(small / "L01-D020.fp32.ubinary.onnx", "bit_threshold", lambda _: levels)
    assert failing(small) == ["L01-D020-fp32-ubinary"]


def test_one_bit_of_twenty_does_not_refuse_what_the_vectors_keep(small: Path) -> None:
    """A coordinate of 1e-4 on the other side of zero: the vectors' cosine is 0.9999, that of 20 bits 0.9."""
    edit_manifest(small, lambda data: data["tolerances"]["int8"].update(cosine_min=0.997, cosine_mean=0.999))
    texts = [json.loads(line) for line in (small / "probes.jsonl").read_text(encoding="utf-8").splitlines()]
    vector = Embedder(small, PLAIN).embed([texts[0]["text"]], prompt=texts[0].get("prompt", ""))[0]
    place = np.abs(vector).argmin()
    arrays = load_file(small / REFERENCE)
    arrays[POINT][0, place] = -1e-4 * np.sign(vector[place])
    save_file(arrays, small / REFERENCE)
    failed = failing(small)
    assert "L01-D020-fp32-ubinary" in failed, "fp32 is held to every coordinate"
    assert not {PLAIN, STEPS, BITS} & set(failed)


def test_ranges_that_are_not_those_of_the_graph(small: Path) -> None:
    """By one step: who decodes with them would be off by a step."""
    edit_ranges(small, lambda arrays: arrays.update({POINT: arrays[POINT] + np.float32(2 / 255)}))
    assert failing(small) == ["L01-D020-fp32-int8"]


def test_ranges_of_texts_that_are_all_alike(small: Path) -> None:
    """Graph and file agree, and each code is the one of its vector; but the codes say nothing of it."""
    arrays = load_file(small / RANGES)
    middle = arrays[POINT].mean(axis=0)
    narrow = np.stack([middle - np.float32(1e-3), middle + np.float32(1e-3)])
    edit_ranges(small, lambda arrays: arrays.update({POINT: narrow}))
    for precision in ("fp32", "int8"):
        graph = small / f"L01-D020.{precision}.int8.onnx"
        change_constant(graph, "range_start", lambda _: narrow[0])
        change_constant(graph, "range_step", lambda _: (narrow[1] - narrow[0]) / np.float32(255))
    assert failing(small) == ["L01-D020-fp32-int8", STEPS]


def test_another_threshold_for_int8(small: Path) -> None:
    change_constant(small / "L01-D020.fp32.int8.onnx", "range_start", lambda start: start + np.float32(0.002))
    assert failing(small) == ["L01-D020-fp32-int8"]


def test_weights_of_int8_whose_columns_moved_by_one(small: Path) -> None:
    name = "encoder.layer.0.output.dense.weight.T.int8"
    columns = load_file(small / WEIGHTS)[name]
    overwrite_values(small / WEIGHTS, name, np.roll(columns, 1, axis=1))
    assert failing(small) == [PLAIN, STEPS, BITS]


def test_the_vectors_of_another_point(small: Path) -> None:
    """Every precision is far from it, encoded or not."""
    arrays = load_file(small / REFERENCE)
    arrays[POINT] = np.roll(arrays[POINT], 1, axis=1)
    save_file(arrays, small / REFERENCE)
    assert failing(small) == [profile.name for profile in load_family(GOLDEN).profiles]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda arrays: arrays.pop(POINT), r"has no \(2, 20\) ranges for L01-D020"),
        (lambda arrays: arrays.update({POINT: arrays[POINT][:, :-1].copy()}), r"has no \(2, 20\) ranges"),
        (lambda arrays: arrays.update({POINT: arrays[POINT].astype(np.float64)}), r"has no \(2, 20\) ranges"),
        (lambda arrays: arrays.update({POINT: arrays[POINT][::-1].copy()}), "no least and greatest values"),
        (lambda arrays: arrays[POINT].__setitem__((1, 3), arrays[POINT][0, 3]), "no least and greatest values"),
        (lambda arrays: arrays[POINT].__setitem__((0, 3), np.nan), "no least and greatest values"),
        (lambda arrays: arrays[POINT].__setitem__((1, 3), np.inf), "no least and greatest values"),
    ],
    ids=["missing", "a column less", "float64", "upside down", "no width", "NaN", "infinite"],
)
def test_what_are_no_ranges(edit: Callable[[dict[str, Any]], object], words: str, small: Path) -> None:
    edit_ranges(small, lambda arrays: arrays.update({"other": np.zeros(1, np.float32)}))
    edit_ranges(small, edit)
    reseal(small)
    with pytest.raises(FamilyError, match=words):
        verify_family(small)


def test_ranges_that_cannot_be_read(small: Path) -> None:
    (small / RANGES).write_bytes(b"nothing")
    reseal(small)
    with pytest.raises(FamilyError, match=f"{RANGES}: not a safetensors file"):
        verify_family(small)


def test_without_int8_outputs_no_ranges_are_needed(small: Path, tmp_path: Path) -> None:
    pack = pack_profile(small, BITS, tmp_path / "pack")
    assert load_ranges(hold(pack)) == {}


# --- the manifest


def test_int8_outputs_without_ranges(small: Path) -> None:
    edit_manifest(small, lambda data: data["files"].pop(RANGES))
    with pytest.raises(FamilyError, match=f"has int8 outputs and does not list {RANGES}"):
        load_family(small)


def test_a_precision_without_a_tolerance(small: Path) -> None:
    edit_manifest(small, lambda data: data["tolerances"].pop("int8"))
    with pytest.raises(FamilyError, match="gives no tolerance for int8"):
        load_family(small)


@pytest.mark.parametrize("encoding", ["int8", "float32"])
def test_a_profile_name_that_disagrees_with_its_encoding(encoding: str, small: Path) -> None:
    edit_manifest(small, lambda data: data["profiles"][BITS].update(encoding=encoding))
    with pytest.raises(FamilyError, match=f"the profile {BITS} says 1 layers, dim 20, int8, {encoding}"):
        load_family(small)


@pytest.mark.parametrize("name", ["nonsense", "L1-D8-int8", "../evil", ""])
def test_what_was_refused_has_a_profiles_name(name: str, small: Path) -> None:
    edit_manifest(small, lambda data: data.update(refused={name: "off"}))
    with pytest.raises(FamilyError, match="profile name"):
        load_family(small)


# A family that brings its own tolerance would always pass; one that asks for the impossible would end in a traceback.
@pytest.mark.parametrize("name", ["cosine_mean", "cosine_min"])
@pytest.mark.parametrize("value", [2.0, -2.0, 1e308, -1.0])
def test_a_cosine_that_is_none(name: str, value: float, small: Path) -> None:
    edit_manifest(small, lambda data: data["tolerances"]["int8"].update({name: value}))
    failed = [verdict.profile for verdict in verify_family(small).verdicts if not verdict.passed]
    assert failed == ([PLAIN, STEPS, BITS] if value > 1 else [])


@pytest.mark.parametrize(
    ("name", "value"), [("cosine_mean", 0.5), ("cosine_min", 0.0), ("spread", 1.0), ("max_abs", None)]
)
def test_a_manifest_cannot_loosen_a_floor(name: str, value: float | None, small: Path) -> None:
    expected = [verdict.tolerance for verdict in verify_family(small).verdicts]
    edit_manifest(small, lambda data: data["tolerances"]["int8"].update({name: value}))
    assert [verdict.tolerance for verdict in verify_family(small).verdicts] == expected


def test_a_manifest_may_tighten_a_floor(small: Path) -> None:
    edit_manifest(small, lambda data: data["tolerances"]["int8"].update(cosine_mean=0.99999999))
    failed = [verdict.profile for verdict in verify_family(small).verdicts if not verdict.passed]
    assert failed == [PLAIN, STEPS, BITS], "no bit is flipped; but the vectors are off what they are held to"


# --- what was measured


def test_what_was_recorded_is_read_back_and_judged(small: Path) -> None:
    family = load_family(small)
    verification = verify_family(small)
    record_measurement(family, verification)
    assert load_verification(family, read_host()) == verification
    measured = load_measurement(family, read_host())
    assert measured is not None
    assert measured.spread == {verdict.profile: verdict.spread for verdict in verification.verdicts}
    rows = {row["profile"]: row for row in describe_profiles(family, measured)}
    assert rows[BITS]["cosine_min"] == min(parity.cosine_min for parity in measured.parity[BITS].values())


def test_ranges_are_no_way_of_running(tmp_path: Path) -> None:
    """What ranges cut off is far worse than what any way of running gives; no table and no report takes it for that."""
    folder = Path(shutil.copytree(GOLDEN, tmp_path / "family"))
    family = load_family(folder)
    record_measurement(family, verify_family(folder))
    (verdict,) = [verdict for verdict in verify_family(folder).verdicts if verdict.profile == "L01-D020-int8-int8"]
    assert verdict.ranges is not None
    ways = [parity.cosine_min for parity in verdict.parity.values()]
    assert verdict.ranges.cosine_min < 0.995 < 0.9999 < min(ways)
    rows = {row["profile"]: row for row in describe_profiles(family, load_measurement(family, read_host()))}
    shown = rows[verdict.profile]["cosine_min"]
    reported = gather_findings(family).floor_uses[verdict.profile]
    assert (shown, reported.value) == (min(ways), min(ways))
    assert rows[verdict.profile]["ranges"] == {name: getattr(verdict.ranges, name) for name in vars(verdict.ranges)}


def test_ranges_that_an_earlier_matexport_kept_among_the_ways_are_read(small: Path) -> None:
    family = load_family(small)
    verification = verify_family(small)
    path = record_measurement(family, verification)
    data = json.loads(path.read_text())
    for name, ranges in data.pop("ranges").items():
        data["parity"][name]["ranges"] = ranges
    path.write_text(json.dumps(data))
    assert load_verification(family, read_host()) == verification


def test_a_recorded_spread_above_the_floor_is_judged_as_such(small: Path) -> None:
    family = load_family(small)
    path = record_measurement(family, verify_family(small))
    for spread, passed in ((2e-6, False), (1e-6, True), (float("nan"), False)):
        data = json.loads(path.read_text())
        data["spread"][PLAIN]["value"] = spread
        path.write_text(json.dumps(data))
        verification = load_verification(family, read_host())
        assert verification is not None
        assert verification.passed == passed


def test_a_measurement_without_a_spread_does_not_cover_the_profile(small: Path) -> None:
    """As matexport 0.1 recorded them."""
    family = load_family(small)
    path = record_measurement(family, verify_family(small))
    data = json.loads(path.read_text())
    del data["spread"]
    path.write_text(json.dumps(data))
    assert load_verification(family, read_host()) is None
    assert load_measurement(family, read_host()) is not None


def test_junit_has_a_case_for_the_spread(run: Run, tmp_path: Path) -> None:
    assert run("verify", GOLDEN, "--junit", tmp_path / "r.xml").code == 0
    text = (tmp_path / "r.xml").read_text(encoding="utf-8")
    assert text.count('name="parity alone and in a batch"') == 3
    assert text.count('name="parity ranges"') == 2
    assert text.count("<testcase ") == 1 + 6 * 2 + 3 + 2
    assert text.count("<system-out>") == 6 * 2 + 3 + 2


def test_an_unknown_precision_in_a_manifest_is_named(small: Path) -> None:
    text = (small / MANIFEST).read_text(encoding="utf-8")
    (small / MANIFEST).write_text(text.replace('"precision": "int8"', '"precision": "int3"'), encoding="utf-8")
    with pytest.raises(FamilyError, match="int3"):
        load_family(small)


def test_a_family_of_several_encodings_wants_a_profile() -> None:
    with pytest.raises(RequestError, match="has several profiles; choose one of L01-D020-fp32, L01-D020-fp32-int8"):
        Embedder(GOLDEN)
