"""What a corpus of Parquet files becomes: parts with names and rows, decided before anything is embedded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from matexport.errors import DestinationError, RequestError
from matexport.family.manifest import MANIFEST, Family
from matexport.io.files import describe_os_error, hash_file, replace_file
from matexport.io.tables import holds_text, open_parquet
from matexport.runtime.corpus.parquet import (
    VECTOR_COLUMN,
    Part,
    count_nulls,
    find_files,
    hash_footer,
)

PLAN, SUCCESS = "_matexport.json", "_SUCCESS"

#: Rows of a part, at most: some minutes of work.
PART_ROWS = 65_536


@dataclass(frozen=True)
class CorpusPlan:
    """What a run is asked to do; two runs with the same plan give the same files.

    Attributes:
        family: its directory.
        manifest: sha256 of its manifest, and so of all its files.
        column: of the texts.
        inputs: file -> sha256 of its footer, which says where and how large every row group is, and the file's size.
    """

    family: str
    manifest: str
    profile: str
    prompt: str | None
    column: str
    inputs: Mapping[str, str]
    parts: tuple[Part, ...]
    task: str | None = None


@dataclass(frozen=True)
class CorpusResult:
    """What `embed_corpus` did."""

    out: Path
    rows: int
    parts: int
    parts_done_before: int


def plan_corpus(
    family: Family, corpus: Path, *, profile: str, column: str, prompt: str | None, task: str | None = None
) -> CorpusPlan:
    """Split a corpus into parts. Reads the footers of its files alone.

    Raises:
        RequestError: there is no Parquet file, or one that cannot be read, has two columns of one name, lacks the
            column of texts, or says that some of its rows have no text; or the family takes no texts.
    """
    import pyarrow

    _refuse_other_items(family)
    files = find_files(corpus) if corpus.is_dir() else [corpus]
    if not files:
        raise RequestError(f"{corpus} holds no .parquet file")
    parts: list[Part] = []
    inputs: dict[str, str] = {}
    for file in files:
        try:
            with open_parquet(file) as opened:
                schema, metadata = opened.schema_arrow, opened.metadata
                counts = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
                empty = count_nulls(metadata, column)
            inputs[str(file.absolute())] = hash_footer(file)
        except (OSError, pyarrow.ArrowException) as error:
            raise RequestError(f"{file} cannot be read as Parquet: {str(error).splitlines()[0]}") from None
        if column not in schema.names:
            raise RequestError(f"{file} has no column {column!r}; its columns are: {', '.join(schema.names) or 'none'}")
        if not holds_text(schema.field(column).type):
            raise RequestError(f"{file}: the column {column!r} holds {schema.field(column).type}, not text")
        if VECTOR_COLUMN in schema.names:
            raise RequestError(f"{file} has a column {VECTOR_COLUMN!r} already, which the vectors would be called")
        if empty:
            raise RequestError(f"{file}: {empty} rows have no text in {column!r}: leave them out of the corpus")
        for groups, first, skip, rows in split_rows(counts):
            parts.append(Part(len(parts), str(file.absolute()), groups, first, skip, rows))
    return CorpusPlan(
        str(family.path.resolve()),
        hash_file(family.path / MANIFEST),
        profile,
        prompt,
        column,
        inputs,
        tuple(parts),
        task,
    )


def _refuse_other_items(family: Family) -> None:
    if family.facts.text is None:
        raise RequestError(
            f"{family.path} takes {family.facts.inputs.noun}s, and a corpus with Ray is of texts: leave out --on ray"
        )


def claim_output(out: Path, plan: CorpusPlan) -> None:
    """Make the output's folder, or recognise it as begun by the same plan.

    Raises:
        DestinationError: it holds something else, or cannot be written.
    """
    wanted = json.dumps(asdict(plan), indent=1, sort_keys=True)
    try:
        out.mkdir(parents=True, exist_ok=True)
        known = out / PLAN
        if known.is_file():
            before, now = json.loads(known.read_text(encoding="utf-8")), json.loads(wanted)
            others = [key for key in now if before.get(key) != now[key]]
            if others:
                raise DestinationError(
                    f"{out} was begun with another corpus, family, profile or prompt ({PLAN} differs in "
                    f"{', '.join(others)}): choose another folder, or remove it"
                )
            return
        if any(out.iterdir()):
            raise DestinationError(f"{out} is not empty and holds no vectors of matexport: choose another folder")
        with replace_file(known) as file:
            file.write(wanted.encode("utf-8"))
    except (ValueError, AttributeError):
        raise DestinationError(f"{out / PLAN} cannot be read: choose another folder, or remove it") from None
    except OSError as error:
        raise DestinationError(f"cannot write {out}: {describe_os_error(error)}") from None


def finish_output(out: Path, plan: CorpusPlan) -> None:
    """Count what is there and say that it is all.

    Raises:
        DestinationError: a part is missing, cannot be read, or has other rows than the plan.
    """
    import pyarrow

    for part in plan.parts:
        try:
            with open_parquet(out / part.name) as opened:
                rows = opened.metadata.num_rows
        except (OSError, pyarrow.ArrowException) as error:
            reason = str(error).splitlines()[0]
            raise DestinationError(f"{out / part.name} cannot be read ({reason}): remove it and start again") from None
        if rows != part.rows:
            raise DestinationError(f"{out / part.name} has {rows} rows, and should have {part.rows}: remove it")
    for leftover in out.glob(".part-*"):
        leftover.unlink(missing_ok=True)
    with replace_file(out / SUCCESS):
        pass


def split_rows(counts: list[int]) -> Iterator[tuple[tuple[int, ...], int, int, int]]:
    """Runs of at most `PART_ROWS` rows: row groups, first row, rows of the first group to skip, rows.

    Small row groups share a part; a large one becomes several.
    """
    groups: list[int] = []
    first = rows = 0
    for index, count in enumerate(counts):
        if groups and rows + count > PART_ROWS:
            yield tuple(groups), first, 0, rows
            groups, first, rows = [], first + rows, 0
        if count > PART_ROWS:
            for skip in range(0, count, PART_ROWS):
                yield (index,), first + skip, skip, min(PART_ROWS, count - skip)
            first += count
        elif count:
            groups.append(index)
            rows += count
    if groups:
        yield tuple(groups), first, 0, rows
