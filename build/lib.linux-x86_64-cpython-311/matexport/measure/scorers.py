"""Score a profile's vectors on a task: correlation with people's scores, ranks in a search, likeness to the parent."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from matexport.family.manifest import Family
from matexport.measure.bootstrap import ResampledRanks, average_resamples, draw_resamples
from matexport.measure.images import AccuracyScorer, KnnScorer, LabelledImages
from matexport.measure.search import search_adaptively, search_exactly
from matexport.measure.tasks import RetrievalTask, StsTask, UnlabelledTask
from matexport.measure.vectors import AnyTask, Key, T, choose_prompts
from matexport.runtime.inputs.modality import Asked
from matexport.spec.measured import Adaptive, Score, TaskKind
from matexport.spec.profile import Profile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

#: Number of nearest texts or documents that are compared.
NEIGHBOURS = 10

#: Number of documents that are judged for each query: the measures look at no more.
RETRIEVED = 100

#: How often each way of searching is timed.
TIMED_RUNS = 3

#: Names of the measures in ir_measures, that of the score first.
MEASURES = ("nDCG@10", "R@10", "R@100", "RR@10")

#: Measure -> its name for users, which is also the one that sentence-transformers uses.
SHOWN = {"nDCG@10": "nDCG@10", "R@10": "recall@10", "R@100": "recall@100", "RR@10": "MRR@10"}


class Scored(NamedTuple):
    """A profile's score on a task, without retention, and its score in each resample of the task, (200,)."""

    score: Score
    resampled: NDArray[np.float64]


class StsScorer:
    """Spearman correlation of cosines with people's scores, as in sentence-transformers' EmbeddingSimilarityEvaluator.

    Attributes:
        kinds: suffix of the task's name -> kind and metric of its scores, as in the other scorers.
        texts: number of different texts of the task.
    """

    kinds: ClassVar = {"": (TaskKind.STS, "Spearman")}

    def __init__(self, task: StsTask, rows: Mapping[Key, int], asked: Asked) -> None:
        self.task = task
        self.texts = len({*task.left, *task.right})
        self._left = [rows[asked, text] for text in task.left]
        self._right = [rows[asked, text] for text in task.right]
        self._people = np.array(task.scores)
        pairs = np.arange(len(task.scores))
        self._resampled = ResampledRanks(self._people, (pairs,), draw_resamples(len(pairs)))

    def learn_parent(self, vectors: Vectors) -> None:
        """Does nothing: the scores of this task do not depend on the parent, since people have judged."""

    def score(self, vectors: Vectors) -> dict[str, Scored]:
        """Suffix -> the score of a profile's (n, dim) float32 vectors of length 1, one for each text of all tasks."""
        cosines = np.einsum("nd,nd->n", vectors[self._left], vectors[self._right], dtype=np.float64)
        return {"": Scored(Score(correlate(cosines, self._people), None), self._resampled.correlate(cosines))}


class UnlabelledScorer:
    """How much a profile's similarities and neighbours of texts agree with those of the whole parent.

    Attributes:
        texts: number of texts of the task.
    """

    kinds: ClassVar = {
        " similarity": (TaskKind.SIMILARITY, "Spearman with the parent"),
        " neighbours": (TaskKind.NEIGHBOURS, f"overlap@{NEIGHBOURS} with the parent"),
    }

    def __init__(self, task: UnlabelledTask, rows: Mapping[Key, int], asked: Asked) -> None:
        self.task = task
        self.texts = len(task.texts)
        self._rows = [rows[asked, text] for text in task.texts]
        self._pairs = np.triu_indices(len(task.texts), 1)
        self._draws = draw_resamples(len(task.texts))
        self._parent: NDArray[np.float64] | None = None
        self._resampled: ResampledRanks | None = None
        self._nearest: NDArray[np.int64] | None = None

    def learn_parent(self, vectors: Vectors) -> None:
        """Keep what profiles are compared with: similarities and neighbours by the whole parent's (n, dim) vectors."""
        self._parent, self._nearest = self._compare(vectors)
        self._resampled = ResampledRanks(self._parent, self._pairs, self._draws)

    def score(self, vectors: Vectors) -> dict[str, Scored]:
        """Suffix -> the score of a profile's (n, dim) float32 vectors of length 1, one for each text of all tasks.

        `learn_parent` must have been called.
        """
        assert self._parent is not None
        assert self._nearest is not None
        assert self._resampled is not None
        similarities, nearest = self._compare(vectors)
        pairs = zip(nearest, self._nearest, strict=True)
        overlaps = np.array([len(set(ours) & set(theirs)) / len(ours) for ours, theirs in pairs])
        return {
            " similarity": Scored(
                Score(correlate(similarities, self._parent), None), self._resampled.correlate(similarities)
            ),
            " neighbours": Scored(Score(float(overlaps.mean()), None), average_resamples(overlaps, self._draws)),
        }

    def _compare(self, vectors: Vectors) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Similarities of all n (n - 1) / 2 pairs of texts, and the (n, 10) indices of the nearest texts of each."""
        mine = vectors[self._rows].astype(np.float64)
        square: NDArray[np.float64] = mine @ mine.T
        similarities = square[self._pairs]
        np.fill_diagonal(square, -np.inf)
        return similarities, np.argsort(-square, axis=1, kind="stable")[:, :NEIGHBOURS]


class RetrievalScorer:
    """The measures of trec_eval for the documents that are found for each query by cosine.

    Attributes:
        texts: number of queries and documents of the task.
    """

    kinds: ClassVar = {"": (TaskKind.RETRIEVAL, MEASURES[0])}

    def __init__(self, task: RetrievalTask, rows: Mapping[Key, int], query: Asked, document: Asked) -> None:
        self.task = task
        self.texts = len(task.queries) + len(task.documents)
        self._queries, self._documents = list(task.queries), list(task.documents)
        self._query_rows = [rows[query, task.queries[identity]] for identity in self._queries]
        self._document_rows = [rows[document, task.documents[identity]] for identity in self._documents]
        self._draws = draw_resamples(len(self._queries))

    def learn_parent(self, vectors: Vectors) -> None:
        """Does nothing: the scores of this task do not depend on the parent, since people have judged."""

    def score(self, vectors: Vectors) -> dict[str, Scored]:
        """Suffix -> the score of a profile's (n, dim) float32 vectors of length 1, one for each text of all tasks."""
        return {"": self._judge(*search_exactly(*self._split(vectors), RETRIEVED + 1))}

    def search_in_two_steps(self, group: Mapping[Profile, Vectors | None], shortlist: int) -> list[Adaptive]:
        """Search in two steps: a shortlist by each profile of a group but its widest, ranked by the widest.

        Args:
            group: profile -> its (n, dim) float32 vectors of length 1, from the narrowest on; profiles without vectors
                are left out.
            shortlist: number of documents on the shortlist.

        Returns:
            one for each narrower profile, in their order.
        """
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
                    score=self._judge(indices, products).score.score,
                    recall=float(np.mean([len(set(ours) & set(best)) / len(best) for ours, best in kept])),
                    speedup=exact_s / seconds,
                )
            )
        return found

    def _split(self, vectors: Vectors) -> tuple[Vectors, Vectors]:
        return vectors[self._document_rows], vectors[self._query_rows]

    def _judge(self, indices: NDArray[np.int64], products: Vectors) -> Scored:
        """The measures of the documents that were found.

        As in BEIR, a document with the same id as the query does not count: in a search for arguments against an
        argument, it is the query itself. But it counts where it has a grade, since it is another text then.
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
        places = {query: place for place, query in enumerate(self._queries)}
        values = {measure: np.zeros(len(places)) for measure in measures}
        for found in ir_measures.iter_calc(measures, judged, run):
            values[found.measure][places[found.query_id]] = found.value
        score, *others = (float(values[measure].mean()) for measure in measures)
        shown = {SHOWN[name]: value for name, value in zip(MEASURES[1:], others, strict=True)}
        return Scored(Score(score, None, shown), average_resamples(values[measures[0]], self._draws))


Scorer = StsScorer | UnlabelledScorer | RetrievalScorer | KnnScorer | AccuracyScorer


def make_scorer(task: AnyTask, family: Family, rows: Mapping[Key, int]) -> Scorer:
    """The scorer of a task.

    Args:
        rows: how a text is read, and the text -> its row among the vectors that will be scored.
    """
    default, query, document = choose_prompts(family)
    if isinstance(task, StsTask):
        return StsScorer(task, rows, default)
    if isinstance(task, UnlabelledTask):
        return UnlabelledScorer(task, rows, default)
    if isinstance(task, LabelledImages):
        classes = family.facts.readout.classes
        return AccuracyScorer(task, rows, default, classes) if classes else KnnScorer(task, rows, default)
    return RetrievalScorer(task, rows, query, document)


def correlate(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    """Spearman's rank correlation of two (n,) arrays; 0 where one of them has a single value and so ranks nothing."""
    from scipy.stats import spearmanr

    if ours.min() == ours.max() or theirs.min() == theirs.max():
        return 0.0
    return float(spearmanr(ours, theirs).statistic)


def _time(search: Callable[[], T]) -> tuple[float, T]:
    """Median seconds of `TIMED_RUNS` calls of `search`, and what the last call returned."""
    seconds = []
    for _ in range(TIMED_RUNS):
        started = time.perf_counter()
        found = search()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), found
