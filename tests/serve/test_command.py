"""`matexport serve` in a process of its own: what it says, how it ends, and what it refuses before it begins."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from commandline import Run
from places import GOLDEN
from serving import JSON

FAMILY = GOLDEN / "schema3"


@contextmanager
def start(*options: str) -> Iterator[subprocess.Popen[str]]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    process = subprocess.Popen(
        [sys.executable, "-m", "matexport", "serve", str(FAMILY), "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_listens_and_ends_well(number: signal.Signals) -> None:
    with start("--profile", "L01-D012-int8") as process:
        assert process.stdout
        line = process.stdout.readline()
        assert line.startswith(f"serving {FAMILY} at http://127.0.0.1:")
        assert "(model L01-D012-int8)" in line
        port = int(line.partition("127.0.0.1:")[2].partition("/")[0])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/v1/embeddings", b'{"input": "dog"}', JSON)
        assert len(json.load(connection.getresponse())["data"][0]["embedding"]) == 12
        process.send_signal(number)  # the connection is still open, and idle
        out, err = process.communicate(timeout=60)
        connection.close()
        assert (process.returncode, out) == (0, "")
        assert "Traceback" not in err


def test_json_says_the_same() -> None:
    with start("--json") as process:
        assert process.stdout
        text = ""
        while not text.endswith("}\n"):
            text += process.stdout.readline()
        document = json.loads(text)
        assert document["url"].startswith("http://127.0.0.1:")
        assert document["model"] == "L02-D020-fp32"
        assert isinstance(document["page"], bool)


def test_what_cannot_be_served_is_one_line(run: Run) -> None:
    run("serve", GOLDEN / "none").complains("is not a directory")
    run("serve", FAMILY, "--port", "70000").complains("'70000' is not a port, 0 to 65535")
    run("serve", FAMILY, "--port", "-1").complains("--port")
    run("serve", FAMILY, "--port", "0", "--profile", "L01-D016-int8").complains("L01-D012-int8")
    run("serve", FAMILY, "--port", "0", "--host", "256.0.0.1").complains("cannot listen at 256.0.0.1 port 0")
    run("serve", FAMILY, "--max-texts", "0").complains("not a whole number of at least 1")


def test_without_the_extra_it_says_how_to_get_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "uvicorn" else find(name, *rest)
    )
    run("serve", FAMILY).complains("serving needs uvicorn", "[serve]")
