"""A corpus in Parquet -> its vectors in Parquet, on Ray Data: for what outgrows one process or one machine.

    corpus (a file or a folder) -> parts (runs of row groups) -> workers, each with an embedder -> one file per part

A part is the unit of work, of restarting and of failure. Its file has a name that the plan gives it, is written under
another name and renamed when it is whole: so a part that is computed twice, because a worker died or a run was started
again, is there once. What a run was asked is kept in the output; another request does not mix with it.

Ray schedules, restarts workers and spreads them over machines (https://docs.ray.io/en/latest/data/data.html). Corpus,
family and output must lie where every machine of a cluster sees them under the same path.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matexport.errors import DestinationError, MatexportError, RequestError
from matexport.host import count_cpus
from matexport.manifest import MANIFEST, Family, hash_file, load_family

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.parquet import ParquetFile

Progress = Callable[[str, int, int], None]

PLAN, SUCCESS = "_matexport.json", "_SUCCESS"
VECTOR_COLUMN = "embedding"
#: Rows of a part, where row groups are small enough: some minutes of work at most.
PART_ROWS = 65_536
#: Rows that a worker holds at a time.
CHUNK_ROWS = 4096
DEFAULT_WORKER_THREADS = 2


@dataclass(frozen=True)
class Part:
    """Some row groups of one input file, and the output file that they become."""

    number: int
    file: str
    row_groups: tuple[int, ...]
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
    workers: int | None = None,
    threads: int = DEFAULT_WORKER_THREADS,
    progress: Progress | None = None,
) -> BulkResult:
    """Embed the texts of a Parquet corpus; every column is kept and `embedding` added.

    Starts Ray on this machine, or joins the cluster that ``RAY_ADDRESS`` names. When `out` holds a part of the same
    work, only the rest is done.

    Args:
        family: the directory of a family or a pack.
        corpus: a Parquet file, or a folder of them.
        out: a folder; one Parquet file per part appears in it, and `_SUCCESS` when all are there.
        profile: may be left out when the family has only one.
        column: of the texts.
        workers: processes that embed; as many as Ray's CPUs allow by default.
        threads: of each worker.
        progress: called with (stage, done, total) parts.

    Raises:
        RequestError: the corpus cannot be read or has no such column, a row has no text, or the extra is missing.
        DestinationError: `out` holds something else.
        FamilyError: the family is not what was exported.
    """
    _import_ray()
    from matexport.embed import Embedder

    family = family if isinstance(family, Family) else load_family(family)
    embedder = Embedder(family, profile, threads=1)  # whatever is wrong with the family is said once, and here
    embedder.tokenize([], prompt=prompt)
    profile = embedder.profile
    embedder.close()
    plan = plan_corpus(family, Path(corpus), profile=profile, column=column, prompt=prompt)
    out = Path(out).absolute()
    claim_output(out, plan)
    done = {part.number for part in plan.parts if (out / part.name).is_file()}
    missing = [part for part in plan.parts if part.number not in done]
    report = progress or (lambda _stage, _done, _total: None)
    report("embed", len(done), len(plan.parts))
    if missing:
        for count, _ in enumerate(_run_on_ray(plan, missing, out, workers, threads), len(done) + 1):
            report("embed", count, len(plan.parts))
    finish_output(out, plan)
    return BulkResult(out, sum(part.rows for part in plan.parts), len(plan.parts), len(done))


def plan_corpus(family: Family, corpus: Path, *, profile: str, column: str, prompt: str | None) -> BulkPlan:
    """Split a corpus into parts. Reads the footers of its files alone.

    Raises:
        RequestError: there is no Parquet file, or one that cannot be read or lacks the column.
    """
    import pyarrow

    files = sorted(corpus.glob("*.parquet")) if corpus.is_dir() else [corpus]
    if not files:
        raise RequestError(f"{corpus} holds no .parquet file")
    parts: list[Part] = []
    inputs: dict[str, str] = {}
    for file in files:
        try:
            with _open_parquet(file) as opened:
                schema, metadata = opened.schema_arrow, opened.metadata
                counts = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
            inputs[str(file.absolute())] = _hash_footer(file)
        except (OSError, pyarrow.ArrowException) as error:
            raise RequestError(f"{file} cannot be read as Parquet: {str(error).splitlines()[0]}") from None
        if column not in schema.names:
            raise RequestError(f"{file} has no column {column!r}; its columns are: {', '.join(schema.names) or 'none'}")
        if not _holds_text(schema.field(column).type):
            raise RequestError(f"{file}: the column {column!r} holds {schema.field(column).type}, not text")
        if VECTOR_COLUMN in schema.names:
            raise RequestError(f"{file} has a column {VECTOR_COLUMN!r} already, which the vectors would be called")
        for groups in _pack_groups(counts):
            rows = sum(counts[group] for group in groups)
            parts.append(Part(len(parts), str(file.absolute()), groups, rows))
    return BulkPlan(
        str(family.path.resolve()), hash_file(family.path / MANIFEST), profile, prompt, column, inputs, tuple(parts)
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
            if json.loads(known.read_text(encoding="utf-8")) != json.loads(wanted):
                raise DestinationError(
                    f"{out} was begun with another corpus, family, profile or prompt ({PLAN} says which): choose "
                    "another folder, or remove it"
                )
            return
        if any(out.iterdir()):
            raise DestinationError(f"{out} is not empty and holds no vectors of matexport: choose another folder")
        _write_whole(known, wanted)
    except ValueError:
        raise DestinationError(f"{out / PLAN} cannot be read: choose another folder, or remove it") from None
    except OSError as error:
        raise DestinationError(f"cannot write {out}: {(error.strerror or str(error)).lower()}") from None


def finish_output(out: Path, plan: BulkPlan) -> None:
    """Count what is there and say that it is all.

    Raises:
        DestinationError: a part is missing, or has other rows than the plan.
    """
    for part in plan.parts:
        with _open_parquet(out / part.name) as opened:
            rows = opened.metadata.num_rows
        if rows != part.rows:
            raise DestinationError(f"{out / part.name} has {rows} rows, and should have {part.rows}: remove it")
    for leftover in out.glob(".part-*"):
        leftover.unlink(missing_ok=True)
    _write_whole(out / SUCCESS, "")


class PartEmbedder:
    """What a worker of Ray holds: one embedder. Called with the numbers of parts, it writes their files."""

    def __init__(self, plan: BulkPlan, out: str, threads: int) -> None:
        from matexport.embed import Embedder

        self._plan, self._out = plan, Path(out)
        self._embedder = Embedder(plan.family, plan.profile, threads=threads)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"part": batch["part"], "problem": [self._try(int(number)) for number in batch["part"]]}

    def _try(self, number: int) -> str:
        """Write a part; what is wrong with it comes back as text, since Ray would wrap an exception many times."""
        try:
            self.write(self._plan.parts[number])
        except (MatexportError, OSError) as error:
            return str(error)
        return ""

    def write(self, part: Part) -> None:
        """Embed a part; its file appears when all of it is there."""
        from pyarrow.parquet import ParquetWriter

        target = self._out / part.name
        temporary = target.with_name(f".{part.name}.{os.getpid()}")
        done = 0
        with _open_parquet(Path(part.file)) as source:
            field = make_vector_field(self._embedder)
            schema = source.schema_arrow.append(field)
            with ParquetWriter(temporary, schema) as writer:
                for table in source.iter_batches(CHUNK_ROWS, row_groups=list(part.row_groups)):
                    texts = table.column(self._plan.column).to_pylist()
                    if None in texts:
                        row = texts.index(None) + done
                        raise RequestError(f"{part.file}: row {row} of {_spell(part.row_groups)} has no text")
                    vectors = self._embedder.embed(texts, prompt=self._plan.prompt)
                    column = make_vector_column(vectors, field.type)
                    writer.write_batch(table.append_column(field, column))
                    done += len(texts)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)


def make_vector_field(embedder: Any) -> pyarrow.Field:
    """``embedding``: lists of a fixed length of float32, int8 or uint8."""
    import pyarrow

    empty = embedder.embed([])
    return pyarrow.field(VECTOR_COLUMN, pyarrow.list_(pyarrow.from_numpy_dtype(empty.dtype), empty.shape[1]), False)


def make_vector_column(vectors: Any, kind: pyarrow.DataType) -> pyarrow.Array:
    """(n, d) vectors as a column, without a copy."""
    import pyarrow

    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.reshape(-1)), type=kind)


def _run_on_ray(plan: BulkPlan, parts: list[Part], out: Path, workers: int | None, threads: int) -> Iterator[int]:
    """Let Ray's workers write parts; their numbers as they are done."""
    ray = _import_ray()
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
    try:
        cpus = int(ray.cluster_resources().get("CPU", count_cpus()))
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # each of its errors is raised, too
        count = min(workers or max(1, cpus // threads), len(parts))
        numbers = ray.data.from_items([{"part": part.number} for part in parts], override_num_blocks=len(parts))
        done = numbers.map_batches(
            PartEmbedder,
            batch_size=1,
            concurrency=count,
            num_cpus=min(threads, cpus),
            fn_constructor_args=(plan, str(out), threads),
        )
        for row in done.iter_rows():
            if row["problem"]:
                raise RequestError(row["problem"])
            yield int(row["part"])
    except ray.exceptions.RayError as error:
        raise RequestError(f"Ray gave up: {str(error).strip().splitlines()[-1]}") from error
    finally:
        if started:
            ray.shutdown()


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # reports usage unless told not to
    missing = [name for name in ("ray", "pyarrow") if importlib.util.find_spec(name) is None]
    if missing:
        raise RequestError(f"the ray engine needs {' and '.join(missing)}: pip install 'matexport[ray]'")
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


def _pack_groups(counts: list[int]) -> Iterator[tuple[int, ...]]:
    """Row groups in runs of at most `PART_ROWS` rows; a larger one is a part by itself."""
    groups: list[int] = []
    rows = 0
    for index, count in enumerate(counts):
        if groups and rows + count > PART_ROWS:
            yield tuple(groups)
            groups, rows = [], 0
        groups.append(index)
        rows += count
    if groups:
        yield tuple(groups)


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _spell(groups: tuple[int, ...]) -> str:
    return f"row group {groups[0]}" if len(groups) == 1 else f"row groups {groups[0]} to {groups[-1]}"
