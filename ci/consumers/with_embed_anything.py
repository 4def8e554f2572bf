"""embed-anything, which loads from a hub's cache alone; the folder is laid out as one. It pools with the mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import embed_anything
from harness import Embed, run
from hub_cache import lay_out


def load(folder: Path) -> Embed:
    name = f"matexport/{folder.name}"
    lay_out(folder, name)
    model = embed_anything.EmbeddingModel.from_pretrained_onnx(
        embed_anything.WhichModel.Bert, hf_model_id=name, path_in_repo="onnx/model.onnx"
    )

    def embed(texts: Sequence[str]) -> Any:
        return [found.embedding for found in embed_anything.embed_query(list(texts), embedder=model)]

    return embed


if __name__ == "__main__":
    run("embed-anything", ["embed-anything"], load, how="from_pretrained_onnx(hf_model_id, path_in_repo), mean")
