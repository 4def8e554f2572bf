"""MRL's classifiers on a ResNet end to end, against an oracle of its own; and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from commandline import Run
from conftest import make_once
from forge import reseal
from memory import trace_once
from msgspec.structs import replace
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from vision import save_images

import matexport
from matexport.errors import ParentError, ParityError, RequestError
from matexport.export import export_family, pipeline
from matexport.export.kinds.probes import image as image_probes
from matexport.export.parents.vision import resnet
from matexport.family.manifest import load_family
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.profile import Encoding, Point, Precision
from matexport.spec.readout import ReadoutRequest
from matexport.spec.tolerance import FLOORS

pytestmark = pytest.mark.usefixtures("quick_traces")

#: Two stages of two blocks, 8 channels wide: ResNet-50 has (3, 4, 6, 3) of 64.
STAGES, BASE, CLASSES, DIMS, SIDE = (2, 2), 16, 5, (4, 16, 128), 48
BLOCKS = sum(STAGES)

#: What int8-static may be off in the logits, whose cosine has little to say: 0.04 is what rounding alone is off here.
MOST = 0.06


class BlurConv(nn.Module):
    """As MRL's `apply_blurpool` makes it: the input is blurred, then goes through the strided convolution."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
        self.conv = conv
        self.register_buffer("blur_filter", kernel.repeat(conv.in_channels, 1, 1, 1))

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        blurred = nn.functional.conv2d(given, self.blur_filter, padding=1, groups=given.shape[1])
        return self.conv(blurred)  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    def __init__(self, given: int, inner: int, stride: int, blur: bool) -> None:
        super().__init__()
        wrap: Any = BlurConv if blur and stride > 1 else lambda conv: conv
        self.conv1, self.bn1 = nn.Conv2d(given, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2 = wrap(nn.Conv2d(inner, inner, 3, stride, 1, bias=False))
        self.bn2, self.conv3 = nn.BatchNorm2d(inner), nn.Conv2d(inner, 4 * inner, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * inner)
        self.downsample = None
        if stride > 1 or given != 4 * inner:
            conv = wrap(nn.Conv2d(given, 4 * inner, 1, stride, bias=False))
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(4 * inner))

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        outer = self.bn1(self.conv1(given)).relu()
        outer = self.bn3(self.conv3(self.bn2(self.conv2(outer)).relu()))
        return (outer + (self.downsample(given) if self.downsample else given)).relu()  # type: ignore[no-any-return]


class Net(nn.Module):
    """torchvision's ResNet, small, with the names that it has there."""

    def __init__(self, blur: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, BASE, 7, 2, 3, bias=False), nn.BatchNorm2d(BASE)
        given = BASE
        for stage, count in enumerate(STAGES):
            blocks = []
            for place in range(count):
                inner = BASE * 2**stage
                blocks.append(Bottleneck(given, inner, 2 if stage and not place else 1, blur))
                given = 4 * inner
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        state = nn.functional.max_pool2d(self.bn1(self.conv1(pixels)).relu(), 3, 2, 1)
        for stage in range(len(STAGES)):
            state = getattr(self, f"layer{stage + 1}")(state)
        return state.mean((2, 3))


def make_net(seed: int = 0, *, blur: bool = True) -> Net:
    """Its norms and their statistics are drawn: with zeros and ones a channel too many would pass."""
    torch.manual_seed(seed)
    net = Net(blur).eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0.3, 0.3)
    return net


def make_heads(kind: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(9)
    if kind == "MRL":
        shapes = {"weight": lambda dim: (CLASSES, dim), "bias": lambda _: (CLASSES,)}
        return {
            f"fc.nesting_classifier_{index}.{part}": torch.randn(shape(dim))
            for index, dim in enumerate(DIMS)
            for part, shape in shapes.items()
        }
    width = 16 if kind == "FF" else DIMS[-1]
    name = "fc" if kind in ("FF", "MRL-E, old") else "fc.nesting_classifier_0"
    return {f"{name}.weight": torch.randn(CLASSES, width), f"{name}.bias": torch.randn(CLASSES)}


def make_parent(folder: Path, kind: str, *, prefix: str = "", blur: bool = True, pickled: bool = False) -> Path:
    folder.mkdir(parents=True)
    weights = {
        f"{prefix}{name}": tensor for name, tensor in {**make_net(blur=blur).state_dict(), **make_heads(kind)}.items()
    }
    if pickled:
        torch.save(weights, folder / "final_weights.pt")
    else:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    (folder / "preprocessor_config.json").write_text(
        '{"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 56}, "resample": 2, '
        f'"crop_size": {{"height": {SIDE}, "width": {SIDE}}}}}'
    )
    return folder


def ask_oracle(
    files: list[Path], kind: str, dim: int, *, features: bool = False, blur: bool = True, side: int = SIDE
) -> NDArray[np.float32]:
    """(n, classes) or (n, dim): the class that was written for this test, and `MRL.py`'s formulas."""
    import transformers

    openai = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    processor = transformers.CLIPImageProcessor
    assert processor is not None
    rows = []
    for file in files:
        image = Image.open(file).convert("RGB")
        short, edge = min(image.size), round(56 * side / SIDE)
        size = tuple(edge if length == short else int(edge * length / short) for length in image.size)
        levels = np.asarray(image.resize(size, 2), np.float64)
        top, left = ((length - side) // 2 for length in levels.shape[:2])
        levels = levels[top : top + side, left : left + side] / 255
        rows.append(((levels - openai[0]) / openai[1]).transpose(2, 0, 1))
    with torch.no_grad():
        feature = make_net(blur=blur)(torch.from_numpy(np.stack(rows)).float()).numpy()
    cut = feature[:, :dim]
    if features:
        return cut / np.linalg.norm(cut, axis=1, keepdims=True)
    heads = {name: tensor.numpy() for name, tensor in make_heads(kind).items()}
    head = f"fc.nesting_classifier_{DIMS.index(dim)}" if kind == "MRL" else next(iter(heads)).removesuffix(".weight")
    return cut @ heads[f"{head}.weight"][:, :dim].T + heads[f"{head}.bias"]


@pytest.fixture(scope="session")
def probes(shared: Path) -> Path:
    def make() -> None:
        folder.mkdir()
        for probe in image_probes.draw_probes()[:5]:
            (folder / probe.name).write_bytes(probe.content)

    folder = shared / "classifier-probes"
    return make_once(folder, make)


@pytest.fixture(scope="session")
def parents(shared: Path) -> Callable[[str], Path]:
    return lambda kind: make_once(shared / f"mrl-{kind}", lambda: make_parent(shared / f"mrl-{kind}", kind))


def make_job(parent: Path, probes: Path, dims: tuple[int, ...] = DIMS, **changes: Any) -> ExportJob:
    points = tuple(Point(BLOCKS, dim) for dim in dims)
    return replace(ExportJob(ParentSource(str(parent), kind="classifier"), points, probes=probes), **changes)


@pytest.fixture(scope="session")
def family(parents: Callable[[str], Path], probes: Path, shared: Path) -> Path:
    def make() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline, "trace_exits", trace_once)
            export_family(make_job(parents("MRL"), probes), folder)

    folder = shared / "family-mrl"
    return make_once(folder, make)


def check(family: Path, files: list[Path], dim: int, expected: NDArray[np.float32]) -> None:
    with matexport.Embedder(family, f"L{BLOCKS:02d}-D{dim:03d}-fp32") as embedder:
        found = embedder.embed(files)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-5 * max(1.0, float(np.abs(expected).max())))


def test_images_of_another_size(parents: Callable[[str], Path], probes: Path, tmp_path: Path) -> None:
    """Convolutions take any: 60 pixels, of a shorter side resized to 70."""
    job = make_job(parents("MRL"), probes, dims=(16,), readout=ReadoutRequest(image_size=60))
    export_family(job, tmp_path / "family")
    files = save_images(tmp_path / "pictures", 3)
    check(tmp_path / "family", files, 16, ask_oracle(files, "MRL", 16, side=60))
    assert np.abs(ask_oracle(files, "MRL", 16, side=60) - ask_oracle(files, "MRL", 16)).max() > 1e-2


@pytest.mark.parametrize("dim", DIMS)
def test_each_head_says_what_the_oracle_says(dim: int, family: Path, tmp_path: Path) -> None:
    files = save_images(tmp_path, 3)
    expected = ask_oracle(files, "MRL", dim)
    check(family, files, dim, expected)
    others = [ask_oracle(files, "MRL", other) for other in DIMS if other != dim]
    assert all(np.abs(other - expected).max() > 1e-2 for other in others)


def test_images_may_be_prepared_in_the_graph(parents: Callable[[str], Path], probes: Path, tmp_path: Path) -> None:
    job = make_job(parents("MRL"), probes, DIMS[:1], preprocess_in_graph=True)
    assert export_family(job, tmp_path / "family").verification.passed
    files = save_images(tmp_path / "pictures", 3)
    check(tmp_path / "family", files, DIMS[0], ask_oracle(files, "MRL", DIMS[0]))


@pytest.mark.parametrize(
    ("kind", "dims", "options"),
    [
        ("MRL-E", (3, 16, 128), {}),
        ("MRL-E, old", (16, 100), {"prefix": "module.", "pickled": True}),
        ("FF", (16,), {"prefix": "module."}),
        ("MRL", (4, 128), {"prefix": "module.", "blur": False}),
    ],
)
def test_other_heads_and_generations_of_names(
    kind: str, dims: tuple[int, ...], options: Mapping[str, Any], probes: Path, tmp_path: Path
) -> None:
    parent = make_parent(tmp_path / "parent", kind, **options)
    job = make_job(parent, probes, dims)
    if options.get("pickled"):
        with pytest.raises(ParentError, match=r"pickled weights only \(final_weights\.pt\); .* allow_pickle = true"):
            export_family(job, tmp_path / "family")
        job = replace(job, parent=replace(job.parent, allow_pickle=True))
    export_family(job, tmp_path / "family")
    files = save_images(tmp_path / "pictures", 3)
    for dim in dims:
        check(tmp_path / "family", files, dim, ask_oracle(files, kind, dim, blur=options.get("blur", True)))


def test_features_are_cut_and_then_scaled(parents: Callable[[str], Path], probes: Path, tmp_path: Path) -> None:
    job = make_job(parents("MRL"), probes, (3, 16, 128), readout=ReadoutRequest(features=True))
    exported = export_family(job, tmp_path / "family")
    files = save_images(tmp_path / "pictures", 3)
    for dim in (3, 16, 128):
        check(tmp_path / "family", files, dim, ask_oracle(files, "MRL", dim, features=True))
    assert exported.family.facts.output == "image_embedding"


def test_channels_that_nothing_reads_are_not_computed(family: Path) -> None:
    """The last convolution has as many rows as the dim, and a profile's prefix of the weights ends with its head."""
    prefixes = []
    for dim in DIMS:
        facts = load_family(family).profile_facts(f"L{BLOCKS:02d}-D{dim:03d}-fp32")
        graph = onnx.load(family / facts.graph, load_external_data=False).graph
        shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
        assert not [node for node in graph.node if node.op_type == "Slice" and node.input[0] in shapes]
        convolutions = [shapes[node.input[1]] for node in graph.node if node.op_type == "Conv"]
        assert convolutions[-1][0] == dim or convolutions[-2][0] == dim
        rows = [shape for shape in convolutions if shape[1:] == [BASE * 2, 1, 1]]
        assert min(shape[0] for shape in rows) == dim
        heads = [shape for name, shape in shapes.items() if "nesting_classifier" in name and len(shape) == 2]
        assert heads == [[dim, CLASSES]] or heads == [[CLASSES, dim]] or dim * CLASSES * 4 < 1024
        prefixes.append(facts.weights_prefix_bytes)
    assert prefixes == sorted(prefixes)
    assert matexport.verify_family(family).passed


def test_accuracy_and_a_cascade_as_commands(family: Path, tmp_path: Path, run: Run) -> None:
    """Of every other image the label is what the widest head says, so that it is right half of the time."""
    for split, seed in (("val", 1), ("test", 2)):
        files = save_images(tmp_path / "plain" / split, 12, seed)
        for place, said in enumerate(ask_oracle(files, "MRL", 128).argmax(axis=1)):
            file, folder = files[place], tmp_path / "images" / split / str((said + place % 2) % CLASSES)
            folder.mkdir(parents=True, exist_ok=True)
            file.rename(folder / file.name)
    save = tmp_path / "images" / "test"
    found = run("evaluate", family, "--labelled", save, "--json").json["tasks"]["test"]
    assert found["kind"] == "accuracy"
    assert found["profiles"]["L04-D128-fp32"]["score"] == 0.5
    cascade = run("evaluate", family, "--cascade", tmp_path / "images", "--json").json
    assert cascade["dims"] == [4, 16, 128]
    assert cascade["alone"]["128"] == 0.5
    assert 4 <= cascade["expected_dim"] <= 128
    assert "on average" in run("evaluate", family, "--cascade", tmp_path / "images").out
    run("evaluate", family, "--cascade", save).complains("lacks val: thresholds are learnt on the images of val")


@pytest.fixture(scope="module")
def small(parents: Callable[[str], Path], probes: Path, shared: Path) -> Path:
    """A family in the precisions that there are for convolutions."""

    def make() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline, "trace_exits", trace_once)
            precisions = (Precision.FP32, Precision.FP16, Precision.INT8_STATIC)
            tolerances = {Precision.INT8_STATIC: replace(FLOORS[Precision.INT8_STATIC], max_abs=MOST)}
            job = make_job(parents("MRL"), probes, precisions=precisions, tolerances=tolerances)
            export_family(job, folder)

    folder = shared / "family-mrl-small"
    return make_once(folder, make)


def test_precisions(small: Path) -> None:
    """Each profile is within its floor, and far above it: of the floors, those of int8-static are for the worst."""
    facts = load_family(small).facts
    assert facts.refused == {}
    verification = matexport.verify_family(small)
    assert len(verification.verdicts) == 9
    assert verification.passed
    for verdict in verification.verdicts:
        least = {"fp32": 0.9999999, "fp16": 0.99999}.get(verdict.profile[10:], 0.999)
        assert all(parity.cosine_min > least for parity in verdict.parity.values())
        assert verdict.spread is not None
        assert verdict.spread.value == 0, "an image's numbers owe nothing to its batch"


def read_graph(family: Path, name: str) -> onnx.GraphProto:
    return onnx.load(family / load_family(family).profile_facts(name).graph, load_external_data=False).graph


def test_convolutions_are_coded_and_norms_folded(small: Path) -> None:
    """All but the stem, for each output channel; and a narrow dim has as many rows of the last kernel."""
    for dim in DIMS:
        onnx.checker.check_model(small / f"L{BLOCKS:02d}-D{dim:03d}.int8-static.onnx")
        graph = read_graph(small, f"L{BLOCKS:02d}-D{dim:03d}-int8-static")
        kinds = {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in graph.initializer}
        made = {node.output[0]: node for node in graph.node}
        convolutions = [node for node in graph.node if node.op_type == "Conv"]
        assert [node.input[1] for node in convolutions if node.input[1] in kinds] == ["conv1__weight"]
        coded = [made[node.input[1]] for node in convolutions[1:]]
        assert len(coded) == 16
        for node in coded:
            codes, scale = kinds[node.input[0]], kinds[node.input[1]]
            assert (node.op_type, codes[0], scale[1]) == ("DequantizeLinear", onnx.TensorProto.INT8, codes[1][:1])
        assert min(kinds[node.input[0]][1][0] for node in coded if kinds[node.input[0]][1][1:] == [32, 1, 1]) == dim
    for precision in ("fp32", "fp16", "int8-static"):
        operators = {node.op_type for node in read_graph(small, f"L{BLOCKS:02d}-D128-{precision}").node}
        assert "BatchNormalization" not in operators
    sizes = {name: (small / f"weights.{name}.safetensors").stat().st_size for name in ("fp32", "fp16", "int8-static")}
    assert sizes["int8-static"] < 0.4 * sizes["fp32"]
    assert sizes["fp16"] < 0.7 * sizes["fp32"], "the stem and the heads are as they were, and the kernels are small"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("layer1__0__conv2__weight.scale", lambda scale: scale * 1.3),
        ("layer1__0__conv2__weight.scale", lambda scale: np.roll(scale, 1)),
        ("layer2__0__downsample__0__conv__weight.scale", lambda scale: np.full_like(scale, scale.mean())),
        ("layer2__1__conv1__weight.bias.scale", lambda scale: scale * 1.5),
    ],
)
def test_a_wrong_scale_is_noticed(name: str, change: Any, small: Path, tmp_path: Path) -> None:
    """Of one convolution of 17, with all digests made to agree again: `verify` compares with the parent's numbers."""
    profile = f"L{BLOCKS:02d}-D128-int8-static"
    spoilt = tmp_path / "family"
    shutil.copytree(small, spoilt)
    path = spoilt / load_family(spoilt).profile_facts(profile).graph
    model = onnx.load(path, load_external_data=False)
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    scale = onnx.numpy_helper.to_array(tensor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(change(scale).astype(np.float32), name))
    path.write_bytes(model.SerializeToString())
    reseal(spoilt)
    failed = {verdict.profile for verdict in matexport.verify_family(spoilt).verdicts if not verdict.passed}
    assert failed == {profile}


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.Q8, Precision.Q4, Precision.Q4_MIXED])
def test_precisions_of_matrices_are_refused(
    precision: Precision, parents: Callable[[str], Path], probes: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Before anything is loaded or run."""
    monkeypatch.setattr("matexport.export.kinds.classifier.load", None)
    job = make_job(parents("MRL"), probes, precisions=(Precision.FP32, precision))
    words = (
        rf"precisions = {precision} was asked; .* \(ResNet-14\) is made of convolutions, .* fp32, fp16, int8-static$"
    )
    with pytest.raises(RequestError, match=words):
        export_family(job, tmp_path / "family")


def test_weights_that_nobody_would_read_are_refused(probes: Path, tmp_path: Path) -> None:
    """Of a block with squeeze and excitation, of a stem of three convolutions, a bias where there is none."""
    folder = make_parent(tmp_path / "parent", "MRL")
    weights = load_file(folder / "model.safetensors")
    for name in ("layer1.0.se.fc1.weight", "conv2.weight", "layer1.0.conv1.bias"):
        save_file(weights | {name: torch.ones(4)}, folder / "model.safetensors")
        with pytest.raises(ParentError, match=f"holds {name}, which is no weight of a plain ResNet"):
            export_family(make_job(folder, probes), tmp_path / "family")


def test_a_norm_without_a_part(probes: Path, tmp_path: Path) -> None:
    folder = make_parent(tmp_path / "parent", "MRL")
    weights = load_file(folder / "model.safetensors")
    for name in ("bn1.bias", "layer2.0.downsample.1.running_var", "layer1.1.bn3.weight"):
        save_file({other: tensor for other, tensor in weights.items() if other != name}, folder / "model.safetensors")
        with pytest.raises(ParentError, match=f"has no weights for {name}"):
            export_family(make_job(folder, probes), tmp_path / "family")


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("MRL", {"points": (Point(BLOCKS, 8),)}, r"dim=8 was asked; .* has heads for 4, 16, 128 \(MRL\)"),
        ("MRL", {"points": (Point(1, 4),)}, r"L01-D004 was asked; .* has 4 blocks and is read after all of them"),
        ("MRL", {"encodings": (Encoding.INT8,)}, "what heads say is given as float32"),
        ("MRL-E", {"points": (Point(BLOCKS, 129),)}, "dim=129 was asked; features of .* have 128"),
        ("MRL", {"readout": ReadoutRequest(max_tokens=3)}, "takes images"),
    ],
)
def test_what_a_job_cannot_ask(
    kind: str, changes: Mapping[str, Any], words: str, parents: Callable[[str], Path], probes: Path, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=words):
        export_family(make_job(parents(kind), probes, **changes), tmp_path / "family")


def test_weights_of_something_else(probes: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(ParentError, match="has no weights"):
        export_family(make_job(other, probes), tmp_path / "family")
    save_file({"weight": torch.ones(3)}, other / "model.safetensors")
    with pytest.raises(ParentError, match="holds no weights of a ResNet with bottleneck blocks"):
        export_family(make_job(other, probes), tmp_path / "family")
    (other / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ParentError, match="cannot be read as weights"):
        export_family(make_job(other, probes), tmp_path / "family")


def swap_heads(self: Any, feature: torch.Tensor, dim: int) -> torch.Tensor:
    """The right dim, and the bias of another head."""
    found = CLASSIFY(self, feature, dim)
    other = (self._shape.dims.index(dim) + 1) % len(self._shape.dims)
    mine, theirs = (self._get(f"fc.nesting_classifier_{head}.bias") for head in (self._shape.dims.index(dim), other))
    return found - mine + theirs  # type: ignore[no-any-return]


def one_channel_less(self: Any, name: str, inner: Any, identity: Any, channels: int | None) -> torch.Tensor:
    found = END(self, name, inner, identity, channels)
    if channels is None:
        return found
    return torch.cat([found[:, 1:], found[:, :1]], dim=1)


CLASSIFY, END = resnet.Classifier._classify, resnet.Classifier._end


@pytest.mark.parametrize(("method", "wrong"), [("_classify", swap_heads), ("_end", one_channel_less)])
def test_what_is_wrong_is_refused(
    method: str, wrong: Any, parents: Callable[[str], Path], probes: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(resnet.Classifier, method, wrong)
    with pytest.raises(ParityError, match="read-out: in torch, L04-D"):
        export_family(make_job(parents("MRL"), probes), tmp_path / "family")
