"""Read a device's file: what the device allows, and which measurements were made on such a device.

``profiles/devices/*.toml`` describe real devices. Every limit in these files follows from the pages in `sources`, by
the rule that stands beside it as a comment; a limit that no source gives is left to the user.
"""

from __future__ import annotations

from pathlib import Path

from matexport.errors import RequestError
from matexport.host import KERNEL_FLAGS
from matexport.io.files import read_toml
from matexport.pick.limits import Budget
from matexport.spec.measured import HostPattern
from matexport.spec.record import Record, read_record


class Device(Record, frozen=True):
    """A device as its file describes it.

    Attributes:
        name: what it is called, for the user.
        sources: addresses of the pages that the limits follow from.
        limits: what the device allows; the command line may put other limits in their place.
        host: pattern of the hosts whose measurements count as made on this device; None where it has none.
    """

    name: str
    sources: tuple[str, ...]
    limits: Budget
    host: HostPattern | None = None


def load_device(path: Path | str) -> Device:
    """Read a device's file.

    Raises:
        RequestError: the file cannot be read, or has unknown keys (the message lists the known ones), no source, or an
            invalid value.
    """
    path = Path(path)
    device = read_record(read_toml(path, "device"), Device, str(path), RequestError)
    if not device.name.strip():
        raise RequestError(f"{path}: name is empty")
    if not device.sources or not all(source.startswith(("https://", "http://")) for source in device.sources):
        raise RequestError(f"{path}: sources must be the addresses of the pages that the limits follow from")
    if device.host:
        if device.host.cpus < 1 or not device.host.cpu:
            raise RequestError(f"{path}: [host] needs the name of the cpu, and cpus of at least 1")
        if unknown := sorted({*device.host.instruction_sets} - {*KERNEL_FLAGS}):
            raise RequestError(
                f"{path}: unknown instruction sets {', '.join(unknown)}; known here: {', '.join(KERNEL_FLAGS)}"
            )
    return device
