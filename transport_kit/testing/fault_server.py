"""FaultServer: an HTTP/1.1 server on loopback that keeps what it received and fails on request.

Owns its sockets and threads: one thread accepts, one serves each connection, all end in `stop`. Speaks
to real sockets only, so that a test sees what the kernel does. Not a Sentry-compatible server: it
answers every path alike (`receiver/` is the one that understands projects and keys).

Threads: every public method may be called from any thread. Needs no dependency; parsing envelopes is
`transport_kit.envelope`'s.
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

from transport_kit.testing.answers import OK, Step, step_for
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
    # From the moment a request counts as answered until its last byte is written.
    answering: bool = False


@dataclass(slots=True, eq=False)
class _Listener:
    """An open port: closing `waker` ends its thread."""

    sock: socket.socket
    waker: socket.socket
    woken: socket.socket
    thread: threading.Thread = field(init=False)


class FaultServer:
    """Answers every request with 200 until told otherwise; a context manager.

    `answer` and `fault` with `times=N` apply to the next N requests, in the order given; with
    `times=None` they apply to every request from now on, and forget what was planned before.

    Attributes:
        key: The public key in `dsn`.
        delay: Seconds before each answer; 0 at first. May be set at any time.
        drip_interval: Seconds between the bytes of the fault `drip`.
        requests: Every complete request, in order of arrival. Read it, don't change it.
        connections: How many connections were accepted.
        errors: What was wrong with connections that broke off or didn't speak HTTP.

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
        # Everything below is read and written only while holding `_cond`. No I/O under it, except
        # a shutdown, which doesn't block.
        self._cond = threading.Condition()
        self._plan: deque[Step] = deque()
        self._standing = OK
        self._held = False
        self._releases = 0
        self._accepted_count = 0
        self._stopping = False
        self._open: set[_Connection] = set()
        self._threads: list[threading.Thread] = []  # of connections, the ended ones pruned now and then
        self._listener: _Listener | None = None
        # Bound and never listening: keeps the port ours while the server is down.
        self._reserve: socket.socket | None = None

    # -- life ------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        """Take a free port and listen. Once only."""
        if self._reserve is not None or self._stopping:
            raise RuntimeError("a FaultServer starts once")
        self._reserve = self._bind(0)
        self._port = self._reserve.getsockname()[1]
        self.up()

    def up(self) -> None:
        """Listen again on the same port; nothing happens when it listens already."""
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
            listener.waker.close()
            self._join(listener.thread)
        with self._cond:
            for connection in self._open:
                _end(connection.sock)
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

    # -- what it does ------------------------------------------------------------------------------

    def answer(
        self,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        body: bytes = b'{"id":""}',
        times: int | None = None,
    ) -> None:
        """Answer with this, for the next `times` requests, or from now on."""
        if not 200 <= status <= 599:
            raise ValueError(f"status must be from 200 to 599, not {status}")
        self._schedule(Step("answer", status, tuple((headers or {}).items()), body), times)

    def fault(self, kind: str, times: int | None = None) -> None:
        """Fail in the way `FAULTS` describes, for the next `times` requests, or from now on.

        A `reset_on_accept` is used up by connections, not by requests.
        """
        self._schedule(step_for(kind), times)

    def hold(self) -> None:
        """Let requests arrive and wait for their answer until `release`."""
        with self._cond:
            self._held = True

    def release(self) -> None:
        """Answer what waits: held, hanging and dripping requests."""
        with self._cond:
            self._held = False
            self._releases += 1
            self._cond.notify_all()

    def drop_idle(self) -> int:
        """Close connections that are between requests; returns how many."""
        with self._cond:
            self._settle_locked()
            idle = [connection for connection in self._open if not connection.reader.busy]
            for connection in idle:
                _end(connection.sock)
        return len(idle)

    # -- what came ---------------------------------------------------------------------------------

    @property
    def accepted(self) -> list[ReceivedRequest]:
        """The requests answered with a 2xx, in order of arrival."""
        with self._cond:
            return [request for request in self.requests if request.accepted]

    def event_ids(self) -> list[str]:
        """The event ids of the accepted requests, in order of arrival; repeats show duplicates."""
        ids = (request.event_id for request in self.accepted)
        return [event_id for event_id in ids if event_id is not None]

    def wait_for(self, n: int, timeout: float = 5.0) -> bool:
        """Whether `n` requests were accepted within `timeout` seconds."""
        with self._cond:
            return self._cond.wait_for(lambda: self._accepted_count >= n, timeout)

    def wait_for_requests(self, n: int, timeout: float = 5.0) -> bool:
        """Whether `n` requests arrived, answered or not, within `timeout` seconds."""
        with self._cond:
            return self._cond.wait_for(lambda: len(self.requests) >= n, timeout)

    # -- inside ------------------------------------------------------------------------------------

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

    def _schedule(self, step: Step, times: int | None) -> None:
        if times is not None and times < 1:
            raise ValueError(f"times must be at least 1, not {times}")
        with self._cond:
            if times is None:
                self._plan.clear()
                self._standing = step
            else:
                self._plan.extend([step] * times)
            if step.kind == "reset_on_accept":
                self._settle_locked()
                for connection in self._open:
                    with contextlib.suppress(OSError):
                        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    if not connection.reader.busy:
                        _end(connection.sock)

    def _settle_locked(self) -> None:
        """Wait until no answer is half written: who just got one must find the connection idle."""
        self._cond.wait_for(lambda: not any(c.answering for c in self._open), _STOP_TIMEOUT)

    def _take(self, *only: str, unless: str | None = None) -> Step | None:
        """The step that is due, used up; None when it is not of the kinds `only`, or is `unless`."""
        with self._cond:
            step = self._plan[0] if self._plan else self._standing
            if (only and step.kind not in only) or step.kind == unless:
                return None
            if self._plan:
                self._plan.popleft()
            return step

    def _accept(self, listener: _Listener) -> None:
        with selectors.DefaultSelector() as selector, listener.sock, listener.woken:
            selector.register(listener.sock, selectors.EVENT_READ)
            selector.register(listener.woken, selectors.EVENT_READ)
            while all(key.fileobj is listener.sock for key, _ in selector.select()):
                try:
                    sock, _ = listener.sock.accept()
                except OSError:  # the client was gone before we came
                    continue
                sock.setblocking(True)
                self._accepted(sock)

    def _accepted(self, sock: socket.socket) -> None:
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
                with self._cond:  # a stop must find the socket that is in use
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
        step = self._take("early")
        if step is None:
            connection.reader.body(request)
        with self._cond:
            seen = self._releases  # a release right after the arrival is seen must not be missed
            self.requests.append(request)
            self._cond.notify_all()
            if self._held:
                self._cond.wait_for(lambda: self._stopping or not self._held)
                seen = self._releases
            if self.delay > 0:
                self._cond.wait_for(lambda: self._stopping, self.delay)
            if self._stopping:
                return False
        if step is None:
            step = self._take(unless="reset_on_accept")
        more = self._perform(step, connection, request, seen)
        with self._cond:
            connection.answering = False
            connection.reader.answered()
            self._cond.notify_all()
        return more

    def _perform(
        self, step: Step | None, connection: _Connection, request: ReceivedRequest, seen: int
    ) -> bool:
        sock = connection.sock
        kind = "reset" if step is None else step.kind  # an open connection during reset_on_accept
        if step is None or kind == "reset":
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
        if kind == "hang" and not self._released(seen, None):
            return False
        answer = step if kind in ("answer", "html", "early") else OK
        close = kind == "early" or request.headers.get("connection", "").lower() == "close"
        rendered = answer.render(close=close)
        if kind == "drip":
            while len(rendered) > 1 and not self._released(seen, self.drip_interval):
                sock.sendall(rendered[:1])
                rendered = rendered[1:]
        # First the fact, then the bytes: a client that has its answer finds it in `accepted`.
        with self._cond:
            request.status = answer.status
            self._accepted_count += request.accepted
            connection.answering = True
            self._cond.notify_all()
        sock.sendall(rendered)
        if kind == "early":
            # As real servers do: closing with unread bytes sends a RST, which may overtake the answer.
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
        return not close

    def _released(self, seen: int, timeout: float | None) -> bool:
        """Whether `release` was called since the count was `seen`, or is within `timeout` seconds.

        A stop ends the wait too, and the connection is over then: what is written to it fails.
        """
        with self._cond:
            self._cond.wait_for(lambda: self._stopping or self._releases != seen, timeout)
            return self._releases != seen


def _end(sock: socket.socket) -> None:
    """End both directions; the connection's own thread sees it and closes."""
    with contextlib.suppress(OSError):
        # Not TLS's own, which would take the session from under the thread that reads.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _reset(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()
