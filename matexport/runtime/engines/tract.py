"""A graph -> a session of tract, an engine in Rust for small devices, on the CPU, in float32.

tract reads a graph from a file, and from no bytes; so the checked graph is written with its weights inside of it into a
folder that this user alone can read, and that is gone once tract has read it. What was digested is what runs.

tract computes a run in one thread, whatever is asked for. Several runs may go at a time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from matexport.errors import FamilyError, one_line
from matexport.extras import require_extra
from matexport.family.graph_file import IMPORTING
from matexport.family.guard.inside import read_whole
from matexport.family.integrity import Contents
from matexport.host import read_host
from matexport.io.files import explain_os_errors
from matexport.spec.measured import Engine, EngineFacts

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: What begins the part of tract's messages that is of use to its authors alone.
_TRACE = "Stack backtrace:"


def require_engine() -> None:
    """Raise MissingExtraError, with the pip line, unless tract is installed."""
    require_extra("tract", "running graphs in tract", {"tract": "tract"})


def load_runtime() -> ModuleType:
    """tract, imported when it is first needed."""
    with IMPORTING:
        import tract

    runtime: ModuleType = tract
    return runtime


def open_checked(contents: Contents, graph: str, engine: Engine) -> TractSession:
    """A session on a graph of a family; see `engines.door.open_checked`.

    Raises:
        RequestError: the weights are more than one file of ONNX may hold.
        FamilyError: tract cannot read the graph.
        DestinationError: there is no room for it in the folder for temporary files.
    """
    tract = load_runtime()
    model = read_whole(contents, graph, f"the engine {engine.name} was asked")
    inputs, outputs = ([value.name for value in values] for values in (model.graph.input, model.graph.output))
    with (
        explain_os_errors(Path(tempfile.gettempdir())),
        tempfile.TemporaryDirectory(prefix="matexport-", ignore_cleanup_errors=True) as folder,
    ):
        path = Path(folder, "graph.onnx")
        path.write_bytes(model.SerializeToString())
        try:
            runnable = tract.onnx().load(path).into_model().into_runnable()
        except Exception as error:
            raise FamilyError(f"tract {tract.version()} cannot load {graph}: {_shorten(error)}") from None
    return TractSession(runnable, inputs, outputs)


class TractSession:
    """A graph that was read. Several threads may run it: each run has a state of its own.

    Args:
        runnable: tract's ``Runnable``, which holds the weights.
        inputs, outputs: their names, in the graph's order: tract knows them by their places.
    """

    def __init__(self, runnable: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self._runnable, self._inputs = runnable, tuple(inputs)
        self._places = {name: place for place, name in enumerate(outputs)}

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]], /) -> list[NDArray[Any]]:
        """The arrays of some outputs, which are the caller's own."""
        try:
            found = self._runnable.run([feeds[name] for name in self._inputs])
        except Exception as error:
            raise FamilyError(_shorten(error)) from None
        return [found[self._places[name]].to_numpy() for name in outputs]


def describe_engine(engine: Engine) -> EngineFacts:
    """tract's version, and the processor's name."""
    return EngineFacts(engine.name, engine.provider, load_runtime().version(), read_host().cpu)


def _shorten(error: Exception) -> str:
    """tract's message without the places in its own code."""
    return one_line(Exception(str(error).partition(_TRACE)[0]))
