"""What a family is judged by: its probes, the parent's own vectors for them, and the ranges of int8 codes.

Every shape, dtype and value is checked before it is believed. numpy alone; who compares is `verify`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from matexport.errors import FamilyError, Problem, ProblemKind, RequestError
from matexport.family.graph_file import find_nan_tensor
from matexport.family.integrity import Contents, check_files
from matexport.family.manifest import RANGES, REFERENCE, Family
from matexport.family.modality import MAX_SIDE_FILE_BYTES, find_modality
from matexport.family.weights_file import PADDING_NAME, Buffer, TensorEntry, parse_header
from matexport.spec.probe import AnyProbe
from matexport.spec.profile import Encoding

Vectors = NDArray[np.float32]


def open_proof(family: Family) -> Contents:
    """The files that a family is judged by, their digests checked.

    Raises:
        FamilyError: one is missing or changed.
    """
    names = (family.probes_file, REFERENCE, *({RANGES} & set(family.facts.files)))
    return check_files(family, names)


def load_probes(contents: Contents) -> tuple[AnyProbe, ...]:
    """The inputs on which a family is proven: texts, or arrays.

    Raises:
        FamilyError: they cannot be read, or there are too few or too many.
    """
    facts = contents.family.facts
    modality = find_modality(facts)
    try:
        return modality.read(modality.probes, contents.read(modality.probes), facts.inputs)
    except (RequestError, FamilyError) as error:
        raise _refuse_proof(modality.probes, str(error)) from None


def load_references(contents: Contents) -> tuple[tuple[AnyProbe, ...], dict[str, Vectors]]:
    """The probes of a family, and point name -> the parent's vectors for them, (n, numbers of an item) float32.

    Raises:
        FamilyError: they cannot be read, do not fit each other, or hold values that are not finite.
    """
    family, probes = contents.family, load_probes(contents)
    stored = read_tensors(contents, REFERENCE)
    references: dict[str, Vectors] = {}
    for point in dict.fromkeys(profile.point for profile in family.profiles):
        width = family.facts.width_at(point)
        if 4 * len(probes) * width > MAX_SIDE_FILE_BYTES:
            raise _refuse_proof(REFERENCE, f"{REFERENCE}: {len(probes)} vectors of {width} are too many to hold")
        vectors = _view(contents, REFERENCE, stored.get(point.name), (len(probes), width))
        if vectors is None:
            raise _refuse_proof(REFERENCE, f"{REFERENCE} has no ({len(probes)}, {width}) vectors for {point.name}")
        if not np.isfinite(vectors).all():
            raise _refuse_proof(REFERENCE, f"{REFERENCE} holds values that are not finite for {point.name}")
        references[point.name] = vectors
    return probes, references


def load_ranges(contents: Contents) -> dict[str, Vectors]:
    """Point name -> least and greatest value of each coordinate, (2, dim) float32; empty without int8 outputs.

    Raises:
        FamilyError: they cannot be read, lack a point, or are no ranges.
    """
    profiles = contents.family.profiles
    needed = dict.fromkeys(profile.point for profile in profiles if profile.encoding is Encoding.INT8)
    if not needed:
        return {}
    stored, ranges = read_tensors(contents, RANGES), {}
    for point in needed:
        pair = _view(contents, RANGES, stored.get(point.name), (2, point.dim))
        if pair is None:
            raise _refuse_proof(RANGES, f"{RANGES} has no (2, {point.dim}) ranges for {point.name}")
        if not np.isfinite(pair).all() or (pair[0] >= pair[1]).any():
            raise _refuse_proof(RANGES, f"{RANGES} holds no least and greatest values for {point.name}")
        ranges[point.name] = pair
    return ranges


def read_tensors(contents: Contents, name: str) -> dict[str, TensorEntry]:
    """What a safetensors file of the proof says that it holds, by the tensors' names.

    Raises:
        FamilyError: it is no such file, or ends inside a tensor.
    """
    content = contents.read(name)
    try:
        header = parse_header(name, content)
    except FamilyError as error:  # which takes the file for weights
        raise _refuse_proof(name, str(error)) from None
    if header.end != len(content):
        raise _refuse_proof(name, f"{name} has {len(content)} bytes, and its tensors end at {header.end}")
    return {entry.name: entry for entry in header.entries}


def check_finite_weights(contents: Contents) -> None:
    """Refuse weights that hold NaN or infinity.

    Raises:
        FamilyError: with one problem per file, naming it and the tensor.
    """
    facts, problems = contents.family.facts, []
    for name in sorted({profile.weights for profile in facts.profiles.values()}):
        if bad := next(_find_nan_tensors(name, contents.read(name)), None):
            problems.append(Problem(ProblemKind.REFUSED, name, f"{name} holds values in {bad!r} that are not finite"))
    graphs = {profile.graph for profile in facts.profiles.values()} | {*facts.exits.values()}
    for name in sorted(graphs):
        if bad := find_nan_tensor(name, contents.read(name)):
            problems.append(Problem(ProblemKind.REFUSED, name, f"{name} holds values in {bad!r} that are not a number"))
    if problems:
        raise FamilyError("; ".join(map(str, problems)), problems)


def _view(contents: Contents, name: str, entry: TensorEntry | None, shape: tuple[int, int]) -> Vectors | None:
    """A float32 tensor of a file in place; None where it is not there or of another shape or type."""
    if entry is None or entry.dtype != "F32" or entry.shape != shape:
        return None
    flat = np.frombuffer(contents.read(name), "<f4", count=shape[0] * shape[1], offset=entry.offset)
    vectors: Vectors = flat.reshape(shape)
    return vectors


def _refuse_proof(file: str, why: str) -> FamilyError:
    return FamilyError(why, kind=ProblemKind.PROOF, file=file)


def _find_nan_tensors(name: str, content: Buffer) -> Iterator[str]:
    kinds = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
    data = np.frombuffer(content, dtype=np.uint8)
    for entry in parse_header(name, content).entries:
        kind = kinds.get(entry.dtype)
        if kind is None or entry.name.startswith(PADDING_NAME):
            continue
        end = min(entry.end, len(data))
        flat = data[entry.offset : end - (end - entry.offset) % np.dtype(kind).itemsize].view(kind)
        for start in range(0, len(flat), 1 << 22):
            part = flat[start : start + (1 << 22)]
            # numpy has no bfloat16: of its bits, all of the exponent are set where it is not finite.
            finite = part & 0x7F80 != 0x7F80 if entry.dtype == "BF16" else np.isfinite(part)
            if not finite.all():
                yield entry.name
                break
