"""Helpers of the tests of connections: a pool, servers on raw sockets, proxies, a certificate authority."""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest
import trustme

from tests.timing import SOON, scaled
from transport_kit.config.options import TransportOptions
from transport_kit.transport.wire.connections import ConnectionPool
from transport_kit.transport.wire.exchange import ExchangeError, Response

PATH = "/api/1/envelope/"
HEADERS = {"Content-Type": "application/x-sentry-envelope", "X-Sentry-Auth": "Sentry sentry_key=k"}
BODY = b"{}\n"
OK = b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"id":""}'


@contextlib.contextmanager
def make_pool(
    url: str,
    *,
    environ: dict[str, str] | None = None,
    clock: Callable[[], float] = time.monotonic,
    **options: object,
) -> Iterator[ConnectionPool]:
    """Provide a pool that ignores the environment variables of the test run."""
    options = {"connect_timeout": min(SOON, 300.0), "request_timeout": SOON, **options}
    pool = ConnectionPool(
        url,
        TransportOptions.from_mapping(options, source="test"),
        environ=environ or {},
        clock=clock,
    )
    try:
        yield pool
    finally:
        pool.close()


def post(pool: ConnectionPool, body: bytes = BODY) -> Response:
    return pool.post(PATH, HEADERS, body)


def failure(pool: ConnectionPool, body: bytes = BODY) -> ExchangeError:
    with pytest.raises(ExchangeError) as caught:
        post(pool, body)
    return caught.value


@contextlib.contextmanager
def silent_listener(host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """Provide the port of a listener with a full backlog: SYNs are dropped, as by a firewall."""
    with socket.create_server((host, port), backlog=0) as server, contextlib.ExitStack() as fillers:
        for _ in range(4):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(server.getsockname())
        yield server.getsockname()[1]


class Raw:
    """A server that calls `serve` for each connection, on a thread of its own."""

    def __init__(
        self, serve: Callable[[socket.socket, int], None], context: ssl.SSLContext | None = None
    ) -> None:
        self._serve = serve
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`
        self._threads[0].join(30)
        for sock in list(self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()
        for sock in [self._listener, *self._sockets]:
            sock.close()

    def connect(self, host: str, port: int) -> socket.socket:
        sock = socket.create_connection((host, port), timeout=SOON)
        self._sockets.append(sock)
        return sock

    def _accept(self) -> None:
        count = 0
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.settimeout(SOON)
            self._sockets.append(sock)
            thread = threading.Thread(target=self._run, args=(sock, count))
            self._threads.append(thread)
            thread.start()
            count += 1

    def _run(self, sock: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError):
            if self._context is not None:
                sock = self._context.wrap_socket(sock, server_side=True)
                self._sockets.append(sock)
            self._serve(sock, number)
            sock.shutdown(socket.SHUT_RDWR)


def read_head(sock: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data and (part := sock.recv(1)):
        data += part
    return data


def relay(left: socket.socket, right: socket.socket, slow: threading.Event) -> None:
    """Copy bytes in both directions until both have ended, on one thread, as a TLS socket requires.

    While `slow` is set, the bytes from `right` are sent slowly, one by one.
    """
    if isinstance(left, ssl.SSLSocket) and (waiting := left.pending()):
        right.sendall(left.recv(waiting))
    with selectors.DefaultSelector() as selector:
        selector.register(left, selectors.EVENT_READ, right)
        selector.register(right, selectors.EVENT_READ, left)
        while selector.get_map():
            for key, _ in selector.select(SOON):
                source, sink = key.fileobj, key.data
                assert isinstance(source, socket.socket)
                try:
                    data = source.recv(65536)
                    while isinstance(source, ssl.SSLSocket) and (waiting := source.pending()):
                        data += source.recv(waiting)
                except OSError:
                    data = b""
                if not data:
                    selector.unregister(source)
                with contextlib.suppress(OSError):
                    if data:
                        while slow.is_set() and sink is left and data:
                            sink.sendall(data[:1])
                            data = data[1:]
                            threading.Event().wait(scaled(0.01))
                        sink.sendall(data)
                    else:
                        socket.socket.shutdown(sink, socket.SHUT_WR)


class HttpProxy(Raw):
    """An HTTP proxy for CONNECT and the absolute form; `heads` contains all request heads."""

    def __init__(
        self, context: ssl.SSLContext | None = None, *, refuse: bytes = b"", drip: bool = False
    ) -> None:
        super().__init__(self._proxy, context)
        self.heads: list[str] = []
        self.refuse = refuse
        self.slow = threading.Event()
        self.drip = drip

    def _proxy(self, sock: socket.socket, _: int) -> None:
        head = read_head(sock).decode()
        self.heads.append(head)
        if self.refuse:
            sock.sendall(self.refuse)
            return
        if self.drip:
            with contextlib.suppress(OSError):
                sock.sendall(b"HTTP/1.1 200 ")
                while True:
                    sock.sendall(b"x")
                    with contextlib.suppress(TimeoutError):
                        sock.settimeout(0.02)
                        if not sock.recv(1):
                            return
        method, target, _version = head.split("\r\n")[0].split(" ")
        if method == "CONNECT":
            host, port = target.rsplit(":", 1)
            upstream = self.connect(host.strip("[]"), int(port))
            sock.sendall(b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n")
        else:
            host, port = target.split("/")[2].rsplit(":", 1)
            upstream = self.connect(host.strip("[]"), int(port))
            upstream.sendall(head.encode())
        relay(sock, upstream, self.slow)


class SocksProxy(Raw):
    """A SOCKS5 proxy (RFC 1928), optionally with a user and password (RFC 1929)."""

    def __init__(self, user: tuple[bytes, bytes] | None = None) -> None:
        super().__init__(self._proxy)
        self.user = user
        self.targets: list[tuple[int, bytes, int]] = []

    def _proxy(self, sock: socket.socket, _: int) -> None:
        count = sock.recv(2)[1]
        methods = sock.recv(count)
        if self.user is None:
            sock.sendall(b"\x05\x00")
        elif 2 not in methods:
            sock.sendall(b"\x05\xff")
            return
        else:
            sock.sendall(b"\x05\x02")
            name = sock.recv(sock.recv(2)[1])
            password = sock.recv(sock.recv(1)[0])
            good = (name, password) == self.user
            sock.sendall(b"\x01\x00" if good else b"\x01\x01")
            if not good:
                return
        kind = sock.recv(4)[3]
        host = sock.recv(4) if kind == 1 else sock.recv(sock.recv(1)[0])
        (port,) = struct.unpack("!H", sock.recv(2))
        self.targets.append((kind, host, port))
        upstream = self.connect(socket.inet_ntoa(host) if kind == 1 else host.decode(), port)
        sock.sendall(b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x00")
        relay(sock, upstream, threading.Event())


class Tls:
    """A certificate authority with its bundle on disk, and server contexts."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.ca = trustme.CA()
        self.bundle = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(self.bundle)
        self.folder = folder

    def server(self, *names: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*(names or ("127.0.0.1", "localhost", "::1"))).configure_cert(context)
        return context

    def client_files(self) -> tuple[Path, Path]:
        issued = self.ca.issue_cert("client@example.test")
        cert, key = self.folder / "client.pem", self.folder / "client.key"
        cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(key)
        return cert, key
