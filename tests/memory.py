"""A trace is most of what an export of a small parent costs, and depends on nothing but the parent, the depths and the
inputs. Here it is made once for each of those, by whichever test process comes first; everything after it is done anew.
"""

from __future__ import annotations

import copy
import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
from filelock import FileLock
from torch import nn

from matexport.export.graph.traced import Traced
from matexport.export.parents.plan import Example
from matexport.export.trace import trace
from matexport.spec.facts import TraceFacts

#: Names the folder that the processes of one test session share.
FOLDER = "MATEXPORT_TEST_TRACES"

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
        folder = Path(os.environ.get(FOLDER) or tempfile.mkdtemp())
        graph, facts_file = folder / f"{key}.onnx", folder / f"{key}.json"
        with FileLock(folder / f"{key}.lock"):
            if not facts_file.exists():
                _keep_registry()
                made = trace.trace_exits(module, example, outputs=outputs, states=states)
                graph.write_bytes(ir.to_proto(made[0].model).SerializeToString())
                facts_file.write_bytes(msgspec.json.encode((made[0].states, made[1])))
        # Who made it reads it, too: what tests compare to the byte has come the same way.
        states, facts = msgspec.json.decode(facts_file.read_bytes(), type=tuple[tuple[str, ...], TraceFacts])
        model = ir.from_proto(onnx.load_model_from_string(graph.read_bytes()))
        _TRACED[key] = _detach(Traced(model, states)), facts
    known, facts = _TRACED[key]
    return known.copy(), facts


def _keep_registry() -> None:
    """Read torch's table of operators once in a process: torch does so for every trace, in an eighth of its time."""
    from torch.onnx._internal.exporter import _registration

    read, tables = _registration.ONNXRegistry.from_torchlib, {}
    if getattr(read, "is_kept", False):
        return

    def read_once(*arguments: Any, **options: Any) -> Any:
        key = repr((arguments, options))
        if key not in tables:
            tables[key] = read(*arguments, **options)
        table = copy.copy(tables[key])  # what is registered later is registered in the copy
        table.functions = {name: list(functions) for name, functions in table.functions.items()}
        return table

    read_once.is_kept = True  # type: ignore[attr-defined]
    _registration.ONNXRegistry.from_torchlib = staticmethod(read_once)  # type: ignore[assignment]


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
