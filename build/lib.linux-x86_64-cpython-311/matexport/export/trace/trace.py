"""One trace of the exits module -> one ONNX graph in memory with one full-width output per depth.

`torch.onnx.export` is called once, with the dynamic axes of the parent's kind; `exits` makes the points of its outputs.
The graph is then brought into the one form that the later stages rely on (`canonical`): matrices stored as the
multiplication reads them, named after the parent's parameters; constants folded; axes named; opset and IR stamped;
nothing of the tracing machine (stack traces, paths) left in it.

Opset 20 and IR 10 are the newest that the tightest consumer reads (text-embeddings-inference, onnxruntime 1.22).
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import onnx_ir as ir
import sentence_transformers
import torch
import transformers
from onnx_ir.passes import common
from torch import nn

from matexport.errors import ParentError, one_line
from matexport.export.graph.traced import Traced
from matexport.export.parents.plan import Example
from matexport.export.trace.canonical import IR_VERSION, OPSET, canonicalize
from matexport.spec.facts import BATCH_AXIS, TraceFacts

#: The example: more than one row, since exporters freeze axes of length 1, and rows of unequal length.
EXAMPLE_SHAPE = (3, 12)


def trace_exits(
    module: nn.Module, example: Example, *, outputs: Sequence[str], states: int
) -> tuple[Traced, TraceFacts]:
    """Trace a module once, weights still in torch's memory; by TorchScript where dynamo cannot, and then say why.

    Args:
        module: takes the example's tensors as positional arguments, gives one tensor per output, then the states.
        example: what it is traced on; classes of the parent's own in it are refused when TorchScript says that it
            freezes what they decide by looking at values.
        outputs: names of the graph's outputs.
        states: how many states follow.

    Raises:
        ParentError: neither exporter can trace the module.
    """
    state_names = [f"state_{depth}" for depth in range(states)]
    model, fallback = _export(module, example, [*outputs, *state_names])
    try:
        canonicalize(model, example.axes)
        if fallback:
            model.clone()  # what TorchScript leaves may hang together badly, and every profile is cut from a copy
    except Exception as error:
        raise ParentError(
            f"the parent's trace is no sound graph ({one_line(error)}); dynamo said: {fallback}"
        ) from error
    model.graph.outputs[:] = [value for value in model.graph.outputs if value.name not in state_names]
    for value, name in zip(model.graph.inputs, example.tensors, strict=True):
        value.name = name  # one that is a state as well was given another
    common.RemoveUnusedNodesPass()(model)  # what no exit reads: deeper blocks, a norm that is dropped
    computed = {value.name for node in model.graph for value in node.outputs}
    read = tuple(name for name in state_names if name in computed)
    return Traced(model, read), TraceFacts("torchscript" if fallback else "dynamo", OPSET, IR_VERSION, fallback)


def _export(module: nn.Module, example: Example, outputs: Sequence[str]) -> tuple[ir.Model, str | None]:
    """The module's graph as one of the two exporters leaves it, and what dynamo said if it failed."""
    try:
        return _export_dynamo(module, example, outputs), None
    except Exception as error:  # the exporter lets exceptions of every kind of torch.export through
        _refuse_frozen(error, example.own_classes)
        fallback = f"{type(error).__name__}: {one_line(error)}"
    try:
        return _export_torchscript(module, example, outputs), fallback
    except ParentError:
        raise
    except Exception as error:
        raise ParentError(f"the parent cannot be traced: dynamo: {fallback}; TorchScript: {one_line(error)}") from error


def _refuse_frozen(error: BaseException, own_classes: Sequence[str]) -> None:
    """Refuse what the other exporter would trace for this example's length, or this example's values, alone.

    Raises:
        ParentError: the module walks through the tokens one by one, or goes where their values lead it.
    """
    said = " ".join(str(part) for part in _list_causes(error))
    classes = f" (the parent has classes of its own: {', '.join(own_classes)})" if own_classes else ""
    if any(part in said for part in ("Constraints violated", "inferred a static shape", "specialized")):
        raise ParentError(
            "the parent walks through its tokens one by one, or in pieces (a state-space, recurrent or chunked layer), "
            f"so a graph of it would be for texts of one length: such parents are not supported{classes}"
        ) from error
    if "data-dependent" in said:
        raise ParentError(
            "what the parent computes depends on values (such as which experts some token chose), so a graph of it "
            f"would be right for the traced texts alone: such parents are not supported{classes}"
        ) from error


def _list_causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _export_dynamo(module: nn.Module, example: Example, outputs: Sequence[str]) -> ir.Model:
    shapes: tuple[Any, ...] = tuple(dict.fromkeys(example.axes, torch.export.Dim.DYNAMIC) for _ in example.tensors)
    if any(argument.kind is argument.VAR_POSITIONAL for argument in signature(module.forward).parameters.values()):
        shapes = (shapes,)  # torch.export takes what *arguments collects for one argument
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch and transformers; parity is what is checked
        program = torch.onnx.export(
            module,
            tuple(example.tensors.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(example.tensors),
            output_names=list(outputs),
            dynamic_shapes=shapes,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    return program.model


def _export_torchscript(module: nn.Module, example: Example, outputs: Sequence[str]) -> ir.Model:
    axes = {name: dict(example.axes) for name in example.tensors} | {name: {0: BATCH_AXIS} for name in outputs}
    with warnings.catch_warnings(record=True) as warned, tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("always")
        path = Path(folder) / "trace.onnx"
        torch.onnx.export(
            module,
            tuple(example.tensors.values()),
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=list(example.tensors),
            output_names=list(outputs),
            dynamic_axes=axes,
            do_constant_folding=False,  # it would rename the matrices that it transposes
        )
        model = ir.load(path)
        for value in model.graph.initializers.values():  # the folder goes away
            tensor = value.const_value
            assert tensor is not None
            value.const_value = ir.Tensor(tensor.numpy().copy(), name=value.name)
    if example.own_classes:
        _refuse_frozen_branches(warned, example.own_classes)
    return model


def _refuse_frozen_branches(warned: Sequence[warnings.WarningMessage], own_classes: Sequence[str]) -> None:
    """Raise where code that belongs to none of the libraries looks at values while it is traced."""
    libraries = tuple(str(Path(str(found.__file__)).parent) for found in (torch, transformers, sentence_transformers))
    for warning in warned:
        frozen = issubclass(warning.category, torch.jit.TracerWarning)  # type: ignore[attr-defined]
        if frozen and not warning.filename.startswith(libraries):
            raise ParentError(
                f"the parent cannot be traced with its own {', '.join(own_classes)} as it is: line {warning.lineno} of "
                f"{Path(warning.filename).name} decides by the values of its input, which a graph would freeze"
            )
