"""The pipeline: a job in, a verified family on disk out. The only module that knows the order of the stages.

    plan (configuration only) -> load -> reference -> read-out -> trace -> weights -> cut -> rewrite -> verify

Everything happens in a hidden directory beside the destination, which is renamed into place when every profile has
passed; so a directory that exists has passed, and a process that dies leaves the destination as it was.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import torch
from safetensors.numpy import save

import matexport
from matexport.build.cut import cut_exit
from matexport.build.diagnose import check_readout, find_failing_stage, tokenize_probes
from matexport.build.exits import add_exits, name_layer
from matexport.build.nested import MIN_EXTERNAL_BYTES, measure_prefix, write_nested_weights
from matexport.build.parents.text import TextParent, TextPlan, load_parent, plan_parent, runtime_files
from matexport.build.readout import ExitsModule, make_head
from matexport.build.reference import Vectors, prepare_probes, record_reference
from matexport.build.rewrite import narrow_to_first_token
from matexport.build.serialize import write_graph
from matexport.build.sources import hash_weights
from matexport.build.trace import Traced, trace_exits
from matexport.errors import DestinationError, FamilyError, ParityError
from matexport.host import read_host
from matexport.manifest import (
    MANIFEST,
    PROBES,
    REFERENCE,
    SCHEMA,
    Family,
    FamilyFacts,
    check_family,
    describe_files,
    load_family,
    write_manifest,
)
from matexport.nestedfile import NestedHeader
from matexport.profiles import FLOORS, load_probes
from matexport.spec import (
    OUTPUT_NAME,
    ExportJob,
    Point,
    Precision,
    Probe,
    Profile,
    ProfileFacts,
    Provenance,
    Tolerance,
)
from matexport.staging import lock_destination, refuse_occupied, stage_directory
from matexport.verify import (
    Verification,
    load_references,
    load_verification,
    record_measurement,
    verify_family,
)

Progress = Callable[[str, int, int], None]

#: Packages whose versions decide the bytes of a family.
VERSIONED = ("matexport", "torch", "transformers", "sentence-transformers", "onnx-ir", "onnxscript", "tokenizers")


@dataclass(frozen=True)
class Exported:
    """What `export_family` did: the family, how it verified, and whether it was there already."""

    family: Family
    verification: Verification
    up_to_date: bool


def export_family(
    job: ExportJob, out: Path | str | None = None, *, overwrite: bool = False, progress: Progress | None = None
) -> Exported:
    """Export a family and prove every profile against the parent.

    Args:
        job: what to export; see `matexport.load_job`.
        out: the directory to write; ``artifacts/<job.name>`` by default. If it holds the family of the same inputs
            already, that is verified instead.
        overwrite: replace a family of other inputs. The old one stays until the new one has passed.
        progress: called with (stage, done, total).

    Raises:
        RequestError: the job asks for something that the parent does not have.
        ParentError: the parent cannot be read or is not supported.
        DestinationError: `out` holds something else, is in use, or cannot be written.
        ParityError: a profile does not give the parent's vectors; the destination is as it was.
    """
    out = Path("artifacts", job.name) if out is None else Path(out)
    report = progress or (lambda _stage, _done, _total: None)
    report("plan", 0, 1)
    plan = plan_parent(job)
    probes = prepare_probes(plan, load_probes(job.probes), shipped=job.probes is None)
    provenance = _describe_provenance(plan, probes)
    report("plan", 1, 1)
    with lock_destination(out):
        wanted = {Profile(point, precision) for precision in job.precisions for point in job.points}
        present = _find_up_to_date(out, provenance, wanted, overwrite, report)
        if present:
            return present
        refuse_occupied(out, overwrite=overwrite)
        with stage_directory(out) as stage:
            verification = _build(plan, probes, provenance, stage, report)
    return Exported(load_family(out), verification, up_to_date=False)


def _build(
    plan: TextPlan, probes: Sequence[Probe], provenance: Provenance, stage: Path, report: Progress
) -> Verification:
    """Write the whole family into `stage` and verify it there."""
    for name, content in runtime_files(plan).items():
        (stage / name).write_bytes(content)
    lines = [json.dumps(_without_none(msgspec.to_builtins(probe)), ensure_ascii=False) for probe in probes]
    (stage / PROBES).write_text("\n".join(lines) + "\n", encoding="utf-8")

    report("load", 0, 1)
    parent = load_parent(plan)
    report("load", 1, 1)
    reference = record_reference(parent, probes, report)
    (stage / REFERENCE).write_bytes(save({point.name: vectors for point, vectors in reference.items()}))

    traced, header = trace_and_write(parent, probes, reference, stage, report)
    _release_weights(parent)
    del parent
    gc.collect()
    profiles = cut_profiles(traced, plan, header, stage, report)

    tolerances = {precision: plan.job.tolerances.get(precision, FLOORS[precision]) for precision in plan.job.precisions}
    facts = FamilyFacts(
        schema=SCHEMA,
        parent=plan.parent,
        readout=plan.readout,
        text=plan.text,
        trace=traced.facts,
        tolerances=tolerances,
        profiles=profiles,
        files=describe_files(stage),
        provenance=provenance,
    )
    write_manifest(stage, facts)
    verification = verify_family(stage, progress=report)
    _refuse_failures(verification, traced, stage, tolerances)
    record_measurement(load_family(stage), verification)
    return verification


def trace_and_write(
    parent: TextParent, probes: Sequence[Probe], reference: Mapping[Point, Vectors], stage: Path, report: Progress
) -> tuple[Traced, NestedHeader]:
    """Read-out, trace and weights: from the loaded parent to the graph of all exits and its weights file."""
    plan = parent.plan
    depths = sorted({point.layers for point in plan.job.points})
    module = ExitsModule(
        parent.backbone,
        parent.final_norm,
        [make_head(head) for head in parent.heads],
        readout=plan.readout,
        depths=depths,
        inputs=plan.text.inputs,
    ).eval()
    check_readout(
        module,
        reference,
        depths=depths,
        rows=tokenize_probes(stage, plan.text, probes),
        text=plan.text,
        normalize=plan.readout.normalize,
        max_abs=FLOORS[Precision.FP32].max_abs,
    )
    report("trace", 0, 1)
    _use_plain_attention(parent)
    with torch.no_grad():
        traced = trace_exits(
            module,
            inputs=plan.text.inputs,
            outputs=[name_layer(depth) for depth in depths],
            vocabulary=plan.config.vocab_size,
        )
    add_exits(traced.model, plan.job.points, normalize=plan.readout.normalize)
    report("trace", 1, 1)
    weights = stage / _weights_file(Precision.FP32)
    header = write_nested_weights(traced.model, plan.job.points, weights, report)
    return traced, header


def cut_profiles(
    traced: Traced, plan: TextPlan, header: NestedHeader, stage: Path, report: Progress
) -> dict[str, ProfileFacts]:
    """Cut, rewrite and write the graph of every profile."""
    profiles = {}
    wanted = [Profile(point, precision) for precision in plan.job.precisions for point in plan.job.points]
    for done, profile in enumerate(wanted):
        report("cut", done, len(wanted))
        part = cut_exit(traced.model, profile.point.name, name=OUTPUT_NAME)
        narrowed = narrow_to_first_token(part)
        prefix = measure_prefix(part, header)
        write_graph(part, stage / profile.graph_file)
        profiles[profile.name] = ProfileFacts(
            layers=profile.point.layers,
            dim=profile.point.dim,
            precision=profile.precision,
            graph=profile.graph_file,
            weights=_weights_file(profile.precision),
            weights_prefix_bytes=prefix,
            narrowed_nodes=narrowed,
        )
    report("cut", len(wanted), len(wanted))
    return profiles


def _refuse_failures(
    verification: Verification, traced: Traced, stage: Path, tolerances: Mapping[Precision, Tolerance]
) -> None:
    failed = [verdict for verdict in verification.verdicts if not verdict.passed]
    if not failed:
        return
    verdict = failed[0]
    way, parity = verdict.worst
    profile, family = Profile.parse(verdict.profile), load_family(stage)
    allowed, exit_name = tolerances[profile.precision].max_abs, profile.point.name
    suspects = [
        ("trace", traced.model.clone, exit_name),
        ("cut", lambda: cut_exit(traced.model, exit_name, name=OUTPUT_NAME), OUTPUT_NAME),
    ]
    blamed = find_failing_stage(family, profile, suspects, max_abs=allowed) or "rewrite"
    text = load_references(family)[0][parity.worst].text
    raise ParityError(
        f"{blamed}: {len(failed)} of {len(verification.verdicts)} profiles differ from the parent; "
        f"{verdict.profile} by {parity.max_abs:.2g} ({way}, allowed {allowed:g}) on probe {parity.worst} "
        f"({text[:40]!r}); nothing was written",
        blamed,
    )


def _use_plain_attention(parent: TextParent) -> None:
    """Trace attention as matrix products and a softmax.

    The fused call decomposes into the same with guards around rows that attend to nothing (NaN tests, selections),
    which cost time in every block. The reference was made with whatever the parent uses by default.
    """
    with suppress(ValueError, NotImplementedError, AttributeError):  # models with only one kind keep it
        parent.backbone.set_attn_implementation("eager")  # type: ignore[operator]


def _release_weights(parent: TextParent) -> None:
    """Give back the parent's memory before anything is verified.

    Dropping the parent is not enough: the graph's bookkeeping (onnx_ir's reference counters, onnxscript's pattern
    matchers) keeps every parameter that was once an input. The small ones stay, as the graphs hold them inline.
    """
    for tensor in (*parent.backbone.parameters(), *parent.backbone.buffers()):
        if tensor.nbytes >= MIN_EXTERNAL_BYTES:
            tensor.data = tensor.data.new_empty(0)


def _find_up_to_date(
    out: Path, provenance: Provenance, wanted: set[Profile], overwrite: bool, report: Progress
) -> Exported | None:
    """The family in `out`, if it was made from the same inputs and is whole.

    Its files are always checked; parity is measured again unless a passed one is recorded for this very host.
    """
    if not (out / MANIFEST).is_file():
        return None
    try:
        family = load_family(out)
    except FamilyError:
        return None
    if family.facts.provenance != provenance or set(family.profiles) != wanted:  # a pack has a part of them
        return None
    try:
        check_family(family)
    except FamilyError as error:
        if overwrite:
            return None
        raise DestinationError(f"{error}; remove it or pass --overwrite") from error
    verification = load_verification(family, read_host())
    if verification is None or not verification.passed:
        verification = verify_family(out, progress=report)
    return Exported(family, verification, up_to_date=True)


def _describe_provenance(plan: TextPlan, probes: Sequence[Probe]) -> Provenance:
    versions = {name: importlib.metadata.version(name) for name in VERSIONED if name != "matexport"}
    versions["matexport"] = matexport.__version__
    inputs = {
        "points": plan.job.points,
        "precisions": plan.job.precisions,
        "tolerances": plan.job.tolerances,
        "parent": replace(plan.parent, source=""),  # where it lay does not change what it gives
        "readout": plan.readout,
        "text": plan.text,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in runtime_files(plan).items()},
        "probes": probes,
        "code": hash_weights(plan.layout.backbone, "**/*.py") if plan.job.parent.trust_remote_code else {},
        "versions": versions,
    }
    encoded = json.dumps(msgspec.to_builtins(inputs), sort_keys=True, ensure_ascii=False).encode()
    return Provenance(hashlib.sha256(encoded).hexdigest(), versions)


def _weights_file(precision: Precision) -> str:
    return f"weights.{precision}.safetensors"


def _without_none(record: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in record.items() if value is not None}
