"""A first look at a parent that takes images, for `init`: its kind, read off its files, and what can be asked of it.

It is planned as `export` plans it, by a job that asks for no point yet, so that what would be refused is refused here
and in the same words. Which kind it is, its configuration's ``model_type`` says; where there is no configuration, the
names of its weights do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from matexport.errors import ParentError
from matexport.export.kinds.kind import KINDS
from matexport.export.parents.folder.files import CONFIG, MODULES
from matexport.export.parents.folder.source import locate_parent
from matexport.export.parents.plan import Plan
from matexport.export.trained import Shape, find_trained, read_object
from matexport.io.proposal import Found, Outline, Trained
from matexport.spec.inputs import ImageFacts
from matexport.spec.job import ExportJob, ParentSource
from matexport.spec.profile import Point
from matexport.spec.readout import PoolingMode, ReadoutRequest

#: `model_type` of configurations of two towers, of which the vision tower is read.
_TWO_TOWERS = ("clip", "siglip")
_LLAVA = ("llava", "llava_next")


def find_image_kind(root: Path, *, allow_pickle: bool) -> str | None:
    """The kind of a parent's folder, a key of `KINDS`; None where it takes no images, or nothing says so.

    Raises:
        ParentError: its weights have to be looked at, and are pickled, or cannot be read.
    """
    if (root / MODULES).is_file():  # sentence-transformers' own
        return None
    if (root / CONFIG).is_file():
        from matexport.export.parents.vision.text_tower import TEXT_TOWERS
        from matexport.export.parents.vision.towers import TOWERS

        named = (read_object(root / CONFIG) or {}).get("model_type")
        if isinstance(named, str) and named in TEXT_TOWERS:
            raise ParentError(
                f'{root} is the text tower of a model with two: init does not look at it. Write kind = "text-tower" '
                "into the [parent] of a job, and its layers and dims into [points]"
            )
        if named in _LLAVA:
            return "visual-tokens"
        return "image" if isinstance(named, str) and (named in TOWERS or named in _TWO_TOWERS) else None
    return _tell_checkpoint(root, allow_pickle=allow_pickle)


def _tell_checkpoint(root: Path, *, allow_pickle: bool) -> str | None:
    """By the names of its weights."""
    from matexport.export.parents.vision import franca, resnet, vit
    from matexport.export.parents.vision.checkpoint import ENDINGS, find_checkpoint, load_checkpoint

    if not any(path.suffix in ENDINGS for path in root.iterdir()):
        return None
    weights = load_checkpoint(find_checkpoint(root, allow_pickle=allow_pickle))
    network = vit if vit.is_vit(weights) else resnet
    readers: Mapping[str, Callable[..., Any]] = {
        "classifier": network.read_classifier,
        "franca": franca.rename_weights,
    }
    for kind, read in readers.items():
        try:
            read(weights, str(root))
        except ParentError:
            continue
        return kind
    return None


def outline_images(parent: ParentSource, base: Path) -> Outline | None:
    """Look at a parent that takes images; None where it takes none.

    Raises:
        RequestError: the source is none of the three forms.
        ParentError: export would refuse the parent, whatever a job says.
    """
    root = locate_parent(parent, base)
    kind = find_image_kind(root, allow_pickle=parent.allow_pickle)
    if kind is None:
        return None
    parent = replace(parent, kind=kind)
    with KINDS[kind].begin(ExportJob(parent, (), base=base), Path()) as begun:
        plan = KINDS[kind].plan(ExportJob(parent, (), base=base), begun)
    look = _LOOKS[kind](plan)
    trained, ignored = look.trained, tuple[str, ...]()
    if trained is None:
        trained, ignored = find_trained(root, Shape(plan.parent.blocks, plan.parent.output_width))
        if trained is not None and look.readable is not None:  # what else it says, this kind cannot be read at
            trained = _hold(trained, look.readable)
    if kind == "image" and (read_object(root / CONFIG) or {}).get("model_type") in _TWO_TOWERS:
        ignored = (*ignored, 'its text tower; kind = "two-towers" exports both, texts and images in one space')
    assert isinstance(plan.inputs, ImageFacts)
    return Outline(
        parent=parent,
        request=look.request,
        found=Found(plan.parent, plan.readout, image=plan.inputs, poolings=look.poolings),
        width=plan.parent.output_width,
        depths=look.depths,
        trained=trained,
        ignored=ignored,
        only=look.readable or (),
    )


def _hold(trained: Trained, readable: tuple[Point, ...]) -> Trained | None:
    points = tuple(point for point in trained.points if point in readable)
    return replace(trained, points=points) if points else None


@dataclass(frozen=True)
class _Look:
    """What a kind adds to a plan.

    Attributes:
        depths: after which blocks it can be read.
        poolings: how it can be read; empty where nothing is pooled.
        readable: the only points that it can be read at; None where any depth has any dim.
        trained: where its own weights or configuration say that it was trained to be read.
    """

    request: ReadoutRequest
    depths: tuple[int, ...]
    poolings: tuple[PoolingMode, ...] = ()
    readable: tuple[Point, ...] | None = None
    trained: Trained | None = None


def _look_at_tower(plan: Plan) -> _Look:
    return _look_at_blocks(plan, plan.details.tower.poolings)


def _look_at_franca(plan: Plan) -> _Look:
    from matexport.export.kinds.franca import POOLINGS

    return _look_at_blocks(plan, POOLINGS)


def _look_at_blocks(plan: Plan, poolings: tuple[PoolingMode, ...]) -> _Look:
    request = ReadoutRequest(pooling=plan.readout.pooling[0], final_norm=plan.readout.final_norm)
    return _Look(request, tuple(range(1, plan.parent.blocks + 1)), poolings)


def _look_at_classifier(plan: Plan) -> _Look:
    """Dims of its heads: of a shared one, of any width, nothing says at which it was trained."""
    from matexport.export.parents.vision.heads import Heads

    shape = plan.details.shape
    depths = (shape.blocks,)
    if shape.heads is Heads.SHARED:
        return _Look(ReadoutRequest(), depths)
    points = tuple(Point(shape.blocks, dim) for dim in shape.dims)
    return _Look(ReadoutRequest(), depths, readable=points, trained=Trained(points, f"its heads ({shape.heads})"))


def _look_at_tokens(plan: Plan) -> _Look:
    """Numbers of tokens: those that it was trained at, or all that tile its grid."""
    from matexport.export.parents.vision.llava import SCALES

    shape = plan.details.shape
    counts = shape.scales or tuple(side**2 for side in range(1, shape.grid + 1) if shape.grid % side == 0)
    points = tuple(Point(shape.layer, shape.output_width, count) for count in counts)
    trained = Trained(points, f"{CONFIG} ({SCALES})") if shape.scales else None
    return _Look(ReadoutRequest(), (shape.layer,), readable=points, trained=trained)


_LOOKS: Mapping[str, Callable[[Plan], _Look]] = {
    "classifier": _look_at_classifier,
    "franca": _look_at_franca,
    "image": _look_at_tower,
    "visual-tokens": _look_at_tokens,
}
