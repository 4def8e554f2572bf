#!/usr/bin/env bash
# onnxruntime 1.24 to 1.31: a model with external data does not load from huggingface_hub's shared blob store.
#
# Expected: a snapshot in a hub's cache loads, as it does where blobs lie in the repository's own folder.
# What happens: since huggingface_hub 1.32 the cache keeps large blobs in one store, blobs/<2 digits>/<digest>, and the
#   repository's blobs are links into it. onnxruntime follows the links of the weights, finds them outside of the graph's
#   folder and of the folder that the graph itself is in, and refuses: of any model whose weights lie beside its graph.
#   1.22 did not look, and 1.32.0 takes it.
#
# Output seen:
#   1.31.1 plain cache: loads
#   1.31.1 shared store: External data path validation failed for initializer: w. Error: External data path escapes model dir
#   1.32.0 plain cache: loads
#   1.32.0 shared store: loads
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for version in 1.31.1 1.32.0; do
  python3 -m venv "$work/$version"
  "$work/$version/bin/pip" install --quiet "onnxruntime==$version" onnx==1.23.2 numpy
  "$work/$version/bin/python" - "$work/cache-$version" <<'PY'
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

cache = Path(sys.argv[1])
weights = np.ones((64, 64), np.float32)
w = helper.make_tensor("w", TensorProto.FLOAT, weights.shape, weights.tobytes(), raw=True)
x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 64]) for name in "xy")
graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [w])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
(cache / "source").mkdir(parents=True)
onnx.save(model, cache / "source" / "model.onnx", save_as_external_data=True, location="model.onnx_data", size_threshold=0)

for name, shared in (("plain cache", False), ("shared store", True)):
    repository = cache / name.replace(" ", "-") / "models--a--b"
    snapshot, blobs = repository / "snapshots" / "0", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for index, source in enumerate(sorted((cache / "source").iterdir())):
        kept = repository.parent / "blobs" / f"{index}0" / str(index) if shared else blobs / str(index)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(source.read_bytes())
        if shared:
            (blobs / str(index)).symlink_to(os.path.relpath(kept, blobs))
        (snapshot / source.name).symlink_to(os.path.relpath(blobs / str(index), snapshot))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(str(snapshot / "model.onnx"), options)
        said = "loads"
    except Exception as error:
        said = str(error).partition("FAIL : ")[2][:100]
    print(onnxruntime.__version__, f"{name}: {said}")
PY
done
