"""What was timed, and its place in ``measurements/<host>.json``. `bench` times it; to look it up needs no numpy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from matexport.host import Host
from matexport.manifest import Family
from matexport.measurements import load_sections, write_sections
from matexport.spec import CPU, Record

SECTION = "bench"


class Sample(Record, frozen=True):
    """A duration that was measured several times, in milliseconds.

    Attributes:
        runs: how often.
        low, high: the bootstrap's 95 % interval of the median.
    """

    runs: int
    p50: float
    p95: float
    low: float
    high: float


class Timing(Record, frozen=True):
    """One profile with one number of threads.

    Attributes:
        first_vector: process start to first vector.
        latency: "BATCHxTOKENS" -> one run of the graph.
        call: embedding one short text.
        tokenize, graph: what that takes for its tokens, and for the run of the graph.
        mix: embedding all texts of the mix.
        texts_per_s: throughput on the mix, from the median.
        peak_bytes: largest resident memory of a process that did all of this; None where the system does not say.
    """

    first_vector: Sample
    latency: Mapping[str, Sample]
    call: Sample
    tokenize: Sample
    graph: Sample
    mix: Sample
    texts_per_s: float
    peak_bytes: int | None

    @property
    def overhead(self) -> float:
        """The part of a call that is not the graph: tokens, checks and arrays."""
        return max(0.0, 1 - self.graph.p50 / self.call.p50)


class ProfileBench(Record, frozen=True):
    """One profile: its bytes, and its timings by number of threads.

    Attributes:
        disk_bytes: of all that is needed to run it: graph, prefix of the weights, tokenizer, configuration.
        download_bytes: of the graph and the prefix of the weights.
        runs, seconds: of each shape, as they were asked for.
        mix_texts, mix_sha256: number of texts of the mix, and the digest of all of them.
        parent: the parent in torch at this profile's point, timed in the same run, by number of threads; or nothing.
    """

    disk_bytes: int
    download_bytes: int
    runs: int
    seconds: float
    mix_texts: int
    mix_sha256: str
    threads: Mapping[int, Timing]
    parent: Mapping[int, Timing] = msgspec.field(default_factory=dict)


class Bench(Record, frozen=True):
    """What `matexport.bench.bench_family` measured on one host with one provider, by profile."""

    host: Host
    provider: str
    profiles: Mapping[str, ProfileBench]


def record_bench(family: Family, bench: Bench) -> Path:
    """Keep a bench in ``measurements/<host>.json``, with what else is known there; facts are not touched.

    Profiles, numbers of threads and providers that were not measured this time keep what was measured before; but
    numbers of threads only where as much was measured, or their lines would not compare.
    """

    def add() -> dict[str, object]:
        known = load_bench(family, bench.host, bench.provider)
        profiles = dict(known.profiles) if known else {}
        for name, new in bench.profiles.items():
            old = profiles.get(name)
            if old and _list_settings(old) == _list_settings(new):
                again = new.threads.keys()  # what was timed beside these before was not timed in the same run
                parent = {count: timing for count, timing in old.parent.items() if count not in again}
                new = msgspec.structs.replace(
                    new, threads={**old.threads, **new.threads}, parent={**parent, **new.parent}
                )
            profiles[name] = new
        kept = msgspec.structs.replace(bench, profiles=profiles)
        return {_name_section(bench.provider): msgspec.to_builtins(kept, str_keys=True)}

    return write_sections(family, bench.host, add)


def load_bench(family: Family, host: Host, provider: str = CPU) -> Bench | None:
    """What was measured on a host, if there is something that can be read and that is of these very files."""
    try:
        return msgspec.convert(load_sections(family, host)[_name_section(provider)], Bench, str_keys=True)
    except (KeyError, msgspec.ValidationError):
        return None


def _list_settings(profile: ProfileBench) -> tuple[object, ...]:
    shapes = {shape for timing in profile.threads.values() for shape in timing.latency}
    return profile.runs, profile.seconds, profile.mix_sha256, shapes


def _name_section(provider: str) -> str:
    return SECTION if provider == CPU else f"{SECTION} on {provider}"
