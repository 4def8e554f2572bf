"""sentence-transformers' ONNX back end (the last line that has one, 5.7), with optimum-onnx."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import Embed, run
from sentence_transformers import SentenceTransformer


def load(folder: Path) -> Embed:
    # Not to be exported anew where the file is not found, which is what happens otherwise, with a warning.
    where = {"export": False, "file_name": "model.onnx", "provider": "CPUExecutionProvider"}
    model = SentenceTransformer(str(folder), backend="onnx", device="cpu", model_kwargs=where)

    def embed(texts: Sequence[str]) -> Any:
        return model.encode(list(texts))

    return embed


if __name__ == "__main__":
    packages = ["sentence-transformers", "optimum-onnx", "transformers", "tokenizers"]
    run("sentence-transformers 5 onnx", packages, load, how='SentenceTransformer(folder, backend="onnx")')
