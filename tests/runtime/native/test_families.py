"""Families of small random models of several architectures, as they are exported today: their int8 graphs are read as
what onnxruntime gives of them, and graphs of other precisions are refused, or read as what they give."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import parents
import pytest
from conftest import SMALL, Precise, make_once, write_texts
from native_oracle import assert_near, run_plan, split_batch
from numpy.typing import NDArray

import matexport
from matexport.family.graph_file import parse_graph
from matexport.runtime.engines.native import steps
from matexport.runtime.engines.native.recognize import UnknownGraphError, recognize
from matexport.runtime.engines.native.tensors import make_reader
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.profile import Encoding, Point, Precision, Target
from matexport.spec.readout import FinalNorm, ReadoutRequest

Array = NDArray[Any]

#: Longer than every window, and than the places from which on MPNet's biases stay.
LENGTH = 45

#: Name -> the parent's shape, its pooling, how its weights are drawn, and what its graphs are written for.
EXPORTED = {
    "mpnet": ("mpnet", "cls", "calm", Target.ONNXRUNTIME),
    "gemma3": ("gemma3", "mean", "soothe", Target.ONNXRUNTIME),
    "roberta": ("roberta", "mean_sqrt_len_tokens", "calm", Target.ONNXRUNTIME),
    "portable": ("bert", "max", "calm", Target.PORTABLE),
}
#: Name -> its kinds of steps between Embed and Pool, beside those of a post-norm BERT.
STEPS = {
    "mpnet": set(),
    "gemma3": {steps.Affine, steps.HeadNorm, steps.Multiply, steps.Rotate},
    "roberta": {steps.Affine},
    "portable": set(),
    "bert": set(),
    "modernbert": {steps.Columns, steps.Multiply, steps.Rotate},
    "qwen3": {steps.HeadNorm, steps.Multiply, steps.Rotate},
}
BERT = {steps.Embed, steps.Norm, steps.Quantize, steps.Product, steps.Attend, steps.Add, steps.Activate}
READOUT = {steps.Pool, steps.Unit, steps.Columns}


@pytest.fixture(scope="module")
def made(shared: Path, precise: Callable[[str], Precise]) -> Callable[[str], Path]:
    """Name -> its family. Not to be changed."""

    def make(name: str) -> Path:
        if name not in EXPORTED:
            return precise(name).family
        folder = shared / f"native-{name}"
        return make_once(folder / "family", lambda: export(name, folder))

    return make


def export(name: str, folder: Path) -> None:
    from matexport.export import export_family

    kind, pooling, change, target = EXPORTED[name]
    decoder = {"head_dim": 16} if parents.SHAPES[kind].decoder or kind == "gemma3" else {}
    depth = {"num_hidden_layers": 3} if kind == "gemma3" else {}
    parents.make_parent(
        folder / "parent", kind, pooling=pooling, config=SMALL | decoder | depth, change=getattr(parents, change)
    )
    job = ExportJob(
        ParentSource(str(folder / "parent")),
        (Point(2, 32),),
        ReadoutRequest(final_norm=FinalNorm.KEEP if parents.SHAPES[kind].prenorm else None),
        precisions=(Precision.INT8,),
        calibration=write_texts(folder / "texts.txt"),
        target=target,
    )
    export_family(job, folder / "family")


def read_graph(folder: Path, graph: str) -> tuple[Any, steps.Plan]:
    weights = {file.name: file.read_bytes() for file in folder.glob("weights.*")}
    model = parse_graph(graph, (folder / graph).read_bytes())
    return model, recognize(model, make_reader(graph, weights))


def make_feeds(session: onnxruntime.InferenceSession, plan: steps.Plan, *, left: bool) -> dict[str, Array]:
    """Texts of several lengths; padding has the id that positions leave out, as a tokenizer gives it."""
    tables = [table for step in plan.steps if isinstance(step, steps.Embed) for table in step.tables]
    padding = next((table.uncounted for table in tables if table.uncounted is not None), 0)
    rng = np.random.default_rng(11)
    lengths = np.array([[LENGTH], [1], [8], [17]])
    places = np.arange(LENGTH)[None]
    mask = ((places >= LENGTH - lengths) if left else (places < lengths)).astype(np.int64)
    ids = np.where(mask, rng.integers(5, 90, mask.shape), padding)
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {value.name: feeds[value.name] for value in session.get_inputs()}


def check(folder: Path, graph: str, plan: steps.Plan) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(folder / graph, options, providers=["CPUExecutionProvider"])
    poolings = [step.pooling for step in plan.steps if isinstance(step, steps.Pool)]
    found: list[Array] = []
    wanted: list[Array] = []
    for left in (False, True) if steps.Pooling.FIRST not in poolings else (False,):
        feeds = make_feeds(session, plan, left=left)
        made = run_plan(plan, split_batch(feeds))
        found += made.values()
        wanted += session.run(list(made), feeds)
    assert_near(found, wanted)


@pytest.mark.parametrize("name", STEPS)
def test_int8_graphs_are_read_as_what_they_give(name: str, made: Callable[[str], Path]) -> None:
    folder = made(name)
    facts = matexport.load_family(folder).facts
    graphs = [profile.graph for profile in facts.profiles.values() if profile.precision is Precision.INT8]
    assert graphs
    for graph in (*graphs, facts.exits[Precision.INT8]):
        _, plan = read_graph(folder, graph)
        assert plan.refused == {}
        kinds = {type(step) for step in plan.steps}
        assert kinds - READOUT == (BERT | STEPS[name]) - READOUT
        check(folder, graph, plan)


def test_what_attention_reads_is_told(made: Callable[[str], Path]) -> None:
    """As the configurations in `parents` say."""
    found = {}
    for name in ("mpnet", "gemma3", "modernbert", "qwen3"):
        folder = made(name)
        profile = next(
            facts
            for facts in matexport.load_family(folder).facts.profiles.values()
            if (facts.layers, facts.precision) == (2, Precision.INT8)
        )
        plan = read_graph(folder, profile.graph)[1]
        found[name] = [step for step in plan.steps if isinstance(step, steps.Attend)]
    assert [step.bias is not None for step in found["mpnet"]] == [True, True]
    assert [step.first for step in found["mpnet"]] == [False, True]
    assert [(step.window, step.causal, step.key_heads) for step in found["gemma3"]] == [(4, False, 2)] * 2
    assert [(step.window, step.causal, step.key_heads) for step in found["modernbert"]] == [
        (None, False, 4),
        (4, False, 4),
    ]
    assert [(step.window, step.causal, step.key_heads) for step in found["qwen3"]] == [(None, True, 2)] * 2


@pytest.mark.parametrize("name", ["bert", "modernbert", "qwen3"])
def test_graphs_of_other_precisions_are_read_as_what_they_give_or_refused(
    name: str, made: Callable[[str], Path]
) -> None:
    folder = made(name)
    outcomes: dict[Precision, set[str]] = {precision: set() for precision in Precision}
    for profile in matexport.load_family(folder).facts.profiles.values():
        if profile.encoding is not Encoding.FLOAT32:
            continue
        with contextlib.suppress(UnknownGraphError):
            check(folder, profile.graph, read_graph(folder, profile.graph)[1])
            outcomes[profile.precision].add("read")
            continue
        outcomes[profile.precision].add("refused")
    read = {Precision.FP32, Precision.INT8}
    assert outcomes == {precision: {"read" if precision in read else "refused"} for precision in Precision}
