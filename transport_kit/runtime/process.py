"""Hooks that end transports with their process and renew them after a fork.

This module owns the hooks: `atexit`, `multiprocessing`'s finalizers and fork; `sigterm.py` has the signal's.
It knows transports only as `Finalizable`, and holds weak references: a hook never keeps a transport alive.

docs/operations.md lists which hook runs when. The first transport installs them; an import installs nothing.

Threads: `watch` may be called from any thread. Fork hooks
run first in the child, which has one thread then; they take no lock.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from transport_kit.runtime.forks import after_fork
from transport_kit.runtime.log import log
from transport_kit.runtime.sigterm import catch_sigterm

__all__ = ["end_all", "Finalizable", "renew_all", "report_left", "ShutdownOptions", "start_all", "watch"]

#: Seconds that the end of the process waits for log lines that senders are writing.
LAST_LINES = 0.2


class ShutdownOptions(Protocol):
    """The option that bounds the time for the end of a process."""

    @property
    def shutdown_timeout(self) -> float:
        """Seconds that the end waits for deliveries."""


class Finalizable(Protocol):
    """A transport as this module sees it: something that ends with the process and is renewed by a fork.

    `transport.base.Transport` implements it. The last four methods are called by this module only.
    """

    @property
    def options(self) -> ShutdownOptions:
        """The options of the transport."""

    def start(self) -> None:
        """Start delivering."""

    def flush(self, timeout: float | None = None) -> object:
        """Deliver all that waits, the contents of buffers included. A timeout of 0 starts it and returns."""

    def end_of_process(self, deadline: float) -> int:
        """Deliver what waits, before the process ends.

        Args:
            deadline: Monotonic seconds at which to stop.

        Returns:
            The number of envelopes that were neither delivered nor stored in a durable queue.
        """

    def can_wait(self) -> bool:
        """Return True if the calling thread may wait for deliveries.

        False in a signal handler that interrupted this thread while it held a lock of the transport, or
        while it was sealing an envelope: the senders may need that lock.
        """

    def renew_after_fork(self) -> None:
        """Replace the state that belongs to the parent process. Called in a forked child.

        Takes no lock: another thread of the parent may have held it at the fork.
        """

    def wants_sigterm(self) -> bool:
        """Return True if SIGTERM, where its disposition is the default, shall deliver what waits first."""


# By id, so that a transport need not be hashable. Operations on one item of a dict are atomic. An entry is
# removed when its transport is collected. There is no lock, as a fork could inherit it locked.
_watched: dict[int, weakref.ref[Finalizable]] = {}
_installed = False
_watches_multiprocessing = False
_reported_in: int | None = None  # the process that has reported the envelopes it leaves


def watch(transport: Finalizable) -> None:
    """End this transport with the process and renew it after a fork, until it is collected."""
    global _installed
    key = id(transport)

    def forget(ref: weakref.ref[Finalizable]) -> None:
        _watched.pop(key, None)

    _watched[key] = weakref.ref(transport, forget)
    if not _installed:
        _installed = True
        atexit.register(_at_exit)
        after_fork(renew_all)
    _watch_multiprocessing()
    if transport.wants_sigterm():
        catch_sigterm(_can_end, end_all)


def _watch_multiprocessing() -> None:
    # A child of multiprocessing ends with os._exit after its finalizers, so atexit may not run in it. When it
    # begins, it drops the finalizers of its parent and of its own imports, but calls the functions registered
    # with register_after_fork. Looked up and not imported: such a child has imported it already.
    global _watches_multiprocessing
    util: Any = sys.modules.get("multiprocessing.util")
    if util is not None and not _watches_multiprocessing:
        _watches_multiprocessing = True
        _register_finalizer()
        util.register_after_fork(_register_finalizer, lambda _: _register_finalizer())


def _register_finalizer() -> None:
    # Low priority: it runs after the finalizers of the app's queues and managers, which may still capture.
    util: Any = sys.modules["multiprocessing.util"]
    util.Finalize(None, end_all, exitpriority=-100)


def _live() -> list[Finalizable]:
    return [transport for ref in list(_watched.values()) if (transport := ref()) is not None]


def start_all() -> None:
    """Start every transport of this process; for a worker after a fork."""
    for transport in _live():
        try:
            transport.start()
        except Exception as error:
            log.error("a transport could not be started: %s", type(error).__name__)


def _at_exit() -> None:
    end_all()
    log.silence(LAST_LINES)


def end_all() -> None:
    """End all transports at the same time, each within its own `shutdown_timeout`.

    Writes one line to stderr if envelopes are left. A second call, by another hook of the same process, ends
    the transports again but writes no second line.
    """
    transports = _live()
    began = time.monotonic()
    for transport in transports:
        _call_safely(transport.flush, 0)
    left = 0
    for transport in transports:
        left += _call_safely(transport.end_of_process, began + transport.options.shutdown_timeout) or 0
    if left:
        report_left(left, max(transport.options.shutdown_timeout for transport in transports), "exit")


def report_left(envelopes: int, seconds: float, end: str) -> None:
    """Write one line to stderr about envelopes that are lost with this process; only once in a process.

    Args:
        envelopes: Their number, at least 1.
        seconds: The time that there was to deliver them.
        end: The name of the end, `exit` or `close`.
    """
    global _reported_in
    if _reported_in == os.getpid():
        return
    _reported_in = os.getpid()
    plural = "" if envelopes == 1 else "s"
    try:
        sys.stderr.write(
            f"transport-kit: {envelopes} envelope{plural} not delivered within {seconds:g} s of {end}\n"
        )
        sys.stderr.flush()
    except Exception:
        pass  # stderr may be closed at exit, and there is no other place to report it


def _call_safely(call: Callable[[float], Any], seconds: float) -> Any:
    """Return the result of `call`; log an exception, so that the other transports still end."""
    try:
        return call(seconds)
    except Exception as error:
        log.error("a transport failed at the end of the process: %s", type(error).__name__)
        return None


def renew_all() -> None:
    """Renew every transport in a forked child; the fork hook calls it."""
    log.renew()
    # gunicorn's gevent worker patches `threading` after the fork. Locks and threads that are made before that
    # are not gevent's, and crash the process at its end. There the first use of a transport renews it, as it
    # notices the new process id.
    if "gevent" not in sys.modules:
        for transport in _live():
            transport.renew_after_fork()
    _watch_multiprocessing()


def _can_end() -> bool:
    return all(transport.can_wait() for transport in _live())
