"""The limits of a device: what each is of, how a profile is held to it, and what is said of one that misses it.

A limit on something that no profile has a number of cannot be checked: it lets all through, and is named
(`LimitCheck.done`). Where some profiles have the number, one without it does not fit: nobody can say that it does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from matexport.family.survey import Candidate, Measured, Survey, is_measured_on
from matexport.spec.measured import Host
from matexport.spec.record import Record

MB = 1e6


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


class LimitCheck(Record, frozen=True):
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
    known: Callable[[Candidate], Measured | None] | None
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


def read_known(known: Measured | None, *, scale: float = 1.0, signed: bool = False) -> float | None:
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


def show_number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def list_limits(budget: Budget) -> list[tuple[str, float]]:
    asked = ((name, getattr(budget, name)) for name in LIMITS)
    return [(name, allowed) for name, allowed in asked if allowed is not None]


def check_limit(survey: Survey, limit: Limit, allowed: float) -> LimitCheck:
    if limit.known is None:
        return LimitCheck(limit.name, allowed, len(survey.candidates), (), 0)
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
    return LimitCheck(limit.name, allowed, here, tuple(elsewhere.items()), missing)


def reject(candidate: Candidate, limits: Iterable[tuple[Limit, float]], trained_only: bool) -> Rejection | None:
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


def find_misses(
    candidates: Iterable[Candidate], limits: list[tuple[Limit, float]], trained_only: bool
) -> Iterable[Miss]:
    candidates = list(candidates)
    for limit, allowed in limits:
        values = [(value, it) for it in candidates if (value := limit.read(it)) is not None]
        missed = [(value, it) for value, it in values if not limit.holds(value, allowed)]
        if not missed:
            continue
        others = [pair for pair in limits if pair[0] is not limit]
        alone = [(value, it) for value, it in missed if reject(it, others, trained_only) is None]
        value, nearest = min(alone or missed, key=lambda pair: (-pair[0] if limit.least else pair[0], pair[1].profile))
        yield Miss(limit.name, nearest.profile, value, allowed, bool(alone))


class Budget(Record, frozen=True):
    """What a device allows, and how good a profile must be; None is no limit. MB are 10^6 bytes.

    Attributes:
        max_latency_ms: of one short text, or of the shape that is asked for.
        max_disk_mb: of all that is needed to run the profile.
        max_ram_mb: of the largest resident memory of a process that runs it.
        max_cold_start_ms: from the start of the process to the first vector.
        min_retention: share of the whole parent's quality.

    Raises:
        ValueError: a limit is not a finite number above 0, or `min_retention` is above 1.
    """

    max_latency_ms: float | None = None
    max_disk_mb: float | None = None
    max_ram_mb: float | None = None
    max_cold_start_ms: float | None = None
    min_retention: float | None = None

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            limit = getattr(self, name)
            if limit is not None and not 0 < limit < math.inf:
                raise ValueError(f"{name} = {limit:g} was asked; a limit is a finite number above 0")
        if self.min_retention is not None and self.min_retention > 1:
            raise ValueError(f"min_retention = {self.min_retention:g} was asked; it is a share of 1, such as 0.95")
