"""A family as rows, and rows as a plain text table. Pure: nothing is printed here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from matexport.manifest import Family
from matexport.parity import Parity

if TYPE_CHECKING:
    from matexport.bench import Bench, Sample

Parities = Mapping[str, Mapping[str, Parity]]


def describe_profiles(family: Family, parities: Parities | None = None) -> list[dict[str, object]]:
    """One record per profile: what it is, what it weighs, how near it is to the parent.

    Args:
        family: the family.
        parities: profile -> way of running -> parity on this host, or None when it was not measured here.

    Returns:
        records of plain values, ready for JSON. `download_bytes` is the graph and its prefix of the weights.
    """
    rows: list[dict[str, object]] = []
    for profile in family.profiles:
        facts = family.profile_facts(profile.name)
        graph_bytes = family.facts.files[facts.graph].bytes
        ways = (parities or {}).get(profile.name)
        rows.append(
            {
                "profile": profile.name,
                "layers": facts.layers,
                "dim": facts.dim,
                "precision": str(facts.precision),
                "encoding": str(facts.encoding),
                "graph": facts.graph,
                "graph_bytes": graph_bytes,
                "weights": facts.weights,
                "weights_prefix_bytes": facts.weights_prefix_bytes,
                "download_bytes": graph_bytes + facts.weights_prefix_bytes,
                "max_abs": max(parity.max_abs for parity in ways.values()) if ways else None,
                "cosine_mean": _least(parity.cosine_mean for parity in ways.values()) if ways else None,
                "cosine_min": _least(parity.cosine_min for parity in ways.values()) if ways else None,
                "neighbours": min(parity.neighbours for parity in ways.values()) if ways else None,
                "parity": {way: _describe_parity(parity) for way, parity in ways.items()} if ways else None,
            }
        )
    return rows


def format_profiles(rows: Sequence[Mapping[str, object]]) -> str:
    """The table that `export`, `verify` and `show` print."""
    header = ("profile", "layers", "dim", "size MB", "max abs diff", "mean cosine", "min cosine", "neighbours", "graph")
    cells = [
        (
            str(row["profile"]),
            str(row["layers"]),
            str(row["dim"]),
            f"{row['download_bytes'] / 1e6:.1f}",  # type: ignore[operator]
            _number(row["max_abs"], ".1e"),
            _number(row["cosine_mean"], ".6f"),
            _number(row["cosine_min"], ".6f"),
            _number(row["neighbours"], ".3f"),
            str(row["graph"]),
        )
        for row in rows
    ]
    return format_table(header, cells, left=(0, 8))


def format_bench(bench: Bench) -> str:
    """The table that `bench` prints: one line per profile and number of threads."""
    timings = [
        (name, count, profile, timing)
        for name, profile in bench.profiles.items()
        for count, timing in sorted(profile.threads.items())
    ]
    shapes = list(dict.fromkeys(shape for _, _, _, timing in timings for shape in timing.latency))
    header = (
        "profile", "threads", "size MB", "RAM MB", "cold start s", *(f"{shape} ms" for shape in shapes),
        "1 text ms", "not graph", "texts/s",
    )  # fmt: skip
    rows = [
        (
            name,
            str(count),
            f"{profile.download_bytes / 1e6:.1f}",
            "-" if timing.peak_bytes is None else f"{timing.peak_bytes / 1e6:.0f}",
            f"{timing.first_vector.p50 / 1e3:.2f}",
            *(_format_sample(timing.latency.get(shape)) for shape in shapes),
            f"{timing.call.p50:.2f}",
            f"{timing.overhead:.0%}",
            f"{timing.texts_per_s:.0f}",
        )
        for name, count, profile, timing in timings
    ]
    return format_table(header, rows, left=(0,))


def _format_sample(sample: Sample | None) -> str:
    return "-" if sample is None else f"{sample.p50:.2f} [{sample.low:.2f}, {sample.high:.2f}]"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = ()) -> str:
    """Columns as wide as they need be; numbers on the right, the columns in `left` on the left."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = []
    for row in (header, ["-" * width for width in widths], *rows):
        padded = (
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _describe_parity(parity: Parity) -> dict[str, object]:
    return {name: getattr(parity, name) for name in ("max_abs", "cosine_mean", "cosine_min", "neighbours", "worst")}


def _least(values: Iterable[float]) -> float:
    return min(values, key=lambda value: (value == value, value))  # NaN first


def _number(value: object, form: str) -> str:
    return "-" if value is None else format(value, form)
