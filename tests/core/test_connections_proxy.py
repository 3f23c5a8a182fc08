"""ConnectionPool on real sockets: HTTP and SOCKS proxies, tunnels, TLS inside TLS."""

from __future__ import annotations

import base64
import importlib.util
import socket
import ssl
import time
from collections.abc import Iterator

import pytest

from tests.core.connections_support import (
    PATH,
    HttpProxy,
    Raw,
    SocksProxy,
    Tls,
    failure,
    make_pool,
    post,
)
from tests.timing import SOON, scaled
from transport_kit.config.options import TransportOptions
from transport_kit.runtime.errors import MissingExtra, OptionsError
from transport_kit.testing import FaultServer
from transport_kit.transport.wire.connections import ConnectionPool


@pytest.fixture(name="tls", scope="module")
def _tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """One certificate authority for all tests of this module."""
    return Tls(tmp_path_factory.mktemp("tls"))


@pytest.fixture(name="server")
def _server() -> Iterator[FaultServer]:
    """A plain HTTP server."""
    with FaultServer() as server:
        yield server


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
    """A proxy may require a scheme other than Basic."""
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
    """The proxy reads a CONNECT with its own headers, and no header of the request."""
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
    """TLS inside TLS: the proxy's certificate is verified before the credentials are sent."""
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
    """For TLS inside TLS a socket's timeout applies to parts of a record only."""
    with (
        FaultServer(ssl_context=tls.server()) as server,
        HttpProxy(tls.server()) as proxy,
        make_pool(
            server.url,
            ca_certs=tls.bundle,
            proxy=f"https://127.0.0.1:{proxy.port}",
            request_timeout=scaled(0.3),
        ) as pool,
    ):
        assert post(pool).status == 200
        proxy.slow.set()  # every byte of the server's TLS arrives in a record of the proxy's own
        assert failure(pool).kind == "timeout"


def test_plain_http_goes_through_a_tls_proxy(server: FaultServer, tls: Tls) -> None:
    """Only the connection to the proxy is encrypted."""
    with (
        HttpProxy(tls.server()) as proxy,
        make_pool(server.url, ca_certs=tls.bundle, proxy=f"https://127.0.0.1:{proxy.port}") as pool,
    ):
        assert post(pool).status == 200
    assert server.requests[0].path == f"{server.url}{PATH}"


def test_a_proxy_gets_no_client_certificate(tls: Tls) -> None:
    """The client certificate is only for the server; it would reveal the client's identity to a proxy."""
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
    """The error differs from that for the server's certificate, as the remedy is different."""
    with HttpProxy(tls.server("other.test")) as proxy:
        for url in ("https://127.0.0.1:9", "http://127.0.0.1:9"):
            with make_pool(url, ca_certs=tls.bundle, proxy=f"https://127.0.0.1:{proxy.port}") as pool:
                assert failure(pool).kind == "proxy"


def test_a_bad_certificate_behind_a_proxy_is_a_tls_failure(tls: Tls) -> None:
    """The proxy has opened the tunnel, so that the error is the server's."""
    with (
        FaultServer(ssl_context=tls.server("other.test")) as server,
        HttpProxy() as proxy,
        make_pool(server.url, ca_certs=tls.bundle, proxy=f"http://127.0.0.1:{proxy.port}") as pool,
    ):
        assert failure(pool).kind == "tls"


def test_a_proxy_that_refuses_is_named(tls: Tls) -> None:
    """407 is a common answer of company proxies; its text is untrusted."""
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
    """Any answer of a proxy is an error, and does not end the sender."""
    with (
        HttpProxy(refuse=answer) as proxy,
        make_pool("https://127.0.0.1:9", ca_certs=tls.bundle, proxy=f"http://127.0.0.1:{proxy.port}") as pool,
    ):
        assert failure(pool).kind == "proxy"


def test_a_proxy_that_drips_its_answer_costs_the_connect_timeout(tls: Tls) -> None:
    """Otherwise one byte before each timeout would block a sender for hours."""
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
    """The error names the proxy, as the server may be available."""
    server.down()
    with make_pool(f"{scheme}://127.0.0.1:9", ca_certs=tls.bundle, proxy=server.url) as pool:
        error = failure(pool)
    assert error.kind == "proxy"
    assert "refused" in error.detail


def test_proxies_come_from_the_environment_unless_it_is_not_trusted(server: FaultServer) -> None:
    """Containers configure their proxy by environment variables."""
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
    """With socks5 the client resolves names, with socks5h the proxy does."""
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
    """The password is wrong, or the proxy is not reachable."""
    with SocksProxy((b"user", b"right")) as proxy:
        address = f"socks5://user:wr0ng@127.0.0.1:{proxy.port}"
        with make_pool("http://127.0.0.1:9", proxy=address) as pool:
            error = failure(pool)
    assert error.kind == "proxy"
    assert "wr0ng" not in repr(error)
    with make_pool("http://127.0.0.1:9", proxy=f"socks5://127.0.0.1:{proxy.port}") as pool:
        assert failure(pool).kind == "proxy"


def test_a_bad_certificate_behind_a_socks_proxy_is_a_tls_failure(tls: Tls) -> None:
    """The same as behind an HTTP proxy."""
    with (
        FaultServer(ssl_context=tls.server("other.test")) as server,
        SocksProxy() as proxy,
        make_pool(server.url, ca_certs=tls.bundle, proxy=f"socks5://127.0.0.1:{proxy.port}") as pool,
    ):
        assert failure(pool).kind == "tls"


def test_a_socks_proxy_without_pysocks_fails_at_construction(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing extra is an error at construction, with the install line."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'transport-kit\[socks\]'") as caught:
        ConnectionPool("http://h", TransportOptions(proxy="socks5://h"), environ={})
    assert caught.value.source == "arguments"
    with pytest.raises(MissingExtra, match="environment"):
        ConnectionPool("http://h", TransportOptions(), environ={"ALL_PROXY": "socks5h://h"})
    ConnectionPool("http://h", TransportOptions(proxy="http://h"), environ={})


def test_a_bad_proxy_fails_at_construction() -> None:
    """The error contains the option's name."""
    with pytest.raises(OptionsError, match="proxy"):
        ConnectionPool("http://h", TransportOptions(proxy="gopher://h"), environ={})


def test_a_proxy_that_answers_without_end_costs_a_bounded_number_of_bytes(tls: Tls) -> None:
    """Interim answers are skipped one by one, and nothing else counts them."""
    sent = 0

    def serve(sock: socket.socket, _: int) -> None:
        nonlocal sent
        sock.recv(65536)
        while sent < 50_000_000:
            sent += sock.send(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)

    with (
        Raw(serve) as raw,
        make_pool(
            "https://127.0.0.1:9",
            ca_certs=tls.bundle,
            proxy=f"http://127.0.0.1:{raw.port}",
            connect_timeout=min(300.0, SOON),
        ) as pool,
    ):
        assert failure(pool).kind == "proxy"
    assert sent < 10_000_000
