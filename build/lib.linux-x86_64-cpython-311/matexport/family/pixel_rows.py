"""The probes' pixels as the parent's own processor makes them: packed for the proof, read back, compared.

Two tensors stand beside the vectors in ``reference.safetensors``: ``pixels``, uint8 (m, height, width, 3), grey levels
after everything but normalising, and ``pixel_probes``, int32 (m,), which probes they are of. There are at most
`MAX_PIXEL_PROBES` of them; a family without them, as older ones are, is not checked for them.

Decoders and resamplers differ by a grey level between versions of Pillow and the libraries in it, which is no fault of
a graph: so graphs are judged on these pixels, and what this machine makes of the files is compared with them apart.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matexport.errors import FamilyError, ProblemKind
from matexport.family.integrity import Contents
from matexport.family.manifest import REFERENCE, Family
from matexport.family.proof import read_tensors
from matexport.family.token_rows import quote_probe
from matexport.family.weights_file import TensorEntry, read_header
from matexport.io.files import find_file_problem
from matexport.spec.inputs import ImageFacts
from matexport.spec.parity import MOST_LEVELS, PixelParity
from matexport.spec.probe import AnyProbe

PIXELS, PIXEL_PROBES = "pixels", "pixel_probes"

#: Of how many probes pixels are kept, and how many bytes of them: of 26 probes at 518 x 518, 21 MB.
MAX_PIXEL_PROBES, MAX_PIXEL_BYTES = 32, 32 << 20

#: (height, width, 3) uint8.
Pixels = NDArray[np.uint8]


def choose_pixel_rows(rows: Sequence[Pixels]) -> dict[int, Pixels]:
    """Index of a probe -> its pixels, of as many as there is room for, evenly spread; none where not even one has."""
    count = min(len(rows), MAX_PIXEL_PROBES, MAX_PIXEL_BYTES // rows[0].nbytes)
    return {index: rows[index] for index in (place * len(rows) // count for place in range(count))}


def pack_pixel_rows(chosen: Mapping[int, Pixels]) -> dict[str, NDArray[Any]]:
    """Pixels of some probes, (height, width, 3) uint8 each, as the tensors that stand beside the parent's vectors."""
    if not chosen:
        return {}
    return {PIXELS: np.stack([*chosen.values()]), PIXEL_PROBES: np.array([*chosen], np.int32)}


def stores_pixel_rows(family: Family) -> bool:
    """Whether a family has pixels of the parent, by its file's header; True where that cannot be read."""
    if family.facts.image is None:
        return False
    if find_file_problem(family.path / REFERENCE, sys.maxsize):
        return True
    try:
        return any(entry.name in (PIXELS, PIXEL_PROBES) for entry in read_header(family.path / REFERENCE).entries)
    except (FamilyError, OSError):
        return True


def load_pixel_rows(contents: Contents, probes: int) -> dict[int, Pixels] | None:
    """Index of a probe -> the parent's pixels of it; None where the family has none.

    Nothing is read before its type and size are known to be right.

    Raises:
        FamilyError: one of the two tensors is missing, they are of another type or shape, or they do not fit.
    """
    stored, facts = read_tensors(contents, REFERENCE), contents.family.facts.image
    pixels, places = (stored.get(name) for name in (PIXELS, PIXEL_PROBES))
    if facts is None or (pixels is None and places is None):
        return None
    if pixels is None or places is None:
        there = PIXEL_PROBES if pixels is None else PIXELS
        raise _refuse_proof(f"{REFERENCE} has {there} alone; {PIXELS} and {PIXEL_PROBES} are a pair")
    _check_shapes(pixels, places, facts)
    indices = [int(index) for index in _read(contents, places, "<i4")]
    if any(left >= right for left, right in zip([-1, *indices], [*indices, probes], strict=True)):
        raise _refuse_proof(f"{REFERENCE}: {PIXEL_PROBES} are not places of the {probes} probes, in their order")
    rows = _read(contents, pixels, "u1").reshape(pixels.shape)
    return dict(zip(indices, rows, strict=True))


def _check_shapes(pixels: TensorEntry, places: TensorEntry, facts: ImageFacts) -> None:
    count = places.shape[0] if len(places.shape) == 1 else 0
    if places.dtype != "I32" or not 1 <= count <= MAX_PIXEL_PROBES:
        raise _refuse_proof(f"{REFERENCE} has no int32 {PIXEL_PROBES} in one row of 1 to {MAX_PIXEL_PROBES}")
    if pixels.dtype != "U8" or pixels.shape != (count, facts.height, facts.width, 3):
        raise _refuse_proof(f"{REFERENCE} has no ({count}, {facts.height}, {facts.width}, 3) uint8 {PIXELS}")
    if pixels.nbytes > MAX_PIXEL_BYTES:
        raise _refuse_proof(f"{REFERENCE} has {pixels.nbytes} bytes of {PIXELS}; at most {MAX_PIXEL_BYTES} are read")


def compare_pixel_rows(
    rows: Sequence[Pixels], stored: Mapping[int, Pixels], probes: Sequence[AnyProbe], pillow: str
) -> PixelParity:
    """Compare the pixels that the probes have here with those that the family stores."""
    most, differing, same, total, worst = 0, [], 0, 0, 0
    for index, parent in stored.items():
        difference = np.abs(rows[index].astype(np.int16) - parent)
        largest = int(difference.max())
        same, total = same + int((difference == 0).sum()), total + difference.size
        if largest > most:
            most, worst = largest, index
        if largest > MOST_LEVELS:
            differing.append(index)
    quoted = quote_probe(probes, worst) if most else ""
    return PixelParity(len(stored), pillow, same / total, most, tuple(differing), quoted)


def _refuse_proof(why: str) -> FamilyError:
    return FamilyError(why, kind=ProblemKind.PROOF, file=REFERENCE)


def _read(contents: Contents, entry: TensorEntry, kind: str) -> NDArray[np.generic]:
    dtype = np.dtype(kind)
    return np.frombuffer(
        contents.read(REFERENCE), dtype, count=entry.nbytes // dtype.itemsize, offset=entry.offset
    )  # fmt: skip
