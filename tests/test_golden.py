"""Families that earlier versions wrote are read and verified forever: one per schema, frozen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from matexport import Embedder, load_family, verify_family
from matexport.manifest import READABLE, SCHEMA

GOLDEN = Path(__file__).parent / "golden"
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
