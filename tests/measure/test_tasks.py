"""What users have on disk becomes tasks; what is no task is refused with the file, the line and what is expected."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from matexport.errors import RequestError
from matexport.measure.tasks import MAX_UNLABELLED, load_retrieval, load_sts, load_unlabelled, read_shipped_texts

PAIRS = '"A man, dancing.",A man dances.,5.0\nA child rides.,A dog barks.,0.2\na,b,1\n'


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_pairs_without_a_header(tmp_path: Path) -> None:
    task = load_sts(write(tmp_path / "dev.csv", PAIRS))
    assert (task.name, task.left[0], task.right[2]) == ("dev", "A man, dancing.", "b")
    assert task.scores == (5.0, 0.2, 1.0)


def test_a_header_names_the_columns(tmp_path: Path) -> None:
    text = "id,score,sentence2,Sentence1\n1,5,b,a\n2,1,d,c\n\n3,2,f,e\n"
    task = load_sts(write(tmp_path / "dev.csv", text))
    assert (task.left, task.right, task.scores) == (("a", "c", "e"), ("b", "d", "f"), (5.0, 1.0, 2.0))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n", "line 1: no sentence1, sentence2 and score"),
        ("a,b,5\nc,d,high\n", "line 2: no sentence1, sentence2 and score"),
        ("a,b,nan\n", "line 1: no sentence1"),
        ("", "0 pairs with 0 different scores"),
        ("a,b,1\nc,d,1\ne,f,1\n", "3 pairs with 1 different scores: nothing to rank"),
        ('"a,b,1\n', "is no table in UTF-8"),
    ],
)
def test_what_is_no_pair_is_refused(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=words):
        load_sts(write(tmp_path / "dev.csv", text))


def test_other_data_has_another_digest(tmp_path: Path) -> None:
    first = load_sts(write(tmp_path / "dev.csv", PAIRS))
    assert load_sts(write(tmp_path / "x" / "dev.csv", PAIRS)).sha256 == first.sha256
    assert load_sts(write(tmp_path / "dev.csv", PAIRS.replace("5.0", "4.9"))).sha256 != first.sha256


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "toy"
    documents = [{"_id": "d1", "title": "Cats", "text": "sit."}, {"_id": "d2", "text": "Dogs bark."}]
    write(folder / "corpus.jsonl", "\n".join(map(json.dumps, documents)) + "\n")
    write(folder / "queries.jsonl", '{"_id": "q1", "text": "cat?"}\n{"_id": "q2", "text": "unjudged"}\n')
    write(folder / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\n")
    return folder


def test_retrieval_in_the_layout_of_beir(beir: Path) -> None:
    task = load_retrieval(beir)
    assert task.name == "toy"
    assert task.documents == {"d1": "Cats sit.", "d2": "Dogs bark."}
    assert task.queries == {"q1": "cat?"}
    assert task.grades == {"q1": {"d1": 2, "d2": 0}}


def test_grades_may_have_the_column_of_trec(beir: Path) -> None:
    write(beir / "qrels" / "dev.tsv", "q1\t0\td2\t1\n")
    task = load_retrieval(beir, "dev")
    assert task.grades == {"q1": {"d2": 1}}
    assert task.name == "toy dev", "another split is another task"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda beir: (beir / "corpus.jsonl").unlink(), "cannot read .*corpus.jsonl: No such file"),
        (lambda beir: write(beir / "corpus.jsonl", "[1]\n"), "line 1: no JSON object"),
        (lambda beir: write(beir / "corpus.jsonl", "{\n"), "is no JSON Lines file"),
        (lambda beir: write(beir / "corpus.jsonl", '{"_id": 1, "text": "a"}\n'), "_id and text must be there"),
        (lambda beir: write(beir / "corpus.jsonl", 2 * '{"_id": "d1", "text": "a"}\n'), "'d1' stands there twice"),
        (lambda beir: write(beir / "qrels/test.tsv", "q1\td9\t1\n"), "document 'd9' is not there"),
        (lambda beir: write(beir / "qrels/test.tsv", "q9\td1\t1\n"), "query 'q9' is not there"),
        (lambda beir: write(beir / "qrels/test.tsv", "q1 d1 1\n"), "line 1: no query id"),
        (lambda beir: write(beir / "qrels/test.tsv", "q1\td1\t0\n"), "no query with a relevant document"),
    ],
)
def test_what_is_not_that_layout_is_refused(spoil: Callable[[Path], object], words: str, beir: Path) -> None:
    spoil(beir)
    with pytest.raises(RequestError, match=words):
        load_retrieval(beir)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is not a folder; BEIR"):
        load_retrieval(write(tmp_path / "x", ""))


def test_many_texts_are_thinned_out_over_the_file(tmp_path: Path) -> None:
    for count in (501, 1201):  # every second of 501 would be half of what can be had
        task = load_unlabelled(write(tmp_path / "texts.txt", "".join(f"text {number}\n" for number in range(count))))
        places = [int(text.removeprefix("text ")) for text in task.texts]
        assert len(places) == MAX_UNLABELLED
        assert places[0] == 0
        assert {after - before for before, after in pairwise(places)} <= {count // 500, count // 500 + 1}


def test_few_texts_have_no_neighbours(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="has 1 different texts; at least 20"):
        load_unlabelled(write(tmp_path / "texts.txt", "same\n" * 30))


def test_texts_come_along() -> None:
    texts = read_shipped_texts().texts
    assert len(texts) == len(set(texts)) > 150
