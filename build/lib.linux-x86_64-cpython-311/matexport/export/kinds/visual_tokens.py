"""Matryoshka Multimodal Models (M3): the visual tokens that a language model is fed. The six functions of their kind.

A parent is a folder of transformers' LLaVA: a CLIP tower, a projector and a language model, of which the first two are
read. What comes out is (B, tokens, width): the tower's states after the block that the parent says (``-2``: the last
but one), without the class token, through the projector, then averaged over squares of patches. The projector is no
linear map, so the order matters (Cai et al., "Matryoshka Multimodal Models", ICLR 2025; `encode_images` and
`matryoshka_vis_token_process` of its code).

A LLaVA-NeXT folder is read alike. Its graphs take the tiles of an image as a batch and average each of them; merging
them, with the parent's newline behind each row, is the runtime's (`runtime.inputs.tiles`), and is held with it to what
transformers itself merges. The proof has an image's tokens in one row, and zeros up to the most that an image can have.

Whatever needs torch is imported inside of the functions.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from matexport.errors import ParentError, RequestError
from matexport.export.kinds import image
from matexport.export.kinds.probes.several import refuse_encodings, thin_out
from matexport.export.parents.plan import Example, Plan, Reference
from matexport.family.modality import NEWLINE, NEWLINE_FILE
from matexport.io.progress import Progress
from matexport.spec.facts import ParentFacts
from matexport.spec.job import ExportJob
from matexport.spec.profile import Point
from matexport.spec.readout import FinalNorm, Readout

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from matexport.export.parents.vision.llava import Shape

#: Name of the one output of the graphs.
OUTPUT = "visual_tokens"


@dataclass(frozen=True)
class Details:
    """What is known of a planned parent beyond `Plan`."""

    begun: image.Begun
    shape: Shape


@contextmanager
def begin(job: ExportJob, _out: Path) -> Iterator[image.Begun]:
    """Find the parent's folder; its judge is started when all was accepted."""
    from matexport.export.judge.images import ImageJudge
    from matexport.export.parents.folder.source import locate_parent

    root = locate_parent(job.parent, job.base)
    with ImageJudge(root, job.parent.source, tokens=True) as judge:
        yield image.Begun(root, judge)


def plan(job: ExportJob, begun: image.Begun) -> Plan:
    """Settle which tokens are read, how images are prepared, and those that the family is proven on.

    Raises:
        RequestError: a point is outside the parent, or asks for a number of tokens that it was not trained at or that
            its patches cannot be averaged to.
        ParentError: the parent cannot be read, is not the pinned one, or is of a kind that is not known.
    """
    from matexport.export.parents.folder.model_card import read_license
    from matexport.export.parents.folder.source import pin_weights
    from matexport.export.parents.vision.llava import read_shape
    from matexport.export.parents.vision.processor import read_processor

    source = job.parent.source
    image.refuse_text_requests(job)
    _refuse_readout(job)
    shape = read_shape(begun.root, source)
    facts = read_processor(begun.root)
    if (facts.height, facts.width) != (shape.side, shape.side):
        raise ParentError(
            f"{source} takes images of {shape.side} x {shape.side}; its processor makes them {facts.height} x "
            f"{facts.width}"
        )
    if (pinpoints := facts.tiles.pinpoints if facts.tiles else ()) != shape.pinpoints:
        raise ParentError(
            f"{source} is a {shape.architecture} that merges tiles of {list(shape.pinpoints)}; its processor cuts "
            f"images into tiles of {list(pinpoints)}"
        )
    refuse_encodings(job, "visual tokens")
    _check_points(job, shape)
    parent = ParentFacts(
        source=source,
        architecture=shape.architecture,
        blocks=shape.layer,
        width=shape.width,
        output_width=shape.output_width,
        dtype=shape.dtype,
        weights=pin_weights(begun.root, job.parent, job.base),
        license=read_license(begun.root),
    )
    heads = (f"Projector({shape.width}->{shape.output_width})", "AveragePool")
    readout = Readout(FinalNorm.ABSENT, (), heads, normalize=False)
    probes, calibration = image.choose_images(job)
    probes = thin_out(probes, job.points, facts)
    return Plan(job, parent, readout, facts, probes, calibration, OUTPUT, details=Details(begun, shape))


def load(plan: Plan, report: Progress) -> Any:
    """The tower's blocks up to the one that is read, and the projector, in float32 and eval mode.

    Raises:
        ParentError: weights are missing or of other shapes.
    """
    from matexport.export.parents.vision.llava import load_tokens

    report("load", 0, 1)
    plan.details.begun.judge.start()
    loaded = load_tokens(plan.details.begun.root, plan.details.shape, plan.job.parent)
    report("load", 1, 1)
    return loaded


def runtime_files(plan: Plan) -> Mapping[str, bytes]:
    """The parent's own configuration and that of its processor, for other consumers; of tiles, the newline."""
    from safetensors.numpy import save

    from matexport.export.parents.vision.llava import read_newline

    details: Details = plan.details
    files = image.read_runtime_files(details.begun.root, plan)
    if details.shape.pinpoints:
        newline = read_newline(details.begun.root, details.shape, plan.job.parent)
        files[NEWLINE_FILE] = save({NEWLINE: newline})
    return files


def reference(plan: Plan, _parent: Any, report: Progress) -> Reference:
    """What the parent's own library makes of the probes' files.

    Raises:
        ParentError: the pixels that the runtime makes of a file are not those of the parent's own processor, or a
            number is not finite.
    """
    from matexport.export.kinds.probes.image import keep_pixels

    details: Details = plan.details
    counts = sorted({point.tokens for point in plan.job.points})
    report("reference", 0, len(plan.probes))
    with tempfile.TemporaryDirectory() as folder:
        found = details.begun.judge.read_tokens(image.write_files(plan.probes, Path(folder)), counts)
    report("judge", 0, 1)
    rows = keep_pixels(plan, np.split(found["pixels"], np.cumsum(found["views"])[:-1]))
    points = {}
    for point in plan.job.points:
        tokens = np.split(found[f"tokens_{point.tokens}"], np.cumsum(found[f"lengths_{point.tokens}"])[:-1])
        points[point] = image.check_finite(_stack_tokens(tokens, point, plan), point, plan)
    judge = details.begun.judge.name
    details.begun.judge.close()
    report("judge", 1, 1)
    return Reference(points, rows, judge=judge)


def module(_plan: Plan, parent: Any, reads: Sequence[Point]) -> nn.Module:
    """The tower and the projector as they are traced, with one average for each number of tokens."""
    from matexport.export.parents.module import ExitsWithStates
    from matexport.export.parents.vision.llava import TokenExits

    return ExitsWithStates(TokenExits(parent, [read.tokens for read in reads])).eval()


def example(plan: Plan) -> Example:
    """Three images, of which only the number may change."""
    return image.example(plan)


def _stack_tokens(tokens: Sequence[NDArray[np.float32]], point: Point, plan: Plan) -> NDArray[np.float32]:
    """(T, d) of each probe -> (n, most * d), zeros behind them: as `Inputs.gather` gives them.

    Raises:
        ParentError: the parent gives more of a probe than an image can have.
    """
    most = image.image_facts(plan).count_most_tokens(point.tokens)
    stacked = np.zeros((len(tokens), most, point.dim), np.float32)
    for row, own in zip(stacked, tokens, strict=True):
        if len(own) > most:
            raise ParentError(f"{plan.job.parent.source} gives {len(own)} tokens at {point.name}; {most} was the most")
        row[: len(own)] = own
    return stacked.reshape(len(tokens), -1)


def _refuse_readout(job: ExportJob) -> None:
    """Refuse what is asked of vectors that are pooled, or of towers without a language model behind them."""
    source = job.parent.source
    if job.readout.pooling is not None or job.readout.final_norm is not None:
        raise RequestError(f"pooling or final_norm was asked; {source} gives visual tokens: leave them out")
    if job.readout.image_size is not None:
        raise RequestError(
            f"image_size={job.readout.image_size} was asked; {source} was trained at numbers of tokens that its own "
            "size gives: leave image_size out"
        )


def _check_points(job: ExportJob, shape: Shape) -> None:
    source = job.parent.source
    known = shape.scales or tuple(sorted({point.tokens for point in job.trained or () if point.tokens}))
    for point in (*job.points, *(job.trained or ())):
        if point.layers != shape.layer:
            raise RequestError(
                f"layers={point.layers} was asked; {source} reads its tower after block {shape.layer} of "
                f"{shape.blocks}: ask for layers = [{shape.layer}]"
            )
        if point.dim != shape.output_width:
            raise RequestError(
                f"dim={point.dim} was asked; the tokens of {source} have {shape.output_width} coordinates, all of "
                f"which its language model reads: ask for dims = [{shape.output_width}]"
            )
        if not point.tokens:
            raise RequestError(f"tokens were not said; {source} gives up to {shape.grid**2} visual tokens: say tokens")
        side = math.isqrt(point.tokens)
        if side**2 != point.tokens or shape.grid % side:
            fitting = [part**2 for part in range(1, shape.grid + 1) if shape.grid % part == 0]
            raise RequestError(
                f"tokens={point.tokens} was asked; {source} has {shape.grid} x {shape.grid} patches, which are "
                f"averaged in equal squares: {', '.join(map(str, fitting))}"
            )
        if known and point.tokens not in known:
            raise RequestError(
                f"tokens={point.tokens} was asked; {source} was trained at {', '.join(map(str, known))}, and says "
                "something else with others"
            )
