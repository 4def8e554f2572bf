"""What is known of a family's profiles, and a budget -> the best profile that fits, with a reason for every other one.

Pure: nothing is read, measured or printed. The order is total and does not depend on the budget: quality first, then
latency, disk, memory and name, with what nobody measured last in each. So the choice is the first of the profiles that
fit, and as a looser budget lets at least the same profiles through, it never gives a worse choice.

A limit on something that no profile has a number of cannot be checked: it lets all through, and is named
(`Check.done`). Where some profiles have the number, one without it does not fit: nobody can say that it does.

Quality is retention. Where no profile has any, none is the best, and the order falls back on what is most likely
closest to the parent: trained points, more layers, more dims, then the more exact precision and encoding
(`Choice.quality_known` says so).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from matexport.family.survey import Candidate, Known, Survey, is_measured_on
from matexport.spec.job import Budget
from matexport.spec.measured import Host
from matexport.spec.profile import Encoding, Precision, Profile
from matexport.spec.record import Record

MB = 1e6

#: From the closest to fp32 to the farthest, by the floors that each is held to (`matexport.spec.tolerance.FLOORS`).
EXACTNESS = (
    Precision.FP32, Precision.FP16, Precision.Q8, Precision.INT8, Precision.INT8_STATIC, Precision.Q4_MIXED,
    Precision.Q4,
)  # fmt: skip
ENCODINGS = (Encoding.FLOAT32, Encoding.INT8, Encoding.UBINARY)


class Rejection(Record, frozen=True):
    """Why a profile does not fit: the limit that it misses by the largest factor.

    Attributes:
        limit: a field of `Budget`, or ``trained_only``.
        measured: None where nobody measured it.
        allowed: None for ``trained_only``.
        reason: the same in words.
    """

    profile: str
    limit: str
    measured: float | None
    allowed: float | None
    reason: str


class Miss(Record, frozen=True):
    """The profile that comes closest to a limit that rejects some.

    Attributes:
        alone: whether it keeps everything else, so that `measured` in place of this one limit would let it through. If
            none that was measured does, this is the one closest to the limit of all.
    """

    limit: str
    profile: str
    measured: float
    allowed: float
    alone: bool


class Check(Record, frozen=True):
    """How one limit was checked.

    Attributes:
        here: profiles with a number of the host in question; all of them for the disk, which the manifest tells.
        elsewhere: profiles with a number of another host, by host.
        missing: profiles that nobody measured it for.
    """

    limit: str
    allowed: float
    here: int
    elsewhere: tuple[tuple[Host, int], ...]
    missing: int

    @property
    def done(self) -> bool:
        """Whether any profile could be held to it."""
        return bool(self.here or self.elsewhere)


class Choice(Record, frozen=True):
    """What fits a budget.

    Attributes:
        chosen: None where nothing fits.
        fitting: all that fit, best first.
        front: those of them that no other one is at least as good as in quality, latency, disk and memory and better in
            one; best first. What was not measured counts as the worst.
        rejections: one for each profile that does not fit, in the family's order.
        misses: where nothing fits, the nearest miss of each limit that rejects something.
        checks: one for each limit.
        quality_known: whether any profile has a retention; if not, the order is a guess.
    """

    chosen: Candidate | None
    fitting: tuple[Candidate, ...]
    front: tuple[Candidate, ...]
    rejections: tuple[Rejection, ...]
    misses: tuple[Miss, ...]
    checks: tuple[Check, ...]
    quality_known: bool


class Limit(Record, frozen=True):
    """A kind of limit.

    Attributes:
        name: the field of `Budget`.
        what: what it is of, in words.
        unit: as it stands behind a number.
        read: the candidate's number, in that unit; None where it was not measured.
        known: the same with its host; None for facts.
        least: whether it is the smallest value allowed, and not the largest.
        command: what measures it.
    """

    name: str
    what: str
    unit: str
    read: Callable[[Candidate], float | None]
    known: Callable[[Candidate], Known | None] | None
    least: bool = False
    command: str = "bench"

    def holds(self, value: float, allowed: float) -> bool:
        return value >= allowed if self.least else value <= allowed

    def exceed(self, value: float, allowed: float) -> float:
        """By what factor a value misses the limit; above 1 where it does."""
        if not self.least:
            return value / allowed
        return allowed / value if value > 0 else math.inf

    def show(self, value: float) -> str:
        return f"{show_number(value)}{self.unit}"


def read_known(known: Known | None, *, scale: float = 1.0, signed: bool = False) -> float | None:
    """A measured number; None where it was not measured, or cannot have been: not finite, or not above 0."""
    if known is None or not math.isfinite(known.value) or (known.value <= 0 and not signed):
        return None
    return known.value / scale


def read_retention(candidate: Candidate) -> float | None:
    """May be 0 or below: a correlation."""
    return read_known(candidate.retention, signed=True)


def read_latency(candidate: Candidate) -> float | None:
    return read_known(candidate.latency_ms)


def read_ram(candidate: Candidate) -> float | None:
    return read_known(candidate.peak_bytes, scale=MB)


def read_disk(candidate: Candidate) -> float:
    return candidate.disk_bytes / MB


def read_cold_start(candidate: Candidate) -> float | None:
    return read_known(candidate.cold_start_ms)


#: By the fields of `Budget`.
LIMITS: Mapping[str, Limit] = {
    limit.name: limit
    for limit in (
        Limit("max_latency_ms", "latency", " ms", read_latency, lambda it: it.latency_ms),
        Limit("max_disk_mb", "disk", " MB", read_disk, None),
        Limit("max_ram_mb", "memory", " MB", read_ram, lambda it: it.peak_bytes),
        Limit("max_cold_start_ms", "cold start", " ms", read_cold_start, lambda it: it.cold_start_ms),
        Limit("min_retention", "retention", "", read_retention, lambda it: it.retention, True, "evaluate"),
    )
}
TRAINED_ONLY = "trained_only"


def choose(survey: Survey, budget: Budget, *, trained_only: bool = False) -> Choice:
    """Choose the best profile that fits.

    Args:
        survey: what `matexport.family.survey.survey_family` gathered.
        trained_only: refuse points that the parent is known not to have been trained at.

    Returns:
        the choice, and what speaks against every other profile; nothing may fit.
    """
    candidates = survey.candidates
    limits = [(LIMITS[name], allowed) for name, allowed in _list_limits(budget)]
    checks = tuple(_check(survey, limit, allowed) for limit, allowed in limits)
    checked = [pair for pair, check in zip(limits, checks, strict=True) if check.done]
    quality_known = any(read_retention(it) is not None for it in candidates)
    rejected = {it.profile: _reject(it, checked, trained_only) for it in candidates}

    def rank(candidate: Candidate) -> tuple[object, ...]:
        worse = tuple(-value for value in _read_quality(candidate, quality_known))
        return worse, *_read_costs(candidate), candidate.profile

    fitting = sorted((it for it in candidates if rejected[it.profile] is None), key=rank)
    return Choice(
        chosen=fitting[0] if fitting else None,
        fitting=tuple(fitting),
        front=tuple(_find_front(fitting, quality_known)),
        rejections=tuple(found for found in rejected.values() if found is not None),
        misses=() if fitting else tuple(_find_misses(candidates, checked, trained_only)),
        checks=checks,
        quality_known=quality_known,
    )


def show_number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _list_limits(budget: Budget) -> list[tuple[str, float]]:
    asked = ((name, getattr(budget, name)) for name in LIMITS)
    return [(name, allowed) for name, allowed in asked if allowed is not None]


def _check(survey: Survey, limit: Limit, allowed: float) -> Check:
    if limit.known is None:
        return Check(limit.name, allowed, len(survey.candidates), (), 0)
    here, elsewhere = 0, dict[Host, int]()
    for candidate in survey.candidates:
        known = limit.known(candidate)
        if known is None or limit.read(candidate) is None:
            continue
        if is_measured_on(known.host, survey.host):
            here += 1
        else:
            elsewhere[known.host] = elsewhere.get(known.host, 0) + 1
    missing = len(survey.candidates) - here - sum(elsewhere.values())
    return Check(limit.name, allowed, here, tuple(elsewhere.items()), missing)


def _reject(candidate: Candidate, limits: Iterable[tuple[Limit, float]], trained_only: bool) -> Rejection | None:
    """What speaks against a candidate most, if anything does."""
    if trained_only and candidate.trained is False:
        reason = "the parent was not trained to be read at this point"
        return Rejection(candidate.profile, TRAINED_ONLY, None, None, reason)
    worst, missing = None, None
    for limit, allowed in limits:
        value = limit.read(candidate)
        if value is None:
            missing = missing or (limit, allowed)
        elif not limit.holds(value, allowed):
            factor = limit.exceed(value, allowed)
            if worst is None or factor > worst[0]:
                worst = factor, limit, value, allowed
    if worst:
        _, limit, value, allowed = worst
        shown, sign = _tell_apart(value, allowed), "<" if limit.least else ">"
        reason = f"{limit.what} {shown[0]}{limit.unit} {sign} {shown[1]}{limit.unit}"
        return Rejection(candidate.profile, limit.name, value, allowed, reason)
    if missing:
        limit, allowed = missing
        reason = f"{limit.what} was not measured, of other profiles it was"
        return Rejection(candidate.profile, limit.name, None, allowed, reason)
    return None


def _tell_apart(value: float, allowed: float) -> tuple[str, str]:
    """Both numbers, with as many digits as it takes to see that they differ."""
    shown = show_number(value), show_number(allowed)
    for digits in range(4, 18):
        if shown[0] != shown[1]:
            break
        shown = f"{value:.{digits}g}", f"{allowed:.{digits}g}"
    return shown


def _find_misses(
    candidates: Iterable[Candidate], limits: list[tuple[Limit, float]], trained_only: bool
) -> Iterable[Miss]:
    candidates = list(candidates)
    for limit, allowed in limits:
        values = [(value, it) for it in candidates if (value := limit.read(it)) is not None]
        missed = [(value, it) for value, it in values if not limit.holds(value, allowed)]
        if not missed:
            continue
        others = [pair for pair in limits if pair[0] is not limit]
        alone = [(value, it) for value, it in missed if _reject(it, others, trained_only) is None]
        value, nearest = min(alone or missed, key=lambda pair: (-pair[0] if limit.least else pair[0], pair[1].profile))
        yield Miss(limit.name, nearest.profile, value, allowed, bool(alone))


def _read_quality(candidate: Candidate, quality_known: bool) -> tuple[float, ...]:
    """The more the better, from the first number on."""
    if quality_known:
        retention = read_retention(candidate)
        return (-math.inf if retention is None else retention,)
    profile = Profile.parse(candidate.profile)
    trained = 0 if candidate.trained is False else 1
    exactness = -EXACTNESS.index(profile.precision), -ENCODINGS.index(profile.encoding)
    return trained, candidate.layers, candidate.dim, *exactness


def _read_costs(candidate: Candidate) -> tuple[float, float, float]:
    """Latency, disk and memory; infinite where nobody measured it."""
    costs = (read_latency(candidate), read_disk(candidate), read_ram(candidate))
    return tuple(math.inf if cost is None else cost for cost in costs)  # type: ignore[return-value]


def _find_front(ranked: Iterable[Candidate], quality_known: bool) -> Iterable[Candidate]:
    """Those that none dominates, of candidates from the best on: only an earlier one can dominate.

    (One that is at least as good in all and better in one comes before in the order, which compares the same numbers.)
    """
    front: list[tuple[tuple[float, ...], tuple[float, ...]]] = []
    for candidate in ranked:
        quality, costs = _read_quality(candidate, quality_known), _read_costs(candidate)
        if any(
            best >= quality and all(map(float.__le__, cheap, costs)) and (best, cheap) != (quality, costs)
            for best, cheap in front
        ):
            continue
        front.append((quality, costs))
        yield candidate
