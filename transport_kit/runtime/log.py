"""Our log lines: all under the logger `transport_kit`, none of which can hurt the app.

Owns the logger, and the silence at the end of the process. What is logged, and how often, is decided by
whoever logs.

Threads: any, a sender included. No lock: a fork would inherit it held.
"""

from __future__ import annotations

import _thread
import logging
import time

from transport_kit.runtime.interrupts import let_through

__all__ = ["log"]


class _Log:
    """The logger, whose handlers belong to the app: what they raise stays here."""

    def __init__(self) -> None:
        self._logger = logging.getLogger("transport_kit")
        # Threads inside a handler right now. Items are set and deleted atomically.
        self._inside: dict[int, None] = {}
        self._silent = False

    def info(self, message: str, *arguments: object) -> None:
        self._log(logging.INFO, message, arguments)

    def warning(self, message: str, *arguments: object) -> None:
        self._log(logging.WARNING, message, arguments)

    def error(self, message: str, *arguments: object) -> None:
        self._log(logging.ERROR, message, arguments)

    def exception(self, message: str, *arguments: object) -> None:
        """An error with the traceback of the exception being handled."""
        self._log(logging.ERROR, message, arguments, exc_info=True)

    def _log(self, level: int, message: str, arguments: tuple[object, ...], exc_info: bool = False) -> None:
        me = _thread.get_ident()
        if self._silent or me in self._inside:
            # A handler that captures our own lines, and so fails us once more, would never come to an end.
            return
        try:
            self._inside[me] = None
            self._logger.log(level, message, *arguments, exc_info=exc_info, stacklevel=3)
        except Exception as error:
            let_through(error)
            # a handler's own failure, and the only place to tell is the one that fails
        finally:
            self._inside.pop(me, None)

    def silence(self, within: float) -> None:
        """Log nothing from now on, and wait up to `within` seconds for lines that are being written.

        The interpreter is about to end. A daemon thread that it stops while writing to stderr leaves the
        stream's lock held, and the interpreter aborts over it.
        """
        self._silent = True
        deadline = time.monotonic() + within
        me = _thread.get_ident()
        while any(other != me for other in self._inside.copy()) and time.monotonic() < deadline:
            time.sleep(0.001)

    def renew(self) -> None:
        """In a forked child: its parent's threads are not here, nor is its parent's end."""
        self._inside.clear()
        self._silent = False


log = _Log()
