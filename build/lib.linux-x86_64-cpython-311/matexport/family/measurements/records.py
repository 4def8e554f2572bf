"""What was measured, as records: the sections of ``measurements/<host>.json``, read and written one by one."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from matexport.family.manifest import MEASUREMENTS, Family
from matexport.family.measurements.sections import load_sections, read_sections, write_sections
from matexport.spec.measured import CPU, LABELS, Bench, EngineFacts, Host, ProfileBench, Quality
from matexport.spec.parity import RANGES_CHECK, Parity, PixelParity, Spread, TokenParity
from matexport.spec.record import Record

T = TypeVar("T")


class Measurement(Record, frozen=True):
    """The parity that was recorded on a host, by profile.

    Attributes:
        parity: profile -> way of running -> parity.
        spread: profile -> difference between a text's vectors alone and in a batch.
        ranges: profile with int8 outputs -> how much their ranges cut off of the parent's own vectors.
        token_ids, pixels: how the probes' token ids or pixels compare with the parent's; None where they were not
            compared.
        engine: what ran; None where that is onnxruntime on the CPU.
        engines: of another engine, profile -> way of running -> parity with onnxruntime on the CPU.
    """

    parity: Mapping[str, Mapping[str, Parity]]
    spread: Mapping[str, Spread | None] = msgspec.field(default_factory=dict)
    ranges: Mapping[str, Parity] = msgspec.field(default_factory=dict)
    token_ids: TokenParity | None = None
    pixels: PixelParity | None = None
    engine: EngineFacts | None = None
    engines: Mapping[str, Mapping[str, Parity]] = msgspec.field(default_factory=dict)


class HostMeasurements(Record, frozen=True):
    """What was measured of a family on one host.

    Attributes:
        parity: None where none was recorded.
        benches: label of an engine -> its timings.
        quality: None where nothing was evaluated.
    """

    host: Host
    parity: Measurement | None
    benches: Mapping[str, Bench]
    quality: Quality | None


class Measurements(Record, frozen=True):
    """What was measured of a family on all hosts.

    Attributes:
        manifest_sha256: digest of the family's manifest, which every measurement was made under.
        hosts: in the order of their file names.
    """

    manifest_sha256: str
    hosts: tuple[HostMeasurements, ...]


def load_measurements(family: Family) -> Measurements:
    """Read every host's file once, but for those that cannot be read or were measured on other files than these."""
    folder = family.path / MEASUREMENTS
    found = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() and not folder.is_symlink() else []:
        known = read_sections(path, family.digest)
        with suppress(KeyError, msgspec.ValidationError):
            host = msgspec.convert(known["host"], Host)
            benches = {name: _convert(known, _name_section(BENCH_SECTION, name), Bench) for name in LABELS}
            found.append(
                HostMeasurements(
                    host,
                    _convert_parity(known),
                    {name: bench for name, bench in benches.items() if bench is not None},
                    _convert(known, QUALITY_SECTION, Quality),
                )
            )
    return Measurements(family.digest, tuple(found))


BENCH_SECTION = "bench"


def record_bench(family: Family, bench: Bench) -> Path:
    """Write a bench into ``measurements/<host>.json``, beside what else is known there.

    Profiles and engines that were not measured this time keep their timings. So do, in a profile, the other numbers
    of threads, but only where they were measured with the same settings, so that all its timings can be compared.

    Returns:
        the path of the file.

    Raises:
        OSError: the file cannot be written.
    """

    def add() -> dict[str, object]:
        known = load_bench(family, bench.host, bench.provider)
        profiles = dict(known.profiles) if known else {}
        for name, new in bench.profiles.items():
            old = profiles.get(name)
            if old and _list_settings(old) == _list_settings(new):
                again = new.threads.keys()  # timed anew, so their old timings of the parent are of another run
                parent = {count: timing for count, timing in old.parent.items() if count not in again}
                new = msgspec.structs.replace(
                    new, threads={**old.threads, **new.threads}, parent={**parent, **new.parent}
                )
            profiles[name] = new
        kept = msgspec.structs.replace(bench, profiles=profiles)
        return {_name_section(BENCH_SECTION, bench.provider): msgspec.to_builtins(kept, str_keys=True)}

    return write_sections(family, bench.host, add)


def load_bench(family: Family, host: Host, provider: str = CPU) -> Bench | None:
    """What was timed on a host with an engine; None if nothing can be read that was measured on exactly these files.

    Args:
        provider: the engine's label; of onnxruntime, its provider.
    """
    return _convert(load_sections(family, host), _name_section(BENCH_SECTION, provider), Bench)


def _list_settings(profile: ProfileBench) -> tuple[object, ...]:
    shapes = {shape for timing in profile.threads.values() for shape in timing.latency}
    return profile.runs, profile.seconds, profile.mix_sha256, shapes


def _name_section(section: str, label: str) -> str:
    """What a section is called that was measured with an engine."""
    return section if label == CPU else f"{section} on {label}"


QUALITY_SECTION = "quality"


def record_quality(family: Family, quality: Quality) -> Path:
    """Write an evaluation into ``measurements/<host>.json``, beside what else is known there.

    Tasks that were not measured this time are kept. So are, in a task of the same kind, metric and data, the scores of
    the other profiles.

    Returns:
        the path of the file.

    Raises:
        OSError: the file cannot be written.
    """

    def add() -> dict[str, object]:
        known = load_quality(family, quality.host, quality.provider)
        tasks = dict(known.tasks) if known else {}
        for name, new in quality.tasks.items():
            old = tasks.get(name)
            if old and (old.kind, old.metric, old.data_sha256) == (new.kind, new.metric, new.data_sha256):
                new = msgspec.structs.replace(
                    new, profiles={**old.profiles, **new.profiles}, adaptive=new.adaptive or old.adaptive
                )
            tasks[name] = new
        kept = msgspec.structs.replace(quality, tasks=tasks)
        return {_name_section(QUALITY_SECTION, quality.provider): msgspec.to_builtins(kept, str_keys=True)}

    return write_sections(family, quality.host, add)


def load_quality(family: Family, host: Host, label: str = CPU) -> Quality | None:
    """What was evaluated on a host with an engine; None where nothing can be read that was measured on these files."""
    return _convert(load_sections(family, host), _name_section(QUALITY_SECTION, label), Quality)


def load_measurement(family: Family, host: Host, label: str = CPU) -> Measurement | None:
    """The parity that was recorded on a host; None if nothing can be read that was measured on exactly these files.

    Args:
        label: of the engine that it is of.
    """
    known = load_sections(family, host)
    if label == CPU:
        return _convert_parity(known)
    return _convert(known, _name_section(PARITY_SECTION, label), Measurement)


PARITY_SECTION = "parity"


def record_parity(family: Family, host: Host, measured: Measurement, label: str = CPU) -> Path:
    """Write parity into ``measurements/<host>.json``, beside what else is known there.

    That of another engine than onnxruntime on the CPU is a section of its own; profiles that were not run this time
    keep theirs there, if it was the same engine on the same device.

    Args:
        label: of the engine that it is of.

    Returns:
        the path of the file.

    Raises:
        OSError: the file cannot be written.
    """
    if label != CPU:
        return write_sections(family, host, lambda: _add_parity(load_measurement(family, host, label), measured, label))
    sections: dict[str, object] = {
        "parity": msgspec.to_builtins(measured.parity),
        "spread": msgspec.to_builtins(measured.spread),
        "ranges": msgspec.to_builtins(measured.ranges),
    }
    if measured.token_ids:
        sections["token_ids"] = msgspec.to_builtins(measured.token_ids)
    if measured.pixels:
        sections["pixels"] = msgspec.to_builtins(measured.pixels)
    return write_sections(family, host, sections)


def _add_parity(old: Measurement | None, new: Measurement, label: str) -> dict[str, object]:
    """The section of an engine's parity: the new, and what is known of other profiles."""
    if old and old.engine == new.engine:
        both = {
            name: {**getattr(old, name), **getattr(new, name)} for name in ("parity", "spread", "ranges", "engines")
        }
        new = msgspec.structs.replace(new, **both)
    return {_name_section(PARITY_SECTION, label): msgspec.to_builtins(new)}


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
            msgspec.convert(known.get("pixels"), PixelParity | None),
        )
    except (KeyError, msgspec.ValidationError):
        return None
