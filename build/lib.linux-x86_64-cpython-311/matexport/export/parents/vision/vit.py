"""MRL's heads on a ViT whose backbone has timm's names: what the weights say, and what is traced.

No checkpoint of the ViT-B/16 of MRL's paper was published. What is read is a state dict with the names of timm's
`VisionTransformer` (`timm/models/vision_transformer.py`: ``patch_embed.proj``, ``cls_token``, ``pos_embed``,
``blocks.0.attn.qkv``, ``norm``, ...) and, at its attribute ``head``, the heads of `MRL.py`:
``head.nesting_classifier_0`` and so on, or one ``head``. The feature is the class token behind the last norm, as with
timm's `global_pool = "token"`.

The blocks are those of `franca`, which has the same names: LayerNorms with an epsilon of 1e-6, LayerScale or none, and
64 coordinates for each attention head. That number is the one thing that weights do not say; it is timm's for widths of
up to 1024. A weight that is not of such a network (registers, norms of queries, another pooling) is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from matexport.errors import ParentError
from matexport.export.parents.vision.franca import HEAD_WIDTH, FrancaModel, count_blocks
from matexport.export.parents.vision.heads import Shape, classify, read_heads, rename_heads

#: Of timm's ViTs, the widest whose attention heads have 64 coordinates; vit_huge has 1280 and 80.
MAX_WIDTH = 1024

#: timm's letters for widths.
_SIZES = {192: "Ti", 384: "S", 768: "B", 1024: "L"}

#: Weights outside of its blocks, and the parts of a block.
OUTSIDE = ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias")
PARTS, ENDS = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"), ("weight", "bias")

_KNOWN = re.compile(
    rf"{'|'.join(map(re.escape, OUTSIDE))}|fc\.nesting_classifier_\d+\.(weight|bias)"
    rf"|blocks\.\d+\.(({'|'.join(map(re.escape, PARTS))})\.(weight|bias)|ls[12]\.gamma)"
)


def is_vit(weights: Mapping[str, Tensor]) -> bool:
    """Whether weights have a ViT's names, with a prefix or without."""
    return any(name.endswith("patch_embed.proj.weight") for name in weights)


def read_classifier(weights: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], Shape]:
    """Weights without DDP's prefix, in float32, their heads as `heads.NAME`; and what they say.

    Raises:
        ParentError: they are not of such a network, contradict each other, or lack a part.
    """
    found = {name: tensor.float() for name, tensor in rename_heads(weights, "head").items()}
    if other := sorted(name for name in found if not _KNOWN.fullmatch(name)):
        raise ParentError(
            f"{source} holds {other[0]}, which is no weight of a plain ViT by timm's names with heads of MRL "
            "(cls_token, pos_embed, patch_embed.proj, blocks.0.attn.qkv, norm, head.nesting_classifier_0, ...)"
        )
    count = count_blocks(found, source)
    inside = (f"blocks.{index}.{part}.{end}" for index in range(count) for part in PARTS for end in ENDS)
    for name in (*OUTSIDE, *inside):
        if name not in found:
            raise ParentError(f"{source} has no weights for {name}")
    width = len(found["norm.weight"])
    if width > MAX_WIDTH or (width > HEAD_WIDTH and width % HEAD_WIDTH):
        raise ParentError(
            f"{source} is a ViT of {width}; weights do not say how many attention heads it has, and {HEAD_WIDTH} "
            f"coordinates each are known to be right for multiples of {HEAD_WIDTH} up to {MAX_WIDTH}"
        )
    patch = found["patch_embed.proj.weight"].shape[-1]
    network = f"ViT-{_SIZES.get(width, width)}/{patch}"
    return found, read_heads(found, network, count, width, source)


def check_size(weights: Mapping[str, Tensor], height: int, width: int, source: str) -> None:
    """Refuse images that the position table is not for: how it would be resampled is not in the weights.

    Raises:
        ParentError: naming both sizes.
    """
    patch, places = int(weights["patch_embed.proj.weight"].shape[-1]), int(weights["pos_embed"].shape[1]) - 1
    if height % patch or width % patch or (height // patch) * (width // patch) != places:
        raise ParentError(
            f"{source} has positions for {places} patches of {patch} x {patch}; its images are made {height} x "
            f"{width}: give the folder a preprocessor_config.json of the right size"
        )


class ViTClassifier(nn.Module):
    """A ViT's numbers at some dims in one forward.

    Args:
        weights: renamed.
        dims: of the heads, in the order of the outputs; of features one output at full width is given.
        features: give the feature and not what the heads say of it.
        size: height and width of the images.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], shape: Shape, dims: Sequence[int], *, features: bool, size: tuple[int, int]
    ) -> None:
        super().__init__()
        self._shape, self._dims, self._features = shape, tuple(dims), features
        self.backbone = FrancaModel(weights, *size, source=shape.network)
        heads = {name: tensor for name, tensor in weights.items() if name.startswith("fc.")}
        self.heads = nn.ParameterDict(
            {name.replace(".", "__"): nn.Parameter(tensor, requires_grad=False) for name, tensor in heads.items()}
        )

    def read(self, pixels: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """(B, 3, H, W) float32 -> for each dim (B, classes), or one (B, W) feature; and (B, T, W) states of blocks."""
        states = self.backbone(pixels).hidden_states
        feature = self.backbone.norm(states[-1][:, 0])
        if self._features:
            return (feature,), tuple(states)
        return tuple(self._classify(feature, dim) for dim in self._dims), tuple(states)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) float32 -> for each dim (B, classes), or one (B, W) feature."""
        return self.read(pixels)[0]

    def _classify(self, feature: Tensor, dim: int) -> Tensor:
        return classify(feature[:, :dim], dim, self._shape, self._get)

    def _get(self, name: str) -> Tensor:
        known: Any = self.heads[name.replace(".", "__")]
        return known  # type: ignore[no-any-return]
