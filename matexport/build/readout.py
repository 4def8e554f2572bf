"""The parent as one torch module with one named output per point: what is traced.

Written apart from sentence-transformers, whose modules give the reference: they test values (`if prompt_length:`,
half-precision branches) that a trace would freeze. Formulas are those of sentence-transformers 6.2
(`sentence_transformer/modules/pooling.py`); all of them give the same vector for right padding, left padding and none.
One difference is deliberate: cls reads position 0, which is the first attended token unless the batch is padded on the
left; a plan for cls pooling therefore says right padding, whatever the parent's tokenizer does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from matexport.spec import FinalNorm, Point, PoolingMode, Readout


class ExitsModule(nn.Module):
    """All exits of a parent in one forward.

    Args:
        backbone: transformers' model; takes `inputs` by name.
        final_norm: its final norm, or None.
        heads: modules applied to the pooled (B, W) vector at full width; each takes and gives a tensor.
        readout: the read-out.
        points: the exits, in the order of the outputs.
        inputs: names of the positional arguments of forward, each (B, T) int64.
    """

    def __init__(
        self,
        backbone: nn.Module,
        final_norm: nn.Module | None,
        heads: Sequence[nn.Module],
        *,
        readout: Readout,
        points: Sequence[Point],
        inputs: Sequence[str],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleList(heads)
        self._norm = [final_norm] if readout.final_norm is FinalNorm.KEEP and final_norm else []  # not a child twice
        self._readout = readout
        self._points = tuple(points)
        self._inputs = tuple(inputs)
        self._blocks = int(backbone.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]

    def forward(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """(B, T) int64 inputs -> one (B, dim) float32 vector per point."""
        inputs = dict(zip(self._inputs, arguments, strict=True))
        output = self.backbone(**inputs, output_hidden_states=True)
        full = {}
        for layers in sorted({point.layers for point in self._points}):
            state = output.last_hidden_state if layers == self._blocks else output.hidden_states[layers]
            if layers < self._blocks:
                for norm in self._norm:
                    state = norm(state)
            full[layers] = self._read(state, inputs["attention_mask"])
        return tuple(self._cut(full[point.layers], point.dim) for point in self._points)

    def _read(self, state: Tensor, mask: Tensor) -> Tensor:
        vector = torch.cat([POOLINGS[mode](state, mask) for mode in self._readout.pooling], dim=-1)
        for head in self.heads:
            vector = head(vector)
        return vector

    def _cut(self, vector: Tensor, dim: int) -> Tensor:
        cut = vector[:, :dim]
        return nn.functional.normalize(cut, dim=-1) if self._readout.normalize else cut


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


def _pool_cls(state: Tensor, _mask: Tensor) -> Tensor:
    return state[:, 0]


def _pool_mean(state: Tensor, mask: Tensor) -> Tensor:
    weights = mask.unsqueeze(-1).to(state.dtype)
    return (state * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


def _pool_mean_sqrt_len(state: Tensor, mask: Tensor) -> Tensor:
    weights = mask.unsqueeze(-1).to(state.dtype)
    return (state * weights).sum(1) / weights.sum(1).clamp(min=1e-9).sqrt()


def _pool_weighted_mean(state: Tensor, mask: Tensor) -> Tensor:
    # A token's weight is its place among the attended ones, 1 to n; padding weighs nothing on either side.
    weights = (mask.cumsum(1) * mask).unsqueeze(-1).to(state.dtype)
    return (state * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


def _pool_max(state: Tensor, mask: Tensor) -> Tensor:
    return state.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).amax(1)


def _pool_last_token(state: Tensor, mask: Tensor) -> Tensor:
    positions = torch.arange(state.shape[1], device=state.device)
    last = (mask * positions).amax(1)
    return state.gather(1, last.view(-1, 1, 1).expand(-1, 1, state.shape[2])).squeeze(1)


POOLINGS: dict[PoolingMode, Callable[[Tensor, Tensor], Tensor]] = {
    PoolingMode.CLS: _pool_cls,
    PoolingMode.MEAN: _pool_mean,
    PoolingMode.MAX: _pool_max,
    PoolingMode.MEAN_SQRT_LEN: _pool_mean_sqrt_len,
    PoolingMode.WEIGHTED_MEAN: _pool_weighted_mean,
    PoolingMode.LAST_TOKEN: _pool_last_token,
}
