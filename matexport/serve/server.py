"""A family on a socket: opened and checked, bound, then served until SIGINT or SIGTERM.

uvicorn speaks HTTP, with httptools, the parser of Node.js. Requests that are being answered when a signal comes are
answered; a second SIGINT gives up on them.
"""

from __future__ import annotations

import ipaddress
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import current_thread, main_thread

import uvicorn

from matexport.errors import RequestError
from matexport.family.manifest import Family, load_family
from matexport.io.files import describe_os_error
from matexport.serve.app import make_app
from matexport.serve.asked import Limits
from matexport.serve.connection import Connection
from matexport.serve.files import open_family, open_page
from matexport.serve.guard import LOOPBACK
from matexport.serve.service import Service, find_page
from matexport.spec.measured import Engine

#: Seconds that requests in flight have to end in when the server is stopped.
GRACE_SECONDS = 10


class Server(uvicorn.Server):
    """A bound server; `run_bound` serves until it is stopped.

    Attributes:
        url: where it listens.
        service: what answers.
        has_page: whether the page was built.
    """

    def __init__(self, service: Service, bound: socket.socket, page: Path) -> None:
        self.service, self._bound = service, bound
        host, port = bound.getsockname()[:2]
        self.url = f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
        files = open_page(page)
        self.has_page = bool(files)
        hosts = LOOPBACK | {host} if ipaddress.ip_address(host).is_loopback else None
        app = make_app(service, open_family(service.family), files, hosts)
        super().__init__(
            uvicorn.Config(
                app,
                http=partial(Connection, service.limits.head_seconds),  # type: ignore[arg-type]  # which is called
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
        )

    def run_bound(self) -> None:
        """Serve until SIGINT, SIGTERM, or until `should_exit` is set by another thread."""
        self.run(sockets=[self._bound])

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own raises a signal again when all is done; to be stopped is what a server ends well with."""
        if current_thread() is not main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def open_server(
    family: Family | Path | str,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    profile: str | None = None,
    engine: Engine | None = None,
    limits: Limits | None = None,
) -> Server:
    """Check a family, open its default profile, and bind a socket.

    Args:
        host: name or address to listen at; others than this machine's own are let in by their own.
        port: 0 for one that is free.
        profile: of requests that name none; see `choose.choose_default`.
        engine: what runs the profiles, and with how many threads for all runs together; onnxruntime, and all CPUs of
            this process by default.

    Raises:
        RequestError: the family gives no vectors of texts, the engine cannot run its default profile, or the address
            cannot be listened at.
        FamilyError: there is no such profile, or the files are not the ones that were exported.
    """
    loaded = family if isinstance(family, Family) else load_family(family)
    bound = _bind(host, port)  # first: it takes no time, and opening a family does
    try:
        service = Service(loaded, default=profile, engine=engine, limits=limits)
        return Server(service, bound, find_page())
    except BaseException:
        bound.close()
        raise


def _bind(host: str, port: int) -> socket.socket:
    try:
        (kind, *_, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return socket.create_server(address[:2], family=kind, backlog=2048)
    except (OSError, UnicodeError) as error:
        reason = describe_os_error(error) if isinstance(error, OSError) else str(error)
        raise RequestError(f"cannot listen at {host} port {port}: {reason}; choose another --port or --host") from None
