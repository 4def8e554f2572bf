"""Read a device's file: what the device allows, and which measurements were made on such a device.

``devices/*.toml``, beside this module, describe real devices, which are asked for by the names of their files. Every
limit in these files follows from the pages in `sources`, by the rule that stands beside it as a comment; a limit that
no source gives is left to the user.
"""

from __future__ import annotations

from pathlib import Path

from matexport.errors import RequestError
from matexport.host import KERNEL_FLAGS
from matexport.io.files import read_toml
from matexport.pick.limits import Budget
from matexport.spec.measured import HostPattern
from matexport.spec.record import Record, read_record, suggest

SHIPPED = Path(__file__).with_name("devices")


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


def list_devices() -> list[str]:
    """Names of the devices that come with matexport."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def find_device(asked: Path | str) -> Path:
    """The file of a device that comes with matexport, by its name; or the file at a path.

    Raises:
        RequestError: there is neither a device of this name nor a file; the message lists the names.
    """
    path, known = Path(asked), list_devices()
    if str(asked) in known:
        return SHIPPED / f"{asked}.toml"
    if path.is_file() or (path.suffix == ".toml" and path.stem not in known):
        return path  # which `load_device` refuses if it is not there
    raise RequestError(
        f"the device {str(asked)!r} was asked; neither a file nor one of those that come with matexport: "
        f"{', '.join(known)}{suggest(path.stem, known)}"
    )


def load_device(device: Path | str) -> Device:
    """Read a device's file.

    Args:
        device: the name of one that comes with matexport, such as ``raspberry-pi-5``, or the path of a TOML file.

    Raises:
        RequestError: there is no such device or file, or the file has unknown keys (the message lists the known ones),
            no source, or an invalid value.
    """
    return read_device(find_device(device))


def read_device(path: Path) -> Device:
    """Read the file at a path; raises as `load_device` does."""
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
