"""The edits that every stage makes, each of which leaves a sound graph; and what a sound graph is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from toys import Toy, draw_rows, make_toy, run_model

from matexport.export.graph.edit import (
    CONTRIB_OPERATORS,
    Inserter,
    add_constant,
    append_node,
    assert_sound,
    drop_unused,
    replace_node,
    use_contrib,
)

WIDTH, HIDDEN = 32, 48
FEEDS = {"input_ids": np.arange(12).reshape(2, 6)}


def make_small() -> Toy:
    return make_toy(draw_rows(40, WIDTH), [{"up": draw_rows(WIDTH, HIDDEN, seed=1), "down": draw_rows(HIDDEN, WIDTH)}])


def test_a_constant_is_made_once_and_the_first_content_stays() -> None:
    graph = make_small().model.graph
    first = add_constant(graph, "two", np.array([2.0], dtype=np.float32))
    assert add_constant(graph, "two", np.array([3.0], dtype=np.float32)) is first
    assert graph.initializers["two"] is first
    assert (first.dtype, first.shape) == (ir.DataType.FLOAT, ir.Shape([1]))
    assert first.const_value is not None
    assert first.const_value.numpy() == [2.0]


def test_a_tensor_is_taken_as_it_is() -> None:
    """So that one which is made when it is written stays so."""
    graph = make_small().model.graph
    shape = ir.Shape([4])
    lazy = ir.LazyTensor(lambda: pytest.fail("it was made"), dtype=ir.DataType.FLOAT16, shape=shape, name="late")
    value = add_constant(graph, "late", lazy)
    assert (value.const_value, value.dtype, value.shape) == (lazy, ir.DataType.FLOAT16, shape)


def test_a_replaced_node_leaves_its_name_its_shape_and_its_readers() -> None:
    toy = make_small()
    before = run_model(toy.model, FEEDS, "state_1")
    (product, _) = toy.nodes("MatMul")
    readers = [use.node for use in product.outputs[0].uses()]
    two = add_constant(toy.model.graph, "two", np.array(2, dtype=np.float32))
    here = Inserter(toy.model.graph, product)
    half = here.add("Div", [product.inputs[0], two], like=product.inputs[0])  # type: ignore[arg-type]
    part = here.add("MatMul", [half, product.inputs[1]], like=half, last=HIDDEN)
    whole = here.add("Mul", [part, two], like=part)
    replace_node(toy.model.graph, product, whole)
    assert (whole.name, whole.shape) == ("wide_1", ir.Shape(["batch_size", "sequence_length", HIDDEN]))
    assert [use.node for use in whole.uses()] == readers
    assert [node.op_type for node in toy.model.graph][1:4] == ["Div", "MatMul", "Mul"]
    np.testing.assert_allclose(run_model(toy.model, FEEDS, "state_1"), before, rtol=1e-4, atol=1e-4)


def test_an_output_may_be_replaced() -> None:
    toy = make_small()
    (mean,) = toy.nodes("ReduceMean")
    copy = append_node(toy.model.graph, "ReduceMean", list(mean.inputs), {"keepdims": 0})
    copy.type = mean.outputs[0].type
    name = mean.outputs[0].name
    expected = run_model(toy.model, FEEDS)
    toy.model.graph.outputs[:] = [copy]
    replace_node(toy.model.graph, mean, copy)
    assert [value.name for value in toy.model.graph.outputs] == [name]
    np.testing.assert_array_equal(run_model(toy.model, FEEDS), expected)


def test_what_nobody_reads_is_dropped() -> None:
    toy = make_small()
    add_constant(toy.model.graph, "unread", np.zeros(3, dtype=np.float32))
    assert_sound(toy.model)
    drop_unused(toy.model)
    assert "unread" not in toy.initializers
    assert_sound(toy.model)


@pytest.mark.parametrize("operator", sorted(CONTRIB_OPERATORS))
def test_onnxruntimes_own_operators_are_of_its_domain(operator: str) -> None:
    toy = make_small()
    (gather,) = toy.nodes("Gather")
    out = Inserter(toy.model.graph, gather).add(operator, [toy.model.graph.inputs[0]], like=gather.outputs[0])
    assert out.producer().domain == "com.microsoft"  # type: ignore[union-attr]
    with pytest.raises(AssertionError, match=rf"^{operator} .* is of the domain 'com.microsoft'"):
        assert_sound(toy.model)
    use_contrib(toy.model)
    assert_sound(toy.model)


def forget_a_weight(toy: Toy) -> None:
    del toy.model.graph.initializers["up"]


def empty_a_weight(toy: Toy) -> None:
    toy.model.graph.initializers["up"].const_value = None


def read_what_comes_later(toy: Toy) -> None:
    first, second = toy.nodes("MatMul")
    first.replace_input_with(0, second.outputs[0])


def read_another_graph(toy: Toy) -> None:
    toy.nodes("MatMul")[0].replace_input_with(0, make_small().nodes("Gather")[0].outputs[0])


def call_two_alike(toy: Toy) -> None:
    toy.nodes("Gelu")[0].outputs[0].name = "wide_1"


def call_one_as_a_weight(toy: Toy) -> None:
    toy.nodes("Gelu")[0].outputs[0].name = "up"


def leave_a_name_out(toy: Toy) -> None:
    toy.nodes("Gelu")[0].outputs[0].name = None


def give_what_nothing_makes(toy: Toy) -> None:
    toy.model.graph.outputs.append(ir.Value(name="nothing"))


def read_what_a_branch_made(toy: Toy) -> None:
    """What is inside of a branch is not seen outside of it."""
    graph = toy.model.graph
    flag = add_constant(graph, "flag", np.array(True))
    branches = []
    for name in ("then", "else"):
        inner = ir.node("Abs", [toy.nodes("Gather")[0].outputs[0]])
        inner.outputs[0].name = name
        branches.append(ir.Graph([], inner.outputs, nodes=[inner], name=name))
    pairs = zip(("then_branch", "else_branch"), branches, strict=True)
    choice = ir.Node("", "If", [flag], [ir.AttrGraph(name, branch) for name, branch in pairs])
    choice.outputs[0].name = "chosen"
    graph.insert_after(toy.nodes("Gather")[0], choice)
    assert_sound(toy.model)
    toy.nodes("MatMul")[0].replace_input_with(0, branches[0].outputs[0])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (forget_a_weight, r"MatMul \(wide_1\) reads 'up', which nothing makes before it"),
        (empty_a_weight, "the initializer 'up' holds nothing"),
        (read_what_comes_later, r"MatMul \(wide_1\) reads 'narrow_1', which nothing makes before it"),
        (read_another_graph, r"MatMul \(wide_1\) reads 'state_0', which nothing makes before it"),
        (call_two_alike, "two values are called 'wide_1'"),
        (call_one_as_a_weight, "two values are called 'up'"),
        (leave_a_name_out, "a value has no name"),
        (give_what_nothing_makes, "nothing makes the output 'nothing'"),
        (read_what_a_branch_made, r"MatMul \(wide_1\) reads 'then', which nothing makes before it"),
    ],
)
def test_a_graph_that_is_not_sound_is_named(spoil: Callable[[Toy], None], words: str) -> None:
    toy = make_small()
    assert_sound(toy.model)
    spoil(toy)
    with pytest.raises(AssertionError, match=words):
        assert_sound(toy.model)
