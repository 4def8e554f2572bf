"""Weights of which a graph reads the leading rows alone: the same bytes of the same file, and fewer of them.

A Slice of an initializer along its first axis from its start, which a trace leaves where a nested head or convolution
takes some rows of a matrix, becomes an initializer that points to those rows. A runtime would copy them into memory of
its own when it loads the graph; now it maps them, and a profile's part of the weights file ends with them.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir import convenience

from matexport.export.graph.edit import drop_unused, make_constant


def share_leading_rows(model: ir.Model) -> int:
    """Replace slices of initializers by initializers, in place.

    Args:
        model: a cut graph, whose large weights were written.

    Returns:
        how many there were.
    """
    graph, found = model.graph, 0
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Slice" else None
        rows = count_leading_rows(node) if source is not None and source.is_initializer() else None
        if source is None or rows is None or source.const_value is None:
            continue
        name = f"{source.name}[:{rows}]"
        known = graph.initializers.get(name)
        if known is None:
            known = make_constant(name, _take_rows(source.const_value, rows, name))
            graph.initializers.add(known)
        convenience.replace_all_uses_with(node.outputs[0], known)
        graph.remove(node, safe=True)
        found += 1
    if found:
        drop_unused(model)
    return found


def count_leading_rows(node: ir.Node) -> int | None:
    """How many leading rows a Slice takes; None where it takes something else."""
    numbers = []
    for value in node.inputs[1:]:
        if value is None or value.const_value is None:
            return None
        numbers.append([int(number) for number in value.const_value.numpy().reshape(-1)])
    starts, ends, *rest = numbers
    axes = rest[0] if rest else [0]
    steps = rest[1] if len(rest) > 1 else [1]
    source = node.inputs[0]
    assert source is not None
    assert source.const_value is not None
    if (starts, axes, steps) != ([0], [0], [1]) or len(ends) != 1 or ends[0] < 1:
        return None
    return min(ends[0], int(source.const_value.shape[0]))  # type: ignore[arg-type]


def _take_rows(tensor: ir.TensorProtocol, rows: int, name: str) -> ir.TensorProtocol:
    shape = [rows, *(int(dim) for dim in list(tensor.shape)[1:])]  # type: ignore[arg-type]
    if not isinstance(tensor, ir.ExternalTensor):
        return ir.tensor(tensor.numpy()[:rows].copy(), name=name)
    assert tensor.length is not None
    whole = int(tensor.shape[0])  # type: ignore[arg-type]
    return ir.ExternalTensor(
        location=tensor.location,
        offset=tensor.offset,
        length=tensor.length // whole * rows,
        dtype=tensor.dtype,
        shape=ir.Shape(shape),
        name=name,
        base_dir=tensor.base_dir,
    )
