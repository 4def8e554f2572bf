"""Find the nearest documents of queries: by all dims, or in two steps, as Matryoshka vectors allow. Uses faiss.

Adaptive retrieval (Kusupati et al., "Matryoshka Representation Learning", NeurIPS 2022, section 4.3.1) first finds a
shortlist by the leading few dims of all documents, and then ranks only the shortlist by all dims. The time goes into
reading memory: a part of every vector in the first step, and few whole vectors in the second.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]


#: Number of queries from which on faiss uses matrix products; its own default before 1.15.
BLAS_QUERIES = 20

#: Bytes of shortlisted vectors that are gathered at a time, which fit into a core's caches.
GATHER_BYTES = 4 << 20


def search_exactly(documents: Vectors, queries: Vectors, count: int) -> tuple[NDArray[np.int64], Vectors]:
    """The `count` documents with the largest inner product with each query.

    Args:
        documents: (n, d) float32, contiguous.
        queries: (q, d) float32.

    Returns:
        (q, min(count, n)) int64 indices of documents and float32 products, the largest product first.
    """
    import faiss

    with _use_matrix_products():
        products, indices = faiss.knn(queries, documents, min(count, len(documents)), metric=faiss.METRIC_INNER_PRODUCT)
    return indices, products


@contextmanager
def _use_matrix_products() -> Iterator[None]:
    """Have faiss use matrix products from `BLAS_QUERIES` queries on.

    From 1.15 on, faiss does so only from 128,000 queries on, and computes one product per pair otherwise, which was ten
    times slower here.
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
    """Find documents by their leading dims, and rank those by all dims.

    Args:
        leading: (n, s) float32, the documents' leading dims at length 1, contiguous.
        documents: (n, d) float32, all dims of the documents at length 1.
        leading_queries, queries: (q, s) and (q, d) float32, the same of the queries.
        shortlist: number of documents that are found in the first step and ranked in the second.
        count: number of documents that are returned.

    Returns:
        (q, min(count, shortlist, n)) int64 indices of documents and float32 products, the largest product first.
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
