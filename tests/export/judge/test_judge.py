"""The judge outside of our reading: it shares no code with it, and what it does not give is not exported."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parents import BLOCKS, WIDTH, edit_json, make_parent

from matexport.errors import ParentError
from matexport.export import export_family
from matexport.export import pipeline as export
from matexport.export.judge import hold as judge
from matexport.export.judge import process
from matexport.export.judge.hold import _compare
from matexport.export.judge.process import Judge
from matexport.export.parents import reference
from matexport.export.parents import text as texts
from matexport.export.parents.asking import Asking
from matexport.export.parents.folder import loading
from matexport.export.parents.preflight import locate
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.probe import Probe
from matexport.spec.profile import Point
from matexport.spec.readout import FinalNorm, PoolingMode, ReadoutRequest

pytestmark = [pytest.mark.loads, pytest.mark.usefixtures("quick_traces")]

FULL = (Point(BLOCKS, WIDTH),)
EARLY = (Point(1, 8), Point(BLOCKS, WIDTH))


def make_job(parent: Path, points: tuple[Point, ...] = EARLY, **readout: Any) -> ExportJob:
    return ExportJob(ParentSource(str(parent)), points, ReadoutRequest(**readout))


def test_the_judge_imports_nothing_of_ours() -> None:
    tree = ast.parse(process._CHILD.read_text(encoding="utf-8"))
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    roots = {
        (alias.name if isinstance(node, ast.Import) else str(node.module)).partition(".")[0]
        for node in names
        for alias in node.names
    }
    assert roots - set(sys.stdlib_module_names) == {"numpy", "torch", "transformers", "sentence_transformers"}


def test_the_manifest_says_who_judged(parent: Path, tmp_path: Path) -> None:
    import sentence_transformers
    import transformers

    family = export_family(make_job(parent), tmp_path / "family").family
    assert family.facts.parent.judge == f"sentence-transformers {sentence_transformers.__version__}"
    plain = make_parent(tmp_path / "plain", pooling=None)
    family = export_family(make_job(plain, pooling=PoolingMode.MAX), tmp_path / "other").family
    assert family.facts.parent.judge == f"transformers {transformers.__version__} AutoModel"


def _pool_otherwise(parent: Any) -> Any:
    chain = (loading.make_pooling(PoolingMode.CLS, WIDTH), *parent.chain[1:])
    return replace(parent, chain=chain)


def _scale_a_head(parent: Any) -> Any:
    parent.chain[1].linear.weight.data *= 1.01
    return parent


def _change_one_weight(parent: Any) -> Any:
    parent.backbone.encoder.layer[1].output.LayerNorm.bias.data[3] += 0.003
    return parent


@pytest.mark.parametrize(
    ("change", "module"),
    [
        (_pool_otherwise, "the first module whose output differs is 1 Pooling"),
        (_scale_a_head, "the first module whose output differs is 2 Dense"),
        (_change_one_weight, "the first module whose output differs is 0 Transformer"),
    ],
)
def test_a_reading_that_is_not_the_parents_is_refused_before_the_trace(
    change: Callable[[Any], Any], module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reader and read-out agree with each other, and both with nobody else."""
    parent = make_parent(tmp_path / "parent", dense=[24])
    load = texts.load_parent
    monkeypatch.setattr(texts, "load_parent", lambda plan: change(load(plan)))
    monkeypatch.setattr(export, "trace_exits", lambda *_args, **_options: pytest.fail("it was traced"))
    with pytest.raises(ParentError, match=rf"is not what its users get: for the text '.+', .+ differs by .+{module}"):
        export_family(make_job(parent, (Point(BLOCKS, 24),)), tmp_path / "family")
    assert not (tmp_path / "family").exists()


def test_tokens_that_are_not_the_parents_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = make_parent(tmp_path / "parent", prompts={"query": "a cat: "})
    learn = texts.plan_parent

    def misread(job: ExportJob, located: Any) -> Any:
        plan = learn(job, located)
        asking: Asking = replace(plan.asking, prompts={"query": "a dog: "})
        return replace(plan, asking=asking, text=type(plan.text)(**{**_fields(plan.text), "prompts": asking.prompts}))

    monkeypatch.setattr(texts, "plan_parent", misread)
    monkeypatch.setattr("matexport.export.parents.asking.list_token_ids", _with_the_real_prompt)
    with pytest.raises(ParentError, match=r"token ids differ in 4 of \d+ probes: for '.+' with the prompt 'query'"):
        export_family(make_job(parent), tmp_path / "family")


def _fields(record: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__struct_fields__}


def _with_the_real_prompt(opened: Any, probe: Probe, _text: Any) -> list[int]:
    prompt = opened.model.prompts[probe.prompt] if probe.prompt else None
    return [int(token) for token in opened.model.preprocess([probe.text], prompt=prompt)["input_ids"][0]]


@pytest.mark.parametrize("off", [1, -1])
def test_a_depth_that_is_off_by_one_is_refused(off: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent with its blocks cut is the oracle of what is read below."""
    parent = make_parent(tmp_path / "parent")
    read = reference._state_at
    depths = {1: 1, 2: 2 + off, BLOCKS: BLOCKS}
    monkeypatch.setattr(reference, "_state_at", lambda parent, output, layers: read(parent, output, depths[layers]))
    with pytest.raises(ParentError, match=r"read after 2 blocks is not .+ on the parent with its blocks cut"):
        export_family(make_job(parent, (Point(1, 8), Point(2, 8))), tmp_path / "family")


@pytest.mark.parametrize("norm", [FinalNorm.KEEP, FinalNorm.DROP])
def test_the_cut_parent_tells_norms_that_are_kept_from_dropped_ones(
    norm: FinalNorm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = make_parent(tmp_path / "parent", "qwen3", pooling="lasttoken")
    assert export_family(make_job(parent, final_norm=norm), tmp_path / "family").verification.passed
    other = FinalNorm.DROP if norm is FinalNorm.KEEP else FinalNorm.KEEP
    read = reference._state_at

    def read_otherwise(parent: Any, output: Any, layers: int) -> Any:
        readout = type(parent.plan.readout)(**{**_fields(parent.plan.readout), "final_norm": other})
        return read(replace(parent, plan=replace(parent.plan, readout=readout)), output, layers)

    monkeypatch.setattr(reference, "_state_at", read_otherwise)
    with pytest.raises(ParentError, match="read after 1 blocks is not"):
        export_family(make_job(parent, final_norm=norm), tmp_path / "other")


def test_a_parent_whose_vectors_depend_on_the_batch_is_refused(tmp_path: Path) -> None:
    """Absolute positions and padding on the left: what its users get for a text depends on its neighbours."""
    parent = make_parent(tmp_path / "parent")
    edit_json(parent / "tokenizer_config.json", lambda config: config.update(padding_side="left"))
    with pytest.raises(ParentError, match=r"depends on the texts beside it .+ pads on the left"):
        export_family(make_job(parent), tmp_path / "family")


def test_weights_that_nothing_reads_are_named(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    parent = make_parent(tmp_path / "parent")
    weights = load_file(parent / "model.safetensors")
    weights["encoder.layer.0.attention.self.distance_embedding.weight"] = torch.ones(3, 8)
    save_file(weights, parent / "model.safetensors", metadata={"format": "pt"})
    family = export_family(make_job(parent), tmp_path / "family").family
    assert family.facts.parent.unread == ("encoder.layer.0.attention.self.distance_embedding.weight",)


def test_a_judge_that_dies_is_said_to_have(parent: Path) -> None:
    job = make_job(parent)
    asked = Judge(job, locate(job))
    with asked:
        assert asked.name.startswith("sentence-transformers")
        asked._process.kill()
        with pytest.raises(ParentError, match="ended with code -9"):
            asked.encode([Probe("a cat")])
    with Judge(job, locate(job)) as fresh:  # which does not get the dead one
        alone, together = fresh.encode([Probe("a cat"), Probe("a dog")], [0, 1])
    assert together.shape == alone.shape == (2, WIDTH)
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_the_process_is_kept_for_the_next_parent(parent: Path, tmp_path: Path) -> None:
    job = make_job(parent)
    with Judge(job, locate(job)) as first:
        first.encode([Probe("a cat")])
        kept = first._process
    other = make_job(make_parent(tmp_path / "other", seed=5))
    with Judge(other, locate(other)) as second:
        (vector,), _ = second.encode([Probe("a cat")])
        assert second._process is kept
    with Judge(job, locate(job)) as third:
        assert np.abs(third.encode([Probe("a cat")])[0][0] - vector).max() > 0.01
    trusted = ExportJob(ParentSource(str(parent), trust_remote_code=True), FULL)
    with Judge(trusted, locate(trusted)) as fresh:  # may have run code: for one parent only
        fresh.encode([Probe("a cat")])
        other_process = fresh._process
        assert other_process is not kept
    assert other_process is not None
    assert other_process.poll() is not None


def test_a_judge_that_was_interrupted_is_not_kept(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer to the last parent would be taken for one about the next."""
    job = make_job(parent)
    with Judge(job, locate(job)) as first:
        first.encode([Probe("a cat")])
        interrupted = first._process
    with pytest.raises(KeyboardInterrupt), Judge(job, locate(job)) as asked:  # noqa: PT012
        assert asked.name
        with monkeypatch.context() as patch:
            patch.setattr(Judge, "_read", _interrupt)
            asked.encode([Probe("a cat")])
    assert interrupted is not None
    assert interrupted.poll() is not None
    with Judge(job, locate(job)) as fresh:
        assert fresh.encode([Probe("a cat")])[0].shape == (1, WIDTH)


def _interrupt(_judge: Judge) -> dict[str, Any]:
    raise KeyboardInterrupt


def test_an_error_of_the_parents_library_is_passed_on(tmp_path: Path) -> None:
    parent = make_parent(tmp_path / "parent")
    job = make_job(parent)
    located = locate(job)
    edit_json(parent / "config.json", lambda config: config.update(model_type="strange"))
    with Judge(job, located) as asked, pytest.raises(ParentError, match=r"own library cannot load .+strange"):
        asked.encode([Probe("a cat")])


def test_what_is_compared() -> None:
    ours = np.array([[3.0, 4.0], [1.0, 0.0]], dtype=np.float32)
    assert _compare(ours, ours) == (0.0, 0)
    turned = ours + np.array([[0, 0], [0, 0.001]], dtype=np.float32)
    assert _compare(ours, turned)[1] == 1
    assert _compare(ours, turned)[0] == pytest.approx(0.001, rel=1e-3)
    longer = ours * np.array([[1.0], [1.01]], dtype=np.float32)  # the direction is the same
    assert _compare(ours, longer)[0] == pytest.approx(0.01, rel=0.02)
    assert _compare(ours, ours[:, :1])[0] == float("inf")
    lost = np.array([[3.0, 4.0], [np.nan, 0.0]], dtype=np.float32)
    assert not _compare(lost, ours)[0] <= judge.TOLERANCE
    assert _compare(lost, ours)[1] == 1
