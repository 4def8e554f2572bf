"""infinity's optimum engine, with the pooling that it takes when nobody says one (cls).

Of a local folder it hands on the path of the file that it found, and optimum-onnx looks for that in the folder again:
only in the folder itself, as ``.``, are both the same.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import Embed, run
from infinity_emb import AsyncEngineArray, EngineArgs


def load(folder: Path) -> Embed:
    os.chdir(folder)
    arguments = EngineArgs(
        model_name_or_path=".", engine="optimum", device="cpu", model_warmup=False, bettertransformer=False
    )
    runner = asyncio.Runner()
    engine = AsyncEngineArray.from_args([arguments])[0]
    runner.run(engine.astart())

    def embed(texts: Sequence[str]) -> Any:
        vectors, _ = runner.run(engine.embed(sentences=list(texts)))
        return vectors

    def close() -> None:  # its threads would keep the process alive
        runner.run(engine.astop())
        runner.close()

    embed.close = close  # type: ignore[attr-defined]
    return embed


if __name__ == "__main__":
    packages = ["infinity-emb", "optimum-onnx", "transformers", "tokenizers"]
    run(
        "infinity",
        packages,
        load,
        how='EngineArgs(".", engine="optimum") in the folder, pooling as it comes',
        layout="infinity",
    )
