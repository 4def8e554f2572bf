"""What each profile of a family keeps of the parent's quality, on tasks of the user's and without labels.

    tasks -> their different texts -> one pass per precision (`all_points`): vectors at the widest point of every depth
      -> cut to each profile's dim, scaled, encoded as it encodes -> scores -> retention = score / the whole parent's

The whole parent is the family's own fp32 profile at full depth and width, which `verify` holds to the parent. Metrics
come from libraries: Spearman's correlation from scipy, nDCG, recall and reciprocal rank from ir_measures (trec_eval).
With each retention goes what it would be on resamples of the task (`measure.bootstrap`).
Needs the ``[evaluate]`` extra.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from matexport.errors import FamilyError, RequestError
from matexport.extras import require_extra
from matexport.family.manifest import Family, load_family
from matexport.host import count_cpus, read_host
from matexport.io.progress import Progress
from matexport.measure.bootstrap import retain
from matexport.measure.scorers import NEIGHBOURS, RetrievalScorer, Scored, Scorer, make_scorer
from matexport.measure.tasks import UnlabelledTask
from matexport.measure.vectors import AnyTask, collect_texts, decode, embed_profiles
from matexport.runtime.engines.door import check_engine, describe_engine
from matexport.spec.measured import Adaptive, Engine, Quality, Score, TaskQuality
from matexport.spec.profile import Encoding, Point, Precision, Profile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

_PACKAGES = {"scipy": "scipy", "ir_measures": "ir-measures", "faiss": "faiss-cpu"}


def require_evaluate_extra() -> None:
    """Raise MissingExtraError, with the pip line, unless the packages of the ``[evaluate]`` extra are there."""
    require_extra("evaluate", "evaluating", _PACKAGES)


def evaluate_family(
    family: Family | Path | str,
    tasks: Sequence[AnyTask],
    *,
    profiles: Sequence[str] = (),
    shortlist: int | None = None,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> Quality:
    """Score profiles of a family. Writes nothing: `family.measurements.records.record_quality` does.

    Args:
        family: the directory of a family or a pack, or a loaded `Family`.
        tasks: see `measure.tasks`. An unlabelled one is scored twice, as ``NAME similarity`` and ``NAME neighbours``.
        profiles: names; all of the family when empty.
        shortlist: also search adaptively in retrieval tasks: so many documents by each smaller dim of the same depth
            and precision, re-ranked by the largest.
        engine: what runs the graphs, and with how many threads; onnxruntime on all CPUs of this process by default.
        progress: called with (stage, done, total).

    Raises:
        MissingExtraError: the ``[evaluate]`` extra is not installed, or the package of the engine.
        RequestError: two tasks have the same name, or a text of one cannot be embedded.
        FamilyError: no such profile, the files are not the ones that were exported, or there is nothing to compare
            with: unlabelled texts need the whole parent in fp32 in the family.
    """
    require_evaluate_extra()
    engine = engine or Engine()
    check_engine(engine)
    family = family if isinstance(family, Family) else load_family(family)
    parent = find_parent(family)
    _check_request(family, tasks, profiles, shortlist, parent)
    wanted = tuple(Profile.parse(name) for name in dict.fromkeys(profiles)) or family.profiles
    import faiss

    faiss.omp_set_num_threads(engine.threads or count_cpus())
    texts = collect_texts(family, tasks)
    rows = {key: row for row, key in enumerate(texts)}
    board = _Scores([make_scorer(task, family, rows) for task in tasks], parent, shortlist, wanted)
    asked = (*((parent,) if parent else ()), *(profile for profile in wanted if profile != parent))
    for done, (profile, codes) in enumerate(embed_profiles(family, asked, texts, engine=engine, progress=progress)):
        if progress:
            progress("score", done, len(asked))
        board.add(profile, decode(codes, profile.encoding, profile.point.dim))
    if progress:
        progress("score", len(asked), len(asked))
    return Quality(read_host(), board.describe(), engine.label, describe_engine(engine))


def _check_request(
    family: Family, tasks: Sequence[AnyTask], profiles: Sequence[str], shortlist: int | None, parent: Profile | None
) -> None:
    """Refuse what cannot be scored, before any text is embedded."""
    several = next((profile for profile in family.profiles if profile.point.tokens), None)
    if several:
        raise RequestError(
            f"{family.path} gives {several.point.tokens} tokens for each {family.facts.inputs.noun}, and a task "
            "compares vectors: evaluate a family that pools them"
        )
    if not tasks:
        raise RequestError("no task was given: texts, pairs with scores, queries and documents, or folders of images")
    if shortlist is not None and shortlist < NEIGHBOURS:
        raise RequestError(f"a shortlist of {shortlist} was asked; at least {NEIGHBOURS} documents are looked at")
    names = [task.name for task in tasks]
    if len(set(names)) != len(names):
        raise RequestError(
            f"two tasks are called {next(name for name in names if names.count(name) > 1)!r}: rename a file"
        )
    for name in profiles:
        family.profile_facts(name)
    if parent is None and any(isinstance(task, UnlabelledTask) for task in tasks):
        facts = family.facts.parent
        whole = Profile(Point(facts.blocks, facts.output_width), Precision.FP32).name
        raise FamilyError(
            f"{family.path} lacks {whole}, the whole parent, which unlabelled {family.facts.inputs.noun}s are compared "
            "with: export with that point, or give a task with labels"
        )


class _Scores:
    """What every task says of every profile, as their vectors come, one profile after the other."""

    def __init__(
        self, scorers: Sequence[Scorer], parent: Profile | None, shortlist: int | None, wanted: Sequence[Profile]
    ) -> None:
        self._scorers, self._parent, self._shortlist, self._wanted = scorers, parent, shortlist, tuple(wanted)
        self._groups = _group_by_dim(wanted) if shortlist else {}
        self._scores: dict[tuple[int, str], dict[Profile, Scored]] = {}
        self._adaptive: dict[str, list[Adaptive]] = {}

    def add(self, profile: Profile, vectors: Vectors) -> None:
        """Score one profile's vectors of all texts, (n, dim) float32. The whole parent's come first."""
        for number, scorer in enumerate(self._scorers):
            if profile == self._parent:
                scorer.learn_parent(vectors)
            for suffix, score in scorer.score(vectors).items():
                self._scores.setdefault((number, suffix), {})[profile] = score
        group = self._groups.get(profile)
        if group is None or not self._shortlist:
            return
        group[profile] = vectors
        if all(known is not None for known in group.values()):  # its vectors are let go as soon as they were searched
            for scorer in self._scorers:
                if isinstance(scorer, RetrievalScorer):
                    searches = scorer.search_in_two_steps(group, self._shortlist)
                    self._adaptive.setdefault(scorer.task.name, []).extend(searches)
            group.clear()

    def describe(self) -> dict[str, TaskQuality]:
        """By the task's name."""
        found = {}
        for (number, suffix), known in self._scores.items():
            scorer = self._scorers[number]
            found[scorer.task.name + suffix] = _describe_task(scorer, suffix, known, self._parent, self._wanted)
        for name, searches in self._adaptive.items():
            found[name] = msgspec.structs.replace(found[name], adaptive=tuple(searches))
        return found


def _group_by_dim(profiles: Sequence[Profile]) -> dict[Profile, dict[Profile, Vectors | None]]:
    """Profile -> those of its depth, precision and encoding, from the narrowest, their vectors still to come."""
    groups: dict[tuple[int, Precision, Encoding], dict[Profile, Vectors | None]] = {}
    for profile in sorted(profiles):
        groups.setdefault((profile.point.layers, profile.precision, profile.encoding), {})[profile] = None
    return {profile: group for group in groups.values() for profile in group if len(group) > 1}


def find_parent(family: Family) -> Profile | None:
    """The profile that is the whole parent: fp32, all blocks, all dims; None where the family has none."""
    facts = family.facts.parent
    whole = Profile(Point(facts.blocks, facts.output_width), Precision.FP32)
    return whole if whole in family.profiles else None


def _describe_task(
    scorer: Scorer, suffix: str, scores: Mapping[Profile, Scored], parent: Profile | None, wanted: Sequence[Profile]
) -> TaskQuality:
    kind, metric = scorer.kinds[suffix]
    whole = scores[parent] if parent else None

    def keep(known: Scored) -> Score:
        # Of a parent that ranks no better than chance, nothing can be kept.
        if whole is None or whole.score.score <= 0:
            return known.score
        retention = known.score.score / whole.score.score
        return msgspec.structs.replace(
            known.score, retention=retention, resampled=retain(known.resampled, whole.resampled)
        )

    return TaskQuality(
        kind=kind,
        metric=metric,
        texts=scorer.texts,
        data_sha256=scorer.task.sha256,
        parent=keep(whole) if whole else None,
        profiles={profile.name: keep(scores[profile]) for profile in wanted},
    )
