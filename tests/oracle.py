"""What a sub-model must give, in a dozen lines that share nothing with the package: the unsliced parent's hidden
state, pooled, cut and scaled by the textbook formulas, one text at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

POOL = {
    "cls": lambda h: h[0],
    "mean": lambda h: h.sum(0) / len(h),
    "max": lambda h: h.max(0).values,
    "mean_sqrt_len_tokens": lambda h: h.sum(0) / len(h) ** 0.5,
    "weightedmean": lambda h: (h * torch.arange(1, len(h) + 1)[:, None]).sum(0) / sum(range(1, len(h) + 1)),
    "lasttoken": lambda h: h[-1],
}


class Oracle:
    """The parent in `folder`. `norm` names its final norm where intermediate states go through it."""

    def __init__(self, folder: Path, norm: str | None = None) -> None:
        self.model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.norm: Any = self.model.get_submodule(norm) if norm else (lambda state: state)

    @torch.no_grad()
    def state(self, text: str, layers: int, max_length: int = 48) -> torch.Tensor:
        """(T, H): the state after `layers` blocks; at full depth the parent's own output."""
        batch = self.tokenizer([text], truncation=True, max_length=max_length, return_tensors="pt")
        output = self.model(**batch, output_hidden_states=True)
        if layers == self.model.config.num_hidden_layers:
            return output.last_hidden_state[0]
        return self.norm(output.hidden_states[layers])[0]

    def vector(self, text: str, layers: int, dim: int, pooling: str = "mean", unit: bool = True) -> np.ndarray:
        """(dim,) float32."""
        pooled = POOL[pooling](self.state(text, layers))[:dim].numpy()
        return pooled / np.linalg.norm(pooled) if unit else pooled
