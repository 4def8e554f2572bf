"""Changes to a profile's graph that other consumers need: another output before its own, and where its weights lie.

A graph stays what it computes. protobuf keeps the fields that `graph_file` does not name, so that nothing of a graph is
lost although it is read with a part of ONNX's schema; no onnx is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matexport.consumers.files import INPUTS
from matexport.errors import RequestError
from matexport.spec.facts import BATCH_AXIS, OUTPUT_NAME, SEQUENCE_AXIS, FamilyFacts, ProfileFacts
from matexport.spec.profile import Precision
from matexport.spec.readout import FinalNorm

#: What consumers of token states look for, and of which they make one vector in a way of their own.
TOKENS_OUTPUT = "last_hidden_state"
#: The true states, for who asks for them: what sentence-transformers calls them.
STATES_OUTPUT = "token_embeddings"
_FLOAT, _INT64 = 1, 7  # TensorProto.DataType
_INT_ATTRIBUTE = 2  # AttributeProto.AttributeType.INT
_PREFIX = "matexport.every_token"
#: A head that is the scaling to length 1: behind the cut there is another.
SCALING = "Normalize"


def repeat_vector(model: Any, dim: int) -> None:
    """Give the vector at every token, too, as the first output.

    ``last_hidden_state`` is (batch, sequence, dim) float32, each of its rows ``sentence_embedding``. The first, the
    last, the mean (of any mask) and the largest of equal rows is the row, so that a consumer that pools token states
    gets the vector however it pools; and where it scales the result to length 1, that changes a unit vector by nothing
    but rounding.

    Args:
        model: a parsed graph with the output ``sentence_embedding``, (batch, dim) float32. It is changed.
    """
    graph = model.graph
    if any(value.name == TOKENS_OUTPUT for value in graph.output):
        return
    for name, axis in ((f"{_PREFIX}.axis_1", 1), (f"{_PREFIX}.axis_2", 2)):
        graph.initializer.add(name=name, dims=[1], data_type=_INT64, raw_data=axis.to_bytes(8, "little"))
    steps = (
        ("Unsqueeze", [OUTPUT_NAME, f"{_PREFIX}.axis_1"], f"{_PREFIX}.vector"),  # (batch, 1, dim)
        ("Unsqueeze", [INPUTS[0], f"{_PREFIX}.axis_2"], f"{_PREFIX}.places"),  # (batch, sequence, 1)
        ("Shape", [f"{_PREFIX}.places"], f"{_PREFIX}.shape"),
        ("Expand", [f"{_PREFIX}.vector", f"{_PREFIX}.shape"], TOKENS_OUTPUT),
    )
    for operator, given, made in steps:
        graph.node.add(op_type=operator, name=f"{made}.node", input=given, output=[made])
    outputs = list(graph.output)
    del graph.output[:]
    _describe(graph.output.add(name=TOKENS_OUTPUT), _FLOAT, (BATCH_AXIS, SEQUENCE_AXIS, dim))
    graph.output.extend(outputs)


def expose_states(model: Any, profile: ProfileFacts, facts: FamilyFacts) -> None:
    """Give the states of the tokens, too, as the last output: ``token_embeddings``, (batch, sequence, width) float32.

    They are the parent's ``hidden_states[layers]``. Offered where the vector is nothing but pooled states, cut and
    scaled: there `plain` can pool them itself, and hold what comes out to the parent's vector.

    Args:
        model: a parsed graph as export wrote it. It is changed.

    Raises:
        RequestError: saying why this profile has no states to give.
    """
    readout, name = facts.readout, f"state_{profile.layers}"
    if profile.narrowed_nodes:
        raise RequestError("the states of tokens were asked; this graph computes the one token that is read, alone")
    heads = [head for head in readout.heads if head != SCALING]  # which a cut and a scaling undo
    if heads or readout.final_norm is not FinalNorm.ABSENT or len(readout.pooling) > 1:
        what = heads[0] if heads else "several poolings" if len(readout.pooling) > 1 else "the parent's final norm"
        raise RequestError(
            f"the states of tokens were asked; between them and the vector is {what}, so nothing could prove them here"
        )
    if not any(name in node.output for node in model.graph.node):
        raise RequestError(f"the states of tokens were asked; the graph names none {name}: export the family again")
    if profile.precision is Precision.FP16:
        cast = model.graph.node.add(op_type="Cast", name=f"{STATES_OUTPUT}.node", input=[name], output=[STATES_OUTPUT])
        cast.attribute.add(name="to", i=_FLOAT, type=_INT_ATTRIBUTE)
    else:
        model.graph.node.add(op_type="Identity", name=f"{STATES_OUTPUT}.node", input=[name], output=[STATES_OUTPUT])
    _describe(model.graph.output.add(name=STATES_OUTPUT), _FLOAT, (BATCH_AXIS, SEQUENCE_AXIS, facts.parent.width))


def take_all_inputs(model: Any) -> None:
    """Let a graph take the three inputs that consumers feed, whether it uses them or not; it is changed."""
    graph = model.graph
    known = {value.name: value for value in graph.input}
    if others := set(known) - set(INPUTS):
        raise RequestError(
            f"the graph takes {', '.join(sorted(others))}, which no other consumer feeds: pack it with --for matexport"
        )
    kept = [known.get(name) for name in INPUTS]
    missing = [name for name, value in zip(INPUTS, kept, strict=True) if value is None]
    for name in missing:
        _describe(graph.input.add(name=name), _INT64, (BATCH_AXIS, SEQUENCE_AXIS))


def _describe(value: Any, data_type: int, dims: Sequence[str | int]) -> None:
    """What a graph says of an input or an output: its type, and of each axis a name or a length."""
    tensor = value.type.tensor_type
    tensor.elem_type = data_type
    for dim in dims:
        tensor.shape.dim.add(**({"dim_param": dim} if isinstance(dim, str) else {"dim_value": dim}))
