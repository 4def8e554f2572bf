"""A graph -> a session of onnxruntime, on the CPU or on the provider that was asked for and on no other."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from matexport.errors import FamilyError, RequestError, one_line
from matexport.family.graph_file import IMPORTING
from matexport.family.guard.copies import locate_weights
from matexport.host import count_cpus, read_gpus, read_host
from matexport.runtime.engines.plugins import PLUGINS, describe_device, find_device, read_plugin_version
from matexport.runtime.placement import check_assignment, find_integer_nodes
from matexport.spec.measured import CPU, ONNXRUNTIME, PROVIDERS, Engine, EngineFacts

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions

    from matexport.family.integrity import Contents
    from matexport.spec.facts import FamilyFacts


#: What onnxruntime may fold into one constant when it loads a graph of a family.
MAX_FOLDED_BYTES = 64 << 20

#: What a provider must be told so that float32 is multiplied as float32: CUDA rounds factors to 10 bits by default.
SETTINGS = {"cuda": {"use_tf32": "0"}}


def open_session(graph: Path, *, threads: int | None = None, provider: str = CPU) -> InferenceSession:
    """A session on a graph file that this process has made; see `open_checked`.

    Raises:
        RequestError, FamilyError: as `open_checked`.
    """
    return _open(graph.name, graph.resolve(), _make_options(threads), provider)


def open_checked(
    contents: Contents, graph: str, *, threads: int | None = None, provider: str = CPU
) -> InferenceSession:
    """A session on a graph of a family, polite to its host: no spinning, no more threads than CPUs it may use.

    onnxruntime is given what was digested and looked at, the graph's bytes and the mapped weights, and opens no file.

    Args:
        contents: has the graph and its weights; the session keeps it.
        threads: intra-op threads; all CPUs of this process by default.
        provider: a key of `matexport.spec.measured.PROVIDERS`.

    Raises:
        RequestError: the installed onnxruntime is older than the graph needs, has no such provider, or one that does
            not start here.
        FamilyError: onnxruntime refuses the graph, or would run some of it on the CPU instead of on the provider.
    """
    check_version(contents.family.facts, graph)
    options = _make_options(threads)
    if contents.family.facts.target.is_standard:  # or products of blocks take tokens in 8 bits, here alone
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    weights = [name for name in contents if name in contents.family.weights_files]
    buffers = [contents.read(name) for name in weights]
    options.add_external_initializers_from_files_in_memory(
        [locate_weights(graph, name) for name in weights], buffers, [len(buffer) for buffer in buffers]
    )
    options.add_session_config_entry("session.use_external_initializer_file_buffers_directly", "1")
    options.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", str(MAX_FOLDED_BYTES))
    # What the bytes are is not left to be guessed: only ONNX was looked at.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    session = _open(graph, bytes(contents.read(graph)), options, provider)
    session.matexport_contents = contents  # it reads the weights in place: they must live as long as it does
    return session


def check_version(facts: FamilyFacts, graph: str) -> None:
    """Refuse an onnxruntime that is older than the least that a family names for a graph's precision.

    Raises:
        RequestError: saying both versions.
    """
    named = {profile.graph: profile.precision for profile in facts.profiles.values()}
    precision = (named | {file: precision for precision, file in facts.exits.items()}).get(graph)
    made = facts.precisions.get(precision) if precision is not None else None
    least = made.onnxruntime if made is not None else None
    installed = load_runtime().__version__
    if least is not None and _read_version(installed) < _read_version(least):
        raise RequestError(
            f"{graph} needs onnxruntime {least} or later, and {installed} is installed: install a newer one, or take a "
            "profile of another precision"
        )


def _read_version(version: str) -> tuple[int, ...]:
    """The first two numbers of a version, such as 1.22 of ``1.22.0rc1``."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _make_options(threads: int | None) -> SessionOptions:
    onnxruntime = load_runtime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or count_cpus()
    options.inter_op_num_threads = 1
    options.log_severity_level = (
        4  # an error is raised, too: warnings go to standard error, past any logging configuration
    )
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _open(name: str, graph: Path | bytes, options: SessionOptions, provider: str) -> InferenceSession:
    if provider == CPU:
        return _create(name, graph, options, [PROVIDERS[CPU]])
    if provider not in PROVIDERS:
        raise RequestError(f"the provider {provider} was asked; known are: {', '.join(PROVIDERS)}")
    wanted = PROVIDERS[provider]
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    device = find_device(load_runtime(), provider)
    if device is None:
        _preload(provider)
        providers = [(wanted, SETTINGS.get(provider, {})), PROVIDERS[CPU]]
        session = _create(name, graph, options, providers, enable_fallback=False)
    else:
        settings = PLUGINS[provider].settings if provider in PLUGINS else SETTINGS.get(provider, {})
        options.add_provider_for_devices([device], dict(settings))
        session = _create(name, graph, options, None, enable_fallback=False)
    if session.get_providers()[0] != wanted:  # its libraries are missing: onnxruntime goes on without it
        raise RequestError(
            f"the provider {provider} was asked; it does not start here (a driver or a library is missing)"
        )
    assigned = [
        (part.ep_name, node.op_type, node.name)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    ]
    content = graph if isinstance(graph, bytes) else graph.read_bytes()
    check_assignment(name, provider, assigned, find_integer_nodes(name, content))
    return session


def _preload(provider: str) -> None:
    """Load the CUDA libraries that pip installs, where no system folder has them."""
    runtime = load_runtime()
    if provider in ("cuda", "tensorrt") and hasattr(runtime, "preload_dlls"):
        import contextlib
        import io

        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find; the session then says so
            runtime.preload_dlls()


def load_runtime() -> ModuleType:
    """onnxruntime, imported when it is first needed; it reports usage unless it is told not to before."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    with IMPORTING:
        import onnxruntime

    runtime: ModuleType = onnxruntime
    return runtime


def describe_engine(engine: Engine) -> EngineFacts:
    """onnxruntime's version, and the device of its provider where that is known.

    Raises:
        RequestError: there is no such provider here.
    """
    runtime = load_runtime()
    version = runtime.__version__
    if plugin := read_plugin_version(engine.provider):
        version = f"{version} with {plugin}"
    if engine.provider == CPU:
        device = read_host().cpu
    elif (found := find_device(runtime, engine.provider)) is not None:
        device = describe_device(found)
    else:
        device = ", ".join(read_gpus()) if engine.provider in ("cuda", "tensorrt") else ""
    return EngineFacts(ONNXRUNTIME, engine.provider, version, device)


def _create(
    name: str,
    graph: Path | bytes,
    options: SessionOptions,
    providers: list[Any] | None,
    *,
    enable_fallback: bool = True,
) -> InferenceSession:
    """A session on some providers; on those of `options` where None are given."""
    onnxruntime = load_runtime()
    try:
        session: InferenceSession = onnxruntime.InferenceSession(
            graph if isinstance(graph, bytes) else str(graph),
            options,
            providers=providers,
            enable_fallback=int(enable_fallback),
        )
        return session
    except Exception as error:  # onnxruntime's own exception classes share no base but Exception
        raise FamilyError(f"onnxruntime {onnxruntime.__version__} cannot load {name}: {one_line(error)}") from None
