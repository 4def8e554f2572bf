"""A session runs where it was asked to, or is refused by name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import onnxruntime
import pytest
from commandline import Run
from places import GOLDEN

from matexport import Embedder
from matexport.errors import FamilyError, RequestError
from matexport.runtime.engines import onnxruntime as engine
from matexport.runtime.engines.door import check_engine, describe_engine
from matexport.runtime.engines.onnxruntime import open_session
from matexport.runtime.placement import check_assignment, find_integer_nodes
from matexport.spec.measured import PROVIDERS, Engine

CUDA, CPU = PROVIDERS["cuda"], PROVIDERS["cpu"]
GRAPH = "L01-D008.fp32.onnx"
NAME = "L02-D020-fp32"


def test_a_provider_that_nobody_knows(exported: Path) -> None:
    with pytest.raises(RequestError, match="the provider tpu was asked; known are: cpu, cuda"):
        open_session(exported / GRAPH, provider="tpu")


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "coreml"])
def test_a_provider_that_is_not_installed(provider: str, exported: Path) -> None:
    message = f"the provider {provider} was asked; the installed onnxruntime .* has: cpu$"
    with pytest.raises(RequestError, match=message):
        open_session(exported / GRAPH, provider=provider)
    with pytest.raises(RequestError, match=message):
        Embedder(exported, "L01-D008-fp32", provider=provider)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            Engine("tvm"),
            "the engine tvm was asked; known are: onnxruntime, native, openvino, openvino-bf16, tract, opencv",
        ),
        (Engine("openvino", "cuda"), "providers are onnxruntime's: leave out one of the two"),
        (Engine(provider="tpu"), "the provider tpu was asked; known are: cpu, cuda"),
    ],
)
def test_an_engine_that_nobody_knows(asked: Engine, said: str) -> None:
    for use in (check_engine, describe_engine, lambda engine: Embedder(GOLDEN / "schema4", NAME, engine=engine)):
        with pytest.raises(RequestError, match=said):
            use(asked)


def test_an_engine_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    for command in (("verify",), ("embed", "a text", "--profile", NAME), ("bench",)):
        result = run(command[0], GOLDEN / "schema4", *command[1:], "--engine", "openvino")
        result.complains("running graphs in OpenVINO needs openvino, which is not installed here", "[openvino] extra")


def pretend(monkeypatch: pytest.MonkeyPatch, running: list[str], assigned: list[tuple[str, str, str]]) -> Any:
    """An onnxruntime that has CUDA, whose sessions say that they run on `running`."""
    made = SimpleNamespace(
        get_providers=lambda: running,
        get_provider_graph_assignment_info=lambda: [
            SimpleNamespace(
                ep_name=where, get_nodes=lambda node=(op, name): [SimpleNamespace(op_type=node[0], name=node[1])]
            )
            for where, op, name in assigned
        ],
    )
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(engine, "_create", lambda *_, **__: made)
    return made


def test_a_provider_whose_libraries_are_missing(monkeypatch: pytest.MonkeyPatch, exported: Path) -> None:
    """onnxruntime warns at most, and goes on without it."""
    pretend(monkeypatch, [CPU], [(CPU, "MatMul", "a")])
    with pytest.raises(RequestError, match="the provider cuda was asked; it does not start here"):
        open_session(exported / GRAPH, provider="cuda")


def list_nodes(graph: Path) -> list[tuple[str, str]]:
    """(operator, name) of every node, in the file's order."""
    return [(node.op_type, node.name) for node in onnx.load(graph, load_external_data=False).graph.node]


def test_shapes_are_told_from_numbers(exported: Path) -> None:
    """By what flows through a node, not by its operator: an Add of two states is no Add of two lengths."""
    model = onnx.load(exported / GRAPH, load_external_data=True)
    kinds = {
        value.name: value.type.tensor_type.elem_type
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    kinds |= {value.name: value.type.tensor_type.elem_type for value in model.graph.output}
    whole = {onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL}
    kinds |= {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    expected = {
        node.name
        for node in model.graph.node
        if all(kinds[output] in whole for output in node.output)
        or (node.op_type == "Cast" and kinds[node.input[0]] in whole)
    }
    found = find_integer_nodes(GRAPH, (exported / GRAPH).read_bytes())
    assert found == expected
    others = {operator for operator, name in list_nodes(exported / GRAPH) if name not in found}
    assert found
    assert {"Add", "Gather", "MatMul"} <= others


def assign(graph: Path, *elsewhere: str) -> list[tuple[str, str, str]]:
    """All on CUDA, but the integers and some more."""
    whole = find_integer_nodes(GRAPH, graph.read_bytes())
    return [
        (CPU if name in whole or name in elsewhere else CUDA, operator, name) for operator, name in list_nodes(graph)
    ]


@pytest.mark.parametrize("operator", ["LayerNormalization", "Add", "Gather", "MatMul"])
def test_one_node_that_falls_back_is_named(operator: str, monkeypatch: pytest.MonkeyPatch, exported: Path) -> None:
    whole = find_integer_nodes(GRAPH, (exported / GRAPH).read_bytes())
    name = next(name for kind, name in list_nodes(exported / GRAPH) if kind == operator and name not in whole)
    pretend(monkeypatch, [CUDA, CPU], assign(exported / GRAPH, name))
    with pytest.raises(FamilyError, match=rf"{GRAPH}: the provider cuda .* 1 nodes .* on the CPU: {operator} {name}$"):
        open_session(exported / GRAPH, provider="cuda")
    made = pretend(monkeypatch, [CUDA, CPU], assign(exported / GRAPH))
    assert open_session(exported / GRAPH, provider="cuda") is made


def test_many_nodes_are_counted_and_some_named() -> None:
    nodes = [(CUDA, "Add", "x"), *((CPU, "MatMul", f"n{index}") for index in range(9))]
    with pytest.raises(FamilyError, match=r"9 nodes .* MatMul n0, .*MatMul n4 \.\.\.$"):
        check_assignment(GRAPH, "cuda", nodes, ())


def test_shapes_alone_are_no_run_on_the_provider() -> None:
    with pytest.raises(FamilyError, match="none of its nodes run there"):
        check_assignment(GRAPH, "cuda", [(CPU, "Shape", "a"), (CPU, "Gather", "b")], {"a", "b"})


def test_on_the_cpu_every_node_is_assigned_to_it(exported: Path) -> None:
    """The record that the check reads is what onnxruntime gives."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    made = onnxruntime.InferenceSession(exported / GRAPH, options, providers=[CPU])
    nodes = [
        (part.ep_name, node.op_type) for part in made.get_provider_graph_assignment_info() for node in part.get_nodes()
    ]
    assert {where for where, _ in nodes} == {CPU}
    assert "MatMul" in {operator for _, operator in nodes} | {"FusedMatMul"}
