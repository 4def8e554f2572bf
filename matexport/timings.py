"""What was timed, and its place in ``measurements/<host>.json``. `bench` times it; to look it up needs no numpy."""

from __future__ import annotations

from pathlib import Path

import msgspec

from matexport.manifest import Family
from matexport.measurements import load_sections, write_sections
from matexport.spec.measured import CPU, Bench, Host, ProfileBench

SECTION = "bench"


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
