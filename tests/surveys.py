"""Surveys made up by hypothesis: few values, so that ties, limits met exactly, and dominated candidates are common."""

from __future__ import annotations

import math
import struct

from hypothesis import strategies as st
from msgspec.structs import replace

from matexport.family.survey import Candidate, Measured, Survey
from matexport.pick.limits import Budget
from matexport.spec.measured import Host
from matexport.spec.profile import Encoding, Point, Precision, Profile

HERE = Host("a processor", "x86_64", ("avx2",), 4, "Linux", "3.11", "1.31.0")
THERE = replace(HERE, cpu="another processor")
#: What a file that was edited by hand can hold; none of it counts as measured.
NONSENSE = (math.nan, math.inf, -math.inf)


def known(values: tuple[float, ...], nonsense: tuple[float, ...]) -> st.SearchStrategy[Measured | None]:
    numbers = st.sampled_from(values) | st.sampled_from(nonsense)
    return st.none() | st.builds(Measured, numbers, st.sampled_from((HERE, THERE)))


profiles = st.builds(
    Profile,
    st.builds(Point, st.integers(1, 3), st.sampled_from((8, 16))),
    st.sampled_from((Precision.FP32, Precision.INT8, Precision.Q4)),
    st.sampled_from(Encoding),
)
#: Two resamples, so that one profile wins in both of them often.
resamples = st.tuples(*[st.sampled_from((0.0, 0.5, 1.0))] * 2).map(lambda values: (struct.pack("<2f", *values),))
TIMES = (1.0, 2.0, 3.0, 4.0)


@st.composite
def candidates(draw: st.DrawFn, unmeasured: frozenset[str], resampled: bool) -> Candidate:
    profile = draw(profiles)

    def number(name: str, values: tuple[float, ...], nonsense: tuple[float, ...]) -> Measured | None:
        return None if name in unmeasured else draw(known(values, nonsense))

    return Candidate(
        profile=profile.name,
        layers=profile.point.layers,
        dim=profile.point.dim,
        trained=draw(st.sampled_from((True, False, None))),
        disk_bytes=draw(st.integers(1, 4)) * 1_000_000,
        download_bytes=1,
        peak_bytes=number("peak_bytes", tuple(1e6 * time for time in TIMES), (*NONSENSE, 0.0, -1.0)),
        latency_ms=number("latency_ms", TIMES, (*NONSENSE, 0.0, -1.0)),
        cold_start_ms=number("cold_start_ms", TIMES, (*NONSENSE, 0.0, -1.0)),
        retention=number("retention", (-0.5, 0.0, 0.25, 0.5, 1.0), NONSENSE),
        resampled=draw(st.just(()) | resamples) if resampled else (),
    )


@st.composite
def surveys(draw: st.DrawFn, resampled: bool = False) -> Survey:
    fields = ("peak_bytes", "latency_ms", "cold_start_ms", "retention")
    unmeasured = frozenset(draw(st.sets(st.sampled_from(fields))))
    found = draw(st.lists(candidates(unmeasured, resampled), min_size=1, max_size=10, unique_by=lambda it: it.profile))
    return Survey(HERE, tuple(found), ("a task",), (HERE, THERE))


limits = st.none() | st.sampled_from((0.5, *TIMES))
budgets = st.builds(Budget, limits, limits, limits, limits, st.none() | st.sampled_from((0.2, 0.25, 0.5, 0.9, 1.0)))
