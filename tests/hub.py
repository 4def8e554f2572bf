"""A hub on this disk, of one parent, with an empty cache: what `huggingface_hub.snapshot_download` would fetch."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from huggingface_hub.utils import filter_repo_objects

NAME = "someone/encoder"


@dataclass
class FakeHub:
    """Attributes:
    parent: the folder that is on the hub as `NAME`.
    cache: where its files are copied to.
    fetched: their names, in that order.
    """

    parent: Path
    cache: Path
    fetched: list[str] = field(default_factory=list)

    def download(
        self, name: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str] | None = None
    ) -> str:
        """Takes the place of `snapshot_download`."""
        assert name == NAME
        files = sorted(path.relative_to(self.parent).as_posix() for path in self.parent.rglob("*") if path.is_file())
        for file in filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            if not (self.cache / file).exists():
                (self.cache / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.parent / file, self.cache / file)
                self.fetched.append(file)
        return str(self.cache)

    @property
    def fetched_weights(self) -> list[str]:
        return [file for file in self.fetched if file.endswith((".safetensors", ".bin"))]


def open_hub(parent: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """Put a parent on the hub; nothing of it is in the cache."""
    hub = FakeHub(parent, cache)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.download)
    return hub
