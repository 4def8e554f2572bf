"""One connection of a client: uvicorn's own, with limits on the head of a request.

uvicorn lets a client take as long as it likes to say what it wants, and say as much as it likes. Here a connection on
which no request is being answered has so many seconds for the next one's head; what is left of a body that was refused
counts as well.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from matexport.serve.refusal import RefusedError

#: Of a request's first line and headers together; browsers and proxies send a few kB.
MAX_HEAD_BYTES = 64 << 10


class Connection(HttpToolsProtocol):
    """
    Args:
        seconds: in which the head of a request has to arrive.
        given: uvicorn's own.
    """

    def __init__(self, seconds: float, **given: Any) -> None:
        super().__init__(**given)
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._in_head = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, unless the head is larger than any."""
        super().data_received(data)
        self._head_bytes = self._head_bytes + len(data) if self._in_head else 0
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, f"the head of the request has more than {MAX_HEAD_BYTES} bytes")

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP; uvicorn would say so in plain text."""
        self._refuse(400, msg)

    def on_message_begin(self) -> None:
        """A request's first byte is there."""
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """A request can be answered."""
        self._in_head = False
        self._stop_waiting()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request, unless one is being answered already."""
        super().on_response_complete()
        if self.cycle.response_complete:
            self._wait_for_head()

    def _wait_for_head(self) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(self._seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        if self._in_head:
            self._refuse(408, f"the head of the request did not arrive in {self._seconds:g} s")
        else:
            self.transport.close()

    def _refuse(self, status: int, why: str) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:  # whose answer this would stand in the midst of
            self.transport.close()
            return
        body = msgspec.json.encode(RefusedError(status, why).document)
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + body)
        self.transport.close()
