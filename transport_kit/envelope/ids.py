"""Ids: the random bytes that ids are made of.

Owns a small stock of them. Each `os.urandom` gives up the interpreter's lock for its system call, and where a
sender waits for that lock this costs a request some 10 us: so one call is made for many ids.

No bytes are used twice. A forked child throws its parent's stock away, also when no hook saw the fork; and so
does each of several copies that are woken up from one snapshot of a machine, by the age of the stock.

Threads: any, signal handlers and `__del__` included. Taking from the stock is one atomic step; it is checked
after that, so that whatever comes in between finds a chunk that is gone.
"""

from __future__ import annotations

import os
import time
from typing import Final

__all__ = ["new_uuid", "random_bytes"]

_CHUNK: Final = 32
_CHUNKS: Final = 32
#: Seconds of the wall clock for which a stock may be used.
_LASTS: Final = 1.0
_VARIANTS: Final = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}


class _Stock:
    __slots__ = ("chunks", "drawn_at", "pid")

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.drawn_at = time.time()
        drawn = os.urandom(_CHUNK * _CHUNKS)
        self.chunks = [drawn[at : at + _CHUNK] for at in range(0, len(drawn), _CHUNK)]


# Replaced in one step; whoever still takes from the one before takes what nobody else gets.
_stock = _Stock()


def random_bytes(size: int) -> bytes:
    """`size` bytes, at most 32, as `os.urandom` gives them."""
    global _stock
    for _ in range(2):
        stock = _stock
        try:
            chunk = stock.chunks.pop()
        except IndexError:
            pass
        else:
            if stock.pid == os.getpid() and 0.0 <= time.time() - stock.drawn_at < _LASTS:
                return chunk[:size]
        _stock = _Stock()
    # Others took all of it, or the clock leaps.
    return os.urandom(size)


def new_uuid() -> str:
    """32 hex digits of a random UUID (RFC 9562, version 4)."""
    digits = random_bytes(16).hex()
    return f"{digits[:12]}4{digits[13:16]}{_VARIANTS[digits[16]]}{digits[17:]}"
