"""A pool of connections to one server: opened with urllib3, kept between POSTs, used through `exchange`.

This module owns when a connection is opened, reused and closed. It is the only module that imports urllib3,
and only at the first POST: the import takes 120 ms, and gevent may patch sockets between construction and
that POST. urllib3 does TLS and the proxy protocols on a socket from `addresses.py`. It handles no request.

Threads: `post` and `close` may be called from any thread. There is no lock that a fork could leave locked:
idle connections are in a deque, whose `append` and `pop` are atomic, and only the thread that popped a
connection uses it. A forked child starts without connections.
"""

from __future__ import annotations

import importlib.util
import io
import math
import os
import re
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from transport_kit.config.options import TransportOptions
from transport_kit.runtime.errors import MissingExtra
from transport_kit.runtime.forks import fork_guard
from transport_kit.transport.wire.addresses import Resolver, connect
from transport_kit.transport.wire.certificates import Certificates
from transport_kit.transport.wire.exchange import (
    ExchangeError,
    ExchangeErrorKind,
    Response,
    Stream,
    describe,
    exchange,
    would_block,
)
from transport_kit.transport.wire.proxies import Proxy, choose_proxy

if TYPE_CHECKING:
    import http.client
    import ssl

    from urllib3.connection import HTTPConnection

__all__ = ["ConnectionPool"]

_IDLE_SECONDS = 60.0
# Seconds after which a connection is not kept, so that a change of the server's addresses is followed.
_LONGEST_LIFE = 300.0
# A connection that was idle for longer may have been dropped by a NAT or with a suspended host, without a
# word to either end. Then the peer's TCP acknowledges nothing, which the system reports after this many
# seconds; where it can't, such a connection is not used again.
_TRUSTED_IDLE = 1.0
_UNACKNOWLEDGED_SECONDS = 3.0
_USER_TIMEOUT: int | None = getattr(socket, "TCP_USER_TIMEOUT", None)
# Maximum bytes of a proxy's answer to CONNECT: http.client bounds each head, but not the number of heads.
_MAX_PROXY_ANSWER = 128 * 1024
_PORTS = {"http": 80, "https": 443}
_is_name = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_is_value = re.compile(r"[\t -~\x80-\xff]*").fullmatch
_is_host = re.compile(r"[0-9A-Za-z._:~%-]+").fullmatch
_is_path = re.compile(r"/[!-~]*").fullmatch
# The pool writes these: with a duplicate from the caller, two servers could read the request differently.
_RESERVED = frozenset({"connection", "content-length", "host", "transfer-encoding"})


class _Socket(Stream, Protocol):
    def close(self) -> None: ...


class _Connection(NamedTuple):
    """An open connection; times are monotonic seconds.

    Attributes:
        sock: The socket.
        opened: Time at which it was opened.
        since: Time from which on it is idle.
    """

    sock: _Socket
    opened: float
    since: float


class _DialError(Exception):
    """The TCP connection to the first hop, the server or a proxy, failed with `error`."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error)
        self.error = error


class ConnectionPool:
    """POSTs to one origin, over as few connections as callers need at once.

    Args:
        url: The origin, such as `https://sentry.example:8443`; a path is ignored.
        options: Timeouts, certificates and proxies.
        environ: Environment variables for proxies and certificates, read at construction; None is
            `os.environ`.
        clock: Returns monotonic seconds.

    Raises:
        ValueError: `url` is not an http or https URL with a host.
        OptionsError: The URL of the proxy is invalid, or a certificate file can't be read.
        MissingExtra: The proxy is a SOCKS proxy, and PySocks is not installed.
    """

    def __init__(
        self,
        url: str,
        options: TransportOptions,
        *,
        environ: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in _PORTS or not parts.hostname:
            raise ValueError("the URL must be http or https and have a host")
        self._scheme = parts.scheme
        self._host = _to_ascii(parts.hostname)
        self._port = parts.port or _PORTS[parts.scheme]
        self._options = options
        self._clock = clock
        environ = os.environ if environ is None else environ
        self._proxy = choose_proxy(
            self._scheme,
            self._host,
            self._port,
            proxy=options.proxy,
            no_proxy=options.no_proxy,
            trust_env=options.trust_env,
            environ=environ,
        )
        if self._proxy is not None and self._proxy.socks and importlib.util.find_spec("socks") is None:
            source = "environment" if options.proxy is None else "arguments"
            raise MissingExtra("proxy", "PySocks", "socks", source)
        # Without TLS the variables for certificates are not read, so that they cause no warning.
        uses_tls = self._scheme == "https" or (self._proxy is not None and self._proxy.scheme == "https")
        self._certificates = Certificates(options, environ if uses_tls else {}, _new_context)
        first_hop = (self._host, self._port) if self._proxy is None else (self._proxy.host, self._proxy.port)
        self._resolver = Resolver(*first_hop)
        self._fixed = self._fixed_lines()
        # The last request head without its Content-Length, and its key: most POSTs have the same headers.
        # Any thread replaces it in one step, without a lock.
        self._last_head: tuple[tuple[str, tuple[tuple[str, str], ...]], bytes] | None = None
        self._loaded = False
        self._idle: deque[_Connection] = deque()
        self._closed = False
        self._pid = os.getpid()

    def post(
        self, path: str, headers: Mapping[str, str], body: bytes, *, timeout: float | None = None
    ) -> Response:
        """POST and return the complete answer, whatever its status.

        A reused connection that is reset before the first byte of an answer was most likely closed by the
        server while idle. The POST is then repeated once, immediately, on a new connection.

        Args:
            path: Path and query; begins with a slash, ASCII.
            headers: Without Host, Content-Length, Connection and Transfer-Encoding.
            body: The body as sent, encoded already.
            timeout: Maximum seconds of the whole call; `connect_timeout` and `request_timeout` apply as well.

        Raises:
            ExchangeError: There is no usable answer.
            ValueError: The path or a header is invalid or reserved; nothing was sent.
        """
        head = self._head(path, headers, len(body))
        latest = math.inf if timeout is None else self._clock() + timeout
        if self._closed:
            raise ExchangeError("connect", "the pool is closed")
        if self._pid != os.getpid():
            self._forget()
        try:
            return self._post(head, body, latest)
        except OSError as error:
            # Not caused by the peer: the system refused a file descriptor for an import, a resolver or a
            # selector, and may grant one later.
            raise ExchangeError("connect", describe(error)) from None

    def _post(self, head: bytes, body: bytes, latest: float) -> Response:
        began = self._clock()
        connection = self._take_idle()
        if connection is not None:
            try:
                return self._exchange(connection, head, body, latest)
            except ExchangeError as error:
                # What broke this connection has most likely broken those that were idle beside it.
                self._close_idle(before=began)
                if error.kind != "reset" or error.answered:
                    raise
        connecting = max(0.001, min(self._options.connect_timeout, latest - self._clock()))
        sock = self._open(connecting)
        now = self._clock()
        return self._exchange(_Connection(sock, now, now), head, body, latest)

    def close(self) -> None:
        """Close idle connections now, and those in use at the end of their exchange. Idempotent."""
        self._closed = True
        self._close_idle()

    # -- idle connections --------------------------------------------------------------------------

    def _exchange(self, connection: _Connection, head: bytes, body: bytes, latest: float) -> Response:
        sock, opened, _ = connection
        keep = False
        try:
            deadline = min(self._clock() + self._options.request_timeout, latest)
            response = exchange(sock, head, body, deadline=deadline, clock=self._clock)
            keep = response.reusable and self._options.keep_alive and not self._ends(response.status)
        finally:
            if keep:
                self._idle.append(_Connection(sock, opened, self._clock()))
            else:
                sock.close()
            if self._closed:  # `close` may have emptied the deque just before the append
                self._close_idle()
        return response

    def _ends(self, status: int) -> bool:
        """Return True for an answer after which the next request must use a new connection.

        A failing server may be replaced, and the name or the load balancer then leads to another one.
        """
        return status >= 500 or status in self._options.retry_statuses

    def _take_idle(self) -> _Connection | None:
        """Return the most recently used connection that can be reused; close the others found unusable."""
        now = self._clock()
        try:
            while now - self._idle[0].since > _IDLE_SECONDS:
                self._idle.popleft().sock.close()  # perhaps a newer one, if another thread popped first
            while True:
                connection = self._idle.pop()
                if (
                    now - connection.opened < _LONGEST_LIFE
                    and _is_quiet(connection.sock)
                    and (now - connection.since <= _TRUSTED_IDLE or _bound_acknowledgement(connection.sock))
                ):
                    return connection
                connection.sock.close()
        except IndexError:
            return None

    def _close_idle(self, before: float = math.inf) -> None:
        """Close the connections that have been idle since before that time."""
        later: list[_Connection] = []
        try:
            while True:
                connection = self._idle.pop()
                if connection.since <= before:
                    connection.sock.close()
                else:
                    later.append(connection)
        except IndexError:
            self._idle.extend(reversed(later))

    def _forget(self) -> None:
        # In a forked child. The parent uses the same connections: closing the child's descriptors does not
        # end them, using them would mix the requests of two processes.
        self._close_idle()
        self._pid = os.getpid()

    # -- the request's head ------------------------------------------------------------------------

    def _head(self, path: str, headers: Mapping[str, str], length: int) -> bytes:
        key = (path, tuple(headers.items()))
        cached = self._last_head
        if cached is None or cached[0] != key:
            cached = self._last_head = (key, self._build_head(path, key[1]))
        return cached[1] + b"Content-Length: %d\r\n\r\n" % length

    def _build_head(self, path: str, headers: tuple[tuple[str, str], ...]) -> bytes:
        if not _is_path(path):
            raise ValueError("the path must begin with a slash and be printable ASCII without blanks")
        origin = f"{self._scheme}://{self._authority}" if self.forwards else ""
        lines = [f"POST {origin}{path} HTTP/1.1", *self._fixed]
        for name, value in headers:
            if name.lower() in _RESERVED:
                raise ValueError(f"the header {name} is written by the connection")
            lines.append(_header_line(name, value))
        return "\r\n".join([*lines, ""]).encode("latin-1")

    def _fixed_lines(self) -> list[str]:
        """Return the header lines that are the same in every request."""
        lines = [f"Host: {self._authority}"]
        if not self._options.keep_alive:
            lines.append("Connection: close")
        if self.forwards:
            lines += [_header_line(name, value) for name, value in self._proxy_headers().items()]
        return lines

    @property
    def _authority(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return host if self._port == _PORTS[self._scheme] else f"{host}:{self._port}"

    @property
    def proxy_url(self) -> str | None:
        """The URL of the proxy in use, without its login; None without a proxy."""
        if self._proxy is None:
            return None
        host = f"[{self._proxy.host}]" if ":" in self._proxy.host else self._proxy.host
        return f"{self._proxy.scheme}://{host}:{self._proxy.port}"

    @property
    def forwards(self) -> bool:
        """True if a proxy forwards the requests, rather than tunnelling the bytes of a connection."""
        return self._proxy is not None and not self._proxy.socks and self._scheme == "http"

    def _proxy_headers(self) -> dict[str, str]:
        headers = dict(self._options.proxy_headers)
        authorization = None if self._proxy is None else self._proxy.authorization
        if authorization and "proxy-authorization" not in {name.lower() for name in headers}:
            headers["Proxy-Authorization"] = authorization
        return headers

    # -- opening -----------------------------------------------------------------------------------

    def _open(self, timeout: float) -> _Socket:
        """Return a new connection within `timeout` seconds.

        With a SOCKS proxy, PySocks opens it, and the timeout applies to each step.
        """
        self._load()
        import http.client
        import ssl

        import urllib3.exceptions

        connection: HTTPConnection | None = None
        try:
            connection = self._connection(timeout)
            connection.connect()
        except _DialError as failure:
            kind: ExchangeErrorKind = "connect" if self._proxy is None else "proxy"
            if isinstance(failure.error, TimeoutError):
                kind = "timeout"
            raise ExchangeError(kind, describe(failure.error)) from None
        except (OSError, ValueError, http.client.HTTPException, urllib3.exceptions.HTTPError) as error:
            if connection is not None:
                connection.close()
            # urllib3's own exceptions concern the first hop; exceptions of TLS arrive unwrapped.
            first_hop = isinstance(error, urllib3.exceptions.HTTPError)
            if isinstance(error, TimeoutError | urllib3.exceptions.ConnectTimeoutError) and not isinstance(
                error,
                urllib3.exceptions.NewConnectionError,  # a subclass for historical reasons
            ):
                kind = "timeout"
            elif connection is None or (isinstance(error, ssl.SSLError) and self._is_past_proxy(connection)):
                kind = "tls"
            elif self._proxy is not None:
                kind = "proxy"
            else:
                kind = "connect" if first_hop or self._scheme == "http" else "tls"
            # Not chained: urllib3's errors refer to the connection, which contains the proxy's password.
            raise ExchangeError(kind, describe(error.__cause__ or error)) from None
        sock = connection.sock
        connection.sock = None
        return sock

    def _load(self) -> None:
        """Import everything a connection needs, before its first use; no fork can happen meanwhile."""
        if self._loaded:
            return
        with fork_guard:
            import urllib3.connection
            import urllib3.exceptions
            import urllib3.util.ssl_
            import urllib3.util.url

            if self._proxy is not None and self._proxy.socks:
                import urllib3.contrib.socks  # noqa: F401
            if self._certificates.bundled and (self._scheme == "https" or self._proxy is not None):
                import certifi

                certifi.where()  # imports more modules
            "name".encode("idna")  # imports the codec that the resolver uses
        self._loaded = True

    def _is_past_proxy(self, connection: HTTPConnection) -> bool:
        if self._proxy is None or self._proxy.socks:
            return True  # there is no proxy with TLS of its own
        answer: Any = connection.response_class
        return isinstance(answer, _ProxyAnswer) and answer.begun

    def _connection(self, timeout: float) -> HTTPConnection:
        """Return urllib3's connection to the server, through the proxy if there is one, not connected yet."""
        proxy = self._proxy
        if proxy is not None and proxy.socks:
            return self._socks_connection(proxy, timeout)
        deadline = self._clock() + timeout
        connection = self._http_connection(proxy, timeout)
        # urllib3 calls this to open the socket; its own method tries the addresses one after another.
        connection._new_conn = lambda: self._dial(deadline)  # type: ignore[method-assign]
        return connection

    def _dial(self, deadline: float) -> socket.socket:
        """Return a socket connected to the first hop; its timeout is the time left until the deadline."""
        try:
            addresses = self._resolver.addresses(deadline - self._clock())
            options = _socket_options(self._options.keep_alive)
            sock, address = connect(addresses, deadline, options, clock=self._clock)
        except OSError as error:
            raise _DialError(error) from None
        self._resolver.prefer(address)
        sock.settimeout(max(0.001, deadline - self._clock()))
        return sock

    def _http_connection(self, proxy: Proxy | None, timeout: float) -> HTTPConnection:
        from urllib3.connection import HTTPConnection, HTTPSConnection

        common: dict[str, Any] = {"timeout": timeout}
        secure: dict[str, Any] = (
            {"ssl_context": self._certificates.context(server=True)} if self._scheme == "https" else {}
        )
        if proxy is None:
            cls = HTTPSConnection if secure else HTTPConnection
            return cls(self._host, self._port, **common, **secure)
        secure_proxy: dict[str, Any] = {}
        if proxy.scheme == "https":
            secure_proxy["ssl_context"] = self._certificates.context(server=False)
        if not secure:
            cls = HTTPSConnection if secure_proxy else HTTPConnection
            return cls(proxy.host, proxy.port, **common, **secure_proxy)
        return self._tunnel(proxy, {**common, **secure}, secure_proxy.get("ssl_context"))

    def _tunnel(
        self, proxy: Proxy, arguments: dict[str, Any], proxy_context: ssl.SSLContext | None
    ) -> HTTPConnection:
        from urllib3.connection import HTTPSConnection, ProxyConfig
        from urllib3.util.url import Url

        connection = HTTPSConnection(
            proxy.host,
            proxy.port,
            proxy=Url(scheme=proxy.scheme, host=proxy.host, port=proxy.port),
            proxy_config=ProxyConfig(proxy_context, False, None, None),
            **arguments,
        )
        answer = _ProxyAnswer(self._clock() + arguments["timeout"], self._clock)
        connection.response_class = answer  # type: ignore[assignment]
        connection.set_tunnel(self._host, self._port, self._proxy_headers(), scheme=proxy.scheme)
        return connection

    def _socks_connection(self, proxy: Proxy, timeout: float) -> HTTPConnection:
        import socks
        from urllib3.contrib.socks import SOCKSConnection, SOCKSHTTPSConnection

        cls = SOCKSHTTPSConnection if self._scheme == "https" else SOCKSConnection
        options: Any = {
            "socks_version": socks.PROXY_TYPE_SOCKS5,
            "proxy_host": proxy.host,
            "proxy_port": proxy.port,
            "username": proxy.username,
            "password": proxy.password,
            "rdns": proxy.scheme == "socks5h",
        }
        secure = {"ssl_context": self._certificates.context(server=True)} if self._scheme == "https" else {}
        return cls(
            options,
            self._host,
            self._port,
            timeout=timeout,
            socket_options=_socket_options(self._options.keep_alive),
            **secure,
        )


def _new_context() -> ssl.SSLContext:
    from urllib3.util.ssl_ import create_urllib3_context

    return create_urllib3_context()


class _ProxyAnswer(io.RawIOBase):
    """Reads a proxy's answer to CONNECT for http.client, within one deadline for all of its bytes.

    It replaces both the connection's response class and the socket that the class reads from.

    Attributes:
        begun: True once a byte of the answer was read. A TLS error after that comes from the server.
    """

    def __init__(self, deadline: float, clock: Callable[[], float]) -> None:
        self._deadline = deadline
        self._clock = clock
        self._room = _MAX_PROXY_ANSWER
        self.begun = False

    def __call__(self, sock: socket.socket, method: str | None = None) -> http.client.HTTPResponse:
        import http.client

        self._sock = sock
        source: Any = self
        return http.client.HTTPResponse(source, method=method)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        remaining = self._deadline - self._clock()
        if remaining <= 0:
            raise TimeoutError("the proxy's answer took too long")
        self._sock.settimeout(remaining)
        count = self._sock.recv_into(buffer)
        self._room -= count
        if self._room < 0:
            raise ValueError("the proxy's answer is too long")
        self.begun = self.begun or count > 0
        return count


def _is_quiet(sock: _Socket) -> bool:
    """Return True if an idle connection has nothing to read: neither its end nor unexpected bytes."""
    try:
        sock.settimeout(0)
        sock.recv(1)
    except OSError as error:
        return would_block(error)
    return False


def _header_line(name: str, value: str) -> str:
    if not _is_name(name):
        raise ValueError("a header's name is not a token")
    if not _is_value(value):
        raise ValueError(f"the header {name} holds control characters or text outside Latin-1")
    return f"{name}: {value}"


def _socket_options(keep_alive: bool) -> list[tuple[int, int, int]]:
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    if keep_alive:
        options.append((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1))
        for name, value in (("TCP_KEEPIDLE", 45), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)):
            if (number := getattr(socket, name, None)) is not None:
                options.append((socket.IPPROTO_TCP, number, value))
    return options


def _bound_acknowledgement(sock: _Socket) -> bool:
    """Have the system end the connection if the peer acknowledges nothing; return False if it can't."""
    inner = getattr(sock, "socket", sock)  # TLS inside TLS is no socket, and has the one to the proxy
    if _USER_TIMEOUT is None or not isinstance(inner, socket.socket):
        return False
    try:
        inner.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, round(_UNACKNOWLEDGED_SECONDS * 1000))
    except OSError:
        return False
    return True


def _to_ascii(host: str) -> str:
    try:
        name = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        name = ""
    if not _is_host(name):
        raise ValueError("the URL's host is neither a domain name nor an address")
    return name
