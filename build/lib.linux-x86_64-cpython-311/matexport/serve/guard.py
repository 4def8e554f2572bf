"""What stands before the routes: who may call the server by which name, how many at a time, and what a page may load.

A server on 127.0.0.1 is within reach of every web page that its user looks at. What such a page may not do is kept so:
a name of somebody else that was made to point here (DNS rebinding) is refused, no other origin is let to read answers,
and `app` takes no body that a page may send unasked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from matexport.serve.refusal import RefusedError, refuse_overload

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Names of this machine that no other machine can have.
LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})

#: The page loads its own files and nothing else; WebAssembly has to be compiled, and its threads are workers.
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; worker-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
#: The last three give the page memory that threads may share.
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_RAW = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]


class Guard:
    """Middleware.

    Args:
        hosts: names by which clients may call this server, without a port; None for all.
        most: requests in flight; further ones are told to come back.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None, most: int) -> None:
        self._app, self._hosts, self._most = app, hosts, most
        self._flying = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_RAW]
            await send(message)

        refusal = self._find_refusal(Headers(scope=scope).get("host", ""), scope["path"])
        if refusal is not None:
            answer = JSONResponse(refusal.document, refusal.status, dict(refusal.headers))
            await answer(scope, receive, send_guarded)
            return
        self._flying += 1
        try:
            await self._app(scope, receive, send_guarded)
        finally:
            self._flying -= 1

    def _find_refusal(self, host: str, path: str) -> RefusedError | None:
        name = host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]
        if self._hosts is not None and name.lower() not in self._hosts:
            allowed = ", ".join(sorted(self._hosts))
            return RefusedError(421, f"the host {name[:100]!r} was asked; this server is called: {allowed}")
        if self._flying >= self._most and path != "/health":
            return refuse_overload(f"{self._flying} requests are in flight, and {self._most} are the most")
        return None
