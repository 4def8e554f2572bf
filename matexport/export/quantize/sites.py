"""What a precision can work on: the weight matrices and the embedding tables of the parent's blocks.

A site is a value that is multiplied by one or more weight matrices: query, key and value read the same one, so it is
quantized once for the three. The read-out (final norm, pooling, heads) is none: it stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from matexport.export.graph.edit import find_needed_nodes
from matexport.export.graph.traced import Traced

#: A smaller table (BERT's two segment vectors) saves nothing.
MIN_TABLE_BYTES = 64 << 10


@dataclass(frozen=True)
class ProductGroup:
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


def find_products(traced: Traced) -> list[ProductGroup]:
    """The sites of a traced graph, in the order in which it computes them."""
    blocks = find_blocks(traced)
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in traced.model.graph:
        if node.op_type == "MatMul" and blocks.get(node, 0) > 0 and _is_matrix(node.inputs[1]):
            source = node.inputs[0]
            assert source is not None
            found.setdefault(source, []).append(node)
    return [ProductGroup(source, tuple(nodes), blocks[nodes[0]]) for source, nodes in found.items()]


def find_tables(traced: Traced, *, least_bytes: int = MIN_TABLE_BYTES) -> list[ir.Node]:
    """The Gather nodes that read rows of an embedding table, a float32 matrix.

    Args:
        least_bytes: size of the smallest table that counts; by default of one that is worth quantizing.
    """
    blocks = find_blocks(traced)
    return [
        node
        for node in traced.model.graph
        if node.op_type == "Gather"
        and node in blocks
        and node.attributes.get_int("axis", 0) == 0
        and _is_matrix(node.inputs[0])
        and node.inputs[0].const_value.nbytes >= least_bytes  # type: ignore[union-attr]
    ]


def find_blocks(traced: Traced) -> dict[ir.Node, int]:
    """Node -> the parent's block that computes it, 0 for the embeddings; without what belongs to the read-out."""
    values = {value.name: value for node in traced.model.graph for value in node.outputs}
    blocks: dict[ir.Node, int] = {}
    for block, state in enumerate(traced.states):
        for node in find_needed_nodes([values[state]]):
            blocks.setdefault(node, block)
    return blocks


def group_by_weight(sites: Sequence[ProductGroup]) -> dict[str, list[ProductGroup]]:
    """Weight name -> the sites that multiply by it; more than one where blocks share their weights (ALBERT)."""
    groups: dict[str, list[ProductGroup]] = {}
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
