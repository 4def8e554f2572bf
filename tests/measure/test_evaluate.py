"""Scores are those that sentence-transformers' own evaluators give for the same vectors; one pass gives all points."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_texts
from msgspec.structs import replace
from numpy.typing import NDArray
from places import GOLDEN

from matexport import Embedder, load_family, pack_profile
from matexport.errors import FamilyError, MissingExtraError, RequestError
from matexport.family.manifest import MANIFEST
from matexport.family.measurements.records import load_quality, record_quality
from matexport.measure import vectors as vectors_module
from matexport.measure.bootstrap import RESAMPLES, draw_resamples
from matexport.measure.evaluate import evaluate_family
from matexport.measure.scorers import correlate
from matexport.measure.tasks import RetrievalTask, StsTask, UnlabelledTask
from matexport.measure.vectors import collect_texts, embed_profiles
from matexport.runtime.all_points import ExitsEmbedder
from matexport.runtime.inputs.text import Asked
from matexport.spec.measured import TaskKind
from matexport.spec.profile import Encoding, Point, Precision, Profile

FULL = "L03-D032-fp32"


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    lines = write_texts(tmp_path_factory.mktemp("texts") / "texts.txt", 60).read_text().splitlines()
    return tuple(dict.fromkeys(lines))


@pytest.fixture(scope="module")
def sts(texts: tuple[str, ...]) -> StsTask:
    draw = random.Random(0)
    left, right = texts[:25], texts[25:50]
    return StsTask("pairs", left, right, tuple(float(draw.randint(0, 5)) for _ in left))


@pytest.fixture(scope="module")
def retrieval(texts: tuple[str, ...]) -> RetrievalTask:
    """Grades of 0 and 1, as sentence-transformers knows no others."""
    draw = random.Random(1)
    documents = {f"d{number}": text for number, text in enumerate(texts[12:])}
    queries = {f"q{number}": text for number, text in enumerate(texts[:12])}
    grades = {query: {**dict.fromkeys(draw.sample(list(documents), 4), 1), "d0": 0} for query in queries}
    return RetrievalTask("search", queries, documents, grades)


class Vectors:
    """A model of sentence-transformers' that knows the vectors of some texts."""

    similarity_fn_name = "cosine"

    def __init__(self, family: Path, profile: str, texts: tuple[str, ...]) -> None:
        from sentence_transformers.util import cos_sim

        with Embedder(family, profile) as embedder:
            self.known = dict(zip(texts, embedder.embed(texts), strict=True))
        self.similarity = cos_sim
        self.model_card_data = self

    def encode(self, sentences: list[str], **_options: object) -> Any:
        import torch

        return torch.tensor(np.stack([self.known[text] for text in sentences]))

    encode_query = encode_document = encode

    def set_evaluation_metrics(self, *_: object, **__: object) -> None:
        """For the model card."""


@pytest.mark.parametrize("profile", ["L01-D008-fp32", "L02-D032-fp32", FULL])
def test_scores_are_those_of_sentence_transformers(
    profile: str, exported: Path, texts: tuple[str, ...], sts: StsTask, retrieval: RetrievalTask
) -> None:
    try:
        from sentence_transformers.sentence_transformer import evaluation
    except ImportError:  # before 6
        from sentence_transformers import evaluation  # type: ignore[no-redef]
    model: Any = Vectors(exported, profile, texts)
    relevant = {
        query: {document for document, grade in found.items() if grade} for query, found in retrieval.grades.items()
    }
    search = evaluation.InformationRetrievalEvaluator(
        dict(retrieval.queries), dict(retrieval.documents), relevant, precision_recall_at_k=[10, 100], write_csv=False
    )(model)
    pairs = evaluation.EmbeddingSimilarityEvaluator(list(sts.left), list(sts.right), list(sts.scores), write_csv=False)(
        model
    )
    quality = evaluate_family(exported, [sts, retrieval])
    assert quality.tasks["pairs"].profiles[profile].score == pytest.approx(pairs["spearman_cosine"], abs=1e-6)
    score = quality.tasks["search"].profiles[profile]
    assert score.score == pytest.approx(search["cosine_ndcg@10"], abs=1e-6)
    assert score.others["recall@10"] == pytest.approx(search["cosine_recall@10"], abs=1e-6)
    assert score.others["recall@100"] == pytest.approx(search["cosine_recall@100"], abs=1e-6)
    assert score.others["MRR@10"] == pytest.approx(search["cosine_mrr@10"], abs=1e-6)


def rank(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks, the mean of those that share a value."""
    return np.array([(values < value).sum() + ((values == value).sum() + 1) / 2 for value in values])


def test_without_labels_the_whole_parent_is_the_measure(exported: Path, texts: tuple[str, ...]) -> None:
    quality = evaluate_family(exported, [UnlabelledTask("mine", texts)])
    assert {name: task.kind for name, task in quality.tasks.items()} == {
        "mine similarity": TaskKind.SIMILARITY,
        "mine neighbours": TaskKind.NEIGHBOURS,
    }
    vectors = {}
    for profile in (FULL, "L01-D032-fp32"):
        with Embedder(exported, profile) as embedder:
            rows = embedder.embed(texts).astype(np.float64)
        vectors[profile] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    pairs = [(one, other) for one in range(len(texts)) for other in range(one + 1, len(texts))]
    cosines = {
        profile: np.array([float(rows[one] @ rows[other]) for one, other in pairs]) for profile, rows in vectors.items()
    }
    expected = np.corrcoef(rank(cosines[FULL]), rank(cosines["L01-D032-fp32"]))[0, 1]
    similarity, neighbours = quality.tasks["mine similarity"], quality.tasks["mine neighbours"]
    assert similarity.profiles["L01-D032-fp32"].score == pytest.approx(expected, abs=1e-5)
    shared = 0
    for text in range(len(texts)):
        near = []
        for rows in vectors.values():
            order = sorted(set(range(len(texts))) - {text}, key=lambda other: -float(rows[text] @ rows[other]))
            near.append(set(order[:10]))
        shared += len(near[0] & near[1])
    assert neighbours.profiles["L01-D032-fp32"].score == pytest.approx(shared / (10 * len(texts)), abs=2e-3)
    assert neighbours.profiles["L01-D032-fp32"].score < 0.95
    for task in quality.tasks.values():
        assert task.parent is not None
        assert task.parent.score == pytest.approx(1, abs=1e-9)
        assert all(score.retention == pytest.approx(score.score) for score in task.profiles.values())


def test_retention_is_the_score_over_the_whole_parents(exported: Path, sts: StsTask) -> None:
    scored = replace(sts, scores=tuple(parent_cosines(exported, sts)))  # which the parent ranks without a fault
    task = evaluate_family(exported, [scored]).tasks["pairs"]
    assert task.parent is not None
    assert task.parent.score == pytest.approx(1)
    assert task.profiles[FULL].retention == pytest.approx(1)
    small = task.profiles["L01-D008-fp32"]
    assert small.retention == pytest.approx(small.score / task.parent.score)
    assert small.retention < 0.99


def test_each_retention_is_kept_on_the_same_resamples(
    exported: Path, texts: tuple[str, ...], sts: StsTask, retrieval: RetrievalTask
) -> None:
    """Of pairs, queries and texts, each written out here for some draws."""
    thirds = np.argsort(np.argsort(parent_cosines(exported, sts))) // 3  # some of them equal
    scored = replace(sts, scores=tuple(float(third) for third in thirds))
    quality = evaluate_family(exported, [scored, retrieval, UnlabelledTask("mine", texts)])
    small = "L01-D008-fp32"
    for name, task in quality.tasks.items():
        assert task.parent is not None
        assert task.parent.resamples == task.profiles[FULL].resamples
        if name == "search":  # of 12 queries, some draws find nothing that is relevant
            assert set(task.parent.resamples) <= {0, 1}
            continue
        assert set(task.parent.resamples) == {1}
        assert len(task.parent.resamples) == len(task.profiles[FULL].resamples) == RESAMPLES
        assert len(set(task.profiles[small].resamples)) > 1
        assert np.mean(task.profiles[small].resamples) == pytest.approx(task.profiles[small].retention, abs=0.1)
    cosines = {}
    for profile in (FULL, small):
        with Embedder(exported, profile) as embedder:
            left, right = embedder.embed(scored.left), embedder.embed(scored.right)
        cosines[profile] = (left.astype(float) * right).sum(axis=1) / (
            np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        )
    for place in (0, 50, 199):
        taken = np.repeat(np.arange(len(scored.left)), draw_resamples(len(scored.left))[place])
        ours, whole = (
            np.corrcoef(rank(cosines[profile][taken]), rank(np.array(scored.scores)[taken]))[0, 1]
            for profile in (small, FULL)
        )
        assert quality.tasks["pairs"].profiles[small].resamples[place] == pytest.approx(ours / whole, abs=2e-3)
    alone = evaluate_family(exported, [scored], profiles=[small]).tasks["pairs"]
    assert alone.profiles[small].resampled == quality.tasks["pairs"].profiles[small].resampled, "whatever is beside it"


def test_a_query_that_is_drawn_twice_counts_twice(exported: Path, retrieval: RetrievalTask) -> None:
    """nDCG of each query alone, averaged as often as it was drawn."""
    whole = evaluate_family(exported, [retrieval], profiles=["L01-D008-fp32"]).tasks["search"]
    scores = []
    for query in retrieval.queries:
        one = replace(retrieval, queries={query: retrieval.queries[query]}, grades={query: retrieval.grades[query]})
        task = evaluate_family(exported, [one], profiles=["L01-D008-fp32"]).tasks["search"]
        assert task.parent is not None
        scores.append((task.profiles["L01-D008-fp32"].score, task.parent.score))
    for place in (0, 50, 199):
        taken = np.repeat(np.array(scores), draw_resamples(len(scores))[place], axis=0).mean(axis=0)
        assert whole.profiles["L01-D008-fp32"].resamples[place] == pytest.approx(taken[0] / taken[1], abs=1e-4)


def parent_cosines(family: Path, task: StsTask) -> list[float]:
    with Embedder(family, FULL) as embedder:
        left, right = embedder.embed(task.left), embedder.embed(task.right)
    return [float(value) for value in (left * right).sum(axis=1)]


def test_one_pass_serves_all_points(exported: Path, sts: StsTask, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many runs for six profiles as one would take, and none of any profile's own graph."""
    runs: list[int] = []
    run = ExitsEmbedder.run

    def count(self: ExitsEmbedder, rows: Any) -> Any:
        runs.append(len(rows))
        return run(self, rows)

    monkeypatch.setattr(ExitsEmbedder, "run", count)
    monkeypatch.setattr(vectors_module, "Embedder", None)
    quality = evaluate_family(exported, [sts])
    assert len(quality.tasks["pairs"].profiles) == 6
    assert sum(runs) == len({*sts.left, *sts.right})


def test_codes_are_those_of_the_encoded_profiles(precise: Callable[[str], Any], texts: tuple[str, ...]) -> None:
    """Cut and encoded from one pass, against each profile's own graph."""
    family = load_family(precise("bert").family)
    known = [(Asked(""), text) for text in texts]
    for profile, codes in embed_profiles(family, family.profiles, known):
        with Embedder(family, profile.name) as embedder:
            expected = embedder.embed(texts)
        assert codes.dtype == expected.dtype
        if profile.encoding is Encoding.FLOAT32:
            np.testing.assert_allclose(codes, expected, atol=1e-5 if profile.precision is Precision.FP32 else 2e-3)
        elif profile.encoding is Encoding.UBINARY:
            bits = np.unpackbits(codes ^ expected, axis=1)
            assert bits.mean() < 0.005
        else:  # the next step, where a value lies on the edge of one; another rounding moves more than a few
            steps = np.abs(codes.astype(int) - expected.astype(int))
            assert steps.max() <= 1 if profile.precision is Precision.FP32 else steps.mean() < 0.3
            assert (steps > 0).mean() < (0.005 if profile.precision is Precision.FP32 else 0.3)


def test_bits_are_compared_by_the_bits_that_differ(precise: Callable[[str], Any], texts: tuple[str, ...]) -> None:
    family = precise("bert").family
    left, right = texts[:25], texts[25:50]
    with Embedder(family, "L02-D020-fp32-ubinary") as embedder:
        ours, theirs = (np.unpackbits(embedder.embed(side), axis=1, count=20) for side in (left, right))
    equal = (ours == theirs).sum(axis=1).astype(np.float64)
    gold = np.random.default_rng(0).random(25)
    expected = np.corrcoef(rank(equal), rank(gold))[0, 1]
    task = StsTask("pairs", left, right, tuple(gold))
    quality = evaluate_family(family, [task], profiles=["L02-D020-fp32-ubinary"])
    assert quality.tasks["pairs"].profiles["L02-D020-fp32-ubinary"].score == pytest.approx(expected, abs=1e-6)


def test_prompts_for_queries_stand_before_queries_alone() -> None:
    family = load_family(GOLDEN / "schema3")
    task = RetrievalTask("search", {"q": "a cat"}, {"d": "a dog"}, {"q": {"d": 1}})
    assert collect_texts(family, [task]) == [(Asked("query"), "a cat"), (Asked(), "a dog")]
    points = [Profile(Point(2, 20), Precision.FP32), Profile(Point(1, 12), Precision.FP32)]
    known = [(Asked("query"), "a cat"), (Asked(""), "a cat"), (Asked("query"), "a dog")]
    for profile, vectors in embed_profiles(family, points, known):
        with Embedder(family, profile.name) as embedder:
            expected = [embedder.embed([text], **asked._asdict())[0] for asked, text in known]
        np.testing.assert_allclose(vectors, expected, atol=2e-6)


def test_families_that_know_tasks_read_queries_and_documents_as_their_parent_does() -> None:
    """What `encode_query` and `encode_document` do, whatever the prompts are called."""
    family = load_family(GOLDEN / "schema4")
    task = RetrievalTask("search", {"q": "a cat"}, {"d": "a dog"}, {"q": {"d": 1}})
    query, document = collect_texts(family, [task])
    assert (query, document) == ((Asked(task="query"), "a cat"), (Asked(task="document"), "a dog"))
    points = [Profile(Point(1, 20), Precision.FP32), Profile(Point(2, 20), Precision.FP32)]
    for profile, (first, second) in embed_profiles(family, points, [query, document]):
        with Embedder(family, profile.name) as embedder:
            np.testing.assert_allclose(first, embedder.embed(["a cat"], prompt="query")[0], atol=2e-6)
            np.testing.assert_allclose(second, embedder.embed(["a dog"], prompt="")[0], atol=2e-6)


def test_a_document_that_is_the_query_does_not_count(exported: Path, texts: tuple[str, ...]) -> None:
    """As in BEIR's ArguAna: its own text is each query's nearest, and not what was asked for."""
    documents = {f"t{number}": text for number, text in enumerate(texts)}
    queries = {"t0": texts[0], "t1": texts[1]}
    with Embedder(exported, FULL) as embedder:
        vectors = embedder.embed(texts)
    nearest = {f"t{number}": f"t{np.argsort(-(vectors @ vectors[number]))[1]}" for number in (0, 1)}
    task = RetrievalTask("search", queries, documents, {query: {found: 1} for query, found in nearest.items()})
    assert evaluate_family(exported, [task]).tasks["search"].profiles[FULL].score == 1


def test_a_document_of_the_querys_name_that_was_graded_counts(exported: Path, texts: tuple[str, ...]) -> None:
    """Both files numbered from 0: the document is another one, since somebody graded it."""
    documents, queries = {"0": texts[1], "1": texts[2]}, {"0": texts[1]}
    task = RetrievalTask("search", queries, documents, {"0": {"0": 1}})
    assert evaluate_family(exported, [task]).tasks["search"].profiles[FULL].score == 1


def test_grades_weigh(exported: Path, texts: tuple[str, ...]) -> None:
    """nDCG of two documents in the wrong order, worked out by hand with trec_eval's gains (the grades themselves)."""
    with Embedder(exported, FULL) as embedder:
        query, *vectors = embedder.embed(texts[:3])
    first, second = sorted((0, 1), key=lambda index: -float(query @ vectors[index]))
    grades = {f"d{first}": 1, f"d{second}": 3}
    task = RetrievalTask("search", {"q": texts[0]}, {"d0": texts[1], "d1": texts[2]}, {"q": grades})
    expected = (1 + 3 / math.log2(3)) / (3 + 1 / math.log2(3))
    assert evaluate_family(exported, [task]).tasks["search"].profiles[FULL].score == pytest.approx(expected, abs=1e-6)


def test_a_document_that_is_not_there_is_never_found(exported: Path, texts: tuple[str, ...]) -> None:
    """As trec_eval counts: the ideal order has it first."""
    task = RetrievalTask("search", {"q": texts[0]}, {"d": texts[0]}, {"q": {"d": 1, "gone": 1}})
    score = evaluate_family(exported, [task]).tasks["search"].profiles[FULL]
    assert score.score == pytest.approx(1 / (1 + 1 / math.log2(3)))
    assert score.others["recall@10"] == 0.5
    assert score.others["MRR@10"] == 1


def test_adaptive_retrieval_of_each_depth(exported: Path, retrieval: RetrievalTask) -> None:
    task = evaluate_family(exported, [retrieval], shortlist=12).tasks["search"]
    assert [(found.profile, found.shortlist_dim) for found in task.adaptive] == [
        ("L01-D032-fp32", 8),
        ("L02-D032-fp32", 8),
        ("L03-D032-fp32", 8),
    ]
    for found in task.adaptive:
        assert found.shortlist == 12
        assert 0.2 < found.recall < 1
        assert found.speedup > 0
    whole = evaluate_family(exported, [retrieval], shortlist=1000).tasks["search"]
    for found in whole.adaptive:
        assert found.recall == 1
        assert found.score == pytest.approx(whole.profiles[found.profile].score)


def test_a_pack_has_scores_and_no_retention(exported: Path, tmp_path: Path, sts: StsTask) -> None:
    pack_profile(exported, "L02-D032-fp32", tmp_path / "pack")
    task = evaluate_family(tmp_path / "pack", [sts]).tasks["pairs"]
    assert task.parent is None
    score = task.profiles["L02-D032-fp32"]
    assert score.retention is None
    assert score.resamples == ()
    assert score.score == pytest.approx(
        evaluate_family(exported, [sts]).tasks["pairs"].profiles["L02-D032-fp32"].score, abs=1e-6
    )
    with pytest.raises(FamilyError, match=f"lacks {FULL}, the whole parent"):
        evaluate_family(tmp_path / "pack", [UnlabelledTask("mine", sts.left)])


def test_families_of_older_versions_are_evaluated_one_by_one(sts: StsTask) -> None:
    task = evaluate_family(GOLDEN / "schema2", [sts]).tasks["pairs"]
    assert len(task.profiles) == 6


def test_of_a_parent_that_ranks_nothing_nothing_is_kept(exported: Path, sts: StsTask) -> None:
    reversed_scores = replace(sts, scores=tuple(-value for value in parent_cosines(exported, sts)))
    task = evaluate_family(exported, [reversed_scores]).tasks["pairs"]
    assert task.parent is not None
    assert task.parent.score == pytest.approx(-1)
    assert {score.retention for score in task.profiles.values()} == {None}


def test_a_single_value_ranks_nothing() -> None:
    assert correlate(np.ones(5), np.arange(5.0)) == 0


def test_evaluations_that_are_kept_at_the_same_time_are_all_kept(exported: Path, tmp_path: Path, sts: StsTask) -> None:
    family = load_family(shutil.copytree(exported, tmp_path / "family"))
    quality = evaluate_family(family, [sts], profiles=[FULL])
    task = quality.tasks["pairs"]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: record_quality(family, replace(quality, tasks={f"t{number}": task})), range(24)))
    known = load_quality(family, quality.host)
    assert known is not None
    assert known.tasks.keys() == {f"t{number}" for number in range(24)}


def test_what_was_evaluated_is_kept_and_added_to(exported: Path, tmp_path: Path, sts: StsTask) -> None:
    family = load_family(shutil.copytree(exported, tmp_path / "family"))
    sts = replace(sts, scores=tuple(parent_cosines(exported, sts)))
    one = evaluate_family(family, [sts], profiles=["L01-D008-fp32"])
    other = evaluate_family(family, [sts], profiles=["L02-D032-fp32"])
    record_quality(family, one)
    record_quality(family, other)
    known = load_quality(family, one.host)
    assert known is not None
    assert len(known.tasks["pairs"].profiles["L02-D032-fp32"].resamples) == RESAMPLES
    assert known.tasks["pairs"].profiles == {**one.tasks["pairs"].profiles, **other.tasks["pairs"].profiles}
    changed = evaluate_family(family, [replace(sts, scores=sts.scores[::-1])], profiles=["L02-D032-fp32"])
    record_quality(family, changed)  # other data: what was known of the others does not compare
    known = load_quality(family, one.host)
    assert known is not None
    assert known.tasks["pairs"].profiles.keys() == {"L02-D032-fp32"}


@pytest.mark.usefixtures("no_session")
def test_what_cannot_be_evaluated(exported: Path, sts: StsTask, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="no task was given"):
        evaluate_family(exported, [])
    with pytest.raises(RequestError, match="a shortlist of 9 was asked; at least 10"):
        evaluate_family(exported, [sts], shortlist=9)
    with pytest.raises(RequestError, match="two tasks are called 'pairs'"):
        evaluate_family(exported, [sts, sts])
    with pytest.raises(FamilyError, match="profile 'L09-D008-fp32' was asked"):
        evaluate_family(exported, [sts], profiles=["L09-D008-fp32"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "faiss" else object())
    with pytest.raises(MissingExtraError, match=r"needs faiss-cpu, .*\[evaluate\]"):
        evaluate_family(exported, [sts])


@pytest.fixture
def csv(exported: Path, tmp_path: Path, sts: StsTask) -> Path:
    rows = zip(sts.left, sts.right, parent_cosines(exported, sts), strict=True)
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join(f'"{left}","{right}",{score}' for left, right, score in rows), encoding="utf-8")
    return path


def test_the_command_prints_and_keeps(run: Any, exported: Path, tmp_path: Path, csv: Path) -> None:
    family = shutil.copytree(exported, tmp_path / "family")
    data = json.loads((family / MANIFEST).read_text())
    (family / MANIFEST).write_text(json.dumps(data | {"trained": [{"layers": 3, "dim": 32}]}))
    result = run("evaluate", family, "--sts", csv)
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0].split() == ["profile", "pairs:", "Spearman", "kept"]
    assert any(line.startswith("L01-D008-fp32 *") for line in lines)
    assert any(line.startswith(f"{FULL} ") and "*" not in line and "100.0%" in line for line in lines)
    assert "* the parent was not trained to be read there" in lines
    assert (family / "measurements").is_dir()
    document = json.loads(run("evaluate", family, "--sts", csv, "--profile", FULL, "--json").out)
    assert document["tasks"]["pairs"]["profiles"].keys() == {FULL}


def test_without_a_task_the_shipped_texts_are_compared(run: Any, exported: Path, tmp_path: Path) -> None:
    family = shutil.copytree(exported, tmp_path / "family")
    assert "shipped texts similarity: Spearman with the parent" in run("evaluate", family).out


def test_documents_that_are_not_there_are_said_once(run: Any, exported: Path, tmp_path: Path) -> None:
    family, beir = shutil.copytree(exported, tmp_path / "family"), tmp_path / "toy"
    (beir / "qrels").mkdir(parents=True)
    (beir / "corpus.jsonl").write_text('{"_id": "d1", "text": "a cat"}\n{"_id": "d2", "text": "a dog"}\n')
    (beir / "queries.jsonl").write_text('{"_id": "q1", "text": "a cat"}\n{"_id": "q2", "text": "a dog"}\n')
    (beir / "qrels" / "test.tsv").write_text("q1\td1\t1\nq1\tgone\t1\nq2\td2\t1\nq2\tgone\t1\n")
    result = run("evaluate", family, "--retrieval", beir, "--json")
    assert (result.code, result.json["tasks"]["toy"]["profiles"][FULL]["others"]["recall@10"]) == (0, 0.5)
    assert result.err == (
        "matexport: toy: 1 document that the grades name is not in the corpus, such as 'gone'; it counts as never "
        "found, as trec_eval counts it\n"
    )


def test_wrong_inputs_of_the_command(run: Any, exported: Path, tmp_path: Path, csv: Path) -> None:
    run("evaluate", exported, "--sts", tmp_path / "no.csv").complains("cannot read")
    run("evaluate", exported, "--sts", csv, "--shortlist", "5").complains("--shortlist is for --retrieval")
    run("evaluate", exported, "--retrieval", csv).complains("is not a folder; BEIR's layout")
    run("evaluate", tmp_path, "--sts", csv).complains("has no family.json")
