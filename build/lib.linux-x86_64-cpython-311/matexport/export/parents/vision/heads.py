"""Nested heads of MRL, whatever stands before them: what their weights say, and what they say of a feature.

Kusupati et al., "Matryoshka Representation Learning", NeurIPS 2022; `MRL_Linear_Layer` of its code. There is one head
for each dim (MRL), one that all dims share (MRL-E), of which a dim takes the leading columns and the whole bias, or one
for its own dim (FF). A feature goes into a head as it is: it is scaled only where it is searched by.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from matexport.errors import ParentError, RequestError

#: What DistributedDataParallel puts before every name.
PREFIX = "module."

#: What heads are called here, whatever they are called in a checkpoint.
NAME = "fc.nesting_classifier_{}"
_HEAD = re.compile(r"fc\.nesting_classifier_(\d+)\.weight")


class Heads(StrEnum):
    """How a classifier's heads are nested."""

    EACH = "MRL"
    SHARED = "MRL-E"
    FIXED = "FF"


@dataclass(frozen=True)
class Shape:
    """What a classifier's weights say of it.

    Attributes:
        network: what gives the feature, such as ``ResNet-50``.
        blocks: of all stages.
        width: of the feature behind the last block.
        heads: how they are nested.
        dims: of the heads; of a shared one, its full width.
    """

    network: str
    blocks: int
    width: int
    classes: int
    heads: Heads
    dims: tuple[int, ...]

    def describe(self) -> str:
        """Such as ``ResNet-50, MRL``."""
        return f"{self.network}, {self.heads}"


def rename_heads(weights: Mapping[str, Tensor], attribute: str) -> dict[str, Tensor]:
    """Weights without DDP's prefix, their heads as `NAME`.

    Args:
        attribute: what a network calls its heads: ``fc`` of a ResNet, ``head`` of a ViT. With nothing behind it, it is
            the only head, as in the released checkpoints of MRL-E and FF.
    """
    found = {}
    for name, tensor in weights.items():
        plain = name.removeprefix(PREFIX)
        if plain in (f"{attribute}.weight", f"{attribute}.bias"):
            plain = plain.replace(attribute, NAME.format(0), 1)
        elif plain.startswith(f"{attribute}.nesting_classifier_"):
            plain = f"fc.{plain.removeprefix(f'{attribute}.')}"
        found[plain] = tensor
    return found


def read_heads(weights: Mapping[str, Tensor], network: str, blocks: int, width: int, source: str) -> Shape:
    """What renamed weights say of their heads.

    Args:
        network, blocks, width: of what is before them.

    Raises:
        ParentError: they contradict each other, one lacks its bias, or there is none.
    """
    found = {int(match[1]): weights[name] for name in weights if (match := _HEAD.fullmatch(name))}
    if not found or sorted(found) != [*range(len(found))]:
        raise ParentError(f"{source} has no heads (weight, or nesting_classifier_0.weight and so on, of fc or head)")
    dims = tuple(int(found[index].shape[1]) for index in sorted(found))
    classes = {int(head.shape[0]) for head in found.values()}
    if len(classes) > 1 or max(dims) > width or sorted(set(dims)) != list(dims):
        raise ParentError(f"{source}: its heads, for dims {list(dims)} and {sorted(classes)} classes, do not fit")
    for index in found:
        if f"{NAME.format(index)}.bias" not in weights:
            raise ParentError(f"{source} has no weights for {NAME.format(index)}.bias")
    kind = Heads.EACH if len(dims) > 1 else Heads.SHARED if dims[0] == width else Heads.FIXED
    return Shape(network, blocks, width, classes.pop(), kind, dims)


def check_dim(dim: int, shape: Shape, *, features: bool, source: str) -> None:
    """Refuse a dim that a classifier says nothing for.

    Raises:
        RequestError: naming those that it does.
    """
    if features or shape.heads is Heads.SHARED:
        if dim > shape.width:
            raise RequestError(
                f"dim={dim} was asked; features of {source} have {shape.width}: ask for 1 to {shape.width}"
            )
    elif dim not in shape.dims:
        known = ", ".join(map(str, shape.dims))
        raise RequestError(f"dim={dim} was asked; {source} has heads for {known} ({shape.heads})")


def classify(feature: Tensor, dim: int, shape: Shape, get: Callable[[str], Tensor]) -> Tensor:
    """(B, dim) of a feature -> (B, classes).

    Args:
        get: name of a weight -> the weight.
    """
    head = NAME.format(shape.dims.index(dim) if shape.heads is Heads.EACH else 0)
    weight, bias = get(f"{head}.weight"), get(f"{head}.bias")
    # The rows of the transposed matrix that a dim takes are its first ones: a part of the same file.
    rows = weight.t() if shape.heads is not Heads.SHARED else weight.t()[:dim]
    return torch.matmul(feature, rows) + bias
