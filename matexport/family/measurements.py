"""``measurements/<host>.json``: what was measured on one host, in sections (parity, bench, ...). Facts are elsewhere.

A section is believed only when it was measured on these very files: beside it stands the digest of the manifest, which
holds the digests of all others; and with the same instruction sets, which decide what kernels run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from matexport.family.manifest import MANIFEST, MEASUREMENTS, Family
from matexport.io.files import hash_file, replace_file
from matexport.spec.measured import CPU, PROVIDERS, Bench, Host, ProfileBench, Quality
from matexport.spec.parity import RANGES_CHECK, Parity, Spread, TokenParity
from matexport.spec.record import Record

T = TypeVar("T")

#: A file beyond this was not written by us.
MAX_BYTES = 64 << 20


def find_measurements(family: Family, host: Host) -> Path:
    """The file of one host, whether it is there or not."""
    return family.path / MEASUREMENTS / f"{host.slug}.json"


def load_sections(family: Family, host: Host) -> dict[str, object]:
    """All sections of a host; empty when there are none that can be read, or they are of other files."""
    known = _read(find_measurements(family, host), hash_file(family.path / MANIFEST))
    try:
        # A virtual machine may hide some.
        if known and known["host"]["instruction_sets"] == list(host.instruction_sets):
            return known
    except (KeyError, TypeError):
        pass
    return {}


class Measurement(Record, frozen=True):
    """The parity that was recorded on a host, by profile.

    Attributes:
        parity: way of running -> parity.
        spread: between a text alone and in a batch.
        ranges: of int8 outputs, how much their ranges cut off of the parent's own vectors.
        token_ids: of the probes, against the parent's; None where nobody looked.
    """

    parity: Mapping[str, Mapping[str, Parity]]
    spread: Mapping[str, Spread | None] = msgspec.field(default_factory=dict)
    ranges: Mapping[str, Parity] = msgspec.field(default_factory=dict)
    token_ids: TokenParity | None = None


class HostMeasurements(Record, frozen=True):
    """What was measured of a family on one host.

    Attributes:
        parity: None where none was recorded.
        benches: by provider.
        quality: None where nothing was evaluated.
    """

    host: Host
    parity: Measurement | None
    benches: Mapping[str, Bench]
    quality: Quality | None


class Measurements(Record, frozen=True):
    """What was measured of a family, on all hosts, by the name of their files.

    Attributes:
        manifest_sha256: of the family's manifest, which all of it was measured under.
    """

    manifest_sha256: str
    hosts: tuple[HostMeasurements, ...]


def load_measurements(family: Family) -> Measurements:
    """Read every host's file once. What cannot be read, or is of other files than this family's, is left out."""
    digest = hash_file(family.path / MANIFEST)
    folder = family.path / MEASUREMENTS
    found = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() and not folder.is_symlink() else []:
        known = _read(path, digest)
        with suppress(KeyError, msgspec.ValidationError):
            host = msgspec.convert(known["host"], Host)
            benches = {name: _convert(known, _name_section(name), Bench) for name in PROVIDERS}
            found.append(
                HostMeasurements(
                    host,
                    _convert_parity(known),
                    {name: bench for name, bench in benches.items() if bench is not None},
                    _convert(known, QUALITY_SECTION, Quality),
                )
            )
    return Measurements(digest, tuple(found))


def write_sections(
    family: Family, host: Host, sections: Mapping[str, object] | Callable[[], Mapping[str, object]]
) -> Path:
    """Put sections in place of those of the same name, and keep the others.

    Args:
        sections: or what gives them, called when no other process can write: it may read what is there and add to it.

    Returns:
        the file. Written beside it and renamed, so that it is never half there.
    """
    target = find_measurements(family, host)
    target.parent.mkdir(exist_ok=True)
    with _hold(target.parent):
        new = sections() if callable(sections) else sections
        known = load_sections(family, host)
        known |= {"family": hash_file(family.path / MANIFEST), "host": msgspec.to_builtins(host), **new}
        text = json.dumps(known, indent=1, sort_keys=True, allow_nan=True) + "\n"
        with replace_file(target) as file:
            file.write(text.encode("utf-8"))
    return target


def _read(path: Path, manifest_sha256: str) -> dict[str, Any]:
    """A file's sections; none where it cannot be read, or is of other files than this family's."""
    try:
        if path.is_symlink() or path.stat().st_size > MAX_BYTES:
            return {}
        known = _parse(path.read_bytes())
        if not isinstance(known, dict) or known["family"] != manifest_sha256:
            return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return known


def _parse(content: bytes) -> Any:
    try:
        return msgspec.json.decode(content)  # three times as fast as json, which reads NaN and all else, too
    except msgspec.DecodeError:
        return json.loads(content.decode("utf-8"))


@contextmanager
def _hold(folder: Path) -> Iterator[None]:
    """Let no other process of ours write there meanwhile, where the system can lock a folder without a file in it."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


BENCH_SECTION = "bench"


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
    return _convert(load_sections(family, host), _name_section(provider), Bench)


def _list_settings(profile: ProfileBench) -> tuple[object, ...]:
    shapes = {shape for timing in profile.threads.values() for shape in timing.latency}
    return profile.runs, profile.seconds, profile.mix_sha256, shapes


def _name_section(provider: str) -> str:
    return BENCH_SECTION if provider == CPU else f"{BENCH_SECTION} on {provider}"


QUALITY_SECTION = "quality"


def record_quality(family: Family, quality: Quality) -> Path:
    """Keep an evaluation in ``measurements/<host>.json``, with what else is known there.

    Tasks that were not measured this time stay; and so do, in a task of the same data, the other profiles.
    """

    def add() -> dict[str, object]:
        known = load_quality(family, quality.host)
        tasks = dict(known.tasks) if known else {}
        for name, new in quality.tasks.items():
            old = tasks.get(name)
            if old and (old.kind, old.metric, old.data_sha256) == (new.kind, new.metric, new.data_sha256):
                new = msgspec.structs.replace(
                    new, profiles={**old.profiles, **new.profiles}, adaptive=new.adaptive or old.adaptive
                )
            tasks[name] = new
        return {QUALITY_SECTION: msgspec.to_builtins(msgspec.structs.replace(quality, tasks=tasks), str_keys=True)}

    return write_sections(family, quality.host, add)


def load_quality(family: Family, host: Host) -> Quality | None:
    """What was evaluated on a host, if there is something that can be read and that is of these very files."""
    return _convert(load_sections(family, host), QUALITY_SECTION, Quality)


def load_measurement(family: Family, host: Host) -> Measurement | None:
    """The parity that was recorded on a host, if there is some that can be read and that is of these very files."""
    return _convert_parity(load_sections(family, host))


def record_parity(family: Family, host: Host, measured: Measurement) -> Path:
    """Keep parity in ``measurements/<host>.json``, with what else is known there."""
    sections: dict[str, object] = {
        "parity": msgspec.to_builtins(measured.parity),
        "spread": msgspec.to_builtins(measured.spread),
        "ranges": msgspec.to_builtins(measured.ranges),
    }
    if measured.token_ids:
        sections["token_ids"] = msgspec.to_builtins(measured.token_ids)
    return write_sections(family, host, sections)


def _convert(known: Mapping[str, object], section: str, kind: type[T]) -> T | None:
    try:
        return msgspec.convert(known[section], kind, str_keys=True)
    except (KeyError, msgspec.ValidationError):
        return None


def _convert_parity(known: Mapping[str, object]) -> Measurement | None:
    try:
        parity = msgspec.convert(known["parity"], dict[str, dict[str, Parity]])
        # Earlier versions kept the ranges among the ways of running.
        older = {name: ways.pop(RANGES_CHECK) for name, ways in parity.items() if RANGES_CHECK in ways}
        return Measurement(
            parity,
            msgspec.convert(known.get("spread", {}), dict[str, Spread | None]),
            older | msgspec.convert(known.get("ranges", {}), dict[str, Parity]),
            msgspec.convert(known.get("token_ids"), TokenParity | None),
        )
    except (KeyError, msgspec.ValidationError):
        return None
