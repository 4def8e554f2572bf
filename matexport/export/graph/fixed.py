"""A cut graph of one shape: one text of a fixed number of tokens, for converters that take no other.

    input_ids, attention_mask, token_type_ids (batch, tokens) -> input_ids, attention_mask (1, S)
    Shape, Range, Expand and what is worked out from them -> constants

Converters for NPUs and phones lay a graph out before it runs, so each length in it must be known. Where the inputs'
shape is, what is worked out from it is the same in every run: onnxscript folds it (a library that torch's exporter
folds its own traces with). What is looked up in a large weight stays a Gather of that weight, which all profiles share.

The numbers of a text that is shorter are masked, as in any batch with a longer one.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxscript.optimizer
from onnx_ir import convenience
from onnx_ir.passes import common

from matexport.errors import RequestError
from matexport.export.graph.edit import drop_unused
from matexport.spec.profile import Target

#: The input of segments, of which a single text has one kind.
TOKEN_TYPES = "token_type_ids"

#: Numbers of a tensor that is worked out from the shape alone and becomes a constant: of larger ones the steps stay.
MAX_FOLDED = 1 << 16

#: Operators whose result says how long something is: none is left where all lengths are known.
_MEASURING = frozenset({"Shape", "Size", "NonZero"})


def hold_token_types(model: ir.Model) -> None:
    """Replace the input of token types by zeros, in place; nothing where there is none. Lengths stay open."""
    graph = model.graph
    given = next((value for value in graph.inputs if value.name == TOKEN_TYPES), None)
    ids = next((value for value in graph.inputs if value.name == "input_ids"), None)
    if given is None or ids is None:
        return
    measured = ir.node("Shape", [ids])
    zero = ir.tensor(np.zeros(1, dtype=np.int64))
    made = ir.node("ConstantOfShape", [measured.outputs[0]], {"value": zero})
    made.outputs[0].shape, made.outputs[0].type = given.shape, given.type
    graph.insert_before(graph[0], [measured, made])
    convenience.replace_all_uses_with(given, made.outputs[0])
    graph.inputs.remove(given)
    for node, name in ((measured, "token_types_shape"), (made, "token_types")):
        node.name = node.outputs[0].name = name


def fix_shape(model: ir.Model, tokens: int, target: Target) -> None:
    """Give a graph's inputs the shape (1, tokens), and work out what follows from it, in place.

    Args:
        model: of standard operators; its large weights were written.
        target: what messages say was asked for.

    Raises:
        RequestError: a length in it depends on what a text says.
    """
    graph = model.graph
    for value in (*graph.inputs, *graph.outputs):
        assert value.shape is not None
        rest = [tokens] if value in graph.inputs else list(value.shape)[1:]
        value.shape = ir.Shape([1, *rest])
    for node in graph.all_nodes():
        for value in node.outputs:
            if value not in graph.outputs:
                value.shape = None  # of the open axes
    onnxscript.optimizer.fold_constants(
        model,
        onnx_shape_inference=True,
        input_size_limit=MAX_FOLDED,
        output_size_limit=MAX_FOLDED,
        should_fold=_is_worked_out,
    )
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.IdentityEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    drop_unused(model)
    left = next((node.op_type for node in graph.all_nodes() if node.op_type in _MEASURING), None)
    if left:
        raise RequestError(
            f"the target {target} was asked; a length in the graph is only known when it runs ({left}), and that is "
            "not taken: ask for portable"
        )


def _is_worked_out(node: ir.Node) -> bool | None:
    """Not what is made of a weight on disk; else by the sizes, and zeros too, which onnxscript leaves by itself."""
    if any(isinstance(value.const_value, ir.ExternalTensor) for value in node.inputs if value is not None):
        return False
    return True if node.op_type == "ConstantOfShape" else None
