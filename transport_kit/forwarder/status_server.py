"""An HTTP server for a process that is not a web app: health for probes, metrics for Prometheus.

This module owns sockets, paths and limits. `kit/routes.py` renders health, `metrics.py` the metrics.

It listens on loopback by default. There it refuses foreign host names, as a web page in a browser could read
it through a name that resolves to loopback. On other addresses health shows the status only.

Threads: one accepts, and at most `MAX_REQUESTS` serve one request each; all are daemons.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Self
from urllib.parse import urlsplit

from transport_kit.config.options import IntegrationOptions
from transport_kit.kit.routes import LEAVES, Answer, answer, parse_query
from transport_kit.runtime.errors import OptionsError
from transport_kit.transport.base import Transport

__all__ = ["StatusServer"]

#: Seconds to receive a request, and to send its answer.
TIMEOUT: Final = 5.0
#: Requests at the same time; the connections of more are closed.
MAX_REQUESTS: Final = 16
_HEALTH_JSON: Final = "application/health+json"
_TEXT: Final = "text/plain; charset=utf-8"


class StatusServer:
    """A context manager that serves health and metrics.

    Attributes:
        port: The port that it listens on.
        url: Its address, without a slash at the end.

    Args:
        host: IP address to listen on.
        port: Port to listen on; 0 takes a free one.
        subject: The transport whose health is at /health, /ready and /live; None for a 404 there.
        ready: Returns False while /ready has to answer 503.
        metrics: Returns content type and body of /metrics; None for a 404 there.

    Raises:
        OptionsError: It can't listen on that address and port.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        subject: Transport | None = None,
        ready: Callable[[], bool] = lambda: True,
        metrics: Callable[[], tuple[str, bytes]] | None = None,
    ) -> None:
        self._subject = subject
        self._ready = ready
        self._metrics = metrics
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            raise OptionsError("listen", "must be an IP address, such as 127.0.0.1", "command line") from None
        self._local = address.is_loopback
        self._options = IntegrationOptions(health_details="always" if self._local else "token")
        self._free = threading.Semaphore(MAX_REQUESTS)
        handler = _handler(self)
        family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
        server = type("_StatusHttpServer", (_StatusHttpServer,), {"address_family": family})
        try:
            self._server: _StatusHttpServer = server((host, port), handler)
        except OSError as error:
            raise OptionsError("port", f"{port}: {error.strerror}", "command line") from None
        self._server.free = self._free
        self.port: int = self._server.server_address[1]
        netloc = f"[{host}]" if address.version == 6 else host
        self.url = f"http://{netloc}:{self.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.5,), name="transport-kit-status-server", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join(TIMEOUT)
        self._server.server_close()

    def respond(self, method: str, target: str, headers: Mapping[str, str]) -> Answer:
        """Return the answer to one request, whose parts may be any text."""
        if self._local and not _is_local(headers.get("host", "")):
            return _plain(421, "this server answers for loopback addresses and localhost only\n", method)
        path, _, query = target.partition("?")
        leaf = next((leaf for leaf in LEAVES if path == f"/{leaf}"), None)
        if leaf is not None and self._subject is not None:
            reply = answer(
                leaf,
                method=method,
                query=parse_query(query),
                accept=headers.get("accept"),
                authorization=None,
                transport=self._subject,
                options=self._options,
            )
            if leaf == "ready" and isinstance(reply, Answer) and reply.status == 200 and not self._ready():
                return _answer(503, _HEALTH_JSON, b'{"status":"fail"}', method)
            # The other result is a flush to be done; a flush needs a token, and none is set here.
            return reply if isinstance(reply, Answer) else _plain(404, "Not found\n", method)
        if path == "/metrics" and self._metrics is not None:
            if method not in ("GET", "HEAD"):
                return _plain(405, "Method not allowed; use GET, HEAD\n", method)
            content_type, body = self._metrics()
            return _answer(200, content_type, body, method)
        return _plain(404, "Not found\n", method)


class _StatusHttpServer(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    free: threading.Semaphore

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self.free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Do nothing: a client that closes its connection is no error of the server."""


def _handler(status_server: StatusServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = TIMEOUT
        server_version = "transport-kit"
        sys_version = ""

        def _respond(self) -> None:
            # The request's body is not read, so the connection ends with the answer.
            self.close_connection = True
            headers = {name.lower(): value for name, value in self.headers.items()}
            reply = status_server.respond(self.command, self.path, headers)
            self.send_response(reply.status)
            for name, value in reply.headers:
                self.send_header(name, value)
            self.send_header("connection", "close")
            self.end_headers()
            self.wfile.write(reply.body)

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _respond  # noqa: N815 - the base class's names

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing: probes come every few seconds."""

    return Handler


def _is_local(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _plain(status: int, text: str, method: str) -> Answer:
    return _answer(status, _TEXT, text.encode(), method)


def _answer(status: int, content_type: str, body: bytes, method: str) -> Answer:
    headers = (
        ("content-type", content_type),
        ("content-length", str(len(body))),
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
    )
    return Answer(status, headers, b"" if method == "HEAD" else body)
