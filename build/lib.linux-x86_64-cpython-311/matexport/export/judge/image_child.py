"""The judge of a vision tower: what transformers' own processor and model make of image files. Run as a script.

It shares no code with matexport and imports nothing of it (a test reads its imports). A file is opened as transformers
opens one, prepared by the parent's own processor (the one on Pillow, which is what runs on a device), and run through
the parent's own model with all hidden states. What a state becomes is the textbook: the final norm over the full width,
then the pooling; at full depth, what the library itself gives is taken where it gives it.

One request per line of standard input, as JSON; one answer per line of standard output. Arrays go through files.
The process ends when its standard input does.
"""

from __future__ import annotations

import inspect
import json
import os
import queue
import sys
import threading
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

#: model_type -> its class, and where its final norm is.
MODELS = {
    "vit": ("ViTModel", "layernorm"),
    "dinov2": ("Dinov2Model", "layernorm"),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", "layernorm"),
    "dinov3_vit": ("DINOv3ViTModel", "norm"),
    "clip_vision_model": ("CLIPVisionModelWithProjection", "vision_model.post_layernorm"),
    "siglip_vision_model": ("SiglipVisionModel", "post_layernorm"),
}


def open_processor(folder: str) -> Any:
    """The parent's own processor, the one on Pillow."""
    import transformers

    opener: Any = transformers.AutoImageProcessor
    try:
        return opener.from_pretrained(folder, backend="pil", local_files_only=True)
    except (TypeError, ValueError, ImportError):  # transformers 4, or a processor that torchvision alone runs
        return opener.from_pretrained(folder, use_fast=False, local_files_only=True)


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


class TowerJudge:
    """transformers' model and image processor of a folder."""

    def __init__(self, request: dict[str, Any]) -> None:
        import torch
        import transformers

        folder, local = request["folder"], {"local_files_only": True}
        config = transformers.AutoConfig.from_pretrained(folder, **local)
        self.config = getattr(config, "vision_config", None) or config
        name, norm = MODELS[self.config.model_type]
        self.model = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32, **local).float().eval()
        self.norm = self.model.get_submodule(norm)
        self.processor = open_processor(folder)
        self.name = f"transformers {transformers.__version__} {name}"
        takes = "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters
        self.told = {"interpolate_pos_encoding": True} if takes else {}

    def read(self, request: dict[str, Any]) -> dict[str, np.ndarray]:
        """``pixels`` (n, 3, H, W), and for each depth ``layers_k`` (n, W), or (n, patches, W): of each file alone."""
        import torch
        from transformers.image_utils import load_image

        pixels: list[Any] = []
        rows: dict[int, list[Any]] = {depth: [] for depth in request["depths"]}
        sizes = choose_sizes(self.processor, request["image_size"])
        for file in request["files"]:
            told = {**sizes, **tell_layout()}
            prepared = self.processor(images=load_image(file), return_tensors="pt", **told)["pixel_values"].float()
            with torch.no_grad():
                output = self.model(pixel_values=prepared, output_hidden_states=True, return_dict=True, **self.told)
                for depth, vectors in rows.items():
                    vectors.append(self.pool(output, depth, request)[0].numpy())
            pixels.append(prepared[0].numpy())
        return {"pixels": np.stack(pixels)} | {f"layers_{depth}": np.stack(found) for depth, found in rows.items()}

    def pool(self, output: Any, depth: int, request: dict[str, Any]) -> Any:
        """(1, W): the vector after so many blocks; of patches (1, patches, W)."""
        kind, pooling = self.config.model_type, request["pooling"]
        whole = depth == len(output.hidden_states) - 1
        state = output.hidden_states[depth]
        if whole and pooling == "pooler":
            return output.image_embeds if kind == "clip_vision_model" else output.pooler_output
        if whole and kind != "clip_vision_model":
            normed = output.last_hidden_state
        else:
            normed = state if request["drops"] and not whole else self.norm(state)
        if pooling == "cls":
            return normed[:, 0]
        if pooling == "mean":
            return normed[:, self.count_prefix() :].mean(dim=1)
        if pooling == "patches":
            return normed[:, self.count_prefix() :]
        if kind == "clip_vision_model":
            return self.model.visual_projection(normed[:, 0])
        return self.model.head(normed) if kind == "siglip_vision_model" else self.model.pooler(normed)

    def count_prefix(self) -> int:
        """Tokens before the patches."""
        if self.config.model_type == "siglip_vision_model":
            return 0
        return 1 + int(getattr(self.config, "num_register_tokens", 0) or 0)


class TokenJudge:
    """CLIP's whole tower and the two layers of LLaVA's projector, their weights taken from the folder by name.

    Of LLaVA-NeXT the newline, too, and what merges tiles is transformers' own code; no language model is made.
    """

    def __init__(self, request: dict[str, Any]) -> None:
        import safetensors.torch
        import torch
        import transformers
        from transformers.activations import ACT2FN

        folder = request["folder"]
        config: Any = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        weights: dict[str, torch.Tensor] = {}
        for file in sorted(Path(folder).glob("*.safetensors")):
            weights |= {name: value.float() for name, value in safetensors.torch.load_file(file).items()}
        self.tower = transformers.CLIPVisionModel(config.vision_config).float().eval()
        of_tower = {name: value for name, value in weights.items() if "vision_tower" in name}
        known = {}
        for name in self.tower.state_dict():
            tail = "." + name.removeprefix("vision_model.")
            known[name] = next((value for key, value in of_tower.items() if key.endswith(tail)), None)
        unread = (f".{config.vision_config.num_hidden_layers - 1}.", "post_layernorm", "position_ids")
        lacking = [name for name, value in known.items() if value is None and not any(part in name for part in unread)]
        if lacking:
            raise ValueError(f"no weights for {lacking[0]}")
        self.tower.load_state_dict({name: value for name, value in known.items() if value is not None}, strict=False)
        projector = {name: value for name, value in weights.items() if "projector" in name}
        names = ("linear_1", "linear_2") if any("linear_1" in name for name in projector) else ("0", "2")
        self.layers = [
            tuple(next(value for name, value in projector.items() if name.endswith(f"{layer}.{part}"))
                  for part in ("weight", "bias"))
            for layer in names
        ]  # fmt: skip
        self.act = ACT2FN[config.projector_hidden_act]
        self.config, self.layer, self.next = config, config.vision_feature_layer, config.model_type == "llava_next"
        self.newline = next((value for name, value in weights.items() if name.endswith("image_newline")), None)
        if self.next and self.newline is None:
            raise ValueError("no weights for image_newline")
        self.processor = open_processor(folder)
        merged = ", LlavaNextModel.pack_image_features" if self.next else ""
        self.name = f"transformers {transformers.__version__} CLIPVisionModel and projector{merged}"

    def read(self, request: dict[str, Any]) -> dict[str, np.ndarray]:
        """Of each file alone: ``pixels`` (views of all files, 3, H, W) and ``views`` (n,), how many each has.

        For each count ``tokens_s``, (tokens of all files, W), and ``lengths_s``, (n,).
        """
        import torch
        from transformers.image_utils import load_image

        pixels: list[Any] = []
        rows: dict[int, list[Any]] = {count: [] for count in request["counts"]}
        for file in request["files"]:
            given = self.processor(images=load_image(file), return_tensors="pt", **tell_layout())
            prepared = given["pixel_values"].float()
            prepared = prepared[0] if prepared.ndim == 5 else prepared
            with torch.no_grad():
                tokens = self.project(prepared)
                for count, found in rows.items():
                    pooled = self.pool(tokens, count)
                    found.append(self.merge(pooled, given["image_sizes"]) if self.next else pooled[0])
            pixels.append(prepared.numpy())
        said = {"pixels": np.concatenate(pixels), "views": np.array([len(views) for views in pixels])}
        for count, found in rows.items():
            said[f"tokens_{count}"] = torch.cat(found).numpy()
            said[f"lengths_{count}"] = np.array([len(tokens) for tokens in found])
        return said

    def project(self, pixels: Any) -> Any:
        """(B, 3, H, W) -> (B, N, W): the patches' states after the configuration's block, through the projector."""
        from torch.nn.functional import linear

        states = self.tower(pixel_values=pixels, output_hidden_states=True).hidden_states[self.layer][:, 1:]
        (w1, b1), (w2, b2) = self.layers
        return linear(self.act(linear(states, w1, b1)), w2, b2)

    def pool(self, tokens: Any, count: int) -> Any:
        """(B, N, W) -> (B, count, W): the average of squares of patches."""
        from torch.nn.functional import avg_pool2d

        side = round(tokens.shape[1] ** 0.5)
        step = int((side * side / count) ** 0.5)
        grid = tokens.reshape(len(tokens), side, side, -1).permute(0, 3, 1, 2)
        return avg_pool2d(grid, kernel_size=step, stride=step).flatten(2).transpose(1, 2)

    def merge(self, pooled: Any, sizes: Any) -> Any:
        """(views, s, W) of one file -> (T, W): transformers' own merging, of a tower whose patches were larger."""
        from transformers.models.llava_next.modeling_llava_next import LlavaNextModel

        vision, side = self.config.vision_config, round(pooled.shape[1] ** 0.5)
        larger = types.SimpleNamespace(image_size=vision.image_size, patch_size=vision.image_size // side)
        config = types.SimpleNamespace(vision_config=larger, image_grid_pinpoints=self.config.image_grid_pinpoints)
        pack: Any = LlavaNextModel.pack_image_features
        (tokens,), _ = pack(types.SimpleNamespace(config=config), [pooled], sizes, "default", self.newline)
        return tokens


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
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    judge: Any = None
    for line in requests:
        request = json.loads(line)
        try:
            if request["do"] == "open":
                judge = (TokenJudge if request["tokens"] else TowerJudge)(request)
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
