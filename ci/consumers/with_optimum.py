"""optimum-onnx' ORTModelForFeatureExtraction on a hub's cache, its first output pooled as people write it by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from harness import Embed, run
from hub_cache import lay_out
from optimum.onnxruntime import ORTModelForFeatureExtraction
from transformers import AutoTokenizer


def load(folder: Path) -> Embed:
    name = f"matexport/{folder.name}"
    lay_out(folder, name)
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = ORTModelForFeatureExtraction.from_pretrained(name, file_name="model.onnx", subfolder="onnx", export=False)

    def embed(texts: Sequence[str]) -> Any:
        given = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            states = model(**given).last_hidden_state
        mask = given["attention_mask"].unsqueeze(-1).float()
        pooled = (states * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(pooled, dim=-1).numpy()

    return embed


if __name__ == "__main__":
    packages = ["optimum-onnx", "optimum", "transformers", "tokenizers"]
    how = "ORTModelForFeatureExtraction.from_pretrained(repo), mean of last_hidden_state, from a hub's cache"
    run("optimum-onnx", packages, load, how=how)
