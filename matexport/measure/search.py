"""Nearest documents of queries: by all dims, or in two steps, as Matryoshka vectors allow. faiss does the searching.

Adaptive retrieval (Kusupati et al. 2022, section 4.3.1): a shortlist by the leading few dims of every document, then
the shortlist alone by all dims. What it costs is read from memory: the first step a part of each vector, the second all
of a few.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]


#: Queries from which on a matrix product pays; what faiss itself had before 1.15.
BLAS_QUERIES = 20

#: Bytes of the shortlisted vectors that are held at a time: what a core's caches hold.
GATHER_BYTES = 4 << 20


def search_exactly(documents: Vectors, queries: Vectors, count: int) -> tuple[NDArray[np.int64], Vectors]:
    """The `count` documents of the largest inner product with each query.

    Args:
        documents: (n, d) float32, contiguous.
        queries: (q, d) float32.

    Returns:
        (q, min(count, n)) indices and products, the best first.
    """
    import faiss

    with _use_matrix_products():
        products, indices = faiss.knn(queries, documents, min(count, len(documents)), metric=faiss.METRIC_INNER_PRODUCT)
    return indices, products


@contextmanager
def _use_matrix_products() -> Iterator[None]:
    """Let faiss compare some tens of queries at a time by matrix products.

    From 1.15 on it does so for 128,000 queries, and otherwise by one product per pair: ten times slower here.
    """
    import faiss

    before = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = BLAS_QUERIES
    try:
        yield
    finally:
        faiss.cvar.distance_compute_blas_threshold = before


def search_adaptively(
    leading: Vectors, documents: Vectors, leading_queries: Vectors, queries: Vectors, *, shortlist: int, count: int
) -> tuple[NDArray[np.int64], Vectors]:
    """A shortlist by leading dims, re-ranked by all.

    Args:
        leading: (n, s) float32, the documents' leading dims at length 1, contiguous.
        documents: (n, d) float32, all dims at length 1.
        leading_queries, queries: (q, s) and (q, d), likewise.
        shortlist: documents that are re-ranked.
        count: of them that are returned.

    Returns:
        as `search_exactly`.
    """
    shortlist = min(shortlist, len(documents))
    found, _ = search_exactly(leading, leading_queries, shortlist)
    count = min(count, shortlist)
    indices = np.empty((len(queries), count), dtype=np.int64)
    products = np.empty((len(queries), count), dtype=np.float32)
    step = max(1, GATHER_BYTES // (shortlist * documents.shape[1] * documents.itemsize))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        scores = np.matmul(documents[found[part]], queries[part, :, None])[..., 0]
        order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        indices[part] = np.take_along_axis(found[part], order, axis=1)
        products[part] = np.take_along_axis(scores, order, axis=1)
    return indices, products
