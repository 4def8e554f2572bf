"""What parents' files name that is a user's own: an activation that is importable, and no part of torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Wave(nn.Module):
    """An activation that no stock one resembles."""

    def forward(self, vector: Tensor) -> Tensor:
        return torch.sin(3 * vector) + 0.5
