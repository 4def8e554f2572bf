"""txtai's ONNX vectors, which find the tokenizer beside the graph and cut where it says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import Embed, run
from txtai import Embeddings


def load(folder: Path) -> Embed:
    embeddings = Embeddings(path=str(folder / "model.onnx"))

    def embed(texts: Sequence[str]) -> Any:
        return embeddings.batchtransform(list(texts))

    return embed


if __name__ == "__main__":
    run("txtai", ["txtai", "transformers", "tokenizers"], load, how="Embeddings(path=folder/model.onnx)")
