"""Embedding tables in small precisions: each row, or each block of a row, has a scale of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from matexport.export.graph.edit import Floats, Inserter, add_constant, read_weight, replace_node, use_contrib

#: Number of coordinates of a row that share a scale at 4 bits.
BLOCK = 32

#: Shares of a block's range that are kept, of which `fit_blocks` takes the one with the least squared error.
CLIPPINGS = np.linspace(0.7, 1.0, 7)

#: Rows handled at a time, which bounds memory for vocabularies of 260,000 tokens.
CHUNK_ROWS = 8192


def store_rows_as_int8(model: ir.Model, gather: ir.Node) -> None:
    """Replace a Gather by one of int8 rows, each with a scale of its own, in place. Standard operators only.

    Args:
        gather: reads rows of a (V, H) float32 initializer; it is removed. If the same table was stored as int8 before,
            that is used.
    """
    table, ids, out = gather.inputs[0], gather.inputs[1], gather.outputs[0]
    assert table is not None
    name = str(table.name)
    names = [f"{name}.int8", f"{name}.scale"]
    if names[0] not in model.graph.initializers:
        arrays: tuple[NDArray[Any], ...] = round_rows_to_int8(read_weight(table))
        for part, array in zip(names, arrays, strict=True):
            add_constant(model.graph, part, array)
    codes, scales = (model.graph.initializers[part] for part in names)
    here = Inserter(model.graph, gather)
    picked = here.add("Gather", [codes, ids], {"axis": 0}, like=out, dtype=ir.DataType.INT8)
    steps_of = here.add("Gather", [scales, ids], {"axis": 0}, like=out, last=1)
    numbers = here.add("Cast", [picked], {"to": int(ir.DataType.FLOAT)}, like=out)
    replace_node(model.graph, gather, here.add("Mul", [numbers, steps_of], like=out))


def store_rows_as_int4(model: ir.Model, gather: ir.Node) -> None:
    """Replace a Gather by one of 4-bit rows, with a scale and a zero point per block of 32 coordinates, in place.

    Args:
        gather: reads rows of a (V, H) float32 initializer that `fits_int4`; it is removed. If the same table was stored
            at 4 bits before, that is used.
    """
    table, ids, out = gather.inputs[0], gather.inputs[1], gather.outputs[0]
    assert table is not None
    name = str(table.name)
    names = [f"{name}.int4{part}" for part in ("", ".scale", ".zero")]
    if names[0] not in model.graph.initializers:
        arrays: tuple[NDArray[Any], ...] = round_rows(read_weight(table))
        for part, array in zip(names, arrays, strict=True):
            add_constant(model.graph, part, array)
    here = Inserter(model.graph, gather)
    attributes = {"bits": 4, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
    codes, scales, zeros = (model.graph.initializers[part] for part in names)
    numbers = here.add("GatherBlockQuantized", [codes, ids, scales, zeros], attributes, like=out)
    replace_node(model.graph, gather, numbers)
    use_contrib(model)


def fits_int4(gather: ir.Node) -> bool:
    """Whether the rows of a Gather's table have an even number of whole blocks, since two zero points share a byte."""
    table = gather.inputs[0]
    return table is not None and table.shape is not None and int(table.shape[1]) % (2 * BLOCK) == 0  # type: ignore[arg-type]


def round_rows_to_int8(rows: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Round (V, H) float32 rows to (V, H) int8 codes with (V, 1) float32 scales; a row is about codes * scale."""
    codes, scales = np.empty(rows.shape, dtype=np.int8), np.empty((len(rows), 1), dtype=np.float32)
    for start in range(0, len(rows), CHUNK_ROWS):
        chunk, here = rows[start : start + CHUNK_ROWS], slice(start, start + CHUNK_ROWS)
        scales[here] = np.maximum(np.abs(chunk).max(axis=1, keepdims=True) / 127, np.finfo(np.float32).tiny)
        codes[here] = np.rint(chunk / scales[here])
    return codes, scales


def round_rows(rows: Floats) -> tuple[NDArray[np.uint8], Floats, NDArray[np.uint8]]:
    """Round rows to 4 bits, with a scale and a zero point per 32 coordinates.

    Args:
        rows: (V, H) float32, where H is a multiple of 64.

    Returns:
        (V, H / 2) uint8 codes, (V, H / 32) float32 scales and (V, H / 64) uint8 zero points; a row is about
        (codes - zero) * scale. Codes and zero points are packed as `pack_nibbles` does.
    """
    parts = [_round_chunk(rows[start : start + CHUNK_ROWS]) for start in range(0, len(rows), CHUNK_ROWS)]
    codes, scales, zeros = (np.concatenate(group) for group in zip(*parts, strict=True))
    return pack_nibbles(codes), scales, pack_nibbles(zeros)


def pack_nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pack (..., 2n) uint8 values below 16 into (..., n) uint8, the first of each pair in the low half of the byte."""
    packed: NDArray[np.uint8] = codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4))
    return packed


def fit_blocks(blocks: NDArray[np.float64], bits: int, axis: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Choose a scale and a zero point for each block: those of the least squared error, over `CLIPPINGS` of its range.

    Args:
        blocks: float64 numbers of any shape; a block extends along `axis`.
        bits: per code.

    Returns:
        scales and zero points, float64, of the shape of `blocks` with length 1 along `axis`. A code is
        round(x / scale) + zero, clipped to 0 .. 2^bits - 1.
    """
    top = 2**bits - 1
    low = np.minimum(blocks.min(axis=axis, keepdims=True), 0)
    high = np.maximum(blocks.max(axis=axis, keepdims=True), 0)
    best = None
    for kept in CLIPPINGS:
        scale = np.maximum((high - low) * kept / top, np.finfo(np.float32).tiny).astype(np.float32).astype(np.float64)
        zero = np.clip(np.rint(-low * kept / scale), 0, top)
        back = (np.clip(np.rint(blocks / scale) + zero, 0, top) - zero) * scale
        error = ((back - blocks) ** 2).sum(axis=axis, keepdims=True)
        if best is None:
            best = (error, scale, zero)
        else:
            better = error < best[0]
            best = tuple(np.where(better, new, old) for new, old in zip((error, scale, zero), best, strict=True))
    assert best is not None
    return best[1], best[2]


def _round_chunk(rows: Floats) -> tuple[NDArray[np.uint8], Floats, NDArray[np.uint8]]:
    blocks = rows.reshape(len(rows), -1, BLOCK).astype(np.float64)
    scales, zeros = fit_blocks(blocks, 4, axis=2)
    codes = np.clip(np.rint(blocks / scales) + zeros, 0, 15).astype(np.uint8)
    return codes.reshape(rows.shape), scales[..., 0].astype(np.float32), zeros[..., 0].astype(np.uint8)
