"""Leading rows of a weight: one copy in the file, as many bytes as are read, and nothing else passes the guard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from matexport.errors import FamilyError
from matexport.export.graph.edit import assert_sound, write_graph
from matexport.export.graph.prefix import share_leading_rows
from matexport.export.graph.weights import measure_prefix, write_nested_weights
from matexport.family.graph_file import check_entries, check_graph
from matexport.family.weights_file import read_header
from matexport.spec.inputs import ArrayFacts
from matexport.spec.profile import Point

ROWS, COLUMNS, TAKEN = 64, 48, 16
MATRIX = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)
WEIGHTS = "weights.fp32.safetensors"


def make_model(*, start: int = 0, end: int = TAKEN, axis: int = 0, step: int = 1, rows: int = TAKEN) -> ir.Model:
    """x (B, rows) times some rows of a matrix."""
    bounds = {"start": [start], "end": [end], "axis": [axis], "step": [step]}
    initializers = [numpy_helper.from_array(MATRIX, "matrix")]
    initializers += [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in bounds.items()]
    nodes = [
        helper.make_node("Slice", ["matrix", "start", "end", "axis", "step"], ["part"], "cut"),
        helper.make_node("MatMul", ["x", "part"], ["L00-D048"], "product"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch_size", rows])],
        [helper.make_tensor_value_info("L00-D048", TensorProto.FLOAT, ["batch_size", COLUMNS])],
        initializers,
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def write(model: ir.Model, folder: Path) -> Path:
    header = write_nested_weights(model, [Point(0, COLUMNS)], folder / WEIGHTS)
    share_leading_rows(model)
    assert_sound(model)
    write_graph(model, folder / "g.onnx")
    needed = measure_prefix(model, header)
    (folder / "needed").write_text(str(needed))
    return folder / "g.onnx"


def test_rows_point_into_the_file_and_the_prefix_ends_with_them(tmp_path: Path) -> None:
    path = write(make_model(), tmp_path)
    graph = onnx.load(path, load_external_data=False).graph
    (tensor,) = graph.initializer
    assert (tensor.name, list(tensor.dims)) == (f"matrix[:{TAKEN}]", [TAKEN, COLUMNS])
    assert [node.op_type for node in graph.node] == ["MatMul"]
    where = {entry.key: entry.value for entry in tensor.external_data}
    assert int(where["length"]) == TAKEN * COLUMNS * 4
    needed = int((tmp_path / "needed").read_text())
    whole = (tmp_path / WEIGHTS).read_bytes()
    assert needed == len(whole) - (ROWS - TAKEN) * COLUMNS * 4
    (tmp_path / WEIGHTS).write_bytes(whole[:needed])
    x = np.random.default_rng(1).standard_normal((3, TAKEN)).astype(np.float32)
    (found,) = onnxruntime.InferenceSession(path).run(None, {"x": x})
    np.testing.assert_allclose(found, x @ MATRIX[:TAKEN], atol=1e-5)


@pytest.mark.parametrize(
    "part",
    [
        {"start": 1, "end": TAKEN + 1},
        {"step": 2, "end": 2 * TAKEN},
        {"axis": 1, "end": COLUMNS, "rows": ROWS},
        {"end": TAKEN - ROWS},
    ],
)
def test_other_parts_stay_slices(part: dict[str, int], tmp_path: Path) -> None:
    model = make_model(**part)
    write_nested_weights(model, [Point(0, COLUMNS)], tmp_path / WEIGHTS)
    assert share_leading_rows(model) == 0
    assert [node.op_type for node in model.graph] == ["Slice", "MatMul"]


def test_rows_of_a_small_weight_are_copied() -> None:
    """It is in the graph itself."""
    model = make_model()
    assert share_leading_rows(model) == 1
    tensor = model.graph.initializers[f"matrix[:{TAKEN}]"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), MATRIX[:TAKEN])


@pytest.mark.parametrize(
    ("offset", "dims", "length"),
    [
        (4, [TAKEN, COLUMNS], None),  # a number further on
        (COLUMNS * 4, [TAKEN, COLUMNS], None),  # a row further on
        (0, [COLUMNS, TAKEN], None),  # as many bytes, and not whole rows
        (0, [TAKEN, COLUMNS // 2], TAKEN * COLUMNS * 2),
        (0, [TAKEN * COLUMNS], None),
    ],
)
def test_the_guard_takes_leading_rows_alone(offset: int, dims: list[int], length: int | None, tmp_path: Path) -> None:
    path = write(make_model(), tmp_path)
    entries = read_header(tmp_path / WEIGHTS).entries
    size = {WEIGHTS: (tmp_path / WEIGHTS).stat().st_size}

    def ask(model: onnx.ModelProto) -> None:
        checked = check_graph("g.onnx", model.SerializeToString(), size, ArrayFacts("x", (TAKEN,)))
        check_entries("g.onnx", checked, WEIGHTS, entries)

    model = onnx.load(path, load_external_data=False)
    ask(model)
    (tensor,) = model.graph.initializer
    for entry in tensor.external_data:
        if entry.key == "offset":
            entry.value = str(int(entry.value) + offset)
        if entry.key == "length" and length:
            entry.value = str(length)
    del tensor.dims[:]
    tensor.dims.extend(dims)
    with pytest.raises(FamilyError, match="is not a tensor of"):
        ask(model)
