#!/usr/bin/env bash
# torch 2.13.0 + onnxscript 0.7.2: every torch.onnx.export(dynamo=True) reads the source of all of torchlib again.
#
# Expected: the table of ONNX functions for ATen operators depends on the opset alone, so a process that exports several
#   models (a family of depths, say) builds it once.
# What happens: ONNXRegistry.from_torchlib runs inside each export and gives each function its signature anew, for which
#   onnxscript fetches the function's source with inspect.getsource and parses it. A model of one Linear layer reads some
#   five hundred sources of torch_lib, and every export after it reads them again; it uses one of the functions.
#
# Output seen:
#   torch 2.13.0 onnxscript 0.7.2
#   export 1: 544 sources of torch_lib read
#   export 2: 497 sources of torch_lib read
#   export 3: 497 sources of torch_lib read
#   nodes: ['Gemm']
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 onnxscript==0.7.2 onnx==1.23.2 onnx-ir==1.1.0
cd "$work"
"$work/venv/bin/python" -W ignore - 2> /dev/null <<'PY'
import inspect
from importlib.metadata import version

import torch

print("torch", torch.__version__.partition("+")[0], "onnxscript", version("onnxscript"))
model = torch.nn.Linear(4, 4).eval()
reads, original = [], inspect.getsource

def counted(thing):
    reads.append(inspect.getsourcefile(thing) or "")
    return original(thing)

inspect.getsource = counted
counts = []
for number in (1, 2, 3):
    reads.clear()
    program = torch.onnx.export(model, (torch.ones(1, 4),), dynamo=True, verbose=False)
    counts.append(sum("torch_lib" in path for path in reads))
    print(f"export {number}: {counts[-1]} sources of torch_lib read")
nodes = [node.op_type for node in program.model.graph]
print("nodes:", nodes)
assert nodes == ["Gemm"], "behaviour changed"
assert counts[1] == counts[2] > 400, "behaviour changed: later exports read them no more"
PY
