"""The one lock that guards queue and ledger together, and the side deque for who comes while owning it.

A capture can begin anywhere: in a signal handler, in `__del__` while the garbage collector runs, in a
logging handler. If it begins on a thread that is inside one of our critical sections, waiting for the
lock would wait for itself. Such a caller leaves its work in `aside`; whoever releases the lock runs it.

Assumes: `threading.RLock` is the C one (or gevent's), whose `with` acquires and records the owner in one
step, so no signal handler can run between the two. Critical sections are short and do no I/O.

Limits: a signal handler that *raises* (KeyboardInterrupt, a timeout turned into an exception) inside a
critical section leaves it half done, as it does with any Python code. The lock is released all the same,
nothing hangs, and what can be off is the one envelope in the section's hands. Raised in the instruction
between `Condition.wait` letting go of the lock and beginning to wait, it surfaces as CPython's own
RuntimeError ("cannot release un-acquired lock") with the interrupt as its context.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

__all__ = ["StateLock"]


class StateLock:
    """A re-entrant lock that knows whether the calling thread owns it.

    Use `with state.rlock:` around the state, then `state.drain()` after the block. `rlock` is taken from
    `threading` at construction, so that a monkey-patch that came before it is honoured.

    Guarantees: an action left with `later` by the owner runs before that owner's `drain` returns, on some
    thread, holding the lock, exactly once, in the order in which actions were left.
    """

    __slots__ = ("aside", "held", "rlock")

    def __init__(self) -> None:
        self.rlock = threading.RLock()
        # Whether the calling thread is inside a critical section; no other thread can change the answer.
        # What threading.Condition asks of its lock, too; there is no public spelling.
        self.held: Callable[[], bool] = self.rlock._is_owned  # type: ignore[attr-defined]
        # Appended to only by a thread that owns `rlock`; popped only while owning it.
        self.aside: deque[Callable[[], object]] = deque()

    def later(self, action: Callable[[], object]) -> None:
        """Leave `action` for when the lock is released. Only for a thread that owns it; never blocks."""
        self.aside.append(action)

    def drain(self) -> None:
        """Run what was left aside. Does nothing for a thread that owns the lock: its own release will."""
        # Looked at again after each release: an action may be left between the last look and the release.
        while self.aside and not self.held():
            with self.rlock:
                self.drain_locked()

    def drain_locked(self) -> None:
        """Run what was left aside; for a caller that holds the lock and whose state is whole."""
        while self.aside:
            self.aside.popleft()()
