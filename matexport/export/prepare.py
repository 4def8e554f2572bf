"""What a family is made from, before any weights are loaded, and whether that very family is there already."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path

import msgspec

from matexport.errors import DestinationError, FamilyError
from matexport.export.kinds.kind import Kind
from matexport.export.parents.plan import Plan
from matexport.family.integrity import check_family
from matexport.family.manifest import MANIFEST, Family, load_family
from matexport.host import read_host
from matexport.io.progress import Progress
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


@dataclass(frozen=True)
class Exported:
    """What `export_family` did: the family, how it verified, and whether it was there already."""

    family: Family
    verification: Verification
    up_to_date: bool


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
        "trained": job.trained,
        "parent": msgspec.structs.replace(plan.parent, source=""),  # where it lay does not change what it gives
        "readout": plan.readout,
        plan.inputs.noun: plan.inputs,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in kind.runtime_files(plan).items()},
        "probes": plan.probes,
        "versions": versions,
        **plan.made_from,
    }
    encoded = json.dumps(msgspec.to_builtins(inputs), sort_keys=True, ensure_ascii=False).encode()
    return Provenance(hashlib.sha256(encoded).hexdigest(), versions)
