"""Image files of a folder, in an order that is the same everywhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from matexport.errors import RequestError
from matexport.io.files import describe_os_error

#: Endings of the files of a folder that are taken for images. A file that is named may have any.
ENDINGS = frozenset({
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".tga", ".ico",
    ".avif", ".jp2",
})  # fmt: skip


def list_images(folder: Path) -> list[Path]:
    """The image files in a folder and below it, by name; what is hidden is left out, and links are not followed.

    Raises:
        RequestError: it is no folder, or cannot be read.
    """
    if not folder.is_dir():
        raise RequestError(f"{folder} is no folder of images")
    return sorted(_walk(folder), key=lambda path: path.relative_to(folder).parts)


def _walk(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise RequestError(f"{error.filename} cannot be read: {describe_os_error(error)}") from None

    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (
            Path(root, name) for name in names if not name.startswith(".") and Path(name).suffix.lower() in ENDINGS
        )
