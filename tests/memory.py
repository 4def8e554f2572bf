"""A trace is most of what an export of a small parent costs, and depends on nothing but the parent, the depths and the
inputs. Here it is made once for each of those; everything after it is done anew."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from torch import nn

from matexport.export.graph.traced import Traced
from matexport.export.parents.plan import Example
from matexport.export.trace import trace
from matexport.spec.facts import TraceFacts

_TRACED: dict[str, tuple[Traced, TraceFacts]] = {}


def trace_once(
    module: nn.Module, example: Example, *, outputs: Sequence[str], states: int
) -> tuple[Traced, TraceFacts]:
    """Takes the place of `matexport.export.pipeline.trace_exits`."""
    settings = [_say_settings(part) for part in module.modules()]
    given = [(name, tensor.tolist()) for name, tensor in example.tensors.items()]
    asked = (given, example.axes, example.own_classes, outputs, states, str(module), settings)
    digest = hashlib.sha256(repr(asked).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + np.ascontiguousarray(tensor.numpy()).tobytes())
    key = digest.hexdigest()
    if key not in _TRACED:
        traced, facts = trace.trace_exits(module, example, outputs=outputs, states=states)
        _TRACED[key] = _detach(traced), facts
    known, facts = _TRACED[key]
    return known.copy(), facts


def _say_settings(module: nn.Module) -> str:
    """What a module does beyond its weights and its printed form: how it pools, which way it looks."""
    plain = (str, int, float, tuple)
    said = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, plain)
        or (isinstance(value, dict) and value and all(isinstance(part, plain) for part in value.values()))
    }
    said.pop("name_or_path", None)  # where a parent lies
    config: Any = getattr(module, "config", None)
    # A parent's own classes are called alike; their modules are named after the folder that they lie in.
    return repr((type(module).__module__, said, config.to_diff_dict() if hasattr(config, "to_diff_dict") else None))


def _detach(traced: Traced) -> Traced:
    """With weights of its own: an export empties its parent's."""
    for value in traced.model.graph.initializers.values():
        assert value.const_value is not None
        array = np.array(value.const_value.numpy())
        value.const_value = ir.tensor(array, dtype=value.const_value.dtype, name=value.name)
    return traced
