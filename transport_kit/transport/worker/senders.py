"""Sender threads: one, the watcher, waits for the next task; the others perform tasks.

This module decides when a sender starts, which sender is the watcher, and when a sender ends. It knows
nothing about the tasks: a `Work` reports whether there is work, waits for it and performs it.

A new sender starts as soon as it is needed, without a delay between starts. Measured on 2 cores: with 1, 2,
4 or 8 senders, 8 000 to 9 100 envelopes a second are delivered over loopback, and 1 000 of them cost 95 ms
of CPU time. If the server answers after 5 ms, one sender delivers 186 envelopes a second and eight deliver
1 465. So an unneeded sender costs no CPU time, and a missing one costs throughput.

Threads: `_run` is the only code that executes on a sender. Every thread must call `leave` after each of its
critical sections, in signal handlers and `__del__` too. Methods whose names end in `_locked` are called
while holding the worker's `StateLock`.

Guarantees: no work is left without a sender. Whenever the lock is free and there is work, one of these
holds: (1) a sender is the watcher; (2) a sender was started or woken and does not run yet; (3) the maximum
number of senders is performing tasks; (4) the thread that added or found the work has not called `leave`
yet. A sender that has performed its task becomes the watcher unless there is one. A sender stops watching,
or exits, only while holding the lock, and checks for work once more before it releases the lock. `leave`
reads without the lock, but only after the work was added. If it reads that (1), (2) or (3) holds, that
condition still held after the work was added, and the thread that ends the condition finds the work.
"""

from __future__ import annotations

import _thread
import sys
import threading
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from transport_kit.runtime.lock import StateLock

__all__ = ["LINGER", "Senders", "Work"]

#: Seconds an idle sender waits before it ends; the watcher never ends for idleness.
LINGER = 1.0
#: Seconds after which a call for a sender that has not arrived is void: a signal handler that raised
#: interrupted the caller before it could start the thread. For the caller itself the call is void at once.
ANSWERED_WITHIN = 1.0

T = TypeVar("T")


class Work(Protocol[T]):
    """The interface through which senders get tasks and perform them."""

    def needed_locked(self) -> bool:
        """Return True if a sender must watch now."""

    def watch(self) -> T | None:
        """Wait for the next task; None means that the sender must end. Called without the lock."""

    def perform(self, task: T) -> None:
        """Perform a task. Must not raise."""

    def stranded(self, deadline: float | None) -> None:
        """Perform tasks on the calling thread until `deadline`: there is no sender and none can start."""


class Senders(Generic[T]):
    """The threads of one worker.

    Args:
        lock: The lock of the worker.
        maximum: Maximum number of threads at the same time; at least 1.
        work: The source of tasks.
    """

    def __init__(self, lock: StateLock, maximum: int, work: Work[T]) -> None:
        self._lock = lock
        self._maximum = maximum
        self._work = work
        # Looked up here and not at import, so that a monkey-patch applied in between takes effect.
        self._start_thread: Callable[[Callable[[], None], tuple[()]], int] = _thread.start_new_thread
        self._ident: Callable[[], int] = threading.get_ident
        # Idents of the threads that act as senders. Each thread adds and removes only its own, in one atomic
        # step, without the lock; it must remove it, as a later thread may get the same ident. Reading a
        # `threading.local` takes ten times as long.
        self._acting: set[int] = set()
        # Any thread writes these while holding `lock`, except that `_spawn` clears `_starter` without it.
        # `count` and `leave` read them without it.
        self._count = 0  # senders that have arrived and not ended
        self._watching = False  # one of them is the watcher
        self._called = False  # a sender was started or notified to watch, and has not arrived yet
        self._void_at = 0.0  # monotonic second at which that call becomes void
        self._starter: int | None = None  # ident of the thread that has to start a sender for that call
        self._followers = 0  # senders that wait to become the watcher
        self._follow = threading.Condition(lock.rlock)

    @property
    def count(self) -> int:
        """The number of senders; at least 1 while the first one is starting."""
        return self._count or int(self._called)

    @property
    def own(self) -> bool:
        """True if the calling thread is a sender, or acts as one."""
        return self._ident() in self._acting

    def act(self, acting: bool) -> None:
        """Mark the calling thread as a sender, or remove the mark."""
        if acting:
            self._acting.add(self._ident())
        else:
            self._acting.discard(self._ident())

    def leave(self, deadline: float | None = None) -> None:
        """Run deferred actions, and call a sender if one must watch. Call it after each critical section.

        Args:
            deadline: Monotonic second until which the calling thread may perform tasks if no thread can
                start; None leaves the limit to `Work.stranded`.
        """
        while True:
            self._lock.run_deferred()
            if sys.is_finalizing():
                # No other thread runs any more, whatever the state of this object is.
                if not self._lock.held():
                    self._work.stranded(deadline)
                return
            if (
                self._watching
                or self._call_pending()
                or (self._count >= self._maximum and not self._followers)
                or self._lock.held()
            ):
                return
            with self._lock.rlock:
                spawn = self._call_locked()
            if spawn:
                self._spawn(deadline)
            if not self._lock.deferred:
                return  # otherwise an action was deferred during the section above

    def _call_pending(self) -> bool:
        """Return True if a called sender may still arrive: not if this thread had to start it and did not."""
        return self._called and time.monotonic() < self._void_at and self._starter != self._ident()

    def start(self) -> None:
        """Start a sender if there is none, even if no work is known."""
        with self._lock.rlock:
            spawn = not self.count and self._call_locked(idle=True)
        if spawn:
            self._spawn(float("inf"))
        self.leave()

    def _call_locked(self, *, idle: bool = False) -> bool:
        """Call a sender to watch; return True if the caller has to start a thread for it."""
        if self._watching or self._call_pending():
            return False
        if not (idle or self._work.needed_locked()):
            return False
        spawn = not self._followers
        if spawn and self._count >= self._maximum:
            return False
        void_at = time.monotonic() + ANSWERED_WITHIN
        starter = self._ident() if spawn else None
        if not spawn:
            self._follow.notify()
        # From here to the end no signal handler can run; see `runtime/lock.py`.
        self._called = True
        self._void_at = void_at
        self._starter = starter
        return spawn

    def _spawn(self, deadline: float | None) -> None:
        # Not threading.Thread: its `start` acquires a lock of the threading module that the interrupted
        # thread may hold, and waits for the new thread; a signal handler must do neither.
        try:
            self._start_thread(self._run, ())
            self._starter = None
        except (RuntimeError, MemoryError):
            with self._lock.rlock:
                self._called = False
                alone = self._count == 0
            self._lock.run_deferred()
            if alone:
                # The interpreter is ending, or the system refuses a thread.
                self._work.stranded(deadline)

    # -- on a sender -----------------------------------------------------------------------------------

    def _run(self) -> None:
        self.act(True)
        try:
            # As threading.Thread does, for threading.settrace and threading.setprofile.
            if threading.gettrace() is not None:
                sys.settrace(threading.gettrace())
            if threading.getprofile() is not None:
                sys.setprofile(threading.getprofile())
            self._serve()
        finally:
            self.act(False)

    def _serve(self) -> None:
        with self._lock.rlock:
            self._called = False
            if self._count >= self._maximum:
                return  # the call was void, and another sender took its place
            self._count += 1
        try:
            while self._become_watcher():
                task = None
                try:
                    task = self._work.watch()
                finally:
                    self._end_watch(ending=task is None)
                if task is None:
                    return
                self._work.perform(task)
        finally:
            with self._lock.rlock:
                self._count -= 1
            self.leave()

    def _become_watcher(self) -> bool:
        """Wait until no sender watches, and watch; return False if this sender was idle and must end."""
        with self._lock.rlock:
            idle = False
            while self._watching:
                if idle:
                    return False
                self._followers += 1
                try:
                    notified = self._follow.wait(LINGER)
                finally:
                    self._followers -= 1
                # Any sender that arrives answers the call, whichever it was meant for.
                called, self._called = self._called, False
                idle = not (called or notified)
            self._watching = True
            return True

    def _end_watch(self, *, ending: bool) -> None:
        """Stop watching, and call another sender if there is more work; otherwise this one watches again."""
        with self._lock.rlock:
            self._watching = False
            if ending:
                self._follow.notify_all()  # so that the other senders end as well
            spawn = self._call_locked()
        if spawn:
            self._spawn(None)
        self.leave()
