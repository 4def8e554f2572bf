"""Ways to spoil a family. A careful forger rewrites the manifest as well, so that every digest agrees again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from matexport.manifest import MANIFEST, describe_files, load_family, write_manifest
from matexport.nestedfile import read_header


def flip_byte(path: Path, position: int = -1) -> None:
    """Invert one byte; the size stays. Negative positions count from the end."""
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


def edit_manifest(family: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the parsed manifest in place."""
    manifest = family / MANIFEST
    data = json.loads(manifest.read_text(encoding="utf-8"))
    edit(data)
    manifest.write_text(json.dumps(data), encoding="utf-8")


def reseal(family: Path) -> None:
    """Make the manifest agree with what the files hold now."""
    write_manifest(family, replace(load_family(family).facts, files=describe_files(family)))


def overwrite_values(weights: Path, name: str, values: NDArray[Any]) -> None:
    """Put values at the start of a tensor of a nested weights file."""
    entry = next(entry for entry in read_header(weights).entries if entry.name == name)
    with weights.open("r+b") as file:
        file.seek(entry.offset)
        file.write(np.asarray(values).tobytes())
