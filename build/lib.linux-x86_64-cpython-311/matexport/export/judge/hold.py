"""What the parent's own library says: asked in a process that shares no code with this one, and held to what we read.

The reference (`reference`) is made from our reading of a parent's folder; so is what is traced. Both would share a
misreading, and agree. So the user's own library is asked, on the same probes, as the user would ask it (`child`),
and what was read must be that, before anything is traced: the whole parent's vectors, and those of the parent with its
blocks cut. The process is started while torch is imported here, takes the same few seconds to import it, and is kept
for the next export; one that ran code of a parent's own is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from matexport.errors import ParentError
from matexport.export.judge.process import Judge, Vectors
from matexport.host import count_cpus
from matexport.spec.probe import Probe

if TYPE_CHECKING:
    from matexport.export.parents.reference import Readings
    from matexport.export.parents.text import TextPlan

Outputs = Mapping[str, NDArray[Any]]

#: Between our reading and the parent's own library, in any coordinate of vectors at length 1: the floor of fp32. One
#: text at a time both compute the same operators, so what is left is the order of sums (2e-7 on all-MiniLM-L6-v2).
TOLERANCE = 1e-5

#: Between a text alone and in a batch, in the parent's own library: padding rounds otherwise, but changes nothing.
BATCH_TOLERANCE = 1e-4

#: Probes that the cut parent is asked for, at each depth, and that share a batch: among them the longest.
SOME_PROBES = 8

#: Weights of a parent above which the judge's copy is given back before ours is loaded.
SIDE_BY_SIDE_BYTES = 1 << 30


@dataclass(frozen=True)
class Verdict:
    """What the judge gave for the probes of a family.

    Attributes:
        judge: the library's name and version.
        alone: (n, W) float32, of each probe alone.
        together: (m, W) float32, of some probes in one batch.
        cuts: layers -> (m, W) float32, of the same probes by the parent with its blocks cut.
        places: which probes those m are.
    """

    judge: str
    alone: Vectors
    together: Vectors
    cuts: Mapping[int, Vectors]
    places: tuple[int, ...]


def share_threads() -> int:
    """Threads for each of the two processes that compute a parent's vectors at the same time."""
    return max(1, count_cpus() // 2)


def ask_judge(judge: Judge, plan: TextPlan, probes: Sequence[Probe]) -> Verdict:
    """Ask for all that a reading is held to, and give the judge's copy of the parent back where it is large.

    Raises:
        ParentError: the parent's own library cannot load or run it.
    """
    places = _choose_places(probes)
    alone, together = judge.encode(probes, places)
    cuts = {}
    depths = sorted({point.layers for point in plan.job.points} - {plan.parent.blocks}, reverse=True)
    for layers in depths:
        dropped = plan.shape.tail if plan.readout.final_norm == "drop" else ()
        cuts[layers] = judge.encode_cut([probes[place] for place in places], layers, plan.shape.block_list, dropped)
    if depths:
        judge.release()  # what is left of it is no parent any more
    return Verdict(judge.name, alone, together, cuts, places)


def hold_to_judge(
    verdict: Verdict,
    plan: TextPlan,
    reference: Readings,
    probes: Sequence[Probe],
    describe: Callable[[Probe], tuple[Outputs, Outputs]],
) -> None:
    """Refuse a reading that is not what the parent's own library gives.

    Args:
        describe: what each module gives for a text, by name: in the judge's process, and in this one.

    Raises:
        ParentError: naming the text, by how much it is off, and the first module whose output differs.
    """
    source = plan.job.parent.source
    batched, place = _compare(verdict.together, verdict.alone[list(verdict.places)])
    worst = verdict.places[place]
    if not batched <= BATCH_TOLERANCE:
        raise ParentError(
            f"the parent's own vector of a text depends on the texts beside it ({verdict.judge}: "
            f"{_name(probes[worst])} alone and in a batch differ by {batched:.2g}), so there is nothing that a "
            "sub-model could be equal to. " + _explain_batches(plan)
        )
    off, worst = _compare(reference.whole, verdict.alone)
    if not off <= TOLERANCE:
        raise ParentError(
            f"what was read of {source} is not what its users get: for {_name(probes[worst])}, {verdict.judge} gives a "
            f"vector that differs by {off:.2g} ({TOLERANCE:g} allowed); "
            + _find_first_difference(plan, probes[worst], describe)
        )
    for layers, vectors in verdict.cuts.items():
        off, place = _compare(reference.depths[layers][list(verdict.places)], vectors)
        if not off <= TOLERANCE:
            raise ParentError(
                f"{source} read after {layers} blocks is not {verdict.judge} on the parent with its blocks cut: for "
                f"{_name(probes[verdict.places[place]])} the vectors differ by {off:.2g} ({TOLERANCE:g} allowed)"
            )


def _compare(ours: Vectors, theirs: Vectors) -> tuple[float, int]:
    """The largest difference of rows at length 1, and in which row."""
    if ours.shape != theirs.shape:
        return float("inf"), 0
    lengths = [np.linalg.norm(rows.astype(np.float64), axis=1) for rows in (ours, theirs)]
    mine, other = (rows / np.maximum(size, 1e-12)[:, None] for rows, size in zip((ours, theirs), lengths, strict=True))
    # Where the parent's vectors have lengths of their own, those are compared as well.
    ratio = np.abs(lengths[0] - lengths[1]) / np.maximum(lengths[1], 1e-12)
    off = np.maximum(np.abs(mine - other).max(axis=1), ratio)
    worst = int(np.argmax(np.where(np.isnan(off), np.inf, off)))
    return float(off[worst]), worst


def _find_first_difference(plan: TextPlan, probe: Probe, describe: Callable[[Probe], tuple[Outputs, Outputs]]) -> str:
    """Where the two part, in words."""
    try:
        theirs, ours = describe(probe)
    except ParentError as error:
        return f"and its modules could not be asked one by one ({error})"
    for name, expected in theirs.items():
        mine = ours.get(name)
        if mine is None or mine.shape != expected.shape:
            shape = None if mine is None else mine.shape
            return f"the first that differs is what {name} gives: {expected.shape} there, {shape} here"
        if name == "tokens":
            if not np.array_equal(mine, expected):
                return f"the tokens differ: {expected.tolist()[:12]} there, {mine.tolist()[:12]} here"
        elif np.abs(mine - expected).max() > TOLERANCE * max(1.0, float(np.abs(expected).max())):
            return f"the first module whose output differs is {name}" + _list_settings(plan)
    return "all modules give the same one by one, so encode does more than run them" + _list_settings(plan)


def _list_settings(plan: TextPlan) -> str:
    """What the folder sets, as a hint to what may not have been understood."""
    settings = ", ".join(key for key in plan.layout.settings if key not in ("max_seq_length", "do_lower_case"))
    return f" (the folder sets {settings})" if settings else ""


def _explain_batches(plan: TextPlan) -> str:
    if str(plan.asking.padding_side) == "left":
        return (
            "Its tokenizer pads on the left, which moves positions that are counted from the start: set "
            '"padding_side": "right" in its tokenizer_config.json if its users embed one text at a time'
        )
    return (
        "Its tokens mix with padding (convolutions, pooled attention, a transform over the whole sequence, or "
        "positions scaled by the longest text)"
    )


def _choose_places(probes: Sequence[Probe]) -> tuple[int, ...]:
    """Some probes, spread over all of them, and the longest and the shortest."""
    last = len(probes) - 1
    spread = {round(place * last / (SOME_PROBES - 1)) for place in range(SOME_PROBES)}
    by_length = sorted(range(len(probes)), key=lambda place: len(probes[place].text))
    return tuple(sorted({*spread, by_length[0], by_length[-1]}))


def _name(probe: Probe) -> str:
    how = f" with the prompt {probe.prompt!r}" if probe.prompt else f" as a {probe.task}" if probe.task else ""
    return f"the text {probe.text[:40]!r}{how}"
