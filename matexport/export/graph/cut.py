"""The part of the traced graph that one exit depends on.

A sub-model is not built, it is what remains: every node and weight from which the exit's output can be reached,
backwards. Heads that no exit reads (BERT's pooler) and deeper blocks fall away because nothing asks for them.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from matexport.export.graph.edit import find_needed_nodes


def cut_exit(model: ir.Model, output: str, *, name: str) -> ir.Model:
    """A new model that holds only what one output needs; weights are shared with `model`, not copied.

    Args:
        output: name of the output to keep.
        name: what it is called in the new model.

    Raises:
        ValueError: the model has no such output.
    """
    part = cut_exits(model, [output])
    part.graph.outputs[0].name = name
    return part


def cut_exits(model: ir.Model, outputs: Sequence[str]) -> ir.Model:
    """A new model that holds only what some outputs need, in the order of `outputs`; weights are shared.

    Raises:
        ValueError: the model lacks one of them.
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
