"""sentence-transformers 6 on the ONNX folder, through the module class that matexport brings for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import Embed, run

from matexport.adapters.sentence_transformers import load_model


def load(folder: Path) -> Embed:
    model = load_model(folder)

    def embed(texts: Sequence[str]) -> Any:
        return model.encode(list(texts))

    return embed


if __name__ == "__main__":
    packages = ["sentence-transformers", "matexport", "torch", "tokenizers"]
    how = "matexport.adapters.sentence_transformers.load_model(folder)"
    run("sentence-transformers 6 module", packages, load, how=how)
