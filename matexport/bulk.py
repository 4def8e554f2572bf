"""A corpus in Parquet -> its vectors in Parquet, on Ray Data: for what outgrows one process or one machine.

    corpus (a file or a folder) -> parts (runs of rows) -> workers, each with an embedder -> one file per part

A part is the unit of work, of restarting and of failure. Its file has a name that the plan gives it, is written under
another name and renamed when it is whole: so a part that is computed twice, because a worker died or a run was started
again, is there once. What a run was asked is kept in the output; another request does not mix with it.

Ray schedules, restarts workers and spreads them over machines (https://docs.ray.io/en/latest/data/data.html). Corpus,
family and output must lie where every machine of a cluster sees them under the same path.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matexport.batches import DEFAULT_BATCH_TOKENS
from matexport.errors import DestinationError, FamilyError, MatexportError, RequestError
from matexport.extras import require_extra
from matexport.family.manifest import MANIFEST, Family, load_family
from matexport.host import count_cpus
from matexport.io.files import hash_file

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.parquet import ParquetFile
from matexport.io.progress import Progress

PLAN, SUCCESS = "_matexport.json", "_SUCCESS"
VECTOR_COLUMN = "embedding"

#: Rows of a part, at most: some minutes of work.
PART_ROWS = 65_536

#: Rows that a worker holds at a time.
CHUNK_ROWS = 4096
DEFAULT_WORKER_THREADS = 2

#: How often a part whose worker died is tried again: one that kills whoever takes it (too large for the memory, say)
#: must not do so for ever, as Ray Data's default is.
MAX_RETRIES = 4


@dataclass(frozen=True)
class Part:
    """A run of rows of one input file, and the output file that they become.

    Attributes:
        row_groups: in which the rows lie.
        first: number of the first row in its file.
        skip: rows of the first row group that belong to parts before.
        rows: how many.
    """

    number: int
    file: str
    row_groups: tuple[int, ...]
    first: int
    skip: int
    rows: int

    @property
    def name(self) -> str:
        return f"part-{self.number:06d}.parquet"


@dataclass(frozen=True)
class BulkPlan:
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
class BulkResult:
    """What `embed_corpus` did."""

    out: Path
    rows: int
    parts: int
    parts_done_before: int


def embed_corpus(
    family: Family | Path | str,
    corpus: Path | str,
    out: Path | str,
    *,
    profile: str | None = None,
    column: str = "text",
    prompt: str | None = None,
    task: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    progress: Progress | None = None,
) -> BulkResult:
    """Embed the texts of a Parquet corpus; every column is kept and `embedding` added.

    Starts Ray on this machine, or joins the cluster that ``RAY_ADDRESS`` names. When `out` holds a part of the same
    work, only the rest is done.

    Args:
        family: the directory of a family or a pack.
        corpus: a Parquet file, or a folder of them, at any depth; names that begin with a dot or an underscore are left
            out, as Parquet writers use them for what is no data.
        out: a folder; one Parquet file per part appears in it, and `_SUCCESS` when all are there.
        profile: may be left out when the family has only one.
        column: of the texts.
        prompt, task: as for `Embedder.embed`.
        workers: processes that embed; as many as Ray's CPUs allow by default.
        threads: of each worker; 2 by default, where a machine of the cluster has so many.
        batch_tokens: as for `Embedder.embed`.
        progress: called with (stage, done, total) parts.

    Raises:
        RequestError: the corpus cannot be read or has no such column, or a row has no text.
        MissingExtraError: the ``[ray]`` extra is not installed.
        DestinationError: `out` holds something else.
        FamilyError: the family is not what was exported.
    """
    _import_ray()
    from matexport.embed import Embedder

    family = family if isinstance(family, Family) else load_family(family)
    embedder = Embedder(family, profile, threads=1)  # whatever is wrong with the family is said once, and here
    embedder.tokenize([], prompt=prompt, task=task)
    profile = embedder.profile
    embedder.close()
    plan = plan_corpus(family, Path(corpus), profile=profile, column=column, prompt=prompt, task=task)
    out = Path(out).absolute()
    claim_output(out, plan)
    (out / SUCCESS).unlink(missing_ok=True)  # of a run before, of which something may be missing now
    done = {part.number for part in plan.parts if (out / part.name).is_file()}
    missing = [part for part in plan.parts if part.number not in done]
    report = progress or (lambda _stage, _done, _total: None)
    report("embed", len(done), len(plan.parts))
    if missing:
        for count, _ in enumerate(_run_on_ray(plan, missing, out, workers, threads, batch_tokens), len(done) + 1):
            report("embed", count, len(plan.parts))
    finish_output(out, plan)
    return BulkResult(out, sum(part.rows for part in plan.parts), len(plan.parts), len(done))


def plan_corpus(
    family: Family, corpus: Path, *, profile: str, column: str, prompt: str | None, task: str | None = None
) -> BulkPlan:
    """Split a corpus into parts. Reads the footers of its files alone.

    Raises:
        RequestError: there is no Parquet file, or one that cannot be read, lacks the column, or says that some of its
            rows have no text.
    """
    import pyarrow

    files = _find_files(corpus) if corpus.is_dir() else [corpus]
    if not files:
        raise RequestError(f"{corpus} holds no .parquet file")
    parts: list[Part] = []
    inputs: dict[str, str] = {}
    for file in files:
        try:
            with _open_parquet(file) as opened:
                schema, metadata = opened.schema_arrow, opened.metadata
                counts = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
                empty = _count_nulls(metadata, column)
            inputs[str(file.absolute())] = _hash_footer(file)
        except (OSError, pyarrow.ArrowException) as error:
            raise RequestError(f"{file} cannot be read as Parquet: {str(error).splitlines()[0]}") from None
        if column not in schema.names:
            raise RequestError(f"{file} has no column {column!r}; its columns are: {', '.join(schema.names) or 'none'}")
        if not _holds_text(schema.field(column).type):
            raise RequestError(f"{file}: the column {column!r} holds {schema.field(column).type}, not text")
        if VECTOR_COLUMN in schema.names:
            raise RequestError(f"{file} has a column {VECTOR_COLUMN!r} already, which the vectors would be called")
        if empty:
            raise RequestError(f"{file}: {empty} rows have no text in {column!r}: leave them out of the corpus")
        for groups, first, skip, rows in _split_rows(counts):
            parts.append(Part(len(parts), str(file.absolute()), groups, first, skip, rows))
    return BulkPlan(
        str(family.path.resolve()),
        hash_file(family.path / MANIFEST),
        profile,
        prompt,
        column,
        inputs,
        tuple(parts),
        task,
    )


def claim_output(out: Path, plan: BulkPlan) -> None:
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
        _write_whole(known, wanted)
    except (ValueError, AttributeError):
        raise DestinationError(f"{out / PLAN} cannot be read: choose another folder, or remove it") from None
    except OSError as error:
        raise DestinationError(f"cannot write {out}: {(error.strerror or str(error)).lower()}") from None


def finish_output(out: Path, plan: BulkPlan) -> None:
    """Count what is there and say that it is all.

    Raises:
        DestinationError: a part is missing, cannot be read, or has other rows than the plan.
    """
    import pyarrow

    for part in plan.parts:
        try:
            with _open_parquet(out / part.name) as opened:
                rows = opened.metadata.num_rows
        except (OSError, pyarrow.ArrowException) as error:
            reason = str(error).splitlines()[0]
            raise DestinationError(f"{out / part.name} cannot be read ({reason}): remove it and start again") from None
        if rows != part.rows:
            raise DestinationError(f"{out / part.name} has {rows} rows, and should have {part.rows}: remove it")
    for leftover in out.glob(".part-*"):
        leftover.unlink(missing_ok=True)
    _write_whole(out / SUCCESS, "")


class PartEmbedder:
    """What a worker of Ray holds: one embedder. Called with the numbers of parts, it writes their files."""

    def __init__(self, plan: BulkPlan, out: str, threads: int, batch_tokens: int = DEFAULT_BATCH_TOKENS) -> None:
        from matexport.embed import Embedder

        self._plan, self._out, self._batch_tokens = plan, Path(out), batch_tokens
        self._embedder = Embedder(plan.family, plan.profile, threads=threads)
        # Workers start at any time and on any machine: what lies at the family's path may be another one there.
        self._is_planned = hash_file(Path(plan.family) / MANIFEST) == plan.manifest

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"part": batch["part"], "problem": [self._try(int(number)) for number in batch["part"]]}

    def _try(self, number: int) -> str:
        """Write a part; what is wrong with it comes back as text, since Ray would wrap an exception many times."""
        import pyarrow

        part = self._plan.parts[number]
        try:
            self.write(part)
        except MatexportError as error:
            return str(error)
        except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
            return f"{part.file}, rows {part.first} to {part.first + part.rows - 1}: {str(error).splitlines()[0]}"
        return ""

    def write(self, part: Part) -> None:
        """Embed a part; its file appears when all of it is there.

        Raises:
            RequestError: a row has no text, or the corpus is no longer what was planned.
            FamilyError: the family is no longer what was planned.
        """
        from pyarrow.parquet import ParquetWriter

        if not self._is_planned:
            raise FamilyError(f"{self._plan.family} is another family now than when this run began")
        if _hash_footer(Path(part.file)) != self._plan.inputs[part.file]:
            raise RequestError(f"{part.file} was changed since this run began")
        target = self._out / part.name
        # Process numbers of two machines may be the same, and a worker that Ray believes dead may still be writing.
        temporary = target.with_name(f".{part.name}.{uuid.uuid4().hex}")
        row = part.first
        try:
            with _open_parquet(Path(part.file)) as source:
                field = make_vector_field(self._embedder)
                with ParquetWriter(temporary, source.schema_arrow.append(field)) as writer:
                    for table in _read_rows(source, part):
                        vectors = self._embed(table.column(self._plan.column).to_pylist(), f"{part.file}, row", row)
                        writer.write_batch(table.append_column(field, make_vector_column(vectors, field.type)))
                        row += len(vectors)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def _embed(self, texts: list[str | None], where: str, first: int) -> Any:
        if None in texts:
            raise RequestError(f"{where} {first + texts.index(None)} has no text")
        try:
            return self._embedder.embed(
                [text for text in texts if text is not None],
                prompt=self._plan.prompt,
                task=self._plan.task,
                batch_tokens=self._batch_tokens,
            )
        except RequestError as error:
            raise RequestError(f"{where}s from {first} on: {error}") from None


def make_vector_field(embedder: Any) -> pyarrow.Field:
    """``embedding``: lists of a fixed length of float32, int8 or uint8."""
    import pyarrow

    empty = embedder.embed([])
    return pyarrow.field(VECTOR_COLUMN, pyarrow.list_(pyarrow.from_numpy_dtype(empty.dtype), empty.shape[1]), False)


def make_vector_column(vectors: Any, kind: pyarrow.DataType) -> pyarrow.Array:
    """(n, d) vectors as a column, without a copy."""
    import pyarrow

    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.reshape(-1)), type=kind)


def _run_on_ray(
    plan: BulkPlan, parts: list[Part], out: Path, workers: int | None, threads: int | None, batch_tokens: int
) -> Iterator[int]:
    """Let Ray's workers write parts; their numbers as they are done."""
    ray = _import_ray()
    started = not ray.is_initialized()
    if started:
        here = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": count_cpus()}
        try:
            ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False, **here)
        except (OSError, RuntimeError, ValueError) as error:
            raise RequestError(f"Ray does not start: {str(error).strip().splitlines()[0]}") from error
    try:
        cpus = int(ray.cluster_resources().get("CPU", count_cpus()))
        largest = max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
        if threads is not None and threads > largest:
            raise RequestError(f"{threads} threads per worker were asked; no machine of the cluster has over {largest}")
        threads = threads or min(DEFAULT_WORKER_THREADS, max(largest, 1))
        retries = MAX_RETRIES
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # each of its errors is raised, too
        count = min(workers or max(1, cpus // threads), len(parts))
        numbers = ray.data.from_items([{"part": part.number} for part in parts], override_num_blocks=len(parts))
        done = numbers.map_batches(
            PartEmbedder,
            batch_size=1,
            concurrency=count,
            num_cpus=threads,
            fn_constructor_args=(plan, str(out), threads, batch_tokens),
            ray_remote_args_fn=lambda: {"max_task_retries": retries},
        )
        for row in done.iter_rows():
            if row["problem"]:
                raise RequestError(row["problem"])
            yield int(row["part"])
    except ray.exceptions.RayError as error:
        raise RequestError(
            f"Ray gave up: {str(error).strip().splitlines()[-1]} Parts that are done stay; the same command goes on"
        ) from error
    finally:
        if started:
            ray.shutdown()


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # reports usage unless told not to
    require_extra("ray", "the ray engine", {"ray": "ray", "pyarrow": "pyarrow"})
    import ray
    import ray.data

    return ray


def _open_parquet(file: Path) -> ParquetFile:
    from pyarrow.parquet import ParquetFile

    return ParquetFile(file)


def _holds_text(kind: pyarrow.DataType) -> bool:
    import pyarrow

    return bool(
        pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind) or pyarrow.types.is_string_view(kind)
    )


def _hash_footer(file: Path) -> str:
    """Digest of a Parquet file's metadata (its last bytes: footer, length of the footer, "PAR1") and its size."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        opened.seek(max(0, size - 8))
        length = int.from_bytes(opened.read(4), "little")
        opened.seek(max(0, size - 8 - length))
        return hashlib.sha256(size.to_bytes(8, "little") + opened.read()).hexdigest()


def _find_files(folder: Path) -> list[Path]:
    """Parquet files at any depth, in the order of their paths."""

    def is_data(file: Path) -> bool:
        return not any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)

    return sorted(file for file in folder.rglob("*.parquet") if file.is_file() and is_data(file))


def _count_nulls(metadata: Any, column: str) -> int:
    """Rows without a text, as far as the footer says."""
    places = [index for index in range(metadata.num_columns) if metadata.schema.column(index).path == column]
    statistics = [
        metadata.row_group(group).column(place).statistics
        for group in range(metadata.num_row_groups)
        for place in places
    ]
    return sum(found.null_count for found in statistics if found is not None and found.has_null_count)


def _split_rows(counts: list[int]) -> Iterator[tuple[tuple[int, ...], int, int, int]]:
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


def _read_rows(source: ParquetFile, part: Part) -> Iterator[pyarrow.RecordBatch]:
    """The rows of a part, `CHUNK_ROWS` at most at a time."""
    skip, left = part.skip, part.rows
    for batch in source.iter_batches(CHUNK_ROWS, row_groups=list(part.row_groups)):
        if skip >= len(batch):
            skip -= len(batch)
            continue
        rows = batch.slice(skip, left)
        skip, left = 0, left - len(rows)
        yield rows
        if not left:
            return


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
