"""A family as rows, and rows as text. Pure: nothing is printed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from matexport.family.manifest import Family
from matexport.io.terminal import format_table
from matexport.spec.profile import Profile

if TYPE_CHECKING:
    from matexport.spec.measured import Bench, Quality, Sample, Timing
    from matexport.verify.drift import Drift


def format_profiles(rows: Sequence[Mapping[str, object]]) -> str:
    """The table that `export`, `verify` and `show` print.

    Where a row has not `passed`, a last column says which, and on which probe. Each such row has its `failure` then.
    """
    header = [
        "profile",
        "layers",
        "dim",
        "size MB",
        "max abs diff",
        "mean cosine",
        "min cosine",
        "neighbours",
        "spread",
        "graph",
    ]
    cells = [
        [
            str(row["profile"]),
            str(row["layers"]),
            str(row["dim"]),
            f"{row['download_bytes'] / 1e6:.1f}",  # type: ignore[operator]
            _number(row["max_abs"], ".1e"),
            _number(row["cosine_mean"], ".6f"),
            _number(row["cosine_min"], ".6f"),
            _number(row["neighbours"], ".3f"),
            _number(row["spread"], ".0e"),
            str(row["graph"]),
        ]
        for row in rows
    ]
    if any(row.get("passed") is False for row in rows):
        header.append("verdict")
        for row, line in zip(rows, cells, strict=True):
            line.append(_format_verdict(row))
    return format_table(header, cells, left=(0, 9, 10))


def format_bench(bench: Bench) -> str:
    """The table that `bench` prints: one line per profile and number of threads; then the parent, if it was timed.

    Beside each profile stands how many times the texts per second of the parent at its point it gives.
    """
    timings: list[tuple[str, int, tuple[str, str], Timing, Mapping[int, Timing]]] = []
    parents: dict[tuple[str, int], Timing] = {}
    for name, profile in bench.profiles.items():
        sizes = f"{profile.download_bytes / 1e6:.1f}", f"{profile.disk_bytes / 1e6:.1f}"
        timings += [(name, count, sizes, timing, profile.parent) for count, timing in sorted(profile.threads.items())]
        point = Profile.parse(name).point.name
        parents |= {(f"{point} in torch", count): timing for count, timing in sorted(profile.parent.items())}
    timings += [(name, count, ("-", "-"), timing, {}) for (name, count), timing in parents.items()]
    shapes = list(dict.fromkeys(shape for _, _, _, timing, _ in timings for shape in timing.latency))
    against = ["x torch"] if parents else []
    header = (
        "profile", "threads", "size MB", "disk MB", "RAM MB", "cold start s",
        *(f"{shape} ms (p95)" for shape in shapes), "1 text ms", "not graph", "texts/s", *against,
    )  # fmt: skip
    rows = [
        (
            name,
            str(count),
            *sizes,
            "-" if timing.peak_bytes is None else f"{timing.peak_bytes / 1e6:.0f}",
            f"{timing.first_vector.p50 / 1e3:.2f}",
            *(_format_sample(timing.latency.get(shape)) for shape in shapes),
            f"{timing.call.p50:.2f}",
            f"{timing.overhead:.0%}",
            _format_rate(timing),
            *([f"{timing.texts_per_s / parent[count].texts_per_s:.2f}" if count in parent else "-"] if against else []),
        )
        for name, count, sizes, timing, parent in timings
    ]
    return format_table(header, rows, left=(0,))


def format_quality(family: Family, quality: Quality) -> str:
    """The table that `evaluate` prints: for each task, its score and the retention."""
    header, footer = ["profile"], ["the whole parent"]
    for name, task in quality.tasks.items():
        header += [f"{name}: {task.metric}", "kept"]
        footer += [f"{task.parent.score:.4f}" if task.parent else "-", ""]
    rows = []
    names = {profile for task in quality.tasks.values() for profile in task.profiles}
    for profile in (profile.name for profile in family.profiles if profile.name in names):
        row = [profile + (" *" if family.is_trained(profile) is False else "")]
        for task in quality.tasks.values():
            score = task.profiles.get(profile)
            kept = score.retention if score else None
            row += [_number(score.score if score else None, ".4f"), _number(kept, ".1%")]
        rows.append(row)
    table = format_table(header, [*rows, footer], left=(0,))
    notes = "\n* the parent was not trained to be read there" if any(row[0].endswith("*") for row in rows) else ""
    if family.facts.trained is None:
        notes = "\nwhich points the parent was trained at is not known: name them in the profile file's [trained] table"
    return table + notes


def format_adaptive(quality: Quality) -> str:
    """Searches in two steps, as `evaluate --shortlist` measured them."""
    header = ("task", "re-ranked by", "shortlisted by", "documents", "score", "of its own top 10", "speed")
    rows = [
        (
            name,
            found.profile,
            f"{found.shortlist_dim} dims",
            str(found.shortlist),
            f"{found.score:.4f}",
            f"{found.recall:.1%}",
            f"{found.speedup:.1f} x",
        )
        for name, task in quality.tasks.items()
        for found in task.adaptive
    ]
    return format_table(header, rows, left=(0, 1))


def format_drift(drift: Drift) -> str:
    """The table that ``verify --baseline`` prints: one line per profile that both families have."""
    header = (
        "profile", "max abs diff", "mean cosine", "min cosine", "equal codes", "top 1", "top 10", "margin (OLD's)",
        "an index of OLD",
    )  # fmt: skip
    cells = [
        (
            it.profile,
            _number(it.max_abs, ".1e"),
            _number(it.cosine_mean, ".6f"),
            _number(it.cosine_min, ".6f"),
            _number(it.equal, ".4f"),
            _number(it.search and it.search.top_1, ".3f"),
            _number(it.search and it.search.top_10, ".3f"),
            f"{it.search.margin:.3f} ({it.search.old_margin:.3f})" if it.search else "-",
            "compatible" if it.compatible else "not compatible: rebuild it",
        )
        for it in drift.profiles
    ]
    return format_table(header, cells, left=(0, 8))


def _format_verdict(row: Mapping[str, object]) -> str:
    failure = row["failure"]
    if not isinstance(failure, Mapping):
        return "passed"
    return f"FAILED: {failure['check']}, probe {failure['probe']}"


def _format_rate(timing: Timing) -> str:
    texts = timing.texts_per_s * timing.mix.p50
    return f"{timing.texts_per_s:.0f} [{texts / timing.mix.high:.0f}, {texts / timing.mix.low:.0f}]"


def _format_sample(sample: Sample | None) -> str:
    return "-" if sample is None else f"{sample.p50:.2f} [{sample.low:.2f}, {sample.high:.2f}] ({sample.p95:.2f})"


def _number(value: object, form: str) -> str:
    return "-" if value is None else format(value, form)
