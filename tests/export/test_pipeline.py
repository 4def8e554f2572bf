"""The pipeline as a whole: one result for one set of inputs, a destination that is never half there, and a stage to
blame when a sub-model is not its parent."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import onnx
import onnx_ir as ir
import pytest
from conftest import POINTS, write_texts
from filelock import FileLock
from folders import hidden_beside, read_all
from forge import edit_manifest
from memory import trace_once
from parents import make_parent
from places import TESTS
from warm import SHARED, share_judges

from matexport import load_family, verify_family
from matexport.errors import DestinationError, ParityError, RequestError
from matexport.export import blame, export_family, profiles
from matexport.export import pipeline as export
from matexport.export.graph.traced import Traced
from matexport.family.measurements.records import load_quality, record_quality
from matexport.host import read_host
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.measured import Quality, TaskKind, TaskQuality
from matexport.spec.profile import Point, Precision
from matexport.spec.readout import ReadoutRequest
from matexport.spec.tolerance import Tolerance

FEW = (Point(1, 8), Point(3, 32))
STAGES = ["plan", "load", "reference", "trace", "weights", "cut", "verify"]

# Imports and traces once, then forks a child for each way to die: both take longer than the rest of the export.
CRASH = """
import os, resource, signal, sys, tempfile
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import pytest
from memory import trace_once
from warm import patch_judge
from matexport.export import export_family, pipeline
from matexport.errors import DestinationError
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.profile import Point

parent, probes, *ways = sys.argv[2:]
job = ExportJob(ParentSource(parent), (Point(1, 8), Point(3, 32)), probes=Path(probes))
pipeline.trace_exits = trace_once
patch_judge(pytest.MonkeyPatch())
with tempfile.TemporaryDirectory() as folder:
    export_family(job, Path(folder) / "warm")

def die_in(stage):
    def report(now, done, total):
        if now == stage and done * 2 >= total:
            os.kill(os.getpid(), signal.SIGKILL)
    return report

for way in ways:
    stage, out = way.split("=")
    child = os.fork()
    if child == 0:
        if stage == "full":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
            try:
                export_family(job, out, overwrite=True)
            except DestinationError as error:
                print(error, flush=True)
                os._exit(7)
            os._exit(0)
        export_family(job, out, overwrite=True, progress=die_in(stage))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    there = sorted(os.listdir(out)) if os.path.exists(out) else None
    print(Path(out).name, stage, os.waitstatus_to_exitcode(status), there, flush=True)
"""


pytestmark = pytest.mark.usefixtures("quick_traces")


def run_script(script: str, *arguments: object, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)],
        env={**os.environ, **environment},
        pass_fds=[int(environment[SHARED])] if SHARED in environment else [],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def test_a_family_holds_what_it_says(exported: Path) -> None:
    family = load_family(exported)
    weights = exported / "weights.fp32.safetensors"
    assert [profile.point for profile in family.profiles] == list(POINTS)
    prefixes = [family.profile_facts(f"L{layers:02d}-D032-fp32").weights_prefix_bytes for layers in (1, 2, 3)]
    assert prefixes == sorted(set(prefixes))
    assert prefixes[-1] == weights.stat().st_size
    assert family.facts.trace.opset == 20
    assert not any("pooler" in name for name in ir.load(exported / "L03-D032.fp32.onnx").graph.initializers)


def test_graphs_are_stamped_named_and_clean(exported: Path, parent: Path) -> None:
    for path in exported.glob("*.onnx"):
        model = onnx.load(path)
        assert (model.ir_version, [(item.domain, item.version) for item in model.opset_import]) == (10, [("", 20)])
        assert [item.name for item in model.graph.input] == ["input_ids", "attention_mask", "token_type_ids"]
        exits = [point.name for point in POINTS] if path.name.startswith("exits") else ["sentence_embedding"]
        assert [item.name for item in model.graph.output] == exits
        axes = [dim.dim_param for dim in model.graph.input[0].type.tensor_type.shape.dim]
        assert axes == ["batch_size", "sequence_length"]
        raw = path.read_bytes()
        assert b"site-packages" not in raw
        assert str(parent).encode() not in raw
        assert b"pkg.torch" not in raw
        onnx.checker.check_model(path)


def test_the_manifest_names_no_place_and_no_time(exported: Path, tmp_path: Path) -> None:
    text = (exported / "family.json").read_text()
    assert str(exported) not in text
    assert str(tmp_path.parent) not in text.replace(load_family(exported).facts.parent.source, "")


def test_two_processes_with_other_hash_seeds_write_the_same_bytes(parent: Path, tmp_path: Path) -> None:
    texts = write_texts(tmp_path / "texts.txt")
    script = (
        "import sys\nfrom pathlib import Path\nfrom matexport.export import export_family\n"
        "from matexport.spec.job import *\n"
        "parent, out, texts = sys.argv[1:]\n"
        "points, precisions = (Point(1, 8), Point(2, 32), Point(3, 32)), tuple(Precision)\n"
        "job = ExportJob(ParentSource(parent), points, precisions=precisions, calibration=Path(texts))\n"
        "export_family(job, out)"
    )
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda seed: run_script(script, parent, tmp_path / seed, texts, PYTHONHASHSEED=seed), "12"))
    first, second = read_all(tmp_path / "1"), read_all(tmp_path / "2")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def hidden_of(out: Path) -> list[str]:
    """What lies hidden beside a destination and is its own."""
    return [name for name in hidden_beside(out) if name.startswith(f".{out.name}.")]


@pytest.fixture(scope="module")
def crashed(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], dict[str, bytes]]:
    """A folder in which exports died: what was said of each, and what a destination held that was there before."""
    folder = tmp_path_factory.mktemp("crashed")
    probes = folder / "few.jsonl"
    probes.write_text('{"text": "the cat"}\n{"text": "a dog in the snow"}\n{"text": "red house"}\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "trace_exits", trace_once)
        export_family(ExportJob(ParentSource(str(parent)), (Point(2, 16),)), folder / "overwritten")
    before = read_all(folder / "overwritten")
    ways = [*((stage, "new") for stage in STAGES), *((stage, "overwritten") for stage in ("trace", "cut", "verify"))]
    ways.append(("full", "disk"))
    said = run_script(
        CRASH, TESTS, parent, probes, *(f"{stage}={folder / name}" for stage, name in ways), **share_judges()
    )
    return folder, said.splitlines(), before


def test_killed_in_any_stage_nothing_appears_and_a_rerun_succeeds(
    crashed: tuple[Path, list[str], dict[str, bytes]], parent: Path
) -> None:
    folder, lines, _ = crashed
    out = folder / "new"
    assert [line for line in lines if line.startswith("new ")] == [f"new {stage} -9 None" for stage in STAGES]
    assert hidden_of(out) == [".new.staging"]  # what the last one left behind
    export_family(ExportJob(ParentSource(str(parent)), FEW), out)
    assert hidden_of(out) == []
    assert verify_family(out).passed


def test_killed_while_overwriting_the_old_family_stays(
    crashed: tuple[Path, list[str], dict[str, bytes]], parent: Path
) -> None:
    folder, lines, before = crashed
    out = folder / "overwritten"
    assert [line.split()[:3] for line in lines if line.startswith("overwritten ")] == [
        ["overwritten", stage, "-9"] for stage in ("trace", "cut", "verify")
    ]
    assert read_all(out) == before
    assert verify_family(out).passed
    exported = export_family(ExportJob(ParentSource(str(parent)), FEW), out, overwrite=True)
    assert [profile.point for profile in exported.family.profiles] == list(FEW)
    assert hidden_of(out) == []


def test_a_full_disk_is_said_and_leaves_nothing(crashed: tuple[Path, list[str], dict[str, bytes]]) -> None:
    folder, lines, _ = crashed
    out = folder / "disk"
    message, outcome = lines[-2:]
    assert outcome == "disk full 7 None"
    assert message.startswith(f"cannot write {out}: the file size limit was reached")
    assert hidden_of(out) == []


def test_the_same_inputs_are_up_to_date_and_other_inputs_are_refused(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = ExportJob(ParentSource(str(parent)), FEW)
    out = tmp_path / "family"
    assert not export_family(job, out).up_to_date
    before = read_all(out)
    monkeypatch.setattr("matexport.export.parents.text.load_parent", lambda plan: pytest.fail("weights were loaded"))
    again = export_family(job, out)
    assert again.up_to_date
    assert again.verification.passed
    assert read_all(out) == before
    point = Point(2, 16)
    others = {
        "points (left out: L03-D032)": {"points": FEW[:1]},
        "points (new: L02-D016)": {"points": (FEW[0], point, FEW[1])},
        "points (new: L02-D016; left out: L01-D008, L03-D032)": {"points": (point,)},
        "read-out": {"readout": ReadoutRequest(normalize=False)},
        "tolerances": {"tolerances": {Precision.FP32: Tolerance(5e-6)}},
        "points (in another order)": {"points": FEW[::-1]},
        "precisions": {"precisions": (Precision.FP32, Precision.FP16)},
    }
    for words, changes in others.items():
        said = re.escape(f"holds another family: it was made from other {words}; pass --overwrite to replace it")
        with pytest.raises(DestinationError, match=said):
            export_family(msgspec.structs.replace(job, **changes), out)
    assert read_all(out) == before


def test_what_only_the_manifest_says_is_written_and_nothing_else_is_made(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, out = ExportJob(ParentSource(str(parent)), FEW), tmp_path / "family"
    export_family(job, out)
    (out / "README.md").write_text("our own words")
    quality = Quality(read_host(), {"sts": TaskQuality(TaskKind.STS, "Spearman", 9, "0" * 64, None, {})})
    record_quality(load_family(out), quality)
    before = read_all(out)
    monkeypatch.setattr("matexport.export.parents.text.load_parent", lambda plan: pytest.fail("weights were loaded"))
    monkeypatch.setattr("matexport.export.prepare.verify_family", lambda *_, **__: pytest.fail("verified again"))
    trained = msgspec.structs.replace(job, trained=(Point(3, 32),))
    renewed = export_family(trained, out)
    assert (renewed.up_to_date, renewed.renewed) == (True, ("trained",))
    assert renewed.family.facts.trained == (Point(3, 32),)
    assert load_quality(load_family(out), read_host()) is not None
    after = read_all(out)
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    assert {name.partition("/")[0] for name in changed} == {"family.json", "measurements"}
    assert export_family(trained, out).renewed == ()

    monkeypatch.undo()
    monkeypatch.setattr(export, "trace_exits", trace_once)
    export_family(trained, tmp_path / "anew")
    assert (tmp_path / "anew" / "family.json").read_bytes() == after["family.json"], "as if it was made today"


def test_a_renewal_that_dies_leaves_the_family(parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, out = ExportJob(ParentSource(str(parent)), FEW), tmp_path / "family"
    export_family(job, out)
    before = read_all(out)

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("matexport.export.prepare.keep_unlisted", die)
    with pytest.raises(KeyboardInterrupt):
        export_family(msgspec.structs.replace(job, trained=FEW), out)
    assert read_all(out) == before
    assert hidden_beside(out) == []


def test_a_family_that_does_not_say_what_it_was_made_from_is_other_inputs(parent: Path, tmp_path: Path) -> None:
    job, out = ExportJob(ParentSource(str(parent)), FEW), tmp_path / "family"
    export_family(job, out)
    edit_manifest(out, lambda data: data["provenance"].pop("parts"))
    assert export_family(job, out).up_to_date
    with pytest.raises(DestinationError, match="it was made from other inputs; pass --overwrite"):
        export_family(msgspec.structs.replace(job, trained=FEW), out)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("sentence_bert_config.json", {"config_args": {"hidden_act": "relu"}}),
        ("1_Pooling/config.json", {"include_prompt": False}),
        ("config_sentence_transformers.json", {"similarity_fn_name": "dot"}),
        ("tokenizer_config.json", {"truncation_side": "left"}),
    ],
)
def test_a_parent_whose_settings_changed_is_another_parent(
    name: str, changes: dict[str, Any], parent: Path, tmp_path: Path
) -> None:
    """Whatever its own library may read in its folder, whether or not anybody here knows what it does."""
    folder = Path(shutil.copytree(parent, tmp_path / "parent"))
    job = ExportJob(ParentSource(str(folder)), FEW[:1])
    export_family(job, tmp_path / "family")
    path = folder / name
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(known | changes), encoding="utf-8")
    with pytest.raises(DestinationError, match="pass --overwrite to replace it"):
        export_family(job, tmp_path / "family")


def test_a_spoilt_family_of_the_same_inputs_is_not_called_up_to_date(parent: Path, tmp_path: Path) -> None:
    job, out = ExportJob(ParentSource(str(parent)), FEW), tmp_path / "family"
    export_family(job, out)
    sound = read_all(out)
    graph = out / "L01-D008.fp32.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\x00")
    with pytest.raises(DestinationError, match=r"L01-D008.fp32.onnx .*--overwrite"):
        export_family(job, out)
    assert not export_family(job, out, overwrite=True).up_to_date
    assert read_all(out) == sound


def test_a_destination_that_is_no_family_is_never_replaced(parent: Path, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("keep me")
    for overwrite in (False, True):
        with pytest.raises(DestinationError, match="choose another destination"):
            export_family(ExportJob(ParentSource(str(parent)), FEW), tmp_path / "letters", overwrite=overwrite)
    assert (tmp_path / "letters" / "dear.txt").read_text() == "keep me"


def test_two_exports_into_one_destination_do_not_meet(parent: Path, tmp_path: Path) -> None:
    out = tmp_path / "family"
    with FileLock(tmp_path / ".family.lock"), pytest.raises(DestinationError, match="written by another process"):
        export_family(ExportJob(ParentSource(str(parent)), FEW), out)
    assert not out.exists()


def test_a_user_probe_file_replaces_the_shipped_ones(parent: Path, tmp_path: Path) -> None:
    probes = tmp_path / "mine.jsonl"
    probes.write_text('{"text": "the cat"}\n{"text": "a dog in the snow"}\n')
    job = ExportJob(ParentSource(str(parent)), FEW, probes=probes)
    family = export_family(job, tmp_path / "family").family
    assert [json.loads(line)["text"] for line in (family.path / "probes.jsonl").read_text().splitlines()] == [
        "the cat",
        "a dog in the snow",
    ]
    probes.write_text('{"text": "the cat"}\n{"text": "x", "prompt": "query"}\n')
    with pytest.raises(RequestError, match="probe 1 asks for the prompt 'query'; the parent's prompts are: none"):
        export_family(job, tmp_path / "other")


def spoil_trace(traced: Traced) -> None:
    """Scale the last block's output a little, as a trace that froze a value would."""
    name = "encoder.layer.2.output.LayerNorm.weight"
    weight = traced.model.graph.initializers[name]
    weight.const_value = ir.tensor(weight.const_value.numpy() * 1.001, name=name)  # type: ignore[union-attr]


def read_the_layer_before(model: ir.Model, outputs: Sequence[str]) -> ir.Model:
    if len({output.partition("-")[0] for output in outputs}) > 1:  # the graph of all exits, wrong in the same way
        part = CUTS(model, [output for output in outputs if not output.startswith("L03")])
        known = {value.name: value for value in part.graph.outputs}
        for output in [output for output in outputs if output.startswith("L03")]:
            node = ir.node("Identity", [known[output.replace("L03", "L02")]])
            node.outputs[0].name, node.outputs[0].type = output, ir.TensorType(ir.DataType.FLOAT)
            part.graph.append(node)
            part.graph.outputs.append(node.outputs[0])
        return part
    part = CUTS(model, [output.replace("L03", "L02") for output in outputs])
    for value, output in zip(part.graph.outputs, outputs, strict=True):
        value.name = output
    return part


def read_one_dim_on(model: ir.Model, output: str, *, name: str) -> ir.Model:
    part = CUT(model, output, name=name)
    for node in part.graph:
        if node.op_type == "Slice" and node.inputs[2].name == "dim_8":  # type: ignore[union-attr]
            for index, number in ((1, 1), (2, 9)):
                tensor = ir.tensor([number], name=f"shift_{number}")
                value = ir.Value(name=f"shift_{number}", const_value=tensor, type=ir.TensorType(ir.DataType.INT64))
                part.graph.initializers.add(value)
                node.replace_input_with(index, value)
    return part


CUT = profiles.cut_exit
CUTS = profiles.cut_exits
TRACE = trace_once


@pytest.mark.parametrize(
    ("stage", "name", "wrong"),
    [
        ("trace", "trace_exits", lambda *a, **k: (traced := TRACE(*a, **k), spoil_trace(traced[0]))[0]),
        ("cut", "cut_exits", read_the_layer_before),
        ("cut", "cut_exit", read_one_dim_on),
    ],
    ids=["trace: a weight off by 0.1 %", "cut: layer - 1", "cut: dims shifted by 1"],
)
def test_a_wrong_stage_is_named_and_no_family_appears(
    stage: str,
    name: str,
    wrong: Callable[..., object],
    parent: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (export, profiles, blame):  # who makes it, and who asks which stage was to blame
        if hasattr(module, name):
            monkeypatch.setattr(module, name, wrong)
    job = ExportJob(ParentSource(str(parent)), (Point(2, 8), Point(2, 32), Point(3, 32), Point(3, 8)))
    with pytest.raises(
        ParityError, match=f"^{stage}: .* profiles are off their floor; .* nothing was written"
    ) as caught:
        export_family(job, tmp_path / "family")
    assert caught.value.stage == stage
    assert not (tmp_path / "family").exists()
    assert hidden_beside(tmp_path / "family") == []


def test_the_torchscript_exporter_takes_over_and_the_manifest_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matexport.export.trace import trace

    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("no dynamo today\nsecond line")

    monkeypatch.setattr(trace, "_export_dynamo", fail)
    parent = make_parent(tmp_path / "parent", "bert", pooling="cls", dense=[16])
    family = export_family(
        ExportJob(ParentSource(str(parent)), (Point(1, 8), Point(3, 16))), tmp_path / "family"
    ).family
    assert family.facts.trace.exporter == "torchscript"
    assert family.facts.trace.fallback == "RuntimeError: no dynamo today second line"
    assert {facts.narrowed_nodes for facts in family.facts.profiles.values()} == {0}  # and the manifest says so
    assert "encoder.layer.0.output.dense.weight.T" in ir.load(family.path / "L01-D008.fp32.onnx").graph.initializers
