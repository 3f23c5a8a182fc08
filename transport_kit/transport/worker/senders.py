"""Sender threads: one watches for work, the others do it; as many as the work needs.

Owns the threads: when one starts, which one watches, when one leaves. Knows nothing of what they do;
the worker says whether there is work, looks for it, and performs it.

Growth is not paced. Measured on 2 cores with a deliverer of 60 us CPU and a loopback round trip, 1, 2, 4
and 8 senders deliver 8 000 to 9 100 a second at the same 95 ms CPU per 1 000; with answers after 5 ms, 1
delivers 186 and 8 deliver 1 465. So more senders than needed cost nothing, and too few cost much.

Threads: `_run` is the only code that executes on a sender. `leave` is called by any thread after each of
its critical sections, from signal handlers and `__del__` too; names that end in `_locked` want the lock.

Why nothing that waits is forgotten. Whenever the lock is free and there is work, one of these holds:
(1) a sender watches; (2) one was called and is on its way; (3) all senders there may be are performing;
(4) the thread that made or saw the work has not reached `leave` yet. A performer becomes the watcher again
as soon as it is done, unless there is one. The watch ends, and a sender leaves, only under the lock, and
what ends it looks once more. `leave` reads without the lock after the work was made: what it then sees of
(1) to (3) was true after that, so its end comes later still, and whoever ends it finds the work.
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

#: Seconds a sender stays when nobody needs it; one always stays.
LINGER = 1.0
#: Seconds after which a call that nobody answered is void: its caller was interrupted before it could
#: start the thread, by a signal handler that raised. The caller itself need not wait for that.
ANSWERED_WITHIN = 1.0

T = TypeVar("T")


class Work(Protocol[T]):
    """What senders ask of their worker."""

    def needed_locked(self) -> bool:
        """Whether someone should watch now."""

    def watch(self) -> T | None:
        """Wait for the next task, without the lock held by the caller; None: the sender is to end."""

    def perform(self, task: T) -> None:
        """Do it. Must not raise."""

    def stranded(self, deadline: float | None) -> None:
        """There is work, no sender, and none can start: the calling thread may do it until `deadline`."""


class Senders(Generic[T]):
    """The threads of one worker.

    Args:
        lock: The worker's.
        maximum: Threads at the same time; at least 1.
        work: What they do.
    """

    def __init__(self, lock: StateLock, maximum: int, work: Work[T]) -> None:
        self._lock = lock
        self._maximum = maximum
        self._work = work
        # Looked up here and not at import: a monkey-patch may have come between.
        self._start_thread: Callable[[Callable[[], None], tuple[()]], int] = _thread.start_new_thread
        self._ident: Callable[[], int] = threading.get_ident
        # Idents of the threads that act as senders. Each adds and takes out its own, in single steps: an
        # ident is used again by a later thread. A `threading.local` takes ten times as long to ask.
        self._acting: set[int] = set()
        # Written only while holding the lock; `leave` reads them without it.
        self._count = 0  # threads that have come and not left
        self._watching = False
        self._called = False  # one was started or notified to take the watch, and has not come yet
        self._void_at = 0.0  # when that call stops counting
        self._owed_by: int | None = None  # ident of the thread that is to start a sender for that call
        self._followers = 0  # threads that wait for the watch
        self._follow = threading.Condition(lock.rlock)

    @property
    def count(self) -> int:
        """Threads that live; at least 1 while the first is on its way."""
        return self._count or int(self._called)

    @property
    def own(self) -> bool:
        """Whether the calling thread is a sender, or acts as one."""
        return self._ident() in self._acting

    def act(self, acting: bool) -> None:
        """Begin or cease to act as a sender on the calling thread."""
        if acting:
            self._acting.add(self._ident())
        else:
            self._acting.discard(self._ident())

    def leave(self, deadline: float | None = None) -> None:
        """After each critical section: run what was left aside, and see that someone watches if needed.

        Args:
            deadline: Monotonic second until which the caller may deliver itself if no thread can start;
                None leaves that to the worker.
        """
        while True:
            self._lock.run_deferred()
            if sys.is_finalizing():
                # No other thread runs any more, whatever it said last.
                if not self._lock.held():
                    self._work.stranded(deadline)
                return
            if (
                self._watching
                or self._awaited()
                or (self._count >= self._maximum and not self._followers)
                or self._lock.held()
            ):
                return
            with self._lock.rlock:
                spawn = self._call_locked()
            if spawn:
                self._spawn(deadline)
            if not self._lock.deferred:
                return  # else something interrupted the section above, and relies on its end

    def _awaited(self) -> bool:
        """Whether one was called and may still come; not while this thread was to start it, and did not."""
        return self._called and time.monotonic() < self._void_at and self._owed_by != self._ident()

    def start(self) -> None:
        """See that there is a sender even though nothing is known to wait."""
        with self._lock.rlock:
            spawn = not self.count and self._call_locked(idle=True)
        if spawn:
            self._spawn(float("inf"))
        self.leave()

    def _call_locked(self, *, idle: bool = False) -> bool:
        """See that someone comes to watch; True when the caller has to start a thread."""
        if self._watching or self._awaited():
            return False
        if not (idle or self._work.needed_locked()):
            return False
        spawn = not self._followers
        if spawn and self._count >= self._maximum:
            return False
        void_at = time.monotonic() + ANSWERED_WITHIN
        owed_by = self._ident() if spawn else None
        if not spawn:
            self._follow.notify()
        # One step to the end.
        self._called = True
        self._void_at = void_at
        self._owed_by = owed_by
        return spawn

    def _spawn(self, deadline: float | None) -> None:
        # Not threading.Thread: its start takes a lock of the threading module that an interrupted
        # thread may hold, and waits for the new thread; a signal handler must do neither.
        try:
            self._start_thread(self._run, ())
            self._owed_by = None
        except (RuntimeError, MemoryError):
            with self._lock.rlock:
                self._called = False
                alone = self._count == 0
            self._lock.run_deferred()
            if alone:
                # The interpreter is ending, or the host is out of threads.
                self._work.stranded(deadline)

    # -- on a sender -----------------------------------------------------------------------------------

    def _run(self) -> None:
        self.act(True)
        try:
            # A thread of ours obeys threading.settrace and setprofile like any other.
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
                return  # its call was void by the time it came
            self._count += 1
        try:
            while self._take_the_watch():
                task = None
                try:
                    task = self._work.watch()
                finally:
                    self._hand_on(ending=task is None)
                if task is None:
                    return
                self._work.perform(task)
        finally:
            with self._lock.rlock:
                self._count -= 1
            self.leave()

    def _take_the_watch(self) -> bool:
        """Wait until nobody watches, and do it; False when nobody needs this sender."""
        with self._lock.rlock:
            leaving = False
            while self._watching:
                if leaving:
                    return False
                self._followers += 1
                try:
                    lingering = self._follow.wait(LINGER)
                finally:
                    self._followers -= 1
                # Whoever comes answers the call, even one meant for another: that one finds it answered.
                called, self._called = self._called, False
                leaving = not (called or lingering)
            self._watching = True
            return True

    def _hand_on(self, *, ending: bool) -> None:
        """Let go of the watch. While nothing waits nobody is woken: this thread comes back to it."""
        with self._lock.rlock:
            self._watching = False
            if ending:
                self._follow.notify_all()  # the others are to end as well
            spawn = self._call_locked()
        if spawn:
            self._spawn(None)
        self.leave()
