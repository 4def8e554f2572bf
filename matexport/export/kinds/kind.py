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
from matexport.export.kinds import image, text
from matexport.export.parents.plan import Example, Plan, Reference
from matexport.io.progress import Progress
from matexport.spec.job import ExportJob
from matexport.spec.suggest import suggest

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
        module: (plan, parent, depths) -> a module in eval mode that takes the example's tensors and gives a (B, W)
            float32 vector after each of so many blocks, then the states after 0, 1, ... all blocks, which tell the
            blocks apart. What the read-out says of truncation and length is not done there.
        example: plan -> what the module is traced on.
        begin: (job, destination) -> a context whose value `plan` is given: what is done before torch is imported, and
            what has to be cleaned up behind the export.
    """

    plan: Callable[[ExportJob, Any], Plan]
    load: Callable[[Plan, Progress], Any]
    runtime_files: Callable[[Plan], Mapping[str, bytes]]
    reference: Callable[[Plan, Any, Progress], Reference]
    module: Callable[[Plan, Any, Sequence[int]], nn.Module]
    example: Callable[[Plan], Example]
    begin: Callable[[ExportJob, Path], AbstractContextManager[Any]] = _begin_nothing


KINDS: dict[str, Kind] = {
    "image": Kind(
        image.plan, image.load, image.runtime_files, image.reference, image.module, image.example, image.begin
    ),
    "text": Kind(text.plan, text.load, text.runtime_files, text.reference, text.module, text.example, text.begin),
}


def find_kind(job: ExportJob) -> Kind:
    """The kind of a job's parent.

    Raises:
        RequestError: there is none of that name.
    """
    name = job.parent.kind
    if name not in KINDS:
        known = ", ".join(KINDS)
        raise RequestError(f"parent.kind = {name!r} was asked; it is one of: {known}{suggest(name, list(KINDS))}")
    return KINDS[name]
