"""Families run by the native engine: against what is stored of the parent, and against onnxruntime on their graphs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commandline import Run
from safetensors.numpy import load_file

import matexport
from matexport.errors import FamilyError, RequestError
from matexport.family.integrity import check_profile
from matexport.family.manifest import load_family
from matexport.runtime.engines.native import library, session
from matexport.runtime.engines.native.library import KERNELS_VARIABLE, find_library, list_kernels
from matexport.runtime.engines.native.program import Program
from matexport.runtime.engines.native.recognize import recognize
from matexport.runtime.engines.native.steps import Index
from matexport.spec.measured import Engine

GOLDEN = Path(__file__).parents[2] / "golden"
TEXTS = ["the cat sits on the mat", "snow and a big red house " * 9, "dog", "money, river bank! 42", "the cat"]
NATIVE = Engine("native", threads=1)
#: Golden family -> its int8 profiles.
PROFILES = [
    *(("schema3", f"{point}-int8") for point in ("L01-D012", "L01-D020", "L02-D020")),
    *(("schema2", f"L01-D020-int8{encoding}") for encoding in ("", "-int8", "-ubinary")),
]

built = pytest.mark.skipif(find_library() is None, reason="there was no compiler when matexport was installed")
KERNELS = list_kernels() if find_library() is not None else []


@built
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(("family", "profile"), PROFILES)
def test_gives_what_onnxruntime_gives(family: str, profile: str, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KERNELS_VARIABLE, kernels)
    own = matexport.Embedder(GOLDEN / family, profile, engine=NATIVE)
    other = matexport.Embedder(GOLDEN / family, profile, threads=1)
    expected, made = other.embed(TEXTS), own.embed(TEXTS)
    assert (made.shape, made.dtype) == (expected.shape, expected.dtype)
    if made.dtype == np.float32:
        assert np.abs(made - expected).max() <= 1e-5
    else:  # codes: a number that is nearly half way between two may go to either
        assert (made == expected).mean() >= 0.98
    for way in ("batched", "left-padded"):
        np.testing.assert_array_equal(own.run(own.prepare(TEXTS), way), made)
    np.testing.assert_array_equal(np.concatenate([own.embed([text]) for text in TEXTS]), made)


@built
def test_keeps_the_parent_in_sight() -> None:
    """The stored vectors of the parent, not only those of another engine on the same graph."""
    family = load_family(GOLDEN / "schema3")
    stored = load_file(GOLDEN / "schema3" / "reference.safetensors")
    embedder = matexport.Embedder(family, "L02-D020-int8", engine=NATIVE)
    probes = [json.loads(line) for line in (GOLDEN / "schema3" / "probes.jsonl").read_text().splitlines()]
    made = np.concatenate([embedder.embed([probe["text"]], prompt=probe.get("prompt", "")) for probe in probes])
    assert (made * stored["L02-D020"]).sum(axis=1).min() >= 0.9999


@built
def test_verify_passes_and_rejects_what_is_subtly_wrong(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("verify", GOLDEN / "schema3", "--engine", "native", "--profile", "L02-D020-int8", "--threads", "1")
    result = run(*command)
    assert result.code == 0
    assert "run by native " in result.out

    def misread(model: Any, read: Callable[..., Any]) -> Any:
        """Positions that are counted from 1 where the parent counts from 0."""
        plan = recognize(model, read)
        first = plan.steps[0]
        tables = tuple(
            _replace(table, rows=np.roll(table.rows, -1, 0)) if table.index == Index.COLUMNS else table
            for table in first.tables
        )
        return _replace(plan, steps=(_replace(first, tables=tables), *plan.steps[1:]))

    monkeypatch.setattr(session, "recognize", misread)
    result = run(*command)
    assert result.code == 1
    assert "L02-D020-int8 is off its floor" in result.err


def _replace(record: Any, **changes: Any) -> Any:
    return type(record)(**{name: getattr(record, name) for name in record.__struct_fields__} | changes)


@built
def test_onnxruntime_is_not_imported() -> None:
    code = (
        "import sys, matexport; from matexport.spec.measured import Engine; "
        f"matexport.Embedder({str(GOLDEN / 'schema3')!r}, 'L02-D020-int8', engine=Engine('native')).embed(['a text']); "
        "sys.exit('onnxruntime' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@built
def test_commands(run: Run) -> None:
    result = run("embed", GOLDEN / "schema3", "--profile", "L01-D012-int8", "--engine", "native", "a text")
    assert result.code == 0
    assert len(result.out.split()) >= 12
    run("embed", GOLDEN / "schema3", "--profile", "L01-D012-fp32", "--engine", "native", "a text").complains(
        "the engine native was asked for L01-D012.fp32.onnx, which is fp32; it runs int8"
    )
    run(
        "embed", GOLDEN / "schema3", "--profile", "L01-D012-int8", "--engine", "native", "--provider", "cuda", "a text"
    ).complains("the engine native was asked with the provider cuda")


@built
def test_is_served() -> None:
    """And a model that it does not run is refused to whoever asks for it."""
    pytest.importorskip("uvicorn")
    from serving import serve

    family = GOLDEN / "schema3"
    expected = matexport.Embedder(family, "L02-D020-int8", engine=NATIVE).embed(["the cat"])[0]
    with serve(family, profile="L02-D020-int8", engine=NATIVE) as client:
        made = client.embed(input="the cat", model="L02-D020-int8").json["data"][0]["embedding"]
        assert made == pytest.approx(expected.tolist(), abs=1e-7)
        refused = client.embed(input="the cat", model="L02-D020-fp32")
        refused.refuses(400, "it runs int8: take an int8 profile", param="model")


@built
def test_an_instruction_set_that_is_not_here(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KERNELS_VARIABLE, "avx1024")
    run("embed", GOLDEN / "schema3", "--profile", "L01-D012-int8", "--engine", "native", "a text").complains(
        "MATEXPORT_KERNELS is 'avx1024'; this processor runs: "
    )


@built
def test_a_graph_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    family = load_family(GOLDEN / "schema3")
    contents = check_profile(family, "L02-D020-int8")

    def parse(name: str, content: Any) -> Any:
        from matexport.family.graph_file import parse_graph

        model = parse_graph(name, content)
        next(node for node in model.graph.node if node.op_type == "Softmax").op_type = "Hardmax"
        return model

    monkeypatch.setattr(session, "parse_graph", parse)
    with pytest.raises(
        FamilyError, match=r"the engine native was asked; it cannot run L02-D020\.int8\.onnx: .*Hardmax"
    ):
        session.open_checked(contents, "L02-D020.int8.onnx", NATIVE)


@built
def test_what_a_graph_may_be_fed(monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = matexport.Embedder(GOLDEN / "schema3", "L02-D020-int8", engine=NATIVE)
    feeds = dict(embedder.feed(embedder.prepare(["the cat", "dog"])))
    half = feeds | {"attention_mask": feeds["attention_mask"] * 2}
    with pytest.raises(FamilyError, match=r"a mask .* that is not of 0 and 1"):
        embedder.session.run(["sentence_embedding"], half)
    beyond = feeds | {"input_ids": feeds["input_ids"] + 2**33}
    with pytest.raises(FamilyError, match="beyond the embedding table"):
        embedder.session.run(["sentence_embedding"], beyond)
    empty = {name: array[:0] for name, array in feeds.items()}
    for broken in (empty, {name: array for name, array in feeds.items() if name != "attention_mask"}):
        with pytest.raises(FamilyError, match="no tokens"):
            embedder.session.run(["sentence_embedding"], broken)
    with pytest.raises(FamilyError, match="cannot give nothing"):
        embedder.session.run(["nothing"], feeds)


def test_an_installation_without_the_library(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "find_library", lambda: None)
    library.load_library.cache_clear()
    try:
        run("embed", GOLDEN / "schema3", "--profile", "L01-D012-int8", "--engine", "native", "a text").complains(
            "the engine native was asked; this installation has none"
        )
        assert "(no native engine: no C++ compiler" in run("--version").out
        with pytest.raises(RequestError, match="this installation has none"):
            Program(recognize, max_tokens=1)  # type: ignore[arg-type]
    finally:
        library.load_library.cache_clear()


def test_a_library_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "VERSION", -1)
    library.load_library.cache_clear()
    try:
        if find_library() is not None:
            with pytest.raises(RequestError, match="install matexport again"):
                library.load_library()
    finally:
        library.load_library.cache_clear()
