"""What a profile's vectors are worth: correlation with people's scores, ranks of a search, neighbours of the parent."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from matexport.family.manifest import Family
from matexport.measure.search import search_adaptively, search_exactly
from matexport.measure.tasks import RetrievalTask, StsTask, Task, UnlabelledTask
from matexport.measure.vectors import Key, T, choose_prompts
from matexport.runtime.inputs.modality import Asked
from matexport.spec.measured import Adaptive, Score, TaskKind
from matexport.spec.profile import Profile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

NEIGHBOURS = 10

#: Documents that a run keeps of each query: trec_eval's measures look no further.
RETRIEVED = 100

#: Of each way of searching.
TIMED_RUNS = 3
MEASURES = ("nDCG@10", "R@10", "R@100", "RR@10")

#: As users know them, and sentence-transformers calls them.
SHOWN = {"nDCG@10": "nDCG@10", "R@10": "recall@10", "R@100": "recall@100", "RR@10": "MRR@10"}


class StsScorer:
    """Spearman correlation of cosines with people's scores, as sentence-transformers' EmbeddingSimilarityEvaluator."""

    kinds: ClassVar = {"": (TaskKind.STS, "Spearman")}

    def __init__(self, task: StsTask, rows: Mapping[Key, int], asked: Asked) -> None:
        self.task = task
        self.texts = len({*task.left, *task.right})
        self._left = [rows[asked, text] for text in task.left]
        self._right = [rows[asked, text] for text in task.right]

    def learn_parent(self, vectors: Vectors) -> None:
        """It needs none: people have judged."""

    def score(self, vectors: Vectors) -> dict[str, Score]:
        cosines = np.einsum("nd,nd->n", vectors[self._left], vectors[self._right], dtype=np.float64)
        return {"": Score(correlate(cosines, np.array(self.task.scores)), None)}


class UnlabelledScorer:
    """How far similarities are those of the whole parent."""

    kinds: ClassVar = {
        " similarity": (TaskKind.SIMILARITY, "Spearman with the parent"),
        " neighbours": (TaskKind.NEIGHBOURS, f"overlap@{NEIGHBOURS} with the parent"),
    }

    def __init__(self, task: UnlabelledTask, rows: Mapping[Key, int], asked: Asked) -> None:
        self.task = task
        self.texts = len(task.texts)
        self._rows = [rows[asked, text] for text in task.texts]
        self._pairs = np.triu_indices(len(task.texts), 1)
        self._ranks: NDArray[np.float64] | None = None
        self._nearest: NDArray[np.int64] | None = None

    def learn_parent(self, vectors: Vectors) -> None:
        similarities, self._nearest = self._compare(vectors)
        self._ranks = similarities

    def score(self, vectors: Vectors) -> dict[str, Score]:
        assert self._ranks is not None
        assert self._nearest is not None
        similarities, nearest = self._compare(vectors)
        pairs = zip(nearest, self._nearest, strict=True)
        overlap = float(np.mean([len(set(ours) & set(theirs)) / len(ours) for ours, theirs in pairs]))
        return {" similarity": Score(correlate(similarities, self._ranks), None), " neighbours": Score(overlap, None)}

    def _compare(self, vectors: Vectors) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Similarities of all pairs, and the nearest texts of each."""
        mine = vectors[self._rows].astype(np.float64)
        square: NDArray[np.float64] = mine @ mine.T
        similarities = square[self._pairs]
        np.fill_diagonal(square, -np.inf)
        return similarities, np.argsort(-square, axis=1, kind="stable")[:, :NEIGHBOURS]


class RetrievalScorer:
    """What trec_eval makes of the documents that are found for each query, by cosine."""

    kinds: ClassVar = {"": (TaskKind.RETRIEVAL, MEASURES[0])}

    def __init__(self, task: RetrievalTask, rows: Mapping[Key, int], query: Asked, document: Asked) -> None:
        self.task = task
        self.texts = len(task.queries) + len(task.documents)
        self._queries, self._documents = list(task.queries), list(task.documents)
        self._query_rows = [rows[query, task.queries[identity]] for identity in self._queries]
        self._document_rows = [rows[document, task.documents[identity]] for identity in self._documents]

    def learn_parent(self, vectors: Vectors) -> None:
        """It needs none: people have judged."""

    def score(self, vectors: Vectors) -> dict[str, Score]:
        return {"": self._judge(*search_exactly(*self._split(vectors), RETRIEVED + 1))}

    def search_in_two_steps(self, group: Mapping[Profile, Vectors | None], shortlist: int) -> list[Adaptive]:
        """Search by each profile of a group first, and re-rank by its widest; profiles from the narrowest."""
        known = [(profile, self._split(vectors)) for profile, vectors in group.items() if vectors is not None]
        *narrow, (widest, (documents, queries)) = known
        exact_s, (exact, _) = _time(lambda: search_exactly(documents, queries, RETRIEVED + 1))
        found = []
        for profile, (leading, leading_queries) in narrow:
            seconds, (indices, products) = _time(
                functools.partial(
                    search_adaptively,
                    leading,
                    documents,
                    leading_queries,
                    queries,
                    shortlist=shortlist,
                    count=RETRIEVED + 1,
                )
            )
            kept = zip(indices[:, :NEIGHBOURS], exact[:, :NEIGHBOURS], strict=True)
            found.append(
                Adaptive(
                    profile=widest.name,
                    shortlist_dim=profile.point.dim,
                    shortlist=shortlist,
                    score=self._judge(indices, products).score,
                    recall=float(np.mean([len(set(ours) & set(best)) / len(best) for ours, best in kept])),
                    speedup=exact_s / seconds,
                )
            )
        return found

    def _split(self, vectors: Vectors) -> tuple[Vectors, Vectors]:
        return vectors[self._document_rows], vectors[self._query_rows]

    def _judge(self, indices: NDArray[np.int64], products: Vectors) -> Score:
        """Scores of what was found.

        As BEIR does, a document of the query's own id does not count: in a search for arguments against an argument it
        is the query itself. But where it was graded, somebody meant another document.
        """
        import ir_measures

        run = [
            ir_measures.ScoredDoc(query, self._documents[index], float(product))
            for query, found, values in zip(self._queries, indices, products, strict=True)
            for index, product in zip(found, values, strict=True)
            if self._documents[index] != query or query in self.task.grades[query]
        ]
        judged = [
            ir_measures.Qrel(query, document, grade)
            for query, grades in self.task.grades.items()
            for document, grade in grades.items()
        ]
        measures = [ir_measures.parse_measure(name) for name in MEASURES]
        values = ir_measures.calc_aggregate(measures, judged, run)
        score, *others = (float(values[measure]) for measure in measures)
        return Score(score, None, {SHOWN[name]: value for name, value in zip(MEASURES[1:], others, strict=True)})


Scorer = StsScorer | UnlabelledScorer | RetrievalScorer


def make_scorer(task: Task, family: Family, rows: Mapping[Key, int]) -> Scorer:
    default, query, document = choose_prompts(family)
    if isinstance(task, StsTask):
        return StsScorer(task, rows, default)
    if isinstance(task, UnlabelledTask):
        return UnlabelledScorer(task, rows, default)
    return RetrievalScorer(task, rows, query, document)


def correlate(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    """Spearman's rank correlation; 0 where one side has a single value, which ranks nothing."""
    from scipy.stats import spearmanr

    if ours.min() == ours.max() or theirs.min() == theirs.max():
        return 0.0
    return float(spearmanr(ours, theirs).statistic)


def _time(search: Callable[[], T]) -> tuple[float, T]:
    """Median seconds of some runs, and what the last gave."""
    seconds = []
    for _ in range(TIMED_RUNS):
        started = time.perf_counter()
        found = search()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), found
