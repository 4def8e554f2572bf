"""Ordinary folders that are easy to read wrongly: each gives sentence-transformers' vectors, or a refusal with a name.

`cases` says what lies in them, `judge` asks sentence-transformers once, in a process of its own. A family that gives
other vectors fails its case whatever was expected, as does an exception that is none of matexport's.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import judge
import numpy as np
import pytest
from cases import CASES, RIGHT, Call, Case

from matexport import Embedder
from matexport.errors import MatexportError
from matexport.export import export_family
from matexport.spec.job import ExportJob, ParentSource

pytestmark = [
    pytest.mark.usefixtures("quick_traces", "own_caches"),
    # Warnings of the libraries that read odd folders are none of a case's business.
    pytest.mark.filterwarnings("ignore"),
]

PEFT = importlib.util.find_spec("peft") is not None
#: Coordinates of unit vectors.
FLOOR = 1e-5
RUN = [case for case in CASES if case.peft is None or case.peft is PEFT]


@dataclass(frozen=True)
class Judged:
    """What sentence-transformers gives: (layers, call) -> (texts, width); or why it does not load the folder."""

    folder: Path
    vectors: Mapping[tuple[int, int], np.ndarray]
    failed: Mapping[tuple[int, int], str]
    refusal: str | None


@pytest.fixture(scope="module")
def own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A parent's own code is copied to a folder of the tests, and not into the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.setattr(sys, "path", list(sys.path))
        yield


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Judged]:
    """Every case's folder, and what one child process of sentence-transformers said of all of them."""
    root = tmp_path_factory.mktemp("cases")
    folders = {case.name: root / f"case{number}" for number, case in enumerate(RUN)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in RUN:
            case.build(folders[case.name])
    requests = {case.name: _ask(case, folders[case.name]) for case in RUN}
    asked, arrays, errors = root / "requests.json", root / "answers.npz", root / "answers.json"
    asked.write_text(json.dumps(requests), encoding="utf-8")
    command = [sys.executable, judge.__file__, str(asked), str(arrays), str(errors)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(root / "modules")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    vectors, failed = dict(np.load(arrays)), json.loads(errors.read_text(encoding="utf-8"))
    return {
        case.name: Judged(
            folders[case.name],
            _of(case.name, vectors),
            _of(case.name, failed),
            failed.get(case.name),
        )
        for case in RUN
    }


@pytest.mark.loads
@pytest.mark.parametrize("case", RUN, ids=lambda case: case.name)
def test_it_is_right_or_refused_by_name(case: Case, judged: Mapping[str, Judged], tmp_path: Path) -> None:
    said = judged[case.name]
    outcome = export_and_compare(case, said, tmp_path / "family")
    assert not outcome.startswith("wrong"), outcome
    assert _is_one_of(outcome, case.outcomes), f"{outcome} (expected: {case.outcomes}; judge: {said.refusal})"


def test_every_case_has_a_name_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


def test_a_folder_that_the_judge_refuses_is_no_right_one(judged: Mapping[str, Judged]) -> None:
    """A case that expects the vectors of something that does not load would prove nothing."""
    right = [(case.name, judged[case.name]) for case in RUN if RIGHT in case.outcomes]
    assert {name: said.refusal for name, said in right if said.refusal} == {}
    assert {name: said.failed for name, said in right if said.failed} == {}


def export_and_compare(case: Case, said: Judged, out: Path) -> str:
    """`RIGHT`, ``refused: <message>``, or ``wrong: <how far>``. Any other exception is passed on."""
    try:
        family = export_family(ExportJob(make_source(case, said.folder), case.points, case.readout), out).family
    except MatexportError as error:
        message = str(error)
        return f"refused: {message}" if "\n" not in message else f"wrong: a message of several lines: {message}"
    if said.refusal:
        return f"wrong: exported what sentence-transformers refuses ({said.refusal})"
    for point in case.points:
        embedder = Embedder(family, f"{point.name}-fp32")
        for index, call in enumerate(case.calls):
            expected = said.vectors.get((point.layers, index))
            if expected is None:
                return f"wrong: exported what sentence-transformers cannot embed ({said.failed[point.layers, index]})"
            expected = scale(expected[:, : point.dim], unit=case.readout.normalize)
            for way, texts in {"batched": case.texts, "alone": None}.items():
                off = measure(embed(embedder, call, case.texts, alone=texts is None), expected)
                if not off <= FLOOR:
                    return f"wrong: off by {off:.2g} at {point.name}, {call}, {way}"
    return RIGHT


def embed(embedder: Embedder, call: Call, texts: Sequence[str], *, alone: bool) -> np.ndarray:
    """(len(texts), dim): as sentence-transformers is called by `call`."""
    options: dict[str, Any] = {"prompt": call.prompt}
    if call.task:
        options["task"] = call.task
        if "task" not in inspect.signature(embedder.embed).parameters:
            pytest.fail(f"Embedder.embed has no task, so {call.method} cannot be asked for")
    if alone:
        return np.concatenate([embedder.embed([text], **options) for text in texts])
    return np.asarray(embedder.embed(texts, **options))


def make_source(case: Case, folder: Path) -> ParentSource:
    options: dict[str, Any] = {"trust_remote_code": case.trust, "allow_pickle": case.pickle}
    if case.route:
        options["route"] = case.route
    return ParentSource(str(folder), **options)


def scale(vectors: np.ndarray, *, unit: bool) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12) if unit else vectors


def measure(vectors: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference of a coordinate, where the expected vector has length 1."""
    if vectors.shape != expected.shape:
        return float("inf")
    return float((np.abs(vectors - expected).max(axis=1) / np.linalg.norm(expected, axis=1).clip(1e-12)).max())


def _ask(case: Case, folder: Path) -> dict[str, Any]:
    calls = [{"method": call.method, "prompt": call.prompt, "texts": case.texts} for call in case.calls]
    layers = sorted({point.layers for point in case.points})
    return {"folder": str(folder), "trust": case.trust, "layers": layers, "calls": calls}


def _of(name: str, answers: Mapping[str, Any]) -> dict[tuple[int, int], Any]:
    found = {}
    for key, answer in answers.items():
        asked, *place = key.rsplit("/", 2)
        if asked == name and len(place) == 2:
            found[int(place[0]), int(place[1])] = answer
    return found


def _is_one_of(outcome: str, allowed: Sequence[str]) -> bool:
    if outcome == RIGHT:
        return RIGHT in allowed
    return any(fragment in outcome for fragment in allowed if fragment != RIGHT)
