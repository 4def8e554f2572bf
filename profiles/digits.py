"""A demo on real pixels without any download: train a small Matryoshka ViT on scikit-learn's digits, export, pick.

    pip install -c constraints.txt -e '.[demo,image,evaluate]'
    python profiles/digits.py

1,797 pictures of 8 x 8 grey levels (Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998), of
which 1,000 train and 497 test; 300 more are for choosing. The model is transformers' ViT with 4 blocks of width 64. At
every step the class token after 2, 3 and 4 blocks, through the final norm and cut to 4, 8, ... 64 dims, has to say the
digit, each by a linear head of its own, which is thrown away (MRL: Kusupati et al., NeurIPS 2022, equation 1, summed
over depths as well). Writes ``artifacts/digits-parent`` and ``artifacts/digits-images``, then runs the commands that a
user would: export, evaluate, bench, pick.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from transformers import ViTConfig, ViTModel

ROOT = Path(__file__).resolve().parent.parent
LAYERS, DIMS = (2, 3, 4), (4, 8, 16, 32, 64)
SPLITS = {"train": 1000, "val": 300, "test": 497}
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 16, "width": 16},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def write_images(folder: Path, seed: int = 0) -> dict[str, list[tuple[Path, int]]]:
    """The pictures as PNG files, ``SPLIT/DIGIT/NUMBER.png``; which is in which split depends on the seed alone."""
    pictures, labels = load_digits(return_X_y=True)
    levels = np.round(pictures.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    order, found, start = np.random.RandomState(seed).permutation(len(levels)), {}, 0
    for split, count in SPLITS.items():
        files = []
        for index in order[start : start + count]:
            path = folder / split / str(labels[index]) / f"{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(levels[index]).save(path)
            files.append((path, int(labels[index])))
        found[split], start = files, start + count
    return found


def load_pixels(files: list[tuple[Path, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, 3, 16, 16) float32 as the processor makes them, and the labels."""
    rows = []
    for path, _ in files:
        image = Image.open(path).convert("RGB").resize((16, 16), Image.Resampling.BICUBIC)
        rows.append((np.asarray(image, np.float32) / 255 - 0.5) / 0.5)
    pixels = torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).contiguous()
    return pixels, torch.tensor([label for _, label in files])


def train(pixels: torch.Tensor, labels: torch.Tensor, *, epochs: int, seed: int = 0) -> ViTModel:
    """A ViT that was trained at every pair of LAYERS and DIMS."""
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=128, image_size=16, patch_size=4
    )
    model = ViTModel(config, add_pooling_layer=False)
    heads = nn.ModuleDict({f"{layers}-{dim}": nn.Linear(dim, 10) for layers in LAYERS for dim in DIMS})
    steps = epochs * -(-len(labels) // 50)
    optimizer = torch.optim.AdamW([*model.parameters(), *heads.parameters()], lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(50):
            shifts = torch.randint(-2, 3, (2,)).tolist()
            states = model(torch.roll(pixels[batch], shifts, dims=(2, 3)), output_hidden_states=True).hidden_states
            loss = torch.zeros(())
            for layers in LAYERS:
                vector = model.layernorm(states[layers][:, 0])
                for dim in DIMS:
                    loss = loss + nn.functional.cross_entropy(heads[f"{layers}-{dim}"](vector[:, :dim]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def make_parent(artifacts: Path, *, epochs: int = 40) -> tuple[Path, Path]:
    """Write the pictures and a trained parent: (the parent's folder, the pictures')."""
    images, parent = artifacts / "digits-images", artifacts / "digits-parent"
    files = write_images(images)
    model = train(*load_pixels(files["train"]), epochs=epochs)
    model.save_pretrained(parent)
    (parent / "preprocessor_config.json").write_text(json.dumps(PROCESSOR, indent=1), encoding="utf-8")
    return parent, images


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--parent-only", action="store_true", help="train and write the parent, run no command")
    options = parser.parse_args()
    started = time.perf_counter()
    parent, images = make_parent(ROOT / "artifacts", epochs=options.epochs)
    print(f"{parent.relative_to(ROOT)}: trained in {time.perf_counter() - started:.0f} s", flush=True)
    family = ROOT / "artifacts" / "digits"
    commands = (
        ["export", str(ROOT / "profiles" / "digits.toml"), "--out", str(family), "--overwrite"],
        ["evaluate", str(family), "--labelled", str(images)],
        ["bench", str(family), "--runs", "20", "--threads", "1"],
        ["pick", str(family), "--min-retention", "0.98"],
    )
    for command in () if options.parent_only else commands:
        print(f"\n$ matexport {' '.join(command)}", flush=True)
        code = subprocess.run([sys.executable, "-m", "matexport", *command], check=False).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
