"""The int8 presets that sentence-transformers writes, for `precisions.py`. Runs in the peers' environment.

Takes the parent's directory and a directory to write, which then holds ``onnx/model.onnx`` (optimum's fp32 export) and
``onnx/model_<preset>.onnx`` for each further argument.
"""

from __future__ import annotations

import sys

from sentence_transformers import SentenceTransformer, export_dynamic_quantized_onnx_model


def main() -> int:
    parent, out, *presets = sys.argv[1:]
    model = SentenceTransformer(
        parent, backend="onnx", model_kwargs={"export": True, "provider": "CPUExecutionProvider"}
    )
    model.save_pretrained(out)
    for preset in presets:
        export_dynamic_quantized_onnx_model(model, preset, out, file_suffix=preset)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
