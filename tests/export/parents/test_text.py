"""What a parent's files must say before its weights are loaded, and what loading them must find."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from conftest import TEXTS
from oracle import Oracle
from parents import BLOCKS, WIDTH, edit_json, make_parent
from safetensors.torch import load_file, save_file

from matexport import Embedder
from matexport.errors import MatexportError, ParentError, RequestError
from matexport.export import export_family
from matexport.export.parents import text
from matexport.export.parents.text import load_parent, plan_parent
from matexport.io.files import hash_file
from matexport.spec.inputs import PaddingSide
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.profile import Point
from matexport.spec.readout import FinalNorm, PoolingMode, ReadoutRequest

FULL = (Point(BLOCKS, WIDTH),)
EARLY = (Point(1, 8),)


def make_job(parent: Path, points: tuple[Point, ...] = FULL, **readout: object) -> ExportJob:
    return ExportJob(ParentSource(str(parent)), points, ReadoutRequest(**readout))  # type: ignore[arg-type]


@pytest.fixture
def small(parent: Path, tmp_path: Path) -> Path:
    """A copy of the small BERT that a test may spoil."""
    return Path(shutil.copytree(parent, tmp_path / "copy"))


@pytest.fixture(autouse=True)
def _no_weights_while_planning(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "loads" not in request.keywords:
        monkeypatch.setattr(text, "open_loaded", lambda *_parent: pytest.fail("weights were loaded"))


@pytest.mark.parametrize(
    ("point", "words"),
    [
        (Point(BLOCKS + 1, 8), f"layers={BLOCKS + 1} was asked; .* has {BLOCKS} blocks: ask for 1 to {BLOCKS}"),
        (Point(1, WIDTH + 1), f"dim={WIDTH + 1} was asked; .* have {WIDTH} coordinates: ask for 1 to {WIDTH}"),
    ],
)
def test_points_outside_the_parent_are_refused(small: Path, point: Point, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        plan_parent(make_job(small, (point,)))


def test_a_dim_over_the_width_of_the_dense_head_is_refused(tmp_path: Path) -> None:
    parent = make_parent(tmp_path / "parent", dense=[16])
    assert plan_parent(make_job(parent, (Point(1, 16),))).parent.output_width == 16
    with pytest.raises(RequestError, match=r"dim=17 was asked; .* have 16 coordinates"):
        plan_parent(make_job(parent, (Point(1, 17),)))


@pytest.mark.parametrize("kind", ["modernbert", "qwen3", "gemma3"])
def test_a_prenorm_parent_must_be_told_about_its_final_norm(kind: str, tmp_path: Path) -> None:
    parent = make_parent(tmp_path / "parent", kind)
    with pytest.raises(RequestError, match=r'final_norm = "keep" .* or "drop"'):
        plan_parent(make_job(parent, EARLY))
    assert plan_parent(make_job(parent, FULL)).readout.final_norm is FinalNorm.KEEP  # only its own output is read
    for choice in (FinalNorm.KEEP, FinalNorm.DROP):
        assert plan_parent(make_job(parent, EARLY, final_norm=choice)).readout.final_norm is choice


@pytest.mark.parametrize("kind", ["bert", "mpnet", "distilbert", "xlm-roberta"])
def test_a_postnorm_parent_has_no_final_norm_to_choose(kind: str, tmp_path: Path) -> None:
    parent = make_parent(tmp_path / "parent", kind)
    assert plan_parent(make_job(parent, EARLY)).readout.final_norm is FinalNorm.ABSENT
    with pytest.raises(RequestError, match="is post-norm and has none"):
        plan_parent(make_job(parent, EARLY, final_norm=FinalNorm.KEEP))


def test_a_plain_transformers_model_must_be_told_its_pooling(tmp_path: Path) -> None:
    parent = make_parent(tmp_path / "parent", pooling=None)
    with pytest.raises(RequestError, match=r"no modules.json, so it does not say how token states are pooled"):
        plan_parent(make_job(parent))
    assert plan_parent(make_job(parent, pooling=PoolingMode.CLS)).readout.pooling == (PoolingMode.CLS,)


def test_both_spellings_of_a_pooling_configuration_mean_the_same(small: Path) -> None:
    config = small / "1_Pooling" / "config.json"
    config.write_text(json.dumps({"embedding_dimension": WIDTH, "pooling_mode": ["max", "cls"]}))
    assert plan_parent(make_job(small)).readout.pooling == (PoolingMode.MAX, PoolingMode.CLS)
    flags = {"pooling_mode_max_tokens": True, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    config.write_text(json.dumps({"word_embedding_dimension": WIDTH, **flags}))
    assert plan_parent(make_job(small)).readout.pooling == (PoolingMode.CLS, PoolingMode.MAX)


def test_cls_pooling_is_padded_on_the_right_whatever_the_tokenizer_does(tmp_path: Path) -> None:
    parent = make_parent(tmp_path / "parent", "qwen3", pooling="lasttoken")
    assert plan_parent(make_job(parent)).text.padding_side is PaddingSide.LEFT
    assert plan_parent(make_job(parent, pooling=PoolingMode.CLS)).text.padding_side is PaddingSide.RIGHT


def _spoil_modules(root: Path) -> None:
    (root / "modules.json").write_text(
        json.dumps([{"path": "", "type": "sentence_transformers.models.Transformer"}, {"path": "x", "type": "a.LSTM"}])
    )


def _leave_the_folder(root: Path) -> None:
    edit_json(root / "modules.json", lambda modules: modules[1].update(path="../elsewhere"))  # type: ignore[index]


def _pickle_the_weights(root: Path) -> None:
    torch.save(load_file(root / "model.safetensors"), root / "pytorch_model.bin")
    (root / "model.safetensors").unlink()


def _need_remote_code(root: Path) -> None:
    edit_json(
        root / "config.json", lambda config: config.update(model_type="strange", auto_map={"AutoConfig": "code.Config"})
    )


def _read_another_output(root: Path) -> None:
    settings = {"modality_config": {"text": {"method": "forward", "method_output_name": ["hidden_states", 2]}}}
    (root / "sentence_bert_config.json").write_text(json.dumps(settings))


def _list_the_prompts(root: Path) -> None:
    (root / "config_sentence_transformers.json").write_text(json.dumps({"prompts": ["query: "]}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_spoil_modules, r"names the module .x. .a.LSTM., and there is no such folder"),
        (_leave_the_folder, "outside the parent"),
        (_pickle_the_weights, r"pickled weights only \(pytorch_model.bin\); .* allow_pickle = true"),
        (_need_remote_code, "trust_remote_code = true"),
        (_read_another_output, r"reads \['hidden_states', 2\] of 'forward' for text; only the last_hidden_state"),
        (lambda root: (root / "model.safetensors").unlink(), "no safetensors weights"),
        (lambda root: (root / "config.json").unlink(), "sentence-transformers cannot load .*: Unrecognized model in"),
        (lambda root: (root / "modules.json").write_text("{"), "cannot read .*modules.json"),
        (lambda root: (root / "modules.json").write_text('["a"]'), "is no list of modules"),
        (_list_the_prompts, "prompts that are no table of texts"),
        (lambda root: (root / "tokenizer.json").write_text("{}"), "sentence-transformers cannot load .* processor"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(small: Path, spoil: Callable[[Path], object], words: str) -> None:
    spoil(small)
    with pytest.raises(ParentError, match=words):
        plan_parent(make_job(small))


def test_a_pinned_digest_must_match(small: Path) -> None:
    digest = hash_file(small / "model.safetensors")
    for pin in (digest, digest.upper(), {"model.safetensors": digest}):
        assert plan_parent(ExportJob(ParentSource(str(small), sha256=pin), FULL)).parent.weights
    wrong = "0" * 64
    for pin in (wrong, {"model.safetensors": wrong}):
        with pytest.raises(ParentError, match=f"has the sha256 {digest}; the job pins {wrong}"):
            plan_parent(ExportJob(ParentSource(str(small), sha256=pin), FULL))
    with pytest.raises(ParentError, match=r"pins the sha256 of other.safetensors, but .* has model.safetensors"):
        plan_parent(ExportJob(ParentSource(str(small), sha256={"other.safetensors": digest}), FULL))


def test_max_tokens_may_be_lowered_not_raised(small: Path) -> None:
    assert plan_parent(make_job(small)).text.max_tokens == 48
    assert plan_parent(make_job(small, max_tokens=16)).text.max_tokens == 16
    with pytest.raises(RequestError, match="max_tokens=49 was asked; the parent takes 1 to 48"):
        plan_parent(make_job(small, max_tokens=49))


@pytest.mark.loads
def test_blocks_that_the_checkpoint_lacks_are_not_filled_with_random_ones(small: Path) -> None:
    edit_json(small / "config.json", lambda config: config.update(num_hidden_layers=BLOCKS + 1))
    with pytest.raises(ParentError, match=r"lacks \d+ weights that its configuration asks for \(encoder.layer.3"):
        load_parent(plan_parent(make_job(small)))


@pytest.mark.loads
def test_a_parent_with_nan_weights_is_refused(small: Path, tmp_path: Path) -> None:
    weights = load_file(small / "model.safetensors")
    weights["encoder.layer.1.output.dense.weight"][3, 4] = float("nan")
    save_file(weights, small / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ParentError, match=r"not finite at L03-D032 for probe 0"):
        export_family(make_job(small), tmp_path / "family")
    assert not (tmp_path / "family").exists()


def _truncate_weights(root: Path) -> None:
    path = root / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _change_a_shape(root: Path) -> None:
    weights = load_file(root / "model.safetensors")
    weights["embeddings.position_embeddings.weight"] = torch.zeros(7, WIDTH)
    save_file(weights, root / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.loads
@pytest.mark.parametrize("spoil", [_truncate_weights, _change_a_shape])
def test_weights_that_do_not_load_are_the_parents_fault(
    spoil: Callable[[Path], None], small: Path, tmp_path: Path
) -> None:
    spoil(small)
    with pytest.raises(ParentError, match="cannot load the weights of"):
        export_family(make_job(small), tmp_path / "family")
    assert not (tmp_path / "family").exists()


@pytest.mark.loads
def test_a_half_precision_parent_is_exported_in_fp32(small: Path, tmp_path: Path) -> None:
    weights = {name: tensor.half() for name, tensor in load_file(small / "model.safetensors").items()}
    save_file(weights, small / "model.safetensors", metadata={"format": "pt"})
    edit_json(small / "config.json", lambda config: config.update(dtype="float16", torch_dtype="float16"))
    family = export_family(make_job(small), tmp_path / "family").family
    assert family.facts.parent.dtype == "float16"
    oracle = Oracle(small)  # cast to float32, too
    expected = np.stack([oracle.vector(item, BLOCKS, WIDTH) for item in TEXTS])
    np.testing.assert_allclose(Embedder(family).embed(TEXTS), expected, atol=2e-6)


@pytest.mark.loads
def test_pickled_weights_load_when_asked(small: Path, tmp_path: Path) -> None:
    oracle = Oracle(small)
    _pickle_the_weights(small)
    job = make_job(small)
    job = msgspec.structs.replace(job, parent=msgspec.structs.replace(job.parent, allow_pickle=True))
    family = export_family(job, tmp_path / "family").family
    expected = np.stack([oracle.vector(item, BLOCKS, WIDTH) for item in TEXTS])
    np.testing.assert_allclose(Embedder(family).embed(TEXTS), expected, atol=2e-6)


@pytest.mark.loads
def test_prompts_lower_casing_and_max_length_reach_the_runtime(tmp_path: Path) -> None:
    prompts = {"query": "a cat: ", "document": "", "passage": "the house, "}
    parent = make_parent(tmp_path / "parent", prompts=prompts, lowercase=True, max_length=10)
    family = export_family(make_job(parent, EARLY), tmp_path / "family").family
    assert family.facts.text.prompts == {"query": "a cat: ", "passage": "the house, "}
    probes = (family.path / "probes.jsonl").read_text(encoding="utf-8")
    assert '"prompt": "query"' in probes
    oracle, embedder = Oracle(parent), Embedder(family)
    texts = ["THE Dog sits", "Snow " * 30]
    for prompt, prefix in (("query", "a cat: "), ("", ""), (None, "")):
        vectors = embedder.embed(texts, prompt=prompt)
        states = [oracle.state((prefix + item).lower(), 1, max_length=10) for item in texts]
        expected = np.stack([(pooled := state.mean(0)[:8].numpy()) / np.linalg.norm(pooled) for state in states])
        np.testing.assert_allclose(vectors, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("./nowhere", "is not a directory"),
        ("package:no_such_package_here/model", "package 'no_such_package_here' is not installed"),
        ("package:tokenizers/no/such/folder", "has no directory 'no/such/folder'"),
        ("package:tokenizers/../onnx", "leads out of the package"),
        ("package:1bad/x", "names no package"),
        ("not a name/at all", "is not a directory"),
        ("nobody/nothing", "could not be fetched from the hub"),
    ],
)
def test_a_source_that_is_not_there_is_named(source: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(MatexportError, match=words):
        plan_parent(ExportJob(ParentSource(source), FULL, base=tmp_path))


@pytest.mark.loads
def test_a_pickled_head_does_not_bring_in_a_pickled_backbone(tmp_path: Path) -> None:
    """The weights that were hashed and pinned are the ones that are loaded."""
    parent = make_parent(tmp_path / "parent", dense=[16])
    pinned = hash_file(parent / "model.safetensors")
    other = {name: tensor + 1 for name, tensor in load_file(parent / "model.safetensors").items()}
    torch.save(other, parent / "pytorch_model.bin")
    torch.save(load_file(parent / "2_Dense" / "model.safetensors"), parent / "2_Dense" / "pytorch_model.bin")
    (parent / "2_Dense" / "model.safetensors").unlink()
    source = ParentSource(str(parent), allow_pickle=True)
    plan = plan_parent(ExportJob(source, (Point(BLOCKS, 16),)))
    assert plan.parent.weights["model.safetensors"] == pinned
    loaded = load_parent(plan).backbone.get_parameter("embeddings.word_embeddings.weight")
    torch.testing.assert_close(loaded, load_file(parent / "model.safetensors")["embeddings.word_embeddings.weight"])
    half_pinned = msgspec.structs.replace(source, sha256={"model.safetensors": pinned})
    with pytest.raises(ParentError, match=r"but not 2_Dense/pytorch_model.bin"):
        plan_parent(ExportJob(half_pinned, (Point(BLOCKS, 16),)))


@pytest.mark.loads
def test_a_limit_beyond_the_positions_is_the_parents_fault(tmp_path: Path) -> None:
    parent = make_parent(tmp_path / "parent", max_length=512)  # it has 128 positions
    with pytest.raises(ParentError, match=r"cannot run a text of \d+ tokens, which its own limit of 512 allows"):
        export_family(make_job(parent), tmp_path / "family")
    assert export_family(make_job(parent, max_tokens=128), tmp_path / "family").verification.passed
