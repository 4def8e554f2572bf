"""The judge: passes what is the parent, and sees what is subtly not, though every digest agrees."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from forge import edit_manifest, edit_tokenizer, hold, overwrite_values, reseal, store_token_rows
from numpy.typing import NDArray
from places import GOLDEN
from safetensors.numpy import load_file, save_file

from matexport import load_family, verify_family
from matexport.errors import FamilyError
from matexport.family.integrity import check_family
from matexport.family.manifest import MEASUREMENTS, REFERENCE
from matexport.family.measurements.records import Measurement, load_measurement
from matexport.family.modality import PROBES
from matexport.family.proof import check_finite_weights, load_references
from matexport.family.weights_file import encode_header, plan_header, read_header
from matexport.host import read_host
from matexport.io.files import hash_file
from matexport.runtime.inputs.tokenizer import read_tokenizers_version
from matexport.spec.parity import Parity, Spread, TokenParity
from matexport.spec.tolerance import Tolerance
from matexport.verify.judge import open_case, verify_case
from matexport.verify.verdict import ProfileVerdict, Verification, load_verification, record_measurement

NAMES = ["L01-D008-fp32", "L01-D032-fp32", "L02-D008-fp32", "L02-D032-fp32", "L03-D008-fp32", "L03-D032-fp32"]
WEIGHTS = "weights.fp32.safetensors"
FLOOR = Tolerance(max_abs=1e-5)
Arrays = dict[str, NDArray[Any]]


def failing(family: Path) -> list[str]:
    """The profiles that do not pass, once the digests agree again."""
    reseal(family)
    verification = verify_family(family)
    failed = [verdict.profile for verdict in verification.verdicts if not verdict.passed]
    assert verification.passed == (not failed)
    return failed


def judge(family: Path) -> list[str] | str:
    """The profiles that do not pass, or why the family is refused altogether."""
    try:
        return failing(family)
    except FamilyError as error:
        return str(error)


def edit_reference(family: Path, edit: Callable[[Arrays], object]) -> None:
    arrays = load_file(family / REFERENCE)
    edit(arrays)
    save_file(arrays, family / REFERENCE)


def refuse(family: Path, words: str) -> None:
    reseal(family)
    with pytest.raises(FamilyError, match=words):
        verify_family(family)


def test_the_exported_family_passes(exported: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    verification = verify_family(exported, progress=lambda *report: seen.append(report))
    assert verification.passed
    assert verification.host == read_host()
    assert [verdict.profile for verdict in verification.verdicts] == NAMES
    for verdict in verification.verdicts:
        assert list(verdict.parity) == ["batched", "single", "together"]
        assert verdict.tolerance == FLOOR
        assert verdict.spread is not None
        assert verdict.spread.value < 2e-6
        assert all(parity.max_abs < 2e-6 for parity in verdict.parity.values())
        assert all(parity.neighbours == 1 for parity in verdict.parity.values())
    assert seen == [("verify", done, 6) for done in range(7)]


def test_left_padding_is_a_third_way_where_the_parent_pads_left(left_exported: Path) -> None:
    verification = verify_family(str(left_exported), threads=1)
    assert verification.passed
    for verdict in verification.verdicts:
        assert list(verdict.parity) == ["batched", "single", "left", "together"]


def test_a_family_that_only_fails_when_padded_left(family: Path) -> None:
    """BERT counts positions from the first column, so this family cannot be what its manifest says."""
    edit_manifest(family, lambda data: data["text"].update(padding_side="left"))
    verification = verify_family(family)
    assert not verification.passed
    for verdict in verification.verdicts:
        good = {way: parity.find_breach(FLOOR) is None for way, parity in verdict.parity.items()}
        assert good == {"batched": True, "single": True, "left": False, "together": True}
        assert verdict.worst[0] == "left"


def test_a_graph_that_ignores_the_mask_only_fails_in_batches(family: Path) -> None:
    path = family / "L02-D032.fp32.onnx"
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == "attention_mask":
                node.input[index] = "all_ones"
    equal = onnx.helper.make_node("Equal", ["input_ids", "input_ids"], ["equal"])
    cast = onnx.helper.make_node("Cast", ["equal"], ["all_ones"], to=onnx.TensorProto.INT64)
    model.graph.node.insert(0, cast)
    model.graph.node.insert(0, equal)
    path.write_bytes(model.SerializeToString())
    assert failing(family) == ["L02-D032-fp32"]
    (verdict,) = (verdict for verdict in verify_family(family).verdicts if not verdict.passed)
    assert verdict.parity["single"].find_breach(FLOOR) is None
    assert verdict.parity["batched"].find_breach(FLOOR)


def test_the_graph_of_a_block_less(family: Path) -> None:
    shutil.copy(family / "L01-D032.fp32.onnx", family / "L02-D032.fp32.onnx")
    assert failing(family) == ["L02-D032-fp32"]


def test_the_graph_of_a_block_more(family: Path) -> None:
    shutil.copy(family / "L03-D032.fp32.onnx", family / "L02-D032.fp32.onnx")
    refuse(family, r"refused: L02-D032\.fp32\.onnx: tensor '.*' ends at byte")
    size = (family / WEIGHTS).stat().st_size
    edit_manifest(family, lambda data: data["profiles"]["L02-D032-fp32"].update(weights_prefix_bytes=size))
    assert failing(family) == ["L02-D032-fp32"]


@pytest.mark.parametrize(("theirs", "ours"), [("L02-D008", "L02-D032"), ("L02-D032", "L02-D008")])
def test_the_graph_of_another_dim(theirs: str, ours: str, family: Path) -> None:
    shutil.copy(family / f"{theirs}.fp32.onnx", family / f"{ours}.fp32.onnx")
    judgement = judge(family)
    assert judgement == [f"{ours}-fp32"] or ours in judgement


def test_swapped_references(family: Path) -> None:
    def swap(arrays: Arrays) -> None:
        arrays["L01-D032"], arrays["L02-D032"] = arrays["L02-D032"], arrays["L01-D032"]

    edit_reference(family, swap)
    assert failing(family) == ["L01-D032-fp32", "L02-D032-fp32"]


def test_references_in_another_order(family: Path) -> None:
    edit_reference(family, lambda arrays: arrays.update({"L03-D008": np.roll(arrays["L03-D008"], 1, axis=0)}))
    assert failing(family) == ["L03-D008-fp32"]


@pytest.mark.parametrize(("difference", "expected"), [(8e-6, []), (1.2e-5, ["L02-D008-fp32"])])
def test_the_floor_is_1e_5_in_one_coordinate_of_one_probe(difference: float, expected: list[str], family: Path) -> None:
    def nudge(arrays: Arrays) -> None:
        arrays["L02-D008"][3, 5] += difference

    edit_reference(family, nudge)
    assert failing(family) == expected
    (verdict,) = (verdict for verdict in verify_family(family).verdicts if verdict.profile == "L02-D008-fp32")
    assert {parity.worst for parity in verdict.parity.values()} == {3}


def test_references_that_are_not_of_unit_length(family: Path) -> None:
    edit_reference(family, lambda arrays: arrays.update({"L01-D008": arrays["L01-D008"] * np.float32(1.001)}))
    assert failing(family) == ["L01-D008-fp32"]


def test_a_weight_of_the_last_block_that_moved(family: Path) -> None:
    header = read_header(family / WEIGHTS)
    prefix = load_family(family).profile_facts("L02-D032-fp32").weights_prefix_bytes
    last = next(entry for entry in header.entries if entry.offset >= prefix and entry.dtype == "F32")
    values = load_file(family / WEIGHTS)[last.name]
    overwrite_values(family / WEIGHTS, last.name, values * np.float32(1.01))
    assert failing(family) == ["L03-D008-fp32", "L03-D032-fp32"]


def test_a_tokenizer_with_two_words_swapped(family: Path) -> None:
    tokenizer = json.loads((family / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["the"] = vocabulary["the"], vocabulary["a"]
    (family / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    assert failing(family) == NAMES


# A token id beyond the vocabulary makes onnxruntime raise exceptions of its own.
def test_a_tokenizer_with_more_words_than_the_model(family: Path) -> None:
    tokenizer = json.loads((family / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"]["a"] = 5000
    (family / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    refuse(family, r"onnxruntime cannot run exits.fp32.onnx: .* idx=5000 must be within")


def test_a_token_less(family: Path) -> None:
    edit_manifest(family, lambda data: data["text"].update(max_tokens=47))
    assert failing(family) == NAMES


def test_another_prompt(left_exported: Path, tmp_path: Path) -> None:
    family = Path(shutil.copytree(left_exported, tmp_path / "left"))
    edit_manifest(family, lambda data: data["text"].update(prompts={"query": "a blue house "}))
    assert failing(family) == ["L01-D016-fp32", "L03-D032-fp32"]


# A family that brings its own tolerance would always pass.
@pytest.mark.parametrize("max_abs", [1.1e-5, 1e9, 1e308])
def test_a_manifest_cannot_loosen_the_floor(max_abs: float, family: Path) -> None:
    edit_manifest(family, lambda data: data["tolerances"]["fp32"].update(max_abs=max_abs))
    edit_reference(family, lambda arrays: arrays.update({"L01-D008": arrays["L01-D008"] + np.float32(1.05e-5)}))
    judgement = judge(family)
    assert judgement == ["L01-D008-fp32"] or "tolerance" in judgement


def test_a_manifest_may_tighten_the_floor(family: Path) -> None:
    edit_manifest(family, lambda data: data["tolerances"]["fp32"].update(max_abs=1e-12))
    assert failing(family) == NAMES


# --- token ids


def test_token_ids_that_are_the_parents(family: Path) -> None:
    store_token_rows(family)
    verification = verify_family(family)
    probes = len(load_references(hold(family))[0])
    assert verification.passed
    assert verification.token_ids is not None
    assert (verification.token_ids.probes, verification.token_ids.differing) == (probes, ())


def test_one_token_of_one_probe(family: Path) -> None:
    """No vector shows it: the vectors are of the tokens that this machine gives."""

    def change(rows: list[list[int]]) -> None:
        rows[3][1] += 1

    store_token_rows(family, change)
    verification = verify_family(family)
    assert all(verdict.passed for verdict in verification.verdicts)
    assert not verification.passed
    assert verification.token_ids is not None
    assert verification.token_ids.differing == (3,)
    reason = verification.token_ids.find_difference()
    assert reason is not None
    assert f"token ids differ in 1 of {verification.token_ids.probes} probes, first in probe 3 ('" in reason


def test_a_token_more_at_the_end_of_the_last_probe(family: Path) -> None:
    store_token_rows(family, lambda rows: rows[-1].append(1))
    verification = verify_family(family)
    assert verification.token_ids is not None
    assert verification.token_ids.differing == (verification.token_ids.probes - 1,)


@pytest.mark.usefixtures("no_session")
def test_a_tokenizer_that_knows_a_word_otherwise(family: Path) -> None:
    """The files agree with the manifest; only the probes with that word have other ids, and no session says so."""
    store_token_rows(family)

    def swap(tokenizer: dict[str, Any]) -> None:
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary["river"], vocabulary["money"] = vocabulary["money"], vocabulary["river"]

    edit_tokenizer(family, swap)
    case = open_case(family)
    assert case.token_ids is not None
    with_it = {index for index, row in enumerate(case.probes) if {"river", "money"} & {*row.text.lower().split()}}
    assert with_it <= set(case.token_ids.differing)
    assert 0 < len(case.token_ids.differing) < len(case.probes)


def test_vectors_are_judged_beside_token_ids(family: Path) -> None:
    store_token_rows(family)
    edit_manifest(family, lambda data: data["text"].update(max_tokens=47))
    verification = verify_family(family)
    assert verification.token_ids is not None
    assert not verification.token_ids.passed
    assert len(verification.token_ids.here) == len(verification.token_ids.parent) - 1 == 47
    assert [verdict.profile for verdict in verification.verdicts if not verdict.passed] == NAMES


def test_token_ids_with_a_prompt(left_exported: Path, tmp_path: Path) -> None:
    family = Path(shutil.copytree(left_exported, tmp_path / "left"))
    assert open_case(family).token_ids == TokenParity(len(open_case(family).probes), read_tokenizers_version())
    edit_manifest(family, lambda data: data["text"].update(prompts={"query": "a blue house "}))
    case = open_case(family)
    assert case.token_ids is not None
    assert case.token_ids.differing == tuple(
        index for index, probe in enumerate(case.probes) if probe.prompt or probe.task
    )
    assert "prompt 'query')" in str(case.token_ids.find_difference())


def test_a_family_that_stores_none(golden: Path) -> None:
    verification = verify_family(golden)
    assert verification.token_ids is None
    assert verification.passed


@pytest.mark.parametrize("off", [False, True])
def test_recorded_token_ids_are_read_back(off: bool, family: Path) -> None:
    store_token_rows(family, (lambda rows: rows[3].pop()) if off else (lambda rows: None))
    loaded = load_family(family)
    assert (load_verification(loaded, read_host()) is None) is off, "measured on other files"
    verification = verify_case(open_case(loaded))
    record_measurement(loaded, verification)
    assert load_verification(loaded, read_host()) == verification
    assert verification.passed is not off
    measured = load_measurement(loaded, read_host())
    assert measured is not None
    assert measured.token_ids == verification.token_ids


def test_what_another_version_of_tokenizers_gave_is_measured_anew(
    family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_token_rows(family)
    loaded = load_family(family)
    verification = verify_family(family)
    record_measurement(loaded, verification)
    monkeypatch.setattr("matexport.verify.verdict.read_tokenizers_version", lambda: "999")
    assert load_verification(loaded, read_host()) is None
    record_measurement(loaded, dataclasses.replace(verification, token_ids=None))
    assert load_verification(loaded, read_host()) is None, "an earlier matexport did not look at them"


def test_a_recording_of_an_earlier_matexport_is_read(golden: Path) -> None:
    """It has no token ids, and neither has the family."""
    loaded = load_family(golden)
    verification = verify_family(golden)
    path = record_measurement(loaded, verification)
    assert "token_ids" not in json.loads(path.read_text(encoding="utf-8"))
    assert load_verification(loaded, read_host()) == verification


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "schema3", tmp_path / "golden"))


FORGERIES: dict[str, dict[str, object]] = {
    "no tokens at all": {"max_tokens": 0},
    "fewer tokens than none": {"max_tokens": -1},
    "one token": {"max_tokens": 1},
    "more tokens than the parent takes": {"max_tokens": 1000},
    "more tokens than fit a machine word": {"max_tokens": 1 << 70},
    "padding outside the vocabulary": {"pad_token_id": 1_000_000},
    "padding that fits no machine word": {"pad_token_id": 1 << 70},
    "an input that no tokenizer makes": {"inputs": ["input_ids", "attention_mask", "position_ids"]},
    "an input less": {"inputs": ["input_ids", "attention_mask"]},
    "no input": {"inputs": []},
    "a default prompt that does not exist": {"default_prompt": "query"},
}


# With most of these, tokenizers, numpy or onnxruntime would raise exceptions of their own.
@pytest.mark.parametrize("forgery", FORGERIES, ids=str)
def test_text_facts_that_cannot_be(forgery: str, family: Path) -> None:
    edit_manifest(family, lambda data: data["text"].update(FORGERIES[forgery]))
    judgement = judge(family)
    assert judgement == NAMES or isinstance(judgement, str)


@pytest.mark.usefixtures("no_session")
class TestBeforeAnySession:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_weights_that_are_not_finite(self, value: float, family: Path) -> None:
        entries = [entry for entry in read_header(family / WEIGHTS).entries if entry.dtype == "F32"]
        for entry in (entries[0], entries[len(entries) // 2], entries[-1]):
            original = (family / WEIGHTS).read_bytes()
            values = np.zeros(entry.nbytes // 4, np.float32)
            values[-1] = value
            overwrite_values(family / WEIGHTS, entry.name, values)
            refuse(family, f"refused: {WEIGHTS} holds values in {entry.name!r} that are not finite")
            (family / WEIGHTS).write_bytes(original)

    # Shows a defect: where the values are and of what type is read from the weights' header, while onnxruntime reads
    # what the graph says. The two should agree.
    def test_weights_whose_header_names_another_type(self, family: Path) -> None:
        name = next(entry.name for entry in read_header(family / WEIGHTS).entries if entry.dtype == "F32")
        overwrite_values(family / WEIGHTS, name, np.full(8, np.nan, np.float32))
        content = (family / WEIGHTS).read_bytes()
        (family / WEIGHTS).write_bytes(content.replace(b'"F32"', b'"I32"'))
        refuse(family, "refused: ")

    # Weights under 1024 bytes lie in the graph: a profile's, or that of all exits, which `evaluate` runs.
    @pytest.mark.parametrize("graph", ["L01-D008.fp32.onnx", "exits.fp32.onnx"])
    def test_weights_inside_a_graph_that_are_not_finite(self, graph: str, family: Path) -> None:
        path = family / graph
        model = onnx.load(path, load_external_data=False)
        small = max(
            (t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and t.raw_data),
            key=lambda tensor: len(tensor.raw_data),
        )
        small.raw_data = np.full(len(small.raw_data) // 4, np.nan, np.float32).tobytes()
        path.write_bytes(model.SerializeToString())
        refuse(family, rf"refused: {re.escape(graph)} holds values in '{small.name}' that are not a number")

    # matexport writes none; a forger may, and the header is a valid one.
    @pytest.mark.parametrize(("bits", "finite"), [(0x7F80, False), (0xFF80, False), (0x7FC0, False), (0x7F7F, True)])
    def test_weights_of_bfloat16(self, bits: int, finite: bool, tmp_path: Path) -> None:
        values = np.zeros(10, np.uint16)
        values[7] = bits
        header = plan_header([("a", "BF16", (10,))], {})
        loaded = load_family(GOLDEN / "schema1")
        (tmp_path / WEIGHTS).write_bytes(encode_header(header) + values.tobytes().ljust(header.end - header.data_start))
        for path in (GOLDEN / "schema1").glob("*.onnx"):
            shutil.copy(path, tmp_path)
        family = msgspec.structs.replace(loaded, path=tmp_path)
        if finite:
            check_finite_weights(hold(family))
        else:
            with pytest.raises(FamilyError, match=f"^refused: {WEIGHTS} holds values in 'a' that are not finite$"):
                check_finite_weights(hold(family))

    # numpy cannot view it as numbers.
    def test_weights_that_end_inside_a_number(self, family: Path) -> None:
        facts = load_family(family).facts.profiles
        size = facts["L01-D008-fp32"].weights_prefix_bytes
        os.truncate(family / WEIGHTS, size + 3)

        def keep_one_layer(data: dict[str, Any]) -> None:
            data["files"][WEIGHTS] = {"bytes": size + 3, "sha256": hash_file(family / WEIGHTS)}
            data["profiles"] = {name: data["profiles"][name] for name in ("L01-D008-fp32", "L01-D032-fp32")}
            for name in [name for name in data["files"] if name.startswith(("L02", "L03"))]:
                del data["files"][name]

        edit_manifest(family, keep_one_layer)
        for path in family.glob("L0[23]*.onnx"):
            path.unlink()
        refuse(family, WEIGHTS)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_references_that_are_not_finite(self, value: float, family: Path) -> None:
        edit_reference(family, lambda arrays: arrays["L03-D032"].__setitem__((7, 31), value))
        refuse(family, rf"{REFERENCE} holds values that are not finite for L03-D032")

    @pytest.mark.parametrize(
        "edit",
        [
            lambda arrays: arrays.pop("L02-D008"),
            lambda arrays: arrays.update({"L02-D008": arrays["L02-D008"][:-1].copy()}),
            lambda arrays: arrays.update({"L02-D008": arrays["L02-D008"][:, :-1].copy()}),
            lambda arrays: arrays.update({"L02-D008": arrays["L02-D032"]}),
            lambda arrays: arrays.update({"L02-D008": arrays["L02-D008"].astype(np.float64)}),
            lambda arrays: arrays.update({"L02-D008": arrays["L02-D008"].astype(np.float16)}),
            lambda arrays: arrays.update({"L02-D008": arrays["L02-D008"][None]}),
        ],
        ids=["missing", "a row less", "a column less", "another dim", "float64", "float16", "an axis more"],
    )
    def test_references_of_another_shape(self, edit: Callable[[Arrays], object], family: Path) -> None:
        edit_reference(family, edit)
        refuse(family, rf"{REFERENCE} has no \(\d+, 8\) vectors for L02-D008")

    @pytest.mark.parametrize("content", [b"", b"\x02" + bytes(7) + b"{}", b"not safetensors at all", b"\xff" * 64])
    def test_what_is_no_reference(self, content: bytes, family: Path) -> None:
        (family / REFERENCE).write_bytes(content)
        refuse(family, REFERENCE)

    def test_a_probe_more_than_references(self, family: Path) -> None:
        with (family / PROBES).open("a", encoding="utf-8") as file:
            file.write('{"text": "one more"}\n')
        refuse(family, rf"{REFERENCE} has no \(\d+, 8\) vectors for L01-D008")

    def test_token_ids_that_do_not_fit_their_counts(self, family: Path) -> None:
        store_token_rows(family)
        edit_reference(family, lambda arrays: arrays.update(token_ids=arrays["token_ids"][:-1].copy()))
        refuse(family, "are not what token_counts add up to")

    # The caller asked for nothing wrong, so no RequestError.
    @pytest.mark.parametrize("content", [b"", b"hello\n", b'{"txt": "a"}\n' * 2, b"\xff\xfe\n"])
    def test_what_are_no_probes(self, content: bytes, family: Path) -> None:
        (family / PROBES).write_bytes(content)
        refuse(family, PROBES)

    def test_a_probe_with_a_prompt_that_the_parent_does_not_have(self, family: Path) -> None:
        lines = (family / PROBES).read_text(encoding="utf-8").split("\n")
        lines[0] = json.dumps(json.loads(lines[0]) | {"prompt": "query"})
        (family / PROBES).write_text("\n".join(lines), encoding="utf-8")
        refuse(family, "query")

    @pytest.mark.parametrize("name", ["absent", "photos"])
    def test_what_is_no_family(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "photos").mkdir()
        with pytest.raises(FamilyError, match=name):
            verify_family(tmp_path / name)


def test_load_references(exported: Path) -> None:
    family = load_family(exported)
    probes, references = load_references(hold(family))
    assert set(references) == {profile.point.name for profile in family.profiles}
    for profile in family.profiles:
        vectors = references[profile.point.name]
        assert vectors.shape == (len(probes), profile.point.dim)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_a_verdict_is_as_good_as_its_worst_way() -> None:
    good, bad = Parity(1e-7, 1, 1, 1, 0, 0), Parity(1e-3, 1, 1, 1, 2, 0)
    nothing = Parity(float("inf"), float("nan"), float("nan"), 0, 1, 1)
    assert ProfileVerdict("p", FLOOR, {"batched": good, "single": good}).passed
    for other in (bad, nothing):
        verdict = ProfileVerdict("p", FLOOR, {"batched": good, "single": other})
        assert not verdict.passed
        assert verdict.worst == ("single", other)
        assert not Verification(read_host(), (ProfileVerdict("q", FLOOR, {"single": good}), verdict)).passed


@pytest.fixture
def verification() -> Verification:
    ways = {"batched": Parity(1e-7, 1.0, 0.5, 0.25, 3, 2), "single": Parity(2e-7, 1.0, 1.0, 1.0, 0, 1)}
    verdict = ProfileVerdict("L01-D008-fp32", FLOOR, ways, Spread(1e-7, 4))
    return Verification(read_host(), (verdict,), TokenParity(66, "0.0"))


def test_what_was_recorded_is_read_back(family: Path, verification: Verification) -> None:
    loaded = load_family(family)
    path = record_measurement(loaded, verification)
    assert path == family / MEASUREMENTS / f"{read_host().slug}.json"
    verdict = verification.verdicts[0]
    assert load_measurement(loaded, read_host()) == Measurement(
        {"L01-D008-fp32": verdict.parity}, {"L01-D008-fp32": verdict.spread}, token_ids=verification.token_ids
    )
    check_family(loaded)


def test_values_that_are_no_numbers_are_read_back(family: Path) -> None:
    parity = Parity(float("inf"), float("nan"), float("nan"), 0, 1, 1)
    nothing = ProfileVerdict("L01-D008-fp32", FLOOR, {"single": parity})
    record_measurement(load_family(family), Verification(read_host(), (nothing,)))
    measured = load_measurement(load_family(family), read_host())
    assert measured is not None
    assert measured.parity["L01-D008-fp32"]["single"].max_abs == float("inf")
    assert np.isnan(measured.parity["L01-D008-fp32"]["single"].cosine_min)


def test_another_host_has_its_own(family: Path, verification: Verification) -> None:
    shutil.rmtree(family / MEASUREMENTS)
    other = msgspec.structs.replace(read_host(), cpu="another")
    record_measurement(load_family(family), dataclasses.replace(verification, host=other))
    assert load_measurement(load_family(family), read_host()) is None
    record_measurement(load_family(family), verification)
    assert len(list((family / MEASUREMENTS).iterdir())) == 2


def test_what_else_is_known_of_the_host_is_kept(family: Path, verification: Verification) -> None:
    path = record_measurement(load_family(family), verification)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"timing": {"L01-D008-fp32": 1.5}}))
    record_measurement(load_family(family), verification)
    data = json.loads(path.read_text())
    assert data["timing"] == {"L01-D008-fp32": 1.5}
    assert data["host"]["cpus"] == read_host().cpus


def test_recording_twice_gives_the_same_bytes(family: Path, verification: Verification) -> None:
    first = record_measurement(load_family(family), verification).read_bytes()
    assert record_measurement(load_family(family), verification).read_bytes() == first


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"parity": 1}', '{"parity": {"x": {"single": {}}}}', "\x00"])
def test_a_measurement_that_cannot_be_read_is_none(content: str, family: Path, verification: Verification) -> None:
    record_measurement(load_family(family), verification).write_text(content)
    assert load_measurement(load_family(family), read_host()) is None


# Otherwise it would stay in the way for good.
@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_a_measurement_that_cannot_be_read_is_replaced(content: str, family: Path, verification: Verification) -> None:
    record_measurement(load_family(family), verification).write_text(content)
    record_measurement(load_family(family), verification)
    assert load_measurement(load_family(family), read_host()) is not None


KILLED = """
import os, signal, sys
from pathlib import Path
from matexport import load_family, record_measurement, verify_family
Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
record_measurement(load_family(sys.argv[1]), verify_family(sys.argv[1]))
"""


@pytest.fixture
def interrupted(family: Path, verification: Verification) -> bytes:
    """A recording that is killed just before the file is put in place; the old one's bytes."""
    before = record_measurement(load_family(family), verification).read_bytes()
    killed = subprocess.run([sys.executable, "-c", KILLED, str(family)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list((family / MEASUREMENTS).iterdir())) == 2, "what it left"
    return before


def test_a_recording_is_all_or_nothing(interrupted: bytes, family: Path) -> None:
    assert (family / MEASUREMENTS / f"{read_host().slug}.json").read_bytes() == interrupted


# What it left must not count as an extra file for good.
def test_an_interrupted_recording_does_not_spoil_the_family(interrupted: bytes, family: Path) -> None:
    check_family(load_family(family))
