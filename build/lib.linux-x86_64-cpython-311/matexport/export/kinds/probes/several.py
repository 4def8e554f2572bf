"""Several vectors of one image: patch tokens, visual tokens. How many there are, and how many probes there is room for.

A point says in `tokens` how many vectors a graph gives for an item, so a family, its proof and its runtime take patches
as they take visual tokens. How many patches a tower has nobody needs to say: it follows from the size of its images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from matexport.errors import RequestError
from matexport.family.modality import MAX_SIDE_FILE_BYTES
from matexport.family.pixel_rows import MAX_PIXEL_BYTES
from matexport.spec.inputs import ImageFacts
from matexport.spec.job import ExportJob
from matexport.spec.probe import ImageProbe
from matexport.spec.profile import Encoding, Point

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: What the proof may hold of the parent's tokens, and how many probes it has in any case.
MAX_REFERENCE_BYTES, LEAST_PROBES = 64 << 20, 4

#: What else stands in the file of the proof, which is read whole: names, and the parent's pixels, where they are kept.
OTHER_BYTES = 1 << 20


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


def thin_out(
    probes: Sequence[ImageProbe], points: Sequence[Point], facts: ImageFacts | None = None
) -> tuple[ImageProbe, ...]:
    """As many probes, evenly spread, as there is room for their tokens: of LLaVA's five scales, 12 MB for each.

    Args:
        facts: of images that are cut into tiles: of each shape in which these are merged, a probe is then among them.

    Raises:
        RequestError: not even `LEAST_PROBES` have room.
    """
    if not points:  # a first look
        return tuple(probes)
    counts = [facts.count_most_tokens(point.tokens) if facts and facts.tiles else point.tokens for point in points]
    each = 4 * sum(point.dim * max(count, 1) for point, count in zip(points, counts, strict=True))
    count = min(len(probes), max(LEAST_PROBES, MAX_REFERENCE_BYTES // each))
    room = MAX_SIDE_FILE_BYTES - OTHER_BYTES - (0 if facts and facts.tiles else MAX_PIXEL_BYTES)
    if count * each > room:
        raise RequestError(
            f"{len(points)} points were asked, whose tokens are {each} bytes for each probe; the proof needs "
            f"{LEAST_PROBES} probes and holds up to {room} bytes: ask for fewer points or tokens"
        )
    chosen = _find_shapes(probes, facts)[:count] if facts and facts.tiles and count < len(probes) else []
    others = [place for place in range(len(probes)) if place not in chosen]
    left = count - len(chosen)
    chosen += [others[place * len(others) // left] for place in range(left)]
    return tuple(probes[place] for place in sorted(chosen))


def _find_shapes(probes: Sequence[ImageProbe], facts: ImageFacts) -> list[int]:
    """The first probe of each shape in which tiles are merged, of most tiles first: what a proof is not to lack.

    Of 26 that the package draws, most are laid out alike; four that are evenly spread would all be.
    """
    from matexport.runtime.inputs.image import ImageInputs
    from matexport.runtime.inputs.tiles import choose_pinpoint, find_kept

    assert facts.tiles is not None
    inputs = ImageInputs(facts)
    found: dict[tuple[tuple[int, int], bool, bool], int] = {}
    for place, probe in enumerate(probes):
        size = inputs.prepare_probe(probe).size
        pinpoint = choose_pinpoint(size, facts.tiles.pinpoints)
        rows, columns = find_kept(size, pinpoint)
        found.setdefault((pinpoint, rows.start > 0, columns.start > 0), place)
    return [
        place for (pinpoint, *_), place in sorted(found.items(), key=lambda item: (-math.prod(item[0][0]), item[1]))
    ]


def cut_patches(patches: NDArray[np.float32], dim: int, *, normalize: bool) -> NDArray[np.float32]:
    """(n, patches, W) -> (n, patches * dim): each patch cut, then at length 1 where asked."""
    import numpy as np

    cut = patches[:, :, :dim]
    if normalize:
        cut = cut / np.maximum(np.linalg.norm(cut, axis=2, keepdims=True), 1e-12)
    return np.ascontiguousarray(cut, dtype=np.float32).reshape(len(patches), -1)
