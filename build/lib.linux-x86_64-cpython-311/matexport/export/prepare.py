"""What a family is made from, before any weights are loaded, and whether that very family is there already."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from matexport.errors import DestinationError, FamilyError
from matexport.export.kinds.kind import Kind
from matexport.export.parents.plan import Plan
from matexport.family.integrity import check_family
from matexport.family.manifest import MANIFEST, Family, load_family, write_manifest
from matexport.family.measurements.sections import keep_unlisted
from matexport.host import read_host
from matexport.io.progress import Progress
from matexport.io.staging import stage_directory
from matexport.spec.facts import Provenance
from matexport.spec.profile import Profile
from matexport.verify.judge import verify_family
from matexport.verify.verdict import Verification, load_verification
from matexport.version import __version__

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

#: Inputs that decide nothing but what the manifest says, under the field of `FamilyFacts` that says it.
SAID_ALONE = frozenset({"trained"})

#: Inputs by the names that people know them by; the others are named as they are.
_IN_WORDS = {
    "files": "tokenizer",
    "readout": "read-out",
    "text": "limits, prompts or tasks",
    "array": "shape",
    "image": "preparation of images",
}


@dataclass(frozen=True)
class Exported:
    """What `export_family` did.

    Attributes:
        up_to_date: the family was there already.
        renewed: what its manifest says otherwise now; nothing else of it was made again.
        cut_anew: the family of other points that was there gave its trace and precisions; nothing was quantized.
    """

    family: Family
    verification: Verification
    up_to_date: bool
    renewed: tuple[str, ...] = ()
    cut_anew: bool = False


def find_up_to_date(
    out: Path, plan: Plan, provenance: Provenance, *, overwrite: bool, report: Progress
) -> Exported | None:
    """The family in `out`, if it was made from the same inputs and is whole. To be called with `out` locked.

    Its files are always checked; parity is measured again unless a passed one is recorded for this very host. Where
    only what its manifest says differs, that is written anew, and what was measured of it counts on.

    Raises:
        DestinationError: it was made from the same inputs, and a file of it is changed or missing.
    """
    family = load_present(out)
    if family is None:
        return None
    asked = {*family.profiles, *(Profile.parse(name) for name in family.facts.refused)}
    differing = list_differing(family.facts.provenance, provenance)
    if asked != set(plan.job.profiles) or not SAID_ALONE.issuperset(differing):  # a pack has a part of the profiles
        return None
    try:
        check_family(family)
    except FamilyError as error:
        if overwrite:
            return None
        raise DestinationError(f"{error}; remove it or pass --overwrite") from error
    if differing:
        family = _renew(family, plan, provenance)
    verification = load_verification(family, read_host())
    if verification is None or not verification.passed:
        verification = verify_family(out, progress=report)
    return Exported(family, verification, up_to_date=True, renewed=tuple(differing))


def load_present(out: Path) -> Family | None:
    """The family in `out`; None where there is none that can be read."""
    if not (out / MANIFEST).is_file():
        return None
    try:
        return load_family(out)
    except FamilyError:
        return None


def list_differing(present: Provenance, wanted: Provenance) -> list[str]:
    """Names of the inputs that two families do not share, sorted; ``inputs`` where one does not say its own."""
    if present.inputs_sha256 == wanted.inputs_sha256:
        return []
    if not present.parts:
        return ["inputs"]
    names = {*present.parts, *wanted.parts}
    return sorted(name for name in names if present.parts.get(name) != wanted.parts.get(name))


def _renew(family: Family, plan: Plan, provenance: Provenance) -> Family:
    """The same files under a manifest that says what the job says now, in place of the family in one step."""
    facts = msgspec.structs.replace(family.facts, provenance=provenance, trained=plan.job.trained)
    with stage_directory(family.path) as stage:
        for name in facts.files:
            shutil.copyfile(family.path / name, stage / name)
        write_manifest(stage, facts)
        check_family(load_family(stage))
        keep_unlisted(family.path, stage, same_files=True)
    return load_family(family.path)


def describe_differences(out: Path, plan: Plan, provenance: Provenance) -> str:
    """How the job differs from the one that a family in `out` was made from; empty where there is none."""
    family = load_present(out)
    if family is None:
        return ""
    said = []
    for name in list_differing(family.facts.provenance, provenance):
        if name == "points":
            said.append(f"points ({_compare_points(family, plan)})")
        elif name == "versions":
            said.append(f"versions ({_compare_versions(family.facts.provenance.versions, provenance.versions)})")
        else:
            said.append("configuration" if name == "files" and family.facts.text is None else _IN_WORDS.get(name, name))
    return f"it was made from other {', '.join(said)}" if said else "it has a part of the job's profiles"


def _compare_points(family: Family, plan: Plan) -> str:
    profiles = (*family.profiles, *(Profile.parse(name) for name in family.facts.refused))
    there, wanted = {profile.point for profile in profiles}, set(plan.job.points)
    parts = []
    for verb, points in (("new", wanted - there), ("left out", there - wanted)):
        if points:
            names = [point.name for point in sorted(points)]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            parts.append(f"{verb}: {', '.join(names[:3])}{more}")
    return "; ".join(parts) or "in another order"


def _compare_versions(there: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    names = [name for name in sorted({*there, *wanted}) if there.get(name) != wanted.get(name)]
    return ", ".join(f"{name} {there.get(name, 'absent')} -> {wanted.get(name, 'absent')}" for name in names)


def describe_provenance(kind: Kind, plan: Plan) -> Provenance:
    """A digest of all that a family is made from, and the versions of the packages that make it."""
    versions = {name: importlib.metadata.version(name) for name in VERSIONED if name != "matexport"}
    versions["matexport"] = __version__
    job = plan.job
    inputs = {
        "points": job.points,
        "precisions": job.precisions,
        "encodings": job.encodings,
        "calibration": {"texts": plan.calibration.items, "source": plan.calibration.source},
        "tolerances": job.tolerances,
        "target": job.target,
        "trained": job.trained,
        "parent": msgspec.structs.replace(plan.parent, source=""),  # where it lay does not change what it gives
        "readout": plan.readout,
        plan.inputs.noun: plan.shipped_inputs,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in kind.runtime_files(plan).items()},
        "probes": plan.probes,
        "versions": versions,
        **plan.made_from,
    }
    parts = {name: _hash(value)[:16] for name, value in inputs.items()}
    return Provenance(_hash(inputs), versions, parts)


def _hash(value: object) -> str:
    encoded = json.dumps(msgspec.to_builtins(value), sort_keys=True, ensure_ascii=False).encode()
    return hashlib.sha256(encoded).hexdigest()
