"""What of a family goes along into a pack: the proof of its point, and what was measured of its profiles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec.structs import replace
from safetensors.numpy import save

from matexport.family.integrity import Contents
from matexport.family.manifest import RANGES, REFERENCE, Family
from matexport.family.measurements.records import (
    HostMeasurements,
    Measurement,
    record_bench,
    record_parity,
    record_quality,
)
from matexport.family.pixel_rows import load_pixel_rows, pack_pixel_rows
from matexport.family.proof import load_ranges, load_references
from matexport.family.token_rows import load_token_rows, pack_token_rows
from matexport.spec.parity import TOGETHER_WAY
from matexport.spec.profile import Encoding, Profile

if TYPE_CHECKING:
    from numpy.typing import NDArray

T = TypeVar("T")


def write_proof(stage: Path, proof: Contents, names: Sequence[str]) -> None:
    """The probes, and the parent's vectors of the one point of these profiles."""
    family = proof.family
    point = Profile.parse(names[0]).point.name
    probes, references = load_references(proof)
    (stage / REFERENCE).write_bytes(save({point: references[point]} | _keep_rows(proof, len(probes))))
    (stage / family.probes_file).write_bytes(proof.read(family.probes_file))
    if any(family.facts.profiles[name].encoding is Encoding.INT8 for name in names):
        (stage / RANGES).write_bytes(save({point: load_ranges(proof)[point]}))


def _keep_rows(proof: Contents, probes: int) -> dict[str, NDArray[Any]]:
    """What the parent's own preprocessing made of the probes, as the family stores it."""
    rows, pixels = load_token_rows(proof, probes), load_pixel_rows(proof, probes)
    if rows is not None:
        return {**pack_token_rows(rows)}
    return {} if pixels is None else pack_pixel_rows(pixels)


def record_measured(pack: Family, measured: HostMeasurements) -> None:
    """Record in a pack what was measured of its profiles on one host, as far as it holds of them on their own."""
    names = pack.facts.profiles
    for bench in measured.benches.values():
        if profiles := _choose(bench.profiles, names):
            record_bench(pack, replace(bench, profiles=profiles))
    tasks = {
        name: replace(task, profiles=scores, adaptive=())
        for name, task in (measured.quality.tasks if measured.quality else {}).items()
        if (scores := _choose(task.profiles, names))
    }
    if measured.quality and tasks:
        record_quality(pack, replace(measured.quality, tasks=tasks))
    known = measured.parity
    if known and (parity := _choose(known.parity, names)):
        alone = {
            name: {way: found for way, found in ways.items() if way != TOGETHER_WAY} for name, ways in parity.items()
        }
        spread, ranges = _choose(known.spread, names), _choose(known.ranges, names)
        record_parity(pack, measured.host, Measurement(alone, spread, ranges, known.token_ids, known.pixels))


def _choose(of: Mapping[str, T], names: Iterable[str]) -> dict[str, T]:
    return {name: of[name] for name in names if name in of}
