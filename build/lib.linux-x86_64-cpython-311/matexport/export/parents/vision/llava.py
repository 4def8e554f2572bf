"""The tower and the projector of a LLaVA folder: how large they are, their weights, and what is traced of them.

LLaVA-NeXT has the same two, which are given an image as several tiles, and a vector for the ends of rows of merged
tiles. What is traced is the same: tiles are a batch.

Weights are read by name from the folder's own files, so that no language model is made: as transformers 4 and 5 save
them, and as the original LLaVA code does. Of the tower only the blocks that run are made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor, nn

from matexport.errors import ParentError
from matexport.export.parents.folder.files import CONFIG, read_object
from matexport.export.parents.folder.source import list_weight_files
from matexport.export.parents.vision.processor import read_pinpoints
from matexport.export.parents.vision.towers import read_config
from matexport.spec.job import ParentSource

#: What names of weights begin with, in the order in which they are looked for: of the tower, and of the projector; and
#: what the newline is called.
TOWERS = (
    "model.vision_tower.vision_model.", "vision_tower.vision_model.", "model.vision_tower.",
    "model.vision_tower.vision_tower.vision_model.", "vision_tower.",
)  # fmt: skip
NEWLINES = ("model.image_newline", "image_newline")
PROJECTORS = ("model.multi_modal_projector.", "multi_modal_projector.", "model.mm_projector.")

#: The projector's layers, as transformers and as the original code call them.
_LAYERS = (("linear_1", "linear_2"), ("0", "2"))

#: model_type -> the class of transformers.
MODELS = {"llava": "LlavaForConditionalGeneration", "llava_next": "LlavaNextForConditionalGeneration"}

#: How the original code merges tiles; transformers merges them so, whatever is said.
_MERGED = {"mm_patch_merge_type": "spatial_unpad", "image_aspect_ratio": "anyres"}

#: Where the original code keeps the numbers of tokens that M3 was trained at.
SCALES = "matryoshka_vis_token_scale"


@dataclass(frozen=True)
class Shape:
    """What a folder's configuration says.

    Attributes:
        layer: number of blocks that run.
        blocks: number of blocks that the tower has.
        grid: patches on each side.
        side: pixels on each side.
        scales: numbers of tokens that the parent was trained at; empty where its configuration does not say.
        vision: the tower's configuration, as transformers has it.
        activation: between the projector's two layers.
        architecture: the class of transformers that the folder is of.
        pinpoints: (height, width) of what LLaVA-NeXT fits images into; empty of LLaVA-1.5.
    """

    layer: int
    blocks: int
    width: int
    output_width: int
    grid: int
    side: int
    scales: tuple[int, ...]
    dtype: str
    vision: Any
    activation: str
    architecture: str
    pinpoints: tuple[tuple[int, int], ...]


def read_shape(root: Path, source: str) -> Shape:
    """What the configuration of a LLaVA folder says.

    Raises:
        ParentError: it is of another kind, or reads its tower otherwise than M3 does.
    """
    said, config = read_object(root / CONFIG), read_config(root, source)
    if config.model_type not in MODELS:
        raise ParentError(f"{source} is a {config.model_type!r}; folders of {' and '.join(map(repr, MODELS))} are read")
    vision = config.vision_config
    if vision.model_type != "clip_vision_model":
        raise ParentError(f"{source} has a tower of the kind {vision.model_type!r}; CLIP's are read")
    layer = config.vision_feature_layer
    if not isinstance(layer, int):
        raise ParentError(f"{source} reads its tower at {layer!r}: one block is read")
    if config.vision_feature_select_strategy != "default":
        raise ParentError(
            f"{source} keeps the class token (vision_feature_select_strategy = "
            f"{config.vision_feature_select_strategy!r}), which cannot be averaged with patches"
        )
    tiled = config.model_type == "llava_next"
    for key, known in _MERGED.items() if tiled else ():
        if said.get(key, known) != known:
            raise ParentError(f"{source}: {key} = {said[key]!r} is not known of tiles; {known!r} is read")
    blocks = int(vision.num_hidden_layers)
    return Shape(
        layer=layer if layer >= 0 else blocks + 1 + layer,
        blocks=blocks,
        width=int(vision.hidden_size),
        output_width=int(config.text_config.hidden_size),
        grid=int(vision.image_size) // int(vision.patch_size),
        side=int(vision.image_size),
        scales=_read_scales(said.get(SCALES), source),
        dtype=str(getattr(config, "dtype", None) or "float32").removeprefix("torch."),
        vision=vision,
        activation=str(config.projector_hidden_act),
        architecture=MODELS[config.model_type],
        pinpoints=read_pinpoints(config.image_grid_pinpoints, source) if tiled else (),
    )


def _read_scales(said: Any, source: str) -> tuple[int, ...]:
    if said is None:
        return ()
    numbers = [part.strip() for part in said.split(",")] if isinstance(said, str) else said
    try:
        return tuple(sorted({int(number) for number in (numbers if isinstance(numbers, list) else [numbers])}))
    except (TypeError, ValueError):
        raise ParentError(f"{source}: {SCALES} = {said!r} is no list of numbers") from None


class TokenTower(nn.Module):
    """The blocks of a CLIP tower that run, and the projector behind them.

    Attributes:
        backbone: transformers' CLIPVisionModel with so many blocks alone.
        heads: the projector.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModel
        from transformers.activations import ACT2FN

        config = CLIPVisionConfig(**{**shape.vision.to_dict(), "num_hidden_layers": shape.layer})
        config._attn_implementation = "eager"
        self.backbone = CLIPVisionModel(config)
        self.heads = nn.Sequential(
            nn.Linear(shape.width, shape.output_width),
            ACT2FN[shape.activation],
            nn.Linear(shape.output_width, shape.output_width),
        )


def load_tokens(root: Path, shape: Shape, parent: ParentSource) -> TokenTower:
    """The tower and the projector, in float32 and eval mode.

    Raises:
        ParentError: weights are missing or of other shapes, or pickled.
    """
    found = _read_weights(list_weight_files(root, parent))
    tower = TokenTower(shape)
    own = tower.backbone.state_dict()
    inner = "vision_model." if any(name.startswith("vision_model.") for name in own) else ""
    # Of the norm behind the last block nothing is read; transformers makes it anyhow.
    wanted = [name for name in own if "position_ids" not in name and "post_layernorm" not in name]
    renamed = {name: _take(found, TOWERS, name.removeprefix(inner), root) for name in wanted}
    projector = {f"{place}.{part}": _take_projector(found, layer, part, root) for layer, place in enumerate((0, 2))
                 for part in ("weight", "bias")}  # fmt: skip
    try:
        tower.backbone.load_state_dict(renamed, strict=False)
        tower.heads.load_state_dict(projector)
    except RuntimeError as error:
        raise ParentError(f"{root}: {' '.join(str(error).split())[:300]}") from error
    return tower.float().eval()


def read_newline(root: Path, shape: Shape, parent: ParentSource) -> NDArray[np.float32]:
    """(output_width,) float32: what LLaVA-NeXT puts behind each row of merged tiles.

    Raises:
        ParentError: the folder has none, or it has another width or is not finite.
    """
    for path in _list_safetensors(list_weight_files(root, parent)):
        with safe_open(path, "pt") as opened:
            name = next((name for name in NEWLINES if name in opened.keys()), None)  # noqa: SIM118 - no dictionary
            if name is None:
                continue
            newline: NDArray[np.float32] = opened.get_tensor(name).float().numpy()
        if newline.shape != (shape.output_width,) or not np.isfinite(newline).all():
            raise ParentError(f"{path}: {name} is not {shape.output_width} finite numbers, but {newline.shape}")
        return newline
    raise ParentError(f"{root} has no weights for {NEWLINES[0]}")


def _list_safetensors(files: Sequence[Path]) -> Sequence[Path]:
    for path in files:
        if path.suffix != ".safetensors":
            raise ParentError(f"{path} is pickled; LLaVA folders are read from safetensors")
    return files


def _read_weights(files: Sequence[Path]) -> dict[str, Tensor]:
    """Name -> weight, of the tower and the projector alone."""
    found: dict[str, Tensor] = {}
    for path in _list_safetensors(files):
        with safe_open(path, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no dictionary
                if name.startswith((*TOWERS, *PROJECTORS)):
                    found[name] = opened.get_tensor(name).float()
    return found


def _take(found: Mapping[str, Tensor], prefixes: Sequence[str], name: str, root: Path) -> Tensor:
    for prefix in prefixes:
        if prefix + name in found:
            return found[prefix + name]
    raise ParentError(f"{root} has no weights for {name} of its vision tower")


def _take_projector(found: Mapping[str, Tensor], layer: int, part: str, root: Path) -> Tensor:
    for names in _LAYERS:
        for prefix in PROJECTORS:
            if (name := f"{prefix}{names[layer]}.{part}") in found:
                return found[name]
    raise ParentError(f"{root} has no weights for layer {layer + 1} of its projector")


class TokenExits(nn.Module):
    """Visual tokens at some counts in one forward: project, then average.

    Args:
        parent: the tower and the projector.
        counts: numbers of tokens, in the order of the outputs.
    """

    def __init__(self, parent: TokenTower, counts: Sequence[int]) -> None:
        super().__init__()
        self.backbone, self.heads = parent.backbone, parent.heads
        self._counts = tuple(counts)

    def read(self, pixels: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """(B, 3, H, W) float32 -> (B, tokens, W) for each count, and the (B, T, H) states after 0, 1, ... blocks."""
        states = self.backbone(pixel_values=pixels, output_hidden_states=True, return_dict=True).hidden_states
        tokens = self.heads(states[-1][:, 1:])
        return tuple(average_squares(tokens, count) for count in self._counts), tuple(states)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) float32 -> (B, tokens, W) float32 for each count."""
        return self.read(pixels)[0]


def average_squares(tokens: Tensor, count: int) -> Tensor:
    """(B, N, W), rows of a square grid one after the other -> (B, count, W), each the mean of a square of them."""
    grid, side = math.isqrt(tokens.shape[1]), math.isqrt(count)
    if grid == side:
        return tokens
    width, step = tokens.shape[2], grid // side
    squares = tokens.reshape(-1, side, step, side, step, width)
    return squares.mean(dim=(2, 4)).reshape(-1, count, width)
