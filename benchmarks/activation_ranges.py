"""What 8-bit activations cost all-MiniLM-L6-v2, by how their range is found. The weights stay float32, so nothing else
is in the number.

Every input of a linear layer in the blocks is rounded to 8 bits and back, in torch:

* per tensor: one least and one greatest value for the whole padded batch, as dynamic presets have it;
* per token, symmetric: one largest value per token;
* per token, asymmetric: a least and a greatest value per token, with a whole zero point;
* per token, Gelu bounded: symmetric, but Gelu's output (never below -0.17) around zero point 32, as matexport has it.

Each with and without smoothing (SmoothQuant's factors, strength 0.6, from the shipped calibration texts) of what
LayerNorm gives. Cosines to float32, on sentences of STS-B dev where they are there and on the shipped probes otherwise.
Held to nothing: it says why the int8 precision is as it is.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from common import STSB, Report, finish, locate_minilm, make_parser, say
from torch import Tensor, nn

from matexport.io.texts import load_probes, load_shipped_calibration

TEXTS, BATCH = 600, 32
STRENGTH = 0.6
GELU_ZERO = 32

Round = Callable[[Tensor, bool], Tensor]


def per_tensor(values: Tensor, _bounded: bool) -> Tensor:
    return round_between(values, values.min().clamp(max=0), values.max().clamp(min=0))


def per_token(values: Tensor, _bounded: bool) -> Tensor:
    scale = (values.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-12)
    return (values / scale).round().clamp(-127, 127) * scale


def per_token_asymmetric(values: Tensor, _bounded: bool) -> Tensor:
    return round_between(values, values.amin(-1, keepdim=True).clamp(max=0), values.amax(-1, keepdim=True).clamp(min=0))


def per_token_bounded(values: Tensor, bounded: bool) -> Tensor:
    if not bounded:
        return per_token(values, bounded)
    scale = torch.maximum(values.amax(-1, keepdim=True) / (255 - GELU_ZERO), -values.amin(-1, keepdim=True) / GELU_ZERO)
    scale = scale.clamp(min=1e-12)
    return ((values / scale).round() + GELU_ZERO).clamp(0, 255).sub(GELU_ZERO) * scale


def round_between(values: Tensor, least: Tensor, greatest: Tensor) -> Tensor:
    scale = ((greatest - least) / 255).clamp(min=1e-12)
    zero = (-least / scale).round()
    return ((values / scale).round() + zero).clamp(0, 255).sub(zero) * scale


WAYS: dict[str, Round] = {
    "per tensor": per_tensor,
    "per token, symmetric": per_token,
    "per token, asymmetric": per_token_asymmetric,
    "per token, Gelu bounded": per_token_bounded,
}


def main() -> int:
    parser = make_parser("activation_ranges", __doc__, repeats=1)
    parser.add_argument("--stsb", type=Path, default=STSB, help="folder with STS-B")
    options = parser.parse_args()
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(locate_minilm()), device="cpu")
    texts = read_texts(options.stsb)[: 64 if options.quick else TEXTS]
    expected = embed(model, texts)
    factors = find_factors(model)
    measured: dict[str, Any] = {}
    for name, way in WAYS.items():
        for smoothing in (None, factors):
            with rounded(model, way, smoothing):
                cosines = (embed(model, texts) * expected).sum(dim=1)
            row = {"cosine_mean": float(cosines.mean()), "cosine_min": float(cosines.min())}
            measured[f"{name}, {'smoothed' if smoothing else 'plain'}"] = row
            say(f"{name}, {'smoothed' if smoothing else 'plain'}: {row['cosine_mean']:.5f}, {row['cosine_min']:.5f}")
    settings = {"texts": len(texts), "from": "STS-B dev" if options.stsb.is_dir() else "probes", "batch": BATCH}
    return finish("activation_ranges", options, Report([], measured, settings))


def read_texts(stsb: Path) -> list[str]:
    """Different sentences, spread over the file."""
    if not stsb.is_dir():
        return [probe.text for probe in load_probes(None) if probe.text.strip()]
    with (stsb / "stsb-en-dev.csv").open(encoding="utf-8", newline="") as file:
        texts = list(dict.fromkeys(text for row in csv.reader(file) for text in row[:2]))
    return texts[:: max(1, len(texts) // TEXTS)]


@torch.inference_mode()
def embed(model: Any, texts: list[str]) -> Tensor:
    """(n, 384) of unit length, in batches in the order of the texts."""
    parts = [model(model.tokenize(texts[start : start + BATCH])) for start in range(0, len(texts), BATCH)]
    return nn.functional.normalize(torch.cat([part["sentence_embedding"] for part in parts]).double(), dim=1)


def list_products(model: Any) -> dict[str, nn.Linear]:
    """The linear layers of the blocks, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".encoder.layer." in name
    }


def is_behind_gelu(name: str) -> bool:
    return name.endswith("output.dense") and "attention" not in name


def is_behind_norm(name: str) -> bool:
    return name.endswith(("query", "key", "value", "intermediate.dense"))


def find_factors(model: Any) -> dict[str, Tensor]:
    """What LayerNorm's channels are divided by: max|x|^0.6 / max|w|^0.4 (SmoothQuant, equation 4)."""
    peaks: dict[str, Tensor] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen = inputs[0].abs().flatten(0, -2).amax(0)
            peaks[name] = torch.maximum(peaks.get(name, seen), seen)

        return hook

    products = {name: linear for name, linear in list_products(model).items() if is_behind_norm(name)}
    hooks = [linear.register_forward_pre_hook(note(name)) for name, linear in products.items()]
    for text in load_shipped_calibration():
        embed(model, [text])
    for hook in hooks:
        hook.remove()
    factors = {}
    for name, linear in products.items():
        weight = linear.weight.detach().abs().amax(0).clamp(min=1e-5)
        factors[name] = (peaks[name].clamp(min=1e-5) ** STRENGTH / weight ** (1 - STRENGTH)).clamp(min=1e-5)
    return factors


@contextmanager
def rounded(model: Any, way: Round, factors: dict[str, Tensor] | None) -> Iterator[None]:
    """The model with the inputs of its products rounded."""

    def make(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        factor = (factors or {}).get(name, torch.ones(()))

        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (way(inputs[0] / factor, is_behind_gelu(name)) * factor,)

        return hook

    hooks = [linear.register_forward_pre_hook(make(name)) for name, linear in list_products(model).items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


if __name__ == "__main__":
    sys.exit(main())
