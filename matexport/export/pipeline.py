"""The pipeline: a job in, a verified family on disk out. The only module that knows the order of the stages.

    plan (no weights) -> load -> reference -> read-out -> trace -> weights
      -> per precision: quantize -> weights -> preparation, where it is asked -> per profile: cut -> narrow -> encode
      -> verify

Everything happens in a hidden directory beside the destination, which is renamed into place when every profile has
passed; so a directory that exists has passed, and a process that dies leaves the destination as it was.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.numpy import save
from torch import nn

from matexport.export.blame import check_readout, refuse_failures
from matexport.export.graph.traced import Traced
from matexport.export.graph.weights import MIN_EXTERNAL_BYTES, write_nested_weights
from matexport.export.kinds.fixed import fit_inputs, settle_shape
from matexport.export.kinds.in_graph import put_preparation_in_front, settle_preparation
from matexport.export.kinds.kind import Kind, find_kind
from matexport.export.parents.plan import Example, Plan, Reference
from matexport.export.prepare import (
    Exported,
    describe_differences,
    describe_provenance,
    find_up_to_date,
)
from matexport.export.profiles import Cut, cut_family, make_precisions, weights_file
from matexport.export.quantize.support import check_runtime
from matexport.export.reuse import Reused, find_reusable, reuse_graphs, reuse_reference
from matexport.export.trace.bounds import BASE_SECONDS, PARAMETERS_PER_SECOND, bound_seconds
from matexport.export.trace.exits import add_exits, find_read, name_read
from matexport.export.trace.trace import trace_exits
from matexport.family.integrity import describe_files, describe_prefixes, refuse_occupied
from matexport.family.manifest import REFERENCE, SCHEMA, load_family, write_manifest
from matexport.family.measurements.sections import keep_unlisted
from matexport.family.modality import MODALITIES
from matexport.family.proof import Vectors
from matexport.family.weights_file import NestedHeader
from matexport.host import read_host
from matexport.io.progress import Progress
from matexport.io.staging import lock_destination, stage_directory
from matexport.runtime.inputs.modality import load_inputs
from matexport.spec.facts import FamilyFacts, Provenance, TraceFacts
from matexport.spec.job import ExportJob
from matexport.spec.profile import Point, Precision
from matexport.spec.tolerance import FLOORS
from matexport.verify.judge import verify_family
from matexport.verify.verdict import Verification, record_measurement


def run_export(
    job: ExportJob,
    begun: Any,
    out: Path,
    *,
    overwrite: bool = False,
    reuse: bool = True,
    progress: Progress | None = None,
) -> Exported | None:
    """Export a family whose parent's kind has begun; see `export.export_family`.

    Args:
        begun: what the `begin` of its kind gave.
        reuse: make it of what a family of other points in `out` has, where that goes.

    Returns:
        None where a profile that was made of what was there is off its floor: make all of it then, from the beginning.

    Raises:
        RequestError, ParentError, DestinationError, ParityError: as `export.export_family`.
    """
    report, kind = progress or (lambda _stage, _done, _total: None), find_kind(job)
    report("plan", 0, 1)
    plan = settle_preparation(kind.plan(job, begun))
    plan = settle_shape(plan, kind.runtime_files(plan)) if job.target.is_fixed else plan
    for precision in job.precisions:
        if precision is not Precision.FP32:
            check_runtime(precision, job.target)
    provenance = describe_provenance(kind, plan)
    report("plan", 1, 1)
    with lock_destination(out):
        present = find_up_to_date(out, plan, provenance, overwrite=overwrite, report=report)
        if present:
            return present
        refuse_occupied(out, overwrite=overwrite, differs=describe_differences(out, plan, provenance))
        reused = find_reusable(out, plan, provenance) if reuse else None
        if reused:
            return _cut_anew(kind, plan, provenance, reused, out, report)
        with stage_directory(out) as stage:
            verification = _build(kind, plan, provenance, stage, report)
            keep_unlisted(out, stage)
    return Exported(load_family(out), verification, up_to_date=False)


class _OffFloorError(Exception):
    """A profile that was cut anew is off its floor: what is staged is thrown away."""


def _cut_anew(
    kind: Kind, plan: Plan, provenance: Provenance, reused: Reused, out: Path, report: Progress
) -> Exported | None:
    """Make a family of what one of other points has; None where a profile is off its floor.

    Whoever makes all of it can say which stage is to blame, or leave out that profile.
    """
    try:
        with stage_directory(out) as stage:
            _write_inputs(kind, plan, stage)
            reference = reuse_reference(reused, plan) or kind.reference(plan, kind.load(plan, report), report)
            _write_reference(reference, stage)
            cut = reuse_graphs(reused, plan, stage, report)
            trace = reused.family.facts.trace
            write_manifest(stage, _describe_family(plan, reference, trace, provenance, cut, stage))
            verification = verify_family(stage, progress=report)
            if not verification.passed:
                raise _OffFloorError
            record_measurement(load_family(stage), verification)
            keep_unlisted(out, stage)
    except _OffFloorError:
        return None
    return Exported(load_family(out), verification, up_to_date=False, cut_anew=True)


def _build(kind: Kind, plan: Plan, provenance: Provenance, stage: Path, report: Progress) -> Verification:
    """Write the whole family into `stage` and verify it there."""
    _write_inputs(kind, plan, stage)
    parent = kind.load(plan, report)
    reference = kind.reference(plan, parent, report)
    _write_reference(reference, stage)

    module = kind.module(plan, parent, list_reads(plan))
    traced, trace, header = trace_and_write(plan, module, kind.example(plan), reference.points, stage, report)
    _release_weights(module)
    del parent, module
    gc.collect()
    sources = make_precisions(traced, header, plan, stage, report)
    models = [source.model for source in sources.values()]
    put_preparation_in_front(plan, models)
    fit_inputs(plan, models)
    cut = cut_family(sources, plan, stage, report)
    if Precision.FP32 not in plan.job.precisions:
        (stage / weights_file(Precision.FP32)).unlink()

    write_manifest(stage, _describe_family(plan, reference, trace, provenance, cut, stage))
    verification = verify_family(stage, progress=report)
    verification = refuse_failures(verification, sources, plan.job, stage)
    record_measurement(load_family(stage), verification)
    return verification


def _write_inputs(kind: Kind, plan: Plan, stage: Path) -> None:
    """What the family holds of its inputs: what makes them, and the probes."""
    for name, content in kind.runtime_files(plan).items():
        (stage / name).write_bytes(content)
    modality = MODALITIES[plan.inputs.noun]
    (stage / modality.probes).write_bytes(modality.write(plan.probes))


def _write_reference(reference: Reference, stage: Path) -> None:
    vectors = {point.name: vectors for point, vectors in reference.points.items()}
    (stage / REFERENCE).write_bytes(save({**vectors, **reference.rows}))


def list_reads(plan: Plan) -> list[Point]:
    """Where a plan's points read the parent, from shallow to deep; see `trace.exits.find_read`."""
    return sorted({find_read(point, own_dims=plan.own_dims) for point in plan.job.points})


def _describe_family(
    plan: Plan,
    reference: Reference,
    trace: TraceFacts,
    provenance: Provenance,
    cut: Cut,
    stage: Path,
) -> FamilyFacts:
    facts = FamilyFacts(
        schema=SCHEMA,
        parent=msgspec.structs.replace(plan.parent, judge=reference.judge, unread=reference.unread),
        readout=plan.readout,
        trace=trace,
        tolerances={precision: plan.job.tolerances.get(precision, FLOORS[precision]) for precision in cut.precisions},
        profiles=describe_prefixes(stage, cut.profiles),
        files=describe_files(stage),
        provenance=provenance,
        precisions=cut.precisions,
        instruction_sets=read_host().instruction_sets,
        vocabulary=plan.vocabulary,
        exits=cut.exits,
        trained=plan.job.trained,
        output=plan.output,
        target=plan.job.target,
    )
    return msgspec.structs.replace(facts, **{plan.inputs.noun: plan.shipped_inputs})


def trace_and_write(
    plan: Plan,
    module: nn.Module,
    example: Example,
    reference: Mapping[Point, Vectors],
    stage: Path,
    report: Progress,
) -> tuple[Traced, TraceFacts, NestedHeader]:
    """Read-out, trace and weights: from the parent's module to the graph of all exits and its weights file.

    Args:
        module: gives a vector at each of `list_reads`, then the states; see `kinds.kind.Kind`.
        example: what it is traced on.
        reference: the parent's vectors of the probes at each point of the job.
        stage: where what makes inputs lies, and the weights file is written.

    Raises:
        ParentError: the parent cannot be traced.
        ParityError: the module that would be traced does not give the reference.
    """
    inputs = load_inputs(stage, plan.inputs)
    check_readout(
        module,
        reference,
        rows=[inputs.prepare_probe(probe) for probe in plan.probes],
        inputs=inputs,
        plan=plan,
        tolerance=FLOORS[Precision.FP32],
    )
    report("trace", 0, 1)
    size = sum(parameter.numel() for parameter in module.parameters())
    outputs = [name_read(read) for read in list_reads(plan)]
    with torch.no_grad(), bound_seconds(BASE_SECONDS + size / PARAMETERS_PER_SECOND, "tracing the parent"):
        traced, facts = trace_exits(module, example, outputs=outputs, states=plan.parent.blocks + 1)
    add_exits(traced.model, plan.job.points, plan.readout, own_dims=plan.own_dims)
    report("trace", 1, 1)
    weights = stage / weights_file(Precision.FP32)
    header = write_nested_weights(traced.model, plan.job.points, weights, report)
    return traced, facts, header


def _release_weights(module: nn.Module) -> None:
    """Give back the parent's memory before anything is verified.

    Dropping the parent is not enough: the graph's bookkeeping (onnx_ir's reference counters, onnxscript's pattern
    matchers) keeps every parameter that was once an input. The small ones stay, as the graphs hold them inline.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.nbytes >= MIN_EXTERNAL_BYTES:
            tensor.data = tensor.data.new_empty(0)
