"""Vision towers that transformers loads: where the blocks of each lie, its final norm, and what precedes its patches.

In all of them the norm behind the last block is no part of a block, and ``hidden_states`` are raw at every index, the
last one included (transformers captures them untied). What a vector read after fewer blocks goes through is that norm,
over the full width, and then the pooling: as `get_intermediate_layers` of DINOv2 and Franca does by default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig

from matexport.errors import ParentError, RequestError, one_line
from matexport.export.parents.folder.files import CONFIG, read_object
from matexport.spec.readout import PoolingMode

#: A tower's model and its (B, T, H) states, normed -> (B, W).
Pool = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Tower:
    """How a kind of vision tower is built.

    Attributes:
        model: its class in transformers.
        norm: where its final norm is.
        first_patch: of a configuration, how many tokens stand before the patches: a class token, registers.
        pooler: what its own pooled vector is made by; None where it has none but the class token.
        pooled_width: of a configuration, the width of that vector.
        has_class: whether the first token is a class token.
    """

    model: str
    norm: str
    first_patch: Callable[[Any], int]
    pooler: Pool | None = None
    pooled_width: Callable[[Any], int] = lambda config: int(config.hidden_size)
    has_class: bool = True

    @property
    def poolings(self) -> tuple[PoolingMode, ...]:
        """How it can be read."""
        modes = [PoolingMode.MEAN, PoolingMode.PATCHES]
        modes += [PoolingMode.CLS] if self.has_class else []
        modes += [PoolingMode.POOLER] if self.pooler else []
        return tuple(sorted(modes))


def _count_registers(config: Any) -> int:
    return 1 + int(config.num_register_tokens)


#: `model_type` of a configuration -> what is built so. Of a model with two towers, the vision tower's own.
TOWERS: Mapping[str, Tower] = {
    "vit": Tower(
        "ViTModel",
        "layernorm",
        lambda _: 1,
        lambda model, normed: model.pooler(normed),
        lambda config: int(getattr(config, "pooler_output_size", None) or config.hidden_size),
    ),
    "dinov2": Tower("Dinov2Model", "layernorm", lambda _: 1),
    "dinov2_with_registers": Tower("Dinov2WithRegistersModel", "layernorm", _count_registers),
    "dinov3_vit": Tower("DINOv3ViTModel", "norm", _count_registers),
    "clip_vision_model": Tower(
        "CLIPVisionModelWithProjection",
        "vision_model.post_layernorm",
        lambda _: 1,
        lambda model, normed: model.visual_projection(normed[:, 0]),
        lambda config: int(config.projection_dim),
    ),
    "siglip_vision_model": Tower(
        "SiglipVisionModel", "post_layernorm", lambda _: 0, lambda model, normed: model.head(normed), has_class=False
    ),
}


def read_config(root: Path, source: str) -> Any:
    """The configuration of a folder, as transformers reads it.

    Raises:
        ParentError: there is none, or transformers does not take it.
    """
    read_object(root / CONFIG)  # what is no JSON is said in our words
    try:
        return AutoConfig.from_pretrained(root, local_files_only=True)
    except Exception as error:  # configurations raise whatever their checks do
        raise ParentError(f"{source}: transformers does not take its {CONFIG}: {one_line(error)}") from error


def find_tower(config: Any, source: str) -> tuple[Tower, Any]:
    """The tower of a configuration of transformers, and the part of the configuration that is of it.

    Raises:
        ParentError: none of that kind is known.
    """
    vision = getattr(config, "vision_config", None) or config
    known = TOWERS.get(vision.model_type)
    if known is None:
        raise ParentError(
            f"{source} is a {config.model_type!r}; vision towers that are known: {', '.join(sorted(TOWERS))}"
        )
    return known, vision


def settle_pooling(tower: Tower, asked: object, source: str) -> PoolingMode:
    """How a tower is read: as asked, or by its own pooler, or by its class token.

    Raises:
        RequestError: it cannot be read so.
    """
    if asked is None:
        own = tower.pooler is not None and tower.model != "ViTModel"  # whose pooler few checkpoints have
        return PoolingMode.POOLER if own else PoolingMode.CLS
    if asked not in tower.poolings:
        raise RequestError(f"pooling = {asked!s} was asked; {source} can be read by {', '.join(tower.poolings)}")
    return PoolingMode(str(asked))


def find_module(model: Any, path: str) -> Any:
    """A part of a model, by its name."""
    for name in path.split("."):
        model = getattr(model, name)
    return model


def load_tower(root: Path, name: str, source: str, spared: Callable[[str], bool] = lambda _missing: False) -> Any:
    """A class of transformers with the weights of a folder, in float32 and eval mode.

    Args:
        name: of the class.
        spared: of the name of a weight that is missing, whether nothing reads it.

    Raises:
        ParentError: it cannot be loaded, or lacks weights that are read.
    """
    cls = getattr(transformers, name)
    try:
        model, said = cls.from_pretrained(
            root, local_files_only=True, dtype=torch.float32, output_loading_info=True, attn_implementation="eager"
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ParentError(f"{source} cannot be loaded: {one_line(error)[:400]}") from error
    missing = [name for name in said["missing_keys"] if not spared(name)]
    if missing:
        raise ParentError(
            f"{source} has no weights for {missing[0]}"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            + "; transformers would draw them at random"
        )
    return model.float().eval()
