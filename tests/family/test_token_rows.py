"""The parent's token ids of the probes: packed, read back whatever a file claims, and compared."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from forge import hold, store_token_rows
from msgspec.structs import replace
from numpy.typing import NDArray
from places import GOLDEN
from properties import given, st
from safetensors.numpy import load, load_file, save, save_file

from matexport import load_family
from matexport.errors import FamilyError, RequestError
from matexport.family.manifest import REFERENCE
from matexport.family.proof import load_references
from matexport.family.token_rows import (
    TOKEN_COUNTS,
    TOKEN_IDS,
    compare_token_rows,
    load_token_rows,
    pack_token_rows,
    quote_probe,
    stores_token_rows,
)
from matexport.runtime.inputs.tokenizer import read_tokenizers_version
from matexport.spec.parity import TokenParity
from matexport.spec.probe import Probe

Arrays = dict[str, NDArray[Any]]
PROBES = (Probe("a cat"), Probe("the dog " * 20), Probe("", "query"))
ROWS = [[2, 7, 3], list(range(100, 140)), []]


def test_two_tensors_of_int32() -> None:
    packed = pack_token_rows(ROWS)
    assert {name: (array.dtype, array.shape) for name, array in packed.items()} == {
        "token_ids": (np.int32, (43,)),
        "token_counts": (np.int32, (3,)),
    }
    assert packed["token_counts"].tolist() == [3, 40, 0]
    assert packed["token_ids"][:4].tolist() == [2, 7, 3, 100]
    assert pack_token_rows([])["token_ids"].dtype == np.int32


@pytest.mark.parametrize("token", [-1, 1 << 31, 1 << 70])
def test_what_is_no_token_id_is_not_packed(token: int) -> None:
    with pytest.raises(ValueError, match=f"{token} is no token id"):
        pack_token_rows([[1], [token]])


def test_more_than_a_family_holds_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matexport.family.token_rows.MAX_TOKEN_IDS", 42)
    with pytest.raises(RequestError, match="the 3 probes have 43 tokens; a family holds the ids of up to 42: give"):
        pack_token_rows(ROWS)


@given(st.lists(st.lists(st.integers(0, (1 << 31) - 1), max_size=5), min_size=2, max_size=5))
def test_what_was_packed_is_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list[list[int]]) -> None:
    family = load_family(GOLDEN / "schema1")
    folder = tmp_path_factory.mktemp("rows")
    (folder / REFERENCE).write_bytes(save(pack_token_rows(rows)))
    assert load_token_rows(hold(replace(family, path=folder)), len(rows)) == rows


@pytest.mark.parametrize("schema", ["schema1", "schema2", "schema3"])
def test_older_families_have_none(schema: str) -> None:
    family = load_family(GOLDEN / schema)
    assert not stores_token_rows(family)
    assert load_token_rows(hold(family), 3) is None


def edit(name: str, change: Callable[[NDArray[Any]], object]) -> Callable[[Arrays], object]:
    return lambda arrays: arrays.update({name: change(arrays[name])})


FORGERIES: dict[str, tuple[Callable[[Arrays], object], str]] = {
    "ids alone": (lambda arrays: arrays.pop(TOKEN_COUNTS), "has token_ids alone"),
    "counts alone": (lambda arrays: arrays.pop(TOKEN_IDS), "has token_counts alone"),
    "a count less": (edit(TOKEN_COUNTS, lambda it: it[:-1].copy()), r"has no \(\d+,\) int32 token_counts"),
    "counts with an axis more": (edit(TOKEN_COUNTS, lambda it: it[None]), r"has no \(\d+,\) int32 token_counts"),
    "counts of int64": (edit(TOKEN_COUNTS, lambda it: it.astype(np.int64)), r"has no \(\d+,\) int32 token_counts"),
    "counts of uint32": (edit(TOKEN_COUNTS, lambda it: it.astype(np.uint32)), r"has no \(\d+,\) int32 token_counts"),
    "ids of int64": (edit(TOKEN_IDS, lambda it: it.astype(np.int64)), "has no int32 token_ids in one row"),
    "ids of float32": (edit(TOKEN_IDS, lambda it: it.astype(np.float32)), "has no int32 token_ids in one row"),
    "ids with an axis more": (edit(TOKEN_IDS, lambda it: it[:, None]), "has no int32 token_ids in one row"),
    "an id less": (edit(TOKEN_IDS, lambda it: it[:-1].copy()), "which are not what token_counts add up to"),
    "an id more": (edit(TOKEN_IDS, lambda it: np.append(it, it[-1:])), "which are not what token_counts add up to"),
    "an id below 0": (edit(TOKEN_IDS, lambda it: np.append(it[:-1], np.int32(-1))), "holds token_ids below 0"),
    "a count below 0, the sum as before": (
        edit(TOKEN_COUNTS, lambda it: it + np.array([-100, 100] + [0] * (len(it) - 2), np.int32)),
        "which are not what token_counts add up to",
    ),
    "counts whose sum is right in 32 bits": (
        edit(TOKEN_COUNTS, lambda it: it + np.array([1 << 30] * 4 + [0] * (len(it) - 4), np.int32)),
        "which are not what token_counts add up to",
    ),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_what_are_no_token_rows(forgery: str, family: Path) -> None:
    store_token_rows(family)
    spoil, words = FORGERIES[forgery]
    arrays = load_file(family / REFERENCE)
    spoil(arrays)
    save_file(arrays, family / REFERENCE)
    loaded = load_family(family)
    with pytest.raises(FamilyError, match=words):
        load_token_rows(hold(loaded), len(load_references(hold(loaded))[0]))
    assert stores_token_rows(loaded), "which is no reason to leave the check out"


def test_more_than_is_read_into_memory(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_token_rows(family)
    probes = len(load_references(hold(family))[0])
    monkeypatch.setattr("matexport.family.token_rows.MAX_TOKEN_IDS", 10)
    monkeypatch.setattr(np, "fromfile", None)
    with pytest.raises(FamilyError, match="of at most 10"):
        load_token_rows(hold(family), probes)


# Whether there are any is asked before digests are checked.
@pytest.mark.parametrize("spoil", ["missing", "folder", "empty", "garbage", "pipe"])
def test_a_file_that_cannot_be_read_may_hold_some(spoil: str, family: Path) -> None:
    path = family / REFERENCE
    path.unlink()
    if spoil == "folder":
        path.mkdir()
    elif spoil == "pipe":
        os.mkfifo(path)
    elif spoil != "missing":
        path.write_bytes(b"" if spoil == "empty" else b"\xff" * 64)
    assert stores_token_rows(load_family(family))


def test_rows_that_are_the_same() -> None:
    found = compare_token_rows([tuple(row) for row in ROWS], ROWS, PROBES, "0.1")
    assert found == TokenParity(3, "0.1")
    assert found.passed
    assert found.find_difference() is None
    assert found.summary == "token ids of 3 probes are the parent's"


@pytest.mark.parametrize(
    ("here", "words"),
    [
        ([[2, 9, 3], ROWS[1], []], "1 of 3 probes, first in probe 0 ('a cat'): [2, 9, 3] here, [2, 7, 3] in the"),
        ([[2, 7], ROWS[1], []], "1 of 3 probes, first in probe 0 ('a cat'): [2, 7] here, [2, 7, 3] in the"),
        ([[2, 7, 3, 3], ROWS[1], []], "1 of 3 probes, first in probe 0 ('a cat'): [..., 7, 3, 3] here, [..., 7, 3] in"),
        (
            [ROWS[0], [*range(100, 120), 7, *range(121, 140)], []],
            "1 of 3 probes, first in probe 1 ('the dog the dog the dog the dog the dog the dog the dog t...'): "
            "[..., 118, 119, 7, 121, 122, 123, 124, 125, ...] here, "
            "[..., 118, 119, 120, 121, 122, 123, 124, 125, ...] in the parent (tokenizers 0.1 here)",
        ),
        ([ROWS[0], ROWS[1][:-1], [1]], "2 of 3 probes, first in probe 1 ("),
        ([ROWS[0], ROWS[1], [1]], "1 of 3 probes, first in probe 2 ('', prompt 'query'): [1] here, [] in the parent"),
    ],
    ids=["another", "one less", "one more", "far into a text", "two probes", "of a prompt"],
)
def test_rows_that_differ(here: list[list[int]], words: str) -> None:
    found = compare_token_rows(here, ROWS, PROBES, "0.1")
    assert not found.passed
    reason = found.find_difference()
    assert reason is not None
    assert reason.startswith(f"token ids differ in {words}")


def test_a_quoted_probe_stays_on_its_line() -> None:
    assert quote_probe([Probe("a\n\x1b[31mb" * 30)], 0) == "probe 0 (" + repr(("a\n\x1b[31mb" * 30)[:57] + "...") + ")"


def test_the_version_that_makes_rows() -> None:
    assert read_tokenizers_version() == tokenizers.__version__


def test_vectors_are_read_without_them(family: Path) -> None:
    before = load_references(hold(family))[1]
    store_token_rows(family)
    assert {TOKEN_IDS, TOKEN_COUNTS} <= set(load((family / REFERENCE).read_bytes()))
    after = load_references(hold(family))[1]
    assert set(after) == set(before)
