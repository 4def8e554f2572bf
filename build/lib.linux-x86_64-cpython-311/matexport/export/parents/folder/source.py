"""Find a parent's files: in a local directory, inside an installed package, or in a snapshot of a hub model.

For every source the result is a local directory, so that nothing later needs the network. Only this module reaches the
network, for hub ids, and it fetches only files that are needed: no pickles unless allowed, no other frameworks'
weights. The files of the weights are chosen as transformers and sentence-transformers choose them, so that the files
that are hashed and pinned are the files that are loaded. Needs no torch.
"""

from __future__ import annotations

import re
from pathlib import Path

from matexport.errors import ParentError, RequestError
from matexport.export.parents.folder.files import ADAPTER, CONFIG, read_object, refuse_pointer
from matexport.export.parents.folder.layout import WEIGHTY_KINDS, Layout, Module
from matexport.export.parents.folder.place import find_local, locate_in_package, refuse_revision
from matexport.io.files import hash_file
from matexport.spec.job import ParentSource

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_FILES = ["README.md", "*.json", "*.txt", "*.model", "*.jinja", "*.spm", "*.bpe", "*.tiktoken"]
_SETTINGS_SUFFIXES = {".json", ".jinja", ".txt", ".model", ".spm", ".bpe", ".tiktoken", ".py"}
_HUB_IGNORED = ["onnx/*", "openvino/*", "*/onnx/*", "*/openvino/*"]


def locate_parent(parent: ParentSource, base: Path) -> Path:
    """The local directory that holds a parent's files; for a hub id, all files but the weights are downloaded.

    Args:
        base: directory that a relative path starts from.

    Raises:
        RequestError: the source is empty, names no package or leads out of it, or a revision of a directory was asked.
        ParentError: there is no such directory, package or hub model.
    """
    source = parent.source
    if not source.strip():
        raise RequestError("the parent's source is empty; give a directory, a hub id, or package:NAME/path")
    if source.startswith("package:"):
        refuse_revision(parent, "a package")
        return locate_in_package(source.removeprefix("package:"))
    local = find_local(source, base)
    if local.is_dir():
        refuse_revision(parent, "a directory")
        return local.resolve()
    if source.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(source):
        raise ParentError(
            f"the parent {source!r} is not a directory (looked at {local}); "
            "give a directory, a hub id such as org/name, or package:NAME/path"
        )
    return _download(parent, [*_HUB_FILES, *(["*.py"] if parent.trust_remote_code else [])])


def fetch_head_weights(parent: ParentSource, base: Path, layout: Layout) -> None:
    """Download the weights of a hub parent that planning needs: all but those of its transformers model.

    Planning opens the parent by sentence-transformers, with a transformers model of fake tensors; every other module is
    loaded with its weights. Heads are small. A parent that consists of a table of tokens (StaticEmbedding) has to be
    loaded whole, since only the file of the table says how wide it is.

    Args:
        layout: what the files that `locate_parent` fetched say.

    Raises:
        ParentError: the files cannot be fetched, or a module has no weights, or only pickled ones that are not allowed.
    """
    if has_local_weights(parent, base):
        return
    modules = _list_modules_to_plan(layout)
    patterns = [_join(layout, module, name) for module in modules for name in _name_weights(module, parent)]
    if patterns:
        _download(parent, patterns)
    for module in modules:
        if module.is_stock:
            list_weight_files(module.path, parent)


def fetch_weights(parent: ParentSource, base: Path) -> None:
    """Download all weights of a hub parent, beside its small files; does nothing for a local parent.

    Called after every check that does not need the weights.

    Raises:
        ParentError: the weights cannot be fetched from the hub.
    """
    if not has_local_weights(parent, base):
        _download(parent, ["*.safetensors", *(["*.bin"] if parent.allow_pickle else [])])


def has_local_weights(parent: ParentSource, base: Path) -> bool:
    """Whether a parent is a package or a directory, so that its weights need not be fetched.

    Args:
        base: directory that a relative path starts from.
    """
    return parent.source.startswith("package:") or find_local(parent.source, base).is_dir()


def find_weights(parent: ParentSource, layout: Layout) -> dict[str, str]:
    """The files that a parent's weights are read from: path relative to its folder -> sha256.

    If an adapter's base model is in another folder, its files are called ``base/...``.

    Raises:
        ParentError: weights are missing, or pickled and not allowed.
    """
    weights: dict[str, str] = {}
    for folder in _list_weight_folders(layout):
        prefix = folder.relative_to(layout.root).as_posix()
        for path in list_weight_files(folder, parent, custom=layout.kind == "Custom"):
            name = path.relative_to(folder).as_posix()
            weights[name if prefix == "." else f"{prefix}/{name}"] = hash_file(path)
    base = find_adapter_base(layout)
    if base is not None and base != layout.backbone:
        weights |= {f"base/{path.name}": hash_file(path) for path in list_weight_files(base, parent)}
    return weights


def list_weight_files(folder: Path, parent: ParentSource, *, custom: bool = False) -> list[Path]:
    """The files that the weights in one folder are read from, as transformers looks for them.

    Args:
        custom: whether a class of the parent's own reads them; then all weights in the folder count.

    Raises:
        ParentError: there are none, a shard is missing, a file is a Git LFS pointer, or they are pickled and not
            allowed.
    """
    anything = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    files = anything if custom else _list_shards(folder)
    adapter = [path for name in ("adapter_model.safetensors", "adapter_model.bin") if (path := folder / name).is_file()]
    if (folder / ADAPTER).is_file():
        if not adapter:
            raise ParentError(f"{folder} has an {ADAPTER}, but no adapter_model.safetensors")
        files = [*files, adapter[0]]
    if not files:
        raise ParentError(f"{folder} has no safetensors weights (model.safetensors, or an index of shards)")
    for path in files:
        refuse_pointer(path)
    pickled = [path.name for path in files if path.suffix != ".safetensors"]
    if pickled and not parent.allow_pickle:
        raise ParentError(
            f"{folder} has pickled weights only ({pickled[0]}); unpickling can run code, so it needs "
            "allow_pickle = true in the job's [parent]"
        )
    return files


def uses_safetensors(layout: Layout) -> bool:
    """Whether transformers should read the first module's weights from safetensors, since there is such a file.

    Raises:
        ParentError: the configuration of the module is not JSON.
    """
    folder = layout.backbone
    names = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
    named = read_object(folder / CONFIG).get("transformers_weights") if (folder / CONFIG).is_file() else None
    if isinstance(named, str):
        return named.endswith(".safetensors")
    return any((folder / name).is_file() for name in names)


def find_adapter_base(layout: Layout) -> Path | None:
    """The folder of the base model of an adapter; None where there is no adapter.

    As in transformers, this is the adapter's own folder if that has a config.json, else the model that the adapter
    names, which is fetched if it is a hub id.

    Raises:
        ParentError: the adapter names no model, or one that is neither a directory nor can be fetched from the hub.
    """
    path = layout.backbone / ADAPTER
    if not path.is_file():
        return None
    name = read_object(path).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ParentError(f"{path} does not say which model it is for (base_model_name_or_path)")
    base = Path(name)
    if not base.is_dir():
        if base.is_absolute() or name.startswith(".") or not _HUB_ID.fullmatch(name):
            raise ParentError(
                f"{path} is for the model {name!r}, and there is no such directory: write where it lies now into "
                "base_model_name_or_path, or merge the adapter and save the model"
            )
        base = _download(ParentSource(name, read_object(path).get("revision")), [*_HUB_FILES, "*.safetensors"])
    return layout.backbone if (layout.backbone / CONFIG).is_file() else base.resolve()


def _list_modules_to_plan(layout: Layout) -> list[Module]:
    """The modules, of all routes, that are loaded with their weights when a parent is planned."""
    stock = [module for module in (*layout.modules, *layout.others) if module.is_stock]
    own = [module for module in (*layout.modules[1:], *layout.others) if not module.is_stock]
    return [
        *(module for module in stock if module.kind in WEIGHTY_KINDS and module.kind != "Transformer"),
        *(module for module in own if module.path not in (layout.backbone, layout.root)),
    ]


def _name_weights(module: Module, parent: ParentSource) -> list[str]:
    """Patterns of the files that a module's weights may be in; the parent's own classes may use any name."""
    names = ["model.safetensors", "pytorch_model.bin"] if module.is_stock else ["*.safetensors", "*.bin"]
    return names if parent.allow_pickle else names[:1]


def _join(layout: Layout, module: Module, name: str) -> str:
    return (module.path.relative_to(layout.root) / name).as_posix()


def _list_weight_folders(layout: Layout) -> list[Path]:
    if layout.is_plain:
        return [layout.root]
    weighty = [module for module in layout.modules if not module.is_stock or module.kind in WEIGHTY_KINDS]
    folders = [module.path for module in weighty if module.is_stock or any(_glob_weights(module.path))]
    return list(dict.fromkeys([layout.backbone, *folders]))


def _glob_weights(folder: Path) -> list[Path]:
    return [*folder.glob("*.safetensors"), *folder.glob("*.bin")]


def _list_shards(folder: Path) -> list[Path]:
    named = read_object(folder / CONFIG).get("transformers_weights") if (folder / CONFIG).is_file() else None
    if isinstance(named, str):
        path = folder / named
        if path.parent != folder or not path.is_file():
            raise ParentError(f"{folder / CONFIG} says that the weights are in {named!r}, which is not there")
        return [path]
    for name in ("model.safetensors", "pytorch_model.bin"):
        path, index = folder / name, folder / f"{name}.index.json"
        if path.is_file():
            return [path]
        if index.is_file():
            return _read_index(index)
    return []


def _read_index(index: Path) -> list[Path]:
    """The files of weights that an index names, all of which have to lie beside it."""
    listed = read_object(index).get("weight_map")
    names = list(listed.values()) if isinstance(listed, dict) else []
    shards = sorted({name for name in names if isinstance(name, str)})
    if any(not isinstance(name, str) or "/" in name or "\\" in name for name in names):
        raise ParentError(f"{index} names weights outside its folder")
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing or not shards:
        raise ParentError(
            f"{index} names {len(shards)} files of weights; missing: {', '.join(missing) or 'all'}: "
            "copy or download them, too"
        )
    return [index.parent / shard for shard in shards]


def hash_settings(layout: Layout) -> dict[str, str]:
    """Path -> sha256 of all files, other than weights, that the parent's own library may read.

    Paths are relative, after ``0/`` for the parent's folder and ``1/`` for an adapter's base model elsewhere.

    Raises:
        ParentError: the base model of an adapter cannot be found.
    """
    folders = [layout.root]
    base = find_adapter_base(layout)
    if base is not None and not base.is_relative_to(layout.root):
        folders.append(base)
    found = {}
    for place, folder in enumerate(folders):
        for path in sorted(path for path in folder.rglob("*") if path.suffix in _SETTINGS_SUFFIXES and path.is_file()):
            found[f"{place}/{path.relative_to(folder).as_posix()}"] = hash_file(path)
    return found


def pin_weights(root: Path, parent: ParentSource, base: Path) -> dict[str, str]:
    """Fetch a parent's weights where they are not there yet: file -> sha256, all of them the pinned ones.

    Args:
        root: its folder.
        base: directory that a relative path starts from.

    Raises:
        ParentError, RequestError: as `fetch_weights`, `list_weight_files` and `check_pin`.
    """
    fetch_weights(parent, base)
    files = list_weight_files(root, parent)
    weights = {path.relative_to(root).as_posix(): hash_file(path) for path in files}
    check_pin(parent, weights)
    return weights


def check_pin(parent: ParentSource, weights: dict[str, str]) -> None:
    """Refuse weights that are not the pinned ones.

    Args:
        weights: file -> sha256, as `find_weights` gives them.

    Raises:
        ParentError: a digest differs from the pinned one, or the pinned files are not those of the weights.
        RequestError: a single digest is pinned, but the weights are in several files.
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
            raise ParentError(f"the job pins the sha256 of {name}, but {parent.source} has {', '.join(weights)}")
        if actual != digest.lower():
            raise ParentError(f"{name} of {parent.source} has the sha256 {actual}; the job pins {digest}")
    if unpinned := sorted(set(weights) - set(pinned)):
        raise ParentError(f"the job pins some weights of {parent.source}, but not {', '.join(unpinned)}")


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
