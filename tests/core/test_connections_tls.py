"""ConnectionPool on real sockets: TLS, verified, and client certificates."""

from __future__ import annotations

import socket
import ssl
import time
from typing import Any

import pytest

from tests.core.connections_support import (
    Raw,
    Tls,
    failure,
    make_pool,
    post,
)
from tests.timing import SOON
from transport_kit.testing import FaultServer


@pytest.fixture(name="tls", scope="module")
def _tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """One certificate authority for all tests here."""
    return Tls(tmp_path_factory.mktemp("tls"))


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
