"""One HTTP/1.1 exchange on an open socket: write a POST, read the whole answer.

Owns the bytes on the wire and nothing else: opening, choosing and keeping connections is
`connections.py`. Written for one measured reason: a client library spends 130 to 400 µs of CPU on a
10 kB POST, a write and a read spend 17.

Strict, because an answer is hostile input: what is not exactly HTTP/1.x framing is an error, every
part is bounded, and the deadline holds for the whole exchange, however slowly bytes drip. One exception: a
complete head with a 2xx, after the whole request was sent, is an answer however bent the rest is, as the
server has the envelope; it costs the connection.

Threads: `exchange` keeps no state; a socket belongs to one caller at a time.

Source: RFC 9112 sections 2 to 9 (framing, smuggling), RFC 9110 section 15.2 (interim answers).
"""

from __future__ import annotations

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
# What a chunk counts beyond its data, so that a body of tiny chunks stays bounded in work as well.
_CHUNK_COST = 64
_RECV = 16 * 1024
# Up to here head and body go out in one write; beyond it, the copy costs more than a second write.
_JOINED = 64 * 1024
_CONTROLS = bytes(code for code in (*range(32), 127) if code != 9)
_is_token = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_success_line = re.compile(rb"HTTP/1\.[01] (2[0-9][0-9])(?: [^\r\n]*)?(?:\r?\n|\Z)").match
_chunk_line = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[\t -~\x80-\xff]*)?").fullmatch
# By name, because importing ssl costs 20 ms and only a TLS socket can raise these.
_TLS_WOULD_BLOCK = frozenset({"SSLWantReadError", "SSLWantWriteError"})
_TLS_ENDED = frozenset({"SSLEOFError", "SSLZeroReturnError"})


class Stream(Protocol):
    """What an exchange needs of a socket; `socket`, `SSLSocket` and TLS inside TLS have it."""

    def settimeout(self, value: float | None, /) -> None: ...
    def send(self, data: bytes | memoryview, /) -> int: ...
    def recv(self, bufsize: int, /) -> bytes: ...
    def fileno(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Response:
    """A complete answer.

    Attributes:
        status: From 200 to 599.
        headers: Lower-case names; repeats joined by a comma and a space.
        body: Without chunked framing, not decoded otherwise; at most 64 KiB of it.
        reusable: Whether the connection may carry another exchange.

    A 2xx whose framing is bent has the headers that can be read and no body, and is not reusable.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    reusable: bool


class ExchangeError(TransportKitError):
    """There is no usable answer.

    Attributes:
        kind: `connect`, `tls` or `proxy` while opening; `timeout`; `reset` when the peer ended the
            connection before the answer was complete; `protocol` when its bytes are not HTTP.
        detail: A class name and a short text; never a header's value, a body, or a URL's user.
        body_sent: The whole body was handed to the connection: the server may have acted on it.
        answered: At least one byte of an answer came.
    """

    def __init__(
        self, kind: ExchangeErrorKind, detail: str, body_sent: bool = False, answered: bool = False
    ) -> None:
        super().__init__(kind, detail, body_sent, answered)  # these args rebuild it when unpickled
        self.kind = kind
        self.detail = detail
        self.body_sent = body_sent
        self.answered = answered

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


def describe(error: BaseException) -> str:
    """The class and the short text of a socket's or library's error, printable and bounded."""
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
    """Write `head` and `body`, read the whole answer.

    An answer that comes while the body is still being sent (a 413) ends the sending and is returned.

    Args:
        sock: Connected. Its timeout is changed.
        head: Request line and headers with the empty line that ends them. The request must not be a
            HEAD, and its Content-Length must be the length of `body`.
        deadline: When to give up, in `clock`'s seconds.

    Raises:
        ExchangeError: Of kind `timeout`, `reset`, `protocol`, or `tls` for an alert of the peer's.
    """
    run = _Exchange(sock, deadline, clock)
    broken: ExchangeError | None = None
    try:
        run.send(head, body)
    except ExchangeError as error:
        if error.kind != "reset":
            raise
        broken = error  # a server that refuses a body may close at once: its answer can be there
    try:
        return run.answer()
    except ExchangeError as error:
        if broken is None:
            raise
        raise ExchangeError("reset", broken.detail, answered=error.answered) from None


class _Exchange:
    """One exchange under way: the bytes that came and are not used yet, and how far it got."""

    __slots__ = (
        "_answered",
        "_bent",
        "_body_sent",
        "_buffer",
        "_clock",
        "_deadline",
        "_interims",
        "_searched",
        "_sock",
    )

    def __init__(self, sock: Stream, deadline: float, clock: Callable[[], float]) -> None:
        self._sock = sock
        self._deadline = deadline
        self._clock = clock
        self._buffer = bytearray()
        # How far the buffer was searched for the end of a head.
        self._searched = 0
        self._interims = 0
        # The head of a 2xx is not HTTP to the letter.
        self._bent = False
        self._body_sent = False
        self._answered = False

    # -- out ---------------------------------------------------------------------------------------

    def send(self, head: bytes, body: bytes) -> None:
        """Send all, or less when an answer is there already."""
        parts = [head + body] if len(body) <= _JOINED else [head, body]
        sent = self._write(parts[0])
        if len(parts) > 1 or sent < len(parts[0]):
            parts[0] = parts[0][sent:]
            if not self._send_watching(parts):
                return
        self._body_sent = True

    def _send_watching(self, parts: list[bytes]) -> bool:
        """Send while looking for an early answer; False when one came.

        Waits for both directions, because a server that has answered may never read again.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(self._sock.fileno(), selectors.EVENT_READ | selectors.EVENT_WRITE)
            for part in parts:
                view = memoryview(part)
                while view:
                    ready = 0
                    for _, events in selector.select(self._remaining()):
                        ready |= events
                    if ready & selectors.EVENT_READ and self._final_answer_begun():
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

    def _final_answer_begun(self) -> bool:
        try:
            self._sock.settimeout(0)
            data = self._sock.recv(_RECV)
        except OSError as error:
            if would_block(error):
                return False  # bytes of TLS itself, or a part of a record
            self._fail(error)
        if not data:
            self._raise("reset", "the connection was closed while the body was being sent")
        self._buffer += data
        self._answered = True
        while self._is_interim() and (block := self._whole_head()) is not None:
            self._skip_interim(self._parse(block)[1])
        return len(self._buffer) > 9 and not self._is_interim()

    def _is_interim(self) -> bool:
        """True if the buffer begins with an answer whose status is 1xx."""
        return self._buffer.startswith(b"HTTP/1.") and self._buffer[8:10] == b" 1"

    # -- in ----------------------------------------------------------------------------------------

    def answer(self) -> Response:
        """Read the answer, interim ones skipped, to its end or to the limits."""
        persistent, status, headers = self._head()
        while status < 200:
            self._skip_interim(status)
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
        reusable = persistent and complete and self._body_sent and not self._buffer and not self._bent
        return Response(status, headers, body, reusable)

    def _head(self) -> tuple[bool, int, dict[str, str]]:
        """The next head: whether HTTP/1.1, the status, the headers."""
        while (block := self._whole_head()) is None:
            self._fill()
        try:
            return self._parse(block)
        except ExchangeError:
            # The server has it: a repeat because of a bent header would be a duplicate.
            match = _success_line(block) if self._body_sent else None
            if match is None:
                raise
            self._bent = True
            return True, int(match[1]), _readable_headers(block)

    def _whole_head(self) -> bytes | None:
        """Take a head that came whole out of the buffer, without the empty line; None while it is not."""
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
        # The newline of a bare end stays, for it to be refused.
        block = bytes(buffer[: end + 1 if size == 2 else end])
        del buffer[: end + size]
        self._searched = 0
        return block

    def _skip_interim(self, status: int) -> None:
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
            # A folded line begins with a blank, so it fails here too.
            if not colon or not _is_token(name):
                self._raise("protocol", "bad header line")
            name = name.lower()
            value = value.strip(" \t")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        return version == "HTTP/1.1 ", int(code), headers

    def _body(self, status: int, headers: dict[str, str]) -> tuple[bytes, bool]:
        """The part of the body that is kept, and whether all of it was read."""
        if status in (204, 304):
            return b"", True
        length = headers.get("content-length")
        coding = headers.get("transfer-encoding")
        if coding is not None:
            # Both at once, or any other coding, is how answers are smuggled.
            if length is not None or coding.lower() != "chunked":
                self._raise("protocol", "bad Transfer-Encoding")
            return self._chunked_body()
        kept = bytearray()
        if length is None:
            while len(kept) < _KEPT_BODY and (self._buffer or self._receive()):
                self._take(min(len(self._buffer), _KEPT_BODY - len(kept)), kept)
            return bytes(kept), False
        size = self._content_length(length)
        complete = size <= _MAX_BODY
        self._take(size if complete else _KEPT_BODY, kept)
        return bytes(kept), complete

    def _content_length(self, text: str) -> int:
        values = {value.strip(" \t") for value in text.split(",")}
        value = values.pop()
        if values or not (value.isascii() and value.isdigit()) or len(value) > 18:
            self._raise("protocol", "bad Content-Length")
        return int(value)

    def _chunked_body(self) -> tuple[bytes, bool]:
        kept = bytearray()
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
                self._take(min(size, _KEPT_BODY - len(kept)), kept)
                return bytes(kept), False
            self._take(size, kept)
            self._line(0)  # the end of the chunk's data: an empty line, or an error
        room = _MAX_HEAD
        while line := self._line(room):
            name, colon, _ = line.decode("latin-1").partition(":")
            if not colon or not _is_token(name) or len(line.translate(None, _CONTROLS)) != len(line):
                self._raise("protocol", "bad trailer line")
            room -= len(line)
        return bytes(kept), True

    def _take(self, count: int, kept: bytearray) -> None:
        """Use up exactly `count` bytes; the first 64 KiB of the body are kept."""
        while count > 0:
            if not self._buffer:
                self._fill()
            part = self._buffer[:count]
            del self._buffer[:count]
            count -= len(part)
            kept += part[: max(0, _KEPT_BODY - len(kept))]

    def _line(self, limit: int) -> bytes:
        """The next line of at most `limit` bytes, without its CRLF."""
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
        """Receive more; the end of the connection is an error."""
        if not self._receive():
            self._raise("reset", "the connection was closed before the answer was complete")

    def _receive(self) -> bool:
        """Receive more; False at the end of the connection."""
        try:
            if isinstance(self._sock, socket.socket):
                self._sock.settimeout(self._remaining())
                data = self._sock.recv(_RECV)
            else:
                data = self._receive_in_steps()
        except OSError as error:
            self._fail(error)
        if data:
            self._answered = True
            self._buffer += data
        return bool(data)

    def _receive_in_steps(self) -> bytes:
        """As `recv` with a timeout, for TLS inside TLS, where a timeout only holds for each part of a
        record and a drip could stretch it without end."""
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
            self._raise("timeout", "the deadline has passed")
        kind: ExchangeErrorKind = "tls" if name.startswith("SSL") and name not in _TLS_ENDED else "reset"
        self._raise(kind, describe(error))

    def _raise(self, kind: ExchangeErrorKind, detail: str) -> NoReturn:
        raise ExchangeError(kind, detail, self._body_sent, self._answered) from None


def _readable_headers(block: bytes) -> dict[str, str]:
    """The header lines of a bent head that are as they should be; a continued line has its first part."""
    headers: dict[str, str] = {}
    for line in block.splitlines()[1:_MAX_FIELDS]:
        name, colon, value = line.decode("latin-1").partition(":")
        if colon and _is_token(name) and len(line.translate(None, _CONTROLS)) == len(line):
            name, value = name.lower(), value.strip(" \t")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def would_block(error: OSError) -> bool:
    """Whether a call on a non-blocking socket only found nothing to do."""
    return isinstance(error, BlockingIOError) or type(error).__name__ in _TLS_WOULD_BLOCK
