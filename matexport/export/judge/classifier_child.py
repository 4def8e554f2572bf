"""The judge of a classifier on a ResNet: the textbook, in torch's functions, on image files. Run as a script.

It shares no code with matexport and imports nothing of it (a test reads its imports). The network is written down as
torchvision's ResNet has it, BlurPool as MRL's code puts it before strided convolutions, and the heads as MRL has them:
head i on the leading coordinates; one shared head, the leading columns of its weights and all of its bias.

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


class ResNetJudge:
    """A checkpoint's weights, by the names that they have in it."""

    def __init__(self, request: dict[str, Any]) -> None:
        import safetensors.torch
        import torch

        file = Path(request["weights"])
        if file.suffix == ".safetensors":
            weights = safetensors.torch.load_file(file)
        else:
            weights = torch.load(file, map_location="cpu", weights_only=True)
            weights = weights.get("state_dict", weights) if isinstance(weights, dict) else weights
        self.w = {name[7:] if name.startswith("module.") else name: value.float() for name, value in weights.items()}
        self.folder = file.parent
        self.name = f"torch {torch.__version__} ResNet"

    def prepare(self, file: str) -> Any:
        """(1, 3, H, W): by the folder's own processor, or as MRL's inference prepares ImageNet."""
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
            return processor(images=image, return_tensors="pt")["pixel_values"].float()
        short, long = sorted(image.size)
        sides = tuple(256 if side == short else int(256 * long / short) for side in image.size)
        levels = np.asarray(image.resize(sides, 2), np.float32)
        top, left = ((side - 224) // 2 for side in levels.shape[:2])
        levels = levels[top : top + 224, left : left + 224].transpose(2, 0, 1) / np.float32(255)
        mean, std = (
            np.array(part, np.float32)[:, None, None] for part in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        )
        return torch.from_numpy(((levels - mean) / std)[None])

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

    def classify(self, feature: Any, dim: int) -> Any:
        """(1, W) -> (1, classes)."""
        heads = [name[:-7] for name in self.w if name.startswith("fc.") and name.endswith("weight")]
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
                prepared = self.prepare(file)
                feature = self.compute_feature(prepared)
                for dim, found in logits.items():
                    found.append(self.classify(feature, dim)[0].numpy())
                pixels.append(prepared[0].numpy())
                features.append(feature[0].numpy())
        return {"pixels": np.stack(pixels), "features": np.stack(features)} | {
            f"logits_{dim}": np.stack(found) for dim, found in logits.items()
        }


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
                judge = ResNetJudge(request)
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
