"""The judge of checkpoints without a configuration: the textbook, in torch's functions, on image files. A script.

It shares no code with matexport and imports nothing of it (a test reads its imports). The network is written down as
torchvision's ResNet has it, BlurPool as MRL's code puts it before strided convolutions, and the heads as MRL has them:
head i on the leading coordinates; one shared head, the leading columns of its weights and all of its bias. Franca's ViT
is written down as its code has it, one image at a time; a ViT by timm's names has the same, and heads of MRL.

One request per line of standard input, as JSON; one answer per line of standard output. Arrays go through files.
The process ends when its standard input does.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

#: What (1 + patches, W) states become.
POOLINGS: dict[str, Any] = {
    "cls": lambda states: states[0],
    "mean": lambda states: states[1:].mean(dim=0),
    "patches": lambda states: states[1:],
}


def tell_layout() -> dict[str, str]:
    """What transformers 4 is told, which else guesses by their lengths what axes of a picture are: of 1 x 1, too."""
    import transformers

    return {} if int(transformers.__version__.partition(".")[0]) >= 5 else {"input_data_format": "channels_last"}


def choose_sizes(processor: Any, side: int | None) -> dict[str, Any]:
    """What a processor is told so that it makes images of side x side: what it resizes to first is in proportion."""
    if side is None:
        return {}
    told = processor.to_dict()
    if not told.get("do_center_crop"):
        return {"size": {"height": side, "width": side}}
    crop = told["crop_size"]["height"]
    size = {key: (2 * value * side // crop + 1) // 2 for key, value in told["size"].items() if value}
    return {"size": size, "crop_size": {"height": side, "width": side}}


class Checkpoint:
    """A checkpoint's weights, by the names that they have in it.

    Attributes:
        filter: Pillow's number of the filter that images are resized with where the folder has no processor.
    """

    filter = 2

    def __init__(self, request: dict[str, Any]) -> None:
        import safetensors.torch
        import torch

        file = Path(request["weights"])
        if file.suffix == ".safetensors":
            weights = safetensors.torch.load_file(file)
        else:
            weights = torch.load(file, map_location="cpu", weights_only=True)
            for key in ("state_dict", "model", "teacher"):
                weights = weights[key] if isinstance(weights.get(key), dict) else weights
        self.w = {name: value.float() for name, value in weights.items()}
        for prefix in ("teacher.", "backbone.", "module."):
            self.w = {name.removeprefix(prefix): value for name, value in self.w.items()}
        self.folder = file.parent
        self.name = f"torch {torch.__version__} {type(self).__name__.removesuffix('Judge')}"

    def prepare(self, file: str, asked: int | None) -> Any:
        """(1, 3, H, W): by the folder's own processor, or as MRL's inference prepares ImageNet.

        Args:
            asked: height and width, where they are not its own; what is resized to before the crop is in proportion.
        """
        import torch
        from transformers.image_utils import load_image

        image = load_image(file)
        if (self.folder / "preprocessor_config.json").is_file():
            import transformers

            opener: Any = transformers.AutoImageProcessor
            try:
                processor = opener.from_pretrained(self.folder, backend="pil", local_files_only=True)
            except (TypeError, ValueError, ImportError):
                processor = opener.from_pretrained(self.folder, use_fast=False, local_files_only=True)
            sizes = choose_sizes(processor, asked)
            return processor(images=image, return_tensors="pt", **sizes, **tell_layout())["pixel_values"].float()
        crop = asked or 224
        edge = (2 * 256 * crop // 224 + 1) // 2
        short, long = sorted(image.size)
        sides = tuple(edge if side == short else int(edge * long / short) for side in image.size)
        levels = np.asarray(image.resize(sides, self.filter), np.float32)
        top, left = ((side - crop) // 2 for side in levels.shape[:2])
        levels = levels[top : top + crop, left : left + crop].transpose(2, 0, 1) / np.float32(255)
        mean, std = (
            np.array(part, np.float32)[:, None, None] for part in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        )
        return torch.from_numpy(((levels - mean) / std)[None])


class ClassifierJudge(Checkpoint):
    """Heads of MRL on what `compute_feature` gives.

    Attributes:
        attribute: what the network calls its heads.
    """

    attribute = ""

    compute_feature: Any  #: (1, 3, H, W) -> (1, W)

    def classify(self, feature: Any, dim: int) -> Any:
        """(1, W) -> (1, classes)."""
        heads = [name[:-7] for name in self.w if name.startswith(f"{self.attribute}.") and name.endswith("weight")]
        fitting = (head for head in heads if self.w[f"{head}.weight"].shape[1] == dim)
        head = next(fitting) if len(heads) > 1 else heads[0]
        return feature[:, :dim] @ self.w[f"{head}.weight"][:, :dim].T + self.w[f"{head}.bias"]

    def read(self, request: dict[str, Any]) -> dict[str, np.ndarray]:
        """``pixels`` (n, 3, H, W), ``features`` (n, W), and for each dim ``logits_m`` (n, classes), of each alone."""
        import torch

        pixels, features = [], []
        logits: dict[int, list[Any]] = {dim: [] for dim in request["dims"]}
        with torch.no_grad():
            for file in request["files"]:
                prepared = self.prepare(file, request["image_size"])
                feature = self.compute_feature(prepared)
                for dim, found in logits.items():
                    found.append(self.classify(feature, dim)[0].numpy())
                pixels.append(prepared[0].numpy())
                features.append(feature[0].numpy())
        return {"pixels": np.stack(pixels), "features": np.stack(features)} | {
            f"logits_{dim}": np.stack(found) for dim, found in logits.items()
        }


class ResNetJudge(ClassifierJudge):
    """torchvision's ResNet."""

    attribute = "fc"

    def convolve(self, name: str, x: Any, stride: int, padding: int) -> Any:
        from torch.nn.functional import conv2d

        if f"{name}.conv.weight" in self.w:
            kernel = self.w[f"{name}.blur_filter"]
            x = conv2d(x, kernel, stride=1, padding=1, groups=x.shape[1])
            return conv2d(x, self.w[f"{name}.conv.weight"], stride=stride, padding=padding)
        return conv2d(x, self.w[f"{name}.weight"], stride=stride, padding=padding)

    def normalize(self, name: str, x: Any) -> Any:
        mean, variance, weight, bias = (
            self.w[f"{name}.{part}"][None, :, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    def compute_feature(self, x: Any) -> Any:
        """(1, 3, H, W) -> (1, W): the mean over all places."""
        from torch.nn.functional import max_pool2d

        x = max_pool2d(self.normalize("bn1", self.convolve("conv1", x, 2, 3)).relu(), 3, stride=2, padding=1)
        stage = 1
        while f"layer{stage}.0.bn1.weight" in self.w:
            block = 0
            while f"layer{stage}.{block}.bn1.weight" in self.w:
                name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
                y = self.normalize(f"{name}.bn1", self.convolve(f"{name}.conv1", x, 1, 0)).relu()
                y = self.normalize(f"{name}.bn2", self.convolve(f"{name}.conv2", y, stride, 1)).relu()
                y = self.normalize(f"{name}.bn3", self.convolve(f"{name}.conv3", y, 1, 0))
                if f"{name}.downsample.1.weight" in self.w:
                    x = self.normalize(f"{name}.downsample.1", self.convolve(f"{name}.downsample.0", x, stride, 0))
                x = (x + y).relu()
                block += 1
            stage += 1
        return x.mean(dim=(2, 3))


class FrancaJudge(Checkpoint):
    """Franca's ViT: blocks in chunks are found by their last number."""

    filter = 3

    def __init__(self, request: dict[str, Any]) -> None:
        super().__init__(request)
        self.blocks: dict[int, dict[str, Any]] = {}
        for name, value in self.w.items():
            parts = name.split(".")
            if parts[0] == "blocks":
                place = 2 if parts[2].isdigit() else 1
                self.blocks.setdefault(int(parts[place]), {})[".".join(parts[place + 1 :])] = value

    def embed(self, pixels: Any) -> Any:
        """(1, 3, H, W) -> (T, W): patches, the class token before them, positions added."""
        import torch
        from torch.nn.functional import conv2d, interpolate

        kernel = self.w["patch_embed.proj.weight"]
        grid = conv2d(pixels, kernel, self.w["patch_embed.proj.bias"], stride=kernel.shape[-1])[0]
        high, wide = grid.shape[1:]
        table = self.w["pos_embed"][0]
        side = round((len(table) - 1) ** 0.5)
        places = table[1:]
        if (high, wide) != (side, side):
            square = places.T.reshape(1, -1, side, side)
            factors = ((high + 0.1) / side, (wide + 0.1) / side)
            places = interpolate(square, scale_factor=factors, mode="bicubic")[0].flatten(1).T
        first = self.w["cls_token"][0, 0] + table[0]
        return torch.cat([first[None], grid.flatten(1).T + places])

    def norm(self, x: Any, weights: dict[str, Any], name: str) -> Any:
        centred = x - x.mean(dim=-1, keepdim=True)
        scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def run_block(self, x: Any, w: dict[str, Any]) -> Any:
        import torch
        from torch.nn.functional import gelu, silu

        width = x.shape[1]
        heads = max(1, width // 64)
        joint = self.norm(x, w, "norm1") @ w["attn.qkv.weight"].T + w["attn.qkv.bias"]
        query, key, value = joint.chunk(3, dim=1)
        found = []
        for part in torch.arange(width).chunk(heads):
            scores = query[:, part] @ key[:, part].T / (width // heads) ** 0.5
            found.append(scores.softmax(dim=1) @ value[:, part])
        one = torch.ones(width)
        x = x + w.get("ls1.gamma", one) * (torch.cat(found, dim=1) @ w["attn.proj.weight"].T + w["attn.proj.bias"])
        y = self.norm(x, w, "norm2")
        if "mlp.w12.weight" in w:
            gate, up = (y @ w["mlp.w12.weight"].T + w["mlp.w12.bias"]).chunk(2, dim=1)
            y = (silu(gate) * up) @ w["mlp.w3.weight"].T + w["mlp.w3.bias"]
        else:
            y = gelu(y @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"]) @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"]
        return x + w.get("ls2.gamma", one) * y

    def read(self, request: dict[str, Any]) -> dict[str, np.ndarray]:
        """``pixels`` (n, 3, H, W), and for each depth ``layers_k`` (n, W), or (n, patches, W): of each file alone."""
        import torch

        pixels: list[Any] = []
        rows: dict[int, list[Any]] = {depth: [] for depth in request["depths"]}
        with torch.no_grad():
            for file in request["files"]:
                prepared = self.prepare(file, request["image_size"])
                states = [self.embed(prepared)]
                for index in range(len(self.blocks)):
                    states.append(self.run_block(states[-1], self.blocks[index]))
                for depth, found in rows.items():
                    raw = request["drops"] and depth < len(self.blocks)
                    normed = states[depth] if raw else self.norm(states[depth], self.w, "norm")
                    found.append(POOLINGS[request["pooling"]](normed).numpy())
                pixels.append(prepared[0].numpy())
        return {"pixels": np.stack(pixels)} | {f"layers_{depth}": np.stack(found) for depth, found in rows.items()}


class ViTJudge(ClassifierJudge, FrancaJudge):
    """A ViT by timm's names: the class token behind the last norm."""

    attribute = "head"
    filter = 2

    def compute_feature(self, x: Any) -> Any:
        """(1, 3, H, W) -> (1, W)."""
        state = self.embed(x)
        for index in range(len(self.blocks)):
            state = self.run_block(state, self.blocks[index])
        return self.norm(state[:1], self.w, "norm")


def read_requests() -> Iterator[str]:
    """The lines of standard input, which a thread reads from now on, so that its end is seen whatever goes on here."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return iter(lines.get, None)


def main() -> int:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # what libraries print goes with the rest of what they say
    warnings.simplefilter("ignore")
    requests = read_requests()
    import torch  # noqa: F401 - before the first request: it takes longest

    judge: Any = None
    for line in requests:
        request = json.loads(line)
        try:
            if request["do"] == "open":
                of_vit = ViTJudge if request.get("heads") else FrancaJudge
                judge = (of_vit if "pos_embed" in Checkpoint(request).w else ResNetJudge)(request)
                said = {"judge": judge.name}
            elif request["do"] == "close":
                judge, said = None, {}
            else:
                np.savez(request["out"], **judge.read(request))
                said = {"judge": judge.name}
        except Exception as error:
            why = " ".join(str(error).split())[:400] or "no message"
            said = {"error": f"{type(error).__name__}: {why}"}
        answers.write(json.dumps(said) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
