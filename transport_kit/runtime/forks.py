"""Sections that a fork must not cut in two: late imports, above all.

Owns the gate between such a section and a fork. In a child, a module that one of its parent's threads was
importing stays half imported, and its lock held, for ever: a sender there would wait for it without end.

Threads: `fork_guard` may be entered from any thread, and by several one after another. A fork waits for the
section under way, up to `LONGEST` seconds. A fork that no hook sees, one made in C, waits for nothing.
"""

from __future__ import annotations

import _thread
import os
import threading
from typing import Any

__all__ = ["fork_guard"]

#: Seconds that a fork waits for a section: imports take a quarter of one, on a slow disk more.
LONGEST = 5.0


class _Gate:
    """`with fork_guard: import …` and no fork of this process happens meanwhile."""

    def __init__(self) -> None:
        # Made when the hooks are, at the first transport: a monkey-patch may have come before that.
        self._lock: Any = None
        # Threads that hold the lock because they fork. Items are added and discarded atomically.
        self._forkers: set[int] = set()

    def install(self) -> None:
        """Be asked before each fork. Once per process; a child inherits it."""
        self._lock = threading.Lock()
        os.register_at_fork(
            before=self._before_fork, after_in_parent=self._after_in_parent, after_in_child=self._renew
        )

    def __enter__(self) -> None:
        if self._lock is not None:
            self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        if self._lock is not None:
            self._lock.release()

    def _before_fork(self) -> None:
        if self._lock.acquire(timeout=LONGEST):
            self._forkers.add(_thread.get_ident())

    def _after_in_parent(self) -> None:
        me = _thread.get_ident()
        if me in self._forkers:
            self._forkers.discard(me)
            self._lock.release()

    def _renew(self) -> None:
        self._forkers.clear()
        self._lock = threading.Lock()


fork_guard = _Gate()
