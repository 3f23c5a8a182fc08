"""The lock that guards queue and ledger together, and a deque of actions deferred by a thread that owns it.

A capture can begin anywhere: in a signal handler, in `__del__` during a garbage collection, in a logging
handler. If it begins on a thread that is inside a critical section, waiting for the lock would be a deadlock.
Such a capture appends its work to `deferred`, which is run when the lock is released.

Assumes: `threading.RLock` is the C implementation (or gevent's), whose `with` acquires the lock and records
the owner in one step, so that no signal handler can run in between. Critical sections are short, without I/O.

A signal handler may also *raise* (a task's time limit, KeyboardInterrupt), and so end a section at any point.
CPython checks for signals at calls, at the entry of functions and at backward jumps only. Two rules follow,
and a test in which a handler raises at every instruction verifies each:

(1) The `with` block contains no loop; loops are in functions of their own. CPython 3.13 leaves the backward
jump of some loops out of the exception table of the block around them: an exception that a handler raises
there skips the exit of the `with`, and the lock stays locked for good.
(2) State that must change together changes in one step: consecutive statements without a call or a loop, such
as item and attribute assignments and in-place operators. Between two steps that belong together `whole` is
False. If a section ends there, `mend` runs before another section uses the state.

Limits: if the exception comes while `Condition.wait` has released the lock and does not wait yet, it surfaces
as CPython's RuntimeError ("cannot release un-acquired lock") with the interrupt as its context. The waiting
code raises that context again (`interrupts.py`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

__all__ = ["StateLock"]


class StateLock:
    """A re-entrant lock that knows whether the calling thread owns it.

    Use `with state.rlock:` around the state, then `state.run_deferred()` after the block. `rlock` is made by
    `threading` at construction, so that an earlier monkey-patch has its effect.

    `whole` is False while steps that belong together are not all done; the next owner must then call `mend`.
    Only the owner reads and writes both, except that `run_deferred` first reads `whole` without the lock.

    Guarantees: an action that the owner passes to `defer` runs before that owner's `run_deferred` returns, on
    some thread that holds the lock, exactly once, in the order of the calls.
    """

    __slots__ = ("consistent", "deferred", "held", "mend", "rlock")

    def __init__(self) -> None:
        self.rlock = threading.RLock()
        # Returns True if the calling thread owns the lock, which no other thread can change. There is no
        # public method for it; threading.Condition uses this one too.
        self.held: Callable[[], bool] = self.rlock._is_owned  # type: ignore[attr-defined]
        # Only the owner of `rlock` appends and deletes.
        self.deferred: deque[Callable[[], object]] = deque()
        self.whole = True
        # Completes an interrupted change; called again if it is itself interrupted.
        self.mend: Callable[[], object] = _nothing

    def defer(self, action: Callable[[], object]) -> None:
        """Run `action` when the lock is released. The caller must own the lock; never blocks."""
        self.deferred.append(action)

    def run_deferred(self) -> None:
        """Run deferred actions; do nothing if the calling thread owns the lock: its release will run them."""
        # Checked again after each release: an action may be deferred between the last check and the release.
        while (self.deferred or not self.whole) and not self.held():
            with self.rlock:
                self.run_deferred_locked()

    def run_deferred_locked(self) -> None:
        """Mend the state and run deferred actions. The caller has just acquired the lock."""
        if not self.whole:
            self.mend_locked()
        actions = self.deferred
        while actions:
            # The last step of an action changes the state, and the deletion belongs to the same step.
            actions[0]()
            del actions[0]

    def mend_locked(self) -> None:
        """Complete an interrupted change. The caller has just acquired the lock."""
        self.mend()
        self.consistent = True


def _nothing() -> None:
    """Do nothing, to mend a state that needs no mending."""
