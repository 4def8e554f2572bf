"""Text encoders that transformers loads and sentence-transformers saves.

`plan_parent` reads configuration files only and refuses what cannot be exported; `load_parent` then loads weights.
The backbone is loaded by transformers itself, so that its loading report is seen: a checkpoint with fewer blocks than
its configuration would otherwise be filled up with random ones under a warning. The modules after it (Pooling, Dense,
LayerNorm, Normalize) are loaded by sentence-transformers' own classes: the reference runs through those, while the
traced read-out is written apart from them.

Nothing here names an architecture. Whether there is a final norm is found by running the model once, on meta tensors
before any weight is read, and looking at what stands between the last block and the last hidden state.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from matexport.build.sources import check_pin, hash_weights, locate_parent
from matexport.errors import ParentError, RequestError
from matexport.profiles import check_points
from matexport.spec import (
    ExportJob,
    FinalNorm,
    PaddingSide,
    ParentFacts,
    PoolingMode,
    Readout,
    TextFacts,
)

HEAD_KINDS = ("Dense", "LayerNorm", "Normalize")
#: Inputs a graph may have, in this order, as every consumer names them.
INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids")

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
class ModuleEntry:
    """One entry of ``modules.json``: the class name, its folder, and its configuration."""

    kind: str
    path: Path
    config: Mapping[str, Any]


@dataclass(frozen=True)
class TextPlan:
    """What is known of a parent before its weights are loaded."""

    job: ExportJob
    root: Path
    backbone_path: Path
    config: Any
    tokenizer: Any
    heads: tuple[ModuleEntry, ...]
    parent: ParentFacts
    readout: Readout
    text: TextFacts
    lowercase: bool


@dataclass(frozen=True)
class TextParent:
    """A loaded parent.

    Attributes:
        backbone: transformers' model, in eval mode, float32.
        final_norm: its final normalisation, or None for a post-norm one.
        pooling: sentence-transformers' Pooling, one for each mode; their results are concatenated.
        heads: its Dense, LayerNorm and Normalize modules, in order.
    """

    plan: TextPlan
    backbone: nn.Module
    final_norm: nn.Module | None
    pooling: tuple[nn.Module, ...]
    heads: tuple[nn.Module, ...]


def plan_parent(job: ExportJob) -> TextPlan:
    """Read a parent's configuration and settle the read-out.

    Raises:
        RequestError: a point is outside the parent, or the read-out is not settled by the parent and the job.
        ParentError: the parent cannot be read, is not the pinned one, or has parts that are not supported.
    """
    root = locate_parent(job.parent, job.base)
    modules = _read_modules(root)
    backbone_path = modules[0].path if modules else root
    config = _load_config(job, backbone_path)
    blocks, width = _read_size(config, job.parent.source)
    pooling = _settle_pooling(job, modules, width)
    heads = tuple(entry for entry in modules[1:] if entry.kind in HEAD_KINDS)
    output_width = _read_output_width(heads, width * len(pooling))
    check_points(job.points, blocks, output_width, job.parent.source)
    norm, takes = _inspect_architecture(job, config, blocks)
    final_norm = _settle_final_norm(job, norm, blocks)
    weights = _find_weights(job, root, backbone_path, heads)
    check_pin(job.parent, weights)
    tokenizer = _load_tokenizer(job, backbone_path)
    inputs = _find_inputs(takes, tokenizer)
    settings = _read_settings(backbone_path)
    _refuse_other_outputs(settings, job.parent.source)
    return TextPlan(
        job=job,
        root=root,
        backbone_path=backbone_path,
        config=config,
        tokenizer=tokenizer,
        heads=heads,
        parent=ParentFacts(
            source=job.parent.source,
            architecture=(getattr(config, "architectures", None) or [type(config).__name__])[0],
            blocks=blocks,
            width=width,
            output_width=output_width,
            dtype=str(getattr(config, "dtype", None) or "float32").removeprefix("torch."),
            weights=weights,
        ),
        readout=Readout(final_norm, pooling, tuple(_describe_head(head) for head in heads), job.readout.normalize),
        text=_settle_text(job, root, config, tokenizer, inputs, modules),
        lowercase=bool(settings.get("do_lower_case", False)),
    )


def load_parent(plan: TextPlan) -> TextParent:
    """Load the weights of a planned parent, in float32.

    Raises:
        ParentError: a weight is missing from the checkpoint, or the model's hidden states are not one per block.
    """
    backbone = _load_backbone(plan)
    norm = find_final_norm(backbone, plan.parent.blocks)
    return TextParent(
        plan=plan,
        backbone=backbone,
        final_norm=backbone.get_submodule(norm) if norm else None,
        pooling=tuple(_make_pooling(mode, plan.parent.width) for mode in plan.readout.pooling),
        heads=tuple(_load_head(entry) for entry in plan.heads),
    )


def find_final_norm(model: nn.Module, blocks: int) -> str | None:
    """Name of the module between a model's last block and its last hidden state; None when nothing is there.

    Args:
        model: transformers' model; may be on the meta device.
        blocks: its number of transformer blocks.

    Raises:
        ParentError: something else than one module is there.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == blocks]
    if not lists:
        raise ParentError(f"{type(model).__name__} has no list of {blocks} blocks; only plain stacks can be cut")
    raw: list[object] = []
    after: list[tuple[str, object]] = []

    def note_block(_module: nn.Module, _inputs: Any, output: Any) -> None:
        raw.append(output[0] if isinstance(output, tuple | list) else output)

    def note_followers(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(_module: nn.Module, inputs: Any, output: Any) -> None:
            if raw and inputs and inputs[0] is raw[-1]:
                after.append((name, output))

        return note

    hooks = [lists[0][-1].register_forward_hook(note_block)]
    hooks += [module.register_forward_hook(note_followers(name)) for name, module in model.named_modules()]
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            # No attention mask: transformers looks at a mask's values, which meta tensors do not have.
            last = model(input_ids=torch.ones((1, 2), dtype=torch.int64, device=device)).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    if raw and last is raw[-1]:
        return None
    names = [name for name, output in after if output is last]
    if len(names) != 1:
        raise ParentError(
            f"cannot tell what {type(model).__name__} does between its last block and its last hidden state"
        )
    return names[0]


def runtime_files(plan: TextPlan) -> dict[str, bytes]:
    """The files that a family needs beside its graphs to turn text into inputs, by name."""
    from tokenizers import Tokenizer, normalizers

    tokenizer = Tokenizer.from_str(plan.tokenizer.backend_tokenizer.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if plan.lowercase:
        present = tokenizer.normalizer
        parts = [normalizers.Lowercase(), *([present] if present else [])]
        tokenizer.normalizer = normalizers.Sequence(parts)
    files = {"tokenizer.json": tokenizer.to_str(pretty=False).encode()}
    for name in ("config.json", "tokenizer_config.json", "special_tokens_map.json"):
        path = plan.backbone_path / name
        if path.is_file():
            files[name] = path.read_bytes()
    return files


def _read_modules(root: Path) -> list[ModuleEntry]:
    listing = root / "modules.json"
    if not listing.exists():
        return []
    entries = []
    for item in _read_json(listing):
        path = root / item.get("path", "")
        if not path.resolve().is_relative_to(root):
            raise ParentError(f"{listing} names the folder {item['path']!r}, which is outside the parent")
        config = path / "config.json"
        kind = str(item.get("type", "")).rpartition(".")[2]
        entries.append(ModuleEntry(kind, path, _read_json(config) if config.is_file() else {}))
    kinds = [entry.kind for entry in entries]
    supported = len(kinds) >= 2 and kinds[0] == "Transformer" and kinds[1] == "Pooling"
    if not supported or any(kind not in HEAD_KINDS for kind in kinds[2:]):
        raise ParentError(
            f"{root} is made of {' -> '.join(kinds)}; supported is Transformer -> Pooling, "
            f"then any of {', '.join(HEAD_KINDS)}"
        )
    return entries


def _load_config(job: ExportJob, path: Path) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=job.parent.trust_remote_code, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        hint = "" if job.parent.trust_remote_code else _remote_code_hint(path)
        raise ParentError(
            f"transformers cannot read the configuration in {path}: {_first_line(error)}{hint}"
        ) from error
    return config.get_text_config()


def _remote_code_hint(path: Path) -> str:
    config = path / "config.json"
    if config.is_file() and "auto_map" in _read_json(config):
        return "; it comes with Python code, which runs only with trust_remote_code = true in the profile's [parent]"
    return ""


def _read_size(config: Any, source: str) -> tuple[int, int]:
    blocks, width = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
    if not isinstance(blocks, int) or not isinstance(width, int):
        raise ParentError(f"{source} ({config.model_type}) does not say how many blocks it has and how wide it is")
    return blocks, width


def _settle_pooling(job: ExportJob, modules: list[ModuleEntry], width: int) -> tuple[PoolingMode, ...]:
    asked = job.readout.pooling
    if asked is not None:
        return asked if isinstance(asked, tuple) else (asked,)
    if not modules:
        raise RequestError(
            f"{job.parent.source} has no modules.json, so it does not say how token states are pooled: "
            f"give pooling in [readout], one of {', '.join(PoolingMode)}"
        )
    config = modules[1].config
    if "pooling_mode" in config:
        named = config["pooling_mode"]
        modes = tuple(PoolingMode(mode) for mode in ([named] if isinstance(named, str) else named))
    else:
        modes = tuple(mode for flag, mode in _POOLING_FLAGS.items() if config.get(flag))
    stated = config.get("embedding_dimension", config.get("word_embedding_dimension", width))
    if not modes or stated != width:
        raise ParentError(f"{modules[1].path / 'config.json'} does not fit a backbone of width {width}")
    return modes


def _read_output_width(heads: tuple[ModuleEntry, ...], width: int) -> int:
    for head in heads:
        takes = head.config.get("in_features", head.config.get("dimension", width))
        if takes != width:
            raise ParentError(f"{head.path} takes {takes} coordinates, but is given {width}")
        width = head.config.get("out_features", width)
    return width


def _inspect_architecture(job: ExportJob, config: Any, blocks: int) -> tuple[str | None, frozenset[str]]:
    """Name of the final norm, and what the model's forward takes; from a model of meta tensors, without weights."""
    from transformers import AutoModel

    with torch.device("meta"):
        model = AutoModel.from_config(
            config, attn_implementation="eager", trust_remote_code=job.parent.trust_remote_code
        ).eval()
    return find_final_norm(model, blocks), frozenset(inspect.signature(model.forward).parameters)


def _settle_final_norm(job: ExportJob, name: str | None, blocks: int) -> FinalNorm:
    asked = job.readout.final_norm
    if name is None:
        if asked in (FinalNorm.KEEP, FinalNorm.DROP):
            raise RequestError(
                f"final_norm = {asked!s} was asked; {job.parent.source} is post-norm and has none: leave it out"
            )
        return FinalNorm.ABSENT
    if asked in (FinalNorm.KEEP, FinalNorm.DROP):
        return asked
    if all(point.layers == blocks for point in job.points):
        return FinalNorm.KEEP  # only the parent's own output is read
    raise RequestError(
        f"{job.parent.source} normalises after its last block ({name}), so a vector read after fewer blocks depends on "
        'whether that norm is applied to it, and systems disagree: say final_norm = "keep" (as cutting the '
        'layers of the module does) or "drop" (the raw hidden_states[k], as training losses read it) in [readout]'
    )


def _find_weights(job: ExportJob, root: Path, backbone: Path, heads: tuple[ModuleEntry, ...]) -> dict[str, str]:
    weights: dict[str, str] = {}
    for folder in (backbone, *(head.path for head in heads if head.kind != "Normalize")):
        found = hash_weights(folder, "*.safetensors")
        if not found and list(folder.glob("*.bin")):
            if not job.parent.allow_pickle:
                raise ParentError(
                    f"{folder} has pickled weights only; unpickling can run code, so it needs "
                    "allow_pickle = true in the profile's [parent]"
                )
            found = hash_weights(folder, "*.bin")
        if not found:
            raise ParentError(f"{folder} has no safetensors weights")
        prefix = folder.relative_to(root).as_posix()
        weights |= {name if prefix == "." else f"{prefix}/{name}": digest for name, digest in found.items()}
    return weights


def _load_tokenizer(job: ExportJob, path: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, trust_remote_code=job.parent.trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ParentError(f"transformers cannot load the tokenizer in {path}: {_first_line(error)}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise ParentError(f"{path} has no fast tokenizer (tokenizer.json), which is what runs without transformers")
    if getattr(tokenizer, "truncation_side", "right") != "right":
        raise ParentError(
            f"the tokenizer in {path} cuts long texts on the left; only cutting on the right is supported"
        )
    return tokenizer


def _settle_text(
    job: ExportJob, root: Path, config: Any, tokenizer: Any, inputs: tuple[str, ...], modules: list[ModuleEntry]
) -> TextFacts:
    settings = _read_settings(modules[0].path if modules else root)
    limits = [settings.get("max_seq_length")] if settings.get("max_seq_length") else []
    limits += [] if limits else [tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)]
    max_tokens = min(limit for limit in limits if isinstance(limit, int) and limit > 0)
    if job.readout.max_tokens is not None:
        if not 1 <= job.readout.max_tokens <= max_tokens:
            raise RequestError(f"max_tokens={job.readout.max_tokens} was asked; the parent takes 1 to {max_tokens}")
        max_tokens = job.readout.max_tokens
    stored = _read_first_json(root, ("config_sentence_transformers.json",))
    prompts = {name: text for name, text in (stored.get("prompts") or {}).items() if text}
    default = stored.get("default_prompt_name")
    if prompts and modules and modules[1].config.get("include_prompt") is False:
        raise ParentError(f"{job.parent.source} leaves prompt tokens out of the pooling, which is not supported")
    return TextFacts(
        inputs=inputs,
        max_tokens=max_tokens,
        padding_side=PaddingSide(tokenizer.padding_side),
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
        prompts=prompts,
        default_prompt=default if default in prompts else None,
    )


def _refuse_other_outputs(settings: Mapping[str, Any], source: str) -> None:
    """sentence-transformers 6 can save a model that natively reads an intermediate layer."""
    for modality, entry in (settings.get("modality_config") or {}).items():
        output = entry.get("method_output_name") if isinstance(entry, dict) else None
        if output not in (None, "last_hidden_state"):
            raise ParentError(f"{source} reads {output!r} for {modality}; only last_hidden_state is supported")


def _load_backbone(plan: TextPlan) -> nn.Module:
    from transformers import AutoModel

    parent = plan.job.parent
    model, report = AutoModel.from_pretrained(
        plan.backbone_path,
        dtype=torch.float32,
        use_safetensors=not any(name.endswith(".bin") for name in plan.parent.weights),
        trust_remote_code=parent.trust_remote_code,
        local_files_only=True,
        output_loading_info=True,
    )
    # A pooler that the checkpoint lacks is initialised at random, and never reached by an exit.
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key.split("."))
    if missing:
        raise ParentError(
            f"{parent.source} lacks {len(missing)} weights that its configuration asks for ({missing[0]}, ...); "
            "transformers would fill them with random numbers: is num_hidden_layers right?"
        )
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    states = _count_hidden_states(model)
    if states != plan.parent.blocks + 1:
        raise ParentError(f"{parent.source} gives {states} hidden states for {plan.parent.blocks} blocks")
    backbone: nn.Module = model.eval()
    return backbone


def _count_hidden_states(model: nn.Module) -> int:
    with torch.no_grad():
        return len(model(input_ids=torch.ones((1, 2), dtype=torch.int64), output_hidden_states=True).hidden_states)


def _load_head(entry: ModuleEntry) -> nn.Module:
    kind = getattr(_module_classes(), entry.kind)
    try:
        head: nn.Module = kind() if entry.kind == "Normalize" else kind.load(str(entry.path))
    except (OSError, ValueError, KeyError) as error:
        raise ParentError(f"sentence-transformers cannot load {entry.path}: {_first_line(error)}") from error
    return head.eval().float()


def _make_pooling(mode: PoolingMode, width: int) -> nn.Module:
    """sentence-transformers' Pooling for one mode, in the spelling that 5.x and 6.x both take."""
    pooling: nn.Module = _module_classes().Pooling(width, pooling_mode=str(mode))
    return pooling.eval()


def _module_classes() -> Any:
    """sentence-transformers' module classes, where 6.x and where 5.x keep them."""
    try:
        return importlib.import_module("sentence_transformers.sentence_transformer.modules")
    except ModuleNotFoundError:
        return importlib.import_module("sentence_transformers.models")


def _describe_head(head: ModuleEntry) -> str:
    if head.kind == "Dense":
        activation = str(head.config.get("activation_function", "Identity")).rpartition(".")[2]
        return f"Dense({head.config['in_features']}->{head.config['out_features']}, {activation})"
    return f"LayerNorm({head.config.get('dimension')})" if head.kind == "LayerNorm" else head.kind


def _find_inputs(takes: frozenset[str], tokenizer: Any) -> tuple[str, ...]:
    gives = {"attention_mask", *tokenizer.model_input_names}
    return tuple(name for name in INPUT_NAMES if name in takes and name in gives)


def _read_settings(backbone: Path) -> Mapping[str, Any]:
    return _read_first_json(backbone, _TRANSFORMER_CONFIGS)


def _read_first_json(folder: Path, names: tuple[str, ...]) -> Mapping[str, Any]:
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    return _read_json(path) if path else {}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ParentError(f"cannot read {path}: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
