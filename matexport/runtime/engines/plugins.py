"""Execution providers of onnxruntime that are packages of their own: registering them, and the devices they offer.

onnxruntime 1.24 and later load such a library when they are told to, and know its provider by the devices that it says
it can run on. A provider without a device is refused here; which nodes it took is for `runtime.placement` to judge.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Mapping
from threading import Lock
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

from matexport.errors import RequestError, one_line
from matexport.extras import spell_install
from matexport.spec.measured import PROVIDERS


class Plugin(NamedTuple):
    """A package that holds a provider.

    Attributes:
        module: which says by `get_library_path` where the library is.
        packages: names under which it can be installed.
        extra: name of the extra in pyproject.toml.
        settings: what it must be told so that float32 is multiplied as float32.
    """

    module: str
    packages: tuple[str, ...]
    extra: str
    settings: Mapping[str, str] = MappingProxyType({})


#: OpenVINO takes bfloat16 or half precision where a device has it. The provider's other options that are called alike
#: are ignored in 1.8.1; this one is read.
_F32 = json.dumps({device: {"INFERENCE_PRECISION_HINT": "f32"} for device in ("CPU", "GPU")})


#: Provider -> its package.
PLUGINS = {
    "webgpu": Plugin("onnxruntime_ep_webgpu", ("onnxruntime-ep-webgpu",), "webgpu"),
    "openvino": Plugin("onnxruntime_ep_openvino", ("onnxruntime-ep-openvino",), "openvino-ep", {"load_config": _F32}),
    "tensorrt-rtx": Plugin(
        "onnxruntime_ep_nv_tensorrt_rtx",
        ("onnxruntime-ep-nv-tensorrt-rtx-cu13", "onnxruntime-ep-nv-tensorrt-rtx-cu12"),
        "tensorrt-rtx",
    ),
}

#: Which device is taken of a provider that offers several. NPUs come last: they take no graph whose shapes are open.
_PREFERRED = ("GPU", "CPU", "NPU")

_registering = Lock()
_registered: set[str] = set()


def find_device(onnxruntime: ModuleType, provider: str) -> Any:
    """The device (onnxruntime's `OrtEpDevice`) that a provider is to run on, its library registered where it was not.

    Returns:
        None of a provider that is part of onnxruntime and offers no devices: it is asked for by its name. (A plug-in is
        listed among the available providers, too, once it is registered; asked for by its name, it does not run, and
        onnxruntime 1.31 says nothing and takes the CPU.)

    Raises:
        RequestError: there is no such provider here, its library does not load, or it offers no device.
    """
    wanted, plugin = PROVIDERS[provider], PLUGINS.get(provider)
    with _registering:
        devices = _list_devices(onnxruntime, wanted)
        if not devices and wanted in onnxruntime.get_available_providers() and provider not in _registered:
            return None
        if not devices and (plugin is None or importlib.util.find_spec(plugin.module) is None):
            raise RequestError(_spell_missing(onnxruntime, provider))
        if not devices and plugin is not None and provider not in _registered:
            _register(onnxruntime, provider, plugin)
            devices = _list_devices(onnxruntime, wanted)
    if not devices:
        raise RequestError(
            f"the provider {provider} was asked; {read_plugin_version(provider)} finds no device that it can run on "
            "here (no such device, or no driver)"
        )
    return min(devices, key=lambda device: _PREFERRED.index(device.device.type.name))


def describe_device(device: Any) -> str:
    """What a provider's device is: its description where the system gives one, else maker, kind and number."""
    hardware = device.device
    said = {**device.ep_metadata, **hardware.metadata}
    known = said.get("Description") or said.get("FULL_DEVICE_NAME")
    if known:
        return str(known)
    number = f" 0x{hardware.device_id:04x}" if hardware.device_id else ""
    named = f"{hardware.vendor or device.ep_vendor} {hardware.type.name}{number}"
    software = device.ep_name == PROVIDERS["webgpu"] and hardware.type.name == "CPU"
    return f"a software adapter for WebGPU on {named}" if software else named


def read_plugin_version(provider: str) -> str:
    """Such as ``onnxruntime-ep-webgpu 0.4.0``; empty where the provider is part of onnxruntime, or of nothing here."""
    import importlib.metadata  # takes longer than all else here, and is needed by few

    for package in PLUGINS[provider].packages if provider in PLUGINS else ():
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def _list_devices(onnxruntime: ModuleType, wanted: str) -> list[Any]:
    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == wanted]


def _register(onnxruntime: ModuleType, provider: str, plugin: Plugin) -> None:
    try:
        library = importlib.import_module(plugin.module).get_library_path()
        onnxruntime.register_execution_provider_library(PROVIDERS[provider], str(library))
    except Exception as error:  # of a library that does not load
        raise RequestError(
            f"the provider {provider} was asked; {read_plugin_version(provider)} does not load in onnxruntime "
            f"{onnxruntime.__version__}: {one_line(error)}"
        ) from None
    _registered.add(provider)


def _spell_missing(onnxruntime: ModuleType, provider: str) -> str:
    known = ", ".join(name for name, full in PROVIDERS.items() if full in onnxruntime.get_available_providers())
    said = f"the provider {provider} was asked; the installed onnxruntime {onnxruntime.__version__} has: {known}"
    plugin = PLUGINS.get(provider)
    return f"{said}; install the [{plugin.extra}] extra: {spell_install(plugin.extra)}" if plugin else said
