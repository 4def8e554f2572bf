"""A kind of parent is six functions. `KINDS` has all of them; a job says which is its own (`parent.kind`).

    plan -> load -> reference -> module (traced on example); runtime_files go into the family as they are

What comes after (trace, quantize, cut, verify) is the same for all. torch is not imported here: what can be refused
without it is refused first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matexport.errors import RequestError
from matexport.export.kinds import classifier, franca, image, text, text_tower, visual_tokens
from matexport.export.parents.plan import Example, Plan, Reference
from matexport.io.progress import Progress
from matexport.spec.job import TWO_TOWERS, ExportJob
from matexport.spec.profile import Point
from matexport.spec.record import suggest

if TYPE_CHECKING:
    from torch import nn


def _begin_nothing(_job: ExportJob, _out: Path) -> AbstractContextManager[Any]:
    return nullcontext()


@dataclass(frozen=True)
class Kind:
    """What a kind of parent does at each stage of an export.

    Attributes:
        plan: (job, what `begin` gave) -> all that is known without weights. Raises RequestError, ParentError.
        load: (plan, progress) -> the parent, with weights, in torch; only these functions look at it.
        runtime_files: plan -> name of a file of the family -> its content: what turns an item into inputs.
        reference: (plan, parent, progress) -> the parent's own vectors, by code that shares nothing with `module`.
        module: (plan, parent, reads) -> a module in eval mode that takes the example's tensors and gives a float32
            tensor for each read, then the states after 0, 1, ... all blocks, which tell the blocks apart. A read is a
            point: (B, W) vectors after its `layers`, (B, tokens, W) of visual tokens; what the read-out says of
            truncation and length is not done there. Of a classifier it has a dim, too, and gives (B, classes).
        example: plan -> what the module is traced on.
        begin: (job, destination) -> a context whose value `plan` is given: what is done before torch is imported, and
            what has to be cleaned up behind the export.
    """

    plan: Callable[[ExportJob, Any], Plan]
    load: Callable[[Plan, Progress], Any]
    runtime_files: Callable[[Plan], Mapping[str, bytes]]
    reference: Callable[[Plan, Any, Progress], Reference]
    module: Callable[[Plan, Any, Sequence[Point]], nn.Module]
    example: Callable[[Plan], Example]
    begin: Callable[[ExportJob, Path], AbstractContextManager[Any]] = _begin_nothing


KINDS: dict[str, Kind] = {
    "classifier": Kind(
        classifier.plan,
        classifier.load,
        classifier.runtime_files,
        classifier.reference,
        classifier.module,
        classifier.example,
        classifier.begin,
    ),
    "franca": Kind(
        franca.plan,
        franca.load,
        franca.runtime_files,
        franca.reference,
        franca.module,
        franca.example,
        franca.begin,
    ),
    "image": Kind(
        image.plan, image.load, image.runtime_files, image.reference, image.module, image.example, image.begin
    ),
    "text": Kind(text.plan, text.load, text.runtime_files, text.reference, text.module, text.example, text.begin),
    "text-tower": Kind(
        text_tower.plan,
        text_tower.load,
        text_tower.runtime_files,
        text_tower.reference,
        text_tower.module,
        text_tower.example,
        text_tower.begin,
    ),
    "visual-tokens": Kind(
        visual_tokens.plan,
        visual_tokens.load,
        visual_tokens.runtime_files,
        visual_tokens.reference,
        visual_tokens.module,
        visual_tokens.example,
        visual_tokens.begin,
    ),
}


def find_kind(job: ExportJob) -> Kind:
    """The kind of a job's parent.

    Raises:
        RequestError: there is none of that name.
    """
    name = job.parent.kind
    if name not in KINDS:
        known = sorted([*KINDS, TWO_TOWERS])
        raise RequestError(f"parent.kind = {name!r} was asked; it is one of: {', '.join(known)}{suggest(name, known)}")
    return KINDS[name]
