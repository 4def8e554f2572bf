"""The routes: OpenAI's embeddings and models, health, the page, and the family's files for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from matexport.serve.files import Served, answer_file
from matexport.serve.guard import Guard
from matexport.serve.refusal import RefusedError
from matexport.serve.service import Service

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

#: What a proxy's log says of a client that went before its answer; no client reads it.
CLIENT_GONE = 499

#: How long the rest of a request that is refused before its end is read.
LINGER_SECONDS = 5.0

#: How the page is built, for whoever asks for it where it is not.
UNBUILT = "the page is not built: run `npm ci && npm run build` in web/, or install a wheel, which has it"

Answer = Callable[[Request], Awaitable[Response]]


def make_app(
    service: Service, family: Mapping[str, Served], page: Mapping[str, Served], hosts: frozenset[str] | None
) -> Starlette:
    """The application, which closes the service when it ends.

    Args:
        family, page: files by name.
        hosts: names by which clients may call this server; None for all.
    """

    @asynccontextmanager
    async def live(_app: Starlette) -> AsyncIterator[None]:
        yield
        service.close()  # waits for the run that goes on; there is nothing else to do any more

    app = Starlette(
        routes=[
            Route("/v1/embeddings", partial(_answer_embeddings, service), methods=["POST"]),
            Route("/v1/models", partial(_answer_models, service), methods=["GET"]),
            Route("/v1/models/{name}", partial(_answer_model, service), methods=["GET"]),
            Route("/health", partial(_answer_health, service), methods=["GET"]),
            Route("/family/{name:path}", partial(_answer_family, family), methods=["GET"]),
            Route("/", partial(_answer_page, page, "index.html"), methods=["GET"]),
            *(Route(f"/{name}", partial(_answer_page, page, name), methods=["GET"]) for name in page),
        ],
        exception_handlers={RefusedError: _answer_refusal, HTTPException: _answer_status, Exception: _answer_fault},
        lifespan=live,
    )
    app.add_middleware(Guard, hosts=hosts, most=service.limits.requests)
    return app


async def _answer_embeddings(service: Service, request: Request) -> Response:
    """Vectors; given up when the client goes."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a form, which any web page may send to any server without being asked
        raise RefusedError(415, f"the content type is {kind[:100]!r}; it is to be application/json")
    if (encoded := request.headers.get("content-encoding", "identity").strip().lower()) != "identity":
        raise RefusedError(415, f"the content encoding is {encoded[:100]!r}; the body is to be sent as it is")
    try:
        body = await _read_body(request, service.limits.body_bytes, service.limits.body_seconds)
    except ClientDisconnect:
        return Response(status_code=CLIENT_GONE)
    embedding = asyncio.ensure_future(service.embed(body))
    gone = asyncio.ensure_future(_wait_for_end(request))
    try:
        await asyncio.wait((embedding, gone), return_when=asyncio.FIRST_COMPLETED)
        if not embedding.done():
            return Response(status_code=CLIENT_GONE)
        return Response(embedding.result(), media_type="application/json")
    finally:
        gone.cancel()
        embedding.cancel()


async def _read_body(request: Request, most: int, seconds: float) -> bytes:
    """A request's body, of which no more is held than is allowed."""
    announced = request.headers.get("content-length", "")
    too_large = f"the body has more than {most} bytes, which are the most of one request"
    if announced.isascii() and announced.isdigit() and (len(announced) > 18 or int(announced) > most):
        raise RefusedError(413, too_large, unread=True)
    parts: list[bytes] = []
    size, more = 0, True
    try:
        async with asyncio.timeout(seconds):
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                more = message.get("more_body", False)
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > most:
                    raise RefusedError(413, too_large, unread=more)
    except TimeoutError:
        raise RefusedError(408, f"the body did not arrive in {seconds:g} s", unread=True) from None
    return b"".join(parts)


class Lingering(Response):
    """An answer behind which the rest of the request is read, for a while, and thrown away.

    Whoever sends all of a request before reading would else find the connection reset, and the answer gone with it
    (RFC 9112, section 9.6).
    """

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while (await receive()).get("more_body", False):
                    pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _wait_for_end(request: Request) -> None:
    """Return when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _answer_models(service: Service, _request: Request) -> Response:
    return _answer_json({"object": "list", "data": service.list_models()})


async def _answer_model(service: Service, request: Request) -> Response:
    return _answer_json(service.describe_model(request.path_params["name"]))


async def _answer_health(service: Service, _request: Request) -> Response:
    return _answer_json({"status": "ok", "model": service.default, "waiting": service.batcher.waiting})


async def _answer_family(files: Mapping[str, Served], request: Request) -> Response:
    return answer_file(request, files, request.path_params["name"])


async def _answer_page(files: Mapping[str, Served], name: str, request: Request) -> Response:
    if not files:
        raise RefusedError(404, UNBUILT, code="page_not_built")
    return answer_file(request, files, name)


def _answer_json(document: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(document), status, headers, "application/json")


async def _answer_refusal(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    kind = Lingering if error.unread else Response
    return kind(msgspec.json.encode(error.document), error.status, error.headers, "application/json")


async def _answer_status(request: Request, error: Exception) -> Response:
    """What the routes themselves refuse: a method."""
    assert isinstance(error, HTTPException)
    refusal = RefusedError(error.status_code, f"{request.method} {request.url.path[:100]}: {error.detail}")
    return _answer_json(refusal.document, refusal.status, error.headers)


async def _answer_fault(_request: Request, error: Exception) -> Response:
    """The server's own trouble. uvicorn logs what it was; a message may name folders, so a client is not told."""
    refusal = RefusedError(500, f"the server could not answer ({type(error).__name__}); its log says why")
    return _answer_json(refusal.document, refusal.status)
