"""OpenVINO's own runtime on the golden families: the bytes that were checked, in the arithmetic that was asked for."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from commandline import Run
from forge import hold, overwrite_values, reseal
from places import GOLDEN

from matexport import Embedder, load_family, verify_family
from matexport.errors import FamilyError, RequestError
from matexport.family.integrity import check_profile
from matexport.family.measurements.records import load_bench, load_measurement
from matexport.family.weights_file import read_header
from matexport.host import read_host
from matexport.runtime.all_points import ExitsEmbedder
from matexport.runtime.engines import openvino as engine
from matexport.spec.measured import Engine, EngineFacts
from matexport.spec.profile import Precision

openvino = pytest.importorskip("openvino")

NAME = "L02-D020-fp32"
TEXTS = ["a cat sits on the mat", "the dog", "", "snow in the house of the city 42 ! " * 8]
F32, BF16 = Engine("openvino"), Engine("openvino-bf16")


@pytest.fixture
def family(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "schema4", tmp_path / "family"))


@pytest.mark.parametrize(
    ("folder", "name"),
    [("schema4", NAME), ("schema3", "L02-D020-int8"), ("schema2", "L01-D020-fp32"), ("schema1", "L03-D016-fp32")],
)
def test_it_gives_the_vectors_of_onnxruntime(folder: str, name: str) -> None:
    """In any batch; with int8 products as with float32."""
    expected = Embedder(GOLDEN / folder, name, threads=1).embed(TEXTS)
    embedder = Embedder(GOLDEN / folder, name, threads=1, engine="openvino")
    np.testing.assert_allclose(embedder.embed(TEXTS), expected, atol=1e-6)
    np.testing.assert_allclose(np.concatenate([embedder.embed([text]) for text in TEXTS]), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["L01-D020-int8-int8", "L01-D020-fp32-ubinary"])
def test_it_gives_codes(name: str) -> None:
    found = Embedder(GOLDEN / "schema2", name, engine="openvino").embed(TEXTS)
    expected = Embedder(GOLDEN / "schema2", name).embed(TEXTS)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_it_gives_all_exits() -> None:
    loaded = load_family(GOLDEN / "schema4")
    with ExitsEmbedder(loaded, Precision.FP32, engine=F32) as exits:
        (window,) = exits.embed_windows(TEXTS)
    for point, vectors in window.items():
        expected = Embedder(loaded, f"{point.name}-fp32").embed(TEXTS)
        np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_several_threads_share_it() -> None:
    embedder = Embedder(GOLDEN / "schema4", NAME, threads=2, engine="openvino")
    expected = embedder.embed(TEXTS)
    with ThreadPoolExecutor(4) as pool:
        for vectors in pool.map(lambda _: embedder.embed(TEXTS, batch_budget=30), range(12)):
            np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_what_was_checked_is_what_runs(family: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever lies under the graph's and the weights' names since, in the folder and where the process stands."""
    expected = Embedder(GOLDEN / "schema4", NAME, engine="openvino").embed(TEXTS)
    contents = check_profile(load_family(family), NAME)
    other = (family / "weights.fp32.safetensors").stat().st_size * b"\0"
    for folder in (family, tmp_path / "cwd"):
        folder.mkdir(exist_ok=True)
        for name in ("weights.fp32.safetensors", "L02-D020.fp32.onnx"):
            (folder / name).unlink(missing_ok=True)
            (folder / name).write_bytes(other)
    monkeypatch.chdir(tmp_path / "cwd")
    np.testing.assert_array_equal(Embedder(contents, NAME, engine="openvino").embed(TEXTS), expected)


def test_the_graph_is_otherwise_as_it_was(family: Path) -> None:
    """The subset of onnx.proto that reads it keeps the fields that it does not know, such as attributes of floats."""
    pointed = onnx.load_from_string(engine._point_to_memory(hold(family), "L02-D020.fp32.onnx"))
    before = onnx.load(family / "L02-D020.fp32.onnx", load_external_data=False)
    moved = [tensor for tensor in pointed.graph.initializer if tensor.external_data]
    assert moved
    assert {entry.value for tensor in moved for entry in tensor.external_data if entry.key == "location"} == {
        engine.LOCATION_IN_MEMORY
    }
    for model in (pointed, before):
        for tensor in model.graph.initializer:
            tensor.ClearField("external_data")
    assert pointed == before


def test_float32_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Left to itself, OpenVINO takes bfloat16 where a CPU has it."""
    asked = []
    compile_model = openvino.Core.compile_model

    def note(core: object, model: object, device: str, settings: dict[str, object]) -> object:
        asked.append(settings)
        return compile_model(core, model, device, settings)

    monkeypatch.setattr(openvino.Core, "compile_model", note)
    Embedder(GOLDEN / "schema4", NAME, threads=1, engine="openvino")
    assert [(one["INFERENCE_PRECISION_HINT"], one["INFERENCE_NUM_THREADS"]) for one in asked] == [("f32", 1)]


def test_a_cpu_that_computes_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As OpenVINO does with half precision on a CPU: it takes another, and says nothing."""
    monkeypatch.setitem(engine._HINTS, BF16.arithmetic, "f16")
    with pytest.raises(RequestError, match=r"the engine openvino-bf16 was asked; OpenVINO computes in f.* on this CPU"):
        Embedder(GOLDEN / "schema4", NAME, engine=BF16)


def test_bfloat16_is_a_choice_with_a_floor_of_its_own() -> None:
    plain, coarse = (verify_family(GOLDEN / "schema4", threads=1, engine=engine) for engine in (F32, BF16))
    assert plain.passed
    assert coarse.passed
    assert plain.engine is not None
    assert coarse.engine == EngineFacts("openvino-bf16", "cpu", plain.engine.version, plain.engine.device)
    for one, other in zip(plain.verdicts, coarse.verdicts, strict=True):
        assert one.tolerance.max_abs == 1e-5
        assert (other.tolerance.max_abs, other.tolerance.cosine_min) == (None, pytest.approx(0.9999))
        assert one.engine is not None
        assert other.engine is not None
        assert one.engine.parity.keys() == one.parity.keys()
        assert max(parity.max_abs for parity in one.engine.parity.values()) < 1e-6
        assert min(parity.max_abs for parity in other.engine.parity.values()) > 1e-4


def test_weights_that_are_off_are_off_in_any_engine(family: Path) -> None:
    """Both engines agree on them: it is the parent that does not."""
    weights = family / "weights.fp32.safetensors"
    entry = read_header(weights).entries[-1]  # of the last block
    overwrite_values(weights, entry.name, np.full(entry.shape, 0.01, np.float32))
    reseal(family)
    verification = verify_family(family, engine=F32)
    assert not verification.passed
    failed = [check for verdict in verification.verdicts for check, breach in verdict.list_checks() if breach]
    assert failed
    assert not [check for check in failed if "as onnxruntime" in check]


def test_a_graph_that_it_cannot_read(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_point_to_memory", lambda *_: b"\x08\x0a")
    with pytest.raises(FamilyError, match=rf"openvino 2.* cannot load {NAME[:8]}.fp32.onnx: "):
        Embedder(family, NAME, engine="openvino")


def test_the_commands_take_it(run: Run, family: Path) -> None:
    """`verify` and `bench` keep what they found under the engine's name, beside onnxruntime's."""
    result = run("verify", family, "--engine", "openvino", "--record", "--threads", "1")
    assert result.code == 0
    assert f"run by openvino {openvino.__version__.partition('-')[0]}, on " in result.out
    assert "from onnxruntime on the CPU at most" in result.out
    loaded, here = load_family(family), read_host()
    assert load_measurement(loaded, here) is None
    measured = load_measurement(loaded, here, "engine openvino")
    assert measured is not None
    assert measured.engine is not None
    assert (measured.engine.name, set(measured.engines)) == ("openvino", {"L01-D020-fp32", NAME})

    plan = ("--profile", NAME, "--threads", "1", "--shape", "1x8", "--runs", "2", "--seconds", "1")
    result = run("bench", family, *plan, "--engine", "openvino-bf16")
    assert result.code == 0
    assert "run by openvino-bf16 " in result.out
    assert load_bench(loaded, here) is None
    bench = load_bench(loaded, here, "engine openvino-bf16")
    assert bench is not None
    assert bench.engine is not None
    assert bench.engine.device == measured.engine.device
    assert run("embed", family, "--profile", NAME, "--engine", "openvino", "a cat").code == 0
