"""One pass gives what the profiles give; and a graph of all exits that does not is found out."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import write_texts
from forge import flip_byte, reseal
from places import GOLDEN

from matexport import Embedder, load_family, pack_profile, verify_family
from matexport.errors import FamilyError, RequestError
from matexport.runtime.all_points import ExitsEmbedder
from matexport.spec.profile import Point, Precision

EXITS = "exits.fp32.onnx"


@pytest.fixture
def family(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "family"))


def test_vectors_are_those_of_the_profiles_in_the_order_of_the_texts(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over several windows, with texts of many lengths."""
    monkeypatch.setattr("matexport.runtime.batches.WINDOW_ITEMS", 7)
    texts = write_texts(tmp_path / "texts.txt", 40).read_text().splitlines()
    loaded = load_family(exported)
    with ExitsEmbedder(loaded, Precision.FP32, threads=2) as exits:
        windows = list(exits.embed_windows(texts))
    assert len(windows) == 6
    for profile in loaded.profiles:
        vectors = np.concatenate([window[profile.point] for window in windows])
        with Embedder(loaded, profile.name) as embedder:
            np.testing.assert_allclose(vectors, embedder.embed(texts), atol=2e-6)


def test_a_prompt_stands_before_each_text() -> None:
    loaded = load_family(GOLDEN / "schema3")
    with ExitsEmbedder(loaded, Precision.FP32) as exits, Embedder(loaded, "L02-D020-fp32") as embedder:
        (plain,), (prompted,) = (list(exits.embed_windows(["a dog"], prompt=name)) for name in ("", "query"))
        np.testing.assert_allclose(prompted[Point(2, 20)], embedder.embed(["a dog"], prompt="query"), atol=2e-6)
        assert np.abs(prompted[Point(2, 20)] - plain[Point(2, 20)]).max() > 1e-3
        with pytest.raises(RequestError, match="prompt 'other' was asked"):
            list(exits.embed_windows(["a dog"], prompt="other"))


def swap_outputs(graph: Path, one: str, other: str) -> None:
    model = onnx.load(graph, load_external_data=False)
    names = {one: other, other: one}
    for node in model.graph.node:
        node.output[:] = [names.get(name, name) for name in node.output]
        node.input[:] = [names.get(name, name) for name in node.input]
    graph.write_bytes(model.SerializeToString())


def test_exits_of_another_depth_are_refused(family: Path) -> None:
    """All that is wrong is which exit has which name: every vector is some exit of the parent."""
    swap_outputs(family / EXITS, "L01-D032", "L02-D032")
    reseal(family)
    verification = verify_family(family)
    wrong = {verdict.profile: verdict.find_breach() for verdict in verification.verdicts if not verdict.passed}
    assert {name: found[0] for name, found in wrong.items() if found} == {
        "L01-D032-fp32": "together",
        "L02-D032-fp32": "together",
    }


@pytest.mark.usefixtures("no_session")
def test_a_changed_graph_is_refused_before_any_session(family: Path) -> None:
    flip_byte(family / EXITS, 100)
    with pytest.raises(FamilyError, match=f"changed: {EXITS} has another sha256"):
        ExitsEmbedder(load_family(family), Precision.FP32)
    with pytest.raises(FamilyError, match=f"changed: {EXITS} has another sha256"):
        verify_family(family)


@pytest.mark.usefixtures("no_session")
def test_a_graph_that_reads_another_file_is_refused(family: Path) -> None:
    content = (family / EXITS).read_bytes()
    (family / EXITS).write_bytes(content.replace(b"weights.fp32.safetensors", b"/eights.fp32.safetensors", 1))
    reseal(family)
    with pytest.raises(FamilyError, match="which is not a weights file"):
        ExitsEmbedder(load_family(family), Precision.FP32)
    with pytest.raises(FamilyError, match="which is not a weights file"):
        verify_family(family)


def test_an_older_family_has_none() -> None:
    with pytest.raises(FamilyError, match="no graph of all exits in fp32: an older matexport made it"):
        ExitsEmbedder(load_family(GOLDEN / "schema2"), Precision.FP32)


def test_a_pack_has_none(exported: Path, tmp_path: Path) -> None:
    pack = pack_profile(exported, "L02-D032-fp32", tmp_path / "pack")
    assert pack.facts.exits == {}
    assert verify_family(tmp_path / "pack").passed


def test_a_vector_that_is_not_finite_is_an_error(family: Path) -> None:
    model = onnx.load(family / EXITS, load_external_data=False)
    node = next(node for node in model.graph.node if "L01-D032" in node.output)
    node.output[:] = ["before"]
    model.graph.node.append(onnx.helper.make_node("Log", ["negative"], ["L01-D032"]))
    model.graph.node.insert(len(model.graph.node) - 1, onnx.helper.make_node("Exp", ["before"], ["positive"]))
    model.graph.node.insert(len(model.graph.node) - 1, onnx.helper.make_node("Neg", ["positive"], ["negative"]))
    (family / EXITS).write_bytes(model.SerializeToString())
    reseal(family)
    with (
        ExitsEmbedder(load_family(family), Precision.FP32) as exits,
        pytest.raises(FamilyError, match="not finite at L01-D032"),
    ):
        list(exits.embed_windows(["the cat"]))
