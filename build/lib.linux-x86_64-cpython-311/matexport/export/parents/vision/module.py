"""A vision tower as one torch module with one output per depth: what is traced.

A position table that would be resampled for the size of the images is resampled once, by the parent's own code, and
held as it is then: in a graph of one size it is a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from matexport.export.parents.vision.towers import Tower, find_module
from matexport.spec.inputs import ImageFacts
from matexport.spec.readout import FinalNorm, PoolingMode


class TowerExits(nn.Module):
    """A tower's vectors at full width after each of some numbers of blocks, in one forward.

    Args:
        backbone: transformers' model, in eval mode.
        tower: how it is built.
        pooling: how its states become a vector.
        final_norm: KEEP or DROP, for exits before the last block.
        depths: after how many blocks to read, in the order of the outputs.
    """

    def __init__(
        self, backbone: Any, tower: Tower, pooling: PoolingMode, final_norm: FinalNorm, depths: Sequence[int]
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self._tower, self._pooling, self._depths = tower, pooling, tuple(depths)
        self._drops = final_norm is FinalNorm.DROP
        self._told = resamples_positions(backbone)
        self._vision = getattr(backbone.config, "vision_config", None) or backbone.config

    def read(self, pixels: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """(B, 3, H, W) float32 -> (B, W) vectors, one per depth, and (B, T, H) raw states after 0, 1, ... blocks.

        Of patches, (B, patches, W) at each depth.
        """
        states = self.backbone(
            pixel_values=pixels, output_hidden_states=True, return_dict=True, **self._told
        ).hidden_states
        return tuple(self._read(states[depth], depth == len(states) - 1) for depth in self._depths), tuple(states)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) float32 -> one (B, W) float32 vector per depth, or (B, patches, W)."""
        return self.read(pixels)[0]

    def _read(self, state: Tensor, last: bool) -> Tensor:
        norm: Callable[[Tensor], Tensor] = find_module(self.backbone, self._tower.norm)
        if self._drops and not last:
            norm = nn.Identity()
        if self._pooling is PoolingMode.CLS:
            return norm(state[:, 0])
        if self._pooling is PoolingMode.POOLER:
            assert self._tower.pooler is not None
            read = norm(state[:, 0])[:, None] if self._tower.has_class else norm(state)  # of a class token, it alone
            return self._tower.pooler(self.backbone, read)
        patches = norm(state[:, self._tower.first_patch(self._vision) :])
        return patches if self._pooling is PoolingMode.PATCHES else patches.mean(1)


def bake_positions(backbone: Any, facts: ImageFacts) -> None:
    """Hold the position table of a model for images of one size, in place.

    Models whose positions are worked out from the size alone (rotary ones) have no table, and stay as they are.
    """
    for module in backbone.modules():
        if not hasattr(module, "patch_size") or "interpolate_pos_encoding" not in dir(type(module)):
            continue
        size = module.patch_size
        high, wide = size if isinstance(size, tuple | list) else (size, size)
        prefix = int(hasattr(module, "cls_token") or hasattr(module, "class_embedding"))
        tokens = prefix + (facts.height // high) * (facts.width // wide)
        with torch.no_grad():
            table = module.interpolate_pos_encoding(torch.zeros((1, tokens, 1)).expand(1, tokens, _find_width(module)),
                                                    facts.height, facts.width)  # fmt: skip
        module.register_parameter("position_table", nn.Parameter(table.detach().clone(), requires_grad=False))
        module.interpolate_pos_encoding = lambda *_given, known=module: known.position_table


def resamples_positions(backbone: Any) -> dict[str, bool]:
    """What a model has to be told so that it resamples its position table: some do so only when asked."""
    return dict.fromkeys({"interpolate_pos_encoding"} & {*signature(backbone.forward).parameters}, True)


def _find_width(module: Any) -> int:
    return int(getattr(module, "embed_dim", 0) or module.patch_embeddings.projection.out_channels)
