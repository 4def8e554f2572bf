"""The parent's own vectors: what every sub-model is compared with.

They come from the unsliced parent's forward with ``output_hidden_states``, one text at a time without padding, read
out by sentence-transformers' own modules and tokenised by transformers' own tokenizer. Nothing of `readout` (which is
traced), nothing of `embed` (which runs the result) takes part, so an error in either shows as a difference.

At full depth the state is ``last_hidden_state`` and not ``hidden_states[-1]``: model families differ in whether the
latter is before or after the final norm (transformers 5, `output_capturing.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from matexport.build.parents.text import TextParent, TextPlan
from matexport.errors import ParentError, RequestError
from matexport.spec import FinalNorm, Point, Probe

Vectors = NDArray[np.float32]

#: How many probes are repeated with each of the parent's prompts.
PROMPTED_PROBES = 2


def prepare_probes(plan: TextPlan, probes: Sequence[Probe], *, shipped: bool) -> tuple[Probe, ...]:
    """The probes as they go into the family.

    The shipped ones do not know the parent: those that give no token are left out, and some are repeated with each
    of its prompts. A user's own are taken as they are.

    Raises:
        RequestError: a user's probe names a prompt that the parent does not have, or gives no token.
    """
    if shipped:
        usable = [probe for probe in probes if count_tokens(plan, probe)]
        prompted = [Probe(probe.text, name) for name in plan.text.prompts for probe in usable[:PROMPTED_PROBES]]
        return (*usable, *prompted)
    for index, probe in enumerate(probes):
        if probe.prompt and probe.prompt not in plan.text.prompts:
            known = ", ".join(plan.text.prompts) or "none"
            raise RequestError(f"probe {index} asks for the prompt {probe.prompt!r}; the parent's prompts are: {known}")
        if not count_tokens(plan, probe):
            raise RequestError(f"probe {index} ({probe.text[:40]!r}) has no tokens, so the parent has no vector for it")
    return tuple(probes)


def count_tokens(plan: TextPlan, probe: Probe) -> int:
    """Number of tokens of a probe after truncation."""
    return int(_tokenize(plan, probe)["input_ids"].shape[1])


def record_reference(
    parent: TextParent, probes: Sequence[Probe], progress: Callable[[str, int, int], None] | None = None
) -> dict[Point, Vectors]:
    """The parent's vector for each probe at each point of the job: point -> (len(probes), dim) float32.

    Raises:
        ParentError: a vector is not finite.
    """
    points = parent.plan.job.points
    rows: dict[Point, list[Vectors]] = {point: [] for point in points}
    for done, probe in enumerate(probes):
        if progress:
            progress("reference", done, len(probes))
        for point, vector in _read_probe(parent, probe, points).items():
            rows[point].append(vector)
    if progress:
        progress("reference", len(probes), len(probes))
    reference = {point: np.stack(vectors) for point, vectors in rows.items()}
    for point, vectors in reference.items():
        if not np.isfinite(vectors).all():
            index = int((~np.isfinite(vectors)).any(axis=1).argmax())
            raise ParentError(
                f"{parent.plan.job.parent.source} itself gives values that are not finite at {point.name} "
                f"for probe {index} ({probes[index].text[:40]!r}); are its weights sound?"
            )
    return reference


def _read_probe(parent: TextParent, probe: Probe, points: Sequence[Point]) -> dict[Point, Vectors]:
    encoded = _tokenize(parent.plan, probe)
    inputs = {name: encoded[name] for name in parent.plan.text.inputs}
    try:
        with torch.no_grad():
            output = parent.backbone(**inputs, output_hidden_states=True)
    except (RuntimeError, IndexError) as error:
        tokens = inputs["input_ids"].shape[1]
        raise ParentError(
            f"{parent.plan.job.parent.source} cannot run a text of {tokens} tokens, which its own limit of "
            f"{parent.plan.text.max_tokens} allows ({str(error).splitlines()[0]}); give max_tokens in [readout]"
        ) from error
    with torch.no_grad():
        full = {
            layers: _read_out(parent, _state_at(parent, output, layers), inputs["attention_mask"])
            for layers in sorted({point.layers for point in points})
        }
    return {point: _cut(parent, full[point.layers], point.dim) for point in points}


def _tokenize(plan: TextPlan, probe: Probe) -> dict[str, torch.Tensor]:
    text = (plan.text.prompts[probe.prompt] if probe.prompt else "") + probe.text
    encoded = plan.tokenizer(
        [text],
        truncation="longest_first",
        max_length=plan.text.max_tokens,
        return_tensors="pt",
    )
    tensors = {name: encoded[name].to(torch.int64) for name in encoded}
    if "token_type_ids" in plan.text.inputs and "token_type_ids" not in tensors:
        tensors["token_type_ids"] = torch.zeros_like(tensors["input_ids"])
    return tensors


def _state_at(parent: TextParent, output: object, layers: int) -> torch.Tensor:
    if layers == parent.plan.parent.blocks:
        return output.last_hidden_state  # type: ignore[attr-defined, no-any-return]
    state: torch.Tensor = output.hidden_states[layers]  # type: ignore[attr-defined]
    if parent.plan.readout.final_norm is FinalNorm.KEEP and parent.final_norm is not None:
        state = parent.final_norm(state)
    return state


def _read_out(parent: TextParent, state: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    features = {"token_embeddings": state, "attention_mask": mask}
    pooled = [_apply(pooling, features) for pooling in parent.pooling]
    vector = torch.cat(pooled, dim=-1)
    for head in parent.heads:
        vector = _apply(head, {**features, "sentence_embedding": vector})
    return vector


def _apply(module: nn.Module, features: dict[str, torch.Tensor]) -> torch.Tensor:
    vector: torch.Tensor = module(dict(features))["sentence_embedding"]
    return vector


def _cut(parent: TextParent, vector: torch.Tensor, dim: int) -> Vectors:
    cut = vector[0, :dim].numpy().astype(np.float32)
    if parent.plan.readout.normalize:
        cut = cut / max(float(np.linalg.norm(cut)), 1e-12)
    return np.ascontiguousarray(cut, dtype=np.float32)
