"""Text encoders that transformers loads and sentence-transformers saves.

`plan_parent` reads configuration files only and refuses what cannot be exported; `load_parent` then loads weights.
The backbone is loaded by transformers itself, so that its loading report is seen: a checkpoint with fewer blocks than
its configuration would otherwise be filled up with random ones under a warning. The modules after it (Pooling, Dense,
LayerNorm, Normalize) are loaded by sentence-transformers' own classes: the reference runs through those, while the
traced read-out is written apart from them.

What the folder says is read by `layout`, what the model is by `architecture`; nothing here names a model type.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from matexport.build.parents.architecture import Architecture, find_final_norm, inspect_architecture
from matexport.build.parents.layout import Head, Layout, measure_output, read_json, read_layout
from matexport.build.sources import check_pin, fetch_weights, hash_weights, locate_parent
from matexport.build.vocabulary import PrunedVocabulary, find_changed, plan_vocabulary, prune_config
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

#: Inputs a graph may have, in this order, as every consumer names them.
INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class TextPlan:
    """What is known of a parent before its weights are loaded. `config` and `tokenizer` are transformers' own.

    Attributes:
        vocabulary: what is left of the vocabulary, when it is pruned; `tokenizer` is the parent's all the same.
    """

    job: ExportJob
    layout: Layout
    config: Any
    tokenizer: Any
    parent: ParentFacts
    readout: Readout
    text: TextFacts
    vocabulary: PrunedVocabulary | None = None


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
    source = job.parent.source
    root = locate_parent(job.parent, job.base)
    layout = read_layout(root)
    config = _load_config(job, layout.backbone)
    shape = inspect_architecture(config, source=source, trust_remote_code=job.parent.trust_remote_code)
    pooling = _settle_pooling(job, layout)
    output_width = measure_output(layout.heads, shape.width * len(pooling))
    check_points(job.points, shape.blocks, output_width, source)
    final_norm = _settle_final_norm(job, shape)
    fetch_weights(job.parent, job.base)
    weights = _find_weights(job, root, layout)
    check_pin(job.parent, weights)
    tokenizer = _load_tokenizer(job, layout.backbone)
    if layout.lowercase:
        _lowercase_first(tokenizer.backend_tokenizer)
    vocabulary = None
    if job.vocabulary is not None:
        prompts = tuple(layout.prompts.values())
        vocabulary = plan_vocabulary(_spell_tokenizer(tokenizer), job.vocabulary, job.base, also=prompts)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    return TextPlan(
        job=job,
        layout=layout,
        config=config,
        tokenizer=tokenizer,
        parent=ParentFacts(
            # A local path says nothing elsewhere, and would tell who exported the family.
            source=source if source.startswith("package:") or not (job.base / source).is_dir() else Path(source).name,
            architecture=(getattr(config, "architectures", None) or [type(config).__name__])[0],
            blocks=shape.blocks,
            width=shape.width,
            output_width=output_width,
            dtype=str(getattr(config, "dtype", None) or "float32").removeprefix("torch."),
            weights=weights,
        ),
        readout=Readout(final_norm, pooling, tuple(str(head) for head in layout.heads), job.readout.normalize),
        text=TextFacts(
            inputs=_find_inputs(shape.takes, tokenizer),
            max_tokens=_settle_max_tokens(job, layout, config, tokenizer),
            padding_side=PaddingSide.RIGHT if PoolingMode.CLS in pooling else PaddingSide(tokenizer.padding_side),
            pad_token_id=vocabulary.new_ids.get(pad, 0) if vocabulary else pad,
            prompts=layout.prompts,
            default_prompt=layout.default_prompt,
        ),
        vocabulary=vocabulary,
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
        heads=tuple(_load_head(entry) for entry in plan.layout.heads),
    )


def runtime_files(plan: TextPlan) -> dict[str, bytes]:
    """The files that a family needs beside its graphs to turn text into inputs, by name."""
    tokenizer = plan.vocabulary.tokenizer_json if plan.vocabulary else _spell_tokenizer(plan.tokenizer)
    files = {"tokenizer.json": tokenizer.encode()}
    for name in ("config.json", "tokenizer_config.json", "special_tokens_map.json"):
        path = plan.layout.backbone / name
        if path.is_file():
            files[name] = path.read_bytes()
    return prune_config(files, plan.vocabulary) if plan.vocabulary else files


def find_changed_texts(plan: TextPlan, texts: Sequence[str]) -> list[str]:
    """The texts whose tokens are others since the vocabulary was pruned."""
    if plan.vocabulary is None:
        return []
    changed = find_changed(_spell_tokenizer(plan.tokenizer), plan.vocabulary, texts)
    return [text for text, other in zip(texts, changed, strict=True) if other]


def _spell_tokenizer(tokenizer: Any) -> str:
    """The parent's tokenizer as a family holds it: neither padding nor cutting."""
    from tokenizers import Tokenizer

    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.no_padding()
    plain.no_truncation()
    return str(plain.to_str(pretty=False))


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
    if config.is_file() and "auto_map" in read_json(config):
        return "; it comes with Python code, which runs only with trust_remote_code = true in the profile's [parent]"
    return ""


def _settle_pooling(job: ExportJob, layout: Layout) -> tuple[PoolingMode, ...]:
    asked = job.readout.pooling
    if asked is not None:
        return asked if isinstance(asked, tuple) else (asked,)
    if layout.pooling is None:
        raise RequestError(
            f"{job.parent.source} has no modules.json, so it does not say how token states are pooled: "
            f"give pooling in [readout], one of {', '.join(PoolingMode)}"
        )
    return layout.pooling


def _settle_final_norm(job: ExportJob, shape: Architecture) -> FinalNorm:
    asked = job.readout.final_norm
    if shape.final_norm is None:
        if asked in (FinalNorm.KEEP, FinalNorm.DROP):
            raise RequestError(
                f"final_norm = {asked!s} was asked; {job.parent.source} is post-norm and has none: leave it out"
            )
        return FinalNorm.ABSENT
    if asked in (FinalNorm.KEEP, FinalNorm.DROP):
        return asked
    if all(point.layers == shape.blocks for point in job.points):
        return FinalNorm.KEEP  # only the parent's own output is read
    raise RequestError(
        f"{job.parent.source} normalises after its last block ({shape.final_norm}), so a vector read after fewer "
        "blocks depends on whether that norm is applied to it, and systems disagree: say "
        'final_norm = "keep" (as cutting the layers of the module does) or "drop" (the raw hidden_states[k], as '
        "training losses read it) in [readout]"
    )


def _settle_max_tokens(job: ExportJob, layout: Layout, config: Any, tokenizer: Any) -> int:
    limits = (
        [layout.max_tokens]
        if layout.max_tokens
        else [
            tokenizer.model_max_length,
            getattr(config, "max_position_embeddings", None),
        ]
    )
    # A tokenizer that knows no limit says 1e30.
    allowed = min((int(limit) for limit in limits if isinstance(limit, int) and 0 < limit < 1 << 31), default=0)
    if not allowed:
        raise ParentError(f"{job.parent.source} does not say how many tokens it takes: give it a max_seq_length")
    asked = job.readout.max_tokens
    if asked is not None and not 1 <= asked <= allowed:
        raise RequestError(f"max_tokens={asked} was asked; the parent takes 1 to {allowed}")
    return asked or allowed


def _find_weights(job: ExportJob, root: Path, layout: Layout) -> dict[str, str]:
    weights: dict[str, str] = {}
    for folder in (layout.backbone, *(head.path for head in layout.heads if head.kind != "Normalize")):
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
    except Exception as error:  # tokenizers raises bare Exception
        raise ParentError(f"transformers cannot load the tokenizer in {path}: {_first_line(error)}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise ParentError(f"{path} has no fast tokenizer (tokenizer.json), which is what runs without transformers")
    if getattr(tokenizer, "truncation_side", "right") != "right":
        raise ParentError(
            f"the tokenizer in {path} cuts long texts on the left; only cutting on the right is supported"
        )
    return tokenizer


def _load_backbone(plan: TextPlan) -> nn.Module:
    from transformers import AutoModel

    parent = plan.job.parent
    try:
        model, report = AutoModel.from_pretrained(
            plan.layout.backbone,
            dtype=torch.float32,
            # The same choice as in _find_weights: what was hashed and pinned is what is loaded.
            use_safetensors=any(plan.layout.backbone.glob("*.safetensors")),
            trust_remote_code=parent.trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ParentError(f"transformers cannot load the weights of {parent.source}: {_first_line(error)}") from error
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


def _load_head(entry: Head) -> nn.Module:
    kind = getattr(_module_classes(), entry.kind)
    try:
        head: nn.Module = kind() if entry.kind == "Normalize" else kind.load(str(entry.path))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
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


def _lowercase_first(tokenizer: Any) -> None:
    """As sentence-transformers 6 does for ``do_lower_case``: in the normaliser, so that special tokens survive."""
    from tokenizers import normalizers

    present = [tokenizer.normalizer] if tokenizer.normalizer else []
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *present])


def _find_inputs(takes: frozenset[str], tokenizer: Any) -> tuple[str, ...]:
    gives = {"attention_mask", *tokenizer.model_input_names}
    return tuple(name for name in INPUT_NAMES if name in takes and name in gives)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
