"""What users have on disk becomes tasks; what is no task is refused with the file, the line and what is expected."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from matexport.errors import MissingExtraError, RequestError
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
        (
            "a,b\n",
            r"dev\.csv, line 1 is 'a \| b' \(2 cells\); expected a header with two columns of texts \(sentence1 and",
        ),
        (
            "a,b,5\nc,d,high\n",
            r"line 2 is 'c \| d \| high' \(3 cells\); expected texts in the columns 1 and 2 and a number",
        ),
        ("a,b,nan\n", r"line 1 is 'a \| b \| nan' \(3 cells\); expected a header with"),
        (
            "id,premise,hypothesis,label\n1,a,b,2\n",
            r"line 1 is 'id \| premise \| hypothesis \| label' \(4 cells\); expect",
        ),
        ("sentence1,sentence2\na,b\n", "line 1 is 'sentence1 . sentence2' .*one of scores .score, similarity_score"),
        (
            "score,text1,text2\n5,a\n",
            "line 2 is '5 . a' .2 cells.; expected texts in the columns 2 and 3 and a number in 1",
        ),
        ("\n" + "x" * 100 + "\n", r"line 2 is 'x{60}\.\.\.' \(1 cells\)"),
        (f"a,b,1\n{'x' * (1 << 20)}x,d,2\n", "line 2: a text of 1048577 characters; at most 1048576 are taken"),
        ("", "0 pairs with 0 different scores"),
        (
            "a,b,1\nc,d,1\ne,f,1\n",
            "3 pairs with 1 different scores: to be ranked, there have to be 3 pairs and 2 scores",
        ),
        ('a,b,1\n"a,b,1\n', r"line 2: no cells separated by commas \(unexpected end of data\)"),
    ],
)
def test_what_is_no_pair_is_refused(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=words):
        load_sts(write(tmp_path / "dev.csv", text))


STSB = (
    'main-captions\tMSRvid\t2012test\t0001\t5.000\tA plane is taking off.\t"Off," she said; a plane.\n'
    "main-news\theadlines\t2015\t2\t0.5\tA, b\tc; d\tsome source\tanother\n"
    "main-forums\tanswers\t2014\t3\t2\te\tf\n"
)


@pytest.mark.parametrize("name", ["sts-dev.csv", "sts-dev.tsv", "sts-dev.txt", "sts-dev.csv.gz"])
def test_the_layout_of_sts_b(name: str, tmp_path: Path) -> None:
    """As it was first published: tabs under the name .csv, quotes that are characters, no header."""
    path = write(tmp_path / name, STSB)
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    task = load_sts(path)
    assert task.name == "sts-dev"
    assert task.left == ("A plane is taking off.", "A, b", "e")
    assert task.right == ('"Off," she said; a plane.', "c; d", "f")
    assert task.scores == (5, 0.5, 2)
    from_2015 = "".join(STSB.splitlines(keepends=True)[1:]) + "g\th\t2016\t4\t1\ti\tj\n"
    assert load_sts(write(tmp_path / "b.csv", from_2015)).left == ("A, b", "e", "i"), "a year is no score"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", 'a, x\t"b"\t5\nc\td\t1\n'),
        ("a.csv", 'a, x\t"b"\t5\nc\td\t1\n'),
        ("a.csv", '"a, x";"""b""";5\nc;d;1\n'),
        ("a.csv", 'a, x;"""b""";5,0\nc;d;1,0\n'),
        ("a.csv", '\ufeff"a, x","""b""",5\n"c","d","1"\n'),
        ("a.csv", 'sentence1;sentence2;score\na, x;"""b""";5\nc;d;1\n'),
        ("a.tsv", 'split\tgenre\tscore\tsentence1\tsentence2\nx\ty\t5\ta, x\t"b"\nx\ty\t1\tc\td\n'),
        ("a.csv", '\ufeffsentence1,sentence2,similarity_score\n"a, x","""b""",5\nc,d,1\n'),
        ("a.csv", 'label,text1,text2\n5,"a, x","""b"""\n1,c,d\n'),
        ("a.csv", 'Text_A,Text_B,Gold\n"a, x","""b""",5\nc,d,1\n'),
        ("a.csv", 'sentence_A,sentence_B,relatedness_score\n"a, x","""b""",5\nc,d,1\n'),
        ("a.csv", 'id,sentence-1,sentence-2,similarity\n1,"a, x","""b""",5\n2,c,d,1\n'),
        ("a.csv", 'label,score,s1,s2\n0,5,"a, x","""b"""\n1,1,c,d\n'),
        ("a.jsonl", '{"gold": 5, "text1": "a, x", "text2": "\\"b\\""}\n{"gold": 1.0, "text1": "c", "text2": "d"}'),
    ],
)  # fmt: skip
def test_pairs_as_people_have_them(name: str, text: str, tmp_path: Path) -> None:
    more = text.rstrip("\n") + "\n" + text.rstrip("\n").split("\n")[-1] + "\n"
    for packed in (False, True):
        path = write(tmp_path / name, more)
        if packed:
            path.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
        task = load_sts(path)
        assert (task.left, task.right, task.scores) == (("a, x", "c", "c"), ('"b"', "d", "d"), (5, 1, 1))


def test_pairs_in_parquet(tmp_path: Path) -> None:
    texts = pa.array(["a", "b", "a"]).dictionary_encode()
    pq.write_table(pa.table({"sentence1": texts, "sentence2": ["x", "y", "z"], "score": [1, 2, 3]}), tmp_path / "p")
    task = load_sts(tmp_path / "p")
    assert (task.left, task.right, task.scores) == (("a", "b", "a"), ("x", "y", "z"), (1, 2, 3))


@pytest.mark.parametrize("load", [load_sts, load_unlabelled])
def test_parquet_without_its_extra(
    load: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "p")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        MissingExtraError, match=r"reading Parquet \(.*p\) needs pyarrow, .*install the \[parquet\] extra"
    ):
        load(tmp_path / "p")


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
        (
            lambda beir: write(beir / "corpus.jsonl", "[1]\n"),
            r"corpus\.jsonl, line 1 is no JSON object: '\[1\]'; each line should be an object with _id and text",
        ),
        (
            lambda beir: write(beir / "corpus.jsonl", "\n{\n"),
            r"corpus\.jsonl, line 2 is not JSON \(.*\): '{'; each line",
        ),
        (
            lambda beir: write(beir / "corpus.jsonl", '{"_id": 1.5, "text": "a"}\n'),
            r"line 1 has _id '1\.5', text 'a'; expected _id \(a string or a whole number\) and text \(a string\)",
        ),
        (
            lambda beir: write(beir / "corpus.jsonl", '{"_id": true, "text": "a"}\n'),
            "line 1 has _id 'True', text 'a'; exp",
        ),
        (
            lambda beir: write(beir / "queries.jsonl", '{"id": "q1", "text": 2}\n'),
            "line 1 has no _id, text '2'; expected",
        ),
        (
            lambda beir: write(beir / "corpus.jsonl", json.dumps({"_id": "d", "text": "x" * ((1 << 20) + 1)})),
            "line 1: a text of 1048577 characters; at most 1048576 are taken",
        ),
        (lambda beir: write(beir / "corpus.jsonl", 2 * '{"_id": "d1", "text": "a"}\n'), "'d1' stands there twice"),
        (
            lambda beir: write(beir / "qrels/test.tsv", "q1\td9\t1\n"),
            "none of the relevant documents is in .*corpus.jsonl; do they belong together",
        ),
        (lambda beir: write(beir / "qrels/test.tsv", "q9\td1\t1\n"), r"test\.tsv, line 1: the query 'q9' is not there"),
        (
            lambda beir: write(beir / "qrels/test.tsv", "q1 d1 1\n"),
            r"line 1 is 'q1 d1 1' \(1 cells\); expected query id, document id and grade \(a whole number\), by tabs",
        ),
        (
            lambda beir: write(beir / "qrels/test.tsv", "q1\td1\t1\nq1\td2\t0.5\n"),
            r"line 2 is 'q1 \| d2 \| 0\.5' \(3 cells",
        ),
        (lambda beir: write(beir / "qrels/test.tsv", "q1\td1\t0\n"), "no query with a relevant document"),
    ],
)
def test_what_is_not_that_layout_is_refused(spoil: Callable[[Path], object], words: str, beir: Path) -> None:
    spoil(beir)
    with pytest.raises(RequestError, match=words):
        load_retrieval(beir)


def test_ids_may_be_whole_numbers_and_grades_written_as_2_0(beir: Path) -> None:
    write(beir / "corpus.jsonl", '{"_id": 7, "title": null, "text": "Cats sit."}\n{"_id": "8", "text": "Dogs bark."}\n')
    write(beir / "queries.jsonl", '{"_id": 1, "text": "cat?"}\n')
    write(beir / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore\n1\t7\t2.0\n1\t8\t0.0\n")
    task = load_retrieval(beir)
    assert task.documents == {"7": "Cats sit.", "8": "Dogs bark."}
    assert task.queries == {"1": "cat?"}
    assert task.grades == {"1": {"7": 2, "8": 0}}
    assert all(type(grade) is int for grade in task.grades["1"].values())


def test_files_with_a_mark_or_packed_are_the_same_task(beir: Path) -> None:
    plain = load_retrieval(beir)
    files = [beir / "corpus.jsonl", beir / "queries.jsonl", beir / "qrels" / "test.tsv"]
    for path in files:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_retrieval(beir) == plain
    for path in files:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
        path.unlink()
    assert load_retrieval(beir) == plain


def test_documents_that_only_the_grades_name(beir: Path) -> None:
    """As in ArguAna: they stay among what should have been found."""
    write(beir / "qrels" / "test.tsv", "q1\td1\t2\nq1\tgone\t1\nq2\tgone\t1\nq2\tlost\t0\n")
    task = load_retrieval(beir)
    assert task.grades == {"q1": {"d1": 2, "gone": 1}, "q2": {"gone": 1, "lost": 0}}
    assert task.absent == ["gone", "lost"]
    assert task.documents.keys() == {"d1", "d2"}


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


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.txt", "t.parquet"])
def test_texts_may_be_the_column_of_a_table(name: str, tmp_path: Path) -> None:
    texts = tuple(f"text, {number}" for number in range(30))
    data = {
        "t.csv": "id,text\n" + "".join(f'{place},"{text}"\n' for place, text in enumerate(texts)),
        "t.jsonl": "".join(json.dumps({"id": "x", "text": text}) + "\n" for text in texts),
        "t.txt": "\ufeff" + "\n".join(texts),
    }
    if name == "t.parquet":
        pq.write_table(pa.table({"text": texts}), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(gzip.compress(data[name].encode(), mtime=0))
    task = load_unlabelled(tmp_path / name)
    assert (task.name, task.texts) == ("t", texts)


def test_few_texts_have_no_neighbours(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="has 1 different texts; at least 20"):
        load_unlabelled(write(tmp_path / "texts.txt", "same\n" * 30))


def test_texts_come_along() -> None:
    texts = read_shipped_texts().texts
    assert len(texts) == len(set(texts)) > 150
