"""Franca's own checkpoints, and DINOv2's under the same names: a ViT whose weights are read by name.

`franca/models/vision_transformer.py` and `franca/layers/`, commit 24f8c60: pre-norm blocks with LayerScale and a SwiGLU
(``mlp.w12``, ``mlp.w3``) or a plain MLP (``mlp.fc1``, ``mlp.fc2``), LayerNorms with an epsilon of 1e-6, 64 coordinates
for each head, and one norm behind the last block. Its blocks may lie in chunks (``blocks.0.3.``), in which places
before a chunk's own are empty. A position table for another size is resampled as its code does it: bicubic, by the
factor (patches + 0.1) / patches of the table, which is not what transformers' DINOv2 does.

What the dims of a released backbone are worth is an empirical question: its weights are backbone alone, and the code
does not say with which nesting of heads they were trained. `evaluate` answers it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from matexport.errors import ParentError

#: What checkpoints put before every name: of a teacher, of DDP.
_PREFIXES = ("teacher.", "backbone.", "module.")
_BLOCK = re.compile(r"blocks\.(\d+)\.(?:(\d+)\.)?(.+)")

#: All that such a network has; a mask token is for training alone.
_KNOWN = re.compile(
    r"cls_token|pos_embed|mask_token|(patch_embed\.proj|norm)\.(weight|bias)|blocks\.\d+\."
    r"((norm[12]|attn\.qkv|attn\.proj|mlp\.(w12|w3|fc1|fc2))\.(weight|bias)|ls[12]\.gamma)"
)

HEAD_WIDTH, EPSILON = 64, 1e-6

#: Added to the number of patches before the factor is worked out, as the code has it.
OFFSET = 0.1


def rename_weights(weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Weights under flat names: without prefixes and chunks, heads of training left out.

    Raises:
        ParentError: they are not of such a network.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if "dino_head" in name or "ibot_head" in name:
            continue
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        match = _BLOCK.fullmatch(name)
        # In chunks the second number is the block's own, counted through: the places before it are empty.
        found[f"blocks.{match[2] or match[1]}.{match[3]}" if match else name] = tensor.float()
    if not {"cls_token", "pos_embed", "patch_embed.proj.weight", "norm.weight", "blocks.0.attn.qkv.weight"} <= set(
        found
    ):
        raise ParentError(
            f"{source} holds no weights of a ViT by Franca's or DINOv2's names (blocks.0.attn.qkv.weight, ...)"
        )
    if "register_tokens" in found:
        raise ParentError(f"{source} has registers, which Franca's own checkpoints have not: load it with transformers")
    if other := sorted(name for name in found if not _KNOWN.fullmatch(name)):
        raise ParentError(
            f"{source} holds {other[0]}, which is no weight of a ViT as Franca and DINOv2 build it, and would be read "
            "by nobody"
        )
    return found


def count_blocks(weights: Mapping[str, Tensor], source: str) -> int:
    """How many blocks renamed weights are of.

    Raises:
        ParentError: one is missing between others.
    """
    there = {int(match[1]) for name in weights if (match := _BLOCK.fullmatch(name))}
    if there != {*range(len(there))}:
        raise ParentError(f"{source}: block {min({*range(len(there))} - there)} is missing among its weights")
    return len(there)


class FrancaModel(nn.Module):
    """The network, with the interface that `module.TowerExits` takes of transformers' models.

    Args:
        weights: renamed.
        height, width: of the images.

    Raises:
        ParentError: a weight is missing, or the size is no multiple of the patch.
    """

    def __init__(self, weights: Mapping[str, Tensor], height: int, width: int, source: str) -> None:
        super().__init__()
        self._source = source
        self._taken = weights
        kernel = self._take("patch_embed.proj.weight")
        self.patch = int(kernel.shape[-1])
        if height % self.patch or width % self.patch:
            raise ParentError(
                f"{source} cuts images into {self.patch} x {self.patch} patches; its processor makes them {height} x "
                f"{width}"
            )
        self.size = int(kernel.shape[0])
        self.config = SimpleNamespace(hidden_size=self.size, num_hidden_layers=count_blocks(weights, source))
        self.patch_embed = _fill(
            nn.Conv2d(3, self.size, self.patch, self.patch), kernel, self._take("patch_embed.proj.bias")
        )
        self.cls_token = nn.Parameter(self._take("cls_token"), requires_grad=False)
        table = resample_positions(self._take("pos_embed"), height // self.patch, width // self.patch)
        self.position_table = nn.Parameter(table, requires_grad=False)
        self.blocks = nn.ModuleList(_Block(self, index) for index in range(self.config.num_hidden_layers))
        self.norm = self.make_norm("norm")
        del self._taken

    def forward(self, pixel_values: Tensor, **_options: Any) -> Any:
        """(B, 3, H, W) float32 -> (B, T, W) raw states after 0, 1, ... blocks, as ``hidden_states``."""
        patches = self.patch_embed(pixel_values).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1) + self.position_table
        states = [tokens]
        for block in self.blocks:
            states.append(block(states[-1]))
        return SimpleNamespace(hidden_states=tuple(states))

    def make_norm(self, name: str) -> nn.LayerNorm:
        """A LayerNorm of the checkpoint."""
        norm = nn.LayerNorm(self.size, eps=EPSILON)
        _fill(norm, self._take(f"{name}.weight"), self._take(f"{name}.bias"))
        return norm

    def make_linear(self, name: str) -> nn.Linear:
        """A product of the checkpoint."""
        weight = self._take(f"{name}.weight")
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        _fill(linear, weight, self._take(f"{name}.bias"))
        return linear

    def make_scale(self, name: str) -> nn.Parameter:
        """LayerScale, or ones where the checkpoint has none."""
        known = self._taken.get(name)
        return nn.Parameter(torch.ones(self.size) if known is None else known, requires_grad=False)

    def has(self, name: str) -> bool:
        """Whether the checkpoint has a weight."""
        return name in self._taken

    def _take(self, name: str) -> Tensor:
        if name not in self._taken:
            raise ParentError(f"{self._source} has no weights for {name}")
        return self._taken[name]


class _Block(nn.Module):
    def __init__(self, model: FrancaModel, index: int) -> None:
        super().__init__()
        name = f"blocks.{index}"
        self.norm1, self.norm2 = model.make_norm(f"{name}.norm1"), model.make_norm(f"{name}.norm2")
        self.qkv, self.proj = model.make_linear(f"{name}.attn.qkv"), model.make_linear(f"{name}.attn.proj")
        self.ls1, self.ls2 = model.make_scale(f"{name}.ls1.gamma"), model.make_scale(f"{name}.ls2.gamma")
        self.gated = model.has(f"{name}.mlp.w12.weight")
        first, last = ("w12", "w3") if self.gated else ("fc1", "fc2")
        self.first, self.last = model.make_linear(f"{name}.mlp.{first}"), model.make_linear(f"{name}.mlp.{last}")
        self.heads = max(1, model.size // HEAD_WIDTH)

    def forward(self, state: Tensor) -> Tensor:
        """(B, T, W) -> (B, T, W)."""
        state = state + self.ls1 * self._attend(self.norm1(state))
        return state + self.ls2 * self._feed(self.norm2(state))

    def _attend(self, normed: Tensor) -> Tensor:
        tokens, width = normed.shape[1], normed.shape[2]
        parts = self.qkv(normed).reshape(-1, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = parts[0], parts[1], parts[2]
        weights = torch.matmul(query * (width // self.heads) ** -0.5, key.transpose(2, 3)).softmax(dim=-1)
        found: Tensor = self.proj(torch.matmul(weights, value).transpose(1, 2).reshape(-1, tokens, width))
        return found

    def _feed(self, normed: Tensor) -> Tensor:
        inner = self.first(normed)
        if self.gated:
            gate, up = inner.chunk(2, dim=-1)
            inner = functional.silu(gate) * up
        else:
            inner = functional.gelu(inner)
        found: Tensor = self.last(inner)
        return found


def resample_positions(table: Tensor, high: int, wide: int) -> Tensor:
    """(1, 1 + M * M, W) -> (1, 1 + high * wide, W), as `interpolate_pos_encoding` of Franca and DINOv2 does it."""
    side = math.isqrt(table.shape[1] - 1)
    if (high, wide) == (side, side):
        return table.clone()
    grid = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    factors = ((high + OFFSET) / side, (wide + OFFSET) / side)
    made = functional.interpolate(grid, scale_factor=factors, mode="bicubic", antialias=False)
    return torch.cat([table[:, :1], made.permute(0, 2, 3, 1).reshape(1, high * wide, -1)], dim=1)


def _fill(module: Any, weight: Tensor, bias: Tensor) -> Any:
    with torch.no_grad():
        module.weight.copy_(weight)
        module.bias.copy_(bias)
    return module.requires_grad_(False)
