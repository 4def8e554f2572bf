"""Families whose graphs take one text of a fixed number of tokens: made by the whole pipeline, held to the parent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import parents
import pytest
from commandline import Run
from conftest import SMALL, TEXTS, make_once
from forge import edit_manifest
from oracle import Oracle
from tokenizers import Tokenizer

import matexport
from matexport.errors import FamilyError, ParityError, RequestError
from matexport.export import export_family, profiles
from matexport.export.graph.edit import add_constant
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.profile import Encoding, Point, Precision, Target
from matexport.spec.readout import FinalNorm, ReadoutRequest

pytestmark = pytest.mark.usefixtures("quick_traces")

POINTS = (Point(1, 64), Point(2, 20))
TOKENS = 40
LONG = "the cat sits on the mat in the house " * 20


def make_job(
    folder: Path, target: Target = Target.RKNN, points: tuple[Point, ...] = POINTS, **changes: object
) -> ExportJob:
    asked: dict[str, object] = {"readout": ReadoutRequest(max_tokens=TOKENS), "target": target, **changes}
    return ExportJob(ParentSource(str(folder / "parent")), points, **asked)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    """A calm BERT that reads its first token, and its family for RKNN. Not to be changed."""
    made = shared / "fixed"

    def make() -> None:
        from memory import trace_once

        from matexport.export import pipeline

        parents.make_parent(made / "parent", "bert", pooling="cls", config=SMALL, change=parents.calm)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline, "trace_exits", trace_once)
            export_family(make_job(made), made / "family")

    make_once(made / "made", make)
    return made


def list_graphs(family: Path) -> list[Path]:
    return sorted(family.glob("*.onnx"))


def test_graphs_have_one_shape_and_two_inputs(folder: Path) -> None:
    graphs = list_graphs(folder / "family")
    assert [path.name for path in graphs] == ["L01-D064.fp32.onnx", "L02-D020.fp32.onnx", "exits.fp32.onnx"]
    for path in graphs:
        model = onnx.load(path, load_external_data=False)
        given = {value.name: value.type.tensor_type for value in model.graph.input}
        assert set(given) == {"input_ids", "attention_mask"}
        for tensor in given.values():
            assert tensor.elem_type == onnx.TensorProto.INT64
            assert [dim.dim_value for dim in tensor.shape.dim] == [1, TOKENS]
        assert all(value.type.tensor_type.shape.dim[0].dim_value == 1 for value in model.graph.output)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
        operators = {node.op_type for node in model.graph.node}
        assert not operators & {"Shape", "Range", "Expand", "ConstantOfShape", "Constant", "Gelu", "ReduceL2"}
        onnx.checker.check_model(path, full_check=True)
        said = {value.name: value.type.tensor_type for value in [*model.graph.value_info, *model.graph.output]}
        for node in model.graph.node:  # what converters lay out
            for name in node.output:
                assert all(dim.HasField("dim_value") for dim in said[name].shape.dim), name
        onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True, check_type=True)


@pytest.mark.parametrize("text", [*TEXTS[:4], LONG])
def test_a_graph_gives_the_parents_vector_of_a_padded_text(text: str, folder: Path) -> None:
    """As whoever converts it runs it: ids of the family's tokenizer, cut and padded by hand."""
    tokenizer = Tokenizer.from_file(str(folder / "family" / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS, pad_id=0)
    encoding = tokenizer.encode(text)
    feeds = {"input_ids": np.array([encoding.ids]), "attention_mask": np.array([encoding.attention_mask])}
    (vector,) = onnxruntime.InferenceSession(folder / "family" / "L02-D020.fp32.onnx").run(None, feeds)[0]
    state = Oracle(folder / "parent").state(text, 2, max_length=TOKENS)[0][:20].numpy()
    np.testing.assert_allclose(vector, state / np.linalg.norm(state), atol=2e-6)
    (embedded,) = matexport.Embedder(folder / "family", "L02-D020-fp32", threads=1).embed([text])
    np.testing.assert_array_equal(embedded, vector)


def test_texts_have_runs_to_themselves_whatever_is_asked_for(folder: Path) -> None:
    with matexport.Embedder(folder / "family", "L02-D020-fp32", threads=2) as embedder:
        alone = np.concatenate([embedder.embed([text]) for text in TEXTS])
        np.testing.assert_array_equal(embedder.embed(TEXTS), alone)
        np.testing.assert_array_equal(embedder.embed(TEXTS, batch_budget=1 << 20), alone)
        np.testing.assert_array_equal(np.stack(list(embedder.embed_iter(TEXTS))), alone)
        rows = embedder.prepare(TEXTS[:2])
        with pytest.raises(RequestError, match="2 texts were given to one run; graphs of a fixed shape take one"):
            embedder.run(rows)


def test_the_commands_take_it(folder: Path, tmp_path: Path, run: Run) -> None:
    family = Path(shutil.copytree(folder / "family", tmp_path / "family"))
    shown = run("show", family).out
    assert f"up to {TOKENS} tokens; graphs take one text, padded to {TOKENS}" in shown
    assert "rknn; onnxruntime 1.16 or later: fp32" in shown
    text = run("show", family, "--json").json["facts"]["text"]
    assert (text["padded"], text["max_tokens"], text["inputs"]) == (True, TOKENS, ["input_ids", "attention_mask"])
    assert run("verify", family, "--threads", "1").code == 0
    assert run("embed", family, "--profile", "L01-D064-fp32", "a cat", LONG).code == 0
    plan = ("bench", family, "--profile", "L01-D064-fp32", "--threads", "1", "--runs", "2", "--seconds", "1")
    assert f"1x{TOKENS}" in run(*plan).out
    run(*plan, "--shape", f"4x{TOKENS}").complains(f"takes one text in a run: ask for 1x{TOKENS}")
    run(*plan, "--shape", "1x8").complains(f"takes rows of {TOKENS} tokens, always full")
    pack = ("pack", family, "L01-D064-fp32", tmp_path / "pack")
    run(*pack, "--for", "all").complains(f"the graphs take one text, padded to {TOKENS} tokens, and no other consumer")
    assert run(*pack).code == 0
    assert run("verify", tmp_path / "pack").code == 0


def test_a_graph_that_counts_what_pads_a_text_is_refused(folder: Path, tmp_path: Path) -> None:
    """The parent's vectors are of texts alone: a mask that was lost shows in every short one."""
    whole = profiles.fix_shape

    def lose_mask(model: ir.Model, tokens: int, target: Target) -> None:
        whole(model, tokens, target)
        (mask,) = [value for value in model.graph.inputs if value.name == "attention_mask"]
        ones = add_constant(model.graph, "ones", np.ones((1, tokens), np.int64))
        for node, place in [(use.node, use.idx) for use in mask.uses()]:
            node.replace_input_with(place, ones)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiles, "fix_shape", lose_mask)
        with pytest.raises(ParityError, match=r"^shape: 2 of 2 profiles are off their floor"):
            export_family(make_job(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["xlm-roberta", "mpnet", "distilbert", "modernbert", "qwen3"])
def test_other_architectures(kind: str, tmp_path: Path) -> None:
    """Positions that are counted from the mask, biases by distance, windows, rotations, padding on the left."""
    shape = parents.SHAPES[kind]
    parents.make_parent(tmp_path / "parent", kind, pooling="lasttoken" if shape.decoder else "mean")
    norm = FinalNorm.KEEP if shape.prenorm else None
    readout = ReadoutRequest(max_tokens=24, final_norm=norm)
    job = make_job(tmp_path, Target.LITERT, (Point(2, 16), Point(3, 32)), readout=readout)
    exported = export_family(job, tmp_path / "family")
    assert exported.verification.passed
    for path in list_graphs(tmp_path / "family"):
        model = onnx.load(path, load_external_data=False)
        assert not {node.op_type for node in model.graph.node} & {"Shape", "Range", "ConstantOfShape", "Constant"}


# --- what cannot be


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"precisions": (Precision.FP32, Precision.INT8)},
            "the target rknn was asked with the precision int8; its converter makes half precision and whole numbers",
        ),
        (
            {"encodings": (Encoding.FLOAT32, Encoding.UBINARY)},
            "the target rknn was asked with the encoding ubinary; its graphs give vectors",
        ),
    ],
)
def test_what_is_for_the_converter_to_do(
    changes: dict[str, object], said: str, folder: Path, tmp_path: Path, no_session: None
) -> None:
    with pytest.raises(RequestError, match=said):
        export_family(make_job(folder, **changes), tmp_path / "out")


def test_a_length_has_to_be_said_where_the_parents_own_is_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matexport.export.kinds import fixed

    parents.make_parent(tmp_path / "parent", "bert")
    monkeypatch.setattr(fixed, "MOST_TOKENS", 47)
    job = make_job(tmp_path, Target.LITERT, (Point(1, 8),), readout=ReadoutRequest())
    with pytest.raises(
        RequestError, match=r"the target litert was asked; .*up to 48 tokens\): say how many in \[readout"
    ):
        export_family(job, tmp_path / "out")
    monkeypatch.setattr(fixed, "MOST_TOKENS", 48)
    assert export_family(job, tmp_path / "out").family.facts.inputs.dims == (1, 48)


def test_token_types_that_are_not_all_zero(tmp_path: Path) -> None:
    """As XLNet's tokenizer has them: the last token is of another kind."""
    parent = parents.make_parent(tmp_path / "parent", "bert")
    path = parent / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    tokenizer["post_processor"]["single"][-1]["SpecialToken"]["type_id"] = 1
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(RequestError, match=r"graphs have two inputs, and the tokens of .* are of the types 0 and 1"):
        export_family(make_job(tmp_path, points=(Point(1, 8),)), tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"full": True}, "texts that are padded to one length"),
        ({"max_tokens": 9000}, "texts that are padded to one length"),
        ({"pad_token_id": -1}, "texts that are padded to one length"),
        ({"inputs": ["input_ids", "attention_mask", "token_type_ids"]}, "the inputs input_ids and attention_mask"),
        ({"tasks": {"query": {"prompt": None, "max_tokens": TOKENS + 1}}}, f"a task has texts of {TOKENS + 1} tokens"),
        ({"max_tokens": TOKENS - 1}, "has another shape than the manifest says"),
    ],
)
def test_a_manifest_that_says_what_cannot_be(
    changes: dict[str, object], said: str, folder: Path, tmp_path: Path
) -> None:
    family = Path(shutil.copytree(folder / "family", tmp_path / "family"))
    edit_manifest(family, lambda data: data["text"].update(changes))
    with pytest.raises(FamilyError, match=said):
        matexport.Embedder(family, "L01-D064-fp32")


def test_a_family_of_open_lengths_is_not_one_of_a_fixed_one(folder: Path, tmp_path: Path) -> None:
    """And is not cut anew to one: other dims are made from the beginning."""
    out = Path(shutil.copytree(folder / "family", tmp_path / "family"))
    with pytest.raises(matexport.MatexportError, match="it was made from other target"):
        export_family(make_job(folder, Target.PORTABLE), out)
    points = (Point(1, 32), *POINTS)
    exported = export_family(make_job(folder, points=points), out, overwrite=True)
    assert not exported.cut_anew
    assert exported.verification.passed


# --- one file


def test_one_file_is_no_target(folder: Path, tmp_path: Path, run: Run) -> None:
    path = tmp_path / "job.toml"
    path.write_text(
        f'[parent]\nsource = "{folder / "parent"}"\n[points]\npairs = [[1, 8]]\n[export]\ntarget = "single-file"\n',
        encoding="utf-8",
    )
    said = "matexport pack FAMILY PROFILE OUT --for single-file"
    run("export", path).complains("target = 'single-file' was asked; a family's profiles share one file", said)
    run("export", path, "--target", "single-file").complains("single-file was asked; a family's profiles share", said)
    run("export", path, "--target", "rkn").complains("did you mean 'rknn'")
