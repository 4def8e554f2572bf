"""light-embed's TextEmbedding on the folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import Embed, run
from light_embed import TextEmbedding


def load(folder: Path) -> Embed:
    model = TextEmbedding(str(folder), model_config={"onnx_file": "onnx/model.onnx"})

    def embed(texts: Sequence[str]) -> Any:
        return model.encode(list(texts))

    return embed


if __name__ == "__main__":
    run("light-embed", ["light-embed", "tokenizers"], load, how="TextEmbedding(folder)")
