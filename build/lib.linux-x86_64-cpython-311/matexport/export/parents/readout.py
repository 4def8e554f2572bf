"""The read-out, settled: what turns the states of a parent's tokens into one vector, by its folder and by the job.

The Pooling that is read is the parent's own or the job's; the modules behind it are run once on some states, which
tells how wide a vector is; and a parent that normalises after its last block has to be told whether a vector that is
read earlier is normalised, too. What cannot be settled is refused here. Nothing of this needs weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from matexport.errors import ParentError, RequestError, one_line
from matexport.export.parents.architecture import Architecture
from matexport.export.parents.folder.layout import Layout
from matexport.export.parents.folder.loading import Opened, make_pooling, module_class
from matexport.spec.job import ExportJob
from matexport.spec.readout import TEXT_POOLINGS, FinalNorm, PoolingMode, Readout


def settle_pooling(job: ExportJob, layout: Layout, opened: Opened, shape: Architecture) -> Opened:
    """The parent with the Pooling that is read: its own, or the job's.

    Raises:
        RequestError: the job names none and the parent has none, or the job names one where it cannot be.
    """
    asked = job.readout.pooling
    modes = None if asked is None else asked if isinstance(asked, tuple) else (asked,)
    of_images = [f"pooling = {mode}" for mode in modes or () if mode not in TEXT_POOLINGS]
    of_images += ["features = true"] if job.readout.features else []
    of_images += [f"image_size = {job.readout.image_size}"] if job.readout.image_size is not None else []
    if of_images:
        raise RequestError(
            f"{of_images[0]} was asked; {job.parent.source} embeds texts: it is for parents that take images"
        )
    pooling = module_class("Pooling")
    if layout.kind == "StaticEmbedding":
        if modes not in (None, (PoolingMode.MEAN,)):
            raise RequestError(f"{job.parent.source} is the mean of its tokens; leave pooling out of [readout]")
        return replace(opened, chain=(make_pooling(PoolingMode.MEAN, shape.width), *opened.chain))
    if layout.is_plain:
        if modes is None:
            raise RequestError(
                f"{job.parent.source} has no modules.json, so it does not say how token states are pooled: "
                f"give pooling in [readout], one of {', '.join(TEXT_POOLINGS)}"
            )
        return replace(opened, chain=(_make_poolings(modes, shape.width),))
    if modes is None:
        return opened
    if not any(isinstance(module, pooling) for module in opened.chain):
        raise RequestError(f"pooling was asked; {job.parent.source} pools by a class of its own: leave it out")
    return replace(
        opened,
        chain=tuple(
            _make_poolings(modes, shape.width, module.include_prompt) if isinstance(module, pooling) else module
            for module in opened.chain
        ),
    )


def _make_poolings(modes: Sequence[PoolingMode], width: int, include_prompt: Any = True) -> nn.Module:
    pooling: nn.Module = module_class("Pooling")(
        width, pooling_mode=tuple(str(mode) for mode in modes), include_prompt=include_prompt
    )
    return pooling.eval()


def settle_readout(job: ExportJob, chain: Sequence[nn.Module], shape: Architecture) -> Readout:
    """What the family says of how its vectors are made of states.

    Args:
        chain: the parent's modules behind the first, with the Pooling that is read.

    Raises:
        RequestError: a point is asked for that cannot be read so early, or the job has to say what becomes of the
            final norm.
    """
    _check_depths(job, chain, shape)
    final_norm = _settle_final_norm(job, shape)
    return Readout(final_norm, _list_modes(chain), _describe_heads(chain), job.readout.normalize)


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


def _check_depths(job: ExportJob, chain: Sequence[nn.Module], shape: Architecture) -> None:
    weighs = any(type(module).__name__ == "WeightedLayerPooling" for module in chain)
    early = [point for point in job.points if point.layers != shape.blocks]
    if weighs and early:
        raise RequestError(
            f"layers={early[0].layers} was asked; {job.parent.source} weighs the states of all its {shape.blocks} "
            f"blocks (WeightedLayerPooling), so it can only be read after the last: ask for layers = [{shape.blocks}]"
        )


def measure_chain(chain: Sequence[nn.Module], shape: Architecture, source: str) -> int:
    """Width of the sentence vector: what the modules make of some (1, 2, W) states.

    Raises:
        ParentError: one of them does not run, or they give no vector.
    """
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
