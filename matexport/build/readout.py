"""The parent as one torch module with one output per depth: what is traced.

Written apart from sentence-transformers, whose modules give the reference: they test values (`if prompt_length:`,
half-precision branches) that a trace would freeze. Formulas are those of sentence-transformers 6.2
(`sentence_transformer/modules/pooling.py`); all of them give the same vector for right padding, left padding and none.
One difference is deliberate: cls reads position 0, which is the first attended token unless the batch is padded on the
left; a plan for cls pooling therefore says right padding, whatever the parent's tokenizer does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from matexport.spec import FinalNorm, PoolingMode, Readout


class ExitsModule(nn.Module):
    """A parent's vectors at full width after each of some numbers of blocks, in one forward.

    Args:
        backbone: transformers' model; takes `inputs` by name.
        final_norm: its final norm, or None.
        heads: modules applied to the pooled vector; each takes and gives a (B, W) tensor.
        readout: the read-out. What it says of truncation and length is not done here.
        depths: after how many blocks to read, in the order of the outputs.
        inputs: names of the positional arguments of forward, each (B, T) int64.
    """

    def __init__(
        self,
        backbone: nn.Module,
        final_norm: nn.Module | None,
        heads: Sequence[nn.Module],
        *,
        readout: Readout,
        depths: Sequence[int],
        inputs: Sequence[str],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleList(heads)
        self._final_norm = [final_norm] if final_norm else []  # in a list, or it would be a child twice
        self._norms_exits = readout.final_norm is FinalNorm.KEEP
        self._pooling = readout.pooling
        self._depths = tuple(depths)
        self._inputs = tuple(inputs)
        self._blocks = int(backbone.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]

    def forward(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """(B, T) int64 inputs -> one (B, W) float32 vector per depth."""
        return self.read(*arguments)[0]

    def read(self, *arguments: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The vectors, and the (B, T, H) states after 0, 1, ... N blocks, all of them before the final norm."""
        inputs = dict(zip(self._inputs, arguments, strict=True))
        normed: list[Tensor] = []  # transformers gives the last state only after its norm
        hooks = [
            norm.register_forward_pre_hook(lambda _norm, given: normed.append(given[0])) for norm in self._final_norm
        ]
        try:
            output = self.backbone(**inputs, output_hidden_states=True)
        finally:
            for hook in hooks:
                hook.remove()
        attended = Attended(inputs["attention_mask"])
        vectors = tuple(self._read(self._state_at(output, depth), attended) for depth in self._depths)
        last = normed[-1] if normed else output.last_hidden_state
        return vectors, (*output.hidden_states[: self._blocks], last)

    def _state_at(self, output: Any, depth: int) -> Tensor:
        if depth == self._blocks:
            state: Tensor = output.last_hidden_state
            return state
        state = output.hidden_states[depth]
        for norm in self._final_norm if self._norms_exits else ():
            state = norm(state)
        return state

    def _read(self, state: Tensor, attended: Attended) -> Tensor:
        pooled = [POOLINGS[mode](state, attended) for mode in self._pooling]
        vector = pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=-1)
        for head in self.heads:
            vector = head(vector)
        return vector


class ExitsWithStates(nn.Module):
    """An `ExitsModule` that gives the states, too: what is traced, since they tell the blocks apart in the graph."""

    def __init__(self, exits: ExitsModule) -> None:
        super().__init__()
        self.exits = exits

    def forward(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """(B, T) int64 inputs -> the vectors, then the states; see `ExitsModule.read`."""
        vectors, states = self.exits.read(*arguments)
        return (*vectors, *states)


class Attended:
    """Which tokens count, in the forms that poolings need. Each is made once and serves every depth.

    Args:
        mask: (B, T) int64, 1 for a token and 0 for padding.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

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
        """(B, T, 1) float32: a token's place among the attended ones, 1 to n; 0 for padding on either side."""
        return (self.mask.cumsum(1) * self.mask).unsqueeze(-1).to(torch.float32)

    @cached_property
    def last(self) -> Tensor:
        """(B,) int64: position of the last token."""
        return (self.mask * torch.arange(self.mask.shape[1])).amax(1)


class Unit(nn.Module):
    """Rows of (B, W) scaled to length 1; sentence-transformers' Normalize on a tensor."""

    def forward(self, vector: Tensor) -> Tensor:
        return nn.functional.normalize(vector, dim=-1)


class Projection(nn.Module):
    """sentence-transformers' Dense on a tensor: activation(x W^T + b), plus x itself where it is residual."""

    def __init__(self, linear: nn.Module, activation: nn.Module, residual: nn.Module | None) -> None:
        super().__init__()
        self.linear = linear
        self.activation = activation
        self.residual = residual

    def forward(self, vector: Tensor) -> Tensor:
        projected: Tensor = self.activation(self.linear(vector))
        return projected if self.residual is None else projected + self.residual(vector)


def make_head(module: nn.Module) -> nn.Module:
    """One of sentence-transformers' modules (Dense, LayerNorm, Normalize) as a module from tensor to tensor."""
    kind = type(module).__name__
    if kind == "Normalize":
        return Unit()
    if kind == "LayerNorm":
        return module.norm  # type: ignore[return-value]
    residual: nn.Module | None = None
    if getattr(module, "use_residual", False):
        residual = getattr(module, "residual", None) or nn.Identity()
    return Projection(module.linear, module.activation_function, residual)  # type: ignore[arg-type]


def _pool_cls(state: Tensor, _attended: Attended) -> Tensor:
    return state[:, 0]


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
