"""pymilvus' OnnxEmbeddingFunction, which loads from a hub's cache alone; the folder is laid out as one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import Embed, run
from hub_cache import lay_out
from pymilvus.model.dense import OnnxEmbeddingFunction


def load(folder: Path) -> Embed:
    name = f"matexport/{folder.name}"
    lay_out(folder, name)
    function = OnnxEmbeddingFunction(name, str(folder))

    def embed(texts: Sequence[str]) -> Any:
        return function.encode_documents(list(texts))

    return embed


if __name__ == "__main__":
    run("pymilvus", ["pymilvus", "pymilvus.model", "tokenizers"], load, how="OnnxEmbeddingFunction(repo, folder)")
