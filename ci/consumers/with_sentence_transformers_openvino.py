"""sentence-transformers' OpenVINO back end: the ONNX graph, read by OpenVINO, in float32 arithmetic.

The back end looks for ``openvino/openvino_model.xml`` and nothing else; OpenVINO's own two calls write that from the
ONNX file. Without the hint it computes in bfloat16 where the processor can, 1.4e-3 away, and says nothing.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openvino
from harness import Embed, Limits, run
from sentence_transformers import SentenceTransformer

#: OpenVINO's int8 kernels are not onnxruntime's: the largest difference that was seen is 9.7e-3 (2026.4.1, L06-D384).
INT8 = 1e-2


def load(folder: Path) -> Embed:
    copy = Path(tempfile.mkdtemp()) / folder.name
    shutil.copytree(folder, copy)
    graph = openvino.convert_model(copy / "onnx" / "model.onnx")
    openvino.save_model(graph, copy / "openvino" / "openvino_model.xml", compress_to_fp16=False)
    where = {"export": False, "ov_config": {"INFERENCE_PRECISION_HINT": "f32"}}
    model = SentenceTransformer(str(copy), backend="openvino", device="cpu", model_kwargs=where)

    def embed(texts: Sequence[str]) -> Any:
        return model.encode(list(texts))

    return embed


if __name__ == "__main__":
    packages = ["sentence-transformers", "optimum-intel", "openvino", "transformers", "tokenizers"]
    how = 'openvino.convert_model(onnx/model.onnx), SentenceTransformer(folder, backend="openvino"), hint f32'
    run("sentence-transformers 6 openvino", packages, load, how=how, limits=Limits(int8=INT8))
