"""The parent's own vectors: what every sub-model is compared with.

They come from the whole parent's forward with ``output_hidden_states``, one text at a time without padding, read out by
sentence-transformers' own modules and tokenised by the parent's own preprocessing. Nothing of `parents.module` (which
is traced) and nothing of `runtime` (which runs the result) takes part, so an error in either shows as a difference.
Whether this is what the parent's users get is for `judge` to say.

At full depth the state is ``last_hidden_state`` and not ``hidden_states[-1]``: model families differ in whether the
latter is before or after the final norm (transformers 5, `output_capturing.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from matexport.errors import ParentError
from matexport.export.parents.asking import ask_probe
from matexport.export.parents.text import TextParent
from matexport.spec.probe import Probe
from matexport.spec.profile import Point
from matexport.spec.readout import FinalNorm

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Readings:
    """The parent's vectors of the probes, as its folder is read here; the judge says whether it is read rightly.

    Attributes:
        points: for each point of the job, (len(probes), dim) float32, scaled where the read-out says so.
        whole: at full depth and width, as the parent's own modules give them, (len(probes), W) float32.
        depths: layers -> the same after fewer blocks.
    """

    points: Mapping[Point, Vectors]
    whole: Vectors
    depths: Mapping[int, Vectors]


def record_reference(
    parent: TextParent, probes: Sequence[Probe], progress: Callable[[str, int, int], None] | None = None
) -> Readings:
    """The parent's vector for each probe at each point of the job, and the whole parent's.

    Raises:
        ParentError: a vector is not finite.
    """
    plan = parent.plan
    depths = sorted({point.layers for point in plan.job.points} | {plan.parent.blocks})
    rows: dict[int, list[Vectors]] = {layers: [] for layers in depths}
    for done, probe in enumerate(probes):
        if progress:
            progress("reference", done, len(probes))
        for layers, vector in _read_probe(parent, probe, depths).items():
            rows[layers].append(vector)
    if progress:
        progress("reference", len(probes), len(probes))
    full = {layers: np.stack(vectors) for layers, vectors in rows.items()}
    points = {point: _cut(full[point.layers], point.dim, plan.readout.normalize) for point in plan.job.points}
    for point, vectors in points.items():
        if not np.isfinite(vectors).all():
            index = int((~np.isfinite(vectors)).any(axis=1).argmax())
            raise ParentError(
                f"{plan.job.parent.source} itself gives values that are not finite at {point.name} "
                f"for probe {index} ({probes[index].text[:40]!r}); are its weights sound?"
            )
    whole = full.pop(plan.parent.blocks)
    return Readings(points, whole, full)


def describe_modules(parent: TextParent, probe: Probe) -> dict[str, NDArray[np.generic]]:
    """What each module gives for one text, as the judge names it: ``tokens``, ``0 Transformer``, ``1 Pooling``..."""
    features = ask_probe(parent.opened, probe, parent.plan.whole_text)
    output = _run(parent, features)
    given: dict[str, NDArray[np.generic]] = {"tokens": features["input_ids"].reshape(-1).numpy()}
    known: dict[str, Any] = {**features, "token_embeddings": output.last_hidden_state}
    given[f"0 {type(parent.opened.first).__name__}"] = output.last_hidden_state[0].numpy()
    if _gives_layers(parent.backbone):
        known["all_layer_embeddings"] = output.hidden_states
    with torch.no_grad():
        for place, module in enumerate(parent.chain, 1):
            known = module(known)
            vector = known["sentence_embedding"] if "sentence_embedding" in known else known["token_embeddings"]
            given[f"{place} {type(module).__name__}"] = vector[0].numpy()
    return given


def _read_probe(parent: TextParent, probe: Probe, depths: Sequence[int]) -> dict[int, Vectors]:
    features = ask_probe(parent.opened, probe, parent.plan.whole_text)
    output = _run(parent, features)
    return {layers: _read_out(parent, output, layers, features) for layers in depths}


def _run(parent: TextParent, features: dict[str, Any]) -> Any:
    """The backbone on one text; features that it lacks are added."""
    plan = parent.plan
    if plan.parent.blocks == 0:
        features["input_ids"] = features["input_ids"].reshape(1, -1)
    features.setdefault("attention_mask", torch.ones_like(features["input_ids"]))
    inputs = {
        name: features[name].to(torch.int64)
        for name in plan.text.inputs
        if name in features and name in plan.shape.takes
    }
    try:
        with torch.no_grad():
            return parent.backbone(**inputs, output_hidden_states=True, return_dict=True)
    except (RuntimeError, IndexError) as error:
        tokens = features["input_ids"].shape[1]
        raise ParentError(
            f"{plan.job.parent.source} cannot run a text of {tokens} tokens, which its own limit of "
            f"{plan.text.max_tokens} allows ({str(error).splitlines()[0]}); give max_tokens in [readout]"
        ) from error


def _gives_layers(backbone: Any) -> bool:
    """Whether sentence-transformers hands the states of all layers on: only where the configuration says so."""
    return bool(getattr(getattr(backbone, "config", None), "output_hidden_states", False))


def _read_out(parent: TextParent, output: Any, layers: int, features: Mapping[str, Any]) -> Vectors:
    known = {**features, "token_embeddings": _state_at(parent, output, layers)}
    if layers == parent.plan.parent.blocks and _gives_layers(parent.backbone):
        known["all_layer_embeddings"] = output.hidden_states
    with torch.no_grad():
        for module in parent.chain:
            known = module(known)
    vector: Vectors = known["sentence_embedding"][0].numpy().astype(np.float32)
    return vector


def _state_at(parent: TextParent, output: Any, layers: int) -> torch.Tensor:
    if layers == parent.plan.parent.blocks:
        last: torch.Tensor = output.last_hidden_state
        return last
    state: torch.Tensor = output.hidden_states[layers]
    for module in parent.tail if parent.plan.readout.final_norm is FinalNorm.KEEP else ():
        with torch.no_grad():
            state = module(state)
    return state


def _cut(vectors: Vectors, dim: int, normalize: bool) -> Vectors:
    """(n, W) -> (n, dim), each row at length 1 where asked."""
    cut = vectors[:, :dim]
    if normalize:
        # One row at a time, as a device would: numpy sums a matrix in another order.
        cut = np.stack([row / max(float(np.linalg.norm(row)), 1e-12) for row in cut])
    return np.ascontiguousarray(cut, dtype=np.float32)
