"""The nested weights file: a valid safetensors file whose every prefix at a block's end is a shallower model.

The layout follows the safetensors specification (github.com/huggingface/safetensors): 8 bytes with the little-endian
length of the header, a JSON header, and the tensors without holes. Two things are our own. Tensors are ordered by the
smallest number of blocks at which a model needs them. And padding makes offsets friendly to memory mapping: the header
is padded with spaces (the format allows this) so that the data begins at a multiple of 4096, and a tensor whose length
is no multiple of 64 is followed by a small U8 tensor named ``__pad__.N`` (the format forbids holes).

A *prefix* of the file is its first bytes up to the end of a tensor. In the file that `write_prefix` makes of a prefix,
the header names only the tensors of the prefix and is padded to its old length. So no offset moves, graphs stay
byte-identical, and the result is a valid safetensors file.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from mmap import mmap
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from matexport.errors import refuse_file
from matexport.io.files import parse_json
from matexport.spec.record import Record

#: A file that was read, or mapped.
Buffer: TypeAlias = bytes | mmap

DATA_ALIGNMENT = 4096
TENSOR_ALIGNMENT = 64
PADDING_NAME = "__pad__."

#: Axes of a tensor.
MAX_RANK = 16

#: Largest header that the safetensors library accepts.
MAX_HEADER_BYTES = 100_000_000

#: Bytes of a prefix that are copied, or digested, at a time.
COPIED_BYTES = 4 << 20

ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2,
    "U8": 1, "BOOL": 1,
}  # fmt: skip


class TensorEntry(Record, frozen=True):
    """One tensor of a nested file.

    Attributes:
        dtype: as safetensors spells it, such as ``F32``.
        offset: of its first byte from the start of the file.
        nbytes: its length in bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def end(self) -> int:
        """Offset of the first byte after the tensor, from the start of the file."""
        return self.offset + self.nbytes


class NestedHeader(Record, frozen=True):
    """The header of a nested file.

    Attributes:
        entries: the tensors in the order of their offsets, padding included.
        data_start: offset of the first tensor from the start of the file, in bytes.
        metadata: the header's ``__metadata__``.
    """

    entries: tuple[TensorEntry, ...]
    data_start: int
    metadata: Mapping[str, str]

    @property
    def end(self) -> int:
        """Length in bytes of the file that the header describes."""
        return self.entries[-1].end if self.entries else self.data_start


def plan_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> NestedHeader:
    """Lay out tensors in the order in which they are given, with the padding that alignment needs.

    Args:
        tensors: (name, dtype as safetensors spells it, shape) of each.
        metadata: what the header says besides.

    Raises:
        KeyError: a dtype is not in `ITEM_BYTES`.
    """
    relative: list[TensorEntry] = []
    position = 0
    for name, dtype, shape in tensors:
        nbytes = math.prod(shape) * ITEM_BYTES[dtype]
        relative.append(TensorEntry(name, dtype, shape, position, nbytes))
        position += nbytes
        if gap := -position % TENSOR_ALIGNMENT:
            relative.append(TensorEntry(f"{PADDING_NAME}{len(relative)}", "U8", (gap,), position, gap))
            position += gap
    size = len(_header_json(relative, 0, metadata)) + 8
    start = size + -size % DATA_ALIGNMENT
    entries = [TensorEntry(e.name, e.dtype, e.shape, start + e.offset, e.nbytes) for e in relative]
    return NestedHeader(tuple(entries), start, dict(metadata))


def encode_header(header: NestedHeader) -> bytes:
    """The first `header.data_start` bytes of the file."""
    text = _header_json(header.entries, header.data_start, header.metadata)
    return (header.data_start - 8).to_bytes(8, "little") + text.ljust(header.data_start - 8)


def read_header(path: Path) -> NestedHeader:
    """Read and check the header of a safetensors file. That the file is long enough for its tensors is not checked.

    Raises:
        FamilyError: the file has no safetensors header, or its tensors have holes, overlaps or wrong sizes.
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = _read_length(path.name, start, size)
        return _parse_header(path.name, file.read(length))


def parse_header(name: str, content: Buffer) -> NestedHeader:
    """As `read_header`, of a file that was read or mapped.

    Raises:
        FamilyError: as `read_header`.
    """
    length = _read_length(name, content[:8], len(content))
    return _parse_header(name, content[8 : 8 + length])


def _read_length(name: str, start: bytes, size: int) -> int:
    length = int.from_bytes(start, "little")
    if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        raise refuse_file(name, f"not a safetensors file (its header would be {length} bytes long)")
    return length


def _parse_header(name: str, text: bytes) -> NestedHeader:
    length = len(text)
    try:
        data = parse_json(text)
        metadata = _read_metadata(data.pop("__metadata__", {}))
        entries = [_read_entry(tensor, item, 8 + length) for tensor, item in data.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise refuse_file(name, f"not a valid safetensors header ({problem})") from None
    entries.sort(key=lambda entry: (entry.offset, entry.nbytes))
    position = 8 + length
    for entry in entries:
        if entry.offset != position:
            raise refuse_file(name, f"tensor {entry.name!r} leaves a hole or overlaps another")
        position = entry.end
    return NestedHeader(tuple(entries), 8 + length, metadata)


def write_prefix(name: str, source: Buffer, target: BinaryIO, prefix_bytes: int) -> None:
    """Write the first `prefix_bytes` bytes of a nested file as a valid safetensors file in which no offset has moved.

    Args:
        name: of the file, for messages.
        source: its content.
        target: an open binary file, which is written from its current position on.

    Raises:
        FamilyError: the prefix would cut a tensor in two, or the source is shorter than the prefix.
        OSError: the target cannot be written.
    """
    header = parse_header(name, source)
    kept = tuple(entry for entry in header.entries if entry.end <= prefix_bytes)
    shorter = NestedHeader(kept, header.data_start, header.metadata)
    if shorter.end != prefix_bytes or len(source) < prefix_bytes:
        raise refuse_file(name, f"{prefix_bytes} bytes are no prefix of it that ends with a tensor")
    target.write(encode_header(shorter))
    for start in range(header.data_start, prefix_bytes, COPIED_BYTES):
        target.write(source[start : min(start + COPIED_BYTES, prefix_bytes)])


def hash_prefixes(content: Buffer, lengths: Iterable[int]) -> dict[int, str]:
    """Length -> sha256 of the first so many bytes, of each; all in one pass."""
    digest, position, found = hashlib.sha256(), 0, {}
    for length in sorted(set(lengths)):
        for start in range(position, length, COPIED_BYTES):
            digest.update(content[start : min(start + COPIED_BYTES, length)])
        position = length
        found[length] = digest.copy().hexdigest()
    return found


def _header_json(entries: Iterable[TensorEntry], data_start: int, metadata: Mapping[str, str]) -> bytes:
    items: dict[str, object] = {"__metadata__": dict(metadata)}
    for entry in entries:
        span = [entry.offset - data_start, entry.end - data_start]
        items[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": span}
    return json.dumps(items, separators=(",", ":"), ensure_ascii=False).encode()


def _read_entry(name: str, item: dict[str, Any], data_start: int) -> TensorEntry:
    if set(item) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} has the keys {sorted(item)}")
    dtype, shape, (begin, end) = str(item["dtype"]), tuple(item["shape"]), item["data_offsets"]
    if len(shape) > MAX_RANK:
        raise ValueError(f"tensor {name[:40]!r} has {len(shape)} axes")
    if any(type(number) is not int or number < 0 for number in (*shape, begin, end)):
        raise ValueError(f"tensor {name!r} has sizes that are not whole numbers")
    nbytes = math.prod(shape) * ITEM_BYTES[dtype]
    if end - begin != nbytes:
        raise ValueError(f"tensor {name!r} takes {end - begin} bytes where its shape needs {nbytes}")
    return TensorEntry(name, dtype, shape, data_start + begin, nbytes)


def _read_metadata(data: object) -> dict[str, str]:
    if not isinstance(data, dict) or not all(isinstance(value, str) for value in data.values()):
        raise ValueError("its metadata is no table of texts")
    return data
