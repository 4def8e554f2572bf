"""The files of a parent's folder: their names, and reading JSON from them.

A Git LFS pointer, which a clone contains in place of a file if git-lfs is not installed, is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matexport.errors import ParentError

#: The names under which versions of sentence-transformers kept the settings of a transformers model, in the order in
#: which they are looked for; the first that is not empty is read (`Transformer.load_config`).
TRANSFORMER_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)

MODULES, SETTINGS, CONFIG, ROUTER = (
    "modules.json",
    "config_sentence_transformers.json",
    "config.json",
    "router_config.json",
)
ADAPTER = "adapter_config.json"
_LFS = b"version https://git-lfs.github.com/spec/"


def read_json(path: Path) -> Any:
    """The content of a JSON file of a parent.

    Raises:
        ParentError: the file cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ParentError(f"cannot read {path}: {error}") from None


def read_object(path: Path) -> dict[str, Any]:
    """The content of a JSON file of a parent that has to hold an object.

    Raises:
        ParentError: the file cannot be read, is not JSON, or holds something else than an object.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ParentError(f"{path} holds no JSON object")
    return content


def refuse_pointers(folder: Path) -> None:
    """Refuse a folder in which a file of settings or of a tokenizer is a Git LFS pointer.

    Raises:
        ParentError: there is such a file; the message names it.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix in (".json", ".txt", ".model", ".jinja", ".spm", ".bpe"):
            refuse_pointer(path)


def refuse_pointer(path: Path) -> None:
    """Refuse a file that is a Git LFS pointer; a path that is no file passes.

    Raises:
        ParentError: the file is a pointer.
    """
    if not path.is_file() or path.stat().st_size >= 1024:
        return
    with path.open("rb") as file:
        if file.read(len(_LFS)) == _LFS:
            raise ParentError(f"{path} is a Git LFS pointer and not the file itself: run `git lfs pull` in its clone")
