"""The text towers that stand beside vision towers: CLIP's and SigLIP's, as transformers loads them.

What a text's vector is, by their papers' code and transformers': the state of one token behind the final norm, through
one linear map. CLIP reads the first end-of-text token (its attention is causal, so what pads behind it has no say);
SigLIP the last place of a row that is always full, padding attended, since it was trained so (Radford et al., "Learning
Transferable Visual Models From Natural Language Supervision", 2021; Zhai et al., "Sigmoid Loss for Language Image
Pre-Training", 2023). A vector read after fewer blocks goes through the same norm and map.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from matexport.errors import ParentError, RequestError
from matexport.export.parents.vision.towers import find_module
from matexport.spec.inputs import PaddingSide, TextFacts
from matexport.spec.readout import FinalNorm

TOKENIZER_FILE = "tokenizer.json"

#: The end-of-text id of configurations that were written with a wrong one; CLIP then takes the greatest id of a row.
UNTOLD_EOS = 2


@dataclass(frozen=True)
class TextTower:
    """How a kind of text tower is built.

    Attributes:
        model: its class in transformers.
        norm, head: where its final norm is, and the linear map behind it.
        output_width: of a configuration, the width of what that map gives.
        full: its rows are always full: padding is attended to.
    """

    model: str
    norm: str
    head: str
    output_width: Callable[[Any], int]
    full: bool


#: `model_type` of the text part of a configuration -> what is built so.
TEXT_TOWERS: Mapping[str, TextTower] = {
    "clip_text_model": TextTower(
        "CLIPTextModelWithProjection",
        "text_model.final_layer_norm",
        "text_projection",
        lambda config: int(config.projection_dim),
        full=False,
    ),
    "siglip_text_model": TextTower(
        "SiglipTextModel",
        "final_layer_norm",
        "head",
        lambda config: int(getattr(config, "projection_size", None) or config.hidden_size),
        full=True,
    ),
}


def find_text_tower(config: Any, source: str) -> tuple[TextTower, Any]:
    """The text tower of a configuration of transformers, and the part of the configuration that is of it.

    Raises:
        ParentError: none of that kind is known.
    """
    text = getattr(config, "text_config", None) or config
    known = TEXT_TOWERS.get(text.model_type)
    if known is None:
        raise ParentError(
            f"{source} is a {config.model_type!r}; text towers that are known: {', '.join(sorted(TEXT_TOWERS))}"
        )
    return known, text


def describe_text(root: Path, tower: TextTower, config: Any, limit: int | None, source: str) -> TextFacts:
    """How texts become the tower's one input.

    Args:
        config: the tower's part of the configuration.
        limit: the tokens that a job allows, if it says so.

    Raises:
        ParentError: there is no tokenizer.json, or nothing says what pads.
        RequestError: the limit is not one that the tower can have.
    """
    if not (root / TOKENIZER_FILE).is_file():
        raise ParentError(
            f"{source} has no {TOKENIZER_FILE}, which turns texts into tokens without transformers: load its tokenizer "
            "with AutoTokenizer and save it there with save_pretrained"
        )
    places = int(config.max_position_embeddings)
    if limit is not None and (limit > places or (tower.full and limit != places)):
        raise RequestError(
            f"max_tokens = {limit} was asked; {source} takes "
            + (f"rows of {places} tokens, always full: leave it out" if tower.full else f"1 to {places}")
        )
    return TextFacts(
        inputs=("input_ids",),
        max_tokens=limit or places,
        padding_side=PaddingSide.RIGHT,
        pad_token_id=_find_padding(root, config, source),
        prompts={},
        full=tower.full,
    )


def _find_padding(root: Path, config: Any, source: str) -> int:
    """What the tokenizer pads with, which SigLIP attends to; the configuration where the tokenizer does not say."""
    try:
        said = json.loads((root / "tokenizer_config.json").read_text(encoding="utf-8"))
        written = json.loads((root / TOKENIZER_FILE).read_text(encoding="utf-8"))
        token = said.get("pad_token")
        token = token.get("content") if isinstance(token, dict) else token
        known = {entry["content"]: entry["id"] for entry in written.get("added_tokens", ())}
        vocabulary = written["model"]["vocab"]
        if isinstance(vocabulary, list):  # a Unigram: pieces with their scores
            vocabulary = {piece: place for place, (piece, _) in enumerate(vocabulary)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        token, known, vocabulary = None, {}, {}
    found = known.get(token, vocabulary.get(token)) if token else getattr(config, "pad_token_id", None)
    if not isinstance(found, int):
        raise ParentError(f"{source}: neither tokenizer_config.json nor config.json says which token pads")
    return found


class TextTowerExits(nn.Module):
    """A text tower's vectors at full width after each of some numbers of blocks, in one forward.

    Args:
        backbone: transformers' model, in eval mode.
        tower: how it is built.
        final_norm: KEEP or DROP, for exits before the last block.
        depths: after how many blocks to read, in the order of the outputs.
    """

    def __init__(self, backbone: Any, tower: TextTower, final_norm: FinalNorm, depths: Sequence[int]) -> None:
        super().__init__()
        self.backbone = backbone
        self._tower, self._depths = tower, tuple(depths)
        self._drops = final_norm is FinalNorm.DROP
        config = getattr(backbone.config, "text_config", None) or backbone.config
        self._eos = int(config.eos_token_id)

    def read(self, ids: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """(B, T) int64 -> (B, W) float32 vectors, one per depth, and (B, T, H) raw states after 0, 1, ... blocks."""
        states = self.backbone(input_ids=ids, output_hidden_states=True, return_dict=True).hidden_states
        place = None if self._tower.full else self._find_end(ids)
        last = len(states) - 1
        return tuple(self._read(states[depth], place, depth == last) for depth in self._depths), tuple(states)

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        """(B, T) int64 -> one (B, W) float32 vector per depth."""
        return self.read(ids)[0]

    def _find_end(self, ids: Tensor) -> Tensor:
        """(B, 1, 1) int64: the place of each row's first end-of-text token."""
        told = ids if self._eos == UNTOLD_EOS else ids == self._eos
        return torch.argmax(told.to(torch.int32), dim=1)[:, None, None]

    def _read(self, state: Tensor, place: Tensor | None, last: bool) -> Tensor:
        token = state[:, -1] if place is None else state.gather(1, place.expand(-1, 1, state.shape[2]))[:, 0]
        if last or not self._drops:
            token = find_module(self.backbone, self._tower.norm)(token)
        vector: Tensor = find_module(self.backbone, self._tower.head)(token)
        return vector
