"""OpenCV's own engine on a family whose mask it can read, and what it refuses, in words."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from forge import hold
from places import GOLDEN

from matexport import Embedder
from matexport.errors import FamilyError, RequestError
from matexport.family.guard.inside import read_whole
from matexport.family.integrity import Contents
from matexport.runtime.engines import opencv as engine
from matexport.spec.measured import Engine

cv2 = pytest.importorskip("cv2")

NAME, GRAPH = "L02-D020-fp32", "L02-D020.fp32.onnx"
TEXTS = ["a cat sits on the mat", "the dog", "", "snow in the house of the city 42 ! " * 8]
ASKED = Engine("opencv", threads=1)


def write_plain_mask(model: Any) -> Any:
    """The golden graph with the attention's mask as later exports write it: the mask with two axes put in, as bool.

    That of the golden families is looked up number by number, by a GatherND of bools that OpenCV does not have.
    """
    graph = model.graph
    wheres = [node for node in graph.node if node.op_type == "Where"]
    assert len({node.input[0] for node in wheres}) == 1
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 2]), "mask.axes"))
    made = [
        onnx.helper.make_node("Unsqueeze", ["attention_mask", "mask.axes"], ["mask.numbers"]),
        onnx.helper.make_node("Cast", ["mask.numbers"], ["mask.plain"], to=onnx.TensorProto.BOOL),
    ]
    for node in wheres:
        node.input[0] = "mask.plain"
    for place, node in enumerate(made):
        graph.node.insert(place, node)
    needed, kept = {value.name for value in graph.output}, []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    return model


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def read(contents: Contents, graph: str, asked: str) -> Any:
        model = onnx.load_from_string(read_whole(contents, graph, asked).SerializeToString())
        return write_plain_mask(model)

    monkeypatch.setattr(engine, "read_whole", read)
    return read


def test_it_gives_the_vectors_of_onnxruntime(plain: object) -> None:
    """One after the other in any length, and in batches."""
    expected = Embedder(GOLDEN / "schema4", NAME, threads=1).embed(TEXTS)
    embedder = Embedder(GOLDEN / "schema4", NAME, engine=ASKED)
    np.testing.assert_allclose(embedder.embed(TEXTS), expected, atol=1e-6)
    np.testing.assert_allclose(np.concatenate([embedder.embed([text]) for text in TEXTS]), expected, atol=1e-6)


def test_several_threads_take_turns(plain: object) -> None:
    """A network keeps what it was fed: two at a time would be given each other's texts."""
    embedder = Embedder(GOLDEN / "schema4", NAME, threads=2, engine="opencv")
    expected = embedder.embed(TEXTS)
    with ThreadPoolExecutor(4) as pool:
        for vectors in pool.map(lambda _: embedder.embed(TEXTS, batch_budget=30), range(12)):
            np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_arrays_are_the_callers_own(plain: object) -> None:
    embedder = Embedder(GOLDEN / "schema4", NAME, engine=ASKED)
    rows = embedder.prepare(TEXTS)
    first = embedder.run(rows[:1])
    kept = first.copy()
    embedder.run(rows[1:2])
    np.testing.assert_array_equal(first, kept)


def test_a_graph_that_it_cannot_run_is_refused_by_name() -> None:
    embedder = Embedder(GOLDEN / "schema4", NAME, engine=ASKED)
    with pytest.raises(FamilyError, match=f"^opencv cannot run {NAME}: .*GatherND: unsupported data type"):
        embedder.embed(TEXTS)


def test_operators_that_it_lacks_are_named_and_no_other_engine_is_tried(capfd: pytest.CaptureFixture[str]) -> None:
    """It warns on standard error and hands the graph to OpenCV 4's engine, unless it is told which to take."""
    said = rf"^opencv {cv2.__version__} cannot load L02-D020\.int8\.onnx: it has none of the operators MatMulIntegerToF"
    with pytest.raises(FamilyError, match=said):
        Embedder(GOLDEN / "schema3", "L02-D020-int8", engine=ASKED)
    assert capfd.readouterr().err == ""


def test_what_is_no_graph_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = onnx.ModelProto(ir_version=8)
    monkeypatch.setattr(engine, "read_whole", lambda *_: empty)
    with pytest.raises(FamilyError, match=rf"opencv {cv2.__version__} cannot load {GRAPH}: "):
        engine.open_checked(hold(GOLDEN / "schema4"), GRAPH, ASKED)


def test_an_opencv_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "__version__", "4.13.0")
    with pytest.raises(RequestError, match=r"the engine opencv was asked; OpenCV 4\.13\.0 is installed, and graph"):
        Embedder(GOLDEN / "schema4", NAME, engine=ASKED)


def test_bytes_alone_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    read = cv2.dnn.readNetFromONNX
    monkeypatch.setattr(cv2.dnn, "readNetFromONNX", lambda *asked: given.append(asked) or read(*asked))
    engine.open_checked(hold(GOLDEN / "schema4"), GRAPH, ASKED)
    ((content, asked),) = given
    assert content.dtype == np.uint8
    assert asked == cv2.dnn.ENGINE_NEW
    model = onnx.load_from_string(content.tobytes())
    assert not any(tensor.external_data for tensor in model.graph.initializer)
