"""The pipeline: a job in, a verified family on disk out. The only module that knows the order of the stages.

    plan (no weights) -> load -> reference, held to the judge -> read-out -> trace -> weights
      -> per precision: quantize -> weights -> per profile: cut -> rewrite -> encode
      -> verify

Everything happens in a hidden directory beside the destination, which is renamed into place when every profile has
passed; so a directory that exists has passed, and a process that dies leaves the destination as it was.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.metadata
import json
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
import torch
from safetensors.numpy import save

from matexport.build.bounds import BASE_SECONDS, PARAMETERS_PER_SECOND, bound_seconds
from matexport.build.cut import cut_exit, cut_exits
from matexport.build.diagnose import check_readout, find_failing_stage
from matexport.build.encode import encode_output, find_ranges
from matexport.build.exits import add_exits, name_layer
from matexport.build.judge import SIDE_BY_SIDE_BYTES, Judge, Verdict, ask_judge, hold_to_judge, share_threads
from matexport.build.nested import MIN_EXTERNAL_BYTES, measure_prefix, write_nested_weights
from matexport.build.parents.asking import EDGES, check_tokens
from matexport.build.parents.loading import use_plain_experts
from matexport.build.parents.text import (
    TextParent,
    TextPlan,
    find_changed_texts,
    load_parent,
    plan_parent,
    runtime_files,
)
from matexport.build.preflight import Located
from matexport.build.quantize.precision import Calibration, Quantizer
from matexport.build.quantize.runtime import check_runtime
from matexport.build.readout import ExitsModule, ExitsWithStates
from matexport.build.reference import (
    Reference,
    Vectors,
    count_tokens,
    describe_modules,
    prepare_probes,
    record_reference,
)
from matexport.build.rewrite import narrow_to_first_token
from matexport.build.serialize import write_graph
from matexport.build.sources import find_adapter_base, hash_settings
from matexport.build.trace import Traced, trace_exits
from matexport.build.vocabulary import SCRIPT_PREFIX, prune_embeddings
from matexport.errors import DestinationError, FamilyError, ParityError, RequestError
from matexport.family.integrity import check_family, describe_files, refuse_occupied
from matexport.family.manifest import (
    MANIFEST,
    PROBES,
    RANGES,
    REFERENCE,
    SCHEMA,
    TOKENIZER,
    Family,
    load_family,
    write_manifest,
)
from matexport.family.proof import load_references
from matexport.family.token_rows import pack_token_rows
from matexport.family.weights_file import NestedHeader
from matexport.host import read_host
from matexport.io.progress import Progress
from matexport.io.staging import lock_destination, stage_directory
from matexport.io.texts import (
    MAX_CALIBRATION_TEXTS,
    MIN_CALIBRATION_TEXTS,
    load_calibration,
    load_probes,
    load_shipped_calibration,
    read_texts,
)
from matexport.runtime.inputs.text import TextTokenizer, find_wrapping, load_tokenizer, tokenize_probes
from matexport.spec.facts import OUTPUT_NAME, FamilyFacts, PrecisionFacts, ProfileFacts, Provenance, VocabularyFacts
from matexport.spec.job import ExportJob
from matexport.spec.profile import Encoding, Point, Precision, Probe, Profile
from matexport.spec.tolerance import FLOORS, RANGES_WAY, TOGETHER_WAY
from matexport.verify.judge import verify_family
from matexport.verify.verdict import ProfileVerdict, Verification, load_verification, record_measurement
from matexport.version import __version__

#: Texts of a vocabulary's corpus that become probes.
CORPUS_PROBES = 16

#: Packages whose versions decide the bytes of a family.
VERSIONED = (
    "matexport",
    "torch",
    "transformers",
    "sentence-transformers",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "tokenizers",
)


@dataclass(frozen=True)
class Exported:
    """What `export_family` did: the family, how it verified, and whether it was there already."""

    family: Family
    verification: Verification
    up_to_date: bool


def run_export(
    job: ExportJob,
    located: Located,
    judge: Judge,
    out: Path,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """`matexport.build.export_family`, once the parent's files were looked at and its judge was started."""
    report = progress or (lambda _stage, _done, _total: None)
    report("plan", 0, 1)
    plan = plan_parent(job, located)
    for precision in job.precisions:
        if precision is not Precision.FP32:
            check_runtime(precision)
    probes = prepare_probes(plan, [*load_probes(job.probes), *_sample_corpus(job)], shipped=job.probes is None)
    probes, changed = _leave_out_changed(plan, probes)
    calibration = _choose_calibration(plan, probes)
    provenance = _describe_provenance(plan, probes, calibration)
    report("plan", 1, 1)
    with lock_destination(out):
        present = _find_up_to_date(out, provenance, set(job.profiles), overwrite, report)
        if present:
            return present
        refuse_occupied(out, overwrite=overwrite)
        with stage_directory(out) as stage:
            verification = _build(plan, probes, changed, calibration, provenance, judge, stage, report)
    return Exported(load_family(out), verification, up_to_date=False)


def _build(
    plan: TextPlan,
    probes: Sequence[Probe],
    changed: tuple[str, ...],
    calibration: CalibrationTexts,
    provenance: Provenance,
    judge: Judge,
    stage: Path,
    report: Progress,
) -> Verification:
    """Write the whole family into `stage` and verify it there."""
    for name, content in runtime_files(plan).items():
        (stage / name).write_bytes(content)
    lines = [json.dumps(_without_none(msgspec.to_builtins(probe)), ensure_ascii=False) for probe in probes]
    (stage / PROBES).write_text("\n".join(lines) + "\n", encoding="utf-8")

    parent, reference, tokens, verdict = read_parent(plan, probes, judge, report)
    vectors = {point.name: vectors for point, vectors in reference.points.items()}
    (stage / REFERENCE).write_bytes(save(vectors | pack_token_rows(tokens)))

    if plan.vocabulary:  # after the reference, which is the whole parent's
        prune_embeddings(parent.backbone, plan.vocabulary.kept)
    traced, header = trace_and_write(parent, probes, reference.points, stage, report)
    unread = parent.opened.unread
    _release_weights(parent)
    del parent
    gc.collect()
    sources = make_precisions(traced, header, plan, calibration, stage, report)
    profiles = {
        name: facts for source in sources.values() for name, facts in cut_profiles(source, plan, stage, report).items()
    }
    exits = write_exits(sources, profiles, stage)
    if Precision.FP32 not in plan.job.precisions:
        (stage / _weights_file(Precision.FP32)).unlink()

    tolerances = {precision: plan.job.tolerances.get(precision, FLOORS[precision]) for precision in plan.job.precisions}
    facts = FamilyFacts(
        schema=SCHEMA,
        parent=msgspec.structs.replace(plan.parent, judge=verdict.judge, unread=unread),
        readout=plan.readout,
        text=plan.text,
        trace=traced.facts,
        tolerances=tolerances,
        profiles=profiles,
        files=describe_files(stage),
        provenance=provenance,
        precisions={precision: source.facts for precision, source in sources.items()},
        instruction_sets=read_host().instruction_sets,
        vocabulary=_describe_vocabulary(plan, changed),
        exits=exits,
        trained=plan.job.trained,
    )
    write_manifest(stage, facts)
    verification = verify_family(stage, progress=report)
    verification = _refuse_failures(verification, sources, plan.job, stage)
    record_measurement(load_family(stage), verification)
    return verification


def read_parent(
    plan: TextPlan, probes: Sequence[Probe], judge: Judge, report: Progress
) -> tuple[TextParent, Reference, list[list[int]], Verdict]:
    """The loaded parent, its vectors, which are what the parent's own library gives, and the token ids they are of.

    The ids are those of the family's vocabulary.

    Raises:
        ParentError: the parent cannot be loaded, or what was read of it is not what its users get.
    """
    report("load", 0, 1)
    whole = _make_whole_tokenizer(plan)
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
        if _measure_weights(plan) > SIDE_BY_SIDE_BYTES:
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


def _make_whole_tokenizer(plan: TextPlan) -> TextTokenizer:
    """The family's tokenizer, before its vocabulary was pruned."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / TOKENIZER).write_text(plan.asking.tokenizer_json, encoding="utf-8")
        return load_tokenizer(Path(folder), plan.whole_text)


def _measure_weights(plan: TextPlan) -> int:
    base = find_adapter_base(plan.layout) or plan.layout.root
    files = (base / name[5:] if name.startswith("base/") else plan.layout.root / name for name in plan.parent.weights)
    return sum(path.stat().st_size for path in files)


@dataclass(frozen=True)
class Source:
    """One precision of the traced graph, its weights written: what profiles are cut from.

    Attributes:
        ranges: point name -> (2, dim), for outputs that are encoded as int8.
    """

    precision: Precision
    model: ir.Model
    header: NestedHeader
    facts: PrecisionFacts
    ranges: Mapping[str, Vectors]


def trace_and_write(
    parent: TextParent, probes: Sequence[Probe], reference: Mapping[Point, Vectors], stage: Path, report: Progress
) -> tuple[Traced, NestedHeader]:
    """Read-out, trace and weights: from the loaded parent to the graph of all exits and its weights file."""
    plan = parent.plan
    depths = sorted({point.layers for point in plan.job.points})
    module = ExitsModule(parent, depths).eval()
    check_readout(
        module,
        reference,
        depths=depths,
        rows=tokenize_probes(load_tokenizer(stage, plan.text), probes),
        text=plan.text,
        normalize=plan.readout.normalize,
        tolerance=FLOORS[Precision.FP32],
    )
    report("trace", 0, 1)
    _use_plain_attention(parent)
    size = sum(parameter.numel() for parameter in module.parameters())
    with torch.no_grad(), bound_seconds(BASE_SECONDS + size / PARAMETERS_PER_SECOND, "tracing the parent"):
        traced = trace_exits(
            ExitsWithStates(module),
            inputs=plan.text.inputs,
            outputs=[name_layer(depth) for depth in depths],
            states=plan.parent.blocks + 1,
            vocabulary=len(plan.vocabulary.kept) if plan.vocabulary else plan.tokens,
            own_classes=plan.layout.own_classes,
        )
    add_exits(traced.model, plan.job.points, normalize=plan.readout.normalize)
    report("trace", 1, 1)
    weights = stage / _weights_file(Precision.FP32)
    header = write_nested_weights(traced.model, plan.job.points, weights, report)
    return traced, header


def make_precisions(
    traced: Traced, header: NestedHeader, plan: TextPlan, texts: CalibrationTexts, stage: Path, report: Progress
) -> dict[Precision, Source]:
    """Each precision of the job, made once from the traced graph, with its weights written."""
    job = plan.job
    ranges: dict[str, Vectors] = {}
    sources: dict[Precision, Source] = {}
    tokenizer = load_tokenizer(stage, plan.text)
    calibration = Calibration(tokenize_probes(tokenizer, texts.texts), plan.text, texts.source)
    with tempfile.TemporaryDirectory(dir=stage) as temporary:
        scratch = Path(temporary)
        quantizer = Quantizer(traced.model, traced.states, job.points, calibration, stage, scratch, report)
        if Encoding.INT8 in job.encodings:
            ranges = {point.name: _find_ranges(point, vectors) for point, vectors in quantizer.run_points().items()}
            (stage / RANGES).write_bytes(save(ranges))
        for precision in job.precisions:
            model, facts = quantizer.make(precision)
            if precision is not Precision.FP32:
                weights = stage / _weights_file(precision)
                sources[precision] = Source(
                    precision, model, write_nested_weights(model, job.points, weights, report), facts, ranges
                )
            else:
                sources[precision] = Source(precision, traced.model, header, facts, ranges)
    return sources


def _find_ranges(point: Point, vectors: Vectors) -> Vectors:
    ranges = find_ranges(vectors)
    still = np.flatnonzero(ranges[0] == ranges[1])
    if len(still):
        raise RequestError(
            f"the encoding int8 was asked; coordinate {still[0]} of {point.name} has one value for all of the "
            f"{len(vectors)} calibration texts, and {len(still) - 1} others have: such a coordinate has no steps. "
            "Give other texts in [calibration], or ask for the encodings float32 or ubinary"
        )
    return ranges


def cut_profiles(source: Source, plan: TextPlan, stage: Path, report: Progress) -> dict[str, ProfileFacts]:
    """Cut, rewrite, encode and write the graph of every profile of one precision."""
    profiles = {}
    wanted = [profile for profile in sorted(plan.job.profiles) if profile.precision is source.precision]
    depth, deep = 0, source.model
    for done, profile in enumerate(wanted):
        report("cut", done, len(wanted))
        if profile.point.layers != depth:  # once per depth: copying the whole graph is most of a cut
            depth = profile.point.layers
            deep = cut_exits(source.model, _exits_at(depth, plan.job))
        part = cut_exit(deep, profile.point.name, name=OUTPUT_NAME)
        narrowed = narrow_to_first_token(part)
        encode_output(part, profile.encoding, source.ranges.get(profile.point.name))
        prefix = measure_prefix(part, source.header)
        write_graph(part, stage / profile.graph_file)
        profiles[profile.name] = ProfileFacts(
            layers=profile.point.layers,
            dim=profile.point.dim,
            precision=profile.precision,
            graph=profile.graph_file,
            weights=_weights_file(profile.precision),
            weights_prefix_bytes=prefix,
            narrowed_nodes=narrowed,
            encoding=profile.encoding,
        )
    report("cut", len(wanted), len(wanted))
    return profiles


def write_exits(
    sources: Mapping[Precision, Source], profiles: Mapping[str, ProfileFacts], stage: Path
) -> dict[Precision, str]:
    """One more graph per precision, with the exits of all its profiles: what evaluates them in one pass."""
    exits = {}
    for precision, source in sources.items():
        mine = [facts for facts in profiles.values() if facts.precision is precision]
        points = sorted({Point(facts.layers, facts.dim) for facts in mine})
        if points:
            exits[precision] = f"exits.{precision}.onnx"
            write_graph(cut_exits(source.model, [point.name for point in points]), stage / exits[precision])
    return exits


def _exits_at(depth: int, job: ExportJob) -> list[str]:
    return [point.name for point in job.points if point.layers == depth]


def _sample_corpus(job: ExportJob) -> list[Probe]:
    """Some texts of the corpus that the vocabulary is kept for: parity is to be shown on its words, too."""
    if job.vocabulary is None or job.vocabulary.startswith(SCRIPT_PREFIX) or job.probes is not None:
        return []
    return [Probe(text) for text in read_texts(job.base / job.vocabulary, CORPUS_PROBES, "the corpus")]


def _leave_out_changed(plan: TextPlan, probes: Sequence[Probe]) -> tuple[tuple[Probe, ...], tuple[str, ...]]:
    """The probes that a pruned vocabulary leaves as they were, and the texts of the others."""
    texts = [
        find_wrapping(plan.text, None if probe.task else probe.prompt or "", probe.task).around(probe.text)
        for probe in probes
    ]
    changed = set(find_changed_texts(plan, texts))
    kept = tuple(probe for probe, text in zip(probes, texts, strict=True) if text not in changed)
    if len(kept) < 2:
        raise RequestError(
            f"vocabulary = {plan.job.vocabulary!r} changes the tokens of {len(changed)} of {len(probes)} probes, and "
            "parity needs at least 2 that are left: give probes in the kept vocabulary in [probes]"
        )
    return kept, tuple(text for text in dict.fromkeys(texts) if text in changed)


def _describe_vocabulary(plan: TextPlan, changed: tuple[str, ...]) -> VocabularyFacts | None:
    vocabulary = plan.vocabulary
    if vocabulary is None:
        return None
    return VocabularyFacts(vocabulary.kept_by, len(vocabulary.kept), vocabulary.parent_tokens, changed)


@dataclass(frozen=True)
class CalibrationTexts:
    """The texts that weights are rounded and ranges are measured on, and what they are, for the manifest."""

    texts: tuple[Probe, ...]
    source: str


def _choose_calibration(plan: TextPlan, probes: Sequence[Probe]) -> CalibrationTexts:
    """The job's calibration texts, or its vocabulary's corpus, or the shipped ones; none of them is a probe.

    A text that a precision was fitted on says little about how near it is to the parent. Texts without tokens, and
    those that a pruned vocabulary changes, are left out as well.

    Raises:
        RequestError: fewer than 64 texts are left, and something is to be measured on them.
    """
    job = plan.job
    texts, source = load_shipped_calibration(), "shipped"
    if job.calibration:
        texts, source = load_calibration(job.calibration), job.calibration.name
    elif job.vocabulary and not job.vocabulary.startswith(SCRIPT_PREFIX):
        corpus = read_texts(job.base / job.vocabulary, MAX_CALIBRATION_TEXTS, "the corpus")
        if len(corpus) >= MIN_CALIBRATION_TEXTS + CORPUS_PROBES:
            texts, source = corpus, Path(job.vocabulary).name
    held = {probe.text for probe in probes}
    fresh = [text for text in texts if text not in held]
    seen = [text for text in fresh if count_tokens(plan, Probe(text))]
    changed = set(find_changed_texts(plan, seen))
    usable = tuple(Probe(text) for text in seen if text not in changed)
    left_out = ", ".join(
        f"{count} {why}"
        for count, why in (
            (len(texts) - len(fresh), "are probes"),
            (len(fresh) - len(seen), "have no tokens"),
            (len(changed), "lose tokens to the vocabulary"),
        )
        if count
    )
    measured = any(precision is not Precision.FP32 for precision in job.precisions) or Encoding.INT8 in job.encodings
    if measured and len(usable) < MIN_CALIBRATION_TEXTS:
        raise RequestError(
            f"precisions other than fp32 are measured on at least {MIN_CALIBRATION_TEXTS} different texts; of the "
            f"{len(texts)} calibration texts ({source}), {left_out or 'none is left out'}, and {len(usable)} are left: "
            "give more of the kind that will be embedded in [calibration]"
        )
    return CalibrationTexts(usable, f"{len(usable)} texts: {source}" + (f" ({left_out})" if left_out else ""))


def _refuse_failures(
    verification: Verification, sources: Mapping[Precision, Source], job: ExportJob, stage: Path
) -> Verification:
    """Take profiles that are off their floor out of the staged family; raise where that is no matter of precision.

    fp32 is the parent itself: when that is off, nothing that was built from it is worth keeping.
    """
    if verification.token_ids and (difference := verification.token_ids.find_difference()):
        raise ParityError(f"tokenizer: {difference}; nothing was written", "tokenizer")
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
        verification, verdicts=tuple(verdict for verdict in verification.verdicts if verdict.profile in kept)
    )


def _is_parent(profile: Profile) -> bool:
    return profile.precision is Precision.FP32 and profile.encoding is Encoding.FLOAT32


def _explain_failure(
    verdict: ProfileVerdict, family: Family, sources: Mapping[Precision, Source], job: ExportJob
) -> tuple[str, str]:
    """The stage that is to blame, and what is wrong with which probe."""
    profile = Profile.parse(verdict.profile)
    found = verdict.find_breach()
    assert found is not None
    check, breach = found
    text = load_references(family)[0][breach.probe].text
    reason = f"{verdict.profile}: {breach.reason} ({check}), worst on probe {breach.probe} ({text[:40]!r})"
    if check == RANGES_WAY:
        reason += (
            "; the ranges measured on the calibration texts are too narrow for other texts: give more of them, and "
            "more different ones"
        )
    if check == TOGETHER_WAY:
        return "cut", reason
    if profile.precision is not Precision.FP32:
        return "quantize", reason
    source, exit_name = sources[profile.precision], profile.point.name

    def cut() -> ir.Model:
        deep = cut_exits(source.model, _exits_at(profile.point.layers, job))
        return cut_exit(deep, exit_name, name=OUTPUT_NAME)

    def rewrite() -> ir.Model:
        part = cut()
        narrow_to_first_token(part)
        return part

    suspects = [("trace", source.model.clone, exit_name), ("cut", cut, OUTPUT_NAME), ("rewrite", rewrite, OUTPUT_NAME)]
    floor = family.facts.tolerances[profile.precision]  # the verdict's own is for encoded numbers
    return find_failing_stage(family, profile, suspects, tolerance=floor) or "encode", reason


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
    asked = {*family.profiles, *(Profile.parse(name) for name in family.facts.refused)}
    if family.facts.provenance != provenance or asked != wanted:  # a pack has a part of them
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


def _describe_provenance(plan: TextPlan, probes: Sequence[Probe], calibration: CalibrationTexts) -> Provenance:
    versions = {name: importlib.metadata.version(name) for name in VERSIONED if name != "matexport"}
    versions["matexport"] = __version__
    inputs = {
        "points": plan.job.points,
        "precisions": plan.job.precisions,
        "encodings": plan.job.encodings,
        "calibration": calibration,
        "vocabulary": plan.vocabulary.kept if plan.vocabulary else None,
        "tolerances": plan.job.tolerances,
        "trained": plan.job.trained,
        "parent": msgspec.structs.replace(plan.parent, source=""),  # where it lay does not change what it gives
        "readout": plan.readout,
        "text": plan.text,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in runtime_files(plan).items()},
        "probes": probes,
        # Whatever the parent's own library may read in its folder, whether or not this version knows what it does.
        "settings": hash_settings(plan.layout),
        "trust": plan.job.parent.trust_remote_code,
        "route": plan.job.parent.route,
        "versions": versions,
    }
    encoded = json.dumps(msgspec.to_builtins(inputs), sort_keys=True, ensure_ascii=False).encode()
    return Provenance(hashlib.sha256(encoded).hexdigest(), versions)


def _weights_file(precision: Precision) -> str:
    return f"weights.{precision}.safetensors"


def _without_none(record: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in record.items() if value is not None}
