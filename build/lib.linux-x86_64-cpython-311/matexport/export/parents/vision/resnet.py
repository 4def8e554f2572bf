"""Classifiers on ResNets of bottleneck blocks, as MRL trains them: what their weights say, and what is traced.

`MRL.py` and `utils.py` of MRL's code; the heads are `heads`'. The backbone is torchvision's ResNet (its stride in the
3 x 3 convolution), in which BlurPool may stand before strided ones. Everything is read off the names and shapes of the
weights: checkpoints have no configuration.

For a dim m the last block's last convolution and the sum behind it are computed for the first m channels alone: nothing
else reads the others. All dims share the weights, of which each takes the leading rows.

Every norm is folded into the convolution before it (`fold_norms`): what is traced has none, and what a precision rounds
is what is multiplied.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from matexport.errors import ParentError
from matexport.export.parents.vision.heads import Shape, classify, read_heads, rename_heads

_CONV = re.compile(r"layer(\d+)\.(\d+)\.conv1\.(?:conv\.)?weight")
_NORM = re.compile(r"((?:layer\d+\.\d+\.)?(?:bn\d|downsample\.1))\.running_mean")
NORM_PARTS = ("weight", "bias", "running_mean", "running_var")

#: All that such a network has, its heads renamed.
_KNOWN = re.compile(
    r"fc\.nesting_classifier_\d+\.(weight|bias)"
    r"|(conv1|layer\d+\.\d+\.(conv[123]|downsample\.0))\.((conv\.)?weight|blur_filter)"
    r"|(bn1|layer\d+\.\d+\.(bn[123]|downsample\.1))\.(weight|bias|running_mean|running_var|num_batches_tracked)"
)

#: Torch's own for norms in these networks.
BATCH_NORM_EPSILON = 1e-5


def read_classifier(weights: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], Shape]:
    """Weights under the names of today's code, without DDP's prefix, and what they say.

    Raises:
        ParentError: they are not of a ResNet with bottleneck blocks, contradict each other, or lack a part.
    """
    found = rename_heads(weights, "fc")
    if "conv1.weight" not in found or not any(_CONV.fullmatch(name) for name in found):
        raise ParentError(
            f"{source} holds no weights of a ResNet with bottleneck blocks (conv1.weight, layer1.0.conv1.weight, ...)"
            ", nor of a ViT by timm's names (cls_token, blocks.0.attn.qkv.weight, ...)"
        )
    stages = count_blocks(found, source)
    _check_weights(found, stages, source)
    blocks, width = sum(stages), len(found[f"layer{len(stages)}.{stages[-1] - 1}.bn3.weight"])
    return found, read_heads(found, f"ResNet-{3 * blocks + 2}", blocks, width, source)


def count_blocks(weights: Mapping[str, Tensor], source: str) -> tuple[int, ...]:
    """How many blocks each stage has.

    Raises:
        ParentError: one is missing between others.
    """
    blocks: dict[int, set[int]] = {}
    for name in weights:
        if match := _CONV.fullmatch(name):
            blocks.setdefault(int(match[1]), set()).add(int(match[2]))
    if sorted(blocks) != [*range(1, len(blocks) + 1)] or any(
        found != {*range(len(found))} for found in blocks.values()
    ):
        raise ParentError(f"{source}: blocks are missing among its weights")
    return tuple(len(blocks[stage]) for stage in sorted(blocks))


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
        self._stages = count_blocks(weights, "")
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
        for stage, count in enumerate(self._stages, 1):
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
        return classify(feature, dim, self._shape, self._get)

    def _get(self, name: str) -> Tensor:
        known: Any = self.backbone[self._names[name]]
        return known  # type: ignore[no-any-return]


def fold_norms(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renamed weights in float32, each norm multiplied into the convolution before it, which gets a bias.

    A norm gives (x - mean) / sqrt(variance + epsilon) * weight + bias of each channel, by its running statistics (Ioffe
    and Szegedy 2015, algorithm 2); worked out in float64, and rounded once.
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


def _check_weights(weights: Mapping[str, Tensor], stages: Sequence[int], source: str) -> None:
    """Refuse weights of which a part is missing, and what a plain ResNet does not have.

    Raises:
        ParentError: naming it.
    """
    if other := sorted(name for name in weights if not _KNOWN.fullmatch(name)):
        raise ParentError(
            f"{source} holds {other[0]}, which is no weight of a plain ResNet with heads of MRL, and would be read by "
            "nobody"
        )
    blocks = [f"layer{stage}.{place}" for stage, count in enumerate(stages, 1) for place in range(count)]
    pairs = [("conv1", "bn1"), *((f"{block}.conv{n}", f"{block}.bn{n}") for block in blocks for n in (1, 2, 3))]
    pairs += [(name.removesuffix("1.weight") + "0", name.removesuffix(".weight")) for name in weights
              if name.endswith("downsample.1.weight")]  # fmt: skip
    for conv, norm in pairs:
        if f"{conv}.weight" not in weights and f"{conv}.conv.weight" not in weights:
            raise ParentError(f"{source} has no weights for {conv}")
        if lacking := [part for part in NORM_PARTS if f"{norm}.{part}" not in weights]:
            raise ParentError(f"{source} has no weights for {norm}.{lacking[0]}")
