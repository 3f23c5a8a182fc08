"""A small HTTP server for a process that is no web app: health for probes, metrics for Prometheus.

Owns sockets, paths and limits. The content of health is in `kit/routes.py`, the metrics in `metrics.py`.

On loopback by default. There a page in somebody's browser must not read it by way of a name that leads to
loopback, so requests for foreign host names are refused. On other addresses strangers see the status only.

Threads: one that accepts, and one for each request, a handful at a time; all daemons.
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

#: Seconds for a request to be said, and for its answer to be taken.
TIMEOUT: Final = 5.0
#: Requests at the same time; more are hung up on.
MOST_REQUESTS: Final = 16
_TEXT: Final = "text/plain; charset=utf-8"


class StatusServer:
    """Serves until it is closed; a context manager.

    Args:
        host: Address to listen on.
        port: 0 takes a free one.
        subject: Whose health it tells at /health, /ready and /live; None: those are not there.
        metrics: Writes the body of /metrics and its content type; None: it is not there.

    Raises:
        OptionsError: It can't listen there.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        subject: Transport | None = None,
        metrics: Callable[[], tuple[str, bytes]] | None = None,
    ) -> None:
        self._subject = subject
        self._metrics = metrics
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            raise OptionsError("listen", "must be an IP address, such as 127.0.0.1", "command line") from None
        self._local = address.is_loopback
        self._options = IntegrationOptions(health_details="always" if self._local else "token")
        self._free = threading.Semaphore(MOST_REQUESTS)
        handler = _handler(self)
        family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
        server = type("_Server", (_Server,), {"address_family": family})
        try:
            self._server: _Server = server((host, port), handler)
        except OSError as error:
            raise OptionsError("port", f"{port}: {error.strerror}", "command line") from None
        self._server.free = self._free
        self.port: int = self._server.server_address[1]
        shown = f"[{host}]" if address.version == 6 else host
        self.url = f"http://{shown}:{self.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.5,), name="transport-kit-monitor", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join(TIMEOUT)
        self._server.server_close()

    def respond(self, method: str, target: str, headers: Mapping[str, str]) -> Answer:
        """The answer to one request. Any text is taken."""
        if self._local and not _is_local(headers.get("host", "")):
            return _plain(421, "this server answers for loopback addresses and localhost only\n", method)
        path, _, query = target.partition("?")
        leaf = next((leaf for leaf in LEAVES if path == f"/{leaf}"), None)
        if leaf is not None and self._subject is not None:
            found = answer(
                leaf,
                method=method,
                query=parse_query(query),
                accept=headers.get("accept"),
                authorization=None,
                transport=self._subject,
                options=self._options,
            )
            # A flush needs a token, and there is none.
            return found if isinstance(found, Answer) else _plain(404, "Not found\n", method)
        if path == "/metrics" and self._metrics is not None:
            if method not in ("GET", "HEAD"):
                return _plain(405, "Method not allowed; use GET, HEAD\n", method)
            kind, body = self._metrics()
            return _answer(200, kind, body, method)
        return _plain(404, "Not found\n", method)


class _Server(ThreadingHTTPServer):
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
        """A client that hangs up is no news."""


def _handler(monitor: StatusServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = TIMEOUT
        server_version = "transport-kit"
        sys_version = ""

        def _respond(self) -> None:
            # A body is not read: the connection ends with the answer.
            self.close_connection = True
            headers = {name.lower(): value for name, value in self.headers.items()}
            found = monitor.respond(self.command, self.path, headers)
            self.send_response(found.status)
            for name, value in found.headers:
                self.send_header(name, value)
            self.send_header("connection", "close")
            self.end_headers()
            self.wfile.write(found.body)

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _respond  # noqa: N815 - the base class's names

        def log_message(self, format: str, *args: Any) -> None:
            """Probes come every few seconds."""

    return Handler


def _is_local(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _plain(status: int, text: str, method: str) -> Answer:
    return _answer(status, _TEXT, text.encode(), method)


def _answer(status: int, kind: str, body: bytes, method: str) -> Answer:
    headers = (
        ("content-type", kind),
        ("content-length", str(len(body))),
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
    )
    return Answer(status, headers, b"" if method == "HEAD" else body)
