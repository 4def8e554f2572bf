"""Classifiers on ResNets of bottleneck blocks, as MRL trains them: what their weights say, and what is traced.

Kusupati et al., "Matryoshka Representation Learning", NeurIPS 2022; `MRL.py` and `utils.py` of its code. The backbone
is torchvision's ResNet (its stride in the 3 x 3 convolution), in which BlurPool may stand before strided ones. Behind
the mean over all places stand heads: one for each dim (MRL), one that all dims share (MRL-E), or one for its own dim
(FF). Everything is read off the names and shapes of the weights: checkpoints have no configuration.

For a dim m the last block's last convolution and the sum behind it are computed for the first m channels alone:
nothing else reads the others. All dims share the weights, of which each takes the leading rows.

Every norm is folded into the convolution before it (`fold_norms`): what is traced has none, and what a precision rounds
is what is multiplied.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from matexport.errors import ParentError, RequestError

#: What DistributedDataParallel puts before every name.
PREFIX = "module."

#: Heads of the current code, and of the released checkpoints.
_HEAD = re.compile(r"fc\.nesting_classifier_(\d+)\.weight")
_CONV = re.compile(r"layer(\d+)\.(\d+)\.conv1\.(?:conv\.)?weight")

_NORM = re.compile(r"((?:layer\d+\.\d+\.)?(?:bn\d|downsample\.1))\.running_mean")
NORM_PARTS = ("weight", "bias", "running_mean", "running_var")

#: Torch's own for norms in these networks.
BATCH_NORM_EPSILON = 1e-5


class Heads(StrEnum):
    """How a classifier's heads are nested."""

    EACH = "MRL"
    SHARED = "MRL-E"
    FIXED = "FF"


@dataclass(frozen=True)
class Shape:
    """What a classifier's weights say of it.

    Attributes:
        stages: number of blocks of each stage.
        width: of the feature behind the last block.
        heads: how they are nested.
        dims: of the heads; of a shared one, its full width.
        blurs: whether BlurPool stands before strided convolutions.
    """

    stages: tuple[int, ...]
    width: int
    classes: int
    heads: Heads
    dims: tuple[int, ...]
    blurs: bool

    @property
    def blocks(self) -> int:
        """Of all stages."""
        return sum(self.stages)

    def describe(self) -> str:
        """Such as ``ResNet-50, MRL``."""
        return f"ResNet-{3 * self.blocks + 2}, {self.heads}"


def rename_weights(weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Weights under the names of today's code: without DDP's prefix, and with a released head's name in its new form.

    Raises:
        ParentError: they are not of a ResNet with bottleneck blocks.
    """
    found = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}
    if "conv1.weight" not in found or not any(_CONV.fullmatch(name) for name in found):
        raise ParentError(
            f"{source} holds no weights of a ResNet with bottleneck blocks (conv1.weight, layer1.0.conv1.weight, ...)"
        )
    for part in ("weight", "bias"):
        if f"fc.{part}" in found:
            found[f"fc.nesting_classifier_0.{part}"] = found.pop(f"fc.{part}")
    return found


def read_shape(weights: Mapping[str, Tensor], source: str) -> Shape:
    """What renamed weights say.

    Raises:
        ParentError: they contradict each other, or there is no head.
    """
    blocks: dict[int, set[int]] = {}
    for name in weights:
        if match := _CONV.fullmatch(name):
            blocks.setdefault(int(match[1]), set()).add(int(match[2]))
    stages = tuple(len(blocks[stage]) for stage in sorted(blocks))
    if sorted(blocks) != [*range(1, len(blocks) + 1)] or any(
        found != {*range(len(found))} for found in blocks.values()
    ):
        raise ParentError(f"{source}: blocks are missing among its weights")
    last = f"layer{len(stages)}.{stages[-1] - 1}"
    width = int(_take(weights, f"{last}.bn3.weight", source).shape[0])
    heads = {int(match[1]): weights[name] for name in weights if (match := _HEAD.fullmatch(name))}
    if not heads or sorted(heads) != [*range(len(heads))]:
        raise ParentError(f"{source} has no heads (fc.weight, or fc.nesting_classifier_0.weight and so on)")
    dims = tuple(int(heads[index].shape[1]) for index in sorted(heads))
    classes = {int(head.shape[0]) for head in heads.values()}
    if len(classes) > 1 or max(dims) > width or sorted(set(dims)) != list(dims):
        raise ParentError(f"{source}: its heads, for dims {list(dims)} and {sorted(classes)} classes, do not fit")
    kind = Heads.EACH if len(dims) > 1 else Heads.SHARED if dims[0] == width else Heads.FIXED
    blurs = any(name.endswith("blur_filter") for name in weights)
    return Shape(stages, width, classes.pop(), kind, dims, blurs)


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


class Classifier(nn.Module):
    """A ResNet's numbers at some dims in one forward, in eval mode.

    Args:
        weights: renamed.
        dims: to which its feature is cut, in the order of the outputs.
        features: give the feature and not what the heads say of it: at full width, once for each dim.
    """

    def __init__(self, weights: Mapping[str, Tensor], shape: Shape, dims: Sequence[int], *, features: bool) -> None:
        super().__init__()
        self._shape, self._dims, self._features = shape, tuple(dims), features
        self.backbone = nn.ParameterDict()
        self._names = {}
        for name, tensor in fold_norms(weights).items():
            key = name.replace(".", "__")
            self._names[name] = key
            self.backbone[key] = nn.Parameter(tensor, requires_grad=False)

    def read(self, pixels: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """(B, 3, H, W) float32 -> for each dim (B, classes), or (B, dim) of features; and the states of the blocks.

        The last block's state is what its last convolution reads: from there on each dim has its own.
        """
        state = functional.relu(self._conv("conv1", pixels, 2, 3))
        states = [functional.max_pool2d(state, 3, stride=2, padding=1)]
        inner, identity, name = states[0], states[0], ""
        for stage, count in enumerate(self._shape.stages, 1):
            for place in range(count):
                if name:
                    states.append(self._end(name, inner, identity, None))
                name, stride = f"layer{stage}.{place}", 2 if stage > 1 and place == 0 else 1
                inner, identity = self._start(name, states[-1], stride)
        states.append(inner)
        last = {dim: self._end(name, inner, identity, dim).mean(dim=(2, 3)) for dim in self._dims}
        return tuple(last[dim] if self._features else self._classify(last[dim], dim) for dim in self._dims), tuple(
            states
        )

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) float32 -> for each dim (B, classes), or (B, dim) of features."""
        return self.read(pixels)[0]

    def _start(self, name: str, given: Tensor, stride: int) -> tuple[Tensor, Tensor]:
        """A block up to its last convolution, and what is added behind it."""
        inner = functional.relu(self._conv(f"{name}.conv1", given, 1, 0))
        inner = functional.relu(self._conv(f"{name}.conv2", inner, stride, 1))
        if f"{name}.downsample.0.bias" in self._names:
            given = self._conv(f"{name}.downsample.0", given, stride, 0)
        return inner, given

    def _end(self, name: str, inner: Tensor, identity: Tensor, channels: int | None) -> Tensor:
        """A block from its last convolution on, of its first channels alone."""
        weight, bias = (self._get(f"{name}.conv3.{part}") for part in ("weight", "bias"))
        if channels is not None and channels < len(weight):
            weight, bias, identity = weight[:channels], bias[:channels], identity[:, :channels]
        return functional.relu(functional.conv2d(inner, weight, bias) + identity)

    def _conv(self, name: str, given: Tensor, stride: int, padding: int) -> Tensor:
        weight = f"{name}.weight"
        if f"{name}.blur_filter" in self._names:
            given = functional.conv2d(given, self._get(f"{name}.blur_filter"), padding=1, groups=given.shape[1])
            weight = f"{name}.conv.weight"
        return functional.conv2d(given, self._get(weight), self._get(f"{name}.bias"), stride=stride, padding=padding)

    def _classify(self, feature: Tensor, dim: int) -> Tensor:
        shape = self._shape
        head = shape.dims.index(dim) if shape.heads is Heads.EACH else 0
        weight, bias = (self._get(f"fc.nesting_classifier_{head}.{part}") for part in ("weight", "bias"))
        # The rows of the transposed matrix that a dim takes are its first ones: a part of the same file.
        rows = weight.t() if shape.heads is not Heads.SHARED else weight.t()[:dim]
        return torch.matmul(feature, rows) + bias

    def _get(self, name: str) -> Tensor:
        known: Any = self.backbone[self._names[name]]
        return known  # type: ignore[no-any-return]


def fold_norms(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renamed weights in float32, each norm multiplied into the convolution before it, which gets a bias.

    A norm gives (x - mean) / sqrt(variance + epsilon) * weight + bias of each channel (Ioffe and Szegedy 2015, algorithm
    1, with its running statistics); worked out in float64, and rounded once.
    """
    found = {name: tensor.float() for name, tensor in weights.items() if name.startswith("fc.") or "blur" in name}
    for name in weights:
        if not (match := _NORM.fullmatch(name)):
            continue
        norm = {part: weights[f"{match[1]}.{part}"].double() for part in NORM_PARTS}
        conv = match[1].replace("bn", "conv") if "bn" in match[1] else match[1].removesuffix("1") + "0"
        kernel = next(known for known in (f"{conv}.conv.weight", f"{conv}.weight") if known in weights)
        factor = norm["weight"] / (norm["running_var"] + BATCH_NORM_EPSILON).sqrt()
        found[kernel] = (weights[kernel].double() * factor[:, None, None, None]).float()
        found[f"{conv}.bias"] = (norm["bias"] - norm["running_mean"] * factor).float()
    return found


def check_weights(weights: Mapping[str, Tensor], shape: Shape, source: str) -> None:
    """Refuse weights of which a part is missing.

    Raises:
        ParentError: naming it.
    """
    blocks = [f"layer{stage}.{place}" for stage, count in enumerate(shape.stages, 1) for place in range(count)]
    pairs = [("conv1", "bn1"), *((f"{block}.conv{n}", f"{block}.bn{n}") for block in blocks for n in (1, 2, 3))]
    pairs += [(name.removesuffix("1.weight") + "0", name.removesuffix(".weight")) for name in weights
              if name.endswith("downsample.1.weight")]  # fmt: skip
    for conv, norm in pairs:
        if f"{conv}.weight" not in weights and f"{conv}.conv.weight" not in weights:
            raise ParentError(f"{source} has no weights for {conv}")
        for part in NORM_PARTS:
            _take(weights, f"{norm}.{part}", source)
    for index in range(len(shape.dims)):
        _take(weights, f"fc.nesting_classifier_{index}.bias", source)


def _take(weights: Mapping[str, Tensor], name: str, source: str) -> Tensor:
    if name not in weights:
        raise ParentError(f"{source} has no weights for {name}")
    return weights[name]
