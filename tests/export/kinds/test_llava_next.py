"""M3 on LLaVA-NeXT end to end: an image's tokens against transformers' whole model, and what is wrong is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
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
from matexport.cli.main import main
from matexport.errors import FamilyError, ParentError, ParityError, RequestError
from matexport.export import export_family, pipeline
from matexport.export.blame import find_failing_stage
from matexport.export.kinds.probes.several import thin_out
from matexport.export.parents.vision import llava
from matexport.family.integrity import check_files
from matexport.family.manifest import MANIFEST, load_family
from matexport.family.modality import NEWLINE_FILE
from matexport.family.proof import load_probes, open_proof
from matexport.pack.write import pack_profile
from matexport.runtime.corpus.plan import plan_corpus
from matexport.runtime.inputs import tiles
from matexport.runtime.inputs.changes import find_changes, prepare_pairs
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.profile import Point, Precision, Profile

pytestmark = pytest.mark.usefixtures("quick_traces")

Floats = NDArray[np.float32]

SIDE, PATCH, BLOCKS, WIDTH, OUT = 24, 4, 4, 32, 40
GRID = SIDE // PATCH
SCALES = (1, 9, 36)
POINTS = tuple(Point(BLOCKS - 1, OUT, count) for count in SCALES)
PINPOINTS = ((24, 48), (48, 24), (48, 48), (72, 24), (24, 72))

#: (height, width) of pictures: cut above and below, left and right, not at all, three tiles, tiny.
SIZES = ((70, 90), (90, 76), (48, 48), (30, 95), (9, 4), (24, 48))


def make_next(folder: Path) -> Path:
    """A LLaVA-NeXT whose language model is one block, its scales in its configuration as M3's checkpoints have them."""
    torch.manual_seed(5)
    vision = hf.CLIPVisionConfig(
        hidden_size=WIDTH, num_hidden_layers=BLOCKS, num_attention_heads=4, intermediate_size=48, image_size=SIDE,
        patch_size=PATCH, projection_dim=24,
    )  # fmt: skip
    text = hf.LlamaConfig(
        hidden_size=OUT, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, vocab_size=64
    )
    config = hf.LlavaNextConfig(
        vision_config=vision, text_config=text, vision_feature_layer=-2, image_grid_pinpoints=list(map(list, PINPOINTS))
    )
    model = hf.LlavaNextForConditionalGeneration(config).eval()
    stir(model)
    model.save_pretrained(folder)
    edit_json(folder / "config.json", {llava.SCALES: list(SCALES)})
    processor = {"image_processor_type": "LlavaNextImageProcessor", "size": {"shortest_edge": SIDE}, "resample": 3,
                 "crop_size": {"height": SIDE, "width": SIDE}, "do_pad": True, "do_center_crop": True,
                 "image_grid_pinpoints": list(map(list, PINPOINTS))}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def edit_json(path: Path, changes: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def save_pictures(folder: Path, seed: int) -> list[Path]:
    folder.mkdir()
    draws = np.random.default_rng(seed)
    files = []
    for index, size in enumerate(SIZES):
        files.append(folder / f"{index}.png")
        Image.fromarray(draws.integers(0, 256, (*size, 3), np.uint8)).save(files[-1])
    return files


@pytest.fixture(scope="session")
def parent(shared: Path) -> Path:
    folder = shared / "llava-next"
    return make_once(folder, lambda: make_next(folder))


@pytest.fixture(scope="session")
def probes(shared: Path) -> Path:
    folder = shared / "tile-probes"
    return make_once(folder, lambda: save_pictures(folder, 1))


def make_job(parent: Path, probes: Path, **changes: Any) -> ExportJob:
    return replace(ExportJob(ParentSource(str(parent), kind="visual-tokens"), POINTS, probes=probes), **changes)


@pytest.fixture(scope="session")
def family(parent: Path, probes: Path, shared: Path) -> Path:
    def make() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline, "trace_exits", trace_once)
            export_family(make_job(parent, probes, precisions=(Precision.FP32, Precision.INT8)), folder)

    folder = shared / "family-llava-next"
    return make_once(folder, make)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return save_pictures(tmp_path_factory.mktemp("tiles") / "pictures", 2)


class Oracle:
    """transformers' whole model and processor, and by hand what M3 does between the projector and the merging."""

    def __init__(self, parent: Path) -> None:
        self.model = hf.LlavaNextForConditionalGeneration.from_pretrained(parent).eval().model
        try:
            self.processor = hf.AutoImageProcessor.from_pretrained(parent, backend="pil")
        except (TypeError, ValueError, ImportError):
            self.processor = hf.AutoImageProcessor.from_pretrained(parent, use_fast=False)

    def whole(self, file: Path, layer: int = -2) -> Floats:
        """(T, OUT) where nothing is averaged: the model's own `get_image_features`."""
        given = self._prepare(file)
        with torch.no_grad():
            found = self.model.get_image_features(**given, vision_feature_layer=layer)
        (tokens,) = getattr(found, "pooler_output", found)
        return tokens.numpy()  # type: ignore[no-any-return]

    def tokens(self, file: Path, count: int, *, layer: int = -2, first: bool = False) -> Floats:
        """(T, OUT): the same, each view averaged behind the projector, and merged as a grid of so many."""
        side = round(count**0.5)

        def average(rows: torch.Tensor) -> torch.Tensor:
            step = GRID // side
            squares = [rows.reshape(len(rows), GRID, GRID, -1)[:, top : top + step, left : left + step].mean((1, 2))
                       for top in range(0, GRID, step) for left in range(0, GRID, step)]  # fmt: skip
            return torch.stack(squares, dim=1)

        projector = self.model.multi_modal_projector
        vision = self.model.config.vision_config
        if first:
            hook = projector.register_forward_pre_hook(lambda _module, given: (average(given[0]),))
        else:
            hook = projector.register_forward_hook(lambda _module, _given, found: average(found))
        vision.patch_size = SIDE // side  # which merging alone reads of it by now
        try:
            return self.whole(file, layer)
        finally:
            vision.patch_size = PATCH
            hook.remove()

    def merged_first(self, file: Path, count: int) -> Floats:
        """(T', OUT): whole tiles are merged and unpadded, and only then averaged (over what is left of a square)."""
        whole, step = self.whole(file), GRID // round(count**0.5)
        base, merged = whole[: GRID * GRID], whole[GRID * GRID :]
        newline = self.model.image_newline.detach().numpy()
        columns = int(np.flatnonzero((merged == newline).all(axis=1))[0])
        grid = merged.reshape(-1, columns + 1, OUT)[:, :-1]
        squares = [[grid[top : top + step, left : left + step].reshape(-1, OUT).mean(0)
                    for left in range(0, columns, step)] for top in range(0, len(grid), step)]  # fmt: skip
        rows = [np.stack([*row, newline]) for row in squares]
        square = base.reshape(GRID // step, step, GRID // step, step, OUT).mean((1, 3)).reshape(-1, OUT)
        return np.concatenate([square, *rows])

    def _prepare(self, file: Path) -> dict[str, torch.Tensor]:
        with Image.open(file) as opened:
            given = self.processor(images=opened.convert("RGB"), return_tensors="pt")
        return {"pixel_values": given["pixel_values"], "image_sizes": given["image_sizes"]}


@pytest.fixture(scope="module")
def oracle(parent: Path) -> Oracle:
    return Oracle(parent)


def differ(one: Floats, other: Floats) -> bool:
    return one.shape != other.shape or bool(np.abs(one - other).max() > 1e-2)


@pytest.mark.parametrize("count", SCALES)
def test_tokens_are_those_of_the_oracle(count: int, family: Path, oracle: Oracle, pictures: list[Path]) -> None:
    with matexport.Embedder(family, f"L03-D040-T{count:03d}-fp32") as embedder:
        found = embedder.embed(pictures)
        streamed = list(embedder.embed_iter(pictures))
        alone = embedder.embed(pictures[:1])
    assert (found.shape, found.dtype) == ((len(pictures),), object)
    assert len({len(tokens) for tokens in found}) > 2  # of other sides, other numbers
    np.testing.assert_allclose(alone[0], found[0], atol=1e-5)
    for tokens, same, file in zip(found, streamed, pictures, strict=True):
        np.testing.assert_array_equal(tokens, same)
        expected = oracle.tokens(file, count)
        assert (tokens.dtype, tokens.shape) == (np.float32, expected.shape)
        np.testing.assert_allclose(tokens, expected, atol=2e-5 * max(1.0, np.abs(expected).max()))
        assert differ(tokens, oracle.tokens(file, count, layer=-1))
        assert differ(tokens, oracle.tokens(file, count, layer=-3))
        if count < max(SCALES):
            assert differ(tokens, oracle.tokens(file, count, first=True))
        else:
            np.testing.assert_array_equal(expected, oracle.whole(file))
    if count == 9:  # squares that unpadding would cut through
        assert differ(found[0], oracle.merged_first(pictures[0], count))
        assert differ(found[1], oracle.merged_first(pictures[1], count))
        assert not differ(found[2], oracle.merged_first(pictures[2], count))  # where nothing is cut they are the same


def test_the_family_says_how_images_are_cut_and_keeps_the_newline(family: Path, oracle: Oracle) -> None:
    loaded = load_family(family)
    facts = loaded.facts
    assert (facts.parent.architecture, facts.parent.blocks) == ("LlavaNextForConditionalGeneration", BLOCKS - 1)
    assert "LlavaNextModel.pack_image_features" in str(facts.parent.judge)
    assert facts.image is not None
    assert facts.image.tiles is not None
    assert facts.image.tiles.pinpoints == PINPOINTS
    assert NEWLINE_FILE in loaded.input_files
    newline = tiles.read_newline((family / NEWLINE_FILE).read_bytes())
    np.testing.assert_array_equal(newline, oracle.model.image_newline.detach().numpy())
    assert facts.shape_at(POINTS[1]) == (9 + 6 * 7, OUT)
    assert facts.graph_shape_at(POINTS[1]) == (9, OUT)
    names = (family / "weights.fp32.safetensors").read_bytes()[:20_000]
    assert b"image_newline" not in names
    assert matexport.verify_family(family).passed


RIGHT = tiles.merge_tiles


def _merge(views: Floats, size: tuple[int, int], pinpoints: Any) -> tuple[Floats, int, int, int]:
    """(rows, columns, d) of tiles side by side, how many tiles down and across, and the tokens on a tile's side."""
    part = round(views.shape[1] ** 0.5)
    height, width = tiles.choose_pinpoint(size, pinpoints)
    down, across = height // SIDE, width // SIDE
    rows = [np.concatenate([views[1 + row * across + column].reshape(part, part, OUT) for column in range(across)], 1)
            for row in range(down)]  # fmt: skip
    return np.concatenate(rows), down, across, part


def _end_rows(grid: Floats, newline: Floats) -> Floats:
    return np.concatenate([np.concatenate([row, newline[None]]) for row in grid]) if len(grid) else grid.reshape(0, OUT)


def newline_behind_each_tile(views: Floats, size: Any, *, pinpoints: Any, side: int, newline: Floats) -> Floats:
    grid, *_ = _merge(views, size, pinpoints)
    count = tiles.count_tokens(size, views.shape[1], pinpoints, side) - len(views[0])
    flat = np.concatenate([np.concatenate([tile, newline[None]]) for tile in views[1:]])
    return np.concatenate([views[0], flat[: min(count, grid.size)]])


def no_newline(views: Floats, size: Any, *, pinpoints: Any, side: int, newline: Floats) -> Floats:
    return RIGHT(views, size, pinpoints=pinpoints, side=side, newline=np.zeros_like(newline))


def without_unpadding(views: Floats, size: Any, *, pinpoints: Any, side: int, newline: Floats) -> Floats:
    grid, *_ = _merge(views, size, pinpoints)
    return np.concatenate([views[0], _end_rows(grid, newline)])


def unpadded_by_patches(views: Floats, size: Any, *, pinpoints: Any, side: int, newline: Floats) -> Floats:
    """What is cut is worked out before the average, and rounded up to the squares that it touches."""
    grid, down, across, part = _merge(views, size, pinpoints)
    rows, columns = tiles.find_kept(size, (down * GRID, across * GRID))
    step = GRID // part
    top, left = -(-rows.start // step), -(-columns.start // step)
    return np.concatenate([views[0], _end_rows(grid[top : len(grid) - top, left : grid.shape[1] - left], newline)])


def tiles_down_first(views: Floats, size: Any, *, pinpoints: Any, side: int, newline: Floats) -> Floats:
    _, down, across, _ = _merge(views, size, pinpoints)
    order = np.arange(down * across).reshape(across, down).T.reshape(-1) + 1
    return RIGHT(views[[0, *order]], size, pinpoints=pinpoints, side=side, newline=newline)


def the_whole_last(views: Floats, size: Any, *, pinpoints: Any, side: int, newline: Floats) -> Floats:
    merged = RIGHT(views, size, pinpoints=pinpoints, side=side, newline=newline)
    return np.concatenate([merged[len(views[0]) :], merged[: len(views[0])]])


def sides_exchanged(views: Floats, size: Any, *, pinpoints: Any, side: int, newline: Floats) -> Floats:
    grid, down, across, part = _merge(views, size, pinpoints)
    kept = grid[tiles.find_kept(size[::-1], (down * part, across * part))]
    return np.concatenate([views[0], _end_rows(kept, newline)])


WRONG = [newline_behind_each_tile, no_newline, without_unpadding, unpadded_by_patches, tiles_down_first, the_whole_last,
         sides_exchanged]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_verify_refuses_tiles_that_are_merged_otherwise(
    wrong: Callable[..., Floats], family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "merge_tiles", wrong)
    verdicts = matexport.verify_family(family).verdicts
    failed = {verdict.profile for verdict in verdicts if not verdict.passed}
    assert f"L03-D040-T{9:03d}-fp32" in failed


def test_an_export_refuses_tiles_that_are_merged_otherwise(
    parent: Path, probes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "merge_tiles", without_unpadding)
    with pytest.raises(ParityError, match=r"read-out: in torch, L03-D040-T... is not the parent's"):
        export_family(make_job(parent, probes), tmp_path / "family")


EXITS = llava.TokenExits


def average_first(parent: Any, counts: Any) -> Callable[..., Any]:
    class Wrong(EXITS):
        def read(self, pixels: torch.Tensor) -> Any:
            states = self.backbone(pixel_values=pixels, output_hidden_states=True).hidden_states
            tokens = [llava.average_squares(states[-1][:, 1:], count) for count in self._counts]
            return tuple(self.heads(token) for token in tokens), tuple(states)

    return Wrong(parent, counts)


def one_block_less(parent: Any, counts: Any) -> Callable[..., Any]:
    class Wrong(EXITS):
        def read(self, pixels: torch.Tensor) -> Any:
            states = self.backbone(pixel_values=pixels, output_hidden_states=True).hidden_states
            tokens = self.heads(states[-2][:, 1:])
            return tuple(llava.average_squares(tokens, count) for count in self._counts), tuple(states)

    return Wrong(parent, counts)


@pytest.mark.parametrize("wrong", [average_first, one_block_less])
def test_an_export_refuses_other_tokens(
    wrong: Any, parent: Path, probes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llava, "TokenExits", wrong)
    with pytest.raises(ParityError, match=r"read-out: in torch, L03-D040-T... is not the parent's"):
        export_family(make_job(parent, probes), tmp_path / "family")


def test_an_export_refuses_other_tiles(
    parent: Path, probes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "fit_into", lambda _size, pinpoint: pinpoint)  # without regard to its sides
    with pytest.raises(ParentError, match=r"gives other pixels for '0\.png'"):
        export_family(make_job(parent, probes), tmp_path / "family")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"points": (Point(3, OUT, 4),)}, "tokens=4 was asked; .* was trained at 1, 9, 36"),
        ({"points": (Point(3, OUT, 16),)}, "tokens=16 was asked; .* has 6 x 6 patches"),
        ({"points": (Point(4, OUT, 9),)}, r"layers=4 was asked; .* ask for layers = \[3\]"),
    ],
)
def test_what_a_job_cannot_ask(
    changes: Mapping[str, Any], words: str, parent: Path, probes: Path, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=words):
        export_family(make_job(parent, probes, **changes), tmp_path / "family")


@pytest.mark.parametrize(
    ("config", "processor", "words"),
    [
        ({}, {"image_grid_pinpoints": [[24, 48]]}, "merges tiles of .* its processor cuts images into tiles of"),
        ({}, {"image_processor_type": "CLIPImageProcessor", "image_grid_pinpoints": None}, "cuts images into tiles of"),
        ({}, {"image_grid_pinpoints": [[24, 30]]}, "24 x 30 is not cut into tiles of 24 x 24"),
        ({}, {"image_grid_pinpoints": [24, 48]}, r"is no list of \[height, width\]"),
        ({}, {"size": {"shortest_edge": 30}}, "tiles would be resized once more"),
        ({"mm_patch_merge_type": "flat"}, {}, "mm_patch_merge_type = 'flat' is not known of tiles"),
        ({"vision_feature_select_strategy": "full"}, {}, "keeps the class token"),
    ],
)
def test_a_folder_that_is_not_read(
    config: Mapping[str, Any], processor: Mapping[str, Any], words: str, parent: Path, probes: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(parent, tmp_path / "other"))
    edit_json(folder / "config.json", config)
    edit_json(folder / "preprocessor_config.json", processor)
    with pytest.raises(ParentError, match=words):
        export_family(make_job(folder, probes), tmp_path / "family")


@pytest.mark.parametrize("spoil", ["missing", "short", "nan"])
def test_a_newline_that_is_none(spoil: str, parent: Path, probes: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(parent, tmp_path / "other"))
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("image_newline"))
    newline = weights.pop(name)
    if spoil == "short":
        weights[name] = newline[:-1].clone()
    elif spoil == "nan":
        weights[name] = newline * float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    words = "no weights for model.image_newline" if spoil == "missing" else "is not 40 finite numbers"
    with pytest.raises(ParentError, match=words):
        export_family(make_job(folder, probes), tmp_path / "family")


def test_the_original_names_of_weights_are_read(family: Path, parent: Path, probes: Path, tmp_path: Path) -> None:
    """As the code of LLaVA and M3 saves them, in a folder that transformers knows."""
    folder = Path(shutil.copytree(parent, tmp_path / "original"))
    weights = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        plain = name.removeprefix("model.")
        if "language_model" in name or "lm_head" in name:
            continue
        tail = plain.partition("vision_tower.")[2].removeprefix("vision_model.")
        for ours, theirs in (("linear_1", "0"), ("linear_2", "2")):
            plain = plain.replace(f"multi_modal_projector.{ours}", f"mm_projector.{theirs}")
        weights[f"model.vision_tower.vision_tower.vision_model.{tail}" if tail else f"model.{plain}"] = tensor
    assert "model.image_newline" in weights
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert export_family(make_job(folder, probes), tmp_path / "family").verification.passed
    for name in ("weights.fp32.safetensors", NEWLINE_FILE):
        assert (tmp_path / "family" / name).read_bytes() == (family / name).read_bytes()


def test_a_proof_that_would_not_fit() -> None:
    """Of LLaVA-NeXT's own size, 4 probes of all 576 tokens fit, and with more tiles they do not."""
    from matexport.export.kinds.probes import image as image_probes
    from matexport.spec.inputs import ImageFacts, Resampling, TileFacts

    def make_facts(*pinpoints: tuple[int, int]) -> ImageFacts:
        return ImageFacts("pixels", 336, 336, (336, 336), Resampling.BICUBIC, 1.0, (0, 0, 0), (1, 1, 1),
                          tiles=TileFacts(pinpoints))  # fmt: skip

    probes = image_probes.draw_probes()
    names = [probe.name for probe in probes]
    points = [Point(23, 4096, count) for count in (1, 9, 36, 144, 576)]
    facts = make_facts((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
    chosen = thin_out(probes, points, facts)
    assert [probe.name for probe in chosen] == ["gradient.png", "wide.png", "tall.png", "large.png"]
    more = thin_out(probes, points[:3], facts)
    assert {"gradient.png", "text.png", "wide.png", "tall.png", "large.png"} < {probe.name for probe in more} < {*names}
    with pytest.raises(
        RequestError, match=r"5 points were asked, .* for each probe; .* ask for fewer points or tokens"
    ):
        thin_out(probes, points, make_facts((1344, 1344)))


def test_a_newline_that_was_exchanged(family: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(family, tmp_path / "family"))
    content = bytearray((folder / NEWLINE_FILE).read_bytes())
    content[-1] ^= 1
    (folder / NEWLINE_FILE).write_bytes(content)
    with pytest.raises(FamilyError, match=f"{NEWLINE_FILE} has another sha256"):
        matexport.Embedder(folder, "L03-D040-T009-fp32")


def set_tokens(facts: dict[str, Any], tokens: int, pinpoints: Sequence[Any] = ()) -> None:
    """Have a profile give so many tokens."""
    profile = facts["profiles"].pop("L03-D040-T009-fp32")
    facts["profiles"][f"L03-D040-T{tokens:03d}-fp32"] = profile | {"tokens": tokens}
    facts["image"]["tiles"]["pinpoints"] += pinpoints


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda facts: facts["image"]["tiles"]["pinpoints"].append([24, 30]), "24 x 30 is not cut into"),
        (lambda facts: facts["image"]["tiles"]["pinpoints"].append([24, 0]), "24 x 0 is not cut into"),
        (
            lambda facts: facts["image"]["tiles"]["pinpoints"].append([24 * 17, 24 * 17]),
            "is not cut into 1 to 256 tiles",
        ),
        (lambda facts: set_tokens(facts, 8), "gives no square of visual tokens"),
        (lambda facts: set_tokens(facts, 65_536, [[24 * 16, 24 * 16]]), "more than 268435456 numbers of an image"),
        (lambda facts: facts["image"]["tiles"]["pinpoints"].clear(), "0 pinpoints cannot be"),
        (lambda facts: facts["image"].update(resized=[24]), "beside an image resized to"),
        (lambda facts: facts["files"].pop(NEWLINE_FILE), f"does not list {NEWLINE_FILE}"),
        (lambda facts: facts["image"].update(tiles=None), "of no kind that export writes"),
    ],
)
def test_a_manifest_that_contradicts_itself(
    edit: Callable[[dict[str, Any]], object], words: str, family: Path, tmp_path: Path
) -> None:
    facts = json.loads((family / MANIFEST).read_text())
    edit(facts)
    (tmp_path / MANIFEST).write_text(json.dumps(facts))
    with pytest.raises(FamilyError, match=words):
        load_family(tmp_path)


def test_a_pack_gives_the_same_tokens(family: Path, pictures: list[Path], tmp_path: Path) -> None:
    pack_profile(family, "L03-D040-T009-fp32", tmp_path / "pack")
    with matexport.Embedder(tmp_path / "pack") as packed, matexport.Embedder(family, "L03-D040-T009-fp32") as whole:
        for one, other in zip(packed.embed(pictures), whole.embed(pictures), strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_command_writes_lines_and_no_array(
    family: Path, pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["embed", str(family), "--profile", "L03-D040-T009-fp32", *map(str, pictures)]
    assert main([*given, "--output", str(tmp_path / "v.npy")]) == 2
    assert "have differing numbers of tokens" in capsys.readouterr().err
    assert not (tmp_path / "v.npy").exists()
    assert main([*given, "--output", str(tmp_path / "v.jsonl")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    with matexport.Embedder(family, "L03-D040-T009-fp32") as embedder:
        expected = embedder.embed(pictures)
    for line, tokens, file in zip(lines, expected, pictures, strict=True):
        assert line["image"] == str(file)
        np.testing.assert_allclose(np.array(line["embedding"]), tokens, atol=1e-5)


def test_a_corpus_has_no_column_for_visual_tokens(family: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(RequestError, match="takes images, and a corpus with Ray is of texts"):
        plan_corpus(load_family(family), tmp_path, profile="L03-D040-T009-fp32", column="image", prompt=None)


def test_nothing_is_scored_on_visual_tokens(
    family: Path, pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index, file in enumerate(pictures):
        (tmp_path / "labelled" / f"{index % 2}").mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / "labelled" / f"{index % 2}")
    assert main(["evaluate", str(family), "--labelled", str(tmp_path / "labelled")]) == 2
    assert "tokens for each image, and a task compares vectors" in capsys.readouterr().err


@pytest.mark.parametrize(("precision", "blamed"), [("fp32", None), ("int8", "cut")])
def test_a_stage_is_judged_by_an_images_tokens(
    precision: str, blamed: str | None, family: Path, tmp_path: Path
) -> None:
    """The graph itself, and the one of rounded weights in its place."""
    folder = Path(shutil.copytree(family, tmp_path / "family"))
    loaded = load_family(folder)
    graph = ir.load(folder / loaded.profile_facts(f"L03-D040-T009-{precision}").graph)
    found = find_failing_stage(
        loaded,
        Profile.parse("L03-D040-T009-fp32"),
        [("cut", lambda: graph, "visual_tokens")],
        tolerance=loaded.facts.tolerances[Precision.FP32],
    )
    assert found == blamed


def test_the_card_says_what_comes_out(family: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(family, tmp_path / "family"))
    assert main(["report", str(folder)]) == 0
    assert "# 2 arrays of (up to " in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("pinpoint", "words"), [([240, 24], "tiles differ"), ([48, 96], "pixels differ: . of 6 images")]
)
def test_families_that_cut_otherwise_are_not_compared(
    pinpoint: list[int], words: str, family: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(family, tmp_path / "family"))
    facts = json.loads((folder / MANIFEST).read_text())
    facts["image"]["tiles"]["pinpoints"].append(pinpoint)
    (folder / MANIFEST).write_text(json.dumps(facts))
    new, old = load_family(folder), load_family(family)
    probes = load_probes(open_proof(old))
    contents = [check_files(one, one.input_files) for one in (new, old)]
    assert find_changes(old, old, prepare_pairs(contents[1], contents[1], probes)) == ([], [])
    (reason,), _ = find_changes(new, old, prepare_pairs(*contents, probes))
    assert re.match(words, reason)
