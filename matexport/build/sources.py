"""Where a parent's files are: a local directory, files inside an installed package, or a snapshot of a hub model.

Whatever the source, what comes out is a local directory, so nothing later can reach the network. Only a hub id does,
here, and only files that are needed are fetched: no pickles unless asked, no other frameworks' weights.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from matexport.errors import ParentError, RequestError
from matexport.manifest import hash_file
from matexport.spec import ParentSource

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_FILES = ["*.json", "*.txt", "*.model"]
_HUB_IGNORED = ["onnx/*", "openvino/*", "*/onnx/*", "*/openvino/*"]


def locate_parent(parent: ParentSource, base: Path) -> Path:
    """The local directory that holds a parent's files; of a hub id, all but the weights are downloaded.

    Args:
        base: directory against which a relative path is read.

    Raises:
        RequestError: the source is none of the three forms.
        ParentError: there is no such directory, package or hub model.
    """
    source = parent.source
    if not source.strip():
        raise RequestError("the parent's source is empty; give a directory, a hub id, or package:NAME/path")
    if source.startswith("package:"):
        return _locate_in_package(source.removeprefix("package:"))
    local = base / Path(source).expanduser()
    if local.is_dir():
        return local.resolve()
    if source.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(source):
        raise ParentError(
            f"the parent {source!r} is not a directory (looked at {local}); "
            "give a directory, a hub id such as org/name, or package:NAME/path"
        )
    return _download(parent, [*_HUB_FILES, *(["*.py"] if parent.trust_remote_code else [])])


def fetch_weights(parent: ParentSource, base: Path) -> None:
    """Download the weights of a hub parent, beside its small files; a local one has them.

    Called when everything that can be refused without them has been.

    Raises:
        ParentError: the hub does not give them.
    """
    if not parent.source.startswith("package:") and not (base / Path(parent.source).expanduser()).is_dir():
        _download(parent, ["*.safetensors", *(["*.bin"] if parent.allow_pickle else [])])


def hash_weights(root: Path, pattern: str) -> dict[str, str]:
    """Relative path -> sha256 of the files in `root` that match a glob pattern, sorted."""
    return {path.relative_to(root).as_posix(): hash_file(path) for path in sorted(root.glob(pattern))}


def check_pin(parent: ParentSource, weights: dict[str, str]) -> None:
    """Refuse weights that are not the pinned ones.

    Raises:
        ParentError: with both digests.
        RequestError: one digest is pinned, but the weights are in several files.
    """
    if parent.sha256 is None:
        return
    pinned = parent.sha256
    if isinstance(pinned, str):
        if len(weights) != 1:
            names = ", ".join(weights)
            raise RequestError(f"sha256 is one digest, but the weights are {names}: give a table of file = digest")
        pinned = dict.fromkeys(weights, pinned)
    for name, digest in pinned.items():
        actual = weights.get(name)
        if actual is None:
            raise ParentError(f"the profile pins the sha256 of {name}, but {parent.source} has {', '.join(weights)}")
        if actual != digest.lower():
            raise ParentError(f"{name} of {parent.source} has the sha256 {actual}; the profile pins {digest}")
    if unpinned := sorted(set(weights) - set(pinned)):
        raise ParentError(f"the profile pins some weights of {parent.source}, but not {', '.join(unpinned)}")


def _locate_in_package(rest: str) -> Path:
    name, _, inner = rest.partition("/")
    module = name.replace("-", "_")
    if not module.isidentifier():
        raise RequestError(f"package:{rest} names no package; the form is package:NAME/path")
    spec = importlib.util.find_spec(module)  # finds a top-level package without importing it
    if spec is None or not spec.submodule_search_locations:
        raise ParentError(f"the package {name!r} is not installed; install it with: pip install {name}")
    root = Path(next(iter(spec.submodule_search_locations))).resolve()
    directory = (root / inner).resolve()
    if not directory.is_relative_to(root):
        raise RequestError(f"package:{rest} leads out of the package")
    if not directory.is_dir():
        raise ParentError(f"the package {name!r} is installed, but has no directory {inner!r}")
    return directory


def _download(parent: ParentSource, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        path = snapshot_download(
            parent.source, revision=parent.revision, allow_patterns=patterns, ignore_patterns=_HUB_IGNORED
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ParentError(
            f"{parent.source!r} is no local directory and could not be fetched from the hub: {reason}"
        ) from error
    return Path(path).resolve()
