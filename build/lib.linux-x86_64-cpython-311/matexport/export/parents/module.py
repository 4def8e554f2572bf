"""The parent as one torch module with one output per depth: what is traced.

Pooling is written apart from sentence-transformers, whose module gives the reference: it tests values (`if
prompt_length:`, half-precision branches) that a trace would freeze, and gathers what push-down needs as a slice.
Formulas are those of sentence-transformers 6.2 (`sentence_transformer/modules/pooling.py`); all of them give the same
vector for right padding, left padding and none. One difference is deliberate: cls reads position 0, which is the first
attended token unless the batch is padded on the left or a prompt is not pooled; a plan for cls pooling therefore says
right padding, whatever the parent's tokenizer does.

The modules after it (Dense, LayerNorm, Normalize, and classes of the parent's own) are traced as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from matexport.export.parents.folder.loading import module_class
from matexport.export.parents.text import TextParent
from matexport.spec.facts import POOLING_MASK
from matexport.spec.readout import FinalNorm, PoolingMode


class ExitsModule(nn.Module):
    """A parent's vectors at full width after each of some numbers of blocks, in one forward.

    What the read-out says of truncation and length is not done here.

    Args:
        parent: a loaded parent.
        depths: after how many blocks to read, in the order of the outputs.
    """

    def __init__(self, parent: TextParent, depths: Sequence[int]) -> None:
        super().__init__()
        plan = parent.plan
        self.backbone = parent.backbone
        self.heads = nn.ModuleList(
            [Pooled(plan.readout.pooling, masked=POOLING_MASK in plan.text.inputs) if _is_pooling(module) else module
             for module in parent.chain]
        )  # fmt: skip
        self._tail = parent.tail  # in a tuple, or they would be children twice
        self._norms_exits = plan.readout.final_norm is FinalNorm.KEEP
        self._depths = tuple(depths)
        self._inputs = plan.text.inputs
        self._taken = tuple(name for name in plan.text.inputs if name in plan.shape.takes)
        self._blocks = plan.parent.blocks
        # As sentence-transformers: the states of all layers are handed on only where the configuration says so.
        config: Any = getattr(parent.backbone, "config", None)
        self._gives_layers = bool(getattr(config, "output_hidden_states", False))

    def forward(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """(B, T) int64 inputs -> one (B, W) float32 vector per depth."""
        return self.read(*arguments)[0]

    def read(self, *arguments: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The vectors, and the (B, T, H) states after 0, 1, ... N blocks, all of them before the final norm."""
        inputs = dict(zip(self._inputs, arguments, strict=True))
        normed: list[Tensor] = []  # transformers gives the last state only after its norm
        hooks = [
            norm.register_forward_pre_hook(lambda _norm, given: normed.append(given[0])) for norm in self._tail[:1]
        ]
        taken = {name: inputs[name] for name in self._taken}
        try:
            # Said here, whatever flags of the parent's configuration say.
            output = self.backbone(**taken, output_hidden_states=True, return_dict=True)
        finally:
            for hook in hooks:
                hook.remove()
        states = output.hidden_states
        attended = Attended(inputs.get(POOLING_MASK, inputs["attention_mask"]), inputs["attention_mask"])
        vectors = tuple(self._read(output, depth, inputs, attended) for depth in self._depths)
        last = normed[-1] if normed else output.last_hidden_state
        return vectors, (*states[: self._blocks], last)

    def _state_at(self, output: Any, depth: int) -> Tensor:
        if depth == self._blocks:
            state: Tensor = output.last_hidden_state
            return state
        state = output.hidden_states[depth]
        for module in self._tail if self._norms_exits else ():
            state = module(state)
        return state

    def _read(self, output: Any, depth: int, inputs: dict[str, Tensor], attended: Attended) -> Tensor:
        features: dict[str, Any] = {
            "token_embeddings": self._state_at(output, depth),
            "attention_mask": inputs["attention_mask"],
            "attended": attended,
        }
        if depth == self._blocks and self._gives_layers:
            features["all_layer_embeddings"] = output.hidden_states
        for module in self.heads:
            features = module(features)
        vector: Tensor = features["sentence_embedding"]
        return vector


def _is_pooling(module: nn.Module) -> bool:
    return type(module) is module_class("Pooling")


class Pooled(nn.Module):
    """sentence-transformers' Pooling on features that say which tokens count (`Attended`).

    Args:
        modes: what is concatenated.
        masked: some leading tokens may not be pooled, so that the first one that is has no fixed place.
    """

    def __init__(self, modes: Sequence[PoolingMode], *, masked: bool) -> None:
        super().__init__()
        self._modes, self._masked = tuple(modes), masked

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        """Adds ``sentence_embedding``, (B, modes * W)."""
        pooled = [
            (_pool_first if self._masked and mode is PoolingMode.CLS else POOLINGS[mode])(
                features["token_embeddings"], features["attended"]
            )
            for mode in self._modes
        ]
        features["sentence_embedding"] = pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=-1)
        return features


class ExitsWithStates(nn.Module):
    """What is traced: a module of exits that gives the states, too, which tell the blocks apart in the graph.

    Args:
        exits: has a method `read`: inputs -> (the vectors, the states), as `ExitsModule` has.
    """

    def __init__(self, exits: Any) -> None:
        super().__init__()
        self.exits = exits

    def forward(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """The inputs of a graph -> the vectors, then the states."""
        vectors, states = self.exits.read(*arguments)
        return (*vectors, *states)


class Attended:
    """Which tokens count, in the forms that poolings need. Each is made once and serves every depth.

    Args:
        mask: (B, T) int64, 1 for a token that is pooled and 0 for padding or a prompt that is not.
        tokens: (B, T) int64, 1 for any token, where some are not pooled.
    """

    def __init__(self, mask: Tensor, tokens: Tensor | None = None) -> None:
        self.mask = mask
        self._tokens = mask if tokens is None else tokens

    @cached_property
    def weights(self) -> Tensor:
        """(B, T, 1) float32: 1 or 0."""
        return self.mask.unsqueeze(-1).to(torch.float32)

    @cached_property
    def count(self) -> Tensor:
        """(B, 1) float32: number of tokens."""
        return self.weights.sum(1).clamp(min=1e-9)

    @cached_property
    def places(self) -> Tensor:
        """(B, T, 1) float32: a token's place in its text, 1 to n, a prompt counted; 0 for what is not pooled."""
        return (self._tokens.cumsum(1) * self.mask).unsqueeze(-1).to(torch.float32)

    @cached_property
    def last(self) -> Tensor:
        """(B,) int64: position of the last token."""
        return (self.mask * torch.arange(self.mask.shape[1])).amax(1)


def _pool_cls(state: Tensor, _attended: Attended) -> Tensor:
    return state[:, 0]


def _pool_first(state: Tensor, attended: Attended) -> Tensor:
    first = attended.mask.to(torch.int32).argmax(1)
    return state.gather(1, first.view(-1, 1, 1).expand(-1, 1, state.shape[2])).squeeze(1)


def _pool_mean(state: Tensor, attended: Attended) -> Tensor:
    return (state * attended.weights).sum(1) / attended.count


def _pool_mean_sqrt_len(state: Tensor, attended: Attended) -> Tensor:
    return (state * attended.weights).sum(1) / attended.count.sqrt()


def _pool_weighted_mean(state: Tensor, attended: Attended) -> Tensor:
    return (state * attended.places).sum(1) / attended.places.sum(1).clamp(min=1e-9)


def _pool_max(state: Tensor, attended: Attended) -> Tensor:
    return state.masked_fill(attended.weights == 0, float("-inf")).amax(1)


def _pool_last_token(state: Tensor, attended: Attended) -> Tensor:
    return state.gather(1, attended.last.view(-1, 1, 1).expand(-1, 1, state.shape[2])).squeeze(1)


POOLINGS: dict[PoolingMode, Callable[[Tensor, Attended], Tensor]] = {
    PoolingMode.CLS: _pool_cls,
    PoolingMode.MEAN: _pool_mean,
    PoolingMode.MAX: _pool_max,
    PoolingMode.MEAN_SQRT_LEN: _pool_mean_sqrt_len,
    PoolingMode.WEIGHTED_MEAN: _pool_weighted_mean,
    PoolingMode.LAST_TOKEN: _pool_last_token,
}
