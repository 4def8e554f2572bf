"""Which node of a graph runs where, and which of them compute numbers at all.

A provider that was asked for computes every number, or the session is refused. onnxruntime keeps shapes, indices and
masks on the CPU on purpose; those are told from numbers here.
"""

from __future__ import annotations

from collections.abc import Container, Iterable

from matexport.errors import FamilyError
from matexport.family.graph_file import parse_graph
from matexport.family.weights_file import Buffer
from matexport.spec.measured import PROVIDERS

#: Nodes that a message names.
MAX_NAMED = 5


def check_assignment(
    graph: str, provider: str, assigned: Iterable[tuple[str, str, str]], integer_nodes: Container[str]
) -> None:
    """Refuse a session that computes numbers elsewhere than on the provider that was asked for.

    Args:
        graph: its file, for the message.
        assigned: (provider's full name, operator, node) of every node.
        integer_nodes: nodes of shapes, indices and masks. onnxruntime puts such nodes on the CPU on purpose
            (`GetCpuPreferredNodes`): to copy a few integers to a device costs more than to compute them.

    Raises:
        FamilyError: naming the nodes.
    """
    assigned, wanted = list(assigned), PROVIDERS[provider]
    elsewhere = [
        f"{operator} {node}".strip()
        for where, operator, node in assigned
        if where != wanted and node not in integer_nodes
    ]
    if not any(where == wanted for where, _, _ in assigned) or elsewhere:
        named = ", ".join(elsewhere[:MAX_NAMED]) + (" ..." if len(elsewhere) > MAX_NAMED else "")
        raise FamilyError(
            f"{graph}: the provider {provider} was asked; "
            + (f"{len(elsewhere)} nodes would run on the CPU: {named}" if elsewhere else "none of its nodes run there")
        )


#: TensorProto.DataType of whole numbers of every width, and of booleans.
_INTEGERS = frozenset({2, 3, 4, 5, 6, 7, 9, 12, 13})

_ALWAYS_INTEGERS = frozenset(
    {"Shape", "Size", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Xor", "Not"}
)

#: Which input has the type of the output.
_TYPED_BY = {
    "Gather": 0, "GatherND": 0, "Slice": 0, "Concat": 0, "Unsqueeze": 0, "Squeeze": 0, "Reshape": 0, "Expand": 0,
    "Transpose": 0, "Range": 0, "Add": 0, "Sub": 0, "Mul": 0, "Div": 0, "Max": 0, "Min": 0, "Identity": 0, "Where": 1,
    "ReduceSum": 0, "ReduceMax": 0, "CumSum": 0,
}  # fmt: skip


def find_integer_nodes(name: str, content: Buffer) -> frozenset[str]:
    """Names of the nodes that take or give integers or booleans only: shapes, indices, masks until they are numbers.

    Followed from the inputs that are integers. An operator that is not known to pass on the
    type of an input counts as one that computes numbers. A Cast of integers to numbers is among them: it is exact
    wherever it runs, and providers without 64-bit integers (WebGPU) leave it to the CPU.
    """
    graph = parse_graph(name, content).graph
    integers = {value.name for value in graph.input if value.type.tensor_type.elem_type in _INTEGERS}
    integers |= {tensor.name for tensor in graph.initializer if tensor.data_type in _INTEGERS}
    names = set()
    for node in graph.node:
        source = _TYPED_BY.get(node.op_type)
        if node.op_type in _ALWAYS_INTEGERS:
            whole = True
        elif node.op_type == "Cast":
            whole = any(attribute.name == "to" and attribute.i in _INTEGERS for attribute in node.attribute)
            if node.input[0] in integers:
                names.add(node.name)
        elif node.op_type == "ConstantOfShape":
            whole = any(attribute.t.data_type in _INTEGERS for attribute in node.attribute)
        else:
            whole = source is not None and len(node.input) > source and node.input[source] in integers
        if whole:
            integers |= set(node.output)
            names.add(node.name)
    return frozenset(names - {""})
