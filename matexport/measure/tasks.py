"""Read the tasks that a family is evaluated on from CSV, JSON Lines and TSV files; embeds nothing.

``sts``: a CSV of pairs with people's scores. ``retrieval``: a folder in BEIR's layout (Thakur et al., "BEIR", NeurIPS
2021): corpus.jsonl and queries.jsonl with ``_id``, ``text`` and perhaps ``title``, and qrels/SPLIT.tsv with the columns
query, document and grade.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from matexport.errors import RequestError
from matexport.io.texts import MAX_TEXT_CHARACTERS, load_probes, load_shipped_calibration, read_texts
from matexport.spec.record import Record

#: Number of unlabelled texts, at most and at least. The number of pairs grows with its square.
MAX_UNLABELLED = 500
MIN_UNLABELLED = 20
MIN_PAIRS = 3


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
        grades: query id -> document id -> how relevant the document is; 0 is not relevant.
    """

    name: str
    queries: Mapping[str, str]
    documents: Mapping[str, str]
    grades: Mapping[str, Mapping[str, int]]

    @property
    def sha256(self) -> str:
        """Digest of the queries, documents and grades."""
        return _digest([self.queries, self.documents, self.grades])


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
    """Read a CSV of pairs.

    Args:
        path: a file with a header that names ``sentence1``, ``sentence2`` and ``score``, in any order and perhaps among
            other columns. Without such a header, these are the first three columns.

    Raises:
        RequestError: the file cannot be read, a row is no pair with a number, there are fewer than 3 pairs, or all
            scores are the same.
    """
    rows = list(_read_csv(path))
    columns = (0, 1, 2)
    names = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    if {"sentence1", "sentence2", "score"} <= set(names):
        columns = (names.index("sentence1"), names.index("sentence2"), names.index("score"))
        rows = rows[1:]
    left, right, scores = [], [], []
    for line, row in rows:
        score = _read_number(row[columns[2]]) if len(row) > max(columns) else None
        if score is None:
            raise RequestError(
                f"{path}, line {line}: no sentence1, sentence2 and score (a number); these three columns are needed, "
                "or a header that names them"
            )
        left.append(row[columns[0]])
        right.append(row[columns[1]])
        scores.append(score)
    if len(scores) < MIN_PAIRS or len(set(scores)) < 2:
        raise RequestError(f"{path} has {len(scores)} pairs with {len(set(scores))} different scores: nothing to rank")
    return StsTask(path.stem, tuple(left), tuple(right), tuple(scores))


def load_retrieval(folder: Path, split: str = "test") -> RetrievalTask:
    """Read a folder in BEIR's layout.

    Args:
        folder: a folder with corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv.
        split: name of the split. Only queries for which it has a relevant document are kept.

    Raises:
        RequestError: a file is missing or malformed, an id occurs twice, the grades name queries or documents that are
            not there, or no document is relevant.
    """
    if not folder.is_dir():
        raise RequestError(
            f"{folder} is not a folder; BEIR's layout has corpus.jsonl, queries.jsonl and qrels/{split}.tsv"
        )
    corpus, queries = folder / "corpus.jsonl", folder / "queries.jsonl"
    documents: dict[str, str] = {}
    texts: dict[str, str] = {}
    for line, entry in _read_lines(corpus):
        identity, text = _read_entry(corpus, line, entry)
        title = entry.get("title") or ""
        _refuse_repeated(documents, identity, corpus, line)
        documents[identity] = f"{title} {text}".strip() if isinstance(title, str) else text
    for line, entry in _read_lines(queries):
        identity, text = _read_entry(queries, line, entry)
        _refuse_repeated(texts, identity, queries, line)
        texts[identity] = text
    grades: dict[str, dict[str, int]] = {}
    path = folder / "qrels" / f"{split}.tsv"
    for line, row in _read_csv(path, delimiter="\t"):
        if line == 1 and len(row) == 3 and not _is_whole(row[2]):
            continue  # the header
        if len(row) == 4:
            row = [row[0], *row[2:]]  # TREC's own format has a second column that is not used
        if len(row) != 3 or not _is_whole(row[2]):
            raise RequestError(f"{path}, line {line}: no query id, document id and grade (a whole number), by tabs")
        if row[0] not in texts or row[1] not in documents:
            missing = f"query {row[0]!r}" if row[0] not in texts else f"document {row[1]!r}"
            raise RequestError(f"{path}, line {line}: the {missing} is not there")
        grades.setdefault(row[0], {})[row[1]] = int(row[2])
    judged = {query: found for query, found in grades.items() if any(grade > 0 for grade in found.values())}
    if not judged:
        raise RequestError(f"{path} has no query with a relevant document")
    name = folder.resolve().name + ("" if split == "test" else f" {split}")
    return RetrievalTask(name, {query: texts[query] for query in judged}, documents, judged)


def load_unlabelled(path: Path) -> UnlabelledTask:
    """Read a file with one text per line; of more than 500 different texts, at most 500 are taken, evenly spread.

    Raises:
        RequestError: the file cannot be read, or has fewer than 20 different texts.
    """
    return UnlabelledTask(path.stem, thin_out(read_texts(path, 1 << 20, "the texts"), str(path)))


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


def _read_csv(path: Path, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """(number of its last line, cells) of each row that is not blank."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if delimiter == ",":
                reader = csv.reader(file, strict=True)
            else:
                reader = csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE)
            for row in reader:
                if any(cell.strip() for cell in row):
                    yield reader.line_num, row
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"{path} is no table in UTF-8: {error}") from None


def _read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(iter(lambda: file.readline(16 * MAX_TEXT_CHARACTERS), ""), 1):
                if line.strip():
                    entry = json.loads(line)
                    if not isinstance(entry, dict):
                        raise RequestError(f"{path}, line {number}: no JSON object with _id and text")
                    yield number, entry
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from None
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise RequestError(f"{path} is no JSON Lines file in UTF-8: {error}") from None


def _read_entry(path: Path, line: int, entry: Mapping[str, Any]) -> tuple[str, str]:
    identity, text = entry.get("_id"), entry.get("text")
    if not isinstance(identity, str) or not isinstance(text, str):
        raise RequestError(f"{path}, line {line}: _id and text must be there, and be strings")
    return identity, text


def _refuse_repeated(known: Mapping[str, str], identity: str, path: Path, line: int) -> None:
    if identity in known:
        raise RequestError(f"{path}, line {line}: the _id {identity!r} stands there twice")


def _read_number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _is_whole(text: str) -> bool:
    digits = text.strip().removeprefix("-")
    return digits.isascii() and digits.isdigit() and len(digits) < 10


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()
