"""The limits of a device: what each one limits, how a profile is held to it, and the reason when a profile misses it.

A limit on something that was measured for no profile cannot be checked: it lets all profiles through, and
`LimitCheck.done` is False. Where it was measured for some profiles, a profile without the number is rejected, since it
is not known to fit.
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
        measured: the profile's value, in the unit of the limit; None where it was not measured.
        allowed: the limit's value; None for ``trained_only``.
        reason: the same in words.
    """

    profile: str
    limit: str
    measured: float | None
    allowed: float | None
    reason: str


class Miss(Record, frozen=True):
    """The profile that comes closest to keeping a limit, among those that miss it.

    Attributes:
        measured, allowed: the profile's value and the limit's, in the unit of the limit.
        alone: whether the profile keeps all other limits, so that loosening this one to `measured` would let it
            through. Only where no profile that misses the limit keeps all others, one that does not is named.
    """

    limit: str
    profile: str
    measured: float
    allowed: float
    alone: bool


class LimitCheck(Record, frozen=True):
    """How one limit was checked.

    Attributes:
        limit: a field of `Budget`.
        allowed: its value, in the unit of the limit.
        here: how many profiles were measured on the host in question; for the disk all, as the manifest has the sizes.
        elsewhere: (host, how many profiles have a number of that other host).
        missing: how many profiles have no number.
    """

    limit: str
    allowed: float
    here: int
    elsewhere: tuple[tuple[Host, int], ...]
    missing: int

    @property
    def done(self) -> bool:
        """Whether any profile could be held to the limit."""
        return bool(self.here or self.elsewhere)


class Limit(Record, frozen=True):
    """A kind of limit.

    Attributes:
        name: the field of `Budget`.
        what: what it limits, in words.
        unit: the unit as it is written after a number, with the space.
        read: gives a candidate's number in that unit; None where it was not measured.
        known: gives the measurement that `read` is taken from, with its host; None for what the manifest states.
        least: whether the limit is the smallest value allowed, and not the largest.
        command: the matexport command that measures it.
    """

    name: str
    what: str
    unit: str
    read: Callable[[Candidate], float | None]
    known: Callable[[Candidate], Measured | None] | None
    least: bool = False
    command: str = "bench"

    def holds(self, value: float, allowed: float) -> bool:
        """Whether a value keeps the limit; both are in `unit`."""
        return value >= allowed if self.least else value <= allowed

    def exceed(self, value: float, allowed: float) -> float:
        """The factor by which a value misses the limit: above 1 where it misses it, at most 1 where it keeps it."""
        if not self.least:
            return value / allowed
        return allowed / value if value > 0 else math.inf

    def show(self, value: float) -> str:
        """A value with its unit, as text."""
        return f"{show_number(value)}{self.unit}"


def read_known(known: Measured | None, *, scale: float = 1.0, signed: bool = False) -> float | None:
    """A measured number divided by `scale`; None where it was not measured, or is not a possible measurement.

    Args:
        signed: whether 0 and negative numbers are possible; what is not finite never is.
    """
    if known is None or not math.isfinite(known.value) or (known.value <= 0 and not signed):
        return None
    return known.value / scale


def read_retention(candidate: Candidate) -> float | None:
    """Retention as a share of the parent's quality; may be 0 or negative, since some metrics are correlations."""
    return read_known(candidate.retention, signed=True)


def read_latency(candidate: Candidate) -> float | None:
    """Median latency in milliseconds."""
    return read_known(candidate.latency_ms)


def read_ram(candidate: Candidate) -> float | None:
    """Peak memory in MB of 10^6 bytes."""
    return read_known(candidate.peak_bytes, scale=MB)


def read_disk(candidate: Candidate) -> float:
    """Size on disk in MB of 10^6 bytes."""
    return candidate.disk_bytes / MB


def read_cold_start(candidate: Candidate) -> float | None:
    """Median time from process start to first vector, in milliseconds."""
    return read_known(candidate.cold_start_ms)


#: Field of `Budget` -> its limit.
LIMITS: Mapping[str, Limit] = {
    limit.name: limit
    for limit in (
        Limit("max_latency_ms", "latency", " ms", read_latency, lambda profile: profile.latency_ms),
        Limit("max_disk_mb", "disk", " MB", read_disk, None),
        Limit("max_ram_mb", "memory", " MB", read_ram, lambda profile: profile.peak_bytes),
        Limit("max_cold_start_ms", "cold start", " ms", read_cold_start, lambda profile: profile.cold_start_ms),
        Limit("min_retention", "retention", "", read_retention, lambda profile: profile.retention, True, "evaluate"),
    )
}
TRAINED_ONLY = "trained_only"


def show_number(value: float) -> str:
    """A number with three significant digits, or from 100 on all digits before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def list_limits(budget: Budget) -> list[tuple[str, float]]:
    """The limits that a budget sets, as (field of `Budget`, value allowed)."""
    asked = ((name, getattr(budget, name)) for name in LIMITS)
    return [(name, allowed) for name, allowed in asked if allowed is not None]


def check_limit(survey: Survey, limit: Limit, allowed: float) -> LimitCheck:
    """Count the profiles that can be held to a limit, by the host that their numbers are from."""
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
    """Why a candidate does not fit; None if it fits.

    Args:
        limits: those that could be checked, each with the value allowed.

    Returns:
        ``trained_only`` if the candidate breaks it, else the limit missed by the largest factor, else the first limit
        that the candidate has no number for.
    """
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
    """Both numbers as text, with as many digits as it takes to see that they differ."""
    shown = show_number(value), show_number(allowed)
    for digits in range(4, 18):
        if shown[0] != shown[1]:
            break
        shown = f"{value:.{digits}g}", f"{allowed:.{digits}g}"
    return shown


def find_misses(
    candidates: Iterable[Candidate], limits: list[tuple[Limit, float]], trained_only: bool
) -> Iterable[Miss]:
    """The nearest miss of each limit that some candidate misses, in the order of `limits`."""
    candidates = list(candidates)
    for limit, allowed in limits:
        values = [(value, candidate) for candidate in candidates if (value := limit.read(candidate)) is not None]
        missed = [(value, candidate) for value, candidate in values if not limit.holds(value, allowed)]
        if not missed:
            continue
        others = [pair for pair in limits if pair[0] is not limit]
        alone = [(value, candidate) for value, candidate in missed if reject(candidate, others, trained_only) is None]
        value, nearest = min(alone or missed, key=lambda pair: (-pair[0] if limit.least else pair[0], pair[1].profile))
        yield Miss(limit.name, nearest.profile, value, allowed, bool(alone))


class Budget(Record, frozen=True):
    """What a device allows, and how good a profile must be; None is no limit. MB are 10^6 bytes.

    Attributes:
        max_latency_ms: median latency of one short text, or of the shape that is asked for.
        max_disk_mb: size of all files that are needed to run the profile.
        max_ram_mb: largest resident memory of a process that runs the profile.
        max_cold_start_ms: median time from the start of the process to the first vector.
        min_retention: share of the whole parent's quality, above 0 and at most 1.

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
