"""Text encoders that transformers loads and sentence-transformers saves.

`plan_parent` settles everything that can be settled without weights: the parent is opened with a model of fake tensors,
looked at, and asked for the tokens of sample texts. `load_parent` then loads weights. Both go through
sentence-transformers itself (`loading`), so a setting of the parent's folder does what it does for its users. What is
read off is written down here: how deep and wide the parent is (`architecture`), how texts become tokens (`asking`), and
which modules follow (`readout`). Nothing here names a model type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from matexport.errors import ParentError, RequestError, one_line
from matexport.export.parents.architecture import Architecture, find_tail, inspect_architecture
from matexport.export.parents.asking import Asking, describe_text, learn_asking, lower_limit
from matexport.export.parents.layout import CONFIG, Layout, read_json
from matexport.export.parents.loading import Opened, make_pooling, module_class, open_fake, open_loaded
from matexport.export.parents.preflight import Located, locate
from matexport.export.parents.source import check_pin, fetch_weights, find_weights, has_local_weights
from matexport.export.parents.vocabulary.model import PrunedVocabulary
from matexport.export.parents.vocabulary.plan import find_changed, plan_vocabulary
from matexport.export.parents.vocabulary.rewrite import prune_config
from matexport.family.manifest import POOLING_MASK
from matexport.io.jobs import check_points
from matexport.spec.facts import NO_LIMIT, PaddingSide, ParentFacts, TextFacts
from matexport.spec.job import ExportJob
from matexport.spec.readout import FinalNorm, PoolingMode, Readout

#: Inputs that a model takes of a text, in this order, as every consumer names them.
INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class TextPlan:
    """What is known of a parent before its weights are loaded.

    Attributes:
        opened: the parent without weights: what its own preprocessing gives can be asked of it.
        shape: its architecture.
        asking: how it makes tokens of texts.
        tokens: size of its table of tokens.
        vocabulary: what is left of the vocabulary, when it is pruned; `asking` is of the whole one all the same.
    """

    job: ExportJob
    layout: Layout
    opened: Opened
    shape: Architecture
    asking: Asking
    parent: ParentFacts
    readout: Readout
    text: TextFacts
    tokens: int
    vocabulary: PrunedVocabulary | None = None

    @property
    def whole_text(self) -> TextFacts:
        """The facts of texts before the vocabulary was pruned."""
        return msgspec.structs.replace(self.text, pad_token_id=self.asking.pad_token_id)


@dataclass(frozen=True)
class TextParent:
    """A loaded parent.

    Attributes:
        backbone: what gives the token states: transformers' model, in eval mode, float32, or a `Lookup`.
        tail: what stands behind its last block, in order: the final normalisation; empty for a post-norm one.
        chain: sentence-transformers' own modules after it, in order; each takes and gives a dictionary of features.
        opened: the parent as it was loaded.
    """

    plan: TextPlan
    backbone: nn.Module
    tail: tuple[nn.Module, ...]
    chain: tuple[nn.Module, ...]
    opened: Opened


class Lookup(nn.Module):
    """A parent without blocks: a table of token vectors, in the form that transformers' models have.

    Args:
        table: (tokens, W) float32.
    """

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.embedding = nn.Embedding(table.shape[0], table.shape[1], _weight=table.float(), _freeze=True)

    def get_input_embeddings(self) -> nn.Module:
        """The table, as vocabularies are pruned."""
        return self.embedding

    def forward(self, input_ids: Tensor, **_options: Any) -> Any:
        """(B, T) int64 ids -> (B, T, W) float32 states, which are the last ones, too."""
        from transformers.modeling_outputs import BaseModelOutput

        states = self.embedding(input_ids)
        return BaseModelOutput(last_hidden_state=states, hidden_states=(states,))


def plan_parent(job: ExportJob, located: Located | None = None) -> TextPlan:
    """Look at a parent without its weights and settle the read-out.

    Args:
        located: what `preflight.locate` found for the job.

    Raises:
        RequestError: a point is outside the parent, or the read-out is not settled by the parent and the job.
        ParentError: the parent cannot be read, is not the pinned one, or has parts that are not supported.
    """
    located = located or locate(job)
    layout, source = located.layout, job.parent.source
    opened, shape = _open_and_inspect(job, layout)
    opened = _settle_pooling(job, layout, opened, shape)
    output_width = _measure_chain(opened.chain, shape, source)
    check_points(job.points, shape.blocks, output_width, source)
    _check_depths(job, opened.chain, shape)
    final_norm = _settle_final_norm(job, shape)
    asking = _settle_asking(job, opened, source)
    _refuse_scaled_rope(opened, asking, source)
    vocabulary = None
    if job.vocabulary is not None:
        also = (*asking.prompts.values(), *_list_frames(asking))
        vocabulary = plan_vocabulary(asking.tokenizer_json, job.vocabulary, job.base, also=also)
    readout = Readout(final_norm, _list_modes(opened.chain), _describe_heads(opened.chain), job.readout.normalize)
    text = _describe_text(asking, shape, readout)
    if vocabulary:
        text = msgspec.structs.replace(text, pad_token_id=vocabulary.new_ids.get(text.pad_token_id, 0))
    weights = located.weights
    if weights is None:
        fetch_weights(job.parent, job.base)
        weights = find_weights(job.parent, layout)
        check_pin(job.parent, weights)
    return TextPlan(
        job=job,
        layout=layout,
        opened=opened,
        shape=shape,
        asking=asking,
        parent=ParentFacts(
            # A local path says nothing elsewhere, and would tell who exported the family.
            source=source if source.startswith("package:") or not (job.base / source).is_dir() else Path(source).name,
            architecture=_name_architecture(opened),
            blocks=shape.blocks,
            width=shape.width,
            output_width=output_width,
            dtype=_read_dtype(layout),
            weights=weights,
        ),
        readout=readout,
        text=text,
        tokens=_count_rows(opened),
        vocabulary=vocabulary,
    )


def load_parent(plan: TextPlan) -> TextParent:
    """Load the weights of a planned parent, in float32.

    Raises:
        ParentError: a weight is missing from the checkpoint, or the model is not the one that was planned.
    """
    opened = open_loaded(plan.layout, plan.job.parent)
    opened = _settle_pooling(plan.job, plan.layout, opened, plan.shape)
    if plan.job.readout.max_tokens is not None:
        lower_limit(opened, plan.text.max_tokens)
    backbone = opened.backbone
    if backbone is None:
        return TextParent(plan, _make_lookup(opened.first), (), opened.chain, opened)
    tail = tuple(backbone.get_submodule(name) for name in find_tail(backbone, plan.job.parent.source))
    return TextParent(plan, backbone, tail, opened.chain, opened)


def runtime_files(plan: TextPlan) -> dict[str, bytes]:
    """The files that a family needs beside its graphs to turn text into inputs, by name."""
    tokenizer = plan.vocabulary.tokenizer_json if plan.vocabulary else plan.asking.tokenizer_json
    files = {"tokenizer.json": tokenizer.encode()}
    for name in (CONFIG, "tokenizer_config.json", "special_tokens_map.json"):
        path = plan.layout.backbone / name
        if path.is_file():
            files[name] = path.read_bytes()
    return prune_config(files, plan.vocabulary) if plan.vocabulary else files


def find_changed_texts(plan: TextPlan, texts: Sequence[str]) -> list[str]:
    """The texts whose tokens are others since the vocabulary was pruned."""
    if plan.vocabulary is None:
        return []
    changed = find_changed(plan.asking.tokenizer_json, plan.vocabulary, texts)
    return [text for text, other in zip(texts, changed, strict=True) if other]


def _open_and_inspect(job: ExportJob, layout: Layout) -> tuple[Opened, Architecture]:
    """The parent without its weights and its architecture; with them where a model looks at values to run at all."""
    opened = open_fake(layout, job.parent)
    try:
        return opened, _inspect(opened, layout, job.parent.source)
    except ParentError:
        if opened.backbone is None or not has_local_weights(job.parent, job.base):
            raise
    opened = open_loaded(layout, job.parent)
    return opened, _inspect(opened, layout, job.parent.source)


def _inspect(opened: Opened, layout: Layout, source: str) -> Architecture:
    if opened.backbone is not None:
        return inspect_architecture(opened.backbone, source=source)
    if layout.kind == "Custom":
        raise ParentError(
            f"{source}: {layout.modules[0].type} is no Transformer of sentence-transformers, so its hidden states are "
            "not known: derive it from sentence-transformers' Transformer, or save the model with the stock class"
        )
    width = _find_table(opened.first).shape[1]
    return Architecture(0, width, (), frozenset({"input_ids"}))


def _find_table(first: Any) -> Tensor:
    table = first.embedding if hasattr(first, "embedding") else first.emb_layer
    weight: Tensor = table.weight
    return weight


def _make_lookup(first: Any) -> Lookup:
    return Lookup(_find_table(first).detach())


def _count_rows(opened: Opened) -> int:
    if opened.backbone is None:
        return int(_find_table(opened.first).shape[0])
    return int(opened.backbone.get_input_embeddings().weight.shape[0])


def _name_architecture(opened: Opened) -> str:
    if opened.backbone is None:
        return type(opened.first).__name__
    config = opened.backbone.config.get_text_config()
    return str((getattr(config, "architectures", None) or [type(opened.backbone).__name__])[0])


def _read_dtype(layout: Layout) -> str:
    path = layout.backbone / CONFIG
    config = read_json(path) if path.is_file() else {}
    named = config.get("dtype") or config.get("torch_dtype") if isinstance(config, dict) else None
    return str(named or "float32").removeprefix("torch.")


def _settle_pooling(job: ExportJob, layout: Layout, opened: Opened, shape: Architecture) -> Opened:
    """The parent with the Pooling that is read: its own, or the job's."""
    asked = job.readout.pooling
    modes = None if asked is None else asked if isinstance(asked, tuple) else (asked,)
    pooling = module_class("Pooling")
    if layout.kind == "StaticEmbedding":
        if modes not in (None, (PoolingMode.MEAN,)):
            raise RequestError(f"{job.parent.source} is the mean of its tokens; leave pooling out of [readout]")
        return _with_chain(opened, (make_pooling(PoolingMode.MEAN, shape.width), *opened.chain))
    if layout.is_plain:
        if modes is None:
            raise RequestError(
                f"{job.parent.source} has no modules.json, so it does not say how token states are pooled: "
                f"give pooling in [readout], one of {', '.join(PoolingMode)}"
            )
        return _with_chain(opened, (_make_poolings(modes, shape.width),))
    if modes is None:
        return opened
    if not any(isinstance(module, pooling) for module in opened.chain):
        raise RequestError(f"pooling was asked; {job.parent.source} pools by a class of its own: leave it out")
    return _with_chain(
        opened,
        tuple(
            _make_poolings(modes, shape.width, module.include_prompt) if isinstance(module, pooling) else module
            for module in opened.chain
        ),
    )


def _make_poolings(modes: Sequence[PoolingMode], width: int, include_prompt: Any = True) -> nn.Module:
    pooling: nn.Module = module_class("Pooling")(
        width, pooling_mode=tuple(str(mode) for mode in modes), include_prompt=include_prompt
    )
    return pooling.eval()


def _with_chain(opened: Opened, chain: tuple[nn.Module, ...]) -> Opened:
    return Opened(opened.model, opened.first, chain, opened.task, opened.unread, opened.route)


def _list_modes(chain: Sequence[nn.Module]) -> tuple[PoolingMode, ...]:
    for module in chain:
        if type(module) is module_class("Pooling"):
            modes: Any = module.pooling_mode
            return tuple(PoolingMode(mode) for mode in ((modes,) if isinstance(modes, str) else modes))
    return ()  # a class of the parent's own pools


def _describe_heads(chain: Sequence[nn.Module]) -> tuple[str, ...]:
    """The modules beside Pooling, as readable text."""
    return tuple(_describe_head(module) for module in chain if type(module) is not module_class("Pooling"))


def _describe_head(module: Any) -> str:
    kind = type(module).__name__
    if type(module) is module_class("Dense"):
        inside = f"{module.in_features}->{module.out_features}, {type(module.activation_function).__name__}"
        inside += ", residual" if getattr(module, "use_residual", False) else ""
        kind = f"Dense({inside})"
    elif type(module) is module_class("LayerNorm"):
        kind = f"LayerNorm({module.dimension})"
    reads = getattr(module, "module_input_name", "sentence_embedding")
    writes = getattr(module, "module_output_name", reads)
    return kind if reads == writes == "sentence_embedding" else f"{kind}[{reads} -> {writes}]"


def _measure_chain(chain: Sequence[nn.Module], shape: Architecture, source: str) -> int:
    """Width of the sentence vector: what the modules make of some states."""
    states = torch.ones((1, 2, shape.width))
    features: dict[str, Any] = {
        "token_embeddings": states,
        "attention_mask": torch.ones((1, 2), dtype=torch.int64),
        "all_layer_embeddings": (states,) * (shape.blocks + 1),
    }
    for module in chain:
        try:
            with torch.no_grad():
                features = module(features)
        except Exception as error:  # a class of the parent's own may raise anything
            raise ParentError(
                f"{source}: its module {type(module).__name__} does not run on token states and what the modules "
                f"before it give: {one_line(error)}"
            ) from error
    vector = features.get("sentence_embedding")
    if not isinstance(vector, Tensor) or vector.ndim != 2:
        raise ParentError(f"{source}: its modules give no sentence_embedding, so encode has no vector to give")
    return int(vector.shape[1])


def _check_depths(job: ExportJob, chain: Sequence[nn.Module], shape: Architecture) -> None:
    weighs = any(type(module).__name__ == "WeightedLayerPooling" for module in chain)
    early = [point for point in job.points if point.layers != shape.blocks]
    if weighs and early:
        raise RequestError(
            f"layers={early[0].layers} was asked; {job.parent.source} weighs the states of all its {shape.blocks} "
            f"blocks (WeightedLayerPooling), so it can only be read after the last: ask for layers = [{shape.blocks}]"
        )


def _settle_final_norm(job: ExportJob, shape: Architecture) -> FinalNorm:
    asked = job.readout.final_norm
    if not shape.tail:
        if asked in (FinalNorm.KEEP, FinalNorm.DROP):
            raise RequestError(
                f"final_norm = {asked!s} was asked; {job.parent.source} is post-norm and has none: leave it out"
            )
        return FinalNorm.ABSENT
    if asked is FinalNorm.DROP and len(shape.tail) > 1:
        raise RequestError(
            f"final_norm = drop was asked; behind the last block of {job.parent.source} stand "
            f"{' and '.join(shape.tail)}, so its raw states are of another kind than its vectors: keep them"
        )
    if asked in (FinalNorm.KEEP, FinalNorm.DROP):
        return asked
    if all(point.layers == shape.blocks for point in job.points):
        return FinalNorm.KEEP  # only the parent's own output is read
    raise RequestError(
        f"{job.parent.source} normalises after its last block ({', '.join(shape.tail)}), so a vector read after fewer "
        "blocks depends on whether that norm is applied to it, and systems disagree: say "
        'final_norm = "keep" (as cutting the layers of the module does) or "drop" (the raw hidden_states[k], as '
        "training losses read it) in [readout]"
    )


def _settle_asking(job: ExportJob, opened: Opened, source: str) -> Asking:
    try:
        asking = learn_asking(opened, source)
        asked = job.readout.max_tokens
        if asked is None:
            return asking
        if not 1 <= asked <= asking.max_tokens:
            raise RequestError(f"max_tokens={asked} was asked; the parent takes 1 to {asking.max_tokens}")
        lower_limit(opened, asked)
        return learn_asking(opened, source)
    except (ParentError, RequestError):
        raise
    except Exception as error:  # tokenizers raises bare Exception, a parent's own class anything
        raise ParentError(f"the tokenizer of {source} cannot be asked for tokens: {one_line(error)}") from error


def _refuse_scaled_rope(opened: Opened, asking: Asking, source: str) -> None:
    """Refuse positions that are scaled by the longest text of a batch, where texts may be that long."""
    if opened.backbone is None:
        return
    config = opened.backbone.config.get_text_config()
    told = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    tables = [told, *(table for table in told.values() if isinstance(table, dict))]
    for table in tables:
        kind = table.get("rope_type", table.get("type"))
        if kind not in ("longrope", "dynamic"):
            continue
        original = table.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        original = int(original or getattr(config, "max_position_embeddings", None) or NO_LIMIT)
        if asking.longest > original:
            raise ParentError(
                f"{source} scales its positions by the longest text of a batch ({kind}) beyond {original} tokens, and "
                f"takes {asking.longest}: a text's vector depends on the texts beside it, so there is nothing that "
                f"a sub-model could be equal to; below that it does not: give max_tokens = {original} in [readout]"
            )


def _list_frames(asking: Asking) -> list[str]:
    if asking.chat is None:
        return []
    return [f"{frame.before} {frame.after}" for frame in asking.chat.frames.values()]


def _describe_text(asking: Asking, shape: Architecture, readout: Readout) -> TextFacts:
    # The mask is an input even of a model that does not take it: pooling needs it.
    given = {*asking.gives, "attention_mask"}
    inputs = [name for name in INPUT_NAMES if name in given and (name in shape.takes or name == "attention_mask")]
    if asking.unpooled is not None:
        inputs.append(POOLING_MASK)
    side = PaddingSide.RIGHT if PoolingMode.CLS in readout.pooling else asking.padding_side
    return describe_text(asking, tuple(inputs), asking.max_tokens, side)
