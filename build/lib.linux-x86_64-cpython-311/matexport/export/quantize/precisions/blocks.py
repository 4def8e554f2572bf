"""q8 and q4: weights in blocks of 32 rows that share a scale and a zero point; the smallest download.

The products are onnxruntime's MatMulNBits. Its arithmetic is fp32, or at accuracy level 4 int8 with a scale per block
of a token; in both cases a text's vector does not depend on its batch. 4-bit weights are rounded with feedback.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from matexport.export.graph.edit import (
    Floats,
    Inserter,
    add_constant,
    drop_unused,
    read_weight,
    replace_node,
    use_contrib,
)
from matexport.export.graph.traced import Traced
from matexport.export.quantize.embeddings import (
    fit_blocks,
    fits_int4,
    pack_nibbles,
    store_rows_as_int4,
    store_rows_as_int8,
)
from matexport.export.quantize.rounding import Doubles, round_with_feedback
from matexport.export.quantize.sites import find_products, find_tables

#: Rows (input channels) that share a scale: the smallest block that onnxruntime's fast kernels take.
BLOCK = 32

#: MatMulNBits' arithmetic on CPUs. Level 4 rounds each block of a token to int8. Without it all weights are unpacked to
#: fp32 in every run, which made a single short text four times slower (benchmarks/LOG.md).
ACCURACY_LEVEL = 4

#: Number that stands for the embeddings among the numbers of blocks.
EMBEDDINGS = 0

#: Name of a rounded weight's codes -> its codes, scales and zero points, as MatMulNBits reads them.
Rounded = dict[str, tuple[NDArray[np.uint8], Floats, NDArray[np.uint8]]]


def apply_blocks(
    traced: Traced,
    rows: Mapping[str, Floats],
    *,
    four_bits: Container[int],
    eight_bits: Container[int],
    rounded: Rounded | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Rewrite a traced graph to weights in blocks, in place.

    Args:
        rows: name of a product group -> (n, K) float32 rows of its value seen in calibration.
        four_bits, eight_bits: numbers of the parent's blocks to store at 4 and at 8 bits, 0 for the embeddings; other
            blocks stay as they are.
        rounded: weights that were rounded already; weights rounded here are added.
        progress: called with (done, total) product groups.
    """
    rounded = {} if rounded is None else rounded
    model, groups = traced.model, find_products(traced)
    for done, group in enumerate(groups):
        if progress:
            progress(done, len(groups))
        bits = 4 if group.block in four_bits else 8 if group.block in eight_bits else None
        for product in group.products if bits else ():
            _rewrite_product(model, product, rows[group.name], bits or 0, rounded)
    for table in find_tables(traced):
        if EMBEDDINGS in four_bits and fits_int4(table):
            store_rows_as_int4(model, table)
        elif EMBEDDINGS in four_bits or EMBEDDINGS in eight_bits:
            store_rows_as_int8(model, table)
    drop_unused(model)
    use_contrib(model)
    if progress:
        progress(len(groups), len(groups))


def _rewrite_product(model: ir.Model, product: ir.Node, rows: Floats, bits: int, rounded: Rounded) -> None:
    source, weight = product.inputs[0], product.inputs[1]
    assert source is not None
    assert weight is not None
    depth, width = (int(dim) for dim in weight.const_value.shape)  # type: ignore[union-attr, arg-type]
    codes, scales, zeros = _store_weight(model, weight, rows, bits, rounded)
    attributes = {"K": depth, "N": width, "bits": bits, "block_size": BLOCK, "accuracy_level": ACCURACY_LEVEL}
    here = Inserter(model.graph, product)
    result = here.add("MatMulNBits", [source, codes, scales, zeros], attributes, like=source, last=width)
    replace_node(model.graph, product, result)


def _store_weight(
    model: ir.Model, value: ir.Value, rows: Floats, bits: int, rounded: Rounded
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Codes, scales and zero points of a (K, N) weight as MatMulNBits reads them, as initializers of the graph.

    The codes are (N, ceil(K / 32), 32 * bits / 8) uint8 and the scales (N, ceil(K / 32)) float32.
    """
    name = f"{value.name}.q{bits}"
    if name not in rounded:
        codes, scales, zeros = round_blocks(read_weight(value), rows, bits)
        if bits == 4:
            codes, zeros = pack_nibbles(codes), pack_nibbles(_pad_even(zeros))
        rounded[name] = codes, scales, zeros
    codes, scales, zeros = rounded[name]
    return (
        add_constant(model.graph, name, codes),
        add_constant(model.graph, f"{name}.scale", scales),
        add_constant(model.graph, f"{name}.zero", zeros),
    )


def round_blocks(weight: Floats, rows: Floats, bits: int) -> tuple[NDArray[np.uint8], Floats, NDArray[np.uint8]]:
    """Round a weight in blocks of 32 rows; the last block is filled up with zeros.

    Args:
        weight: (K, N) float32.
        rows: (n, K) float32 rows that the weight was multiplied by in calibration. 4 bits are rounded with feedback on
            them; 8 bits are rounded to the nearest, without them.
        bits: 4 or 8.

    Returns:
        (N, blocks, 32) uint8 codes, (N, blocks) float32 scales and (N, blocks) uint8 zero points; a weight is about
        (code - zero) * scale.
    """
    depth, width = weight.shape
    count = -(-depth // BLOCK)
    padded = np.zeros((count * BLOCK, width), dtype=np.float32)
    padded[:depth] = weight
    codes = np.zeros((count * BLOCK, width), dtype=np.uint8)
    scales = np.zeros((count, width))
    zeros = np.zeros((count, width))
    top = 2**bits - 1

    def start_block(start: int, values: Doubles) -> None:
        scale, zero = fit_blocks(values, bits, axis=0)
        scales[start // BLOCK], zeros[start // BLOCK] = scale[0], zero[0]

    def quantize(row: int, values: Doubles) -> Doubles:
        scale, zero = scales[row // BLOCK], zeros[row // BLOCK]
        codes[row] = np.clip(np.rint(values / scale) + zero, 0, top)
        back: Doubles = (codes[row] - zero) * scale
        return back

    if bits == 4:
        inputs = np.zeros((len(rows), count * BLOCK), dtype=np.float32)
        inputs[:, :depth] = rows
        round_with_feedback(padded, inputs, quantize, start_block=start_block, block=BLOCK)
    else:
        for start in range(0, len(padded), BLOCK):
            start_block(start, padded[start : start + BLOCK].astype(np.float64))
        for row, values in enumerate(padded.astype(np.float64)):
            quantize(row, values)
    return (
        np.ascontiguousarray(codes.T).reshape(width, count, BLOCK),
        np.ascontiguousarray(scales.T).astype(np.float32),
        np.ascontiguousarray(zeros.T).astype(np.uint8),
    )


def _pad_even(zeros: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.pad(zeros, ((0, 0), (0, zeros.shape[1] % 2)))
