"""``measurements/<host>.json``: what was measured on one host, in sections (parity, bench, ...). Facts are elsewhere.

Sections are used only if they were measured on exactly these files: the measurements hold the digest of the manifest,
which holds the digests of all other files. For one host, the instruction sets, which decide what kernels run, must be
the same, too.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from matexport.errors import FamilyError, Problem, ProblemKind
from matexport.family.manifest import MANIFEST, MEASUREMENTS, Family, list_words, load_family
from matexport.io.files import hash_file, open_file, replace_file
from matexport.spec.measured import CPU, PROVIDERS, Bench, Host, ProfileBench, Quality
from matexport.spec.parity import RANGES_CHECK, Parity, Spread, TokenParity
from matexport.spec.record import Record

T = TypeVar("T")

#: Larger files are ignored: matexport writes none.
MAX_BYTES = 8 << 20


def find_measurements(family: Family, host: Host) -> Path:
    """Path of the measurements of one host, whether the file exists or not."""
    return family.path / MEASUREMENTS / f"{host.slug}.json"


def load_sections(family: Family, host: Host) -> dict[str, object]:
    """All sections of a host's file; empty if it cannot be read, or was measured on other files than the family's."""
    known = _read(find_measurements(family, host), family.digest)
    try:
        # A virtual machine may hide some instruction sets, and has the same file name then.
        if known and known["host"]["instruction_sets"] == list(host.instruction_sets):
            return known
    except (KeyError, TypeError):
        pass
    return {}


class Measurement(Record, frozen=True):
    """The parity that was recorded on a host, by profile.

    Attributes:
        parity: profile -> way of running -> parity.
        spread: profile -> difference between a text's vectors alone and in a batch.
        ranges: profile with int8 outputs -> how much their ranges cut off of the parent's own vectors.
        token_ids: how the probes' token ids compare with the parent's; None where they were not compared.
    """

    parity: Mapping[str, Mapping[str, Parity]]
    spread: Mapping[str, Spread | None] = msgspec.field(default_factory=dict)
    ranges: Mapping[str, Parity] = msgspec.field(default_factory=dict)
    token_ids: TokenParity | None = None


class HostMeasurements(Record, frozen=True):
    """What was measured of a family on one host.

    Attributes:
        parity: None where none was recorded.
        benches: provider -> its timings.
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
        known = _read(path, family.digest)
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
    return Measurements(family.digest, tuple(found))


def write_sections(
    family: Family, host: Host, sections: Mapping[str, object] | Callable[[], Mapping[str, object]]
) -> Path:
    """Write sections into a host's file in place of those of the same name, and keep the others.

    Args:
        sections: the sections, or a function that returns them. The function is called while no other process can
            write, so that it may read what is there and add to it.

    Returns:
        the path of the file, which is written beside it and then renamed, so that it is never half there.

    Raises:
        FamilyError: another family lies there now than the one that was measured.
        OSError: the file cannot be written.
        FamilyError: ``measurements`` is a link.
    """
    refuse_linked(family)
    target = find_measurements(family, host)
    target.parent.mkdir(exist_ok=True)
    with _hold(target.parent):
        if hash_file(family.path / MANIFEST) != family.digest:
            raise FamilyError(f"{family.path} was replaced while it was measured: nothing was recorded; do it again")
        new = sections() if callable(sections) else sections
        known = load_sections(family, host)
        known |= {"family": family.digest, "host": msgspec.to_builtins(host), **new}
        with replace_file(target) as file:
            file.write(_format(known).encode("utf-8"))
    return target


def keep_unlisted(old: Path, new: Path) -> None:
    """Copy what people wrote and what was measured from a family to the one that is about to take its place.

    Measurements do not count for other files than those that they were made on. Where the new family was measured on
    the same host, the old ones get another name.

    Raises:
        OSError: a file cannot be read or written.
    """
    if not (old / MANIFEST).is_file():
        return
    for path in list_words(load_family(old)):
        shutil.copyfile(path, new / path.name)
    digest = hash_file(new / MANIFEST)
    for path in sorted((old / MEASUREMENTS).glob("*.json")):
        (new / MEASUREMENTS).mkdir(exist_ok=True)
        target = new / MEASUREMENTS / path.name
        if target.exists() and (known := _read(path, digest)):  # the same files, built again
            target.write_text(_format(known | _read(target, digest)), encoding="utf-8")
            continue
        if target.exists():
            target = target.with_suffix(f".{hash_file(old / MANIFEST)[:8]}.json")
        shutil.copyfile(path, target)


def _format(sections: Mapping[str, object]) -> str:
    return json.dumps(sections, indent=1, sort_keys=True, allow_nan=True) + "\n"


def refuse_linked(family: Family) -> None:
    """Refuse to write measurements through a link, which may lead anywhere.

    Raises:
        FamilyError: ``measurements`` is a link or no folder.
    """
    folder = family.path / MEASUREMENTS
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        why = f"{folder} is a link or no folder; measurements are kept in a folder of the family's own: move it away"
        raise FamilyError(why, kind=ProblemKind.EXTRA, file=MEASUREMENTS)


def _read(path: Path, manifest_sha256: str) -> dict[str, Any]:
    """A file's sections; empty where it cannot be read, or is about other files than the family's."""
    opened = open_file(path, MAX_BYTES)
    if isinstance(opened, Problem):
        return {}
    try:
        with opened as file:
            known = _parse(file.read())
        if not isinstance(known, dict) or known["family"] != manifest_sha256:
            return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return known


def _parse(content: bytes) -> Any:
    try:
        return msgspec.json.decode(content)  # three times as fast as json, which can also read NaN
    except msgspec.DecodeError:
        return json.loads(content.decode("utf-8-sig"))  # an editor may have put a byte order mark before it


@contextmanager
def _hold(folder: Path) -> Iterator[None]:
    """Keep other matexport processes from writing in a folder meanwhile, where the system can lock a folder itself."""
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
    """Write a bench into ``measurements/<host>.json``, beside what else is known there.

    Profiles and providers that were not measured this time keep their timings. So do, in a profile, the other numbers
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
        return {_name_section(bench.provider): msgspec.to_builtins(kept, str_keys=True)}

    return write_sections(family, bench.host, add)


def load_bench(family: Family, host: Host, provider: str = CPU) -> Bench | None:
    """What was timed on a host with a provider; None if nothing can be read that was measured on exactly these files.

    Args:
        provider: a key of `matexport.spec.measured.PROVIDERS`.
    """
    return _convert(load_sections(family, host), _name_section(provider), Bench)


def _list_settings(profile: ProfileBench) -> tuple[object, ...]:
    shapes = {shape for timing in profile.threads.values() for shape in timing.latency}
    return profile.runs, profile.seconds, profile.mix_sha256, shapes


def _name_section(provider: str) -> str:
    return BENCH_SECTION if provider == CPU else f"{BENCH_SECTION} on {provider}"


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
    """What was evaluated on a host; None where nothing can be read that was measured on exactly these files."""
    return _convert(load_sections(family, host), QUALITY_SECTION, Quality)


def load_measurement(family: Family, host: Host) -> Measurement | None:
    """The parity that was recorded on a host; None if nothing can be read that was measured on exactly these files."""
    return _convert_parity(load_sections(family, host))


def record_parity(family: Family, host: Host, measured: Measurement) -> Path:
    """Write parity into ``measurements/<host>.json``, beside what else is known there.

    Returns:
        the path of the file.

    Raises:
        OSError: the file cannot be written.
    """
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
