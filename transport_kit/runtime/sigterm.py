"""SIGTERM: delivers what waits before the signal ends the process.

This module owns the handler. It is installed only where the signal's disposition is the default: any other
was chosen by the app or its server, and stays.

Threads: `catch_sigterm` may be called from any thread, and has an effect on the main thread only, as Python
allows. The handler runs on the main thread.
"""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

__all__ = ["catch_sigterm"]

#: Seconds after which a SIGTERM that can't be handled yet is sent to this process again.
SIGNAL_AGAIN = 0.01


def _always() -> bool:
    return True


def _nothing() -> None:
    pass


# Replaced by `catch_sigterm` before the handler is installed.
_can_end: Callable[[], bool] = _always
_end: Callable[[], object] = _nothing


def catch_sigterm(can_end: Callable[[], bool], end: Callable[[], object]) -> None:
    """Call `end` when SIGTERM arrives, then let the signal end the process as it would have.

    Args:
        can_end: Returns False while the main thread is inside a critical section that `end` needs.
        end: Returns when the process may end.
    """
    global _can_end, _end
    if _thread.get_ident() != threading.main_thread().ident:
        return
    try:
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            _can_end, _end = can_end, end
            signal.signal(signal.SIGTERM, _on_sigterm)
    except ValueError:
        pass  # a subinterpreter, which can't handle signals


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    if signal.getsignal(number) is not _on_sigterm:
        return  # another handler was installed since and calls this one: that handler ends the process
    if not _can_end():
        # The signal interrupted the main thread while it held a transport's lock, which the senders need.
        # Return, so that it can release the lock, and send the signal again.
        try:
            _thread.start_new_thread(_resend, (number,))
            return
        except RuntimeError:
            pass
    else:
        _end()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _resend(number: int) -> None:
    time.sleep(SIGNAL_AGAIN)
    os.kill(os.getpid(), number)
