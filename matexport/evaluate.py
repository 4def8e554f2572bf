"""What each profile of a family keeps of the parent's quality, on tasks of the user's and without labels.

    tasks -> their different texts -> one pass per precision (`exits`): vectors at the widest point of every depth
      -> cut to each profile's dim, scaled, encoded as it encodes -> scores -> retention = score / the whole parent's

The whole parent is the family's own fp32 profile at full depth and width, which `verify` holds to the parent. Metrics
come from libraries: Spearman's correlation from scipy, nDCG, recall and reciprocal rank from ir_measures (trec_eval).
Needs the ``[evaluate]`` extra.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import msgspec
import numpy as np

from matexport.errors import FamilyError, RequestError
from matexport.extras import require_extra
from matexport.family.integrity import check_files
from matexport.family.manifest import RANGES, Family, load_family
from matexport.family.proof import load_ranges
from matexport.host import count_cpus, read_host
from matexport.runtime.all_points import ExitsEmbedder
from matexport.runtime.embedder import Embedder
from matexport.runtime.inputs.text import TASKS_SCHEMA, Asked
from matexport.search import search_adaptively, search_exactly
from matexport.spec.measured import Adaptive, Quality, Score, TaskKind, TaskQuality
from matexport.spec.profile import Encoding, Point, Precision, Profile
from matexport.tasks import RetrievalTask, StsTask, Task, UnlabelledTask
from matexport.verify.codes import encode_vectors
from matexport.verify.parity import unit_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]
from matexport.io.progress import Progress

NEIGHBOURS = 10

#: Documents that a run keeps of each query: trec_eval's measures look no further.
RETRIEVED = 100

#: Of each way of searching.
TIMED_RUNS = 3
MEASURES = ("nDCG@10", "R@10", "R@100", "RR@10")

#: As users know them, and sentence-transformers calls them.
SHOWN = {"nDCG@10": "nDCG@10", "R@10": "recall@10", "R@100": "recall@100", "RR@10": "MRR@10"}

#: Names under which models keep the prompts of the two sides of a search: where a family of an older schema does not
#: say what its parent does with queries and documents.
QUERY_PROMPTS, DOCUMENT_PROMPTS = ("query",), ("document", "passage", "corpus")
_PACKAGES = {"scipy": "scipy", "ir_measures": "ir-measures", "faiss": "faiss-cpu"}

#: How a text is read, and the text.
Key = tuple[Asked, str]
T = TypeVar("T")


def require_evaluate_extra() -> None:
    """Raise MissingExtraError, with the pip line, unless the packages of the ``[evaluate]`` extra are there."""
    require_extra("evaluate", "evaluating", _PACKAGES)


def evaluate_family(
    family: Family | Path | str,
    tasks: Sequence[Task],
    *,
    profiles: Sequence[str] = (),
    shortlist: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Quality:
    """Score profiles of a family. Writes nothing; see `matexport.family.measurements.record_quality`.

    Args:
        family: the directory of a family or a pack, or a loaded `Family`.
        tasks: see `matexport.tasks`. An unlabelled one is scored twice, as ``NAME similarity`` and ``NAME neighbours``.
        profiles: names; all of the family when empty.
        shortlist: also search adaptively in retrieval tasks: so many documents by each smaller dim of the same depth
            and precision, re-ranked by the largest.
        threads: all CPUs of this process by default.
        progress: called with (stage, done, total).

    Raises:
        MissingExtraError: the ``[evaluate]`` extra is not installed.
        RequestError: two tasks have the same name, or a text of one cannot be embedded.
        FamilyError: no such profile, the files are not the ones that were exported, or there is nothing to compare
            with: unlabelled texts need the whole parent in fp32 in the family.
    """
    require_evaluate_extra()
    family = family if isinstance(family, Family) else load_family(family)
    if not tasks:
        raise RequestError("no task was given: texts, pairs with scores, or a folder of queries and documents")
    if shortlist is not None and shortlist < NEIGHBOURS:
        raise RequestError(f"a shortlist of {shortlist} was asked; at least {NEIGHBOURS} documents are looked at")
    names = [task.name for task in tasks]
    if len(set(names)) != len(names):
        raise RequestError(
            f"two tasks are called {next(name for name in names if names.count(name) > 1)!r}: rename a file"
        )
    for name in profiles:
        family.profile_facts(name)
    wanted = tuple(Profile.parse(name) for name in dict.fromkeys(profiles)) or family.profiles
    parent = find_parent(family)
    if parent is None and any(isinstance(task, UnlabelledTask) for task in tasks):
        facts = family.facts.parent
        whole = Profile(Point(facts.blocks, facts.output_width), Precision.FP32).name
        raise FamilyError(
            f"{family.path} lacks {whole}, the whole parent, which unlabelled texts are compared with: export with "
            "that point, or give a task with labels"
        )
    import faiss

    faiss.omp_set_num_threads(threads or count_cpus())
    texts = collect_texts(family, tasks)
    rows = {key: row for row, key in enumerate(texts)}
    scorers = [_make_scorer(task, family, rows) for task in tasks]
    asked = (*((parent,) if parent else ()), *(profile for profile in wanted if profile != parent))
    scores: dict[tuple[int, str], dict[Profile, Score]] = {}
    groups = _group_by_dim(wanted) if shortlist else {}
    adaptive: dict[str, list[Adaptive]] = {}
    for done, (profile, codes) in enumerate(embed_profiles(family, asked, texts, threads=threads, progress=progress)):
        if progress:
            progress("score", done, len(asked))
        vectors = decode(codes, profile.encoding, profile.point.dim)
        for number, scorer in enumerate(scorers):
            if profile == parent:
                scorer.learn_parent(vectors)
            for suffix, score in scorer.score(vectors).items():
                scores.setdefault((number, suffix), {})[profile] = score
        group = groups.get(profile)
        if group is None or not shortlist:
            continue
        group[profile] = vectors
        if all(known is not None for known in group.values()):  # its vectors are let go as soon as they were searched
            for scorer in scorers:
                if isinstance(scorer, _RetrievalScorer):
                    adaptive.setdefault(scorer.task.name, []).extend(scorer.search_in_two_steps(group, shortlist))
            group.clear()
    found = {
        scorers[number].task.name + suffix: _describe_task(scorers[number], suffix, known, parent, wanted)
        for (number, suffix), known in scores.items()
    }
    for name, searches in adaptive.items():
        found[name] = msgspec.structs.replace(found[name], adaptive=tuple(searches))
    if progress:
        progress("score", len(asked), len(asked))
    return Quality(read_host(), found)


def _group_by_dim(profiles: Sequence[Profile]) -> dict[Profile, dict[Profile, Vectors | None]]:
    """Profile -> those of its depth, precision and encoding, from the narrowest, their vectors still to come."""
    groups: dict[tuple[int, Precision, Encoding], dict[Profile, Vectors | None]] = {}
    for profile in sorted(profiles):
        groups.setdefault((profile.point.layers, profile.precision, profile.encoding), {})[profile] = None
    return {profile: group for group in groups.values() for profile in group if len(group) > 1}


def find_parent(family: Family) -> Profile | None:
    """The profile that is the whole parent: fp32, all blocks, all dims; None where the family has none."""
    facts = family.facts.parent
    whole = Profile(Point(facts.blocks, facts.output_width), Precision.FP32)
    return whole if whole in family.profiles else None


def collect_texts(family: Family, tasks: Sequence[Task]) -> list[Key]:
    """The different texts of all tasks, each with how it is read, in the order of their first use."""
    default, query, document = _choose_prompts(family)
    keys: dict[Key, None] = {}
    for task in tasks:
        if isinstance(task, StsTask):
            keys |= dict.fromkeys((default, text) for text in (*task.left, *task.right))
        elif isinstance(task, UnlabelledTask):
            keys |= dict.fromkeys((default, text) for text in task.texts)
        else:
            keys |= dict.fromkeys((query, text) for text in task.queries.values())
            keys |= dict.fromkeys((document, text) for text in task.documents.values())
    return list(keys)


def _choose_prompts(family: Family) -> tuple[Asked, Asked, Asked]:
    """How a text, a query and a document are read."""
    if family.facts.schema >= TASKS_SCHEMA:
        return Asked(), Asked(task="query"), Asked(task="document")
    prompts = family.facts.text.prompts
    query = next((name for name in QUERY_PROMPTS if name in prompts), None)
    document = next((name for name in DOCUMENT_PROMPTS if name in prompts), None)
    return Asked(), Asked(query), Asked(document)


def embed_profiles(
    family: Family,
    profiles: Sequence[Profile],
    texts: Sequence[Key],
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[Profile, NDArray[Any]]]:
    """What each profile gives for texts, in one pass per precision where the family has a graph of all exits.

    Args:
        profiles: in the order in which they are given, but for their precisions: those of one come together.
        texts: how each is read, and the text.

    Returns:
        (profile, (len(texts), width) of its encoding), one after the other.
    """
    ranges = {}
    if any(profile.encoding is Encoding.INT8 for profile in profiles):
        check_files(family, [RANGES])
        ranges = load_ranges(family)
    for precision in dict.fromkeys(profile.precision for profile in profiles):
        mine = [profile for profile in profiles if profile.precision is precision]
        if precision in family.facts.exits and len(mine) > 1:
            depths = _embed_depths(family, precision, mine, texts, threads, progress)
            normalize = family.facts.readout.normalize
            for profile in mine:
                cut = depths[profile.point.layers][:, : profile.point.dim]
                vectors = unit_rows(cut) if normalize else np.ascontiguousarray(cut)
                yield profile, encode_vectors(vectors, profile.encoding, ranges.get(profile.point.name))
        else:  # one, or a family of an older matexport
            for profile in mine:
                with Embedder(family, profile.name, threads=threads) as embedder:
                    parts = {
                        asked: embedder.embed([text for found, text in texts if found == asked], **asked._asdict())
                        for asked in dict.fromkeys(asked for asked, _ in texts)
                    }
                yield profile, _interleave(parts, texts)


def _embed_depths(
    family: Family,
    precision: Precision,
    profiles: Sequence[Profile],
    texts: Sequence[Key],
    threads: int | None,
    progress: Progress | None,
) -> dict[int, Vectors]:
    """Layers -> the vectors at the widest point of that depth; what is narrower is cut from them."""
    widest: dict[int, Point] = {}
    for point in sorted(profile.point for profile in profiles):
        widest[point.layers] = point
    found = {layers: np.empty((len(texts), point.dim), dtype=np.float32) for layers, point in widest.items()}
    done = 0
    with ExitsEmbedder(family, precision, threads=threads) as exits:
        for asked in dict.fromkeys(asked for asked, _ in texts):
            places = [place for place, (found_asked, _) in enumerate(texts) if found_asked == asked]
            first = 0
            for window in exits.embed_windows([texts[place][1] for place in places], **asked._asdict()):
                count = len(next(iter(window.values())))
                for layers, point in widest.items():
                    found[layers][places[first : first + count]] = window[point]
                first += count
                done += count
                if progress:
                    progress(f"embed {precision}", done, len(texts))
    return found


def _interleave(parts: Mapping[Asked, NDArray[Any]], texts: Sequence[Key]) -> NDArray[Any]:
    """Rows by how the texts are read, as rows in the order of the texts."""
    first = next(iter(parts.values()))
    rows = np.empty((len(texts), first.shape[1]), dtype=first.dtype)
    for asked, vectors in parts.items():
        rows[[found == asked for found, _ in texts]] = vectors
    return rows


def decode(codes: NDArray[Any], encoding: Encoding, dim: int) -> Vectors:
    """What an index compares: float32 vectors as they are, bits as ±1, int8 codes as numbers; at length 1."""
    if encoding is Encoding.UBINARY:
        codes = np.unpackbits(codes, axis=1, count=dim).astype(np.float32) * 2 - 1
    return unit_rows(codes.astype(np.float32))


class _StsScorer:
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


class _UnlabelledScorer:
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


class _RetrievalScorer:
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


_Scorer = _StsScorer | _UnlabelledScorer | _RetrievalScorer


def _make_scorer(task: Task, family: Family, rows: Mapping[Key, int]) -> _Scorer:
    default, query, document = _choose_prompts(family)
    if isinstance(task, StsTask):
        return _StsScorer(task, rows, default)
    if isinstance(task, UnlabelledTask):
        return _UnlabelledScorer(task, rows, default)
    return _RetrievalScorer(task, rows, query, document)


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


def _describe_task(
    scorer: _Scorer, suffix: str, scores: Mapping[Profile, Score], parent: Profile | None, wanted: Sequence[Profile]
) -> TaskQuality:
    kind, metric = scorer.kinds[suffix]
    whole = scores[parent] if parent else None

    def keep(score: Score) -> Score:
        # Of a parent that ranks no better than chance, nothing can be kept.
        retention = score.score / whole.score if whole and whole.score > 0 else None
        return msgspec.structs.replace(score, retention=retention)

    return TaskQuality(
        kind=kind,
        metric=metric,
        texts=scorer.texts,
        data_sha256=scorer.task.sha256,
        parent=keep(whole) if whole else None,
        profiles={profile.name: keep(scores[profile]) for profile in wanted},
    )
