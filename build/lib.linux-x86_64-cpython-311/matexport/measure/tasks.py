"""Read the tasks that a family is evaluated on from tables and texts; embeds nothing.

``sts``: a table of pairs with people's scores. ``retrieval``: a folder in BEIR's layout (Thakur et al., "BEIR", NeurIPS
2021): corpus.jsonl and queries.jsonl with ``_id``, ``text`` and perhaps ``title``, and qrels/SPLIT.tsv with the columns
query, document and grade. Files may be packed with gzip, and a table of pairs has any form that `io.tables` reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from matexport.errors import RequestError
from matexport.extras import require_extra
from matexport.io.reading import refuse_long_text, show
from matexport.io.tables import Form, find_form, read_number, read_objects, read_separated, show_row, strip_gz
from matexport.io.texts import load_probes, load_shipped_calibration, read_column, read_texts, take_texts
from matexport.measure.pairs import read_pairs
from matexport.spec.record import Record

#: Number of unlabelled texts, at most and at least. The number of pairs grows with its square.
MAX_UNLABELLED = 500
MIN_UNLABELLED = 20

#: Of a file of texts, so many different ones are looked at.
MAX_TEXTS = 1 << 20

MIN_PAIRS = 3

MAX_GRADE = 10**9


class StsTask(Record, frozen=True):
    """Pairs of texts, and how alike people find them.

    Attributes:
        left, right: the texts of each pair.
        scores: one number per pair, on any scale; larger is more alike.
    """

    name: str
    left: tuple[str, ...]
    right: tuple[str, ...]
    scores: tuple[float, ...]

    @property
    def sha256(self) -> str:
        """Digest of the texts and scores."""
        return _digest([self.left, self.right, self.scores])


class RetrievalTask(Record, frozen=True):
    """Queries, documents, and which of them answer which.

    Attributes:
        queries, documents: id -> text; a document's text begins with its title.
        grades: query id -> document id -> how relevant the document is; 0 is not relevant. May name documents that are
            not there: they are never found.
    """

    name: str
    queries: Mapping[str, str]
    documents: Mapping[str, str]
    grades: Mapping[str, Mapping[str, int]]

    @property
    def sha256(self) -> str:
        """Digest of the queries, documents and grades."""
        return _digest([self.queries, self.documents, self.grades])

    @property
    def absent(self) -> list[str]:
        """Ids of the documents that have a grade and are not there, such as some of ArguAna's; as trec_eval does, they
        count as never found."""
        named = dict.fromkeys(document for found in self.grades.values() for document in found)
        return [document for document in named if document not in self.documents]


class UnlabelledTask(Record, frozen=True):
    """Texts without labels; the similarities of a profile's vectors are compared with those of the whole parent's."""

    name: str
    texts: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Digest of the texts."""
        return _digest(self.texts)


Task = StsTask | RetrievalTask | UnlabelledTask


def load_sts(path: Path) -> StsTask:
    """Read a table of pairs; see `measure.pairs.read_pairs`.

    Raises:
        RequestError: the file cannot be read, a row is no pair with a number, there are fewer than 3 pairs, or all
            scores are the same.
        MissingExtraError: the file is Parquet, and the ``[parquet]`` extra is not installed.
    """
    _require_parquet(path)
    pairs = list(read_pairs(path))
    scores = tuple(pair.score for pair in pairs)
    if len(scores) < MIN_PAIRS or len(set(scores)) < 2:
        raise RequestError(
            f"{path} has {len(scores)} pairs with {len(set(scores))} different scores: to be ranked, there have to be "
            f"{MIN_PAIRS} pairs and 2 scores"
        )
    return StsTask(strip_gz(path).stem, tuple(pair.left for pair in pairs), tuple(pair.right for pair in pairs), scores)


def load_retrieval(folder: Path, split: str = "test") -> RetrievalTask:
    """Read a folder in BEIR's layout.

    Args:
        folder: a folder with corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv.
        split: name of the split. Only queries for which it has a relevant document are kept.

    Raises:
        RequestError: a file is missing or malformed, an id occurs twice, the grades name queries that are not there, or
            no document that is there is relevant. Documents that are not there are never found: see
            `RetrievalTask.absent`.
    """
    if not folder.is_dir():
        raise RequestError(
            f"{folder} is not a folder; BEIR's layout has corpus.jsonl, queries.jsonl and qrels/{split}.tsv"
        )
    documents = _read_entries(folder / "corpus.jsonl", titled=True)
    texts = _read_entries(folder / "queries.jsonl", titled=False)
    path = _find_packed(folder / "qrels" / f"{split}.tsv")
    grades = _read_grades(path, texts)
    judged = {query: found for query, found in grades.items() if any(grade > 0 for grade in found.values())}
    if not judged:
        raise RequestError(f"{path} has no query with a relevant document")
    if not any(grade > 0 and document in documents for found in judged.values() for document, grade in found.items()):
        raise RequestError(
            f"{path}: none of the relevant documents is in {folder / 'corpus.jsonl'}; do they belong together?"
        )
    name = folder.resolve().name + ("" if split == "test" else f" {split}")
    return RetrievalTask(name, {query: texts[query] for query in judged}, documents, judged)


def _find_packed(path: Path) -> Path:
    """The file, or the one with ``.gz`` behind its name where only that is there."""
    packed = path.with_name(f"{path.name}.gz")
    return packed if packed.is_file() and not path.exists() else path


def _read_entries(path: Path, *, titled: bool) -> dict[str, str]:
    """Id -> text of corpus.jsonl or queries.jsonl; `titled`: with the title before it."""
    path = _find_packed(path)
    texts: dict[str, str] = {}
    for line, entry in read_objects(path, "an object with _id and text"):
        where = f"{path}, line {line}"
        identity, text = entry.get("_id"), entry.get("text")
        if isinstance(identity, int) and not isinstance(identity, bool):
            identity = str(identity)
        if not isinstance(identity, str) or not isinstance(text, str):
            told = ", ".join(
                f"{key} {show(str(entry[key]))}" if key in entry else f"no {key}" for key in ("_id", "text")
            )
            raise RequestError(f"{where} has {told}; expected _id (a string or a whole number) and text (a string)")
        if identity in texts:
            raise RequestError(f"{where}: the _id {identity!r} stands there twice")
        title = (entry.get("title") or "") if titled else None
        texts[identity] = f"{title} {text}".strip() if isinstance(title, str) else text
        refuse_long_text(texts[identity], where)
    return texts


def _read_grades(path: Path, queries: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Query id -> document id -> grade. TREC's own format has a second column that is not used."""
    grades: dict[str, dict[str, int]] = {}
    rows = (row for row in read_separated(path, separator="\t") if any(cell.strip() for cell in row.cells))
    for number, row in enumerate(rows):
        cells = list(row.cells)
        grade = _read_grade(cells[-1])
        if not number and len(cells) == 3 and grade is None:
            continue  # the header
        if len(cells) == 4:
            cells = [cells[0], *cells[2:]]
        if len(cells) != 3 or grade is None:
            raise RequestError(
                f"{path}, {row.place} is {show_row(row)}; expected query id, document id and grade (a whole number), "
                "by tabs"
            )
        if cells[0] not in queries:
            raise RequestError(f"{path}, {row.place}: the query {cells[0]!r} is not there")
        grades.setdefault(cells[0], {})[cells[1]] = grade
    return grades


def load_unlabelled(path: Path) -> UnlabelledTask:
    """Read a file with one text per line, or a table with a column of texts (see `io.tables.read_column`).

    Of more than 500 different texts, at most 500 are taken, evenly spread.

    Raises:
        RequestError: the file cannot be read, or has fewer than 20 different texts.
        MissingExtraError: the file is Parquet, and the ``[parquet]`` extra is not installed.
    """
    _require_parquet(path)
    if find_form(path) is Form.LINES:
        texts = read_texts(path, MAX_TEXTS, "the texts")
    else:
        texts = take_texts(read_column(path), MAX_TEXTS)
    return UnlabelledTask(strip_gz(path).stem, thin_out(texts, str(path)))


def read_shipped_texts() -> UnlabelledTask:
    """The texts that come with matexport: the calibration texts and the probes."""
    probes = (probe.text for probe in load_probes(None) if probe.text.strip())
    return UnlabelledTask("shipped texts", tuple(dict.fromkeys((*load_shipped_calibration(), *probes))))


def thin_out(texts: tuple[str, ...], where: str) -> tuple[str, ...]:
    """At most 500 of the texts, evenly spread, in their order; all where there are no more.

    Args:
        where: names the texts in messages.

    Raises:
        RequestError: there are fewer than 20 texts.
    """
    if len(texts) < MIN_UNLABELLED:
        raise RequestError(
            f"{where} has {len(texts)} different texts; at least {MIN_UNLABELLED} have neighbours to compare"
        )
    count = min(len(texts), MAX_UNLABELLED)
    return tuple(texts[place * len(texts) // count] for place in range(count))


def _require_parquet(path: Path) -> None:
    if find_form(path) is Form.PARQUET:
        require_extra("parquet", f"reading Parquet ({path})", {"pyarrow": "pyarrow"})


def _read_grade(text: str) -> int | None:
    """A whole number, perhaps written as 2.0."""
    grade = read_number(text)
    return int(grade) if grade is not None and grade == int(grade) and abs(grade) < MAX_GRADE else None


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()
