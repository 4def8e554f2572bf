"""Searching in one step is exact; in two it is what a shortlist allows."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from matexport.measure.search import search_adaptively, search_exactly
from matexport.verify.parity import unit_rows


def draw(count: int, dim: int, seed: int) -> NDArray[np.float32]:
    return unit_rows(np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32))


DOCUMENTS, QUERIES = draw(300, 16, 0), draw(9, 16, 1)


def best(documents: NDArray[np.float32], query: NDArray[np.float32], count: int) -> list[int]:
    """By sorting all."""
    products = [float(sum(float(a) * float(b) for a, b in zip(row, query, strict=True))) for row in documents]
    return sorted(range(len(products)), key=lambda index: -products[index])[:count]


def test_exact_search_finds_the_best_in_their_order() -> None:
    indices, products = search_exactly(DOCUMENTS, QUERIES, 10)
    assert indices.tolist() == [best(DOCUMENTS, query, 10) for query in QUERIES]
    np.testing.assert_allclose(products[:, 0], (QUERIES * DOCUMENTS[indices[:, 0]]).sum(axis=1), atol=1e-6)


def test_there_are_never_more_than_there_are_documents() -> None:
    indices, _ = search_exactly(DOCUMENTS[:3], QUERIES, 10)
    assert indices.shape == (9, 3)


@pytest.mark.parametrize("shortlist", [1, 7, 40, 1000])
@pytest.mark.parametrize("held", [1, 1 << 20])
def test_a_shortlist_by_leading_dims_is_ranked_by_all(
    shortlist: int, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matexport.measure.search.GATHER_BYTES", held)
    leading, leading_queries = unit_rows(DOCUMENTS[:, :4]), unit_rows(QUERIES[:, :4])
    indices, products = search_adaptively(leading, DOCUMENTS, leading_queries, QUERIES, shortlist=shortlist, count=10)
    for query, leading_query, found in zip(QUERIES, leading_queries, indices, strict=True):
        known = best(leading, leading_query, shortlist)
        assert found.tolist() == [known[index] for index in best(DOCUMENTS[known], query, 10)]
    assert (np.diff(products, axis=1) <= 0).all()


def test_with_all_documents_on_the_shortlist_it_is_exact() -> None:
    exact, _ = search_exactly(DOCUMENTS, QUERIES, 10)
    found, _ = search_adaptively(
        DOCUMENTS[:, :4].copy(), DOCUMENTS, QUERIES[:, :4].copy(), QUERIES, shortlist=300, count=10
    )
    assert found.tolist() == exact.tolist()


def test_a_zero_row_stays() -> None:
    assert unit_rows(np.zeros((1, 4), dtype=np.float32)).tolist() == [[0, 0, 0, 0]]
