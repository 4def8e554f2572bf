"""A corpus on Ray: every row once, in its own file, whoever dies on the way."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commandline import Run
from conftest import TEXTS
from forge import edit_manifest
from places import GOLDEN

from matexport import Embedder, embed_corpus, load_family
from matexport.errors import DestinationError, FamilyError, MissingExtraError, RequestError
from matexport.runtime.corpus import ray as corpus_on_ray
from matexport.runtime.corpus.parquet import Part
from matexport.runtime.corpus.plan import PLAN, SUCCESS, claim_output, finish_output, plan_corpus
from matexport.runtime.corpus.ray import CorpusJob, PartEmbedder

NAME = "L02-D032-fp32"
pytestmark = pytest.mark.filterwarnings("ignore")  # ray's own


def write_corpus(path: Path, rows: int, *, group: int = 50, first: int = 0) -> Path:
    numbers = list(range(first, first + rows))
    texts = [f"{TEXTS[number % 4]} {number}" for number in numbers]
    pq.write_table(pa.table({"id": numbers, "text": texts}), path, row_group_size=group)
    return path


def read_vectors(out: Path) -> dict[int, np.ndarray]:
    rows: dict[int, np.ndarray] = {}
    for path in sorted(out.glob("part-*.parquet")):
        table = pq.read_table(path)
        assert table.column_names == ["id", "text", "embedding"]
        for number, vector in zip(table["id"].to_pylist(), table["embedding"].to_pylist(), strict=True):
            assert number not in rows, "doubled"
            rows[number] = np.array(vector, dtype=np.float32)
    return rows


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A small Ray on this machine, for all tests here."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield ray
    ray.shutdown()


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matexport.runtime.corpus.plan.PART_ROWS", 100)


def test_every_row_has_its_vector(cluster: Any, small_parts: None, exported: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    write_corpus(corpus / "a.parquet", 230)
    write_corpus(corpus / "b.parquet", 70, first=230)
    seen: list[tuple[int, int]] = []
    result = embed_corpus(
        exported,
        corpus,
        tmp_path / "out",
        CorpusJob(profile=NAME, threads=1),
        progress=lambda _, done, all: seen.append((done, all)),
    )
    assert (result.rows, result.parts, result.parts_done_before) == (300, 4, 0)
    assert (seen[0], seen[-1]) == ((0, 300), (300, 300))
    assert seen == sorted(set(seen))
    vectors = read_vectors(tmp_path / "out")
    assert sorted(vectors) == list(range(300))
    texts = [f"{TEXTS[number % 4]} {number}" for number in range(300)]
    expected = Embedder(exported, NAME).embed(texts)
    np.testing.assert_allclose(np.stack([vectors[number] for number in range(300)]), expected, atol=2e-6)
    field = pq.read_schema(tmp_path / "out" / "part-000000.parquet").field("embedding")
    assert field.type == pa.list_(pa.float32(), 32)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *(f"part-{number:06d}.parquet" for number in range(4)), PLAN, SUCCESS,
    }  # fmt: skip


def test_the_bar_moves_within_a_part(cluster: Any, exported: Path, tmp_path: Path) -> None:
    counter = cluster.remote(num_cpus=0)(corpus_on_ray.RowCounter).remote()
    plan = plan_corpus(
        load_family(exported), write_corpus(tmp_path / "c.parquet", 40), profile=NAME, column="text", prompt=None
    )
    (tmp_path / "out").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matexport.runtime.corpus.parquet.CHUNK_ROWS", 15)
        counts: list[tuple[int, int]] = []
        listening = SimpleNamespace(count=SimpleNamespace(remote=lambda part, rows: counts.append((part, rows))))
        PartEmbedder(plan, str(tmp_path / "out"), 1, None, listening).write(plan.parts[0])
    assert counts == [(0, 15), (0, 30), (0, 40)]

    seen: list[tuple[str, int, int]] = []
    moves = corpus_on_ray._Moves(lambda *step: seen.append(step), 100, 200)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_on_ray, "LOOK_SECONDS", 0.05)
        with corpus_on_ray._looking_at(counter, moves):
            for part, rows in ((0, 15), (1, 30), (0, 10)):  # the last: its worker died, and another began anew
                cluster.get(counter.count.remote(part, rows))
                deadline = time.monotonic() + 30
                while part + 1 > len(seen) - 1 and time.monotonic() < deadline:
                    time.sleep(0.01)
            time.sleep(0.2)
    assert seen == [("embed", 100, 200), ("embed", 115, 200), ("embed", 145, 200)]


def find_workers() -> list[int]:
    """Processes that embed, and that this one started: Ray calls them after the class they hold."""
    parents, workers = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if (folder / "cmdline").read_bytes().startswith(b"ray::MapWorker"):
                workers.append(int(folder.name))
        except OSError:  # it has ended
            continue

    def is_ours(process: int) -> bool:
        while process > 1 and process != os.getpid():
            process = parents.get(process, 0)
        return process == os.getpid()

    return [worker for worker in workers if is_ours(worker)]


def test_a_killed_worker_costs_no_row_and_doubles_none(
    cluster: Any, small_parts: None, exported: Path, tmp_path: Path
) -> None:
    corpus, killed = write_corpus(tmp_path / "corpus.parquet", 3000), []

    def kill(_stage: str, done: int, _total: int) -> None:
        if done >= (200, 1200, 9999)[len(killed)]:
            killed.append(max(find_workers()))
            os.kill(killed[-1], signal.SIGKILL)

    result = embed_corpus(
        exported, corpus, tmp_path / "out", CorpusJob(profile=NAME, workers=2, threads=1), progress=kill
    )
    assert len(set(killed)) == 2
    assert result.parts == 30
    assert sorted(read_vectors(tmp_path / "out")) == list(range(3000))
    assert list((tmp_path / "out").glob(".part*")) == []


DIE = """
import os, pickle, signal, sys
from pathlib import Path
from matexport.runtime.corpus import parquet, ray as corpus_on_ray
parquet.CHUNK_ROWS = 10
folder = Path(sys.argv[1])
plan = pickle.loads((folder / "plan").read_bytes())
worker = corpus_on_ray.PartEmbedder(plan, str(folder / "out"), 1)
embed, calls = worker._embedder.embed, iter(range(99))
def embed_or_die(*texts, **options):
    if next(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return embed(*texts, **options)
worker._embedder.embed = embed_or_die
worker.write(plan.parts[0])
"""


def test_half_a_part_is_no_part(exported: Path, tmp_path: Path) -> None:
    """Killed between two chunks: the file has no name that counts, and the next attempt does not read it."""
    corpus = write_corpus(tmp_path / "corpus.parquet", 40)
    plan = plan_corpus(load_family(exported), corpus, profile=NAME, column="text", prompt=None)
    claim_output(tmp_path / "out", plan)
    (tmp_path / "plan").write_bytes(pickle.dumps(plan))
    died = subprocess.run([sys.executable, "-c", DIE, str(tmp_path)], check=False)
    assert died.returncode == -signal.SIGKILL
    (half,) = (tmp_path / "out").glob("*part*")
    assert half.name.startswith(".part-000000.parquet.")
    PartEmbedder(plan, str(tmp_path / "out"), 1).write(plan.parts[0])
    finish_output(tmp_path / "out", plan)
    assert sorted(read_vectors(tmp_path / "out")) == list(range(40))
    assert list((tmp_path / "out").glob(".part*")) == []


def test_a_stopped_run_goes_on_where_it_was(
    cluster: Any, small_parts: None, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, out = write_corpus(tmp_path / "corpus.parquet", 300), tmp_path / "out"
    embed_corpus(exported, corpus, out, CorpusJob(profile=NAME, threads=1))
    assert (out / SUCCESS).is_file()
    (out / "part-000001.parquet").unlink()
    stamps = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
    result = embed_corpus(exported, corpus, out, CorpusJob(profile=NAME, threads=1))
    assert result.parts_done_before == 2
    assert {name: (out / name).stat().st_mtime_ns for name in stamps} == stamps
    assert sorted(read_vectors(out)) == list(range(300))
    monkeypatch.setattr("matexport.runtime.corpus.ray._run_on_ray", lambda *_: pytest.fail("nothing is left to do"))
    assert embed_corpus(exported, corpus, out, CorpusJob(profile=NAME)).parts_done_before == 3
    # A part of the right name and the wrong rows is no part.
    pq.write_table(pq.read_table(out / "part-000000.parquet").slice(1), out / "part-000000.parquet")
    with pytest.raises(DestinationError, match=r"part-000000\.parquet has 99 rows, and should have 100: remove it"):
        embed_corpus(exported, corpus, out, CorpusJob(profile=NAME))
    assert not (out / SUCCESS).exists(), "somebody may read it"
    (out / "part-000000.parquet").write_bytes(b"PAR1")
    with pytest.raises(DestinationError, match=r"part-000000\.parquet cannot be read .*: remove it and start again"):
        embed_corpus(exported, corpus, out, CorpusJob(profile=NAME))
    assert not (out / SUCCESS).exists()


def test_a_row_without_text_is_named(cluster: Any, exported: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.parquet"
    pq.write_table(pa.table({"text": ["a", "b", None]}), corpus)
    with pytest.raises(RequestError, match=r"corpus\.parquet: 1 rows have no text in 'text'"):
        embed_corpus(exported, corpus, tmp_path / "out", CorpusJob(profile=NAME, threads=1))
    assert not (tmp_path / "out").exists(), "the footer says so, before any work"
    pq.write_table(pa.table({"text": ["a", "b", None]}), corpus, write_statistics=False)
    with pytest.raises(RequestError, match=r"corpus\.parquet, row 2 has no text"):
        embed_corpus(exported, corpus, tmp_path / "out", CorpusJob(profile=NAME, threads=1))
    assert not (tmp_path / "out" / SUCCESS).exists()


def test_more_threads_than_any_machine_has(cluster: Any, exported: Path, tmp_path: Path) -> None:
    """Ray would wait for such a machine for ever."""
    corpus = write_corpus(tmp_path / "corpus.parquet", 5)
    with pytest.raises(RequestError, match=r"3 threads per worker were asked; no machine of the cluster has over 2"):
        embed_corpus(exported, corpus, tmp_path / "out", CorpusJob(profile=NAME, threads=3))


def test_a_part_that_kills_its_workers_ends_the_run(
    cluster: Any, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matexport.runtime.corpus.ray.MAX_RETRIES", 1)
    monkeypatch.setattr("matexport.runtime.corpus.ray.PartEmbedder", Deadly)
    corpus = write_corpus(tmp_path / "corpus.parquet", 20)
    with pytest.raises(RequestError, match=r"Ray gave up: .* Parts that are done stay; the same command goes on"):
        embed_corpus(exported, corpus, tmp_path / "out", CorpusJob(profile=NAME, threads=1))
    assert not (tmp_path / "out" / SUCCESS).exists()
    monkeypatch.undo()
    assert embed_corpus(exported, corpus, tmp_path / "out", CorpusJob(profile=NAME, threads=1)).rows == 20


class Deadly(PartEmbedder):
    """As the kernel ends a process that took too much memory."""

    def write(self, part: Part) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


# --- without Ray


def test_parts_are_row_groups_of_one_file(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matexport.runtime.corpus.plan.PART_ROWS", 120)
    corpus = write_corpus(tmp_path / "corpus.parquet", 330, group=60)
    family = load_family(exported)
    plan = plan_corpus(family, corpus, profile=NAME, column="text", prompt=None)
    assert [(part.row_groups, part.first, part.rows) for part in plan.parts] == [
        ((0, 1), 0, 120), ((2, 3), 120, 120), ((4, 5), 240, 90),
    ]  # fmt: skip


@pytest.mark.parametrize("chunk", [7, 4096])
def test_a_large_row_group_becomes_several_parts(
    chunk: int, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As most writers make them, of a million rows."""
    monkeypatch.setattr("matexport.runtime.corpus.plan.PART_ROWS", 50)
    monkeypatch.setattr("matexport.runtime.corpus.parquet.CHUNK_ROWS", chunk)
    corpus = write_corpus(tmp_path / "corpus.parquet", 150, group=130)
    plan = plan_corpus(load_family(exported), corpus, profile=NAME, column="text", prompt=None)
    assert [(part.row_groups, part.first, part.skip, part.rows) for part in plan.parts] == [
        ((0,), 0, 0, 50), ((0,), 50, 50, 50), ((0,), 100, 100, 30), ((1,), 130, 0, 20),
    ]  # fmt: skip
    (tmp_path / "out").mkdir()
    worker = PartEmbedder(plan, str(tmp_path / "out"), 1)
    for part in plan.parts:
        worker.write(part)
    finish_output(tmp_path / "out", plan)
    vectors = read_vectors(tmp_path / "out")
    assert sorted(vectors) == list(range(150))
    texts = pq.read_table(corpus)["text"].to_pylist()
    expected = Embedder(exported, NAME).embed(texts)
    np.testing.assert_allclose(np.stack([vectors[number] for number in range(150)]), expected, atol=2e-6)


def test_files_at_any_depth_are_taken_and_what_is_no_data_is_not(exported: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    for name, first in (("b.parquet", 0), ("year=2024/a.parquet", 10), ("year=2024/.half.parquet", 20)):
        (corpus / name).parent.mkdir(parents=True, exist_ok=True)
        write_corpus(corpus / name, 10, first=first)
    (corpus / "_temporary").mkdir()
    write_corpus(corpus / "_temporary" / "c.parquet", 10)
    plan = plan_corpus(load_family(exported), corpus, profile=NAME, column="text", prompt=None)
    assert [Path(part.file).relative_to(corpus).as_posix() for part in plan.parts] == [
        "b.parquet", "year=2024/a.parquet",
    ]  # fmt: skip


def test_another_family_under_the_same_path_is_noticed(family: Path, tmp_path: Path) -> None:
    """Exported anew while a run goes on, or another copy on another machine."""
    corpus = write_corpus(tmp_path / "corpus.parquet", 5)
    plan = plan_corpus(load_family(family), corpus, profile=NAME, column="text", prompt=None)
    edit_manifest(family, lambda data: data["refused"].update({"L09-D008-fp32": "gone"}))
    with pytest.raises(FamilyError, match="is another family now than when this run began"):
        PartEmbedder(plan, str(tmp_path), 1).write(plan.parts[0])
    assert list(tmp_path.glob("*part-*")) == []


def test_a_corpus_that_changes_meanwhile_is_noticed(exported: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.parquet", 5)
    plan = plan_corpus(load_family(exported), corpus, profile=NAME, column="text", prompt=None)
    worker = PartEmbedder(plan, str(tmp_path), 1)
    write_corpus(corpus, 6)
    with pytest.raises(RequestError, match=r"corpus\.parquet was changed since this run began"):
        worker.write(plan.parts[0])


def test_a_text_that_cannot_be_embedded_is_found_in_its_file(exported: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.parquet", 5)
    plan = plan_corpus(load_family(exported), corpus, profile=NAME, column="text", prompt=None)
    worker = PartEmbedder(plan, str(tmp_path), 1)

    def refuse(texts: list[str], **_: object) -> np.ndarray:
        if texts:
            raise RequestError("text 3 ('') has no tokens")
        return np.zeros((0, 32), np.float32)

    worker._embedder.embed = refuse  # type: ignore[method-assign, assignment]
    with pytest.raises(RequestError, match=r"corpus\.parquet, rows from 0 on: text 3 \(''\) has no tokens"):
        worker.write(plan.parts[0])
    assert list(tmp_path.glob("*part-*")) == []


def test_categories_are_read_and_kept(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pandas writes them for columns whose texts repeat."""
    monkeypatch.setattr("matexport.runtime.corpus.parquet.CHUNK_ROWS", 3)
    texts = [TEXTS[number % 2] for number in range(8)]
    table = pa.table({"text": pa.array(texts).dictionary_encode()})
    pq.write_table(table, tmp_path / "corpus.parquet", row_group_size=4)
    plan = plan_corpus(load_family(exported), tmp_path / "corpus.parquet", profile=NAME, column="text", prompt=None)
    PartEmbedder(plan, str(tmp_path), 1).write(plan.parts[0])
    written = pq.read_table(tmp_path / "part-000000.parquet")
    assert pa.types.is_dictionary(written.schema.field("text").type)
    assert written["text"].to_pylist() == texts
    expected = Embedder(exported, NAME).embed(texts)
    np.testing.assert_allclose(np.array(written["embedding"].to_pylist(), np.float32), expected, atol=1e-6)


def test_a_text_that_is_too_long_is_named(exported: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b" * ((1 << 20) + 1)]}), tmp_path / "corpus.parquet")
    plan = plan_corpus(load_family(exported), tmp_path / "corpus.parquet", profile=NAME, column="text", prompt=None)
    with pytest.raises(RequestError, match=r"corpus\.parquet, row 1: a text of 1048577 characters; at most 1048576"):
        PartEmbedder(plan, str(tmp_path), 1).write(plan.parts[0])
    assert list(tmp_path.glob("*part-*")) == []


@pytest.mark.parametrize("encoding", ["int8", "ubinary"])
def test_codes_keep_their_type(encoding: str, tmp_path: Path) -> None:
    family = GOLDEN / "schema2"
    profile = next(profile.name for profile in load_family(family).profiles if str(profile.encoding) == encoding)
    corpus = write_corpus(tmp_path / "corpus.parquet", 20)
    plan = plan_corpus(load_family(family), corpus, profile=profile, column="text", prompt=None)
    worker = PartEmbedder(plan, str(tmp_path), 1)
    worker.write(plan.parts[0])
    table = pq.read_table(tmp_path / "part-000000.parquet")
    kind = table.schema.field("embedding").type
    assert kind.value_type == {"int8": pa.int8(), "ubinary": pa.uint8()}[encoding]
    expected = Embedder(family, profile).embed(table["text"].to_pylist())
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist()), expected)


def test_another_request_does_not_mix_with_what_is_there(exported: Path, tmp_path: Path) -> None:
    corpus, out = write_corpus(tmp_path / "corpus.parquet", 20), tmp_path / "out"
    family = load_family(exported)
    plan = plan_corpus(family, corpus, profile=NAME, column="text", prompt=None)
    claim_output(out, plan)
    claim_output(out, plan)
    with pytest.raises(DestinationError, match="begun with another corpus, family, profile or prompt"):
        claim_output(out, plan_corpus(family, corpus, profile="L01-D008-fp32", column="text", prompt=None))
    write_corpus(corpus, 21)
    with pytest.raises(DestinationError, match="begun with another corpus"):
        claim_output(out, plan_corpus(family, corpus, profile=NAME, column="text", prompt=None))
    (out / PLAN).write_text("{")
    with pytest.raises(DestinationError, match="cannot be read"):
        claim_output(out, plan)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    with pytest.raises(DestinationError, match="is not empty and holds no vectors"):
        claim_output(tmp_path / "mine", plan)
    assert json.loads(json.dumps(plan.inputs)) == plan.inputs


def make_bad(folder: Path, what: str) -> Path:
    path = folder / "corpus.parquet"
    if what == "an empty folder":
        folder.joinpath("empty").mkdir()
        return folder / "empty"
    if what == "no file":
        return path
    if what == "no Parquet":
        path.write_bytes(b"hello")
    elif what == "another column":
        pq.write_table(pa.table({"body": ["a"]}), path)
    elif what == "one name twice":
        pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"]), path)
    elif what == "another name twice":
        pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 3, ["text", "id", "id"]), path)
    elif what == "numbers":
        pq.write_table(pa.table({"text": [1, 2]}), path)
    else:
        pq.write_table(pa.table({"text": ["a"], "embedding": [1.0]}), path)
    return path


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("an empty folder", "holds no .parquet file"),
        ("no file", "cannot be read as Parquet"),
        ("no Parquet", "cannot be read as Parquet"),
        ("another column", "has no column 'text'; its columns are: body"),
        ("numbers", "the column 'text' holds int64, not text"),
        ("one name twice", r"corpus\.parquet has 2 columns that are called 'text': rename all but one"),
        ("another name twice", r"corpus\.parquet has 2 columns that are called 'id': rename all but one"),
        ("vectors already", "has a column 'embedding' already"),
    ],
)
def test_a_corpus_that_cannot_be_embedded(what: str, message: str, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=message):
        embed_corpus(exported, make_bad(tmp_path, what), tmp_path / "out", CorpusJob(profile=NAME))
    assert not (tmp_path / "out").exists()


def test_what_is_wrong_with_the_family_is_said_first(exported: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.parquet", 5)
    with pytest.raises(FamilyError, match="profile 'L09-D032-fp32' was asked"):
        embed_corpus(exported, corpus, tmp_path / "out", CorpusJob(profile="L09-D032-fp32"))
    with pytest.raises(RequestError, match="prompt 'query' was asked"):
        embed_corpus(exported, corpus, tmp_path / "out", CorpusJob(profile=NAME, prompt="query"))


# --- the command


def test_on_the_command_line(cluster: Any, run: Run, exported: Path, tmp_path: Path) -> None:
    corpus, out = write_corpus(tmp_path / "corpus.parquet", 30), tmp_path / "out"
    arguments = ("embed", exported, "--profile", NAME, "--on", "ray", "--threads", "1", corpus, out)
    result = run(*arguments)
    assert (result.code, result.out) == (0, f"{out}: 30 vectors in 1 files\n")
    document = json.loads(run(*arguments, "--json").out)
    assert document == {"out": str(out), "rows": 30, "parts": 1, "done_before": 1}


def test_wrong_arguments(run: Run, exported: Path, tmp_path: Path) -> None:
    common = ("embed", exported, "--profile", NAME)
    run(*common, "--on", "ray", "corpus.parquet").complains("takes a Parquet corpus and a folder")
    run(*common, "--on", "ray", "--input", "x", "a", "b").complains("takes a Parquet corpus and a folder")
    run(*common, "--workers", "2", "a").complains("--workers is for --on ray")
    run(*common, "--on", "ray", tmp_path / "no.parquet", tmp_path / "out").complains("cannot be read as Parquet")


def test_without_the_extra(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        MissingExtraError, match=r"needs ray, pyarrow, which is not installed here; install the \[ray\] extra"
    ):
        embed_corpus(exported, tmp_path / "corpus.parquet", tmp_path / "out")
