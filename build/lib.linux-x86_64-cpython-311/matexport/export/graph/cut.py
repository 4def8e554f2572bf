"""Cut the part that an exit depends on out of the traced graph.

A sub-model is made of every node and weight that the exit's output depends on, found by walking backwards from that
output. Deeper blocks and heads that no exit reads (BERT's pooler) are left out because the walk never reaches them.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from matexport.export.graph.edit import find_needed_nodes


def cut_exit(model: ir.Model, output: str, *, name: str) -> ir.Model:
    """A new model that holds only what one output needs; weights are shared with `model`, not copied.

    Args:
        model: the traced model; it is left as it is.
        output: name of the output to keep.
        name: the name of that output in the new model.

    Raises:
        ValueError: the model has no such output.
    """
    part = cut_exits(model, [output])
    part.graph.outputs[0].name = name
    return part


def cut_exits(model: ir.Model, outputs: Sequence[str]) -> ir.Model:
    """A new model that holds only what some outputs need, in the order of `outputs`; weights are shared.

    Raises:
        ValueError: the model lacks one of the outputs.
    """
    part = model.clone()
    found = {value.name: value for value in part.graph.outputs}
    if missing := [name for name in outputs if name not in found]:
        raise ValueError(f"the traced graph has no output {missing[0]!r}")
    kept = [found[name] for name in outputs]
    part.graph.outputs[:] = kept
    needed = find_needed_nodes(kept)
    part.graph.remove([node for node in part.graph if node not in needed], safe=True)
    for weight in [value for value in part.graph.initializers.values() if not value.uses()]:
        del part.graph.initializers[str(weight.name)]
    return part
