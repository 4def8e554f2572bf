"""A graph -> a session of OpenVINO's own runtime, on the CPU, in float32 unless bfloat16 is asked for by name.

OpenVINO reads the family's own bytes. An ONNX graph names its weights by file, and OpenVINO would open that file by its
path; so the graph that it is given says instead where the mapped weights lie in this process's memory, in the form that
OpenVINO's reader of ONNX has for graphs that onnxruntime hands to it (`LOCATION_IN_MEMORY`). Nothing is copied to disk,
and what was digested is what runs.

Where a CPU has bfloat16, OpenVINO takes it for graphs in float32 unless it is told otherwise: coordinates of
all-MiniLM-L6-v2 are then off by 1.6e-3, and nothing says so (2026.4.1, measured 2026-11-27). Here it is always told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from queue import Empty, SimpleQueue
from types import ModuleType
from typing import TYPE_CHECKING, Any

from matexport.errors import FamilyError, RequestError, one_line
from matexport.extras import require_extra
from matexport.family.graph_file import IMPORTING, list_external, parse_graph
from matexport.family.guard.copies import locate_weights
from matexport.family.integrity import Contents
from matexport.host import count_cpus
from matexport.spec.measured import Arithmetic, Engine, EngineFacts

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The ``location`` of external data whose ``offset`` is an address in memory: how OpenVINO's reader of ONNX takes what
#: onnxruntime's OpenVINO provider has mapped (2023.3 and later). A reader that did not know it would find no such file.
LOCATION_IN_MEMORY = "*/_ORT_MEM_ADDR_/*"

DEVICE = "CPU"

#: Arithmetic -> what OpenVINO calls it.
_HINTS = {Arithmetic.F32: "f32", Arithmetic.BF16: "bf16"}


def require_engine() -> None:
    """Raise MissingExtraError, with the pip line, unless OpenVINO is installed."""
    require_extra("openvino", "running graphs in OpenVINO", {"openvino": "openvino"})


def load_runtime() -> ModuleType:
    """OpenVINO, imported when it is first needed."""
    with IMPORTING:
        import openvino

    runtime: ModuleType = openvino
    return runtime


def open_checked(contents: Contents, graph: str, engine: Engine) -> OpenVinoSession:
    """A session on a graph of a family; see `engines.door.open_checked`.

    Raises:
        RequestError: this CPU does not compute as it was asked to.
        FamilyError: OpenVINO cannot read the graph.
    """
    openvino = load_runtime()
    hint = _HINTS[engine.arithmetic]
    core = openvino.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": engine.threads or count_cpus(),
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # as onnxruntime: which CPUs are free is the system's to know
    }
    try:
        compiled = core.compile_model(core.read_model(_point_to_memory(contents, graph)), DEVICE, settings)
    except Exception as error:  # its own exception classes share no base but Exception
        raise FamilyError(f"openvino {openvino.__version__} cannot load {graph}: {one_line(error)}") from None
    taken = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if taken != hint:
        raise RequestError(f"the engine {engine.name} was asked; OpenVINO computes in {taken} on this CPU")
    return OpenVinoSession(compiled, contents)


class OpenVinoSession:
    """A compiled graph. Several threads may run it: each run takes a request of its own, and hands it back.

    Args:
        compiled: OpenVINO's ``CompiledModel``.
        contents: has the weights, which the graph reads in place: they must live as long as it does.
    """

    def __init__(self, compiled: Any, contents: Contents) -> None:
        self._compiled, self._contents = compiled, contents
        self._free: SimpleQueue[Any] = SimpleQueue()

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]], /) -> list[NDArray[Any]]:
        """The arrays of some outputs, which are the caller's own."""
        try:
            request = self._free.get_nowait()
        except Empty:
            request = self._compiled.create_infer_request()
        found = request.infer(feeds)  # copies inputs and outputs: the request's own are written over by its next run
        arrays = [found[name] for name in outputs]
        self._free.put(request)  # not after an error, which may leave anything in it
        return arrays


def describe_engine(engine: Engine) -> EngineFacts:
    """OpenVINO's version, and the processor's name as it gives it."""
    openvino = load_runtime()
    device = str(openvino.Core().get_property(DEVICE, "FULL_DEVICE_NAME"))
    return EngineFacts(engine.name, engine.provider, openvino.__version__.partition("-")[0], device)


def _point_to_memory(contents: Contents, graph: str) -> bytes:
    """A checked graph whose tensors say where their bytes lie in this process, and everything else as it was."""
    import numpy as np

    model = parse_graph(graph, contents.read(graph))
    bases = {
        locate_weights(graph, name): np.frombuffer(contents.read(name), np.uint8).ctypes.data
        for name in contents
        if name in contents.family.weights_files
    }
    for tensor in list_external(model):
        where = {entry.key: entry for entry in tensor.external_data}
        where["offset"].value = str(bases[where["location"].value] + int(where["offset"].value))
        where["location"].value = LOCATION_IN_MEMORY
    content: bytes = model.SerializeToString()
    return content
