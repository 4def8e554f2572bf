"""Nearest neighbours on images: against scikit-learn's, on folders as people have them; and the digits end to end."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commandline import Run
from PIL import Image
from places import ROOT
from sklearn.neighbors import KNeighborsClassifier

from matexport.errors import RequestError
from matexport.measure.images import (
    KnnScorer,
    LabelledImages,
    learn_thresholds,
    load_labelled,
    load_unlabelled_images,
    number_labels,
    run_cascade,
)
from matexport.runtime.inputs.modality import Asked

NOTHING = Asked()


def save(folder: Path, labels: Sequence[str], each: int) -> None:
    for label in labels:
        (folder / label).mkdir(parents=True)
        for index in range(each):
            Image.new("RGB", (4, 4), (index, 0, 0)).save(folder / label / f"{index}.png")


@pytest.mark.parametrize(("bank", "queries"), [(60, 30), (12, 5)])
def test_votes_are_those_of_another_library(bank: int, queries: int) -> None:
    draws = np.random.default_rng(0)
    vectors = draws.standard_normal((bank + queries, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = draws.integers(0, 3, bank + queries)
    files = [(f"{index}.png", "abc"[label]) for index, label in enumerate(labels)]
    task = LabelledImages("task", files[:bank], files[bank:])
    scorer = KnnScorer(task, {(NOTHING, file): row for row, (file, _) in enumerate(files)}, NOTHING)
    other = KNeighborsClassifier(
        min(20, bank), weights=lambda distances: np.exp((1 - distances) / 0.07), metric="cosine", algorithm="brute"
    ).fit(vectors[:bank], labels[:bank])
    expected = other.predict(vectors[bank:])
    np.testing.assert_array_equal(scorer.classify(vectors), expected)
    score = scorer.score(vectors)[""]
    assert score.score.score == pytest.approx(float((expected == labels[bank:]).mean()))
    assert score.resampled.shape == (200,)


def test_an_image_has_no_vote_on_itself() -> None:
    """Two pairs of twins with other labels: each one's nearest is the other, of the wrong label."""
    vectors = np.array([[1, 0], [1, 0.01], [0, 1], [0.01, 1]], np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    files = [("0", "a"), ("1", "b"), ("2", "a"), ("3", "b")]
    scorer = KnnScorer(LabelledImages("t", files, ()), {(NOTHING, f): int(f) for f, _ in files}, NOTHING)
    assert scorer.score(vectors)[""].score.score == 0
    known = LabelledImages("t", files, files)
    assert KnnScorer(known, {(NOTHING, f): int(f) for f, _ in files}, NOTHING).score(vectors)[""].score.score == 1


def test_folders(tmp_path: Path) -> None:
    save(tmp_path / "flat", "ab", 3)
    (tmp_path / "flat" / "README.png").write_bytes(b"of no label")
    (tmp_path / "flat" / "a" / ".hidden.png").write_bytes(b"")
    (tmp_path / "flat" / "a" / "notes.txt").write_text("no image")
    flat = load_labelled(tmp_path / "flat")
    assert ([label for _, label in flat.bank], flat.queries) == (["a"] * 3 + ["b"] * 3, ())
    save(tmp_path / "split" / "train", "ab", 2)
    save(tmp_path / "split" / "val", "b", 1)
    split = load_labelled(tmp_path / "split")
    assert (len(split.bank), [label for _, label in split.queries]) == (4, ["b"])
    before = split.sha256
    Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "split" / "val" / "b" / "0.png")
    assert load_labelled(tmp_path / "split").sha256 != before
    save(tmp_path / "many" / "x", "a", 30)
    assert len(load_unlabelled_images(tmp_path / "many").texts) == 30


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    save(tmp_path / "one", "a", 3)
    save(tmp_path / "half" / "train", "ab", 2)
    save(tmp_path / "odd" / "train", "ab", 2)
    save(tmp_path / "odd" / "test", "c", 1)
    for name, words in (
        ("none", "is no folder of labelled images"),
        ("one", "has 3 images of 1 labels; at least 3 of 2"),
        ("half", "has train and none of test, val"),
        ("odd", "no image of .* has the label 'c'"),
    ):
        with pytest.raises(RequestError, match=words):
            load_labelled(tmp_path / name)
    with pytest.raises(RequestError, match="has 3 images; at least 20 are compared"):
        load_unlabelled_images(tmp_path / "one")


def softmax(row: Sequence[float]) -> list[float]:
    total = sum(np.exp(row))
    return [float(np.exp(number) / total) for number in row]


def cascade_by_hand(logits: dict[int, Any], thresholds: Sequence[float]) -> list[tuple[int, int]]:
    """(class, dim) of each image, one at a time."""
    found = []
    for image in range(len(next(iter(logits.values())))):
        for dim, threshold in zip(sorted(logits), [*thresholds, 0.0], strict=True):
            chances = softmax(logits[dim][image])
            if max(chances) >= threshold:
                found.append((int(np.argmax(chances)), dim))
                break
    return found


def draw_logits(seed: int, count: int) -> tuple[dict[int, Any], Any]:
    """Heads that are surer and righter the wider they are."""
    draws = np.random.default_rng(seed)
    truth = draws.integers(0, 6, count)
    signal = np.eye(6)[truth]
    return {dim: (signal * gain + draws.standard_normal((count, 6))).astype(np.float32)
            for dim, gain in ((8, 1.5), (16, 2.5), (64, 4.0))}, truth  # fmt: skip


def test_a_cascade_is_what_it_is_by_hand() -> None:
    held_out, truth = draw_logits(1, 300)
    thresholds = learn_thresholds(held_out, truth)
    test, answers = draw_logits(2, 400)
    found = run_cascade(test, thresholds, answers)
    by_hand = cascade_by_hand(test, thresholds)
    assert found.accuracy == pytest.approx(
        np.mean([said == right for (said, _), right in zip(by_hand, answers, strict=True)])
    )
    assert found.expected_dim == pytest.approx(np.mean([dim for _, dim in by_hand]))
    assert found.dims == (8, 16, 64)
    assert found.accuracy > found.alone[16]
    assert 8 < found.expected_dim < 64


def test_a_threshold_is_the_least_of_the_best() -> None:
    """Tried one by one, on two heads of which the first is right where it is sure."""
    held_out, truth = draw_logits(3, 200)
    pair = {dim: held_out[dim] for dim in (8, 64)}
    (found,) = learn_thresholds(pair, truth)
    scores = {}
    for step in range(101):
        said = cascade_by_hand(pair, [step / 100])
        scores[step / 100] = np.mean([one == right for (one, _), right in zip(said, truth, strict=True)])
    best = max(scores.values())
    assert found == pytest.approx(min(threshold for threshold, score in scores.items() if score == best))


def test_labels_are_numbers_of_classes() -> None:
    assert number_labels(["3", "0", "3"], 4, "here").tolist() == [3, 0, 3]
    assert number_labels(["b", "a", "b"], 2, "here").tolist() == [1, 0, 1]
    with pytest.raises(RequestError, match="here has 2 labels, and the parent 4 classes"):
        number_labels(["b", "a"], 4, "here")
    with pytest.raises(RequestError, match="has the label 12, and the parent's classes are 0 to 11"):
        number_labels([str(number) for number in range(1, 13)], 12, "here")


@pytest.fixture(scope="session")
def digits() -> Any:
    """``profiles/digits.py``, as a module."""
    spec = importlib.util.spec_from_file_location("digits_demo", ROOT / "profiles" / "digits.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["digits_demo"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_digits_are_told_apart_and_the_smallest_good_profile_is_picked(digits: Any, tmp_path: Path, run: Run) -> None:
    """Real pixels: the demo, as its script runs it. Trained points keep what untrained ones lose."""
    parent, images = digits.make_parent(tmp_path)
    job = tmp_path / "digits.toml"
    text = (ROOT / "profiles" / "digits.toml").read_text(encoding="utf-8")
    job.write_text(text.replace("../artifacts/digits-parent", str(parent)), encoding="utf-8")
    family = tmp_path / "digits"
    assert "24 profiles" in run("export", job, "--out", family).out
    found = run("evaluate", family, "--labelled", images, "--json").json["tasks"]["digits-images"]
    scores = {name: score["score"] for name, score in found["profiles"].items()}
    assert found["kind"] == "knn"
    assert scores["L04-D064-fp32"] > 0.9
    assert scores["L03-D016-fp32"] > scores["L01-D016-fp32"] + 0.03
    assert abs(scores["L04-D064-int8"] - scores["L04-D064-fp32"]) < 0.02
    picked = run("pick", family, "--min-retention", 0.97, "--json").json
    assert picked["chosen"]["retention"]["value"] >= 0.97
    assert picked["chosen"]["profile"].startswith(("L02", "L03", "L04"))
