"""A server as its users have it: in a thread, on a socket of its own, asked with the standard library's client."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
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


@contextmanager
def serve(family: Path, **options: Any) -> Iterator[Client]:
    server = open_server(family, **options)
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
