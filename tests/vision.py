"""Small random vision towers, and what their vectors are by an oracle that shares no code with the package.

Norms, LayerScale and class tokens are drawn at random: with ones, zeros and 1e-5 a wrong layer would pass.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from numpy.typing import NDArray
from parents import SPECIAL, VOCABULARY
from PIL import Image, ImageOps
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn

Floats = NDArray[np.float32]

BLOCKS, WIDTH, SIDE, PATCH = 3, 32, 28, 7
COMMON: Mapping[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": SIDE,
    "patch_size": PATCH,
}
WHOLE = {
    "size": {"height": SIDE, "width": SIDE},
    "resample": 2,
    "image_mean": [0.5, 0.4, 0.6],
    "image_std": [0.5, 0.3, 0.2],
}
CROPPED = {"size": {"shortest_edge": 32}, "crop_size": {"height": SIDE, "width": SIDE}, "resample": 3}

#: Kind -> its model, and its processor. dinov2 has a table of positions for images of twice the side.
TOWERS: Mapping[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "vit": (lambda: hf.ViTModel(hf.ViTConfig(**COMMON)), {"image_processor_type": "ViTImageProcessor", **WHOLE}),
    "dinov2": (
        lambda: hf.Dinov2Model(hf.Dinov2Config(**{**COMMON, "image_size": 2 * SIDE, "mlp_ratio": 2})),
        {"image_processor_type": "BitImageProcessor", **CROPPED},
    ),
    "registers": (
        lambda: hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**{**COMMON, "mlp_ratio": 2})),
        {"image_processor_type": "BitImageProcessorFast", **CROPPED},
    ),
    "dinov3": (
        lambda: hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**COMMON, num_register_tokens=2)),
        {"image_processor_type": "ViTImageProcessor", **WHOLE},
    ),
    "clip": (
        lambda: hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(**COMMON, projection_dim=24)),
        {"image_processor_type": "CLIPImageProcessor", **CROPPED},
    ),
    "siglip": (
        lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**COMMON)),
        {"image_processor_type": "SiglipImageProcessor", **WHOLE, "resample": 3},
    ),
}  # fmt: skip


def make_tower(folder: Path, kind: str) -> Path:
    """Write a tower with its processor into a folder."""
    torch.manual_seed(7)
    make, processor = TOWERS[kind]
    model = make().eval()
    stir(model)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return folder


def stir(model: nn.Module, gain: float = 3) -> None:
    """Draw what initialisation leaves alike: a wrong depth, a missing norm or a lost token shows then.

    Args:
        gain: of matrices; with 3, attention looks at few tokens, and rounding shows more than in trained models.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name.lower() or "lambda" in name or "layrnorm" in name:
                parameter.copy_(torch.rand_like(parameter) * 0.8 + (0.6 if "bias" not in name else -0.4))
            elif parameter.ndim >= 2 and "token" not in name:
                parameter.mul_(gain)
            else:
                parameter.normal_(0, 0.5)


def prepare(file: Path, processor: Mapping[str, Any], side: int = SIDE) -> Floats:
    """(3, side, side): a file as Pillow and numpy make it, written down from the processor's description."""
    image = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
    size, resample = processor["size"], processor["resample"]
    if "shortest_edge" in size:
        edge, (width, height) = size["shortest_edge"], image.size
        long = int(edge * max(width, height) / min(width, height))
        target = (edge, long) if width <= height else (long, edge)
    else:
        target = (size["width"], size["height"])
    levels = np.asarray(image.resize(target, resample), np.float64)
    top, left = ((length - side) // 2 for length in levels.shape[:2])
    levels = levels[top : top + side, left : left + side]
    openai = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    mean, std = processor.get("image_mean", openai[0]), processor.get("image_std", openai[1])
    return np.asarray((levels / 255 - mean) / std, np.float32).transpose(2, 0, 1)


class TowerOracle:
    """The vector of an image file at a point: the unsliced parent's hidden states, and the formulas of its paper."""

    def __init__(self, folder: Path, kind: str) -> None:
        make, self.processor = TOWERS[kind]
        self.kind = kind
        self.model = type(make()).from_pretrained(folder).eval()

    def state(self, file: Path, layers: int) -> torch.Tensor:
        """(1, T, H): raw, after so many blocks."""
        pixels = torch.from_numpy(prepare(file, self.processor))[None]
        with torch.no_grad():
            return self.model(pixel_values=pixels, output_hidden_states=True).hidden_states[layers]  # type: ignore[no-any-return]

    def norm(self, state: torch.Tensor) -> torch.Tensor:
        model = self.model
        owner = model.vision_model if self.kind == "clip" else model
        name = {"clip": "post_layernorm", "siglip": "post_layernorm", "dinov3": "norm"}.get(self.kind, "layernorm")
        with torch.no_grad():
            return getattr(owner, name)(state)  # type: ignore[no-any-return]

    def vector(self, file: Path, layers: int, dim: int, pooling: str, *, norm: bool = True) -> Floats:
        """(dim,) float32 at length 1."""
        state = self.state(file, layers)
        normed = self.norm(state) if norm else state
        before = {"vit": 1, "dinov2": 1, "registers": 5, "dinov3": 3, "clip": 1, "siglip": 0}[self.kind]
        with torch.no_grad():
            if pooling == "cls":
                found = normed[0, 0]
            elif pooling == "mean":
                found = normed[0, before:].mean(0)
            elif self.kind == "clip":
                found = self.model.visual_projection(normed[:, 0])[0]
            else:
                found = (self.model.head(normed) if self.kind == "siglip" else self.model.pooler(normed))[0]
        cut = found.numpy()[:dim]
        return np.asarray(cut / np.linalg.norm(cut), np.float32)

    def patches(self, file: Path, layers: int, dim: int, *, before: int | None = None, norm: str = "whole") -> Floats:
        """(16, dim) float32, each at length 1.

        Args:
            before: tokens that are taken for no patches; the right number by default.
            norm: of all coordinates ("whole"), of the first dim alone ("sliced"), or "none".
        """
        state = self.state(file, layers)
        if norm == "sliced":
            own = self.model.vision_model.post_layernorm if self.kind == "clip" else self.model.layernorm
            state = nn.functional.layer_norm(state[..., :dim], (dim,), own.weight[:dim], own.bias[:dim], own.eps)
        elif norm == "whole":
            state = self.norm(state)
        first = {"vit": 1, "dinov2": 1, "registers": 5, "dinov3": 3, "clip": 1, "siglip": 0}[self.kind]
        start = first if before is None else before
        rows = [row[:dim].detach().numpy().astype(np.float64) for row in state[0, start : start + (SIDE // PATCH) ** 2]]
        return np.asarray([row / np.sqrt((row * row).sum()) for row in rows], np.float32)


def save_images(folder: Path, count: int = 6, seed: int = 5) -> list[Path]:
    """Pictures that are no probes."""
    folder.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(seed)
    files = []
    for index in range(count):
        height, width = (int(side) for side in draws.integers(20, 90, 2))
        coarse = Image.fromarray(draws.integers(0, 256, (5, 5, 3), np.uint8))
        files.append(folder / f"picture-{index}.png")
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(files[-1])
    return files


def make_pair(folder: Path, kind: str, *, text_blocks: int = BLOCKS, eos: int | None = None, gain: float = 3) -> Path:
    """Write a model with two towers, its processor and its tokenizer: ``clip``, or ``siglip`` with full rows.

    Args:
        eos: the end-of-text id that the configuration names, if not that of the tokenizer.
        gain: as for `stir`.
    """
    torch.manual_seed(11)
    tokenizer = make_word_tokenizer(kind)
    words = len(tokenizer)
    text = {
        "vocab_size": words, "hidden_size": 40, "num_hidden_layers": text_blocks, "num_attention_heads": 4,
        "intermediate_size": 56, "max_position_embeddings": 20, "bos_token_id": 0,
        "eos_token_id": words - 1 if eos is None else eos, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    if kind == "clip":
        config = hf.CLIPConfig(text_config=text | {"projection_dim": 24}, vision_config=dict(COMMON), projection_dim=24)
        config.vision_config.projection_dim = 24
        model: Any = hf.CLIPModel(config)
    else:
        text |= {"projection_size": WIDTH}
        model = hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=dict(COMMON)))
    stir(model, gain)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(TOWERS[kind][1]), encoding="utf-8")
    return folder


def make_word_tokenizer(kind: str) -> Any:
    """Words and letters; CLIP's begins and ends a text, and pads with its end; SigLIP's ends it, and pads otherwise."""
    clip = kind == "clip"
    words = ["<start>", "[UNK]", "<pad>", *dict.fromkeys(word for word in VOCABULARY if word not in SPECIAL), "<end>"]
    ids = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=40))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>" if clip else "$A <end>",
        special_tokens=[("<start>", ids["<start>"]), ("<end>", ids["<end>"])],
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", bos_token="<start>", eos_token="<end>",
        pad_token="<end>" if clip else "<pad>", model_max_length=20, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


class TextOracle:
    """The vector of a text at a point, by the papers' formulas on the unsliced parent's hidden states."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.clip = kind == "clip"
        self.model: Any = (hf.CLIPModel if self.clip else hf.SiglipModel).from_pretrained(folder).eval()
        self.tokenizer = hf.AutoTokenizer.from_pretrained(folder)

    def vector(self, text: str, layers: int, dim: int, *, norm: bool = True, token: int | None = None) -> Floats:
        """(dim,) float32 at length 1; `token`: the place that is read, if not the parent's."""
        padding: dict[str, Any] = {} if self.clip else {"padding": "max_length"}
        ids = self.tokenizer(text, truncation=True, max_length=20, **padding)["input_ids"]
        tower = self.model.text_model
        with torch.no_grad():
            state = tower(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[layers]
            if norm:
                state = tower.final_layer_norm(state)
            place = (ids.index(len(self.tokenizer) - 1) if self.clip else len(ids) - 1) if token is None else token
            head = self.model.text_projection if self.clip else tower.head
            cut = head(state[:, place])[0].numpy()[:dim]
        return np.asarray(cut / np.linalg.norm(cut), np.float32)
