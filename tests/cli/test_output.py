"""A family as rows, and rows as text."""

from __future__ import annotations

import json
import math
from pathlib import Path

from matexport.cli.output import format_profiles
from matexport.family.manifest import load_family
from matexport.family.measurements.records import Measurement
from matexport.family.summary import describe_profiles
from matexport.spec.parity import Parity, Spread

NAMES = ["L01-D008-fp32", "L01-D032-fp32", "L02-D008-fp32", "L02-D032-fp32", "L03-D008-fp32", "L03-D032-fp32"]
WAYS = {"batched": Parity(2e-7, 0.9, 0.8, 1.0, 3, 2), "single": Parity(5e-7, 0.95, 0.7, 0.5, 1, 1)}


def test_one_row_for_each_profile(exported: Path) -> None:
    family = load_family(exported)
    rows = describe_profiles(family)
    assert [row["profile"] for row in rows] == NAMES
    for row, profile in zip(rows, family.profiles, strict=True):
        assert (row["layers"], row["dim"], row["precision"]) == (profile.point.layers, profile.point.dim, "fp32")
        assert row["graph_bytes"] == (exported / str(row["graph"])).stat().st_size
        assert row["download_bytes"] == row["graph_bytes"] + row["weights_prefix_bytes"]  # type: ignore[operator]
        assert row["max_abs"] is row["cosine_min"] is row["neighbours"] is row["parity"] is None


def test_a_shallower_profile_downloads_less(exported: Path) -> None:
    sizes = {row["profile"]: row["weights_prefix_bytes"] for row in describe_profiles(load_family(exported))}
    assert sizes["L01-D008-fp32"] == sizes["L01-D032-fp32"]
    assert sizes["L01-D032-fp32"] < sizes["L02-D032-fp32"] < sizes["L03-D032-fp32"]  # type: ignore[operator]
    assert sizes["L03-D032-fp32"] == (exported / "weights.fp32.safetensors").stat().st_size


def test_the_worst_way_of_running_is_shown(exported: Path) -> None:
    rows = {row["profile"]: row for row in describe_profiles(load_family(exported), Measurement({NAMES[0]: WAYS}))}
    row = rows[NAMES[0]]
    assert (row["max_abs"], row["cosine_min"], row["neighbours"]) == (5e-7, 0.7, 0.5)
    assert row["cosine_mean"] == 0.9
    assert row["parity"] == {
        "batched": {
            "max_abs": 2e-7,
            "cosine_mean": 0.9,
            "cosine_min": 0.8,
            "neighbours": 1.0,
            "worst": 3,
            "farthest": 2,
        },
        "single": {
            "max_abs": 5e-7,
            "cosine_mean": 0.95,
            "cosine_min": 0.7,
            "neighbours": 0.5,
            "worst": 1,
            "farthest": 1,
        },
    }
    assert rows[NAMES[1]]["max_abs"] is None
    assert json.loads(json.dumps(list(rows.values()))) == list(rows.values())


# `min` keeps the first of two values when the other is NaN, so a broken way could hide behind a sound one.
def test_a_way_that_gave_no_numbers_is_not_hidden(exported: Path) -> None:
    ways = WAYS | {"left": Parity(math.inf, math.nan, math.nan, 0.0, 0, 0)}
    row = describe_profiles(load_family(exported), Measurement({NAMES[0]: ways}))[0]
    assert row["max_abs"] == math.inf
    assert math.isnan(row["cosine_min"])  # type: ignore[arg-type]
    assert math.isnan(row["cosine_mean"])  # type: ignore[arg-type]


def test_the_table_of_a_family(exported: Path) -> None:
    text = format_profiles(
        describe_profiles(load_family(exported), Measurement({NAMES[0]: WAYS}, {NAMES[0]: Spread(2e-8, 4)}))
    )
    header, rule, first, second, *_ = text.split("\n")
    assert header.split("  ")[0].strip() == "profile"
    assert set(rule) == {"-", " "}
    assert first.split()[-6:] == ["5.0e-07", "0.900000", "0.700000", "0.500", "2e-08", "L01-D008.fp32.onnx"]
    assert second.split()[-6:] == ["-", "-", "-", "-", "-", "L01-D032.fp32.onnx"]
    assert len(text.split("\n")) == 2 + len(NAMES)


def test_a_row_that_failed_is_marked(exported: Path) -> None:
    rows = describe_profiles(load_family(exported), Measurement({NAMES[0]: WAYS}))
    failure = {"check": "alone and in a batch", "probe": 12}
    judged = [row | {"passed": row["profile"] != NAMES[1], "failure": None} for row in rows]
    judged[1]["failure"] = failure
    header, rule, *lines = format_profiles(judged).split("\n")
    assert [line.split("  ")[-1].strip() for line in (header, *lines[:3])] == [
        "verdict",
        "passed",
        "FAILED: alone and in a batch, probe 12",
        "passed",
    ]
    assert header.index("verdict") == lines[0].index("passed") == lines[1].index("FAILED") == rule.rindex(" ") + 1


def test_nothing_is_marked_where_all_passed(exported: Path) -> None:
    rows = describe_profiles(load_family(exported))
    assert format_profiles([row | {"passed": True, "failure": None} for row in rows]) == format_profiles(rows)
