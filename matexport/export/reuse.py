"""A family whose points alone are others is not made again: what it has of the one that is asked for is taken over.

    its weights, its precisions and the graphs of points that stay -> as they are
    a new dim at a depth that it has -> the graph of a neighbour with another end of its Slice, then encoded
    its graphs of all exits -> the exits at their ends put anew

A trace, and all that is made of it, depends on the depths at which the parent is read, and not on how many of a
vector's coordinates are kept: a point is one Slice behind the heads (`trace.exits`). So this goes where the depths stay
the same; other depths are another trace. What comes out is the same bytes as if all had been made, and is verified as
if it had; the parent is loaded only where a new point needs its vectors.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from msgspec.structs import replace
from safetensors.numpy import load, save

from matexport.errors import FamilyError
from matexport.export.graph.edit import drop_unused, write_graph
from matexport.export.graph.encode import encode_output
from matexport.export.parents.plan import Plan, Reference
from matexport.export.prepare import list_differing, load_present
from matexport.export.profiles import Cut, measure_ranges
from matexport.export.trace.exits import CUT, add_end, append_exits, name_part
from matexport.family.integrity import Contents, check_family
from matexport.family.manifest import RANGES, REFERENCE, Family
from matexport.family.proof import Vectors
from matexport.io.progress import Progress
from matexport.spec.facts import ProfileFacts, Provenance
from matexport.spec.job import ExportJob
from matexport.spec.profile import Encoding, Point, Precision, Profile

#: Inputs that decide neither the trace nor any precision of it.
REUSABLE = frozenset({"points", "trained"})


@dataclass(frozen=True)
class Reused:
    """A family of other points, its files checked."""

    contents: Contents

    @property
    def family(self) -> Family:
        """The family."""
        return self.contents.family

    @property
    def points(self) -> set[Point]:
        """Where it is read."""
        return {profile.point for profile in self.family.profiles}


def find_reusable(out: Path, plan: Plan, provenance: Provenance) -> Reused | None:
    """The family in `out`, if all that is asked for can be made of it and of the parent's vectors at new points."""
    family = load_present(out)
    own = plan.own_dims or plan.job.target.is_fixed  # what was worked out for one shape is not told from the rest
    if family is None or own or not _is_whole(family) or not _has_all(family, plan.job):
        return None
    differing = list_differing(family.facts.provenance, provenance)
    if "points" not in differing or not REUSABLE.issuperset(differing):
        return None
    try:
        return Reused(check_family(family))
    except FamilyError:  # spoilt, or something else lies there
        return None


def _is_whole(family: Family) -> bool:
    """Whether it has every profile of its job: a pack has not, nor has one that lacks what missed its floor."""
    facts = family.facts
    made = {profile.point for profile in family.profiles}
    sets = [
        {(profile.point, profile.encoding) for profile in family.profiles if profile.precision is precision}
        for precision in facts.precisions
    ]
    return (
        not facts.refused
        and set(facts.exits) == set(facts.precisions)
        and all(found == sets[0] and {point for point, _ in found} == made for found in sets)
    )


def _has_all(family: Family, job: ExportJob) -> bool:
    there, wanted = ({(p.layers, p.tokens) for p in points} for points in (_list_points(family), job.points))
    return (
        there == wanted
        and set(family.facts.precisions) == set(job.precisions)
        and Encoding.FLOAT32 in job.encodings  # what the graph of a new dim is made from
        and (Encoding.INT8 not in job.encodings or Precision.FP32 in job.precisions)  # what ranges are measured on
        and Precision.Q4_MIXED not in job.precisions  # which asks the points where 4 bits cost most
    )


def _list_points(family: Family) -> set[Point]:
    return {profile.point for profile in family.profiles}


def reuse_reference(reused: Reused, plan: Plan) -> Reference | None:
    """The parent's vectors as the family has them; None where one of the points is new."""
    wanted, parent = set(plan.job.points), reused.family.facts.parent
    if not wanted <= reused.points:
        return None
    stored = load(bytes(reused.contents.read(REFERENCE)))
    vectors = {point: stored[point.name] for point in plan.job.points}
    names = {point.name for point in reused.points}
    rows = {name: tensor for name, tensor in stored.items() if name not in names}
    return Reference(vectors, rows, parent.judge, parent.unread)


def reuse_graphs(reused: Reused, plan: Plan, stage: Path, report: Progress) -> Cut:
    """Write weights, ranges and graphs of a job's profiles into `stage`.

    Raises:
        RequestError: a coordinate has no range that int8 could encode.
    """
    facts, job = reused.family.facts, plan.job
    for name in sorted(reused.family.weights_files):
        (stage / name).write_bytes(reused.contents.read(name))
    exits = dict(facts.exits)
    for file in exits.values():
        model = _read(reused, file)
        _put_exits(model, reused.points, job.points, normalize=plan.readout.normalize)
        write_graph(model, stage / file)
    ranges = _reuse_ranges(reused, plan, stage)
    profiles: dict[str, ProfileFacts] = {}
    for done, profile in enumerate(sorted(job.profiles)):
        report("cut", done, len(job.profiles))
        known = facts.profiles.get(profile.name)
        if known is None:
            known = _derive(reused, profile, ranges, stage)
        else:
            (stage / known.graph).write_bytes(reused.contents.read(known.graph))
        profiles[profile.name] = known
    report("cut", len(job.profiles), len(job.profiles))
    order = {name: profiles[name] for precision in job.precisions for name in _names_of(profiles, precision)}
    return Cut(order, exits, facts.precisions)


def _names_of(profiles: Mapping[str, ProfileFacts], precision: Precision) -> list[str]:
    return [name for name, facts in profiles.items() if facts.precision is precision]


def _read(reused: Reused, file: str) -> ir.Model:
    return ir.serde.deserialize_model(onnx.ModelProto.FromString(bytes(reused.contents.read(file))))


def _put_exits(model: ir.Model, there: Collection[Point], wanted: Collection[Point], *, normalize: bool) -> None:
    """Put other points at the end of a graph of all exits."""
    graph = model.graph
    cuts = {node.name: node for node in graph}
    full = {(point.layers, point.tokens): cuts[name_part(point, CUT)].inputs[0] for point in there}
    own = tuple(name_part(point, "") for point in there)
    graph.outputs.clear()
    graph.remove([node for node in graph if str(node.name).startswith(own)], safe=True)
    append_exits(graph, {point: full[point.layers, point.tokens] for point in wanted}, normalize=normalize)  # type: ignore[misc]
    drop_unused(model)


def _derive(reused: Reused, profile: Profile, ranges: Mapping[str, Vectors], stage: Path) -> ProfileFacts:
    """Write the graph of a new profile: that of one at the same depth, cut elsewhere."""
    point = profile.point
    neighbour = next(
        other
        for other in reused.family.profiles
        if (other.point.layers, other.point.tokens) == (point.layers, point.tokens)
        and (other.precision, other.encoding) == (profile.precision, Encoding.FLOAT32)
    )
    facts = reused.family.facts.profiles[neighbour.name]
    model = _read(reused, facts.graph)
    old = name_part(neighbour.point, "")
    for node in model.graph:
        if str(node.name).startswith(old):
            part = str(node.name).removeprefix(old)
            node.name = name_part(point, part)
            if node.outputs[0] not in model.graph.outputs:
                node.outputs[0].name = node.name
            if part == CUT:
                node.replace_input_with(2, add_end(model.graph, point.dim))
    drop_unused(model)
    (output,) = model.graph.outputs
    output.shape = ir.Shape([*output.shape[:-1], point.dim])  # type: ignore[index]
    encode_output(model, profile.encoding, ranges.get(point.name))
    write_graph(model, stage / profile.graph_file)
    return replace(facts, dim=point.dim, graph=profile.graph_file, encoding=profile.encoding)


def _reuse_ranges(reused: Reused, plan: Plan, stage: Path) -> dict[str, Vectors]:
    """Write the ranges of the job's points, measured where the family has none; nothing without int8 outputs."""
    job = plan.job
    if Encoding.INT8 not in job.encodings:
        return {}
    known = load(bytes(reused.contents.read(RANGES)))
    new = [point for point in job.points if point not in reused.points]
    if new:
        model = ir.load(stage / reused.family.facts.exits[Precision.FP32])
        known |= measure_ranges(model, plan.shipped_inputs, new, plan, stage)
    ranges = {point.name: np.asarray(known[point.name]) for point in job.points}
    (stage / RANGES).write_bytes(save(ranges))
    return ranges
