"""``measurements/<host>.json``: what was measured on one host, in sections (parity, bench, ...). Facts are elsewhere.

A section is believed only when it was measured on these very files: beside it stands the digest of the manifest, which
holds the digests of all others; and with the same instruction sets, which decide what kernels run.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from matexport.io.files import hash_file
from matexport.manifest import MANIFEST, MEASUREMENTS, Family
from matexport.spec.measured import Host

#: A file beyond this was not written by us.
MAX_BYTES = 64 << 20


def find_measurements(family: Family, host: Host) -> Path:
    """The file of one host, whether it is there or not."""
    return family.path / MEASUREMENTS / f"{host.slug}.json"


def load_sections(family: Family, host: Host) -> dict[str, object]:
    """All sections of a host; empty when there are none that can be read, or they are of other files."""
    known = _read(family, find_measurements(family, host))
    try:
        # A virtual machine may hide some.
        if known and known["host"]["instruction_sets"] == list(host.instruction_sets):
            return known
    except (KeyError, TypeError):
        pass
    return {}


def load_all_sections(family: Family) -> list[tuple[Host, dict[str, object]]]:
    """The sections of every host that something of these very files was measured on, by the file's name."""
    found = []
    folder = family.path / MEASUREMENTS
    for path in sorted(folder.glob("*.json")) if folder.is_dir() and not folder.is_symlink() else []:
        known = _read(family, path)
        with suppress(KeyError, msgspec.ValidationError):
            found.append((msgspec.convert(known["host"], Host), known))
    return found


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
        # A name that the manifest's check lets lie, should this process be killed.
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f"{target.name}.", suffix=".json.tmp")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            Path(temporary).chmod(0o644)
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    return target


def _read(family: Family, path: Path) -> dict[str, Any]:
    """A file's sections; none where it cannot be read, or is of other files than this family's."""
    try:
        if path.is_symlink() or path.stat().st_size > MAX_BYTES:
            return {}
        known = _parse(path.read_bytes())
        if not isinstance(known, dict) or known["family"] != hash_file(family.path / MANIFEST):
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
