"""Families that earlier versions wrote are read and verified forever: one per schema, frozen."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tokenizers
from places import GOLDEN

from matexport import Embedder, load_family, verify_family
from matexport.errors import RequestError
from matexport.family.manifest import READABLE, SCHEMA
from matexport.spec.inputs import TaskFacts
from matexport.spec.parity import TokenParity

PROFILES = {
    "schema1": ["L01-D008-fp32", "L02-D016-fp32", "L03-D016-fp32"],
    "schema2": [
        "L01-D020-fp32",
        "L01-D020-fp32-int8",
        "L01-D020-fp32-ubinary",
        "L01-D020-int8",
        "L01-D020-int8-int8",
        "L01-D020-int8-ubinary",
    ],
    "schema3": [
        f"{point}-{precision}" for point in ("L01-D012", "L01-D020", "L02-D020") for precision in ("fp32", "int8")
    ],
    "schema4": ["L01-D020-fp32", "L02-D020-fp32"],
}


def test_every_schema_that_is_read_has_a_frozen_family() -> None:
    assert [f"schema{schema}" for schema in READABLE] == list(PROFILES)
    for schema in READABLE:
        data = json.loads((GOLDEN / f"schema{schema}" / "family.json").read_text(encoding="utf-8"))
        assert data["schema"] == schema
    assert SCHEMA in READABLE


@pytest.mark.parametrize("name", PROFILES)
def test_a_frozen_family_still_verifies(name: str) -> None:
    verification = verify_family(GOLDEN / name)
    assert verification.passed
    assert [verdict.profile for verdict in verification.verdicts] == PROFILES[name]
    for verdict in verification.verdicts:
        if "-fp32" in verdict.profile:
            assert verdict.worst[1].max_abs <= 1e-6
        assert verdict.worst[1].cosine_min > 0.9999


def test_a_frozen_family_still_gives_the_same_vector() -> None:
    vector = Embedder(GOLDEN / "schema1", "L01-D008-fp32").embed(["a dog"], prompt="query")[0]
    expected = [-0.2449207, 0.1708030, 0.3601861, -0.1858411, -0.5392967, -0.3057573, 0.5323741, -0.2807463]
    np.testing.assert_allclose(vector, expected, atol=1e-6)
    assert load_family(GOLDEN / "schema1").facts.text.prompts == {"query": "a cat: "}


def test_the_fourth_schema_says_how_its_parent_asks_for_tokens() -> None:
    family = load_family(GOLDEN / "schema4")
    text = family.facts.text
    assert (text.cuts, text.tasks["query"], text.unpooled) == ("left", TaskFacts("query", 9), {"query": 4})
    assert "pooling_mask" in text.inputs
    assert str(family.facts.parent.judge).startswith("sentence-transformers")
    assert verify_family(GOLDEN / "schema4").token_ids == TokenParity(4, tokenizers.__version__)
    embedder = Embedder(family, "L02-D020-fp32")
    long = "the cat sits on the mat and the dog runs in the snow"
    (asked,), (prompted,) = embedder.prepare([long], task="query"), embedder.prepare([long], prompt="query")
    assert (len(asked.ids), asked.unpooled, prompted.unpooled) == (9, 4, 4)
    assert asked.ids[1:] == prompted.ids[-8:]
    expected = [-0.151826, -0.360225, 0.013134, -0.106436]
    np.testing.assert_allclose(embedder.embed(["a dog"], task="query")[0][:4], expected, atol=1e-6)


def test_a_family_that_knows_no_tasks_does_not_guess_their_prompts() -> None:
    with Embedder(GOLDEN / "schema3", "L01-D012-fp32") as embedder:
        for ask in (embedder.embed, embedder.prepare):
            with pytest.raises(RequestError, match=r"made before tasks were known: export it again, or .*: query"):
                ask(["a dog"], task="query")  # type: ignore[operator]


def test_what_the_first_schema_did_not_say_has_a_default() -> None:
    facts = load_family(GOLDEN / "schema1").facts
    assert (facts.precisions, facts.refused, facts.instruction_sets, facts.vocabulary) == ({}, {}, (), None)
    assert {profile.encoding for profile in facts.profiles.values()} == {"float32"}


def test_frozen_small_precisions_still_give_the_same() -> None:
    path = GOLDEN / "schema2"
    vector = Embedder(path, "L01-D020-int8").embed(["a dog"], prompt="query")[0]
    expected = [-0.0544567, -0.1874411, 0.4955580, -0.4078909]
    np.testing.assert_allclose(vector[:4], expected, atol=1e-3)  # elsewhere a rounding may fall on the other side
    assert Embedder(path, "L01-D020-int8-ubinary").embed(["a dog"], prompt="query")[0].tolist() == [44, 52, 224]
    codes = Embedder(path, "L01-D020-fp32-int8").embed(["a dog"], prompt="query")[0]
    np.testing.assert_allclose(codes[:4].astype(int), [-18, -100, 101, -35], atol=1)
