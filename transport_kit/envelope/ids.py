"""Random ids, and the random bytes that they are made of.

This module owns a small stock of random bytes. Each `os.urandom` releases the interpreter's lock for its
system call; if a sender waits for that lock, this costs a request some 10 us. So one call provides the bytes
of many ids.

No bytes are used twice. A forked child discards its parent's stock, even if no fork hook ran. Several copies
of a machine restored from one snapshot discard it because of its age.

Threads: any, signal handlers and `__del__` included. A chunk is removed from the stock in one atomic step and
checked after that, so no two callers get the same chunk.
"""

from __future__ import annotations

import os
import time
from typing import Final

__all__ = ["new_uuid", "random_bytes"]

_CHUNK: Final = 32
_CHUNKS: Final = 32
#: Seconds of the wall clock for which a stock is used.
_MAX_AGE: Final = 1.0
_VARIANTS: Final = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}


class _Stock:
    __slots__ = ("chunks", "drawn_at", "pid")

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.drawn_at = time.time()
        data = os.urandom(_CHUNK * _CHUNKS)
        self.chunks = [data[at : at + _CHUNK] for at in range(0, len(data), _CHUNK)]


# Replaced in one step. A thread that still takes from the previous stock gets a chunk that no other gets.
_stock = _Stock()


def random_bytes(size: int) -> bytes:
    """Return `size` random bytes, at most 32, of the quality of `os.urandom`."""
    global _stock
    for _ in range(2):
        stock = _stock
        try:
            chunk = stock.chunks.pop()
        except IndexError:
            pass
        else:
            if stock.pid == os.getpid() and 0.0 <= time.time() - stock.drawn_at < _MAX_AGE:
                return chunk[:size]
        _stock = _Stock()
    # Other threads emptied the new stock, or the clock jumps.
    return os.urandom(size)


def new_uuid() -> str:
    """Return the 32 hex digits of a random UUID (RFC 9562, version 4)."""
    digits = random_bytes(16).hex()
    return f"{digits[:12]}4{digits[13:16]}{_VARIANTS[digits[16]]}{digits[17:]}"
