"""A command as a user types it, in this process."""

from __future__ import annotations

import io
import json
import math
import sys

import numpy as np
import pytest

from matexport.cli.main import main


class Result:
    """What one command did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict[str, object]:
        document = json.loads(self.out)  # one document, or this fails
        assert isinstance(document, dict)
        return document

    def complains(self, *words: str, code: int = 2) -> None:
        """Nothing but one line on standard error."""
        assert (self.code, self.out) == (code, ""), self.err
        assert self.err.startswith("matexport")
        assert self.err.endswith("\n")
        assert self.err.count("\n") == 1, self.err
        for word in words:
            assert word in self.err


class Run:
    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capsys, self.monkeypatch = capsys, monkeypatch
        # On a slow machine a line for each stage would stand before what is tested.
        monkeypatch.setattr("matexport.cli.progress.QUIET_SECONDS", math.inf)

    def __call__(self, *arguments: object, stdin: bytes | None = None) -> Result:
        source = io.TextIOWrapper(io.BytesIO(stdin or b""), encoding="ascii")
        self.monkeypatch.setattr(sys, "stdin", source)
        if stdin is None:
            self.monkeypatch.setattr(source, "isatty", lambda: True)
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Result(code, *self.capsys.readouterr())


def read_lines(text: str) -> tuple[list[str], np.ndarray]:
    records = [json.loads(line) for line in text.split("\n") if line]
    return [record["text"] for record in records], np.array([record["embedding"] for record in records], np.float32)
