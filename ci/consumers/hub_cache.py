"""Lay a folder out as a hub's cache does: a snapshot of symbolic links, into blobs that are named by their digest.

Most users load from there, and runtimes refuse weights that lie outside of a graph's folder once links are followed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

REVISION = "0123456789abcdef0123456789abcdef01234567"


def lay_out(folder: Path, repository: str, *, shared: bool = False) -> Path:
    """Copy a folder to the cache below HF_HOME. (optimum-onnx reads HF_HOME, and not HF_HUB_CACHE.)

    Args:
        repository: such as ``matexport/L02-D064-fp32``; what lies there is replaced.
        shared: as huggingface_hub 1.32 and later do: each blob is a link, too, into a store that all repositories
            share, in folders by the first two digits of the digest.

    Returns:
        the snapshot, which `repository` loads from.
    """
    cache = Path(os.environ["HF_HOME"]) / "hub"
    root = cache / f"models--{repository.replace('/', '--')}"
    shutil.rmtree(root, ignore_errors=True)
    snapshot, blobs, refs = root / "snapshots" / REVISION, root / "blobs", root / "refs"
    for made in (snapshot, blobs, refs):
        made.mkdir(parents=True)
    (refs / "main").write_text(REVISION, encoding="utf-8")
    for source in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
        kept = cache / "blobs" / digest[:2] / digest if shared else blobs / digest
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, kept)
        if shared and not (blobs / digest).is_symlink():
            (blobs / digest).symlink_to(os.path.relpath(kept, blobs))
        link = snapshot / source.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / digest, link.parent))
    return snapshot
