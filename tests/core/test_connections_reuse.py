"""ConnectionPool on real sockets: the reuse of connections."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from tests.core.connections_support import (
    BODY,
    HEADERS,
    OK,
    PATH,
    Raw,
    failure,
    make_pool,
    post,
    read_head,
)
from tests.timing import SOON, scaled
from transport_kit.testing import FaultServer
from transport_kit.transport.wire import connections
from transport_kit.transport.wire.exchange import ExchangeError


@pytest.fixture(name="server")
def _server() -> Iterator[FaultServer]:
    """A plain HTTP server."""
    with FaultServer() as server:
        yield server


def test_one_connection_carries_many_posts(server: FaultServer) -> None:
    """A TLS handshake takes longer than sending an event."""
    with make_pool(server.url) as pool:
        for _ in range(5):
            post(pool)
    assert [r.connection for r in server.requests] == [1] * 5


def test_posts_at_the_same_time_have_connections_of_their_own(server: FaultServer) -> None:
    """Senders share a pool, never a socket; the most recently used connection is reused first."""
    server.hold()
    with make_pool(server.url) as pool:
        threads = [threading.Thread(target=post, args=(pool,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert server.wait_for_requests(4, SOON)
        assert server.connections == 4
        server.release()
        for thread in threads:
            thread.join(30)
        for _ in range(8):
            post(pool)
    assert server.connections == 4
    assert len({r.connection for r in server.requests[4:]}) == 1


def test_without_keep_alive_each_post_connects(server: FaultServer) -> None:
    """Some servers and middleboxes do not support keep-alive."""
    with make_pool(server.url, keep_alive=False) as pool:
        post(pool)
        post(pool)
    assert [r.connection for r in server.requests] == [1, 2]
    assert {r.headers["connection"] for r in server.requests} == {"close"}


def test_a_connection_the_server_ends_is_not_kept(server: FaultServer) -> None:
    """After `Connection: close` the connection must not be reused."""
    server.answer(200, {"Connection": "close"}, times=1)
    with make_pool(server.url) as pool:
        post(pool)
        post(pool)
    assert [r.connection for r in server.requests] == [1, 2]


def test_idle_connections_that_were_dropped_are_not_used(server: FaultServer) -> None:
    """The server's keep-alive timeout must not cause a loss or a retry."""
    with make_pool(server.url) as pool:
        post(pool)
        assert server.drop_idle() == 1
        assert post(pool).status == 200
    assert [r.connection for r in server.requests] == [1, 2]


def test_a_connection_with_unasked_bytes_is_not_used() -> None:
    """Otherwise the bytes would be read as the next answer: response splitting."""
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
    """After a minute a middlebox may have dropped the connection without notice."""
    now = 0.0
    with make_pool(server.url, clock=lambda: now) as pool:
        post(pool)
        now = 60.0
        post(pool)
        now = 120.1
        post(pool)
    assert [r.connection for r in server.requests] == [1, 1, 2]


@pytest.mark.parametrize("status", [500, 502, 503, 504, 520, 407, 408, 421, 425])
def test_a_failing_server_is_left_for_a_new_connection(server: FaultServer, status: int) -> None:
    """The old backend of a deploy answers 503 for as long as its connections are used."""
    server.answer(status, times=1)
    with make_pool(server.url) as pool:
        assert post(pool).status == status
        assert post(pool).status == 200
        assert post(pool).status == 200
    assert [r.connection for r in server.requests] == [1, 2, 2]


@pytest.mark.parametrize("status", [200, 400, 403, 413, 429])
def test_a_working_server_keeps_its_connection(server: FaultServer, status: int) -> None:
    """An answer about the envelope says nothing against the server."""
    server.answer(status, times=1)
    with make_pool(server.url) as pool:
        post(pool)
        post(pool)
    assert [r.connection for r in server.requests] == [1, 1]


def test_a_connection_lives_five_minutes_at_most(server: FaultServer) -> None:
    """A busy one would otherwise never follow a change of the server's addresses."""
    now = 0.0
    with make_pool(server.url, clock=lambda: now) as pool:
        for _ in range(8):
            post(pool)
            now += 50.0
    assert [r.connection for r in server.requests] == [1] * 6 + [2] * 2


def test_a_failed_connection_condemns_those_that_were_idle_beside_it(server: FaultServer) -> None:
    """After a NAT dropped all of them, each would cost a timeout of its own."""
    server.hold()
    with make_pool(server.url) as pool:
        threads = [threading.Thread(target=post, args=(pool,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert server.wait_for_requests(3, SOON)
        server.release()
        for thread in threads:
            thread.join(30)
        assert len(pool._idle) == 3
        server.fault("hang", times=1)
        with pytest.raises(ExchangeError):
            pool.post(PATH, HEADERS, BODY, timeout=scaled(0.3))
        assert not pool._idle
        server.release()
        assert post(pool).status == 200
    assert server.requests[-1].connection == 4


def test_a_connection_that_was_used_meanwhile_is_not_condemned(server: FaultServer) -> None:
    """It worked after the failing exchange had begun."""
    now = 0.0
    with make_pool(server.url, clock=lambda: now) as pool:
        post(pool)
        now = 1.0
        pool._close_idle(before=0.5)
        assert not pool._idle
        post(pool)
        pool._close_idle(before=0.5)
        assert len(pool._idle) == 1


def test_a_peer_that_acknowledges_nothing_is_given_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a suspended host, nobody is at the other end, and the first event must not wait for a timeout."""
    monkeypatch.setattr(connections, "_UNACKNOWLEDGED_SECONDS", 0.2)
    done = threading.Event()
    body = b"x" * 20_000_000

    def serve(sock: socket.socket, number: int) -> None:
        read_head(sock)
        if number == 0:
            sock.recv(len(BODY))
            sock.sendall(OK)
            done.wait(SOON)  # reads nothing more, so that its system takes no byte of a large body
        else:
            left = len(body)
            while left:
                left -= len(sock.recv(1 << 20))
            sock.sendall(OK)

    now = time.monotonic()
    with Raw(serve) as raw, make_pool(f"http://127.0.0.1:{raw.port}", clock=lambda: now) as pool:
        post(pool)
        now += 1.1
        response = post(pool, body)
        done.set()
    assert response.status == 200


@pytest.mark.parametrize("idle", [0.9, 1.1])
def test_without_that_option_a_connection_is_used_again_only_at_once(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, idle: float
) -> None:
    """Some systems have no such option."""
    monkeypatch.setattr(connections, "_USER_TIMEOUT", None)
    now = 0.0
    with make_pool(server.url, clock=lambda: now) as pool:
        post(pool)
        now = idle
        post(pool)
    assert [r.connection for r in server.requests] == ([1, 1] if idle < 1 else [1, 2])


def test_a_reset_on_a_reused_connection_is_retried_at_once() -> None:
    """The server closed the idle connection while the request was written, and sent no answer."""
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
    """The breaker handles a server that always resets."""
    with make_pool(server.url) as pool:
        post(pool)
        server.fault("close")
        error = failure(pool)
    assert (error.kind, error.body_sent, error.answered) == ("reset", True, False)
    assert [r.connection for r in server.requests] == [1, 1, 2]


@pytest.mark.parametrize("fault", ["half", "garbage", "hang"])
def test_other_failures_on_a_reused_connection_are_not_retried(server: FaultServer, fault: str) -> None:
    """After a byte of an answer, or a timeout, the server may have acted on the request."""
    with make_pool(server.url, request_timeout=scaled(0.2) if fault == "hang" else SOON) as pool:
        post(pool)
        server.fault(fault)
        error = failure(pool)
    assert error.kind == {"half": "reset", "garbage": "protocol", "hang": "timeout"}[fault]
    assert error.body_sent
    assert server.wait_for_requests(2, SOON)
    assert len(server.requests) == 2


def test_a_failure_on_a_fresh_connection_is_not_retried(server: FaultServer) -> None:
    """Only an idle connection may have been closed before the request."""
    server.fault("reset")
    with make_pool(server.url) as pool:
        assert failure(pool).kind == "reset"
    assert len(server.requests) == 1


def test_a_connection_that_failed_is_not_used_again(server: FaultServer) -> None:
    """Otherwise the rest of a late answer would be read as the next one."""
    server.fault("hang", times=1)
    with make_pool(server.url) as pool:
        with pytest.raises(ExchangeError) as caught:
            pool.post(PATH, HEADERS, BODY, timeout=scaled(0.1))
        assert caught.value.kind == "timeout"
        assert server.wait_for_requests(1, SOON)
        server.release()
        assert post(pool).status == 200
    assert [r.connection for r in server.requests] == [1, 2]


def test_a_given_timeout_covers_connecting_and_the_exchange(server: FaultServer) -> None:
    """The last POST before an exit must finish in the remaining time, not in thirty seconds."""
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
    """Without reading the 413, the envelope would be retried for an hour."""
    server.fault("early")
    with make_pool(server.url) as pool:
        response = post(pool, b"x" * 20_000_000)
    assert response.status == 413
    assert not response.reusable


def test_a_closed_pool_refuses_and_keeps_nothing(server: FaultServer) -> None:
    """After `close` no socket is open, not even one in use during the call."""
    server.hold()
    with make_pool(server.url) as pool:
        thread = threading.Thread(target=post, args=(pool,))
        thread.start()
        assert server.wait_for_requests(1, SOON)
        pool.close()
        server.release()
        thread.join(30)
        assert server.wait_for(1, SOON)
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
