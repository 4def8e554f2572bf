"""The traced graph in each precision, its weights written once, and a graph per profile cut from it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
from safetensors.numpy import save

from matexport.errors import RequestError
from matexport.export.graph.cut import cut_exit, cut_exits
from matexport.export.graph.edit import write_graph
from matexport.export.graph.encode import encode_output, find_ranges
from matexport.export.graph.fixed import fix_shape
from matexport.export.graph.narrow import narrow_to_first_token
from matexport.export.graph.prefix import share_leading_rows
from matexport.export.graph.traced import Traced
from matexport.export.graph.weights import measure_prefix, write_nested_weights
from matexport.export.parents.plan import Plan
from matexport.export.quantize.make import Material, make_precision, observe_products
from matexport.export.quantize.observe import Sample, run_points
from matexport.family.manifest import RANGES
from matexport.family.proof import Vectors
from matexport.family.weights_file import NestedHeader
from matexport.io.progress import Progress
from matexport.runtime.inputs.modality import load_inputs
from matexport.spec.facts import PrecisionFacts, ProfileFacts
from matexport.spec.inputs import InputFacts, TextFacts
from matexport.spec.job import ExportJob
from matexport.spec.profile import Encoding, Point, Precision


@dataclass(frozen=True)
class PrecisionGraph:
    """One precision of the traced graph, its weights written: what profiles are cut from.

    Attributes:
        ranges: point name -> (2, dim), for outputs that are encoded as int8.
        fit: what brings a cut graph into the shape that the target takes, in place.
    """

    precision: Precision
    model: ir.Model
    header: NestedHeader
    facts: PrecisionFacts
    ranges: Mapping[str, Vectors]
    fit: Callable[[ir.Model], None]


@dataclass(frozen=True)
class Cut:
    """The graphs that were cut from all precisions.

    Attributes:
        profiles: name of a profile -> its facts.
        exits: precision -> the file of the graph that has the exits of all its profiles.
        precisions: what was decided when each was made.
    """

    profiles: Mapping[str, ProfileFacts]
    exits: Mapping[Precision, str]
    precisions: Mapping[Precision, PrecisionFacts]


def make_precisions(
    traced: Traced, header: NestedHeader, plan: Plan, stage: Path, report: Progress
) -> dict[Precision, PrecisionGraph]:
    """Each precision of the job, made once from the traced graph, with its weights written.

    Args:
        header: of the traced graph's own weights, which lie in `stage`.

    Raises:
        RequestError: the graph does not allow a precision or the target, or a coordinate has no range that int8 could
            encode.
    """
    job = plan.job
    measured = any(precision is not Precision.FP32 for precision in job.precisions)
    sample = _draw_sample(plan, plan.inputs, stage) if measured else Sample((), load_inputs(stage, plan.inputs), stage)
    ranges = measure_ranges(traced.model, plan.inputs, job.points, plan, stage)
    if ranges:
        (stage / RANGES).write_bytes(save(ranges))
    sources: dict[Precision, PrecisionGraph] = {}
    with tempfile.TemporaryDirectory(dir=stage) as scratch:
        rows = observe_products(job.precisions, traced, sample, Path(scratch), partial(report, "calibrate"))
        material = Material(traced, job.points, sample, plan.calibration.source, rows, job.target)
        for precision in job.precisions:
            model, facts = make_precision(precision, material, report)
            written = header
            if precision is not Precision.FP32:
                written = write_nested_weights(model, job.points, stage / weights_file(precision), report)
            sources[precision] = PrecisionGraph(precision, model, written, facts, ranges, partial(_fit_shape, plan))
    return sources


def _fit_shape(plan: Plan, model: ir.Model) -> None:
    shipped = plan.shipped_inputs
    if isinstance(shipped, TextFacts) and shipped.padded:
        fix_shape(model, shipped.max_tokens, plan.job.target)


def measure_ranges(
    model: ir.Model, inputs: InputFacts, points: Sequence[Point], plan: Plan, stage: Path
) -> dict[str, Vectors]:
    """Point name -> (2, dim) float32 ranges of its coordinates on the calibration items; none where none are encoded.

    Args:
        model: has an output named after each of the points; its weights lie in `stage`, as what makes inputs does.
        inputs: what it takes.

    Raises:
        RequestError: a coordinate has one value for all of them.
    """
    if Encoding.INT8 not in plan.job.encodings or not points:
        return {}
    vectors = run_points(model, points, _draw_sample(plan, inputs, stage))
    return {point.name: _find_point_ranges(point, rows, plan.inputs.noun) for point, rows in vectors.items()}


def _draw_sample(plan: Plan, facts: InputFacts, stage: Path) -> Sample:
    inputs = load_inputs(stage, facts)
    return Sample([inputs.prepare_probe(item) for item in plan.calibration.items], inputs, stage)


def _find_point_ranges(point: Point, vectors: Vectors, noun: str) -> Vectors:
    """(n, dim) float32 vectors of the calibration items -> (2, dim) ranges of their coordinates.

    Args:
        noun: what one vector is of, in words.

    Raises:
        RequestError: a coordinate has one value for all of them.
    """
    ranges = find_ranges(vectors)
    still = np.flatnonzero(ranges[0] == ranges[1])
    if len(still):
        raise RequestError(
            f"the encoding int8 was asked; coordinate {still[0]} of {point.name} has one value for all of the "
            f"{len(vectors)} calibration {noun}s, and {len(still) - 1} others have: such a coordinate has no steps. "
            f"Give other {noun}s in [calibration], or ask for the encodings float32 or ubinary"
        )
    return ranges


def cut_family(sources: Mapping[Precision, PrecisionGraph], plan: Plan, stage: Path, report: Progress) -> Cut:
    """Write the graphs of all profiles, and of each precision one with all their exits, into `stage`."""
    profiles = {
        name: facts for source in sources.values() for name, facts in cut_profiles(source, plan, stage, report).items()
    }
    precisions = {precision: source.facts for precision, source in sources.items()}
    return Cut(profiles, write_exits(sources, profiles, stage), precisions)


def cut_profiles(source: PrecisionGraph, plan: Plan, stage: Path, report: Progress) -> dict[str, ProfileFacts]:
    """Cut, narrow, encode and write the graph of every profile of one precision: name of a profile -> its facts."""
    profiles = {}
    wanted = [profile for profile in sorted(plan.job.profiles) if profile.precision is source.precision]
    depth, deep = 0, source.model
    for done, profile in enumerate(wanted):
        report("cut", done, len(wanted))
        if profile.point.layers != depth:  # once per depth: copying the whole graph is most of a cut
            depth = profile.point.layers
            deep = cut_exits(source.model, exits_at(depth, plan.job))
        part = cut_exit(deep, profile.point.name, name=plan.output)
        narrowed = narrow_to_first_token(part)
        share_leading_rows(part)
        encode_output(part, profile.encoding, source.ranges.get(profile.point.name))
        source.fit(part)
        prefix = measure_prefix(part, source.header)
        write_graph(part, stage / profile.graph_file)
        profiles[profile.name] = ProfileFacts(
            layers=profile.point.layers,
            dim=profile.point.dim,
            precision=profile.precision,
            graph=profile.graph_file,
            weights=weights_file(profile.precision),
            weights_prefix_bytes=prefix,
            narrowed_nodes=narrowed,
            encoding=profile.encoding,
            tokens=profile.point.tokens,
        )
    report("cut", len(wanted), len(wanted))
    return profiles


def write_exits(
    sources: Mapping[Precision, PrecisionGraph], profiles: Mapping[str, ProfileFacts], stage: Path
) -> dict[Precision, str]:
    """Write one more graph per precision, with the exits of all its profiles, so that they run in one pass.

    Returns:
        precision -> the graph's file; a precision without profiles is left out.
    """
    exits = {}
    for precision, source in sources.items():
        mine = [facts for facts in profiles.values() if facts.precision is precision]
        points = sorted({facts.point for facts in mine})
        if points:
            exits[precision] = f"exits.{precision}.onnx"
            part = cut_exits(source.model, [point.name for point in points])
            source.fit(part)
            write_graph(part, stage / exits[precision])
    return exits


def exits_at(depth: int, job: ExportJob) -> list[str]:
    """Names of the outputs of a job's points after so many layers."""
    return [point.name for point in job.points if point.layers == depth]


def weights_file(precision: Precision) -> str:
    """Name of the file that a precision's weights lie in."""
    return f"weights.{precision}.safetensors"
