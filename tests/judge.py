"""sentence-transformers' own vectors of folders, as a user would call it: a process of its own, nothing of matexport.

    python judge.py requests.json answers.npz answers.json

A request names a folder, whether its code is trusted, the depths to read, and calls; a call is a method of
`SentenceTransformer`, a prompt's name or null, and texts, which are embedded one at a time. An answer is an array for
each depth and call (key ``<request>/<layers>/<call>``), or the first line of the error.

Depths below the whole: the model's own list of blocks is shortened in place, so its final norm stays, and everything
around it is sentence-transformers'.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import PreTrainedModel


def main(requests: Path, arrays: Path, errors: Path) -> None:
    logging.disable(logging.CRITICAL)
    answers: dict[str, np.ndarray] = {}
    failed: dict[str, str] = {}
    for name, request in json.loads(requests.read_text(encoding="utf-8")).items():
        try:
            model = open_model(request["folder"], trust=request["trust"])
        except Exception as error:
            failed[name] = describe(error)
            continue
        for layers in sorted(request["layers"], reverse=True):
            cut_blocks(model, layers)
            for index, call in enumerate(request["calls"]):
                key = f"{name}/{layers}/{index}"
                try:
                    answers[key] = embed_alone(model, **call)
                except Exception as error:
                    failed[key] = describe(error)
    np.savez(arrays, **answers)
    errors.write_text(json.dumps(failed), encoding="utf-8")


def open_model(folder: str, *, trust: bool) -> SentenceTransformer:
    return SentenceTransformer(
        folder,
        device="cpu",
        local_files_only=True,
        trust_remote_code=trust,
        model_kwargs={"dtype": torch.float32},
    ).eval()


def embed_alone(model: SentenceTransformer, method: str, prompt: str | None, texts: list[str]) -> np.ndarray:
    """(len(texts), width) float32."""
    encode: Any = getattr(model, method)
    return np.concatenate([encode([text], prompt_name=prompt, show_progress_bar=False) for text in texts])


def cut_blocks(model: nn.Module, layers: int) -> None:
    """Leave every transformers model in `model` its first blocks. Nothing happens where that is all of them."""
    for backbone in [module for module in model.modules() if isinstance(module, PreTrainedModel)]:
        config = backbone.config.get_text_config()
        blocks = getattr(config, "num_hidden_layers", None)
        lists = [part for part in backbone.modules() if isinstance(part, nn.ModuleList) and len(part) == blocks]
        if lists and layers < len(lists[0]):
            del lists[0][layers:]
            config.num_hidden_layers = layers


def describe(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
