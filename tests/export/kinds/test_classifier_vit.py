"""MRL's heads on a ViT by timm's names, against torch's own layers with the same weights; and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import make_once
from forge import overwrite_values, reseal
from memory import trace_once
from msgspec.structs import replace
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from vision import save_images

import matexport
from matexport.errors import ParentError, ParityError, RequestError
from matexport.export import export_family, pipeline
from matexport.export.kinds.probes import image as image_probes
from matexport.export.parents.vision import vit
from matexport.family.manifest import load_family
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.profile import Point, Precision
from matexport.spec.readout import ReadoutRequest

pytestmark = pytest.mark.usefixtures("quick_traces")

#: Two attention heads of 64 coordinates.
BLOCKS, WIDTH, SIDE, PATCH, CLASSES, DIMS = 2, 128, 32, 8, 300, (8, 64, 128)

Weights = dict[str, torch.Tensor]


def make_backbone(*, scales: bool = False) -> Weights:
    """timm's names. Norms, tokens and LayerScale are drawn: with ones and zeros a wrong layer would pass."""
    torch.manual_seed(4)

    def draw(*shape: int, size: float = 0.08, around: float = 0.0) -> torch.Tensor:
        return torch.randn(shape) * size + around

    found = {
        "cls_token": draw(1, 1, WIDTH, size=1),
        "pos_embed": draw(1, 1 + (SIDE // PATCH) ** 2, WIDTH, size=0.5),
        "patch_embed.proj.weight": draw(WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": draw(WIDTH),
        "norm.weight": draw(WIDTH, size=0.3, around=1),
        "norm.bias": draw(WIDTH, size=0.3),
    }
    for block in range(BLOCKS):
        for part, (out, inner) in {
            "attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH),
            "mlp.fc1": (2 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 2 * WIDTH),
        }.items():  # fmt: skip
            found[f"blocks.{block}.{part}.weight"] = draw(out, inner)
            found[f"blocks.{block}.{part}.bias"] = draw(out, size=0.3)
        for norm in ("norm1", "norm2"):
            found[f"blocks.{block}.{norm}.weight"] = draw(WIDTH, size=0.3, around=1)
            found[f"blocks.{block}.{norm}.bias"] = draw(WIDTH, size=0.3)
        for scale in ("ls1", "ls2") if scales else ():
            found[f"blocks.{block}.{scale}.gamma"] = draw(WIDTH, size=0.3, around=1)
    return found


def make_heads(kind: str) -> Weights:
    torch.manual_seed(5)
    if kind == "MRL":
        return {
            f"head.nesting_classifier_{index}.{part}": torch.randn(shape)
            for index, dim in enumerate(DIMS)
            for part, shape in (("weight", (CLASSES, dim)), ("bias", (CLASSES,)))
        }
    name = "head" if kind == "FF" else "head.nesting_classifier_0"
    return {
        f"{name}.weight": torch.randn(CLASSES, 64 if kind == "FF" else WIDTH),
        f"{name}.bias": torch.randn(CLASSES),
    }


def make_parent(
    folder: Path,
    kind: str,
    change: Callable[[Weights], object] = lambda _: None,
    *,
    prefix: str = "",
    scales: bool = False,
) -> Path:
    folder.mkdir(parents=True)
    weights = {**make_backbone(scales=scales), **make_heads(kind)}
    change(weights)
    save_file({prefix + name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    (folder / "preprocessor_config.json").write_text(
        f'{{"image_processor_type": "ViTImageProcessor", "size": {{"height": {SIDE}, "width": {SIDE}}}, "resample": 2, '
        '"image_mean": [0.5, 0.4, 0.6], "image_std": [0.5, 0.3, 0.2]}'
    )
    return folder


def ask_torch(files: list[Path], *, scales: bool = False) -> NDArray[np.float32]:
    """(n, W): the class token behind the last norm. LayerScale is multiplied into the products before it."""
    known = make_backbone(scales=scales)
    images = [np.asarray(Image.open(file).convert("RGB").resize((SIDE, SIDE), 2), np.float64) / 255 for file in files]
    pixels = torch.from_numpy(((np.stack(images) - [0.5, 0.4, 0.6]) / [0.5, 0.3, 0.2]).transpose(0, 3, 1, 2)).float()
    embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
    embed.load_state_dict({part: known[f"patch_embed.proj.{part}"] for part in ("weight", "bias")})
    norm = nn.LayerNorm(WIDTH, eps=1e-6)
    norm.load_state_dict({part: known[f"norm.{part}"] for part in ("weight", "bias")})
    with torch.no_grad():
        patches = embed(pixels).flatten(2).transpose(1, 2)
        state = torch.cat([known["cls_token"].expand(len(files), -1, -1), patches], dim=1) + known["pos_embed"]
        for block in range(BLOCKS):
            state = make_layer(known, f"blocks.{block}")(state)
        found: NDArray[np.float32] = norm(state[:, 0]).numpy()
    return found


def make_layer(known: Weights, block: str) -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        WIDTH, 2, 2 * WIDTH, 0.0, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    ).eval()
    given = {}
    for name, theirs, scale in (
        ("attn.qkv", "self_attn.in_proj_", ""), ("attn.proj", "self_attn.out_proj.", "ls1"),
        ("mlp.fc1", "linear1.", ""), ("mlp.fc2", "linear2.", "ls2"), ("norm1", "norm1.", ""), ("norm2", "norm2.", ""),
    ):  # fmt: skip
        factor = known.get(f"{block}.{scale}.gamma", torch.ones(1))
        weight = known[f"{block}.{name}.weight"]
        given[f"{theirs}weight"] = weight * (factor[:, None] if weight.ndim > 1 else factor)
        given[f"{theirs}bias"] = known[f"{block}.{name}.bias"] * factor
    layer.load_state_dict(given)
    return layer


def ask_oracle(files: list[Path], kind: str, dim: int, *, scales: bool = False) -> NDArray[np.float32]:
    """(n, classes): `MRL.py`'s formulas on torch's feature."""
    heads = {name: tensor.numpy() for name, tensor in make_heads(kind).items()}
    head = f"head.nesting_classifier_{DIMS.index(dim)}" if kind == "MRL" else next(iter(heads)).removesuffix(".weight")
    feature = ask_torch(files, scales=scales)[:, :dim]
    found: NDArray[np.float32] = feature @ heads[f"{head}.weight"][:, :dim].T + heads[f"{head}.bias"]
    return found


def make_job(parent: Path, probes: Path, dims: tuple[int, ...] = DIMS, **changes: Any) -> ExportJob:
    points = tuple(Point(BLOCKS, dim) for dim in dims)
    return replace(ExportJob(ParentSource(str(parent), kind="classifier"), points, probes=probes), **changes)


@pytest.fixture(scope="module")
def probes(shared: Path) -> Path:
    def make() -> None:
        folder.mkdir()
        for probe in image_probes.draw_probes()[:5]:
            (folder / probe.name).write_bytes(probe.content)

    folder = shared / "vit-probes"
    return make_once(folder, make)


@pytest.fixture(scope="module")
def parent(shared: Path) -> Path:
    return make_once(shared / "mrl-vit", lambda: make_parent(shared / "mrl-vit", "MRL"))


@pytest.fixture(scope="module")
def family(parent: Path, probes: Path, shared: Path) -> Path:
    def make() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline, "trace_exits", trace_once)
            precisions = tuple(each for each in Precision if each is not Precision.Q4_MIXED)
            export_family(make_job(parent, probes, precisions=precisions), folder)

    folder = shared / "family-mrl-vit"
    return make_once(folder, make)


def check(family: Path, files: list[Path], dim: int, expected: NDArray[np.float32]) -> None:
    with matexport.Embedder(family, f"L{BLOCKS:02d}-D{dim:03d}-fp32") as embedder:
        found = embedder.embed(files)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-6 * max(1.0, float(np.abs(expected).max())))


@pytest.mark.parametrize("dim", DIMS)
def test_each_head_says_what_the_oracle_says(dim: int, family: Path, tmp_path: Path) -> None:
    files = save_images(tmp_path, 3)
    expected = ask_oracle(files, "MRL", dim)
    check(family, files, dim, expected)
    others = [ask_oracle(files, "MRL", other) for other in DIMS if other != dim]
    assert all(np.abs(other - expected).max() > 1e-2 for other in others)


def test_what_the_family_says(family: Path) -> None:
    facts = load_family(family).facts
    assert (facts.parent.architecture, facts.parent.blocks, facts.parent.output_width) == ("ViT-128/8, MRL", 2, WIDTH)
    assert (facts.readout.heads, facts.readout.classes, facts.output) == (("MRL(300 classes)",), CLASSES, "logits")
    assert facts.refused == {}
    assert {profile.precision for profile in load_family(family).profiles} == {*Precision} - {Precision.Q4_MIXED}


def test_a_head_is_in_its_own_graph_alone(family: Path) -> None:
    """And the last block is computed for the class token alone."""
    for precision in ("fp32", "int8"):
        for index, dim in enumerate(DIMS):
            facts = load_family(family).profile_facts(f"L{BLOCKS:02d}-D{dim:03d}-{precision}")
            graph = onnx.load(family / facts.graph, load_external_data=False).graph
            heads = {
                tensor.name.partition("classifier_")[2][0] for tensor in graph.initializer if "fc__" in tensor.name
            }
            assert heads == {str(index)}
            assert facts.narrowed_nodes > 10


@pytest.mark.parametrize(
    ("kind", "dims", "options"),
    [("MRL-E", (3, 64, 128), {"prefix": "module.", "scales": True}), ("FF", (64,), {})],
)
def test_other_heads_and_names(
    kind: str, dims: tuple[int, ...], options: Mapping[str, Any], probes: Path, tmp_path: Path
) -> None:
    parent = make_parent(tmp_path / "parent", kind, **options)
    exported = export_family(make_job(parent, probes, dims), tmp_path / "family")
    assert exported.family.facts.parent.architecture == f"ViT-128/8, {kind}"
    files = save_images(tmp_path / "pictures", 3)
    for dim in dims:
        check(tmp_path / "family", files, dim, ask_oracle(files, kind, dim, scales=options.get("scales", False)))


def test_features_are_cut_and_then_scaled(parent: Path, probes: Path, tmp_path: Path) -> None:
    job = make_job(parent, probes, (3, 64, 128), readout=ReadoutRequest(features=True))
    exported = export_family(job, tmp_path / "family")
    files = save_images(tmp_path / "pictures", 3)
    for dim in (3, 64, 128):
        cut = ask_torch(files)[:, :dim]
        check(tmp_path / "family", files, dim, cut / np.linalg.norm(cut, axis=1, keepdims=True))
    assert exported.family.facts.output == "image_embedding"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"points": (Point(BLOCKS, 16),)}, r"dim=16 was asked; .* has heads for 8, 64, 128 \(MRL\)"),
        ({"points": (Point(1, 8),)}, r"L01-D008 was asked; .* has 2 blocks and is read after all of them"),
        (
            {"points": (Point(BLOCKS, 129),), "readout": ReadoutRequest(features=True)},
            "dim=129 was asked; features of .* have 128",
        ),
    ],
)
def test_what_a_job_cannot_ask(
    changes: Mapping[str, Any], words: str, parent: Path, probes: Path, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=words):
        export_family(make_job(parent, probes, **changes), tmp_path / "family")


def put(name: str, *shape: int) -> Callable[[Weights], object]:
    return lambda weights: weights.__setitem__(name, torch.ones(shape))


def drop(name: str) -> Callable[[Weights], object]:
    return lambda weights: weights.pop(name)


def drop_block(weights: Weights) -> None:
    for name in [name for name in weights if name.startswith("blocks.0.")]:
        del weights[name]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("reg_token", 1, 4, WIDTH), "holds reg_token, which is no weight of a plain ViT by timm's names"),
        (put("blocks.1.attn.q_norm.weight", 64), r"holds blocks\.1\.attn\.q_norm\.weight"),
        (put("fc_norm.weight", WIDTH), r"holds fc_norm\.weight"),
        (put("pos_embed", 1, 1 + 25, WIDTH), "positions for 25 patches of 8 x 8; its images are made 32 x 32"),
        (put("norm.weight", 1280), "a ViT of 1280; weights do not say how many attention heads it has"),
        (put("norm.weight", 100), "a ViT of 100; weights do not say how many attention heads it has"),
        (drop("blocks.1.mlp.fc2.bias"), r"has no weights for blocks\.1\.mlp\.fc2\.bias"),
        (drop("norm.bias"), r"has no weights for norm\.bias"),
        (drop_block, "block 0 is missing"),
        (drop("head.nesting_classifier_1.bias"), r"has no weights for fc\.nesting_classifier_1\.bias"),
        (drop("head.nesting_classifier_1.weight"), "has no heads"),
        (put("head.nesting_classifier_1.weight", CLASSES + 1, 64), "heads, for dims .8, 64, 128. and .* do not fit"),
    ],
)
def test_weights_that_are_of_another_network(
    change: Callable[[Weights], object], words: str, probes: Path, tmp_path: Path
) -> None:
    parent = make_parent(tmp_path / "parent", "MRL", change)
    with pytest.raises(ParentError, match=words):
        export_family(make_job(parent, probes), tmp_path / "family")
    assert not (tmp_path / "family").exists()


CLASSIFY = vit.ViTClassifier._classify


def swap_heads(self: Any, feature: torch.Tensor, dim: int) -> torch.Tensor:
    """The right dim, and the bias of another head."""
    place = self._shape.dims.index(dim)
    mine, theirs = (self._get(f"fc.nesting_classifier_{head}.bias") for head in (place, (place + 1) % len(DIMS)))
    return CLASSIFY(self, feature, dim) - mine + theirs  # type: ignore[no-any-return]


def one_column_less(self: Any, feature: torch.Tensor, dim: int) -> torch.Tensor:
    mask = torch.arange(feature.shape[1]) < dim - 1
    return CLASSIFY(self, feature * mask, dim)  # type: ignore[no-any-return]


def one_column_more(self: Any, feature: torch.Tensor, dim: int) -> torch.Tensor:
    """Where there is one more: a head is multiplied by its last coordinate and the one behind it."""
    if dim == WIDTH:
        return CLASSIFY(self, feature, dim)  # type: ignore[no-any-return]
    last = torch.arange(feature.shape[1]) == dim - 1
    return CLASSIFY(self, feature + last * feature.roll(-1, 1), dim)  # type: ignore[no-any-return]


@pytest.mark.parametrize("wrong", [swap_heads, one_column_less, one_column_more])
def test_what_is_wrong_is_refused(
    wrong: Any, parent: Path, probes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vit.ViTClassifier, "_classify", wrong)
    with pytest.raises(ParityError, match="read-out: in torch, L02-D"):
        export_family(make_job(parent, probes), tmp_path / "family")


def test_a_head_that_was_exchanged_is_noticed(family: Path, tmp_path: Path) -> None:
    """On disk, with all digests made to agree again: `verify` compares with the parent's own numbers."""
    spoilt = tmp_path / "family"
    shutil.copytree(family, spoilt)
    name = "heads.fc__nesting_classifier_1__bias"
    theirs = make_heads("MRL")["head.nesting_classifier_2.bias"].numpy()
    overwrite_values(spoilt / "weights.fp32.safetensors", name, theirs)
    reseal(spoilt)
    failed = {verdict.profile for verdict in matexport.verify_family(spoilt).verdicts if not verdict.passed}
    assert failed == {"L02-D064-fp32"}
