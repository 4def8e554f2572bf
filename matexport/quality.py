"""What profiles keep of the parent's quality, and its place in ``measurements/<host>.json``. `evaluate` measures it.

`retention` is a profile's score over the whole parent's, on the same data and metric: 1 is the parent's own quality.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from matexport.manifest import Family
from matexport.measurements import load_sections, write_sections
from matexport.spec.measured import Host, Quality

SECTION = "quality"


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
