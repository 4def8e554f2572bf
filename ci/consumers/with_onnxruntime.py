"""onnxruntime and tokenizers, by hand, with what the folder's own files say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from harness import Embed, run
from tokenizers import Tokenizer


def load(folder: Path) -> Embed:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))  # which cuts and pads as it is
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])

    def embed(texts: Sequence[str]) -> Any:
        found = tokenizer.encode_batch(list(texts))
        feeds = {
            "input_ids": np.array([one.ids for one in found], np.int64),
            "attention_mask": np.array([one.attention_mask for one in found], np.int64),
            "token_type_ids": np.array([one.type_ids for one in found], np.int64),
        }
        return session.run(["sentence_embedding"], feeds)[0]

    return embed


if __name__ == "__main__":
    major, minor = onnxruntime.__version__.split(".")[:2]
    run(f"onnxruntime {major}.{minor}", ["onnxruntime", "tokenizers"], load, how="InferenceSession(model.onnx), numpy")
