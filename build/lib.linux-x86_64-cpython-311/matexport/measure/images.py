"""Tasks of image families: folders of images, with labels or without; what neighbours and classifiers make of them.

``DIR/LABEL/FILE``: the nearest of all other images vote on each one's label. ``DIR/train/LABEL/FILE`` with
``DIR/test/LABEL/FILE`` (or ``val``): the images of train vote on those of test.

Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, section 3.4: each of
the k nearest images by cosine votes for its label with weight exp(cosine / T). k = 20 and T = 0.07, as DINO's
`eval_knn.py` has them by default, which DINOv2 and Franca report; of a bank with fewer images, all vote.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from matexport.errors import RequestError
from matexport.io.files import hash_file, list_images
from matexport.measure.bootstrap import average_resamples, draw_resamples
from matexport.measure.tasks import MAX_UNLABELLED, MIN_UNLABELLED, UnlabelledTask
from matexport.runtime.inputs.modality import Asked
from matexport.spec.measured import Score, TaskKind
from matexport.spec.profile import Precision

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from matexport.family.manifest import Family
    from matexport.measure.scorers import Scored
    from matexport.measure.vectors import Key

    Vectors = NDArray[np.float32]

NEAREST, TEMPERATURE = 20, 0.07

#: Images that are compared with the bank at a time.
CHUNK = 512


#: Folders that hold the images which vote, and those that are voted on.
TRAIN, HELD_OUT = ("train", "training"), ("test", "val", "validation", "valid")


class LabelledImages:
    """Images with a label each.

    Attributes:
        bank: files whose labels are known, with their labels.
        queries: files that are classified, with their labels; empty where each of the bank is by all others.
    """

    def __init__(self, name: str, bank: Sequence[tuple[str, str]], queries: Sequence[tuple[str, str]]) -> None:
        self.name, self.bank, self.queries = name, tuple(bank), tuple(queries)

    @property
    def files(self) -> tuple[str, ...]:
        """All files, each once."""
        return tuple(dict.fromkeys(file for file, _ in (*self.bank, *self.queries)))

    @cached_property
    def sha256(self) -> str:
        """Digest of the images and their labels."""
        parts = [f"{hash_file(Path(file))} {label}" for file, label in (*self.bank, *self.queries)]
        return hashlib.sha256("\n".join([*parts, str(len(self.bank))]).encode()).hexdigest()


class UnlabelledImages(UnlabelledTask, frozen=True):
    """Images without labels, as paths; their digest is that of what they hold."""

    @property
    def sha256(self) -> str:
        """Digest of the images."""
        return hashlib.sha256(" ".join(hash_file(Path(file)) for file in self.texts).encode()).hexdigest()


def load_labelled(folder: Path) -> LabelledImages:
    """Read a folder of labelled images; see the module.

    Raises:
        RequestError: it is no such folder, has fewer than two labels, or holds out a label that train does not have.
    """
    if not folder.is_dir():
        raise RequestError(
            f"{folder} is no folder of labelled images: DIR/LABEL/FILE, or DIR/train and DIR/test of such"
        )
    train = _find(folder, TRAIN)
    held_out = _find(folder, HELD_OUT)
    if (train is None) != (held_out is None):
        there, lacking = (train, HELD_OUT) if train else (held_out, TRAIN)
        raise RequestError(f"{folder} has {there.name if there else ''} and none of {', '.join(lacking)}")
    bank = _read_labels(train or folder)
    queries = _read_labels(held_out) if held_out else []
    labels = {label for _, label in bank}
    if len(labels) < 2 or len(bank) < 3:
        raise RequestError(
            f"{train or folder} has {len(bank)} images of {len(labels)} labels; at least 3 of 2 are needed"
        )
    unknown = sorted({label for _, label in queries} - labels)
    if unknown:
        raise RequestError(f"{held_out}: no image of {train} has the label {unknown[0]!r}")
    if held_out and not queries:
        raise RequestError(f"{held_out} has no images")
    return LabelledImages(folder.name or "images", bank, queries)


def load_unlabelled_images(folder: Path) -> UnlabelledImages:
    """The images of a folder; of many, evenly spread ones.

    Raises:
        RequestError: it is no folder, or has too few images.
    """
    files = list_images(folder)
    if len(files) < MIN_UNLABELLED:
        raise RequestError(f"{folder} has {len(files)} images; at least {MIN_UNLABELLED} are compared")
    chosen = files[:: -(-len(files) // MAX_UNLABELLED)]
    return UnlabelledImages(folder.name or "images", tuple(map(str, chosen)))


def _find(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _read_labels(folder: Path) -> list[tuple[str, str]]:
    """Files and the names of the folders that they lie in, below `folder`."""
    return [
        (str(path), path.relative_to(folder).parts[0])
        for path in list_images(folder)
        if len(path.relative_to(folder).parts) > 1
    ]


class KnnScorer:
    """Share of the images whose label the nearest others say.

    Attributes:
        kinds: suffix of the task's name -> kind and metric of its scores, as in the other scorers.
        texts: number of images of the task.
    """

    kinds: ClassVar = {"": (TaskKind.KNN, f"{NEAREST}-NN accuracy")}

    def __init__(self, task: LabelledImages, rows: Mapping[Key, int], asked: Asked) -> None:
        self.task = task
        self.texts = len(task.files)
        names = sorted({label for _, label in task.bank})
        self._bank = [rows[asked, file] for file, _ in task.bank]
        self._labels = np.array([names.index(label) for _, label in task.bank])
        asked_of = task.queries or task.bank
        self._queries = [rows[asked, file] for file, _ in asked_of]
        self._truth = np.array([names.index(label) for _, label in asked_of])
        self._alone = bool(task.queries)  # or each is one of the bank, and has no vote on itself
        self._draws = draw_resamples(len(self._truth))

    def learn_parent(self, vectors: Vectors) -> None:
        """Does nothing: the scores of this task do not depend on the parent, since people have labelled."""

    def score(self, vectors: Vectors) -> dict[str, Scored]:
        """Suffix -> the score of a profile's (n, dim) float32 vectors of length 1, one for each image of all tasks."""
        from matexport.measure.scorers import Scored

        right = (self.classify(vectors) == self._truth).astype(np.float64)
        return {"": Scored(Score(float(right.mean()), None), average_resamples(right, self._draws))}

    def classify(self, vectors: Vectors) -> NDArray[np.int64]:
        """The label that is voted for, of each image that is asked, as a number."""
        bank, queries = vectors[self._bank], vectors[self._queries]
        labels = int(self._labels.max()) + 1
        count = min(NEAREST, len(bank) - (not self._alone))
        voted = np.empty(len(queries), np.int64)
        for start in range(0, len(queries), CHUNK):
            cosines = queries[start : start + CHUNK] @ bank.T
            if not self._alone:
                cosines[np.arange(len(cosines)), np.arange(start, start + len(cosines))] = -np.inf
            nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
            weights = np.exp(np.take_along_axis(cosines, nearest, axis=1).astype(np.float64) / TEMPERATURE)
            votes = np.zeros((len(cosines), labels))
            np.add.at(votes, (np.arange(len(cosines))[:, None], self._labels[nearest]), weights)
            voted[start : start + CHUNK] = votes.argmax(axis=1)
        return voted


class AccuracyScorer:
    """Share of the images whose label a classifier's largest number says.

    Attributes:
        kinds: suffix of the task's name -> kind and metric of its scores, as in the other scorers.
        texts: number of images of the task.
    """

    kinds: ClassVar = {"": (TaskKind.ACCURACY, "top-1 accuracy")}

    def __init__(self, task: LabelledImages, rows: Mapping[Key, int], asked: Asked, classes: int) -> None:
        self.task = task
        asked_of = task.queries or task.bank
        self.texts = len(asked_of)
        self._rows = [rows[asked, file] for file, _ in asked_of]
        self._truth = number_labels([label for _, label in asked_of], classes, task.name)
        self._draws = draw_resamples(len(self._truth))

    def learn_parent(self, vectors: Vectors) -> None:
        """Does nothing: the scores of this task do not depend on the parent, since people have labelled."""

    def score(self, vectors: Vectors) -> dict[str, Scored]:
        """Suffix -> the score of a profile's (n, classes) numbers, at any positive scale, one row for each image."""
        from matexport.measure.scorers import Scored

        right = (vectors[self._rows].argmax(axis=1) == self._truth).astype(np.float64)
        return {"": Scored(Score(float(right.mean()), None), average_resamples(right, self._draws))}


def number_labels(labels: Sequence[str], classes: int, where: str) -> NDArray[np.int64]:
    """The number of each label's class: the label itself where all are numbers, else its place among their names.

    Raises:
        RequestError: they are no numbers of classes, and not as many names as there are classes.
    """
    names = sorted(set(labels))
    if all(name.isascii() and name.isdigit() and len(name) < 10 for name in names):
        if (most := max(map(int, names))) >= classes:
            raise RequestError(
                f"{where} has the label {most}, and the parent's classes are 0 to {classes - 1}: call folders by these "
                "numbers, or by names, one for each class"
            )
        return np.array([int(label) for label in labels])
    if len(names) != classes:
        raise RequestError(
            f"{where} has {len(names)} labels, and the parent {classes} classes: call folders by the numbers of their "
            "classes, or have one for each"
        )
    places = {name: place for place, name in enumerate(names)}
    return np.array([places[label] for label in labels])


#: Thresholds of confidence that are tried: 0, 0.01, ... 1.
THRESHOLDS = np.linspace(0, 1, 101)


class Cascade(NamedTuple):
    """An adaptive classification: the least dim first, and the next one where it is not sure.

    Attributes:
        dims: from the least on.
        thresholds: of the largest probability, one for each dim but the last: below it, the next dim is asked.
        expected_dim: mean over the images of the dim that decided: the feature is nested, so it has read no more.
        accuracy: of what was decided.
        alone: dim -> accuracy of it alone.
    """

    dims: tuple[int, ...]
    thresholds: tuple[float, ...]
    expected_dim: float
    accuracy: float
    alone: Mapping[int, float]


def learn_thresholds(logits: Mapping[int, Vectors], truth: NDArray[np.int64]) -> tuple[float, ...]:
    """Thresholds from images that are held out, from the least dim on, one after the other.

    Kusupati et al., "Matryoshka Representation Learning", NeurIPS 2022, section 4.2.1 and appendix D.1: of a grid, the
    least threshold with which this dim, and where it is less sure the next one, are right most often.

    Args:
        logits: dim -> (n, classes), by any order.
        truth: (n,) classes.
    """
    dims, found = sorted(logits), []
    for dim, following in pairwise(dims):
        sure = _find_confidence(logits[dim])
        right, later = (logits[each].argmax(axis=1) == truth for each in (dim, following))
        scores = [np.where(sure >= threshold, right, later).mean() for threshold in THRESHOLDS]
        found.append(float(THRESHOLDS[int(np.argmax(scores))]))
    return tuple(found)


def run_cascade(logits: Mapping[int, Vectors], thresholds: Sequence[float], truth: NDArray[np.int64]) -> Cascade:
    """What a cascade decides, on images that its thresholds were not learnt on.

    Args:
        logits: dim -> (n, classes), by any order.
        thresholds: of `learn_thresholds`.
        truth: (n,) classes.
    """
    dims = sorted(logits)
    decided, said = np.zeros(len(truth), np.int64), np.zeros(len(truth), np.int64)
    for dim, threshold in zip(dims, (*thresholds, 0.0), strict=True):
        now = (decided == 0) & (_find_confidence(logits[dim]) >= threshold)
        decided[now], said[now] = dim, logits[dim].argmax(axis=1)[now]
    alone = {dim: float((logits[dim].argmax(axis=1) == truth).mean()) for dim in dims}
    return Cascade(tuple(dims), tuple(thresholds), float(decided.mean()), float((said == truth).mean()), alone)


def _find_confidence(logits: Vectors) -> NDArray[np.float64]:
    """The largest probability of each row."""
    rest = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(1 / np.exp(rest).sum(axis=1))


def evaluate_cascade(
    family: Family, folder: Path, *, precision: Precision = Precision.FP32, threads: int | None = None
) -> Cascade:
    """Learn a cascade of a classifier's dims on ``DIR/val``, and score it on ``DIR/test``.

    Raises:
        RequestError: the family is of no classifier or has one dim alone, or the folder lacks one of the two.
    """
    from matexport.runtime.embedder import Embedder

    classes = family.facts.readout.classes
    profiles = [profile for profile in family.profiles if profile.precision is precision]
    if not classes or len(profiles) < 2:
        raise RequestError(f"a cascade was asked; {family.path} has no classifier at two or more dims in {precision}")
    held_out, test = (_find(folder, names) for names in (HELD_OUT[1:], HELD_OUT[:1]))
    if held_out is None or test is None:
        raise RequestError(
            f"{folder} lacks {HELD_OUT[1] if held_out is None else HELD_OUT[0]}: thresholds are learnt on the images "
            f"of {HELD_OUT[1]} and scored on those of {HELD_OUT[0]}, never on the same"
        )
    parts = [_read_labels(part) for part in (held_out, test)]
    for part, where in zip(parts, (held_out, test), strict=True):
        if not part:
            raise RequestError(f"{where} has no images in folders of their labels, so a cascade cannot be scored")
    logits: list[dict[int, Vectors]] = [{}, {}]
    for profile in profiles:
        with Embedder(family, profile.name, threads=threads) as embedder:
            for known, part in zip(logits, parts, strict=True):
                known[profile.point.dim] = embedder.embed([file for file, _ in part])
    both = number_labels([label for part in parts for _, label in part], classes, str(folder))  # numbered alike
    truths = both[: len(parts[0])], both[len(parts[0]) :]
    return run_cascade(logits[1], learn_thresholds(logits[0], truths[0]), truths[1])
