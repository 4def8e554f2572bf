"""The folder that sentence-transformers saves: which modules it has, in which order, and what settings beside them.

Only JSON is read here, and no torch is needed, so that an unsupported folder is refused in less than a second. This
module decides which kinds of modules are supported and in which places; `settings` decides which settings are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matexport.errors import ParentError, RequestError
from matexport.export.parents.folder.files import (
    CONFIG,
    MODULES,
    ROUTER,
    SETTINGS,
    TRANSFORMER_CONFIGS,
    read_json,
    read_object,
    refuse_pointers,
)
from matexport.export.parents.folder.settings import check_adapter, check_transformer_settings, refuse_unknown

_STOCK = "sentence_transformers."

#: Kinds of modules that turn texts into token states, that may follow, and that hold weights.
FIRST_KINDS = ("Transformer", "StaticEmbedding", "WordEmbeddings")
LATER_KINDS = ("Pooling", "Dense", "LayerNorm", "Normalize", "Dropout", "WeightedLayerPooling")
WEIGHTY_KINDS = (*FIRST_KINDS, "Dense", "LayerNorm", "WeightedLayerPooling")
ROUTER_KINDS = ("Router", "Asym")

#: Kind of a module -> name of its configuration's file where that is not config.json.
_CONFIG_NAMES = {"WordEmbeddings": "wordembedding_config.json"}

#: Kinds of modules that cannot do without their configuration.
_CONFIGURED_KINDS = ("Pooling", "Dense", "LayerNorm", "WeightedLayerPooling", "WordEmbeddings")


@dataclass(frozen=True)
class Module:
    """An entry of ``modules.json``.

    Attributes:
        kind: the last part of the name of its class, such as ``Pooling``.
        type: the whole name of its class.
        path: its folder.
        config: its configuration; empty for modules whose configuration is not read here.
    """

    kind: str
    type: str
    path: Path
    config: Mapping[str, Any]

    @property
    def is_stock(self) -> bool:
        """Whether the class is sentence-transformers' own."""
        return self.type.startswith(_STOCK)


@dataclass(frozen=True)
class Layout:
    """What a parent's folder says about itself.

    Attributes:
        root: the folder.
        modules: its modules in order, with those of the chosen route in place of a Router; empty for a plain
            transformers model.
        settings: settings of the transformers model (``sentence_bert_config.json``).
        prompts: name -> text, without empty ones.
        truncate_dim: number of leading coordinates that sentence-transformers keeps of its vectors; None for all.
        route: the chosen route, if the parent routes its texts.
        others: modules of the other routes, without their configurations; sentence-transformers loads them, too.
    """

    root: Path
    modules: tuple[Module, ...]
    settings: Mapping[str, Any]
    prompts: Mapping[str, str]
    truncate_dim: int | None
    route: str | None = None
    others: tuple[Module, ...] = ()

    @property
    def backbone(self) -> Path:
        """The folder of the module that makes token states."""
        return self.modules[0].path if self.modules else self.root

    @property
    def kind(self) -> str:
        """Kind of the module that makes token states: one of `FIRST_KINDS`, or ``Custom`` for a class of the parent."""
        if not self.modules:
            return "Transformer"
        return self.modules[0].kind if self.modules[0].is_stock else "Custom"

    @property
    def own_classes(self) -> list[str]:
        """Names of classes that are neither torch's nor sentence-transformers' own, of modules and of activations."""
        mine = [module.type for module in self.modules if not module.is_stock]
        named = [str(module.config.get("activation_function", "torch.")) for module in self.modules]
        return [*mine, *(name for name in named if not name.startswith("torch."))]

    @property
    def is_plain(self) -> bool:
        """Whether this is a plain transformers model, which does not say how token states become a vector."""
        return not self.modules


def read_layout(root: Path, *, route: str | None = None, trust: bool = False) -> Layout:
    """Read a parent's folder, and refuse modules and settings that are not known.

    Args:
        route: the route to take of a parent that routes its texts.
        trust: whether the parent's own classes may be run; if not, a folder that needs them is refused.

    Raises:
        ParentError: a file is not JSON or is a Git LFS pointer, or a module or a setting is not supported.
        RequestError: the parent has no such route, or has routes and none was given.
    """
    refuse_pointers(root)
    stored = _read_settings(root)
    if not (root / MODULES).exists():
        if route is not None:
            raise RequestError(f"the route {route!r} was asked; {root} is a plain transformers model, without routes")
        layout = Layout(root, (), {}, {}, None)
    else:
        modules = _read_modules(root)
        routers = [place for place, module in enumerate(modules) if module.kind in ROUTER_KINDS and module.is_stock]
        others: list[Module] = []
        for place in routers[:1]:
            modules[place : place + 1], others = _read_route(modules[place], root, route, trust)
        if not routers and route is not None:
            raise RequestError(f"the route {route!r} was asked; {root} has no Router: leave it out")
        _check_kinds(modules, root, trust)
        layout = Layout(
            root=root,
            modules=tuple(modules),
            settings=_read_transformer_settings(modules[0]),
            prompts=_read_prompts(stored, root),
            truncate_dim=stored.get("truncate_dim"),
            route=route,
            others=tuple(others),
        )
    for module in layout.modules:
        if module.path != root:
            refuse_pointers(module.path)
    check_adapter(layout.backbone)
    return layout


def measure_output(layout: Layout, width: int) -> int | None:
    """Width of the sentence vector, given the width of a token's state; None where the settings alone do not tell."""
    for module in layout.modules[1:]:
        names = {module.config.get(f"module_{way}_name") or "sentence_embedding" for way in ("input", "output")}
        if not module.is_stock or names != {"sentence_embedding"}:
            return None
        if module.kind == "Pooling":
            width *= len(list_pooling_modes(module.config))
        elif module.kind in ("Dense", "LayerNorm"):
            takes = module.config.get("in_features", module.config.get("dimension", width))
            if takes != width:
                return None
            width = module.config.get("out_features", width)
    return width


def list_pooling_modes(config: Mapping[str, Any]) -> list[str]:
    """Names of the modes that a Pooling configuration asks for.

    They are those of ``pooling_mode``, or else the keys ``pooling_mode_...`` that are true, or else ``mean``.
    """
    named = config.get("pooling_mode")
    if named is not None:
        return [named] if isinstance(named, str) else list(named)
    return [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True] or ["mean"]


def _read_settings(root: Path) -> Mapping[str, Any]:
    path = root / SETTINGS
    if not path.is_file():
        return {}
    stored = read_object(path)
    refuse_unknown(stored, SETTINGS, path)
    kind = stored.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise ParentError(
            f"{path}: model_type is {kind!r}: sentence-transformers makes another kind of model of this folder when "
            "SentenceTransformer loads it; only SentenceTransformer is supported"
        )
    cut = stored.get("truncate_dim")
    if cut is not None and (not isinstance(cut, int) or isinstance(cut, bool) or cut < 1):
        raise ParentError(f"{path}: truncate_dim is {cut!r}, which is no number of coordinates")
    return stored


def _read_prompts(stored: Mapping[str, Any], root: Path) -> Mapping[str, str]:
    given = stored.get("prompts") or {}
    if not isinstance(given, dict) or not all(isinstance(text, str | None) for text in given.values()):
        raise ParentError(f"{root} has prompts that are no table of texts")
    default = stored.get("default_prompt_name")
    if default is not None and default not in {"query", "document", *given}:
        raise ParentError(
            f"{root / SETTINGS}: default_prompt_name is {default!r}, and the prompts are "
            f"{', '.join(given) or 'none'}; sentence-transformers refuses it: name one of them, or take the key out"
        )
    return {name: text for name, text in given.items() if text}


def _read_modules(root: Path) -> list[Module]:
    listing = root / MODULES
    modules = []
    items = read_json(listing)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items) or not items:
        raise ParentError(f"{listing} is no list of modules")
    for item in items:
        refuse_unknown(item, MODULES, listing)
        if not isinstance(item.get("path"), str) or not isinstance(item.get("type"), str):
            raise ParentError(f"{listing} has a module without a path or a type")
        if item.get("kwargs"):
            raise ParentError(
                f"{listing}: kwargs {item['kwargs']} of {item['type']} are handed from encode to the module; "
                "a sub-model has no such arguments: only modules without them are supported"
            )
        modules.append(_describe_module(root, item["path"], item["type"], listing))
    names = [item.get("name") for item in items]
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise ParentError(
            f"{listing} has two modules with the name {twice!r}; sentence-transformers puts the later one in the place "
            "of the earlier: give each its own name"
        )
    return modules


def _describe_module(root: Path, name: str, kind: str, listing: Path) -> Module:
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise ParentError(f"{listing} names the folder {name!r}, which is outside the parent")
    short = kind.rpartition(".")[2]
    if not path.is_dir() and short != "Normalize":  # has an empty folder, which git does not keep
        raise ParentError(f"{listing} names the module {name!r} ({kind}), and there is no such folder: copy it, too")
    config = path / (_CONFIG_NAMES.get(short, CONFIG))
    if kind.startswith(_STOCK) and short in _CONFIGURED_KINDS and not config.is_file():
        raise ParentError(f"{config} is not there, although {listing.name} names the module: copy it, too")
    content = read_object(config) if config.is_file() and short not in ("Transformer", *ROUTER_KINDS) else {}
    return Module(short, kind, path, content)


def _read_route(router: Module, root: Path, route: str | None, trust: bool) -> tuple[list[Module], list[Module]]:
    """The modules of one route of a Router, and those of its other routes."""
    path = next((router.path / name for name in (ROUTER, CONFIG) if (router.path / name).is_file()), None)
    if path is None:
        raise ParentError(f"{router.path} has neither {ROUTER} nor {CONFIG}, so its routes are not known")
    content = read_object(path)
    types, structure = content.get("types"), content.get("structure")
    if not isinstance(types, dict) or not isinstance(structure, dict) or not structure:
        raise ParentError(f"{path} holds no types and structure of a Router")
    known = ", ".join(structure)
    if route is None:
        raise RequestError(
            f"{root} routes its texts ({known}), and each route is a model of its own: name one in the job's [parent], "
            f'as route = "{next(iter(structure))}"'
        )
    if route not in structure:
        raise RequestError(f"the route {route!r} was asked; {root} has {known}")
    for kind in types.values():  # sentence-transformers loads the other routes, too
        if not str(kind).startswith(_STOCK) and not trust:
            raise ParentError(
                f"{path}: the module {kind} is a class of the parent's own, and all routes are loaded: it needs "
                "trust_remote_code = true in the job's [parent]"
            )
    for name in structure[route]:
        if name not in types:
            raise ParentError(f"{path}: the route {route!r} names the module {name!r}, which has no type")
    inside = str(router.path.relative_to(root))
    others = [
        Module(str(kind).rpartition(".")[2], str(kind), router.path / name, {})
        for name, kind in types.items()
        if name not in structure[route]
    ]
    return [_describe_module(root, f"{inside}/{name}", types[name], path) for name in structure[route]], others


def _check_kinds(modules: Sequence[Module], root: Path, trust: bool) -> None:
    names = " -> ".join(module.kind for module in modules)
    for place, module in enumerate(modules):
        if not module.is_stock:
            if not trust:
                raise ParentError(
                    f"{root}: the module {module.type} is a class of the parent's own; sentence-transformers runs its "
                    "code when it is trusted, so it needs trust_remote_code = true in the job's [parent]"
                )
            continue
        allowed = LATER_KINDS if place else FIRST_KINDS
        if module.kind not in allowed:
            raise ParentError(
                f"{root} is made of {names}; {module.type} is not supported "
                f"{'there' if place else 'as the first module'}: supported are {', '.join(FIRST_KINDS)} first, then "
                f"any of {', '.join(LATER_KINDS)}"
            )
        if module.kind != "Transformer":
            refuse_unknown(module.config, module.kind, module.path / CONFIG)
        _check_activation(module, trust)
        named = str(module.config.get("tokenizer_class", _STOCK))
        if not named.startswith(_STOCK) and not trust:
            raise ParentError(
                f"{module.path}: tokenizer_class is {named}, a class of the parent's own: it needs "
                "trust_remote_code = true in the job's [parent]"
            )
    if (
        modules[0].kind == "Transformer"
        and modules[0].is_stock
        and not any(module.kind == "Pooling" or not module.is_stock for module in modules)
    ):
        raise ParentError(
            f"{root} is made of {names}: no module pools, so the vector is one that the model itself pools; "
            "only models whose token states are pooled by a Pooling module can be read after fewer layers"
        )


def _check_activation(module: Module, trust: bool) -> None:
    activation = module.config.get("activation_function")
    if module.kind != "Dense" or activation is None:
        return
    if not isinstance(activation, str):
        raise ParentError(f"{module.path / CONFIG}: activation_function is {activation!r}, which names no class")
    if not activation.startswith("torch.") and not trust:
        raise ParentError(
            f"{module.path / CONFIG}: activation_function is {activation}, a class of the parent's own; "
            "sentence-transformers takes Tanh in its place unless the parent is trusted: say "
            "trust_remote_code = true in the job's [parent]"
        )


def _read_transformer_settings(first: Module) -> Mapping[str, Any]:
    if first.kind != "Transformer":
        return {}
    for name in TRANSFORMER_CONFIGS:
        path = first.path / name
        content = read_object(path) if path.is_file() else {}
        if content:
            if first.is_stock:
                refuse_unknown(content, "Transformer", path)
                check_transformer_settings(content, path)
            return content
    return {}
