"""The one lock that guards queue and ledger together, and the side deque for who comes while owning it.

A capture can begin anywhere: in a signal handler, in `__del__` while the garbage collector runs, in a
logging handler. If it begins on a thread that is inside one of our critical sections, waiting for the
lock would wait for itself. Such a caller leaves its work in `deferred`; whoever releases the lock runs it.

Assumes: `threading.RLock` is the C one (or gevent's), whose `with` acquires and records the owner in one
step, so no signal handler can run between the two. Critical sections are short and do no I/O.

A signal handler may also *raise* (a task's time limit, KeyboardInterrupt), and end a section wherever it
is. CPython looks for signals at calls, at the entry of functions and at jumps backward, and nowhere else.
Two rules follow, each held to by a test that has a handler raise at every instruction:

(1) The function that has the `with` block has no loop inside it; loops are in a function of their own.
CPython 3.13 leaves the jump backward of some loops out of the exception table of the block around them: what
a handler raises there passes the `with` by, and the lock stays behind for good.
(2) What must change together changes in one step: statements in a row without call or loop, such as item and
attribute assignments and in-place operators. Between two steps that belong together `whole` is False; a
section that ends there leaves it so, and `mend` runs before anyone else relies on the state.

Limits: raised between `Condition.wait` letting go of the lock and beginning to wait, the exception surfaces
as CPython's RuntimeError ("cannot release un-acquired lock") with the interrupt as its context; who waits
hands the latter on (`interrupts.py`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

__all__ = ["StateLock"]


class StateLock:
    """A re-entrant lock that knows whether the calling thread owns it.

    Use `with state.rlock:` around the state, then `state.run_deferred()` after the block. `rlock` is taken
    from `threading` at construction, so that a monkey-patch that came before it is honoured.

    `whole` is False, and `mend` to be called by the next owner, while steps that belong together are not
    all done; both are read and written only by an owner, but for a first look.

    Guarantees: an action left with `defer` by the owner runs before that owner's `run_deferred` returns, on
    some thread, holding the lock, exactly once, in the order in which actions were left.
    """

    __slots__ = ("deferred", "held", "mend", "rlock", "whole")

    def __init__(self) -> None:
        self.rlock = threading.RLock()
        # Whether the calling thread is inside a critical section; no other thread can change the answer.
        # What threading.Condition asks of its lock, too; there is no public spelling.
        self.held: Callable[[], bool] = self.rlock._is_owned  # type: ignore[attr-defined]
        # Appended to only by a thread that owns `rlock`; popped only while owning it.
        self.deferred: deque[Callable[[], object]] = deque()
        self.whole = True
        # Completes what was left half done; begun again if it is interrupted itself.
        self.mend: Callable[[], object] = _nothing

    def defer(self, action: Callable[[], object]) -> None:
        """Leave `action` for when the lock is released. Only for a thread that owns it; never blocks."""
        self.deferred.append(action)

    def run_deferred(self) -> None:
        """Run what was left aside. Does nothing for a thread that owns the lock: its own release will."""
        # Looked at again after each release: an action may be left between the last look and the release.
        while (self.deferred or not self.whole) and not self.held():
            with self.rlock:
                self.run_deferred_locked()

    def run_deferred_locked(self) -> None:
        """Mend what is half done, and run what was left aside; for whoever did not own the lock before."""
        if not self.whole:
            self.mend_locked()
        aside = self.deferred
        while aside:
            # An action ends with the step that matters, and is taken out in the same.
            aside[0]()
            del aside[0]

    def mend_locked(self) -> None:
        """Make the state whole; for whoever did not own the lock before."""
        self.mend()
        self.whole = True


def _nothing() -> None:
    """Do nothing, to mend a state that needs no mending."""
