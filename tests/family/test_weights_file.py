"""The nested weights file: a safetensors file that may be cut after any block, and a reader that believes nothing."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from properties import given, st
from safetensors.numpy import load, load_file, save_file

from matexport.errors import FamilyError
from matexport.family import weights_file
from matexport.family.weights_file import (
    DATA_ALIGNMENT,
    PADDING_NAME,
    TENSOR_ALIGNMENT,
    NestedHeader,
    encode_header,
    plan_header,
    read_header,
    write_prefix,
)

DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I8": np.int8, "U8": np.uint8}
SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)
TENSORS = st.lists(
    st.tuples(st.text("abc.é猫", min_size=1, max_size=6), st.sampled_from(list(DTYPES)), SHAPES),
    max_size=8,
    unique_by=lambda tensor: tensor[0],
)
SMALL = [("a", "F32", (3, 5)), ("b", "U8", (64,)), ("c", "F16", (7,))]


def write_nested(path: Path, tensors: list[tuple[str, str, tuple[int, ...]]]) -> tuple[NestedHeader, dict[str, Any]]:
    """A nested file with counted-up values, and the arrays that it holds."""
    header = plan_header(tensors, {"format": "test"})
    arrays = {name: np.arange(np.prod(shape), dtype=DTYPES[dtype]).reshape(shape) for name, dtype, shape in tensors}
    data = b"".join(arrays[e.name].tobytes() if e.name in arrays else bytes(e.nbytes) for e in header.entries)
    path.write_bytes(encode_header(header) + data)
    return header, arrays


@pytest.fixture
def small(tmp_path: Path) -> Path:
    write_nested(tmp_path / "small.safetensors", SMALL)
    return tmp_path / "small.safetensors"


@given(TENSORS)
def test_layout_is_aligned_and_without_holes(tensors: list[tuple[str, str, tuple[int, ...]]]) -> None:
    header = plan_header(tensors, {})
    assert header.data_start % DATA_ALIGNMENT == 0
    assert len(encode_header(header)) == header.data_start
    position = header.data_start
    for entry in header.entries:
        assert entry.offset == position
        position = entry.end
    kept = [entry for entry in header.entries if not entry.name.startswith(PADDING_NAME)]
    assert [(entry.name, entry.dtype, entry.shape) for entry in kept] == tensors
    assert all(entry.offset % TENSOR_ALIGNMENT == 0 for entry in kept)
    assert header.end == position


@given(TENSORS)
def test_safetensors_reads_it(tmp_path_factory: pytest.TempPathFactory, tensors: list[Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "nested.safetensors"
    header, arrays = write_nested(path, tensors)
    loaded = {name: array for name, array in load_file(path).items() if not name.startswith(PADDING_NAME)}
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array, strict=True)
    assert read_header(path) == header


@given(TENSORS, st.integers(0, 20))
def test_every_prefix_is_a_safetensors_file_with_unmoved_bytes(
    tmp_path_factory: pytest.TempPathFactory, tensors: list[Any], count: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "whole.safetensors"
    header, arrays = write_nested(path, tensors)
    kept = header.entries[:count]
    prefix = kept[-1].end if kept else header.data_start
    target = io.BytesIO()
    write_prefix(path.name, path.read_bytes(), target, prefix)
    content = target.getvalue()
    assert len(content) == prefix
    assert content[header.data_start :] == path.read_bytes()[header.data_start : prefix]
    loaded = load(content)
    assert {entry.name for entry in kept} <= loaded.keys() <= {e.name for e in header.entries if e.end <= prefix}
    for name in loaded.keys() & arrays.keys():
        np.testing.assert_array_equal(loaded[name], arrays[name])


def test_the_prefix_of_everything_is_the_file(small: Path) -> None:
    target = io.BytesIO()
    write_prefix(small.name, small.read_bytes(), target, small.stat().st_size)
    assert target.getvalue() == small.read_bytes()


def test_the_prefix_of_a_prefix_is_the_shorter_prefix(small: Path) -> None:
    header = read_header(small)
    long, direct, twice = io.BytesIO(), io.BytesIO(), io.BytesIO()
    write_prefix(small.name, small.read_bytes(), long, header.entries[2].end)
    write_prefix(small.name, small.read_bytes(), direct, header.entries[0].end)
    middle = small.with_name("middle.safetensors")
    middle.write_bytes(long.getvalue())
    write_prefix(middle.name, middle.read_bytes(), twice, header.entries[0].end)
    assert twice.getvalue() == direct.getvalue()


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_prefix_that_cuts_a_tensor_is_refused(small: Path, shift: int) -> None:
    cut = read_header(small).entries[2].end + shift
    with pytest.raises(FamilyError, match=rf"small\.safetensors: {cut} bytes are no prefix"):
        write_prefix(small.name, small.read_bytes(), io.BytesIO(), cut)


@pytest.mark.parametrize("prefix", [0, -1, 8, 1 << 40])
def test_a_prefix_outside_the_file_is_refused(small: Path, prefix: int) -> None:
    with pytest.raises(FamilyError, match="no prefix"):
        write_prefix(small.name, small.read_bytes(), io.BytesIO(), prefix)


def test_a_prefix_that_the_file_has_no_longer_is_refused(small: Path) -> None:
    size = small.stat().st_size
    small.write_bytes(small.read_bytes()[:-1])
    with pytest.raises(FamilyError, match="no prefix"):
        write_prefix(small.name, small.read_bytes(), io.BytesIO(), size)


def test_reads_what_safetensors_writes(tmp_path: Path) -> None:
    arrays = {"x": np.ones((2, 3), np.float32), "y": np.zeros(5, np.int64), "empty": np.zeros((0, 4), np.float16)}
    save_file(arrays, tmp_path / "w.safetensors", {"who": "me"})
    header = read_header(tmp_path / "w.safetensors")
    assert {entry.name: entry.shape for entry in header.entries} == {k: v.shape for k, v in arrays.items()}
    assert header.metadata == {"who": "me"}


def test_tensors_may_lie_past_the_end(small: Path) -> None:
    whole = read_header(small)
    small.write_bytes(small.read_bytes()[: whole.data_start])
    assert read_header(small) == whole


def tensor(begin: object = 0, end: object = 8, **changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [begin, end], **changes}


LIES: dict[str, object] = {
    "no object": [],
    "a number": 7,
    "null": None,
    "hole at the start": {"a": tensor(8, 16)},
    "hole between": {"a": tensor(), "b": tensor(12, 20)},
    "overlap": {"a": tensor(), "b": tensor(4, 12)},
    "the same place": {"a": tensor(), "b": tensor()},
    "backwards": {"a": tensor(8, 0)},
    "negative offset": {"a": tensor(-8, 0)},
    "negative dims whose product fits": {"a": tensor(shape=[-1, -2])},
    "float offset": {"a": tensor(0.0, 8)},
    "float dim": {"a": tensor(shape=[2.0])},
    "bool offset": {"a": tensor(False, 8)},
    "bool dim": {"a": tensor(0, 4, shape=[True])},
    "text offset": {"a": tensor("0", 8)},
    "text for a shape": {"a": tensor(shape="2")},
    "one offset": {"a": tensor(data_offsets=[0])},
    "three offsets": {"a": tensor(data_offsets=[0, 8, 16])},
    "length not dtype x shape": {"a": tensor(0, 4)},
    "dims that overflow 64 bits": {"a": tensor(shape=[1 << 62, 4])},
    "unknown dtype": {"a": tensor(dtype="F31")},
    "dtype of another type": {"a": tensor(dtype=4)},
    "missing key": {"a": {"dtype": "F32", "shape": [2]}},
    "unknown key": {"a": tensor(stride=[1])},
    "tensor is a list of the keys": {"a": ["dtype", "shape", "data_offsets"]},
    "tensor is null": {"a": None},
    "metadata is a list": {"__metadata__": ["a"]},
    "metadata is null": {"__metadata__": None},
    "metadata is no text": {"__metadata__": {"a": 1}},
}


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_a_header_that_lies_is_refused(lie: str, tmp_path: Path) -> None:
    refuse_header(tmp_path, json.dumps(LIES[lie]).encode())


RAW_LIES = {
    "not JSON": b'{"a":',
    "not UTF-8": b'{"\xff\xfe":1}',
    "a name twice": b'{"a":%b,"a":%b}' % ((json.dumps(tensor()).encode(),) * 2),
    "a key twice": b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    "metadata twice": b'{"__metadata__":{},"__metadata__":{}}',
    "infinity": b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,Infinity]}}',
    "too many digits": b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,' + b"1" * 5000 + b"]}}",
    "too deep": b'{"a":' + b"[" * 100_000,
}


@pytest.mark.parametrize("lie", RAW_LIES, ids=str)
def test_a_header_that_is_malformed_is_refused(lie: str, tmp_path: Path) -> None:
    refuse_header(tmp_path, RAW_LIES[lie])


@pytest.mark.parametrize("length", [0, 1, 10**8 + 1, 1 << 63, (1 << 64) - 1])
def test_a_header_length_that_lies_is_refused_before_it_is_read(length: int, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}" + bytes(100))
    with pytest.raises(FamilyError, match=rf"w\.safetensors: not a safetensors file \(its header would be {length} "):
        read_header(path)


@pytest.mark.parametrize("content", [b"", b"\x02", b"\x02" + bytes(7), b"\x03" + bytes(7) + b"{}"])
def test_a_file_that_ends_in_its_header_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(FamilyError, match="not a safetensors file"):
        read_header(path)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(content)
    with pytest.raises(FamilyError):
        read_header(path)


def refuse_header(folder: Path, header: bytes) -> None:
    path = folder / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    with pytest.raises(FamilyError, match=r"^w\.safetensors: "):
        read_header(path)


@pytest.mark.parametrize("part", [1, 7, 64])
def test_prefixes_are_digested_in_one_pass(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their order, the empty one and equal ones among them."""
    monkeypatch.setattr(weights_file, "COPIED_BYTES", part)
    content = bytes(range(200))
    lengths = [150, 0, 7, 150, 200, 8]
    expected = {length: hashlib.sha256(content[:length]).hexdigest() for length in lengths}
    assert weights_file.hash_prefixes(content, lengths) == expected
