"""CLIP and SigLIP as two families of one folder: texts and images in one space, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from commandline import Run
from conftest import make_once, write_texts
from forge import flip_byte
from memory import trace_once
from msgspec.structs import replace
from vision import BLOCKS, TOWERS, Floats, TextOracle, make_pair, prepare, save_images

import matexport
from matexport.errors import DestinationError, FamilyError, ParentError, ParityError, RequestError
from matexport.export import export_family, export_towers, pipeline
from matexport.export.kinds.probes import image as image_probes
from matexport.export.parents.vision import text_tower
from matexport.io.jobs import load_job
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.profile import Point, Precision
from matexport.spec.readout import FinalNorm, PoolingMode, ReadoutRequest
from matexport.towers import TwoTowerEmbedder, load_towers

pytestmark = pytest.mark.usefixtures("quick_traces")

POINTS = (Point(1, 8), Point(2, 24), Point(3, 24))
#: The fourth ends before its own end for CLIP, the fifth is longer than 20 tokens.
SAYINGS = ["the cat sits on the mat", "dog", "a big red house, 42!", "the <end> cat is big", "snow " * 40]


@pytest.fixture(scope="session")
def pairs(shared: Path) -> Callable[[str], Path]:
    """Kind -> the folder of a small random model with two towers."""
    return lambda kind: make_once(shared / f"pair-{kind}", lambda: make_pair(shared / f"pair-{kind}", kind))


@pytest.fixture(scope="session")
def few(shared: Path) -> Path:
    """A user's own folder of probes: two of the shipped ones."""

    def make() -> None:
        folder.mkdir()
        for probe in image_probes.draw_probes():
            if probe.name in ("gradient.png", "wide.png"):
                (folder / probe.name).write_bytes(probe.content)

    folder = shared / "two-probes"
    return make_once(folder, make)


def make_job(parent: Path, probes: Path, **changes: Any) -> ExportJob:
    return replace(ExportJob(ParentSource(str(parent), kind="two-towers"), POINTS, probes=probes), **changes)


def make_text_job(parent: Path, **changes: Any) -> ExportJob:
    return replace(ExportJob(ParentSource(str(parent), kind="text-tower"), POINTS), **changes)


@pytest.fixture(scope="session")
def made(pairs: Callable[[str], Path], few: Path, shared: Path) -> Callable[[str], Path]:
    """Kind -> its two families. Not to be changed: copy them."""

    def export(kind: str) -> Path:
        def make() -> None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(pipeline, "trace_exits", trace_once)
                export_towers(make_job(pairs(kind), few), folder)

        folder = shared / f"families-{kind}"
        return make_once(folder, make)

    return export


def embed_image(parent: Path, kind: str, file: Path, layers: int, dim: int) -> Floats:
    """(dim,) float32 at length 1: of the whole model, which knows nothing of profiles."""
    model: Any = (hf.CLIPModel if kind == "clip" else hf.SiglipModel).from_pretrained(parent).eval()
    tower = model.vision_model
    with torch.no_grad():
        pixels = torch.from_numpy(prepare(file, TOWERS[kind][1]))[None]
        state = tower.post_layernorm(tower(pixel_values=pixels, output_hidden_states=True).hidden_states[layers])
        whole = model.visual_projection(state[:, 0]) if kind == "clip" else tower.head(state)
    cut = whole[0].numpy()[:dim]
    return np.asarray(cut / np.linalg.norm(cut), np.float32)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_texts_and_images_are_those_of_the_oracle(
    kind: str, made: Callable[[str], Path], pairs: Callable[[str], Path], tmp_path: Path
) -> None:
    oracle, files = TextOracle(pairs(kind), kind), save_images(tmp_path, 2)
    for point in POINTS:
        texts = [oracle.vector(text, point.layers, point.dim) for text in SAYINGS]
        images = [embed_image(pairs(kind), kind, file, point.layers, point.dim) for file in files]
        with TwoTowerEmbedder(made(kind), f"{point.name}-fp32") as embedder:
            found = embedder.embed([SAYINGS[0], files[0], *SAYINGS[1:], files[1]])
            alone = embedder.text.embed(SAYINGS[:1])
        np.testing.assert_allclose(found, [texts[0], images[0], *texts[1:], images[1]], atol=2e-5)
        np.testing.assert_allclose(alone, texts[:1], atol=2e-5)
        # What would be wrong is another vector, so that the bound above says something.
        other = oracle.vector(SAYINGS[0], point.layers % BLOCKS + 1, point.dim)
        unnormed = oracle.vector(SAYINGS[0], point.layers, point.dim, norm=False)
        before = oracle.vector(SAYINGS[0], point.layers, point.dim, token=1)
        assert all(np.abs(texts[0] - wrong).max() > 1e-3 for wrong in (other, unnormed, before))


def test_clip_reads_the_first_end_of_a_text_and_not_its_last_token(
    made: Callable[[str], Path], pairs: Callable[[str], Path]
) -> None:
    oracle = TextOracle(pairs("clip"), "clip")
    ids = oracle.tokenizer(SAYINGS[3])["input_ids"]
    assert ids.index(ids[-1]) < len(ids) - 1
    with matexport.Embedder(made("clip") / "text", "L03-D024-fp32") as embedder:
        (found,) = embedder.embed([SAYINGS[3]])
    np.testing.assert_allclose(found, oracle.vector(SAYINGS[3], 3, 24), atol=2e-5)
    assert np.abs(found - oracle.vector(SAYINGS[3], 3, 24, token=len(ids) - 1)).max() > 1e-3


def test_an_end_that_the_configuration_has_wrong_is_the_greatest_id(tmp_path: Path) -> None:
    """As transformers does where ``eos_token_id`` is 2, which it is in the checkpoints that OpenAI gave."""
    parent = make_pair(tmp_path / "parent", "clip", eos=2)
    export_family(make_text_job(parent), tmp_path / "family")
    oracle = TextOracle(parent, "clip")
    with matexport.Embedder(tmp_path / "family", "L02-D024-fp32") as embedder:
        np.testing.assert_allclose(embedder.embed(SAYINGS), [oracle.vector(text, 2, 24) for text in SAYINGS], atol=2e-5)


def test_rows_of_siglip_are_always_full(made: Callable[[str], Path], pairs: Callable[[str], Path]) -> None:
    family = matexport.load_family(made("siglip") / "text")
    assert (family.text.full, family.text.max_tokens, family.text.inputs) == (True, 20, ("input_ids",))
    with matexport.Embedder(family, "L01-D008-fp32") as embedder:
        rows = embedder.prepare(["dog", "snow " * 40])
        assert [len(row.ids) for row in rows] == [20, 20]
        assert list(rows[0].ids)[2:] == [2] * 18, "dog, its end, and what pads"
        assert embedder.feed(rows[:1])["input_ids"].shape == (1, 20)
    oracle = TextOracle(pairs("siglip"), "siglip")
    ids = oracle.tokenizer("dog")["input_ids"]
    with torch.no_grad():
        short = oracle.model.text_model(input_ids=torch.tensor([ids])).pooler_output[0].numpy()[:24]
    whole = oracle.vector("dog", 3, 24)
    assert np.abs(short / np.linalg.norm(short) - whole).max() > 1e-3, "a row that is not full is another vector"
    plan = matexport.BenchPlan(profiles=("L01-D008-fp32",), threads=(1,), runs=1)
    assert [*matexport.bench_family(family, plan).profiles["L01-D008-fp32"].threads[1].latency] == ["1x20", "16x20"]
    with pytest.raises(RequestError, match=r"1x16 was asked; the parent takes rows of 20 tokens, always full"):
        matexport.bench_family(family, dataclasses.replace(plan, shapes=((1, 16),)))


def test_a_norm_that_is_dropped_is_dropped_before_the_last_block_alone(
    pairs: Callable[[str], Path], tmp_path: Path
) -> None:
    job = make_text_job(pairs("clip"), readout=ReadoutRequest(final_norm=FinalNorm.DROP))
    export_family(job, tmp_path / "family")
    oracle = TextOracle(pairs("clip"), "clip")
    for layers in (2, 3):
        with matexport.Embedder(tmp_path / "family", f"L0{layers}-D024-fp32") as embedder:
            expected = [oracle.vector(text, layers, 24, norm=layers == BLOCKS) for text in SAYINGS]
            np.testing.assert_allclose(embedder.embed(SAYINGS), expected, atol=2e-5)


def test_every_precision_keeps_its_floor(tmp_path: Path) -> None:
    parent = make_pair(tmp_path / "parent", "siglip", gain=1)
    job = make_text_job(parent, precisions=tuple(Precision), calibration=write_texts(tmp_path / "texts.txt"))
    exported = export_family(job, tmp_path / "family")
    assert exported.family.facts.refused == {}
    assert {profile.precision for profile in exported.family.profiles} == set(Precision)


# --- what is wrong, subtly, in what is traced or stored


def read_one_block_on(self: Any, state: torch.Tensor, place: Any, last: bool) -> torch.Tensor:
    layer = self.backbone.text_model.encoder.layers[0]
    return READ(self, state if last else layer(state, None), place, last)


def norm_after_the_map(self: Any, state: torch.Tensor, place: torch.Tensor, last: bool) -> torch.Tensor:
    token = state.gather(1, place.expand(-1, 1, state.shape[2]))[:, 0]
    norm = self.backbone.text_model.final_layer_norm
    mapped = self.backbone.text_projection(token)
    return torch.nn.functional.layer_norm(mapped, (24,), norm.weight[:24], norm.bias[:24], norm.eps)


def read_the_last_token(self: Any, state: torch.Tensor, place: torch.Tensor, last: bool) -> torch.Tensor:
    return READ(self, state, torch.full_like(place, state.shape[1] - 1), last)


READ = text_tower.TextTowerExits._read


@pytest.mark.parametrize("wrong", [read_one_block_on, norm_after_the_map, read_the_last_token])
def test_a_wrong_read_out_is_refused(
    wrong: Any, pairs: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_tower.TextTowerExits, "_read", wrong)
    with pytest.raises(ParityError, match=r"read-out: in torch, L0.-D0.. is not the parent's"):
        export_family(make_text_job(pairs("clip")), tmp_path / "family")
    assert not (tmp_path / "family").exists()


def change_tokenizer(folder: Path, change: Callable[[Any], object]) -> None:
    path = folder / "tokenizer.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    change(written)
    path.write_text(json.dumps(written), encoding="utf-8")


def test_a_tokenizer_that_pads_otherwise_is_refused(pairs: Callable[[str], Path], tmp_path: Path) -> None:
    """Its file says another token than transformers pads with, which SigLIP attends to."""
    parent = Path(shutil.copytree(pairs("siglip"), tmp_path / "parent"))
    facts = text_tower.describe_text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_tower, "describe_text", lambda *given: replace(facts(*given), pad_token_id=1))
        with pytest.raises(
            ParentError, match=r"other tokens than tokenizer\.json .*: \[2, 2, 2, 2\] and \[1, 1, 1, 1\]"
        ):
            export_family(make_text_job(parent), tmp_path / "family")


def test_two_families_of_other_weights_are_no_towers(made: Callable[[str], Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(made("clip"), tmp_path / "copy"))
    path = copy / "image" / "family.json"
    facts = json.loads(path.read_text())
    (name,) = facts["parent"]["weights"]
    facts["parent"]["weights"][name] = "0" * 64
    path.write_text(json.dumps(facts))
    with pytest.raises(FamilyError, match=r"were cut from other weights .* cannot be compared"):
        load_towers(copy)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[", "is not JSON"),
        ('{"schema": 9, "points": {}}', "is not of schema 1"),
        ('{"schema": 1, "points": {}}', "names no points"),
        ('{"schema": 1, "points": {"L01-D008": "L01-D024"}}', "have different dims"),
        ('{"schema": 1, "points": {"L01-D008": "../x"}}', "are not two points"),
        ('{"schema": 1, "points": {"L09-D008": "L01-D008"}}', "have no profiles that go together"),
        ('{"schema": 1, "points": ["L01"]}', "points"),
    ],
)
def test_what_says_which_points_go_together_may_be_wrong(
    content: str, words: str, made: Callable[[str], Path], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(made("clip"), tmp_path / "copy"))
    (copy / "towers.json").write_text(content)
    with pytest.raises(FamilyError, match=words):
        load_towers(copy)


# --- jobs and commands


def test_the_commands(
    pairs: Callable[[str], Path], few: Path, made: Callable[[str], Path], tmp_path: Path, run: Run
) -> None:
    job = tmp_path / "clip.toml"
    job.write_text(
        f'[parent]\nsource = "{pairs("clip")}"\nkind = "two-towers"\n[points]\npairs = [[1, 8], [2, 24], [3, 24]]\n'
        f'[probes]\nfile = "{few}"\n'
    )
    out = Path(shutil.copytree(made("clip"), tmp_path / "clip"))
    said = run("export", job, "--out", out)
    assert f"{out / 'text'}: up to date, 3 profiles" in said.out
    assert f"{out / 'image'}: up to date, 3 profiles" in said.out
    assert run("verify", out).out.count("passed: 3 profiles are the parent at their points") == 2
    assert "CLIPTextModelWithProjection" in run("show", out).out
    (file,) = save_images(tmp_path / "pictures", 1)
    lines = [
        json.loads(line)
        for line in run("embed", out, "--profile", "L02-D024-fp32", "dog", file, "cat").out.splitlines()
    ]
    assert [line.get("text", line.get("image")) for line in lines] == ["dog", str(file), "cat"]
    with TwoTowerEmbedder(out, "L02-D024-fp32") as embedder:
        np.testing.assert_allclose(
            [line["embedding"] for line in lines], embedder.embed(["dog", file, "cat"]), atol=1e-6
        )
        with pytest.raises(RequestError, match=r"item 1 is the text .* which names an image: give Path"):
            embedder.embed(["dog", str(file)])
    pack = tmp_path / "pack"
    run("pack", out, "L02-D024-fp32", pack)
    run("embed", pack, "dog", tmp_path / "pictures", "--output", tmp_path / "v.npy")
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), [lines[0]["embedding"], lines[1]["embedding"]], atol=1e-6)
    assert (tmp_path / "v.names.txt").read_text().splitlines() == ["dog", str(file)]
    texts = tmp_path / "texts.txt"
    texts.write_text("dog\ncat\n")
    of_texts = [json.loads(line) for line in run("embed", pack, "--input", texts).out.splitlines()]
    assert [line["text"] for line in of_texts] == ["dog", "cat"]
    assert "passed" in run("verify", pack, "--baseline", out).out
    run("pack", out, "L02-D024-fp32", pack).complains("it holds two families; pass --overwrite to replace them")
    (pack / "README.md").write_text("# mine")
    (pack / ".gitattributes").touch()
    for licence in ("LICENSE", "text/NOTICE"):
        (out / licence).write_bytes(b"terms")
    assert run("pack", out, "L02-D024-fp32", pack, "--overwrite").code == 0
    there = {"text", "image", "towers.json", "README.md", ".gitattributes", "LICENSE"}
    assert {path.name for path in pack.iterdir()} == there
    assert (pack / "text" / "NOTICE").read_bytes() == (pack / "LICENSE").read_bytes() == b"terms"
    assert run("verify", pack).code == 0
    for thesis in (pack / "thesis.tex", pack / "text" / "thesis.tex"):
        thesis.touch()
        run("pack", out, "L02-D024-fp32", pack, "--overwrite").complains("thesis.tex")
        thesis.unlink()
    run("pack", out, "L09-D024-fp32", tmp_path / "p").complains("profile 'L09-D024-fp32' was asked", "L02-D024-fp32")
    assert 'its text tower; kind = "two-towers" exports both' in run("init", pairs("clip"), "--out", "-").out
    run("bench", out).complains(f"holds two families, {out / 'text'} and {out / 'image'}: name one of them")
    document = run("verify", out, "--json", "--junit", tmp_path / "x.xml").json
    assert document["text"]["passed"]
    assert document["image"]["passed"]
    assert document["pairs"]["L02-D024-fp32"] == "L02-D024-fp32"
    assert {path.name for path in tmp_path.glob("x*.xml")} == {"x-text.xml", "x-image.xml"}
    assert run("show", out, "--json").json["image"]["facts"]["parent"]["blocks"] == 3
    for wrong in ("catt.jpg", "nothere/"):
        run("embed", out, "--profile", "L02-D024-fp32", "a cat", wrong).complains(f"{wrong} is no file and no folder")
    broken = tmp_path / "broken.png"
    broken.write_bytes(file.read_bytes()[:50])
    said = run("embed", out, "--profile", "L02-D024-fp32", "dog", broken, file)
    assert (said.code, said.out.count("\n")) == (2, 2)
    assert "1 of 2 images could not be read" in said.err
    flip_byte(out / "image" / "weights.fp32.safetensors", -5)
    assert run("verify", out).code == 1


def test_towers_of_other_depths_go_together_as_the_job_says(few: Path, tmp_path: Path, run: Run) -> None:
    make_pair(tmp_path / "parent", "clip", text_blocks=2)
    job = tmp_path / "clip.toml"
    head = '[parent]\nsource = "parent"\nkind = "two-towers"\n'
    job.write_text(f"{head}[points]\nlayers = [2, 3]\ndims = [8]\n")
    run("export", job).complains("has 3 blocks for images and 2 for texts", "text_layers = [1, 2]")
    for wrong in ("text_layers = [1]", "text_layers = [0, 1]", "text_layers = [1, 1, 2]"):
        job.write_text(f"{head}[points]\nlayers = [2, 3]\ndims = [8]\n{wrong}\n")
        run("export", job).complains("one number of at least 1 for each of layers = [2, 3]")
    job.write_text(f'{head}[points]\nlayers = [2, 3]\ndims = [8]\ntext_layers = [1, 2]\n[probes]\nfile = "{few}"\n')
    assert load_job(job).text_layers == {2: 1, 3: 2}
    towers = export_towers(load_job(job), tmp_path / "out")
    assert [profile.name for profile in towers["text"].family.profiles] == ["L01-D008-fp32", "L02-D008-fp32"]
    found = load_towers(tmp_path / "out")
    assert found.profiles == {"L02-D008-fp32": "L01-D008-fp32", "L03-D008-fp32": "L02-D008-fp32"}
    oracle = TextOracle(tmp_path / "parent", "clip")
    with TwoTowerEmbedder(found, "L02-D008-fp32") as embedder:
        np.testing.assert_allclose(embedder.embed(["dog"]), [oracle.vector("dog", 1, 8)], atol=2e-5)
    assert "L03-D008-fp32 of images goes with L02-D008-fp32 of texts" in run("show", tmp_path / "out").out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"points": (Point(4, 8),)}, "layers=4 was asked; .* has 3 blocks"),
        ({"points": (Point(3, 25),)}, "dim=25 was asked; .* have 24 coordinates"),
        ({"points": (Point(3, 8, 4),)}, "tokens=4 was asked"),
        ({"vocabulary": "script:Latin"}, "vocabulary = 'script:Latin' was asked"),
        ({"readout": ReadoutRequest(pooling=PoolingMode.MEAN)}, "pooling = mean was asked; .* by its own pooler alone"),
        ({"readout": ReadoutRequest(max_tokens=21)}, "max_tokens = 21 was asked; .* takes 1 to 20"),
        ({"readout": ReadoutRequest(features=True)}, "features = True was asked"),
        ({"readout": ReadoutRequest(image_size=28)}, "image_size = 28 was asked"),
    ],
)
def test_what_a_text_tower_does_not_have_is_refused(
    changes: dict[str, Any], words: str, pairs: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=words):
        export_family(make_text_job(pairs("clip"), **changes), tmp_path / "family")


def test_what_else_is_refused(pairs: Callable[[str], Path], few: Path, towers_of_one: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"max_tokens = 10 was asked; .* rows of 20 tokens, always full"):
        export_family(make_text_job(pairs("siglip"), readout=ReadoutRequest(max_tokens=10)), tmp_path / "family")
    bare = Path(shutil.copytree(pairs("clip"), tmp_path / "bare"))
    (bare / "tokenizer.json").unlink()
    with pytest.raises(ParentError, match=r"has no tokenizer\.json"):
        export_family(make_text_job(bare), tmp_path / "family")
    with pytest.raises(RequestError, match="'clip_vision_model', which has one: ask for 'text-tower' or 'image'"):
        export_towers(make_job(towers_of_one, few), tmp_path / "family")
    with pytest.raises(RequestError, match="export_towers makes them"):
        export_family(make_job(pairs("clip"), few), tmp_path / "family")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(DestinationError, match=r"holds notes\.txt, which is of no two families"):
        export_towers(make_job(pairs("clip"), few), tmp_path / "mine")


@pytest.fixture(scope="session")
def towers_of_one(shared: Path) -> Path:
    from vision import make_tower

    return make_once(shared / "tower-clip", lambda: make_tower(shared / "tower-clip", "clip"))


def test_images_are_prepared_once_where_graphs_do_it(
    pairs: Callable[[str], Path], few: Path, tmp_path: Path, run: Run
) -> None:
    job = make_job(pairs("clip"), few, preprocess_in_graph=True, points=POINTS[1:2])
    export_towers(job, tmp_path / "out")
    (file,) = save_images(tmp_path / "pictures", 1)
    lines = [json.loads(line) for line in run("embed", tmp_path / "out", "a cat", file).out.splitlines()]
    expected = embed_image(pairs("clip"), "clip", file, 2, 24)
    np.testing.assert_allclose(lines[1]["embedding"], expected, atol=2e-5)


def test_what_is_wrong_with_images_is_said_before_texts_are_exported(
    pairs: Callable[[str], Path], few: Path, tmp_path: Path
) -> None:
    job = make_job(pairs("clip"), few, readout=ReadoutRequest(image_size=15))
    with pytest.raises(RequestError, match="image_size"):
        export_towers(job, tmp_path / "out")
    assert not (tmp_path / "out" / "text").exists()
