"""A first look at a parent: what is said of it, where it was trained, and that export takes what comes of it."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cases
import jinja2
import msgspec
import pytest
import sentence_transformers
from cases import CASES, LONG_ROPE, Case, build_router, build_static, edit, weigh_layers, write_json
from conftest import TEXTS
from parents import BLOCKS, WIDTH, calm, make_parent
from sentence_transformers import SentenceTransformer

from matexport.errors import MatexportError, ParentError, RequestError
from matexport.export import export_family
from matexport.export.outline import list_routes, outline_parent
from matexport.export.parents import text as planning
from matexport.export.parents.preflight import locate
from matexport.export.parents.text import plan_parent
from matexport.export.trained import MOST_BYTES, MOST_LOSSES, MOST_NUMBERS, Shape, find_trained
from matexport.io.files import hash_file
from matexport.io.job_file import render_job
from matexport.io.jobs import load_job
from matexport.io.proposal import Outline, Selection, choose_points, choose_precisions
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.profile import Point, Precision
from matexport.spec.readout import FinalNorm, PoolingMode

SETTINGS = "config_sentence_transformers.json"
SHAPE = Shape(BLOCKS, WIDTH)
FP32 = (Precision.FP32,)
ALL_DEPTHS = tuple(range(1, BLOCKS + 1))


def look(folder: Path | str, **options: Any) -> Outline:
    return outline_parent(ParentSource(str(folder), **options), Path())


def write_and_load(outline: Outline, folder: Path, selection: Selection | None = None) -> ExportJob:
    path = folder / "job.toml"
    path.write_text(render_job(outline, choose_points(outline, selection), FP32, None), encoding="utf-8")
    return load_job(path)


def grid(layers: Any, dims: Any) -> tuple[Point, ...]:
    return tuple(sorted(Point(layer, dim) for layer in layers for dim in dims))


@pytest.fixture
def small(parent: Path, tmp_path: Path) -> Path:
    """A copy of the small BERT that a test may spoil."""
    return Path(shutil.copytree(parent, tmp_path / "copy"))


@pytest.fixture(autouse=True)
def _no_weights_while_looking(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "loads" not in request.keywords:
        monkeypatch.setattr(planning, "open_loaded", lambda *_parent: pytest.fail("weights were loaded"))


# --- where it was trained, by file


@pytest.mark.parametrize(
    ("content", "points"),
    [
        ({"pairs": [[2, 8], [1, 32], [2, 8]]}, (Point(1, 32), Point(2, 8))),
        ({"layers": [1, 3], "dims": [8, 16], "recipe": "x"}, grid([1, 3], [8, 16])),
        ({"dims": [8, 16]}, grid([BLOCKS], [8, 16])),
        ({"layers": [1, 2]}, grid([1, 2], [WIDTH])),
    ],
)
def test_matryoshka_json_says_it_outright(content: object, points: tuple[Point, ...], tmp_path: Path) -> None:
    write_json(tmp_path / "matryoshka.json", content)
    trained, odd = find_trained(tmp_path, SHAPE)
    assert trained is not None
    assert (trained.points, trained.source, trained.raw, odd) == (points, "matryoshka.json", False, ())


@pytest.mark.parametrize(
    ("content", "left", "odd"),
    [
        ({"pairs": [[1, 8], [4, 8], [1, 33], [0, 8], [1, 0], [-1, 8]]}, [(1, 8)], "[[4, 8], [1, 33], [0, 8]"),
        ({"pairs": [[1, 8], [True, 8], [1.0, 8], ["1", 8], [1], 3, None]}, [(1, 8)], "[[true, 8], [1.0, 8]"),
        ({"pairs": "all"}, None, 'pairs is "all"'),
        ({"pairs": []}, None, ""),
        ({"pairs": [[1, 8]] * (MOST_NUMBERS + 1)}, None, "no list of at most"),
        ({"dims": [8, 33, 0, -8, 8.0, True, 10**30]}, [(3, 8)], "[33, 0, -8, 8.0, true"),
        ({"dims": list(range(MOST_NUMBERS + 1))}, None, "no list of at most"),
        ({"dims": []}, None, "no list"),
        ({"layers": [4]}, None, "layers names [4]; this parent has 1 to 3"),
        ({"layers": {"1": 2}, "dims": [8]}, None, "layers is"),
        ({"recipe": "x"}, None, "neither pairs nor layers nor dims"),
        ([1], None, "no JSON object"),
    ],
)
def test_what_the_parent_does_not_have_is_left_out_and_said(
    content: object, left: list[tuple[int, int]] | None, odd: str, tmp_path: Path
) -> None:
    write_json(tmp_path / "matryoshka.json", content)
    trained, said = find_trained(tmp_path, SHAPE)
    assert (trained and [(point.layers, point.dim) for point in trained.points]) == left
    assert bool(said) == bool(odd)
    assert odd in "".join(said)
    assert all(len(sentence) < 300 for sentence in said)


def render_loss(loss: Any) -> str:
    """What sentence-transformers itself writes of a loss: that piece of its own template."""
    template = next(Path(sentence_transformers.__file__).parent.rglob("model_card_template.md")).read_text()
    piece = template[template.index("* Loss: ") :].partition("{% if dataset_list | length > 3 %}</details>")[0]
    fullname = f"{type(loss).__module__}.{type(loss).__name__}"
    code = "\n".join(
        f"  {line}" for line in f"```json\n{json.dumps(loss.get_config_dict(), indent=4)}\n```".split("\n")
    )
    return jinja2.Template(piece).render(dataset={"loss": {"fullname": fullname, "config_code": code}})


@pytest.fixture(scope="module")
def losses(parent: Path) -> Callable[[str], Any]:
    try:
        stock: Any = importlib.import_module("sentence_transformers.sentence_transformer.losses")
    except ImportError:  # before 6.0
        stock = importlib.import_module("sentence_transformers.losses")
    model = SentenceTransformer(str(parent), device="cpu")
    base = stock.MultipleNegativesRankingLoss(model)

    def make(name: str) -> Any:
        dims = [32, 16, 8]
        return {
            "MatryoshkaLoss": lambda: stock.MatryoshkaLoss(model, base, dims),
            "Matryoshka2dLoss": lambda: stock.Matryoshka2dLoss(model, base, dims),
            "AdaptiveLayerLoss": lambda: stock.AdaptiveLayerLoss(model, base),
            "around": lambda: stock.AdaptiveLayerLoss(model, stock.MatryoshkaLoss(model, base, dims)),
            "base": lambda: base,
        }[name]()

    return make


@pytest.mark.parametrize(
    ("name", "points", "raw"),
    [
        ("MatryoshkaLoss", grid([BLOCKS], [8, 16, 32]), False),
        ("Matryoshka2dLoss", grid(ALL_DEPTHS, [8, 16, 32]), True),
        ("AdaptiveLayerLoss", grid(ALL_DEPTHS, [WIDTH]), True),
    ],
)
def test_a_card_that_sentence_transformers_wrote(
    name: str, points: tuple[Point, ...], raw: bool, losses: Callable[[str], Any], tmp_path: Path
) -> None:
    piece = render_loss(losses(name))
    assert f"<code>{name}</code>" in piece
    (tmp_path / "README.md").write_text(f"---\ntags:\n- loss:{name}\n---\n# A model\n\n{piece}\n\n### Training\n")
    trained, odd = find_trained(tmp_path, SHAPE)
    assert trained is not None
    assert (trained.points, trained.source, trained.raw, odd) == (points, f"README.md ({name})", raw, ())


def test_losses_of_several_data_sets_add_up(losses: Callable[[str], Any], tmp_path: Path) -> None:
    pieces = [render_loss(losses(name)) for name in ("base", "MatryoshkaLoss", "AdaptiveLayerLoss", "MatryoshkaLoss")]
    (tmp_path / "README.md").write_text("\n\n".join(pieces))
    trained, odd = find_trained(tmp_path, SHAPE)
    assert trained is not None
    assert set(trained.points) == {*grid([BLOCKS], [8, 16, 32]), *grid(ALL_DEPTHS, [WIDTH])}
    assert (trained.source, odd) == ("README.md (MatryoshkaLoss and AdaptiveLayerLoss)", ())


def test_other_losses_say_nothing(losses: Callable[[str], Any], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(render_loss(losses("base")))
    assert find_trained(tmp_path, SHAPE) == (None, ())


def test_a_loss_inside_of_another_has_dims_that_nobody_says(losses: Callable[[str], Any], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(render_loss(losses("around")))
    trained, odd = find_trained(tmp_path, SHAPE)
    assert trained is not None
    assert trained.points == grid(ALL_DEPTHS, [WIDTH])
    assert "whose dims a card does not say" in odd[0]


def card(name: str, parameters: object) -> str:
    return f"* Loss: <code>{name}</code> with these parameters:\n  ```json\n{json.dumps(parameters, indent=2)}\n  ```\n"


def test_starbucks_goes_in_pairs(tmp_path: Path) -> None:
    parameters = {"matryoshka_layers": [1, 2, 3], "matryoshka_dims": [8, 16, 64]}
    (tmp_path / "README.md").write_text(card("starbucks_loss.StarbucksLoss", parameters))
    trained, odd = find_trained(tmp_path, SHAPE)
    assert trained is not None
    assert trained.points == (Point(1, 8), Point(2, 16))
    assert "[[3, 64]]" in odd[0]


HOSTILE = {
    "no dims": (card("MatryoshkaLoss", {"loss": "x"}), "without matryoshka_dims"),
    "dims that are words": (card("MatryoshkaLoss", {"matryoshka_dims": "768\n[points]"}), "no list of at most"),
    "dims of another parent": (card("MatryoshkaLoss", {"matryoshka_dims": [768, 512]}), "[768, 512]; this parent has"),
    "not JSON": (
        "* Loss: <code>MatryoshkaLoss</code> with these parameters:\n```json\n{'a': 1}\n```\n",
        "without matr",
    ),
    "no end": (
        '* Loss: <code>MatryoshkaLoss</code> with these parameters:\n```json\n{"a": [\n',
        "without matryoshka_dims",
    ),
    "nested deeply": (
        f"* Loss: <code>MatryoshkaLoss</code> with these parameters:\n```json\n{'[' * 50_000}\n```\n",
        "without matryoshka_dims",
    ),
    "a number of many digits": (
        card("MatryoshkaLoss", {"matryoshka_dims": [9]}).replace("9", "9" * 9000),
        "without matryoshka_dims",
    ),
    "long parameters": (
        card("MatryoshkaLoss", {"matryoshka_dims": [8], "x": "y" * (1 << 16)}),
        "without matryoshka_dims",
    ),
    "no parameters": ("* Loss: <code>Matryoshka2dLoss</code>\n", "without matryoshka_dims"),
    "tags alone": (
        "---\ntags:\n- loss:Matryoshka2dLoss\n- loss:MatryoshkaLoss\n---\n",
        "is tagged Matryoshka2dLoss and",
    ),
    "Starbucks without layers": (card("StarbucksLoss", {"matryoshka_dims": [8]}), "without as many matryoshka_layers"),
    "a large file": ("a" * (MOST_BYTES + 1), "no text of at most"),
    "many backtracks": (("* Loss: " + "<code>" * 200 + "\n") * 500, ""),
    "a name that is markup": ("* Loss: <code>Matryoshka\x1b[31mLoss</code>\n", ""),
    "a control character": (card("MatryoshkaLoss", {"matryoshka_dims": ["\n\x1b[31m\u202e"]}), "this parent has"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_card_gives_no_point_and_a_sentence(name: str, tmp_path: Path) -> None:
    content, words = HOSTILE[name]
    (tmp_path / "README.md").write_text(content, encoding="utf-8")
    trained, odd = find_trained(tmp_path, SHAPE)
    assert trained is None
    assert words in "".join(odd)
    assert bool(odd) == bool(words)


def test_no_more_losses_are_read_than_a_card_may_have(tmp_path: Path) -> None:
    bad = card("MatryoshkaLoss", {"matryoshka_dims": [99]})
    (tmp_path / "README.md").write_text(bad * (MOST_LOSSES + 5))
    assert len(find_trained(tmp_path, SHAPE)[1]) == MOST_LOSSES


def _bytes(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00")


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [_bytes, Path.mkdir, _pipe, _loop, _endless])
@pytest.mark.parametrize("name", ["README.md", "matryoshka.json"])
def test_what_is_no_file_of_text_is_passed_over(name: str, make: Callable[[Path], object], tmp_path: Path) -> None:
    make(tmp_path / name)
    trained, odd = find_trained(tmp_path, SHAPE)
    assert trained is None
    assert odd[0].startswith(f"{name}: is no ")


@pytest.mark.parametrize(("cut", "points"), [(16, (Point(BLOCKS, 16),)), (33, None), ("x", None), (True, None)])
def test_a_truncation_is_where_its_users_read_it(cut: object, points: object, tmp_path: Path) -> None:
    write_json(tmp_path / SETTINGS, {"truncate_dim": cut})
    trained, _ = find_trained(tmp_path, SHAPE)
    assert (trained and trained.points) == points
    assert trained is None or trained.source == f"{SETTINGS} (truncate_dim)"


def test_the_file_that_says_it_outright_goes_first(tmp_path: Path) -> None:
    write_json(tmp_path / SETTINGS, {"truncate_dim": 16})
    for name, content, dim in (
        ("README.md", card("MatryoshkaLoss", {"matryoshka_dims": [9]}), 9),
        ("matryoshka.json", '{"dims": [5]}', 5),
    ):
        (tmp_path / name).write_text(content)
        trained, odd = find_trained(tmp_path, SHAPE)
        assert trained is not None
        assert (trained.points, odd) == ((Point(BLOCKS, dim),), ())
    (tmp_path / "matryoshka.json").write_text('{"dims": [99]}')
    trained, odd = find_trained(tmp_path, SHAPE)
    assert trained is not None
    assert (trained.points, len(odd)) == ((Point(BLOCKS, 9),), 1), "what it says is nothing, and said to be"


# --- the outline


def test_a_plain_bert(parent: Path) -> None:
    outline = look(parent)
    assert (outline.blocks, outline.width, outline.depths) == (BLOCKS, WIDTH, ALL_DEPTHS)
    assert outline.found.readout.pooling == (PoolingMode.MEAN,)
    assert outline.found.text.max_tokens == 48
    assert outline.found.parent.weights == {"model.safetensors": hash_file(parent / "model.safetensors")}
    request = outline.request
    assert (request.pooling, request.final_norm, request.normalize, request.max_tokens) == (None, None, True, None)
    assert (outline.trained, outline.refused, outline.ignored, outline.routes, outline.commit) == (
        None,
        (),
        (),
        (),
        None,
    )


@pytest.mark.parametrize("kind", ["modernbert", "qwen3"])
def test_a_final_norm_is_chosen_and_explained(kind: str, tmp_path: Path) -> None:
    folder = make_parent(tmp_path / "parent", kind, prompts={"query": "a: "})
    outline = look(folder)
    assert len(outline.found.tail) == 1
    assert outline.request.final_norm is FinalNorm.KEEP
    job = write_and_load(outline, tmp_path)
    assert plan_parent(job).readout.final_norm is FinalNorm.KEEP
    assert "which must be chosen" not in (tmp_path / "job.toml").read_text()
    assert outline.found.tail[0] in (tmp_path / "job.toml").read_text()
    # And it had to be: without it, export refuses the same points.
    readout = msgspec.structs.replace(job.readout, final_norm=None)
    with pytest.raises(RequestError, match="final_norm"):
        plan_parent(msgspec.structs.replace(job, readout=readout))


def test_a_loss_that_read_the_states_raw_drops_the_final_norm(tmp_path: Path) -> None:
    folder = make_parent(tmp_path / "parent", "modernbert")
    (folder / "README.md").write_text(card("Matryoshka2dLoss", {"matryoshka_dims": [32, 8]}))
    outline = look(folder)
    assert outline.request.final_norm is FinalNorm.DROP
    assert "read them raw" in render_job(outline, choose_points(outline), FP32, None)
    (folder / "README.md").write_text(card("MatryoshkaLoss", {"matryoshka_dims": [32, 8]}))
    assert look(folder).request.final_norm is FinalNorm.KEEP


@pytest.mark.parametrize(("kind", "mode"), [("bert", PoolingMode.MEAN), ("qwen3", PoolingMode.LAST_TOKEN)])
def test_the_pooling_of_a_plain_folder_is_guessed_and_said_to_be(kind: str, mode: PoolingMode, tmp_path: Path) -> None:
    outline = look(make_parent(tmp_path / "parent", kind, pooling=None))
    assert outline.request.pooling == mode
    job = write_and_load(outline, tmp_path)
    assert plan_parent(job).readout.pooling == (mode,)
    assert "so this is a guess" in (tmp_path / "job.toml").read_text().replace("\n# ", " ")


@pytest.mark.parametrize(
    ("similarity", "normalize", "unit"),
    [
        (None, False, True),
        ("cosine", False, True),
        ("dot", False, False),
        ("dot", True, True),
        ("euclidean", False, False),
    ],
)
def test_lengths_are_kept_where_users_see_them(
    similarity: str | None, normalize: bool, unit: bool, tmp_path: Path
) -> None:
    folder = make_parent(tmp_path / "parent", normalize=normalize)
    write_json(folder / SETTINGS, {"similarity_fn_name": similarity})
    assert look(folder).request.normalize is unit


def test_a_truncated_parent_is_as_wide_as_its_users_see_it(small: Path, tmp_path: Path) -> None:
    write_json(small / SETTINGS, {"truncate_dim": 16})
    outline = look(small)
    assert outline.width == 16
    assert outline.trained is not None
    assert "dims from 17 to 32" in outline.refused[0]
    locate(write_and_load(outline, tmp_path, Selection.GRID))
    too_wide = ExportJob(ParentSource(str(small)), (Point(1, 17),))
    with pytest.raises(RequestError, match="truncate_dim"):  # export does refuse it
        locate(too_wide)


def test_a_router_has_the_first_of_its_routes_written_and_the_others_named(tmp_path: Path) -> None:
    build_router(tmp_path / "parent")
    outline = look(tmp_path / "parent")
    assert (outline.routes, outline.parent.route) == (("query", "document"), "query")
    job = write_and_load(outline, tmp_path)
    assert job.parent.route == "query"
    assert "The others: document." in (tmp_path / "job.toml").read_text()
    assert look(tmp_path / "parent", route="document").parent.route == "document"
    with pytest.raises(RequestError, match=r"the route 'passage' was asked; .* has query, document"):
        look(tmp_path / "parent", route="passage")


@pytest.mark.parametrize("path", ["../elsewhere", "/etc", "\0"])
def test_routes_outside_of_the_parent_are_not_looked_for(path: str, tmp_path: Path) -> None:
    router = "sentence_transformers.models.Router"
    write_json(tmp_path / "parent/modules.json", [{"path": path, "type": router}, 7, {"type": 3}])
    write_json(tmp_path / "elsewhere/router_config.json", {"structure": {"query": []}})
    assert list_routes(tmp_path / "parent") == ()


def test_a_parent_that_weighs_its_layers_is_read_whole(small: Path, tmp_path: Path) -> None:
    weigh_layers(small)
    outline = look(small)
    assert outline.depths == (BLOCKS,)
    assert "weighs the states of all its 3 blocks (WeightedLayerPooling)" in outline.refused[0]
    job = write_and_load(outline, tmp_path)
    assert {point.layers for point in job.points} == {BLOCKS}
    assert "weighs the states of all its 3 blocks" in (tmp_path / "job.toml").read_text().replace("\n#   ", " ")


def test_a_parent_without_blocks_has_dims_alone(tmp_path: Path) -> None:
    build_static(tmp_path / "parent")
    write_json(tmp_path / "parent/matryoshka.json", {"dims": [8, 32]})
    outline = look(tmp_path / "parent")
    assert outline.depths == (0,)
    assert write_and_load(outline, tmp_path).points == (Point(0, 8), Point(0, 32))


@pytest.mark.loads
def test_the_proposal_for_a_parent_without_blocks_is_exported(tmp_path: Path) -> None:
    build_static(tmp_path / "parent")
    outline = look(tmp_path / "parent")
    (tmp_path / "job.toml").write_text(render_job(outline, choose_points(outline), choose_precisions(outline), None))
    assert export_family(load_job(tmp_path / "job.toml"), tmp_path / "family").verification.passed


def test_a_limit_is_written_where_export_asks_for_one(tmp_path: Path) -> None:
    folder = make_parent(tmp_path / "parent", "llama", config={"rope_parameters": LONG_ROPE})
    outline = look(folder)
    assert outline.request.max_tokens == 16
    assert "give max_tokens = 16 in [readout]" in outline.refused[0]
    plan_parent(write_and_load(outline, tmp_path))


def _forget_the_weights(root: Path) -> None:
    (root / "model.safetensors").unlink()


def _need_code(root: Path) -> None:
    edit(root / "config.json", model_type="strange", auto_map={"AutoConfig": "code.Config"})


@pytest.mark.parametrize("spoil", [_forget_the_weights, _need_code, lambda root: edit(root / SETTINGS, surprise=1)])
def test_what_export_refuses_is_refused_in_its_own_words(spoil: Callable[[Path], object], small: Path) -> None:
    spoil(small)
    with pytest.raises(ParentError) as mine:
        look(small)
    with pytest.raises(ParentError) as theirs:
        plan_parent(ExportJob(ParentSource(str(small)), (Point(BLOCKS, WIDTH),)))
    assert str(mine.value) == str(theirs.value)


@pytest.mark.parametrize("source", ["./nowhere", "package:no_such_package_here/model", "not a name/at all", " "])
def test_a_parent_that_is_not_there_is_refused(source: str) -> None:
    with pytest.raises(MatexportError):
        look(source)


def test_a_hub_parents_card_is_fetched_and_its_weights_are_not(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / ("c" * 40)
    (small / "README.md").write_text(card("MatryoshkaLoss", {"matryoshka_dims": [8]}))

    def fake_download(name: str, *, allow_patterns: list[str], **options: object) -> str:
        assert name == "someone/encoder"
        for path in small.rglob("*"):
            if path.is_file() and any(path.match(pattern) for pattern in allow_patterns):
                (snapshot / path.relative_to(small)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, snapshot / path.relative_to(small))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fake_download)
    outline = look("someone/encoder")
    assert outline.trained is not None
    assert outline.trained.source == "README.md (MatryoshkaLoss)"
    assert not list(snapshot.rglob("*.safetensors"))
    assert outline.commit == "c" * 40
    assert (outline.found.parent.weights, outline.parent.source) == ({}, "someone/encoder")
    assert f'# revision = "{"c" * 40}"' in render_job(outline, choose_points(outline), FP32, None)


def test_a_card_that_cannot_be_fetched_is_done_without(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake_download(_name: str, *, allow_patterns: list[str], **options: object) -> str:
        if allow_patterns == ["README.md"]:
            raise ConnectionError("offline")
        return str(small)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fake_download)
    assert look("someone/encoder").trained is None


# --- against every odd folder there is


@pytest.fixture(scope="module")
def own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A parent's own code is copied to a folder of the tests, and not into the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.setattr(sys, "path", list(sys.path))
        yield


@pytest.mark.loads
@pytest.mark.usefixtures("own_caches")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", [case for case in CASES if case.peft is None], ids=lambda case: case.name)
def test_whatever_a_folder_is_its_job_is_planned_or_export_refuses_it_too(case: Case, tmp_path: Path) -> None:
    case.build(tmp_path / "parent")
    source = ParentSource(
        str(tmp_path / "parent"), trust_remote_code=case.trust, allow_pickle=case.pickle, route=case.route
    )
    refusal = None
    try:
        outline = outline_parent(source, Path())
    except MatexportError as error:
        refusal = str(error)
    if refusal is not None:
        assert "\n" not in refusal
        with pytest.raises(MatexportError):
            plan_parent(ExportJob(source, case.points, case.readout))
        return
    for selection in (None, Selection.GRID, Selection.WHOLE):
        job = write_and_load(outline, tmp_path, selection)
        plan = plan_parent(job)  # which refuses nothing
        assert plan.parent.blocks == outline.blocks


def test_some_of_those_folders_are_refused_and_some_are_not() -> None:
    assert any(case.expected == cases.RIGHT for case in CASES)


# --- export


@pytest.mark.loads
def test_a_written_job_is_exported_as_it_is(tmp_path: Path) -> None:
    from matexport import Embedder

    parent = make_parent(tmp_path / "parent", "modernbert", change=calm)
    (parent / "README.md").write_text(card("Matryoshka2dLoss", {"matryoshka_dims": [32, 8]}))
    job = write_and_load(look(parent), tmp_path)
    exported = export_family(job, tmp_path / "family")
    assert exported.verification.passed
    assert exported.family.facts.trained == grid(ALL_DEPTHS, [8, 32])
    assert {profile.point for profile in exported.family.profiles} == set(grid(ALL_DEPTHS, [8, 32]))
    assert exported.family.facts.readout.final_norm is FinalNorm.DROP
    assert Embedder(exported.family, "L02-D008-fp32").embed(TEXTS[:2]).shape == (2, 8)
