"""The lock that guards a queue and its ledger together, with actions deferred until its release.

A capture can begin anywhere: in a signal handler, in `__del__` during a garbage collection, in a logging
handler. If its thread is inside a critical section, the thread owns the lock already, and the state may be
inconsistent. The capture then appends an action to `deferred`, and the thread runs it after the release.

Assumes: `threading.RLock` is the C implementation (or gevent's), whose `with` acquires the lock and records
the owner in one step, so that no signal handler can run in between. Critical sections are short, without I/O.

A signal handler may also *raise* (a task's time limit, KeyboardInterrupt), and so end a section at any point.
CPython runs signal handlers at calls, at the entry of functions and at backward jumps, and nowhere else. Two
rules follow, which tests check with a handler that raises at every instruction:

(1) A function with a `with` block has no loop inside the block; loops are in functions of their own. CPython
3.13 leaves the backward jump of some loops out of the exception table of the block around them: an exception
raised there skips the `__exit__` of the `with`, and the lock is never released.
(2) State that must change together changes in one step: consecutive statements without a call or a loop, such
as item and attribute assignments and in-place operators. Between two steps that belong together `consistent`
is False. If a section ends there, the next owner calls `mend` before it uses the state.

Limits: if a handler raises between the release of the lock in `Condition.wait` and the beginning of the wait,
CPython raises RuntimeError ("cannot release un-acquired lock") with the handler's exception as its context.
The waiting code raises that exception instead (`interrupts.py`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

__all__ = ["StateLock"]


class StateLock:
    """A re-entrant lock that knows whether the calling thread owns it.

    Use `with lock.rlock:` around the state, then call `lock.run_deferred()` after the block. `rlock` comes
    from `threading` at the time of construction, so that an earlier monkey-patch takes effect.

    Guarantees: an action passed to `defer` by the owner runs before that owner's `run_deferred` returns, on
    some thread, holding the lock, exactly once, in the order of the calls.

    Attributes:
        rlock: The lock itself.
        held: Returns True if the calling thread owns the lock.
        deferred: Actions to run after the owner's critical section, the oldest first.
        consistent: False while steps that belong together are not all done. Written only by the owner;
            `run_deferred` also reads it without the lock, and again with it.
        mend: Makes the guarded state consistent again after an interrupted section. Called by the next owner,
            and called again if it is interrupted itself.
    """

    __slots__ = ("consistent", "deferred", "held", "mend", "rlock")

    def __init__(self) -> None:
        self.rlock = threading.RLock()
        # The method that threading.Condition calls on its lock; there is no public one. No other thread can
        # change the result for the calling thread.
        self.held: Callable[[], bool] = self.rlock._is_owned  # type: ignore[attr-defined]
        # Only the owner of `rlock` appends and removes; any thread may read its length.
        self.deferred: deque[Callable[[], object]] = deque()
        self.consistent = True
        self.mend: Callable[[], object] = _nothing

    def defer(self, action: Callable[[], object]) -> None:
        """Have `action` run after the lock is released. Only for the owner; never blocks."""
        self.deferred.append(action)

    def run_deferred(self) -> None:
        """Run the deferred actions. Does nothing for the owner, which runs them after its release."""
        # Checked again after each release: an action may be deferred between the last check and the release.
        while (self.deferred or not self.consistent) and not self.held():
            with self.rlock:
                self.run_deferred_locked()

    def run_deferred_locked(self) -> None:
        """Mend the state if necessary, and run the deferred actions; not for a re-entrant owner."""
        if not self.consistent:
            self.mend_locked()
        actions = self.deferred
        while actions:
            # An action ends with its decisive step, and its removal belongs to the same step.
            actions[0]()
            del actions[0]

    def mend_locked(self) -> None:
        """Make the guarded state consistent; not for a re-entrant owner."""
        self.mend()
        self.consistent = True


def _nothing() -> None:
    """Do nothing: the default of `mend`."""
