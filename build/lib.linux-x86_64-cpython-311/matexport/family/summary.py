"""A family as plain rows, ready for JSON and for tables."""

from __future__ import annotations

from collections.abc import Iterable

from matexport.family.manifest import Family
from matexport.family.measurements.records import Measurement
from matexport.spec.facts import FamilyFacts
from matexport.spec.parity import Parity, worst_of
from matexport.spec.profile import Precision


def describe_profiles(family: Family, measured: Measurement | None = None) -> list[dict[str, object]]:
    """One record per profile: what it is, how large it is, and how near it is to the parent.

    Args:
        family: the family.
        measured: the parity that was recorded on a host (`load_measurement`); None where none was.

    Returns:
        records of plain values, ready for JSON, in the family's order. Sizes are in bytes; `download_bytes` is that of
        the graph and of its prefix of the weights. The numbers of parity are the worst over all ways of running, and
        None where no parity was recorded.
    """
    rows: list[dict[str, object]] = []
    for profile in family.profiles:
        facts = family.profile_facts(profile.name)
        graph_bytes = family.facts.files[facts.graph].bytes
        ways = measured.parity.get(profile.name) if measured else None
        spread = measured.spread.get(profile.name) if measured else None
        ranges = measured.ranges.get(profile.name) if measured else None
        rows.append(
            {
                "profile": profile.name,
                "layers": facts.layers,
                "dim": facts.dim,
                "precision": str(facts.precision),
                "encoding": str(facts.encoding),
                "graph": facts.graph,
                "graph_bytes": graph_bytes,
                "weights": facts.weights,
                "weights_prefix_bytes": facts.weights_prefix_bytes,
                "download_bytes": graph_bytes + facts.weights_prefix_bytes,
                "max_abs": worst_of(ways)[1].max_abs if ways else None,
                "cosine_mean": _least(parity.cosine_mean for parity in ways.values()) if ways else None,
                "cosine_min": _least(parity.cosine_min for parity in ways.values()) if ways else None,
                "neighbours": min(parity.neighbours for parity in ways.values()) if ways else None,
                "spread": spread.value if spread else None,
                "parity": {way: _describe_parity(parity) for way, parity in ways.items()} if ways else None,
                "ranges": _describe_parity(ranges) if ranges else None,
            }
        )
    return rows


def describe_target(facts: FamilyFacts) -> str:
    """What a family's graphs are written for, and the least onnxruntime of each precision that says one, in words.

    Such as ``portable; onnxruntime 1.16 or later: fp32, int8; 1.19 or later: q8``.
    """
    used = {profile.precision for profile in facts.profiles.values()}
    least: dict[str, list[str]] = {}
    for precision in Precision:  # in their order; the manifest's is that of their names
        made = facts.precisions.get(precision)
        if made is not None and made.onnxruntime is not None and precision in used:
            least.setdefault(made.onnxruntime, []).append(str(precision))
    ordered = sorted(least.items(), key=lambda entry: [int(number) for number in entry[0].split(".")])
    said = "; ".join(f"{version} or later: {', '.join(names)}" for version, names in ordered)
    return f"{facts.target}; onnxruntime {said}" if said else str(facts.target)


def _describe_parity(parity: Parity) -> dict[str, object]:
    return {name: getattr(parity, name) for name in vars(parity)}


def _least(values: Iterable[float]) -> float:
    return min(values, key=lambda value: (value == value, value))  # NaN first
