"""sentence-transformers in torch, on the folder of the first blocks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import Embed, run
from sentence_transformers import SentenceTransformer


def load(folder: Path) -> Embed:
    model = SentenceTransformer(str(folder), device="cpu")

    def embed(texts: Sequence[str]) -> Any:
        return model.encode(list(texts))

    return embed


if __name__ == "__main__":
    packages = ["sentence-transformers", "torch", "transformers", "tokenizers"]
    run("sentence-transformers 6 torch", packages, load, how="SentenceTransformer(folder)", layout="torch")
