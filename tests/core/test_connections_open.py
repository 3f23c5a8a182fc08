"""ConnectionPool on real sockets: requests, new connections, and late imports."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import transport_kit
from tests.core.connections_support import (
    BODY,
    HEADERS,
    PATH,
    failure,
    make_pool,
    post,
    silent_listener,
)
from tests.timing import SOON
from transport_kit.config.options import TransportOptions
from transport_kit.testing import FaultServer
from transport_kit.transport.wire.connections import ConnectionPool


@pytest.fixture(name="server")
def _server() -> Iterator[FaultServer]:
    """A plain HTTP server."""
    with FaultServer() as server:
        yield server


def test_a_post_arrives_as_it_was_given(server: FaultServer) -> None:
    """Path, headers and body are sent unchanged; the pool adds Host and Content-Length."""
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


def _resolve_to(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """Give the name `two.test` these addresses."""
    lookup = socket.getaddrinfo

    def addresses(host: str, port: int, *arguments: object, **options: object) -> object:
        if host != "two.test":
            return lookup(host, port, *arguments, **options)  # type: ignore[arg-type]
        if "flags" in options:
            raise socket.gaierror(socket.EAI_NONAME, "not an address")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in hosts]

    monkeypatch.setattr(socket, "getaddrinfo", addresses)


def test_a_dead_address_before_a_good_one_does_not_hold_a_post_up(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a broken IPv6 route, a process of two seconds delivered nothing to a dual-stack name."""
    _resolve_to(monkeypatch, "127.0.0.2", "127.0.0.3", "127.0.0.1")
    with (
        silent_listener("127.0.0.2", server.port),
        silent_listener("127.0.0.3", server.port),
        make_pool(f"http://two.test:{server.port}", connect_timeout=min(300.0, SOON)) as pool,
    ):
        assert pool.post(PATH, HEADERS, BODY).status == 200


def test_a_resolver_that_is_silent_fails_the_post_within_its_timeout(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resolver without an answer blocked for ten seconds, whatever `connect_timeout` was."""
    release = threading.Event()
    lookup = socket.getaddrinfo

    def silent(host: str, port: int, *arguments: object, **options: object) -> object:
        if host == "silent.test":
            if "flags" in options:
                raise socket.gaierror(socket.EAI_NONAME, "not an address")
            release.wait(2 * SOON)
        return lookup("127.0.0.1" if host == "silent.test" else host, port, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    with make_pool(f"http://silent.test:{server.port}", connect_timeout=0.05) as pool:
        assert failure(pool).kind == "timeout"
        release.set()
    with make_pool(f"http://silent.test:{server.port}") as pool:
        assert post(pool).status == 200


def test_changed_headers_are_sent_changed(server: FaultServer) -> None:
    """The head is cached by path and headers."""
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
    """A mistake is an error at construction, not at the first event."""
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


# -- opening -------------------------------------------------------------------------------------------


def test_a_refused_connection_is_told_at_once(server: FaultServer) -> None:
    """Nothing was sent, so that the request may be repeated."""
    server.down()
    with make_pool(server.url) as pool:
        error = failure(pool)
    assert (error.kind, error.body_sent) == ("connect", False)
    assert "refused" in error.detail


def test_a_name_that_does_not_exist_is_a_failure_to_connect() -> None:
    """The resolver's errors are of a class of their own."""
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


# -- imports -------------------------------------------------------------------------------------------


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
