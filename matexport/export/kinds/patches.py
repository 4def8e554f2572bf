"""Several vectors of one image: patch tokens, visual tokens. How many there are, and how many probes there is room for.

A point says in `tokens` how many vectors a graph gives for an item, so a family, its proof and its runtime take patches
as they take visual tokens. How many patches a tower has nobody needs to say: it follows from the size of its images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from matexport.errors import RequestError
from matexport.family.modality import MAX_SIDE_FILE_BYTES
from matexport.spec.job import ExportJob
from matexport.spec.probe import ImageProbe
from matexport.spec.profile import Encoding, Point

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: What the proof may hold of the parent's tokens, and how many probes it has in any case.
MAX_REFERENCE_BYTES, LEAST_PROBES = 64 << 20, 4

#: What those few probes may take at the most: a file of the proof is read whole, and more stands in it.
MOST_REFERENCE_BYTES = MAX_SIDE_FILE_BYTES * 3 // 4


def refuse_encodings(job: ExportJob, what: str) -> None:
    """Refuse to encode what is several vectors.

    Raises:
        RequestError: another encoding than float32 was asked.
    """
    if any(encoding is not Encoding.FLOAT32 for encoding in job.encodings):
        raise RequestError(f"encodings = {', '.join(job.encodings)} was asked; {what} are given as float32")


def name_patches(job: ExportJob, count: int) -> ExportJob:
    """The job with the number of patches at each of its points.

    Raises:
        RequestError: it asks for another number, or to encode them.
    """
    refuse_encodings(job, "patch tokens")
    for point in (*job.points, *(job.trained or ())):
        if point.tokens not in (0, count):
            raise RequestError(
                f"tokens={point.tokens} was asked; {job.parent.source} has {count} patches, all of which are given: "
                "leave tokens out"
            )
    points, trained = (
        None if points is None else tuple(dict.fromkeys(replace(point, tokens=count) for point in points))
        for points in (job.points, job.trained)
    )
    return replace(job, points=points, trained=trained)


def thin_out(probes: Sequence[ImageProbe], points: Sequence[Point]) -> tuple[ImageProbe, ...]:
    """As many probes, evenly spread, as there is room for their tokens: of LLaVA's five scales, 12 MB for each.

    Raises:
        RequestError: not even `LEAST_PROBES` have room.
    """
    if not points:  # a first look
        return tuple(probes)
    each = 4 * sum(point.dim * max(point.tokens, 1) for point in points)
    count = min(len(probes), max(LEAST_PROBES, MAX_REFERENCE_BYTES // each))
    if count * each > MOST_REFERENCE_BYTES:
        raise RequestError(
            f"{len(points)} points were asked, whose tokens are {each} bytes for each probe; the proof needs "
            f"{LEAST_PROBES} probes and holds up to {MOST_REFERENCE_BYTES} bytes: ask for fewer points"
        )
    return tuple(probes[place * len(probes) // count] for place in range(count))


def cut_patches(patches: NDArray[np.float32], dim: int, *, normalize: bool) -> NDArray[np.float32]:
    """(n, patches, W) -> (n, patches * dim): each patch cut, then at length 1 where asked."""
    import numpy as np

    cut = patches[:, :, :dim]
    if normalize:
        cut = cut / np.maximum(np.linalg.norm(cut, axis=2, keepdims=True), 1e-12)
    return np.ascontiguousarray(cut, dtype=np.float32).reshape(len(patches), -1)
