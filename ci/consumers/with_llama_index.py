"""llama-index' OptimumEmbedding, with the pooling that it takes when nobody says one (cls)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import Embed, run
from llama_index.embeddings.huggingface_optimum import OptimumEmbedding


def load(folder: Path) -> Embed:
    model = OptimumEmbedding(folder_name=str(folder))

    def embed(texts: Sequence[str]) -> Any:
        return model.get_text_embedding_batch(list(texts))

    return embed


if __name__ == "__main__":
    packages = ["llama-index-embeddings-huggingface-optimum", "optimum-onnx", "transformers", "tokenizers"]
    run("llama-index", packages, load, how="OptimumEmbedding(folder_name=folder), pooling as it comes")
