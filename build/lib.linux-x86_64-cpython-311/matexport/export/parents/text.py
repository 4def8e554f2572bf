"""Text encoders that transformers loads and sentence-transformers saves.

`plan_parent` settles everything that can be settled without weights: the parent is opened with a model of fake tensors,
looked at, and asked for the tokens of sample texts. `load_parent` then loads weights. Both go through
sentence-transformers itself (`loading`), so a setting of the parent's folder does what it does for its users. What is
read off is written down here: how deep and wide the parent is (`architecture`), how texts become tokens (`asking`), and
how states become a vector (`readout`). Nothing here names a model type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from torch import Tensor, nn

from matexport.errors import ParentError, RequestError, one_line
from matexport.export.parents.architecture import Architecture, find_tail, inspect_architecture
from matexport.export.parents.asking import Asking, describe_text, learn_asking, lower_limit
from matexport.export.parents.folder.files import CONFIG, read_json
from matexport.export.parents.folder.layout import Layout
from matexport.export.parents.folder.loading import Opened, open_fake, open_loaded
from matexport.export.parents.folder.model_card import read_license
from matexport.export.parents.folder.source import (
    check_pin,
    fetch_weights,
    find_adapter_base,
    find_weights,
    has_local_weights,
)
from matexport.export.parents.preflight import Located, locate
from matexport.export.parents.readout import measure_chain, settle_pooling, settle_readout
from matexport.export.parents.vocabulary.model import PrunedVocabulary
from matexport.export.parents.vocabulary.plan import find_changed, plan_vocabulary
from matexport.export.parents.vocabulary.rewrite import prune_config
from matexport.io.jobs import check_points
from matexport.spec.facts import POOLING_MASK, ParentFacts
from matexport.spec.inputs import NO_LIMIT, PaddingSide, TextFacts
from matexport.spec.job import ExportJob
from matexport.spec.readout import PoolingMode, Readout

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
        """What `text` would say if the vocabulary had not been pruned."""
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
        """The table's module, by the name that transformers' models have for it."""
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
    opened = settle_pooling(job, layout, opened, shape)
    output_width = measure_chain(opened.chain, shape, source)
    check_points(job.points, shape.blocks, output_width, source)
    check_points(job.trained or (), shape.blocks, output_width, source, "[trained]: ")
    readout = settle_readout(job, opened.chain, shape)
    asking = _settle_asking(job, opened, source)
    _refuse_scaled_rope(opened, asking, source)
    vocabulary = _plan_vocabulary(job, asking)
    text = _describe_text(asking, shape, readout)
    if vocabulary:
        text = msgspec.structs.replace(text, pad_token_id=vocabulary.new_ids.get(text.pad_token_id, 0))
    weights = located.weights if located.weights is not None else _fetch_pinned_weights(job, layout)
    return TextPlan(
        job=job,
        layout=layout,
        opened=opened,
        shape=shape,
        asking=asking,
        parent=_describe_parent(job, layout, opened, shape, output_width, weights),
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
    opened = settle_pooling(plan.job, plan.layout, opened, plan.shape)
    if plan.job.readout.max_tokens is not None:
        lower_limit(opened, plan.text.max_tokens)
    backbone = opened.backbone
    if backbone is None:
        return TextParent(plan, _make_lookup(opened.first), (), opened.chain, opened)
    tail = tuple(backbone.get_submodule(name) for name in find_tail(backbone, plan.job.parent.source))
    return TextParent(plan, backbone, tail, opened.chain, opened)


def measure_weights(plan: TextPlan) -> int:
    """Bytes of the files that a parent's weights are read from."""
    base = find_adapter_base(plan.layout) or plan.layout.root
    files = (base / name[5:] if name.startswith("base/") else plan.layout.root / name for name in plan.parent.weights)
    return sum(path.stat().st_size for path in files)


def runtime_files(plan: TextPlan) -> dict[str, bytes]:
    """The files that a family needs beside its graphs to turn text into inputs: name -> content.

    Raises:
        OSError: one of the parent's cannot be read.
    """
    tokenizer = plan.vocabulary.tokenizer_json if plan.vocabulary else plan.asking.tokenizer_json
    files = {"tokenizer.json": tokenizer.encode()}
    for name in (CONFIG, "tokenizer_config.json", "special_tokens_map.json"):
        path = plan.layout.backbone / name
        if path.is_file():
            files[name] = path.read_bytes()
    return prune_config(files, plan.vocabulary) if plan.vocabulary else files


def find_changed_texts(plan: TextPlan, texts: Sequence[str]) -> list[str]:
    """Those of some texts that a pruned vocabulary gives other tokens; none where the vocabulary is whole."""
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


def _describe_parent(
    job: ExportJob, layout: Layout, opened: Opened, shape: Architecture, output_width: int, weights: Mapping[str, str]
) -> ParentFacts:
    source = job.parent.source
    return ParentFacts(
        # A local path says nothing elsewhere, and would tell who exported the family.
        source=source if source.startswith("package:") or not (job.base / source).is_dir() else Path(source).name,
        architecture=_name_architecture(opened),
        blocks=shape.blocks,
        width=shape.width,
        output_width=output_width,
        dtype=_read_dtype(layout),
        weights=weights,
        license=read_license(layout.root),
    )


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


def _fetch_pinned_weights(job: ExportJob, layout: Layout) -> dict[str, str]:
    """File -> sha256 of a hub parent's weights, which are fetched now that all else was accepted."""
    fetch_weights(job.parent, job.base)
    weights = find_weights(job.parent, layout)
    check_pin(job.parent, weights)
    return weights


def _plan_vocabulary(job: ExportJob, asking: Asking) -> PrunedVocabulary | None:
    if job.vocabulary is None:
        return None
    also = (*asking.prompts.values(), *_list_frames(asking))
    return plan_vocabulary(asking.tokenizer_json, job.vocabulary, job.base, also=also)


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
