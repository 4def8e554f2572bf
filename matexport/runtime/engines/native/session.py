"""A quantized graph of a family -> a session of our own engine, without onnxruntime.

What runs is what was digested and looked at: the graph is read into steps (`recognize`), its weights are read in place
from the mapped file, and the products' are copied once into the order that the processor reads them in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from matexport.errors import FamilyError, RequestError
from matexport.family.graph_file import parse_graph
from matexport.family.guard.copies import locate_weights
from matexport.family.integrity import Contents
from matexport.host import count_cpus, read_host
from matexport.runtime.engines.native.library import choose_kernels, load_library
from matexport.runtime.engines.native.program import PlanError, Program
from matexport.runtime.engines.native.recognize import UnknownGraphError, recognize
from matexport.runtime.engines.native.tensors import make_reader
from matexport.spec.measured import NATIVE, Engine, EngineFacts
from matexport.spec.profile import Precision
from matexport.version import __version__

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from matexport.runtime.engines.native.steps import Output
    from matexport.spec.facts import FamilyFacts

#: The names of what texts are given to a graph as.
IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"


def require_engine() -> None:
    """Raise RequestError unless there is an extension here."""
    choose_kernels()


def load_runtime() -> object:
    """The extension, loaded when it is first needed; this module has brought numpy."""
    return load_library()


def open_checked(contents: Contents, graph: str, engine: Engine) -> NativeSession:
    """A session on a graph of a family; see `engines.door.open_checked`.

    Raises:
        RequestError: there is no extension here, or the profile is of another precision than int8.
        FamilyError: the graph has a part that the engine does not know; the message names it.
    """
    facts = contents.family.facts
    _refuse_precision(facts, graph)
    if facts.text is None:
        raise RequestError(f"the engine native was asked for {graph}; it runs texts alone so far: leave out --engine")
    model = parse_graph(graph, contents.read(graph))
    weights = {
        locate_weights(graph, name): contents.read(name) for name in contents if name in contents.family.weights_files
    }
    names = [value.name for value in model.graph.input]
    try:
        if unknown := set(names) - {IDS, MASK, TYPES}:
            raise UnknownGraphError(f"the input {min(unknown)} is not known")
        plan = recognize(model, make_reader(graph, weights))
        program = Program(plan, max_tokens=facts.text.max_tokens)
    except (UnknownGraphError, PlanError) as problem:
        raise FamilyError(
            f"the engine native was asked; it cannot run {graph}: {problem}: without --engine, onnxruntime runs it"
        ) from None
    # More threads than CPUs would only wait for one another.
    threads = min(engine.threads or count_cpus(), count_cpus())
    return NativeSession(graph, program, plan.outputs, plan.refused, threads)


def _refuse_precision(facts: FamilyFacts, graph: str) -> None:
    named = {profile.graph: profile.precision for profile in facts.profiles.values()}
    precision = (named | {file: precision for precision, file in facts.exits.items()}).get(graph, Precision.INT8)
    if precision is not Precision.INT8:
        raise RequestError(
            f"the engine native was asked for {graph}, which is {precision}; it runs int8: take an int8 profile, or "
            "leave out --engine"
        )


class NativeSession:
    """A program, fed as its graph is fed. Several threads may run it.

    Args:
        graph: its name, for messages.
        program: of the graph.
        outputs: what the program gives, in order.
        refused: outputs of the graph that it does not give -> why.
        threads: of a run.
    """

    def __init__(
        self, graph: str, program: Program, outputs: Sequence[Output], refused: Mapping[str, str], threads: int
    ) -> None:
        self._graph, self._program, self._refused, self._threads = graph, program, refused, threads
        self._outputs = {output.name: (place, output.encode) for place, output in enumerate(outputs)}

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]], /) -> list[NDArray[Any]]:
        """The arrays of some outputs, in their order.

        Args:
            outputs: names of outputs of the graph.
            feeds: input_ids, attention_mask and, where the graph has them, token_type_ids: (B, S) int64 each.

        Raises:
            FamilyError: an output is not known, a text has no token, or a token is beyond the vocabulary.
        """
        for name in outputs:
            if name not in self._outputs:
                reason = self._refused.get(name, "the graph has no such output")
                raise FamilyError(f"the engine native cannot give {name} of {self._graph}: {reason}")
        packed = _pack_batch(self._graph, feeds)
        try:
            found = self._program.run(packed.ids, packed.starts, types=packed.types, columns=packed.columns,
                                      threads=self._threads)  # fmt: skip
        except IndexError as problem:
            raise FamilyError(f"the engine native cannot run {self._graph} on these texts: {problem}") from None
        made = []
        for name in outputs:
            place, encode = self._outputs[name]
            made.append(found[place] if encode is None else encode(found[place]))
        return made


class _Packed(NamedTuple):
    """The tokens of a batch's texts, one after the other; see `Program.run`."""

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    types: NDArray[np.int32] | None
    columns: NDArray[np.int32] | None


def _pack_batch(graph: str, feeds: Mapping[str, NDArray[Any]]) -> _Packed:
    """Leave out what the mask hides.

    Raises:
        FamilyError: the mask has other numbers than 0 and 1.
    """
    if MASK not in feeds or IDS not in feeds or feeds[IDS].shape != feeds[MASK].shape or not feeds[IDS].size:
        raise FamilyError(f"the engine native was given no tokens for {graph}, or no mask of their shape")
    mask, ids, types = feeds[MASK], feeds[IDS], feeds.get(TYPES)
    least, most = int(mask.min()), int(mask.max())
    if least < 0 or most > 1:
        raise FamilyError(f"the engine native was given a mask for {graph} that is not of 0 and 1")
    if least == 1:  # a text alone, or texts of one length
        starts = np.arange(0, ids.size + 1, ids.shape[1], dtype=np.int64)
        return _Packed(_narrow(ids), starts, None if types is None else _narrow(types), None)
    kept = mask == 1
    starts = np.zeros(len(mask) + 1, np.int64)
    np.cumsum(kept.sum(axis=1), out=starts[1:])
    columns = np.nonzero(kept)[1].astype(np.int32)
    order = np.arange(len(columns)) - np.repeat(starts[:-1], np.diff(starts))
    counted = np.array_equal(columns, order)  # right padding: a token stands where it stands in its text
    chosen = None if types is None else _narrow(types[kept])
    return _Packed(_narrow(ids[kept]), starts, chosen, None if counted else columns)


def _narrow(numbers: NDArray[Any]) -> NDArray[np.int32]:
    """Numbers of 64 bits in 32. What does not fit becomes -1, which no table has."""
    flat = numbers.reshape(-1)
    if flat.size and (flat.min() < 0 or flat.max() > np.iinfo(np.int32).max):
        flat = np.where((flat >= 0) & (flat <= np.iinfo(np.int32).max), flat, -1)
    return np.ascontiguousarray(flat, np.int32)


def describe_engine(engine: Engine) -> EngineFacts:
    """This package's version, and the processor with the instruction set that is taken.

    Raises:
        RequestError: there is no extension here.
    """
    return EngineFacts(NATIVE, engine.provider, __version__, f"{read_host().cpu} ({choose_kernels()})")
