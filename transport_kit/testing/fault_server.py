"""FaultServer: an HTTP/1.1 server on loopback that stores requests and fails on demand.

This module owns its sockets and threads: one thread accepts, one serves each connection, and all end in
`stop`. Uses real sockets only, so that a test sees the kernel's behaviour. It answers every path alike; the
Sentry-compatible server, which knows projects and keys, is `receiver/`.

Threads: every public method may be called from any thread. Needs no dependency; `transport_kit.envelope`
parses envelopes.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from transport_kit.testing.answers import OK, Reply, reply_for
from transport_kit.testing.received import BadRequest, ReceivedRequest, RequestReader

if TYPE_CHECKING:
    import ssl

__all__ = ["FaultServer"]

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, zero seconds: close sends RST
_STOP_TIMEOUT = 10.0


@dataclass(slots=True, eq=False)
class _Connection:
    sock: socket.socket
    reader: RequestReader
    # True from the moment a request counts as answered until the answer's last byte is written.
    answering: bool = False


@dataclass(slots=True, eq=False)
class _Listener:
    """An open port; closing `stop_sender` ends its thread, which waits for `stop_receiver`."""

    sock: socket.socket
    stop_sender: socket.socket
    stop_receiver: socket.socket
    thread: threading.Thread = field(init=False)


class FaultServer:
    """A context manager that answers every request with 200 unless `answer` or `fault` was called.

    `answer` and `fault` with `times=N` apply to the next N requests, in the order of the calls; with
    `times=None` they apply to every request from now on, and cancel the replies scheduled before.

    Attributes:
        key: The public key in `dsn`.
        delay: Seconds before each answer; 0 at first. May be set at any time.
        drip_interval: Seconds between the bytes of the fault `drip`.
        requests: Every complete request, in order of arrival. Read it, don't change it.
        connections: Number of accepted connections.
        errors: The errors of connections that broke off or didn't speak HTTP.

    Args:
        host: A loopback address, IPv4 or IPv6.
        ssl_context: A server-side context: the server then speaks TLS.
    """

    key = "0123456789abcdef0123456789abcdef"

    def __init__(self, *, host: str = "127.0.0.1", ssl_context: ssl.SSLContext | None = None) -> None:
        self.delay = 0.0
        self.drip_interval = 0.02
        self.requests: list[ReceivedRequest] = []
        self.connections = 0
        self.errors: list[str] = []
        self._host = host
        self._ssl_context = ssl_context
        self._port = 0
        self._family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # `_cond` guards every field below. No I/O happens while it is held, except a shutdown, which doesn't
        # block.
        self._cond = threading.Condition()
        self._scheduled: deque[Reply] = deque()
        self._default = OK
        self._held = False
        self._releases = 0
        self._accepted_count = 0
        self._stopping = False
        self._open: set[_Connection] = set()
        self._threads: list[threading.Thread] = []  # of connections; ended ones are removed from time to time
        self._listener: _Listener | None = None
        # Bound and never listening: reserves the port while the server is down.
        self._reserve: socket.socket | None = None

    # -- state -----------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        """Take a free port and listen; may be called once."""
        if self._reserve is not None or self._stopping:
            raise RuntimeError("a FaultServer starts once")
        self._reserve = self._bind(0)
        self._port = self._reserve.getsockname()[1]
        self.up()

    def up(self) -> None:
        """Listen again on the same port; do nothing if it listens already."""
        with self._cond:
            if self._reserve is None or self._stopping:
                raise RuntimeError("the server is not running")
            if self._listener is not None:
                return
            sock = self._bind(self._port)
            sock.listen(512)
            sock.setblocking(False)
            listener = self._listener = _Listener(sock, *socket.socketpair())
            listener.thread = threading.Thread(
                target=self._accept, args=(listener,), name="fault-server-accept", daemon=True
            )
        listener.thread.start()

    def down(self) -> None:
        """Stop listening, so that connecting is refused, and close every connection."""
        with self._cond:
            listener, self._listener = self._listener, None
        if listener is not None:
            listener.stop_sender.close()
            self._join(listener.thread)
        with self._cond:
            for connection in self._open:
                _shut_down(connection.sock)
            threads, self._threads = self._threads, []
            self._cond.notify_all()
        for thread in threads:
            self._join(thread)

    def stop(self) -> None:
        """Close everything and end every thread; held and hanging requests get no answer."""
        with self._cond:
            self._stopping = True
            self._cond.notify_all()
        self.down()
        if self._reserve is not None:
            self._reserve.close()

    @property
    def url(self) -> str:
        """`http://127.0.0.1:port`, or https with TLS."""
        return f"{self._scheme}://{self._netloc}"

    @property
    def dsn(self) -> str:
        """A DSN for project 1 of this server."""
        return f"{self._scheme}://{self.key}@{self._netloc}/1"

    @property
    def port(self) -> int:
        """The port, the same from `start` on."""
        if not self._port:
            raise RuntimeError("the server has not started")
        return self._port

    # -- replies -----------------------------------------------------------------------------------

    def answer(
        self,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        body: bytes = b'{"id":""}',
        times: int | None = None,
    ) -> None:
        """Answer the next `times` requests, or all from now on, in this way."""
        if not 200 <= status <= 599:
            raise ValueError(f"status must be from 200 to 599, not {status}")
        self._schedule(Reply("answer", status, tuple((headers or {}).items()), body), times)

    def fault(self, kind: str, times: int | None = None) -> None:
        """Fail the next `times` requests, or all from now on, in the way that `FAULTS` describes.

        For `reset_on_accept`, `times` counts connections instead of requests.
        """
        self._schedule(reply_for(kind), times)

    def hold(self) -> None:
        """Delay the answers of all requests until `release`."""
        with self._cond:
            self._held = True

    def release(self) -> None:
        """Answer held, hanging and dripping requests."""
        with self._cond:
            self._held = False
            self._releases += 1
            self._cond.notify_all()

    def drop_idle(self) -> int:
        """Close idle connections and return their number."""
        with self._cond:
            self._settle_locked()
            idle = [connection for connection in self._open if not connection.reader.busy]
            for connection in idle:
                _shut_down(connection.sock)
        return len(idle)

    # -- requests ----------------------------------------------------------------------------------

    @property
    def accepted(self) -> list[ReceivedRequest]:
        """The requests answered with a 2xx, in order of arrival."""
        with self._cond:
            return [request for request in self.requests if request.accepted]

    def event_ids(self) -> list[str]:
        """Return the event ids of the accepted requests in order of arrival, duplicates included."""
        ids = (request.event_id for request in self.accepted)
        return [event_id for event_id in ids if event_id is not None]

    def wait_for(self, n: int, timeout: float = 5.0) -> bool:
        """Wait up to `timeout` seconds for `n` accepted requests; return True if they came."""
        with self._cond:
            return self._cond.wait_for(lambda: self._accepted_count >= n, timeout)

    def wait_for_requests(self, n: int, timeout: float = 5.0) -> bool:
        """Wait up to `timeout` seconds for `n` requests, answered or not; return True if they came."""
        with self._cond:
            return self._cond.wait_for(lambda: len(self.requests) >= n, timeout)

    # -- internals---------------------------------------------------------------------------------

    @property
    def _scheme(self) -> str:
        return "http" if self._ssl_context is None else "https"

    @property
    def _netloc(self) -> str:
        return f"[{self._host}]:{self.port}" if ":" in self._host else f"{self._host}:{self.port}"

    def _bind(self, port: int) -> socket.socket:
        sock = socket.socket(self._family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((self._host, port))
        except BaseException:
            sock.close()
            raise
        return sock

    def _join(self, thread: threading.Thread) -> None:
        thread.join(_STOP_TIMEOUT)
        if thread.is_alive():
            raise RuntimeError(f"{thread.name} did not end within {_STOP_TIMEOUT:g} s")

    def _schedule(self, reply: Reply, times: int | None) -> None:
        if times is not None and times < 1:
            raise ValueError(f"times must be at least 1, not {times}")
        with self._cond:
            if times is None:
                self._scheduled.clear()
                self._default = reply
            else:
                self._scheduled.extend([reply] * times)
            if reply.kind == "reset_on_accept":
                self._settle_locked()
                for connection in self._open:
                    with contextlib.suppress(OSError):
                        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    if not connection.reader.busy:
                        _shut_down(connection.sock)

    def _settle_locked(self) -> None:
        """Wait until no answer is half written: a client with its answer may expect an idle connection."""
        self._cond.wait_for(lambda: not any(c.answering for c in self._open), _STOP_TIMEOUT)

    def _take(self, *only: str, unless: str | None = None) -> Reply | None:
        """Return and use up the next reply; None if its kind is not one of `only`, or is `unless`."""
        with self._cond:
            reply = self._scheduled[0] if self._scheduled else self._default
            if (only and reply.kind not in only) or reply.kind == unless:
                return None
            if self._scheduled:
                self._scheduled.popleft()
            return reply

    def _accept(self, listener: _Listener) -> None:
        with selectors.DefaultSelector() as selector, listener.sock, listener.stop_receiver:
            selector.register(listener.sock, selectors.EVENT_READ)
            selector.register(listener.stop_receiver, selectors.EVENT_READ)
            while all(key.fileobj is listener.sock for key, _ in selector.select()):
                try:
                    sock, _ = listener.sock.accept()
                except OSError:  # the client closed before the accept
                    continue
                sock.setblocking(True)
                self._begin_connection(sock)

    def _begin_connection(self, sock: socket.socket) -> None:
        with self._cond:
            self.connections += 1
            number = self.connections
        if self._take("reset_on_accept") is not None:
            _reset(sock)
            return
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _Connection(sock, RequestReader(sock, number, self._cond))
        thread = threading.Thread(
            target=self._serve, args=(connection, number), name=f"fault-server-{number}", daemon=True
        )
        with self._cond:
            self._open.add(connection)
            if len(self._threads) >= 64:
                self._threads = [old for old in self._threads if old.is_alive()]
            self._threads.append(thread)
        thread.start()  # before `down` can join it: that joins this thread first

    def _serve(self, connection: _Connection, number: int) -> None:
        try:
            if self._ssl_context is not None:
                with self._cond:  # `down` must find the socket that is in use
                    sock = self._ssl_context.wrap_socket(
                        connection.sock, server_side=True, do_handshake_on_connect=False
                    )
                    connection.sock = sock
                    connection.reader = RequestReader(sock, number, self._cond)
                sock.do_handshake()
            while self._serve_one(connection):
                pass
        except (BadRequest, OSError) as error:
            with self._cond:
                self.errors.append(f"{type(error).__name__}: {error}")
        finally:
            with self._cond:
                self._open.discard(connection)
            connection.sock.close()

    def _serve_one(self, connection: _Connection) -> bool:
        """Serve one request; False when the connection is at its end."""
        request = connection.reader.head()
        if request is None:
            return False
        reply = self._take("early")
        if reply is None:
            connection.reader.body(request)
        with self._cond:
            releases = self._releases  # read first, so that a release after the notification counts
            self.requests.append(request)
            self._cond.notify_all()
            if self._held:
                self._cond.wait_for(lambda: self._stopping or not self._held)
                releases = self._releases
            if self.delay > 0:
                self._cond.wait_for(lambda: self._stopping, self.delay)
            if self._stopping:
                return False
        if reply is None:
            reply = self._take(unless="reset_on_accept")
        stays_open = self._perform(reply, connection, request, releases)
        with self._cond:
            connection.answering = False
            connection.reader.answered()
            self._cond.notify_all()
        return stays_open

    def _perform(
        self, reply: Reply | None, connection: _Connection, request: ReceivedRequest, releases: int
    ) -> bool:
        """Send the reply; return True if the connection stays open.

        Args:
            reply: The reply; None for a reset.
            connection: The connection of the request.
            request: The request.
            releases: The number of releases when the request arrived.
        """
        sock = connection.sock
        kind = "reset" if reply is None else reply.kind  # None: an open connection during reset_on_accept
        if reply is None or kind == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            return False
        if kind == "close":
            return False
        if kind == "half":
            rendered = OK.render()
            sock.sendall(rendered[: len(rendered) // 2])
            return False
        if kind == "garbage":
            sock.sendall(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
            return False
        if kind == "hang" and not self._wait_for_release(releases, None):
            return False
        answer = reply if kind in ("answer", "html", "early") else OK
        close = kind == "early" or request.headers.get("connection", "").lower() == "close"
        rendered = answer.render(close=close)
        if kind == "drip":
            while len(rendered) > 1 and not self._wait_for_release(releases, self.drip_interval):
                sock.sendall(rendered[:1])
                rendered = rendered[1:]
        # Recorded before the bytes are sent: a client that has its answer finds the request in `accepted`.
        with self._cond:
            request.status = answer.status
            self._accepted_count += request.accepted
            connection.answering = True
            self._cond.notify_all()
        sock.sendall(rendered)
        if kind == "early":
            # As real servers do: closing with unread bytes sends a RST, which may arrive before the answer.
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
        return not close

    def _wait_for_release(self, releases: int, timeout: float | None) -> bool:
        """Wait up to `timeout` seconds for a `release` after the first `releases`; return True if it came.

        A stop ends the wait too, and shuts the connection down.
        """
        with self._cond:
            self._cond.wait_for(lambda: self._stopping or self._releases != releases, timeout)
            return self._releases != releases


def _shut_down(sock: socket.socket) -> None:
    """Shut down both directions; the connection's own thread notices it and closes."""
    with contextlib.suppress(OSError):
        # Not SSLSocket.shutdown, which would discard the TLS session that the reading thread uses.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _reset(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()
