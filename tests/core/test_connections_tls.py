"""ConnectionPool on real sockets: TLS, verified, and client certificates."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.core.connections_support import (
    Raw,
    Tls,
    failure,
    make_pool,
    post,
)
from tests.needs import program
from tests.timing import SOON
from transport_kit.runtime.errors import OptionsError
from transport_kit.testing import FaultServer


@pytest.fixture(name="tls", scope="module")
def _tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """One certificate authority for all tests of this module."""
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
    """certifi's authorities do not include the test's."""
    with FaultServer(ssl_context=tls.server()) as server, make_pool(server.url) as pool:
        error = failure(pool)
    assert (error.kind, error.body_sent) == ("tls", False)
    assert "CERTIFICATE_VERIFY_FAILED" in error.detail
    assert server.requests == []


def test_a_certificate_for_another_name_is_refused(tls: Tls) -> None:
    """A valid certificate for another host indicates an attack."""
    with (
        FaultServer(ssl_context=tls.server("other.test")) as server,
        make_pool(server.url, ca_certs=tls.bundle) as pool,
    ):
        assert failure(pool).kind == "tls"
    assert server.requests == []


def test_a_server_without_tls_is_a_tls_failure(tls: Tls) -> None:
    """https with the http port is a common mistake."""

    def serve(sock: socket.socket, _: int) -> None:
        sock.recv(65536)
        sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with Raw(serve) as raw, make_pool(f"https://127.0.0.1:{raw.port}", ca_certs=tls.bundle) as pool:
        assert failure(pool).kind == "tls"


def test_a_server_silent_in_the_handshake_costs_the_connect_timeout(tls: Tls) -> None:
    """The timeout includes the TLS handshake."""

    def serve(sock: socket.socket, _: int) -> None:
        while sock.recv(65536):
            pass

    with Raw(serve) as raw:
        url = f"https://127.0.0.1:{raw.port}"
        with make_pool(url, ca_certs=tls.bundle, connect_timeout=0.1) as pool:
            began = time.monotonic()
            assert failure(pool).kind == "timeout"
    assert time.monotonic() - began < SOON / 2


@pytest.mark.parametrize("emptied", [True, False], ids=["empty", "gone"])
def test_a_bundle_that_can_not_be_read_any_more_is_a_tls_failure(tls: Tls, emptied: bool) -> None:
    """A bundle removed while the app runs causes an error that names the option, not a crash."""
    bundle = tls.folder / "rotated.pem"
    bundle.write_bytes(b"")
    with make_pool("https://127.0.0.1:9", ca_certs=bundle) as pool:
        if not emptied:
            bundle.unlink()
        error = failure(pool)
    assert (error.kind, error.body_sent) == ("tls", False)
    assert error.detail.startswith("ca_certs: ")


@pytest.mark.parametrize("name", ["ca_certs", "client_cert", "client_key"])
def test_a_file_that_an_option_names_and_can_not_be_read_is_an_error_at_once(tls: Tls, name: str) -> None:
    """The error is raised at construction, where it is noticed. Its text contains no path."""
    cert, key = tls.client_files()
    missing = tls.folder / "missing.pem"
    files: dict[str, Any] = {"ca_certs": tls.bundle, "client_cert": cert, "client_key": key, name: missing}
    with pytest.raises(OptionsError, match=f"^{name} ") as caught, make_pool("http://127.0.0.1:9", **files):
        raise AssertionError("made")
    assert "FileNotFoundError" in caught.value.problem
    assert "missing.pem" not in str(caught.value)


# -- the authorities of the environment --------------------------------------------------------------------


@pytest.fixture(name="hashed", scope="module")
def _hashed(tls: Tls) -> Path:
    """Return a directory of authorities for OpenSSL: each file is named by the hash of its subject."""
    folder = tls.folder / "authorities"
    folder.mkdir()
    printed = subprocess.run(
        [program("openssl"), "x509", "-noout", "-subject_hash", "-in", tls.bundle],
        capture_output=True,
        text=True,
        check=True,
    )
    (folder / f"{printed.stdout.strip()}.0").write_bytes(Path(tls.bundle).read_bytes())
    return folder


@pytest.mark.parametrize(
    "environ",
    [
        {"SSL_CERT_FILE": "bundle"},
        {"SSL_CERT_DIR": "hashed"},
        {"SSL_CERT_DIR": "nothing:hashed"},
        {"REQUESTS_CA_BUNDLE": "bundle"},
        {"REQUESTS_CA_BUNDLE": "hashed"},
        {"SSL_CERT_FILE": "other", "SSL_CERT_DIR": "hashed"},
        {"SSL_CERT_FILE": "bundle", "REQUESTS_CA_BUNDLE": "other"},
        {"SSL_CERT_FILE": "nothing", "REQUESTS_CA_BUNDLE": "bundle"},
        {"SSL_CERT_FILE": "", "REQUESTS_CA_BUNDLE": "bundle"},
    ],
    ids=str,
)
def test_authorities_of_the_environment_are_trusted_in_their_order(
    environ: dict[str, str], tls: Tls, hashed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A variable that names no readable file causes one warning, and the next source is used."""
    other = Tls(tls.folder / "other")
    places = {"bundle": tls.bundle, "hashed": hashed, "other": other.bundle, "nothing": tls.folder / "none"}
    named = {
        name: os.pathsep.join(str(places[place]) if place else "" for place in value.split(":"))
        for name, value in environ.items()
    }
    with FaultServer(ssl_context=tls.server()) as server, make_pool(server.url, environ=named) as pool:
        assert post(pool).status == 200
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == ("nothing" in str(environ))
    assert all("can't be read and is ignored: FileNotFoundError" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("options", "environ"),
    [
        ({"trust_env": False}, {"SSL_CERT_FILE": "bundle"}),
        ({"ca_certs": "other"}, {"SSL_CERT_FILE": "bundle"}),
        ({}, {"SSL_CERT_FILE": "other", "REQUESTS_CA_BUNDLE": "bundle"}),
        ({}, {"SSL_CERT_FILE": "nothing"}),
    ],
)
def test_authorities_that_do_not_count_are_not_trusted(
    options: dict[str, Any], environ: dict[str, str], tls: Tls
) -> None:
    """An option precedes the environment, and the environment precedes certifi."""
    other = Tls(tls.folder / "another")
    places = {"bundle": tls.bundle, "other": other.bundle, "nothing": tls.folder / "none"}
    options = {name: places.get(value, value) for name, value in options.items()}
    named = {name: str(places[value]) for name, value in environ.items()}
    with (
        FaultServer(ssl_context=tls.server()) as server,
        make_pool(server.url, environ=named, **options) as pool,
    ):
        assert failure(pool).kind == "tls"


def test_authorities_that_were_renewed_on_disk_are_read_at_the_next_connection(tls: Tls) -> None:
    """No restart is necessary. While a file is incomplete, the previous authorities are used."""
    other = Tls(tls.folder / "renewed")
    bundle = tls.folder / "current.pem"
    bundle.write_bytes(Path(other.bundle).read_bytes())
    with (
        FaultServer(ssl_context=tls.server()) as server,
        make_pool(server.url, ca_certs=bundle, keep_alive=False) as pool,
    ):
        assert failure(pool).kind == "tls"
        bundle.write_bytes(Path(tls.bundle).read_bytes())
        assert post(pool).status == 200
        bundle.write_bytes(b"half")
        assert post(pool).status == 200
        bundle.unlink()
        assert post(pool).status == 200
        bundle.write_bytes(Path(other.bundle).read_bytes())
        assert failure(pool).kind == "tls"


def test_a_client_certificate_that_was_renewed_on_disk_is_shown_at_the_next_connection(tls: Tls) -> None:
    """Short-lived certificates are replaced every day, without a restart."""
    context = tls.server()
    context.verify_mode = ssl.CERT_REQUIRED
    other = Tls(tls.folder / "old")
    tls.ca.configure_trust(context)
    (old_cert, old_key), (cert, key) = other.client_files(), tls.client_files()
    shown = tls.folder / "shown.pem"
    shown.write_bytes(old_key.read_bytes() + old_cert.read_bytes())
    with (
        FaultServer(ssl_context=context) as server,
        make_pool(server.url, ca_certs=tls.bundle, client_cert=shown, keep_alive=False) as pool,
    ):
        assert failure(pool).kind in ("tls", "reset")
        shown.write_bytes(key.read_bytes() + cert.read_bytes())
        assert post(pool).status == 200


def test_a_client_certificate_is_presented(tls: Tls) -> None:
    """Some reverse proxies require a client certificate."""
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
    # With TLS 1.3 the alert arrives after the handshake, or is lost because of the reset that follows it.
    assert error.kind in ("tls", "reset")
    assert len(server.requests) == 2


def test_an_encrypted_key_asks_nobody_for_a_passphrase(tls: Tls) -> None:
    """Otherwise OpenSSL would prompt on the terminal, and the sender would hang."""
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
