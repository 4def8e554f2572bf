"""The pipeline: a job in, a verified family on disk out. The only module that knows the order of the stages.

    plan (no weights) -> load -> reference, held to the judge -> read-out -> trace -> weights
      -> per precision: quantize -> weights -> per profile: cut -> narrow -> encode
      -> verify

Everything happens in a hidden directory beside the destination, which is renamed into place when every profile has
passed; so a directory that exists has passed, and a process that dies leaves the destination as it was.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec
import torch
from safetensors.numpy import save

from matexport.export.blame import check_readout, refuse_failures
from matexport.export.graph.traced import Traced
from matexport.export.graph.weights import MIN_EXTERNAL_BYTES, write_nested_weights
from matexport.export.judge.hold import SIDE_BY_SIDE_BYTES, Verdict, ask_judge, hold_to_judge, share_threads
from matexport.export.judge.process import Judge
from matexport.export.parents.asking import EDGES, check_tokens
from matexport.export.parents.folder.loading import use_plain_experts
from matexport.export.parents.preflight import Located
from matexport.export.parents.reference import Reference, Vectors, describe_modules, record_reference
from matexport.export.parents.text import TextParent, TextPlan, load_parent, plan_parent, runtime_files
from matexport.export.parents.vocabulary.rewrite import prune_embeddings
from matexport.export.prepare import (
    Exported,
    Settled,
    describe_vocabulary,
    find_up_to_date,
    make_whole_tokenizer,
    measure_weights,
    settle_inputs,
)
from matexport.export.profiles import Cut, PrecisionGraph, cut_family, make_precisions, weights_file
from matexport.export.quantize.support import check_runtime
from matexport.export.trace.bounds import BASE_SECONDS, PARAMETERS_PER_SECOND, bound_seconds
from matexport.export.trace.exits import add_exits, name_layer
from matexport.export.trace.readout import ExitsModule, ExitsWithStates
from matexport.export.trace.trace import trace_exits
from matexport.family.integrity import describe_files, refuse_occupied
from matexport.family.manifest import PROBES, REFERENCE, SCHEMA, load_family, write_manifest
from matexport.family.token_rows import pack_token_rows
from matexport.family.weights_file import NestedHeader
from matexport.host import read_host
from matexport.io.progress import Progress
from matexport.io.staging import lock_destination, stage_directory
from matexport.runtime.inputs.text import load_tokenizer, tokenize_probes
from matexport.spec.facts import FamilyFacts, FileFacts, ParentFacts, TraceFacts
from matexport.spec.job import ExportJob
from matexport.spec.profile import Point, Precision, Probe
from matexport.spec.tolerance import FLOORS
from matexport.verify.judge import verify_family
from matexport.verify.verdict import Verification, record_measurement


def run_export(
    job: ExportJob,
    located: Located,
    judge: Judge,
    out: Path,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Export a family whose parent's files were looked at and whose judge is there; see `export.export_family`.

    Args:
        located: the parent, as `preflight.locate` found it.
        judge: of that parent; it need not have been started.

    Raises:
        RequestError, ParentError, DestinationError, ParityError: as `export.export_family`.
    """
    report = progress or (lambda _stage, _done, _total: None)
    report("plan", 0, 1)
    plan = plan_parent(job, located)
    for precision in job.precisions:
        if precision is not Precision.FP32:
            check_runtime(precision)
    settled = settle_inputs(plan)
    report("plan", 1, 1)
    with lock_destination(out):
        present = find_up_to_date(out, settled.provenance, set(job.profiles), overwrite, report)
        if present:
            return present
        refuse_occupied(out, overwrite=overwrite)
        with stage_directory(out) as stage:
            verification = _build(settled, judge, stage, report)
    return Exported(load_family(out), verification, up_to_date=False)


def _build(settled: Settled, judge: Judge, stage: Path, report: Progress) -> Verification:
    """Write the whole family into `stage` and verify it there."""
    plan = settled.plan
    _write_inputs(settled, stage)
    parent, reference, tokens, verdict = read_parent(plan, settled.probes, judge, report)
    vectors = {point.name: vectors for point, vectors in reference.points.items()}
    (stage / REFERENCE).write_bytes(save(vectors | pack_token_rows(tokens)))

    if plan.vocabulary:  # after the reference, which is the whole parent's
        prune_embeddings(parent.backbone, plan.vocabulary.kept)
    traced, trace, header = trace_and_write(parent, settled.probes, reference.points, stage, report)
    facts = msgspec.structs.replace(plan.parent, judge=verdict.judge, unread=parent.opened.unread)
    _release_weights(parent)
    del parent
    gc.collect()
    sources = make_precisions(traced, header, plan, settled.calibration, stage, report)
    cut = cut_family(sources, plan, stage, report)
    if Precision.FP32 not in plan.job.precisions:
        (stage / weights_file(Precision.FP32)).unlink()

    write_manifest(stage, _describe_family(settled, facts, trace, sources, cut, describe_files(stage)))
    verification = verify_family(stage, progress=report)
    verification = refuse_failures(verification, sources, plan.job, stage)
    record_measurement(load_family(stage), verification)
    return verification


def _write_inputs(settled: Settled, stage: Path) -> None:
    """What the family holds of its texts: the tokenizer's files, and the probes."""
    for name, content in runtime_files(settled.plan).items():
        (stage / name).write_bytes(content)
    lines = [json.dumps(_without_none(msgspec.to_builtins(probe)), ensure_ascii=False) for probe in settled.probes]
    (stage / PROBES).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _describe_family(
    settled: Settled,
    parent: ParentFacts,
    trace: TraceFacts,
    sources: Mapping[Precision, PrecisionGraph],
    cut: Cut,
    files: Mapping[str, FileFacts],
) -> FamilyFacts:
    plan = settled.plan
    return FamilyFacts(
        schema=SCHEMA,
        parent=parent,
        readout=plan.readout,
        text=plan.text,
        trace=trace,
        tolerances={precision: plan.job.tolerances.get(precision, FLOORS[precision]) for precision in sources},
        profiles=cut.profiles,
        files=files,
        provenance=settled.provenance,
        precisions={precision: source.facts for precision, source in sources.items()},
        instruction_sets=read_host().instruction_sets,
        vocabulary=describe_vocabulary(plan, settled.changed),
        exits=cut.exits,
        trained=plan.job.trained,
    )


def read_parent(
    plan: TextPlan, probes: Sequence[Probe], judge: Judge, report: Progress
) -> tuple[TextParent, Reference, list[list[int]], Verdict]:
    """Load the parent, and hold what was read of it to its own library.

    Returns:
        the parent, its vectors of the probes, each probe's token ids in the family's vocabulary, the judge's verdict.

    Raises:
        ParentError: the parent cannot be loaded, or what was read of it is not what its users get.
    """
    report("load", 0, 1)
    whole = make_whole_tokenizer(plan)
    tokens = check_tokens(plan.opened, whole, probes, plan.job.parent.source)
    check_tokens(plan.opened, whole, EDGES, plan.job.parent.source)
    if plan.vocabulary:
        tokens = [[plan.vocabulary.new_ids[token] for token in row] for row in tokens]
    if plan.layout.is_plain:
        judge.limit(plan.text.max_tokens)
    threads = torch.get_num_threads()
    torch.set_num_threads(min(threads, share_threads()))
    with ThreadPoolExecutor(1) as beside, ExitStack() as after:
        after.callback(torch.set_num_threads, threads)
        judging = beside.submit(ask_judge, judge, plan, probes)
        if measure_weights(plan) > SIDE_BY_SIDE_BYTES:
            judging.result()
            judge.release()
        parent = load_parent(plan)
        report("load", 1, 1)
        reference = record_reference(parent, probes, report)
        report("judge", 0, 1)
        verdict = judging.result()
    hold_to_judge(
        verdict, plan, reference, probes, lambda probe: (judge.describe(probe), describe_modules(parent, probe))
    )
    judge.release()
    report("judge", 1, 1)
    return parent, reference, tokens, verdict


def trace_and_write(
    parent: TextParent, probes: Sequence[Probe], reference: Mapping[Point, Vectors], stage: Path, report: Progress
) -> tuple[Traced, TraceFacts, NestedHeader]:
    """Read-out, trace and weights: from the loaded parent to the graph of all exits and its weights file.

    Args:
        reference: the parent's vectors of the probes at each point of the job.
        stage: where the tokenizer lies, and the weights file is written.

    Raises:
        ParentError: the parent cannot be traced.
        ParityError: the module that would be traced does not give the reference.
    """
    plan = parent.plan
    depths = sorted({point.layers for point in plan.job.points})
    module = ExitsModule(parent, depths).eval()
    check_readout(
        module,
        reference,
        rows=tokenize_probes(load_tokenizer(stage, plan.text), probes),
        text=plan.text,
        normalize=plan.readout.normalize,
        tolerance=FLOORS[Precision.FP32],
    )
    report("trace", 0, 1)
    _use_plain_attention(parent)
    size = sum(parameter.numel() for parameter in module.parameters())
    with torch.no_grad(), bound_seconds(BASE_SECONDS + size / PARAMETERS_PER_SECOND, "tracing the parent"):
        traced, facts = trace_exits(
            ExitsWithStates(module),
            inputs=plan.text.inputs,
            outputs=[name_layer(depth) for depth in depths],
            states=plan.parent.blocks + 1,
            vocabulary=len(plan.vocabulary.kept) if plan.vocabulary else plan.tokens,
            own_classes=plan.layout.own_classes,
        )
    add_exits(traced.model, plan.job.points, normalize=plan.readout.normalize)
    report("trace", 1, 1)
    weights = stage / weights_file(Precision.FP32)
    header = write_nested_weights(traced.model, plan.job.points, weights, report)
    return traced, facts, header


def _use_plain_attention(parent: TextParent) -> None:
    """Trace attention as matrix products and a softmax.

    The fused call decomposes into the same with guards around rows that attend to nothing (NaN tests, selections),
    which cost time in every block. The reference was made with whatever the parent uses by default.
    """
    with suppress(ValueError, NotImplementedError, AttributeError):  # models with only one kind keep it
        parent.backbone.set_attn_implementation("eager")  # type: ignore[operator]
    use_plain_experts(parent.backbone)


def _release_weights(parent: TextParent) -> None:
    """Give back the parent's memory before anything is verified.

    Dropping the parent is not enough: the graph's bookkeeping (onnx_ir's reference counters, onnxscript's pattern
    matchers) keeps every parameter that was once an input. The small ones stay, as the graphs hold them inline.
    """
    for tensor in (*parent.backbone.parameters(), *parent.backbone.buffers()):
        if tensor.nbytes >= MIN_EXTERNAL_BYTES:
            tensor.data = tensor.data.new_empty(0)


def _without_none(record: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in record.items() if value is not None}
