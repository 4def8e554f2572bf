"""An engine that is subtly wrong is refused, though it is within what the precision may lose against the parent."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest
from commandline import Run
from forge import edit_manifest
from numpy.typing import NDArray
from places import GOLDEN

from matexport import load_family, verify_family
from matexport.errors import RequestError
from matexport.family.integrity import Contents
from matexport.family.measurements.sections import write_sections
from matexport.host import read_host
from matexport.runtime.engines import onnxruntime
from matexport.spec.measured import ENGINES, Arithmetic, Engine, EngineFacts
from matexport.spec.profile import Precision
from matexport.spec.tolerance import ENGINE_FLOORS, FLOORS, find_engine_floor
from matexport.verify.engines import note_versions

Change = Callable[[NDArray[Any]], NDArray[Any]]
RAN = EngineFacts("openvino", "cpu", "1.0", "a processor")
F32, BF16 = Engine("openvino"), Engine("openvino-bf16")


class Changed:
    """onnxruntime's session, with something done to what it gives."""

    def __init__(self, session: Any, change: Change) -> None:
        self._session, self._change = session, change

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]], /) -> list[NDArray[Any]]:
        return [self._change(array) for array in self._session.run(outputs, feeds)]


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[[Change], None]:
    """Another engine, which is onnxruntime with a change to its vectors; the default one is itself."""

    def install(change: Change) -> None:
        def open_checked(contents: Contents, graph: str, engine: Engine | None = None) -> Any:
            session = onnxruntime.open_checked(contents, graph, threads=1)
            return session if engine is None or engine.is_default else Changed(session, change)

        for room in ("embedder", "all_points"):
            monkeypatch.setattr(f"matexport.runtime.{room}.open_checked", open_checked)
        monkeypatch.setattr("matexport.runtime.embedder.load_engine", lambda _: None)
        monkeypatch.setattr("matexport.verify.judge.check_engine", lambda _: None)
        monkeypatch.setattr("matexport.cli.commands.verify.check_engine", lambda _: None, raising=False)
        monkeypatch.setattr("matexport.runtime.engines.door.check_engine", lambda _: None)
        monkeypatch.setattr("matexport.verify.judge.describe_engine", lambda _: RAN)

    return install


def shift(size: float) -> Change:
    """One coordinate off by `size`."""

    def change(array: NDArray[Any]) -> NDArray[Any]:
        moved = array.copy()
        moved[:, 3] += np.float32(size)
        return moved

    return change


def turn(cosine: float) -> Change:
    """Vectors turned so far that they have this cosine with what they were."""

    def change(array: NDArray[Any]) -> NDArray[Any]:
        turned = array.astype(np.float64)
        length = np.hypot(turned[:, 0], turned[:, 1])
        # A turn by t in the plane of two coordinates: cos = 1 - (1 - cos t) * their share of the square of the length.
        share = np.clip((1 - cosine) / np.maximum(length**2 / (turned**2).sum(axis=1), 1e-12), 0, 2)
        angle = np.arccos(1 - share)
        first, second = turned[:, 0].copy(), turned[:, 1].copy()
        turned[:, 0] = first * np.cos(angle) - second * np.sin(angle)
        turned[:, 1] = first * np.sin(angle) + second * np.cos(angle)
        return turned.astype(np.float32)

    return change


def failed_checks(engine: Engine, folder: str = "schema4") -> dict[str, set[str]]:
    verification = verify_family(GOLDEN / folder, threads=1, engine=engine)
    return {
        verdict.profile: {check for check, breach in verdict.list_checks() if breach}
        for verdict in verification.verdicts
        if not verdict.passed
    }


def test_the_same_numbers_pass(pretend: Callable[[Change], None]) -> None:
    pretend(lambda array: array)
    assert failed_checks(F32) == {}
    assert failed_checks(BF16) == {}


def test_a_coordinate_that_the_parents_floor_lets_pass(pretend: Callable[[Change], None]) -> None:
    """5e-6: half of what float32 may be off from the parent, five times what an engine may be."""
    pretend(shift(5e-6))
    failed = failed_checks(F32)
    assert set(failed) == {"L01-D020-fp32", "L02-D020-fp32"}
    for checks in failed.values():
        assert checks
        assert all(check.endswith(", as onnxruntime") for check in checks)


def test_bfloat16_passes_for_itself_alone(pretend: Callable[[Change], None]) -> None:
    """As OpenVINO gives it where float32 was asked: nothing but the numbers says so."""

    def round_off(array: NDArray[Any]) -> NDArray[Any]:
        bits = array.view(np.uint32)
        return ((bits + 0x8000) & np.uint32(0xFFFF0000)).view(np.float32)

    pretend(round_off)
    assert set(failed_checks(F32)) == {"L01-D020-fp32", "L02-D020-fp32"}
    assert failed_checks(BF16) == {}


def test_bfloat16_has_a_floor(pretend: Callable[[Change], None]) -> None:
    pretend(turn(0.9998))
    failed = failed_checks(BF16)
    assert set(failed) == {"L01-D020-fp32", "L02-D020-fp32"}
    assert any(", as onnxruntime" in check for check in failed["L02-D020-fp32"])
    pretend(turn(0.99995))
    assert failed_checks(BF16) == {}


def test_products_of_integers_are_held_by_cosine(pretend: Callable[[Change], None]) -> None:
    """0.9975 against onnxruntime is far within what int8 may lose against the parent (0.975)."""
    pretend(turn(0.9975))
    failed = failed_checks(F32, "schema3")
    assert all(", as onnxruntime" in check for check in failed["L02-D020-int8"])
    pretend(turn(0.9990))
    assert not [name for name in failed_checks(F32, "schema3") if name.endswith("int8")]


def test_what_a_text_owes_to_its_batch_has_a_floor_there(pretend: Callable[[Change], None]) -> None:
    """onnxruntime's CPU sums alike in any batch; another engine need not, but not by any amount."""

    def alone(size: float) -> Change:
        return lambda array: shift(size)(array) if len(array) == 1 else array

    pretend(alone(5e-3))
    assert not [name for name in failed_checks(F32, "schema3") if name.endswith("int8")]
    pretend(alone(2e-2))
    assert "alone and in a batch" in failed_checks(F32, "schema3")["L02-D020-int8"]


def test_codes_of_vectors_that_are_off_are_off(pretend: Callable[[Change], None]) -> None:
    """int8 products, int8 codes: an engine whose codes are flipped in a tenth of the places."""

    def flip(array: NDArray[Any]) -> NDArray[Any]:
        if array.dtype != np.int8:
            return array
        moved = array.copy()
        moved[:, ::4] = np.where(moved[:, ::4] > 0, moved[:, ::4] - 30, moved[:, ::4] + 30)
        return moved

    pretend(flip)
    failed = failed_checks(F32, "schema2")
    assert "L01-D020-int8-int8" in failed
    assert "L01-D020-int8" not in failed


def test_rounding_adds_up_with_the_layers() -> None:
    shallow, six, deep = (find_engine_floor(Arithmetic.F32, Precision.FP32, layers).max_abs for layers in (1, 6, 24))
    assert (shallow, six) == (1e-6, 1e-6)
    assert deep == pytest.approx(4e-6)
    assert find_engine_floor(Arithmetic.F32, Precision.INT8, 24) == ENGINE_FLOORS[Arithmetic.F32][Precision.INT8]


def test_every_precision_has_a_floor_in_every_arithmetic() -> None:
    """And an engine in float32 is held nearer to onnxruntime than to the parent."""
    assert set(ENGINE_FLOORS) == set(ENGINES.values())
    for floors in ENGINE_FLOORS.values():
        assert floors.keys() == FLOORS.keys()
    for precision, floor in ENGINE_FLOORS[Arithmetic.F32].items():
        parent = FLOORS[precision]
        assert (floor.max_abs or 0) < (parent.max_abs or math.inf)
        assert (floor.cosine_min or 1) > (parent.cosine_min or 0)


def test_what_is_printed_and_written(pretend: Callable[[Change], None], run: Run, tmp_path: Path) -> None:
    pretend(shift(5e-6))
    junit = tmp_path / "parity.xml"
    result = run("verify", GOLDEN / "schema4", "--engine", "openvino", "--threads", "1", "--junit", junit)
    assert result.code == 1
    assert "run by openvino 1.0, on a processor; from onnxruntime on the CPU at most 5" in result.out
    assert "is off its floor: max abs difference 5e-06, allowed 1e-06 (batched, as onnxruntime)" in result.err
    names = {case.get("name") for case in ElementTree.parse(junit).iter("testcase")}
    assert {"parity batched", "parity batched, as onnxruntime"} <= names
    document = run("verify", GOLDEN / "schema4", "--engine", "openvino", "--json").json
    assert document["engine"] == {"name": "openvino", "provider": "cpu", "version": "1.0", "device": "a processor"}
    (first, _) = document["profiles"]  # type: ignore[misc]
    assert first["engines"]["tolerance"]["max_abs"] == 1e-6


def test_one_profile_alone(run: Run) -> None:
    result = run("verify", GOLDEN / "schema4", "--profile", "L02-D020-fp32", "--json")
    assert [row["profile"] for row in result.json["profiles"]] == ["L02-D020-fp32"]  # type: ignore[attr-defined]
    run("verify", GOLDEN / "schema4", "--profile", "L09-D020-fp32").complains("L09-D020-fp32", code=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--engine", "openvino", "--baseline", GOLDEN / "schema4"), "--baseline compares all profiles in onnxruntime"),
        (("--profile", "L02-D020-fp32", "--record"), "--record keeps what is known of all profiles"),
        (("--provider", "cuda"), "the provider cuda was asked; the installed onnxruntime"),
    ],
)
def test_what_does_not_go_together(run: Run, options: tuple[object, ...], said: str) -> None:
    run("verify", GOLDEN / "schema4", *options).complains(said)


@pytest.mark.parametrize("before", [True, False], ids=["not installed", "does not start"])
def test_a_provider_that_is_refused_is_a_failure_in_junit(
    before: bool, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And every check of a profile is skipped: a CI that reads the file alone does not take it for a pass."""
    said = "the provider cuda was asked; "
    if not before:

        def refuse(*_given: Any, **_options: Any) -> Any:
            raise RequestError(f"{said}it does not start here")

        monkeypatch.setattr("matexport.runtime.engines.door.check_engine", lambda _engine: None)
        monkeypatch.setattr("matexport.verify.judge.verify_case", refuse)
    junit = tmp_path / "parity.xml"
    run("verify", GOLDEN / "schema4", "--provider", "cuda", "--junit", junit).complains(said)
    (suite,) = ElementTree.parse(junit).getroot()
    assert (suite.get("failures"), suite.get("errors")) == ("1", "0")
    (failure,) = suite.iter("failure")
    assert failure.get("type") == "unusable"
    assert str(failure.get("message")).startswith(said)
    skipped = [case for case in suite if case.find("skipped") is not None]
    assert {case.get("classname") for case in skipped} >= {"L01-D020-fp32", "L02-D020-fp32"}
    assert all(str(it.get("message")).startswith(f"not checked: {said}") for it in suite.iter("skipped"))
    run("verify", tmp_path, "--provider", "cuda", "--junit", junit).complains("has no family.json")


@pytest.mark.parametrize(
    ("new", "old", "here", "noted"),
    [
        ("1.31.1", "1.22.1", "1.31.1", True),
        ("1.22.1", "1.22.1", "1.31.1", True),
        ("1.20.0", "1.31.1", "1.24.4", True),
        ("1.30.0", "1.31.1", "1.32.0", False),
        ("1.24.1", "1.22.1", "1.24.4", False),
    ],
)
def test_versions_that_round_otherwise_are_noted(
    new: str, old: str, here: str, noted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """int8 alone; the version that runs here counts as one of NEW's."""
    host = msgspec.structs.replace(read_host(), onnxruntime=here)
    monkeypatch.setattr("matexport.verify.engines.read_host", lambda: host)
    sides = []
    for name, version in (("new", new), ("old", old)):
        shutil.copytree(GOLDEN / "schema3", tmp_path / name)
        edit_manifest(tmp_path / name, lambda data, version=version: set_runtime(data, version))
        sides.append(load_family(tmp_path / name))
    notes = note_versions(*sides, ["L02-D020-fp32", "L02-D020-int8"])
    assert bool(notes) == noted
    assert all("int8 vectors of the same files differ by up to 6e-3" in note for note in notes)
    assert note_versions(*sides, ["L02-D020-fp32"]) == []


def set_runtime(data: dict[str, Any], version: str) -> None:
    data["provenance"]["versions"]["onnxruntime"] = version


def test_a_host_that_measured_counts(tmp_path: Path) -> None:
    family = load_family(shutil.copytree(GOLDEN / "schema3", tmp_path / "old"))
    assert note_versions(family, family, ["L02-D020-int8"]) == []
    host = msgspec.structs.replace(read_host(), onnxruntime="1.22.0")
    write_sections(family, host, {"parity": {}})
    (note,) = note_versions(load_family(GOLDEN / "schema3"), family, ["L02-D020-int8"])
    assert "OLD in 1.22.0" in note
