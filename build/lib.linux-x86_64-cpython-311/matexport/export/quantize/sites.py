"""Find what a precision can quantize: products with weight matrices, and embedding tables, of the parent's blocks.

A product group is the products of one value with one or more weight matrices. The projections to query, key and value,
for example, read the same value, which is quantized once for all three. The read-out (final norm, pooling, heads)
belongs to no group, and stays as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from matexport.export.graph.edit import find_needed_nodes
from matexport.export.graph.traced import Traced

#: Smaller tables (such as BERT's two segment vectors) are not worth quantizing.
MIN_TABLE_BYTES = 64 << 10


@dataclass(frozen=True)
class ProductGroup:
    """The products that read one value.

    Attributes:
        source: the (B, T, K) float32 value that they read.
        products: MatMul nodes, each with a (K, N) weight on the right; N may differ.
        block: number of the parent's block that the first product is in, from 1.
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
        """The (K, N) weights, one per product."""
        return tuple(node.inputs[1] for node in self.products)  # type: ignore[misc]


def find_products(traced: Traced) -> list[ProductGroup]:
    """The product groups of a traced graph, in the order in which the graph computes them."""
    blocks = find_blocks(traced)
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in traced.model.graph:
        if node.op_type == "MatMul" and blocks.get(node, 0) > 0 and _is_matrix(node.inputs[1]):
            source = node.inputs[0]
            assert source is not None
            found.setdefault(source, []).append(node)
    return [ProductGroup(source, tuple(nodes), blocks[nodes[0]]) for source, nodes in found.items()]


def find_tables(traced: Traced, *, least_bytes: int = MIN_TABLE_BYTES) -> list[ir.Node]:
    """The Gather nodes that read rows of an embedding table, a (V, H) float32 matrix.

    Args:
        least_bytes: smaller tables are left out; by default those that are not worth quantizing.
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
    """Node -> number of the parent's block that it is part of, 0 for the embeddings; without the read-out's nodes."""
    values = {value.name: value for node in traced.model.graph for value in node.outputs}
    blocks: dict[ir.Node, int] = {}
    for block, state in enumerate(traced.states):
        for node in find_needed_nodes([values[state]]):
            blocks.setdefault(node, block)
    return blocks


def walk_groups(
    traced: Traced, progress: Callable[[int, int], None] | None = None
) -> Iterator[tuple[ProductGroup, bool]]:
    """Each product group of a graph, and whether its weights are its own: blocks may share them (ALBERT).

    Args:
        progress: called with (done, total) product groups.
    """
    groups = find_products(traced)
    uses = Counter(str(weight.name) for group in groups for weight in group.weights)
    for done, group in enumerate(groups):
        if progress:
            progress(done, len(groups))
        yield group, all(uses[str(weight.name)] == 1 for weight in group.weights)
    if progress:
        progress(len(groups), len(groups))


def _is_matrix(value: ir.Value | None) -> bool:
    return (
        value is not None
        and value.is_initializer()
        and value.const_value is not None
        and value.const_value.dtype is ir.DataType.FLOAT
        and len(value.const_value.shape) == 2
    )
