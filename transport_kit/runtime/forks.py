"""Forks: callbacks for a forked child, sections that no fork may interrupt, and one value per process.

This module owns the one hook that this package registers with `os.register_at_fork`; the first call of
`after_fork` registers it, never an import.

Threads: `fork_guard` may be entered from any thread, one after another. Callbacks of `after_fork` run in the
child before the app's code does, when it has one thread. A fork made in C runs no hook, so `PerProcess`
compares process ids with each `get`.
"""

from __future__ import annotations

import _thread
import os
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from transport_kit.runtime.log import log

__all__ = ["after_fork", "fork_guard", "PerProcess"]

#: Seconds that a fork waits for a guarded section. Imports take a quarter of a second, on a slow disk longer.
LONGEST = 5.0

T = TypeVar("T")


class ForkGuard:
    """A section that no fork of this process interrupts: `with fork_guard: import …`.

    If another thread of the parent is importing a module at the fork, the module's lock stays locked in the
    child, whose sender would wait for it forever. So a fork waits for the section to end, up to `LONGEST`
    seconds. Not re-entrant.
    """

    def __init__(self) -> None:
        # None until the first transport calls `install`: a monkey-patch of `threading` may come before that.
        self._lock: Any = None
        # The thread inside the section, or 0. Written only by the thread that holds `_lock`.
        self._owner = 0
        # Threads that hold `_lock` because they fork. Items are added and discarded atomically.
        self._forkers: set[int] = set()

    def install(self) -> None:
        """Make the lock; until then, sections are not guarded. Called once per process."""
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if self._lock is not None:
            self._lock.acquire()
            self._owner = _thread.get_ident()

    def __exit__(self, *exception: object) -> None:
        # Another owner: the guard was installed, or this thread forked, inside the section.
        if self._owner == _thread.get_ident():
            self._owner = 0
            self._lock.release()

    def before_fork(self) -> None:
        """Wait for the section to end, and keep threads from entering one until the fork is done."""
        thread = _thread.get_ident()
        if self._owner != thread and self._lock.acquire(timeout=LONGEST):
            self._forkers.add(thread)

    def after_fork_in_parent(self) -> None:
        """Let threads enter sections again."""
        thread = _thread.get_ident()
        if thread in self._forkers:
            self._forkers.discard(thread)
            self._lock.release()

    def after_fork_in_child(self) -> None:
        """Replace the lock: the thread that held it is not in this process."""
        self._forkers.clear()
        self._owner = 0
        self._lock = threading.Lock()


fork_guard = ForkGuard()

# Called in each forked child, in order. Each change is one atomic operation; iteration uses a copy.
_callbacks: list[Callable[[], object]] = []
# The thread that registers the hook empties it, atomically.
_unregistered = [True]


def after_fork(callback: Callable[[], object], *, first: bool = False) -> None:
    """Call `callback` in every forked child, in the order of registration. Idempotent.

    Args:
        callback: Takes no lock that another thread of the parent may have held. An exception that it raises
            is logged.
        first: True to call it before the present callbacks; for one that releases the parent's resources.
    """
    if callback not in _callbacks:
        _callbacks.insert(0 if first else len(_callbacks), callback)
    try:
        _unregistered.pop()
    except IndexError:
        return
    fork_guard.install()
    os.register_at_fork(
        before=fork_guard.before_fork,
        after_in_parent=fork_guard.after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )


def _after_fork_in_child() -> None:
    fork_guard.after_fork_in_child()
    for callback in tuple(_callbacks):
        try:
            callback()
        except Exception as error:
            log.error("a fork hook failed: %s", type(error).__name__)


class _Holder(Generic[T]):
    """The value of one process, and the holders of its forked children by process id."""

    __slots__ = ("children", "parent", "pid", "value")

    def __init__(self, pid: int, value: T, parent: _Holder[T] | None) -> None:
        self.pid = pid
        self.value = value
        # The reference keeps it from being finalized in the child, which would copy its memory and could wait
        # for a lock that another thread of the parent held.
        self.parent = parent
        self.children: dict[int, _Holder[T]] = {}


class PerProcess(Generic[T]):
    """One value per process. A forked child builds its own and never changes its parent's.

    Threads: every method, from any thread, signal handler or fork hook; none takes a lock. Threads of a child
    may build at the same time; `dict.setdefault` is atomic, so one of their values is chosen and all get it.

    Args:
        build: Makes a value; called with None at once, and in a forked child with its ancestor's value. The
            value that it makes may be thrown away.
        adopt: Called once in each forked child with the chosen value, by the thread that built it; for what
            must not be done twice. Other threads may use the value already.
        process: Returns the id of this process; None is `os.getpid`.
    """

    __slots__ = ("_adopt", "_build", "_holder", "_process")

    def __init__(
        self,
        build: Callable[[T | None], T],
        adopt: Callable[[T], object] | None = None,
        process: Callable[[], int] | None = None,
    ) -> None:
        self._build = build
        self._adopt = adopt
        self._process = process
        # Replaced only by the holder of a descendant.
        self._holder: _Holder[T] = _Holder((process or os.getpid)(), build(None), None)

    def get(self) -> T:
        """Return this process's value, built now by the first call after a fork.

        Raises:
            Exception: As raised by `build`; the next call builds again.
        """
        holder = self._holder
        pid = (self._process or os.getpid)()
        if holder.pid == pid:
            return holder.value
        return self._renew(holder, pid)

    def _renew(self, ancestor: _Holder[T], pid: int) -> T:
        holder = ancestor.children.get(pid)
        if holder is None:
            built = _Holder(pid, self._build(ancestor.value), ancestor)
            holder = ancestor.children.setdefault(pid, built)
            self._holder = holder
            if holder is built and self._adopt is not None:
                self._adopt(holder.value)
        self._holder = holder
        return holder.value

    def inherited(self) -> T | None:
        """Return the ancestor's value in a forked child that has not built its own; None otherwise."""
        holder = self._holder
        return None if holder.pid == (self._process or os.getpid)() else holder.value
