"""Is this family still what was exported, and does it still give the parent's vectors on this machine? The judge.

First the files (digests, paths, ranges, finite weights), before any session exists; then every profile runs on the
family's probes and is compared with the parent's own vectors, which were stored when the family was made. So is what
the probes were prepared to, where the family stores what the parent's own preprocessing gave (token ids, pixels); that
needs no session, and comes first. Imports nothing of `matexport.export`: the judge did not build the case.

Each profile is run in all ways of its modality (`runtime.inputs.modality.list_ways`). ``batched``: batches in the
probes' own order, so that short and long ones share a batch. ``single``: one at a time. ``left``: as batched, padded on
the left, when that is what the parent's tokenizer does. ``together``: as batched, read from the graph of all exits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import numpy as np

from matexport.errors import FamilyError, ProblemKind, RequestError
from matexport.family.integrity import Contents, check_family
from matexport.family.manifest import Family, load_family
from matexport.family.proof import check_finite_weights, load_ranges, load_references
from matexport.host import count_cpus, read_host
from matexport.io.progress import Progress
from matexport.runtime.all_points import ExitsEmbedder
from matexport.runtime.batches import split_batches
from matexport.runtime.embedder import Embedder, Vectors
from matexport.runtime.engines.door import check_engine, describe_engine
from matexport.runtime.inputs.modality import BATCHED, SINGLE, Inputs, Row, list_ways, open_inputs
from matexport.spec.measured import CPU, Engine
from matexport.spec.parity import TOGETHER_WAY, PixelParity, Prepared, TokenParity
from matexport.spec.probe import AnyProbe
from matexport.spec.profile import Encoding, Precision, Profile
from matexport.verify.codes import (
    compare_batched,
    compare_codes,
    compare_ranges,
    encode_vectors,
)
from matexport.verify.engines import compare_engine, find_parent_tolerance
from matexport.verify.parity import compare_vectors
from matexport.verify.verdict import ProfileVerdict, Verification, hold_codes_to_vectors

#: Weights that may be held by sessions that run at the same time.
PARALLEL_BYTES = 512 << 20


@dataclass(frozen=True)
class Case:
    """A family whose files were checked, and what its profiles are judged by. `open_case` makes one.

    Attributes:
        contents: its files, as they were checked.
        rows: the probes in their order, as they were prepared here; of images, as the parent's own processor prepared
            them, where the family stores that.
        references: point name -> the parent's vectors for the probes, (n, dim) float32.
        ranges: point name -> least and greatest value of each coordinate, (2, dim) float32, where outputs are int8.
        prepared: how what was prepared here compares with what the parent's own preprocessing gave; None where the
            family does not store that.
    """

    contents: Contents
    probes: tuple[AnyProbe, ...]
    rows: Sequence[Row]
    references: Mapping[str, Vectors]
    ranges: Mapping[str, Vectors]
    prepared: Prepared | None = None
    _exits: dict[tuple[Precision, str], dict[str, Vectors]] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    @property
    def family(self) -> Family:
        """Whose files they are."""
        return self.contents.family

    @property
    def token_ids(self) -> TokenParity | None:
        """`prepared`, of texts."""
        return self.prepared if isinstance(self.prepared, TokenParity) else None

    @property
    def pixels(self) -> PixelParity | None:
        """`prepared`, of images."""
        return self.prepared if isinstance(self.prepared, PixelParity) else None

    def run_exits(self, precision: Precision, engine: Engine | None = None) -> Mapping[str, Vectors] | None:
        """Point name -> (n, dim) float32 from the graph of all exits, run once in an engine; None where there is none.

        Args:
            engine: onnxruntime on the CPU by default.
        """
        engine = engine or Engine()
        key = precision, engine.label
        with self._lock:
            if precision in self.family.facts.exits and key not in self._exits:
                self._exits[key] = _run_exits(self.contents, precision, self.rows, engine)
        return self._exits.get(key)


def verify_family(
    path: Path | str,
    *,
    threads: int | None = None,
    engine: Engine | None = None,
    progress: Progress | None = None,
    strict: bool = False,
) -> Verification:
    """Check a family's or pack's files, then the parity of every profile on this host.

    Args:
        path: the directory.
        threads: intra-op threads of the sessions.
        engine: what runs the graphs; onnxruntime on the CPU by default. Another one is held to that, too.
        progress: called with (stage, done, total) as profiles are finished.
        strict: refuse what hubs, git and desktops add to a folder, too.

    Returns:
        the verdicts, passed or not; a profile that is off its floor does not raise, nor do other token ids or pixels.

    Raises:
        RequestError, MissingExtraError: there is no such engine here.
        FamilyError: files are missing, changed, extra or unsafe. No session was created then. Or the engine cannot run
            a graph, or not all of it where it was asked to.
    """
    chosen = (engine or Engine()).with_threads(threads)
    return verify_case(open_case(path, strict=strict), engine=chosen, progress=progress)


def open_case(family: Family | Path | str, *, strict: bool = False) -> Case:
    """Check everything about a family that needs no session: digests, paths, ranges, finite weights, the proof.

    Probes that are prepared to something else than the parent's do not raise: the files may be sound, and read
    otherwise here.

    Raises:
        FamilyError: files are missing, changed, extra or unsafe, or are no proof.
    """
    family = family if isinstance(family, Family) else load_family(family)
    contents = check_family(family, strict=strict)
    check_finite_weights(contents)
    probes, references = load_references(contents)
    ranges, inputs = load_ranges(contents), open_inputs(contents)
    rows = _prepare_probes(family, inputs, probes)
    compared = inputs.compare_proof(contents, probes, rows)
    return Case(contents, probes, compared.rows, references, ranges, compared.parity)


def verify_case(
    case: Case,
    *,
    profiles: Sequence[str] = (),
    threads: int | None = None,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> Verification:
    """`verify_family` once the files were checked: run every profile, or some of them by name, and judge it."""
    family, engine = case.family, (engine or Engine()).with_threads(threads)
    check_engine(engine)
    names = [profile.name for profile in family.profiles if not profiles or profile.name in profiles]
    for precision in {family.profile_facts(name).precision: None for name in (*profiles, *names)}:
        case.run_exits(precision, engine)
    # The largest first, so that no thread is left with one at the end.
    order = sorted(names, key=lambda name: -family.profile_facts(name).weights_prefix_bytes)
    workers, threads_each = _share_threads(family, engine)
    verdicts = {}
    with ThreadPoolExecutor(workers) as pool:
        judged = [pool.submit(judge_profile, case, name, threads=threads_each, engine=engine) for name in order]
        try:
            for done, future in enumerate(as_completed(judged)):
                if progress:
                    progress("verify", done, len(order))
                verdict = future.result()
                verdicts[verdict.profile] = verdict
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if progress:
        progress("verify", len(order), len(order))
    ordered = hold_codes_to_vectors([verdicts[name] for name in names])
    ran_on = None if engine.is_default else describe_engine(engine)
    return Verification(read_host(), ordered, case.token_ids, family.digest, case.pixels, ran_on)


def judge_profile(case: Case, name: str, *, threads: int | None = None, engine: Engine | None = None) -> ProfileVerdict:
    """Run one profile on the probes in every way, and compare it with the parent; in another engine than onnxruntime
    on the CPU, also with that.

    Codes are not yet held to the vectors that they are of: `hold_codes_to_vectors` does that, given both verdicts.

    Raises:
        RequestError, MissingExtraError: there is no such engine here.
        FamilyError: there is no such profile, or the engine cannot run it.
    """
    family, profile, facts = case.family, Profile.parse(name), case.family.profile_facts(name)
    reference, ranges = case.references[profile.point.name], case.ranges.get(profile.point.name)
    engine = (engine or Engine()).with_threads(threads)
    ways = _run_profile(case, name, engine)
    if facts.encoding is Encoding.FLOAT32:
        parity = {way: compare_vectors(vectors, reference) for way, vectors in ways.items()}
    else:
        parity = {way: compare_codes(codes, reference, facts.encoding, ranges) for way, codes in ways.items()}
    # Left padding moves the positions of a rotary encoder, which rounds otherwise before anything is quantized.
    spread = compare_batched(ways[SINGLE], ways[BATCHED], facts.encoding)
    cut = compare_ranges(reference, ranges) if ranges is not None and facts.encoding is Encoding.INT8 else None
    tolerance = find_parent_tolerance(family, name, len(reference), engine)
    compared = None
    if not engine.is_default:
        plain = _run_profile(case, name, Engine(threads=engine.threads))
        pairs = {way: (vectors, plain[way]) for way, vectors in ways.items()}
        compared = compare_engine(family, name, engine, pairs, ranges)
    return ProfileVerdict(name, tolerance, parity, spread, cut, engine=compared)


def _run_profile(case: Case, name: str, engine: Engine) -> dict[str, Vectors]:
    """Way of running -> what a profile gives for the probes, (n, width), from the graph of all exits included."""
    family, profile, facts = case.family, Profile.parse(name), case.family.profile_facts(name)
    with Embedder(case.contents, name, engine=engine) as embedder:
        ways = dict(run_all_ways(case.rows, embedder.run, list_ways(family.facts.inputs)))
    together = case.run_exits(profile.precision, engine)
    if together is not None:
        ranges = case.ranges.get(profile.point.name)
        ways[TOGETHER_WAY] = encode_vectors(together[profile.point.name], facts.encoding, ranges)
    return ways


def _share_threads(family: Family, engine: Engine) -> tuple[int, int]:
    """How many profiles run at a time, and the threads of each: many short runs gain little from sharing one run.

    A session holds its weights a second time, in the layout its kernels read; together they stay within a bound. A
    device other than the CPU has one profile at a time.
    """
    threads = engine.threads or count_cpus()
    if engine.provider != CPU:
        return 1, threads
    largest = max(facts.weights_prefix_bytes for facts in family.facts.profiles.values())
    workers = max(1, min(threads, len(family.profiles), PARALLEL_BYTES // max(largest, 1)))
    return workers, max(1, threads // workers)


def _run_exits(contents: Contents, precision: Precision, rows: Sequence[Row], engine: Engine) -> dict[str, Vectors]:
    """Point name -> (n, dim) float32, from the graph of all exits."""
    with ExitsEmbedder(contents.family, precision, contents=contents, engine=engine) as exits:
        together = list_ways(contents.family.facts.inputs)[BATCHED]
        batches = [[rows[index] for index in batch] for batch in split_batches(len(rows), together)]
        runs = [exits.run(batch) for batch in batches]
    return {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}


def _prepare_probes(family: Family, inputs: Inputs, probes: tuple[AnyProbe, ...]) -> list[Row]:
    try:
        return [inputs.prepare_probe(probe) for probe in probes]
    except RequestError as error:
        raise FamilyError(f"{family.probes_file}: {error}", kind=ProblemKind.PROOF, file=family.probes_file) from None


def run_all_ways(
    rows: Sequence[Row], run: Callable[[list[Row], str], Vectors], ways: Mapping[str, int]
) -> Iterator[tuple[str, Vectors]]:
    """Run rows in every way that parity is checked in: (way, (len(rows), dim) float32).

    Args:
        run: some rows, and the way -> their vectors.
        ways: way -> how many rows share a run.
    """
    for way, size in ways.items():
        batches = split_batches(len(rows), size)
        yield way, np.concatenate([run([rows[index] for index in batch], way) for batch in batches])
