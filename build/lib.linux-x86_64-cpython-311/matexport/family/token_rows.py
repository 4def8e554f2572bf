"""The probes' token ids as the parent's own preprocessing gives them: packed for the proof, read back, compared.

Two tensors stand beside the vectors in ``reference.safetensors``: ``token_ids``, int32, every probe's ids one after the
other, and ``token_counts``, int32, how many of them each probe has. They are ids of the family's own vocabulary, which
may have been pruned. A family without them, as schemas 1 to 3 are, is not checked for them.

Other token ids are told from other vectors because they have another cause: the files may be those that were exported
while this version of tokenizers reads them otherwise. Vectors are then off for all profiles, and nobody knows why.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from matexport.errors import FamilyError, ProblemKind, RequestError
from matexport.family.integrity import Contents
from matexport.family.manifest import REFERENCE, Family
from matexport.family.modality import MAX_SIDE_FILE_BYTES
from matexport.family.proof import read_tensors
from matexport.family.weights_file import TensorEntry, read_header
from matexport.io.files import find_file_problem
from matexport.spec.parity import TokenParity
from matexport.spec.probe import AnyProbe

TOKEN_IDS, TOKEN_COUNTS = "token_ids", "token_counts"

#: What `TOKEN_IDS` may take, as any file that is read into memory whole.
MAX_TOKEN_IDS = MAX_SIDE_FILE_BYTES // 4


def pack_token_rows(rows: Sequence[Sequence[int]]) -> dict[str, NDArray[np.int32]]:
    """Token ids of the probes, one row each, as the two tensors that stand beside the parent's vectors.

    Raises:
        RequestError: there are more than a family holds.
        ValueError: an id is none of 0 to 2^31 - 1.
    """
    counts = [len(row) for row in rows]
    if sum(counts) > MAX_TOKEN_IDS:
        raise RequestError(
            f"the {len(rows)} probes have {sum(counts)} tokens; a family holds the ids of up to {MAX_TOKEN_IDS}: give "
            "fewer or shorter ones"
        )
    ids = list(chain.from_iterable(rows))
    wrong = next((token for token in ids if not 0 <= token < 1 << 31), None)
    if wrong is not None:
        raise ValueError(f"{wrong} is no token id")
    return {TOKEN_IDS: np.array(ids, np.int32), TOKEN_COUNTS: np.array(counts, np.int32)}


def stores_token_rows(family: Family) -> bool:
    """Whether a family has token ids of the parent, by its file's header; True where that cannot be read."""
    if find_file_problem(family.path / REFERENCE, sys.maxsize):
        return True
    try:
        return any(entry.name in (TOKEN_IDS, TOKEN_COUNTS) for entry in read_header(family.path / REFERENCE).entries)
    except (FamilyError, OSError):
        return True


def load_token_rows(contents: Contents, probes: int) -> list[list[int]] | None:
    """The parent's token ids, one row for each of the probes; None where the family has none.

    Nothing is read before its type and size are known to be right.

    Raises:
        FamilyError: one of the two tensors is missing, they are of another type or shape, or they do not fit.
    """
    stored = read_tensors(contents, REFERENCE)
    ids, counts = (stored.get(name) for name in (TOKEN_IDS, TOKEN_COUNTS))
    if ids is None and counts is None:
        return None
    if ids is None or counts is None:
        there = TOKEN_COUNTS if ids is None else TOKEN_IDS
        raise _refuse_proof(f"{REFERENCE} has {there} alone; {TOKEN_IDS} and {TOKEN_COUNTS} are a pair")
    if counts.dtype != "I32" or counts.shape != (probes,):
        raise _refuse_proof(f"{REFERENCE} has no ({probes},) int32 {TOKEN_COUNTS}")
    if ids.dtype != "I32" or len(ids.shape) != 1 or ids.shape[0] > MAX_TOKEN_IDS:
        raise _refuse_proof(f"{REFERENCE} has no int32 {TOKEN_IDS} in one row of at most {MAX_TOKEN_IDS}")
    lengths = _read_tensor(contents, counts)
    if (lengths < 0).any() or lengths.sum() != ids.shape[0]:
        raise _refuse_proof(f"{REFERENCE} has {ids.shape[0]} {TOKEN_IDS}, which are not what {TOKEN_COUNTS} add up to")
    values = _read_tensor(contents, ids)
    if (values < 0).any():
        raise _refuse_proof(f"{REFERENCE} holds {TOKEN_IDS} below 0")
    return [row.tolist() for row in np.split(values, np.cumsum(lengths)[:-1])]


def compare_token_rows(
    rows: Sequence[Sequence[int]], stored: Sequence[Sequence[int]], probes: Sequence[AnyProbe], tokenizers: str
) -> TokenParity:
    """Compare the token ids that the probes have here with those that the family stores, a row for each probe."""
    pairs = zip(rows, stored, strict=True)
    differing = tuple(index for index, (here, parent) in enumerate(pairs) if list(here) != list(parent))
    if not differing:
        return TokenParity(len(probes), tokenizers)
    first = differing[0]
    quoted, here, parent = quote_probe(probes, first), tuple(rows[first]), tuple(stored[first])
    return TokenParity(len(probes), tokenizers, differing, quoted, here, parent)


def quote_probe(probes: Sequence[AnyProbe], index: int) -> str:
    """A probe as messages name it, such as ``probe 12 ('a big red house', prompt 'query')``."""
    return f"probe {index} ({probes[index].describe()})"


def _refuse_proof(why: str) -> FamilyError:
    return FamilyError(why, kind=ProblemKind.PROOF, file=REFERENCE)


def _read_tensor(contents: Contents, entry: TensorEntry) -> NDArray[np.int64]:
    """An int32 tensor, as int64, in which its sum cannot overflow."""
    values = np.frombuffer(contents.read(REFERENCE), "<i4", count=entry.nbytes // 4, offset=entry.offset)
    return values.astype(np.int64)
