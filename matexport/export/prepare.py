"""What is settled before any weights are loaded: probes, calibration texts, and what the family is made from.

Also whether that very family is there already.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from matexport.errors import DestinationError, FamilyError, RequestError
from matexport.export.parents.folder.source import find_adapter_base, hash_settings
from matexport.export.parents.reference import count_tokens, prepare_probes
from matexport.export.parents.text import TextPlan, find_changed_texts, runtime_files
from matexport.export.parents.vocabulary.script import SCRIPT_PREFIX
from matexport.family.integrity import check_family
from matexport.family.manifest import MANIFEST, TOKENIZER, Family, load_family
from matexport.host import read_host
from matexport.io.progress import Progress
from matexport.io.texts import (
    MAX_CALIBRATION_TEXTS,
    MIN_CALIBRATION_TEXTS,
    load_calibration,
    load_probes,
    load_shipped_calibration,
    read_texts,
)
from matexport.runtime.inputs.text import TextTokenizer, find_wrapping, load_tokenizer
from matexport.spec.facts import Provenance, VocabularyFacts
from matexport.spec.job import ExportJob
from matexport.spec.profile import Encoding, Precision, Probe, Profile
from matexport.verify.judge import verify_family
from matexport.verify.verdict import Verification, load_verification
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


@dataclass(frozen=True)
class CalibrationTexts:
    """The texts that weights are rounded and ranges are measured on, and what they are, for the manifest."""

    texts: tuple[Probe, ...]
    source: str


@dataclass(frozen=True)
class Settled:
    """All that a family is made from, but for the weights.

    Attributes:
        probes: the texts that every profile is compared with the parent on.
        changed: texts of the job's probes that a pruned vocabulary changes; they are no probes any more.
    """

    plan: TextPlan
    probes: tuple[Probe, ...]
    changed: tuple[str, ...]
    calibration: CalibrationTexts
    provenance: Provenance


def settle_inputs(plan: TextPlan) -> Settled:
    """Choose the probes and the calibration texts of a planned parent, and say what its family is made from.

    Raises:
        RequestError: a probe or a calibration text cannot be used, or too few are left.
    """
    job = plan.job
    probes = prepare_probes(plan, [*load_probes(job.probes), *sample_corpus(job)], shipped=job.probes is None)
    probes, changed = leave_out_changed(plan, probes)
    calibration = choose_calibration(plan, probes)
    return Settled(plan, probes, changed, calibration, describe_provenance(plan, probes, calibration))


def make_whole_tokenizer(plan: TextPlan) -> TextTokenizer:
    """The family's tokenizer as it is before its vocabulary is pruned."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / TOKENIZER).write_text(plan.asking.tokenizer_json, encoding="utf-8")
        return load_tokenizer(Path(folder), plan.whole_text)


def measure_weights(plan: TextPlan) -> int:
    """Bytes of the files that a parent's weights are read from."""
    base = find_adapter_base(plan.layout) or plan.layout.root
    files = (base / name[5:] if name.startswith("base/") else plan.layout.root / name for name in plan.parent.weights)
    return sum(path.stat().st_size for path in files)


def sample_corpus(job: ExportJob) -> list[Probe]:
    """Some texts of the corpus that the vocabulary is kept for: parity is to be shown on its words, too."""
    if job.vocabulary is None or job.vocabulary.startswith(SCRIPT_PREFIX) or job.probes is not None:
        return []
    return [Probe(text) for text in read_texts(job.base / job.vocabulary, CORPUS_PROBES, "the corpus")]


def leave_out_changed(plan: TextPlan, probes: Sequence[Probe]) -> tuple[tuple[Probe, ...], tuple[str, ...]]:
    """The probes that a pruned vocabulary leaves as they were, and the texts of the others.

    Raises:
        RequestError: fewer than 2 are left.
    """
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


def describe_vocabulary(plan: TextPlan, changed: tuple[str, ...]) -> VocabularyFacts | None:
    """What the manifest says of a pruned vocabulary; None where it is whole.

    Args:
        changed: the job's texts that are tokenized otherwise since.
    """
    vocabulary = plan.vocabulary
    if vocabulary is None:
        return None
    return VocabularyFacts(vocabulary.kept_by, len(vocabulary.kept), vocabulary.parent_tokens, changed)


def choose_calibration(plan: TextPlan, probes: Sequence[Probe]) -> CalibrationTexts:
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


def find_up_to_date(
    out: Path, provenance: Provenance, wanted: set[Profile], overwrite: bool, report: Progress
) -> Exported | None:
    """The family in `out`, if it was made from the same inputs and is whole.

    Its files are always checked; parity is measured again unless a passed one is recorded for this very host.

    Args:
        wanted: the job's profiles, all of which it has to have.

    Raises:
        DestinationError: it was made from the same inputs, and a file of it is changed or missing.
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


def describe_provenance(plan: TextPlan, probes: Sequence[Probe], calibration: CalibrationTexts) -> Provenance:
    """A digest of all that a family is made from, and the versions of the packages that make it."""
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
