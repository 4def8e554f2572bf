"""Bring a trace into the same form for every parent: names of axes and weights, matrices stored as they are read."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
import onnxscript.optimizer
import torch
from onnx_ir import convenience, tensor_adapters
from onnx_ir.passes import common

from matexport.export.graph.edit import Inserter, add_constant, replace_node
from matexport.export.trace.padding import write_plain_masks

OPSET = 20
IR_VERSION = 10


def canonicalize(model: ir.Model, axes: Mapping[int, str]) -> None:
    """Bring an exporter's graph into the form that the later stages rely on, in place.

    Args:
        model: the graph as an exporter made it.
        axes: which axes of its inputs may have any length, and their names.
    """
    _name_axes(model, axes)
    _name_weights(model)
    _store_matrices_as_read(model)
    onnxscript.optimizer.optimize(model)
    write_plain_masks(model)
    _spell_lengths(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    _clear_traces(model)
    model.ir_version = IR_VERSION
    model.graph.opset_imports.clear()
    model.graph.opset_imports[""] = OPSET
    model.producer_name, model.producer_version = "matexport", ""
    model.domain, model.model_version = "", None
    model.graph.name = "matexport"


def _name_axes(model: ir.Model, axes: Mapping[int, str]) -> None:
    """Rename torch's symbolic axes (s18, s41) to the names that consumers expect.

    All inputs have the same axes. torch gives one a symbol of its own where nothing in the module makes them equal, as
    nothing does for the batch of a mask that is only looked up.
    """
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        assert value.shape is not None
        given = {name: value.shape[axis] for axis, name in axes.items()}
        names |= {dim.value: name for name, dim in given.items() if isinstance(dim, ir.SymbolicDim) and dim.value}
    values = [*model.graph.inputs, *(output for node in model.graph.all_nodes() for output in node.outputs)]
    for value in values:
        if value.shape is not None and not all(isinstance(dim, int) for dim in value.shape):
            value.shape = ir.Shape([dim if isinstance(dim, int) else names.get(str(dim), dim) for dim in value.shape])


def _name_weights(model: ir.Model) -> None:
    """Give weights the names that they have in the parent, which the traced module holds as ``backbone``."""
    for value in list(model.graph.initializers.values()):
        if value.name and (name := value.name.removeprefix("exits.")).startswith(("backbone.", "heads.")):
            value.name = name.removeprefix("backbone.")


def _store_matrices_as_read(model: ir.Model) -> None:
    """Replace Transpose(weight) by a weight that is stored transposed.

    Constant folding would do the same, but copy all matrices at once, which is half of a model's memory; here each is a
    view, and they are written one at a time. If the Transpose were left, a runtime would fold it when it loads the
    graph, into private memory in place of the shared mapping.
    """
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type == "Transpose" and node.inputs else None
        if (
            source is None
            or source.const_value is None
            or not source.is_initializer()
            or len(source.const_value.shape) != 2
        ):
            continue
        order = node.attributes.get_ints("perm")
        if order is not None and list(order) == [0, 1]:  # not transposed: torch.export reads some tables so
            convenience.replace_all_uses_with(node.outputs[0], source)
            model.graph.remove(node, safe=True)
            continue
        name = f"{source.name}.T"
        stored = add_constant(model.graph, name, _transpose(source.const_value, name))
        convenience.replace_all_uses_with(node.outputs[0], stored)
        model.graph.remove(node, safe=True)


def _transpose(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    raw = tensor.raw if hasattr(tensor, "raw") else None
    if isinstance(raw, torch.Tensor):
        return tensor_adapters.TorchTensor(raw.detach().t(), name=name)
    return ir.Tensor(tensor.numpy().T, name=name)


def _spell_lengths(model: ir.Model) -> None:
    """Replace ReduceL2 by Sqrt(ReduceSum(x * x)); see `exits`."""
    for node in [node for node in model.graph if node.op_type == "ReduceL2"]:
        source, out = node.inputs[0], node.outputs[0]
        assert source is not None
        here = Inserter(model.graph, node)
        squares = here.add("Mul", [source, source], like=source)
        total = here.add("ReduceSum", [squares, *node.inputs[1:]], like=out)
        made = total.producer()
        assert made is not None
        made.attributes.update(node.attributes)
        replace_node(model.graph, node, here.add("Sqrt", [total], like=out))


def _clear_traces(model: ir.Model) -> None:
    """Remove the stack traces, module paths and file names that an exporter writes into a graph."""
    common.ClearMetadataAndDocStringPass()(model)
    made = [output for node in model.graph.all_nodes() for output in node.outputs]
    for value in (*model.graph.inputs, *model.graph.initializers.values(), *made):
        value.metadata_props.clear()
        value.doc_string = None
