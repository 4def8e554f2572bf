"""What a graph may point to, and every place in which it could hide something else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from properties import given, settings, st

from matexport import load_family
from matexport.errors import FamilyError
from matexport.family.graph_file import check_graph, find_nan_tensor, parse_graph
from matexport.spec.inputs import ArrayFacts

WEIGHTS = "weights.fp32.safetensors"
SIZE = 4096 + 96
INPUTS = ArrayFacts("x", (6,))
SOUND = {"location": WEIGHTS, "offset": "4096", "length": "96"}


def external(
    dims: tuple[int, ...] = (4, 6), dtype: int = TensorProto.FLOAT, name: str = "w", **entries: str
) -> TensorProto:
    """A tensor that lies in another file; `entries` replace or add to where."""
    tensor = TensorProto(name=name, data_type=dtype, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in (SOUND | entries).items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def make_model(*initializers: TensorProto) -> onnx.ModelProto:
    """``y = x + w``."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 6])],
        list(initializers) or [external()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def check(folder: Path, model: onnx.ModelProto | bytes, size: int = SIZE) -> None:
    path = folder / "L01-D008.fp32.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    check_graph(path.name, path.read_bytes(), {WEIGHTS: size}, INPUTS)


def refuse(folder: Path, model: onnx.ModelProto | bytes, *words: str) -> None:
    with pytest.raises(FamilyError, match=r"^L01-D008\.fp32\.onnx: ") as refusal:
        check(folder, model)
    for word in words:
        assert word in str(refusal.value)


def message_of(path: Path, size: int) -> str | None:
    """Why a graph is refused, or None where it is not."""
    try:
        check_graph(path.name, path.read_bytes(), {WEIGHTS: size}, INPUTS)
    except FamilyError as error:
        return str(error)
    return None


def test_a_sound_graph_passes(tmp_path: Path) -> None:
    check(tmp_path, make_model())


def test_a_graph_without_weights_passes(tmp_path: Path) -> None:
    check(tmp_path, make_model(helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])))


@pytest.mark.parametrize("dims", [["batch", 7], [4, 6], ["batch"], ["batch", 6, 1], ["batch", 1 << 40], []])
def test_an_input_of_another_shape_than_the_manifest_says(dims: list[str | int], tmp_path: Path) -> None:
    model = make_model()
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, dims))
    refuse(tmp_path, model, "its input 'x' has another shape than the manifest says")


def test_an_empty_tensor_at_the_end_passes(tmp_path: Path) -> None:
    check(tmp_path, make_model(external(dims=(0, 5), offset=str(SIZE), length="0")))


def test_onnxruntimes_own_operators_pass(tmp_path: Path) -> None:
    model = make_model()
    model.graph.node[0].domain, model.graph.node[0].op_type = "com.microsoft", "MatMulNBits"
    model.opset_import.add(domain="com.microsoft", version=1)
    check(tmp_path, model)


LOCATIONS = ["../weights.fp32.safetensors", "..", "/etc/passwd", "./" + WEIGHTS, "sub/" + WEIGHTS, "", WEIGHTS.upper(),
             WEIGHTS + "\0", WEIGHTS + " ", "*/_ORT_MEM_ADDR_/*", "L01-D008.fp32.onnx", "family.json"]  # fmt: skip


@pytest.mark.parametrize("location", LOCATIONS, ids=repr)
def test_a_location_that_is_not_the_weights_file(location: str, tmp_path: Path) -> None:
    refuse(tmp_path, make_model(external(location=location)), "tensor 'w' points to", repr(location))


@pytest.mark.parametrize("key", ["offset", "length"])
@pytest.mark.parametrize("value", ["-1", "+1", "0x10", "1e2", "4096.0", " 4096", "4_096", "", "٤", "²", "four"])
def test_numbers_that_are_no_whole_numbers(key: str, value: str, tmp_path: Path) -> None:
    refuse(tmp_path, make_model(external(**{key: value})), "tensor 'w'", "no whole number")


@pytest.mark.parametrize(
    "key",
    ["checksum", "basepath", "Offset", "offset ", "prepacked_0"],
)
def test_an_unknown_key(key: str, tmp_path: Path) -> None:
    refuse(tmp_path, make_model(external(**{key: "0"})), "tensor 'w' has the external-data keys", key)


@pytest.mark.parametrize("key", list(SOUND))
def test_a_missing_key(key: str, tmp_path: Path) -> None:
    tensor = external()
    kept = [entry for entry in tensor.external_data if entry.key != key]
    del tensor.external_data[:]
    tensor.external_data.extend(kept)
    refuse(
        tmp_path, make_model(tensor), "tensor 'w' has the external-data keys", "expected location, offset and length"
    )


@pytest.mark.parametrize("key", list(SOUND))
def test_a_repeated_key(key: str, tmp_path: Path) -> None:
    """Readers differ in which of the two they believe."""
    tensor = external()
    tensor.external_data.add(key=key, value=SOUND[key])
    refuse(tmp_path, make_model(tensor), "tensor 'w' has the external-data keys")


def test_no_keys_at_all(tmp_path: Path) -> None:
    tensor = external()
    del tensor.external_data[:]
    refuse(tmp_path, make_model(tensor), "tensor 'w' has the external-data keys []")


def test_keys_without_the_external_mark(tmp_path: Path) -> None:
    tensor = external()
    tensor.ClearField("data_location")
    refuse(tmp_path, make_model(tensor), "tensor 'w' carries external-data entries but is not external")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"length": "95"}, "says 95 bytes where its shape needs 96"),
        ({"length": "97"}, "says 97 bytes where its shape needs 96"),
        ({"length": "0"}, "says 0 bytes where its shape needs 96"),
        ({"dims": (4, 7)}, "says 96 bytes where its shape needs 112"),
        ({"dims": (4,)}, "says 96 bytes where its shape needs 16"),
        ({"dims": ()}, "says 96 bytes where its shape needs 4"),
        ({"dtype": TensorProto.FLOAT16}, "says 96 bytes where its shape needs 48"),
        ({"dtype": TensorProto.INT4}, "says 96 bytes where its shape needs 12"),
        ({"dims": (-4, -6)}, "negative dims"),
        ({"dims": (1 << 62, 1 << 62, 16)}, "has more than 16 axes, or one longer than"),
        ({"dims": (1 << 40, 1 << 40, 16)}, "where its shape needs"),
        ({"dtype": TensorProto.STRING}, "unknown data type 8"),
        ({"dtype": TensorProto.UNDEFINED}, "unknown data type 0"),
        ({"dtype": 999}, "unknown data type 999"),
        ({"offset": "4097"}, f"ends at byte {SIZE + 1} of {WEIGHTS}, which has {SIZE}"),
        ({"offset": str(1 << 64)}, "ends at byte"),
        ({"offset": str((1 << 64) - 96)}, "ends at byte"),
    ],
    ids=str,
)  # fmt: skip
def test_a_range_that_does_not_fit(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    refuse(tmp_path, make_model(external(**changes)), "tensor 'w'", words)  # type: ignore[arg-type]


def test_a_range_past_the_profiles_prefix(tmp_path: Path) -> None:
    """The file is longer, but a pack of this profile would not be."""
    with pytest.raises(FamilyError, match=rf"which has {SIZE - 1}"):
        check(tmp_path, make_model(), size=SIZE - 1)


# int() raises ValueError beyond 4300.
@pytest.mark.parametrize("key", ["offset", "length"])
def test_more_digits_than_python_reads(key: str, tmp_path: Path) -> None:
    refuse(tmp_path, make_model(external(**{key: "1" * 5000})), "tensor 'w'")


# Half a byte times a product beyond 1e308 must not pass through a float.
def test_dims_beyond_a_float(tmp_path: Path) -> None:
    refuse(tmp_path, make_model(external(dims=(1 << 62,) * 20, dtype=TensorProto.INT4)), "tensor 'w'")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model: setattr(model, "ir_version", 7), "is of IR version 7; known are 8 to 13"),
        (lambda model: setattr(model.opset_import[0], "version", 1), "has version 1 of the operators of 'ai.onnx'"),
        (lambda model: setattr(model.opset_import[0], "version", 99), "has version 99"),
        (lambda model: model.opset_import.add(domain="com.microsoft", version=2), "has version 2 of the operators of"),
    ],
    ids=["IR", "old", "unknown", "contrib"],
)
def test_versions_in_which_operators_mean_something_else(
    change: Callable[[onnx.ModelProto], object], words: str, tmp_path: Path
) -> None:
    model = make_model()
    change(model)
    refuse(tmp_path, model, words)


def test_the_second_tensor_is_looked_at_too(tmp_path: Path) -> None:
    refuse(tmp_path, make_model(external(), external(name="v", location="../w")), "tensor 'v'")


def bad_tensor() -> TensorProto:
    return external(name="hidden", location="../../etc/passwd")


def bad_graph() -> onnx.GraphProto:
    return helper.make_graph([helper.make_node("Identity", ["hidden"], ["out"])], "sub", [], [], [bad_tensor()])


def in_attribute(model: onnx.ModelProto) -> None:
    model.graph.node.add(op_type="Constant", output=["c"]).attribute.add(name="value", type=4).t.CopyFrom(bad_tensor())


def in_attribute_list(model: onnx.ModelProto) -> None:
    model.graph.node.add(op_type="Custom").attribute.add(name="values", type=9).tensors.append(bad_tensor())


def in_mistyped_attribute(model: onnx.ModelProto) -> None:
    model.graph.node.add(op_type="Constant", output=["c"]).attribute.add(name="value", type=1).t.CopyFrom(bad_tensor())


def in_sparse_initializer(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(bad_tensor())


def in_sparse_indices(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add().indices.CopyFrom(bad_tensor())


def in_sparse_attribute(model: onnx.ModelProto) -> None:
    attribute = model.graph.node.add(op_type="Constant", output=["c"]).attribute.add(name="sparse_value", type=11)
    attribute.sparse_tensor.values.CopyFrom(bad_tensor())


def in_sparse_attribute_list(model: onnx.ModelProto) -> None:
    attribute = model.graph.node.add(op_type="Custom").attribute.add(name="sparse_values", type=12)
    attribute.sparse_tensors.add().indices.CopyFrom(bad_tensor())


def in_branch(model: onnx.ModelProto) -> None:
    model.graph.node.add(op_type="If", input=["x"]).attribute.add(name="else_branch", type=5).g.CopyFrom(bad_graph())


def in_branch_list(model: onnx.ModelProto) -> None:
    model.graph.node.add(op_type="Custom").attribute.add(name="branches", type=10).graphs.append(bad_graph())


def in_branch_of_branch(model: onnx.ModelProto) -> None:
    outer = helper.make_graph([], "outer", [], [])
    outer.node.add(op_type="If").attribute.add(name="then_branch", type=5).g.CopyFrom(bad_graph())
    model.graph.node.add(op_type="Loop", input=["x"]).attribute.add(name="body", type=5).g.CopyFrom(outer)


def in_function(model: onnx.ModelProto) -> None:
    node = model.functions.add(name="f", domain="local").node.add(op_type="Constant", output=["c"])
    node.attribute.add(name="value", type=4).t.CopyFrom(bad_tensor())


def in_branch_of_function(model: onnx.ModelProto) -> None:
    node = model.functions.add(name="f", domain="local").node.add(op_type="If", input=["x"])
    node.attribute.add(name="then_branch", type=5).g.CopyFrom(bad_graph())


def in_default_of_function(model: onnx.ModelProto) -> None:
    function = model.functions.add(name="f", domain="local")
    function.attribute_proto.add(name="value", type=4).t.CopyFrom(bad_tensor())


HIDERS = [in_attribute, in_attribute_list, in_mistyped_attribute, in_sparse_initializer, in_sparse_indices,
          in_sparse_attribute, in_sparse_attribute_list, in_branch, in_branch_list, in_branch_of_branch, in_function,
          in_branch_of_function, in_default_of_function]  # fmt: skip


@pytest.mark.parametrize("hide", HIDERS, ids=lambda hide: hide.__name__)
def test_a_hidden_tensor_is_found(hide: Callable[[onnx.ModelProto], None], tmp_path: Path) -> None:
    model = make_model()
    hide(model)
    refuse(tmp_path, model, "tensor 'hidden' points to '../../etc/passwd'")


def test_a_custom_domain_that_is_imported(tmp_path: Path) -> None:
    model = make_model()
    model.opset_import.add(domain="evil", version=1)
    refuse(tmp_path, model, "operators of the domain 'evil'")


def custom_node(node: onnx.NodeProto) -> None:
    node.op_type, node.domain = "Pwn", "evil"


def test_a_custom_domain_in_a_node(tmp_path: Path) -> None:
    model = make_model()
    custom_node(model.graph.node.add())
    refuse(tmp_path, model, "operators of the domain 'evil'")


def test_a_custom_domain_in_a_branch(tmp_path: Path) -> None:
    model = make_model()
    branch = model.graph.node.add(op_type="If").attribute.add(name="then_branch", type=5)
    custom_node(branch.g.node.add())
    refuse(tmp_path, model, "operators of the domain 'evil'")


def test_a_custom_domain_in_a_function(tmp_path: Path) -> None:
    model = make_model()
    custom_node(model.functions.add(name="f", domain="ai.onnx").node.add())
    refuse(tmp_path, model, "operators of the domain 'evil'")


def test_every_truncation_is_refused_or_harmless(tmp_path: Path) -> None:
    content = make_model().SerializeToString()
    for length in range(len(content)):
        path = tmp_path / "cut.onnx"
        path.write_bytes(content[:length])
        message = message_of(path, SIZE)
        if message is None:  # cut between two fields after the output: what is left is a model
            assert onnx.load_from_string(content[:length]).graph.output
        else:
            assert message.startswith("cut.onnx: ")


@pytest.mark.parametrize("content", [b"", b"\0", b"not a model", b"\x08\x0a", b"\xff" * 100])
def test_what_is_no_model(content: bytes, tmp_path: Path) -> None:
    refuse(tmp_path, content, "not an ONNX model")


def test_a_graph_that_nests_too_deep(tmp_path: Path) -> None:
    graph = onnx.GraphProto()
    content = graph.SerializeToString()
    for _ in range(500):  # node(1){attribute(5){g(6){...}}}
        for tag in (0x32, 0x2A, 0x0A):
            content = bytes([tag]) + varint(len(content)) + content
    refuse(tmp_path, b"\x3a" + varint(len(content)) + content, "not an ONNX model")


def test_a_graph_that_is_too_large_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matexport.family.graph_file.MAX_GRAPH_BYTES", 10)
    monkeypatch.setattr("matexport.family.graph_file._message_class", lambda: pytest.fail("was parsed"))
    refuse(tmp_path, make_model(), "a graph without weights is far smaller")


@pytest.mark.parametrize("field", ["key", "location", "name"])
def test_text_that_is_not_utf8(field: str, tmp_path: Path) -> None:
    # protobuf reads such a field as bytes, which cannot be sorted among texts.
    old = {"key": b"offset", "location": b"weights.", "name": b"\x42\x01w"}[field]
    new = {"key": b"\xffffset", "location": b"weights\xff", "name": b"\x42\x01\xff"}[field]
    model = make_model(external(location="weights.elsewhere") if field == "name" else external())
    content = model.SerializeToString()
    assert content.count(old) == 1
    refuse(tmp_path, content.replace(old, new), "tensor")


KINDS = {"float": "float_data", "double": "double_data", "float16": "int32_data", "bfloat16": "int32_data"}


@pytest.mark.parametrize("raw", [True, False], ids=["bytes", "numbers"])
@pytest.mark.parametrize("kind", KINDS)
def test_nan_in_a_small_weight(kind: str, raw: bool, tmp_path: Path) -> None:
    """Wherever ONNX lets it lie; an infinity is what a mask is made of."""
    data_type = TensorProto.DataType.Value(kind.upper())
    for value, name in ((1.5, None), (float("-inf"), None), (float("nan"), "v")):
        tensor = helper.make_tensor("v", data_type, [3], [0.5, value, 2.0])
        if raw:
            array = onnx.numpy_helper.to_array(tensor)
            tensor.ClearField(KINDS[kind])
            tensor.raw_data = array.tobytes()
        assert (len(getattr(tensor, KINDS[kind])) > 0) is not raw
        (tmp_path / "m.onnx").write_bytes(make_model(external(), tensor).SerializeToString())
        assert find_nan_tensor("m.onnx", (tmp_path / "m.onnx").read_bytes()) == name


def test_parse_reads_what_onnx_wrote(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(make_model().SerializeToString())
    model = parse_graph(path.name, path.read_bytes())
    assert [value.name for value in model.graph.input] == ["x"]
    assert [value.name for value in model.graph.output] == ["y"]
    assert [node.op_type for node in model.graph.node] == ["Add"]
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]


def test_the_schema_is_onnxs(tmp_path: Path) -> None:
    """Field numbers are copied by hand; a wrong one would look past what it should check."""
    from matexport.family.graph_file import _SCHEMA

    theirs = {"Opset": "OperatorSetId", "Entry": "StringStringEntry", "Sparse": "SparseTensor"}
    for name, fields in _SCHEMA.items():
        inner = {
            "TensorType": onnx.TypeProto.Tensor,
            "Shape": onnx.TensorShapeProto,
            "Dim": onnx.TensorShapeProto.Dimension,
        }
        inside = inner.get(name) or getattr(onnx, f"{theirs.get(name, name)}Proto")
        descriptor = inside.DESCRIPTOR
        for field, number, kind, repeated in fields:
            assert descriptor.fields_by_name[field].number == number, (name, field)
            assert descriptor.fields_by_name[field].is_repeated == repeated, (name, field)
            assert (descriptor.fields_by_name[field].message_type is None) == kind.islower(), (name, field)


def test_the_exported_graphs_pass(exported: Path) -> None:
    for path in sorted(exported.glob("*.onnx")):
        check_graph(
            path.name,
            path.read_bytes(),
            {WEIGHTS: (exported / WEIGHTS).stat().st_size},
            load_family(exported).facts.inputs,
        )


@settings(max_examples=300)
@given(flips=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 255)), min_size=1, max_size=8))
def test_flipped_bytes_raise_nothing_else(
    exported: Path, tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]
) -> None:
    content = bytearray((exported / "L01-D008.fp32.onnx").read_bytes())
    for position, mask in flips:
        content[position % len(content)] ^= mask
    path = tmp_path_factory.getbasetemp() / "flipped.onnx"
    path.write_bytes(content)
    message = message_of(path, (exported / WEIGHTS).stat().st_size)
    assert message is None or message.startswith("flipped.onnx: ")


@settings(max_examples=300)
@given(position=st.integers(0, 1 << 20), mask=st.integers(1, 255))
def test_flipped_bytes_of_a_small_graph_raise_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, position: int, mask: int
) -> None:
    content = bytearray(make_model(external(), external(name="v")).SerializeToString())
    content[position % len(content)] ^= mask
    path = tmp_path_factory.getbasetemp() / "flipped.onnx"
    path.write_bytes(content)
    message = message_of(path, SIZE)
    assert message is None or message.startswith("flipped.onnx: ")


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random.onnx"
    path.write_bytes(content)
    with pytest.raises(FamilyError, match=r"^random\.onnx: not an ONNX model"):
        check_graph(path.name, path.read_bytes(), {WEIGHTS: SIZE}, INPUTS)


def varint(number: int) -> bytes:
    """Protobuf's encoding of a length."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])
