"""FaultServer, tested with plain sockets, as other tests rely on it."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator

import brotli  # type: ignore[import-untyped]
import pytest
import trustme
import zstandard

from tests.timing import SOON
from transport_kit.testing import FAULTS, FaultServer

ENVELOPE = b'{"event_id":"9ec79c33ec9942ab8353589fcb2e04dc"}\n{"type":"event","length":2}\n{}\n'


@pytest.fixture(name="server")
def _server() -> Iterator[FaultServer]:
    """Run a server; its threads and sockets must be gone afterwards."""
    with FaultServer() as server:
        yield server
    assert not [t for t in threading.enumerate() if t.name.startswith("fault-server")]


def connect(server: FaultServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=SOON)


def request(body: bytes = ENVELOPE, extra: str = "") -> bytes:
    head = f"POST /api/1/envelope/ HTTP/1.1\r\nHost: test\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def read_answer(sock: socket.socket) -> bytes:
    """Return one answer with a Content-Length, or the bytes before the end."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = sock.recv(65536)
        if not part:
            return data
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
    while len(body) < length and (part := sock.recv(65536)):
        body += part
    return head + b"\r\n\r\n" + body


def is_ended(sock: socket.socket) -> bool:
    """Return True if the peer ended the connection, by FIN or RST, without another byte."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def post(server: FaultServer, body: bytes = ENVELOPE, extra: str = "") -> bytes:
    with connect(server) as sock:
        sock.sendall(request(body, extra))
        return read_answer(sock)


def test_every_request_is_kept_with_its_answer(server: FaultServer) -> None:
    """Most tests assert on the received requests."""
    assert post(server).startswith(b"HTTP/1.1 200 OK\r\n")
    (received,) = server.requests
    assert (received.method, received.path, received.status) == ("POST", "/api/1/envelope/", 200)
    assert received.headers["host"] == "test"
    assert received.raw == received.body == ENVELOPE
    assert received.connection == 1
    assert server.accepted == [received]
    assert server.event_ids() == ["9ec79c33ec9942ab8353589fcb2e04dc"]
    assert server.errors == []


def test_a_received_body_is_an_envelope(server: FaultServer) -> None:
    """Tests need items, not bytes; an envelope is parsed once."""
    post(server)
    envelope = server.requests[0].envelope
    assert [item.type for item in envelope] == ["event"]
    assert server.requests[0].envelope is envelope


def test_envelopes_without_an_event_id_have_none(server: FaultServer) -> None:
    """Sessions and client reports have envelopes without one."""
    post(server, b"{}\n")
    post(server, b"[]\n")
    first, second = server.requests
    assert first.event_id is None
    with pytest.raises(ValueError, match="not a JSON object"):
        second.event_id  # noqa: B018


@pytest.mark.parametrize(
    ("name", "encode"),
    [
        ("identity", bytes),
        ("gzip", gzip.compress),
        ("x-gzip", lambda data: gzip.compress(data[:10]) + gzip.compress(data[10:])),
        ("deflate", zlib.compress),
        ("br", brotli.compress),
        ("zstd", lambda data: zstandard.compress(data)),
        ("gzip, br", lambda data: brotli.compress(gzip.compress(data))),
    ],
)
def test_content_encodings_are_undone(
    server: FaultServer, name: str, encode: Callable[[bytes], bytes]
) -> None:
    """Tests can read the envelope for every codec."""
    body = encode(ENVELOPE)  # once, as gzip writes the time into its header
    post(server, body, f"Content-Encoding: {name}\r\n")
    assert server.requests[0].body == ENVELOPE
    assert server.requests[0].raw == body


@pytest.mark.parametrize("name", ["gzip", "br", "zstd", "deflate", "lzma"])
def test_a_body_that_does_not_fit_its_encoding_is_an_error(server: FaultServer, name: str) -> None:
    """A truncated body must not count as an envelope."""
    post(server, gzip.compress(ENVELOPE)[:-4], f"Content-Encoding: {name}\r\n")
    with pytest.raises(ValueError, match=name):
        server.requests[0].body  # noqa: B018


def test_chunked_bodies_are_joined(server: FaultServer) -> None:
    """Other SDKs may send them."""
    with connect(server) as sock:
        head = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
        sock.sendall(head.encode() + b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nTrailer: x\r\n\r\n")
        assert read_answer(sock).startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert server.wait_for(1, SOON)
    assert server.requests[0].raw == b"abcde"


@pytest.mark.parametrize(
    "junk",
    [
        b"\x16\x03\x01 hello\r\n\r\n",
        b"POST / HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1",
        b"POST / HT",
        b"x" * 70_000,
    ],
)
def test_what_is_not_a_request_is_noted_and_not_kept(server: FaultServer, junk: bytes) -> None:
    """A broken client appears in `errors`; the next one is served."""
    with connect(server) as sock:
        sock.sendall(junk)
        sock.shutdown(socket.SHUT_WR)
        try:
            assert sock.recv(100) == b""
        except ConnectionResetError:
            assert len(junk) > 65536  # it was not read to its end
    assert post(server).startswith(b"HTTP/1.1 200")
    assert len(server.requests) == 1
    assert len(server.errors) == 1


def test_a_connection_carries_many_requests_unless_told_to_close(server: FaultServer) -> None:
    """The transport relies on keep-alive; the connection numbers show reuse."""
    with connect(server) as sock:
        sock.sendall(request())
        read_answer(sock)
        sock.sendall(request()[:30])
        sock.sendall(request()[30:])
        read_answer(sock)
        sock.sendall(request(extra="Connection: close\r\n"))
        assert b"\r\nConnection: close\r\n" in read_answer(sock)
        assert sock.recv(1) == b""
    post(server)
    assert [r.connection for r in server.requests] == [1, 1, 1, 2]
    assert server.connections == 2


def test_answers_are_used_in_order_and_then_the_standing_one(server: FaultServer) -> None:
    """A test schedules a server's answers in advance."""
    server.answer(503, {"Retry-After": "7"}, b"busy", times=2)
    server.answer(429, times=1)
    answers = [post(server) for _ in range(4)]
    assert [a[9:12] for a in answers] == [b"503", b"503", b"429", b"200"]
    assert b"\r\nRetry-After: 7\r\n" in answers[0]
    assert answers[0].endswith(b"\r\n\r\nbusy")
    server.answer(403)
    server.answer(500, times=1)
    assert [post(server)[9:12] for _ in range(3)] == [b"500", b"403", b"403"]
    server.answer()
    assert post(server)[9:12] == b"200"
    assert len(server.accepted) == 2


def test_bodiless_and_odd_statuses_are_framed_right(server: FaultServer) -> None:
    """A 204 with a body would break the next answer on the connection."""
    server.answer(204, times=1)
    server.answer(299, {"Content-Type": "text/plain", "Content-Length": "2"}, b"hi", times=1)
    with connect(server) as sock:
        sock.sendall(request() + request())
        data = b""
        while not data.endswith(b"\r\n\r\nhi"):
            data += sock.recv(65536)
    first, second, body = data.split(b"\r\n\r\n")
    assert b"Content-Length" not in first
    assert second.startswith(b"HTTP/1.1 299 Unknown\r\n")
    assert second.count(b"Content-Length") == 1
    assert body == b"hi"


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.fault("explode"),
        lambda s: s.fault("reset", times=0),
        lambda s: s.answer(100),
        lambda s: s.answer(600),
    ],
)
def test_a_mistyped_plan_is_refused(server: FaultServer, call: Callable[[FaultServer], None]) -> None:
    """A fault that is silently not played would make a test meaningless."""
    with pytest.raises(ValueError, match=r"unknown fault|times|status"):
        call(server)


def test_reset_reads_the_request_and_resets(server: FaultServer) -> None:
    """The client gets ECONNRESET and not an end of file."""
    server.fault("reset", times=1)
    with pytest.raises(ConnectionResetError):
        post(server)
    assert server.requests[0].status is None
    assert post(server)[9:12] == b"200"


def test_reset_on_accept_resets_before_and_between_requests(server: FaultServer) -> None:
    """New connections and open ones are reset."""
    with connect(server) as idle:
        idle.sendall(request())
        read_answer(idle)
        server.fault("reset_on_accept")
        assert is_ended(idle)
    with pytest.raises(ConnectionError):
        post(server)
    server.answer()
    assert post(server)[9:12] == b"200"


def test_a_request_in_flight_does_not_survive_reset_on_accept(server: FaultServer) -> None:
    """The fault applies to all open connections."""
    server.hold()
    with connect(server) as sock:
        sock.sendall(request())
        assert server.wait_for_requests(1, SOON)
        server.fault("reset_on_accept")
        server.release()
        with pytest.raises(ConnectionResetError):
            sock.recv(100)
    assert server.accepted == []


def test_hang_never_answers_until_released(server: FaultServer) -> None:
    """Otherwise only the client's timeout ends the request."""
    server.fault("hang", times=1)
    with connect(server) as sock:
        sock.sendall(request())
        assert server.wait_for_requests(1, SOON)
        assert not server.wait_for(1, timeout=0.05)
        server.release()
        assert read_answer(sock)[9:12] == b"200"
    assert server.wait_for(1, SOON)


def test_close_ends_without_an_answer(server: FaultServer) -> None:
    """The client gets an end of file in place of a status line."""
    server.fault("close", times=1)
    assert post(server) == b""
    assert server.requests[0].status is None


def test_half_ends_inside_the_answer(server: FaultServer) -> None:
    """The server crashes during the answer."""
    server.fault("half", times=1)
    data = post(server)
    assert data.startswith(b"HTTP/1.1 200")
    assert not data.endswith(b'{"id":""}')
    assert server.requests[0].status is None


def test_garbage_is_not_http(server: FaultServer) -> None:
    """Another program listens on the port."""
    server.fault("garbage", times=1)
    data = post(server)
    assert data
    assert not data.startswith(b"HTTP/")


def test_drip_sends_byte_by_byte_until_released(server: FaultServer) -> None:
    """A client must distinguish a slow server from a dead one."""
    server.drip_interval = 0.001
    server.fault("drip", times=1)
    assert post(server).endswith(b'{"id":""}')
    server.drip_interval = 60.0
    server.fault("drip", times=1)
    with connect(server) as sock:
        sock.sendall(request())
        assert server.wait_for_requests(2, SOON)
        server.release()
        assert read_answer(sock).endswith(b'{"id":""}')
    assert len(server.accepted) == 2


def test_html_is_a_load_balancers_page(server: FaultServer) -> None:
    """The most common answer in an outage is not JSON."""
    server.fault("html", times=1)
    answer = post(server)
    assert answer.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
    assert b"Content-Type: text/html" in answer
    assert b"<html>" in answer


def test_early_answers_before_the_body_and_closes(server: FaultServer) -> None:
    """A server checks Content-Length against its limit first."""
    server.fault("early", times=1)
    with connect(server) as sock:
        sock.sendall(request(b"x" * 100)[:-100])
        answer = read_answer(sock)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert sock.recv(1) == b""
    assert server.requests[0].status == 413
    assert server.requests[0].raw == b""


def test_every_fault_has_a_test() -> None:
    """A new fault needs a test."""
    names = [name for name in globals() if name.startswith("test_")]
    missing = [kind for kind in FAULTS if not any(name.startswith(f"test_{kind}_") for name in names)]
    assert missing == []


def test_held_requests_wait_and_are_answered_on_release(server: FaultServer) -> None:
    """A test can inspect a transport with a request in flight."""
    server.hold()
    with connect(server) as sock:
        sock.sendall(request())
        assert server.wait_for_requests(1, SOON)
        assert server.requests[0].status is None
        server.release()
        assert read_answer(sock)[9:12] == b"200"


def test_a_delay_passes_before_the_answer(server: FaultServer) -> None:
    """Simulates a server 50 ms away."""
    server.delay = 0.05
    began = time.monotonic()
    post(server)
    assert time.monotonic() - began >= 0.05


def test_a_server_that_is_down_refuses_and_comes_back_on_its_port(server: FaultServer) -> None:
    """Simulates a restart of the server."""
    port = server.port
    with connect(server) as sock:
        sock.sendall(request())
        read_answer(sock)
        server.down()
        assert sock.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        connect(server)
    server.up()
    server.up()
    assert server.port == port
    assert post(server)[9:12] == b"200"


def test_idle_connections_can_be_dropped(server: FaultServer) -> None:
    """Simulates a keep-alive timeout; a busy connection stays open."""
    with connect(server) as idle, connect(server) as busy:
        idle.sendall(request())
        read_answer(idle)
        server.hold()
        busy.sendall(request())
        assert server.wait_for_requests(2, SOON)
        assert server.drop_idle() == 1
        assert idle.recv(1) == b""
        server.release()
        assert read_answer(busy)[9:12] == b"200"


def test_stopping_frees_held_and_hanging_requests(server: FaultServer) -> None:
    """A failed test must not hang the run at its end."""
    server.fault("hang")
    with connect(server) as hanging, connect(server) as held:
        hanging.sendall(request())
        assert server.wait_for_requests(1, SOON)
        server.hold()
        held.sendall(request())
        assert server.wait_for_requests(2, SOON)
        server.stop()
        assert hanging.recv(1) == b""
        assert held.recv(1) == b""
    assert server.accepted == []


def test_a_server_starts_once_and_says_where_only_then() -> None:
    """A URL with port 0 would send a test's requests nowhere."""
    server = FaultServer()
    with pytest.raises(RuntimeError, match="not started"):
        server.url  # noqa: B018
    with pytest.raises(RuntimeError, match="not running"):
        server.up()
    with server:
        assert server.url == f"http://127.0.0.1:{server.port}"
        assert server.dsn == f"http://{server.key}@127.0.0.1:{server.port}/1"
        with pytest.raises(RuntimeError, match="once"):
            server.start()
    server.stop()
    with pytest.raises(RuntimeError, match="not running"):
        server.up()


def test_it_listens_on_ipv6_too() -> None:
    """Clients often handle brackets in URLs and Host headers wrongly."""
    with FaultServer(host="::1") as server:
        assert server.url == f"http://[::1]:{server.port}"
        with socket.create_connection(("::1", server.port), timeout=SOON) as sock:
            sock.sendall(request())
            assert read_answer(sock)[9:12] == b"200"


def test_it_speaks_tls() -> None:
    """Many failures in production concern certificates."""
    import ssl

    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    client = ssl.create_default_context()
    ca.configure_trust(client)
    with FaultServer(ssl_context=context) as server:
        assert server.url.startswith("https://")
        with client.wrap_socket(connect(server), server_hostname="127.0.0.1") as sock:
            sock.sendall(request())
            assert read_answer(sock)[9:12] == b"200"
        server.fault("reset")
        with client.wrap_socket(connect(server), server_hostname="127.0.0.1") as sock:
            sock.sendall(request())
            assert is_ended(sock)  # OpenSSL may report a reset as an end of file
            assert [r.status for r in server.requests] == [200, None]
        with connect(server) as silent:
            server.stop()  # a missing handshake doesn't delay the stop
            assert is_ended(silent)


def test_importing_it_starts_nothing() -> None:
    """A conftest imports it in processes that fork."""
    import subprocess
    import sys

    code = (
        "import sys, threading, json, transport_kit.testing\n"
        "print(json.dumps([threading.active_count(), 'brotli' in sys.modules, 'urllib3' in sys.modules]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(out) == [1, False, False]
