"""chromadb's own embedding function, pointed at the folder instead of at its cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chromadb.utils.embedding_functions.onnx_mini_lm_l6_v2 import ONNXMiniLM_L6_V2
from harness import Embed, run


def load(folder: Path) -> Embed:
    where = {"DOWNLOAD_PATH": folder.parent, "EXTRACTED_FOLDER_NAME": folder.name}
    function = type("FromFolder", (ONNXMiniLM_L6_V2,), where)()

    def embed(texts: Sequence[str]) -> Any:
        return function(list(texts))

    return embed


if __name__ == "__main__":
    run("chromadb", ["chromadb", "tokenizers"], load, how="ONNXMiniLM_L6_V2, DOWNLOAD_PATH and EXTRACTED_FOLDER_NAME")
