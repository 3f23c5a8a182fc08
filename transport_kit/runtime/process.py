"""The ends and the beginnings of a process, seen from a transport.

Owns the hooks: `atexit`, `multiprocessing`'s finalizers, SIGTERM, and fork. Knows transports only as
objects that can end and renew themselves, and holds them weakly: a hook never keeps one alive.

What fires where is in docs/operations.md. Nothing is installed at import; the first transport does it.

Threads: `watch` may be called from any thread. The SIGTERM handler runs on the main thread. Fork hooks
run in the child before anything else does, when it has one thread; they take no lock.
"""

from __future__ import annotations

import _thread
import atexit
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

from transport_kit.runtime.forks import after_fork
from transport_kit.runtime.log import log

__all__ = ["end_all", "Finalizable", "renew_all", "ShutdownOptions", "start_all", "watch"]

#: Seconds after which a SIGTERM that came at a bad moment is sent to ourselves again.
SIGNAL_AGAIN = 0.01
#: Seconds that the end waits for log lines that senders are writing.
LAST_LINES = 0.2


class ShutdownOptions(Protocol):
    """The option that bounds the end of a process."""

    @property
    def shutdown_timeout(self) -> float:
        """Seconds that an end waits for deliveries."""


class Finalizable(Protocol):
    """What this room needs of a transport."""

    @property
    def options(self) -> ShutdownOptions:
        """The options that it was built with."""

    def start(self) -> None:
        """Begin delivering now."""

    def flush(self, timeout: float | None = None) -> object:
        """With a timeout of 0: begin to deliver all there is, buffers above included, and don't wait."""

    def _end_of_process(self, deadline: float) -> int:
        """Deliver what waits until the monotonic second `deadline`; how many envelopes are left behind."""

    def _can_wait(self) -> bool:
        """Whether the calling thread may wait: false inside an interrupted critical section."""

    def _renew_after_fork(self) -> None:
        """In a forked child: be new again. Takes no lock that another thread may have held."""

    def _wants_sigterm(self) -> bool:
        """Whether a default-disposed SIGTERM shall drain first."""


# Keyed by id so that a transport need not be hashable. A dict's item operations are atomic; entries go
# when their transport does. No lock: a fork would inherit it held.
_watched: dict[int, weakref.ref[Finalizable]] = {}
_installed = False
_watches_multiprocessing = False
_reported_in: int | None = None  # the process that said what it leaves behind


def watch(transport: Finalizable) -> None:
    """See this transport through the ends of the process and through forks, until it is collected."""
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
    if transport._wants_sigterm():
        _catch_sigterm()


def _watch_multiprocessing() -> None:
    # A child of multiprocessing ends by os._exit after its finalizers: atexit may not run there. And when
    # it begins, it forgets the finalizers of its parent and of its own imports; only what is registered
    # to be called after a fork is called then. Looked up, not imported: who ends that way has it.
    global _watches_multiprocessing
    util: Any = sys.modules.get("multiprocessing.util")
    if util is not None and not _watches_multiprocessing:
        _watches_multiprocessing = True
        _finalize()
        util.register_after_fork(_finalize, lambda _: _finalize())


def _finalize() -> None:
    # Low priority: after the queues and managers of the app, which may still capture.
    util: Any = sys.modules["multiprocessing.util"]
    util.Finalize(None, end_all, exitpriority=-100)


def _live() -> list[Finalizable]:
    return [transport for ref in list(_watched.values()) if (transport := ref()) is not None]


def start_all() -> None:
    """Begin delivering in every transport of this process, such as in a worker after a fork."""
    for transport in _live():
        try:
            transport.start()
        except Exception as error:
            log.error("a transport could not be started: %s", type(error).__name__)


def _at_exit() -> None:
    end_all()
    log.silence(LAST_LINES)


def end_all() -> None:
    """Deliver what waits in every transport, each within its own time, all at the same time.

    Says on stderr what is left behind, in one line, and nothing when nothing is. A further call, by the
    other hook of the same process, waits for what is left of the time and says nothing more.
    """
    global _reported_in
    transports = _live()
    began = time.monotonic()
    for transport in transports:
        _guarded(transport.flush, 0)
    left = 0
    for transport in transports:
        left += _guarded(transport._end_of_process, began + transport.options.shutdown_timeout) or 0
    if left and _reported_in != os.getpid():
        _reported_in = os.getpid()
        longest = max(transport.options.shutdown_timeout for transport in transports)
        message = (
            f"transport-kit: {left} envelope{'s'[: left != 1]} not delivered within {longest:g} s of exit\n"
        )
        try:
            sys.stderr.write(message)
            sys.stderr.flush()
        except Exception:
            pass  # stderr may be gone at exit, and there is nobody else to tell


def _guarded(call: Callable[[float], Any], seconds: float) -> Any:
    """One transport's failure, of a class that is not ours perhaps, is not the others'."""
    try:
        return call(seconds)
    except Exception as error:
        log.error("a transport failed at the end of the process: %s", type(error).__name__)
        return None


def renew_all() -> None:
    """In a forked child: each transport is new again. Called by the fork itself."""
    log.renew()
    # gunicorn's gevent worker patches `threading` after the fork. Threads that were taken from it before are
    # real ones, and the process dies of them at its end. The first use renews, too: it sees another process.
    if "gevent" not in sys.modules:
        for transport in _live():
            transport._renew_after_fork()
    _watch_multiprocessing()


def _catch_sigterm() -> None:
    if _thread.get_ident() != threading.main_thread().ident:
        return
    try:
        # A callable belongs to a server that knows how to end; SIG_IGN and None are somebody's decision.
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _on_sigterm)
    except ValueError:
        pass  # a subinterpreter: signals are not ours there


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    if signal.getsignal(number) is not _on_sigterm:
        return  # somebody installed a handler of their own since, and calls us from it: the end is theirs
    if not all(transport._can_wait() for transport in _live()):
        # We interrupted the main thread while it held a transport's lock, which the senders need: let
        # it go on for a moment.
        try:
            _thread.start_new_thread(_send_again, (number,))
            return
        except RuntimeError:
            pass
    else:
        end_all()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _send_again(number: int) -> None:
    time.sleep(SIGNAL_AGAIN)
    os.kill(os.getpid(), number)
