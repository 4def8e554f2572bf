"""A corpus in Parquet -> its vectors in Parquet, on Ray Data: for what outgrows one process or one machine.

    corpus (a file or a folder) -> parts (runs of rows) -> workers, each with an embedder -> one file per part

A part is the unit of work, of restarting and of failure. Its file has a name that the plan gives it, is written under
another name and renamed when it is whole: so a part that is computed twice, because a worker died or a run was started
again, is there once. What a run was asked is kept in the output; another request does not mix with it.

Ray schedules, restarts workers and spreads them over machines (https://docs.ray.io/en/latest/data/data.html). Corpus,
family and output must lie where every machine of a cluster sees them under the same path.
"""

from __future__ import annotations

import logging
import os
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from matexport.errors import FamilyError, MatexportError, RequestError
from matexport.extras import require_extra
from matexport.family.manifest import MANIFEST, Family, load_family
from matexport.host import count_cpus
from matexport.io.files import hash_file
from matexport.io.progress import Progress
from matexport.io.reading import refuse_long_text
from matexport.io.tables import open_parquet
from matexport.runtime.corpus.parquet import (
    Part,
    hash_footer,
    make_vector_column,
    make_vector_field,
    read_rows,
)
from matexport.runtime.corpus.plan import SUCCESS, CorpusPlan, CorpusResult, claim_output, finish_output, plan_corpus

DEFAULT_WORKER_THREADS = 2

#: How often a part whose worker died is tried again: one that kills whoever takes it (too large for the memory, say)
#: must not do so for ever, as Ray Data's default is.
MAX_RETRIES = 4

#: Between two looks at how far the parts are.
LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class CorpusJob:
    """How a corpus is embedded.

    Attributes:
        profile: may be left out when the family has only one.
        column: of the texts.
        prompt, task: as for `Embedder.embed`.
        workers: processes that embed; as many as Ray's CPUs allow by default.
        threads: of each worker; 2 by default, where a machine of the cluster has so many.
        batch_budget: as for `Embedder.embed`.
    """

    profile: str | None = None
    column: str = "text"
    prompt: str | None = None
    task: str | None = None
    workers: int | None = None
    threads: int | None = None
    batch_budget: int | None = None


def embed_corpus(
    family: Family | Path | str,
    corpus: Path | str,
    out: Path | str,
    job: CorpusJob | None = None,
    *,
    progress: Progress | None = None,
) -> CorpusResult:
    """Embed the texts of a Parquet corpus; every column is kept and `embedding` added.

    Starts Ray on this machine, or joins the cluster that ``RAY_ADDRESS`` names. When `out` holds a part of the same
    work, only the rest is done.

    Args:
        family: the directory of a family or a pack.
        corpus: a Parquet file, or a folder of them, at any depth; names that begin with a dot or an underscore are left
            out, as Parquet writers use them for what is no data.
        out: a folder; one Parquet file per part appears in it, and `_SUCCESS` when all are there.
        job: how; with the defaults of `CorpusJob` when left out.
        progress: called with (stage, done, total) rows, also from a thread of its own while parts are under way.

    Raises:
        RequestError: the corpus cannot be read or has no such column, or a row has no text.
        MissingExtraError: the ``[ray]`` extra is not installed.
        DestinationError: `out` holds something else.
        FamilyError: the family is not what was exported.
    """
    _import_ray()
    from matexport.runtime.embedder import Embedder

    job = job or CorpusJob()
    family = family if isinstance(family, Family) else load_family(family)
    embedder = Embedder(family, job.profile, threads=1)  # whatever is wrong with the family is said once, and here
    embedder.prepare([], prompt=job.prompt, task=job.task)
    profile = embedder.profile
    embedder.close()
    plan = plan_corpus(family, Path(corpus), profile=profile, column=job.column, prompt=job.prompt, task=job.task)
    out = Path(out).absolute()
    claim_output(out, plan)
    (out / SUCCESS).unlink(missing_ok=True)  # of a run before, of which something may be missing now
    done = {part.number for part in plan.parts if (out / part.name).is_file()}
    missing = [part for part in plan.parts if part.number not in done]
    rows = sum(part.rows for part in plan.parts)
    moves = _Moves(progress or (lambda _stage, _done, _total: None), rows - sum(part.rows for part in missing), rows)
    if missing:
        _run_on_ray(plan, missing, out, job, moves)
    finish_output(out, plan)
    return CorpusResult(out, rows, len(plan.parts), len(done))


class _Moves:
    """Progress in rows, which never goes back: a part that is tried again begins anew."""

    def __init__(self, report: Progress, before: int, total: int) -> None:
        self._report, self._before, self._total = report, before, total
        self._furthest = 0
        self._lock = Lock()
        report("embed", before, total)

    def move(self, rows: int) -> None:
        """Say that so many rows of this run are embedded."""
        with self._lock:
            if rows > self._furthest:
                self._furthest = rows
                self._report("embed", self._before + rows, self._total)


class RowCounter:
    """What an actor of Ray holds: how many rows of each part are embedded, by whichever worker has it now."""

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}

    def count(self, part: int, rows: int) -> None:
        self._rows[part] = rows

    def add_up(self) -> int:
        return sum(self._rows.values())


class PartEmbedder:
    """What a worker of Ray holds: one embedder. Called with the numbers of parts, it writes their files.

    Args:
        counter: an actor that holds a `RowCounter`, to be told how far a part is.
    """

    def __init__(
        self, plan: CorpusPlan, out: str, threads: int, batch_budget: int | None = None, counter: Any = None
    ) -> None:
        from matexport.runtime.embedder import Embedder

        self._counter = counter
        self._plan, self._out, self._batch_budget = plan, Path(out), batch_budget
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
        if hash_footer(Path(part.file)) != self._plan.inputs[part.file]:
            raise RequestError(f"{part.file} was changed since this run began")
        target = self._out / part.name
        # Process numbers of two machines may be the same, and a worker that Ray believes dead may still be writing.
        temporary = target.with_name(f".{part.name}.{uuid.uuid4().hex}")
        row = part.first
        try:
            with open_parquet(Path(part.file)) as source:
                field = make_vector_field(self._embedder)
                with ParquetWriter(temporary, source.schema_arrow.append(field)) as writer:
                    for table in read_rows(source, part):
                        vectors = self._embed(table.column(self._plan.column).to_pylist(), f"{part.file}, row", row)
                        writer.write_batch(table.append_column(field, make_vector_column(vectors, field.type)))
                        row += len(vectors)
                        if self._counter is not None:  # an answer is not waited for
                            self._counter.count.remote(part.number, row - part.first)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def _embed(self, texts: list[str | None], where: str, first: int) -> Any:
        if None in texts:
            raise RequestError(f"{where} {first + texts.index(None)} has no text")
        for row, text in enumerate(texts, first):
            refuse_long_text(text or "", f"{where} {row}")
        try:
            return self._embedder.embed(
                [text for text in texts if text is not None],
                prompt=self._plan.prompt,
                task=self._plan.task,
                batch_budget=self._batch_budget,
            )
        except RequestError as error:
            raise RequestError(f"{where}s from {first} on: {error}") from None


def _run_on_ray(plan: CorpusPlan, parts: list[Part], out: Path, job: CorpusJob, moves: _Moves) -> None:
    """Let Ray's workers write parts."""
    ray, threads = _import_ray(), job.threads
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
        count = min(job.workers or max(1, cpus // threads), len(parts))
        counter = ray.remote(num_cpus=0)(RowCounter).remote()
        numbers = ray.data.from_items([{"part": part.number} for part in parts], override_num_blocks=len(parts))
        with warnings.catch_warnings():
            # There is no other way yet to say how often a task of an actor is tried again.
            warnings.filterwarnings("ignore", message=".*ray_remote_args_fn", category=DeprecationWarning)
            done = numbers.map_batches(
                PartEmbedder,
                batch_size=1,
                concurrency=count,
                num_cpus=threads,
                fn_constructor_args=(plan, str(out), threads, job.batch_budget, counter),
                ray_remote_args_fn=lambda: {"max_task_retries": retries},
            )
        rows = 0
        with _looking_at(counter, moves):
            for row in done.iter_rows():
                if row["problem"]:
                    raise RequestError(row["problem"])
                rows += plan.parts[int(row["part"])].rows
                moves.move(rows)
    except ray.exceptions.RayError as error:
        raise RequestError(
            f"Ray gave up: {str(error).strip().splitlines()[-1]} Parts that are done stay; the same command goes on"
        ) from error
    finally:
        if started:
            ray.shutdown()


@contextmanager
def _looking_at(counter: Any, moves: _Moves) -> Iterator[None]:
    """Say how far the parts are that are under way, every now and then."""
    import ray

    ended = Event()

    def look() -> None:
        while not ended.wait(LOOK_SECONDS):
            with suppress(ray.exceptions.RayError, TimeoutError):  # the run itself says what is wrong
                moves.move(ray.get(counter.add_up.remote(), timeout=LOOK_SECONDS))

    thread = Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # reports usage unless told not to
    require_extra("ray", "embedding on Ray (--on ray)", {"ray": "ray", "pyarrow": "pyarrow"})
    import ray
    import ray.data

    return ray
