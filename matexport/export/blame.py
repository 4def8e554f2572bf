"""Which stage of an export is to blame when a sub-model does not give the parent's vectors.

The read-out is checked before anything is traced: it costs one forward in torch. The stages after it are judged only
when a profile has failed: what each of them gave is run on the probes, and the first that is off is named. Which stages
there are, and in which order, is the caller's to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from matexport.errors import ParityError
from matexport.export.graph.cut import cut_exit, cut_exits
from matexport.export.graph.edit import write_graph
from matexport.export.graph.narrow import narrow_to_first_token
from matexport.export.parents.plan import Plan
from matexport.export.profiles import PrecisionGraph, exits_at, write_exits
from matexport.export.trace.exits import find_read
from matexport.family.integrity import check_files, describe_files
from matexport.family.manifest import Family, load_family, write_manifest
from matexport.family.proof import load_probes, load_references, open_proof
from matexport.family.token_rows import quote_probe
from matexport.runtime.embedder import Vectors
from matexport.runtime.engines.onnxruntime import open_session
from matexport.runtime.inputs.modality import Inputs, Row, list_ways, open_inputs
from matexport.spec.job import ExportJob
from matexport.spec.parity import RANGES_CHECK, TOGETHER_WAY
from matexport.spec.profile import Encoding, Point, Precision, Profile
from matexport.spec.tolerance import Tolerance
from matexport.verify.judge import run_all_ways
from matexport.verify.parity import compare_vectors
from matexport.verify.verdict import ProfileVerdict, Verification

#: Probes that the read-out is checked on, padded into one batch.
READOUT_PROBES = 4

#: A stage's name, what gives its graph, and the graph's output that holds the profile's vectors.
Suspect = tuple[str, Callable[[], ir.Model], str]


def check_readout(
    module: nn.Module,
    reference: Mapping[Point, Vectors],
    *,
    rows: Sequence[Row],
    inputs: Inputs,
    plan: Plan,
    tolerance: Tolerance,
) -> None:
    """Compare the module that will be traced, in torch and on a padded batch, with the reference.

    Args:
        module: gives one (B, W) float32 tensor per read, in their order, and may give more behind them.
        reference: the parent's vectors, (n, numbers of an item) float32 for each point.
        rows: the probes, prepared, in the reference's order; the first few are used.
        inputs: how rows become the module's arguments.
        plan: where the module is read, and whether its vectors are scaled to length 1, as the reference is.
        tolerance: how far off they may be.

    Raises:
        ParityError: naming the point that is off.
    """
    chosen, reads = (
        list(rows[:READOUT_PROBES]),
        sorted({find_read(point, own_dims=plan.own_dims) for point in reference}),
    )
    feeds = inputs.feed(chosen)
    with torch.no_grad():
        outputs = module(*(torch.from_numpy(feeds[name]) for name in inputs.facts.inputs))
    full = {read: output.numpy() for read, output in zip(reads, outputs[: len(reads)], strict=True)}
    for point, expected in reference.items():
        vectors = full[find_read(point, own_dims=plan.own_dims)]
        if not plan.readout.classes:
            vectors = vectors[..., : point.dim]
        if plan.readout.normalize:
            vectors = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True).clip(1e-12)
        parity = compare_vectors(inputs.gather(chosen, vectors), expected[: len(chosen)])
        if breach := parity.find_breach(tolerance):
            raise ParityError(f"read-out: in torch, {point.name} is not the parent's: {breach}", "read-out")


def find_failing_stage(
    family: Family, profile: Profile, suspects: Iterable[Suspect], *, tolerance: Tolerance
) -> str | None:
    """The first suspect whose graph does not give a profile's vectors; None when all of them do.

    Args:
        family: the failed family, in its staging directory, where suspects find their weights.
        suspects: in the order of the pipeline.
    """
    proof = open_proof(family)
    probes, references = load_references(proof)
    inputs = open_inputs(check_files(family, family.input_files))
    rows = inputs.compare_proof(proof, probes, [inputs.prepare_probe(probe) for probe in probes]).rows
    for stage, make_model, output in suspects:
        run = _open_runner(make_model(), output, family, inputs)
        ways = run_all_ways(rows, run, list_ways(inputs.facts))
        reference = references[profile.point.name]
        if any(compare_vectors(vectors, reference).find_breach(tolerance) for _, vectors in ways):
            return stage
    return None


def _open_runner(
    model: ir.Model, output: str, family: Family, inputs: Inputs
) -> Callable[[Sequence[Row], str], Vectors]:
    path = family.path / "suspect.onnx"
    write_graph(model, path)
    try:
        session = open_session(path)
    finally:
        path.unlink()  # what is left here would be shipped

    def run(chosen: Sequence[Row], way: str) -> Vectors:
        vectors: Vectors = inputs.gather(chosen, session.run([output], inputs.feed(chosen, way))[0])
        return vectors.reshape(len(chosen), -1)

    return run


def refuse_failures(
    verification: Verification, sources: Mapping[Precision, PrecisionGraph], job: ExportJob, stage: Path
) -> Verification:
    """Take profiles that are off their floor out of the staged family.

    fp32 is the parent itself: when that is off, nothing that was built from it is worth keeping.

    Args:
        verification: of the family in `stage`.
        sources: what the profiles were cut from, by precision.

    Returns:
        the verification of the profiles that stay.

    Raises:
        ParityError: an fp32 profile is off, or all profiles are, or token ids or pixels are; the stage to blame is
            named.
    """
    if verification.prepared and (difference := verification.prepared.find_difference()):
        blamed = "tokenizer" if verification.token_ids else "preprocessing"
        raise ParityError(f"{blamed}: {difference}; nothing was written", blamed)
    failed = [verdict for verdict in verification.verdicts if not verdict.passed]
    if not failed:
        return verification
    family = load_family(stage)
    reasons = {verdict.profile: _explain_failure(verdict, family, sources, job) for verdict in failed}
    fatal = [verdict.profile for verdict in failed if _is_parent(Profile.parse(verdict.profile))]
    if fatal or len(failed) == len(verification.verdicts):
        blamed, reason = reasons[fatal[0] if fatal else failed[0].profile]
        raise ParityError(
            f"{blamed}: {len(failed)} of {len(verification.verdicts)} profiles are off their floor; {reason}; "
            "nothing was written",
            blamed,
        )
    kept = {name: facts for name, facts in family.facts.profiles.items() if name not in reasons}
    used = {name for facts in kept.values() for name in (facts.graph, facts.weights)}
    for facts in family.facts.profiles.values():
        for name in {facts.graph, facts.weights, *family.facts.exits.values()} - used:
            (stage / name).unlink(missing_ok=True)
    exits = write_exits(sources, kept, stage)
    refused = {name: reason for name, (_, reason) in reasons.items()}
    write_manifest(
        stage,
        msgspec.structs.replace(family.facts, profiles=kept, refused=refused, exits=exits, files=describe_files(stage)),
    )
    return replace(
        verification,
        verdicts=tuple(verdict for verdict in verification.verdicts if verdict.profile in kept),
        digest=load_family(stage).digest,  # the same files, but for those that were taken out
    )


def _is_parent(profile: Profile) -> bool:
    return profile.precision is Precision.FP32 and profile.encoding is Encoding.FLOAT32


def _explain_failure(
    verdict: ProfileVerdict, family: Family, sources: Mapping[Precision, PrecisionGraph], job: ExportJob
) -> tuple[str, str]:
    """The stage that is to blame, and what is wrong with which probe."""
    profile = Profile.parse(verdict.profile)
    found = verdict.find_breach()
    assert found is not None
    check, breach = found
    probes, output = load_probes(open_proof(family)), family.facts.output
    reason = f"{verdict.profile}: {breach.reason} ({check}), worst on {quote_probe(probes, breach.probe)}"
    if check == RANGES_CHECK:
        noun = family.facts.inputs.noun
        reason += (
            f"; the ranges measured on the calibration {noun}s are too narrow for other {noun}s: give more of them, "
            "and more different ones"
        )
    if check == TOGETHER_WAY:
        return "cut", reason
    if profile.precision is not Precision.FP32:
        return "quantize", reason
    source, exit_name = sources[profile.precision], profile.point.name

    def cut() -> ir.Model:
        deep = cut_exits(source.model, exits_at(profile.point.layers, job))
        return cut_exit(deep, exit_name, name=output)

    def narrow() -> ir.Model:
        part = cut()
        narrow_to_first_token(part)
        return part

    def fit() -> ir.Model:
        part = narrow()
        source.fit(part)
        return part

    suspects = [
        ("trace", source.model.clone, exit_name),
        ("cut", cut, output),
        ("narrow", narrow, output),
        ("shape", fit, output),
    ]
    floor = family.facts.tolerances[profile.precision]  # the verdict's own is for encoded numbers
    return find_failing_stage(family, profile, suspects, tolerance=floor) or "encode", reason
