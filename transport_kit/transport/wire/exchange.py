"""One HTTP/1.1 exchange on an open socket: writes a POST and reads the whole answer.

This module owns the bytes on the wire; `connections.py` opens, chooses and keeps connections. It replaces an
HTTP client library because of its cost: a library takes 130 to 400 µs of CPU for a 10 kB POST, one write and
one read take 17.

Strict, because an answer is untrusted input: anything but exact HTTP/1.x framing is an error, every part is
bounded, and one deadline applies to the whole exchange, however slowly its bytes arrive. One exception: a
complete head with a 2xx, after the whole request was sent, is an answer even if the rest is malformed, as the
server has accepted the envelope. Its connection is not reused.

Threads: `exchange` keeps no state; only one thread at a time may use a socket.

Source: RFC 9112 sections 2 to 9 (framing, smuggling), RFC 9110 section 15.2 (interim answers).
"""

from __future__ import annotations

import errno
import re
import selectors
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NoReturn, Protocol

from transport_kit.runtime.errors import TransportKitError

__all__ = ["ExchangeError", "ExchangeErrorKind", "Response", "Stream", "describe", "exchange", "would_block"]

ExchangeErrorKind = Literal["connect", "tls", "proxy", "timeout", "reset", "protocol"]

_MAX_HEAD = 64 * 1024
_MAX_FIELDS = 256
_MAX_INTERIM = 8
_KEPT_BODY = 64 * 1024
_MAX_BODY = 1024 * 1024
_MAX_CHUNK_LINE = 4096
# Bytes added to the size of each chunk's data, so that the number of tiny chunks is bounded as well.
_CHUNK_COST = 64
_RECV = 16 * 1024
# Bodies up to this size are written together with the head; above it, the copy costs more than a write.
_JOINED = 64 * 1024
_CONTROLS = bytes(code for code in (*range(32), 127) if code != 9)
_is_token = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_success_line = re.compile(rb"HTTP/1\.[01] (2[0-9][0-9])(?: [^\r\n]*)?(?:\r?\n|\Z)").match
_chunk_line = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[\t -~\x80-\xff]*)?").fullmatch
# Exceptions of ssl by name, because importing ssl takes 20 ms and only a TLS socket raises them.
_TLS_WOULD_BLOCK = frozenset({"SSLWantReadError", "SSLWantWriteError"})
_TLS_ENDED = frozenset({"SSLEOFError", "SSLZeroReturnError"})


class Stream(Protocol):
    """The methods an exchange needs: those of `socket`, `SSLSocket` and urllib3's TLS inside TLS."""

    def settimeout(self, value: float | None, /) -> None: ...
    def send(self, data: bytes | memoryview, /) -> int: ...
    def recv(self, bufsize: int, /) -> bytes: ...
    def fileno(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Response:
    """A complete answer.

    Attributes:
        status: From 200 to 599.
        headers: By name in lower case; repeated headers are joined by a comma and a space.
        body: The first 64 KiB, without chunked framing, not decoded otherwise.
        reusable: True if the connection may be used for another exchange.

    A 2xx with malformed framing has its readable headers and no body, and is not reusable.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    reusable: bool


class ExchangeError(TransportKitError):
    """There is no usable answer.

    Attributes:
        kind: `connect`, `tls` or `proxy` while opening; `timeout`; `reset` if the peer ended the connection
            before the answer was complete; `protocol` if the answer is not valid HTTP.
        detail: A class name and a short text; never contains a header's value, a body or a URL's user.
        body_sent: True if the whole body was written, so that the server may have acted on it.
        answered: True if at least one byte of an answer was read.
    """

    def __init__(
        self, kind: ExchangeErrorKind, detail: str, body_sent: bool = False, answered: bool = False
    ) -> None:
        super().__init__(kind, detail, body_sent, answered)  # pickle rebuilds the error from these
        self.kind = kind
        self.detail = detail
        self.body_sent = body_sent
        self.answered = answered

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


def describe(error: BaseException) -> str:
    """Return the class and the text of an error, printable and bounded in length."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    text = "".join(c for c in text[:160] if c.isprintable())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def exchange(
    sock: Stream,
    head: bytes,
    body: bytes,
    *,
    deadline: float,
    clock: Callable[[], float] = time.monotonic,
) -> Response:
    """Write `head` and `body`, and read the whole answer.

    An answer that arrives while the body is being sent (such as a 413) ends the sending and is returned.

    Args:
        sock: A connected socket. Its timeout is changed.
        head: Request line and headers, including the final empty line. The method must not be HEAD, and
            Content-Length must be the length of `body`.
        body: The body.
        deadline: Time by which the exchange must be complete, in seconds of `clock`.
        clock: Returns monotonic seconds.

    Raises:
        ExchangeError: Its kind is `timeout`, `reset`, `protocol`, or `tls` for an alert from the peer.
    """
    state = _Exchange(sock, deadline, clock)
    send_error: ExchangeError | None = None
    try:
        state.send(head, body)
    except ExchangeError as error:
        if error.kind != "reset":
            raise
        send_error = error  # a server that refuses a body may answer and close: the answer may be readable
    try:
        return state.read_answer()
    except ExchangeError as error:
        if send_error is None:
            raise
        raise ExchangeError("reset", send_error.detail, answered=error.answered) from None


class _Exchange:
    """The state of one exchange: the bytes received and not parsed yet, and its progress."""

    __slots__ = (
        "_answered",
        "_body_sent",
        "_buffer",
        "_clock",
        "_deadline",
        "_interims",
        "_malformed",
        "_searched",
        "_sock",
    )

    def __init__(self, sock: Stream, deadline: float, clock: Callable[[], float]) -> None:
        self._sock = sock
        self._deadline = deadline
        self._clock = clock
        self._buffer = bytearray()
        # Number of bytes of the buffer that contain no end of a head.
        self._searched = 0
        # Number of interim answers so far.
        self._interims = 0
        # True if the head of a 2xx violates HTTP/1.x.
        self._malformed = False
        self._body_sent = False
        self._answered = False

    # -- sending -----------------------------------------------------------------------------------

    def send(self, head: bytes, body: bytes) -> None:
        """Send head and body; stop early if the server answers meanwhile."""
        parts = [head + body] if len(body) <= _JOINED else [head, body]
        sent = self._write(parts[0])
        if len(parts) > 1 or sent < len(parts[0]):
            parts[0] = parts[0][sent:]
            if not self._send_watching(parts):
                return
        self._body_sent = True

    def _send_watching(self, parts: list[bytes]) -> bool:
        """Send while reading; return False if the server answered before the end.

        Waits for both directions, because a server that has answered may never read the rest.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(self._sock.fileno(), selectors.EVENT_READ | selectors.EVENT_WRITE)
            for part in parts:
                view = memoryview(part)
                while view:
                    ready = 0
                    for _, events in selector.select(self._remaining()):
                        ready |= events
                    if ready & selectors.EVENT_READ and self._read_final_answer_start():
                        return False
                    if ready & selectors.EVENT_WRITE:
                        view = view[self._write(view[:_JOINED]) :]
        return True

    def _write(self, data: bytes | memoryview) -> int:
        try:
            self._sock.settimeout(self._remaining())
            return self._sock.send(data)
        except OSError as error:
            self._fail(error)

    def _read_final_answer_start(self) -> bool:
        """Read what arrived; return True once a final answer, not an interim one, has begun."""
        try:
            self._sock.settimeout(0)
            data = self._sock.recv(_RECV)
        except OSError as error:
            if would_block(error):
                return False  # messages of TLS itself, or an incomplete record
            self._fail(error)
        if not data:
            self._raise("reset", "the connection was closed while the body was being sent")
        self._buffer += data
        self._answered = True
        while self._is_interim() and (block := self._take_head()) is not None:
            self._count_interim(self._parse(block)[1])
        return len(self._buffer) > 9 and not self._is_interim()

    def _is_interim(self) -> bool:
        """True if the buffer begins with an answer whose status is 1xx."""
        return self._buffer.startswith(b"HTTP/1.") and self._buffer[8:10] == b" 1"

    # -- receiving ---------------------------------------------------------------------------------

    def read_answer(self) -> Response:
        """Read the final answer, after any interim ones, to its end or to the bounds."""
        persistent, status, headers = self._head()
        while status < 200:
            self._count_interim(status)
            persistent, status, headers = self._head()
        try:
            body, complete = self._body(status, headers)
        except ExchangeError:
            if not (self._body_sent and 200 <= status < 300):
                raise
            return Response(status, headers, b"", False)
        connection = headers.get("connection")
        if connection is not None:
            words = {word.strip() for word in connection.lower().split(",")}
            persistent = "close" not in words and (persistent or "keep-alive" in words)
        reusable = persistent and complete and self._body_sent and not self._buffer and not self._malformed
        return Response(status, headers, body, reusable)

    def _head(self) -> tuple[bool, int, dict[str, str]]:
        """Read the next head; return True for HTTP/1.1, the status and the headers."""
        while (block := self._take_head()) is None:
            self._fill()
        try:
            return self._parse(block)
        except ExchangeError:
            # The server accepted the envelope: a retry because of a malformed header would be a duplicate.
            match = _success_line(block) if self._body_sent else None
            if match is None:
                raise
            self._malformed = True
            return True, int(match[1]), _readable_headers(block)

    def _take_head(self) -> bytes | None:
        """Remove a complete head from the buffer; return it without the empty line, or None if incomplete."""
        buffer = self._buffer
        end, size = buffer.find(b"\r\n\r\n", self._searched), 4
        if (bare := buffer.find(b"\n\n", self._searched, end if end >= 0 else len(buffer))) >= 0:
            end, size = bare, 2
        if end > _MAX_HEAD or (end < 0 and len(buffer) > _MAX_HEAD):
            self._raise("protocol", "the headers are longer than 64 KiB")
        if end < 0:
            if not b"HTTP/1.".startswith(buffer[:7]):
                self._raise("protocol", "the answer is not HTTP/1.x")
            self._searched = max(0, len(buffer) - 3)
            return None
        # Lines that end in LF alone keep their last newline, so that `_parse` refuses the head.
        block = bytes(buffer[: end + 1 if size == 2 else end])
        del buffer[: end + size]
        self._searched = 0
        return block

    def _count_interim(self, status: int) -> None:
        if status == 101:
            self._raise("protocol", "the server switched protocols unasked")
        self._interims += 1
        if self._interims == _MAX_INTERIM:
            self._raise("protocol", "too many interim answers")

    def _parse(self, block: bytes) -> tuple[bool, int, dict[str, str]]:
        lines = block.decode("latin-1").split("\r\n")
        if len(block) - len(block.translate(None, _CONTROLS)) != 2 * (len(lines) - 1):
            self._raise("protocol", "control characters in the headers")
        first = lines[0]
        version, code = first[:9], first[9:12]
        if (
            version not in ("HTTP/1.1 ", "HTTP/1.0 ")
            or not (len(code) == 3 and code.isascii() and code.isdigit() and "100" <= code <= "599")
            or first[12:13] not in ("", " ")
        ):
            self._raise("protocol", "bad status line")
        if len(lines) > _MAX_FIELDS:
            self._raise("protocol", f"more than {_MAX_FIELDS} header lines")
        headers: dict[str, str] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            # A folded line begins with a blank, so it is refused here too.
            if not colon or not _is_token(name):
                self._raise("protocol", "bad header line")
            name = name.lower()
            value = value.strip(" \t")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        return version == "HTTP/1.1 ", int(code), headers

    def _body(self, status: int, headers: dict[str, str]) -> tuple[bytes, bool]:
        """Read the body; return its first 64 KiB, and True if all of it was read."""
        if status in (204, 304):
            return b"", True
        length = headers.get("content-length")
        coding = headers.get("transfer-encoding")
        if coding is not None:
            # Both headers at once, or any other coding, is a means of response smuggling.
            if length is not None or coding.lower() != "chunked":
                self._raise("protocol", "bad Transfer-Encoding")
            return self._chunked_body()
        body = bytearray()
        if length is None:
            while len(body) < _KEPT_BODY and (self._buffer or self._receive()):
                self._move(min(len(self._buffer), _KEPT_BODY - len(body)), body)
            return bytes(body), False
        size = self._content_length(length)
        complete = size <= _MAX_BODY
        self._move(size if complete else _KEPT_BODY, body)
        return bytes(body), complete

    def _content_length(self, text: str) -> int:
        values = {value.strip(" \t") for value in text.split(",")}
        value = values.pop()
        if values or not (value.isascii() and value.isdigit()) or len(value) > 18:
            self._raise("protocol", "bad Content-Length")
        return int(value)

    def _chunked_body(self) -> tuple[bytes, bool]:
        body = bytearray()
        cost = 0
        while True:
            match = _chunk_line(self._line(_MAX_CHUNK_LINE))
            if match is None:
                self._raise("protocol", "bad chunk size")
            size = int(match[1], 16)
            if size == 0:
                break
            cost += size + _CHUNK_COST
            if cost > _MAX_BODY:
                self._move(min(size, _KEPT_BODY - len(body)), body)
                return bytes(body), False
            self._move(size, body)
            self._line(0)  # the CRLF after the chunk's data
        room = _MAX_HEAD
        while line := self._line(room):
            name, colon, _ = line.decode("latin-1").partition(":")
            if not colon or not _is_token(name) or len(line.translate(None, _CONTROLS)) != len(line):
                self._raise("protocol", "bad trailer line")
            room -= len(line)
        return bytes(body), True

    def _move(self, count: int, body: bytearray) -> None:
        """Read exactly `count` bytes and append them to `body`, except those beyond its first 64 KiB."""
        while count > 0:
            if not self._buffer:
                self._fill()
            part = self._buffer[:count]
            del self._buffer[:count]
            count -= len(part)
            body += part[: max(0, _KEPT_BODY - len(body))]

    def _line(self, limit: int) -> bytes:
        """Read the next line of at most `limit` bytes; return it without its CRLF."""
        searched = 0
        while (end := self._buffer.find(b"\r\n", searched, limit + 2)) < 0:
            if len(self._buffer) >= limit + 2:
                self._raise("protocol", "a line of the chunked body is too long")
            searched = max(0, len(self._buffer) - 1)
            self._fill()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _fill(self) -> None:
        """Receive more bytes; raise an error at the end of the connection."""
        if not self._receive():
            self._raise("reset", "the connection was closed before the answer was complete")

    def _receive(self) -> bool:
        """Receive more bytes; return False at the end of the connection."""
        try:
            if isinstance(self._sock, socket.socket):
                self._sock.settimeout(self._remaining())
                data = self._sock.recv(_RECV)
            else:
                data = self._receive_unblocked()
        except OSError as error:
            self._fail(error)
        if data:
            self._answered = True
            self._buffer += data
        return bool(data)

    def _receive_unblocked(self) -> bytes:
        """Receive bytes within the deadline from a stream whose timeout applies to each part of a TLS record.

        TLS inside TLS is such a stream: with its own timeout, a slow server could delay `recv` forever.
        """
        self._sock.settimeout(0)
        with selectors.DefaultSelector() as selector:
            selector.register(self._sock.fileno(), selectors.EVENT_READ)
            while True:
                try:
                    return self._sock.recv(_RECV)
                except OSError as error:
                    if not would_block(error):
                        raise
                selector.select(self._remaining())

    def _remaining(self) -> float:
        remaining = self._deadline - self._clock()
        if remaining <= 0:
            self._raise("timeout", "the deadline has passed")
        return remaining

    def _fail(self, error: OSError) -> NoReturn:
        name = type(error).__name__
        if isinstance(error, TimeoutError):
            if error.errno == errno.ETIMEDOUT:
                # Not our deadline: the system gave the connection up, as the peer acknowledged nothing.
                self._raise("reset", "the peer acknowledged nothing")
            self._raise("timeout", "the deadline has passed")
        kind: ExchangeErrorKind = "tls" if name.startswith("SSL") and name not in _TLS_ENDED else "reset"
        self._raise(kind, describe(error))

    def _raise(self, kind: ExchangeErrorKind, detail: str) -> NoReturn:
        raise ExchangeError(kind, detail, self._body_sent, self._answered) from None


def _readable_headers(block: bytes) -> dict[str, str]:
    """Return the valid header lines of a malformed head, without the continuations of folded lines."""
    headers: dict[str, str] = {}
    for line in block.splitlines()[1:_MAX_FIELDS]:
        name, colon, value = line.decode("latin-1").partition(":")
        if colon and _is_token(name) and len(line.translate(None, _CONTROLS)) == len(line):
            name, value = name.lower(), value.strip(" \t")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def would_block(error: OSError) -> bool:
    """Return True if `error` only means that a non-blocking socket is not ready."""
    return isinstance(error, BlockingIOError) or type(error).__name__ in _TLS_WOULD_BLOCK
