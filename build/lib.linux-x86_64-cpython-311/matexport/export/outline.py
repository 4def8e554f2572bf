"""A first look at a parent: an `Outline` of it, from which a job file can be written. No weights are loaded.

It is found and planned as `export` does: `preflight.locate` and `plan_parent`, with a job that asks for no point yet.
So what would be refused is refused here, in export's own words. What a job has to say and nobody has said (a route, a
pooling, what becomes of a final norm, a limit of tokens) is decided by what is usual, and planned once more with every
depth asked for: a job that asks for any of them passes, or the outline says why not.

Of a hub parent's weights, those of its heads alone are fetched, which planning loads. Those of a local one are hashed,
so that the file can pin them. Parents that take images are looked at by `kinds.outline`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from msgspec.structs import replace as change

from matexport.errors import ParentError, RequestError
from matexport.export.kinds.outline import outline_images
from matexport.export.parents.folder.files import CONFIG, MODULES, ROUTER, SETTINGS
from matexport.export.parents.folder.layout import ROUTER_KINDS
from matexport.export.parents.folder.source import has_local_weights, locate_parent
from matexport.export.parents.preflight import Located, locate
from matexport.export.parents.text import TextPlan, plan_parent
from matexport.export.trained import CARD, Shape, find_trained, read_object, read_small_json
from matexport.io.proposal import Found, Outline, Trained
from matexport.spec.inputs import PaddingSide
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.profile import Point
from matexport.spec.readout import FinalNorm, PoolingMode, ReadoutRequest

#: Ways of comparing vectors that do not change when they are scaled to unit length.
_BLIND_TO_LENGTH = (None, "cosine")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def outline_parent(parent: ParentSource, base: Path) -> Outline:
    """Look at a parent.

    Args:
        base: directory against which a relative path is read.

    Raises:
        RequestError: the source is none of the three forms, or the route is none of its routes.
        ParentError: export would refuse the parent, whatever a job says.
    """
    if (images := outline_images(parent, base)) is not None:
        return images
    root = locate_parent(parent, base)
    routes = list_routes(root)
    if routes and parent.route is None:
        parent = change(parent, route=routes[0])
    job = ExportJob(parent, (), base=base)
    located = locate(job)
    if located.weights is None:  # of a hub parent; None would have them fetched
        located = replace(located, weights={})
    job = change(job, readout=_propose_readout(located))
    planned = _plan_with_limit(job, located)
    shape = _measure(planned.plan, located)
    _fetch_card(parent, base)
    trained, ignored = find_trained(root, shape)
    settled = _settle_depths(planned, located, shape, trained)
    plan, facts = settled.plan, settled.plan.parent
    return Outline(
        parent=parent,
        request=plan.job.readout,
        found=Found(facts, plan.readout, plan.text, plan.shape.tail),
        width=shape.width,
        depths=settled.depths,
        routes=routes,
        trained=trained,
        refused=(*settled.refused, *_refuse_wide(facts.output_width, shape)),
        ignored=ignored,
        commit=None if has_local_weights(parent, base) or not _COMMIT.fullmatch(root.name) else root.name,
    )


def list_routes(root: Path) -> tuple[str, ...]:
    """The routes of a parent that routes its texts, in their order; none for any other, or where files are odd."""
    for module in _read_list(root / MODULES):
        kind, path = (str(module.get(key)) for key in ("type", "path"))
        if not kind.startswith("sentence_transformers.") or kind.rpartition(".")[2] not in ROUTER_KINDS:
            continue
        if Path(path).is_absolute() or ".." in Path(path).parts:
            return ()
        content = read_object(root / path / ROUTER) or read_object(root / path / CONFIG) or {}
        structure = content.get("structure")
        return tuple(structure) if isinstance(structure, dict) else ()
    return ()


@dataclass(frozen=True)
class _Planned:
    """A plan, the depths that may be asked for, and what would be refused."""

    plan: TextPlan
    depths: tuple[int, ...] = ()
    refused: tuple[str, ...] = ()


def _propose_readout(located: Located) -> ReadoutRequest:
    """What is usual where nobody says: mean pooling, and unit length unless the parent's users see lengths."""
    stored = read_object(located.root / SETTINGS) or {}
    unit = stored.get("similarity_fn_name") in _BLIND_TO_LENGTH
    ends_in_norm = bool(located.layout.modules) and located.layout.modules[-1].kind == "Normalize"
    pooling = PoolingMode.MEAN if located.layout.is_plain else None
    return ReadoutRequest(pooling=pooling, normalize=unit or ends_in_norm)


def _plan_with_limit(job: ExportJob, located: Located) -> _Planned:
    """A plan that asks for no point, with a limit of tokens where the parent is refused without one."""
    try:
        plan = plan_parent(job, located)
    except ParentError as error:
        limit = _find_scaled_limit(located)
        if limit is None:
            raise
        readout = change(job.readout, max_tokens=limit)
        return _Planned(plan_parent(change(job, readout=readout), located), refused=(f"{error}.",))
    if located.layout.is_plain and plan.text.padding_side is PaddingSide.LEFT:
        # Decoders that pad on the left do so to have the last token, which has seen all others, in one place.
        readout = change(job.readout, pooling=PoolingMode.LAST_TOKEN)
        plan = plan_parent(change(job, readout=readout), located)
    return _Planned(plan)


def _find_scaled_limit(located: Located) -> int | None:
    """Tokens up to which positions that are scaled by the longest text are not: the limit that export asks for."""
    config = read_object(located.layout.backbone / CONFIG) or {}
    text = config.get("text_config")
    config = text if isinstance(text, dict) else config
    for key in ("rope_parameters", "rope_scaling"):
        told = config.get(key)
        tables = [told, *told.values()] if isinstance(told, dict) else []
        for table in tables:
            if isinstance(table, dict) and table.get("rope_type", table.get("type")) in ("longrope", "dynamic"):
                limits = (table, config, {"original_max_position_embeddings": config.get("max_position_embeddings")})
                found = (limit.get("original_max_position_embeddings") for limit in limits)
                return next((limit for limit in found if type(limit) is int and limit > 0), None)
    return None


def _measure(plan: TextPlan, located: Located) -> Shape:
    cut = located.layout.truncate_dim
    output = plan.parent.output_width
    return Shape(plan.parent.blocks, output if cut is None else min(cut, output))


def _settle_depths(planned: _Planned, located: Located, shape: Shape, trained: Trained | None) -> _Planned:
    """The plan of a job that asks for every depth; of the last alone, with the reason, where the others are refused."""
    job, tail = planned.plan.job, planned.plan.shape.tail
    whole = replace(planned, depths=shape.depths[-1:])
    if shape.blocks < 2:
        return whole
    final_norm = _choose_final_norm(tail, trained)
    points = tuple(Point(depth, shape.width) for depth in shape.depths)
    asked = change(job, points=points, readout=change(job.readout, final_norm=final_norm))
    try:
        return replace(planned, plan=plan_parent(asked, located), depths=shape.depths)
    except RequestError as error:
        return replace(whole, refused=(*planned.refused, f"{error}."))


def _choose_final_norm(tail: tuple[str, ...], trained: Trained | None) -> FinalNorm | None:
    """What users of sentence-transformers get when they cut the layers, unless training read the states raw."""
    if not tail:
        return None
    raw = trained is not None and trained.raw and len(tail) == 1
    return FinalNorm.DROP if raw else FinalNorm.KEEP


def _refuse_wide(output: int, shape: Shape) -> tuple[str, ...]:
    if shape.width == output:
        return ()
    return (
        f"dims from {shape.width + 1} to {output}: the parent's users have its vectors cut to {shape.width} "
        f"coordinates (truncate_dim in {SETTINGS}), and so never see them.",
    )


def _fetch_card(parent: ParentSource, base: Path) -> None:
    """Bring a hub parent's card beside its settings, among which it is not: export does not need it."""
    if has_local_weights(parent, base):
        return
    from huggingface_hub import snapshot_download

    with suppress(Exception):  # a look goes on without a card, whatever the hub or the disk has against it
        snapshot_download(parent.source, revision=parent.revision, allow_patterns=[CARD])


def _read_list(path: Path) -> list[Mapping[str, Any]]:
    """The objects of a JSON list; none where there is none. `read_layout` says what is wrong with it."""
    content = read_small_json(path)
    return [item for item in content if isinstance(item, dict)] if isinstance(content, list) else []
