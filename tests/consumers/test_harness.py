"""The comparison that other programs are held to: it passes the vectors themselves, and nothing that is nearly them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import OLD_INT8, SAME, Cases, Limits, judge, limit_for, load_cases, run, try_profile
from judge_node import judge_all

TEXTS, CUT = ("a", "bb", "", "long " * 300, "longer " * 900), (False, False, False, True, True)
DIMS = {"L01-D004-fp32": 4, "L01-D004-int8": 4}
FP32, INT8 = DIMS
EXACT = Limits()


def make_units(seed: int) -> np.ndarray:
    """(texts, dim) float32 of unit length."""
    vectors = np.random.default_rng(seed).normal(size=(len(TEXTS), 4))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def cases(tmp_path: Path) -> Cases:
    """As prepare.py writes them; the vectors of texts that lost their closing token differ where a text is cut."""
    (tmp_path / "vectors").mkdir()
    for seed, name in enumerate(DIMS):
        wanted, other = make_units(seed), make_units(seed + 10)
        wanted.astype("<f4").tofile(tmp_path / "vectors" / f"{name}.f32")
        np.where(np.array(CUT)[:, None], other, wanted).astype("<f4").tofile(
            tmp_path / "vectors" / f"{name}.unclosed.f32"
        )
    said = {"texts": TEXTS, "cut": CUT, "dims": DIMS, "max_tokens": 256}
    (tmp_path / "cases.json").write_text(json.dumps(said), encoding="utf-8")
    return load_cases(tmp_path)


def pool_token_states(vectors: np.ndarray) -> np.ndarray:
    """What comes of a folder whose `last_hidden_state` holds states, not the repeated vector: their mean, scaled."""
    noise = np.random.default_rng(7).normal(scale=0.01, size=(len(vectors), 6, vectors.shape[1]))
    mean = (vectors[:, None, :] + noise).mean(axis=1)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def exchange(vectors: np.ndarray) -> np.ndarray:
    return vectors[[1, 0, 2, 3, 4]]


def change(row: int, by: float) -> Callable[[np.ndarray], np.ndarray]:
    """One coordinate of one text, off by a little."""

    def changed(vectors: np.ndarray) -> np.ndarray:
        vectors = vectors.copy()
        vectors[row, 2] += by
        return vectors

    return changed


WRONG: dict[str, Callable[[np.ndarray], Any]] = {
    "token states pooled": pool_token_states,
    "two texts exchanged": exchange,
    "an empty text off": change(2, 2e-5),
    "a long text off": change(4, -2e-5),
    "no unit length": lambda vectors: vectors * np.float32(1.0001),
    "not a number": change(0, float("nan")),
    "infinite": change(0, float("inf")),
    "too wide": lambda vectors: np.hstack([vectors, vectors]),
    "a text missing": lambda vectors: vectors[:-1],
    "nothing": lambda vectors: [],
    "one vector": lambda vectors: vectors[0],
    "null": lambda vectors: [[None] * 4, *vectors[1:].tolist()],
    "ragged": lambda vectors: [[1.0], *vectors[1:].tolist()],
    "text": lambda vectors: ["vector"] * len(vectors),
    "lost closing tokens": lambda vectors: np.vstack([vectors[:3], make_units(10)[3:]]),
}


@pytest.mark.parametrize("form", [np.asarray, list, np.ndarray.tolist], ids=["array", "list of arrays", "lists"])
def test_the_vectors_pass(cases: Cases, form: Callable[[np.ndarray], Any]) -> None:
    vectors = form(cases.vectors(FP32))
    verdict = judge(cases, FP32, vectors, vectors, EXACT)
    assert (verdict.passed, verdict.batched, verdict.single, verdict.cut) == (True, 0.0, 0.0, None)


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_fails_batched_or_single(cases: Cases, name: str) -> None:
    right = cases.vectors(FP32)
    wrong = WRONG[name](right)
    assert not judge(cases, FP32, wrong, right, EXACT).passed
    assert not judge(cases, FP32, right, wrong, EXACT).passed


def test_a_wrong_precision_or_point_fails(cases: Cases) -> None:
    vectors = cases.vectors(INT8)
    assert not judge(cases, FP32, vectors, vectors, EXACT).passed


def test_rounding_passes(cases: Cases) -> None:
    vectors = change(1, 0.9 * SAME)(cases.vectors(FP32))
    assert judge(cases, FP32, vectors, vectors, EXACT).passed


def test_a_dropped_closing_token_is_exactly_that(cases: Cases) -> None:
    """Only where it is said of the consumer; then the parent's own vectors fail, and so does anything else."""
    dropped, right = cases.without_closing(FP32), cases.vectors(FP32)
    verdict = judge(cases, FP32, dropped, dropped, EXACT, closes=False)
    assert verdict.passed
    assert verdict.cut is not None
    assert verdict.cut == pytest.approx(np.abs(dropped - right)[3:].max())
    assert not judge(cases, FP32, dropped, dropped, EXACT).passed
    assert not judge(cases, FP32, right, right, EXACT, closes=False).passed
    for row in range(len(TEXTS)):
        wrong = change(row, 2e-5)(dropped)
        assert not judge(cases, FP32, wrong, wrong, EXACT, closes=False).passed


@pytest.mark.parametrize(
    ("version", "allowed"),
    [("1.22.0", OLD_INT8), ("1.29.1", OLD_INT8), ("1.9.0", OLD_INT8), ("1.30.0", SAME), ("1.32.0", SAME), ("", SAME)],
)
def test_only_old_runtimes_may_differ_and_only_in_int8(version: str, allowed: float) -> None:
    limits = limit_for(version)
    assert (limits.of(FP32), limits.of(INT8)) == (SAME, allowed)


def test_what_a_consumer_raises_is_its_verdict(cases: Cases) -> None:
    def refuse(folder: Path) -> Any:
        raise ValueError(f"no model in {folder.name}\nmore")

    verdict = try_profile(cases, FP32, Path("there"), refuse, EXACT)
    assert (verdict.passed, verdict.loads, verdict.error) == (False, False, "ValueError: no model in there")


@pytest.mark.parametrize(("offset", "code"), [(0.0, 0), (2e-5, 1)])
def test_a_script_ends_with_what_it_found(
    cases: Cases, offset: float, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the right folders, each text in one call and in a call of its own."""
    asked: list[tuple[str, ...]] = []

    def load(folder: Path) -> Any:
        assert folder.parent == cases.folder / "all"
        table = dict(zip(TEXTS, cases.vectors(folder.name), strict=True))

        def embed(texts: Any) -> Any:
            asked.append(tuple(texts))
            return [table[text] + (offset if len(texts) == 1 and not text else 0) for text in texts]

        return embed

    monkeypatch.setattr("sys.argv", ["script", str(cases.folder), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        run("A consumer 1.0", ["numpy"], load, how="by hand")
    assert ended.value.code == code
    assert asked == 2 * [TEXTS, *((text,) for text in TEXTS)]
    kept = json.loads((tmp_path / "out" / "a-consumer-1.0.json").read_text(encoding="utf-8"))
    assert kept["passed"] is (code == 0)
    assert kept["versions"] == {"numpy": np.__version__}
    assert kept["profiles"].keys() == DIMS.keys()


def test_node_is_judged_by_the_same(cases: Cases) -> None:
    right = {"batched": cases.vectors(FP32).tolist(), "single": cases.vectors(FP32).tolist()}
    given = {
        "consumer": "c", "layout": "all", "how": "h", "versions": {}, "onnxruntime": "1.30.0", "closes": True,
        "seconds": 1.0, "profiles": {FP32: right, INT8: {"error": "Error: no file"}},
    }  # fmt: skip
    outcome = judge_all(cases, given)
    assert (outcome.passed, outcome.profiles[FP32].passed) == (False, True)
    assert outcome.profiles[INT8].error == "Error: no file"
    del given["profiles"][INT8]
    assert judge_all(cases, given).profiles[INT8].error == "was not tried"
