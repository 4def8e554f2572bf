"""M3 end to end: the tokens that a language model is fed, against an oracle of its own, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from conftest import make_once
from memory import trace_once
from msgspec.structs import replace
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from vision import stir

import matexport
from matexport.errors import ParentError, ParityError, RequestError
from matexport.export import export_family, pipeline
from matexport.export.kinds.probes import image as image_probes
from matexport.export.kinds.probes.several import thin_out
from matexport.export.parents.vision import llava
from matexport.family.manifest import load_family
from matexport.spec.inputs import ImageFacts, Resampling
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.profile import Encoding, Point, Precision
from matexport.spec.readout import PoolingMode, ReadoutRequest

pytestmark = pytest.mark.usefixtures("quick_traces")

SIDE, PATCH, BLOCKS, WIDTH, OUT = 48, 4, 4, 32, 40
SCALES = (1, 9, 36, 144)
POINTS = tuple(Point(BLOCKS - 1, OUT, count) for count in SCALES)


def make_llava(folder: Path) -> Path:
    """A LLaVA whose language model is one block, its scales in its configuration as M3's checkpoints have them."""
    torch.manual_seed(3)
    vision = hf.CLIPVisionConfig(
        hidden_size=WIDTH, num_hidden_layers=BLOCKS, num_attention_heads=4, intermediate_size=48, image_size=SIDE,
        patch_size=PATCH, projection_dim=24,
    )  # fmt: skip
    text = hf.LlamaConfig(
        hidden_size=OUT, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, vocab_size=64
    )
    model = hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(vision_config=vision, text_config=text, vision_feature_layer=-2)
    ).eval()
    stir(model)
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {llava.SCALES: list(SCALES)}))
    processor = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": SIDE}, "resample": 3,
                 "crop_size": {"height": SIDE, "width": SIDE}}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture(scope="session")
def parent(shared: Path) -> Path:
    folder = shared / "llava"
    return make_once(folder, lambda: make_llava(folder))


@pytest.fixture(scope="session")
def probes(shared: Path) -> Path:
    def make() -> None:
        folder.mkdir()
        for probe in image_probes.draw_probes()[:5]:
            (folder / probe.name).write_bytes(probe.content)

    folder = shared / "token-probes"
    return make_once(folder, make)


def make_job(parent: Path, probes: Path, **changes: Any) -> ExportJob:
    return replace(ExportJob(ParentSource(str(parent), kind="visual-tokens"), POINTS, probes=probes), **changes)


@pytest.fixture(scope="session")
def family(parent: Path, probes: Path, shared: Path) -> Path:
    def make() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline, "trace_exits", trace_once)
            export_family(make_job(parent, probes, precisions=(Precision.FP32, Precision.INT8)), folder)

    folder = shared / "family-llava"
    return make_once(folder, make)


def ask_oracle(parent: Path, file: Path, count: int, *, layer: int = -2, first: bool = False) -> NDArray[np.float32]:
    """(count, OUT): the whole model's own `get_image_features`, then the mean of squares of patches.

    Args:
        first: average before the projector, which is another function.
    """
    model = hf.LlavaForConditionalGeneration.from_pretrained(parent).eval().model
    processor = hf.AutoImageProcessor.from_pretrained(parent, use_fast=False)
    pixels = processor(images=Image.open(file).convert("RGB"), return_tensors="pt")["pixel_values"]

    def average(tokens: NDArray[np.float32]) -> NDArray[np.float32]:
        grid, step = round(len(tokens) ** 0.5), round((len(tokens) / count) ** 0.5)
        rows = tokens.reshape(grid, grid, -1)
        squares = [rows[top : top + step, left : left + step].reshape(step * step, -1).mean(0)
                   for top in range(0, grid, step) for left in range(0, grid, step)]  # fmt: skip
        return np.stack(squares)

    with torch.no_grad():
        states = model.vision_tower(pixels, output_hidden_states=True).hidden_states[layer][:, 1:]
        if first:
            return model.multi_modal_projector(torch.from_numpy(average(states[0].numpy()))).numpy()  # type: ignore[no-any-return]
        found = model.get_image_features(pixel_values=pixels, vision_feature_layer=layer)
        whole = getattr(found, "pooler_output", found)
        return average(np.asarray(whole[0].reshape(-1, OUT)))


@pytest.mark.parametrize("count", SCALES)
def test_tokens_are_those_of_the_oracle(count: int, family: Path, parent: Path, tmp_path: Path) -> None:
    files = []
    for index in range(2):
        files.append(tmp_path / f"{index}.png")
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (60, 70 - 20 * index, 3), np.uint8)).save(
            files[-1]
        )
    with matexport.Embedder(family, f"L03-D040-T{count:03d}-fp32") as embedder:
        found = embedder.embed(files)
        assert found.shape == (2, count, OUT)
        assert next(iter(embedder.embed_iter(files))).shape == (count, OUT)
    for row, file in zip(found, files, strict=True):
        expected = ask_oracle(parent, file, count)
        np.testing.assert_allclose(row, expected, atol=2e-5 * max(1.0, np.abs(expected).max()))
        assert np.abs(row - ask_oracle(parent, file, count, layer=-1)).max() > 1e-2
        if count < max(SCALES):
            assert np.abs(row - ask_oracle(parent, file, count, first=True)).max() > 1e-2


def test_images_may_be_squared_and_prepared_in_the_graph(parent: Path, probes: Path, tmp_path: Path) -> None:
    """Held to what transformers' own processor and model make of the files, of which none is a square."""
    padding = Path(shutil.copytree(parent, tmp_path / "padding"))
    path = padding / "preprocessor_config.json"
    said = json.loads(path.read_text()) | {"image_processor_type": "LlavaImageProcessor", "do_pad": True}
    path.write_text(json.dumps(said))
    job = make_job(padding, probes, points=(Point(3, OUT, 9),), preprocess_in_graph=True)
    exported = export_family(job, tmp_path / "family")
    assert exported.verification.passed
    image = exported.family.facts.image
    assert image is not None
    assert image.in_graph
    assert image.square == (122, 116, 104)


def test_it_ships_the_blocks_that_run_and_one_weights_file(family: Path) -> None:
    facts = load_family(family).facts
    assert (facts.parent.blocks, facts.parent.output_width, facts.output) == (BLOCKS - 1, OUT, "visual_tokens")
    names = load_names(family / "weights.fp32.safetensors")
    assert any(".2." in name for name in names)
    assert not any(f".{BLOCKS - 1}." in name or "post_layernorm" in name for name in names)
    assert len({profile.weights_prefix_bytes for name, profile in facts.profiles.items() if "fp32" in name}) == 1
    assert matexport.verify_family(family).passed


def load_names(path: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(path, "np") as opened:
        return list(opened.keys())


def test_there_is_room_for_the_tokens_of_some_probes() -> None:
    """At LLaVA's own size, 4096 coordinates and five scales: every fifth of 26, from the first on."""
    probes = image_probes.draw_probes()
    points = [Point(23, 4096, count) for count in (1, 9, 36, 144, 576)]
    facts = ImageFacts("pixels", 336, 336, (336,), Resampling.BICUBIC, 1 / 255, (0, 0, 0), (1, 1, 1))
    chosen = thin_out(probes, points, facts)
    assert [probes.index(probe) for probe in chosen] == [0, 5, 10, 15, 20]
    assert thin_out(probes, [Point(3, OUT, 9)], facts) == probes
    assert len(thin_out(probes, points * 3, facts)) == 4
    with pytest.raises(RequestError, match=r"25 points were asked, .* 62750720 bytes for each probe; .* holds up to"):
        thin_out(probes, points * 5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"points": (Point(3, OUT, 16),)}, "tokens=16 was asked; .* was trained at 1, 9, 36, 144"),
        ({"points": (Point(3, OUT, 100),)}, r"tokens=100 was asked; .* has 12 x 12 patches, .*: 1, 4, 9, 16, 36, 144"),
        ({"points": (Point(3, OUT, 8),)}, "tokens=8 was asked; .* equal squares"),
        ({"points": (Point(4, OUT, 9),)}, r"layers=4 was asked; .* after block 3 of 4: ask for layers = \[3\]"),
        ({"points": (Point(3, 8, 9),)}, r"dim=8 was asked; .* have 40 coordinates"),
        ({"points": (Point(3, OUT),)}, "tokens were not said"),
        ({"readout": ReadoutRequest(pooling=PoolingMode.MEAN)}, "gives visual tokens: leave them out"),
        ({"readout": ReadoutRequest(features=True)}, "features = true was asked"),
        ({"readout": ReadoutRequest(image_size=24)}, "image_size=24 was asked; .* its own size gives"),
        ({"encodings": (Encoding.UBINARY,)}, "visual tokens are given as float32"),
    ],
)
def test_what_a_job_cannot_ask(
    changes: Mapping[str, Any], words: str, parent: Path, probes: Path, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=words):
        export_family(make_job(parent, probes, **changes), tmp_path / "family")


def test_the_original_names_of_weights_are_read(family: Path, parent: Path, probes: Path, tmp_path: Path) -> None:
    """As the code of LLaVA and M3 saves them."""
    folder = Path(shutil.copytree(parent, tmp_path / "original"))
    weights = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if "language_model" in name or "lm_head" in name:
            continue
        name = name.removeprefix("model.")
        for ours, theirs in (("multi_modal_projector.linear_1", "model.mm_projector.0"),
                             ("multi_modal_projector.linear_2", "model.mm_projector.2")):  # fmt: skip
            name = name.replace(ours, theirs)
        tail = name.partition("vision_tower.")[2].removeprefix("vision_model.")
        weights[f"model.vision_tower.vision_tower.vision_model.{tail}" if tail else name] = tensor
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    exported = export_family(make_job(folder, probes), tmp_path / "family")
    other = (tmp_path / "family" / "weights.fp32.safetensors").read_bytes()
    assert exported.verification.passed
    assert other == (family / "weights.fp32.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vision_feature_select_strategy": "full"}, "keeps the class token"),
        ({"vision_feature_layer": [-2, -3]}, "reads its tower at"),
        ({llava.SCALES: "many"}, "is no list of numbers"),
        ({"model_type": "clip", "architectures": None}, "is a 'clip'; folders of 'llava' and 'llava_next' are read"),
    ],
)
def test_a_configuration_that_is_not_m3s(
    changes: Mapping[str, Any], words: str, parent: Path, probes: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(parent, tmp_path / "other"))
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ParentError, match=words):
        export_family(make_job(folder, probes), tmp_path / "family")


EXITS = llava.TokenExits


def average_first(parent: Any, counts: Any) -> Callable[..., Any]:
    class Wrong(EXITS):
        def read(self, pixels: torch.Tensor) -> Any:
            states = self.backbone(pixel_values=pixels, output_hidden_states=True).hidden_states
            tokens = [llava.average_squares(states[-1][:, 1:], count) for count in self._counts]
            return tuple(self.heads(token) for token in tokens), tuple(states)

    return Wrong(parent, counts)


def average_with_the_class_token(parent: Any, counts: Any) -> Callable[..., Any]:
    class Wrong(EXITS):
        def read(self, pixels: torch.Tensor) -> Any:
            states = self.backbone(pixel_values=pixels, output_hidden_states=True).hidden_states
            tokens = self.heads(states[-1][:, :-1])
            return tuple(llava.average_squares(tokens, count) for count in self._counts), tuple(states)

    return Wrong(parent, counts)


@pytest.mark.parametrize("wrong", [average_first, average_with_the_class_token])
def test_a_wrong_order_is_refused(
    wrong: Any, parent: Path, probes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llava, "TokenExits", wrong)
    with pytest.raises(ParityError, match=r"read-out: in torch, L03-D040-T... is not the parent's"):
        export_family(make_job(parent, probes), tmp_path / "family")
