"""Token push-down: same vectors, less work, and nothing where all tokens are needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from conftest import TEXTS
from oracle import Oracle
from parents import SHAPES, WIDTH, make_parent

from matexport import Embedder, load_family
from matexport.errors import ParityError
from matexport.export import export_family
from matexport.export.graph import narrow
from matexport.export.graph.edit import add_constant, assert_sound
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.profile import Point
from matexport.spec.readout import FinalNorm, ReadoutRequest

pytestmark = pytest.mark.usefixtures("quick_traces")

NORMS = {"modernbert": "final_norm"}
INSERT_SLICE = narrow._insert_slice
ENCODERS = ["bert", "xlm-roberta", "mpnet", "distilbert", "modernbert"]


def export_cls(kind: str, folder: Path, points: tuple[Point, ...]) -> tuple[Path, Path]:
    parent = make_parent(folder / "parent", kind, pooling="cls")
    readout = ReadoutRequest(final_norm=FinalNorm.KEEP if SHAPES[kind].prenorm else None)
    export_family(ExportJob(ParentSource(str(parent)), points, readout), folder / "family")
    return parent, folder / "family"


def shapes_inside(graph: Path, batch: int, tokens: int) -> dict[str, list[tuple[int, ...]]]:
    """Run a graph with every value as an output: operator -> shapes of what it gave."""
    model = onnx.load(graph)
    made = {node.output[0]: node.op_type for node in model.graph.node}
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    path = graph.with_name("all_outputs.onnx")
    onnx.save(model, path)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options)
    ids = np.full((batch, tokens), 7, dtype=np.int64)
    feeds = {item.name: ids if item.name == "input_ids" else np.ones_like(ids) for item in session.get_inputs()}
    feeds = {name: np.zeros_like(ids) if name == "token_type_ids" else value for name, value in feeds.items()}
    found: dict[str, list[tuple[int, ...]]] = {}
    for name, value in zip(made, session.run(list(made), feeds), strict=True):
        found.setdefault(made[name], []).append(np.shape(value))
    return found


@pytest.mark.parametrize("kind", ENCODERS)
def test_narrowed_blocks_give_the_oracles_vectors(kind: str, tmp_path: Path) -> None:
    points = (Point(1, WIDTH), Point(2, WIDTH), Point(3, WIDTH))
    parent, family = export_cls(kind, tmp_path, points)
    oracle = Oracle(parent, NORMS.get(kind))
    for point in points:
        assert_sound(ir.load(family / f"{point.name}.fp32.onnx"))
        expected = np.stack([oracle.vector(text, point.layers, point.dim, "cls") for text in TEXTS])
        np.testing.assert_allclose(Embedder(family, f"{point.name}-fp32").embed(TEXTS), expected, atol=2e-6)


@pytest.mark.parametrize("kind", ENCODERS)
def test_the_last_blocks_feed_forward_sees_one_token(kind: str, tmp_path: Path) -> None:
    _, family = export_cls(kind, tmp_path, (Point(2, WIDTH),))
    batch, tokens = 3, 11
    assert load_family(family).profile_facts("L02-D032-fp32").narrowed_nodes >= 8
    found = shapes_inside(family / "L02-D032.fp32.onnx", batch, tokens)
    activations = [shape for shape in found["Gelu"] if len(shape) == 3]
    assert sorted(shape[1] for shape in activations) == [1, tokens]  # block 2 narrowed, block 1 whole
    attention = [shape for shape in found["Softmax"] if len(shape) == 4]
    assert sorted(shape[2] for shape in attention) == [1, tokens]
    assert all(shape[3] == tokens for shape in attention)  # keys and values stay whole


def test_mean_pooling_narrows_nothing(family: Path) -> None:
    found = shapes_inside(family / "L02-D032.fp32.onnx", 2, 9)
    assert {shape[1] for shape in found["Gelu"] if len(shape) == 3} == {9}


def test_the_wrong_token_is_blamed_on_narrowing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrow, "_insert_slice", _insert_second_token)
    parent = make_parent(tmp_path / "parent", "bert", pooling="cls")
    with pytest.raises(ParityError) as caught:
        export_family(ExportJob(ParentSource(str(parent)), (Point(2, WIDTH),)), tmp_path / "family")
    assert caught.value.stage == "narrow"
    assert not (tmp_path / "family").exists()


def _insert_second_token(graph: ir.Graph, value: ir.Value, axis: int) -> ir.Value:
    out = INSERT_SLICE(graph, value, axis)
    out.producer().replace_input_with(1, add_constant(graph, "one", np.array([1])))
    out.producer().replace_input_with(2, add_constant(graph, "two", np.array([2])))
    return out
