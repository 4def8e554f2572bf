"""Vision parents of the true shapes, random weights: parity, building a whole family, images per second, pruning.

    pip install -c constraints.txt -e '.[demo,image]'
    python benchmarks/images.py

A ViT-B/16 (12 blocks, width 768, 224 x 224) is exported at 12 layers x 5 dims, against one export of the same model by
`torch.onnx.export`; its vectors are compared with transformers on pictures that are no probes. Then pictures go from
files through the runtime in batches of 8 (fp32 and int8), and through transformers' image processor and torch, turn by
turn at the same number of threads, each side in processes of its own. The visual tokens of a LLaVA-1.5 (CLIP ViT-L/14
at 336, projector 1024 -> 4096) are exported at 5 counts in one family, against a family for each count. A ResNet-50 of
MRL is run at dim 8 and dim 2048, in fp32 and in int8-static, by turns.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import (
    MAXRSS_UNIT_BYTES,
    RESULTS,
    Bar,
    Report,
    count_repeats,
    finish,
    make_parser,
    median,
    print_bars,
    run_process,
    say,
    take_turns,
)

THREADS = 2
LAYERS, DIMS = tuple(range(1, 13)), (48, 96, 192, 384, 768)
SCALES = (1, 9, 36, 144, 576)
PARITY = Bar("ViT-B/16, max_abs against transformers at 60 exits", 2e-5)
BUILD = Bar("ViT-B/16: 60 exits / one torch.onnx.export", 1.3, " x")
DISK = Bar("ViT-B/16: disk of 60 profiles / of one export", 1.02, " x")
FP32 = Bar("images/s from files, fp32 / transformers and torch", 1.5, " x", at_least=True)
INT8 = Bar("images/s from files, int8 / transformers and torch", 2.5, " x", at_least=True)
MEMORY = Bar("peak memory, fp32 / transformers and torch", 0.5, " x")
TOKENS = Bar("M3: five exports / five scales in one family", 3.0, " x", at_least=True)
TOKEN_DISK = Bar("M3: disk of five scales / of one", 1.02, " x")
LEVELS = Bar("grey levels off the parent's own processor", 1)
TOKEN_PARITY = Bar("M3, CLIP ViT-L/14 at 336, 23 blocks, projector 1024 to 4096: max_abs against its judge", 2e-5)
RESNET = Bar("MRL on ResNet-50, nine heads: max_abs against its judge", 2e-5)
BARS = (PARITY, BUILD, DISK, FP32, INT8, MEMORY, TOKENS, TOKEN_DISK, TOKEN_PARITY, RESNET, LEVELS)


def make_vit(folder: Path, layers: int) -> None:
    import torch
    import transformers as hf

    torch.manual_seed(0)
    model = hf.ViTModel(hf.ViTConfig(num_hidden_layers=layers), add_pooling_layer=False).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layernorm" in name and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5)
            elif "cls_token" in name or name.endswith("bias"):
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    write_processor(folder, {"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}})


def make_llava(folder: Path, quick: bool) -> None:
    import torch
    import transformers as hf

    torch.manual_seed(0)
    vision = hf.CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=3 if quick else 24,
        image_size=336, patch_size=14, projection_dim=768,
    )  # fmt: skip
    text = hf.LlamaConfig(
        hidden_size=4096, num_hidden_layers=1, num_attention_heads=32, intermediate_size=64, vocab_size=64
    )
    config = hf.LlavaConfig(vision_config=vision, text_config=text, vision_feature_layer=-2)
    hf.LlavaForConditionalGeneration(config).eval().save_pretrained(folder)
    size = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    write_processor(folder, {"image_processor_type": "CLIPImageProcessor", **size})


def make_resnet(folder: Path) -> None:
    """ResNet-50 with heads for nine dims, BlurPool before the strided convolutions."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    weights: dict[str, Any] = {"conv1.weight": torch.randn(64, 3, 7, 7) * 0.05}

    def add_norm(name: str, width: int) -> None:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = torch.rand(width) + 0.5, torch.randn(width) * 0.1
        weights[f"{name}.running_mean"], weights[f"{name}.running_var"] = (
            torch.randn(width) * 0.1,
            torch.rand(width) + 0.5,
        )

    add_norm("bn1", 64)
    given = 64
    for stage, count in enumerate((3, 4, 6, 3), 1):
        inner = 32 * 2**stage
        for place in range(count):
            name, blurs = f"layer{stage}.{place}", stage > 1 and place == 0
            shapes = {"conv1": (inner, given, 1), "conv2": (inner, inner, 3), "conv3": (4 * inner, inner, 1)}
            if place == 0:
                shapes["downsample.0"] = (4 * inner, given, 1)
                add_norm(f"{name}.downsample.1", 4 * inner)
            for part, (out, into, side) in shapes.items():
                own = f"{name}.{part}.conv" if blurs and part in ("conv2", "downsample.0") else f"{name}.{part}"
                weights[f"{own}.weight"] = torch.randn(out, into, side, side) * (into * side * side) ** -0.5
                if own.endswith(".conv"):
                    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
                    weights[f"{name}.{part}.blur_filter"] = kernel.repeat(into, 1, 1, 1)
            for part, width in (("bn1", inner), ("bn2", inner), ("bn3", 4 * inner)):
                add_norm(f"{name}.{part}", width)
            given = 4 * inner
    for index in range(9):
        weights[f"fc.nesting_classifier_{index}.weight"] = torch.randn(1000, 8 * 2**index) * 0.05
        weights[f"fc.nesting_classifier_{index}.bias"] = torch.randn(1000) * 0.05
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors")


def write_processor(folder: Path, said: dict[str, Any]) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(said), encoding="utf-8")


def write_pictures(folder: Path, count: int) -> None:
    """Photographs as people have them: JPEG of 640 x 480 and thereabouts."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True)
    draws = np.random.default_rng(1)
    for index in range(count):
        coarse = Image.fromarray(draws.integers(0, 256, (24, 32, 3), np.uint8))
        size = (640, 480) if index % 3 else (480, 720)
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / f"{index:03d}.jpg", quality=90)


# --- what runs in a process of its own: python images.py CHILD ARGUMENTS


def export(kind: str, source: str, out: str, points: str, precisions: str, probes: str | None = None) -> dict[str, Any]:
    """Export, and say the seconds from the trace's beginning to the last graph, as `build.py` counts them.

    Verification is behind that: where `compare` or another export judges the numbers, a few probes do.
    """
    from matexport.export import export_family
    from matexport.spec.job import ExportJob, ParentSource
    from matexport.spec.profile import Point, Precision

    seen: dict[str, list[float]] = {}

    def note(stage: str, _done: int, _total: int) -> None:
        seen.setdefault(stage, []).append(time.perf_counter())

    asked = tuple(Point(*point) for point in json.loads(points))
    named = tuple(map(Precision, json.loads(precisions)))
    few = Path(probes) if probes else None
    job = ExportJob(ParentSource(source, kind=kind), asked, precisions=named, probes=few)
    exported = export_family(job, out, progress=note, quiet=True)
    worst = max(
        verdict.worst[1].max_abs for verdict in exported.verification.verdicts if verdict.profile.endswith("fp32")
    )
    return {"seconds": seen["cut"][-1] - seen["trace"][0], "parity": worst}


def export_one(source: str, out: str) -> dict[str, Any]:
    """The whole ViT by `torch.onnx.export`, as its documentation has it."""
    import torch
    import transformers as hf

    class Last(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = hf.ViTModel.from_pretrained(source, add_pooling_layer=False).eval()

        def forward(self, pixel_values: Any) -> Any:
            return self.model(pixel_values=pixel_values).last_hidden_state

    model, pixels = Last(), torch.zeros(2, 3, 224, 224)
    started = time.perf_counter()
    torch.onnx.export(
        model, (pixels,), out, dynamo=True, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), external_data=True
    )
    return {"seconds": time.perf_counter() - started}


def stay_on_few_cpus() -> None:
    """As many for all of a side, decoding included, as it has threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])


def run_ours(family: str, profile: str, pictures: str) -> dict[str, Any]:
    stay_on_few_cpus()
    import matexport

    files = sorted(Path(pictures).iterdir())
    embedder = matexport.Embedder(family, profile, threads=THREADS)
    embedder.embed(files[:8], batch_budget=8)
    started = time.perf_counter()
    embedder.embed(files, batch_budget=8)
    return {"rate": len(files) / (time.perf_counter() - started), "peak": read_peak()}


def run_theirs(source: str, pictures: str) -> dict[str, Any]:
    stay_on_few_cpus()
    import torch
    import transformers as hf
    from transformers.image_utils import load_image

    torch.set_num_threads(THREADS)
    model = hf.ViTModel.from_pretrained(source, add_pooling_layer=False).eval()
    processor = hf.AutoImageProcessor.from_pretrained(source)
    files = sorted(Path(pictures).iterdir())

    def embed(batch: list[Path]) -> None:
        inputs = processor(images=[load_image(str(file)) for file in batch], return_tensors="pt")
        with torch.inference_mode():
            torch.nn.functional.normalize(model(**inputs).last_hidden_state[:, 0])

    embed(files[:8])
    started = time.perf_counter()
    for start in range(0, len(files), 8):
        embed(files[start : start + 8])
    return {"rate": len(files) / (time.perf_counter() - started), "peak": read_peak()}


def compare(source: str, family: str, pictures: str) -> dict[str, Any]:
    """Our vectors of other pictures at every exit, and our pixels, against transformers on the same files."""
    import numpy as np
    import torch
    import transformers as hf
    from transformers.image_utils import load_image

    from matexport.export.kinds.probes.image import draw_probes
    from matexport.family.manifest import load_family
    from matexport.runtime.all_points import ExitsEmbedder
    from matexport.runtime.inputs.image import ImageInputs
    from matexport.spec.profile import Precision

    model = hf.ViTModel.from_pretrained(source, add_pooling_layer=False).eval()
    processor = hf.AutoImageProcessor.from_pretrained(source)
    files = sorted(Path(pictures).iterdir())[:4]
    pixels = processor(images=[load_image(str(file)) for file in files], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        states = model(pixel_values=pixels, output_hidden_states=True).hidden_states
        normed = [model.layernorm(state[:, 0]).numpy() for state in states]
    loaded = load_family(family)
    with ExitsEmbedder(loaded, Precision.FP32, threads=THREADS) as exits:
        (found,) = exits.embed_windows(files)
    worst = 0.0
    for point, vectors in found.items():
        cut = normed[point.layers][:, : point.dim]
        worst = max(worst, float(np.abs(vectors - cut / np.linalg.norm(cut, axis=1, keepdims=True)).max()))
    inputs, off, same, count = ImageInputs(loaded.facts.image), 0.0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        for probe in draw_probes():
            file = Path(folder) / probe.name
            file.write_bytes(probe.content)
            ours = inputs.feed(inputs.prepare([file]))["pixel_values"]
            theirs = processor(images=load_image(str(file)), return_tensors="np")["pixel_values"]
            off = max(off, float(np.abs(ours - theirs).max() * 127.5))
            same, count = same + int((ours == theirs).sum()), count + ours.size
    return {"parity": worst, "levels": off, "same": same / count}


def run_dims(family: str) -> dict[str, Any]:
    """Milliseconds of one image and bytes of a profile's weights, at the least and the largest dim, by turns.

    In fp32, and then in int8-static.
    """
    import matexport

    loaded = matexport.load_family(family)
    kinds = {
        kind: [each.name for each in loaded.profiles if each.precision == kind] for kind in ("fp32", "int8-static")
    }
    names = [found[end] for found in kinds.values() for end in (0, -1)]
    embedders = [matexport.Embedder(loaded, name, threads=1) for name in names]
    rows = embedders[0].prepare([embedders[0].inputs.short])
    runs: dict[str, list[float]] = {name: [] for name in names}
    for name, embedder in [(n, e) for _ in range(30) for n, e in zip(names, embedders, strict=True)]:
        started = time.perf_counter()
        embedder.run(rows)
        runs[name].append(1000 * (time.perf_counter() - started))
    sizes = [loaded.profile_facts(name).weights_prefix_bytes for name in names]
    return {"ms": [median(runs[name]) for name in names], "bytes": sizes, "profiles": names}


CHILDREN = {child.__name__: child for child in (export, export_one, run_ours, run_theirs, compare, run_dims)}


def read_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT_BYTES


def ask(child: str, *arguments: object) -> dict[str, Any]:
    environment = {"HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": str(THREADS)}
    finished = run_process([sys.executable, "-W", "ignore", __file__, child, *map(str, arguments)], **environment)
    found: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return found


def measure_folder(folder: Path, names: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(names))


def main() -> int:
    parser = make_parser("images", __doc__, repeats=5)
    parser.add_argument("--only", choices=PARTS, help="one part of it; each has a result file of its own")
    options = parser.parse_args()
    print_bars(BARS)
    settings = {"threads": THREADS, "batch": 8, "dims": DIMS, "scales": SCALES, "quick": options.quick}
    default, code = options.out, 0
    for part in [options.only] if options.only else PARTS:
        with tempfile.TemporaryDirectory(prefix="matexport-images-") as name:
            held, measured = PARTS[part](Path(name), options)
        options.out = RESULTS / f"images_{part}.json" if default == RESULTS / "images.json" else default
        code = max(code, finish(f"images_{part}", options, Report(held, measured, settings)))
    return code


def measure_vit(root: Path, options: argparse.Namespace) -> Any:
    repeats = count_repeats(options, quick=1)
    layers = (1, 2, 3) if options.quick else LAYERS
    parent, family, pictures = root / "vit", root / "family", root / "pictures"
    make_vit(parent, len(layers))
    write_pictures(pictures, 16 if options.quick else 64)
    write_pictures(few := root / "few", 2)
    points = [[depth, dim] for depth in layers for dim in DIMS]
    whole = [[len(layers), 768]]
    builds: dict[str, list[float]] = {"ours": [], "one": []}
    for turn, side in enumerate(take_turns(("ours", "one"), min(repeats, 3))):
        if side == "ours":
            out = root / f"built-{turn}"
            found = ask("export", "image", parent, out, json.dumps(points), '["fp32"]', few)
        else:
            (root / "one").mkdir(exist_ok=True)
            found = ask("export_one", parent, root / "one" / "model.onnx")
        builds[side].append(found["seconds"])
        say(f"ViT-B/16 {side}: {found['seconds']:.1f} s")
    ask("export", "image", parent, family, json.dumps(whole), '["fp32", "int8"]', few)
    compared = ask("compare", parent, root / "built-0", pictures)
    rates: dict[str, list[float]] = {"theirs": [], "fp32": [], "int8": []}
    peaks: dict[str, list[float]] = {side: [] for side in rates}
    for side in take_turns(tuple(rates), repeats):
        profile = f"L{len(layers):02d}-D768-{side}"
        found = ask("run_theirs", parent, pictures) if side == "theirs" else ask("run_ours", family, profile, pictures)
        rates[side].append(found["rate"])
        peaks[side].append(found["peak"])
        say(f"{side}: {found['rate']:.2f} images/s, {found['peak'] / 1e6:.0f} MB")
    middle = {side: median(found) for side, found in rates.items()}
    one = measure_folder(root / "one", "*")
    ours = measure_folder(root / "built-0", "*.onnx") + measure_folder(root / "built-0", "weights.*")
    held = [
        (PARITY, compared["parity"]),
        (BUILD, median(builds["ours"]) / median(builds["one"])),
        (DISK, ours / one),
        (FP32, middle["fp32"] / middle["theirs"]),
        (INT8, middle["int8"] / middle["theirs"]),
        (MEMORY, median(peaks["fp32"]) / median(peaks["theirs"])),
        (LEVELS, compared["levels"]),
    ]
    runs = {"builds": builds, "rates": rates, "peaks": peaks}
    return held, {"images_per_s": middle, "identical_pixels": compared["same"], "runs": runs}


def measure_tokens(root: Path, options: argparse.Namespace) -> Any:
    parent = root / "llava"
    make_llava(parent, options.quick)
    layer = 2 if options.quick else 23
    points = [[layer, 4096, count] for count in SCALES]
    together = ask("export", "visual-tokens", parent, root / "five", json.dumps(points), '["fp32"]')
    say(f"M3, five scales: {together['seconds']:.1f} s")
    write_pictures(few := root / "few", 2)
    alone = []
    for count in SCALES:
        out = root / f"alone-{count}"
        point = json.dumps([[layer, 4096, count]])
        alone.append(ask("export", "visual-tokens", parent, out, point, '["fp32"]', few))
    seconds = ", ".join(f"{found['seconds']:.1f}" for found in alone)
    say(f"M3, one by one: {seconds} s")
    disk = [
        measure_folder(root / folder, "*.onnx") + measure_folder(root / folder, "weights.*")
        for folder in ("five", f"alone-{SCALES[-1]}")
    ]
    held = [
        (TOKENS, sum(found["seconds"] for found in alone) / together["seconds"]),
        (TOKEN_DISK, disk[0] / disk[1]),
        (TOKEN_PARITY, together["parity"]),
    ]
    return held, {"m3_bytes": disk}


def measure_resnet(root: Path, _options: argparse.Namespace) -> Any:
    make_resnet(root / "resnet")
    points = [[16, 8 * 2**index] for index in range(9)]
    built = ask("export", "classifier", root / "resnet", root / "mrl", json.dumps(points), '["fp32", "int8-static"]')
    found = ask("run_dims", root / "mrl")
    for profile, ms, size in zip(found["profiles"], found["ms"], found["bytes"], strict=True):
        say(f"ResNet-50, {profile}: {ms:.1f} ms, {size} bytes")
    return [(RESNET, built["parity"])], {"resnet50": found}


PARTS = {"vit": measure_vit, "tokens": measure_tokens, "resnet": measure_resnet}


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in CHILDREN:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        print(json.dumps(CHILDREN[sys.argv[1]](*sys.argv[2:])))
        sys.exit(0)
    sys.exit(main())
