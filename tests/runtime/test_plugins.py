"""Providers of onnxruntime that are packages of their own: registered once, asked for by their device, or refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from places import GOLDEN

from matexport import Embedder
from matexport.errors import FamilyError, RequestError
from matexport.runtime.engines import onnxruntime as engine
from matexport.runtime.engines import plugins
from matexport.runtime.engines.door import describe_engine
from matexport.runtime.placement import find_integer_nodes
from matexport.spec.measured import PROVIDERS, Engine

WEBGPU, CPU = PROVIDERS["webgpu"], PROVIDERS["cpu"]
FAMILY, NAME, GRAPH = GOLDEN / "schema4", "L02-D020-fp32", "L02-D020.fp32.onnx"


def make_device(kind: str, *, ep_name: str = WEBGPU, number: int = 0, **metadata: str) -> Any:
    hardware = SimpleNamespace(type=SimpleNamespace(name=kind), vendor="Maker", device_id=number, metadata=metadata)
    return SimpleNamespace(ep_name=ep_name, ep_vendor="Microsoft", ep_metadata={}, device=hardware)


class Offered:
    """An onnxruntime whose plug-in offers some devices once it is registered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, devices: list[Any]) -> None:
        self.devices, self.registered, self.asked = devices, [], []
        (folder / "onnxruntime_ep_webgpu.py").write_text("def get_library_path():\n    return 'lib.so'\n")
        monkeypatch.setattr(plugins, "_registered", set())
        monkeypatch.delitem(sys.modules, "onnxruntime_ep_webgpu", raising=False)
        monkeypatch.syspath_prepend(folder)
        monkeypatch.setattr(onnxruntime, "register_execution_provider_library", self.register)
        monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: self.devices if self.registered else [])
        monkeypatch.setattr(plugins, "read_plugin_version", lambda provider: "onnxruntime-ep-webgpu 9.9")

    def register(self, name: str, library: str) -> None:
        self.registered.append((name, library))


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Offered:
    return Offered(monkeypatch, tmp_path, [make_device("NPU"), make_device("CPU"), make_device("GPU", number=0x2330)])


def test_a_library_is_registered_once(offered: Offered) -> None:
    for _ in range(2):
        assert plugins.find_device(onnxruntime, "webgpu").device.type.name == "GPU"
    assert offered.registered == [(WEBGPU, "lib.so")]


def test_one_without_a_device_is_refused_each_time(offered: Offered) -> None:
    """A machine without a card; and one that offers what another provider runs on."""
    offered.devices = [make_device("CPU", ep_name=CPU)]
    for _ in range(2):
        with pytest.raises(RequestError, match=r"webgpu was asked; onnxruntime-ep-webgpu 9\.9 finds no device"):
            Embedder(FAMILY, NAME, provider="webgpu")


def test_a_library_that_does_not_load(offered: Offered, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("libvulkan.so.1: cannot open shared object file")

    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", fail)
    with pytest.raises(RequestError, match=r"webgpu 9\.9 does not load in onnxruntime .*: libvulkan\.so\.1: cannot"):
        Embedder(FAMILY, NAME, provider="webgpu")


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(onnxruntime, "get_ep_devices", list)
    monkeypatch.setattr(plugins, "_registered", set())
    with pytest.raises(RequestError, match=r"has: cpu; install the \[tensorrt-rtx\] extra: pip install "):
        Embedder(FAMILY, NAME, provider="tensorrt-rtx")


def list_nodes(content: bytes) -> Any:
    return onnx.load_from_string(content).graph.node


def open_on(
    offered: Offered, monkeypatch: pytest.MonkeyPatch, running: list[str], *elsewhere: str
) -> tuple[Embedder, Any]:
    """A session whose nodes are on WebGPU but for shapes and some more; and what onnxruntime was asked for."""
    seen = SimpleNamespace(devices=None, providers=())
    options = engine._make_options(1)

    def add(devices: list[Any], settings: dict[str, str]) -> None:
        seen.devices, seen.settings = devices, settings

    content = (FAMILY / GRAPH).read_bytes()
    whole = find_integer_nodes(GRAPH, content)
    nodes = [(node.op_type, node.name) for node in list_nodes(content)]
    made = SimpleNamespace(
        get_providers=lambda: running,
        get_provider_graph_assignment_info=lambda: [
            SimpleNamespace(
                ep_name=CPU if name in whole or name in elsewhere else WEBGPU,
                get_nodes=lambda node=(kind, name): [SimpleNamespace(op_type=node[0], name=node[1])],
            )
            for kind, name in nodes
        ],
    )

    def create(_name: str, _graph: object, _options: object, providers: Any, *, enable_fallback: bool = True) -> Any:
        assert not enable_fallback
        seen.providers = providers
        return made

    fake = SimpleNamespace(
        add_external_initializers_from_files_in_memory=options.add_external_initializers_from_files_in_memory,
        add_session_config_entry=options.add_session_config_entry,
        add_provider_for_devices=add,
    )
    monkeypatch.setattr(engine, "_make_options", lambda _: fake)
    monkeypatch.setattr(engine, "_create", create)
    return Embedder(FAMILY, NAME, provider="webgpu"), seen


def test_it_is_asked_for_by_its_device(offered: Offered, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name alone it would be taken for a provider of onnxruntime's own, and run on the CPU without a word."""
    plugins.find_device(onnxruntime, "webgpu")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [WEBGPU, CPU])  # as 1.31 says from then on
    settings = {"how": "so"}
    monkeypatch.setitem(plugins.PLUGINS, "webgpu", plugins.PLUGINS["webgpu"]._replace(settings=settings))
    _, seen = open_on(offered, monkeypatch, [WEBGPU, CPU])
    assert seen.settings == settings
    assert [device.device.type.name for device in seen.devices] == ["GPU"]
    assert seen.providers is None


def test_a_node_that_falls_back_is_named(offered: Offered, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (FAMILY / GRAPH).read_bytes()
    whole = find_integer_nodes(GRAPH, content)
    name = next(node.name for node in list_nodes(content) if node.op_type == "MatMul" and node.name not in whole)
    with pytest.raises(FamilyError, match=rf"provider webgpu .* 1 nodes would run on the CPU: MatMul {name}$"):
        open_on(offered, monkeypatch, [WEBGPU, CPU], name)


def test_one_that_did_not_come_up_is_refused(offered: Offered, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="the provider webgpu was asked; it does not start here"):
        open_on(offered, monkeypatch, [CPU])


def test_devices_are_named(offered: Offered) -> None:
    assert describe_engine(Engine(provider="webgpu")).device == "Maker GPU 0x2330"
    offered.devices = [make_device("GPU", Description="A card")]
    assert describe_engine(Engine(provider="webgpu")).device == "A card"
    offered.devices = [make_device("GPU")]
    offered.devices[0].ep_metadata["FULL_DEVICE_NAME"] = "Another card"
    assert describe_engine(Engine(provider="webgpu")).device == "Another card"
    offered.devices = [make_device("CPU")]
    described = describe_engine(Engine(provider="webgpu"))
    assert described.device == "a software adapter for WebGPU on Maker CPU"
    assert described.summary.startswith(f"onnxruntime {onnxruntime.__version__}")


def test_cuda_multiplies_all_bits() -> None:
    """Its default rounds the factors of float32 products to 10 bits."""
    assert engine.SETTINGS["cuda"] == {"use_tf32": "0"}


def test_openvinos_provider_computes_in_float32() -> None:
    """It would take half precision on a GPU; where the package is not installed, only what it is told is looked at."""
    told = json.loads(plugins.PLUGINS["openvino"].settings["load_config"])
    assert told == {device: {"INFERENCE_PRECISION_HINT": "f32"} for device in ("CPU", "GPU")}
    pytest.importorskip("onnxruntime_ep_openvino")
    expected = Embedder(FAMILY, NAME).embed(["a cat", "the dog on the mat"])
    found = Embedder(FAMILY, NAME, provider="openvino").embed(["a cat", "the dog on the mat"])
    np.testing.assert_allclose(found, expected, atol=1e-6)
