"""What lies in a folder, and what a writer left beside it."""

from __future__ import annotations

from pathlib import Path


def read_all(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def hidden_beside(out: Path) -> list[str]:
    return [path.name for path in out.parent.iterdir() if path.name.startswith(".") and not path.name.endswith(".lock")]
