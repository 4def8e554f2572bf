"""Constants are read as numpy and onnx read them, and nothing outside of a file is."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from matexport.errors import FamilyError
from matexport.family.graph_file import parse_graph
from matexport.runtime.engines.native.geometry.node import UnknownGraphError
from matexport.runtime.engines.native.tensors import make_reader

CONTENT = bytes(range(256)) * 4
TYPES = [np.float32, np.float64, np.int8, np.uint8, np.int32, np.int64, np.bool_]


def parse(tensor: onnx.TensorProto) -> Any:
    graph = helper.make_graph([], "one", [], [helper.make_empty_tensor_value_info("c")], [tensor])
    return parse_graph("one", helper.make_model(graph).SerializeToString()).graph.initializer[0]


def make_external(kind: int, dims: list[int], offset: object, length: object, location: str = "w") -> onnx.TensorProto:
    tensor = onnx.TensorProto(name="t", data_type=kind, dims=dims, data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3)])
def test_bytes_inside_the_graph(kind: type, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(kind)
    found = make_reader("g", {})(parse(numpy_helper.from_array(array, "t")))
    assert found.dtype == array.dtype
    assert found.shape == shape
    np.testing.assert_array_equal(found, array)
    assert not found.flags.writeable or not found.size


@pytest.mark.parametrize("kind", TYPES)
def test_numbers_in_the_fields_of_their_type(kind: type) -> None:
    array = np.array([0, 1, -3 if kind in (np.int8, np.int32, np.int64) else 1]).astype(kind)
    tensor = helper.make_tensor("t", helper.np_dtype_to_tensor_dtype(array.dtype), [3], array.tolist())
    assert not tensor.raw_data
    np.testing.assert_array_equal(make_reader("g", {})(parse(tensor)), array)


def test_external_data_are_a_view() -> None:
    found = make_reader("g", {"w": CONTENT})(parse(make_external(3, [4, 8], 5, 32)))
    assert found.shape == (4, 8)
    assert np.shares_memory(found, np.frombuffer(CONTENT, np.uint8))
    np.testing.assert_array_equal(found.reshape(-1), np.frombuffer(CONTENT, np.int8)[5:37])


@pytest.mark.parametrize(
    ("tensor", "part"),
    [
        (make_external(3, [4, 8], 1000, 32), "do not fit"),
        (make_external(3, [4, 8], 0, 31), "do not fit"),
        (make_external(1, [4, 8], 0, 32), "do not fit"),
        (make_external(3, [4, 8], -1, 32), "no whole number"),
        (make_external(3, [4, 8], "9" * 40, 32), "no whole number"),
        (make_external(3, [4, 8], "²", 32), "no whole number"),
        (make_external(3, [4, 8], 0, 32, "../w"), "not a weights file"),
        (make_external(3, [-4, -8], 0, 32), "negative dims"),
        (onnx.TensorProto(name="t", data_type=1, dims=[3], raw_data=b"12345678"), "holds 8 bytes"),
        (onnx.TensorProto(name="t", data_type=1, dims=[3], float_data=[1.0, 2.0]), "says 3 numbers, and holds 2"),
    ],
)
def test_what_does_not_fit_is_refused(tensor: onnx.TensorProto, part: str) -> None:
    with pytest.raises(FamilyError, match=f"^(?s:.)*'t' .*{part}"):
        make_reader("g", {"w": CONTENT})(parse(tensor))


def test_a_type_that_no_step_takes_is_no_fault_of_the_family() -> None:
    with pytest.raises(UnknownGraphError, match="'t' is of the data type 10"):
        make_reader("g", {"w": CONTENT})(parse(make_external(10, [4], 0, 8)))
