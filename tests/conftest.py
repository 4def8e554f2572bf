"""Fixtures that several test modules share. One small family is exported per test session; tests that change a family
work on a copy."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

from matexport.spec import ExportJob, FinalNorm, ParentSource, Point, ReadoutRequest

TEXTS = ["the cat sits on the mat", "a big red house", "dog", "money, river bank! 42", "snow " * 70, "Käse 猫 🙂"]
POINTS = tuple(Point(layers, dim) for layers in (1, 2, 3) for dim in (8, 32))


@pytest.fixture(scope="session")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random BERT with mean pooling."""
    from parents import make_parent

    return make_parent(tmp_path_factory.mktemp("parent") / "bert", "bert")


@pytest.fixture(scope="session")
def exported(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its family. Not to be changed: copy it with the fixture `family`."""
    from matexport.build import export_family

    out = tmp_path_factory.mktemp("family") / "small"
    export_family(ExportJob(ParentSource(str(parent)), POINTS), out)
    return out


@pytest.fixture
def family(exported: Path, tmp_path: Path) -> Path:
    """A copy of the family that a test may spoil."""
    return Path(shutil.copytree(exported, tmp_path / "family"))


@pytest.fixture(scope="session")
def left_parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random decoder that pads on the left, reads the last token and has a prompt; its final norm is kept."""
    from parents import make_parent

    return make_parent(
        tmp_path_factory.mktemp("left") / "qwen3", "qwen3", pooling="lasttoken", prompts={"query": "a red house "}
    )


@pytest.fixture(scope="session")
def left_exported(left_parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its family. Not to be changed: copy it."""
    from matexport.build import export_family

    out = tmp_path_factory.mktemp("left-family") / "left"
    points = (Point(1, 16), Point(3, 32))
    export_family(ExportJob(ParentSource(str(left_parent)), points, ReadoutRequest(final_norm=FinalNorm.KEEP)), out)
    return out


@pytest.fixture
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test when a session is created. What pytest.fail raises is no Exception, so no handler swallows it."""

    def refuse(*_args: object, **_options: object) -> None:
        pytest.fail("a session was created")

    monkeypatch.setattr("onnxruntime.InferenceSession", refuse)
    monkeypatch.setattr("matexport.embed.open_session", refuse)
