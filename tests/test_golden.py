"""Families that earlier versions wrote are read and verified forever: one per schema, frozen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from matexport import Embedder, load_family, verify_family

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", ["schema1"])
def test_a_frozen_family_still_verifies(name: str) -> None:
    verification = verify_family(GOLDEN / name)
    assert verification.passed
    assert [verdict.profile for verdict in verification.verdicts] == ["L01-D008-fp32", "L02-D016-fp32", "L03-D016-fp32"]
    assert all(verdict.worst[1].max_abs <= 1e-6 for verdict in verification.verdicts)


def test_a_frozen_family_still_gives_the_same_vector() -> None:
    vector = Embedder(GOLDEN / "schema1", "L01-D008-fp32").embed(["a dog"], prompt="query")[0]
    expected = [-0.2449207, 0.1708030, 0.3601861, -0.1858411, -0.5392967, -0.3057573, 0.5323741, -0.2807463]
    np.testing.assert_allclose(vector, expected, atol=1e-6)
    assert load_family(GOLDEN / "schema1").facts.text.prompts == {"query": "a cat: "}
