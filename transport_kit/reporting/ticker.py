"""Ticker: empties a buffer a while after its first item came.

Owns the thread that waits, one at a time, and only while the buffer holds something. Knows no logs and no
sessions.

Threads: `arm` may be called from any thread, also in a forked child, where the parent's thread is not.
`empty` runs on the ticker's thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from transport_kit.runtime.log import log

__all__ = ["Ticker"]


class Ticker:
    """Calls `empty` about `seconds` after `arm`, once; further `arm`s meanwhile change nothing.

    Args:
        empty: Takes what the buffer holds and hands it on.
        seconds: Between `arm` and `empty`.
        name: Of the thread.
    """

    def __init__(self, empty: Callable[[], object], seconds: float, name: str) -> None:
        self._empty = empty
        self._seconds = seconds
        self._name = name
        # The process in which a thread waits; 0 when none does. Two that arm at once may start two
        # threads: the second finds the buffer empty.
        self._waits_in = 0
        self._stop = threading.Event()

    def arm(self) -> None:
        """See to it that the buffer is emptied in a while."""
        if self._waits_in == os.getpid():
            return
        self._waits_in = os.getpid()
        # New in a forked child: the parent's may have been caught half-way.
        self._stop = threading.Event()
        thread = threading.Thread(target=self._run, args=(self._stop,), name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            self._waits_in = 0  # the interpreter is ending: the flush at its end empties the buffer

    def hasten(self) -> None:
        """Empty now, on the ticker's thread, if one waits."""
        self._stop.set()

    def _run(self, stop: threading.Event) -> None:
        stop.wait(self._seconds)
        # Before emptying: what comes in between arms anew, and nothing is left lying.
        self._waits_in = 0
        try:
            self._empty()
        except Exception as problem:
            log.error("%s failed: %s", self._name, type(problem).__name__)
