"""What was checked is what runs: families that are replaced, linked, piped or forged while they are read."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commandline import Run
from forge import edit_manifest, overwrite_values, reseal
from places import GOLDEN, ROOT

from matexport import Embedder, load_family, verify_family
from matexport.errors import FamilyError
from matexport.family.manifest import MANIFEST
from matexport.family.weights_file import read_header
from matexport.verify.verdict import record_measurement

NAME = "L01-D008-fp32"
TEXTS = ["the cat sits", "a dog"]
WEIGHTS = "weights.fp32.safetensors"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two families of one parent but for its weights: same names, same sizes, other vectors."""
    first, second = (Path(shutil.copytree(GOLDEN / "schema1", tmp_path / name)) for name in ("family", "other"))
    for entry in read_header(second / WEIGHTS).entries:
        if entry.dtype == "F32" and entry.nbytes > 1024:
            draws = np.random.default_rng(0).standard_normal(entry.shape).astype(np.float32)
            overwrite_values(second / WEIGHTS, entry.name, draws)
    reseal(second)
    return first, second


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="renameat2 is Linux's")
def test_what_is_read_or_recorded_is_of_one_of_two_families_that_change_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors of one of both, or an error; and measurements with the family that they are of."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from replaced_families import make_pair, read_replaced, record_replaced

    read = read_replaced(make_pair(tmp_path / "read"), 150)
    assert read.done
    assert read.wrong == 0
    recorded = record_replaced(make_pair(tmp_path / "recorded"), 60)
    assert recorded.done
    assert recorded.wrong == 0


def test_a_family_that_was_replaced_is_not_recorded(pair: tuple[Path, Path]) -> None:
    family = load_family(pair[0])
    verification = verify_family(pair[0])
    shutil.rmtree(pair[0])
    pair[1].rename(pair[0])
    with pytest.raises(FamilyError, match="was replaced while it was measured: nothing was recorded"):
        record_measurement(family, verification)
    assert not list((pair[0] / "measurements").glob("*.json*"))


@pytest.mark.parametrize(
    "name", ["helper.py", "model.ort", "notes.txt", "family.json.bak", "probes.safetensors", "lib.so"]
)
def test_a_kind_of_file_that_no_export_writes(name: str, pair: tuple[Path, Path], no_session: None) -> None:
    (pair[0] / name).write_bytes(b"print('ran')")
    reseal(pair[0])
    with pytest.raises(FamilyError, match=f"lists the file '{name}', which is of no kind that export writes"):
        load_family(pair[0])


def test_a_graph_by_another_suffix(pair: tuple[Path, Path], no_session: None) -> None:
    """onnxruntime reads a file by its suffix as its own format, which nobody has looked at."""
    (pair[0] / "L01-D008.fp32.onnx").rename(pair[0] / "L01-D008.fp32.ort")

    def rename(data: dict[str, dict[str, dict[str, object]]]) -> None:
        data["profiles"][NAME]["graph"] = "L01-D008.fp32.ort"
        data["files"]["L01-D008.fp32.ort"] = data["files"].pop("L01-D008.fp32.onnx")

    edit_manifest(pair[0], rename)
    with pytest.raises(FamilyError, match=r"lists the file 'L01-D008\.fp32\.ort', which is of no kind"):
        load_family(pair[0])


@pytest.mark.parametrize("file", [MANIFEST, "tokenizer.json", WEIGHTS, "L01-D008.fp32.onnx", "reference.safetensors"])
def test_a_pipe_is_not_waited_for(file: str, pair: tuple[Path, Path], run: Run) -> None:
    (pair[0] / file).unlink()
    os.mkfifo(pair[0] / file)
    for command in (
        ["verify", pair[0]],
        ["embed", pair[0], "--profile", NAME, "a text"],
        ["pack", pair[0], NAME, "out"],
    ):
        result = run(*command)
        if result.code:  # to embed needs no reference
            assert f"{file} is not a regular file" in result.err
        else:
            assert (command[0], file) == ("embed", "reference.safetensors")


@pytest.mark.parametrize("command", ["show", "pick", "report", "verify"])
def test_a_pipe_among_the_measurements(command: str, pair: tuple[Path, Path], run: Run) -> None:
    (pair[0] / "measurements").mkdir(exist_ok=True)
    os.mkfifo(pair[0] / "measurements" / "host.json")
    run(command, pair[0])


NUMBERS: dict[str, tuple[Callable[[dict[str, object]], object], str]] = {
    "layers of 400 digits": (lambda profile: profile.update(layers=10**400), "is larger than 2.53"),
    "a prefix beyond 2^53": (lambda profile: profile.update(weights_prefix_bytes=1 << 60), "is larger than 2.53"),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_whole_numbers_beyond_their_range(case: str, pair: tuple[Path, Path]) -> None:
    change, words = NUMBERS[case]
    edit_manifest(pair[0], lambda data: change(data["profiles"][NAME]))
    with pytest.raises(FamilyError, match=words):
        load_family(pair[0])


@pytest.mark.parametrize("name", ["L10000-D008-fp32", "L01-D65537-fp32", "L01-D008-T65537-fp32"])
def test_a_profile_beyond_any_model(name: str, pair: tuple[Path, Path]) -> None:
    from matexport.spec.profile import Profile

    point = Profile.parse(name).point

    def rename(data: dict[str, dict[str, dict[str, object]]]) -> None:
        data["profiles"] = {
            name: data["profiles"][NAME] | {"layers": point.layers, "dim": point.dim, "tokens": point.tokens}
        }
        data["files"] = {key: value for key, value in data["files"].items() if not key.startswith(("L02", "L03"))}

    edit_manifest(pair[0], rename)
    with pytest.raises(FamilyError, match="has more than 9999 layers, 65536 dims or 65536 tokens"):
        load_family(pair[0])


def embed_in_a_child(embedder: Embedder, texts: list[str], queue: object) -> None:
    queue.put(embedder.embed(texts))  # type: ignore[attr-defined]


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="there is no fork here")
@pytest.mark.parametrize("threads", [1, 2])
def test_an_embedder_works_in_a_forked_process(threads: int, pair: tuple[Path, Path]) -> None:
    """As a server does that loads first and forks then: the threads of the parent are not there."""
    code = (
        "import multiprocessing, sys, numpy, matexport\n"
        f"embedder = matexport.Embedder({str(pair[0])!r}, {NAME!r}, threads={threads})\n"
        "texts = [f'a cat number {n} ' * (n % 9 + 1) for n in range(300)]\n"
        "expected = embedder.embed(texts)\n"
        "context = multiprocessing.get_context('fork')\n"
        "def work(queue): queue.put(embedder.embed(texts))\n"
        "queue = context.Queue()\n"
        "child = context.Process(target=work, args=(queue,))\n"
        "child.start()\n"
        "found = queue.get(timeout=60)\n"
        "child.join(60)\n"
        "numpy.testing.assert_allclose(found, expected, atol=1e-6)\n"
        "numpy.testing.assert_allclose(embedder.embed(texts), expected, atol=1e-6)\n"
        "print('equal')\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "equal"


def test_the_weights_are_shared_and_not_copied(pair: tuple[Path, Path]) -> None:
    """onnxruntime reads the mapping: no file of the family is opened by a path of its own."""
    with Embedder(pair[0], NAME) as embedder:
        before = embedder.embed(TEXTS)
        shutil.rmtree(pair[0])
        np.testing.assert_array_equal(embedder.embed(TEXTS), before)


def test_a_session_keeps_the_weights_that_it_reads(pair: tuple[Path, Path]) -> None:
    """Whoever holds it, after the embedder and the folder are gone."""
    embedder = Embedder(pair[0], NAME)
    feeds, session, expected = embedder.feed(embedder.prepare(TEXTS)), embedder.session, embedder.embed(TEXTS)
    embedder.close()
    del embedder
    shutil.rmtree(pair[0])
    gc.collect()
    np.testing.assert_array_equal(session.run(None, feeds)[0], expected)


def test_the_digest_is_that_of_the_manifest_that_was_read(pair: tuple[Path, Path]) -> None:
    import hashlib

    assert load_family(pair[0]).digest == hashlib.sha256((pair[0] / MANIFEST).read_bytes()).hexdigest()
    assert json.loads((pair[0] / MANIFEST).read_text(encoding="utf-8"))["schema"] == 1
