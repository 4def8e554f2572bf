"""A graph -> a session of OpenCV's own engine of networks (its module dnn, from 5 on), on the CPU, in float32.

OpenCV is given the graph's bytes with the weights inside of them, and opens no file. It is told which of its engines to
take: left to itself, it hands a graph that the new one cannot read to that of OpenCV 4, which takes no open lengths,
and says so on standard error alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock
from types import ModuleType
from typing import TYPE_CHECKING, Any

from matexport.errors import FamilyError, RequestError, one_line
from matexport.extras import require_extra
from matexport.family.graph_file import IMPORTING
from matexport.family.guard.inside import read_whole
from matexport.family.integrity import Contents
from matexport.host import count_cpus, read_host
from matexport.spec.measured import Engine, EngineFacts

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The first OpenCV whose engine takes graphs with open lengths.
LEAST = 5


def require_engine() -> None:
    """Raise MissingExtraError, with the pip line, unless OpenCV is installed."""
    require_extra("opencv", "running graphs in OpenCV", {"cv2": "opencv-python-headless"})


def load_runtime() -> ModuleType:
    """OpenCV, imported when it is first needed.

    Raises:
        RequestError: it is older than `LEAST`.
    """
    with IMPORTING:
        import cv2

    runtime: ModuleType = cv2
    if int(runtime.__version__.partition(".")[0]) < LEAST:
        raise RequestError(
            f"the engine opencv was asked; OpenCV {runtime.__version__} is installed, and graphs need {LEAST} or later"
        )
    return runtime


def open_checked(contents: Contents, graph: str, engine: Engine) -> OpenCvSession:
    """A session on a graph of a family; see `engines.door.open_checked`.

    OpenCV has one number of threads for all that a process does with it: that of the session that was opened last.

    Raises:
        RequestError: OpenCV is too old, or the weights are more than one file of ONNX may hold.
        FamilyError: OpenCV cannot read the graph.
    """
    import numpy as np

    cv2 = load_runtime()
    model = read_whole(contents, graph, f"the engine {engine.name} was asked")
    cv2.setNumThreads(engine.threads or count_cpus())
    logging = cv2.utils.logging
    level = logging.setLogLevel(logging.LOG_LEVEL_SILENT)  # what it says on standard error is in the refusal
    try:
        network = cv2.dnn.readNetFromONNX(np.frombuffer(model.SerializeToString(), np.uint8), cv2.dnn.ENGINE_NEW)
        problem = "" if not network.empty() else _explain_empty(model)
    except Exception as error:
        problem = one_line(error)
    finally:
        logging.setLogLevel(level)
    if problem:
        raise FamilyError(f"opencv {cv2.__version__} cannot load {graph}: {problem}")
    return OpenCvSession(network)


class OpenCvSession:
    """A network that was read. Several threads may run it, one after the other: it keeps what it was fed.

    Args:
        network: OpenCV's ``dnn.Net``, which holds the weights.
    """

    def __init__(self, network: Any) -> None:
        self._network, self._running = network, Lock()

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]], /) -> list[NDArray[Any]]:
        """The arrays of some outputs, which are the caller's own."""
        with self._running:
            for name, array in feeds.items():
                self._network.setInput(array, name)
            return [array.copy() for array in self._network.forward(list(outputs))]


def describe_engine(engine: Engine) -> EngineFacts:
    """OpenCV's version, and the processor's name."""
    return EngineFacts(engine.name, engine.provider, str(load_runtime().__version__), read_host().cpu)


def _explain_empty(model: Any) -> str:
    own = sorted({node.op_type for node in model.graph.node if node.domain not in ("", "ai.onnx")})
    return f"it has none of the operators {', '.join(own)}" if own else "it has not all of its operators"
