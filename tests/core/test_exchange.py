"""One exchange: the framing of HTTP/1.x, read strictly, within bounds and in time."""

from __future__ import annotations

import contextlib
import pickle
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import trustme
from hypothesis import example, given
from hypothesis import strategies as st

from tests.timing import SOON
from transport_kit.transport.wire.exchange import ExchangeError, Response, describe, exchange

HEAD = b"POST /api/1/envelope/ HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\n"
BODY = b"body"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Trickle(socket.socket):
    """A socket that receives at most the given number of bytes at a time."""

    sizes: list[int]

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        size = self.sizes.pop(0) if self.sizes else bufsize
        return super().recv(min(size, bufsize), flags)


@contextlib.contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Connected sockets: the client's and the server's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def run(sock: socket.socket, body: bytes = BODY, seconds: float = SOON) -> Response:
    return exchange(sock, HEAD, body, deadline=time.monotonic() + seconds)


def answer(data: bytes, *, end: bool = True) -> Response:
    """Return the response of an exchange whose server sends `data` and closes."""
    with pair() as (ours, theirs):
        theirs.sendall(data)
        if end:
            theirs.shutdown(socket.SHUT_WR)
        return run(ours)


def failure(data: bytes) -> ExchangeError:
    with pytest.raises(ExchangeError) as caught:
        answer(data)
    return caught.value


def chunked(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body


def test_the_request_goes_out_byte_for_byte() -> None:
    """The exchange writes head and body unchanged, and nothing else."""
    with pair() as (ours, theirs):
        theirs.sendall(OK)
        response = run(ours)
        assert theirs.recv(65536) == HEAD + BODY
    assert response == Response(200, {"content-length": "2"}, b"ok", reusable=True)


@pytest.mark.parametrize(
    ("data", "status", "body", "reusable"),
    [
        (OK, 200, b"ok", True),
        (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", 200, b"", True),
        (b"HTTP/1.1 429 \r\ncontent-length:2\r\n\r\nno", 429, b"no", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok", 200, b"ok", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: Close\r\n\r\nok", 200, b"ok", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: x, close\r\n\r\nok", 200, b"ok", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok", 200, b"ok", True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n", 304, b"", True),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, 200, b"ok", True),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", 200, b"until the end", False),
        (b"HTTP/1.1 200 OK\r\n\r\n", 200, b"", False),
        (OK + b"HTTP/1.1 200", 200, b"ok", False),
        (chunked(b"0\r\n\r\n"), 200, b"", True),
        (chunked(b"2\r\nok\r\n0\r\n\r\n"), 200, b"ok", True),
        (chunked(b'1;name=value\r\no\r\n01 ;q="\xe9"\r\nk\r\n000\r\nA: b\r\nC:\r\n\r\n'), 200, b"ok", True),
        (chunked(b"2\r\nok\r\n0\r\n\r\n!"), 200, b"ok", False),
    ],
)
def test_every_framing_is_read_to_its_end(data: bytes, status: int, body: bytes, reusable: bool) -> None:
    """Reading too few bytes breaks this answer, reading too many breaks the next one."""
    response = answer(data)
    assert (response.status, response.body, response.reusable) == (status, body, reusable)


@pytest.mark.parametrize("data", [OK, chunked(b"2\r\nok\r\n0\r\n\r\n"), b"HTTP/1.1 204 No\r\n\r\n"])
def test_a_complete_answer_needs_no_end_of_connection(data: bytes) -> None:
    """With keep-alive, waiting for more bytes would last until the deadline."""
    assert answer(data, end=False).reusable


def test_header_names_are_lower_case_and_repeats_are_joined() -> None:
    """A server may send rate limits in several header lines."""
    headers = b"X-Sentry-Rate-Limits: 1:a\r\nX-SENTRY-RATE-LIMITS:\t2:b \r\nEmpty:\r\nOdd: caf\xe9\r\n"
    response = answer(b"HTTP/1.1 429 Slow\r\n" + headers + b"Content-Length: 0\r\n\r\n")
    assert response.headers == {
        "x-sentry-rate-limits": "1:a, 2:b",
        "empty": "",
        "odd": "café",
        "content-length": "0",
    }


#: Answers whose head is complete, and whose framing is wrong.
BENT = [
    b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n: no name\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nName : blank\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\tA: b\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nN\xe9: b\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nA: b\0c\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nA: b\rSet: c\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nA: b\nSet: c\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nA: b\x1b[2J\r\n\r\n",
    b"HTTP/1.1 200 O\0K\r\n\r\n",
    b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 300 + b"\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nokk",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nokk",
    b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0x2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    chunked(b"zz\r\n"),
    chunked(b"\r\n"),
    chunked(b"-1\r\n"),
    chunked(b"0x2\r\nok\r\n0\r\n\r\n"),
    chunked(b"1_0\r\n"),
    chunked(b"2 2\r\nok\r\n"),
    chunked(b"100000000\r\n"),
    chunked(b"2;a=\0\r\nok\r\n0\r\n\r\n"),
    chunked(b"2;a=" + b"b" * 5000 + b"\r\nok\r\n0\r\n\r\n"),
    chunked(b"2\nok\r\n0\r\n\r\n" + b"x" * 5000),
    chunked(b"2\r\nokay\r\n0\r\n\r\n"),
    chunked(b"0\r\nno colon\r\n\r\n"),
    chunked(b"0\r\nA: \0\r\n\r\n"),
    chunked(b"0\r\n" + b"A: b\r\n" * 30_000 + b"\r\n"),
]


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01 not HTTP",
        b"garbage",
        b"\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.2 200 OK\r\n\r\n",
        b"http/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 2\xb2\xb3 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.1 600 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 9,
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70_000,
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * 65_530 + b"\r\n\r\n",
        *(data.replace(b"200 O", b"500 O") for data in BENT),
    ],
    ids=lambda data: repr(data[:60])[1:],
)
def test_what_is_not_exactly_http_is_refused(data: bytes) -> None:
    """A lenient parser permits response smuggling and header injection."""
    error = failure(data)
    assert error.kind == "protocol"
    assert error.body_sent
    assert error.answered


@pytest.mark.parametrize("data", BENT, ids=lambda data: repr(data[:60])[1:])
def test_a_success_in_bent_framing_is_an_answer_and_costs_the_connection(data: bytes) -> None:
    """The server has accepted the envelope: a retry would store it again."""
    limits = b"200 OK\r\nX-Sentry-Rate-Limits: 60:error"
    for sent in (data, data.replace(b"200 OK", limits, 1)):
        response = answer(sent)
        assert response.status == 200
        assert not response.reusable
    if b"200 OK\n" not in data and b"200 O\0" not in data:
        assert response.headers["x-sentry-rate-limits"] == "60:error"


@pytest.mark.parametrize(
    "body", [b"Content-Length: 5\r\n\r\nok", b"Transfer-Encoding: chunked\r\n\r\n5\r\nok"]
)
def test_a_success_whose_body_does_not_end_is_an_answer(body: bytes) -> None:
    """The connection is closed early, or the body arrives too slowly for the deadline."""
    data = b"HTTP/1.1 200 OK\r\n" + body
    assert answer(data).status == 200
    with pair() as (ours, theirs):
        theirs.sendall(data)
        response = run(ours, seconds=0.05)
    assert (response.status, response.reusable) == (200, False)


def test_a_success_in_bent_framing_before_the_request_was_sent_is_refused() -> None:
    """It can't be the answer to a request that the server has not read."""
    for data in (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"):
        with pair() as (ours, theirs):
            theirs.sendall(data)
            with pytest.raises(ExchangeError) as caught:
                run(ours, bytes(5_000_000))
        assert (caught.value.kind, caught.value.body_sent) == ("protocol", False)


@pytest.mark.parametrize(
    "unit",
    [
        b"HTTP/1.1 100 C\r\n\r\n",
        b"HTTP/1.0 103 E\r\nA: b\r\n\r\n",
        b"HTTP/1.1 100 C\r\n" + b"A: b\r\n" * 100_000,
    ],
    ids=["short", "of HTTP/1.0", "without end"],
)
def test_interim_answers_while_the_body_is_sent_are_bounded_too(unit: bytes) -> None:
    """Without the bound, endless interim answers took 30 seconds of CPU and 41 MB."""
    flood = memoryview(unit * (1 + 10_000_000 // len(unit)))
    sent = 0

    def serve() -> None:
        nonlocal sent
        with contextlib.suppress(OSError):
            while sent < len(flood):
                sent += theirs.send(flood[sent:])

    with pair() as (ours, theirs):
        server = threading.Thread(target=serve)
        server.start()
        with pytest.raises(ExchangeError) as caught:
            run(ours, bytes(50_000_000))
        ours.close()
        server.join()
    assert caught.value.kind == "protocol"
    assert not caught.value.body_sent
    assert sent < 1_000_000


def fields(count: int) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + b"A: b\r\n" * (count - 1) + b"\r\n"


def head_of(size: int) -> bytes:
    """Return an answer with a head of `size` bytes, without the empty line."""
    start = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nA: "
    return start + b"b" * (size - len(start)) + b"\r\n\r\n"


def trailer_of(size: int) -> bytes:
    """Return an answer with trailer lines of `size` bytes in all, without line ends."""
    return chunked(b"0\r\n" + b"A: b\r\n" * 1000 + b"A: " + b"b" * (size - 4003) + b"\r\n\r\n")


@pytest.mark.parametrize(
    ("within", "beyond"),
    [
        (fields(255), fields(256)),
        (head_of(64 * 1024), head_of(64 * 1024 + 1)),
        (b"HTTP/1.1 199 x\r\n\r\n" * 7 + OK, b"HTTP/1.1 199 x\r\n\r\n" * 8 + OK),
        (b"HTTP/1.1 599 x\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 600 x\r\nContent-Length: 0\r\n\r\n"),
        (OK, OK.replace(b"200 OK", b"200\tOK")),
        (OK, OK.replace(b"200 OK", b"200-OK")),
        (OK, OK.replace(b"OK", b"O\x7fK")),
        (OK.replace(b"OK", b"O\tK"), OK.replace(b"OK", b"O\x1fK")),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: " + b"0" * 18 + b"\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: " + b"0" * 19 + b"\r\n\r\n",
        ),
        (
            chunked(b"0;" + b"a" * 4094 + b"\r\n\r\n"),
            chunked(b"0;" + b"a" * 4095 + b"\r\n\r\n"),
        ),
        (chunked(b"00000000\r\n\r\n"), chunked(b"000000000\r\n\r\n")),
        (trailer_of(64 * 1024), trailer_of(64 * 1024 + 1)),
    ],
    ids=lambda data: repr(data[:60])[1:],
)
def test_each_bound_is_where_it_is_said_to_be(within: bytes, beyond: bytes) -> None:
    """An answer at a bound is read whole and leaves the connection usable; one more is refused."""
    assert answer(within).reusable
    # As a failure: a success beyond a bound is one all the same, and costs the connection.
    assert failure(beyond.replace(b"HTTP/1.1 2", b"HTTP/1.1 5")).kind == "protocol"


@pytest.mark.parametrize(
    ("within", "beyond"),
    [
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 1048576\r\n\r\n" + b"x" * 1048576,
            b"HTTP/1.1 200 OK\r\nContent-Length: 1048577\r\n\r\n" + b"x" * 1048577,
        ),
        (
            chunked(b"fffc0\r\n" + b"x" * 0xFFFC0 + b"\r\n0\r\n\r\n"),
            chunked(b"fffc1\r\n" + b"x" * 0xFFFC1 + b"\r\n0\r\n\r\n"),
        ),
        (
            chunked(b"40\r\n" + b"x" * 64 + b"\r\n")
            + (b"40\r\n" + b"x" * 64 + b"\r\n") * 8191
            + b"0\r\n\r\n",
            chunked(b"40\r\n" + b"x" * 64 + b"\r\n")
            + (b"40\r\n" + b"x" * 64 + b"\r\n") * 8192
            + b"0\r\n\r\n",
        ),
    ],
    ids=["length", "chunk", "chunks"],
)
def test_a_body_is_read_to_its_end_up_to_a_mebibyte(within: bytes, beyond: bytes) -> None:
    """A longer body costs the connection, but no more time; each chunk counts 64 bytes plus its data."""
    for data, reusable in ((within, True), (beyond, False)):
        with pair() as (ours, theirs):
            writer = threading.Thread(target=feed, args=(theirs, data))
            writer.start()
            response = run(ours, seconds=SOON)
            assert (len(response.body), response.reusable) == (64 * 1024, reusable)
            ours.close()
            writer.join(SOON)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1048577\r\n\r\n" + b"x" * 65536,
        chunked(b"fffc1\r\n" + b"x" * 65536),
    ],
)
def test_a_body_that_is_given_up_spoils_its_connection_although_no_more_has_come(data: bytes) -> None:
    """The rest arrives later, and would be read as the next answer."""
    response = answer(data, end=False)
    assert (len(response.body), response.reusable) == (65536, False)


class Wrapped:
    """A stream that is no `socket`, like TLS inside TLS; each read returns one byte."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.settimeout, self.send, self.fileno = sock.settimeout, sock.send, sock.fileno

    def recv(self, bufsize: int, /) -> bytes:
        return self._sock.recv(1)


def test_a_stream_of_any_make_is_read_as_a_socket_is() -> None:
    """The answer is read to its end, to the end of the connection, or until the deadline."""
    with pair() as (ours, theirs):
        writer = threading.Thread(target=feed, args=(theirs, OK))
        writer.start()
        response = exchange(Wrapped(ours), HEAD, BODY, deadline=time.monotonic() + SOON)
        writer.join(SOON)
        assert (response.status, response.body, response.reusable) == (200, b"ok", True)
        with pytest.raises(ExchangeError) as late:
            exchange(Wrapped(ours), HEAD, BODY, deadline=time.monotonic() + 0.05)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(ExchangeError) as ended:
            exchange(Wrapped(ours), HEAD, BODY, deadline=time.monotonic() + SOON)
    assert (late.value.kind, late.value.answered) == ("timeout", False)
    assert (ended.value.kind, ended.value.answered) == ("reset", False)


def test_an_error_while_opening_has_sent_and_received_nothing() -> None:
    """The defaults of an error raised while opening: the request may be repeated at once."""
    error = ExchangeError("connect", "refused")
    assert (error.body_sent, error.answered) == (False, False)


def test_no_byte_of_an_answer_is_told_apart() -> None:
    """Only without a byte of an answer may a POST on a reused connection be repeated."""
    error = failure(b"")
    assert (error.kind, error.body_sent, error.answered) == ("reset", True, False)


def test_an_error_says_what_without_saying_what_came() -> None:
    """Errors are logged; header values and bodies may contain secrets."""
    error = failure(b"HTTP/1.1 500 No\r\nSet-Cookie: s3cret\0\r\n\r\n")
    assert str(error) == "protocol: control characters in the headers"
    assert "s3cret" not in repr(error)
    assert "s3cret" not in repr(answer(b"HTTP/1.1 200 OK\r\nSet-Cookie: s3cret\r\n\r\ns3cret"))
    again = pickle.loads(pickle.dumps(error))
    assert (again.kind, again.detail, again.body_sent, again.answered) == (
        error.kind,
        error.detail,
        True,
        True,
    )


def test_a_description_is_short_and_printable() -> None:
    """The text of an error may be chosen by a server."""
    assert describe(ConnectionResetError(104, "reset")) == "ConnectionResetError: reset"
    assert describe(OSError("Tunnel failed: 407 \x1b[2J" + "x" * 500)) == (
        "OSError: Tunnel failed: 407 [2J" + "x" * 137
    )
    assert describe(TimeoutError()) == "TimeoutError"


@pytest.mark.parametrize("framing", ["length", "chunked", "end"])
def test_a_long_body_is_read_but_not_kept(framing: str) -> None:
    """An error page may be large; only its beginning is needed for the log."""
    body = b"x" * 500_000
    if framing == "length":
        data = b"HTTP/1.1 500 No\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    elif framing == "chunked":
        data = chunked(b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n")
    else:
        data = b"HTTP/1.1 500 No\r\n\r\n" + body
    with pair() as (ours, theirs):
        writer = threading.Thread(target=feed, args=(theirs, data))
        writer.start()
        response = run(ours)
        assert response.body == body[: 64 * 1024]
        assert response.reusable is (framing != "end")
        ours.close()
        writer.join(30)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 4000000000\r\n\r\n" + b"x" * 70_000,
        chunked(b"ffffffff\r\n" + b"x" * 70_000),
        chunked(b"11170\r\n" + b"x" * 70_000 + b"\r\n100000\r\n" + b"x" * 70_000),
        chunked(b"4\r\nabcd\r\n" * 30_000),
    ],
)
def test_a_body_beyond_the_limit_is_not_waited_for(data: bytes) -> None:
    """The status is known; reading a body of gigabytes would only block a sender."""
    with pair() as (ours, theirs):
        writer = threading.Thread(target=feed, args=(theirs, data))
        writer.start()
        response = run(ours)
        assert response.status == 200
        assert 60_000 <= len(response.body) <= 64 * 1024
        assert not response.reusable
        ours.close()
        writer.join(30)


def feed(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        sock.sendall(data)


def test_the_deadline_holds_against_a_server_that_never_answers() -> None:
    """A server that hangs blocks a sender no longer than the deadline."""
    with pair() as (ours, _):
        began = time.monotonic()
        with pytest.raises(ExchangeError) as caught:
            run(ours, seconds=0.05)
        assert 0.04 <= time.monotonic() - began < SOON / 2
    assert (caught.value.kind, caught.value.body_sent, caught.value.answered) == ("timeout", True, False)


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"])
def test_the_deadline_holds_against_a_drip(start: bytes) -> None:
    """If each read had a timeout of its own, a slow server could block a sender forever."""
    now = 0.0

    class Dripping(socket.socket):
        """A socket on which each byte takes a second of the fake clock."""

        def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
            nonlocal now
            now += 1.0
            return super().recv(1, flags)

    left, right = socket.socketpair()
    with Dripping(fileno=left.detach()) as ours, right:
        right.sendall(start or OK)
        with pytest.raises(ExchangeError) as caught:
            exchange(ours, HEAD, BODY, deadline=10.0, clock=lambda: now)
    assert caught.value.kind == "timeout"
    assert now == 10.0


def test_nothing_is_sent_after_the_deadline() -> None:
    """An exchange must not begin after its deadline."""
    with pair() as (ours, theirs):
        with pytest.raises(ExchangeError) as caught:
            run(ours, seconds=-1)
        ours.close()
        assert theirs.recv(1) == b""
    assert (caught.value.kind, caught.value.body_sent) == ("timeout", False)


@pytest.mark.parametrize("size", [60_000, 3_000_000])
def test_the_deadline_holds_while_sending(size: int) -> None:
    """A server that does not read must not block a sender beyond the deadline."""
    with pair() as (ours, _):
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        began = time.monotonic()
        with pytest.raises(ExchangeError) as caught:
            run(ours, b"x" * size, seconds=0.1)
        assert time.monotonic() - began < SOON / 2
    assert (caught.value.kind, caught.value.body_sent) == ("timeout", False)


def read_all(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count and (part := sock.recv(1 << 20)):
        data += part
    return bytes(data)


@pytest.mark.parametrize("size", [0, 65_536, 65_537, 5_000_000])
def test_bodies_of_any_size_arrive_whole(size: int) -> None:
    """Bodies of more than 64 KiB are sent in parts."""
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    received = []

    def serve() -> None:
        received.append(read_all(theirs, len(HEAD) + size))
        theirs.sendall(OK)

    with pair() as (ours, theirs):
        server = threading.Thread(target=serve)
        server.start()
        assert run(ours, body) == answer(OK)
        server.join(30)
    assert received == [HEAD + body]


@pytest.mark.parametrize("interim", [b"", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_an_early_answer_ends_the_sending(interim: bytes) -> None:
    """A server that refuses the body need not read it: further sending would block until the deadline."""
    refused = b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno"
    with pair() as (ours, theirs):
        theirs.sendall(interim + refused)
        response = run(ours, b"x" * 5_000_000)
    assert (response.status, response.body, response.reusable) == (413, b"no", False)


def test_an_early_answer_that_is_cut_short_counts_as_one() -> None:
    """The server has read the request, so that it must not be repeated at once on a new connection."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"HTTP/1.1 413 Too")
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(ExchangeError) as caught:
            exchange(ours, b"POST / HTTP/1.1\r\n\r\n", bytes(1 << 20), deadline=time.monotonic() + SOON)
    assert (caught.value.kind, caught.value.answered, caught.value.body_sent) == ("reset", True, False)


def test_an_interim_answer_does_not_end_the_sending() -> None:
    """An unexpected 100 is allowed, and the server still expects the body."""
    size = 2_000_000
    received: list[bytes] = []

    def serve() -> None:
        theirs.sendall(b"HTTP/1.1 100 ")
        first = theirs.recv(100_000)
        theirs.sendall(b"Continue\r\n\r\n")
        received.append(first + read_all(theirs, len(HEAD) + size - len(first)))
        theirs.sendall(OK)

    with pair() as (ours, theirs):
        server = threading.Thread(target=serve)
        server.start()
        response = run(ours, b"x" * size)
        server.join(30)
    assert response.status == 200
    assert response.reusable
    assert received == [HEAD + b"x" * size]


@contextlib.contextmanager
def tcp_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("size", [4, 5_000_000])
def test_an_answer_survives_the_reset_behind_it(size: int) -> None:
    """A server that closes with unread bytes resets the connection after its 413 was received."""
    with tcp_pair() as (ours, theirs):
        theirs.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        ours.sendall(b"unread")
        ours.recv(1, socket.MSG_PEEK)
        theirs.close()
        response = run(ours, b"x" * size)
    assert response.status == 413
    assert not response.reusable


@pytest.mark.parametrize("size", [4, 5_000_000])
@pytest.mark.parametrize("last", [b"", b"garbage!!!"])
def test_a_reset_while_sending_is_told_as_such(size: int, last: bytes) -> None:
    """The body can't have arrived completely, so that the request may be repeated."""
    with tcp_pair() as (ours, theirs):
        if last:
            theirs.sendall(last)
            ours.recv(1, socket.MSG_PEEK)
        ours.sendall(b"unread")
        theirs.recv(1, socket.MSG_PEEK)
        theirs.close()
        with pytest.raises(ExchangeError) as caught:
            run(ours, b"x" * size)
    error = caught.value
    assert not error.body_sent
    assert error.answered is bool(last)
    assert error.kind == "reset" or (size > 4 and last and error.kind == "protocol")


def test_an_end_of_the_connection_while_sending_is_a_reset() -> None:
    """A server that closes its side without an answer will not send one."""
    with pair() as (ours, theirs):
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(ExchangeError, match="while the body was being sent") as caught:
            run(ours, b"x" * 5_000_000)
    assert (caught.value.kind, caught.value.body_sent) == ("reset", False)


def test_a_chunk_that_is_longer_than_its_size_is_refused() -> None:
    """Even by one byte: the next answer on the connection would be read from the wrong place."""
    with pytest.raises(ExchangeError, match="too long"):
        answer(b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nokX\r\n0\r\n\r\n")


def test_only_valid_header_lines_of_a_bent_head_count() -> None:
    """The envelope was accepted, so that limits in the head apply; a line that breaks HTTP means nothing."""
    lines = (b"Bad Name: 1", b"Retry-After: 5", b"A: b\0c", b" folded: 2", b"no colon", b"Content-Length: 0")
    response = answer(b"HTTP/1.1 200 OK\r\n" + b"\r\n".join(lines) + b"\r\n\r\n")
    assert response.headers == {"retry-after": "5", "content-length": "0"}
    assert not response.reusable


# -- any bytes at all ------------------------------------------------------------------------------

_FRAGMENTS = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.0 503 No\r\n",
        b"HTTP/1.1 204 \r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: 99999999999\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"A: b\r\n",
        b" folded\r\n",
        b"\r\n",
        b"\n\n",
        b"hello",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"ffffffff\r\n",
        b"\0",
    ]
)
_ANSWERS = st.one_of(
    st.binary(max_size=300),
    st.lists(st.one_of(_FRAGMENTS, st.binary(max_size=8)), max_size=12).map(b"".join),
)


def outcome(data: bytes, sizes: list[int], *, close: bool) -> Response | tuple[str, str]:
    ours, theirs = socket.socketpair()
    with Trickle(fileno=ours.detach()) as sock, theirs:
        sock.sizes = sizes
        theirs.sendall(data)
        if close:
            theirs.close()
        else:
            theirs.shutdown(socket.SHUT_WR)
        try:
            return exchange(sock, HEAD, BODY, deadline=time.monotonic() + SOON)
        except ExchangeError as error:
            return error.kind, error.detail


@given(data=_ANSWERS, close=st.booleans())
@example(data=OK, close=True)
def test_any_bytes_are_an_answer_or_an_exchange_error(data: bytes, close: bool) -> None:
    """No answer may end a sender thread."""
    result = outcome(data, [], close=close)
    if isinstance(result, Response):
        assert 200 <= result.status <= 599
        assert not (close and result.reusable)
        for name, value in result.headers.items():
            assert not any(ord(c) < 32 and c != "\t" for c in name + value)
    else:
        assert result[0] in ("reset", "protocol")


@given(data=_ANSWERS, sizes=st.lists(st.integers(1, 40), max_size=60))
@example(data=chunked(b"2\r\nok\r\n0\r\nA: b\r\n\r\n"), sizes=[1] * 100)
@example(data=b"HTTP/1.1 100 C\r\n\r\n" + OK + b"tail", sizes=[1] * 100)
@example(data=b"HTTP/1.1 200 OK\r\n\n\r\n", sizes=[1] * 100)
def test_how_bytes_are_split_changes_nothing(data: bytes, sizes: list[int]) -> None:
    """The network may split the bytes at any point."""
    whole = outcome(data, [], close=False)
    split = outcome(data, sizes, close=False)
    if isinstance(whole, Response) and isinstance(split, Response):
        # Bytes after the answer are noticed only if they were received together with it.
        assert (split.status, split.headers, split.body) == (whole.status, whole.headers, whole.body)
        assert split.reusable or not whole.reusable
    else:
        assert isinstance(whole, tuple)
        assert isinstance(split, tuple)


# -- TLS -------------------------------------------------------------------------------------------


@pytest.fixture(name="tls_pair", scope="module")
def _tls_pair() -> Callable[[], contextlib.AbstractContextManager[tuple[ssl.SSLSocket, ssl.SSLSocket]]]:
    """Makes connected TLS sockets: ours and the server's."""
    ca = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost").configure_cert(server)
    client = ssl.create_default_context()
    ca.configure_trust(client)

    @contextlib.contextmanager
    def make() -> Iterator[tuple[ssl.SSLSocket, ssl.SSLSocket]]:
        left, right = socket.socketpair()
        theirs = server.wrap_socket(right, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=theirs.do_handshake)
        thread.start()
        ours = client.wrap_socket(left, server_hostname="localhost")
        thread.join(30)
        with ours, theirs:
            yield ours, theirs

    return make


Pairs = Callable[[], contextlib.AbstractContextManager[tuple[ssl.SSLSocket, ssl.SSLSocket]]]


def test_tls_carries_an_exchange(tls_pair: Pairs) -> None:
    """A TLS socket may be readable without application data."""
    with tls_pair() as (ours, theirs):
        theirs.sendall(OK)
        assert run(ours) == answer(OK)
        assert theirs.recv(65536) == HEAD + BODY


def test_tls_sends_large_bodies_whole(tls_pair: Pairs) -> None:
    """Session tickets make the socket readable before an answer arrives."""
    body = bytes(range(256)) * 10_000
    received = []

    def serve() -> None:
        received.append(read_all(theirs, len(HEAD) + len(body)))
        theirs.sendall(OK)

    with tls_pair() as (ours, theirs):
        server = threading.Thread(target=serve)
        server.start()
        assert run(ours, body).reusable
        server.join(30)
    assert received == [HEAD + body]


def test_tls_reads_an_early_answer(tls_pair: Pairs) -> None:
    """Only reading distinguishes a record with the 413 from a session ticket."""
    with tls_pair() as (ours, theirs):
        theirs.sendall(b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n")
        assert run(ours, b"x" * 5_000_000).status == 413


def test_a_tls_failure_is_told_from_a_reset(tls_pair: Pairs) -> None:
    """With TLS 1.3 a missing client certificate fails the exchange, not the handshake."""
    with tls_pair() as (ours, theirs):
        socket.socket.sendall(theirs, b"\x17\x03\x03\x00\x20" + b"\0" * 32)  # a record that can't be right
        with pytest.raises(ExchangeError) as caught:
            run(ours)
    assert caught.value.kind == "tls"
    assert "SSL" in caught.value.detail


def test_the_end_of_a_tls_connection_is_a_reset(tls_pair: Pairs) -> None:
    """Servers also close idle TLS connections without a TLS alert."""
    with tls_pair() as (ours, theirs):
        theirs.close()
        with pytest.raises(ExchangeError) as caught:
            run(ours)
    assert caught.value.kind == "reset"
