"""A family for any engine: in all precisions, made by the whole pipeline, and held to the parent as every family is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import parents
import pytest
from commandline import Run
from conftest import SMALL, TEXTS, make_once, read_texts, write_texts
from forge import edit_manifest

import matexport
from matexport.errors import FamilyError, RequestError
from matexport.export import export_family
from matexport.io.jobs import load_job
from matexport.runtime.engines import onnxruntime as engine
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.profile import Encoding, Point, Precision, Target

POINTS = (Point(1, 64), Point(2, 20))
#: Precision -> opset and IR version of its portable graphs, and the least onnxruntime.
PORTABLE = {
    **dict.fromkeys((Precision.FP32, Precision.FP16, Precision.INT8, Precision.INT8_STATIC), (17, 8, "1.16")),
    **dict.fromkeys((Precision.Q8, Precision.Q4, Precision.Q4_MIXED), (21, 10, "1.19")),
}


def make_job(folder: Path, points: tuple[Point, ...], target: Target, precisions: tuple[Precision, ...]) -> ExportJob:
    texts, probes = folder / "texts.txt", folder / "probes.jsonl"
    return ExportJob(
        ParentSource(str(folder / "parent")),
        points,
        precisions=precisions,
        encodings=(Encoding.FLOAT32, Encoding.UBINARY),
        probes=probes,
        calibration=texts,
        target=target,
    )


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    """A calm BERT that reads its first token, and its portable family in all precisions. Not to be changed."""
    made = shared / "portable"

    def make() -> None:
        from memory import trace_once

        from matexport.export import pipeline

        parents.make_parent(made / "parent", "bert", pooling="cls", config=SMALL, change=parents.calm)
        write_texts(made / "texts.txt")
        lines = [json.dumps({"text": text}) for text in [*TEXTS, "", *read_texts(made / "texts.txt")[:9]]]
        (made / "probes.jsonl").write_text("\n".join(lines), encoding="utf-8")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline, "trace_exits", trace_once)
            export_family(make_job(made, POINTS, Target.PORTABLE, tuple(Precision)), made / "family")
            export_family(make_job(made, POINTS, Target.ONNXRUNTIME, (Precision.FP32, Precision.INT8)), made / "fast")

    make_once(made / "made", make)
    return made


@pytest.mark.parametrize("precision", Precision)
def test_every_precision_is_in_operators_of_the_standard(precision: Precision, folder: Path) -> None:
    family = matexport.load_family(folder / "family")
    opset, version, least = PORTABLE[precision]
    graphs = [facts.graph for facts in family.facts.profiles.values() if facts.precision is precision]
    assert len(graphs) == len(POINTS) * 2
    for graph in [*graphs, family.facts.exits[precision]]:
        model = onnx.load(folder / "family" / graph, load_external_data=False)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
        assert model.ir_version == version
        assert {node.domain for node in model.graph.node} == {""}
        assert not {"Gelu", "ReduceL2", "GatherND"} & {node.op_type for node in model.graph.node}
        onnx.checker.check_model(folder / "family" / graph, full_check=True)
    assert family.facts.precisions[precision].onnxruntime == least


def test_the_family_says_what_it_is_written_for(folder: Path, run: Run) -> None:
    assert matexport.load_family(folder / "family").facts.target is Target.PORTABLE
    assert matexport.load_family(folder / "fast").facts.target is Target.ONNXRUNTIME
    shown = run("show", folder / "family").out
    assert "portable" in shown
    assert "onnxruntime 1.16 or later: fp32, fp16, int8, int8-static; 1.19 or later: q8, q4, q4-mixed" in shown
    assert run("show", folder / "family", "--json").json["facts"]["target"] == "portable"


def test_embeddings_stay_at_eight_bits(folder: Path) -> None:
    facts = matexport.load_family(folder / "family").facts.precisions
    assert facts[Precision.Q4].kept == {"embeddings": "q8"}
    assert facts[Precision.Q8].kept == {}


@pytest.mark.parametrize("name", ["L01-D064-fp32", "L02-D020-int8", "L02-D020-int8-ubinary"])
def test_the_vectors_are_those_of_the_fast_family_bit_for_bit(name: str, folder: Path) -> None:
    vectors = [matexport.Embedder(folder / made, name, threads=1).embed(TEXTS) for made in ("family", "fast")]
    np.testing.assert_array_equal(*vectors)


def test_narrowing_finds_as_much(folder: Path) -> None:
    """Reductions name their axes in another way, and integer products are another operator."""
    portable, fast = (matexport.load_family(folder / made).facts for made in ("family", "fast"))
    for name, facts in fast.profiles.items():
        found = portable.profiles[name].narrowed_nodes
        assert found >= facts.narrowed_nodes > 0


def test_blocks_are_multiplied_in_fp32(folder: Path) -> None:
    """As another engine does; a session of onnxruntime's that nobody told rounds the tokens to 8 bits."""
    graph = "L02-D020.q8.onnx"
    embedder = matexport.Embedder(folder / "family", "L02-D020-q8", threads=1)
    feeds = {"input_ids": np.array([[2, 5, 6, 7, 3]]), "attention_mask": np.ones((1, 5), np.int64)}
    feeds["token_type_ids"] = np.zeros_like(feeds["input_ids"])

    def run(level: str | None) -> np.ndarray:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if level is not None:
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
        session = onnxruntime.InferenceSession(folder / "family" / graph, options)
        return np.asarray(session.run(None, {item.name: feeds[item.name] for item in session.get_inputs()})[0])

    given = embedder._session.run(None, {name: feeds[name] for name in embedder.family.text.inputs})[0]
    np.testing.assert_array_equal(given, run("0"))
    assert np.abs(run(None) - run("0")).max() > 1e-5


def test_other_dims_are_cut_from_what_is_there(folder: Path, tmp_path: Path, quick_traces: None) -> None:
    """To the same bytes as a build from nothing."""
    precisions = (Precision.FP32, Precision.INT8)
    out, anew = tmp_path / "family", tmp_path / "anew"
    export_family(make_job(folder, POINTS, Target.PORTABLE, precisions), out)
    points = (Point(1, 32), *POINTS)
    job = make_job(folder, points, Target.PORTABLE, precisions)
    assert export_family(job, out, overwrite=True).cut_anew
    export_family(job, anew)
    names = sorted(path.name for path in anew.iterdir() if path.is_file())
    assert names == sorted(path.name for path in out.iterdir() if path.is_file())
    for name in names:
        assert (out / name).read_bytes() == (anew / name).read_bytes(), name


def test_another_target_is_another_family(folder: Path, tmp_path: Path, quick_traces: None) -> None:
    out = Path(shutil.copytree(folder / "fast", tmp_path / "fast"))
    job = make_job(folder, POINTS, Target.PORTABLE, (Precision.FP32, Precision.INT8))
    with pytest.raises(matexport.MatexportError, match="it was made from other target"):
        export_family(job, out)


# --- what a job asks for


def test_a_job_names_a_target(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    text = '[parent]\nsource = "here"\n[points]\npairs = [[1, 8]]\n'
    path.write_text(text, encoding="utf-8")
    assert load_job(path).target is Target.ONNXRUNTIME
    path.write_text(f'{text}[export]\ntarget = "portable"\n', encoding="utf-8")
    assert load_job(path).target is Target.PORTABLE
    path.write_text(f'{text}[export]\ntarget = "portabel"\n', encoding="utf-8")
    with pytest.raises(
        RequestError, match=r"'portabel'; known here: onnxruntime, portable, rknn, litert; did you mean 'portable'"
    ):
        load_job(path)


# --- an onnxruntime that is too old


def name_least(family: Path, precision: str, version: str) -> Path:
    edit_manifest(family, lambda data: data["precisions"].setdefault(precision, {}).update(onnxruntime=version))
    return family


def test_an_onnxruntime_that_is_too_old_is_refused_in_one_line(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name_least(family, "fp32", "1.23")
    monkeypatch.setattr(engine.load_runtime(), "__version__", "1.22.1")
    with pytest.raises(RequestError) as caught:
        matexport.Embedder(family, "L01-D008-fp32")
    said = "L01-D008.fp32.onnx needs onnxruntime 1.23 or later, and 1.22.1 is installed: install a newer one, or take a"
    assert str(caught.value) == f"{said} profile of another precision"
    facts = matexport.load_family(family).facts
    with pytest.raises(RequestError, match=r"^exits\.fp32\.onnx needs onnxruntime 1\.23 or later"):
        engine.check_version(facts, "exits.fp32.onnx")


@pytest.mark.parametrize("installed", ["1.23.0", "1.23.0.dev20250101", "1.24.4", "2.0.0", "1.100.0"])
def test_the_least_and_newer_ones_are_not(installed: str, family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name_least(family, "fp32", "1.23")
    monkeypatch.setattr(engine.load_runtime(), "__version__", installed)
    engine.check_version(matexport.load_family(family).facts, "L01-D008.fp32.onnx")


def test_a_family_that_does_not_say_is_not_refused(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of before, and a precision that the manifest says nothing of."""
    edit_manifest(family, lambda data: data.pop("precisions"))
    monkeypatch.setattr(engine.load_runtime(), "__version__", "1.0.0")
    engine.check_version(matexport.load_family(family).facts, "L01-D008.fp32.onnx")


@pytest.mark.parametrize("version", ["1", "1.22.1", ">=1.22", "new", "1.22 "])
def test_what_is_no_version_is_refused(version: str, family: Path) -> None:
    name_least(family, "fp32", version)
    with pytest.raises(FamilyError, match="is no version of onnxruntime"):
        matexport.load_family(family)


def test_the_facts_of_a_family_for_onnxruntime(exported: Path) -> None:
    facts = matexport.load_family(exported).facts
    assert msgspec.to_builtins(facts)["target"] == "onnxruntime"
    assert facts.precisions[Precision.FP32].onnxruntime == "1.18"
