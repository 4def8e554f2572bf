"""The folder that sentence-transformers saves: which modules, pooled how, and what happens to the text before them.

Only JSON is read here. Both spellings of a pooling configuration are understood: the flags that every version up to
5.3 wrote, and the ``pooling_mode`` of 5.4 and later.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matexport.errors import ParentError
from matexport.spec import PoolingMode

HEAD_KINDS = ("Dense", "LayerNorm", "Normalize")

# sentence-transformers' flags, in the order in which it concatenates.
_POOLING_FLAGS = {
    "pooling_mode_cls_token": PoolingMode.CLS,
    "pooling_mode_max_tokens": PoolingMode.MAX,
    "pooling_mode_mean_tokens": PoolingMode.MEAN,
    "pooling_mode_mean_sqrt_len_tokens": PoolingMode.MEAN_SQRT_LEN,
    "pooling_mode_weightedmean_tokens": PoolingMode.WEIGHTED_MEAN,
    "pooling_mode_lasttoken": PoolingMode.LAST_TOKEN,
}
_TRANSFORMER_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)


@dataclass(frozen=True)
class Head:
    """A module after pooling: its class name, its folder, and its configuration."""

    kind: str
    path: Path
    config: Mapping[str, Any]

    def __str__(self) -> str:
        if self.kind == "Dense":
            activation = str(self.config.get("activation_function", "Identity")).rpartition(".")[2]
            return f"Dense({self.config.get('in_features')}->{self.config.get('out_features')}, {activation})"
        return f"LayerNorm({self.config.get('dimension')})" if self.kind == "LayerNorm" else self.kind


@dataclass(frozen=True)
class Layout:
    """What a parent's folder says about itself.

    Attributes:
        backbone: the folder of the transformers model.
        pooling: modes that are concatenated; None for a plain transformers model, which does not say.
        max_tokens: its ``max_seq_length``, if it gives one.
        prompts: name -> text, empty ones left out.
    """

    backbone: Path
    pooling: tuple[PoolingMode, ...] | None
    heads: tuple[Head, ...]
    max_tokens: int | None
    lowercase: bool
    prompts: Mapping[str, str]
    default_prompt: str | None


def read_layout(root: Path) -> Layout:
    """Read a parent's folder.

    Raises:
        ParentError: a file is no JSON, or a module or a setting is of a kind that is not supported.
    """
    modules = _read_modules(root)
    backbone = modules[0].path if modules else root
    settings = _read_first(backbone, _TRANSFORMER_CONFIGS)
    _refuse_other_outputs(settings, root)
    stored = _read_first(root, ("config_sentence_transformers.json",))
    given = stored.get("prompts") or {}
    if not isinstance(given, dict) or not all(isinstance(text, str) for text in given.values()):
        raise ParentError(f"{root} has prompts that are no table of texts")
    prompts = {name: text for name, text in given.items() if text}
    if prompts and modules and modules[1].config.get("include_prompt") is False:
        raise ParentError(f"{root} leaves prompt tokens out of the pooling, which is not supported")
    default = stored.get("default_prompt_name")
    return Layout(
        backbone=backbone,
        pooling=_read_pooling(modules[1]) if modules else None,
        heads=tuple(modules[2:]),
        max_tokens=settings.get("max_seq_length"),
        lowercase=bool(settings.get("do_lower_case", False)),
        prompts=prompts,
        default_prompt=default if default in prompts else None,
    )


def measure_output(heads: tuple[Head, ...], width: int) -> int:
    """Width of the sentence vector after the heads, given the pooled width.

    Raises:
        ParentError: a head takes another width than it is given.
    """
    for head in heads:
        takes = head.config.get("in_features", head.config.get("dimension", width))
        if takes != width:
            raise ParentError(f"{head.path} takes {takes} coordinates, but is given {width}")
        width = head.config.get("out_features", width)
    return width


def read_json(path: Path) -> Any:
    """A JSON file of a parent.

    Raises:
        ParentError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ParentError(f"cannot read {path}: {error}") from None


def _read_modules(root: Path) -> list[Head]:
    listing = root / "modules.json"
    if not listing.exists():
        return []
    modules = []
    items = read_json(listing)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ParentError(f"{listing} is no list of modules")
    for item in items:
        path = root / item.get("path", "")
        if not path.resolve().is_relative_to(root.resolve()):
            raise ParentError(f"{listing} names the folder {item['path']!r}, which is outside the parent")
        config = path / "config.json"
        kind = str(item.get("type", "")).rpartition(".")[2]
        modules.append(Head(kind, path, read_json(config) if config.is_file() else {}))
    kinds = [module.kind for module in modules]
    supported = kinds[:2] == ["Transformer", "Pooling"] and all(kind in HEAD_KINDS for kind in kinds[2:])
    if not supported:
        raise ParentError(
            f"{root} is made of {' -> '.join(kinds)}; supported is Transformer -> Pooling, "
            f"then any of {', '.join(HEAD_KINDS)}"
        )
    return modules


def _read_pooling(module: Head) -> tuple[PoolingMode, ...]:
    named = module.config.get("pooling_mode")
    if named is None:
        modes = tuple(mode for flag, mode in _POOLING_FLAGS.items() if module.config.get(flag))
        return modes or (PoolingMode.MEAN,)  # what sentence-transformers takes when no flag is set
    try:
        return tuple(PoolingMode(mode) for mode in ([named] if isinstance(named, str) else named))
    except ValueError:
        known = ", ".join(PoolingMode)
        raise ParentError(f"{module.path} pools by {named!r}; supported are {known}") from None


def _refuse_other_outputs(settings: Mapping[str, Any], root: Path) -> None:
    """sentence-transformers 6 can save a model that natively reads an intermediate layer."""
    for modality, entry in (settings.get("modality_config") or {}).items():
        output = entry.get("method_output_name") if isinstance(entry, dict) else None
        if output not in (None, "last_hidden_state"):
            raise ParentError(f"{root} reads {output!r} for {modality}; only last_hidden_state is supported")


def _read_first(folder: Path, names: tuple[str, ...]) -> Mapping[str, Any]:
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    content = read_json(path) if path else {}
    if not isinstance(content, dict):
        raise ParentError(f"{path} holds no JSON object")
    return content
