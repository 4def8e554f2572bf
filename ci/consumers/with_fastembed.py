"""fastembed's TextEmbedding, with the folder as a custom model."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
from harness import Embed, run

NAMED = tuple(int(part) for part in version("fastembed").split(".")[:2]) >= (0, 9)


def load(folder: Path) -> Embed:
    """0.9 takes the output by its name; before, the first output with a pooling of fastembed's own."""
    dim = json.loads((folder / "config.json").read_text(encoding="utf-8"))["hidden_size"]
    name = f"matexport/{folder.name}"
    read_out: dict[str, Any] = {"pooling": PoolingType.MEAN, "normalization": True}
    if NAMED:
        read_out = {"pooling": PoolingType.DISABLED, "normalization": False, "output_name": "sentence_embedding"}
    TextEmbedding.add_custom_model(
        model=name, dim=dim, sources=ModelSource(hf=name), model_file="onnx/model.onnx", **read_out
    )
    model = TextEmbedding(name, specific_model_path=str(folder), cache_dir=tempfile.mkdtemp(), threads=2)

    def embed(texts: Sequence[str]) -> Any:
        return list(model.embed(texts))

    return embed


if __name__ == "__main__":
    how = "output_name, DISABLED" if NAMED else "first output, MEAN"
    run(f"fastembed {'0.9' if NAMED else '0.8'}", ["fastembed", "tokenizers"], load, how=how)
