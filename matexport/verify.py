"""Is this family still what was exported, and does it still give the parent's vectors on this machine? The judge.

First the files (digests, paths, ranges, finite weights), before any session exists; then every profile runs on the
family's probes and is compared with the parent's own vectors, which were stored when the family was made. Imports
nothing of `matexport.build`: the judge did not build the case.

Each profile is run in up to three ways. ``batched``: batches in the probes' own order, padded on the right, so that
short and long texts share a batch. ``single``: one text at a time, no padding. ``left``: as batched, padded on the
left, when that is what the parent's tokenizer does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from matexport.embed import Embedder, Tokens, Vectors, load_tokenizer, split_batches, tokenize_texts
from matexport.errors import FamilyError, RequestError
from matexport.graphfile import find_nan_tensor
from matexport.host import Host, read_host
from matexport.manifest import MANIFEST, MEASUREMENTS, PROBES, REFERENCE, Family, check_family, hash_file, load_family
from matexport.nestedfile import PADDING_NAME, read_header
from matexport.parity import Parity, compare_vectors
from matexport.profiles import FLOORS, parse_probes
from matexport.spec import PaddingSide, Probe, Profile

#: Probes per run in the batched checks: large enough that short and long texts share a batch.
BATCH = 8

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ProfileVerdict:
    """Parity of one profile in each way it was run, and the floor it was held to."""

    profile: str
    max_abs_allowed: float
    parity: Mapping[str, Parity]

    @property
    def passed(self) -> bool:
        return all(parity.within(self.max_abs_allowed) for parity in self.parity.values())

    @property
    def worst(self) -> tuple[str, Parity]:
        """The way of running, and its parity, with the largest difference."""
        return max(self.parity.items(), key=lambda item: item[1].max_abs)


@dataclass(frozen=True)
class Verification:
    """What `verify_family` found on one host."""

    host: Host
    verdicts: tuple[ProfileVerdict, ...]

    @property
    def passed(self) -> bool:
        return all(verdict.passed for verdict in self.verdicts)


def verify_family(path: Path | str, *, threads: int | None = None, progress: Progress | None = None) -> Verification:
    """Check a family's or pack's files, then the parity of every profile on this host.

    Args:
        path: the directory.
        threads: intra-op threads of the sessions.
        progress: called with (stage, done, total) as profiles are finished.

    Returns:
        the verdicts, passed or not; a profile that is off its floor does not raise.

    Raises:
        FamilyError: files are missing, changed, extra or unsafe. No session was created then.
    """
    family = load_family(path)
    check_family(family)
    check_finite_weights(family)
    probes, references = load_references(family)
    tokens = _tokenize_probes(family, probes)
    host = read_host()
    verdicts = []
    for done, profile in enumerate(family.profiles):
        if progress:
            progress("verify", done, len(family.profiles))
        verdicts.append(_verify_profile(family, profile, tokens, references, threads))
    if progress:
        progress("verify", len(family.profiles), len(family.profiles))
    return Verification(host, tuple(verdicts))


def load_references(family: Family) -> tuple[tuple[Probe, ...], dict[str, Vectors]]:
    """The probes of a family, and point name -> the parent's vectors for them, (n, dim) float32.

    Raises:
        FamilyError: they cannot be read, do not fit each other, or hold values that are not finite.
    """
    try:
        probes = parse_probes((family.path / PROBES).read_text(encoding="utf-8"), PROBES)
    except UnicodeDecodeError:
        raise FamilyError(f"{PROBES} is not UTF-8 text") from None
    except RequestError as error:
        raise FamilyError(str(error)) from None
    try:
        references: dict[str, Vectors] = load_file(family.path / REFERENCE)
    except SafetensorError as error:
        raise FamilyError(f"{REFERENCE} cannot be read: {error}") from None
    for profile in family.profiles:
        vectors = references.get(profile.point.name)
        if vectors is None or vectors.shape != (len(probes), profile.point.dim) or vectors.dtype != np.float32:
            raise FamilyError(
                f"{REFERENCE} has no ({len(probes)}, {profile.point.dim}) vectors for {profile.point.name}"
            )
        if not np.isfinite(vectors).all():
            raise FamilyError(f"{REFERENCE} holds values that are not finite for {profile.point.name}")
    return probes, references


def check_finite_weights(family: Family) -> None:
    """Refuse weights that hold NaN or infinity.

    Raises:
        FamilyError: naming the file and the tensor.
    """
    for name in sorted({facts.weights for facts in family.facts.profiles.values()}):
        bad = next(_find_nan_tensors(family.path / name), None)
        if bad:
            raise FamilyError(f"refused: {name} holds values in {bad!r} that are not finite")
    for name in sorted({facts.graph for facts in family.facts.profiles.values()}):
        bad = find_nan_tensor(family.path / name)
        if bad:
            raise FamilyError(f"refused: {name} holds values in {bad!r} that are not a number")


def record_measurement(family: Family, verification: Verification) -> Path:
    """Write a verification to ``measurements/<host>.json``, keeping what else is known of that host.

    Returns:
        the file. Written beside it and renamed, so that it is never half there.
    """
    folder = family.path / MEASUREMENTS
    folder.mkdir(exist_ok=True)
    target = folder / f"{verification.host.slug}.json"
    known = _read_known(target)
    known["family"] = hash_file(family.path / MANIFEST)
    known["host"] = msgspec.to_builtins(verification.host)
    known["parity"] = {verdict.profile: msgspec.to_builtins(dict(verdict.parity)) for verdict in verification.verdicts}
    temporary = target.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(known, indent=1, sort_keys=True, allow_nan=True) + "\n", encoding="utf-8")
    temporary.replace(target)
    return target


def _read_known(path: Path) -> dict[str, object]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def load_measurement(family: Family, host: Host) -> Mapping[str, Mapping[str, Parity]] | None:
    """The parity that was recorded on a host, by profile and way of running; None if there is none that can be read."""
    path = family.path / MEASUREMENTS / f"{host.slug}.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["family"] != hash_file(family.path / MANIFEST):
            return None  # measured on other bytes
        return msgspec.convert(data["parity"], dict[str, dict[str, Parity]])
    except (OSError, ValueError, KeyError, TypeError, msgspec.ValidationError):
        return None


def load_verification(family: Family, host: Host) -> Verification | None:
    """What was recorded on a host, judged by the family's floors; None unless it covers every profile."""
    recorded = load_measurement(family, host) or {}
    names = [profile.name for profile in family.profiles]
    if not all(recorded.get(name) for name in names):
        return None
    return Verification(host, tuple(_judge(family, name, recorded[name]) for name in names))


def _judge(family: Family, name: str, parity: Mapping[str, Parity]) -> ProfileVerdict:
    # A manifest may tighten the floor; one that loosens it is not believed. (False for NaN: min would keep it.)
    precision = family.profile_facts(name).precision
    asked, floor = family.facts.tolerances[precision].max_abs, FLOORS[precision].max_abs
    return ProfileVerdict(name, asked if asked <= floor else floor, parity)


def _verify_profile(
    family: Family,
    profile: Profile,
    tokens: list[Tokens],
    references: Mapping[str, Vectors],
    threads: int | None,
) -> ProfileVerdict:
    reference = references[profile.point.name]
    with Embedder(family, profile.name, threads=threads, check=False) as embedder:
        ways = run_all_ways(tokens, embedder.run, family.facts.text.padding_side)
        parity = {way: compare_vectors(vectors, reference) for way, vectors in ways}
    return _judge(family, profile.name, parity)


def _tokenize_probes(family: Family, probes: tuple[Probe, ...]) -> list[Tokens]:
    tokenizer = load_tokenizer(family.path, family.facts.text)
    try:
        return [tokenize_texts(tokenizer, family.facts.text, [probe.text], probe.prompt or "")[0] for probe in probes]
    except RequestError as error:
        raise FamilyError(f"{PROBES}: {error}") from None


def run_all_ways(
    rows: list[Tokens], run: Callable[[list[Tokens], PaddingSide], Vectors], padding_side: PaddingSide
) -> Iterator[tuple[str, Vectors]]:
    """Run token rows in every way that parity is checked in: (way, (len(rows), dim) float32)."""

    def run_in_batches(size: int, side: PaddingSide) -> Vectors:
        batches = split_batches(len(rows), size)
        return np.concatenate([run([rows[index] for index in batch], side) for batch in batches])

    yield "batched", run_in_batches(BATCH, PaddingSide.RIGHT)
    yield "single", run_in_batches(1, PaddingSide.RIGHT)
    if padding_side is PaddingSide.LEFT:
        yield "left", run_in_batches(BATCH, PaddingSide.LEFT)


def _find_nan_tensors(path: Path) -> Iterator[str]:
    kinds = {"F64": np.float64, "F32": np.float32, "F16": np.float16}
    data = np.memmap(path, dtype=np.uint8, mode="r")
    for entry in read_header(path).entries:
        kind = kinds.get(entry.dtype)
        if kind is None or entry.name.startswith(PADDING_NAME):
            continue
        end = min(entry.end, len(data))
        flat = data[entry.offset : end - (end - entry.offset) % np.dtype(kind).itemsize].view(kind)
        for start in range(0, len(flat), 1 << 22):
            if not np.isfinite(flat[start : start + (1 << 22)]).all():
                yield entry.name
                break
