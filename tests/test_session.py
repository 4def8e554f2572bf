"""A session runs where it was asked to, or is refused by name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from matexport import Embedder, session
from matexport.errors import FamilyError, RequestError
from matexport.session import check_assignment, open_session
from matexport.spec import PROVIDERS

CUDA, CPU = PROVIDERS["cuda"], PROVIDERS["cpu"]
GRAPH = "L01-D008.fp32.onnx"


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "openvino", "coreml"])
def test_a_provider_that_is_not_installed(provider: str, exported: Path) -> None:
    message = f"the provider {provider} was asked; the installed onnxruntime .* has: cpu$"
    with pytest.raises(RequestError, match=message):
        open_session(exported / GRAPH, provider=provider)
    with pytest.raises(RequestError, match=message):
        Embedder(exported, "L01-D008-fp32", provider=provider)


def pretend(monkeypatch: pytest.MonkeyPatch, running: list[str], assigned: list[tuple[str, str, str]]) -> Any:
    """An onnxruntime that has CUDA, whose sessions say that they run on `running`."""
    made = SimpleNamespace(
        disable_fallback=lambda: None,
        get_providers=lambda: running,
        get_provider_graph_assignment_info=lambda: [
            SimpleNamespace(
                ep_name=where, get_nodes=lambda node=(op, name): [SimpleNamespace(op_type=node[0], name=node[1])]
            )
            for where, op, name in assigned
        ],
    )
    monkeypatch.setattr(session.onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(session, "_create", lambda *_: made)
    return made


def test_a_provider_whose_libraries_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """onnxruntime warns at most, and goes on without it."""
    pretend(monkeypatch, [CPU], [(CPU, "MatMul", "a")])
    with pytest.raises(RequestError, match="the provider cuda was asked; it does not start here"):
        open_session(tmp_path / GRAPH, provider="cuda")


def test_one_node_that_falls_back_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nodes = [(CUDA, "MatMul", "product"), (CPU, "Shape", "length"), (CPU, "LayerNormalization", "norm_3")]
    pretend(monkeypatch, [CUDA, CPU], nodes)
    with pytest.raises(
        FamilyError, match=rf"{GRAPH}: the provider cuda .* 1 nodes .* on the CPU: LayerNormalization norm_3$"
    ):
        open_session(tmp_path / GRAPH, provider="cuda")
    made = pretend(monkeypatch, [CUDA, CPU], nodes[:2])
    assert open_session(tmp_path / GRAPH, provider="cuda") is made


def test_many_nodes_are_counted_and_some_named() -> None:
    nodes = [(CUDA, "Add", "x"), *((CPU, "MatMul", f"n{index}") for index in range(9))]
    with pytest.raises(FamilyError, match=r"9 nodes .* MatMul n0, .*MatMul n4 \.\.\.$"):
        check_assignment(GRAPH, "cuda", nodes)


def test_shapes_alone_are_no_run_on_the_provider() -> None:
    with pytest.raises(FamilyError, match="none of its nodes run there"):
        check_assignment(GRAPH, "cuda", [(CPU, "Shape", "a"), (CPU, "Gather", "b")])


def test_on_the_cpu_every_node_is_assigned_to_it(exported: Path) -> None:
    """The record that the check reads is what onnxruntime gives."""
    options = session.onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    made = session.onnxruntime.InferenceSession(exported / GRAPH, options, providers=[CPU])
    nodes = [
        (part.ep_name, node.op_type) for part in made.get_provider_graph_assignment_info() for node in part.get_nodes()
    ]
    assert {where for where, _ in nodes} == {CPU}
    assert "MatMul" in {operator for _, operator in nodes} | {"FusedMatMul"}
