"""May an index that was built with one family be queried with another? Two exports of what should be one model.

Both families' profiles of the same name embed the probes of both, and the vectors of the same probe are compared. They
may differ by what each was proven to keep (`bounds`). What differs by more cannot be two renderings of one parent, and
an index has to be rebuilt. Codes whose tolerance is one of coordinates (fp32) are compared with the other family's
stored vectors of the parent, in the distance that explains a code (`codes.compare_codes`). Items that are read
otherwise (`runtime.inputs.changes`), other ranges or another scaling are refused, whatever the vectors of the probes
say: other items would show it. What a search gives is measured beside it, and not judged, since it depends on the
probes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from matexport.errors import RequestError
from matexport.family.manifest import Family
from matexport.io.progress import Progress
from matexport.runtime.batches import pack_batches
from matexport.runtime.embedder import Embedder
from matexport.runtime.inputs.changes import Findings, Pairs, find_changes, prepare_pairs
from matexport.runtime.inputs.modality import Row
from matexport.spec.probe import AnyProbe
from matexport.spec.profile import Encoding, Profile
from matexport.spec.record import Record
from matexport.spec.tolerance import Tolerance
from matexport.verify.bounds import find_bound
from matexport.verify.codes import compare_codes, decode_vectors
from matexport.verify.engines import note_versions
from matexport.verify.judge import Case, open_case
from matexport.verify.parity import compare_vectors, unit_rows
from matexport.verify.verdict import find_float32_profile

#: Neighbours that an index is asked for.
NEIGHBOURS = 10

#: Queries that are asked at a time.
QUERIES = 256

Array = NDArray[Any]


class Search(Record, frozen=True):
    """Every text as a query for the others, with NEW against OLD's index, and with OLD against it.

    Attributes:
        top_1: share of the queries whose nearest text is the same.
        top_10: share of the nearest 10 texts (or of all, where there are fewer) that is the same.
        margin: mean over the queries of how much nearer (in cosine) OLD's nearest text is than any other when NEW asks;
            below 0 where it no longer is the nearest.
        old_margin: the same when OLD asks.
    """

    top_1: float
    top_10: float
    margin: float
    old_margin: float


class ProfileDrift(Record, frozen=True):
    """How far one profile's vectors moved between two families.

    Attributes:
        texts: how many were compared: those that both families can take.
        max_abs: largest difference of a coordinate, as `Parity.max_abs` is scaled. Of codes, where their precision has
            a tolerance of it, the smallest difference from the other family's stored vectors that explains them.
        cosine_mean, cosine_min: of the two vectors of a text; of codes, of what they stand for (with OLD's ranges).
        equal: share of codes, or bits, that are the same; None of float32.
        worst: index into `Drift.texts` of the text with the least cosine.
        allowed: what they are held to; `spread` is not used.
        search: None where fewer than two texts could be compared.
        reasons: why an index must be rebuilt; empty where it may be queried.
    """

    profile: str
    texts: int
    max_abs: float | None
    cosine_mean: float | None
    cosine_min: float | None
    equal: float | None
    worst: int | None
    allowed: Tolerance
    search: Search | None
    reasons: tuple[str, ...]

    @property
    def compatible(self) -> bool:
        return not self.reasons


class Drift(Record, frozen=True):
    """What `compare_families` found.

    Attributes:
        new, old: the two directories.
        texts: the probes of both families, each once.
        same_parent: whether the digests of the parents' weights are the same.
        profiles: those that both have, in NEW's order.
        only_new, only_old: names of the others.
        notes: what is worth knowing and decides nothing.
    """

    new: str
    old: str
    texts: tuple[AnyProbe, ...]
    same_parent: bool
    profiles: tuple[ProfileDrift, ...]
    only_new: tuple[str, ...]
    only_old: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def compatible(self) -> bool:
        """Whether an index built with a profile that both have may be queried with the other's; see `only_old`."""
        return all(profile.compatible for profile in self.profiles)


def compare_families(
    new: Case | Family | Path | str,
    old: Case | Family | Path | str,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Drift:
    """Compare the vectors of the profiles that two families have in common.

    Args:
        new, old: directories of families or packs; or what `verify.judge.open_case` gave for them.
        threads: intra-op threads of the sessions.
        progress: called with (stage, done, total) as profiles are finished.

    Raises:
        RequestError: they have no profile in common; both are listed.
        FamilyError: files of either are missing, changed, extra or unsafe. No session was created then.
    """
    ours, theirs = (given if isinstance(given, Case) else open_case(given) for given in (new, old))
    common = find_common(ours.family, theirs.family)
    texts = tuple(dict.fromkeys((*ours.probes, *theirs.probes)))
    pairs = prepare_pairs(ours.contents, theirs.contents, texts)
    shared, notes = (
        [*changes, *others]
        for changes, others in zip(
            find_changes(ours.family, theirs.family, pairs), _compare_read_outs(ours.family, theirs.family), strict=True
        )
    )
    notes += note_versions(ours.family, theirs.family, common)
    found = []
    for done, name in enumerate(common):
        if progress:
            progress("compare", done, len(common))
        found.append(_compare_profile(ours, theirs, name, pairs, shared, threads))
    if progress:
        progress("compare", len(common), len(common))
    return Drift(
        new=str(ours.family.path),
        old=str(theirs.family.path),
        texts=texts,
        same_parent=_digest_parent(ours) == _digest_parent(theirs),
        profiles=_hold_codes_to_vectors(ours.family, found),
        only_new=tuple(name for name in _list_names(ours.family) if name not in common),
        only_old=tuple(name for name in _list_names(theirs.family) if name not in common),
        notes=tuple(notes),
    )


def find_common(new: Family, old: Family) -> list[str]:
    """Names of the profiles that both families have, in NEW's order.

    Raises:
        RequestError: there are none; the profiles of both are listed.
    """
    ours, theirs = _list_names(new), _list_names(old)
    common = [name for name in ours if name in theirs]
    if not common:
        raise RequestError(
            f"no profile is in both families: {new.path} has {', '.join(ours)}; {old.path} has {', '.join(theirs)}"
        )
    return common


def _compare_read_outs(new: Family, old: Family) -> Findings:
    reasons, notes = [], []
    if new.facts.readout.normalize != old.facts.readout.normalize:
        scaled, raw = ("NEW", "OLD") if new.facts.readout.normalize else ("OLD", "NEW")
        reasons.append(f"vectors of {scaled} are scaled to unit length, those of {raw} are not")
    if new.facts.vocabulary != old.facts.vocabulary:
        sizes = [_count_tokens(family) for family in (new, old)]
        notes.append(f"vocabulary: {sizes[0]}, in OLD {sizes[1]}")
    return reasons, notes


def _count_tokens(family: Family) -> str:
    vocabulary = family.facts.vocabulary
    return str(vocabulary.tokens) if vocabulary else "not cut"


def _compare_profile(
    new: Case, old: Case, name: str, pairs: Pairs, shared: Sequence[str], threads: int | None
) -> ProfileDrift:
    facts, reasons = new.family.profile_facts(name), list(shared)
    point, count = Profile.parse(name).point.name, len(pairs.rows)
    allowed = find_bound(new.family, old.family, name, count)
    if facts.encoding is Encoding.INT8 and not np.array_equal(new.ranges[point], old.ranges[point]):
        other = int((new.ranges[point] != old.ranges[point]).any(axis=0).sum())
        reasons.append(
            f"int8 ranges differ in {other} of {facts.dim} coordinates: a code stands for another value in OLD"
        )
    if not count:
        reasons.append(f"no {new.family.facts.inputs.noun} could be compared")
        return ProfileDrift(name, 0, None, None, None, None, None, allowed, None, tuple(reasons))
    ours = _embed(new, name, [row for row, _ in pairs.rows.values()], threads)
    theirs = _embed(old, name, [row for _, row in pairs.rows.values()], threads)
    ranges = old.ranges.get(point)
    values = [decode_vectors(vectors, facts.encoding, facts.dim, ranges) for vectors in (ours, theirs)]
    parity, equal = compare_vectors(*values), None
    max_abs: float | None = parity.max_abs
    if facts.encoding is not Encoding.FLOAT32:
        equal, max_abs = float((values[0] == values[1]).mean()), None
        if allowed.max_abs is not None:
            sides = ((ours, old), (theirs, new))
            explained = [_explain(codes, case, point, facts.encoding, pairs) for codes, case in sides]
            known = [found for found in explained if found is not None]
            if not known:
                reasons.append("no probe of either family is read alike in both: nothing to hold the codes to")
            else:
                max_abs, worst = max(known)
                parity = replace(parity, max_abs=max_abs, worst=worst)
    breach = parity.find_breach(allowed)
    texts = list(pairs.rows)
    if breach:
        reasons.append(f"{breach.reason}; worst on {pairs.probes[texts[breach.probe]].describe()}")
    return ProfileDrift(
        profile=name,
        texts=count,
        max_abs=max_abs,
        cosine_mean=parity.cosine_mean,
        cosine_min=parity.cosine_min,
        equal=equal,
        worst=texts[parity.farthest],
        allowed=allowed,
        search=_search(*values),
        reasons=tuple(reasons),
    )


def _hold_codes_to_vectors(family: Family, found: Sequence[ProfileDrift]) -> tuple[ProfileDrift, ...]:
    """As in `verify`: codes of vectors that moved have moved, too, however few of their bits show it."""
    reasons = {drift.profile: drift.reasons for drift in found}

    def hold(drift: ProfileDrift) -> ProfileDrift:
        vectors = reasons.get(find_float32_profile(family, drift.profile) or "", ())
        more = tuple(f"as float32: {reason}" for reason in vectors if reason not in drift.reasons)
        return structs.replace(drift, reasons=drift.reasons + more)

    return tuple(map(hold, found))


def _embed(case: Case, name: str, rows: Sequence[Row], threads: int | None) -> Array:
    with Embedder(case.contents, name, threads=threads) as embedder:
        batches = pack_batches([embedder.inputs.size(row) for row in rows], embedder.inputs.budget)
        parts = [embedder.run([rows[index] for index in batch]) for batch in batches]
    vectors = np.empty((len(rows), parts[0].shape[1]), parts[0].dtype)
    for batch, part in zip(batches, parts, strict=True):
        vectors[batch] = part
    return vectors


def _explain(codes: Array, case: Case, point: str, encoding: Encoding, pairs: Pairs) -> tuple[float, int] | None:
    """The smallest difference from a family's stored vectors that explains codes, and the place of the worst text.

    None where none of its probes is among the texts that are compared.
    """
    found = [(row, pairs.places[probe]) for row, probe in enumerate(case.probes) if probe in pairs.places]
    if not found:
        return None
    reference = case.references[point][[row for row, _ in found]]
    parity = compare_codes(codes[[place for _, place in found]], reference, encoding, case.ranges.get(point))
    return parity.max_abs, found[parity.worst][1]


def _search(new: Array, old: Array) -> Search | None:
    """Each text as a query for the others, some queries at a time: all pairs of 20,000 probes would not fit."""
    count = len(new)
    if count < 3 or not (np.isfinite(new).all() and np.isfinite(old).all()):
        return None
    new, old = (unit_rows(rows.astype(np.float64)) for rows in (new, old))
    nearest, (first, overlap, margins, old_margins) = min(NEIGHBOURS, count - 1), np.zeros((4, count))
    for start in range(0, count, QUERIES):
        queries = np.arange(start, min(start + QUERIES, count))
        ranked, similarities = [], []
        for asking in (new, old):
            similarity = asking[queries] @ old.T
            similarity[np.arange(len(queries)), queries] = -np.inf
            similarities.append(similarity)
            ranked.append(np.argsort(-similarity, axis=1, kind="stable")[:, :nearest])
        first[queries] = ranked[0][:, 0] == ranked[1][:, 0]
        overlap[queries] = [len(set(a) & set(b)) / nearest for a, b in zip(*ranked, strict=True)]
        margins[queries], old_margins[queries] = (_lead(similarity, ranked[1][:, 0]) for similarity in similarities)
    return Search(float(first.mean()), float(overlap.mean()), float(margins.mean()), float(old_margins.mean()))


def _lead(similarity: Array, nearest: Array) -> Array:
    """By how much each row's (m, n) `nearest` column (m,) exceeds its greatest other."""
    rows, others = np.arange(len(similarity)), similarity.copy()
    others[rows, nearest] = -np.inf
    lead: Array = similarity[rows, nearest] - others.max(axis=1)
    return lead


def _list_names(family: Family) -> list[str]:
    return [profile.name for profile in family.profiles]


def _digest_parent(case: Case) -> list[str]:
    return sorted(case.family.facts.parent.weights.values())
