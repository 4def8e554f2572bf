"""Franca's checkpoints end to end: against transformers' network of the same shape, with Franca's own positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from conftest import make_once
from msgspec.structs import replace
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from vision import save_images, stir

import matexport
from matexport.errors import ParentError, ParityError, RequestError
from matexport.export import export_family
from matexport.export.kinds.probes import image as image_probes
from matexport.export.parents.vision import franca
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.profile import Point, Precision
from matexport.spec.readout import PoolingMode, ReadoutRequest

pytestmark = pytest.mark.usefixtures("quick_traces")

#: A table of 8 x 8 positions for images of 4 x 4 patches; two heads of 64 as in all of Franca's sizes.
WIDTH, BLOCKS, SIDE, PATCH, NATIVE = 128, 3, 28, 7, 56
POINTS = tuple(Point(layers, dim) for layers in (1, 2, 3) for dim in (8, 128))


def make_reference() -> Any:
    """transformers' DINOv2 of that shape with a SwiGLU, everything that initialisation leaves alike drawn."""
    torch.manual_seed(5)
    config = hf.Dinov2Config(
        hidden_size=WIDTH, num_hidden_layers=BLOCKS, num_attention_heads=2, image_size=NATIVE, patch_size=PATCH,
        use_swiglu_ffn=True, layer_norm_eps=1e-6,
    )  # fmt: skip
    model = hf.Dinov2Model(config).eval()
    stir(model)
    with torch.no_grad():
        model.embeddings.position_embeddings.normal_(0, 0.5)
    return model


def spell(chunks: int = 0) -> dict[str, torch.Tensor]:
    """Its weights under Franca's names, in chunks or flat."""
    known, found = make_reference().state_dict(), {}
    names = {
        "embeddings.cls_token": "cls_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
        "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
        "layernorm.weight": "norm.weight",
        "layernorm.bias": "norm.bias",
    }
    for theirs, ours in names.items():
        found[ours] = known[theirs]
    found["mask_token"] = torch.zeros(1, WIDTH)
    for block in range(BLOCKS):
        own = f"encoder.layer.{block}"
        name = f"blocks.{block // 2}.{block}" if chunks else f"blocks.{block}"

        def take(part: str, own: str = own) -> torch.Tensor:
            return known[f"{own}.{part}"]

        for part in ("weight", "bias"):
            for norm in ("norm1", "norm2"):
                found[f"{name}.{norm}.{part}"] = take(f"{norm}.{part}")
            found[f"{name}.attn.qkv.{part}"] = torch.cat([take(f"attention.{one}_proj.{part}") for one in "qkv"])
            found[f"{name}.attn.proj.{part}"] = take(f"attention.o_proj.{part}")
            found[f"{name}.mlp.w12.{part}"] = torch.cat([take(f"mlp.{one}_proj.{part}") for one in ("gate", "up")])
            found[f"{name}.mlp.w3.{part}"] = take(f"mlp.down_proj.{part}")
        for scale in (1, 2):
            found[f"{name}.ls{scale}.gamma"] = take(f"layer_scale{scale}.lambda1")
    return found


def make_parent(folder: Path, *, chunks: int = 0, prefix: str = "", pickled: bool = False) -> Path:
    folder.mkdir(parents=True)
    weights = {f"{prefix}{name}": tensor.contiguous() for name, tensor in spell(chunks).items()}
    if pickled:
        torch.save({"teacher": weights | {"dino_head.last_layer.weight": torch.ones(3)}}, folder / "franca.pth")
    else:
        save_file(weights, folder / "model.safetensors")
    (folder / "preprocessor_config.json").write_text(
        f'{{"image_processor_type": "BitImageProcessor", "size": {{"shortest_edge": 32}}, "resample": 3, '
        f'"crop_size": {{"height": {SIDE}, "width": {SIDE}}}}}'
    )
    return folder


def ask_oracle(files: list[Path], point: Point, pooling: str, side: int = SIDE) -> NDArray[np.float32]:
    """(n, dim), or (n, 16, dim): the norm over the full width, then the pooling, then the cut, then length 1."""
    from vision import CROPPED, prepare

    model = make_reference()
    table = model.embeddings.position_embeddings.detach()
    grid = table[:, 1:].reshape(1, 8, 8, WIDTH).permute(0, 3, 1, 2)
    factor = (side // PATCH + 0.1) / 8
    small = torch.nn.functional.interpolate(grid, scale_factor=(factor, factor), mode="bicubic")
    baked = torch.cat([table[:, :1], small.permute(0, 2, 3, 1).reshape(1, -1, WIDTH)], dim=1)
    model.embeddings.interpolate_pos_encoding = lambda *_: baked
    processor = {**CROPPED, "size": {"shortest_edge": side * 32 // SIDE}}
    pixels = torch.from_numpy(np.stack([prepare(file, processor, side) for file in files]))
    with torch.no_grad():
        state = model(pixel_values=pixels, output_hidden_states=True).hidden_states[point.layers]
        normed = model.layernorm(state)
    read = {"cls": normed[:, 0], "mean": normed[:, 1:].mean(1), "patches": normed[:, 1:]}[pooling]
    vector = read.numpy()[..., : point.dim]
    return vector / np.linalg.norm(vector, axis=-1, keepdims=True)  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def probes(shared: Path) -> Path:
    def make() -> None:
        folder.mkdir()
        for probe in image_probes.draw_probes()[:5]:
            (folder / probe.name).write_bytes(probe.content)

    folder = shared / "franca-probes"
    return make_once(folder, make)


@pytest.fixture(scope="session")
def parent(shared: Path) -> Path:
    folder = shared / "franca"
    return make_once(folder, lambda: make_parent(folder))


def make_job(parent: Path, probes: Path, **changes: Any) -> ExportJob:
    return replace(ExportJob(ParentSource(str(parent), kind="franca"), POINTS, probes=probes), **changes)


@pytest.mark.parametrize(("pooling", "in_graph"), [("cls", False), ("mean", False), ("patches", False), ("cls", True)])
def test_vectors_are_those_of_the_oracle(
    pooling: str, in_graph: bool, parent: Path, probes: Path, tmp_path: Path
) -> None:
    precisions = (Precision.FP32, Precision.INT8)
    job = make_job(parent, probes, readout=ReadoutRequest(pooling=PoolingMode(pooling)), precisions=precisions)
    job = replace(job, preprocess_in_graph=in_graph)
    exported = export_family(job, tmp_path / "family")
    assert exported.family.facts.refused == {}
    assert exported.family.facts.parent.architecture == "Franca"
    files = save_images(tmp_path / "pictures", 3)
    for point in POINTS:
        expected = ask_oracle(files, point, pooling)
        name = replace(point, tokens=16 if pooling == "patches" else 0).name
        with matexport.Embedder(tmp_path / "family", f"{name}-fp32") as embedder:
            found = embedder.embed(files)
        np.testing.assert_allclose(found, expected, atol=2e-5)
        other = ask_oracle(files, replace(point, layers=point.layers % BLOCKS + 1), pooling)
        assert np.abs(other - expected).max() > 1e-2


def test_another_size_has_positions_as_franca_resamples_them(parent: Path, probes: Path, tmp_path: Path) -> None:
    """42 pixels, 6 x 6 patches of a table of 8 x 8; the shorter side is resized to 48 first, as 32 for 28."""
    readout = ReadoutRequest(pooling=PoolingMode.PATCHES, image_size=42)
    export_family(make_job(parent, probes, readout=readout, points=(Point(2, 8),)), tmp_path / "family")
    files = save_images(tmp_path / "pictures", 3)
    with matexport.Embedder(tmp_path / "family", "L02-D008-T036-fp32") as embedder:
        np.testing.assert_allclose(embedder.embed(files), ask_oracle(files, Point(2, 8), "patches", 42), atol=2e-5)


def test_a_folder_without_a_processor_at_another_size(probes: Path, tmp_path: Path) -> None:
    """As Franca's evaluation prepares images: shorter side 256, centre 224, both in proportion; ImageNet's colours."""
    folder = make_parent(tmp_path / "parent")
    (folder / "preprocessor_config.json").unlink()
    readout = ReadoutRequest(image_size=42)
    exported = export_family(make_job(folder, probes, readout=readout, points=(Point(2, 8),)), tmp_path / "family")
    facts = exported.family.facts.image
    assert facts is not None
    assert (facts.height, facts.width, facts.resized) == (42, 42, (48,))
    with pytest.raises(RequestError, match=r"image_size=40 was asked; .* ask for a multiple of 7, such as 35 or 42"):
        export_family(make_job(folder, probes, readout=ReadoutRequest(image_size=40)), tmp_path / "other")


@pytest.mark.parametrize(
    "options",
    [{"chunks": 2}, {"chunks": 2, "prefix": "module."}, {"pickled": True, "prefix": "backbone."}],
)
def test_other_layouts_of_names_are_the_same_weights(
    options: Mapping[str, Any], parent: Path, probes: Path, tmp_path: Path
) -> None:
    source = ParentSource(str(make_parent(tmp_path / "other", **options)), kind="franca", allow_pickle=True)
    job = make_job(parent, probes, points=POINTS[-1:])
    export_family(job, tmp_path / "one")
    export_family(replace(job, parent=source), tmp_path / "two")
    name = "weights.fp32.safetensors"
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda weights: weights.pop("cls_token"), "holds no weights of a ViT by Franca's or DINOv2's names"),
        (lambda weights: weights.pop("blocks.1.mlp.w3.bias"), r"has no weights for blocks\.1\.mlp\.w3\.bias"),
        (lambda weights: [weights.pop(name) for name in [*weights] if "blocks.1." in name], "block 1 is missing"),
        (lambda weights: weights.update(register_tokens=torch.ones(1, 4, WIDTH)), "has registers"),
    ],
)
def test_weights_that_are_not_whole(
    spoil: Callable[[dict[str, torch.Tensor]], Any], words: str, probes: Path, tmp_path: Path
) -> None:
    folder = make_parent(tmp_path / "parent")
    weights = spell()
    spoil(weights)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    with pytest.raises(ParentError, match=words):
        export_family(make_job(folder, probes), tmp_path / "family")


def test_what_a_job_cannot_ask(parent: Path, probes: Path, tmp_path: Path) -> None:
    for changes, words in (
        ({"points": (Point(4, 8),)}, "layers=4 was asked; .* has 3 blocks"),
        ({"points": (Point(1, 129),)}, "dim=129 was asked"),
        ({"readout": ReadoutRequest(pooling=PoolingMode.POOLER)}, "pooling = pooler was asked; .* cls, mean, patches"),
    ):
        with pytest.raises(RequestError, match=words):
            export_family(make_job(parent, probes, **changes), tmp_path / "family")  # type: ignore[arg-type]


def test_weights_that_nobody_would_read_are_refused(parent: Path, probes: Path, tmp_path: Path) -> None:
    (file,) = parent.glob("*.safetensors")
    weights = load_file(file)
    for name in ("norm_pre.weight", "blocks.1.attn.q_norm.weight", "blocks.0.mlp.w9.bias"):
        other = tmp_path / name
        other.mkdir()
        save_file(weights | {name: torch.ones(4)}, other / file.name)
        with pytest.raises(ParentError, match=f"holds {name}, which is no weight of a ViT"):
            export_family(make_job(other, probes), tmp_path / "family")


def resample_otherwise(table: torch.Tensor, high: int, wide: int) -> torch.Tensor:
    """By the size that is wanted, as transformers does it, and not by the factor."""
    grid = table[:, 1:].reshape(1, 8, 8, WIDTH).permute(0, 3, 1, 2)
    small = torch.nn.functional.interpolate(grid, size=(high, wide), mode="bicubic")
    return torch.cat([table[:, :1], small.permute(0, 2, 3, 1).reshape(1, high * wide, WIDTH)], dim=1)


def test_positions_of_another_library_are_refused(
    parent: Path, probes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(franca, "resample_positions", resample_otherwise)
    for size in (None, 42):
        with pytest.raises(ParityError, match="read-out: in torch, L01-D"):
            export_family(make_job(parent, probes, readout=ReadoutRequest(image_size=size)), tmp_path / "family")
