"""What a precision can work on: the weight matrices and the embedding tables of the parent's blocks.

A site is a value that is multiplied by one or more weight matrices: query, key and value read the same one, so it is
quantized once for the three. The read-out (final norm, pooling, heads) is none: it stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from matexport.build.reach import find_needed_nodes

Floats = NDArray[np.float32]

#: A smaller table (BERT's two segment vectors) saves nothing.
MIN_TABLE_BYTES = 64 << 10


@dataclass(frozen=True)
class Site:
    """Products that read one value.

    Attributes:
        source: the (B, T, K) float32 value.
        products: MatMul nodes, each with a (K, N) weight on the right.
        block: the parent's block it lies in, from 1.
    """

    source: ir.Value
    products: tuple[ir.Node, ...]
    block: int

    @property
    def name(self) -> str:
        """Name of the source, the same in every copy of the graph."""
        return str(self.source.name)

    @property
    def weights(self) -> tuple[ir.Value, ...]:
        """The weights, one per product."""
        return tuple(node.inputs[1] for node in self.products)  # type: ignore[misc]


def find_sites(model: ir.Model, states: Sequence[str]) -> list[Site]:
    """The sites of a traced graph, in the order in which it computes them.

    Args:
        states: names of the token states after 0, 1, ... N blocks.
    """
    blocks = find_blocks(model, states)
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in model.graph:
        if node.op_type == "MatMul" and blocks.get(node, 0) > 0 and _is_matrix(node.inputs[1]):
            source = node.inputs[0]
            assert source is not None
            found.setdefault(source, []).append(node)
    return [Site(source, tuple(nodes), blocks[nodes[0]]) for source, nodes in found.items()]


def find_tables(model: ir.Model, states: Sequence[str], *, least_bytes: int = MIN_TABLE_BYTES) -> list[ir.Node]:
    """The Gather nodes that read rows of an embedding table; by default of one that is worth quantizing."""
    blocks = find_blocks(model, states)
    return [
        node
        for node in model.graph
        if node.op_type == "Gather"
        and node in blocks
        and node.attributes.get_int("axis", 0) == 0
        and _is_matrix(node.inputs[0])
        and node.inputs[0].const_value.nbytes >= least_bytes  # type: ignore[union-attr]
    ]


def find_blocks(model: ir.Model, states: Sequence[str]) -> dict[ir.Node, int]:
    """Node -> the parent's block that computes it, 0 for the embeddings; without what belongs to the read-out."""
    values = {value.name: value for node in model.graph for value in node.outputs}
    blocks: dict[ir.Node, int] = {}
    for block, state in enumerate(states):
        for node in find_needed_nodes([values[state]]):
            blocks.setdefault(node, block)
    return blocks


def read_weight(value: ir.Value) -> Floats:
    """The float32 array behind an initializer."""
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy(), dtype=np.float32)


def add_constant(model: ir.Model, name: str, array: NDArray[np.generic]) -> ir.Value:
    """An initializer of that name, made if there is none."""
    known = model.graph.initializers.get(name)
    if known is None:
        tensor = ir.tensor(array, name=name)
        known = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)  # type: ignore[arg-type]
        model.graph.initializers.add(known)
    return known


@dataclass
class Inserter:
    """Puts nodes in front of one that is there, in the order in which they are asked for."""

    model: ir.Model
    before: ir.Node

    def add(
        self,
        operator: str,
        inputs: Sequence[ir.Value | None],
        attributes: dict[str, int] | None = None,
        *,
        like: ir.Value,
        dtype: ir.DataType | None = None,
        last: int | None = None,
        domain: str = "",
    ) -> ir.Value:
        """Insert a node and give its output.

        Args:
            like: a value of the same shape and type; the later stages need both.
            dtype: another type than that.
            last: another last axis than that.
        """
        node = ir.node(operator, inputs, attributes, domain=domain)
        out = node.outputs[0]
        out.type = ir.TensorType(dtype or like.dtype or ir.DataType.FLOAT)
        if like.shape is not None:
            out.shape = ir.Shape(like.shape if last is None else [*like.shape[:-1], last])
        self.model.graph.insert_before(self.before, node)
        return out


def drop_unused(model: ir.Model) -> None:
    """Forget initializers that no node reads any more."""
    outputs = set(model.graph.outputs)
    for value in [value for value in model.graph.initializers.values() if not value.uses() and value not in outputs]:
        del model.graph.initializers[str(value.name)]


def use_contrib(model: ir.Model) -> None:
    """Say that the graph has operators of onnxruntime's own."""
    model.graph.opset_imports["com.microsoft"] = 1


def group_by_weight(sites: Sequence[Site]) -> dict[str, list[Site]]:
    """Weight name -> the sites that multiply by it; more than one where blocks share their weights (ALBERT)."""
    groups: dict[str, list[Site]] = {}
    for site in sites:
        for weight in site.weights:
            groups.setdefault(str(weight.name), []).append(site)
    return groups


def _is_matrix(value: ir.Value | None) -> bool:
    return (
        value is not None
        and value.is_initializer()
        and value.const_value is not None
        and value.const_value.dtype is ir.DataType.FLOAT
        and len(value.const_value.shape) == 2
    )


def iterate_inputs(node: ir.Node) -> Iterator[tuple[int, ir.Value]]:
    """The inputs that are there, with their places."""
    yield from ((place, value) for place, value in enumerate(node.inputs) if value is not None)
