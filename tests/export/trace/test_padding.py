"""A padding mask that is looked up number by number becomes the mask itself, bit for bit; a mask that is almost one
stays as it is.

The graphs are written here as transformers' mask comes out of a trace, one detail of each changed; what they hold is
worked out in numpy, apart from any graph.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conftest import TEXTS
from forge import reseal
from onnx import TensorProto, helper, numpy_helper
from onnx_ir.passes import common
from places import GOLDEN
from toys import run_model

from matexport import Embedder
from matexport.export.graph.edit import assert_sound, write_graph
from matexport.export.trace import canonical
from matexport.export.trace.padding import write_plain_masks

BATCH, LENGTH = "batch_size", "sequence_length"
LEAST = np.float32(-3.4e38)
HEADS = 2


@dataclass(frozen=True)
class Mask:
    """A mask as a trace leaves it, and what may be otherwise in it."""

    start: int = 0  # of the keys' positions
    step: int = 1
    shift: int = 0  # added to the keys' positions
    window: int | None = None  # how far apart a row and a key may be
    least_row: int = 0  # rows from here on see anything at all
    looked_up: str = "attention_mask"
    counted: str = "attention_mask"  # whose tokens the keys' positions count
    rows_first: bool = True  # an index is (row of the batch, key)
    batch_of: int = 0  # which axis of input_ids is counted for the rows of the batch
    reshaped: bool = False  # the rows' positions are put along their axis by Reshape, as vmap does
    scores: bool = True  # the mask is added to scores of its size, and not given as it is
    axes: Mapping[str, tuple[str, str]] | None = None  # of inputs whose axes have other names

    def build(self) -> ir.Model:
        """input_ids, attention_mask, other -> (B, HEADS, T, T) masked scores, or (B, 1, T, T) the mask alone."""
        names = ("input_ids", "attention_mask", "other")
        axes = dict.fromkeys(names, (BATCH, LENGTH)) | dict(self.axes or {})
        numbers = {
            "zero": np.int64(0), "one": np.int64(1), "start": np.int64(self.start), "step": np.int64(self.step),
            "shift": np.int64(self.shift), "least_row": np.int64(self.least_row), "nothing": np.float32(0),
            "least": LEAST, "ones": np.array(True), "window": np.int64(self.window or 0),
            "column": np.array([-1, 1, 1, 1]),
            **{f"axes_{place}": np.array([int(number) for number in place.split("_")]) for place in
               ("1", "2", "3", "0_1", "1_2", "-1", "-2")},
        }  # fmt: skip
        nodes = [
            helper.make_node("Cast", [self.looked_up], ["mask"], to=TensorProto.BOOL),
            helper.make_node("Shape", ["input_ids"], ["shape_0"], start=self.batch_of, end=self.batch_of + 1),
            helper.make_node("Squeeze", ["shape_0"], ["count_0"]),
            helper.make_node("Shape", [self.counted], ["shape_1"], start=1, end=2),
            helper.make_node("Squeeze", ["shape_1"], ["count_1"]),
            helper.make_node("Range", ["zero", "count_0", "one"], ["rows"]),
            helper.make_node("Range", ["start", "count_1", "step"], ["keys"]),
            helper.make_node("Unsqueeze", ["rows", "axes_1_2"], ["rows_3"]),
            helper.make_node("Reshape", ["rows", "column"], ["rows_4"])
            if self.reshaped
            else helper.make_node("Unsqueeze", ["rows_3", "axes_3"], ["rows_4"]),
            helper.make_node("Unsqueeze", ["keys", "axes_0_1"], ["keys_3"]),
            helper.make_node("Unsqueeze", ["keys_3", "axes_3"], ["queries_4"]),
            helper.make_node("Unsqueeze", ["keys_3", "axes_2"], ["keys_plain"]),
        ]
        nodes.append(
            helper.make_node("Add", ["keys_plain", "shift"], ["keys_4"]) if self.shift
            else helper.make_node("Identity", ["keys_plain"], ["keys_4"])
        )  # fmt: skip
        order = ["rows_5", "keys_5"] if self.rows_first else ["keys_5", "rows_5"]
        nodes += [
            helper.make_node("GreaterOrEqual", ["queries_4", "least_row"], ["sees"]),
            helper.make_node("And", ["ones", "sees"], ["allowed"]),
            helper.make_node("Max", ["rows_4", "keys_4"], ["grid"]),
            helper.make_node("Shape", ["grid"], ["grid_shape"]),
            helper.make_node("Expand", ["rows_4", "grid_shape"], ["rows_wide"]),
            helper.make_node("Expand", ["keys_4", "grid_shape"], ["keys_wide"]),
            helper.make_node("Unsqueeze", ["rows_wide", "axes_-1"], ["rows_5"]),
            helper.make_node("Unsqueeze", ["keys_wide", "axes_-1"], ["keys_5"]),
            helper.make_node("Concat", order, ["index"], axis=-1),
            helper.make_node("GatherND", ["mask", "index"], ["looked_up"]),
            helper.make_node("And", ["allowed", "looked_up"], ["seen"]),
        ]
        last = "seen"
        if self.window is not None:
            nodes += [
                helper.make_node("Sub", ["queries_4", "keys_4"], ["apart"]),
                helper.make_node("Abs", ["apart"], ["distance"]),
                helper.make_node("LessOrEqual", ["distance", "window"], ["near"]),
                helper.make_node("And", ["near", "seen"], ["near_seen"]),
            ]
            last = "near_seen"
        nodes.append(helper.make_node("Where", [last, "nothing", "least"], ["weights"]))
        given = [helper.make_tensor_value_info(name, TensorProto.INT64, axes[name]) for name in names]
        result = "weights"
        if self.scores:
            given.append(helper.make_tensor_value_info("scores", TensorProto.FLOAT, [BATCH, HEADS, LENGTH, LENGTH]))
            nodes.append(helper.make_node("Add", ["scores", "weights"], ["masked"]))
            result = "masked"
        shape = [BATCH, HEADS if self.scores else 1, LENGTH, LENGTH]
        graph = helper.make_graph(
            nodes, "mask", given, [helper.make_tensor_value_info(result, TensorProto.FLOAT, shape)],
            [numpy_helper.from_array(np.asarray(array), name) for name, array in numbers.items()],
        )  # fmt: skip
        model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
        model.graph.sort()
        self._say_shapes(model, axes)
        return model

    def _say_shapes(self, model: ir.Model, axes: Mapping[str, Sequence[str]]) -> None:
        """What torch says of the values of a trace."""
        wide = [BATCH, 1, LENGTH, LENGTH]
        known = {"mask": axes[self.looked_up], "seen": wide, "near_seen": wide, "weights": wide,
                 "near": [1, 1, LENGTH, LENGTH], "looked_up": [BATCH, 1, 1, LENGTH]}  # fmt: skip
        for node in model.graph:
            out = node.outputs[0]
            if out.name in known:
                out.shape = ir.Shape(known[out.name])
                out.type = ir.TensorType(ir.DataType.FLOAT if out.name == "weights" else ir.DataType.BOOL)

    def expect(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        """The same in numpy, number by number."""
        looked_up, batch, length = feeds[self.looked_up] != 0, *feeds["input_ids"].shape
        weights = np.full((batch, 1, length, length), LEAST, dtype=np.float32)
        for row in range(batch):
            for query in range(length):
                for key in range(length):
                    near = self.window is None or abs(query - key) <= self.window
                    place = (row, key + self.shift) if self.rows_first else (key, row)
                    if near and query >= self.least_row and looked_up[place]:
                        weights[row, 0, query, key] = 0
        return feeds["scores"] + weights if self.scores else weights


def draw_feeds(mask: Mask, batch: int, length: int, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    feeds: dict[str, np.ndarray[Any, Any]] = {
        name: rng.integers(0, 2, (batch, length)) for name in ("input_ids", "attention_mask", "other")
    }
    if mask.scores:
        feeds["scores"] = rng.standard_normal((batch, HEADS, length, length)).astype(np.float32)
    return feeds


def count(model: ir.Model, operator: str) -> int:
    return sum(node.op_type == operator for node in model.graph)


def keep_needed(model: ir.Model) -> ir.Model:
    common.RemoveUnusedNodesPass()(model)
    return model


@pytest.mark.parametrize("reshaped", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (7, 3), (1, 9), (4, 1)])
def test_a_padding_mask_is_the_attention_mask_bit_for_bit(shape: tuple[int, int], reshaped: bool) -> None:
    mask = Mask(reshaped=reshaped)
    model, feeds = mask.build(), draw_feeds(mask, *shape)
    before = run_model(model, feeds)
    np.testing.assert_array_equal(before[0], mask.expect(feeds))
    assert write_plain_masks(model) == 1
    keep_needed(model)
    assert_sound(model)
    assert [node.op_type for node in model.graph] == ["Cast", "Unsqueeze", "Where", "Add"]
    np.testing.assert_array_equal(run_model(model, feeds), before)


def test_a_lookup_without_more_axes_is_the_mask_itself() -> None:
    """As vmap writes it: a grid of (row of the batch, token)."""
    model = Mask().build()
    graph = model.graph
    named = {str(node.outputs[0].name): node for node in graph}
    named["rows_3"].replace_input_with(1, graph.initializers["axes_1"])
    named["rows_3"].outputs[0].name, named["keys"].outputs[0].name = "rows_4_", "keys_4_"
    for name, source in (("grid", "rows_3"), ("rows_wide", "rows_3")):
        named[name].replace_input_with(0, named[source].outputs[0])
    named["grid"].replace_input_with(1, named["keys"].outputs[0])
    named["keys_wide"].replace_input_with(0, named["keys"].outputs[0])
    looked_up, seen = named["looked_up"], named["seen"]
    looked_up.outputs[0].shape = ir.Shape([BATCH, LENGTH])
    four = ir.node("Unsqueeze", [looked_up.outputs[0], graph.initializers["axes_1_2"]])
    four.outputs[0].name, four.outputs[0].shape = "looked_up_4", ir.Shape([BATCH, 1, 1, LENGTH])
    four.outputs[0].type = ir.TensorType(ir.DataType.BOOL)
    graph.insert_after(looked_up, four)
    seen.replace_input_with(1, four.outputs[0])
    keep_needed(model)
    feeds = draw_feeds(Mask(), 3, 7)
    np.testing.assert_array_equal(run_model(model, feeds)[0], Mask().expect(feeds))
    assert write_plain_masks(model) == 1
    assert [node.op_type for node in keep_needed(model).graph] == ["Cast", "Unsqueeze", "Where", "Add"]
    np.testing.assert_array_equal(run_model(model, feeds)[0], Mask().expect(feeds))


def test_what_is_left_says_its_shapes() -> None:
    """Narrowing to one token reads them: an axis of length 1 is not narrowed."""
    model = Mask().build()
    write_plain_masks(model)
    (where,) = (node for node in model.graph if node.op_type == "Where")
    assert where.outputs[0].shape == ir.Shape([BATCH, 1, 1, LENGTH])
    assert where.inputs[0].shape == ir.Shape([BATCH, 1, 1, LENGTH])  # type: ignore[union-attr]


@pytest.mark.parametrize("window", [0, 2])
def test_a_window_stays_and_only_what_is_looked_up_is_written_plainly(window: int) -> None:
    mask = Mask(window=window)
    model, feeds = mask.build(), draw_feeds(mask, 3, 7)
    assert write_plain_masks(model) == 1
    keep_needed(model)
    assert_sound(model)
    assert (count(model, "LessOrEqual"), count(model, "Range"), count(model, "GatherND")) == (1, 1, 0)
    np.testing.assert_array_equal(run_model(model, feeds)[0], mask.expect(feeds))


def test_another_input_is_looked_up_as_before() -> None:
    mask = Mask(looked_up="other")
    model, feeds = mask.build(), draw_feeds(mask, 3, 7)
    assert not np.array_equal(feeds["other"], feeds["attention_mask"])
    assert write_plain_masks(model) == 1
    assert keep_needed(model).graph[0].inputs[0].name == "other"  # type: ignore[union-attr]
    np.testing.assert_array_equal(run_model(model, feeds)[0], mask.expect(feeds))


#: Masks that are almost padding masks; all but the last would be others if they were written as one.
OTHERS = {
    "positions that start at 1": Mask(start=1),
    "every second position": Mask(step=2),
    "positions that are shifted by one": Mask(shift=-1),
    "rows and keys changed places": Mask(rows_first=False),
    "rows that are counted along the tokens": Mask(batch_of=1),
    "keys of a longer input": Mask(counted="other", axes={"other": (BATCH, "other_length")}),
    "a mask that is longer than the texts": Mask(counted="input_ids", axes={"attention_mask": (BATCH, "mask_length")}),
    "a mask of another batch": Mask(axes={"attention_mask": ("mask_batch", LENGTH)}),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_almost_a_padding_mask_is_left_alone(what: str) -> None:
    model = OTHERS[what].build()
    before = [(node.op_type, [value.name for value in node.inputs if value]) for node in model.graph]
    assert write_plain_masks(model) == 0
    looked_up = [(kind, names) for kind, names in before if kind not in ("And", "Where")]
    after = [(node.op_type, [value.name for value in node.inputs if value]) for node in model.graph]
    assert [entry for entry in after if entry[0] not in ("And", "Where")] == looked_up


@pytest.mark.parametrize("what", ["positions that are shifted by one"])
def test_what_is_left_alone_gives_what_it_gave(what: str) -> None:
    mask = OTHERS[what]
    model, feeds = mask.build(), draw_feeds(mask, 3, 7)
    write_plain_masks(model)
    assert_sound(model)
    np.testing.assert_array_equal(run_model(model, feeds)[0], mask.expect(feeds))


def test_rows_that_see_nothing_keep_their_mask() -> None:
    """`row >= 1` is not always true, `row >= -1` and `row >= 0` are."""
    mask = Mask(least_row=1)
    model, feeds = mask.build(), draw_feeds(mask, 3, 7)
    assert write_plain_masks(model) == 1
    keep_needed(model)
    assert (count(model, "GatherND"), count(model, "GreaterOrEqual"), count(model, "And")) == (0, 1, 2)
    np.testing.assert_array_equal(run_model(model, feeds)[0], mask.expect(feeds))
    model = Mask(least_row=-1).build()
    write_plain_masks(model)
    assert count(keep_needed(model), "And") == 0


def test_a_mask_that_is_given_as_it_is_keeps_its_shape() -> None:
    """Nothing would repeat it for each row: an output, or what is read by an operator that looks at whole axes."""
    mask = Mask(scores=False)
    model, feeds = mask.build(), draw_feeds(mask, 3, 7)
    assert write_plain_masks(model) == 1
    assert count(model, "And") == 2
    (found,) = run_model(keep_needed(model), feeds)
    assert found.shape == (3, 1, 7, 7)
    np.testing.assert_array_equal(found, mask.expect(feeds))


def test_two_halves_of_one_mask_do_not_repeat_each_other() -> None:
    """seen | ~seen: each has the other beside it, and neither would have its length any more."""
    model, feeds = Mask(scores=False).build(), draw_feeds(Mask(scores=False), 3, 7)
    graph = model.graph
    (where,) = (node for node in graph if node.op_type == "Where")
    seen = where.inputs[0]
    assert seen is not None
    opposite = ir.node("Not", [seen])
    both = ir.node("Or", [seen, opposite.outputs[0]])
    for node, name in ((opposite, "opposite"), (both, "both")):
        node.outputs[0].name, node.outputs[0].shape = name, seen.shape
        node.outputs[0].type = ir.TensorType(ir.DataType.BOOL)
        graph.insert_before(where, node)
    where.replace_input_with(0, both.outputs[0])
    expected = run_model(model, feeds)
    write_plain_masks(model)
    assert_sound(model)
    found = run_model(model, feeds)
    assert found[0].shape == expected[0].shape == (3, 1, 7, 7)
    np.testing.assert_array_equal(found, expected)


def test_without_shapes_the_graph_stays() -> None:
    """As the TorchScript exporter leaves it."""
    model = Mask().build()
    for value in [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]:
        value.shape = None
    before = len(model.graph)
    assert write_plain_masks(model) == 0
    assert len(model.graph) == before


@pytest.mark.parametrize("name", ["L01-D020", "L02-D020"])
def test_a_graph_that_was_written_before_gives_the_same_vectors(name: str, tmp_path: Path) -> None:
    """The trace of a BERT in a frozen family, whose graphs still look their mask up: same weights, bit for bit."""
    folder = Path(shutil.copytree(GOLDEN / "schema4", tmp_path / "family"))
    expected = Embedder(folder, f"{name}-fp32", threads=1).embed(TEXTS)
    file = folder / f"{name}.fp32.onnx"
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.load(file, load_external_data=False)))
    read = next(node for node in model.graph if node.outputs[0].name == "_to_copy")
    for value in (model.graph.inputs[1], read.outputs[0]):  # whose batch had a name of its own then
        value.shape = ir.Shape([BATCH, LENGTH])
    before = len(model.graph)
    assert write_plain_masks(model) == 1
    keep_needed(model)
    assert (count(model, "GatherND"), count(model, "Expand")) == (0, 0)
    assert len(model.graph) < before - 10
    write_graph(model, file)
    reseal(folder)
    np.testing.assert_array_equal(Embedder(folder, f"{name}-fp32", threads=1).embed(TEXTS), expected)


def test_inputs_that_torch_tells_apart_have_the_same_axes() -> None:
    """Nothing in a module makes the batch of a mask that is only looked up equal to the others'."""
    model = Mask().build()
    graph = model.graph
    axes = {"input_ids": ["s18", "s41"], "attention_mask": ["s86", "s41"], "other": ["s18", None]}
    for value in graph.inputs:
        value.shape = ir.Shape(axes.get(str(value.name), ["s18", HEADS, "s41", "s41"]))
    (mask,) = (node.outputs[0] for node in graph if node.op_type == "Cast")
    unknown = next(node.outputs[0] for node in graph if node.op_type == "Max")
    mask.shape, unknown.shape = ir.Shape(["s86", "s41"]), ir.Shape([None, "s86 + 1"])
    canonical._name_axes(model, {0: BATCH, 1: LENGTH})
    assert [value.shape for value in graph.inputs[:2]] == [ir.Shape([BATCH, LENGTH])] * 2
    assert mask.shape == ir.Shape([BATCH, LENGTH])
    assert unknown.shape == ir.Shape([None, "s86 + 1"]), "what is not known has no name"
