"""Ticker: empties a buffer some seconds after its first item.

This module owns the waiting thread: one at a time, and only while the buffer holds something. It knows no
logs and no sessions.

Threads: `arm` may be called from any thread, also in a forked child, which has no thread of the parent's.
`empty` runs on the ticker's thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from transport_kit.runtime.log import log

__all__ = ["Ticker"]


class Ticker:
    """Calls `empty` once, about `seconds` after `arm`; further calls of `arm` until then have no effect.

    Args:
        empty: Takes the buffer's content and sends it.
        seconds: Between `arm` and `empty`.
        name: The thread's name.
    """

    def __init__(self, empty: Callable[[], object], seconds: float, name: str) -> None:
        self._empty = empty
        self._seconds = seconds
        self._name = name
        # Pid of the process in which a thread waits; 0 if none does. Two concurrent calls of `arm` may start
        # two threads; the second then finds the buffer empty.
        self._waits_in = 0
        self._stop = threading.Event()

    def arm(self) -> None:
        """Start the waiting thread, unless it runs already."""
        if self._waits_in == os.getpid():
            return
        self._waits_in = os.getpid()
        # A new event: in a forked child, the parent's may have been copied with its lock held.
        self._stop = threading.Event()
        thread = threading.Thread(target=self._run, args=(self._stop,), name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            self._waits_in = 0  # the interpreter is shutting down; the final flush empties the buffer

    def hasten(self) -> None:
        """Empty the buffer now, on the ticker's thread, if one waits."""
        self._stop.set()

    def _run(self, stop: threading.Event) -> None:
        stop.wait(self._seconds)
        # Before emptying: an item added meanwhile starts a new thread, so none is left behind.
        self._waits_in = 0
        try:
            self._empty()
        except Exception as problem:
            log.error("%s failed: %s", self._name, type(problem).__name__)
