"""What a family is judged by: its probes, the parent's own vectors for them, and the ranges of int8 codes.

Every shape, dtype and value is checked before it is believed. numpy and safetensors alone; who compares is `verify`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from matexport.errors import FamilyError, Problem, ProblemKind, RequestError
from matexport.family.graph_file import find_nan_tensor
from matexport.family.manifest import RANGES, REFERENCE, Family
from matexport.family.modality import find_modality
from matexport.family.weights_file import PADDING_NAME, read_header
from matexport.spec.probe import AnyProbe
from matexport.spec.profile import Encoding

Vectors = NDArray[np.float32]


def load_probes(family: Family) -> tuple[AnyProbe, ...]:
    """The inputs on which a family is proven: texts, or arrays.

    Raises:
        FamilyError: they cannot be read, or there are too few or too many.
    """
    modality = find_modality(family.facts)
    try:
        return modality.read(family.path / modality.probes, family.facts.inputs)
    except (RequestError, FamilyError) as error:
        raise _refuse_proof(modality.probes, str(error)) from None


def load_references(family: Family) -> tuple[tuple[AnyProbe, ...], dict[str, Vectors]]:
    """The probes of a family, and point name -> the parent's vectors for them, (n, dim) float32.

    Raises:
        FamilyError: they cannot be read, do not fit each other, or hold values that are not finite.
    """
    probes = load_probes(family)
    points = {profile.point.name for profile in family.profiles}
    try:
        with safe_open(family.path / REFERENCE, framework="numpy") as file:  # which may hold token ids, too
            references: dict[str, Vectors] = {name: file.get_tensor(name) for name in sorted(points & {*file.keys()})}
    except SafetensorError as error:
        raise _refuse_proof(REFERENCE, f"{REFERENCE} cannot be read: {error}") from None
    for profile in family.profiles:
        vectors = references.get(profile.point.name)
        if vectors is None or vectors.shape != (len(probes), profile.point.dim) or vectors.dtype != np.float32:
            raise _refuse_proof(
                REFERENCE, f"{REFERENCE} has no ({len(probes)}, {profile.point.dim}) vectors for {profile.point.name}"
            )
        if not np.isfinite(vectors).all():
            raise _refuse_proof(REFERENCE, f"{REFERENCE} holds values that are not finite for {profile.point.name}")
    return probes, references


def load_ranges(family: Family) -> dict[str, Vectors]:
    """Point name -> least and greatest value of each coordinate, (2, dim) float32; empty without int8 outputs.

    Raises:
        FamilyError: they cannot be read, lack a point, or are no ranges.
    """
    needed = [profile.point for profile in family.profiles if profile.encoding is Encoding.INT8]
    if not needed:
        return {}
    try:
        ranges: dict[str, Vectors] = load_file(family.path / RANGES)
    except SafetensorError as error:
        raise _refuse_proof(RANGES, f"{RANGES} cannot be read: {error}") from None
    for point in needed:
        pair = ranges.get(point.name)
        if pair is None or pair.shape != (2, point.dim) or pair.dtype != np.float32:
            raise _refuse_proof(RANGES, f"{RANGES} has no (2, {point.dim}) ranges for {point.name}")
        if not np.isfinite(pair).all() or (pair[0] >= pair[1]).any():
            raise _refuse_proof(RANGES, f"{RANGES} holds no least and greatest values for {point.name}")
    return ranges


def check_finite_weights(family: Family) -> None:
    """Refuse weights that hold NaN or infinity.

    Raises:
        FamilyError: with one problem per file, naming it and the tensor.
    """
    problems = []
    for name in sorted({facts.weights for facts in family.facts.profiles.values()}):
        if bad := next(_find_nan_tensors(family.path / name), None):
            problems.append(Problem(ProblemKind.REFUSED, name, f"{name} holds values in {bad!r} that are not finite"))
    graphs = {facts.graph for facts in family.facts.profiles.values()} | {*family.facts.exits.values()}
    for name in sorted(graphs):
        if bad := find_nan_tensor(family.path / name):
            problems.append(Problem(ProblemKind.REFUSED, name, f"{name} holds values in {bad!r} that are not a number"))
    if problems:
        raise FamilyError("; ".join(map(str, problems)), problems)


def _refuse_proof(file: str, why: str) -> FamilyError:
    return FamilyError(why, kind=ProblemKind.PROOF, file=file)


def _find_nan_tensors(path: Path) -> Iterator[str]:
    kinds = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
    data = np.memmap(path, dtype=np.uint8, mode="r")
    for entry in read_header(path).entries:
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
