"""ConnectionPool on real sockets: reuse, renewal, TLS, proxies, and nothing imported too early."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import os
import selectors
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import trustme

import transport_kit
from tests.timing import SOON
from transport_kit.config.options import TransportOptions
from transport_kit.runtime.errors import MissingExtra, OptionsError
from transport_kit.testing import FaultServer
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
    """A pool that reads no variables of the machine that runs the tests."""
    options = {"connect_timeout": 5.0, "request_timeout": 5.0, **options}
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


class Raw:
    """Accepts connections and hands each to `serve` on a thread of its own."""

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
        sock = socket.create_connection((host, port), timeout=5)
        self._sockets.append(sock)
        return sock

    def _accept(self) -> None:
        count = 0
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.settimeout(5)
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
    """Both directions, until both have ended; one thread, because a TLS socket bears no more.

    When `slow` is set, what comes back drips.
    """
    if isinstance(left, ssl.SSLSocket) and (waiting := left.pending()):
        right.sendall(left.recv(waiting))
    with selectors.DefaultSelector() as selector:
        selector.register(left, selectors.EVENT_READ, right)
        selector.register(right, selectors.EVENT_READ, left)
        while selector.get_map():
            for key, _ in selector.select(5):
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
                            threading.Event().wait(0.01)
                        sink.sendall(data)
                    else:
                        socket.socket.shutdown(sink, socket.SHUT_WR)


class HttpProxy(Raw):
    """CONNECT and absolute-form, as one proxy; every head it read is in `heads`."""

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
    """SOCKS5 (RFC 1928), with a user and password (RFC 1929) when given."""

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
    """A CA, its bundle on disk, and server contexts."""

    def __init__(self, folder: Path) -> None:
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


@pytest.fixture(name="tls", scope="module")
def _tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """One certificate authority for all tests here."""
    return Tls(tmp_path_factory.mktemp("tls"))


@pytest.fixture(name="server")
def _server() -> Iterator[FaultServer]:
    """A plain HTTP server."""
    with FaultServer() as server:
        yield server


# -- the request -----------------------------------------------------------------------------------


def test_a_post_arrives_as_it_was_given(server: FaultServer) -> None:
    """Path, headers and body are the caller's; Host and Content-Length are ours."""
    server.answer(200, {"X-Sentry-Rate-Limits": "1:error"}, b'{"id":"a"}')
    with make_pool(server.url) as pool:
        response = post(pool)
    assert (response.status, response.body, response.reusable) == (200, b'{"id":"a"}', True)
    assert response.headers["x-sentry-rate-limits"] == "1:error"
    (received,) = server.requests
    assert (received.method, received.path, received.raw) == ("POST", PATH, BODY)
    assert received.headers == {
        "host": f"127.0.0.1:{server.port}",
        "content-type": HEADERS["Content-Type"],
        "x-sentry-auth": HEADERS["X-Sentry-Auth"],
        "content-length": "3",
    }


def test_changed_headers_are_sent_changed(server: FaultServer) -> None:
    """The head is cached; a change of path or headers must not be lost to that."""
    with make_pool(server.url) as pool:
        pool.post("/a", {"A": "1"}, b"x")
        pool.post("/a", {"A": "2"}, b"xy")
        pool.post("/b", {"A": "2"}, b"")
        pool.post("/b", {"A": "2"}, b"xyz")
    seen = [(r.path, r.headers["a"], r.raw) for r in server.requests]
    assert seen == [("/a", "1", b"x"), ("/a", "2", b"xy"), ("/b", "2", b""), ("/b", "2", b"xyz")]


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("no-slash", {}),
        ("", {}),
        ("/a b", {}),
        ("/a\r\nX: y", {}),
        ("/a\0", {}),
        ("/é", {}),
        (PATH, {"A": "b\r\nX: y"}),
        (PATH, {"A": "b\nX: y"}),
        (PATH, {"A": "b\0"}),
        (PATH, {"A": "b\x7f"}),
        (PATH, {"A": "s3cret \u20ac"}),
        (PATH, {"A\r\nX": "y"}),
        (PATH, {"A:": "y"}),
        (PATH, {"": "y"}),
        (PATH, {"Content-Length": "3"}),
        (PATH, {"transfer-encoding": "chunked"}),
        (PATH, {"Host": "elsewhere"}),
        (PATH, {"Connection": "close"}),
    ],
)
def test_what_would_change_the_framing_is_never_sent(
    server: FaultServer, path: str, headers: dict[str, str]
) -> None:
    """A release name ends up in a header; a line break in it must not begin another."""
    with make_pool(server.url) as pool, pytest.raises(ValueError, match=r"path|header") as caught:
        pool.post(path, headers, BODY)
    assert "s3cret" not in str(caught.value)
    assert server.connections == 0


@pytest.mark.parametrize(
    "url",
    ["ftp://127.0.0.1/", "127.0.0.1:80", "http://", "http:///x", "http://ex\u200eample/", "http://a b/"],
)
def test_only_http_urls_with_a_host_make_a_pool(url: str) -> None:
    """A mistake shows at construction, not at the first event."""
    with pytest.raises(ValueError, match=r"URL|host"):
        ConnectionPool(url, TransportOptions(), environ={})


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://Sentry.Example/x", "sentry.example"),
        ("http://sentry.example:80", "sentry.example"),
        ("http://sentry.example:443", "sentry.example:443"),
        ("https://sentry.example:443", "sentry.example"),
        ("https://sentry.example:8443", "sentry.example:8443"),
        ("http://[::1]", "[::1]"),
        ("http://[::1]:8000", "[::1]:8000"),
        ("http://b\u00fccher.example", "xn--bcher-kva.example"),
    ],
)
def test_the_host_header_is_what_servers_route_by(url: str, host: str) -> None:
    """The port is left out only where it is the scheme's default."""
    proxy_free = ConnectionPool(url, TransportOptions(), environ={})
    assert proxy_free._head(PATH, {}, 0).split(b"\r\n")[1] == f"Host: {host}".encode()


def test_it_reaches_a_server_on_ipv6() -> None:
    """Brackets belong to URLs and Host headers, not to addresses."""
    with FaultServer(host="::1") as server, make_pool(server.url) as pool:
        assert post(pool).status == 200
        assert server.requests[0].headers["host"] == f"[::1]:{server.port}"


# -- keeping connections ---------------------------------------------------------------------------


def test_one_connection_carries_many_posts(server: FaultServer) -> None:
    """A TLS handshake costs more than an event."""
    with make_pool(server.url) as pool:
        for _ in range(5):
            post(pool)
    assert [r.connection for r in server.requests] == [1] * 5


def test_posts_at_the_same_time_have_connections_of_their_own(server: FaultServer) -> None:
    """Senders share a pool and never a socket; idle connections are used again, the latest first."""
    server.hold()
    with make_pool(server.url) as pool:
        threads = [threading.Thread(target=post, args=(pool,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert server.wait_for_requests(4)
        assert server.connections == 4
        server.release()
        for thread in threads:
            thread.join(30)
        for _ in range(8):
            post(pool)
    assert server.connections == 4
    assert len({r.connection for r in server.requests[4:]}) == 1


def test_without_keep_alive_each_post_connects(server: FaultServer) -> None:
    """For servers and middleboxes that can't."""
    with make_pool(server.url, keep_alive=False) as pool:
        post(pool)
        post(pool)
    assert [r.connection for r in server.requests] == [1, 2]
    assert {r.headers["connection"] for r in server.requests} == {"close"}


def test_a_connection_the_server_ends_is_not_kept(server: FaultServer) -> None:
    """`Connection: close` is a promise."""
    server.answer(200, {"Connection": "close"}, times=1)
    with make_pool(server.url) as pool:
        post(pool)
        post(pool)
    assert [r.connection for r in server.requests] == [1, 2]


def test_idle_connections_that_were_dropped_are_not_used(server: FaultServer) -> None:
    """A keep-alive timeout of the server's must not cost an envelope or a retry."""
    with make_pool(server.url) as pool:
        post(pool)
        assert server.drop_idle() == 1
        assert post(pool).status == 200
    assert [r.connection for r in server.requests] == [1, 2]


def test_a_connection_with_unasked_bytes_is_not_used() -> None:
    """The next answer would be read from them: response splitting."""
    more = threading.Event()
    sent = threading.Event()

    def serve(sock: socket.socket, number: int) -> None:
        read_head(sock)
        sock.sendall(OK)
        if number == 0:
            more.wait(30)
            sock.sendall(b"HTTP/1.1 200 Forged\r\nContent-Length: 0\r\n\r\n")
            sent.set()
        sock.recv(65536)
        sock.recv(65536)

    with Raw(serve) as raw, make_pool(f"http://127.0.0.1:{raw.port}") as pool:
        post(pool)
        more.set()
        assert sent.wait(30)
        assert post(pool).body == b'{"id":""}'


def test_old_idle_connections_are_replaced(server: FaultServer) -> None:
    """After a minute a middlebox may have forgotten them, silently."""
    now = 0.0
    with make_pool(server.url, clock=lambda: now) as pool:
        post(pool)
        now = 60.0
        post(pool)
        now = 120.1
        post(pool)
    assert [r.connection for r in server.requests] == [1, 1, 2]


def test_a_reset_on_a_reused_connection_is_retried_at_once() -> None:
    """The server closed just as we wrote: nothing was answered, and it is nobody's fault."""
    served = []

    def serve(sock: socket.socket, number: int) -> None:
        for _ in range(2):
            if not read_head(sock):
                return
            sock.recv(len(BODY))
            served.append(number)
            if served == [0, 0]:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.close()
                return
            sock.sendall(OK)

    with Raw(serve) as raw, make_pool(f"http://127.0.0.1:{raw.port}") as pool:
        post(pool)
        assert post(pool).status == 200
    assert served == [0, 0, 1]


def test_the_retry_happens_once(server: FaultServer) -> None:
    """A server that always resets is the breaker's matter."""
    with make_pool(server.url) as pool:
        post(pool)
        server.fault("close")
        error = failure(pool)
    assert (error.kind, error.body_sent, error.answered) == ("reset", True, False)
    assert [r.connection for r in server.requests] == [1, 1, 2]


@pytest.mark.parametrize("fault", ["half", "garbage", "hang"])
def test_other_failures_on_a_reused_connection_are_not_retried(server: FaultServer, fault: str) -> None:
    """Once a byte came, or time has passed, the server may have acted."""
    with make_pool(server.url, request_timeout=0.2) as pool:
        post(pool)
        server.fault(fault)
        error = failure(pool)
    assert error.kind == {"half": "reset", "garbage": "protocol", "hang": "timeout"}[fault]
    assert error.body_sent
    assert len(server.requests) == 2


def test_a_failure_on_a_fresh_connection_is_not_retried(server: FaultServer) -> None:
    """Only an idle connection has the excuse."""
    server.fault("reset")
    with make_pool(server.url) as pool:
        assert failure(pool).kind == "reset"
    assert len(server.requests) == 1


def test_a_connection_that_failed_is_not_used_again(server: FaultServer) -> None:
    """The rest of a late answer would be taken for the next one."""
    server.fault("hang", times=1)
    with make_pool(server.url, request_timeout=0.1) as pool:
        assert failure(pool).kind == "timeout"
        server.release()
        assert post(pool).status == 200
    assert [r.connection for r in server.requests] == [1, 2]


def test_a_given_timeout_covers_connecting_and_the_exchange(server: FaultServer) -> None:
    """The last POST before an exit has what is left of the time, not thirty seconds."""
    server.fault("hang")
    with make_pool(server.url) as pool:
        began = time.monotonic()
        with pytest.raises(ExchangeError) as caught:
            pool.post(PATH, HEADERS, BODY, timeout=0.1)
        assert caught.value.kind == "timeout"
        with pytest.raises(ExchangeError) as caught:
            pool.post(PATH, HEADERS, BODY, timeout=-1)
        assert (caught.value.kind, caught.value.body_sent) == ("timeout", False)
    assert time.monotonic() - began < SOON / 2


def test_an_early_refusal_of_a_large_body_is_read(server: FaultServer) -> None:
    """Without the 413 the envelope would be retried for an hour."""
    server.fault("early")
    with make_pool(server.url) as pool:
        response = post(pool, b"x" * 20_000_000)
    assert response.status == 413
    assert not response.reusable


def test_a_closed_pool_refuses_and_keeps_nothing(server: FaultServer) -> None:
    """After close no socket is left, not even one that was in use meanwhile."""
    server.hold()
    with make_pool(server.url) as pool:
        thread = threading.Thread(target=post, args=(pool,))
        thread.start()
        assert server.wait_for_requests(1)
        pool.close()
        server.release()
        thread.join(30)
        assert server.wait_for(1)
        error = failure(pool)
        assert not pool._idle
    assert (error.kind, error.body_sent) == ("connect", False)
    assert server.connections == 1


def test_a_forked_child_leaves_its_parents_connections_alone(server: FaultServer) -> None:
    """Two processes on one socket would read each other's answers."""
    with make_pool(server.url) as pool:
        post(pool)
        pid = os.fork()
        if pid == 0:
            code = 1
            with contextlib.suppress(BaseException):
                code = 0 if post(pool).status == 200 else 2
            os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        post(pool)
    assert [r.connection for r in server.requests] == [1, 2, 1]


# -- opening ---------------------------------------------------------------------------------------


def test_a_refused_connection_is_told_at_once(server: FaultServer) -> None:
    """Nothing was sent: everything may be sent again."""
    server.down()
    with make_pool(server.url) as pool:
        error = failure(pool)
    assert (error.kind, error.body_sent) == ("connect", False)
    assert "refused" in error.detail


def test_a_name_that_does_not_exist_is_a_failure_to_connect() -> None:
    """The resolver's errors have a family of their own."""
    with make_pool("http://no-such-host.invalid") as pool:
        assert failure(pool).kind == "connect"
    with make_pool(f"http://{'a' * 70}.invalid") as pool:
        assert failure(pool).kind == "connect"


def test_a_server_that_does_not_accept_costs_the_connect_timeout() -> None:
    """A full backlog looks like a firewall that drops packets."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        with make_pool(f"http://127.0.0.1:{listener.getsockname()[1]}", connect_timeout=0.1) as pool:
            began = time.monotonic()
            error = failure(pool)
    assert (error.kind, error.body_sent) == ("timeout", False)
    assert time.monotonic() - began < SOON / 2


def test_sockets_carry_the_keep_alive_options(server: FaultServer) -> None:
    """A connection cut by a firewall must be noticed while it is idle."""
    with make_pool(server.url) as pool:
        post(pool)
        sock = pool._idle[0].sock
        assert isinstance(sock, socket.socket)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 45
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 10
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 6


# -- TLS -------------------------------------------------------------------------------------------


def test_tls_is_verified_against_the_given_bundle(tls: Tls) -> None:
    """A private CA is common on premises."""
    with FaultServer(ssl_context=tls.server()) as server:
        with make_pool(server.url, ca_certs=tls.bundle) as pool:
            assert post(pool).status == 200
            assert post(pool, b"x" * 1_000_000).status == 200
            server.drop_idle()
            assert post(pool).status == 200
        assert [r.connection for r in server.requests] == [1, 1, 2]


def test_an_unknown_authority_is_refused(tls: Tls) -> None:
    """By default certifi decides, and it doesn't know ours."""
    with FaultServer(ssl_context=tls.server()) as server, make_pool(server.url) as pool:
        error = failure(pool)
    assert (error.kind, error.body_sent) == ("tls", False)
    assert "CERTIFICATE_VERIFY_FAILED" in error.detail
    assert server.requests == []


def test_a_certificate_for_another_name_is_refused(tls: Tls) -> None:
    """A valid certificate of somebody else's is an attack."""
    with (
        FaultServer(ssl_context=tls.server("other.test")) as server,
        make_pool(server.url, ca_certs=tls.bundle) as pool,
    ):
        assert failure(pool).kind == "tls"
    assert server.requests == []


def test_a_server_without_tls_is_a_tls_failure(tls: Tls) -> None:
    """https on the http port is a common slip."""

    def serve(sock: socket.socket, _: int) -> None:
        sock.recv(65536)
        sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with Raw(serve) as raw, make_pool(f"https://127.0.0.1:{raw.port}", ca_certs=tls.bundle) as pool:
        assert failure(pool).kind == "tls"


def test_a_server_silent_in_the_handshake_costs_the_connect_timeout(tls: Tls) -> None:
    """The timeout covers TLS too."""

    def serve(sock: socket.socket, _: int) -> None:
        while sock.recv(65536):
            pass

    with Raw(serve) as raw:
        url = f"https://127.0.0.1:{raw.port}"
        with make_pool(url, ca_certs=tls.bundle, connect_timeout=0.1) as pool:
            began = time.monotonic()
            assert failure(pool).kind == "timeout"
    assert time.monotonic() - began < SOON / 2


@pytest.mark.parametrize("bundle", ["missing.pem", "empty.pem"])
def test_a_bundle_that_can_not_be_read_is_a_tls_failure(tls: Tls, bundle: str) -> None:
    """Rotated away under a running app: an error that names the option, not a crash."""
    (tls.folder / "empty.pem").write_bytes(b"")
    with make_pool("https://127.0.0.1:9", ca_certs=tls.folder / bundle) as pool:
        error = failure(pool)
    assert (error.kind, error.body_sent) == ("tls", False)
    assert error.detail.startswith("ca_certs: ")


def test_a_client_certificate_that_can_not_be_read_is_named(tls: Tls) -> None:
    """A file that is missing, without the name of the setting, sends nobody to the right place."""
    cert, _ = tls.client_files()
    missing = tls.folder / "missing.pem"
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"client_cert": missing}, "client_cert: "),
        ({"client_cert": cert, "client_key": missing}, "client_cert, client_key: "),
    )
    for options, names in cases:
        with make_pool("https://127.0.0.1:9", ca_certs=tls.bundle, **options) as pool:
            error = failure(pool)
        assert error.kind == "tls"
        assert error.detail.startswith(f"{names}FileNotFoundError")


def test_a_client_certificate_is_presented(tls: Tls) -> None:
    """Some proxies in front of a server want one."""
    context = tls.server()
    context.verify_mode = ssl.CERT_REQUIRED
    tls.ca.configure_trust(context)
    cert, key = tls.client_files()
    combined = tls.folder / "combined.pem"
    combined.write_bytes(key.read_bytes() + cert.read_bytes())
    with FaultServer(ssl_context=context) as server:
        with make_pool(server.url, ca_certs=tls.bundle, client_cert=cert, client_key=key) as pool:
            assert post(pool).status == 200
        with make_pool(server.url, ca_certs=tls.bundle, client_cert=combined) as pool:
            assert post(pool).status == 200
        with make_pool(server.url, ca_certs=tls.bundle) as pool:
            error = failure(pool)
    # TLS 1.3 tells only after the handshake; the alert may lose against the reset behind it.
    assert error.kind in ("tls", "reset")
    assert len(server.requests) == 2


def test_an_encrypted_key_asks_nobody_for_a_passphrase(tls: Tls) -> None:
    """OpenSSL would read the terminal, and the sender would hang there."""
    from cryptography.hazmat.primitives import serialization

    cert, key = tls.client_files()
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    locked = tls.folder / "locked.key"
    locked.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with make_pool("https://127.0.0.1:9", ca_certs=tls.bundle, client_cert=cert, client_key=locked) as pool:
        error = failure(pool)
    assert error.kind == "tls"
    assert error.detail.startswith("client_cert, client_key: ")
    assert "passphrase" in error.detail


# -- proxies ---------------------------------------------------------------------------------------


def test_plain_http_goes_through_a_proxy_in_absolute_form(server: FaultServer) -> None:
    """RFC 9112 section 3.2.2; the proxy's headers go with each request."""
    with (
        HttpProxy() as proxy,
        make_pool(
            server.url, proxy=f"http://us%3Aer:p@127.0.0.1:{proxy.port}", proxy_headers={"X-Proxy": "1"}
        ) as pool,
    ):
        post(pool)
        post(pool)
    first, second = server.requests
    assert first.path == second.path == f"{server.url}{PATH}"
    assert first.headers["host"] == f"127.0.0.1:{server.port}"
    expected = "Basic " + base64.b64encode(b"us:er:p").decode()
    assert first.headers["proxy-authorization"] == second.headers["proxy-authorization"] == expected
    assert first.headers["x-proxy"] == "1"
    assert len(proxy.heads) == 1


def test_given_proxy_authorization_wins_over_the_url(server: FaultServer) -> None:
    """A token for a proxy that wants no Basic."""
    with (
        HttpProxy() as proxy,
        make_pool(
            server.url,
            proxy=f"http://user:p@127.0.0.1:{proxy.port}",
            proxy_headers={"proxy-authorization": "Bearer t"},
        ) as pool,
    ):
        post(pool)
    assert server.requests[0].headers["proxy-authorization"] == "Bearer t"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_https_goes_through_a_tunnel(tls: Tls, host: str) -> None:
    """The proxy sees a CONNECT with its headers, and none of ours."""
    with (
        FaultServer(host=host, ssl_context=tls.server()) as server,
        HttpProxy() as proxy,
        make_pool(
            server.url,
            ca_certs=tls.bundle,
            proxy=f"http://user:pass@127.0.0.1:{proxy.port}",
            proxy_headers={"X-Proxy": "1"},
        ) as pool,
    ):
        assert post(pool).status == 200
        assert post(pool).status == 200
    (head,) = proxy.heads
    authority = server.url.removeprefix("https://")
    assert head.startswith(f"CONNECT {authority} HTTP/1.")
    assert "Proxy-Authorization: Basic dXNlcjpwYXNz\r\n" in head
    assert "X-Proxy: 1\r\n" in head
    assert "Sentry" not in head
    assert server.requests[0].path == PATH
    assert "proxy-authorization" not in server.requests[0].headers


def test_tls_goes_through_a_tls_proxy(tls: Tls) -> None:
    """TLS inside TLS: the proxy proves who it is before it gets the credentials."""
    with (
        FaultServer(ssl_context=tls.server()) as server,
        HttpProxy(tls.server()) as proxy,
        make_pool(server.url, ca_certs=tls.bundle, proxy=f"https://127.0.0.1:{proxy.port}") as pool,
    ):
        assert post(pool).status == 200
        assert post(pool, b"x" * 1_000_000).status == 200
        server.fault("early", times=1)
        assert post(pool, b"x" * 5_000_000).status == 413
        assert post(pool).status == 200
        server.drop_idle()
        assert post(pool).status == 200
    assert [r.connection for r in server.requests] == [1, 1, 1, 2, 3]


def test_the_deadline_holds_for_tls_inside_tls(tls: Tls) -> None:
    """There a socket's timeout holds for parts of a record only."""
    with (
        FaultServer(ssl_context=tls.server()) as server,
        HttpProxy(tls.server()) as proxy,
        make_pool(
            server.url, ca_certs=tls.bundle, proxy=f"https://127.0.0.1:{proxy.port}", request_timeout=0.3
        ) as pool,
    ):
        assert post(pool).status == 200
        proxy.slow.set()  # every byte of the server's TLS arrives in a record of the proxy's own
        assert failure(pool).kind == "timeout"


def test_plain_http_goes_through_a_tls_proxy(server: FaultServer, tls: Tls) -> None:
    """The way to the proxy is protected, the rest is the proxy's."""
    with (
        HttpProxy(tls.server()) as proxy,
        make_pool(server.url, ca_certs=tls.bundle, proxy=f"https://127.0.0.1:{proxy.port}") as pool,
    ):
        assert post(pool).status == 200
    assert server.requests[0].path == f"{server.url}{PATH}"


def test_a_proxy_gets_no_client_certificate(tls: Tls) -> None:
    """It is for the server; to a proxy it would say who we are."""
    context = tls.server()
    context.verify_mode = ssl.CERT_REQUIRED
    tls.ca.configure_trust(context)
    cert, key = tls.client_files()
    with (
        HttpProxy(context) as proxy,
        make_pool(
            "https://127.0.0.1:9",
            ca_certs=tls.bundle,
            client_cert=cert,
            client_key=key,
            proxy=f"https://127.0.0.1:{proxy.port}",
        ) as pool,
    ):
        assert failure(pool).kind == "proxy"
    assert proxy.heads == []


def test_a_proxy_with_an_unknown_certificate_is_a_proxy_failure(tls: Tls) -> None:
    """Told from the server's own certificate: the fix is elsewhere."""
    with HttpProxy(tls.server("other.test")) as proxy:
        for url in ("https://127.0.0.1:9", "http://127.0.0.1:9"):
            with make_pool(url, ca_certs=tls.bundle, proxy=f"https://127.0.0.1:{proxy.port}") as pool:
                assert failure(pool).kind == "proxy"


def test_a_bad_certificate_behind_a_proxy_is_a_tls_failure(tls: Tls) -> None:
    """The proxy did its part."""
    with (
        FaultServer(ssl_context=tls.server("other.test")) as server,
        HttpProxy() as proxy,
        make_pool(server.url, ca_certs=tls.bundle, proxy=f"http://127.0.0.1:{proxy.port}") as pool,
    ):
        assert failure(pool).kind == "tls"


def test_a_proxy_that_refuses_is_named(tls: Tls) -> None:
    """407 is the most common trouble with a company's proxy; its text is a stranger's."""
    refusal = b"HTTP/1.1 407 Auth\x1b[2J Required\r\nProxy-Authenticate: Basic\r\n\r\n"
    with (
        HttpProxy(refuse=refusal) as proxy,
        make_pool(
            "https://127.0.0.1:9", ca_certs=tls.bundle, proxy=f"http://u:s3cret@127.0.0.1:{proxy.port}"
        ) as pool,
    ):
        error = failure(pool)
    assert (error.kind, error.body_sent) == ("proxy", False)
    assert "407" in error.detail
    assert "\x1b" not in error.detail
    assert "s3cret" not in repr(error)
    assert error.__cause__ is None


@pytest.mark.parametrize("answer", [b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"A" * 70_000, b"\r\n"])
def test_a_proxy_that_talks_nonsense_is_a_proxy_failure(tls: Tls, answer: bytes) -> None:
    """Whatever listens there, the sender lives."""
    with (
        HttpProxy(refuse=answer) as proxy,
        make_pool("https://127.0.0.1:9", ca_certs=tls.bundle, proxy=f"http://127.0.0.1:{proxy.port}") as pool,
    ):
        assert failure(pool).kind == "proxy"


def test_a_proxy_that_drips_its_answer_costs_the_connect_timeout(tls: Tls) -> None:
    """A byte in time, each time, would hold a sender for hours."""
    with (
        HttpProxy(drip=True) as proxy,
        make_pool(
            "https://127.0.0.1:9",
            ca_certs=tls.bundle,
            proxy=f"http://127.0.0.1:{proxy.port}",
            connect_timeout=0.2,
        ) as pool,
    ):
        began = time.monotonic()
        error = failure(pool)
    assert error.kind == "timeout"
    assert time.monotonic() - began < SOON / 2


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_is_down_is_a_proxy_failure(server: FaultServer, scheme: str, tls: Tls) -> None:
    """The server may be well: say who is not."""
    server.down()
    with make_pool(f"{scheme}://127.0.0.1:9", ca_certs=tls.bundle, proxy=server.url) as pool:
        error = failure(pool)
    assert error.kind == "proxy"
    assert "refused" in error.detail


def test_proxies_come_from_the_environment_unless_it_is_not_trusted(server: FaultServer) -> None:
    """Containers get their proxy this way."""
    with HttpProxy() as proxy:
        environ = {"http_proxy": f"127.0.0.1:{proxy.port}"}
        with make_pool(server.url, environ=environ) as pool:
            post(pool)
        with make_pool(server.url, environ=environ, trust_env=False) as pool:
            post(pool)
        with make_pool(server.url, environ={**environ, "no_proxy": "127.0.0.0/8"}) as pool:
            post(pool)
    assert len(proxy.heads) == 1
    assert [r.path for r in server.requests] == [server.url + PATH, PATH, PATH]


@pytest.mark.parametrize(
    ("scheme", "kind", "host"), [("socks5", 1, b"\x7f\0\0\1"), ("socks5h", 3, b"localhost")]
)
def test_socks_proxies_carry_http_and_https(tls: Tls, scheme: str, kind: int, host: bytes) -> None:
    """socks5 resolves names here, socks5h leaves it to the proxy."""
    user = (b"us:er", b"p@ss")
    with (
        FaultServer() as plain,
        FaultServer(ssl_context=tls.server()) as secure,
        SocksProxy(user) as proxy,
    ):
        for server, prefix in ((plain, "http"), (secure, "https")):
            url = f"{prefix}://localhost:{server.port}"
            address = f"{scheme}://us%3Aer:p%40ss@127.0.0.1:{proxy.port}"
            with make_pool(url, ca_certs=tls.bundle, proxy=address) as pool:
                assert post(pool).status == 200
                assert post(pool).status == 200
            assert server.requests[0].path == PATH
        assert proxy.targets == [(kind, host, plain.port), (kind, host, secure.port)]


def test_a_socks_proxy_that_refuses_is_a_proxy_failure() -> None:
    """A wrong password, or a proxy that isn't there."""
    with SocksProxy((b"user", b"right")) as proxy:
        address = f"socks5://user:wr0ng@127.0.0.1:{proxy.port}"
        with make_pool("http://127.0.0.1:9", proxy=address) as pool:
            error = failure(pool)
    assert error.kind == "proxy"
    assert "wr0ng" not in repr(error)
    with make_pool("http://127.0.0.1:9", proxy=f"socks5://127.0.0.1:{proxy.port}") as pool:
        assert failure(pool).kind == "proxy"


def test_a_bad_certificate_behind_a_socks_proxy_is_a_tls_failure(tls: Tls) -> None:
    """As behind any other proxy."""
    with (
        FaultServer(ssl_context=tls.server("other.test")) as server,
        SocksProxy() as proxy,
        make_pool(server.url, ca_certs=tls.bundle, proxy=f"socks5://127.0.0.1:{proxy.port}") as pool,
    ):
        assert failure(pool).kind == "tls"


def test_a_socks_proxy_without_pysocks_fails_at_construction(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing extra fails when it is asked for, with the line that installs it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'transport-kit\[socks\]'") as caught:
        ConnectionPool("http://h", TransportOptions(proxy="socks5://h"), environ={})
    assert caught.value.source == "arguments"
    with pytest.raises(MissingExtra, match="environment"):
        ConnectionPool("http://h", TransportOptions(), environ={"ALL_PROXY": "socks5h://h"})
    ConnectionPool("http://h", TransportOptions(proxy="http://h"), environ={})


def test_a_bad_proxy_fails_at_construction() -> None:
    """With the option's name."""
    with pytest.raises(OptionsError, match="proxy"):
        ConnectionPool("http://h", TransportOptions(proxy="gopher://h"), environ={})


# -- imports ---------------------------------------------------------------------------------------


def test_urllib3_and_ssl_wait_for_the_first_post(server: FaultServer) -> None:
    """The import takes 120 ms, and gevent must be able to patch ssl between construction and then."""
    code = """
import json, sys, types
package = sys.modules["transport_kit"] = types.ModuleType("transport_kit")
package.__path__ = [sys.argv[2]]  # this module alone, whatever the package imports beside it
from transport_kit.transport.wire.connections import ConnectionPool
from transport_kit.config.options import TransportOptions
def loaded():
    return sorted({"urllib3", "ssl", "http.client", "certifi", "socks"} & set(sys.modules))
seen = [loaded()]
pool = ConnectionPool(sys.argv[1], TransportOptions(), environ={})
ConnectionPool("https://h", TransportOptions(proxy="socks5://h"), environ={})
seen.append(loaded())
status = pool.post("/", {}, b"").status
seen.append(loaded())
pool.close()
print(json.dumps([status, *seen]))
"""
    folder = str(Path(transport_kit.__file__).parent)
    command = [sys.executable, "-c", code, server.url, folder]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    assert json.loads(out) == [200, [], [], ["http.client", "ssl", "urllib3"]]
