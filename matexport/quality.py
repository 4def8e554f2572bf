"""What profiles keep of the parent's quality, and its place in ``measurements/<host>.json``. `evaluate` measures it.

`retention` is a profile's score over the whole parent's, on the same data and metric: 1 is the parent's own quality.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

import msgspec

from matexport.host import Host
from matexport.manifest import Family
from matexport.measurements import load_sections, write_sections
from matexport.spec import Record

SECTION = "quality"


class TaskKind(StrEnum):
    """How quality is measured. The first two need no labels: they compare a profile with the whole parent.

    ``similarity``: Spearman correlation of all pairwise similarities with the parent's. ``neighbours``: share of each
    text's 10 nearest texts that is the parent's. ``sts``: Spearman correlation of similarities with people's scores.
    ``retrieval``: nDCG@10 of the documents that are found for queries.
    """

    SIMILARITY = "similarity"
    NEIGHBOURS = "neighbours"
    STS = "sts"
    RETRIEVAL = "retrieval"

    @property
    def has_labels(self) -> bool:
        return self in (TaskKind.STS, TaskKind.RETRIEVAL)


class Score(Record, frozen=True):
    """How one profile does on one task.

    Attributes:
        score: of the task's metric, at most 1.
        retention: score over the whole parent's; None where the family cannot say what that is.
        others: further metrics by name, such as ``recall@100``.
    """

    score: float
    retention: float | None
    others: Mapping[str, float] = msgspec.field(default_factory=dict)


class Adaptive(Record, frozen=True):
    """One adaptive retrieval: documents shortlisted by few dims, re-ranked by a profile's own.

    Attributes:
        profile: the one that re-ranks.
        shortlist_dim: leading dims that the shortlist is found by, at the same depth, precision and encoding.
        shortlist: documents on it.
        score: of the task's metric.
        recall: share of the 10 documents that the profile finds among all, which it finds on the shortlist.
        speedup: time of searching all documents by the profile, over this; both exact, in memory.
    """

    profile: str
    shortlist_dim: int
    shortlist: int
    score: float
    recall: float
    speedup: float


class TaskQuality(Record, frozen=True):
    """One task.

    Attributes:
        metric: name of the score, such as ``nDCG@10``.
        texts: how many were embedded for it.
        data_sha256: digest of what was measured on.
        parent: the whole parent's score; None where the family cannot say.
        profiles: by name.
        adaptive: searches in two steps, where they were asked for.
    """

    kind: TaskKind
    metric: str
    texts: int
    data_sha256: str
    parent: Score | None
    profiles: Mapping[str, Score]
    adaptive: tuple[Adaptive, ...] = ()


class Quality(Record, frozen=True):
    """What `matexport.evaluate.evaluate_family` measured on one host, by the task's name."""

    host: Host
    tasks: Mapping[str, TaskQuality]


def record_quality(family: Family, quality: Quality) -> Path:
    """Keep an evaluation in ``measurements/<host>.json``, with what else is known there.

    Tasks that were not measured this time stay; and so do, in a task of the same data, the other profiles.
    """

    def add() -> dict[str, object]:
        known = load_quality(family, quality.host)
        tasks = dict(known.tasks) if known else {}
        for name, new in quality.tasks.items():
            old = tasks.get(name)
            if old and (old.kind, old.metric, old.data_sha256) == (new.kind, new.metric, new.data_sha256):
                new = msgspec.structs.replace(
                    new, profiles={**old.profiles, **new.profiles}, adaptive=new.adaptive or old.adaptive
                )
            tasks[name] = new
        return {SECTION: msgspec.to_builtins(msgspec.structs.replace(quality, tasks=tasks), str_keys=True)}

    return write_sections(family, quality.host, add)


def load_quality(family: Family, host: Host) -> Quality | None:
    """What was evaluated on a host, if there is something that can be read and that is of these very files."""
    try:
        return msgspec.convert(load_sections(family, host)[SECTION], Quality, str_keys=True)
    except (KeyError, msgspec.ValidationError):
        return None
