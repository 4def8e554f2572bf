"""A server as its users have it: in a thread, on a socket of its own, asked with the standard library's client."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from matexport.serve.server import Server, open_server

JSON = {"Content-Type": "application/json"}


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def refuses(self, status: int, *words: str, param: str | None = None) -> None:
        """In OpenAI's shape."""
        assert self.status == status, self.body
        assert self.headers["content-type"] == "application/json"
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
        assert error["param"] == param
        for word in words:
            assert word in error["message"], error["message"]


class Client:
    """Asks a server that runs."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.port = int(server.url.rstrip("/").rpartition(":")[2])

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
        connection = self.connect()
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})

    def embed(self, **fields: object) -> Answer:
        return self.ask("POST", "/v1/embeddings", json.dumps(fields).encode(), JSON)


class Wire:
    """Stands around an ASGI application and notes each answer: (path, range that was asked, status, bytes of body)."""

    def __init__(self) -> None:
        self.answers: list[tuple[str, str | None, int, int]] = []

    def wrap(self, app: Any) -> Any:
        async def noting(scope: Any, receive: Any, send: Any) -> None:
            status = size = 0

            async def send_noted(message: Any) -> None:
                nonlocal status, size
                status = message.get("status", status)
                size += len(message.get("body", b""))
                await send(message)

            await app(scope, receive, send_noted)
            if scope["type"] == "http":
                asked = dict(scope["headers"]).get(b"range")
                self.answers.append((scope["path"], asked and asked.decode(), status, size))

        return noting

    def spans(self, name: str) -> list[tuple[int, int]]:
        """The first byte and the one behind the last of each part of a file that was sent."""
        found = []
        for path, asked, status, size in self.answers:
            if path == f"/family/{name}":
                assert status == 206, (path, status)
                assert asked is not None
                start, _, last = asked.removeprefix("bytes=").partition("-")
                assert size == int(last) + 1 - int(start)
                found.append((int(start), int(last) + 1))
        return found


@contextmanager
def serve(family: Path, wrap: Callable[[Any], Any] | None = None, **options: Any) -> Iterator[Client]:
    """A server that runs. `wrap` is given its ASGI application, and gives what is to be in its place."""
    server = open_server(family, **options)
    if wrap is not None:
        server.config.app = wrap(server.config.app)
    thread = threading.Thread(target=server.run_bound)
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield Client(server)
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive(), "the server does not end"


def wait_for(condition: Any, seconds: float = 60) -> None:
    """Nothing is asserted on time: only a test that hangs is ended."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
