"""What profiles are held to that another engine than onnxruntime on the CPU runs.

The parent first, as everywhere: the floors of the precision, on this engine's vectors. And onnxruntime on the CPU,
which the family was proven with, on the same graphs and probes: the floors between engines
(`spec.tolerance.ENGINE_FLOORS`), which are far nearer, so that an engine that is subtly wrong has no room in what a
precision may lose.

An engine that multiplies in bfloat16 cannot hold the floors of float32. What it may be off from the parent follows from
the two that it is held to, as between two families (`verify.bounds`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matexport.family.manifest import Family
from matexport.family.measurements.records import load_measurements
from matexport.host import read_host
from matexport.runtime.embedder import Vectors
from matexport.spec.measured import Arithmetic, Engine
from matexport.spec.profile import Encoding, Precision
from matexport.spec.tolerance import Tolerance, find_engine_floor
from matexport.verify.bounds import combine_tolerances
from matexport.verify.codes import decode_vectors, encode_tolerance
from matexport.verify.parity import compare_vectors
from matexport.verify.verdict import EngineVerdict, find_encoded_tolerance, find_tolerance

#: From this version of onnxruntime on, its products of integers round otherwise than up to the one before: int8 vectors
#: of all-MiniLM-L6-v2 differed by up to 6.3e-3 between 1.20 to 1.24 and 1.30 to 1.32; float32 ones by 2e-7, which two
#: orders of summation make (2026-11-28, 77 texts).
ROUNDS_OTHERWISE = (1, 30)


def find_parent_tolerance(family: Family, name: str, probes: int, engine: Engine) -> Tolerance:
    """What a profile's outputs in an engine are held to, against the parent's vectors on so many probes."""
    if engine.is_default:
        return find_encoded_tolerance(family, name, probes)
    facts, floor = family.profile_facts(name), _find_floor(family, name, engine)
    own = find_tolerance(family, name)
    spread = own.spread if own.spread is None or floor.spread is None else max(own.spread, floor.spread)
    tolerance = Tolerance(own.max_abs, own.cosine_mean, own.cosine_min, spread)
    if engine.arithmetic is Arithmetic.BF16:
        # Vectors that are held coordinate by coordinate, within 1e-5, are the parent's where a cosine is asked.
        near = Tolerance(cosine_mean=_or_one(own.cosine_mean), cosine_min=_or_one(own.cosine_min))
        both = combine_tolerances(near, floor)
        tolerance = Tolerance(cosine_mean=both.cosine_mean, cosine_min=both.cosine_min, spread=spread)
    return encode_tolerance(tolerance, facts.encoding, facts.dim, probes)


def compare_engine(
    family: Family,
    name: str,
    engine: Engine,
    ways: Mapping[str, tuple[Vectors, Vectors]],
    ranges: Vectors | None,
) -> EngineVerdict:
    """Hold an engine's outputs to those of onnxruntime on the CPU.

    Args:
        ways: way of running -> what the engine gave for the probes, and what onnxruntime did: vectors or codes,
            (n, width) both.
        ranges: (2, dim) float32, least and greatest value of each coordinate, where outputs are int8.
    """
    facts, floor = family.profile_facts(name), _find_floor(family, name, engine)
    if facts.encoding is not Encoding.FLOAT32:
        floor = Tolerance(cosine_mean=floor.cosine_mean, cosine_min=floor.cosine_min)
        floor = encode_tolerance(floor, facts.encoding, facts.dim, len(next(iter(ways.values()))[0]))
    if floor == Tolerance():
        return EngineVerdict({}, floor)
    parity = {
        way: compare_vectors(*(decode_vectors(rows, facts.encoding, facts.dim, ranges) for rows in pair))
        for way, pair in ways.items()
    }
    return EngineVerdict(parity, floor)


def _find_floor(family: Family, name: str, engine: Engine) -> Tolerance:
    facts = family.profile_facts(name)
    return find_engine_floor(engine.arithmetic, facts.precision, facts.layers)


def _or_one(cosine: float | None) -> float:
    return 1.0 if cosine is None else cosine


def note_versions(new: Family, old: Family, common: Sequence[str]) -> list[str]:
    """What another onnxruntime does to int8, where the two families ran in versions that round otherwise.

    Both are run here by one onnxruntime, so this cannot be seen in their vectors: those of an index of OLD are of the
    versions that OLD was made and measured with.
    """
    if not any(new.profile_facts(name).precision is Precision.INT8 for name in common):
        return []
    ours, theirs = _list_runtimes(new) | {read_host().onnxruntime}, _list_runtimes(old)
    pairs = [(mine, other) for mine in sorted(ours) for other in sorted(theirs) if _rounds(mine) != _rounds(other)]
    if not pairs:
        return []
    mine, other = pairs[0]
    return [
        f"NEW ran in onnxruntime {mine}, OLD in {other}: int8 vectors of the same files differ by up to 6e-3 between "
        "1.22 and 1.30 (fp32: not at all), so an int8 index that was built on such a host is searched with vectors "
        "that are a little off"
    ]


def _list_runtimes(family: Family) -> set[str]:
    """Versions of onnxruntime that a family was made and measured with, as far as it says."""
    hosts = {one.host.onnxruntime for one in load_measurements(family).hosts}
    made = family.facts.provenance.versions.get("onnxruntime")
    return hosts | ({made} if made else set())


def _rounds(version: str) -> bool:
    """Whether a version of onnxruntime is one that rounds otherwise; one that is no number counts as a new one."""
    numbers = version.split(".")[:2]
    if len(numbers) < 2 or not all(number.isascii() and number.isdigit() for number in numbers):
        return True
    return tuple(map(int, numbers)) >= ROUNDS_OTHERWISE
