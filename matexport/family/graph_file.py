"""What an ONNX file holds, and what it says about its external data, checked before any runtime sees it. Needs no onnx.

A model may point anywhere: ``location`` is a path, ``offset`` and ``length`` are numbers, and each has been the way
into a published attack. `onnx.checker` accepts ranges past the end of the file, so the ranges are checked here:
bare file name from the manifest, keys {location, offset, length}, length equal to dtype × dims, range inside the
file. Only operators that export writes are let through (`guard.operators`), and they may make nothing huge, alone
(`guard.sizes`) or one after the other (`guard.shapes`).

The fields come from onnx.proto (field numbers never change); protobuf parses the bytes, as a subset schema that is
declared here ignores everything that does not matter for the check.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from threading import RLock
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from matexport.errors import refuse_file
from matexport.family.guard.operators import (
    IR_VERSIONS,
    MAX_GRAPH_BYTES,
    MAX_LENGTH,
    MAX_NODES,
    MAX_RANK,
    OPERATORS,
    OPSETS,
    STRING,
)
from matexport.family.guard.sizes import find_size_problem
from matexport.family.weights_file import Buffer, TensorEntry
from matexport.spec.inputs import InputFacts

#: Held while numpy is imported, or onnxruntime, whose library fails if it meets numpy half imported by another thread.
IMPORTING = RLock()

ALLOWED_DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})
ALLOWED_KEYS = frozenset({"location", "offset", "length"})
EXTERNAL = 1  # TensorProto.DataLocation.EXTERNAL

# TensorProto.DataType -> bits per element.
_ITEM_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16, 21: 4, 22: 4}

# TensorProto.DataType -> how `struct` reads one; of float16 and bfloat16, the bits of infinity: NaN has more.
_FLOATS = {1: "f", 11: "d"}
_HALVES = {10: 0x7C00, 16: 0x7F80}

#: 2**64 has 20 digits; Python refuses to read more than 4300.
_MAX_DIGITS = 20

# safetensors' dtype -> the data types a graph may read it as (4-bit types have no name of their own there).
_STORED_AS = {
    "F32": {1}, "U8": {2, 21, 22}, "I8": {3}, "U16": {4}, "I16": {5}, "I32": {6}, "I64": {7}, "BOOL": {9}, "F16": {10},
    "F64": {11}, "U32": {12}, "U64": {13}, "BF16": {16},
}  # fmt: skip

# (field, number, type, repeated); a capitalised type is a message of this table.
_SCHEMA: Mapping[str, tuple[tuple[str, int, str, bool], ...]] = {
    "Model": (("ir_version", 1, "int64", False), ("opset_import", 8, "Opset", True), ("graph", 7, "Graph", False),
              ("functions", 25, "Function", True)),
    "Opset": (("domain", 1, "string", False), ("version", 2, "int64", False)),
    "Function": (("name", 1, "string", False), ("node", 7, "Node", True), ("attribute_proto", 11, "Attribute", True)),
    "Graph": (("node", 1, "Node", True), ("initializer", 5, "Tensor", True), ("sparse_initializer", 15, "Sparse", True),
              ("input", 11, "ValueInfo", True), ("output", 12, "ValueInfo", True)),
    "ValueInfo": (("name", 1, "string", False), ("type", 2, "Type", False)),
    "Type": (("tensor_type", 1, "TensorType", False),),
    "TensorType": (("elem_type", 1, "int32", False), ("shape", 2, "Shape", False)),
    "Shape": (("dim", 1, "Dim", True),),
    "Dim": (("dim_value", 1, "int64", False), ("dim_param", 2, "string", False)),
    "Node": (("input", 1, "string", True), ("output", 2, "string", True), ("name", 3, "string", False),
             ("op_type", 4, "string", False), ("attribute", 5, "Attribute", True), ("domain", 7, "string", False)),
    "Attribute": (("name", 1, "string", False), ("f", 2, "float", False), ("i", 3, "int64", False),
                  ("s", 4, "bytes", False), ("type", 20, "int32", False),
                  ("t", 5, "Tensor", False), ("g", 6, "Graph", False), ("ints", 8, "int64", True),
                  ("tensors", 10, "Tensor", True), ("graphs", 11, "Graph", True),
                  ("sparse_tensor", 22, "Sparse", False), ("sparse_tensors", 23, "Sparse", True)),
    "Sparse": (("values", 1, "Tensor", False), ("indices", 2, "Tensor", False)),
    "Tensor": (("dims", 1, "int64", True), ("data_type", 2, "int32", False), ("name", 8, "string", False),
               ("float_data", 4, "float", True), ("int32_data", 5, "int32", True), ("double_data", 10, "double", True),
               ("int64_data", 7, "int64", True), ("uint64_data", 11, "uint64", True),
               ("raw_data", 9, "bytes", False),
               ("external_data", 13, "Entry", True), ("data_location", 14, "int32", False)),
    "Entry": (("key", 1, "string", False), ("value", 2, "string", False)),
}  # fmt: skip


def check_graph(name: str, content: Buffer, weights: Mapping[str, int], inputs: InputFacts) -> Any:
    """Refuse a graph that reads anything but ranges of its family's weights files.

    Args:
        name: of the ``.onnx`` file.
        content: what it holds.
        weights: allowed ``location`` -> size of that file in bytes.
        inputs: what the manifest says of the graph's inputs.

    Returns:
        the graph as `parse_graph` gives it.

    Raises:
        FamilyError: naming the graph and the tensor or operator that is refused.
    """
    with IMPORTING:  # a graph is checked by a thread while another imports the runtime
        from matexport.family.guard.shapes import find_shape_problem

    model = parse_graph(name, content)
    for domain in {entry.domain for entry in model.opset_import} | {node.domain for node in _nodes(model)}:
        if domain not in ALLOWED_DOMAINS:
            raise refuse_file(name, f"uses operators of the domain {domain!r}; matexport writes none of those")
    for entry in model.opset_import:
        if entry.version not in OPSETS[entry.domain]:
            raise refuse_file(name, f"has version {entry.version} of the operators of {entry.domain or 'ai.onnx'!r}")
    if model.ir_version not in IR_VERSIONS:
        raise refuse_file(name, f"is of IR version {model.ir_version}; known are {IR_VERSIONS[0]} to {IR_VERSIONS[-1]}")
    for tensor in list_tensors(model):
        problem = _find_range_problem(tensor, weights)
        if problem:
            raise refuse_file(name, f"tensor {tensor.name!r} {problem}")
    problem = _find_foreign_part(model) or find_size_problem(model.graph) or find_shape_problem(model.graph, inputs)
    if problem:
        raise refuse_file(name, problem)
    return model


def check_entries(name: str, model: Any, weights: str, entries: Iterable[TensorEntry]) -> None:
    """Refuse a graph whose external tensors are not, byte for byte and type for type, tensors of the weights' header,
    or the leading rows of one.

    What is known of the weights (that they are finite, say) is known of the tensors that the header names.

    Raises:
        FamilyError: naming the graph and the tensor.
    """
    known = {entry.offset: entry for entry in entries}
    for tensor in list_external(model):
        where = {entry.key: entry.value for entry in tensor.external_data}
        entry = known.get(int(where["offset"]))
        if entry is None or not _is_part(tensor, entry, int(where["length"])):
            raise refuse_file(name, f"tensor {tensor.name!r} is not a tensor of {weights}, or of another type")


def _is_part(tensor: Any, entry: TensorEntry, length: int) -> bool:
    """Whether a tensor is the whole of an entry, in any shape, or its leading rows, in their shape."""
    if tensor.data_type not in _STORED_AS[entry.dtype]:
        return False
    dims = tuple(tensor.dims)
    leading = bool(dims) and dims[1:] == entry.shape[1:] and dims[0] <= entry.shape[0]
    return length == entry.nbytes or (leading and length <= entry.nbytes)


def parse_graph(name: str, content: Buffer) -> Any:
    """A file's content as a message with the fields of `_SCHEMA`.

    Raises:
        FamilyError: it is too large, or not an ONNX model.
    """
    if len(content) > MAX_GRAPH_BYTES:
        raise refuse_file(name, f"{len(content)} bytes; a graph without weights is far smaller")
    model = _message_class()()
    try:
        model.ParseFromString(bytes(content))
    except (message.DecodeError, RecursionError):
        raise refuse_file(name, "not an ONNX model") from None
    if not model.graph.output:
        raise refuse_file(name, "not an ONNX model (it has no output)")
    return model


def list_external(model: Any) -> Iterator[Any]:
    """The tensors of a parsed graph that lie in another file."""
    return (tensor for tensor in list_tensors(model) if tensor.data_location == EXTERNAL)


def find_nan_tensor(name: str, content: Buffer) -> str | None:
    """The name of a small weight inside a graph that holds NaN. Infinities are what masks are made of."""
    return next((str(tensor.name) for tensor in list_tensors(parse_graph(name, content)) if _holds_nan(tensor)), None)


def _holds_nan(tensor: Any) -> bool:
    """In the bytes, or in the fields that ONNX has beside them: 16-bit numbers lie in those of whole numbers."""
    if tensor.data_type in _HALVES:
        infinity = _HALVES[tensor.data_type]
        inside = struct.unpack_from(f"<{len(tensor.raw_data) // 2}H", tensor.raw_data)
        return any(bits & 0x7FFF > infinity for bits in (*inside, *tensor.int32_data))
    if tensor.data_type not in _FLOATS:
        return False
    kind = _FLOATS[tensor.data_type]
    inside = struct.unpack_from(f"<{len(tensor.raw_data) // struct.calcsize(kind)}{kind}", tensor.raw_data)
    return any(value != value for value in (*inside, *tensor.float_data, *tensor.double_data))


def _find_foreign_part(model: Any) -> str | None:
    """What a graph holds that no graph of ours does; None where it holds nothing such."""
    if model.functions:
        return f"brings a function of its own, {model.functions[0].name!r}; matexport writes none"
    if len(model.graph.node) > MAX_NODES:
        return f"has {len(model.graph.node)} nodes; matexport writes up to {MAX_NODES}"
    for node in model.graph.node:
        if node.op_type not in OPERATORS.get(node.domain, ()):
            return f"uses the operator {node.domain or 'ai.onnx'}.{node.op_type}, which matexport does not write"
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs or attribute.tensors:
                return f"{node.op_type} {node.name!r} holds a graph, or a list of tensors; matexport writes none"
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                return f"{node.op_type} {node.name!r} holds a sparse tensor; matexport writes none"
    if model.graph.sparse_initializer:
        return "holds a sparse tensor; matexport writes none"
    others = [value.name for value in model.graph.output if not value.type.HasField("tensor_type")]
    return f"its output {others[0]!r} is no tensor" if others else None


def _find_range_problem(tensor: Any, weights: Mapping[str, int]) -> str | None:
    if tensor.data_location != EXTERNAL:
        return (
            "carries external-data entries but is not external" if tensor.external_data else _find_shape_problem(tensor)
        )
    entries = [(entry.key, entry.value) for entry in tensor.external_data]
    where = dict(entries)
    if len(where) != len(entries) or set(where) != ALLOWED_KEYS:
        return (
            f"has the external-data keys {sorted(str(key) for key, _ in entries)}; expected location, offset and length"
        )
    if where["location"] not in weights:
        return f"points to {where['location']!r}, which is not a weights file of this family"
    if not all(
        where[key].isascii() and where[key].isdigit() and len(where[key]) <= _MAX_DIGITS for key in ("offset", "length")
    ):
        return "has an offset or a length that is no whole number"
    if tensor.data_type not in _ITEM_BITS or any(dim < 0 for dim in tensor.dims):
        return f"is of the unknown data type {tensor.data_type} or has negative dims"
    if len(tensor.dims) > MAX_RANK or any(dim > MAX_LENGTH for dim in tensor.dims):
        return f"has more than {MAX_RANK} axes, or one longer than {MAX_LENGTH}"
    offset, length = int(where["offset"]), int(where["length"])
    needed = -(-math.prod(tensor.dims) * _ITEM_BITS[tensor.data_type] // 8)
    if length != needed:
        return f"says {length} bytes where its shape needs {needed}"
    if offset + length > weights[where["location"]]:
        return f"ends at byte {offset + length} of {where['location']}, which has {weights[where['location']]}"
    return None


def _find_shape_problem(tensor: Any) -> str | None:
    """Whether a tensor inside of a graph says another size than it has: a runtime makes room for what it says."""
    if len(tensor.dims) > MAX_RANK or any(dim > MAX_LENGTH for dim in tensor.dims):
        return f"has more than {MAX_RANK} axes, or one longer than {MAX_LENGTH}"
    if tensor.data_type == STRING or tensor.data_type not in _ITEM_BITS or any(dim < 0 for dim in tensor.dims):
        return f"is of the unknown data type {tensor.data_type} or has negative dims"
    count = math.prod(tensor.dims)
    if tensor.raw_data:
        held = len(tensor.raw_data) * 8 == -(-count * _ITEM_BITS[tensor.data_type] // 8) * 8
    else:
        fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
        held = count <= 2 * max(map(len, fields), default=0)  # two numbers of 4 bits share one
    return None if held else f"says {count} numbers, and does not hold them"


def _nodes(model: Any) -> Iterator[Any]:
    for graph in _graphs(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def list_tensors(model: Any) -> Iterator[Any]:
    for graph in _graphs(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from _list_parts(sparse)
    for attribute in _attributes(model):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        single = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
        for sparse in (*single, *attribute.sparse_tensors):
            yield from _list_parts(sparse)


def _list_parts(sparse: Any) -> list[Any]:
    return [getattr(sparse, part) for part in ("values", "indices") if sparse.HasField(part)]


def _attributes(model: Any) -> Iterator[Any]:
    for node in _nodes(model):
        yield from node.attribute
    for function in model.functions:
        yield from function.attribute_proto  # default values


def _graphs(model: Any) -> Iterator[Any]:
    pending = [model.graph]
    for function in model.functions:
        for attribute in function.attribute_proto:
            pending += [attribute.g, *attribute.graphs]
    nodes = [node for function in model.functions for node in function.node]
    while pending or nodes:
        for node in nodes:
            for attribute in node.attribute:
                pending.extend(attribute.graphs)
                if attribute.HasField("g"):
                    pending.append(attribute.g)
        nodes = []
        if pending:
            graph = pending.pop()
            nodes = list(graph.node)
            yield graph


@cache
def _message_class() -> Any:
    kinds = descriptor_pb2.FieldDescriptorProto
    scalars = {
        "int64": kinds.TYPE_INT64,
        "uint64": kinds.TYPE_UINT64,
        "int32": kinds.TYPE_INT32,
        "string": kinds.TYPE_STRING,
        "bytes": kinds.TYPE_BYTES,
        "float": kinds.TYPE_FLOAT,
        "double": kinds.TYPE_DOUBLE,
    }
    file = descriptor_pb2.FileDescriptorProto(name="matexport/graph.proto", package="matexport", syntax="proto2")
    for name, fields in _SCHEMA.items():
        record = file.message_type.add(name=name)
        for field, number, kind, repeated in fields:
            item = record.field.add(
                name=field,
                number=number,
                type=scalars.get(kind, kinds.TYPE_MESSAGE),
                label=kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL,
            )
            if kind not in scalars:
                item.type_name = f".matexport.{kind}"
    pool = descriptor_pool.DescriptorPool()  # our own: onnx may register its full schema in the default one
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("matexport.Model"))
