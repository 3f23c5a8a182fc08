"""Decodes content encodings up to a limit: a small body that inflates costs no more than the limit.

This module owns the five encodings that clients of this protocol send. It knows nothing of envelopes.

Threads: pure functions; `decode` is CPU work and belongs in a worker thread, not on the event loop.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator

import brotli  # type: ignore[import-untyped]
import zstandard

from transport_kit.receiver.refusal import Refusal

__all__ = ["KNOWN_ENCODINGS", "decode"]

_STEP = 64 * 1024
# 4 bytes can encode a zstd block of 128 KiB, so this much input can't inflate past 16 MiB.
_ZSTD_STEP = 512
# RFC 8878 section 3.1.1.1.2: decoders should support windows of 8 MiB; a larger one may exhaust memory.
_ZSTD_WINDOW = 8 * 1024 * 1024


class _Damaged(Exception):
    """The bytes are not valid in the encoding."""


def _pieces(data: bytes, size: int) -> Iterator[memoryview]:
    """Split the input into small steps: at every step a decoder copies what it has not consumed."""
    view = memoryview(data)
    for start in range(0, len(data), size):
        yield view[start : start + size]


def _zlib(data: bytes, window_bits: int) -> Iterator[bytes]:
    """Inflate gzip (31), zlib (15) or raw deflate (-15)."""
    inflate = zlib.decompressobj(window_bits)
    for piece in _pieces(data, _STEP):
        if inflate.eof:
            raise _Damaged("bytes follow the end of the data")
        yield inflate.decompress(piece, _STEP)
        while inflate.unconsumed_tail and not inflate.eof:
            yield inflate.decompress(inflate.unconsumed_tail, _STEP)
    while not inflate.eof:
        chunk = inflate.decompress(b"", _STEP)
        if not chunk:
            raise _Damaged("the data ends early")
        yield chunk
    if inflate.unused_data:
        raise _Damaged("bytes follow the end of the data")


def _gzip(data: bytes) -> Iterator[bytes]:
    return _zlib(data, 31)


def _deflate(data: bytes) -> Iterator[bytes]:
    """Inflate a zlib stream, which the name stands for, or a raw one, which half of the clients send."""
    has_header = len(data) >= 2 and data[0] & 0x0F == 8 and (data[0] << 8 | data[1]) % 31 == 0
    return _zlib(data, 15 if has_header else -15)


def _brotli(data: bytes) -> Iterator[bytes]:
    inflate = brotli.Decompressor()
    for piece in _pieces(data, _STEP):
        yield inflate.process(piece, output_buffer_limit=_STEP)  # raises when bytes follow the end
        while not inflate.can_accept_more_data():
            yield inflate.process(b"", output_buffer_limit=_STEP)
    while not inflate.is_finished():
        chunk: bytes = inflate.process(b"", output_buffer_limit=_STEP)
        if not chunk and not inflate.is_finished():
            raise _Damaged("the data ends early")
        yield chunk


def _zstd(data: bytes) -> Iterator[bytes]:
    inflate = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()
    for piece in _pieces(data, _ZSTD_STEP):
        if inflate.eof:
            raise _Damaged("bytes follow the end of the data")
        yield inflate.decompress(piece)
    if not inflate.eof:
        raise _Damaged("the data ends early")
    if inflate.unused_data:
        raise _Damaged("bytes follow the end of the data")


_STREAM_DECODERS: dict[str, Callable[[bytes], Iterator[bytes]]] = {
    "br": _brotli,
    "deflate": _deflate,
    "gzip": _gzip,
    "x-gzip": _gzip,
    "zstd": _zstd,
}

KNOWN_ENCODINGS = frozenset({*_STREAM_DECODERS, "", "identity"})
"""Known names; a body of any other is taken as it is, and then fails to parse as an envelope."""


def decode(body: bytes, encoding: str, limit: int) -> bytes:
    """Return the body without its content encoding.

    Needs memory for `limit` bytes and one step (16 MiB for zstd, 100 KiB for the others) beyond the input.

    Args:
        body: As received.
        encoding: Value of Content-Encoding, already lower case and stripped.
        limit: Largest decoded size in bytes.

    Raises:
        Refusal: 413 past the limit, 400 when the data is damaged.
    """
    decoder = _STREAM_DECODERS.get(encoding)
    if decoder is None:
        return body
    inflated = io.BytesIO()
    try:
        for chunk in decoder(body):
            if inflated.tell() + len(chunk) > limit:
                raise Refusal(
                    413,
                    "envelope exceeded size limits",
                    [f"the {encoding} body inflates to more than {limit} bytes"],
                )
            inflated.write(chunk)
    except (_Damaged, zlib.error, brotli.error, zstandard.ZstdError) as error:
        raise Refusal(400, "failed to decode the request body", [f"{encoding}: {error}"]) from None
    return inflated.getvalue()
