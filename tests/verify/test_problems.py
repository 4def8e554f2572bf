"""Each kind of problem is raised for the file that it is about, and none of a family that is whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forge import edit_manifest, edit_tokenizer, flip_byte, overwrite_values, reseal, store_token_rows
from places import GOLDEN
from safetensors.numpy import load_file, save_file

from matexport.errors import FamilyError, ProblemKind
from matexport.family.integrity import check_exits, check_profile
from matexport.family.manifest import MANIFEST, RANGES, REFERENCE, load_family
from matexport.family.modality import PROBES, TOKENIZER
from matexport.family.weights_file import read_header
from matexport.verify.judge import open_case

pytestmark = pytest.mark.usefixtures("no_session")

NAME = "L01-D012-fp32"
GRAPH, WEIGHTS, EXITS = "L01-D012.fp32.onnx", "weights.fp32.safetensors", "exits.fp32.onnx"
Found = list[tuple[ProblemKind, str | None]]


@pytest.fixture
def family(tmp_path: Path) -> Path:
    """Two precisions, graphs of all exits, int8 ranges: no other golden family is in every respect spoilt as easily."""
    return Path(shutil.copytree(GOLDEN / "schema3", tmp_path / "family"))


def list_problems(family: Path) -> Found:
    try:
        open_case(family)
    except FamilyError as error:
        return [(problem.kind, problem.file) for problem in error.problems]
    return []


def link(path: Path) -> None:
    path.symlink_to(path.rename(path.parent.parent / "outside"))


def edit_arrays(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    arrays = load_file(path)
    edit(arrays)
    save_file(arrays, path)
    reseal(path.parent)


def write(path: Path, content: str) -> None:
    path.write_text(content, encoding="utf-8")
    reseal(path.parent)


def spoil_weights(family: Path) -> None:
    entry = next(entry for entry in read_header(family / WEIGHTS).entries if entry.dtype == "F32")
    overwrite_values(family / WEIGHTS, entry.name, np.array([np.nan], np.float32))
    reseal(family)


def retype_weights(family: Path) -> None:
    (family / WEIGHTS).write_bytes((family / WEIGHTS).read_bytes().replace(b'"F32"', b'"F31"'))
    reseal(family)


def read_elsewhere(family: Path) -> None:
    graph = (family / GRAPH).read_bytes()
    (family / GRAPH).write_bytes(graph.replace(WEIGHTS.encode(), b"../" + WEIGHTS[3:].encode()))
    reseal(family)


def drop_count(family: Path) -> None:
    store_token_rows(family)
    edit_arrays(family / REFERENCE, lambda arrays: arrays.pop("token_counts"))


SPOILT: dict[str, tuple[Callable[[Path], object], ProblemKind, str | None]] = {
    "no file": (lambda it: (it / WEIGHTS).unlink(), ProblemKind.MISSING, WEIGHTS),
    "another byte": (lambda it: flip_byte(it / GRAPH), ProblemKind.CHANGED, GRAPH),
    "a byte more": (lambda it: (it / GRAPH).write_bytes((it / GRAPH).read_bytes() + b"x"), ProblemKind.CHANGED, GRAPH),
    "a file more": (lambda it: (it / "notes.txt").touch(), ProblemKind.EXTRA, "notes.txt"),
    "a link": (lambda it: link(it / TOKENIZER), ProblemKind.REFUSED, TOKENIZER),
    "a graph that reads elsewhere": (read_elsewhere, ProblemKind.REFUSED, GRAPH),
    "no graph": (lambda it: write(it / EXITS, "hello"), ProblemKind.REFUSED, EXITS),
    "a header of no weights": (retype_weights, ProblemKind.REFUSED, WEIGHTS),
    "weights that are not finite": (spoil_weights, ProblemKind.REFUSED, WEIGHTS),
    "no manifest": (lambda it: (it / MANIFEST).unlink(), ProblemKind.MANIFEST, MANIFEST),
    "a manifest that is no JSON": (lambda it: (it / MANIFEST).write_text("{"), ProblemKind.MANIFEST, MANIFEST),
    "a linked manifest": (lambda it: link(it / MANIFEST), ProblemKind.MANIFEST, MANIFEST),
    "a fact that cannot be": (
        lambda it: edit_manifest(it, lambda data: data["text"].update(max_tokens=0)),
        ProblemKind.MANIFEST,
        MANIFEST,
    ),
    "no probes": (lambda it: write(it / PROBES, "hello\n"), ProblemKind.PROOF, PROBES),
    "a prompt that is not there": (
        lambda it: write(it / PROBES, (it / PROBES).read_text().replace('"query"', '"other"')),
        ProblemKind.PROOF,
        PROBES,
    ),
    "no references": (lambda it: write(it / REFERENCE, "hello, vectors"), ProblemKind.PROOF, REFERENCE),
    "references of too few points": (
        lambda it: edit_arrays(it / REFERENCE, lambda arrays: arrays.pop("L01-D012")),
        ProblemKind.PROOF,
        REFERENCE,
    ),
    "token ids without counts": (drop_count, ProblemKind.PROOF, REFERENCE),
    "a tokenizer that is none": (lambda it: write(it / TOKENIZER, "{}"), ProblemKind.UNUSABLE, None),
}


@pytest.mark.parametrize("spoilt", SPOILT)
def test_a_kind_is_raised_for_its_file(spoilt: str, family: Path) -> None:
    spoil, kind, file = SPOILT[spoilt]
    spoil(family)
    assert list_problems(family) == [(kind, file)]


def test_every_kind_is_raised_by_something() -> None:
    assert {kind for _, kind, _ in SPOILT.values()} == {*ProblemKind} - {ProblemKind.TOKEN_IDS, ProblemKind.PIXELS}


@pytest.mark.parametrize("schema", ["schema1", "schema2", "schema3", "schema4"])
def test_nothing_is_wrong_with_a_whole_family(schema: str) -> None:
    assert list_problems(GOLDEN / schema) == []
    token_ids = open_case(GOLDEN / schema).token_ids
    assert token_ids is None or token_ids.passed


def test_ranges_that_are_none(tmp_path: Path) -> None:
    family = Path(shutil.copytree(GOLDEN / "schema2", tmp_path / "family"))
    edit_arrays(family / RANGES, lambda arrays: arrays.update({"L01-D020": arrays["L01-D020"][::-1].copy()}))
    assert list_problems(family) == [(ProblemKind.PROOF, RANGES)]


# The files are sound, so nothing is raised: vectors are measured all the same.
def test_token_ids_that_differ_are_found_and_not_raised(family: Path) -> None:
    store_token_rows(family)
    vocabulary = json.loads((family / TOKENIZER).read_text(encoding="utf-8"))["model"]["vocab"]
    edit_tokenizer(family, lambda data: data["model"]["vocab"].update(cat=vocabulary["dog"], dog=vocabulary["cat"]))
    case = open_case(family)
    assert case.token_ids is not None
    assert not case.token_ids.passed


def test_problems_of_several_kinds_are_listed_at_once(family: Path) -> None:
    """In the same order whatever the folder's is: first what is extra, then the listed files by name."""
    flip_byte(family / WEIGHTS)
    (family / GRAPH).unlink()
    link(family / TOKENIZER)
    flip_byte(family / "config.json")
    for name in ("z.txt", "a.txt"):
        (family / name).touch()
    expected = [
        (ProblemKind.EXTRA, "a.txt"),
        (ProblemKind.EXTRA, "z.txt"),
        (ProblemKind.MISSING, GRAPH),
        (ProblemKind.CHANGED, "config.json"),
        (ProblemKind.REFUSED, TOKENIZER),
        (ProblemKind.CHANGED, WEIGHTS),
    ]
    assert list_problems(family) == expected == list_problems(family)


def test_all_that_is_refused_is_listed_at_once(family: Path) -> None:
    write(family / "L01-D020.int8.onnx", "hello")
    read_elsewhere(family)
    (family / EXITS).write_text("hello")
    reseal(family)
    assert list_problems(family) == [
        (ProblemKind.REFUSED, GRAPH),
        (ProblemKind.REFUSED, "L01-D020.int8.onnx"),
        (ProblemKind.REFUSED, EXITS),
    ]


def test_all_weights_that_are_not_finite_are_listed_at_once(family: Path) -> None:
    for name in (WEIGHTS, "weights.int8.safetensors"):
        entry = next(entry for entry in read_header(family / name).entries if entry.dtype == "F32")
        overwrite_values(family / name, entry.name, np.array([np.inf], np.float32))
    reseal(family)
    assert list_problems(family) == [
        (ProblemKind.REFUSED, WEIGHTS),
        (ProblemKind.REFUSED, "weights.int8.safetensors"),
    ]


# What embeds checks less than `verify`, and says it alike.
def test_checks_of_a_part_have_the_same_kinds(family: Path) -> None:
    loaded = load_family(family)
    check_profile(loaded, NAME)
    check_exits(loaded, loaded.facts.profiles[NAME].precision)
    flip_byte(family / WEIGHTS)
    for check in (
        lambda: check_profile(loaded, NAME),
        lambda: check_exits(loaded, loaded.facts.profiles[NAME].precision),
    ):
        with pytest.raises(FamilyError) as refusal:
            check()
        assert [(problem.kind, problem.file) for problem in refusal.value.problems] == [(ProblemKind.CHANGED, WEIGHTS)]
