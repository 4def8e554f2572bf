"""A quantized graph -> the steps that it means, or the first operator whose meaning is not known here.

The nodes are walked once, in order. Of each value of the graph something is known: it is a constant, it follows from
shapes and the mask alone (`geometry`), it is a matrix, or a half-read pattern (`patterns`). A rule says, for an
operator and what is known of its inputs, what is known of its output. What no rule knows is refused, with all that is
made of it: nothing is guessed. A step is written down only where an output needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

from numpy.typing import NDArray

from matexport.runtime.engines.native.geometry.known import BATCH, KNOWN, Constant, Dims, Input, Worked
from matexport.runtime.engines.native.geometry.node import Node, UnknownGraphError
from matexport.runtime.engines.native.geometry.operators import OPERATORS
from matexport.runtime.engines.native.patterns import layout
from matexport.runtime.engines.native.patterns.attention import Scores
from matexport.runtime.engines.native.patterns.lookups import Embedded, Picked, as_grid, pick
from matexport.runtime.engines.native.patterns.norms import Length
from matexport.runtime.engines.native.patterns.products import Codes, Peak, Whole
from matexport.runtime.engines.native.patterns.readout import Coded, Timed, encode, make_encoder
from matexport.runtime.engines.native.patterns.rules import RULES, SWAPPED
from matexport.runtime.engines.native.patterns.values import Grid, Rule, Source, Value, find_rows
from matexport.runtime.engines.native.steps import Output, Plan, Step

__all__ = ["UnknownGraphError", "recognize"]

#: TensorProto.DataType of outputs: float32, and codes.
_FLOAT, _CODES = 1, (2, 3)

#: How messages name what is known of a value.
_NAMES: Mapping[type, str] = {
    Coded: "vectors that were changed",
    Codes: "codes of rows",
    Constant: "a constant",
    Dims: "lengths",
    Grid: "a matrix",
    Input: "an input",
    Length: "lengths of rows",
    Peak: "peaks of rows",
    Scores: "scores of attention",
    Timed: "a matrix times a mask or cosines",
    Whole: "a product of codes",
    Worked: "places or a mask",
}

#: What a rule raises of nodes that no exporter writes: of too few inputs, for instance.
_MISSHAPEN = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)

#: All that follows from shapes, masks and constants is one kind in `RULES`.
_KIND: Mapping[type, type] = dict.fromkeys(KNOWN, Worked)


#: The kinds of inputs of a node whose outputs follow from shapes, masks and constants, too.
_FOLLOWING = frozenset({Worked, type(None)})


class _Refused:
    """A value that is not understood."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def recognize(model: Any, read: Callable[[Any], NDArray[Any]]) -> Plan:
    """The steps of a graph.

    Args:
        model: as `graph_file.parse_graph` gives it, and checked.
        read: a tensor message -> its numbers, as `tensors.make_reader` gives them.

    Returns:
        the plan; the outputs that are not understood are in `Plan.refused`.

    Raises:
        UnknownGraphError: none of the outputs is understood. The message names the first node that is not.
    """
    values = _walk(model, read)
    found: list[tuple[str, Source, Any]] = []
    refused = {}
    for output in model.graph.output:
        try:
            source, encoder = _read_output(output, values.get(output.name))
            found.append((output.name, source, encoder))
        except UnknownGraphError as problem:
            refused[output.name] = str(problem)
    if not found:
        raise UnknownGraphError(next(iter(refused.values()), "the graph gives nothing"))
    steps: list[Step] = []
    numbers = count()
    for _, source, _ in found:
        _place(source, steps, numbers)
    outputs = [Output(name, source.number or 0, source.width, encoder) for name, source, encoder in found]
    return Plan(tuple(steps), tuple(outputs), refused)


def _walk(model: Any, read: Callable[[Any], NDArray[Any]]) -> dict[str, Value]:
    """What is known of each value of a graph, by its name."""
    graph = model.graph
    values: dict[str, Value] = {value.name: Input(value.name) for value in graph.input}
    for tensor in graph.initializer:
        values[tensor.name] = Constant(tensor, read)
    for message in graph.node:
        node = Node(message)
        for name in node.inputs:
            if name and name not in values:
                values[name] = _Refused(f"the operator {node.describe()}: nothing before it makes {name!r}")
        given = [values[name] if name else None for name in node.inputs]
        for name, value in zip(node.outputs, _read_node(node, given), strict=False):
            values[name] = value
    return values


def _read_node(node: Node, given: Sequence[Value]) -> Sequence[Value]:
    """What is known of a node's outputs."""
    for value in given:
        if isinstance(value, _Refused):
            return [value] * node.count
    try:
        made = _apply(node, given)
    except UnknownGraphError as problem:
        coded = encode(node, given)
        made = _Refused(f"the operator {node.describe()}: {problem}") if coded is None else coded
    except _MISSHAPEN as problem:
        made = _Refused(f"the operator {node.describe()} cannot be read: {problem}")
    if isinstance(made, tuple):
        return made
    others = _Refused(f"the operator {node.describe()}: only its first output is known")
    return [made, *[others] * (node.count - 1)]


def _apply(node: Node, given: Sequence[Value]) -> Value:
    """What the first rule that fits makes of it.

    Raises:
        UnknownGraphError: no rule fits.
    """
    kinds = [_KIND.get(type(value), type(value)) for value in given]
    if _FOLLOWING.issuperset(kinds):
        if node.type == "Gather" and (picked := pick(node, given)) is not None:
            return picked
        if node.type in OPERATORS:
            return tuple(Worked(node, given, part) for part in range(node.count))
    for rules, taken in _list_rules(node, given, kinds):
        for rule in rules:
            if (made := rule(node, taken)) is not None:
                return made
    if Embedded in kinds or Picked in kinds:
        return _apply(node, [as_grid(value) for value in given])
    coded = encode(node, given)
    if coded is None:
        raise UnknownGraphError(f"not known of {_name_given(given)}")
    return coded


def _list_rules(
    node: Node, given: Sequence[Value], kinds: Sequence[type]
) -> list[tuple[Sequence[Rule], Sequence[Value]]]:
    """The rules for an operator and what it is given, those for two inputs first."""
    found = []
    operator = node.type
    if len(kinds) > 1:
        found.append((RULES.get((operator, kinds[0], kinds[1]), ()), given))
        if operator in SWAPPED and len(kinds) == 2:
            found.append((RULES.get((operator, kinds[1], kinds[0]), ()), given[::-1]))
    if kinds:
        found.append((RULES.get((operator, kinds[0]), ()), given))
        if kinds[0] is Grid and operator in layout.RULES:
            found.append(([layout.RULES[operator]], given))
    return found


def _name_given(given: Sequence[Value]) -> str:
    return ", ".join(_NAMES.get(type(value), "part of a pattern") for value in given if value is not None) or "nothing"


def _read_output(output: Any, value: Value) -> tuple[Source, Any]:
    """The matrix of an output, and what makes codes of its rows."""
    if isinstance(value, _Refused):
        raise UnknownGraphError(value.reason)
    kind = output.type.tensor_type.elem_type
    coded = value.made if isinstance(value, Coded) else None
    base = value.base if isinstance(value, Coded) else as_grid(value)
    if not isinstance(base, Grid) or base.axes[:-1] != (BATCH,):
        raise UnknownGraphError(f"the output {output.name} has no row for each text")
    if kind not in ((_FLOAT,) if coded is None else _CODES):
        made = f"made by {value.operator}, which is not known" if coded is not None else f"of the data type {kind}"
        raise UnknownGraphError(f"the output {output.name} is {made}")
    return find_rows(base, f"the output {output.name}"), None if coded is None else make_encoder(coded)


def _place(wanted: Source, steps: list[Step], numbers: Iterator[int]) -> None:
    """Write down the steps that make a matrix, each once, after those that it needs."""
    pending = [wanted]
    while pending:
        source = pending[-1]
        missing = [need for need in source.needs if need.number is None]
        if source.number is None and not missing:
            source.number = next(numbers)
            steps.append(source.make(source.number, *(need.number for need in source.needs)))
        pending = pending[:-1] if source.number is not None else [*pending, *missing[::-1]]
