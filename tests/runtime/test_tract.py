"""tract on the golden families: the bytes that were checked, from a file that nobody else can read and that is gone."""

from __future__ import annotations

import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from commandline import Run
from forge import hold
from places import GOLDEN

from matexport import Embedder, load_family, verify_family
from matexport.errors import FamilyError, RequestError
from matexport.family.guard import inside
from matexport.family.integrity import check_profile
from matexport.family.measurements.records import load_measurement
from matexport.host import read_host
from matexport.runtime.engines import tract as engine
from matexport.spec.measured import Engine

tract = pytest.importorskip("tract")

NAME = "L02-D020-fp32"
TEXTS = ["a cat sits on the mat", "the dog", "", "snow in the house of the city 42 ! " * 8]


@pytest.fixture
def family(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "schema4", tmp_path / "family"))


@pytest.mark.parametrize(
    ("folder", "name"), [("schema4", NAME), ("schema2", "L01-D020-fp32"), ("schema1", "L03-D016-fp32")]
)
def test_it_gives_the_vectors_of_onnxruntime(folder: str, name: str) -> None:
    expected = Embedder(GOLDEN / folder, name, threads=1).embed(TEXTS)
    embedder = Embedder(GOLDEN / folder, name, threads=1, engine="tract")
    np.testing.assert_allclose(embedder.embed(TEXTS), expected, atol=1e-6)
    np.testing.assert_allclose(np.concatenate([embedder.embed([text]) for text in TEXTS]), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["L01-D020-fp32-int8", "L01-D020-fp32-ubinary"])
def test_it_gives_codes(name: str) -> None:
    found = Embedder(GOLDEN / "schema2", name, engine="tract").embed(TEXTS)
    expected = Embedder(GOLDEN / "schema2", name).embed(TEXTS)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_a_family_passes_and_is_recorded_under_its_name(run: Run, family: Path) -> None:
    result = run("verify", family, "--engine", "tract", "--record", "--threads", "1")
    assert result.code == 0
    assert f"run by tract {tract.version()}, on " in result.out
    measured = load_measurement(load_family(family), read_host(), "engine tract")
    assert measured is not None
    assert set(measured.engines) == {"L01-D020-fp32", NAME}
    assert run("embed", family, "--profile", NAME, "--engine", "tract", "a cat").code == 0


def test_vectors_that_are_off_are_refused(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By 5e-6 at one coordinate: half of what the parent's floor lets pass."""
    whole = engine.TractSession.run

    def shift(self: engine.TractSession, outputs: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [array + np.float32(5e-6) * (np.arange(array.shape[-1]) == 3) for array in whole(self, outputs, feeds)]

    monkeypatch.setattr(engine.TractSession, "run", shift)
    verification = verify_family(family, threads=1, engine=Engine("tract"))
    failed = [check for verdict in verification.verdicts for check, breach in verdict.list_checks() if breach]
    assert failed
    assert all(check.endswith(", as onnxruntime") for check in failed)


def test_operators_that_it_lacks_are_named_in_one_line(run: Run) -> None:
    said = r"^tract 0.* cannot load L02-D020\.int8\.onnx: .*MatMulIntegerToFloat"
    with pytest.raises(FamilyError, match=said) as caught:
        Embedder(GOLDEN / "schema3", "L02-D020-int8", engine="tract")
    assert "backtrace" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_several_threads_share_it() -> None:
    embedder = Embedder(GOLDEN / "schema4", NAME, threads=2, engine="tract")
    expected = embedder.embed(TEXTS)
    with ThreadPoolExecutor(4) as pool:
        for vectors in pool.map(lambda _: embedder.embed(TEXTS, batch_budget=30), range(12)):
            np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_what_was_checked_is_what_runs(family: Path) -> None:
    """Whatever lies under the graph's and the weights' names since."""
    expected = Embedder(GOLDEN / "schema4", NAME, engine="tract").embed(TEXTS)
    contents = check_profile(load_family(family), NAME)
    for name in ("weights.fp32.safetensors", "L02-D020.fp32.onnx"):
        content = bytes(len((family / name).read_bytes()))
        (family / name).unlink()
        (family / name).write_bytes(content)
    np.testing.assert_array_equal(Embedder(contents, NAME, engine="tract").embed(TEXTS), expected)


def test_its_file_is_private_and_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, list[str]]] = []
    load = tract.Onnx.load

    def note(self: object, path: Path) -> object:
        seen.append((stat.S_IMODE(path.parent.stat().st_mode), [file.name for file in path.parent.iterdir()]))
        return load(self, path)

    monkeypatch.setattr(tract.Onnx, "load", note)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    Embedder(GOLDEN / "schema4", NAME, engine="tract").embed(TEXTS)
    with pytest.raises(FamilyError):
        Embedder(GOLDEN / "schema3", "L02-D020-int8", engine="tract")
    assert seen == [(0o700, ["graph.onnx"])] * 2
    assert list(tmp_path.iterdir()) == []


def test_more_than_a_file_may_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inside, "MAX_MESSAGE_BYTES", 10_000)
    with pytest.raises(RequestError, match=r"the engine tract was asked; the weights have more than 2 GB, .*: take "):
        Embedder(GOLDEN / "schema4", NAME, engine="tract")


def test_outputs_are_taken_by_their_names() -> None:
    """Of a graph of all exits, whose order is its own."""
    contents = hold(GOLDEN / "schema4")
    session = engine.open_checked(contents, "exits.fp32.onnx", Engine("tract"))
    feeds = {name: np.ones((1, 4), np.int64) for name in contents.family.facts.inputs.inputs}
    feeds |= {"input_ids": np.array([[2, 7, 8, 3]]), "token_type_ids": np.zeros((1, 4), np.int64)}
    feeds = {name: feeds[name] for name in contents.family.facts.inputs.inputs}
    first, second = session.run(["L02-D020", "L01-D020"], feeds)
    turned = session.run(["L01-D020", "L02-D020"], feeds)
    np.testing.assert_array_equal(first, turned[1])
    np.testing.assert_array_equal(second, turned[0])
    assert np.abs(first - second).max() > 1e-3
