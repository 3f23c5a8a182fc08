"""Requests to a test server: reads HTTP requests, and decodes and parses their bodies on demand.

This module owns reading requests from a socket and decoding content encodings. It knows nothing about answers
or faults (`fault_server.py`). It imports the package brotli or zstandard only for a body that needs it.

Threads: only the thread of its connection uses a `RequestReader`. That thread writes a `ReceivedRequest`; any
thread may read it.
"""

from __future__ import annotations

import json
import socket
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transport_kit.envelope.envelope import Envelope

__all__ = ["BadRequest", "ReceivedRequest", "RequestReader", "decode_body"]

_MAX_HEAD = 64 * 1024


class BadRequest(ValueError):
    """Bytes from a client are not an HTTP/1.x request."""


@dataclass(slots=True, eq=False)
class ReceivedRequest:
    """One complete request.

    Attributes:
        method: Such as `POST`.
        path: The request target as sent: a path, or an absolute URL in a request to a proxy.
        headers: Lower-case names; repeated headers are joined by a comma and a space.
        raw: The body as sent, still encoded; empty after the fault `early`, which doesn't read it.
        connection: Number of the connection in order of acceptance, from 1.
        status: The status of the complete answer; None before it, and if there is none.
    """

    method: str
    path: str
    headers: dict[str, str]
    raw: bytes = field(repr=False)
    connection: int
    status: int | None = None
    _envelope: Envelope | None = field(default=None, repr=False)

    @property
    def accepted(self) -> bool:
        """True if the answer was a 2xx."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def body(self) -> bytes:
        """The body without its content encoding.

        Raises:
            ValueError: The encoding is unknown or the bytes don't fit it.
        """
        return decode_body(self.raw, self.headers.get("content-encoding", ""))

    @property
    def envelope(self) -> Envelope:
        """The body as an envelope, parsed on first access.

        Raises:
            InvalidEnvelope: The body is not one.
        """
        if self._envelope is None:
            from transport_kit.envelope.envelope import Envelope

            self._envelope = Envelope.deserialize(self.body)
        return self._envelope

    @property
    def event_id(self) -> str | None:
        """The `event_id` of the envelope's header, or None.

        Raises:
            ValueError: The body has no JSON object on its first line.
        """
        header = json.loads(self.body.partition(b"\n")[0])
        if not isinstance(header, dict):
            raise ValueError("the first line is not a JSON object")
        value = header.get("event_id")
        return value if isinstance(value, str) else None


def decode_body(raw: bytes, encodings: str) -> bytes:
    """Decode a body; several encodings are decoded from the last to the first.

    Raises:
        ValueError: An encoding is unknown or the bytes don't fit it.
    """
    for name in reversed([word.strip().lower() for word in encodings.split(",") if word.strip()]):
        decode = _BODY_DECODERS.get(name)
        if decode is None:
            raise ValueError(f"unknown content encoding {name!r}")
        try:
            raw = decode(raw)
        except Exception as error:  # every codec has its own exception class
            raise ValueError(f"the body is not {name}: {error}") from error
    return raw


def _gzip(raw: bytes) -> bytes:
    parts = []
    while raw:  # a gzip stream may hold several members
        member = zlib.decompressobj(31)
        parts.append(member.decompress(raw))
        if not member.eof:
            raise ValueError("truncated")
        raw = member.unused_data
    return b"".join(parts)


def _brotli(raw: bytes) -> bytes:
    import brotli  # type: ignore[import-untyped]

    return bytes(brotli.decompress(raw))


def _zstd(raw: bytes) -> bytes:
    import zstandard

    with zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as reader:
        return reader.read()


_BODY_DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "identity": bytes,
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": zlib.decompress,
    "br": _brotli,
    "zstd": _zstd,
}


class RequestReader:
    """Reads requests from one connection, one after another.

    Args:
        sock: A blocking socket; another thread may shut it down.
        connection: The number of the connection, for each request.
        lock: Guards `busy`, which is True from the first byte of a request until its answer.
    """

    def __init__(self, sock: socket.socket, connection: int, lock: threading.Condition) -> None:
        self._sock = sock
        self._connection = connection
        self._lock = lock
        self._buffer = bytearray()
        self.busy = False

    def head(self) -> ReceivedRequest | None:
        """Read the next request without its body; return None if the client has closed the connection.

        Raises:
            BadRequest: The bytes are not the head of an HTTP/1.x request.
            OSError: The connection failed.
        """
        self._set_busy(bool(self._buffer))
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > _MAX_HEAD:
                raise BadRequest("the head is too long")
            if not self._fill():
                if self._buffer:
                    raise BadRequest("the connection ended inside the head")
                return None
            self._set_busy(True)
        text = self._buffer[:end].decode("latin-1")
        del self._buffer[: end + 4]
        first, *lines = text.split("\r\n")
        words = first.split(" ")
        if len(words) != 3 or words[2] not in ("HTTP/1.0", "HTTP/1.1"):
            raise BadRequest("bad request line")
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            name = name.lower()
            if not colon or not name or name != name.strip():
                raise BadRequest("bad header line")
            value = value.strip(" \t")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        return ReceivedRequest(words[0], words[1], headers, b"", self._connection)

    def body(self, request: ReceivedRequest) -> None:
        """Read the body of `request`, whose head was just read.

        Raises:
            BadRequest: It ended early or its framing is wrong.
            OSError: The connection failed.
        """
        if request.headers.get("expect", "").lower() == "100-continue":
            self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if request.headers.get("transfer-encoding", "").lower() == "chunked":
            request.raw = self._chunked()
            return
        length = request.headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            raise BadRequest("bad Content-Length")
        request.raw = self._exactly(int(length))

    def answered(self) -> None:
        """Mark the connection idle, unless the next request has begun. The caller holds the lock."""
        self.busy = bool(self._buffer)

    def _set_busy(self, busy: bool) -> None:
        with self._lock:
            self.busy = busy

    def _chunked(self) -> bytes:
        parts = []
        while True:
            size = self._line().partition(b";")[0].strip()
            try:
                length = int(size, 16)
            except ValueError:
                raise BadRequest("bad chunk size") from None
            if length == 0:
                break
            parts.append(self._exactly(length))
            if self._exactly(2) != b"\r\n":
                raise BadRequest("bad chunk end")
        while self._line():
            pass  # trailers
        return b"".join(parts)

    def _line(self) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            if len(self._buffer) > _MAX_HEAD or not self._fill():
                raise BadRequest("bad line in a chunked body")
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _exactly(self, length: int) -> bytes:
        while len(self._buffer) < length:
            if not self._fill():
                raise BadRequest("the connection ended inside the body")
        part = bytes(self._buffer[:length])
        del self._buffer[:length]
        return part

    def _fill(self) -> bool:
        data = self._sock.recv(65536)
        self._buffer += data
        return bool(data)
